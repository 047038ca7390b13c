//! A transaction: one message on its way, from the command that sends it until its receiver has
//! read it and, if it is a synchronous call, answered it.
//!
//! A synchronous call stands on two stacks: its sender's (linked by `from_parent`) and, once it is
//! read, its receiver's (linked by `to_parent`).
//!
//! Who may race: while a sender builds a transaction it holds no lock, and its target may die or
//! freeze. [`send`](super::send) looks again before the transaction is queued.

use super::graph::{Graph, NodeId, ProcessId, Queue, ThreadId, TransactionId, Work};
use super::oneway::Update;
use super::outbox::Effect;
use super::pieces::{AT_ONCE, Rest};
use super::process::BufferRecord;
use super::thread::ExtendedError;
use super::{File, Process};
use crate::alloc::Buffer;
use crate::protocol::returns::Return;
use crate::quota;
use crate::uapi::{TF_ONE_WAY, TF_UPDATE_TXN};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::time::Duration;

/// A descriptor that is to be installed in the receiver (`struct binder_txn_fd_fixup`).
pub(crate) struct Fixup {
    /// Where in the buffer the descriptor's number goes.
    pub offset: usize,
    pub file: Arc<dyn File>,
    /// The descriptor belongs to an array, and is closed with the buffer.
    pub in_array: bool,
}

/// What an object in a buffer holds, in the process that the buffer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeldRef {
    /// One of the process's own nodes.
    Node {
        ptr: u64,
        strong: bool,
    },
    Handle {
        handle: u32,
        strong: bool,
    },
}

/// What the objects of a buffer still hold; and the buffer, if it is freed afterwards.
pub(crate) struct HeldBuffer {
    process: ProcessId,
    held: std::vec::IntoIter<HeldRef>,
    buffer: Option<(Arc<Process>, Buffer)>,
}

/// `struct binder_transaction`.
pub(crate) struct Transaction {
    /// The waiting sender of a synchronous call; none for one-way calls and replies, and after the
    /// sender's death.
    pub from: Option<ThreadId>,
    pub from_parent: Option<TransactionId>,
    pub from_pid: i32,
    pub from_tid: i32,
    pub to_process: Option<ProcessId>,
    pub to_thread: Option<ThreadId>,
    pub to_parent: Option<TransactionId>,
    pub is_reply: bool,
    pub code: u32,
    pub flags: u32,
    pub sender_euid: u32,
    /// The sender is a thread of the process that has opened the device.
    pub sender_is_opener: bool,
    /// The sender's nice value.
    pub priority: i32,
    /// When the transaction was queued, by the device's clock.
    pub start: Duration,
    /// For a synchronous call: the receiver's own nice value, to be restored at the reply.
    pub saved_priority: Option<Arc<AtomicI32>>,
    /// Offset of the buffer in the receiver's mapping.
    pub buffer: Option<usize>,
    pub target_node: Option<NodeId>,
    pub fixups: Vec<Fixup>,
    /// Address of the security context in the receiver's buffer, or 0.
    pub security_ctx: u64,
    #[allow(dead_code, reason = "held for its drop")]
    pub charge: TransactionCharge,
}

/// What a transaction takes of its sender's quota until it is done.
pub(crate) struct TransactionCharge {
    #[allow(dead_code, reason = "held for its drop")]
    pub record: quota::Charge,
    /// The bytes of a one-way call, for which no thread waits.
    #[allow(dead_code, reason = "held for its drop")]
    pub oneway: Option<quota::Charge>,
}

impl Transaction {
    pub fn is_oneway(&self) -> bool {
        self.flags & TF_ONE_WAY != 0
    }
}

impl Graph {
    /// The buffer that a process holds at an offset.
    pub fn buffer_mut(&mut self, process: ProcessId, offset: usize) -> Option<&mut BufferRecord> {
        self.processes.get_mut(&process)?.buffers.get_mut(&offset).map(Box::as_mut)
    }

