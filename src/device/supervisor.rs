//! The watch over the threads that serve a session.
//!
//! A thread that serves keeps a [`Busy`]: since when it has been at its request. The supervisor looks
//! at regular times, and counts its looks; a thread that two looks find at the same request counts
//! as held up. While nothing is there to look at, the supervisor sleeps, so that an idle daemon
//! takes no time.

use crate::lock_order::rank;
use crate::sync::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Looks without anything to do after which the supervisor goes to sleep.
const CALM: u32 = 10;

/// Since when a thread has been at its request.
#[derive(Default)]
pub(super) struct Busy {
    /// The number of looks at that time, plus 1; 0 while the thread is at none.
    began: AtomicU64,
    /// Whether the thread has said that its request will take long.
    is_away: AtomicBool,
}

impl Busy {
    /// The thread begins a request, after so many looks.
    pub fn begin(&self, looks: u64) {
        self.began.store(looks + 1, SeqCst);
    }

    /// The thread is done with its request.
    pub fn end(&self) {
        self.began.store(0, SeqCst);
        self.is_away.store(false, SeqCst);
    }

    /// Whether the thread is at a request.
    pub fn is_busy(&self) -> bool {
        self.began.load(SeqCst) != 0
    }

    /// The thread's request will take long. False if that was said already.
    pub fn go_away(&self) -> bool {
        !self.is_away.swap(true, SeqCst)
    }

    /// Whether the thread has been at its request since before the last of so many looks.
    pub fn is_held_up(&self, looks: u64) -> bool {
        let began = self.began.load(SeqCst);
        began != 0 && (began < looks || self.is_away.load(SeqCst))
    }
}

/// When to look, and whether to go on.
pub(super) struct Supervisor {
    /// The time between two looks.
    interval: Duration,
    looks: AtomicU64,
    /// Whether the supervisor sleeps until there is something to look at.
    asleep: AtomicBool,
    ended: AtomicBool,
    woken: Mutex<bool, rank::Supervisor>,
    wake: Condvar,
}

impl Supervisor {
    /// One that finds that a thread is held up when the thread has been at one request for `stuck`.
    pub fn new(stuck: Duration) -> Supervisor {
        Supervisor {
            interval: stuck / 2,
            looks: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            woken: Mutex::new(false),
            wake: Condvar::new(),
        }
    }

    /// How often it has looked.
    pub fn looks(&self) -> u64 {
        self.looks.load(SeqCst)
    }

    /// Whether it waits until it is roused.
    #[cfg(test)]
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(SeqCst)
    }

    /// There is something to look at.
    pub fn rouse(&self) {
        if self.asleep.load(SeqCst) && self.asleep.swap(false, SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        *self.woken.lock() = true;
        self.wake.notify_one();
    }

    /// It is not to look any more. False if that was said already.
    pub fn end(&self) -> bool {
        let is_first = !self.ended.swap(true, SeqCst);
        if is_first {
            self.wake();
        }
        is_first
    }

    /// Whether [`Supervisor::end`] was called.
    pub fn has_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    /// Calls `look` at each interval while `is_busy`, until the end.
    pub fn supervise(&self, is_busy: impl Fn() -> bool, look: impl Fn()) {
        let mut calm = CALM;
        while !self.has_ended() {
            if calm >= CALM {
                self.asleep.store(true, SeqCst);
                // Asked again: something may have happened between the last look and `asleep`.
                if !is_busy() {
                    let mut woken = self.woken.lock();
                    while !std::mem::take(&mut *woken) {
                        self.wake.wait(&mut woken);
                    }
                }
                self.asleep.store(false, SeqCst);
                calm = 0;
            }
            let mut woken = self.woken.lock();
            self.wake.wait_for(&mut woken, self.interval);
            *woken = false;
            drop(woken);
            let began = Instant::now();
            self.looks.fetch_add(1, SeqCst);
            look();
            calm = if is_busy() { 0 } else { calm + 1 };
            // Looking at many clients must not take most of the daemon's time.
            let spent = began.elapsed();
            if spent > self.interval / 10 {
                std::thread::sleep(spent * 10);
            }
        }
    }
}
