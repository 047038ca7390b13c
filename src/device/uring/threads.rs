//! What the threads of a queue do: the reserve, and the workers.

use super::entry::Entry;
use super::kick::Kicks;
use super::queue::{Job, Queue, Slot};
use super::ring::{Completion, Ring};
use super::{Rings, WORKER, Way};
use crate::Errno;
use crate::binder::copies::Work;
use crate::device::workers::{self, Place};
use crate::probe::{Verb, fault};
use crate::shortage;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;

/// Entries that a reserve registers at a time.
const MORE: usize = 64;
/// A reserve registers more when it has fewer left with the kernel.
const LOW: usize = 48;

impl Rings {
    /// Binds this thread to the CPU of its queue, if the daemon may run there.
    fn pin(&self, queue: &Queue) {
        let cpu = usize::from(queue.cpu);
        if !self.allowed.is_set(cpu).unwrap_or(false) {
            return;
        }
        let mut set = CpuSet::new();
        if set.set(cpu).is_ok() {
            let _ = sched_setaffinity(Pid::from_raw(0), &set);
        }
    }

    /// Starts the reserve of a queue, and waits until its first entries are registered.
    pub(super) fn add_reserve(self: &Arc<Self>, queue: &Arc<Queue>) -> io::Result<()> {
        let (rings, queue) = (self.clone(), queue.clone());
        let (tell, told) = mpsc::channel();
        std::thread::Builder::new().name("reserve".into()).spawn(move || {
            rings.pin(&queue);
            let ring = Ring::new(&rings.session, MORE as u32).and_then(|mut ring| {
                ring.watch(queue.wake_event().as_fd())?;
                let entries = Entry::several(&queue, MORE)?;
                ring.register(entries)?;
                match ring.take() {
                    Some(Completion::Gone(errno)) => Err(errno.into()),
                    Some(Completion::Request(entry)) => {
                        queue.serve(entry);
                        Ok(ring)
                    }
                    Some(Completion::Woken) | None => Ok(ring),
                }
            });
            match ring {
                Ok(ring) => {
                    let _ = tell.send(Ok(()));
                    rings.reserve(&queue, ring);
                }
                Err(error) => _ = tell.send(Err(error)),
            }
        })?;
        told.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    }

