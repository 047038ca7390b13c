//! Many programs, on several pairs of devices at a time.
//!
//! A worker is a process with devices of its own. It shares one CPU with the processes that it
//! drives: they take turns, and waking one up on another CPU takes longer than its turn. A worker
//! reports what it found as lines of JSON.

use super::record::{Recording, hash};
use super::{Differ, Difference, Host, compare};
use fakebinder_sim::child::{fork, stay_on};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

/// What the outcomes have to be.
#[derive(Debug, Clone)]
pub enum Right {
    /// The outcomes of these devices, each compared with one of the devices under test.
    Devices(Vec<PathBuf>),
    /// The recorded outcomes.
    Recorded(Recording),
    /// Any outcomes: they are recorded.
    All,
}

/// Which programs to run, and on which devices.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the devices are compared with.
    pub right: Right,
    /// The devices under test, with a worker each.
    pub devices: Vec<PathBuf>,
    /// Seeds of the programs.
    pub seeds: Vec<u64>,
    /// Numbers of the programs of each seed (of a recording: as far as it has them).
    pub numbers: std::ops::Range<u64>,
    /// How many steps a program has.
    pub steps: usize,
    /// Whether there are munmaps among the steps (with [`Right::All`]).
    pub unmap: bool,
    /// How long a step may take.
    pub patience: Duration,
    /// Whether programs that differ are made smaller.
    pub shrink: bool,
    /// Whether to report the outcome of each step.
    pub lines: bool,
    /// No further programs after so many differences.
    pub stop_after: usize,
}

/// The result of one program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// The program's seed.
    pub seed: u64,
    /// The program's number among those of the seed.
    pub number: u64,
    /// How many steps the program had.
    pub steps: usize,
    /// The outcome of each step where the program was generated, if asked for.
    pub lines: Vec<String>,
    /// The hash of the steps and their outcomes.
    pub hash: u32,
    /// Pairs of command and circumstances that this worker had not reached before.
    pub reached: BTreeSet<String>,
    /// What is wrong.
    pub finding: Option<Finding>,
}

/// What is wrong with a program's outcome.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Finding {
    /// The devices do not agree.
    Differs(Difference),
    /// The devices differed, but agree when the program is run again.
    DifferedOnce(Difference),
    /// The hash differs from the recorded one, in a second run too.
    NotAsRecorded(u32),
    /// The hash differs from the recorded one, but not in a second run: that is the reference.
    NotAsRecordedOnce(Difference),
}

/// The results of all programs.
#[derive(Debug, Clone, Default)]
pub struct Total {
    /// How many programs ran.
    pub programs: usize,
    /// How many steps the programs had.
    pub steps: usize,
    /// How many programs have findings.
    pub findings: usize,
    /// Every pair of command and circumstances that was reached.
    pub reached: BTreeSet<String>,
    /// The hash of each program, by seed and number.
    pub hashes: BTreeMap<(u64, u64), u32>,
    /// Whether every worker ran to its end.
    pub complete: bool,
}

/// Runs the programs; `tell` gets each outcome.
///
/// Errors: a worker could not be started.
pub fn run(options: &Options, mut tell: impl FnMut(&Outcome)) -> nix::Result<Total> {
    let mut workers = Vec::new();
    for index in 0..options.devices.len() {
        workers.push(Worker::start(options, index)?);
    }
    let mut total = Total { complete: true, ..Total::default() };
    while workers.iter().any(|worker| !worker.ended) {
        wait(&workers)?;
        for worker in &mut workers {
            while let Some(outcome) = worker.next() {
                total.programs += 1;
                total.steps += outcome.steps;
                total.findings += usize::from(outcome.finding.is_some());
                total.hashes.insert((outcome.seed, outcome.number), outcome.hash);
                tell(&outcome);
                total.reached.extend(outcome.reached);
            }
        }
        if total.findings >= options.stop_after {
            for worker in &mut workers {
                worker.end();
            }
        }
    }
    for worker in &workers {
        total.complete &= worker.complete || total.findings >= options.stop_after;
    }
    Ok(total)
}

