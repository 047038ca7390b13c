//! Very many clients, each a process that has the device open and mapped and waits in a read.

use super::stage::{Stage, fresh, once};
use super::{Outcome, Pid};
use crate::common::Daemon;
use nix::time::{clock_getcpuclockid, clock_gettime};
use std::time::Duration;

/// How long the daemon is looked at when nobody does anything.
const IDLE: Duration = Duration::from_secs(5);
/// What it may take until clients that have just come wait, and what was done for them is over.
const SETTLED: Duration = Duration::from_millis(500);

/// What memory the daemon takes, in KiB: what it shares with its clients counts by halves (`Pss`).
fn memory(daemon: &Daemon) -> Outcome<f64> {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", daemon.pid()))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let words = line.and_then(|line| line.split_whitespace().next());
    Ok(words.ok_or("smaps_rollup has no Pss")?.parse()?)
}

/// How long the daemon has been on a CPU, in milliseconds.
fn cpu_time(daemon: &Daemon) -> Outcome<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(daemon.pid() as i32))?;
    Ok(Duration::from(clock_gettime(clock)?).as_secs_f64() * 1e3)
}

/// For each number of clients the median of an empty call and the memory of a client; at the end
/// the daemon's CPU time while nobody does anything.
pub fn measure(stage: &Stage, column: &str) -> Outcome<Vec<f64>> {
    // What another round has left in a daemon's allocator would be taken for nothing.
    let daemon = fresh(column, &[])?;
    let device = daemon.fuse();
    let _server = stage.ping_on(&device, &["serve"])?;
    let mut caller = stage.ping_on(&device, &["call", &stage.sizes.calls.to_string()])?;
    let mut crowd = Stage::start(&stage.crowd, &[&device.display().to_string()], false)?;
    // What the pair's calls take is no client's of the crowd.
    once(&mut caller)?;
    std::thread::sleep(SETTLED);
    let before = memory(&daemon)?;
    let mut values = Vec::new();
    for &clients in &stage.sizes.clients {
        crowd.tell(&clients.to_string())?;
        crowd.wait_until_ready()?;
        std::thread::sleep(SETTLED);
        let took = once(&mut caller)?.median;
        values.extend([took, (memory(&daemon)? - before) / clients as f64]);
    }
    std::thread::sleep(SETTLED);
    let began = cpu_time(&daemon)?;
    std::thread::sleep(IDLE);
    values.push(cpu_time(&daemon)? - began);
    // The clients first: their ends are not the daemon's.
    drop(crowd);
    daemon.stop();
    Ok(values)
}
