//! Reading: what a thread is told, and when (`binder_thread_read`).
//!
//! A read that has nothing to give is parked on its thread. Whoever brings work resumes it: under
//! the graph's lock the returns are put together and become a [`Delivery`]; without the lock they
//! are written to the client; and a transaction among them is settled under the lock again, for
//! only then is it known whether the client got it.

use super::graph::{Effect, Graph, Queue, ThreadId, TransactionId, Work};
use super::returns::Return;
use super::thread::ExtendedError;
use super::traffic::returns_in;
use super::transaction::Fixup;
use super::wire::{PtrCookie, TransactionData, WriteRead, align8};
use super::{Client, Context, Finish, Process, Reply};
use crate::Errno;
use crate::alloc::Buffer;
use crate::client_log::{Kind, client_log};
use crate::client_mem::ClientMemory;
use crate::shortage::{self, is_shortage};
use crate::uapi;
use crate::wrong::{Rule, wrong};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// The least room in a read buffer for one more return: the largest there is, with its number.
const ROOM: u64 = 4 + size_of::<uapi::binder_transaction_data_secctx>() as u64;

/// Bytes of a page of any client, or a part of them.
const PAGE: u64 = 4096;

/// A BINDER_WRITE_READ in its read part.
pub(crate) struct Parked {
    pub call: WriteRead,
    pub memory: Arc<dyn ClientMemory>,
    pub nonblock: bool,
    pub reply: Box<dyn Reply>,
    /// `read_consumed` when it began: what a read that fails says.
    pub start: u64,
}

impl Parked {
    pub fn new(
        call: WriteRead,
        memory: Arc<dyn ClientMemory>,
        nonblock: bool,
        reply: Box<dyn Reply>,
    ) -> Parked {
        Parked { start: call.read_consumed, call, memory, nonblock, reply }
    }

    /// The buffer lies in more than one page, of which any may turn out not to be there: then
    /// each return is written before the next is taken, so that only the one that does not fit is
    /// lost. Where the first word can be written, the rest of its page can.
    fn in_steps(&self) -> bool {
        let last = self.call.read_buffer.wrapping_add(self.call.read_size.saturating_sub(1));
        self.call.read_buffer / PAGE != last / PAGE
    }
}

/// Returns on their way to a client.
pub(crate) struct Delivery {
    process: Arc<Process>,
    thread: ThreadId,
    tid: i32,
    read: Parked,
    /// What goes to `read_buffer + read_consumed`.
    bytes: Vec<u8>,
    /// The first word of the read buffer becomes BR_SPAWN_LOOPER.
    spawn_looper: bool,
    /// The thread could take the process's work when it began to wait.
    for_process: bool,
    transaction: Option<Delivered>,
    /// There may be more to read when this is written.
    is_step: bool,
}

/// The transaction at the end of a delivery.
struct Delivered {
    id: TransactionId,
    buffer: Buffer,
    fixups: Vec<Fixup>,
    is_reply: bool,
    /// Where `sender_pid` lies in the bytes.
    sender_pid_at: usize,
    /// The process that waits for a reply, by its pid here.
    sender: Option<(i32, Arc<dyn Client>)>,
    /// The sender's nice value and the node's minimum, for a call.
    priority: Option<(i32, i32)>,
    oneway: bool,
    saved_priority: Arc<AtomicI32>,
}

/// How far the collecting of returns came.
enum Collected {
    /// Nothing there: wait.
    Nothing,
    /// All there was, or as much as there is room for.
    Returns,
    /// One return of perhaps more, for a buffer that is filled in steps.
    Step,
    /// A transaction came, which ends a read.
    Transaction(Delivered),
}

impl Graph {
    /// Begins or resumes a read with nothing collected.
    pub fn resume_read(&mut self, id: ThreadId, read: Parked) {
        let mut bytes = Vec::with_capacity(128);
        if read.call.read_consumed == 0 {
            Return::Noop.encode(&mut bytes);
        }
        self.wait_for_work(id, read, bytes);
    }

    /// Gives a read what there is, or parks it. It has nothing yet but perhaps BR_NOOP.
    fn wait_for_work(&mut self, id: ThreadId, read: Parked, mut bytes: Vec<u8>) {
        loop {
            let Some(thread) = self.threads.get(&id) else {
                return self.finish_read(id, read, Errno::ESRCH);
            };
            let for_process = self.available_for_process_work(thread);
            if !self.has_work(thread, for_process) {
                let errno = if read.nonblock {
                    Errno::EAGAIN
                } else if read.reply.interrupted() {
                    Errno::EINTR
                } else {
                    return self.park(id, read, for_process);
                };
                return self.finish_read(id, read, errno);
            }
            match self.collect(id, &read, for_process, &mut bytes) {
                Collected::Nothing => {}
                Collected::Step => return self.deliver_step(id, read, bytes, for_process),
                Collected::Returns => return self.deliver(id, read, bytes, for_process, None),
                Collected::Transaction(delivered) => {
                    return self.deliver(id, read, bytes, for_process, Some(delivered));
                }
            }
        }
    }

