//! What installing pages under a read lock is good for: `make demo-contention`.
//!
//! Runs fakebinderd under `--page-install exclusive` (one installer at a time in a client, which
//! allocates under the lock) and under `shared` (allocate first, install side by side), each time
//! with the same two loads on one receiving process:
//!
//! 1. one sender's pages take 1 ms each (`--inject`); how long do two others wait for theirs?
//! 2. four threads send large transactions.
//!
//! The receiver keeps what it gets until its mapping is full, then frees all and has the pages
//! reclaimed, so every transaction needs new ones. How long they take is the daemon's word
//! (`--install-latency`), how many transactions there were the senders'. Prints both with their
//! ratios and draws them to the SVG file given as argument (`target/contention.svg` without).
//!
//! Needs root and /dev/fuse.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Daemon, Killed};
use fakebinder::memory::PageInstall;
use fakebinder_client::{Call, Command as Write, Device, Reply, Return, Thread};
use plotters::prelude::*;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const MAPPING: usize = 4 << 20;
/// How long the senders send.
const MEASURE: Duration = Duration::from_secs(3);

struct Load {
    name: &'static str,
    /// Bytes of a transaction.
    size: usize,
    /// Threads of the sending process.
    senders: usize,
    /// What `--inject` does to another sender, which is not measured.
    inject: Option<&'static str>,
}

const LOADS: [Load; 2] = [
    Load {
        name: "2 senders of one page beside one whose pages take 1 ms",
        size: PAGE,
        senders: 2,
        inject: Some("delay=1ms"),
    },
    Load { name: "4 senders of 256 KiB", size: 256 << 10, senders: 4, inject: None },
];

impl Load {
    /// How many transactions fill the receiver's mapping, but for those that are on their way.
    fn batch(&self) -> usize {
        MAPPING / self.size - self.senders - usize::from(self.inject.is_some())
    }
}

/// Install latencies of one sender in nanoseconds, ascending, and how many transactions had them.
struct Latencies(Vec<(u64, u64)>);

impl Latencies {
    /// From what the daemon has written.
    fn of(pid: u32, written: &str) -> Latencies {
        let numbers = written.lines().map(|line| {
            let mut numbers = line.split(' ').map(|number| number.parse().expect("a number"));
            std::array::from_fn(|_| numbers.next().expect("three numbers"))
        });
        let ours = numbers.filter(|[sender, ..]: &[u64; 3]| *sender == u64::from(pid));
        Latencies(ours.map(|[_, time, count]| (time, count)).collect())
    }

    /// In microseconds.
    fn percentile(&self, percent: f64) -> f64 {
        let all: u64 = self.0.iter().map(|(_, count)| count).sum();
        let mut left = (all as f64 * percent / 100.0) as u64;
        let at = self.0.iter().find(|(_, count)| {
            let here = left < *count;
            left = left.saturating_sub(*count);
            here
        });
        at.or(self.0.last()).expect("pages were installed").0 as f64 / 1e3
    }
}

/// What one load came to under one rule.
struct Outcome {
    latencies: Latencies,
    /// Of the sender whose pages are delayed, where there is one.
    delayed: Option<Latencies>,
    transactions_per_second: f64,
}

impl Outcome {
    fn percentile(&self, percent: f64) -> f64 {
        self.latencies.percentile(percent)
    }
}

// ---------------------------------------------------------------- the clients

