//! A short soak: all is right, a wrong answer is noticed, and Ctrl-C leaves nothing behind.
//! `make soak` is the long one (docs/soak.md).
//!
//! Needs root and /dev/fuse; where they are missing each test says so and does nothing.

mod common;

use common::{Door, PATIENCE, alone, program, skip, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn possible() -> bool {
    let possible = nix::unistd::geteuid().is_root() && Door::Fuse.is_here();
    if !possible {
        skip("it takes root and /dev/fuse");
    }
    possible
}

/// A run with a folder of its own for whatever it makes.
struct Soak {
    child: Option<Child>,
    home: PathBuf,
}

impl Soak {
    fn start(arguments: &[&str]) -> Soak {
        let home = std::env::temp_dir().join(common::unique_name());
        fs::create_dir(&home).unwrap();
        let child = Command::new(program("fb-stress"))
            .args(["--daemon", env!("CARGO_BIN_EXE_fakebinderd"), "--json"])
            .args(arguments)
            .env("TMPDIR", &home)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fb-stress is built");
        Soak { child: Some(child), home }
    }

    /// Waits for its end: whether it found nothing wrong, the table, and what it complained of.
    fn end(mut self) -> (bool, Value, String) {
        let Output { status, stdout, stderr } =
            self.child.take().unwrap().wait_with_output().unwrap();
        let complaints = String::from_utf8(stderr).unwrap();
        let table = serde_json::from_slice(&stdout);
        let table = table.unwrap_or_else(|error| panic!("{error}: {status}: {complaints}"));
        let left = left_behind(&self.home);
        assert!(left.is_empty(), "fb-stress left {left:?} behind: {complaints}");
        fs::remove_dir(&self.home).expect("nothing is left in it");
        (status.success(), table, complaints)
    }
}

impl Drop for Soak {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Files, mounts and processes that have to do with this folder.
fn left_behind(home: &Path) -> Vec<String> {
    let name = home.to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut left: Vec<String> =
        mounts.lines().filter(|line| line.contains(name)).map(str::to_owned).collect();
    let files = fs::read_dir(home).unwrap();
    left.extend(files.map(|entry| entry.unwrap().path().display().to_string()));
    for process in fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()) {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(name) {
            left.push(line);
        }
    }
    left
}

fn ended(table: &Value, operation: &str, how: &str) -> u64 {
    let rows = table["operations"].as_array().expect("a row for each operation");
    let row = rows.iter().find(|row| row["operation"] == operation);
    row.expect("an operation of that name")["ended"][how].as_u64().unwrap_or(0)
}

#[test]
fn a_short_soak_does_everything_and_finds_nothing_wrong() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let (is_well, table, complaints) = Soak::start(&["--seconds", "4", "--clients", "4"]).end();
    assert!(is_well, "{complaints}{table:#}");
    for operation in [
        "calls",
        "one-way calls",
        "nested calls",
        "calls with a node and a handle",
        "calls with a descriptor",
        "look-ups at the manager",
        "one-way calls to clients that do not read",
    ] {
        assert!(ended(&table, operation, "done") > 0, "{operation}: {table:#}");
        assert_eq!(ended(&table, operation, "FAILED CHECK"), 0, "{operation}: {table:#}");
    }
    for event in
        ["clients started", "clients killed", "quota reached: opens", "quota reached: pages"]
    {
        assert!(table["events"][event].as_u64() > Some(0), "{event}: {table:#}");
    }
    assert_eq!(table["growth_was_judged"], false, "that takes longer");
    let rows = table["daemon"].as_array().unwrap();
    let nodes = rows.iter().find(|row| row["what"] == "nodes").unwrap();
    assert!(nodes["max"].as_f64() > Some(0.0) && nodes["end"].as_f64() == Some(0.0), "{nodes}");
}

#[test]
fn a_soak_notices_a_wrong_answer() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let arguments = ["--seconds", "1", "--clients", "2", "--inject", "", "--plant-wrong-answers"];
    let (is_well, table, complaints) = Soak::start(&arguments).end();
    assert!(!is_well, "{table:#}");
    assert!(complaints.contains("checks failed; the first:"), "{complaints}");
    // The first few are shown, of either kind.
    let kinds = ["of the reply is wrong", "of the request was wrong at the server"];
    assert!(kinds.iter().any(|kind| complaints.contains(kind)), "{complaints}");
    assert!(ended(&table, "calls", "FAILED CHECK") > 0, "{table:#}");
    assert!(ended(&table, "calls", "done") > 0, "seven answers of eight are right: {table:#}");
}

#[test]
fn ctrl_c_ends_a_soak_with_its_table() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let soak = Soak::start(&["--seconds", "600", "--clients", "2"]);
    let pid = Pid::from_raw(soak.child.as_ref().unwrap().id() as i32);
    let runs = || left_behind(&soak.home).iter().any(|line| line.contains("--role worker"));
    assert!(wait_until(PATIENCE, runs), "the clients come up");
    std::thread::sleep(Duration::from_millis(500));
    kill(pid, Signal::SIGINT).unwrap();
    let (is_well, table, complaints) = soak.end();
    assert!(is_well, "{complaints}{table:#}");
    assert_eq!(table["was_stopped"], true);
    assert!(
        table["seconds"].as_f64() < Some(60.0) && ended(&table, "calls", "done") > 0,
        "{table:#}"
    );
}
