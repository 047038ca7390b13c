//! Replays inputs of target `ioctl` for people, and measures.
//!
//! - `replay FILE...`: what each program does, step by step, and the test that repeats it;
//! - `replay --minimize FILE`: the same of the smallest program that still panics, which is
//!   written to FILE.min;
//! - `replay --rate SECONDS [FILE...]`: plays them, or random programs of 20 steps, round and
//!   round, and says how many a second of one core's time.

use fakebinder_fuzz::grammar::Program;
use fakebinder_fuzz::records::RECORD;
use fakebinder_fuzz::{interpret, report};
use std::time::Duration;

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "--rate") {
        let seconds = args[1].parse().expect("--rate SECONDS");
        rate(Duration::from_secs_f64(seconds), &args.split_off(2));
        return;
    }
    if args.first().is_some_and(|arg| arg == "--minimize") {
        minimize(&args.remove(1));
        return;
    }
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    for file in args {
        let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let program = Program::from_bytes(&bytes);
        println!("{}", report::tell(&program, interpret::play));
    }
}

/// What this process has had of the processor: others may be busy beside it.
fn cpu_time() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/self/schedstat").expect("/proc is mounted");
    let time = schedstat.split(' ').next().and_then(|time| time.parse().ok());
    Duration::from_nanos(time.expect("nanoseconds on the processor"))
}

fn minimize(file: &str) {
    std::panic::set_hook(Box::new(|_| {}));
    let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let fails = |bytes: &[u8]| {
        let program = Program::from_bytes(bytes);
        std::panic::catch_unwind(|| interpret::play(&program)).is_err()
    };
    if !fails(&bytes) {
        eprintln!("{file}: nothing is wrong with this program");
        std::process::exit(1);
    }
    let smallest = fakebinder_fuzz::records::minimize(&bytes, fails);
    std::fs::write(format!("{file}.min"), &smallest).expect("FILE.min");
    let program = Program::from_bytes(&smallest);
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    println!("{}", report::tell(&program, interpret::play));
}

/// Bytes that differ from one call to the next, and are the same in every run.
fn random(length: usize, seed: &mut u64) -> Vec<u8> {
    let mut next = || {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*seed >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn rate(time: Duration, files: &[String]) {
    let mut seed = 1;
    let inputs: Vec<Vec<u8>> = match files {
        [] => (0..2000).map(|_| random(21 * RECORD, &mut seed)).collect(),
        files => files.iter().map(|file| std::fs::read(file).expect("a file")).collect(),
    };
    let (mut programs, mut steps, mut sent, mut delivered) = (0, 0, 0, 0);
    let start = cpu_time();
    while cpu_time() - start < time {
        for input in &inputs {
            let summary = report::run(Program::from_bytes(input), interpret::play);
            programs += 1;
            steps += summary.steps;
            sent += summary.messages_sent;
            delivered += summary.messages_delivered;
        }
    }
    let seconds = (cpu_time() - start).as_secs_f64();
    println!(
        "{:.0} programs/s, {:.0} steps/s, {:.1} steps a program; {:.1} messages a program, {:.0} % arrive",
        programs as f64 / seconds,
        steps as f64 / seconds,
        steps as f64 / programs as f64,
        sent as f64 / programs as f64,
        100.0 * delivered as f64 / sent as f64,
    );
}
