//! Reading: what a thread is told, and when (`binder_thread_read`).
//!
//! A read that has nothing to give is parked on its thread. A thread that brings work resumes the
//! read: under the graph's lock the returns are put together, and the read has an [`Answer`]. How
//! the answer gets to the client, without the lock, is told in [`super::delivery`].

use super::delivery::{Delivered, Delivery, SenderPid};
use super::graph::{Graph, Queue, ThreadId, TransactionId, Work};
use super::pieces::LINES_AT_ONCE;
use super::{Completion, FewBytes, Finish, Process};
use crate::Errno;
use crate::client_mem::ClientMemory;
use crate::protocol::record::{PtrCookie, TransactionData, WriteRead, align8};
use crate::protocol::returns::Return;
use crate::uapi;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// The room that a read buffer must have for one more return: that of the largest, with its number.
const ROOM: u64 = 4 + size_of::<uapi::binder_transaction_data_secctx>() as u64;

/// The size of a page of any client, or a divisor of it.
const PAGE: u64 = 4096;

/// A BINDER_WRITE_READ in its read part.
pub(crate) struct Parked {
    pub process: Arc<Process>,
    pub call: WriteRead,
    pub memory: Arc<dyn ClientMemory>,
    pub nonblock: bool,
    pub reply: Box<dyn Completion>,
    /// `read_consumed` when the read began: its value in the answer of a read that fails.
    pub start: u64,
}

impl Parked {
    pub fn new(
        process: Arc<Process>,
        call: WriteRead,
        memory: Arc<dyn ClientMemory>,
        nonblock: bool,
        reply: Box<dyn Completion>,
    ) -> Parked {
        Parked { process, start: call.read_consumed, call, memory, nonblock, reply }
    }

    /// Ends the read without giving it anything.
    pub fn finish(self, errno: Errno) -> Box<Finish> {
        let out = self.call.as_bytes().into();
        Box::new(Finish { process: self.process, reply: self.reply, result: Err(errno), out })
    }

    /// Whether the buffer lies in more than one page, any of which may turn out to be missing. Then
    /// each return is written before the next is taken, so that only the one that does not fit is
    /// lost. (Within one page, where the first word can be written the rest can.)
    fn in_steps(&self) -> bool {
        let last = self.call.read_buffer.wrapping_add(self.call.read_size.saturating_sub(1));
        self.call.read_buffer / PAGE != last / PAGE
    }
}

/// What a read, or another ioctl that waited, has come to. Boxed, as it passes through many hands.
pub(crate) enum Answer {
    /// Returns, to be written to the client.
    Deliver(Box<Delivery>),
    /// Only the end of an ioctl; not only of a read: a freeze that was waited for ends so, too.
    Finish(Box<Finish>),
    /// The end of an ioctl that is called again after the signal's handler.
    Restart(Box<Finish>),
}

/// How far the collecting of returns came.
enum Collected {
    /// Nothing yet: the read has to wait.
    Nothing,
    /// All there was, or as much as there is room for.
    Returns,
    /// One return of perhaps more, for a buffer that is filled in steps.
    Step,
    /// A transaction came, which ends a read.
    Transaction(Delivered),
}

impl Graph {
    /// Begins or resumes a read that has collected nothing yet. None: there is nothing to give, and
    /// the read is parked.
    pub fn resume_read(&mut self, id: ThreadId, read: Parked) -> Option<Answer> {
        let mut bytes = FewBytes::new();
        if read.call.read_consumed == 0 {
            Return::Noop.encode(&mut bytes);
        }
        self.wait_for_work(id, read, bytes)
    }

    /// Gives a read what there is, or parks it. `bytes` holds BR_NOOP at most.
    fn wait_for_work(&mut self, id: ThreadId, read: Parked, mut bytes: FewBytes) -> Option<Answer> {
        loop {
            let Some(thread) = self.threads.get(&id) else {
                return Some(self.finish_read(id, read, Errno::ESRCH));
            };
            let for_process = self.available_for_process_work(thread);
            if !self.has_work(thread, for_process) {
                let errno = if read.nonblock {
                    Errno::EAGAIN
                } else if read.reply.interrupted() {
                    Errno::EINTR
                } else {
                    self.park(id, read, for_process);
                    return None;
                };
                return Some(self.finish_read(id, read, errno));
            }
            return match self.collect(id, &read, for_process, &mut bytes) {
                Collected::Nothing => continue,
                Collected::Step => Some(self.deliver_step(id, read, bytes, for_process)),
                Collected::Returns => Some(self.deliver(id, read, bytes, for_process, None)),
                Collected::Transaction(delivered) => {
                    Some(self.deliver(id, read, bytes, for_process, Some(delivered)))
                }
            };
        }
    }

