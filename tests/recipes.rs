//! The recipes of README.md, docs/containers.md and docs/libraries.md work as they stand there.

mod common;

use common::{Door, library, program, rsbinder, skip, unique_name};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");
const CONTAINERS: &str = "docs/containers.md";
const LIBRARIES: &str = "docs/libraries.md";

/// How long a recipe may take at most: one builds a program.
const MOST: Duration = Duration::from_secs(300);

/// Gives a recipe a machine of its own: a /dev and a /run that are not this machine's, and
/// processes that end with it.
const MACHINE: &str = r#"
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/dev && mount -t tmpfs -o mode=755 tmpfs /run/dev
for device in null zero full random urandom tty; do
    touch /run/dev/$device && mount --bind /dev/$device /run/dev/$device
done
mknod -m 666 /run/dev/fuse c 10 229
mkdir /run/dev/pts /run/dev/shm
mount --rbind /run/dev /dev
mkdir /run/log && mount --bind /run/log /var/log
cp -a /etc /run/etc && mount --bind /run/etc /etc
exec "$@"
"#;

/// A program that serves and calls: both know nothing of fakebinder.
const YOUR_PROGRAM: &str = r#"#!/bin/sh
here=${0%/*}
"$here/raw-ping" "$1" serve &
tries=0
until "$here/raw-ping" "$1"; do
    # Nobody serves yet.
    [ $? = 5 ] && [ $((tries += 1)) -lt 100 ] || { kill $!; exit 1; }
    sleep 0.1
done
wait $! && echo "your-program: answered on $1"
"#;

/// A folder of programs for everybody to run; gone when dropped.
struct Programs(PathBuf);

impl Programs {
    /// Those of examples/rsbinder and of rsbinder's tools, too; `None` where they cannot be had.
    fn with_rsbinder() -> Option<Programs> {
        let built = rsbinder::programs()?;
        let programs = Programs::new();
        for name in ["board-service", "board-client", "rsb_hub", "rsb_service"] {
            symlink(built.join(name), programs.0.join(name)).unwrap();
        }
        Some(programs)
    }

    fn new() -> Programs {
        let folder = std::env::temp_dir().join(unique_name() + "-programs");
        fs::create_dir(&folder).unwrap();
        let programs = Programs(folder);
        let daemon = PathBuf::from(env!("CARGO_BIN_EXE_fakebinderd"));
        for built in [daemon, program("fb-ping"), library("libfakebinder_preload.so")] {
            fs::copy(&built, programs.0.join(built.file_name().unwrap())).unwrap();
        }
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-DLIBC", "-o"]).arg(programs.0.join("raw-ping"));
        gcc.arg(Path::new(PROJECT).join("tests/raw_ping.c"));
        assert!(gcc.status().unwrap().success(), "raw_ping.c builds");
        fs::write(programs.0.join("your-program"), YOUR_PROGRAM).unwrap();
        for entry in fs::read_dir(&programs.0).unwrap() {
            let path = entry.unwrap().path();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::set_permissions(&programs.0, fs::Permissions::from_mode(0o755)).unwrap();
        programs
    }

    fn run(&self, recipe: &str, as_user: &[&str]) -> Output {
        let mut machine = self.machine(recipe, as_user);
        common::in_time("a recipe", move || machine.output().unwrap())
    }

    /// The same for a recipe that takes longer.
    fn run_long(&self, recipe: &str) -> Output {
        self.machine(recipe, &[]).output().unwrap()
    }

    /// The same, started from a folder, which is also the home of who starts it.
    fn run_from(&self, folder: &Path, recipe: &str) -> Output {
        let real = |name: &str, folder: &str| {
            let home = PathBuf::from(std::env::var_os("HOME").unwrap());
            std::env::var_os(name).map_or_else(|| home.join(folder), PathBuf::from)
        };
        let mut machine = self.machine(recipe, &[]);
        machine.env("CARGO_HOME", real("CARGO_HOME", ".cargo"));
        machine.env("RUSTUP_HOME", real("RUSTUP_HOME", ".rustup"));
        machine.env("HOME", folder).current_dir(folder).output().unwrap()
    }

    fn machine(&self, recipe: &str, as_user: &[&str]) -> Command {
        // What hangs is ended with all that it has started.
        let mut machine = Command::new("timeout");
        machine.args(["--signal=KILL", &MOST.as_secs().to_string(), "unshare"]);
        machine.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        machine.args(["sh", "-c", MACHINE, "machine"]).args(as_user).args(["sh", "-eu", "-c"]);
        machine.arg(recipe).stdin(Stdio::null()).env_remove("RUST_LOG").current_dir("/");
        let usual = std::env::var("PATH").unwrap();
        machine.env("PATH", format!("{}:{usual}:/usr/sbin:/sbin", self.0.display()));
        machine.env("LD_LIBRARY_PATH", &self.0);
        machine
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The commands under this heading of a document.
fn recipe(document: &str, heading: &str) -> String {
    let text = fs::read_to_string(Path::new(PROJECT).join(document)).unwrap();
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect("the heading is there");
    let section = section.split("\n## ").next().unwrap();
    let (_, commands) = section.split_once("\n```sh\n").expect("commands are there");
    commands.split_once("\n```\n").expect("they end").0.to_owned()
}

fn possible() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let here = |name: &str| {
        let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
        found.is_ok_and(|output| output.status.success())
    };
    if !root || !Door::Fuse.is_here() {
        skip("it takes root and /dev/fuse");
        return false;
    }
    for program in ["bwrap", "unshare", "setpriv", "gcc"] {
        if !here(program) {
            skip(&format!("{program} is not here (scripts/install-deps test)"));
            return false;
        }
    }
    true
}

/// Whether each of these is said, in this order.
#[track_caller]
fn says(output: &Output, lines: &[&str]) {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut rest = said.lines();
    let all = lines.iter().all(|line| rest.any(|it| it.starts_with(line)));
    assert!(output.status.success() && all, "{output:#?}");
}

#[test]
fn a_daemon_in_a_container_serves_users_of_every_uid() {
    if !possible() {
        return;
    }
    let programs = Programs::new();
    let recipe = recipe(CONTAINERS, "The daemon in the container");
    let output = programs.run(&recipe, &[]);
    says(
        &output,
        &[
            "/dev/binderfs/binder",
            "/dev/binderfs/binder-control",
            "your-program: answered on /dev/binderfs/binder",
            "your-program: answered on /dev/binder",
            "your-program: answered on /dev/binderfs/hwbinder",
        ],
    );
    // The capability is what other users need.
    let without = recipe.replace(" --cap-add CAP_SYS_PTRACE", "");
    assert_ne!(without, recipe);
    let output = programs.run(&without, &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.matches(": answered").count(), 2, "{output:#?}");
    assert!(!output.status.success(), "{output:#?}");
}

#[test]
fn a_daemon_outside_serves_a_container_without_capabilities() {
    if !possible() {
        return;
    }
    let output = Programs::new().run(&recipe(CONTAINERS, "The daemon outside"), &[]);
    says(&output, &["your-program: answered on /dev/binderfs/binder"]);
}

#[test]
fn an_ordinary_user_has_a_daemon_in_a_namespace() {
    if !possible() {
        return;
    }
    let programs = Programs::new();
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let recipe = recipe(CONTAINERS, "Without root");
    let output = programs.run(&recipe, &user);
    let lines = [
        "your-program: answered on /dev/binderfs/binder",
        "fb-ping: /dev/binderfs/binder: 10000 transactions, 0 failed",
    ];
    says(&output, &lines);
    // The library is what the program needs.
    let without = recipe.replace("LD_PRELOAD=libfakebinder_preload.so ", "");
    assert_ne!(without, recipe);
    assert!(!programs.run(&without, &user).status.success());
}

#[test]
fn a_service_of_ones_own_takes_a_few_commands() {
    if !possible() || rsbinder::programs().is_none() {
        return;
    }
    let programs = Programs::new();
    let folder = programs.0.join("clone");
    fs::create_dir_all(folder.join("target/release")).unwrap();
    symlink(env!("CARGO_BIN_EXE_fakebinderd"), folder.join("target/release/fakebinderd")).unwrap();
    symlink(Path::new(PROJECT).join("examples"), folder.join("examples")).unwrap();
    fs::write(programs.0.join("sudo"), "#!/bin/sh\nexec \"$@\"\n").unwrap();
    fs::set_permissions(programs.0.join("sudo"), fs::Permissions::from_mode(0o755)).unwrap();
    // Crates that are compiled already need not be once more (Rust 1.91).
    let recipe = format!(
        "export CARGO_BUILD_BUILD_DIR={}\n{}",
        rsbinder::built().display(),
        recipe("README.md", "A service of your own, in ten minutes")
    );
    let output = programs.run_from(&folder, &recipe);
    let lines = ["registered ", "load         100000 calls by 8 clients, 0 failed, ", "death "];
    says(&output, &lines);
}

#[test]
fn rsbinder_is_told_which_device() {
    if !possible() {
        return;
    }
    let Some(programs) = Programs::with_rsbinder() else { return };
    let lines = [
        "load         1000 calls by 2 clients, 0 failed, ",
        "manager",
        "board: not registered",
        "board has left other, and was never on binder",
    ];
    says(&programs.run_long(&recipe(LIBRARIES, "rsbinder")), &lines);
}

/// What binder-list says, and whether binder-ping finds the service, at each level of the API.
const LEVELS: &str = r#"
for level in none 28 29 30 31 34 35 36; do
    rm -f /etc/gbinder.d/fakebinder.conf
    [ $level = none ] || printf "[General]\nApiLevel = $level\n" >/etc/gbinder.d/fakebinder.conf
    found=nothing
    if timeout 20 binder-ping -q -d /dev/binder board; then found=board; fi
    echo "$level: finds $found, lists" $(timeout 20 binder-list -d /dev/binder)
done
rm -f /etc/gbinder.d/fakebinder.conf
printf '[Protocol]\nDefault = aidl3\n[ServiceManager]\nDefault = aidl6\n' >/etc/gbinder.conf
echo "by another name:" $(binder-list -d /dev/binderfs/binder)
binder-ping -d /dev/binderfs/binder board 2>&1 || echo "status $?"
"#;

#[test]
fn libgbinder_is_told_which_protocol() {
    if !possible() {
        return;
    }
    let Some(programs) = Programs::with_rsbinder() else { return };
    let fetch = Command::new(Path::new(PROJECT).join("tests/fetch-libgbinder")).output().unwrap();
    let said = String::from_utf8_lossy(&fetch.stdout).into_owned();
    if !fetch.status.success() {
        return skip(said.trim_end().trim_start_matches("SKIPPED: "));
    }
    for name in ["binder-list", "binder-ping", "binder-call", "binder-bridge"] {
        symlink(Path::new(said.trim_end()).join(name), programs.0.join(name)).unwrap();
    }
    let output = programs.run_long(&(recipe(LIBRARIES, "libgbinder") + LEVELS));
    let lines = [
        "OK",
        "board",
        "manager",
        "0 \"hello, binder\"",
        "board: registered (board.IBoard)",
        "0 \"hello, bridge\"",
        "notes: 0",
        "none: finds nothing, lists",
        "28: finds nothing, lists",
        "29: finds nothing, lists",
        "30: finds nothing, lists",
        "31: finds nothing, lists",
        "34: finds nothing, lists",
        "35: finds board, lists",
        "36: finds board, lists board manager",
        "by another name: board manager",
        "ERROR: Ping failed (-74)",
        "status 3",
    ];
    says(&output, &lines);
    // Whoever finds nothing lists nothing.
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.lines().filter(|line| line.ends_with("lists")).count(), 7, "{said}");
}