    /// Cuts a transaction off from its receiver.
    pub fn detach_target(&mut self, id: TransactionId) {
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return;
        };
        transaction.to_thread = None;
        let place = transaction.to_process.take().zip(transaction.buffer.take());
        if let Some((process, offset)) = place
            && let Some(buffer) = self.buffer_mut(process, offset)
        {
            buffer.transaction = None;
        }
    }

    /// Forgets a transaction (`binder_free_transaction`). Its buffer stays with the receiver.
    pub fn free_transaction(&mut self, id: TransactionId) {
        let Some(transaction) = self.transactions.remove(&id) else {
            return;
        };
        if let Some(process) = transaction.to_process {
            self.dec_outstanding(process);
            if let Some(buffer) = transaction.buffer.and_then(|b| self.buffer_mut(process, b)) {
                buffer.transaction = None;
            }
        }
        self.drop_fixups(transaction.to_process, transaction.fixups);
    }

    /// Lets go of descriptors that will not arrive.
    pub fn drop_fixups(&mut self, process: Option<ProcessId>, fixups: Vec<Fixup>) {
        if fixups.is_empty() {
            return;
        }
        if let Some(record) = process.and_then(|p| self.processes.get_mut(&p)) {
            record.files_in_flight = record.files_in_flight.saturating_sub(fixups.len());
        }
        self.effects.push(Effect::DropFiles(fixups));
    }

    /// Takes a synchronous call off its sender's stack (`binder_pop_transaction_ilocked`).
    pub fn pop_transaction(&mut self, sender: ThreadId, id: TransactionId) {
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return;
        };
        transaction.from = None;
        let parent = transaction.from_parent;
        if let Some(sender) = self.threads.get_mut(&sender)
            && sender.transaction_stack == Some(id)
        {
            sender.transaction_stack = parent;
        }
    }

    /// The reply to a synchronous call will not come: tells the sender, or, where the sender is
    /// gone, the thread that waits for the sender (`binder_send_failed_reply`).
    pub fn send_failed_reply(&mut self, id: TransactionId, error: Return) {
        let mut next = Some(id);
        while let Some(id) = next {
            if !self.spend() {
                return self.rest.push(Rest::FailedReply { next: id, error });
            }
            let Some(transaction) = self.transactions.get(&id) else {
                return;
            };
            let parent = transaction.from_parent;
            // A sender that is gone may not have been unlinked from this call yet.
            if let Some(sender) = transaction.from.filter(|it| self.threads.contains_key(it)) {
                self.pop_transaction(sender, id);
                if let Some(thread) = self.threads.get_mut(&sender) {
                    if thread.reply_error.is_none() {
                        thread.reply_error = Some(error);
                        self.enqueue_thread_work(sender, Work::ReplyError);
                        self.woken.push(sender);
                    } else {
                        log::debug!("a second reply error for thread {} is dropped", thread.tid);
                    }
                }
                self.free_transaction(id);
                return;
            }
            self.free_transaction(id);
            next = parent;
        }
    }

    /// Ends a transaction that was not delivered (`binder_cleanup_transaction`).
    pub fn cleanup_transaction(&mut self, id: TransactionId, error: Return) {
        let Some(transaction) = self.transactions.get(&id) else {
            return;
        };
        if !transaction.is_reply && !transaction.is_oneway() {
            self.send_failed_reply(id, error);
        } else {
            self.free_transaction(id);
        }
    }

    /// Queues a call at its target (`binder_proc_transaction`). `Err` is what the sender reads:
    /// BR_FROZEN_REPLY, BR_DEAD_REPLY; `Ok(true)`: queued, but the target is frozen.
    pub fn queue_transaction(
        &mut self,
        id: TransactionId,
        process: ProcessId,
        mut thread: Option<ThreadId>,
    ) -> Result<bool, Return> {
        let Some(transaction) = self.transactions.get(&id) else {
            return Err(Return::DeadReply);
        };
        let oneway = transaction.is_oneway();
        let replaces = transaction.flags & TF_UPDATE_TXN != 0;
        let Some(node_id) = transaction.target_node else {
            return Err(Return::DeadReply);
        };
        let Some(node) = self.nodes.get_mut(&node_id) else {
            return Err(Return::DeadReply);
        };
        let pending_async = oneway && node.has_async_transaction;
        if oneway {
            node.has_async_transaction = true;
        }
        let Some(record) = self.processes.get_mut(&process).filter(|record| !record.is_dead) else {
            return Err(Return::DeadReply);
        };
        let frozen = record.is_frozen;
        if frozen {
            record.sync_recv |= !oneway;
            record.async_recv |= oneway;
        }
        if frozen && !oneway {
            return Err(Return::FrozenReply);
        }
        if thread.is_some_and(|thread| !self.threads.contains_key(&thread)) {
            return Err(Return::DeadReply);
        }
        if thread.is_none() && !pending_async {
            thread = self.select_thread(process);
        }
        let mut outdated = None;
        if let Some(thread) = thread {
            self.enqueue_thread_work(thread, Work::Transaction(id));
        } else if !pending_async {
            self.enqueue(Queue::Process(process), Work::Transaction(id));
            if !oneway && let Some(record) = self.processes.get(&process) {
                self.effects.push(Effect::NoFreeThread(record.process.clone()));
            }
        } else {
            if replaces && frozen {
                outdated = self.take_outdated(id, node_id);
            }
            let update = self.transactions.get(&id).and_then(Update::of);
            if let Some(node) = self.nodes.get_mut(&node_id) {
                node.async_todo.push(id, update);
            }
        }
        if !pending_async {
            self.wakeup_thread(process, thread);
        }
        if let Some(record) = self.processes.get_mut(&process) {
            record.outstanding_txns += 1;
        }
        if let Some(outdated) = outdated {
            let buffer = self.transactions.get(&outdated).and_then(|t| t.buffer);
            self.free_transaction(outdated);
            if let Some(offset) = buffer {
                self.discard_buffer(process, offset);
            }
        }
        Ok(frozen)
    }

    /// Takes out of a node's queue the transaction that a newer one with TF_UPDATE_TXN replaces
    /// (`binder_find_outdated_transaction_ilocked`): same sender, code and flags.
    fn take_outdated(&mut self, id: TransactionId, node: NodeId) -> Option<TransactionId> {
        let update = Update::of(self.transactions.get(&id)?)?;
        self.nodes.get_mut(&node)?.async_todo.take_outdated(update)
    }

    /// The nearest thread of `process` in the chain of callers that begins with `from`: a nested
    /// call back goes to that thread. `Continue`: where to go on in a long chain.
    pub fn waiting_caller(
        &self,
        from: TransactionId,
        process: ProcessId,
    ) -> ControlFlow<Option<ThreadId>, TransactionId> {
        let mut next = Some(from);
        for _ in 0..AT_ONCE {
            let Some(call) = next.and_then(|id| self.transactions.get(&id)) else {
                return ControlFlow::Break(None);
            };
            let waits = |id: &ThreadId| self.threads.get(id).is_some_and(|t| t.process == process);
            if let Some(caller) = call.from.filter(waits) {
                return ControlFlow::Break(Some(caller));
            }
            next = call.from_parent;
        }
        next.map_or(ControlFlow::Break(None), ControlFlow::Continue)
    }

    /// Releases what a buffer's objects hold (`binder_transaction_buffer_release`).
    pub fn release_held(&mut self, process: ProcessId, target: Option<NodeId>, held: Vec<HeldRef>) {
        self.release_held_and_free(process, target, held, None);
    }

    /// The same, and then the buffer is freed.
    fn release_held_and_free(
        &mut self,
        process: ProcessId,
        target: Option<NodeId>,
        held: Vec<HeldRef>,
        buffer: Option<(Arc<Process>, Buffer)>,
    ) {
        if let Some(node) = target {
            self.dec_node(node, true, false);
        }
        self.release_held_of(HeldBuffer { process, held: held.into_iter(), buffer });
    }

    pub fn release_held_of(&mut self, mut rest: HeldBuffer) {
        let process = rest.process;
        while !rest.held.as_slice().is_empty() {
            if !self.spend() {
                return self.rest.push(Rest::Held(rest));
            }
            let Some(held) = rest.held.next() else { break };
            match held {
                HeldRef::Node { ptr, strong } => {
                    if let Some(node) = self.find_node(process, ptr) {
                        self.inc_node_tmpref(node);
                        self.dec_node(node, strong, false);
                        self.dec_node_tmpref(node);
                    }
                }
                HeldRef::Handle { handle, strong } => {
                    if self.update_ref_for_handle(process, handle, false, strong).is_err() {
                        log::debug!("transaction release: bad handle {handle}");
                    }
                }
            }
        }
        if let Some((owner, buffer)) = rest.buffer {
            self.effects.push(Effect::FreeBuffer(owner, buffer));
        }
    }

    /// Frees a buffer that was never delivered, with all that it holds.
    pub fn discard_buffer(&mut self, process: ProcessId, offset: usize) {
        let Some(record) = self.processes.get_mut(&process) else {
            return;
        };
        let owner = record.process.clone();
        let Some(buffer) = record.buffers.remove(&offset) else {
            return;
        };
        let freed = Some((owner, buffer.buffer));
        self.release_held_and_free(process, buffer.target_node, buffer.held, freed);
    }

    /// Frees a buffer that its client is done with (`binder_free_buf`), and hands out the next
    /// one-way transaction of its node. `thread` is the client's thread that frees it.
    pub fn free_buffer(&mut self, process: ProcessId, offset: usize, thread: Option<ThreadId>) {
        let Some(record) = self.processes.get_mut(&process) else {
            return;
        };
        let owner = record.process.clone();
        let Some(buffer) = record.buffers.remove(&offset) else {
            return;
        };
        if let Some(transaction) = buffer.transaction.and_then(|t| self.transactions.get_mut(&t)) {
            transaction.buffer = None;
        }
        if buffer.buffer.is_async
            && let Some(node) = buffer.target_node
        {
            self.next_async_transaction(node);
        }
        // If no thread of the client frees the buffer, the client is gone, and so are its
        // descriptors.
        if !buffer.close_on_free.is_empty()
            && let Some(thread) = thread.and_then(|id| self.threads.get_mut(&id))
        {
            thread.looper_need_return = true;
            thread.close_on_return.extend(buffer.close_on_free);
        }
        let freed = Some((owner, buffer.buffer));
        self.release_held_and_free(process, buffer.target_node, buffer.held, freed);
    }

    /// Notes with the sender of a call that the reply failed, unless the sender has an error
    /// already (`binder_set_txn_from_error`).
    pub fn set_error_of_sender(&mut self, id: TransactionId, error: ExtendedError) {
        let sender = self.transactions.get(&id).and_then(|transaction| transaction.from);
        if let Some(sender) = sender.and_then(|sender| self.threads.get_mut(&sender))
            && sender.extended_error.command == crate::uapi::BR_OK
        {
            sender.extended_error = error;
        }
    }

    /// The process of a transaction's sender, while the sender waits.
    pub fn sender_process(&self, transaction: &Transaction) -> Option<&Arc<Process>> {
        let thread = self.threads.get(&transaction.from?)?;
        self.processes.get(&thread.process).map(|record| &record.process)
    }
}
