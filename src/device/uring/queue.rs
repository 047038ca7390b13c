//! The queue of one CPU: its reserve, its workers, and what they hand each other.
//!
//! A worker is *free* (it waits for a job, and the kernel has no entry of it), *fetching* (the
//! kernel has entries of it, which it waits for or does light work beside), or *busy* (at a request;
//! the kernel has no entry of it).

use super::entry::Entry;
use crate::binder::copies::Work;
use crate::device::supervisor::Busy;
use crate::lock_order::rank;
use crate::sync::{Condvar, Mutex};
use nix::sys::eventfd::{EfdFlags, EventFd};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// Workers of a queue that are not held up. All but one may be fetching: that one takes what comes
/// to the reserve.
pub const LEAST: usize = 3;
/// All workers of a queue.
pub const MOST: usize = 256;
/// Answers that a worker submits together: its caller's, and that of the client who is told.
pub const AT_ONCE: usize = 2;

/// What a worker that is free is given.
pub enum Job {
    /// A request that came to a thread which must not be held up.
    Serve(Box<Entry>),
    /// What a request that was begun by such a thread has left to do.
    Go(Work),
    /// An answer, to be submitted; its entry is then this worker's to wait with.
    Fetch(Box<Entry>),
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Of `waiting`, the [`Job::Fetch`].
    fetches: usize,
    free: usize,
    fetching: usize,
    ended: bool,
}

impl Jobs {
    /// Whether one more worker may wait in its ring.
    fn may_fetch(&self) -> bool {
        self.fetching + self.fetches < LEAST - 1
    }
}

/// A worker, as the supervisor sees it.
#[derive(Default)]
pub struct Slot {
    cpu: u16,
    pub busy: Busy,
    /// The last answers that it has given: they go with the submission by which the worker waits,
    /// or by another hand before that.
    pub answers: Mutex<Answers, rank::RingAnswer>,
}

/// Answers that are to be submitted together.
pub type Answers = SmallVec<[Box<Entry>; AT_ONCE]>;

pub struct Queue {
    /// Its number is that of the CPU whose threads' requests come here.
    pub cpu: u16,
    jobs: Mutex<Jobs, rank::RingJobs>,
    more: Condvar,
    /// Answers that the reserve is to submit.
    inbox: Mutex<Vec<Box<Entry>>, rank::RingInbox>,
    wake: EventFd,
    /// Whether the reserve has to be woken.
    asleep: AtomicBool,
    pub slots: Mutex<Vec<Arc<Slot>>, rank::Slots>,
    /// Requests that have come.
    pub received: AtomicU64,
}