/// This program again, as a client.
fn client(arguments: &[&str]) -> Killed {
    let mut command = Command::new(std::env::current_exe().expect("it runs"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    Killed(command.spawn().expect("a process"))
}

fn open(path: &str, size: usize) -> Device {
    let mut device = Device::open(path).expect("the device can be opened");
    device.mmap(size).expect("the device can be mapped");
    device
}

/// Answers each call with nothing, and keeps the calls' buffers until there are `batch`.
fn receive(path: &str, batch: usize) -> ! {
    let device = open(path, MAPPING);
    device.set_context_manager().expect("nobody else is");
    device.write(&[Write::EnterLooper]).expect("a looper");
    println!("ready");
    let (mut kept, mut buffer) = (Vec::new(), [0; 256]);
    let mut reply = Vec::new();
    loop {
        let returns: Vec<_> =
            device.write_read(&reply, &mut buffer).expect("the daemon serves").collect();
        reply.clear();
        for returned in returns {
            if let Return::Transaction(transaction) = returned {
                kept.push(transaction.buffer);
                reply.push(Write::reply(&Call::reply()));
            }
        }
        if kept.len() >= batch {
            let free: Vec<_> = kept.drain(..).map(Write::FreeBuffer).collect();
            device.write(&free).expect("buffers of ours");
            device.daemon_reclaim().expect("we are root");
        }
    }
}

/// Sends from `senders` threads, once it is told to which device, and tells how often it did.
fn send(size: usize, senders: usize) {
    let mut path = String::new();
    std::io::stdin().read_line(&mut path).expect("a line");
    let device = open(path.trim(), 128 << 10);
    let data = vec![7; size];
    let start = Instant::now();
    let work = || {
        let mut thread = Thread::new(&device);
        let mut sent = 0;
        while start.elapsed() < MEASURE {
            match thread.call(&Call::to(0).data(&data)).expect("the daemon serves") {
                Reply::Data(_) => sent += 1,
                other => panic!("{other:?}"),
            }
        }
        sent
    };
    let sent: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..senders).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a sender")).sum()
    });
    println!("{}", sent as f64 / start.elapsed().as_secs_f64());
}

/// The same for ever.
fn send_on(size: usize) -> ! {
    let mut path = String::new();
    std::io::stdin().read_line(&mut path).expect("a line");
    let device = open(path.trim(), 128 << 10);
    let data = vec![7; size];
    let mut thread = Thread::new(&device);
    let mut send = || thread.call(&Call::to(0).data(&data)).expect("the daemon serves");
    send();
    println!("sending");
    loop {
        send();
    }
}

// ---------------------------------------------------------------- the daemon

fn measure(load: &Load, page_install: PageInstall) -> Outcome {
    let (size, batch) = (load.size.to_string(), load.batch().to_string());
    // Before the daemon, which is told who is to be delayed.
    let delayed = load.inject.map(|what| (client(&["send-on", &size]), what));
    let mut senders = client(&["send", &size, &load.senders.to_string()]);

    let written = std::env::temp_dir().join(format!("{}.latency", common::unique_name()));
    let mut options = vec![
        format!("--page-install={page_install}"),
        format!("--install-latency={}", written.display()),
    ];
    options.extend(
        delayed
            .iter()
            .map(|(sender, what)| format!("--inject=alloc_page:pid={}:{what}", sender.0.id())),
    );
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let daemon = Daemon::start_with(&options, None);
    let device = daemon.fuse().display().to_string();
    let mut receiver = client(&["receive", &device, &batch]);
    receiver.wait_for("ready");

    let start = |client: &mut Killed| {
        let mut input = client.0.stdin.take().expect("its input is piped, and written once");
        writeln!(input, "{device}").expect("it reads");
    };
    let delayed = delayed.map(|(mut sender, _)| {
        start(&mut sender);
        sender.wait_for("sending");
        sender
    });
    start(&mut senders);
    let mut rate = String::new();
    let output = senders.0.stdout.take().expect("its output is piped, and read once");
    BufReader::new(output).read_line(&mut rate).expect("it tells");

    let delayed = delayed.map(|sender| sender.0.id());
    drop(receiver);
    daemon.stop();
    let latencies = std::fs::read_to_string(&written).expect("the daemon has written it");
    let _ = std::fs::remove_file(&written);
    Outcome {
        latencies: Latencies::of(senders.0.id(), &latencies),
        delayed: delayed.map(|pid| Latencies::of(pid, &latencies)),
        transactions_per_second: rate.trim().parse().expect("a number"),
    }
}

