//! Ctrl-C, or another word to end: the programs and daemons are told, and what waits for them comes
//! back with an error.

use super::Outcome;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static TOLD: AtomicBool = AtomicBool::new(false);

/// The processes that this one has started.
fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids = |list: String| -> Vec<i32> {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    lists.flat_map(pids).map(Pid::from_raw).collect()
}

extern "C" fn note(_signal: i32) {
    TOLD.store(true, Ordering::SeqCst);
}

/// Begins to listen; and lets thousands of clients be served. (By a handler, which programs that
/// are started do not inherit: signals that are blocked stay so in them.)
pub fn listen() -> Outcome<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but set an atomic.
        unsafe { sigaction(signal, &action)? };
    }
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_millis(100));
            if TOLD.load(Ordering::SeqCst) {
                // Again and again: what is being done may start another before it looks.
                for child in children() {
                    let _ = kill(child, Signal::SIGTERM);
                }
            }
        }
    });
    // Some descriptors of the daemon for each of its clients.
    const MANY: u64 = 200_000;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.max(MANY), most.max(MANY))
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, most, most))?;
    Ok(())
}

/// An error when it is to end.
pub fn check() -> Outcome<()> {
    match TOLD.load(Ordering::SeqCst) {
        true => Err("it was told to end".into()),
        false => Ok(()),
    }
}