impl Queue {
    pub fn new(cpu: u16) -> io::Result<Arc<Queue>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Queue {
            cpu,
            jobs: Mutex::default(),
            more: Condvar::new(),
            inbox: Mutex::default(),
            wake,
            asleep: AtomicBool::new(false),
            slots: Mutex::default(),
            received: AtomicU64::new(0),
        }))
    }

    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// Has an answer submitted by somebody who waits for nothing else: a free worker, or the reserve.
    pub fn submit(&self, entry: Box<Entry>) {
        let mut jobs = self.jobs.lock();
        if jobs.free > jobs.waiting.len() && jobs.may_fetch() {
            jobs.fetches += 1;
            jobs.waiting.push_back(Job::Fetch(entry));
            self.more.notify_one();
            return;
        }
        drop(jobs);
        self.submit_by_reserve(entry);
    }

    pub fn submit_by_reserve(&self, entry: Box<Entry>) {
        self.inbox.lock().push(entry);
        self.wake_reserve();
    }

    pub fn wake_reserve(&self) {
        if self.asleep.load(SeqCst) && self.asleep.swap(false, SeqCst) {
            let _ = self.wake.write(1);
        }
    }

    /// The reserve takes what it is to submit, and has to be woken for more.
    pub fn take_inbox(&self) -> Vec<Box<Entry>> {
        self.asleep.store(true, SeqCst);
        std::mem::take(&mut *self.inbox.lock())
    }

    /// The reserve will look into its inbox before it sleeps.
    pub fn is_awake(&self) {
        self.asleep.store(false, SeqCst);
    }

    /// A request, for whichever worker is free first.
    pub fn serve(&self, entry: Box<Entry>) {
        self.push(Job::Serve(entry));
    }

    /// What remains to be done for one, for whichever worker is free first.
    pub fn go(&self, work: Work) {
        self.push(Job::Go(work));
    }

    fn push(&self, job: Job) {
        let mut jobs = self.jobs.lock();
        if jobs.ended {
            return;
        }
        jobs.waiting.push_back(job);
        if jobs.free > 0 {
            self.more.notify_one();
        }
    }

    /// A worker is free, and waits for what it is to do; none: it is to leave.
    pub fn next_job(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        loop {
            if jobs.ended {
                return None;
            }
            match jobs.waiting.pop_front() {
                Some(Job::Fetch(entry)) => {
                    jobs.fetches -= 1;
                    jobs.fetching += 1;
                    return Some(Job::Fetch(entry));
                }
                Some(job) => return Some(job),
                None => {}
            }
            jobs.free += 1;
            self.more.wait(&mut jobs);
            jobs.free -= 1;
        }
    }

    /// Whether a worker that is done with a request may go on with an entry of its own.
    pub fn may_fetch(&self) -> bool {
        let mut jobs = self.jobs.lock();
        let may = jobs.waiting.is_empty() && jobs.may_fetch() && !jobs.ended;
        jobs.fetching += usize::from(may);
        may
    }

    /// A worker's own entry has come back.
    pub fn fetched(&self) {
        self.jobs.lock().fetching -= 1;
    }

    /// One more worker; false when there are too many.
    pub fn add_worker(&self, slot: &Arc<Slot>) -> bool {
        let ended = self.has_ended();
        let mut slots = self.slots.lock();
        let may = slots.len() < MOST && !ended;
        if may {
            slots.push(slot.clone());
        }
        may
    }

    pub fn remove_worker(&self, slot: &Arc<Slot>) {
        self.slots.lock().retain(|other| !Arc::ptr_eq(other, slot));
    }

    /// Removes a worker if enough others are left that are not held up; each of several that ask
    /// at the same time counts those that stay.
    pub fn can_spare(&self, slot: &Arc<Slot>, looks: u64) -> bool {
        let mut slots = self.slots.lock();
        let serving = slots.iter().filter(|other| !other.busy.is_held_up(looks)).count();
        if serving <= LEAST {
            return false;
        }
        slots.retain(|other| !Arc::ptr_eq(other, slot));
        true
    }

    pub fn workers(&self) -> usize {
        self.slots.lock().len()
    }

    /// How many workers are not held up.
    pub fn serving(&self, looks: u64) -> usize {
        self.slots.lock().iter().filter(|slot| !slot.busy.is_held_up(looks)).count()
    }

    pub fn end(&self) {
        let mut jobs = self.jobs.lock();
        jobs.ended = true;
        let given_up = std::mem::take(&mut jobs.waiting);
        drop(jobs);
        drop(given_up);
        self.more.notify_all();
        self.asleep.store(true, SeqCst);
        self.wake_reserve();
    }

    pub fn has_ended(&self) -> bool {
        self.jobs.lock().ended
    }
}

impl Slot {
    /// Has others submit what this worker of the queue has answered.
    pub fn submit_by_others(&self, queue: &Queue) {
        let answers = std::mem::take(&mut *self.answers.lock());
        answers.into_iter().for_each(|entry| queue.submit(entry));
    }

    pub fn new(queue: &Queue) -> Arc<Slot> {
        Arc::new(Slot { cpu: queue.cpu, ..Slot::default() })
    }

    /// Whether its worker is one of that queue.
    pub fn is_of(&self, queue: &Queue) -> bool {
        self.cpu == queue.cpu
    }
}
