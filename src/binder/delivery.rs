//! Delivery: what a read has been given, on its way to the client's memory.
//!
//! A synchronous call, from the caller's ioctl to the server's thread and back. Each arrow that
//! crosses a column is a hand-over; `[graph]` is a section under the context's lock, and nothing
//! else happens under it.
//!
//! ```text
//!  a worker, for the caller              outbox          any worker            the server's thread
//!  ---------------------------------     ------          -------------------   -------------------
//!  ioctl arrives; takes a place                                                (parked in a read)
//!  reads commands      <- caller's memory
//!  [graph] finds the target
//!  buffer, data        <- caller's memory
//!  [graph] queues the transaction,
//!          takes the server's parked
//!          read, collects its returns -> Delivery
//!  [graph] parks the caller's read
//!  gives the place back
//!                                        Delivery -----> takes a place of
//!                                                        the server's
//!                                                        writes the returns -> server's memory
//!                                                        [graph] the call goes
//!                                                        on its stack
//!                                                        writes the reply ---> ioctl returns
//! ```
//!
//! The right-hand half is mostly done by the same worker, which comes to it when its caller is
//! parked. Three things follow from the order. The caller is parked, or has its answer, before
//! another client's memory is touched, so a signal always finds the caller's read. A worker that
//! stalls in its own caller's memory holds up nobody's delivery: other threads can empty the
//! outbox. And a receiver whose memory stalls holds its own few places ([`super::copies`]) and
//! nothing else.
//!
//! While returns are on their way, their thread is in no list and has no parked read. If the thread
//! is released meanwhile, the transaction that it was to get fails at once
//! ([`Thread::delivering`](super::thread::Thread::delivering)), and the end of the copy finds
//! nothing to settle.

use super::copies::{Subject, Turn};
use super::graph::{Graph, ThreadId, TransactionId, Work};
use super::outbox::Effect;
use super::read::{Answer, Parked};
use super::thread::ExtendedError;
use super::traffic::returns_in;
use super::transaction::Fixup;
use super::{FewBytes, Installed, Process, Task};
use crate::Errno;
use crate::alloc::Buffer;
use crate::client_log::{Kind, client_log};
use crate::protocol::record::TransactionData;
use crate::protocol::returns::Return;
use crate::shortage::{self, is_shortage};
use crate::uapi;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use zerocopy::IntoBytes;

/// Returns on their way to a client.
pub(crate) struct Delivery {
    pub thread: ThreadId,
    pub tid: i32,
    pub read: Parked,
    /// What goes to `read_buffer + read_consumed`.
    pub bytes: FewBytes,
    /// The first word of the read buffer becomes BR_SPAWN_LOOPER.
    pub spawn_looper: bool,
    /// The thread could take the process's work when it began to wait.
    pub for_process: bool,
    pub transaction: Option<Delivered>,
    /// One return of perhaps more: the read goes on once it is written.
    pub is_step: bool,
    /// Somebody will wait for the thread, and nobody watches for the thread's end yet.
    pub unattended: bool,
}

/// The transaction at the end of a delivery.
pub(crate) struct Delivered {
    pub id: TransactionId,
    pub buffer: Buffer,
    pub fixups: Vec<Fixup>,
    /// The graph has recorded that the client has the transaction.
    pub settled: bool,
    pub is_reply: bool,
    /// Where `sender_pid` lies in the bytes, and `sender_euid` behind it.
    pub sender_pid_at: usize,
    pub sender_euid: u32,
    /// The sender that waits for a reply, if any.
    pub sender: Option<SenderPid>,
    /// The sender's nice value and the node's minimum, for a call.
    pub priority: Option<(i32, i32)>,
    pub oneway: bool,
    pub saved_priority: Option<Arc<AtomicI32>>,
}

/// The pid that a transaction is shown with.
pub(crate) struct SenderPid {
    /// In the daemon's pid namespace.
    pub pid: i32,
    /// The client to ask whether the pid is still its own. None where the sender is one of the
    /// opener's threads: it waits for the reply, so its process keeps the pid.
    pub client: Option<Arc<dyn Task>>,
}

impl Delivered {
    /// Offset of the transaction's return in the bytes; it is the last of them.
    pub fn begins_at(&self) -> usize {
        self.sender_pid_at - TransactionData::SENDER_PID - 4
    }
}

