//! A thread: one that calls ioctls on an open file, known by its thread id.
//!
//! A thread is in its client, or in an ioctl: being served, or parked in a read until there is
//! something to give. No thread of the daemon waits with it: the parked read is a record here.

use super::Birth;
use super::exit::Life;
use super::graph::{Graph, ProcessId, Queue, ThreadId, TransactionId, Work, WorkList};
use super::outbox::Effect;
use super::pieces::Rest;
use super::read::{Answer, Parked};
use crate::Errno;
use crate::protocol::returns::Return;
use crate::quota::{Charge, bytes};
use bitflags::bitflags;
use std::ops::Bound;

bitflags! {
    /// `BINDER_LOOPER_STATE_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Looper: u32 {
        const REGISTERED = 0x01;
        const ENTERED = 0x02;
        const EXITED = 0x04;
        const INVALID = 0x08;
        const POLL = 0x20;
    }
}

impl Looper {
    /// Whether the thread has said that it serves the process's work.
    pub fn is_looper(self) -> bool {
        self.intersects(Looper::REGISTERED | Looper::ENTERED)
    }
}

/// What BINDER_GET_EXTENDED_ERROR tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExtendedError {
    pub id: u32,
    /// A `BR_*`; `BR_OK` when there was no error.
    pub command: u32,
    /// A negative errno, or 0.
    pub param: i32,
}

impl ExtendedError {
    pub const NONE: ExtendedError = ExtendedError { id: 0, command: crate::uapi::BR_OK, param: 0 };
}

/// `struct binder_thread`.
pub(crate) struct Thread {
    pub process: ProcessId,
    pub tid: i32,
    /// What tells this thread from others that have, or had, its number.
    pub birth: Option<Birth>,
    pub life: Life,
    pub looper: Looper,
    /// The next read returns even with nothing to give: the thread is new, or was flushed.
    pub looper_need_return: bool,
    /// Something in `todo` is worth waking the thread for; deferred work is not.
    pub process_todo: bool,
    pub todo: WorkList,
    pub transaction_stack: Option<TransactionId>,
    pub return_error: Option<Return>,
    pub reply_error: Option<Return>,
    pub extended_error: ExtendedError,
    /// Descriptors of buffers that this ioctl has freed: the client has to close them before the
    /// ioctl returns.
    pub close_on_return: Vec<i32>,
    pub parked: Option<Parked>,
    /// The thread's key among those that wait for the process's work, while it does.
    pub turn: Option<u64>,
    /// The transaction that is being written to the thread's memory; it stands in no list
    /// meanwhile.
    pub delivering: Option<TransactionId>,
    /// Set when a poll found nothing to read: how often there had been something to tell by then.
    pub polled_in_vain: Option<u64>,
    /// The address of the last read buffer that could be written to.
    pub known_read_buffer: Option<u64>,
    #[expect(dead_code, reason = "held for its drop")]
    pub charge: Charge,
}

impl Graph {
    /// The record of a thread, made when there is none. ESRCH: the file has been released; ENOMEM:
    /// too many threads.
    pub fn get_thread(
        &mut self,
        process: ProcessId,
        tid: i32,
        birth: Option<Birth>,
    ) -> Result<ThreadId, Errno> {
        let record = self.processes.get(&process).filter(|record| !record.is_dead);
        let record = record.ok_or(Errno::ESRCH)?;
        if let Some(&thread) = record.threads.get(&tid) {
            return Ok(thread);
        }
        if record.threads.len() >= self.limits.threads {
            return Err(Errno::ENOMEM);
        }
        let charge = record.process.user.hold_record(bytes::THREAD)?;
        let id = ThreadId(self.next_id());
        self.created.threads += 1;
        self.threads.insert(
            id,
            Thread {
                process,
                tid,
                birth,
                life: Life::default(),
                looper: Looper::empty(),
                looper_need_return: true,
                process_todo: false,
                todo: WorkList::default(),
                transaction_stack: None,
                return_error: None,
                reply_error: None,
                extended_error: ExtendedError::NONE,
                close_on_return: Vec::new(),
                parked: None,
                turn: None,
                delivering: None,
                polled_in_vain: None,
                known_read_buffer: None,
                charge,
            },
        );
        if let Some(record) = self.processes.get_mut(&process) {
            record.threads.insert(tid, id);
        }
        Ok(id)
    }

    /// Whether a thread may take work that is meant for any thread of the process
    /// (`binder_available_for_proc_work_ilocked`).
    pub fn available_for_process_work(&self, thread: &Thread) -> bool {
        thread.transaction_stack.is_none() && thread.todo.is_empty()
    }

