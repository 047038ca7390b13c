//! What a client that has very much costs the others: `make bench-hog`.
//!
//! On the FUSE door of a daemon of its own, one pair of processes calls back and forth, as fb-ping
//! does, and is measured:
//!
//! 1. idle; beside a client that makes, lists, freezes and releases few nodes (references, death
//!    links) again and again; and beside one that does the same with 200,000. The two do the same
//!    work a second: what they differ in is what one client's size costs the others.
//! 2. while a client with 1,000,000 references and death links ends: the longest wait. Beside it
//!    the daemon's resident memory before, with that client and after.
//!
//! Latencies are of one machine at one time; their ratios, from one run, are what is to be
//! compared. Arguments: how many nodes in 1 and 2 (200000 1000000 without), for a quick look.
//!
//! Needs root and /dev/fuse.

#[path = "../tests/common/mod.rs"]
mod common;

#[path = "shared/hog.rs"]
mod hog;

use common::Daemon;
use common::stepping::Stepping;
use fakebinder_client::{Call, Device, Reply, Thread};
use hog::open;
use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What the manager is asked: nothing.
const PING: u32 = 0;
/// Of the client that is no hog.
const FEW: u64 = 200;
/// How long each row is measured.
const MEASURE: Duration = Duration::from_secs(8);

// ---------------------------------------------------------------- the pair that is measured

/// Calls from one line of its input to the next, and says what the calls took, in nanoseconds.
fn ping(path: &str) -> Outcome<()> {
    let device = open(path)?;
    let mut thread = Thread::new(&device);
    println!("ready");
    while std::io::stdin().read_line(&mut String::new())? > 0 {
        let ends = Arc::new(AtomicBool::new(false));
        let waiting = {
            let ends = ends.clone();
            std::thread::spawn(move || {
                let line = std::io::stdin().read_line(&mut String::new());
                ends.store(true, Ordering::Relaxed);
                line
            })
        };
        let mut took = Vec::with_capacity(1 << 20);
        while !ends.load(Ordering::Relaxed) {
            let start = Instant::now();
            let reply = thread.call(&Call::to(0).code(PING))?;
            took.push(start.elapsed().as_nanos() as u64);
            if !matches!(reply, Reply::Data(_)) {
                return Err(format!("{reply:?}").into());
            }
        }
        waiting.join().map_err(|_| "the reader of the input panicked")??;
        took.sort_unstable();
        let at = |permille: usize| took[(took.len() - 1) * permille / 1000];
        println!("{} {} {} {} {}", took.len(), at(500), at(990), at(999), at(1000));
    }
    Ok(())
}

// ---------------------------------------------------------------- measuring

/// This program again, as a client.
fn client(arguments: &[&str]) -> Outcome<Stepping> {
    Ok(Stepping::start(Command::new(std::env::current_exe()?).args(arguments))?)
}

/// In microseconds.
struct Row {
    calls: u64,
    median: f64,
    p99: f64,
    p999: f64,
    longest: f64,
}

impl Row {
    /// Of the calls that the pair makes while `work` goes on.
    fn measure(pair: &mut Stepping, work: impl FnOnce() -> Outcome<()>) -> Outcome<Row> {
        pair.go_on()?;
        work()?;
        pair.go_on()?;
        let line = pair.line()?;
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [calls, rest @ ..] = &numbers[..] else { return Err(line.into()) };
        let &[median, p99, p999, longest] = rest else { return Err(line.into()) };
        let [median, p99, p999, longest] = [median, p99, p999, longest].map(|ns| ns as f64 / 1e3);
        Ok(Row { calls: *calls, median, p99, p999, longest })
    }

    fn print(&self, name: &str, idle: &Row) {
        println!(
            "{name:<34}{:>9}{:>9.1}{:>9.1}{:>9.1}{:>8.1} x{:>10.1}",
            self.calls,
            self.median,
            self.p99,
            self.p999,
            self.p999 / idle.p999,
            self.longest
        );
    }
}

fn wait(time: Duration) -> impl FnOnce() -> Outcome<()> {
    move || {
        std::thread::sleep(time);
        Ok(())
    }
}

/// VmRSS of a process, in MiB.
fn resident(pid: u32) -> Outcome<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.and_then(|it| it.split_whitespace().next()).ok_or("no VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}

/// Waits until the daemon has no nodes but the manager's and the one that the manager knows.
fn released(device: &Device) -> Outcome<()> {
    while device.daemon_stats()?.nodes > 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn compare(many: u64, more: u64) -> Outcome<()> {
    let daemon = Daemon::start_with(&[], None);
    let device = daemon.fuse().display().to_string();
    let manager = client(&["manage", &device])?;
    let mut pair = client(&["ping", &device])?;
    Row::measure(&mut pair, wait(Duration::from_secs(1)))?;

    println!(
        "{:<34}{:>9}{:>9}{:>9}{:>9}{:>10}{:>10}",
        "us", "calls", "p50", "p99", "p99.9", "", "longest"
    );
    let idle = Row::measure(&mut pair, wait(MEASURE))?;
    idle.print("idle", &idle);
    for nodes in [FEW, many] {
        let hog = client(&["churn", &device, &nodes.to_string()])?;
        let row = Row::measure(&mut pair, wait(MEASURE))?;
        row.print(&format!("beside a client of {nodes} nodes"), &idle);
        drop(hog);
        released(&Device::open(&device)?)?;
    }

    let before = resident(daemon.pid())?;
    let mut hog = client(&["have", &device, &more.to_string()])?;
    let during = resident(daemon.pid())?;
    let watch = Device::open(&device)?;
    let mut took = Duration::ZERO;
    let ending = Row::measure(&mut pair, || {
        let start = Instant::now();
        hog.kill()?;
        released(&watch)?;
        took = start.elapsed();
        Ok(())
    })?;
    ending.print(&format!("while {more} references end"), &idle);
    println!("that took {} ms", took.as_millis());
    std::thread::sleep(Duration::from_secs(2));
    let after = resident(daemon.pid())?;
    println!("resident: {before:.0} MiB before, {during:.0} with them, {after:.0} after");
    drop((pair, manager));
    daemon.stop();
    Ok(())
}

fn main() -> Outcome<()> {
    // Cargo passes --bench.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["ping", path] = arguments[..] {
        return ping(path);
    }
    if let Some(outcome) = hog::be_client(&arguments) {
        return outcome;
    }
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return Err("fakebinderd's FUSE door takes root and /dev/fuse".into());
    }
    let number = |index: usize, default| arguments.get(index).map_or(Ok(default), |it| it.parse());
    compare(number(0, 200_000)?, number(1, 1_000_000)?)
}
