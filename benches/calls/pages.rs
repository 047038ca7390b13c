//! Pages of a client's buffers, installed under either rule and reclaimed: in-process, through the
//! library, with a child process for the client.

use super::Outcome;
use crate::common::mapped::{Client, request};
use fakebinder::alloc::Buffer;
use fakebinder::memory::{Memory, MemoryConfig, PageInstall};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const MAPPING: usize = 4 << 20;
/// Bytes of a buffer.
const BUFFER: usize = 64 << 10;
/// How often the mapping is filled and emptied.
const TIMES: usize = 20;

/// What it took to fill a client's mapping and to empty it, and how many pages that were.
#[derive(Default)]
struct Took {
    installing: Duration,
    reclaiming: Duration,
    pages: usize,
}

/// Fills the mapping by some threads, as fast as they can; how long that took.
fn fill(client: &Client, threads: usize) -> (Duration, Vec<Buffer>) {
    let each = MAPPING / BUFFER / threads;
    let begin = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let install = || {
            begin.wait();
            let buffers = (0..each).map(|_| client.alloc.alloc_new_buf(&request(BUFFER)));
            buffers.collect::<Result<Vec<_>, _>>().expect("the mapping has room")
        };
        let installers: Vec<_> = (0..threads).map(|_| scope.spawn(install)).collect();
        begin.wait();
        let began = Instant::now();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
        let buffers: Vec<Vec<Buffer>> = installers.into_iter().map(join).collect();
        (began.elapsed(), buffers.into_iter().flatten().collect())
    })
}

fn cycle(page_install: PageInstall, threads: usize) -> Took {
    let memory = Memory::new(MemoryConfig { page_install, page_budget: None });
    let client = Client::start(MAPPING, &memory);
    let mut took = Took::default();
    for _ in 0..TIMES {
        let (time, buffers) = fill(&client, threads);
        took.installing += time;
        buffers.iter().for_each(|buffer| client.alloc.free_buf(buffer));
        let began = Instant::now();
        took.pages += memory.reclaim_all();
        took.reclaiming += began.elapsed();
    }
    took
}

/// Microseconds of an installed page for 2 and 4 threads, each exclusive and shared; then pages
/// that were reclaimed in a second, in all of that.
pub fn measure() -> Outcome<Vec<f64>> {
    let mut values = Vec::new();
    let mut all = Took::default();
    for threads in [2, 4] {
        for rule in [PageInstall::Exclusive, PageInstall::Shared] {
            let took = cycle(rule, threads);
            if took.pages != TIMES * MAPPING / PAGE {
                return Err(format!("{} pages were reclaimed", took.pages).into());
            }
            values.push(took.installing.as_secs_f64() * 1e6 / took.pages as f64);
            all.reclaiming += took.reclaiming;
            all.pages += took.pages;
        }
    }
    values.push(all.pages as f64 / all.reclaiming.as_secs_f64());
    Ok(values)
}
