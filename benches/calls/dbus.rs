//! The brokered IPC that a Linux user has: an echo through dbus-daemon, by zbus (benches/dbus).

use super::stage::{Stage, once};
use super::{Outcome, Skipped};
use crate::common::Killed;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A bus of our own, on which everybody may do everything.
fn configuration(socket: &Path) -> String {
    format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
         <busconfig><type>session</type><listen>unix:path={}</listen>\
         <policy context=\"default\"><allow send_destination=\"*\"/>\
         <allow receive_sender=\"*\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy>\
         </busconfig>\n",
        socket.display()
    )
}

/// Builds the program, which is a package of its own; why that cannot be, in a line.
pub fn build() -> Result<PathBuf, String> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = project.join("target/bench/dbus");
    let built = Command::new(option_env!("CARGO").unwrap_or("cargo"))
        .args(["build", "--release", "--quiet", "--locked", "--manifest-path"])
        .arg(project.join("benches/dbus/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    let said = String::from_utf8_lossy(&built.stderr);
    match built.status.success() {
        true => Ok(target.join("release/fakebinder-bench-dbus")),
        false => {
            let error = said.lines().find(|line| line.starts_with("error"));
            Err(format!("benches/dbus does not build: {}", error.unwrap_or("no word why")))
        }
    }
}

/// dbus-daemon with a socket of its own, which is gone with it.
struct Bus {
    _daemon: Killed,
    socket: PathBuf,
    configuration: PathBuf,
    log: PathBuf,
}

impl Bus {
    fn start(pinned: bool) -> Outcome<Bus> {
        let own = std::env::temp_dir().join(crate::common::unique_name());
        let (socket, file) = (own.with_extension("bus"), own.with_extension("conf"));
        std::fs::write(&file, configuration(&socket))?;
        let mut command = Command::new(if pinned { "taskset" } else { "dbus-daemon" });
        if pinned {
            command.args(["-c", "0", "dbus-daemon"]);
        }
        command.arg(format!("--config-file={}", file.display()));
        command.args(["--nofork", "--nopidfile", "--print-address"]);
        let log = own.with_extension("log");
        command.stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut daemon = Killed(command.spawn()?);
        let mut bus = BufReader::new(daemon.0.stdout.take().expect("a pipe"));
        let mut address = String::new();
        let bus_here = bus.read_line(&mut address)? > 0;
        let bus = Bus { _daemon: daemon, socket, configuration: file, log };
        match bus_here {
            true => Ok(bus),
            false => Err(format!("dbus-daemon: {}", std::fs::read_to_string(&bus.log)?).into()),
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(&self.configuration);
        let _ = std::fs::remove_file(&self.log);
    }
}

/// The median of one echo.
pub fn measure(stage: &Stage, pinned: bool) -> Outcome<Vec<f64>> {
    let program = stage.dbus.as_ref().map_err(|reason| Skipped(reason.clone()))?;
    if Command::new("dbus-daemon").arg("--version").output().is_err() {
        return Err(Skipped("it takes dbus-daemon".into()).into());
    }
    let bus = Bus::start(pinned)?;
    let address = format!("unix:path={}", bus.socket.display());
    let _server = Stage::start(program, &[&address, "serve"], pinned)?;
    let count = stage.sizes.calls.to_string();
    let mut caller = Stage::start(program, &[&address, "call", &count], pinned)?;
    Ok(vec![once(&mut caller)?.median])
}