    /// `binder_has_work_ilocked`.
    pub fn has_work(&self, thread: &Thread, do_process_work: bool) -> bool {
        thread.process_todo
            || thread.looper_need_return
            || (do_process_work
                && self.processes.get(&thread.process).is_some_and(|p| !p.todo.is_empty()))
    }

    /// Takes a thread that waits for the process's work, the latest to wait first
    /// (`binder_select_thread_ilocked`).
    pub fn select_thread(&mut self, process: ProcessId) -> Option<ThreadId> {
        let (_, id) = self.processes.get_mut(&process)?.waiting_threads.pop_last()?;
        if let Some(thread) = self.threads.get_mut(&id) {
            thread.turn = None;
        }
        Some(id)
    }

    /// Wakes a thread, or, where none waits in a read, those that poll
    /// (`binder_wakeup_thread_ilocked`).
    pub fn wakeup_thread(&mut self, process: ProcessId, thread: Option<ThreadId>) {
        if let Some(thread) = thread {
            self.woken.push(thread);
            return;
        }
        self.wakeup_poll_threads(process);
    }

    /// `binder_wakeup_proc_ilocked`.
    pub fn wakeup_process(&mut self, process: ProcessId) {
        let thread = self.select_thread(process);
        self.wakeup_thread(process, thread);
    }

    /// Attends to every thread that was woken: pollers are told, and parked reads that have
    /// something to give become answers. To be called before the lock is dropped.
    pub fn settle(&mut self) {
        while let Some(id) = self.woken.pop() {
            let Some(thread) = self.threads.get_mut(&id) else {
                continue;
            };
            if let Some(parked) = thread.parked.take() {
                self.stop_waiting(id);
                if let Some(answer) = self.resume_read(id, parked) {
                    self.effects.push(Effect::Answer(answer));
                }
            } else if thread.looper.contains(Looper::POLL) {
                let process = thread.process;
                self.tell_pollers(process);
            }
        }
        self.settle_polls();
    }

    /// Takes a thread out of those that wait for the process's work.
    pub fn stop_waiting(&mut self, id: ThreadId) {
        let Some(thread) = self.threads.get_mut(&id) else {
            return;
        };
        if let Some(turn) = thread.turn.take()
            && let Some(record) = self.processes.get_mut(&thread.process)
        {
            record.waiting_threads.remove(&turn);
        }
    }

    /// Notes that a command of the thread failed. The thread's next read says so, and the commands
    /// behind the failed one wait until then.
    pub fn set_return_error(&mut self, thread: ThreadId, error: Return) {
        if let Some(record) = self.threads.get_mut(&thread) {
            record.return_error = Some(error);
            self.enqueue_thread_work(thread, Work::ReturnError);
        }
    }

    pub fn set_extended_error(&mut self, thread: ThreadId, error: ExtendedError) {
        if let Some(thread) = self.threads.get_mut(&thread) {
            thread.extended_error = error;
        }
    }

    /// A signal has arrived: ends the thread's blocked read with EINTR.
    pub fn interrupt_thread(&mut self, process: ProcessId, tid: i32) {
        let Some(&id) = self.processes.get(&process).and_then(|p| p.threads.get(&tid)) else {
            return;
        };
        self.end_parked_read(id, Errno::EINTR);
    }

    /// A new or flushed thread returns from an ioctl: its next read may wait.
    pub fn ioctl_done(&mut self, thread: ThreadId) {
        if let Some(thread) = self.threads.get_mut(&thread) {
            thread.looper_need_return = false;
        }
    }

    /// Ends a parked read without giving it anything.
    pub fn end_parked_read(&mut self, id: ThreadId, errno: Errno) {
        let Some(thread) = self.threads.get_mut(&id) else {
            return;
        };
        let Some(parked) = thread.parked.take() else {
            return;
        };
        thread.looper_need_return = false;
        let process = thread.process;
        self.stop_waiting(id);
        self.wakeup_leftover(process);
        self.effects.push(Effect::Answer(Answer::Finish(parked.finish(errno))));
    }

    /// Work that nobody has taken yet goes to the next waiting thread.
    pub fn wakeup_leftover(&mut self, process: ProcessId) {
        if self.processes.get(&process).is_some_and(|p| !p.todo.is_empty()) {
            self.wakeup_process(process);
        }
    }

    /// `binder_deferred_flush`: every thread's read returns once.
    pub fn flush(&mut self, process: ProcessId) {
        self.flush_after(process, None);
    }