    /// Reads on after a step, or after a transaction that could not be given to the client. What
    /// was collected before that is given even when nothing follows.
    pub fn continue_read(
        &mut self,
        id: ThreadId,
        read: Parked,
        mut bytes: FewBytes,
        for_process: bool,
    ) -> Option<Answer> {
        match self.collect(id, &read, for_process, &mut bytes) {
            Collected::Nothing => self.wait_for_work(id, read, bytes),
            Collected::Step => Some(self.deliver_step(id, read, bytes, for_process)),
            Collected::Returns => Some(self.deliver(id, read, bytes, for_process, None)),
            Collected::Transaction(delivered) => {
                Some(self.deliver(id, read, bytes, for_process, Some(delivered)))
            }
        }
    }

    /// The end of a read: what was collected goes to the client.
    pub fn deliver(
        &mut self,
        id: ThreadId,
        read: Parked,
        bytes: FewBytes,
        for_process: bool,
        transaction: Option<Delivered>,
    ) -> Answer {
        let Some(thread) = self.threads.get_mut(&id) else {
            return self.finish_read(id, read, Errno::ESRCH);
        };
        thread.looper_need_return = false;
        let (process, tid, looper) = (thread.process, thread.tid, thread.looper);
        let is_call = transaction.as_ref().is_some_and(|it| !it.is_reply && !it.oneway);
        let is_awaited = is_call || !thread.todo.is_empty();
        let unattended = is_awaited && self.is_unattended(id);
        let Some(record) = self.processes.get_mut(&process) else {
            return self.finish_read(id, read, Errno::ESRCH);
        };
        let spawn_looper = record.requested_threads == 0
            && record.waiting_threads.is_empty()
            && record.requested_threads_started < record.max_threads
            && looper.is_looper();
        record.requested_threads += u32::from(spawn_looper);
        if let Some(thread) = self.threads.get_mut(&id) {
            let unsettled = transaction.as_ref().filter(|delivered| !delivered.settled);
            thread.delivering = unsettled.map(|delivered| delivered.id);
        }
        self.wakeup_leftover(process);
        Answer::Deliver(Box::new(Delivery {
            thread: id,
            tid,
            read,
            bytes,
            spawn_looper,
            for_process,
            transaction,
            is_step: false,
            unattended,
        }))
    }

    /// Sends one return to the client; the read goes on when the client has it.
    fn deliver_step(
        &mut self,
        id: ThreadId,
        read: Parked,
        bytes: FewBytes,
        for_process: bool,
    ) -> Answer {
        let Some(tid) = self.threads.get(&id).map(|thread| thread.tid) else {
            return self.finish_read(id, read, Errno::ESRCH);
        };
        Answer::Deliver(Box::new(Delivery {
            thread: id,
            tid,
            read,
            bytes,
            spawn_looper: false,
            for_process,
            transaction: None,
            is_step: true,
            unattended: false,
        }))
    }

    fn park(&mut self, id: ThreadId, read: Parked, for_process: bool) {
        // A thread waits in one read. One that is parked already is of an earlier thread with this
        // id.
        self.end_parked_read(id, Errno::EINTR);
        let turn = self.next_in_sequence();
        let Some(thread) = self.threads.get_mut(&id) else {
            return;
        };
        thread.parked = Some(read);
        if for_process && let Some(record) = self.processes.get_mut(&thread.process) {
            thread.turn = Some(turn);
            record.waiting_threads.insert(turn, id);
        }
    }

    pub fn finish_read(&mut self, id: ThreadId, read: Parked, errno: Errno) -> Answer {
        if let Some(thread) = self.threads.get_mut(&id) {
            thread.looper_need_return = false;
            let process = thread.process;
            self.wakeup_leftover(process);
        }
        Answer::Finish(read.finish(errno))
    }

