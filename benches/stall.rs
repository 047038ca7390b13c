//! What threads whose memory does not come cost everybody else: `make bench-stall`.
//!
//! A pair of processes calls, alone and beside 300 stalled threads of each kind, in turn and on the
//! same daemon; the medians of both are compared, so what the machine does meanwhile weighs on both
//! alike; at most 1.3 times is the goal. Printed for every door that is here: the medians, and
//! their ratio over all rounds with the least and the greatest of one round. Arguments: how many
//! rounds (5), how many calls of a round (2,000).
//!
//! Needs root, and /dev/fuse or /dev/cuse.

#[path = "../tests/common/mod.rs"]
mod common;

use common::bystanders::Bystanders;
use common::stalled::{Kind, Stalled};
use common::{Daemon, Door, Target, role_device};
use fakebinder_client::{Call, Reply, Thread};
use std::time::{Duration, Instant};

const THREADS: usize = 300;

/// Ascending, in nanoseconds.
struct Times(Vec<u64>);

impl Times {
    fn new(mut times: Vec<u64>) -> Times {
        times.sort_unstable();
        Times(times)
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2] as f64
    }
}

/// How long each call of the pair takes.
fn calls(pair: &Bystanders, count: usize) -> Vec<u64> {
    let mut thread = Thread::new(&pair.client);
    let mut call = || {
        let began = Instant::now();
        let reply = thread.call(&Call::to(pair.handle).data(&[7; 128]));
        assert!(matches!(reply, Ok(Reply::Data(_))), "{reply:?}");
        began.elapsed().as_nanos() as u64
    };
    (0..count / 10).for_each(|_| _ = call());
    (0..count).map(|_| call()).collect()
}

/// The median of one round, alone, and beside stalled threads if a kind of them is named; `None`
/// where that kind cannot be made here.
fn round(target: &Target, daemon: &Daemon, kind: Option<Kind>, count: usize) -> Option<Vec<u64>> {
    let (pair, stalled) = Bystanders::with(target, |_| {
        kind.map(|kind| Stalled::start(kind, &target.path, daemon, THREADS))
    });
    let possible = !matches!(stalled, Some(None));
    let mut stalled = stalled.flatten();
    let times = possible.then(|| calls(&pair, count));
    if let Some(stalled) = &mut stalled {
        assert!(stalled.is_stalled(daemon), "they stall all the while");
    }
    pair.end();
    drop(stalled);
    times
}

fn measure(target: &Target, daemon: &Daemon, kind: Kind, rounds: usize, count: usize) {
    let (mut alone, mut beside, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..rounds {
        // Whoever comes second finds the machine as the first has left it.
        let order = match number % 2 {
            0 => [None, Some(kind)],
            _ => [Some(kind), None],
        };
        let both = order.map(|kind| round(target, daemon, kind, count));
        let [Some(mut first), Some(mut second)] = both else {
            return println!("  {:<12} SKIPPED: it cannot be made here", format!("{kind:?}"));
        };
        if order[0].is_some() {
            std::mem::swap(&mut first, &mut second);
        }
        ratios.push(Times::new(second.clone()).median() / Times::new(first.clone()).median());
        alone.append(&mut first);
        beside.append(&mut second);
    }
    let [alone, beside] = [alone, beside].map(|times| Times::new(times).median());
    ratios.sort_by(f64::total_cmp);
    println!(
        "  {:<12}{:>9.1} us{:>9.1} us{:>9.2} x   ({:.2} to {:.2})",
        format!("{kind:?}"),
        alone / 1e3,
        beside / 1e3,
        beside / alone,
        ratios[0],
        ratios[rounds - 1]
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // The registrar of a daemon under test is this program again.
    if arguments.iter().any(|argument| argument == "common::registrar::registrar") {
        return common::be_registrar(&role_device().expect("a role has a device"));
    }
    // Cargo passes --bench.
    let mut numbers = arguments.iter().filter(|argument| !argument.starts_with("--"));
    let mut number =
        |otherwise| numbers.next().map_or(otherwise, |it| it.parse().expect("a number"));
    let (rounds, count) = (number(5).max(1), number(2_000).max(10));
    for door in [Door::Fuse, Door::Cuse].into_iter().filter(|door| door.is_here()) {
        let daemon = Daemon::start(door);
        let path = if door == Door::Cuse { daemon.cuse() } else { daemon.fuse() };
        let target = Target::private(path, daemon);
        let daemon = target.daemon.as_ref().expect("a private one");
        println!("{door:?}: the median call of a pair, alone and beside {THREADS} stalled threads");
        println!("  {:<12}{:>12}{:>12}{:>11}   (of one round)", "", "alone", "beside", "ratio");
        for kind in Kind::ALL {
            measure(&target, daemon, kind, rounds, count);
            // What the dead have left is cleared away.
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