    /// Reads on after a step, or after a transaction that could not be given out. What was
    /// collected before it is given, even when nothing follows.
    fn continue_read(&mut self, id: ThreadId, read: Parked, mut bytes: Vec<u8>, for_process: bool) {
        match self.collect(id, &read, for_process, &mut bytes) {
            Collected::Nothing => self.wait_for_work(id, read, bytes),
            Collected::Step => self.deliver_step(id, read, bytes, for_process),
            Collected::Returns => self.deliver(id, read, bytes, for_process, None),
            Collected::Transaction(delivered) => {
                self.deliver(id, read, bytes, for_process, Some(delivered));
            }
        }
    }

    /// The end of a read: what was collected goes to the client.
    fn deliver(
        &mut self,
        id: ThreadId,
        read: Parked,
        bytes: Vec<u8>,
        for_process: bool,
        transaction: Option<Delivered>,
    ) {
        let Some(thread) = self.threads.get_mut(&id) else {
            return self.finish_read(id, read, Errno::ESRCH);
        };
        thread.looper_need_return = false;
        let (process, tid, looper) = (thread.process, thread.tid, thread.looper);
        let Some(record) = self.processes.get_mut(&process) else {
            return self.finish_read(id, read, Errno::ESRCH);
        };
        let spawn_looper = record.requested_threads == 0
            && record.waiting_threads.is_empty()
            && record.requested_threads_started < record.max_threads
            && looper.is_looper();
        record.requested_threads += u32::from(spawn_looper);
        let delivery = Box::new(Delivery {
            process: record.process.clone(),
            thread: id,
            tid,
            read,
            bytes,
            spawn_looper,
            for_process,
            transaction,
            is_step: false,
        });
        self.wakeup_leftover(process);
        self.effects.push(Effect::Deliver(delivery));
    }

    /// One return goes to the client; the read goes on when it has it.
    fn deliver_step(&mut self, id: ThreadId, read: Parked, bytes: Vec<u8>, for_process: bool) {
        let owner = self.threads.get(&id).and_then(|thread| {
            let process = self.processes.get(&thread.process)?.process.clone();
            Some((process, thread.tid))
        });
        let Some((process, tid)) = owner else {
            return self.finish_read(id, read, Errno::ESRCH);
        };
        self.effects.push(Effect::Deliver(Box::new(Delivery {
            process,
            thread: id,
            tid,
            read,
            bytes,
            spawn_looper: false,
            for_process,
            transaction: None,
            is_step: true,
        })));
    }

    fn park(&mut self, id: ThreadId, read: Parked, for_process: bool) {
        // A thread has one read: whoever parks a second took over a thread id.
        self.end_parked_read(id, Errno::EINTR);
        let Some(thread) = self.threads.get_mut(&id) else {
            return;
        };
        thread.parked = Some(read);
        if for_process && let Some(record) = self.processes.get_mut(&thread.process) {
            record.waiting_threads.push(id);
        }
    }

    fn finish_read(&mut self, id: ThreadId, read: Parked, errno: Errno) {
        if let Some(thread) = self.threads.get_mut(&id) {
            thread.looper_need_return = false;
            let process = thread.process;
            self.wakeup_leftover(process);
        }
        let out = read.call.encode();
        let finish = Finish { reply: read.reply, result: Err(errno), out };
        self.effects.push(Effect::Finish(finish));
    }

