//! What installing pages under a read lock is good for: `make demo-contention`.
//!
//! Two scenes, each under `--page-install exclusive` (one installer at a time in a client, which
//! allocates under the lock) and `shared` (allocate first, install side by side):
//!
//! 1. one installer takes 1 ms to get each page; how long do the others wait for theirs?
//! 2. several threads send large transactions to one process whose pages are reclaimed all the time.
//!
//! Real memory throughout: the client is another process. Prints throughput and latency with their
//! ratios and draws them to the SVG file given as argument (`target/contention.svg` without).

#[path = "../tests/support/mod.rs"]
mod support;

use fakebinder::alloc::{Alloc, Buffer};
use fakebinder::mm_shim::{Injector, Rule, Verb};
use fakebinder::shrinker::{Memory, MemoryConfig, PageInstall};
use plotters::prelude::*;
use std::cell::Cell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::{ByProcessVm, Client, request};

const PAGE: usize = 4096;
const DELAY: Duration = Duration::from_millis(1);
/// How long each scene is measured under each rule.
const MEASURE: Duration = Duration::from_secs(3);

thread_local! {
    static SLOW: Cell<bool> = const { Cell::new(false) };
}

/// What one scene came to under one rule.
struct Outcome {
    latencies: Vec<Duration>,
    bytes: usize,
    took: Duration,
}

impl Outcome {
    fn percentile(&self, percent: usize) -> Duration {
        self.latencies[(self.latencies.len() * percent / 100).min(self.latencies.len() - 1)]
    }

    fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.took.as_secs_f64()
    }
}

/// What one worker does between two reclaims: installs pages, and says how long each buffer took
/// and which they are.
type Round<'a> = &'a (dyn Fn(usize, &mut Vec<Duration>) -> Vec<Buffer> + Sync);

/// Runs a round in `workers` threads side by side, frees all buffers, reclaims every page so that the next round has
/// them to install again, and so on. Freeing and reclaiming is not in the measured time, and nobody else
/// (`paused`) installs meanwhile.
fn rounds(
    client: &Client,
    memory: &Memory,
    workers: usize,
    paused: &AtomicBool,
    round: Round<'_>,
) -> Outcome {
    let barrier = || Barrier::new(workers + 1);
    let (begin, end, freed) = (barrier(), barrier(), barrier());
    let over = AtomicBool::new(false);
    let mut outcome = Outcome { latencies: Vec::new(), bytes: 0, took: Duration::ZERO };
    let work = |number| {
        let (mut latencies, mut bytes) = (Vec::new(), 0);
        loop {
            begin.wait();
            if over.load(Ordering::SeqCst) {
                return (latencies, bytes);
            }
            let buffers = round(number, &mut latencies);
            end.wait();
            bytes += buffers.iter().map(Buffer::size).sum::<usize>();
            buffers.iter().for_each(|buffer| client.alloc.free_buf(buffer));
            freed.wait();
        }
    };
    thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> =
            (0..workers).map(|number| scope.spawn(move || work(number))).collect();
        while outcome.took < MEASURE {
            paused.store(false, Ordering::SeqCst);
            let start = Instant::now();
            begin.wait();
            end.wait();
            outcome.took += start.elapsed();
            paused.store(true, Ordering::SeqCst);
            freed.wait();
            while memory.used() > 0 {
                memory.reclaim_all();
                thread::yield_now();
            }
        }
        over.store(true, Ordering::SeqCst);
        begin.wait();
        for worker in running {
            let (latencies, bytes) = worker.join().expect("a worker");
            outcome.latencies.extend(latencies);
            outcome.bytes += bytes;
        }
    });
    outcome.latencies.sort_unstable();
    outcome
}

fn timed(alloc: &Alloc, size: usize, latencies: &mut Vec<Duration>) -> Buffer {
    let start = Instant::now();
    let buffer = alloc.alloc_new_buf(&request(size)).expect("room");
    latencies.push(start.elapsed());
    buffer
}

fn delayed_installer(page_install: PageInstall) -> Outcome {
    const UNDISTURBED: usize = 2;
    const ROUND: usize = 64;
    /// What a sender does between two transactions.
    const PAUSE: Duration = Duration::from_micros(30);
    let slow_thread = |_| {
        if SLOW.get() {
            thread::sleep(DELAY);
        }
    };
    let inject = Injector::default().with(Rule::new(Verb::AllocPage).hook(slow_thread));
    let memory = Memory::new(MemoryConfig { page_install, inject, ..MemoryConfig::default() });
    let client = Client::start(&[], 4 << 20, &memory);
    let (paused, over) = (AtomicBool::new(true), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            SLOW.set(true);
            while !over.load(Ordering::SeqCst) {
                if paused.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_micros(50));
                    continue;
                }
                let mut buffers = Vec::new();
                while !paused.load(Ordering::SeqCst) {
                    // Its pages stay in use, so that the next is one to install too.
                    buffers.extend(client.alloc.alloc_new_buf(&request(PAGE)));
                }
                buffers.iter().for_each(|buffer| client.alloc.free_buf(buffer));
            }
        });
        let outcome = rounds(&client, &memory, UNDISTURBED, &paused, &|_, latencies| {
            (0..ROUND)
                .map(|_| {
                    let buffer = timed(&client.alloc, PAGE, latencies);
                    let start = Instant::now();
                    while start.elapsed() < PAUSE {
                        std::hint::spin_loop();
                    }
                    buffer
                })
                .collect()
        });
        over.store(true, Ordering::SeqCst);
        outcome
    })
}