impl Graph {
    /// The client has a transaction: a call goes on the thread's stack, anything else is done.
    pub fn settle_transaction(&mut self, thread_id: ThreadId, id: TransactionId) {
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

    /// The client has a transaction that came with descriptors; those of `arrays` are closed with
    /// its buffer.
    fn settle_files(&mut self, thread: ThreadId, id: TransactionId, arrays: Vec<i32>) {
        self.no_longer_delivering(thread);
        let Some(transaction) = self.transactions.get(&id) else {
            return;
        };
        let place = transaction.to_process.zip(transaction.buffer);
        if let Some(buffer) = place.and_then(|(process, offset)| self.buffer_mut(process, offset)) {
            buffer.close_on_free = arrays;
        }
        self.settle_transaction(thread, id);
    }

    /// A call that was settled did not reach its thread after all.
    fn unsettle_call(&mut self, thread: ThreadId, id: TransactionId) {
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return;
        };
        let parent = transaction.to_parent.take();
        if transaction.to_thread.take() == Some(thread)
            && let Some(thread) = self.threads.get_mut(&thread)
            && thread.transaction_stack == Some(id)
        {
            thread.transaction_stack = parent;
        }
    }

    fn no_longer_delivering(&mut self, thread: ThreadId) {
        if let Some(thread) = self.threads.get_mut(&thread) {
            thread.delivering = None;
        }
    }

    /// A reply did not reach its thread, by no fault of the thread's: the thread reads
    /// BR_FAILED_REPLY.
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

    /// A transaction that fails because the daemon itself is short of something leaves the errno
    /// with its sender. (Of other errors at the receiver a sender learns nothing, as in the
    /// driver.)
    pub(super) fn tell_shortage(&mut self, id: TransactionId, errno: Errno) {
        if is_shortage(errno) {
            let (command, param) = (Return::FailedReply.number(), -(errno as i32));
            self.set_error_of_sender(id, ExtendedError { id: id.0 as u32, command, param });
        }
    }

    /// A transaction could not be given to its thread (`binder_cleanup_transaction`).
    pub(super) fn transaction_undelivered(&mut self, delivery: &Delivery, errno: Errno) {
        self.no_longer_delivering(delivery.thread);
        if let Some(thread) = self.threads.get_mut(&delivery.thread) {
            thread.known_read_buffer = None;
            thread.looper_need_return = false;
            let process = thread.process;
            self.wakeup_leftover(process);
        }
        self.spawn_unrequested(delivery);
        if let Some(delivered) = &delivery.transaction {
            self.tell_shortage(delivered.id, errno);
            if delivered.is_reply && is_shortage(errno) {
                self.reply_lost(delivery.thread, delivered.id, errno);
            }
            if delivered.settled {
                self.unsettle_call(delivery.thread, delivered.id);
            }
            self.cleanup_transaction(delivered.id, Return::FailedReply);
        }
    }

    /// Takes back a BR_SPAWN_LOOPER that did not reach the client.
    fn spawn_unrequested(&mut self, delivery: &Delivery) {
        if delivery.spawn_looper
            && let Some(record) = self.processes.get_mut(&delivery.read.process.id)
        {
            record.requested_threads = record.requested_threads.saturating_sub(1);
        }
    }

    /// A transaction's descriptors could not be installed in its receiver: the transaction fails,
    /// its buffer is freed, and the thread reads on; where it was a reply, it reads
    /// BR_FAILED_REPLY instead.
    fn files_undelivered(&mut self, mut delivery: Box<Delivery>, errno: Errno) -> Option<Answer> {
        let delivered = self.take_undelivered(&mut delivery, errno)?;
        delivery.bytes.truncate(delivered.begins_at());
        let Delivery { thread, read, mut bytes, for_process, .. } = *delivery;
        if delivered.is_reply {
            // BR_FAILED_REPLY stands in the place of the reply, and ends the read as the reply
            // would.
            Return::FailedReply.encode(&mut bytes);
            Some(self.deliver(thread, read, bytes, for_process, None))
        } else {
            self.continue_read(thread, read, bytes, for_process)
        }
    }