    /// Takes work and appends what it says, as long as there is room.
    fn collect(
        &mut self,
        id: ThreadId,
        read: &Parked,
        for_process: bool,
        bytes: &mut Vec<u8>,
    ) -> Collected {
        let call = &read.call;
        let before = bytes.len();
        loop {
            if bytes.len() > before && read.in_steps() {
                return Collected::Step;
            }
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
            // Unsigned, as in the driver: a buffer too small for BR_NOOP is no limit at all.
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
                    if let Some(delivered) = self.take_transaction(transaction, bytes) {
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
                    // What is done about a death may need transactions: the client comes first.
                    if matches!(notice, Return::DeadBinder(_))
                        && !wrong(Rule::DeathDoesNotEndTheRead)
                    {
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

    /// Appends BR_TRANSACTION or BR_REPLY. The transaction stays in no list until the client has it.
    fn take_transaction(&mut self, id: TransactionId, bytes: &mut Vec<u8>) -> Option<Delivered> {
        let transaction = self.transactions.get(&id)?;
        let (process, offset) = transaction.to_process.zip(transaction.buffer)?;
        let buffer = self.processes.get(&process)?.buffers.get(&offset)?.buffer;
        let node = transaction.target_node.and_then(|node| self.nodes.get(&node));
        let sender = self.sender_process(transaction);
        let sender = sender.map(|process| (process.pid, process.client.clone()));
        let data = TransactionData {
            target: node.map_or(0, |node| node.ptr),
            cookie: node.map_or(0, |node| node.cookie),
            code: transaction.code,
            flags: transaction.flags,
            // Comes when the receiver is known (`finish_record`).
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
            is_reply: transaction.is_reply,
            sender_pid_at,
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
        Some(Delivered { fixups, ..delivered })
    }

    /// The client has a transaction: a call goes on the thread's stack, anything else is done.
    fn settle_transaction(&mut self, thread_id: ThreadId, id: TransactionId, arrays: Vec<i32>) {
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return;
        };
        let place = transaction.to_process.zip(transaction.buffer);
        if let Some(buffer) = place.and_then(|(process, offset)| self.buffer_mut(process, offset)) {
            buffer.close_on_free = arrays;
        }
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return;
        };
        if transaction.is_reply || transaction.is_oneway() {
            self.free_transaction(id);
            return;
        }
        match self.threads.get_mut(&thread_id) {
            Some(thread) => {
                transaction.to_parent = thread.transaction_stack.replace(id);
                transaction.to_thread = Some(thread_id);
            }
            None => self.cleanup_transaction(id, Return::DeadReply),
        }
    }

    /// A transaction could not be given to its thread (`binder_cleanup_transaction`).
    fn transaction_undelivered(&mut self, delivery: &Delivery, errno: Errno) {
        if let Some(thread) = self.threads.get_mut(&delivery.thread) {
            thread.known_read_buffer = None;
            thread.looper_need_return = false;
            let process = thread.process;
            self.wakeup_leftover(process);
        }
        if delivery.spawn_looper
            && let Some(record) = self.processes.get_mut(&delivery.process.id)
        {
            record.requested_threads = record.requested_threads.saturating_sub(1);
        }
        if let Some(delivered) = &delivery.transaction {
            self.tell_shortage(delivered.id, errno);
            if delivered.is_reply && is_shortage(errno) {
                self.reply_lost(delivery.thread, delivered.id, errno);
            }
            self.cleanup_transaction(delivered.id, Return::FailedReply);
        }
    }

    /// A reply was taken for a thread that has not got it, by no fault of the thread's.
    fn reply_lost(&mut self, id: ThreadId, reply: TransactionId, errno: Errno) {
        let Some(thread) = self.threads.get_mut(&id) else {
            return;
        };
        let (command, param) = (Return::FailedReply.number(), -(errno as i32));
        thread.extended_error = ExtendedError { id: reply.0 as u32, command, param };
        if thread.reply_error.replace(Return::FailedReply).is_none() {
            self.enqueue_thread_work(id, Work::ReplyError);
        }
    }

    /// Where a transaction fails for want of something of the daemon's own, its sender is told what.
    /// (Of other errors of its receiver's the driver's sender learns nothing.)
    fn tell_shortage(&mut self, id: TransactionId, errno: Errno) {
        if is_shortage(errno) {
            let (command, param) = (Return::FailedReply.number(), -(errno as i32));
            self.set_error_of_sender(id, ExtendedError { id: id.0 as u32, command, param });
        }
    }

    /// A transaction's descriptors could not be installed in its receiver: the transaction fails,
    /// its buffer is freed, and the thread reads on; where it was a reply, it reads
    /// BR_FAILED_REPLY instead.
    fn files_undelivered(&mut self, mut delivery: Box<Delivery>, errno: Errno) {
        if delivery.spawn_looper
            && let Some(record) = self.processes.get_mut(&delivery.process.id)
        {
            record.requested_threads = record.requested_threads.saturating_sub(1);
        }
        let Some(delivered) = delivery.transaction.take() else {
            return;
        };
        self.effects.push(Effect::DropFiles(delivered.fixups));
        if let Some(transaction) = self.transactions.get_mut(&delivered.id) {
            transaction.buffer = None;
        }
        if let Some(buffer) = self.buffer_mut(delivery.process.id, delivered.buffer.offset) {
            buffer.transaction = None;
        }
        self.tell_shortage(delivered.id, errno);
        self.cleanup_transaction(delivered.id, Return::FailedReply);
        self.free_buffer(delivery.process.id, delivered.buffer.offset, Some(delivery.thread));
        delivery.bytes.truncate(delivered.sender_pid_at - TransactionData::SENDER_PID - 4);
        let Delivery { thread, read, mut bytes, for_process, .. } = *delivery;
        if delivered.is_reply {
            // In the place of the reply, and the end of the read as that is.
            Return::FailedReply.encode(&mut bytes);
            self.deliver(thread, read, bytes, for_process, None);
        } else {
            self.continue_read(thread, read, bytes, for_process);
        }
    }
}

impl Delivery {
    /// Writes the returns to the client and ends its ioctl.
    pub fn carry_out(mut self: Box<Self>, context: &Context) -> Vec<Effect> {
        let arrays = match self.install_files() {
            Ok(arrays) => arrays,
            Err(errno) => {
                client_log!(
                    Kind::FilesNotInstalled,
                    "{}:{} cannot be given the descriptors of a transaction: {errno}",
                    self.process.pid,
                    self.tid
                );
                return context.collect_effects(|graph| graph.files_undelivered(self, errno));
            }
        };
        self.finish_record();
        if let Err(errno) = self.write() {
            shortage::note(&errno);
            let effects =
                context.collect_effects(|graph| graph.transaction_undelivered(&self, errno));
            self.read.call.read_consumed = self.read.start;
            let out = self.read.call.encode();
            self.read.reply.send(Err(errno), &out);
            return effects;
        }
        returns_in(&self.bytes).for_each(|number| self.process.count_return(number));
        if self.spawn_looper {
            self.process.count_return(crate::uapi::BR_SPAWN_LOOPER);
        }
        if self.is_step {
            let Delivery { thread, mut read, bytes, for_process, .. } = *self;
            read.call.read_consumed += bytes.len() as u64;
            return context.collect_effects(|graph| {
                graph.continue_read(thread, read, Vec::new(), for_process);
            });
        }
        let mut effects = Vec::new();
        if let Some(delivered) = &self.transaction {
            self.process.alloc.set_allow_user_free(&delivered.buffer, true);
            effects = context.collect_effects(|graph| {
                graph.settle_transaction(self.thread, delivered.id, arrays);
            });
        }
        self.read.call.read_consumed += self.bytes.len() as u64;
        let out = self.read.call.encode();
        self.read.reply.send(Ok(0), &out);
        effects
    }

    /// Installs a transaction's descriptors in the client and writes their numbers into the
    /// buffer; returns those that are closed with the buffer (`binder_apply_fd_fixups`).
    fn install_files(&mut self) -> Result<Vec<i32>, Errno> {
        let mut arrays = Vec::new();
        let Some(delivered) = &mut self.transaction else {
            return Ok(arrays);
        };
        if delivered.fixups.is_empty() {
            return Ok(arrays);
        }
        let files = delivered.fixups.iter().map(|fixup| fixup.file.clone()).collect();
        let numbers = self.process.client.install_files(self.tid, files)?;
        for (fixup, number) in delivered.fixups.iter().zip(&numbers) {
            let number = *number as u32;
            let written = self.process.alloc.copy_to_buffer(
                &delivered.buffer,
                fixup.offset,
                &number.to_ne_bytes(),
            );
            if let Err(errno) = written {
                self.process.client.close_files(&numbers);
                return Err(errno);
            }
            if fixup.in_array {
                arrays.push(number as i32);
            }
        }
        delivered.fixups.clear();
        Ok(arrays)
    }

    /// What depends on the receiver and is not known under the lock: how it sees the sender's
    /// pid, and its own nice value.
    fn finish_record(&mut self) {
        let Some(delivered) = &self.transaction else {
            return;
        };
        let client = &self.process.client;
        if let Some((pid, sender)) = &delivered.sender
            && sender.has_pid()
        {
            let pid = client.pid_as_seen(*pid);
            self.bytes[delivered.sender_pid_at..][..4].copy_from_slice(&pid.to_ne_bytes());
        }
        let Some((sender, least)) = delivered.priority else {
            return;
        };
        let own = client.nice(self.tid);
        delivered.saved_priority.store(own, Ordering::Relaxed);
        let wanted = if sender < least && !delivered.oneway {
            sender
        } else if !delivered.oneway || own > least {
            least
        } else {
            own
        };
        if wanted.clamp(-20, 19) != own {
            client.set_nice(self.tid, wanted);
        }
    }

    /// All or EFAULT.
    fn write(&mut self) -> Result<(), Errno> {
        let call = &self.read.call;
        let spawn = uapi::BR_SPAWN_LOOPER.to_ne_bytes();
        if self.spawn_looper {
            match self.bytes.first_chunk_mut() {
                Some(first) if call.read_consumed == 0 => *first = spawn,
                _ => self.read.memory.write(call.read_buffer, &spawn)?,
            }
        }
        let address = call.read_buffer.wrapping_add(call.read_consumed);
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.read.memory.write(address, &self.bytes)
    }
}
