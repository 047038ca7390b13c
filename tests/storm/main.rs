//! A thousand clients that call each other, pass handles and descriptors on, watch each other's
//! death and freezing, and are killed at random moments. When all are gone, the daemon holds
//! nothing that it did not hold before.
//!
//! `cargo test --release --test storm -- --nocapture`; environment:
//! - `FAKEBINDER_STORM_CLIENTS`: how many live at a time (1,000)
//! - `FAKEBINDER_STORM_SECONDS`: how long they go on once all are there (5)
//! - `FAKEBINDER_STORM_SEED`: repeats what chance did, as far as the scheduler lets it

mod client;
#[path = "../common/mod.rs"]
mod common;

use client::Client;
use common::forked::{Forked, complain, exit, guarded};
use common::{Daemon, Door, PATIENCE, role, skip, wait_until};
use fakebinder_client::{
    Call, Command, Contents, Device, Errno, Object, Parcel, Reply, Return, Thread, Transaction,
    uapi,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::WaitStatus;
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::SplitMix64;
use std::fs;
use std::io::{PipeReader, PipeWriter, Read, pipe};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

// ---------------------------------------------------------------- chance

/// What a client does next, by chance.
struct Rng(SplitMix64);

impl Rng {
    fn new(seed: u64) -> Rng {
        Rng(SplitMix64::seed_from_u64(seed))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit.max(1)
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

// ------------------------------------------------------------ what was done, over all processes

macro_rules! tally {
    ($($count:ident),* $(,)?) => {
        /// Counts in memory that all children share.
        #[derive(Default)]
        struct Tally { $($count: AtomicU64),* }

        impl Tally {
            fn report(&self) -> String {
                let counts = [$((stringify!($count), self.$count.load(Relaxed))),*];
                counts.map(|(name, count)| format!("{count} {name}")).join(", ")
            }
        }
    };
}

tally!(
    up,
    calls,
    nested,
    oneway,
    replies,
    dead,
    failed,
    frozen,
    handles,
    fds_sent,
    fds_received,
    arrays_sent,
    deaths,
    freezes,
    thaws,
    threads
);

impl Tally {
    fn shared() -> &'static Tally {
        // SAFETY: a new mapping at no address in particular.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Tally>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(place, libc::MAP_FAILED);
        // SAFETY: it is large enough, aligned to a page, never unmapped, and zeros are a Tally.
        unsafe { &*place.cast() }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

// ---------------------------------------------------------------- who starts and kills them

/// Not a test: forks the clients, kills them, and sees them gone.
#[test]
#[ignore = "a role in other tests"]
fn storm_maker() {
    let Some(devices) = std::env::var_os("FAKEBINDER_ROLE_DEVICE") else { return };
    let devices: Vec<PathBuf> = std::env::split_paths(&devices).collect();
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let clients = setting("FAKEBINDER_STORM_CLIENTS", 1000) as usize;
    let seconds = setting("FAKEBINDER_STORM_SECONDS", 5);
    let mut rng = Rng::new(setting("FAKEBINDER_STORM_SEED", 1));
    let tally = Tally::shared();
    let (reader, writer) = pipe().unwrap();
    let mut started = 0;
    let mut start = |rng: &mut Rng, manages: bool| {
        started += 1;
        let seed = rng.0.next_u64();
        let device = &devices[rng.below(devices.len() as u64) as usize];
        let file = writer.try_clone().unwrap();
        Forked::start(|| Client::live(device, seed, manages, tally, file))
    };

    // The first is the manager.
    let mut living = vec![start(&mut rng, true)];
    let mut dying: Vec<Forked> = Vec::new();
    let mut slowest = Duration::ZERO;
    let mut kill = |client: Forked| {
        client.kill();
        let mut client = client;
        let killed = Instant::now();
        let status = client.wait();
        assert!(matches!(status, WaitStatus::Signaled(..)), "a client ended by itself: {status:?}");
        slowest = slowest.max(killed.elapsed());
    };
    while living.len() < clients {
        living.push(start(&mut rng, false));
        if rng.one_in(16) {
            let index = rng.below(living.len() as u64) as usize;
            let fresh = start(&mut rng, index == 0);
            kill(std::mem::replace(&mut living[index], fresh));
        }
    }
    let up = wait_until(3 * PATIENCE, || tally.up.load(Relaxed) as usize >= clients);
    assert!(up, "only {} clients of {clients} came up", tally.up.load(Relaxed));
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let index = rng.below(living.len() as u64) as usize;
        let fresh = start(&mut rng, index == 0);
        kill(std::mem::replace(&mut living[index], fresh));
        std::thread::sleep(Duration::from_millis(rng.below(20)));
    }
    // Everybody goes, in no order; some are waited for, some not at once.
    while !living.is_empty() {
        let client = living.swap_remove(rng.below(living.len() as u64) as usize);
        if rng.one_in(4) {
            kill(client);
        } else {
            client.kill();
            dying.push(client);
        }
    }
    dying.into_iter().for_each(kill);
    drop(writer);
    assert_eq!(closed(&reader), Some(true), "a descriptor that was sent is still somewhere");
    println!("{started} clients; {}; slowest to go after SIGKILL: {slowest:?}", tally.report());
}

/// Whether nobody has the other end of a pipe any more; `None`: a time-out.
fn closed(mut reader: &PipeReader) -> Option<bool> {
    let mut files = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    poll(&mut files, PollTimeout::from(10_000u16)).ok().filter(|ready| *ready > 0)?;
    Some(reader.read(&mut [0]).unwrap() == 0)
}

// ---------------------------------------------------------------- the daemon, before and after

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    stats: uapi::fakebinder_stats,
    /// `/proc/PID/fd`, `/proc/PID/task`.
    descriptors: usize,
    threads: usize,
    /// Mappings of buffer files, and how much of them is there.
    mappings: usize,
    mapped_kib: u64,
}

impl Held {
    fn by(daemon: &Daemon, device: &Device) -> Held {
        let entries =
            |what| fs::read_dir(format!("/proc/{}/{what}", daemon.pid())).unwrap().count();
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", daemon.pid())).unwrap();
        let (mut mappings, mut mapped_kib, mut ours) = (0, 0, false);
        for line in smaps.lines() {
            if line.split(' ').next().is_some_and(|range| range.contains('-')) {
                ours = line.contains("/memfd:");
                mappings += usize::from(ours);
            } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| ours) {
                mapped_kib += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            }
        }
        let stats = device.daemon_stats().unwrap();
        // What the daemon counts of these includes what the counting takes.
        let stats = uapi::fakebinder_stats { descriptors: 0, daemon_threads: 0, ..stats };
        Held { stats, descriptors: entries("fd"), threads: entries("task"), mappings, mapped_kib }
    }

    fn print(&self, when: &str, rss_kib: u64) {
        let s = &self.stats;
        println!(
            "{when:7} processes {:5} threads {:5} nodes {:5} references {:6} transactions {:5} buffers {:5} deaths {:5} \
             freezes {:5} pages {:6} ({:5} reclaimable); descriptors {:5} threads {:2} mappings {:5} ({} KiB) RSS {} KiB",
            s.processes,
            s.threads,
            s.nodes,
            s.references,
            s.transactions,
            s.buffers,
            s.deaths,
            s.freezes,
            s.pages,
            s.reclaimable_pages,
            self.descriptors,
            self.threads,
            self.mappings,
            self.mapped_kib,
            rss_kib,
        );
    }
}

fn rss_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn larger(a: uapi::fakebinder_stats, b: uapi::fakebinder_stats) -> uapi::fakebinder_stats {
    uapi::fakebinder_stats {
        processes: a.processes.max(b.processes),
        threads: a.threads.max(b.threads),
        nodes: a.nodes.max(b.nodes),
        references: a.references.max(b.references),
        transactions: a.transactions.max(b.transactions),
        buffers: a.buffers.max(b.buffers),
        deaths: a.deaths.max(b.deaths),
        freezes: a.freezes.max(b.freezes),
        pages: a.pages.max(b.pages),
        reclaimable_pages: a.reclaimable_pages.max(b.reclaimable_pages),
        descriptors: a.descriptors.max(b.descriptors),
        daemon_threads: a.daemon_threads.max(b.daemon_threads),
    }
}

/// One storm; gives the most that the daemon held meanwhile.
fn storm(daemon: &mut Daemon, watch: &Device, doors: &[PathBuf], clients: Option<u64>) -> Held {
    let devices = std::env::join_paths(doors).unwrap();
    let mut maker = role("storm_maker", Path::new(&devices));
    if let Some(clients) = clients {
        maker.env("FAKEBINDER_STORM_CLIENTS", clients.to_string());
        maker.env("FAKEBINDER_STORM_SECONDS", "0");
    }
    let mut maker = maker.spawn().unwrap();
    let mut peak = Held::by(daemon, watch);
    let status = loop {
        if let Some(status) = maker.try_wait().unwrap() {
            break status;
        }
        assert_eq!(daemon.exited(), None, "fakebinderd ended:\n{}", daemon.log());
        let stats = watch.daemon_stats().unwrap();
        peak.stats = larger(peak.stats, stats);
        peak.descriptors = peak.descriptors.max(stats.descriptors as usize);
        peak.threads = peak.threads.max(stats.daemon_threads as usize);
        if clients.is_none() && stats.processes > peak.mappings as u64 + 100 {
            let now = Held::by(daemon, watch);
            peak.mappings = now.mappings;
            peak.mapped_kib = peak.mapped_kib.max(now.mapped_kib);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut said = String::new();
    maker.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(status.success(), "{status}: {said}\n{}", daemon.log());
    if clients.is_none() {
        said.lines().filter(|line| line.contains("clients;")).for_each(|line| println!("{line}"));
    }
    peak
}

#[test]
fn a_storm_of_killed_clients_leaves_nothing_in_the_daemon() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 16).max(soft), hard).unwrap();
    let mut daemon = Daemon::start(Door::Auto);
    let mut doors = vec![daemon.fuse()];
    if Door::Cuse.is_here() {
        doors.push(daemon.cuse());
    }
    let watch = Device::open(daemon.fuse()).unwrap();
    // What the daemon opens at its first client it keeps.
    storm(&mut daemon, &watch, &doors, Some(4));
    let idle = wait_until(PATIENCE, || watch.daemon_stats().unwrap().processes == 1);
    assert!(idle, "{:?}", watch.daemon_stats());
    let before = Held::by(&daemon, &watch);
    let rss_before = rss_kib(&daemon);

    let began = Instant::now();
    let peak = storm(&mut daemon, &watch, &doors, None);
    let rss_peak = rss_kib(&daemon);
    let stormed = began.elapsed();
    let calm = wait_until(PATIENCE, || Held::by(&daemon, &watch) == before);
    let took = began.elapsed() - stormed;
    let after = Held::by(&daemon, &watch);
    let rss_after = rss_kib(&daemon);
    println!("{} door(s), {stormed:.1?}, calm after {took:.1?}", doors.len());
    before.print("before", rss_before);
    peak.print("peak", rss_peak);
    after.print("after", rss_after);
    assert!(calm, "something is left: {after:?}, before: {before:?}\n{}", daemon.log());
    assert!(rss_after < rss_before + (64 << 10), "RSS {rss_before} KiB before, {rss_after} after");
    let panics = daemon.log().lines().filter(|line| line.contains("panicked")).count();
    assert_eq!(panics, 0, "{}", daemon.log());
    drop(watch);
    daemon.stop();
}