    /// The same for the threads with numbers above `after`.
    pub fn flush_after(&mut self, process: ProcessId, mut after: Option<i32>) {
        loop {
            let least = after.map_or(Bound::Unbounded, Bound::Excluded);
            let record = self.processes.get(&process);
            let next = record.and_then(|it| it.threads.range((least, Bound::Unbounded)).next());
            let Some((&tid, &id)) = next else { return };
            if !self.spend() {
                return self.rest.push(Rest::Flush { process, after });
            }
            after = Some(tid);
            if let Some(thread) = self.threads.get_mut(&id) {
                thread.looper_need_return = true;
                // Not the threads that poll: they have nothing to read.
                if thread.parked.is_some() {
                    self.woken.push(id);
                }
            }
        }
    }

    /// A thread leaves, by BINDER_THREAD_EXIT or with its process (`binder_thread_release`): its
    /// open transactions are failed or unlinked, and its work is dropped.
    pub fn release_thread(&mut self, id: ThreadId) {
        self.end_parked_read(id, Errno::EBADF);
        let Some(thread) = self.threads.get_mut(&id) else {
            return;
        };
        let (process, tid) = (thread.process, thread.tid);
        if let Life::Watched(watch) = std::mem::take(&mut thread.life) {
            self.effects.push(Effect::DropWatch(watch));
        }
        let polled = thread.looper.contains(Looper::POLL);
        let delivering = thread.delivering.take();
        let top = thread.transaction_stack.take();
        if let Some(record) = self.processes.get_mut(&process) {
            record.threads.remove(&tid);
        }
        if polled {
            self.release_poll_thread(process, id);
        }
        if let Some(thread) = self.threads.remove(&id) {
            self.leftovers.insert(id, thread.todo);
        }
        let served = top.filter(|top| {
            self.transactions.get(top).is_some_and(|call| call.to_thread == Some(id))
        });
        // The call on top is unlinked at once: its caller is answered below, and the call is gone
        // after that.
        if let Some(below) = top.and_then(|top| self.unlink_call(id, process, top)) {
            self.unlink_stack(id, process, below);
        }
        if let Some(transaction) = served {
            self.send_failed_reply(transaction, Return::DeadReply);
        }
        if let Some(transaction) = delivering {
            self.cleanup_transaction(transaction, Return::DeadReply);
        }
        self.release_leftover(id);
    }

    /// Unlinks a thread that is gone from the calls on its stack, from `next` down.
    pub fn unlink_stack(&mut self, thread: ThreadId, process: ProcessId, next: TransactionId) {
        let mut next = Some(next);
        while let Some(call) = next {
            if !self.spend() {
                return self.rest.push(Rest::Stack { thread, process, next: call });
            }
            next = self.unlink_call(thread, process, call);
        }
    }

    /// The same for one call; returns the call below it.
    fn unlink_call(
        &mut self,
        thread: ThreadId,
        process: ProcessId,
        id: TransactionId,
    ) -> Option<TransactionId> {
        let call = self.transactions.get_mut(&id)?;
        if call.to_thread != Some(thread) {
            call.from = None;
            return call.from_parent;
        }
        let below = call.to_parent;
        self.detach_target(id);
        self.dec_outstanding(process);
        below
    }

    /// Drops the work of a thread that is gone (`binder_release_work`).
    pub fn release_leftover(&mut self, id: ThreadId) {
        loop {
            if self.leftovers.get(&id).is_none_or(WorkList::is_empty) {
                self.leftovers.remove(&id);
                return;
            }
            if !self.spend() {
                return self.rest.push(Rest::Todo(id));
            }
            self.release_first_work(Queue::Thread(id));
        }
    }

    /// Drops the oldest work of a list; returns whether there was any.
    pub fn release_first_work(&mut self, queue: Queue) -> bool {
        if let Some(work) = self.dequeue_head(queue) {
            match work {
                Work::Transaction(id) => self.cleanup_transaction(id, Return::DeadReply),
                Work::Death(id) => self.release_death_work(id),
                Work::Freeze(id) => self.release_freeze_work(id),
                Work::Node(id) => {
                    if let Some(node) = self.nodes.get_mut(&id) {
                        node.notice_lost = true;
                    }
                }
                Work::ReturnError
                | Work::ReplyError
                | Work::TransactionComplete
                | Work::TransactionPending
                | Work::TransactionOnewaySpamSuspect => {}
            }
            return true;
        }
        false
    }
}
