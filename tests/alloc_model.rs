//! The states of a page, model-checked: the code of installers and shrinker, run through every
//! interleaving of its locks and atomics with at most [`PREEMPTIONS`] preemptions.
//!
//! `make models`.
//!
//! `make planted-model` breaks a rule in a copy of the tree (`fuzz/planted`, the patches with a
//! line `model:`), where the same scenes must then fail.
#![cfg(loom)]

use fakebinder::Errno;
use fakebinder::alloc::{Alloc, BufferRequest, PageState};
use fakebinder::memory::{Memory, MemoryConfig, PageInstall};
use fakebinder_sim::HeapMm;
use loom::model::Builder;
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const PAGE: usize = 4096;
const ADDRESS: u64 = 0x7000_0000;

/// How often a thread may be interrupted where it could have gone on, in one interleaving, unless
/// `FAKEBINDER_MODEL_PREEMPTIONS` says otherwise. 3 takes seconds, 4 a minute.
const PREEMPTIONS: usize = 3;

/// Two pages of a client, and what went wrong with them.
#[derive(Clone)]
struct Scene {
    memory: Arc<Memory>,
    mm: Arc<HeapMm>,
    alloc: Arc<Alloc>,
    failures: Arc<AtomicUsize>,
}

impl Scene {
    fn expect(&self, holds: bool) {
        if !holds {
            self.failures.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Allocates, writes, reads, frees: as if nobody else were there. Returns the error if the
    /// client is allowed to go away meanwhile.
    fn use_buffer(&self, size: usize, mark: u8, may_go: bool) {
        let request = BufferRequest {
            data_size: size as u64,
            offsets_size: 0,
            extra_buffers_size: 0,
            is_async: false,
            pid: 1,
        };
        let buffer = match self.alloc.alloc_new_buf(&request) {
            Ok(buffer) => buffer,
            Err(errno) => return self.expect(may_go && errno == Errno::ESRCH),
        };
        let written = vec![mark; size];
        let mut read = vec![0; size];
        let done = self
            .alloc
            .copy_to_buffer(&buffer, 0, &written)
            .and_then(|()| self.mm.read(buffer.offset, &mut read));
        self.expect(match done {
            Ok(()) => read == written,
            // Released under our hands: the buffer is gone, and nobody will look at it.
            Err(_) => may_go && !self.alloc.is_mapped(),
        });
        if !may_go {
            let states = self.alloc.page_states();
            let pages = buffer.offset / PAGE..(buffer.offset + size).div_ceil(PAGE);
            self.expect(states[pages].iter().all(|&state| state == PageState::Active));
        }
        self.alloc.free_buf(&buffer);
    }

    /// The shrinker, once.
    fn scan(&self, pages: usize) {
        let reclaimed = self.memory.scan(pages);
        self.expect(reclaimed <= pages);
    }

    /// Nothing is lost, nothing is counted that is not there, everything can be reclaimed.
    fn check_the_end(&self, may_go: bool) {
        let pages = self.alloc.pages();
        self.expect(may_go || self.mm.lost() == 0);
        self.expect(pages.active == 0);
        self.expect(self.memory.used() == self.mm.resident());
        self.expect(self.memory.count() == pages.lru);
        self.memory.reclaim_all();
        self.expect(self.memory.used() == 0 && self.mm.resident() == 0);
        self.expect(self.mm.users() == 0);
        self.alloc.deferred_release();
    }
}

/// Runs `scene` in every interleaving; returns how many those are, and in how many of them
/// something was wrong.
fn explore(
    name: &str,
    page_install: PageInstall,
    scene: impl Fn(&Scene) + Send + Sync + 'static,
) -> (usize, usize) {
    let (runs, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (runs.clone(), failed.clone());
    let mut builder = Builder::new();
    let preemptions =
        std::env::var("FAKEBINDER_MODEL_PREEMPTIONS").ok().and_then(|p| p.parse().ok());
    let preemptions = preemptions.unwrap_or(PREEMPTIONS);
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(move || {
        let memory = Memory::new(MemoryConfig { page_install, ..MemoryConfig::default() });
        let mm = HeapMm::new();
        let alloc = Alloc::new(mm.clone(), &memory);
        let this = Scene { memory, mm, alloc, failures: Arc::default() };
        scene(&this);
        counts.0.fetch_add(1, Ordering::SeqCst);
        counts.1.fetch_add(usize::from(this.failures.load(Ordering::SeqCst) > 0), Ordering::SeqCst);
    });
    let (runs, failed) = (runs.load(Ordering::SeqCst), failed.load(Ordering::SeqCst));
    println!(
        "{name} ({page_install}): {runs} interleavings with up to {preemptions} preemptions, {failed} failed"
    );
    (runs, failed)
}

fn holds(name: &str, page_install: PageInstall, scene: impl Fn(&Scene) + Send + Sync + 'static) {
    let (runs, failed) = explore(name, page_install, scene);
    assert!(runs > 1);
    assert_eq!(failed, 0, "{name}: interleavings in which something was wrong");
}

fn spawn(scene: &Scene, work: impl FnOnce(&Scene) + 'static) -> thread::JoinHandle<()> {
    let scene = scene.clone();
    thread::spawn(move || work(&scene))
}

fn map_two_pages(scene: &Scene) {
    scene.mm.attach(ADDRESS, 2 * PAGE);
    scene.alloc.mmap_handler(ADDRESS, 2 * PAGE).expect("the first mapping");
}

/// Two installers and a shrinker on one page, which begins on the LRU.
fn one_page(scene: &Scene) {
    map_two_pages(scene);
    scene.use_buffer(8, 1, false);
    let shrinker = spawn(scene, |scene| scene.scan(1));
    let installer = spawn(scene, |scene| scene.use_buffer(100, 2, false));
    scene.use_buffer(200, 3, false);
    installer.join().expect("an installer");
    shrinker.join().expect("the shrinker");
    scene.check_the_end(false);
}

/// As above, but one installer's buffer begins on the other's page and ends on the next.
fn two_buffers_share_a_page(scene: &Scene) {
    map_two_pages(scene);
    scene.use_buffer(8, 1, false);
    let shrinker = spawn(scene, |scene| scene.scan(2));
    let installer = spawn(scene, |scene| scene.use_buffer(PAGE + 8, 2, false));
    scene.use_buffer(PAGE - 64, 3, false);
    installer.join().expect("an installer");
    shrinker.join().expect("the shrinker");
    scene.check_the_end(false);
}

/// Two installers, no page yet: both race to make it.
fn two_installers(scene: &Scene) {
    map_two_pages(scene);
    let installer = spawn(scene, |scene| scene.use_buffer(100, 2, false));
    scene.use_buffer(200, 3, false);
    installer.join().expect("an installer");
    scene.check_the_end(false);
}

/// The client maps its buffer while two senders and the shrinker are at it.
fn mmap_beside(scene: &Scene) {
    let installer = spawn(scene, |scene| scene.use_buffer(100, 2, true));
    let shrinker = spawn(scene, |scene| scene.scan(1));
    map_two_pages(scene);
    scene.expect(scene.alloc.mmap_handler(ADDRESS, PAGE) == Err(Errno::EBUSY));
    installer.join().expect("an installer");
    shrinker.join().expect("the shrinker");
    scene.use_buffer(8, 1, false);
    scene.check_the_end(false);
}

/// The client unmaps it.
fn munmap_beside(scene: &Scene) {
    map_two_pages(scene);
    scene.use_buffer(8, 1, false);
    let shrinker = spawn(scene, |scene| scene.scan(1));
    let client = spawn(scene, |scene| scene.mm.munmap());
    scene.use_buffer(PAGE + 8, 3, true);
    client.join().expect("the client");
    shrinker.join().expect("the shrinker");
    scene.check_the_end(false);
}

/// The client is released while a sender installs and the shrinker reclaims.
fn release_beside(scene: &Scene) {
    map_two_pages(scene);
    scene.use_buffer(8, 1, false);
    let shrinker = spawn(scene, |scene| scene.scan(1));
    let release = spawn(scene, |scene| scene.alloc.deferred_release());
    scene.use_buffer(PAGE + 8, 3, true);
    release.join().expect("the release");
    shrinker.join().expect("the shrinker");
    scene.expect(scene.memory.used() == 0 && scene.mm.resident() == 0 && scene.memory.count() == 0);
    scene.check_the_end(true);
}

#[test]
fn two_installers_and_a_shrinker_on_one_page() {
    holds("one page", PageInstall::Shared, one_page);
}

#[test]
fn two_installers_and_a_shrinker_on_one_page_exclusively() {
    holds("one page", PageInstall::Exclusive, one_page);
}

#[test]
fn two_installers_and_a_shrinker_on_two_buffers_that_share_a_page() {
    holds("two buffers", PageInstall::Shared, two_buffers_share_a_page);
}

#[test]
fn two_installers_race_for_a_new_page() {
    holds("two installers", PageInstall::Shared, two_installers);
}

#[test]
fn mmap_beside_installers_and_the_shrinker() {
    holds("mmap", PageInstall::Shared, mmap_beside);
}

#[test]
fn munmap_beside_an_installer_and_the_shrinker() {
    holds("munmap", PageInstall::Shared, munmap_beside);
}

#[test]
fn release_beside_an_installer_and_the_shrinker() {
    holds("release", PageInstall::Shared, release_beside);
}
