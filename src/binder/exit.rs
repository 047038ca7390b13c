//! Threads that have ended without calling BINDER_THREAD_EXIT.
//!
//! Many programs never make that call, and the call of others does not arrive: libbinder calls
//! `ioctl(fd, BINDER_THREAD_EXIT, 0)`, and where the kernel copies the argument for the daemon, the
//! call fails with EFAULT before the daemon is asked. So the daemon looks for the end of a thread
//! by itself, and treats that end as BINDER_THREAD_EXIT: callers that wait for the thread read
//! BR_DEAD_REPLY.
//!
//! The device is not asked at every call. The record of a thread is in one of three states:
//! - unwatched: nobody waits for the thread and its record says nothing that a new thread's would
//!   not, so it may be gone. Such records are looked through when a process has twice as many
//!   threads as the last time, and when it has as many as it may have;
//! - watched: a caller waits for the thread, or its record has something to tell (it is a looper,
//!   has work, has a call on its stack). The device watches the thread from then on, and tells when
//!   it ends;
//! - asked: the same, but the device cannot watch (a process's first thread, which may end before
//!   the others; an older kernel). The device is asked now and then, while somebody waits.
//!
//! Thread ids are used again. When a thread calls whose id has a watched record, the record is its
//! own. When the id has an unwatched record that has something to tell, the device compares the
//! caller with the thread that the record was made for ([`Birth`]).

use super::graph::{Graph, ProcessId, ThreadId};
use super::outbox::Effect;
use super::pieces::AT_ONCE;
use super::section::Section;
use super::thread::{Looper, Thread};
use super::{Birth, Process, Watching};
use crate::Errno;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

/// Up to this many records of threads are kept before any is looked at.
pub(crate) const FEW: usize = 64;
/// The first and the longest interval at which a device is asked after a thread.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_millis(500);
/// A search that found nothing is not repeated for this many times as long as it took.
const PAUSE: u32 = 10;

/// How the daemon notices that a thread is gone.
#[derive(Default)]
pub(crate) enum Life {
    /// Not at all, so far.
    #[default]
    Unwatched,
    /// The device tells. Dropping this value ends the watch.
    Watched(Box<dyn Send>),
    /// The device has to be asked; `due`: a timer that asks is set.
    Asked { due: bool },
}

/// The record behind the number of a calling thread.
pub(crate) enum Found {
    None,
    Thread(ThreadId),
    /// The record may be that of an earlier thread.
    Unsure(ThreadId, Option<Birth>),
}

/// What is to be done so that a thread's end is noticed.
enum Attention {
    Nothing,
    Watch(i32, Option<Birth>),
    Ask,
}

impl Process {
    /// The record of a calling thread, made at its first call (`binder_get_thread`). ESRCH: the
    /// file has been released; ENOMEM: too many threads ([`Limits`](super::Limits)).
    pub(crate) fn calling_thread(
        self: &Arc<Self>,
        section: &mut Section<'_>,
        tid: i32,
    ) -> Result<ThreadId, Errno> {
        match section.graph().find_thread(self.id, tid)? {
            Found::Thread(id) => return Ok(id),
            Found::Unsure(id, birth) => {
                section.leave();
                if self.watch_thread(id, tid, birth) {
                    return Ok(id);
                }
            }
            Found::None => section.leave(),
        }
        let birth = self.task.thread_birth(tid);
        let added = section.graph().new_thread(self.id, tid, birth, false);
        if added != Err(Errno::EAGAIN) {
            return added;
        }
        section.leave();
        self.forget_gone_threads();
        section.graph().new_thread(self.id, tid, birth, true)
    }

    /// Somebody is about to wait for a thread, which may be running its program, or gone. Returns
    /// false when it is gone.
    pub(crate) fn attend_thread(self: &Arc<Self>, id: ThreadId) -> bool {
        let attention = self.context.locked(|graph| match graph.threads.get_mut(&id) {
            Some(Thread { life: Life::Unwatched, tid, birth, .. }) => {
                Attention::Watch(*tid, *birth)
            }
            Some(Thread { life: Life::Asked { due }, .. }) if !*due => {
                *due = true;
                Attention::Ask
            }
            Some(_) | None => Attention::Nothing,
        });
        match attention {
            Attention::Nothing => true,
            Attention::Watch(tid, birth) => self.watch_thread(id, tid, birth),
            Attention::Ask => {
                self.ask_later(id, FIRST_LOOK);
                true
            }
        }
    }

