//! Sending: from BC_TRANSACTION or BC_REPLY to a queued transaction (`binder_transaction`).
//!
//! 1. Under the lock: find the target, and keep its node.
//! 2. Without it: a buffer in the target, the data, its objects ([`Message`]).
//! 3. Under the lock again: look whether the target still lives, and queue.
//!
//! Whatever fails on the way is undone, and the sender reads why; nobody else notices.

use super::graph::{Graph, ThreadId, TransactionId, Work};
use super::message::Message;
use super::outbox::Effect;
use super::process::BufferRecord;
use super::section::Section;
use super::target::{NoTarget, Target};
use super::thread::ExtendedError;
use super::traffic::Entry;
use super::transaction::{Fixup, HeldRef, Transaction, TransactionCharge};
use super::write::Known;
use super::{Identity, Process};
use crate::Errno;
use crate::alloc::{Buffer, BufferRequest};
use crate::client_log::{Kind, user_error};
use crate::client_mem::ClientMemory;
use crate::protocol::record::{TransactionData, align8};
use crate::protocol::returns::Return;
use crate::quota;
use crate::shortage;
use crate::uapi::{TF_CLEAR_BUF, TF_ONE_WAY};
use std::sync::Arc;
use std::sync::atomic::AtomicI32;

/// Why a transaction failed: what the sender reads, and the `param` of its extended error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub error: Return,
    /// A negative errno, or 0.
    pub param: i32,
}

impl Failure {
    pub fn new(error: Return, param: i32) -> Failure {
        Failure { error, param }
    }

    pub fn dead() -> Failure {
        Failure::new(Return::DeadReply, 0)
    }
}

/// BR_FAILED_REPLY is what most errors turn into.
impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::new(Return::FailedReply, -(errno as i32))
    }
}

/// The sending thread.
pub(crate) struct Sender<'a> {
    pub process: &'a Arc<Process>,
    pub thread: ThreadId,
    pub tid: i32,
    /// The sender's uid as the device was told it.
    pub uid: u32,
    pub memory: &'a dyn ClientMemory,
}

/// A transaction, and who sends it.
struct Sent {
    id: TransactionId,
    /// The sending thread's nice value.
    priority: i32,
    from: Identity,
}

/// A message in its buffer, ready to be queued.
pub(crate) struct Filled {
    pub buffer: Buffer,
    pub held: Vec<HeldRef>,
    pub fixups: Vec<Fixup>,
    pub security_ctx: u64,
    charge: TransactionCharge,
    /// For the buffer's record, which stays until the buffer is freed.
    buffer_charge: quota::Charge,
}