    /// Takes work and appends the returns that it makes, as long as there is room.
    fn collect(
        &mut self,
        id: ThreadId,
        read: &Parked,
        for_process: bool,
        bytes: &mut FewBytes,
    ) -> Collected {
        let call = &read.call;
        let before = bytes.len();
        let mut taken = 0;
        loop {
            // Some work makes no return, so the steps are counted.
            if taken == LINES_AT_ONCE || (bytes.len() > before && read.in_steps()) {
                return Collected::Step;
            }
            taken += 1;
            let Some(thread) = self.threads.get_mut(&id) else {
                return Collected::Returns;
            };
            let process = thread.process;
            let used = call.read_consumed.wrapping_add(bytes.len() as u64);
            let has_todo = !thread.todo.is_empty();
            let need_return = thread.looper_need_return;
            if !has_todo {
                thread.process_todo = false;
            }
            let has_process_work =
                for_process && self.processes.get(&process).is_some_and(|p| !p.todo.is_empty());
            let queue = if has_todo {
                Queue::Thread(id)
            } else if has_process_work {
                Queue::Process(process)
            } else if used == 4 && !need_return {
                return Collected::Nothing;
            } else {
                return Collected::Returns;
            };
            // Unsigned, as in the driver: a buffer too small for BR_NOOP counts as one without an
            // end.
            if call.read_size.wrapping_sub(used) < ROOM {
                return Collected::Returns;
            }
            let Some(work) = self.dequeue_head(queue) else {
                return Collected::Returns;
            };
            let Some(thread) = self.threads.get_mut(&id) else {
                return Collected::Returns;
            };
            if thread.todo.is_empty() {
                thread.process_todo = false;
            }
            match work {
                Work::Transaction(transaction) => {
                    if let Some(delivered) = self.take_transaction(id, transaction, bytes) {
                        return Collected::Transaction(delivered);
                    }
                }
                Work::ReturnError => {
                    let error = thread.return_error.take();
                    error.unwrap_or(Return::Ok).encode(bytes);
                }
                Work::ReplyError => {
                    let error = thread.reply_error.take();
                    error.unwrap_or(Return::Ok).encode(bytes);
                }
                Work::TransactionComplete => Return::TransactionComplete.encode(bytes),
                Work::TransactionPending => Return::TransactionPendingFrozen.encode(bytes),
                Work::TransactionOnewaySpamSuspect => {
                    let detects =
                        self.processes.get(&process).is_some_and(|p| p.oneway_spam_detection);
                    if detects {
                        Return::OnewaySpamSuspect.encode(bytes);
                    } else {
                        Return::TransactionComplete.encode(bytes);
                    }
                }
                Work::Node(node) => {
                    let Some((ptr, cookie, notice)) = self.take_node_notice(node) else {
                        continue;
                    };
                    let node = PtrCookie { ptr, cookie };
                    let told = [
                        (notice.increfs, Return::Increfs(node)),
                        (notice.acquire, Return::Acquire(node)),
                        (notice.release, Return::Release(node)),
                        (notice.decrefs, Return::Decrefs(node)),
                    ];
                    for (_, what) in told.iter().filter(|(due, _)| *due) {
                        what.encode(bytes);
                    }
                }
                Work::Death(death) => {
                    let Some(notice) = self.take_death_notice(death) else {
                        continue;
                    };
                    notice.encode(bytes);
                    // Handling a death may take transactions, so the client gets this notice first.
                    if matches!(notice, Return::DeadBinder(_)) {
                        return Collected::Returns;
                    }
                }
                Work::Freeze(freeze) => {
                    let Some(notice) = self.take_freeze_notice(freeze) else {
                        continue;
                    };
                    notice.encode(bytes);
                    if matches!(notice, Return::FrozenBinder { .. }) {
                        return Collected::Returns;
                    }
                }
            }
        }
    }

    /// Appends BR_TRANSACTION or BR_REPLY. A transaction with descriptors then stands in no list
    /// until the client has it.
    fn take_transaction(
        &mut self,
        thread: ThreadId,
        id: TransactionId,
        bytes: &mut FewBytes,
    ) -> Option<Delivered> {
        let transaction = self.transactions.get(&id)?;
        let (process, offset) = transaction.to_process.zip(transaction.buffer)?;
        let buffer = self.processes.get(&process)?.buffers.get(&offset)?.buffer;
        let node = transaction.target_node.and_then(|node| self.nodes.get(&node));
        let sender = self.sender_process(transaction);
        let sender = sender.map(|process| SenderPid {
            pid: process.pid,
            client: (!transaction.sender_is_opener).then(|| process.task.clone()),
        });
        let data = TransactionData {
            target: node.map_or(0, |node| node.ptr),
            cookie: node.map_or(0, |node| node.cookie),
            code: transaction.code,
            flags: transaction.flags,
            // Filled in by `finish_record`, which knows the receiver.
            sender_pid: 0,
            sender_euid: transaction.sender_euid,
            data_size: buffer.data_size as u64,
            offsets_size: buffer.offsets_size as u64,
            buffer: buffer.user_data,
            offsets: buffer.user_data + align8(buffer.data_size as u64),
        };
        let sender_pid_at = bytes.len() + 4 + TransactionData::SENDER_PID;
        let delivered = Delivered {
            id,
            buffer,
            fixups: Vec::new(),
            settled: false,
            is_reply: transaction.is_reply,
            sender_pid_at,
            sender_euid: transaction.sender_euid,
            sender,
            priority: node.map(|node| (transaction.priority, node.min_priority)),
            oneway: transaction.is_oneway(),
            saved_priority: transaction.saved_priority.clone(),
        };
        match (transaction.is_reply, transaction.security_ctx) {
            (true, _) => Return::Reply(data).encode(bytes),
            (false, 0) => Return::Transaction(data).encode(bytes),
            (false, context) => Return::TransactionSecCtx(data, context).encode(bytes),
        }
        let fixups = self.transactions.get_mut(&id).map(|t| std::mem::take(&mut t.fixups));
        let fixups = fixups.unwrap_or_default();
        if let Some(record) = self.processes.get_mut(&process) {
            record.files_in_flight = record.files_in_flight.saturating_sub(fixups.len());
        }
        // A transaction with descriptors is settled once they are installed, which can fail.
        let settled = fixups.is_empty();
        if settled {
            self.settle_transaction(thread, id);
        }
        Some(Delivered { fixups, settled, ..delivered })
    }
}
