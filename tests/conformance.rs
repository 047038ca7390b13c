//! The conformance tests and random programs, on the FUSE door of this machine. The measure is the
//! kernel's driver: each test passes there, and what the programs give there was recorded (see
//! docs/conformance.md). tests/vm runs both on the driver itself.

mod common;

use common::{Daemon, Door, program, skip, unique_name};
use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const RECORDING: &str = "tests/expected/driver-programs.txt";
/// So many of each seed; `fb-differ --against` runs all.
const PROGRAMS: &str = "400";

/// Two devices, for two tests or programs at a time.
fn run_on_fuse(name: &str, arguments: &[&str]) -> Output {
    let second = unique_name();
    let daemon = Daemon::start_with(&["--name", &second], None);
    let mut command = Command::new(program(name));
    command.arg("--device").arg(daemon.fuse()).arg("--device").arg(daemon.mount.join(&second));
    let done = command.args(arguments).current_dir(ROOT).output().expect("it is built");
    daemon.stop();
    done
}

fn must_succeed(done: &Output) -> String {
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let told: Vec<_> = text.lines().filter(|line| !line.starts_with("ok ")).collect();
    assert!(
        done.status.success(),
        "{}\n{}\n{}",
        done.status,
        told.join("\n"),
        String::from_utf8_lossy(&done.stderr)
    );
    text
}

#[test]
fn every_conformance_test_passes_on_the_fuse_door() {
    if !Door::Fuse.is_here() {
        return skip("no /dev/fuse");
    }
    let text = must_succeed(&run_on_fuse("fb-conformance", &[]));
    println!("{}", text.lines().last().unwrap_or_default());
}

#[test]
fn random_programs_give_what_the_driver_gave() {
    if !Door::Fuse.is_here() {
        return skip("no /dev/fuse");
    }
    let arguments = ["--against", RECORDING, "--programs", PROGRAMS];
    let text = must_succeed(&run_on_fuse("fb-differ", &arguments));
    println!("{}", text.lines().last().unwrap_or_default());
}

#[test]
fn the_readme_lists_the_known_differences() {
    let read = |path: &str| std::fs::read_to_string(Path::new(ROOT).join(path)).expect(path);
    let list = read("conformance/known-differences.txt");
    let wanted: Vec<String> = list
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| {
            let (door, rest) = line.split_once(' ').expect("a door");
            let (test, reason) = rest.trim_start().split_once(' ').expect("a test");
            format!("| {door} | `{test}` | {} |", reason.trim())
        })
        .collect();
    let readme = read("README.md");
    let has: Vec<&str> = readme
        .lines()
        .filter(|line| {
            ["| cuse |", "| fuse |", "| both |"].iter().any(|door| line.starts_with(door))
        })
        .collect();
    assert_eq!(
        has,
        wanted,
        "README.md and known-differences.txt do not agree; the rows should be:\n{}",
        wanted.join("\n")
    );
}