    fn reserve(&self, queue: &Arc<Queue>, mut ring: Ring) {
        let kicks = Kicks::default();
        let served = loop {
            if queue.has_ended() && ring.theirs() == 0 {
                break Ok(());
            }
            let inbox = queue.take_inbox();
            let committed: io::Result<()> =
                inbox.into_iter().try_for_each(|entry| ring.commit(entry));
            if let Err(error) = committed.and_then(|()| ring.wait()) {
                break Err(error);
            }
            queue.is_awake();
            while let Some(completion) = ring.take() {
                match completion {
                    Completion::Request(entry) => {
                        queue.received.fetch_add(1, SeqCst);
                        queue.serve(entry);
                    }
                    Completion::Woken if queue.has_ended() => {}
                    Completion::Woken => {
                        if let Err(error) = ring.watch(queue.wake_event().as_fd()) {
                            log::error!("{}: {error}", self.session.name());
                        }
                    }
                    // The end of the session, or of that one request.
                    Completion::Gone(errno) => self.gone(queue, errno),
                }
            }
            if ring.theirs() < LOW && !queue.has_ended() {
                let more = Entry::several(queue, MORE).map_err(io::Error::from);
                if let Err(error) = more.and_then(|more| ring.register(more)) {
                    // The next time round it may have what it takes.
                    shortage::note(&error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
                }
                // The kernel may have given its last entry away before it had these.
                kicks.start(queue, self.mount.as_deref());
            }
        };
        if let Err(error) = served {
            log::error!("{}: io_uring: {error}", self.session.name());
        }
        drop(queue.take_inbox());
    }

    /// The kernel has given an entry up.
    fn gone(&self, queue: &Queue, errno: Errno) {
        if matches!(errno, Errno::ENOTCONN | Errno::ENODEV | Errno::ECONNABORTED) {
            queue.end();
        } else {
            log::debug!("{}: an entry is gone: {errno}", self.session.name());
        }
    }

    /// One more worker, if the machine has a thread for it.
    pub(super) fn add_worker(self: &Arc<Self>, queue: &Arc<Queue>) -> io::Result<()> {
        fault(Verb::Thread)?;
        self.start_worker(queue)
    }

    /// A worker that the queue does not do without.
    pub(super) fn start_worker(self: &Arc<Self>, queue: &Arc<Queue>) -> io::Result<()> {
        let slot = Slot::new(queue);
        if !queue.add_worker(&slot) {
            return Ok(());
        }
        let (rings, its_queue, its_slot) = (self.clone(), queue.clone(), slot.clone());
        let thread = std::thread::Builder::new().name("worker".into());
        let started = thread.spawn(move || {
            rings.pin(&its_queue);
            match Ring::new(&rings.session, 8) {
                Ok(ring) => rings.work(&its_queue, &its_slot, ring),
                Err(error) => log::error!("{}: io_uring: {error}", rings.session.name()),
            }
            its_queue.remove_worker(&its_slot);
        });
        if started.is_err() {
            queue.remove_worker(&slot);
        }
        started.map(drop)
    }

    fn work(self: &Arc<Self>, queue: &Arc<Queue>, slot: &Arc<Slot>, mut ring: Ring) {
        let place = Rc::new(InRings {
            rings: self.clone(),
            queue: queue.clone(),
            slot: slot.clone(),
            has_entries: Cell::new(false),
        });
        WORKER.set(Some(slot.clone()));
        workers::take_place(Some(place.clone()));
        let mut buffer = Vec::new();
        while let Some(job) = self.next(queue, &mut ring) {
            let has_entries = ring.theirs() > 0;
            slot.busy.begin(self.supervisor.looks());
            self.supervisor.rouse();
            place.has_entries.set(has_entries);
            match job {
                Job::Serve(entry) => self.serve(entry, &mut buffer),
                Job::Go(work) => self.go(work),
                Job::Fetch(entry) => Way::answered(entry),
            }
            slot.busy.end();
            // One who is not needed any more leaves before it waits again, so that none is left.
            if !has_entries && queue.can_spare(slot, self.supervisor.looks() + 1) {
                slot.submit_by_others(queue);
                break;
            }
            let answers = std::mem::take(&mut *slot.answers.lock());
            if has_entries || (!answers.is_empty() && queue.may_fetch()) {
                let committed: io::Result<()> =
                    answers.into_iter().try_for_each(|entry| ring.commit(entry));
                if let Err(error) = committed {
                    log::error!("{}: io_uring: {error}", self.session.name());
                    break;
                }
                continue;
            }
            answers.into_iter().for_each(|entry| queue.submit_by_reserve(entry));
        }
        workers::take_place(None);
        WORKER.set(None);
    }

    /// What a worker is to do next. While the kernel has entries of the worker's, that is to wait
    /// for them; a request that comes so, with others still to come, is one that cannot hold the
    /// worker up. None: the worker is to leave.
    fn next(&self, queue: &Queue, ring: &mut Ring) -> Option<Job> {
        loop {
            if ring.theirs() == 0 {
                match queue.next_job()? {
                    Job::Fetch(entry) => {
                        if let Err(error) = ring.commit(entry) {
                            log::error!("{}: io_uring: {error}", self.session.name());
                            queue.fetched();
                            return None;
                        }
                    }
                    job => return Some(job),
                }
            }
            let fetched = fetch(ring);
            let is_last = ring.theirs() == 0;
            if is_last {
                queue.fetched();
            }
            match fetched {
                Ok(Ok(entry)) => {
                    queue.received.fetch_add(1, SeqCst);
                    if is_last || entry.is_light() {
                        return Some(Job::Serve(entry));
                    }
                    queue.serve(entry);
                }
                Ok(Err(errno)) => self.gone(queue, errno),
                Err(error) => {
                    log::error!("{}: io_uring: {error}", self.session.name());
                    return None;
                }
            }
        }
    }

    /// A fault of ours costs that request (its answer is EIO), not the thread.
    fn go(&self, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            log::error!("{}: a request was given up after a panic", self.session.name());
        }
    }

    fn serve(&self, mut entry: Box<Entry>, buffer: &mut Vec<u8>) {
        let message = match entry.request(buffer) {
            Ok(message) => message,
            Err(errno) => {
                log::error!("{}: a request in pieces: {errno}", self.session.name());
                entry.put(0, -(errno as i32), &[]);
                return Way::answered(entry);
            }
        };
        self.go(|| self.session.dispatch_from(message, Some(entry), &*self.door));
    }
}

/// Submits what there is, and waits for the next request.
fn fetch(ring: &mut Ring) -> io::Result<Result<Box<Entry>, Errno>> {
    loop {
        match ring.take() {
            Some(Completion::Request(entry)) => return Ok(Ok(entry)),
            Some(Completion::Gone(errno)) => return Ok(Err(errno)),
            Some(Completion::Woken) => {}
            None => ring.wait()?,
        }
    }
}

/// The place of a worker among those of its queue.
struct InRings {
    rings: Arc<Rings>,
    queue: Arc<Queue>,
    slot: Arc<Slot>,
    /// Whether the kernel has entries of the worker's.
    has_entries: Cell<bool>,
}

impl Place for InRings {
    fn stand_in(&self) {
        if self.slot.busy.go_away() {
            self.rings.relieve(&self.queue);
        }
    }

    fn submit(&self) {
        self.slot.submit_by_others(&self.queue);
    }

    fn must_not_stall(&self) -> bool {
        self.has_entries.get()
    }

    fn hand_over(&self, work: Work) -> Result<(), Work> {
        self.queue.go(work);
        Ok(())
    }
}