    /// Takes a transaction whose descriptors were not installed out of a delivery, and fails it.
    pub(super) fn take_undelivered(
        &mut self,
        delivery: &mut Delivery,
        errno: Errno,
    ) -> Option<Delivered> {
        self.no_longer_delivering(delivery.thread);
        self.spawn_unrequested(delivery);
        let mut delivered = delivery.transaction.take()?;
        self.effects.push(Effect::DropFiles(std::mem::take(&mut delivered.fixups)));
        self.tell_refusal(&delivered, delivery.thread, errno);
        if let Some(transaction) = self.transactions.get_mut(&delivered.id) {
            transaction.buffer = None;
        }
        let process = delivery.read.process.id;
        if let Some(buffer) = self.buffer_mut(process, delivered.buffer.offset) {
            buffer.transaction = None;
        }
        self.cleanup_transaction(delivered.id, Return::FailedReply);
        self.free_buffer(process, delivered.buffer.offset, Some(delivery.thread));
        Some(delivered)
    }
}

impl Answer {
    /// Gives another client its answer: now, if that client has a place left, else when it has one
    /// again.
    pub fn carry_out(self) {
        if !self.touches_memory() {
            return self.give();
        }
        let process = self.process().clone();
        match process.copies.enter() {
            Some(_place) => self.give(),
            None => process.copies.wait(Subject::Process(process.id.0), move |turn| match turn {
                Turn::Begin(place) => {
                    let shared = self.process().context.shared.clone();
                    self.give();
                    drop(place);
                    shared.carry_out();
                }
                Turn::GivenUp => self.give_up(),
            }),
        }
    }

    /// Gives the client its answer, with a place that the caller of this function has taken. What
    /// that leads to for other clients goes into the outbox.
    pub fn give(self) {
        let mut next = Some(self);
        while let Some(answer) = next {
            next = match answer {
                Answer::Finish(finish) => {
                    finish.send();
                    None
                }
                Answer::Restart(finish) => {
                    finish.restart();
                    None
                }
                Answer::Deliver(delivery) => delivery.carry_out(),
            };
        }
    }

    /// The process was released while the answer waited for a place.
    fn give_up(self) {
        match self {
            Answer::Deliver(delivery) => delivery.fail(Errno::EBADF),
            Answer::Finish(_) | Answer::Restart(_) => self.give(),
        }
    }

    /// Whether giving the answer touches a client's memory, and not only a file of the kernel's.
    fn touches_memory(&self) -> bool {
        match self {
            Answer::Deliver(_) => true,
            Answer::Finish(finish) | Answer::Restart(finish) => finish.reply.copies_out(),
        }
    }

    fn process(&self) -> &Arc<Process> {
        match self {
            Answer::Deliver(delivery) => &delivery.read.process,
            Answer::Finish(finish) | Answer::Restart(finish) => &finish.process,
        }
    }
}

impl Delivery {
    /// Writes the returns to the client and ends its ioctl; or, after a step, goes on with what is
    /// to be read next.
    fn carry_out(mut self: Box<Self>) -> Option<Answer> {
        let process = self.read.process.clone();
        let has_files = self.transaction.as_ref().is_some_and(|it| !it.fixups.is_empty());
        let installed = match has_files.then(|| self.read.reply.hold_thread()).flatten() {
            Some(Ok(held)) => {
                self.carry_out_in_stop(held);
                return None;
            }
            Some(Err(errno)) => Err(errno),
            None => self.install_files(),
        };
        let arrays = match installed {
            Ok(Some(arrays)) => arrays,
            Ok(None) => {
                self.carry_out_without_transaction();
                return None;
            }
            Err(errno) => {
                self.log_refusal(errno);
                return process.context.locked(|graph| graph.files_undelivered(self, errno));
            }
        };
        self.finish_record();
        if let Err(errno) = self.write() {
            self.fail(errno);
            return None;
        }
        self.count_returns();
        if self.is_step {
            let Delivery { thread, mut read, bytes, for_process, .. } = *self;
            read.call.read_consumed += bytes.len() as u64;
            return process
                .context
                .locked(|graph| graph.continue_read(thread, read, FewBytes::new(), for_process));
        }
        self.settle(arrays);
        self.read.reply.send(Ok(0), self.read.call.as_bytes());
        None
    }

    pub(super) fn count_returns(&self) {
        let process = &self.read.process;
        let count = |number| {
            process.count_return(number);
            self.tell_return(number);
        };
        returns_in(&self.bytes).for_each(count);
        self.record_returns();
        if self.spawn_looper {
            count(uapi::BR_SPAWN_LOOPER);
        }
        self.tell_received();
    }