fn large_transactions(page_install: PageInstall) -> Outcome {
    const SENDERS: usize = 4;
    const SIZE: usize = 256 << 10;
    const ROUND: usize = 3;
    let memory = Memory::new(MemoryConfig { page_install, ..MemoryConfig::default() });
    let client = Client::start(&[], 4 << 20, &memory);
    let data: Vec<_> = (0..SENDERS).map(|number| ByProcessVm(vec![number as u8; SIZE])).collect();
    rounds(&client, &memory, SENDERS, &AtomicBool::new(false), &|number, latencies| {
        (0..ROUND)
            .map(|_| {
                let buffer = timed(&client.alloc, SIZE, latencies);
                client
                    .alloc
                    .copy_user_to_buffer(&buffer, 0, &data[number], 0, SIZE)
                    .expect("a copy");
                buffer
            })
            .collect()
    })
}

struct Scene {
    name: &'static str,
    exclusive: Outcome,
    shared: Outcome,
}

impl Scene {
    fn measure(name: &'static str, scene: fn(PageInstall) -> Outcome) -> Scene {
        Scene { name, exclusive: scene(PageInstall::Exclusive), shared: scene(PageInstall::Shared) }
    }

    fn print(&self) {
        let (exclusive, shared) = (&self.exclusive, &self.shared);
        println!("{}", self.name);
        println!("  {:<12}{:>14}{:>14}{:>14}", "", "throughput", "p50", "p99");
        for (name, outcome) in [("exclusive", exclusive), ("shared", shared)] {
            let throughput = format!("{:.1} MB/s", outcome.megabytes_per_second());
            let (p50, p99) = (outcome.percentile(50), outcome.percentile(99));
            println!("  {name:<12}{throughput:>14}{:>14}{:>14}", micros(p50), micros(p99));
        }
        let gain = |percent| {
            exclusive.percentile(percent).as_secs_f64() / shared.percentile(percent).as_secs_f64()
        };
        let throughput = shared.megabytes_per_second() / exclusive.megabytes_per_second();
        let ratio = |value: f64| format!("{value:.1} x");
        println!(
            "  {:<12}{:>14}{:>14}{:>14}\n",
            "shared gains",
            ratio(throughput),
            ratio(gain(50)),
            ratio(gain(99))
        );
    }
}

fn micros(duration: Duration) -> String {
    format!("{:.1} us", duration.as_secs_f64() * 1e6)
}

/// Latency against percentile, on a logarithmic scale, one panel per scene.
fn draw(scenes: &[Scene], path: &str) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (520 * scenes.len() as u32, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, scene) in root.split_evenly((1, scenes.len())).iter().zip(scenes) {
        let of = |outcome: &Outcome| -> Vec<(f64, f64)> {
            (0..1000)
                .map(|permille| {
                    let at = (outcome.latencies.len() * permille / 1000)
                        .min(outcome.latencies.len() - 1);
                    (permille as f64 / 10.0, outcome.latencies[at].as_secs_f64() * 1e6)
                })
                .collect()
        };
        let (exclusive, shared) = (of(&scene.exclusive), of(&scene.shared));
        let highest = exclusive.iter().chain(&shared).map(|point| point.1).fold(1.0, f64::max);
        let lowest = exclusive.iter().chain(&shared).map(|point| point.1).fold(f64::MAX, f64::min);
        let mut chart = ChartBuilder::on(area)
            .caption(scene.name, ("sans-serif", 15))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..100.0, (lowest * 0.8..highest * 1.5).log_scale())?;
        chart.configure_mesh().x_desc("percentile").y_desc("install latency, us").draw()?;
        for (name, points, color) in [("exclusive", exclusive, &RED), ("shared", shared, &BLUE)] {
            chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?.label(name).legend(
                move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)),
            );
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
    support::client_main();
    // Cargo passes --bench.
    let path = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let path = path
        .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/target/contention.svg").into());
    let scenes = [
        Scene::measure("pages of 2 installers beside one that takes 1 ms each", delayed_installer),
        Scene::measure("4 senders of 256 KiB transactions to one process", large_transactions),
    ];
    scenes.iter().for_each(Scene::print);
    draw(&scenes, &path)?;
    println!("drawn to {path}");
    Ok(())
}