struct Scene {
    name: &'static str,
    exclusive: Outcome,
    shared: Outcome,
}

impl Scene {
    fn measure(load: &Load) -> Scene {
        let [exclusive, shared] =
            [PageInstall::Exclusive, PageInstall::Shared].map(|rule| measure(load, rule));
        Scene { name: load.name, exclusive, shared }
    }

    fn print(&self) {
        let line = |name: &str, cells: [String; 3]| {
            let [rate, p50, p99] = cells;
            println!("  {name:<14}{rate:>16}{p50:>14}{p99:>14}");
        };
        println!("{}", self.name);
        line("", ["transactions/s", "install p50", "install p99"].map(String::from));
        for (name, outcome) in [("exclusive", &self.exclusive), ("shared", &self.shared)] {
            let latency = |percent| format!("{:.1} us", outcome.percentile(percent));
            let rate = format!("{:.0}", outcome.transactions_per_second);
            line(name, [rate, latency(50.0), latency(99.0)]);
        }
        let (exclusive, shared) = (&self.exclusive, &self.shared);
        let ratio = |value: f64| format!("{value:.1} x");
        let gain = |percent| ratio(exclusive.percentile(percent) / shared.percentile(percent));
        let rate = shared.transactions_per_second / exclusive.transactions_per_second;
        line("shared gains", [ratio(rate), gain(50.0), gain(99.0)]);
        if let (Some(exclusive), Some(shared)) = (&exclusive.delayed, &shared.delayed) {
            let [exclusive, shared] = [exclusive, shared].map(|it| it.percentile(50.0));
            println!("  (the delayed one: p50 {exclusive:.0} us and {shared:.0} us)");
        }
        println!();
    }
}

/// Latency against percentile, on a logarithmic scale, one panel per scene.
fn draw(scenes: &[Scene], path: &str) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (520 * scenes.len() as u32, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, scene) in root.split_evenly((1, scenes.len())).iter().zip(scenes) {
        let rules = [("exclusive", &scene.exclusive, &RED), ("shared", &scene.shared, &BLUE)];
        let ends = rules.map(|(_, outcome, _)| [0.0, 99.9].map(|at| outcome.percentile(at)));
        let lowest = ends[0][0].min(ends[1][0]) * 0.8;
        let highest = ends[0][1].max(ends[1][1]) * 4.0;
        let mut chart = ChartBuilder::on(area)
            .caption(scene.name, ("sans-serif", 15))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..100.0, (lowest..highest).log_scale())?;
        chart.configure_mesh().x_desc("percentile").y_desc("install latency, us").draw()?;
        for (name, outcome, color) in rules {
            let points = (0..1000).map(|permille| f64::from(permille) / 10.0);
            let points = points.map(|percent| (percent, outcome.percentile(percent)));
            let rate = outcome.transactions_per_second;
            let (p50, p99) = (outcome.percentile(50.0), outcome.percentile(99.0));
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))?
                .label(format!("{name}: {rate:.0}/s, p50 {p50:.1} us, p99 {p99:.1} us"))
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2))
                });
            let marks = [(50.0, p50), (99.0, p99)];
            chart.draw_series(marks.map(|at| Circle::new(at, 4, color.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
    }
    root.present()?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo passes --bench.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["receive", path, batch] => receive(path, batch.parse()?),
        ["send", size, senders] => {
            send(size.parse()?, senders.parse()?);
            return Ok(());
        }
        ["send-on", size] => send_on(size.parse()?),
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return Err("fakebinderd's FUSE door takes root and /dev/fuse".into());
    }
    let path = arguments.first().copied();
    let path = path.unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/target/contention.svg"));
    let scenes = LOADS.map(|load| Scene::measure(&load));
    scenes.iter().for_each(Scene::print);
    draw(&scenes, path)?;
    println!("drawn to {path}");
    Ok(())
}
