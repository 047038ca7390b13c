//! Requests of our own, so that requests which found no entry are fetched.

use super::queue::Queue;
use crate::client_log::{Kind, client_log};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::statfs::statfs;
use nix::unistd::Pid;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// In a row, those that brought nothing with them, after which there is nothing left to fetch.
const CALM: u32 = 3;
/// So many without a pause.
const AT_ONCE: u32 = 64;

/// Starts a thread on the queue's CPU that asks the mount something until nothing else comes with
/// the answer's commit; none when it runs already.
pub fn start(queue: &Arc<Queue>, running: &Arc<AtomicBool>, mount: Option<&Path>) {
    let Some(mount) = mount else { return };
    if running.swap(true, SeqCst) {
        return;
    }
    let (queue, its, mount) = (queue.clone(), running.clone(), mount.to_owned());
    let thread = std::thread::Builder::new().name("kick".into()).spawn(move || {
        kick(&queue, &mount);
        its.store(false, SeqCst);
    });
    if let Err(error) = thread {
        running.store(false, SeqCst);
        client_log!(Kind::WorkersHeldUp, "starting a thread: {error}");
    }
}

fn kick(queue: &Queue, mount: &Path) {
    let mut set = CpuSet::new();
    let pinned = set.set(usize::from(queue.cpu)).is_ok()
        && sched_setaffinity(Pid::from_raw(0), &set).is_ok();
    if !pinned {
        client_log!(
            Kind::WorkersHeldUp,
            "requests on CPU {} may have to wait for others: no thread can be bound to it",
            queue.cpu
        );
    }
    let (mut calm, mut kicks) = (0, 0u32);
    while calm < CALM && !queue.has_ended() {
        let before = queue.received.load(SeqCst);
        if statfs(mount).is_err() {
            return;
        }
        // Let what came with it get as far as being counted.
        std::thread::yield_now();
        let alone = queue.received.load(SeqCst) <= before + 1;
        calm = if alone { calm + 1 } else { 0 };
        kicks += 1;
        if kicks > AT_ONCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
