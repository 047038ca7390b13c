//! What an empty call costs the daemon in system calls and instructions, which no noise touches.

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

/// How a valgrind is started that can run the daemon: benches/valgrind finds or fetches one.
fn valgrind() -> Outcome<Vec<String>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/valgrind");
    let said = Command::new(script).output()?;
    let lines = String::from_utf8_lossy(&said.stdout);
    let mut lines = lines.lines().map(str::to_owned);
    let first = lines.next().unwrap_or_default();
    if !said.status.success() {
        return skipped(first.trim_start_matches("SKIPPED: "));
    }
    let tools = lines.next().map(|tools| format!("VALGRIND_LIB={tools}"));
    Ok(std::iter::once("env".to_owned()).chain(tools).chain([first]).collect())
}

/// All instructions of a daemon that serves so many calls.
fn all_instructions(stage: &Stage, column: &str, count: u64) -> Outcome<f64> {
    let output = stage.directory.join(format!("callgrind-{count}"));
    let file = format!("--callgrind-out-file={}", output.display());
    let valgrind = valgrind()?;
    let mut launcher: Vec<&str> = valgrind.iter().map(String::as_str).collect();
    launcher.extend(["--tool=callgrind", &file]);
    let daemon = fresh(column, &launcher)?;
    calls(stage, &daemon, count, || Ok(()))?;
    daemon.stop();
    let written = std::fs::read_to_string(&output)?;
    let line = written.lines().find_map(|line| line.strip_prefix("summary: "));
    Ok(line.ok_or("callgrind wrote no summary")?.trim().parse()?)
}

/// What N further calls add to N, so that the daemon's start and end are in neither.
fn by_valgrind(stage: &Stage, column: &str, no_perf: &str) -> Outcome<Vec<f64>> {
    let counted = |count| {
        all_instructions(stage, column, count).map_err(|error| -> Box<dyn std::error::Error> {
            match error.downcast_ref::<Skipped>() {
                Some(Skipped(reason)) => Skipped(format!("{no_perf}; {reason}")).into(),
                None => error,
            }
        })
    };
    let (once, twice) = (counted(CALLS)?, counted(2 * CALLS)?);
    Ok(vec![(twice - once) / CALLS as f64])
}
