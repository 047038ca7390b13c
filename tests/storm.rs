//! A thousand clients that call each other, pass handles and descriptors on, watch each other's
//! death and freezing, and are killed at random moments. When all are gone, the daemon holds
//! nothing that it did not hold before.
//!
//! `cargo test --release --test storm -- --nocapture`; environment:
//! - `FAKEBINDER_STORM_CLIENTS`: how many live at a time (1,000)
//! - `FAKEBINDER_STORM_SECONDS`: how long they go on once all are there (5)
//! - `FAKEBINDER_STORM_SEED`: repeats what chance did, as far as the scheduler lets it

mod common;

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
struct Chance(SplitMix64);

impl Chance {
    fn new(seed: u64) -> Chance {
        Chance(SplitMix64::seed_from_u64(seed))
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

// ---------------------------------------------------------------- what was done, over all processes

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

// ---------------------------------------------------------------- a client

/// Registers a handle at the manager.
const PUT: u32 = 1;
/// Asks the manager for handles of others.
const GET: u32 = 2;
/// Data: how many calls back and forth are still to come. Object: the caller's node.
const NEST: u32 = 3;
/// Whatever it brings is looked at and let go.
const TAKE: u32 = 4;

const NODE: u64 = 0x1000;
const SLOTS: usize = 12;

struct Client {
    device: Device,
    tally: &'static Tally,
    chance: Mutex<Chance>,
    /// Handles that one strong reference is held on, each.
    known: Mutex<Vec<u32>>,
    /// Most handles that are kept.
    keeps: usize,
    /// Who has called.
    pids: Mutex<Vec<i32>>,
    /// The end of a pipe that all clients send to each other.
    file: PipeWriter,
}

impl Client {
    fn chance<T>(&self, f: impl FnOnce(&mut Chance) -> T) -> T {
        f(&mut self.chance.lock().unwrap())
    }

    fn below(&self, limit: u64) -> u64 {
        self.chance(|chance| chance.below(limit))
    }

    fn one_in(&self, times: u64) -> bool {
        self.chance(|chance| chance.one_in(times))
    }

    fn some<T: Copy>(&self, from: &Mutex<Vec<T>>) -> Option<T> {
        let from = from.lock().unwrap();
        let index = self.below(from.len() as u64) as usize;
        from.get(index).copied()
    }

    /// Nothing but the end of the daemon may fail an ioctl here.
    fn unexpected(&self, what: &str, error: &fakebinder_client::Error) -> ! {
        complain(&format!("{what}: {error}"));
        exit(3)
    }

    fn keep(&self, thread: &mut Thread<'_>, handle: u32) {
        count(&self.tally.handles);
        // At once: the freeing of the buffer, which holds a reference of its own, may be queued.
        self.try_write(Command::Acquire(handle));
        let mut known = self.known.lock().unwrap();
        known.push(handle);
        if known.len() > self.keeps {
            let index = self.below(known.len() as u64) as usize;
            thread.queue(Command::Release(known.swap_remove(index)));
        }
    }

    /// What came: handles are kept, descriptors are closed (those of arrays go with the buffer).
    fn take(&self, thread: &mut Thread<'_>, contents: &Contents) {
        for object in contents.objects() {
            match object.expect("an object that the driver wrote") {
                Object::Handle { handle, .. } => self.keep(thread, handle),
                Object::Fd { fd, .. } => {
                    count(&self.tally.fds_received);
                    nix::unistd::close(fd as i32).expect("a descriptor that arrived is open");
                }
                _ => {}
            }
        }
    }

    fn serve(
        &self,
        thread: &mut Thread<'_>,
        call: &Transaction,
        contents: &Contents,
        reply: &mut Parcel,
    ) {
        if call.sender_pid != 0 && self.one_in(8) {
            let mut pids = self.pids.lock().unwrap();
            pids.push(call.sender_pid);
            if pids.len() > 4 {
                pids.remove(0);
            }
        }
        match call.code {
            NEST => {
                let caller = contents.objects().next().flatten();
                if let Some(Object::Handle { handle, .. }) = caller
                    && let Some(depth @ 1..) = contents.data.first().copied()
                {
                    count(&self.tally.nested);
                    self.nest(thread, handle, depth - 1);
                }
            }
            GET => {
                for _ in 0..2 {
                    if let Some(handle) = self.some(&self.known) {
                        reply.handle(handle);
                    }
                }
            }
            _ => self.take(thread, contents),
        }
        if call.flags & uapi::TF_ACCEPT_FDS != 0 && self.one_in(2) {
            count(&self.tally.fds_sent);
            reply.fd(self.file.as_raw_fd());
        }
    }

    fn call(&self, thread: &mut Thread<'_>, call: &Call<'_>) {
        let oneway = call.flags & uapi::TF_ONE_WAY != 0;
        count(if oneway { &self.tally.oneway } else { &self.tally.calls });
        let reply = thread.call_serving(call, &mut |thread, call, contents, reply| {
            self.serve(thread, call, contents, reply);
        });
        match reply {
            Ok(Reply::Data(contents)) => {
                count(&self.tally.replies);
                self.take(thread, &contents);
            }
            Ok(Reply::Sent | Reply::SentSpamSuspect | Reply::SentToFrozen) => {}
            Ok(Reply::Dead) => count(&self.tally.dead),
            Ok(Reply::Failed) => count(&self.tally.failed),
            Ok(Reply::Frozen) => count(&self.tally.frozen),
            Err(error) => self.unexpected("call", &error),
        }
    }

    fn nest(&self, thread: &mut Thread<'_>, handle: u32, depth: u8) {
        let mut parcel = Parcel::new();
        parcel.bytes(&[depth, 0, 0, 0]);
        self.own_node(&mut parcel);
        self.call(thread, &Call::to(handle).code(NEST).parcel(&parcel));
    }

    /// A node that everybody knows, or one that nobody has seen yet.
    fn own_node(&self, parcel: &mut Parcel) {
        let ptr = if self.one_in(2) { NODE } else { NODE + 8 * self.below(64) };
        parcel.binder(ptr, ptr + 1, uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS);
    }

    /// A command whose failure is a client's everyday life.
    fn try_write(&self, command: Command<'_>) {
        match self.device.write(&[command]) {
            Err(error) if error.errno() != Errno::EINVAL => self.unexpected("write", &error),
            _ => {}
        }
    }

    /// A looper: serves until it is killed.
    fn work(&self) -> ! {
        let mut thread = Thread::new(&self.device);
        thread.queue(Command::EnterLooper);
        loop {
            let served = thread.serve(&mut |thread, call, contents, reply| {
                self.serve(thread, call, contents, reply);
            });
            match served {
                Ok(Return::DeadBinder(cookie)) => {
                    count(&self.tally.deaths);
                    if !self.one_in(8) {
                        self.try_write(Command::DeadBinderDone(cookie));
                    }
                    let mut known = self.known.lock().unwrap();
                    if let Some(index) = known.iter().position(|it| u64::from(*it) == cookie) {
                        thread.queue(Command::Release(known.swap_remove(index)));
                    }
                }
                Ok(Return::FrozenBinder { cookie, is_frozen }) => {
                    count(if is_frozen != 0 { &self.tally.freezes } else { &self.tally.thaws });
                    self.try_write(Command::FreezeNotificationDone(cookie));
                }
                Ok(_) => {}
                Err(error) => self.unexpected("serve", &error),
            }
        }
    }

    /// Makes calls of its own until it is killed.
    fn play(&self) -> ! {
        let mut thread = Thread::new(&self.device);
        let mut parcel = Parcel::new();
        parcel.binder(NODE, NODE + 1, uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS);
        self.call(&mut thread, &Call::to(0).code(PUT).oneway().parcel(&parcel));
        loop {
            self.act(&mut thread);
            std::thread::sleep(Duration::from_millis(self.below(200)));
        }
    }

    fn act(&self, thread: &mut Thread<'_>) {
        let known = self.some(&self.known);
        let cookie = known.map_or(0, u64::from);
        let mut parcel = Parcel::new();
        parcel.u32(0);
        match (self.below(16), known) {
            (0 | 1, _) | (_, None) => self.call(thread, &Call::to(0).code(GET)),
            (2, _) => {
                self.own_node(&mut parcel);
                self.call(thread, &Call::to(0).code(PUT).oneway().parcel(&parcel));
            }
            (3 | 4, Some(handle)) => self.nest(thread, handle, self.below(5) as u8),
            // A handle is passed on.
            (5 | 6, Some(handle)) => {
                if let Some(other) = self.some(&self.known) {
                    parcel.handle(other);
                    parcel.weak_handle(other);
                }
                self.call(thread, &Call::to(handle).code(TAKE).oneway().parcel(&parcel));
            }
            (7, Some(handle)) => {
                count(&self.tally.fds_sent);
                parcel.fd(self.file.as_raw_fd());
                let call = Call::to(handle).code(TAKE).flags(uapi::TF_ACCEPT_FDS).parcel(&parcel);
                self.call(thread, &if self.one_in(2) { call.oneway() } else { call });
            }
            (8, Some(handle)) => {
                let many = 1 + self.below(4);
                self.tally.arrays_sent.fetch_add(many, Relaxed);
                let fd = self.file.as_raw_fd().to_ne_bytes();
                let parent = parcel.buffer(&fd.repeat(many as usize));
                parcel.fd_array(many, parent, 0);
                let call = Call::to(handle).code(TAKE).parcel(&parcel);
                self.call(thread, &if self.one_in(2) { call.oneway() } else { call });
            }
            (9, Some(handle)) => {
                self.try_write(Command::RequestDeathNotification { handle, cookie });
            }
            (10, Some(handle)) => {
                self.try_write(match self.one_in(2) {
                    true => Command::ClearDeathNotification { handle, cookie },
                    false => Command::ClearFreezeNotification { handle, cookie },
                });
            }
            (11, Some(handle)) => {
                self.try_write(Command::RequestFreezeNotification { handle, cookie });
            }
            (12, _) => self.freeze_somebody(),
            // A thread that leaves without a word, or with one.
            (13, Some(handle)) => std::thread::scope(|scope| {
                scope.spawn(|| {
                    count(&self.tally.threads);
                    let mut thread = Thread::new(&self.device);
                    self.call(&mut thread, &Call::to(handle).code(TAKE));
                    if self.one_in(2) {
                        let _ = self.device.thread_exit();
                    }
                });
            }),
            // A second open, which is another process in binder's eyes, and goes at once.
            (14, _) => {
                let mut device = Device::open(self.device.path()).expect("it can be opened again");
                device.mmap(64 << 10).expect("it can be mapped");
                self.own_node(&mut parcel);
                let call = Call::to(0).code(PUT).oneway().parcel(&parcel);
                if let Err(error) = Thread::new(&device).call(&call) {
                    self.unexpected("second open", &error);
                }
            }
            (_, Some(handle)) => {
                let data = vec![1; self.below(20_000) as usize];
                let call = Call::to(handle).code(TAKE).data(&data);
                let update = uapi::TF_UPDATE_TXN | uapi::TF_CLEAR_BUF;
                self.call(thread, &if self.one_in(2) { call.oneway().flags(update) } else { call });
            }
        }
    }

    fn freeze_somebody(&self) {
        let Some(pid) = self.some(&self.pids) else { return };
        for (enable, timeout) in [(true, self.below(20) as u32), (false, 0)] {
            match self.device.freeze(pid as u32, enable, timeout) {
                // It is gone, or still busy.
                Err(error) if !matches!(error.errno(), Errno::EINVAL | Errno::EAGAIN) => {
                    self.unexpected("freeze", &error);
                }
                _ => std::thread::sleep(Duration::from_millis(self.below(20))),
            }
        }
    }

    fn live(path: &Path, seed: u64, manages: bool, tally: &'static Tally, file: PipeWriter) -> ! {
        let mut device = Device::open(path).expect("the device can be opened");
        device.mmap(if manages { 4 << 20 } else { 256 << 10 }).expect("it can be mapped");
        device.accept_files(SLOTS).expect("descriptors can be accepted");
        let client = Client {
            device,
            tally,
            chance: Mutex::new(Chance::new(seed)),
            known: Mutex::default(),
            keeps: if manages { 200 } else { 6 },
            pids: Mutex::default(),
            file,
        };
        if manages {
            common::become_manager(&client.device);
        }
        let _ = client.device.enable_oneway_spam_detection(client.one_in(2));
        std::thread::scope(|scope| {
            for _ in 0..if manages { 3 } else { 1 } {
                scope.spawn(|| guarded(|| client.work()));
            }
            count(&tally.up);
            // The others never end: whoever panics must not wait for them.
            guarded(|| if manages { client.work() } else { client.play() })
        })
    }
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
    let mut chance = Chance::new(setting("FAKEBINDER_STORM_SEED", 1));
    let tally = Tally::shared();
    let (reader, writer) = pipe().unwrap();
    let mut started = 0;
    let mut start = |chance: &mut Chance, manages: bool| {
        started += 1;
        let seed = chance.0.next_u64();
        let device = &devices[chance.below(devices.len() as u64) as usize];
        let file = writer.try_clone().unwrap();
        Forked::start(|| Client::live(device, seed, manages, tally, file))
    };

    // The first is the manager.
    let mut living = vec![start(&mut chance, true)];
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
        living.push(start(&mut chance, false));
        if chance.one_in(16) {
            let index = chance.below(living.len() as u64) as usize;
            let fresh = start(&mut chance, index == 0);
            kill(std::mem::replace(&mut living[index], fresh));
        }
    }
    let up = wait_until(3 * PATIENCE, || tally.up.load(Relaxed) as usize >= clients);
    assert!(up, "only {} clients of {clients} came up", tally.up.load(Relaxed));
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let index = chance.below(living.len() as u64) as usize;
        let fresh = start(&mut chance, index == 0);
        kill(std::mem::replace(&mut living[index], fresh));
        std::thread::sleep(Duration::from_millis(chance.below(20)));
    }
    // Everybody goes, in no order; some are waited for, some not at once.
    while !living.is_empty() {
        let client = living.swap_remove(chance.below(living.len() as u64) as usize);
        if chance.one_in(4) {
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