    /// The client has all returns, and is about to be told so. `arrays` are closed with the buffer.
    pub(super) fn settle(&mut self, arrays: Vec<i32>) {
        let process = self.read.process.clone();
        if let Some(delivered) = &self.transaction {
            process.alloc.set_allow_user_free(&delivered.buffer, true);
            if !delivered.settled {
                process.context.locked(|graph| {
                    graph.settle_files(self.thread, delivered.id, arrays);
                });
            }
        }
        if self.unattended {
            process.attend_thread(self.thread);
        }
        self.read.call.read_consumed += self.bytes.len() as u64;
    }

    pub(super) fn log_refusal(&self, errno: Errno) {
        client_log!(
            Kind::FilesNotInstalled,
            "{}:{} cannot be given the descriptors of a transaction: {errno}",
            self.read.process.pid,
            self.tid
        );
    }

    /// The returns did not reach the client: its read fails, and with it the transaction that came.
    pub(super) fn fail(mut self: Box<Self>, errno: Errno) {
        let context = self.read.process.context.clone();
        shortage::note(&errno);
        context.locked(|graph| graph.transaction_undelivered(&self, errno));
        self.read.call.read_consumed = self.read.start;
        self.read.reply.send(Err(errno), self.read.call.as_bytes());
    }

    /// Installs a transaction's descriptors in the client and writes their numbers into the
    /// buffer; returns those that are closed with the buffer (`binder_apply_fd_fixups`). None: they
    /// come when the thread calls again.
    fn install_files(&mut self) -> Result<Option<Vec<i32>>, Errno> {
        let Some(delivered) = self.transaction.as_ref().filter(|it| !it.fixups.is_empty()) else {
            return Ok(Some(Vec::new()));
        };
        let process = &self.read.process;
        let files = delivered.fixups.iter().map(|fixup| fixup.file.clone()).collect();
        let numbers = match process.task.install_files(self.tid, files)? {
            Installed::Now(numbers) => numbers,
            Installed::AtNextCall => return Ok(None),
        };
        let written = self.write_numbers(&numbers).inspect_err(|_| {
            self.read.process.task.close_files(self.tid, &numbers);
        });
        written.map(Some)
    }

    /// Writes the numbers of a transaction's descriptors into its buffer; returns those in arrays.
    pub(super) fn write_numbers(&mut self, numbers: &[i32]) -> Result<Vec<i32>, Errno> {
        let mut arrays = Vec::new();
        let alloc = &self.read.process.alloc;
        if let Some(delivered) = &mut self.transaction {
            for (fixup, number) in delivered.fixups.iter().zip(numbers) {
                alloc.copy_to_buffer(&delivered.buffer, fixup.offset, &number.to_ne_bytes())?;
                if fixup.in_array {
                    arrays.push(*number);
                }
            }
            delivered.fixups.clear();
        }
        Ok(arrays)
    }

    /// What depends on the receiver and is not known under the lock: how it sees the sender's
    /// pid and uid, and its own nice value.
    pub(super) fn finish_record(&mut self) {
        let Some(delivered) = &self.transaction else {
            return;
        };
        let client = &self.read.process.task;
        if let Some(SenderPid { pid, client: sender }) = &delivered.sender
            && sender.as_ref().is_none_or(|sender| sender.has_pid())
        {
            let pid = client.pid_as_seen(*pid);
            self.bytes[delivered.sender_pid_at..][..4].copy_from_slice(&pid.to_ne_bytes());
        }
        let euid = client.uid_as_seen(self.tid, delivered.sender_euid);
        self.bytes[delivered.sender_pid_at + 4..][..4].copy_from_slice(&euid.to_ne_bytes());
        let Some((sender, least)) = delivered.priority else {
            return;
        };
        let own = client.nice(self.tid);
        if let Some(saved) = &delivered.saved_priority {
            saved.store(own, Ordering::Relaxed);
        }
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

    /// Writes all of the returns, or fails with EFAULT; ENOMEM: the client cannot be shown its
    /// buffer.
    pub(super) fn write(&mut self) -> Result<(), Errno> {
        if let Some(delivered) = &self.transaction {
            self.read.process.alloc.publish(&delivered.buffer)?;
        }
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
