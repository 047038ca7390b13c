//! Requests of our own, so that requests which found no entry are fetched.

use super::queue::Queue;
use crate::client_log::{Kind, client_log};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::statfs::statfs;
use nix::unistd::Pid;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// In a row, those that brought nothing with them, after which there is nothing left to fetch.
const CALM: u32 = 3;
/// So many without a pause.
const AT_ONCE: u32 = 64;

/// The thread of a queue that asks, while there is one.
#[derive(Clone, Default)]
pub struct Kicks {
    running: Arc<AtomicBool>,
    /// Counts the calls of [`Kicks::start`].
    wanted: Arc<AtomicU64>,
}

impl Kicks {
    /// Sees to it that a thread on the queue's CPU asks the mount something, from now on, until
    /// nothing else comes with the answer's commit.
    pub fn start(&self, queue: &Arc<Queue>, mount: Option<&Path>) {
        let Some(mount) = mount else { return };
        self.wanted.fetch_add(1, SeqCst);
        if self.running.swap(true, SeqCst) {
            return;
        }
        let (queue, its, mount) = (queue.clone(), self.clone(), mount.to_owned());
        let run = move || its.run(&queue, &mount);
        if let Err(error) = std::thread::Builder::new().name("kick".into()).spawn(run) {
            self.running.store(false, SeqCst);
            client_log!(Kind::WorkersHeldUp, "starting a thread: {error}");
        }
    }

    fn run(&self, queue: &Queue, mount: &Path) {
        loop {
            let wanted = self.wanted.load(SeqCst);
            kick(queue, mount);
            self.running.store(false, SeqCst);
            // Who wanted more until here has found this thread running.
            let done = self.wanted.load(SeqCst) == wanted || self.running.swap(true, SeqCst);
            if done || queue.has_ended() {
                return;
            }
        }
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
