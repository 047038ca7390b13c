//! What one call costs the daemon in turns: sections of the context's lock, allocations and system
//! calls, of an empty synchronous call between two plain programs (benches/ping.c). Counted, not
//! timed: the same on a busy machine.
//!
//! Needs root and /dev/fuse, and for the system calls strace; where they are missing each test says
//! so and does nothing.

mod common;

use common::stepping::{Stepping, build};
use common::traced::Traced;
use common::{Daemon, Door, alone, skip, unique_name};
use fakebinder::device::claim::Claim;
use fakebinder::device::options::MountOptions;
use fakebinder::device::tree::Permissions;
use fakebinder::device::{Hub, fuse};
use fakebinder::memory::{Memory, MemoryConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what is allocated in this process, by all its threads.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator does all of it; what is counted beside it changes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the promises that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CALLS: u64 = 1000;

fn possible() -> bool {
    let possible = nix::unistd::geteuid().is_root() && Door::Fuse.is_here();
    if !possible {
        skip("it takes root and /dev/fuse");
    }
    possible
}

/// Whoever runs the tests may have made them less important, and clients that are not as important
/// as a node asks for cost the daemon more.
fn as_important_as_usual() {
    // SAFETY: takes no pointer.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
    assert_eq!(result, 0, "root may set its nice value");
}

/// A directory of this test's own.
fn directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique_name());
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// A server and a caller of the device, who has called it some times.
fn pair(device: &Path, size: usize) -> (Stepping, Stepping) {
    let ping = build("ping.c", &directory()).expect("gcc is here");
    let start = |arguments: &[&str]| {
        Stepping::start(Command::new(&ping).arg(device).args(arguments)).expect("it starts")
    };
    let (count, size) = (CALLS.to_string(), size.to_string());
    let (server, caller) = (start(&["serve"]), start(&["call", &count, &size]));
    (server, caller)
}

#[test]
fn an_empty_call_takes_few_sections_and_allocations() {
    if !possible() {
        return;
    }
    let _alone = alone();
    as_important_as_usual();
    let directory = directory();
    let hub = Hub::new(Memory::new(MemoryConfig::default())).unwrap();
    let device = hub.device("turns");
    let context = device.context().clone();
    let options = MountOptions::new(Permissions { mode: 0o666, uid: 0, gid: 0 });
    let on_end = Box::new(|| {});
    // The mount is gone when this is dropped.
    let mut claim = Claim::take(&directory).unwrap();
    fuse::open(&directory, &mut claim, &hub, vec![device], &options, on_end).unwrap();
    let (_server, mut caller) = pair(&directory.join("turns"), 0);

    let before = (context.sections(), ALLOCATIONS.load(Ordering::Relaxed));
    caller.go_on().unwrap();
    let times = caller.line().unwrap();
    let after = (context.sections(), ALLOCATIONS.load(Ordering::Relaxed));
    let per_call = |before, after| (after - before) as f64 / CALLS as f64;
    let sections = per_call(before.0, after.0);
    let allocations = per_call(before.1, after.1);
    println!("a call: {sections:.2} sections, {allocations:.2} allocations ({times})");
    assert!((3.0..=6.1).contains(&sections), "{sections} sections a call");
    // Seven of them are records and answers, which would otherwise be moved from hand to hand: more
    // instructions than an allocation. The check of the lock order, in a debug build, allocates by
    // itself.
    let most = if cfg!(debug_assertions) { 12.0 } else { 11.5 };
    assert!((0.0..=most).contains(&allocations), "{allocations} allocations a call");
}

/// The system calls that a daemon makes for a call with so many bytes, by name.
fn system_calls(transport: &str, size: usize) -> impl Fn(&str) -> f64 + use<> {
    as_important_as_usual();
    let daemon = Daemon::start_with(&["--transport", transport], None);
    let (_server, mut caller) = pair(&daemon.fuse(), size);
    let traced = Traced::start(daemon.pid(), &directory()).unwrap();
    caller.go_on().unwrap();
    caller.line().unwrap();
    let calls = traced.stop().unwrap();
    println!(
        "{transport}, {size} bytes: {:.2} system calls a call: {calls:?}",
        calls.values().sum::<u64>() as f64 / CALLS as f64
    );
    daemon.stop();
    move |name| calls.get(name).copied().unwrap_or(0) as f64 / CALLS as f64
}

/// Checks each of them, and says which are more. A few come from what is done beside the calls,
/// and more of them on a busy machine.
fn at_most(of: impl Fn(&str) -> f64, all: &[(&str, u32)]) {
    for (name, most) in all {
        assert!(of(name) <= f64::from(*most) + 0.3, "{name}: {} a call", of(name));
    }
}

/// Whatever the transport, five times a client's memory is touched: both programs' commands, what
/// the server reads twice, what the caller reads. (Six times where the caller's read buffer lies in
/// two pages: the programs see to it that theirs do not.)
const MEMORY: [(&str, u32); 8] = [
    ("process_vm_readv", 2),
    ("process_vm_writev", 3),
    // Whose uid it is, of who calls and of who replies. (Before Linux 6.13: newfstatat.)
    ("ioctl", 2),
    // Once every few milliseconds, by what name either of them knows the other's; before Linux
    // 6.13 the uids, too.
    ("newfstatat", 4),
    // The nice values of who calls, of who is called, before the wait and after the reply.
    ("getpriority", 4),
    ("pidfd_send_signal", 0),
    ("setpriority", 0),
    ("pidfd_open", 0),
];

fn can_count() -> bool {
    if !possible() {
        return false;
    }
    if !Traced::is_possible() {
        skip("it takes strace");
        return false;
    }
    true
}

/// Three requests are read and answered.
#[test]
fn an_empty_call_takes_few_system_calls() {
    if !can_count() {
        return;
    }
    let _alone = alone();
    let of = system_calls("read", 0);
    at_most(&of, &MEMORY);
    at_most(&of, &[("read", 3), ("writev", 3)]);
    assert!(of("read") >= 2.9, "the calls were not seen");
}

/// An answer, that of whoever is told of it, and the wait for the next request are one system call.
#[test]
fn over_io_uring_a_call_is_answered_by_three_system_calls() {
    if !can_count() {
        return;
    }
    if !Path::new("/sys/module/fuse/parameters/enable_uring").exists() {
        return skip("this kernel has no FUSE over io_uring (Linux 6.14)");
    }
    let _alone = alone();
    let of = system_calls("uring", 0);
    at_most(&of, &MEMORY);
    at_most(&of, &[("read", 0), ("writev", 0)]);
    // Two clients on two processors are answered from two.
    assert!((2.9..=4.5).contains(&of("io_uring_enter")), "{}", of("io_uring_enter"));
}

/// Once a thread has sent from a place, the data come with the commands.
#[test]
fn a_small_call_s_data_take_no_system_call() {
    if !can_count() {
        return;
    }
    let _alone = alone();
    at_most(system_calls("read", 256), &MEMORY);
}
