//! A machine of one's own for shell scripts: a `/dev` and a `/run` that are not this machine's,
//! where whatever a script makes is gone when it ends, and a folder of programs for everybody.

use super::{Door, in_time, program, skip, unique_name};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// The user that scripts are run as who are not root: one without rights, for whom there is a
/// directory as for a user who has logged in.
pub const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// Processes in it end with it. `SETUP`: what else is made there, as root; `PROGRAMS`: the folder;
/// `RELEASE`: where fakebinder's programs were built, which not everybody may reach.
const MACHINE: &str = r#"
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/dev && mount -t tmpfs -o mode=755 tmpfs /run/dev
for device in null zero full random urandom tty; do
    touch /run/dev/$device && mount --bind /dev/$device /run/dev/$device
done
mknod -m 666 /run/dev/fuse c 10 229
[ ! -c /dev/cuse ] || mknod -m 600 /run/dev/cuse c 10 203
mkdir /run/dev/pts /run/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts /run/dev/pts && ln -s pts/ptmx /run/dev/ptmx
mount --rbind /run/dev /dev
mkdir -p -m 755 /run/user && mkdir -m 700 /run/user/65534 && chown 65534:65534 /run/user/65534
for built in "$RELEASE"/fakebinderd "$RELEASE"/fakebinder "$RELEASE"/fb-ping "$RELEASE"/libfakebinder_preload.so; do
    touch "$PROGRAMS/${built##*/}" && mount --bind "$built" "$PROGRAMS/${built##*/}"
done
eval "$SETUP"
exec "$@"
"#;

/// A program that serves and calls: both know nothing of fakebinder. `TRIES`: how often it calls
/// until it gives up, 10 in a second.
const YOUR_PROGRAM: &str = r#"#!/bin/sh
here=${0%/*}
"$here/raw-ping" "$1" serve &
tries=0
until "$here/raw-ping" "$1"; do
    # Nobody serves yet.
    [ $? = 5 ] && [ $((tries += 1)) -lt "${TRIES:-100}" ] || { kill $!; exit 1; }
    sleep 0.1
done
wait $! && echo "your-program: answered on $1"
"#;

/// The two halves of it. The first says by whom it was called.
const YOUR_SERVICE: &str = "#!/bin/sh\nexec \"${0%/*}/raw-ping\" \"$1\" serve\n";
const YOUR_CLIENT: &str = r#"#!/bin/sh
tries=0
until "${0%/*}/raw-ping" "$1"; do
    [ $? = 5 ] && [ $((tries += 1)) -lt "${TRIES:-100}" ] || exit 1
    sleep 0.1
done
"#;

/// A folder of programs for everybody to run; gone when dropped.
pub struct Programs(pub PathBuf);

impl Programs {
    /// fakebinder's own, and some that know nothing of it: `your-program`, `your-service` and
    /// `your-client`, and what these call, `raw-ping`.
    pub fn new() -> Programs {
        let programs = Programs::own();
        programs.build("raw-ping", "tests/raw_ping.c", &["-DLIBC"]);
        for (name, script) in [
            ("your-program", YOUR_PROGRAM),
            ("your-service", YOUR_SERVICE),
            ("your-client", YOUR_CLIENT),
        ] {
            let path = programs.0.join(name);
            fs::write(&path, script).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        programs
    }

    /// fakebinder's own.
    pub fn own() -> Programs {
        for name in ["fb-ping", "fakebinder", "libfakebinder_preload.so"] {
            program(name);
        }
        let folder = std::env::temp_dir().join(unique_name() + "-programs");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        Programs(folder)
    }

    /// Adds a C program of this project.
    pub fn build(&self, name: &str, source: &str, flags: &[&str]) {
        let mut gcc = Command::new("gcc");
        gcc.arg("-O2").args(flags).arg("-o").arg(self.0.join(name));
        gcc.arg(Path::new(PROJECT).join(source));
        assert!(gcc.status().unwrap().success(), "{source} builds");
    }

    /// What a script says and how it ends, in a machine with that setup, run by a program such as
    /// [`NOBODY`].
    pub fn run(&self, setup: &str, script: &str, by: &[&str]) -> Output {
        let mut machine = self.machine(18, setup, script, by);
        in_time("a script", move || machine.output().unwrap())
    }

    /// What runs the script: [`Programs::run`] for one that may take more seconds, or that is to
    /// start elsewhere or with another environment.
    pub fn machine(&self, seconds: u32, setup: &str, script: &str, by: &[&str]) -> Command {
        // A script that hangs must not outlive the test.
        let mut machine = Command::new("timeout");
        machine.args(["--signal=KILL", &seconds.to_string(), "unshare"]);
        // And a network of its own, in which LXC's names are its own.
        machine.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        machine.args(["sh", "-c", MACHINE, "machine"]).args(by).args(["sh", "-eu", "-c"]);
        machine.arg(script).stdin(Stdio::null()).current_dir("/").env("SETUP", setup);
        for name in ["RUST_LOG", "XDG_RUNTIME_DIR"] {
            machine.env_remove(name);
        }
        let usual = std::env::var("PATH").unwrap();
        machine.env("PATH", format!("{}:{usual}:/usr/sbin:/sbin", self.0.display()));
        machine.env("LD_LIBRARY_PATH", &self.0).env("PROGRAMS", &self.0);
        machine.env("RELEASE", Path::new(env!("CARGO_BIN_EXE_fakebinderd")).parent().unwrap());
        machine
    }
}

/// The first commands under a heading of a document.
pub fn recipe(document: &str, heading: &str) -> String {
    let text = fs::read_to_string(Path::new(PROJECT).join(document)).unwrap();
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect("the heading is there");
    let section = section.split("\n## ").next().unwrap();
    let (_, commands) = section.split_once("\n```sh\n").expect("commands are there");
    commands.split_once("\n```\n").expect("they end").0.to_owned()
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether such a machine can be had, with these programs.
pub fn possible(programs: &[&str]) -> bool {
    let here = |name: &str| {
        let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
        found.is_ok_and(|output| output.status.success())
    };
    if !nix::unistd::geteuid().is_root() || !Door::Fuse.is_here() {
        skip("it takes root and /dev/fuse");
        return false;
    }
    for program in ["unshare", "setpriv", "gcc"].iter().chain(programs) {
        if !here(program) {
            skip(&format!("{program} is not here (scripts/install-deps test)"));
            return false;
        }
    }
    true
}

/// Whether it ended well, and each of these begins a line of what it said, in this order.
#[track_caller]
pub fn says(output: &Output, lines: &[&str]) {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut rest = said.lines();
    let all = lines.iter().all(|line| rest.any(|it| it.starts_with(line)));
    assert!(output.status.success() && all, "{lines:?}: {}", told(output));
}

/// How it ended and what it said, to be read.
pub fn told(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr))
}
