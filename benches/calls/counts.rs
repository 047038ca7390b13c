//! What an empty call costs the daemon in system calls and instructions, which no noise touches.

use super::plan::READ;
use super::stage::{Stage, fresh, once};
use super::{Outcome, Pid, Skipped};
use crate::common::Daemon;
use crate::common::traced::Traced;
use nix::sys::signal::{Signal, kill};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Under valgrind they are slow.
const CALLS: u64 = 1000;

fn skipped<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Skipped(reason.into()).into())
}

/// Has a pair make so many calls while `counting` goes on.
fn calls<T>(
    stage: &Stage,
    daemon: &Daemon,
    count: u64,
    counting: impl FnOnce() -> Outcome<T>,
) -> Outcome<T> {
    let _server = stage.ping_on(&daemon.fuse(), &["serve"])?;
    let mut caller = stage.ping_on(&daemon.fuse(), &["call", &count.to_string()])?;
    let counting = counting()?;
    once(&mut caller)?;
    Ok(counting)
}

pub fn system_calls(stage: &Stage, column: &str) -> Outcome<Vec<f64>> {
    if !Traced::is_possible() {
        return skipped("it takes strace");
    }
    let daemon = fresh(column, &[])?;
    let start = || Ok(Traced::start(daemon.pid(), &stage.directory)?);
    let traced = calls(stage, &daemon, CALLS, start)?;
    let all: u64 = traced.stop()?.values().sum();
    daemon.stop();
    Ok(vec![all as f64 / CALLS as f64])
}

/// By perf where the machine counts them, else by valgrind.
pub fn instructions(stage: &Stage, column: &str) -> Outcome<Vec<f64>> {
    match perf_counts(&stage.directory) {
        Ok(()) => by_perf(stage, column),
        Err(reason) if column != READ => skipped(format!("{reason}; valgrind knows no io_uring")),
        Err(reason) => by_valgrind(stage, column, &reason),
    }
}

const EVENT: &str = "instructions:u";

fn perf(output: &Path) -> Command {
    let mut perf = Command::new("perf");
    perf.args(["stat", "-x,", "-e", EVENT, "-o"]).arg(output).stdout(Stdio::null());
    perf
}

/// What perf wrote of the event.
fn counted(output: &Path) -> Outcome<f64> {
    let written = std::fs::read_to_string(output)?;
    let line = written.lines().find(|line| line.contains(EVENT));
    let number = line.and_then(|line| line.split(',').next()).ok_or("perf counted nothing")?;
    number.parse().map_err(|_| format!("perf says {number} of {EVENT}").into())
}

/// Why perf does not count, if it does not.
fn perf_counts(directory: &Path) -> Result<(), String> {
    let output = directory.join("perf-try");
    let tried = perf(&output).arg("true").stderr(Stdio::null()).status();
    tried.map_err(|error| format!("perf: {error}"))?;
    counted(&output).map(|_| ()).map_err(|error| error.to_string())
}

fn by_perf(stage: &Stage, column: &str) -> Outcome<Vec<f64>> {
    let daemon = fresh(column, &[])?;
    let output = stage.directory.join(format!("perf-{}", daemon.pid()));
    let start = || {
        let child = perf(&output).arg("-p").arg(daemon.pid().to_string()).spawn()?;
        // It says nothing when it is there.
        std::thread::sleep(Duration::from_millis(300));
        Ok(crate::common::Killed(child))
    };
    let mut counting = calls(stage, &daemon, CALLS, start)?;
    kill(Pid::from_raw(counting.0.id() as i32), Signal::SIGINT)?;
    counting.0.wait()?;
    daemon.stop();
    Ok(vec![counted(&output)? / CALLS as f64])
}

/// All instructions of a daemon that serves so many calls.
fn all_instructions(stage: &Stage, column: &str, count: u64) -> Outcome<f64> {
    let output = stage.directory.join(format!("callgrind-{count}"));
    let file = format!("--callgrind-out-file={}", output.display());
    let daemon = fresh(column, &["valgrind", "--tool=callgrind", &file])?;
    calls(stage, &daemon, count, || Ok(()))?;
    daemon.stop();
    let written = std::fs::read_to_string(&output)?;
    let line = written.lines().find_map(|line| line.strip_prefix("summary: "));
    Ok(line.ok_or("callgrind wrote no summary")?.trim().parse()?)
}

/// What N further calls add to N, so that the daemon's start and end are in neither.
fn by_valgrind(stage: &Stage, column: &str, no_perf: &str) -> Outcome<Vec<f64>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skipped(format!("{no_perf}; valgrind is not installed"));
    }
    let counted = |count| {
        all_instructions(stage, column, count).map_err(|error| {
            let unknown = error.to_string();
            let unknown = unknown.lines().find(|line| line.contains("unhandled"));
            unknown.map_or(error, |line| {
                let line = line.split_once("WARNING: ").map_or(line, |(_, words)| words);
                Skipped(format!("{no_perf}; valgrind cannot run the daemon: {line}")).into()
            })
        })
    };
    let (once, twice) = (counted(CALLS)?, counted(2 * CALLS)?);
    Ok(vec![(twice - once) / CALLS as f64])
}
