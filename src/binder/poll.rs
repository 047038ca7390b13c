//! Polling: who is told that there may be something to read (`binder_poll`).
//!
//! In the driver every thread has a wait queue, and a poll waits on the queue of the thread that
//! began it. A device in userspace has one queue for an open file: a notice wakes all pollers that
//! wait there, and each of them asks the device again.
//!
//! The kernel does not say when the last poller has gone, or whether a poller will ask again before
//! it wants the next notice. An edge-triggered epoll does not ask; an exclusive one that takes
//! turns with another hears of every second arrival only. So a file that was ever polled is told of
//! every arrival, but at most [`AHEAD`] times before somebody asks again.

use super::graph::{Graph, ProcessId, ThreadId};
use super::outbox::Effect;
use super::section::Section;
use super::thread::{Looper, Thread};
use super::{Due, Poller, Process};
use crate::Errno;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How many notices a file is given before somebody asks. Later arrivals make one notice, given
/// when somebody asks again.
const AHEAD: u32 = 16;

/// At most this many polling threads are looked at, to see whether one of them may take what has
/// come; and at most this many waiters of exclusive epolls are woken one by one.
const FEW: usize = 8;

/// Who polls an open file.
#[derive(Default)]
pub(crate) struct Polls {
    poller: Option<Arc<dyn Poller>>,
    /// Threads that have polled and still live.
    pub threads: BTreeSet<ThreadId>,
    /// A thread that polled has gone. Others may wait where it waited: an epoll that several
    /// threads share need not have asked for each of them.
    orphaned: bool,
    /// Notices since somebody last asked.
    ahead: u32,
    /// There was something to tell after [`AHEAD`] notices.
    missed: bool,
    /// How often a notice may still be passed on by a thread that has asked in vain.
    passes: usize,
    /// A notice is due when the lock is dropped.
    due: bool,
    /// How often there was something to tell, with or without a notice.
    tellings: u64,
}

/// A notice to those who poll a file that there may be something to read.
pub(crate) struct Notice {
    process: ProcessId,
    poller: Arc<dyn Poller>,
    /// How many wake-ups to give. One wake-up of a file's queue reaches all waiters but those of
    /// exclusive epolls, of whom it reaches the first only, which may have nothing to read. (The
    /// driver wakes each thread's own queue.)
    waiters: usize,
}

impl Notice {
    pub fn give(self) {
        for _ in 0..self.waiters {
            self.poller.wake();
        }
    }
}

impl Graph {
    /// `binder_poll`: whether the thread has something to read. From now on `poller` is told when
    /// any thread that polls the file may have something to read. ESRCH: the file has been
    /// released.
    fn poll(
        &mut self,
        process: ProcessId,
        id: ThreadId,
        poller: Option<Arc<dyn Poller>>,
    ) -> Result<bool, Errno> {
        let (Some(thread), Some(record)) =
            (self.threads.get_mut(&id), self.processes.get_mut(&process))
        else {
            return Err(Errno::ESRCH);
        };
        if !thread.looper.contains(Looper::POLL) {
            thread.looper |= Looper::POLL;
            record.polls.threads.insert(id);
        }
        if let Some(poller) = poller {
            record.polls.poller = Some(poller);
        }
        record.polls.ahead = 0;
        if std::mem::take(&mut record.polls.missed) {
            // For the other threads that wait; this one is about to know.
            self.tell_pollers(process);
        }
        let tellings = self.processes.get(&process).map(|record| record.polls.tellings);
        let thread = self.threads.get(&id).ok_or(Errno::ESRCH)?;
        let ready = self.has_work(thread, self.available_for_process_work(thread));
        if let Some(thread) = self.threads.get_mut(&id) {
            thread.polled_in_vain = tellings.filter(|_| !ready);
        }
        if !ready {
            self.pass_notice_on(process);
        }
        Ok(ready)
    }

    /// A thread has asked in vain. If the notice was meant for another thread, which has not asked
    /// since, an exclusive epoll may have kept the notice from it. So the notice is given again,
    /// before this thread has its answer and waits again at the head of the queue; but not for
    /// ever, since the other thread may not be waiting at all.
    fn pass_notice_on(&mut self, process: ProcessId) {
        let Some(polls) = self.processes.get(&process).map(|record| &record.polls) else {
            return;
        };
        let should_have_asked = |id: &ThreadId| {
            self.threads.get(id).is_some_and(|thread| {
                thread.polled_in_vain.is_some()
                    && self.has_work(thread, self.available_for_process_work(thread))
            })
        };
        if polls.passes == 0 || !polls.threads.iter().take(FEW).any(should_have_asked) {
            return;
        }
        let passes = polls.passes - 1;
        self.tell_pollers(process);
        if let Some(record) = self.processes.get_mut(&process) {
            record.polls.passes = passes;
        }
    }

    /// Tells those who poll the file, when the lock is dropped.
    pub fn tell_pollers(&mut self, process: ProcessId) {
        let Some(polls) = self.processes.get_mut(&process).map(|record| &mut record.polls) else {
            return;
        };
        polls.tellings += 1;
        let Some(poller) = polls.poller.clone().filter(|_| !polls.due) else {
            return;
        };
        if polls.ahead == AHEAD {
            polls.missed = true;
            return;
        }
        polls.ahead += 1;
        polls.due = true;
        let waiters = polls.threads.len().clamp(1, FEW);
        // Enough to go round all of them several times, since they are woken in no certain order.
        polls.passes = 4 * (waiters - 1);
        self.told.push(Notice { process, poller, waiters });
    }

    /// There is work for any thread of the process, and none waits for it in a read
    /// (`binder_wakeup_poll_threads_ilocked`).
    pub fn wakeup_poll_threads(&mut self, process: ProcessId) {
        let Some(polls) = self.processes.get(&process).map(|record| &record.polls) else {
            return;
        };
        let may_take = |id: &ThreadId| {
            self.threads.get(id).is_some_and(|thread| self.available_for_process_work(thread))
        };
        if polls.orphaned || polls.threads.len() > FEW || polls.threads.iter().any(may_take) {
            self.tell_pollers(process);
        }
    }

    /// A thread that polls has gone, and its wait queue with it: the driver wakes all who wait
    /// there.
    pub fn release_poll_thread(&mut self, process: ProcessId, thread: ThreadId) {
        if let Some(record) = self.processes.get_mut(&process) {
            record.polls.threads.remove(&thread);
            record.polls.orphaned = true;
        }
        self.tell_pollers(process);
    }

    /// Turns the notices that are due into effects.
    pub fn settle_polls(&mut self) {
        for notice in self.told.drain(..) {
            if let Some(record) = self.processes.get_mut(&notice.process) {
                record.polls.due = false;
            }
            self.effects.push(Effect::Poll(notice));
        }
    }
}

impl Polls {
    /// Whether the thread has asked in vain, and there was nothing to tell since.
    pub fn still_in_vain(&self, thread: &Thread) -> bool {
        thread.polled_in_vain == Some(self.tellings)
    }
}

impl Process {
    /// `binder_poll`: whether the thread has something to read. From now on `poller`, if any, is
    /// told whenever any thread that polls the file may have something to read. ENOMEM: too many
    /// threads; ESRCH: the file has been released.
    pub fn poll(
        self: &Arc<Self>,
        tid: i32,
        poller: Option<Arc<dyn Poller>>,
    ) -> (Result<bool, Errno>, Due<'_>) {
        self.alloc.owner_calls();
        let mut section = Section::new(self, tid);
        let ready = section.enter().and_then(|(graph, thread)| graph.poll(self.id, thread, poller));
        section.leave();
        (ready, self.due())
    }
}
