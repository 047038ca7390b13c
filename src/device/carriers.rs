//! Threads for work that must not hold up the threads of a session: work that had to wait for a
//! place ([`crate::binder::copies`]), descriptors whose last close may take long, and the items of
//! the outbox while the thread that put them there is held up.
//!
//! There is no thread until there is work. Work that finds all threads busy starts another one, up
//! to `MOST`; a thread that has had nothing to do for `IDLE` ends. How many can be held up is
//! bounded where places are given out.

use super::workers;
use crate::binder::copies::Work;
use crate::binder::{self, Binder};
use crate::client_log::{Kind, client_log};
use crate::lock_order::rank;
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Threads at the same time.
const MOST: usize = 256;

/// How long a thread waits for more work.
const IDLE: Duration = Duration::from_secs(1);

/// How long something lies in the outbox before a carrier comes for it.
const PATIENCE: Duration = Duration::from_millis(5);

/// How often the watcher finds the outbox empty before it goes to sleep.
const CALM: u32 = 10;

/// The threads, as [the module](self) says. They end when this is dropped.
pub struct Carriers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue, rank::Carriers>,
    more: Condvar,
    watch: Mutex<Watch, rank::Watcher>,
    wake: Condvar,
    /// The watcher sleeps until something is put into the outbox.
    asleep: AtomicBool,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    threads: usize,
    idle: usize,
}

#[derive(Default)]
struct Watch {
    woken: bool,
    ended: bool,
}

impl Carriers {
    /// Carriers without a thread yet: each is started when there is something to carry.
    pub fn new() -> Arc<Carriers> {
        Arc::new(Carriers(Arc::default()))
    }

    /// Starts to watch the outbox of `binder`.
    pub fn attend(&self, binder: &Arc<Binder>) -> std::io::Result<()> {
        let (shared, binder) = (self.0.clone(), Arc::downgrade(binder));
        std::thread::Builder::new().name("watcher".into()).spawn(move || shared.watch(&binder))?;
        Ok(())
    }
}

impl Drop for Carriers {
    fn drop(&mut self) {
        self.0.watch.lock().ended = true;
        self.0.wake.notify_one();
    }
}

impl binder::Carriers for Carriers {
    fn carry(&self, work: Work) {
        if let Err(work) = workers::hand_over(work) {
            self.0.carry(work);
        }
    }

    fn watch(&self) {
        if self.0.asleep.load(SeqCst) && self.0.asleep.swap(false, SeqCst) {
            self.0.watch.lock().woken = true;
            self.0.wake.notify_one();
        }
    }

    fn held_up(&self) {
        workers::stand_in();
    }

    fn must_not_stall(&self) -> bool {
        workers::must_not_stall()
    }
}

impl Shared {
    fn carry(self: &Arc<Self>, work: Work) {
        let mut queue = self.queue.lock();
        queue.work.push_back(work);
        if queue.idle >= queue.work.len() || queue.threads >= MOST {
            self.more.notify_one();
            return;
        }
        queue.threads += 1;
        drop(queue);
        let shared = self.clone();
        let thread = std::thread::Builder::new().name("carrier".into());
        if let Err(error) = thread.spawn(move || shared.work()) {
            // The work is done by the next thread that is free or that starts.
            client_log!(Kind::WorkersHeldUp, "starting a carrier: {error}");
            self.queue.lock().threads -= 1;
            self.more.notify_one();
        }
    }

    fn work(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(work) = queue.work.pop_front() {
                drop(queue);
                work();
                queue = self.queue.lock();
                continue;
            }
            queue.idle += 1;
            let waited = self.more.wait_for(&mut queue, IDLE);
            queue.idle -= 1;
            if waited.timed_out() && queue.work.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }

    /// Sends a carrier to the outbox whenever no item was taken out of it for a while.
    fn watch(self: Arc<Self>, binder: &Weak<Binder>) {
        let (mut calm, mut seen) = (CALM, None);
        loop {
            if calm >= CALM {
                self.asleep.store(true, SeqCst);
                // An item may have been put there before `asleep` was seen. Asked with no lock
                // held: this may drop the last `Arc` of the driver.
                let waits = binder.upgrade().is_some_and(|it| it.outbox_progress().is_some());
                let mut watch = self.watch.lock();
                while !waits && !watch.woken && !watch.ended {
                    self.wake.wait(&mut watch);
                }
                drop(watch);
                self.asleep.store(false, SeqCst);
                (calm, seen) = (0, None);
            }
            let mut watch = self.watch.lock();
            watch.woken = false;
            if watch.ended {
                return;
            }
            self.wake.wait_for(&mut watch, PATIENCE);
            drop(watch);
            let Some(binder) = binder.upgrade() else { return };
            let progress = binder.outbox_progress();
            if progress.is_none() {
                calm += 1;
            } else if progress == seen {
                self.carry(Box::new(move || binder.carry_out()));
            }
            seen = progress;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binder::Carriers as _;
    use std::sync::mpsc;

    #[test]
    fn work_that_is_held_up_holds_up_no_other() {
        let carriers = Carriers::new();
        let (tell, told) = mpsc::channel();
        let (let_go, held) = mpsc::channel::<()>();
        for number in 0..3 {
            let tell = tell.clone();
            carriers.carry(Box::new(move || tell.send(number).unwrap()));
        }
        carriers.carry(Box::new(move || held.recv().unwrap_or(())));
        for number in 3..6 {
            let tell = tell.clone();
            carriers.carry(Box::new(move || tell.send(number).unwrap()));
        }
        let mut all: Vec<i32> = (0..6).map(|_| told.recv().unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
        let_go.send(()).unwrap();
    }
}
