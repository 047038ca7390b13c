//! The recipes of docs/containers.md work as they stand there.

mod common;

use common::{Door, library, program, skip, unique_name};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

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
        let mut machine = Command::new("unshare");
        machine.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        machine.args(["sh", "-c", MACHINE, "machine"]).args(as_user).args(["sh", "-eu", "-c"]);
        machine.arg(recipe).stdin(Stdio::null()).env_remove("RUST_LOG").current_dir("/");
        let usual = std::env::var("PATH").unwrap();
        machine.env("PATH", format!("{}:{usual}:/usr/sbin:/sbin", self.0.display()));
        machine.env("LD_LIBRARY_PATH", &self.0);
        common::in_time("a recipe", move || machine.output().unwrap())
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The commands under this heading.
fn recipe(heading: &str) -> String {
    let text = fs::read_to_string(Path::new(PROJECT).join("docs/containers.md")).unwrap();
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
    let recipe = recipe("The daemon in the container");
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
    let output = Programs::new().run(&recipe("The daemon outside"), &[]);
    says(&output, &["your-program: answered on /dev/binderfs/binder"]);
}

#[test]
fn an_ordinary_user_has_a_daemon_in_a_namespace() {
    if !possible() {
        return;
    }
    let programs = Programs::new();
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let recipe = recipe("Without root");
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