/// Waits until some worker has a report.
fn wait(workers: &[Worker]) -> nix::Result<()> {
    let going = workers.iter().filter(|worker| !worker.ended);
    let mut files: Vec<_> =
        going.map(|worker| PollFd::new(worker.out.get_ref().as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut files, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

struct Worker {
    pid: Pid,
    out: BufReader<File>,
    ended: bool,
    complete: bool,
}

impl Worker {
    fn start(options: &Options, index: usize) -> nix::Result<Worker> {
        let (out, ours) = pipe()?;
        let pid = fork(move || {
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            stay_on(index % cpus);
            std::panic::set_hook(Box::new(|_| {}));
            let mut out = File::from(ours);
            work(options, index, |outcome| {
                let mut line = serde_json::to_vec(&outcome).unwrap_or_default();
                line.push(b'\n');
                out.write_all(&line).is_ok()
            });
            let _ = out.write_all(b"end\n");
            std::mem::forget(out);
            0
        })?;
        Ok(Worker { pid, out: BufReader::new(File::from(out)), ended: false, complete: false })
    }

    /// The worker's next report, once its beginning has arrived.
    fn next(&mut self) -> Option<Outcome> {
        if self.ended {
            return None;
        }
        if self.out.buffer().is_empty() {
            let mut files = [PollFd::new(self.out.get_ref().as_fd(), PollFlags::POLLIN)];
            if poll(&mut files, PollTimeout::ZERO) != Ok(1) {
                return None;
            }
        }
        let mut line = String::new();
        let _ = self.out.read_line(&mut line);
        let outcome = serde_json::from_str(&line).ok();
        if outcome.is_none() {
            self.complete = line == "end\n";
            self.end();
        }
        outcome
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

/// A worker's share of the programs: every n-th one.
fn work(options: &Options, index: usize, mut tell: impl FnMut(Outcome) -> bool) {
    let mut runner = Runner::new(options, index);
    let mut known = BTreeSet::new();
    let mut turn = 0;
    for &seed in &options.seeds {
        for number in options.numbers.clone() {
            if matches!(&options.right, Right::Recorded(recording) if recording.hash(seed, number).is_none())
            {
                continue;
            }
            turn += 1;
            if turn % options.devices.len() != index {
                continue;
            }
            let mut outcome = runner.program(seed, number, options.steps);
            outcome.reached.retain(|pair| known.insert(pair.clone()));
            if !options.lines {
                outcome.lines.clear();
            }
            if !tell(outcome) {
                return;
            }
        }
    }
}

enum Runner<'o> {
    Live { differ: Box<Differ>, shrink: bool },
    Recorded { host: Box<Host>, right: Option<&'o Recording>, unmap: bool },
}

impl Runner<'_> {
    fn new(options: &Options, index: usize) -> Runner<'_> {
        let device = &options.devices[index];
        let host = || Box::new(Host::new(device, options.patience));
        match &options.right {
            Right::Devices(references) => {
                let reference = &references[index % references.len()];
                let differ = Box::new(Differ::new(reference, device, options.patience));
                Runner::Live { differ, shrink: options.shrink }
            }
            Right::Recorded(recording) => {
                Runner::Recorded { host: host(), right: Some(recording), unmap: recording.unmap }
            }
            Right::All => Runner::Recorded { host: host(), right: None, unmap: options.unmap },
        }
    }

    fn program(&mut self, seed: u64, number: u64, steps: usize) -> Outcome {
        let (made, hash, finding) = match self {
            Runner::Live { differ, shrink } => {
                let (made, difference) = differ.program(seed, number, steps);
                let finding = difference.map(|difference| {
                    let (_, again) = differ.replay(&difference.program);
                    match again {
                        None => Finding::DifferedOnce(difference),
                        Some(again) if *shrink => Finding::Differs(differ.shrink(again)),
                        Some(again) => Finding::Differs(again),
                    }
                });
                (made, 0, finding)
            }
            Runner::Recorded { host, right, unmap } => {
                let mut run = || {
                    let (program, made) = host.generate(*unmap, seed, number, steps);
                    (hash(&program, &made), program, made)
                };
                let (ours, program, made) = run();
                let right = right.and_then(|right| right.hash(seed, number));
                let finding = right.filter(|&theirs| theirs != ours).map(|theirs| {
                    let (again, _, right) = run();
                    match compare(&program, &right, &made) {
                        Some(difference) if again == theirs => {
                            Finding::NotAsRecordedOnce(difference)
                        }
                        _ => Finding::NotAsRecorded(theirs),
                    }
                });
                (made, ours, finding)
            }
        };
        let steps = made.lines.len();
        Outcome { seed, number, steps, lines: made.lines, hash, reached: made.reached, finding }
    }
}
