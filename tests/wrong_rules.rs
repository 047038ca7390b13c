//! Do the conformance tests and the random programs notice when the engine breaks a rule?
//!
//! `make wrong-rules`: a build of its own, with the feature `wrong-rules`. Each rule is broken in a
//! daemon of its own, which must fail; the same daemon with every rule in its place must not.

mod common;

use clap::ValueEnum;
use common::{Daemon, Door, program, skip};
use fakebinder::wrong::Rule;
use std::path::Path;
use std::process::{Command, Output};

const RECORDING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/expected/driver-programs.txt");
/// So many of each seed that was recorded.
const PROGRAMS: &str = "100";

/// What noticed that something is wrong.
#[derive(Debug, Default)]
struct Noticed {
    tests: Vec<String>,
    program: Option<String>,
}

/// A daemon with these arguments, before the tests and the driver's recorded programs.
fn examine(arguments: &[&str]) -> Noticed {
    let daemon = Daemon::start_with(arguments, None);
    let device = daemon.fuse();
    let run = |program: &Path, arguments: &[&str]| -> Output {
        let mut command = Command::new(program);
        command.arg("--device").arg(&device).args(arguments);
        command.output().expect("it is built")
    };
    let tests = run(&program("fb-conformance"), &["--timeout", "2"]);
    let text = String::from_utf8_lossy(&tests.stdout);
    assert!(text.contains(" passed, "), "the tests came to no end:\n{text}");
    let failed = text
        .lines()
        .filter(|line| line.starts_with("not ok") && !line.contains(" # TODO"))
        .filter_map(|line| Some(line.split_once(" - ")?.1.to_owned()));
    let mut noticed = Noticed { tests: failed.collect(), program: None };
    let programs = run(
        &program("fb-differ"),
        &["--against", RECORDING, "--programs", PROGRAMS, "--stop-after", "1", "--timeout", "2"],
    );
    let text = String::from_utf8_lossy(&programs.stdout);
    assert!(text.contains(" programs of "), "the programs came to no end:\n{text}");
    if !programs.status.success() {
        let line = text.lines().next().unwrap_or_default();
        noticed.program = Some(line.split(':').next().unwrap_or_default().to_owned());
    }
    daemon.stop();
    noticed
}

#[test]
fn every_broken_rule_is_noticed() {
    if !Door::Fuse.is_here() {
        return skip("no /dev/fuse");
    }
    let right = examine(&[]);
    assert!(right.tests.is_empty() && right.program.is_none(), "with no rule broken: {right:?}");
    println!("{:30} {:>5}  {:60} random program", "broken rule", "tests", "the first");
    println!("{:30} {:>5}  {:60} -", "(none)", 0, "-");
    let mut unnoticed = Vec::new();
    for rule in Rule::value_variants() {
        let value = rule.to_possible_value().expect("every rule has a name");
        let name = value.get_name();
        let found = examine(&["--wrong", name]);
        println!(
            "{name:30} {:>5}  {:60} {}",
            found.tests.len(),
            found.tests.first().map_or("-", String::as_str),
            found.program.as_deref().unwrap_or("-")
        );
        if found.tests.is_empty() && found.program.is_none() {
            unnoticed.push(name.to_owned());
        }
    }
    assert!(unnoticed.is_empty(), "nobody noticed: {unnoticed:?}");
}
