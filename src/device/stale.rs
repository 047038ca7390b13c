//! Names that nobody will look up again, to be taken out of the kernel's dentry cache.
//!
//! Each open of a device looks up a name of its own (see [`tree`](super::tree)). The name is valid
//! for no time, which only makes the kernel ask again: until memory is short the kernel keeps the
//! name, with it the inode, and so the device counts as known. Those who hold it (an open file, a
//! bind mount) are not disturbed when the name goes.
//!
//! To drop a name the kernel waits for the lookups that are under way in the directory, and those
//! are answered by our workers: so a thread that is no worker drops the names.

use crate::lock_order::rank;
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A name that was just looked up is about to be opened: not yet.
const AGE: Duration = Duration::from_secs(1);
/// More do not wait for their age.
const MANY: usize = 1024;
/// More are left to the kernel: it drops them when memory is short.
const MOST: usize = 1 << 16;

#[derive(Default)]
struct Queue {
    /// Since when, and the number of the node; the oldest first.
    waiting: VecDeque<(Instant, u64)>,
    started: bool,
    ended: bool,
}

#[derive(Default)]
pub struct Stale {
    queue: Mutex<Queue, rank::Stale>,
    wake: Condvar,
}

impl Stale {
    /// A node has been looked up, or its file was closed. True the first time: then somebody has
    /// to [run](Stale::run).
    #[must_use]
    pub fn push(&self, node: u64) -> bool {
        let mut queue = self.queue.lock();
        if queue.waiting.len() < MOST {
            queue.waiting.push_back((Instant::now(), node));
        }
        if matches!(queue.waiting.len(), 1 | MANY) {
            self.wake.notify_one();
        }
        !std::mem::replace(&mut queue.started, true)
    }

    /// Hands each node to `drop_name` when its time has come, until the [end](Stale::end).
    pub fn run(&self, drop_name: impl Fn(u64)) {
        let mut queue = self.queue.lock();
        while !queue.ended {
            let many = queue.waiting.len() >= MANY;
            match queue.waiting.front().copied() {
                None => self.wake.wait(&mut queue),
                Some((since, node)) if many || since.elapsed() >= AGE => {
                    queue.waiting.pop_front();
                    MutexGuard::unlocked(&mut queue, || drop_name(node));
                }
                Some((since, _)) => self.wake.wait_until(&mut queue, since + AGE),
            }
        }
    }

    pub fn end(&self) {
        self.queue.lock().ended = true;
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, mpsc};

    #[test]
    fn many_do_not_wait_for_their_age_and_the_end_is_at_once() {
        let stale = Arc::new(Stale::default());
        assert!(stale.push(0));
        for node in 1..MANY as u64 + 10 {
            assert!(!stale.push(node));
        }
        let (dropped, names) = mpsc::channel();
        let running = stale.clone();
        let thread = std::thread::spawn(move || running.run(|node| dropped.send(node).unwrap()));
        let first: Vec<u64> = names.iter().take(11).collect();
        assert_eq!(first, (0..11).collect::<Vec<u64>>());
        stale.end();
        thread.join().unwrap();
    }
}