    /// Has the device watch a thread. Returns false when the thread is gone already, and then its
    /// record is gone too.
    fn watch_thread(self: &Arc<Self>, id: ThreadId, tid: i32, birth: Option<Birth>) -> bool {
        let process = Arc::downgrade(self);
        let ended = move || {
            if let Some(process) = process.upgrade() {
                process.thread_ended(id);
                process.context.shared.hand_over();
            }
        };
        let life = match self.task.watch_thread(tid, birth, Box::new(ended)) {
            Watching::Gone => {
                self.thread_ended(id);
                return false;
            }
            Watching::Told(watch) => Life::Watched(watch),
            Watching::Untold => {
                self.ask_later(id, FIRST_LOOK);
                Life::Asked { due: true }
            }
        };
        // The former `Life` is dropped outside the lock: to end a watch is a system call.
        self.context.locked(|graph| graph.set_life(id, life));
        true
    }

    fn thread_ended(self: &Arc<Self>, id: ThreadId) {
        self.context.locked(|graph| graph.thread_ended(id));
    }

    fn ask_later(self: &Arc<Self>, id: ThreadId, delay: Duration) {
        let process = Arc::downgrade(self);
        let ask = move || {
            if let Some(process) = process.upgrade() {
                process.ask_after_thread(id, delay);
                process.context.shared.hand_over();
            }
        };
        let shared = &self.context.shared;
        shared.timers.after(shared.next_id(), delay, Box::new(ask));
    }

    fn ask_after_thread(self: &Arc<Self>, id: ThreadId, last: Duration) {
        let awaited = self.context.locked(|graph| {
            let awaited = graph.is_awaited(id);
            let thread = graph.threads.get_mut(&id)?;
            if !awaited {
                thread.life = Life::Asked { due: false };
                return None;
            }
            Some((thread.tid, thread.birth))
        });
        let Some((tid, birth)) = awaited else { return };
        if self.task.thread_is_gone(tid, birth) {
            self.thread_ended(id);
        } else {
            self.ask_later(id, (last * 2).min(LAST_LOOK));
        }
    }

    /// Drops the records of threads that are gone.
    fn forget_gone_threads(self: &Arc<Self>) {
        let timers = &self.context.shared.timers;
        let began = timers.now();
        let mut suspects = Vec::new();
        self.context.in_pieces(|graph, after| {
            graph.unwatched_threads(self.id, began, after, &mut suspects)
        });
        let gone: Vec<ThreadId> = suspects
            .into_iter()
            .filter(|(_, tid, birth)| self.task.thread_is_gone(*tid, *birth))
            .map(|(id, ..)| id)
            .collect();
        for batch in gone.chunks(AT_ONCE) {
            self.context.locked(|graph| batch.iter().for_each(|id| graph.thread_ended(*id)));
        }
        let ended = timers.now();
        self.context.locked(|graph| {
            let Some(record) = graph.processes.get_mut(&self.id) else { return };
            record.look_through_at = (record.threads.len() * 2).max(FEW);
            if gone.is_empty() {
                record.look_through_after = ended + ended.saturating_sub(began) * PAUSE;
            }
        });
    }
}

impl Graph {
    /// The record of a calling thread id. A thread is in one system call at a time: a read that is
    /// parked under this id is that of an earlier thread, which nobody waits for any more.
    fn find_thread(&mut self, process: ProcessId, tid: i32) -> Result<Found, Errno> {
        let record = self.processes.get(&process).ok_or(Errno::ESRCH)?;
        let Some(&id) = record.threads.get(&tid) else { return Ok(Found::None) };
        self.end_parked_read(id, Errno::EINTR);
        Ok(match self.threads.get(&id) {
            Some(thread) if matches!(thread.life, Life::Unwatched) && !thread.is_blank() => {
                Found::Unsure(id, thread.birth)
            }
            _ => Found::Thread(id),
        })
    }

