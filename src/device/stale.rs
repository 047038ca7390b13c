//! Names that nobody will look up again, which are taken out of the kernel's dentry cache.
//!
//! Each open of a device looks up a name of its own (see [`tree`](super::tree)). The name is valid
//! for no time, but that only makes the kernel ask again. The kernel keeps the name, and with it
//! the inode, until memory is short; so long the device counts as known. An open file or a bind
//! mount is not disturbed when the name goes.
//!
//! To drop a name the kernel waits for the lookups that are under way in the directory, which the
//! workers have to answer. So a thread that is no worker drops the names.

use crate::lock_order::rank;
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How old a name has to be: one that was just looked up is about to be opened.
const AGE: Duration = Duration::from_secs(1);
/// With so many names waiting, the oldest does not wait for its age.
const MANY: usize = 1024;
/// Further names are left to the kernel, which drops them when memory is short.
const MOST: usize = 1 << 16;

#[derive(Default)]
struct Queue {
    /// When a node was added, and its number; the oldest first.
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
    /// A node has been looked up, or its file was closed. True the first time: then the caller has
    /// to start a thread for [`Stale::run`].
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