impl Sender<'_> {
    /// Carries out one BC_TRANSACTION, BC_REPLY or their scatter-gather forms. The command itself
    /// never fails: the sender reads what went wrong. The section is left while the message is
    /// made, and entered again to queue it.
    pub fn send(
        &self,
        section: &mut Section<'_>,
        known: &mut Known,
        data: &TransactionData,
        is_reply: bool,
        extra_buffers_size: u64,
    ) {
        let mut own = None;
        let graph = section.graph();
        let id = TransactionId(graph.next_id());
        let no_error = ExtendedError { id: id.0 as u32, ..ExtendedError::NONE };
        graph.set_extended_error(self.thread, no_error);
        let target = if is_reply {
            self.reply_target(graph, &mut own)
        } else {
            self.call_target(graph, data).map_err(NoTarget::from)
        };
        if let Err(none) = &target {
            self.log(id, None, data, is_reply, Some(none.failure));
            self.fail(graph, id, none.in_reply_to, none.failure);
        }
        if target.is_ok() || own.is_some() {
            section.leave();
        }
        let priority = if target.is_ok() { known.nice(self.process, self.tid) } else { 0 };
        if let Some(own) = own {
            known.set_nice(self.process, self.tid, own);
        }
        let Ok(mut target) = target else {
            return;
        };
        let from = known.identity(self.process, self.tid, self.uid);
        while let Some(further) = target.search {
            self.process.context.with_graph(|graph| target.look_for_thread(graph, further));
        }
        if target.unattended
            && let Some(thread) = target.thread
            && !target.process.attend_thread(thread)
        {
            (target.thread, target.thread_id) = (None, None);
        }
        let filled = self.fill(&target, data, is_reply, extra_buffers_size);
        let graph = section.graph();
        let sent = Sent { id, priority, from };
        let result = filled.and_then(|filled| self.queue(graph, &sent, &target, filled, data));
        if let Some(node) = target.node {
            if result.is_err() {
                graph.dec_node(node, true, false);
            }
            graph.dec_node_tmpref(node);
        }
        self.log(id, Some(&target), data, is_reply, result.err());
        if let Err(failure) = result {
            self.fail(graph, id, target.in_reply_to, failure);
        }
        // Outside the lock: this may be the last `Arc` of a released target.
        graph.effects.push(Effect::DropProcess(target.process));
    }

    /// Notes the transaction in `transaction_log`, and in `failed_transaction_log` if it failed.
    fn log(
        &self,
        id: TransactionId,
        target: Option<&Target>,
        data: &TransactionData,
        is_reply: bool,
        failure: Option<Failure>,
    ) {
        let to_pid = target.map_or(0, |target| target.process.pid);
        let to_tid = target.and_then(|target| target.thread_id).unwrap_or(0);
        let node = target.and_then(|target| target.node).map_or(0, |node| node.0);
        let to = (to_pid, to_tid);
        let entry = || Entry {
            id: id.0,
            is_reply,
            is_oneway: data.flags & TF_ONE_WAY != 0,
            from: (self.process.pid, self.tid),
            to,
            node,
            handle: data.handle(),
            context: self.process.context.name.clone(),
            data_size: data.data_size,
            offsets_size: data.offsets_size,
            failure,
        };
        let instance = &self.process.context.instance;
        instance.transaction_log.add(entry());
        let call = target.and_then(|target| target.in_reply_to);
        if failure.is_none() {
            self.tell_sent(id, call, to, data);
        }
        if let Some(Failure { error, param }) = failure {
            instance.failed_log.add(entry());
            let call = is_reply.then(|| call.unwrap_or(TransactionId(u64::MAX)));
            self.report(id, call, to, data, error);
            user_error!(
                Kind::TransactionFailed,
                "transaction {} to {to_pid}:{to_tid} failed {}/{param} ({error:?}), code {} size {}-{}",
                id.0,
                error.number(),
                data.code,
                data.data_size,
                data.offsets_size
            );
        }
    }

    /// Tells all concerned that the transaction `id` failed.
    fn fail(
        &self,
        graph: &mut Graph,
        id: TransactionId,
        in_reply_to: Option<TransactionId>,
        failure: Failure,
    ) {
        let error = ExtendedError {
            id: id.0 as u32,
            command: failure.error.number(),
            param: failure.param,
        };
        match in_reply_to {
            Some(call) => {
                graph.set_error_of_sender(call, error);
                graph.set_return_error(self.thread, Return::TransactionComplete);
                graph.send_failed_reply(call, failure.error);
            }
            None => {
                graph.set_extended_error(self.thread, error);
                graph.set_return_error(self.thread, failure.error);
            }
        }
    }

    /// Takes a buffer in the target and fills it. On failure nothing is left behind.
    fn fill(
        &self,
        target: &Target,
        data: &TransactionData,
        is_reply: bool,
        extra_buffers_size: u64,
    ) -> Result<Filled, Failure> {
        let security_ctx = match target.wants_security_ctx {
            true => Some(self.process.task.security_context()?),
            false => None,
        };
        let context_size = security_ctx.as_ref().map_or(0, |context| align8(context.len() as u64));
        let extra = extra_buffers_size.checked_add(context_size).ok_or(Errno::EINVAL)?;
        let alloc = &target.process.alloc;
        let request = BufferRequest {
            data_size: data.data_size,
            offsets_size: data.offsets_size,
            extra_buffers_size: extra,
            is_async: !is_reply && data.flags & TF_ONE_WAY != 0,
            pid: self.process.pid,
        };
        let user = &self.process.user;
        let buffer_charge = user.hold_record(quota::bytes::BUFFER)?;
        let mut charge = TransactionCharge {
            record: user.hold_record(quota::bytes::TRANSACTION)?,
            oneway: None,
        };
        let buffer = alloc.alloc_new_buf(&request).map_err(|errno| match errno {
            Errno::ESRCH => {
                let pid = target.process.pid;
                user_error!(Kind::NotMapped, "cannot allocate buffer: no vma, process {pid}");
                Failure::new(Return::DeadReply, -(Errno::ESRCH as i32))
            }
            errno => {
                shortage::note(&errno);
                errno.into()
            }
        })?;
        if request.is_async {
            let size = buffer.size();
            let held = user.hold(quota::What::OnewayBytes, size);
            charge.oneway = Some(held.inspect_err(|_| alloc.free_buf(&buffer))?);
        }
        if data.flags & TF_CLEAR_BUF != 0 {
            alloc.set_clear_on_free(&buffer);
        }
        let mut context_address = 0;
        if let Some(context) = security_ctx {
            let offset =
                align8(data.data_size) + align8(data.offsets_size) + align8(extra) - context_size;
            if alloc.copy_to_buffer(&buffer, offset as usize, &context).is_ok() {
                context_address = buffer.user_data + offset;
            }
        }
        let mut message = Message::new(self, target, data, buffer, extra - context_size);
        let filled = message.fill();
        self.record_message(data, message.objects());
        match filled {
            Ok(()) => {
                let (held, fixups) = message.into_parts();
                Ok(Filled {
                    buffer,
                    held,
                    fixups,
                    security_ctx: context_address,
                    charge,
                    buffer_charge,
                })
            }
            Err(errno) => {
                let (held, fixups) = message.into_parts();
                let sender_lives = self.process.context.locked(|graph| {
                    graph.release_held(target.process.id, None, held);
                    graph.effects.push(Effect::DropFiles(fixups));
                    graph.processes.get(&self.process.id).is_some_and(|sender| !sender.is_dead)
                });
                alloc.free_buf(&buffer);
                Err(match errno {
                    // The tables of either were gone when an object was translated: it died
                    // meanwhile. (The driver's sender cannot die in an ioctl.)
                    Errno::ESRCH => Failure::dead(),
                    _ if !sender_lives => Failure::dead(),
                    errno => {
                        shortage::note(&errno);
                        errno.into()
                    }
                })
            }
        }
    }

    /// Queues a filled message at its target.
    fn queue(
        &self,
        graph: &mut Graph,
        sent: &Sent,
        target: &Target,
        filled: Filled,
        data: &TransactionData,
    ) -> Result<(), Failure> {
        let Sent { id, priority, from } = *sent;
        let thread = self.thread;
        let start = self.process.context.shared.timers.now();
        let process = target.process.id;
        let alive = graph.threads.contains_key(&thread)
            && graph.processes.contains_key(&process)
            && target.in_reply_to.is_none_or(|_| {
                target.thread.is_some_and(|thread| graph.threads.contains_key(&thread))
            });
        if !alive {
            graph.release_held(process, None, filled.held);
            graph.effects.push(Effect::DropFiles(filled.fixups));
            graph.effects.push(Effect::FreeBuffer(target.process.clone(), filled.buffer));
            return Err(Failure::dead());
        }
        let offset = filled.buffer.offset;
        let is_reply = target.in_reply_to.is_some();
        let oneway = !is_reply && data.flags & TF_ONE_WAY != 0;
        let mut complete = if filled.buffer.oneway_spam_suspect {
            Work::TransactionOnewaySpamSuspect
        } else {
            Work::TransactionComplete
        };
        if let Some(record) = graph.processes.get_mut(&process) {
            record.files_in_flight += filled.fixups.len();
            record.buffers.insert(
                offset,
                Box::new(BufferRecord {
                    id,
                    buffer: filled.buffer,
                    transaction: Some(id),
                    target_node: target.node,
                    held: filled.held,
                    close_on_free: Vec::new(),
                    charge: filled.buffer_charge,
                }),
            );
        }
        graph.created.transactions += 1;
        graph.created.transaction_completes += 1;
        graph.transactions.insert(
            id,
            Transaction {
                from: (!is_reply && !oneway).then_some(thread),
                from_parent: None,
                from_pid: self.process.pid,
                from_tid: self.tid,
                to_process: Some(process),
                to_thread: target.thread,
                to_parent: None,
                is_reply,
                code: data.code,
                flags: data.flags,
                sender_euid: from.euid,
                sender_is_opener: from.is_opener,
                priority,
                start,
                saved_priority: (!is_reply && !oneway).then(|| Arc::new(AtomicI32::new(priority))),
                buffer: Some(offset),
                target_node: target.node,
                fixups: filled.fixups,
                security_ctx: filled.security_ctx,
                charge: filled.charge,
            },
        );
        if let (Some(call), Some(caller)) = (target.in_reply_to, target.thread) {
            graph.enqueue_thread_work(thread, complete);
            graph.pop_transaction(caller, call);
            graph.enqueue_thread_work(caller, Work::Transaction(id));
            if let Some(record) = graph.processes.get_mut(&process) {
                record.outstanding_txns += 1;
            }
            graph.woken.push(caller);
            graph.free_transaction(call);
            return Ok(());
        }
        let result = if oneway {
            graph.queue_transaction(id, process, None).map(|frozen| {
                if frozen {
                    complete = Work::TransactionPending;
                }
                let to = (target.process.pid, 0);
                self.report_complete(id, to, data, &complete);
                graph.enqueue_thread_work(thread, complete);
            })
        } else {
            // Deferred: the sender is not woken for this alone, but reads it with the reply.
            let place = graph.enqueue_deferred_thread_work(thread, complete);
            let parent = graph
                .threads
                .get_mut(&thread)
                .and_then(|thread| thread.transaction_stack.replace(id));
            if let Some(transaction) = graph.transactions.get_mut(&id) {
                transaction.from_parent = parent;
            }
            graph.queue_transaction(id, process, target.thread).map(|_| ()).inspect_err(|_| {
                graph.pop_transaction(thread, id);
                if let Some(place) = place {
                    graph.dequeue(place);
                }
            })
        };
        result.map_err(|error| {
            // The transaction was never outstanding, so it is not freed as such, only forgotten.
            if let Some(transaction) = graph.transactions.remove(&id) {
                graph.drop_fixups(Some(process), transaction.fixups);
            }
            if let Some(buffer) = graph.buffer_mut(process, offset) {
                buffer.target_node = None;
            }
            graph.discard_buffer(process, offset);
            Failure::new(error, 0)
        })
    }
}