    /// Makes a record for a thread's first call. EAGAIN, unless the records were `looked_through`:
    /// there are so many that some may be those of threads that are gone.
    fn new_thread(
        &mut self,
        process: ProcessId,
        tid: i32,
        birth: Option<Birth>,
        looked_through: bool,
    ) -> Result<ThreadId, Errno> {
        let record = self.processes.get(&process).ok_or(Errno::ESRCH)?;
        if !looked_through
            && record.threads.len() >= record.look_through_at.min(self.limits.threads)
        {
            return Err(Errno::EAGAIN);
        }
        self.get_thread(process, tid, birth)
    }

    /// Appends to `found` some threads that may be gone; none when it is too early to look again.
    /// Returns the number of the last thread looked at, when there may be more behind it.
    fn unwatched_threads(
        &self,
        process: ProcessId,
        now: Duration,
        after: Option<i32>,
        found: &mut Vec<(ThreadId, i32, Option<Birth>)>,
    ) -> Option<i32> {
        let record = self.processes.get(&process)?;
        if now < record.look_through_after {
            return None;
        }
        let least = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        let some = record.threads.range((least, Bound::Unbounded)).take(AT_ONCE);
        for (number, (tid, id)) in some.enumerate() {
            last = Some(*tid).filter(|_| number + 1 == AT_ONCE);
            let Some(thread) = self.threads.get(id) else { continue };
            if thread.parked.is_none() && !matches!(thread.life, Life::Watched(_)) {
                found.push((*id, thread.tid, thread.birth));
            }
        }
        last
    }

    fn set_life(&mut self, id: ThreadId, life: Life) {
        let before = match self.threads.get_mut(&id) {
            Some(thread) => std::mem::replace(&mut thread.life, life),
            None => life,
        };
        if let Life::Watched(watch) = before {
            self.effects.push(Effect::DropWatch(watch));
        }
    }

    /// A thread is gone: the same as BINDER_THREAD_EXIT, except that a new thread may have its
    /// number already and wait in a read, which goes on.
    fn thread_ended(&mut self, id: ThreadId) {
        let Some(thread) = self.threads.get_mut(&id) else { return };
        let (process, tid) = (thread.process, thread.tid);
        let successor = thread.parked.take();
        self.stop_waiting(id);
        self.release_thread(id);
        if let Some(read) = successor {
            let answer = match self.get_thread(process, tid, None) {
                Ok(new) => self.resume_read(new, read),
                Err(errno) => Some(self.finish_read(id, read, errno)),
            };
            self.effects.extend(answer.map(Effect::Answer));
        }
    }

    /// Whether nobody watches for the end of a thread that is running its program.
    pub fn is_unattended(&self, id: ThreadId) -> bool {
        self.threads.get(&id).is_some_and(|thread| {
            thread.parked.is_none()
                && matches!(thread.life, Life::Unwatched | Life::Asked { due: false })
        })
    }

    /// The thread of that number, when it has a call of its own open and nobody watches for its
    /// end: the answer to the call would be kept for nobody.
    pub fn interrupted_caller(&self, process: ProcessId, tid: i32) -> Option<ThreadId> {
        let id = *self.processes.get(&process)?.threads.get(&tid)?;
        let calls = self.threads.get(&id)?.transaction_stack.is_some();
        (calls && self.is_unattended(id)).then_some(id)
    }

    /// Whether somebody waits for that thread: a call that it serves is on its stack, or unread.
    /// (Below a call of the thread's own there is a call that it serves, or none.)
    fn is_awaited(&self, id: ThreadId) -> bool {
        let Some(thread) = self.threads.get(&id) else { return false };
        let mut next = thread.transaction_stack;
        while let Some(transaction) = next.and_then(|id| self.transactions.get(&id)) {
            if transaction.to_thread == Some(id) {
                return true;
            }
            next = transaction.from_parent;
        }
        thread.todo.transactions() > 0
    }
}

impl Thread {
    /// Whether the record says nothing that a new thread's would not.
    fn is_blank(&self) -> bool {
        (self.looper - Looper::POLL).is_empty()
            && self.transaction_stack.is_none()
            && self.todo.is_empty()
            && self.extended_error.command == crate::uapi::BR_OK
    }
}
