//! Where a transaction goes: the process behind the handle of a call, or the caller that a reply is
//! for (the first part of `binder_transaction`).

use super::Process;
use super::graph::{Graph, NodeId, ThreadId, TransactionId, Work};
use super::send::{Failure, Sender};
use crate::Errno;
use crate::client_log::{Kind, user_error};
use crate::protocol::record::TransactionData;
use crate::protocol::returns::Return;
use crate::uapi::{TF_ACCEPT_FDS, TF_ONE_WAY};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where a transaction goes, as found in the first section.
pub(crate) struct Target {
    pub process: Arc<Process>,
    /// The receiving thread, where it is known: the waiting caller of a reply, or the thread
    /// that a nested call returns to.
    pub thread: Option<ThreadId>,
    /// The receiving thread's number, for the logs.
    pub thread_id: Option<i32>,
    /// The node of a call; none for a reply.
    pub node: Option<NodeId>,
    /// The call that a reply answers.
    pub in_reply_to: Option<TransactionId>,
    pub accepts_fds: bool,
    pub wants_security_ctx: bool,
    /// Nobody watches for the end of the receiving thread.
    pub unattended: bool,
    /// Where the search for the receiving thread goes on.
    pub search: Option<TransactionId>,
}

impl Target {
    /// Looks up the chain of callers for a thread of the target that waits for the sender: a nested
    /// call back into a process goes to that thread.
    pub fn look_for_thread(&mut self, graph: &Graph, from: TransactionId) {
        let found = match graph.waiting_caller(from, self.process.id) {
            ControlFlow::Break(found) => found,
            ControlFlow::Continue(further) => return self.search = Some(further),
        };
        self.search = None;
        self.thread = found;
        self.thread_id = found.and_then(|id| graph.threads.get(&id)).map(|thread| thread.tid);
        self.unattended = found.is_some_and(|id| graph.is_unattended(id));
    }
}

/// A target that was not found, and the call that the failure concerns.
pub(super) struct NoTarget {
    pub failure: Failure,
    pub in_reply_to: Option<TransactionId>,
}

impl From<Failure> for NoTarget {
    fn from(failure: Failure) -> NoTarget {
        NoTarget { failure, in_reply_to: None }
    }
}

impl Sender<'_> {
    /// The waiting caller that a reply goes to. Whether the caller is there or not, the replying
    /// thread is done with the call and gets its `own` nice value back.
    pub(super) fn reply_target(
        &self,
        graph: &mut Graph,
        own: &mut Option<i32>,
    ) -> Result<Target, NoTarget> {
        let thread = graph.threads.get_mut(&self.thread).ok_or_else(Failure::dead)?;
        let Some(call_id) = thread.transaction_stack else {
            user_error!(Kind::BadReply, "got reply transaction with no transaction stack");
            return Err(Failure::from(Errno::EPROTO).into());
        };
        let call = graph.transactions.get(&call_id).ok_or_else(Failure::dead)?;
        if call.to_thread != Some(self.thread) {
            user_error!(Kind::BadReply, "got reply transaction with bad transaction stack");
            return Err(Failure::from(Errno::EPROTO).into());
        }
        thread.transaction_stack = call.to_parent;
        *own = call.saved_priority.as_ref().map(|own| own.load(Ordering::Relaxed));
        let accepts_fds = call.flags & TF_ACCEPT_FDS != 0;
        let none = |failure, in_reply_to| NoTarget { failure, in_reply_to };
        let Some(caller) = call.from else {
            return Err(none(Failure::dead(), Some(call_id)));
        };
        let Some(caller_thread) = graph.threads.get(&caller) else {
            return Err(none(Failure::dead(), Some(call_id)));
        };
        if caller_thread.transaction_stack != Some(call_id) {
            user_error!(Kind::BadReply, "got reply transaction with bad target transaction stack");
            return Err(Failure::from(Errno::EPROTO).into());
        }
        let Some(record) = graph.processes.get(&caller_thread.process) else {
            return Err(none(Failure::dead(), Some(call_id)));
        };
        Ok(Target {
            process: record.process.clone(),
            thread: Some(caller),
            thread_id: Some(caller_thread.tid),
            node: None,
            in_reply_to: Some(call_id),
            accepts_fds,
            wants_security_ctx: false,
            unattended: false,
            search: None,
        })
    }

    /// The process behind a call's handle. Its node is kept until the call is queued.
    pub(super) fn call_target(
        &self,
        graph: &mut Graph,
        data: &TransactionData,
    ) -> Result<Target, Failure> {
        let oneway = data.flags & TF_ONE_WAY != 0;
        let missing = |error| Failure::new(error, -(Errno::EINVAL as i32));
        let handle = data.handle();
        let node_id = if handle == 0 {
            graph.manager.ok_or(missing(Return::DeadReply))?
        } else {
            let reference = graph.find_ref(self.process.id, handle, true);
            reference.map(|reference| reference.node).ok_or_else(|| {
                user_error!(Kind::BadHandle, "got transaction to invalid handle, {handle}");
                missing(Return::FailedReply)
            })?
        };
        let node = graph.nodes.get(&node_id).ok_or(missing(Return::DeadReply))?;
        let owner = node.process.ok_or(missing(Return::DeadReply))?;
        let record = graph.processes.get(&owner).ok_or(missing(Return::DeadReply))?;
        if handle == 0 && record.process.pid == self.process.pid {
            user_error!(
                Kind::CallToSelf,
                "got transaction to context manager from process owning it"
            );
            return Err(Errno::EINVAL.into());
        }
        if owner == self.process.id {
            user_error!(Kind::CallToSelf, "got transaction to a node of its own, handle {handle}");
            return Err(Errno::EINVAL.into());
        }
        let mut target = Target {
            process: record.process.clone(),
            thread: None,
            thread_id: None,
            node: Some(node_id),
            in_reply_to: None,
            accepts_fds: node.accept_fds,
            wants_security_ctx: node.txn_security_ctx,
            unattended: false,
            search: None,
        };
        let thread = graph.threads.get(&self.thread).ok_or_else(Failure::dead)?;
        if thread.todo.len() >= graph.limits.thread_todo {
            return Err(Errno::ENOMEM.into());
        }
        if !oneway {
            if let Some(Work::Transaction(_)) = thread.todo.first() {
                user_error!(
                    Kind::BadCallStack,
                    "new transaction not allowed when there is a transaction on thread todo"
                );
                return Err(Errno::EPROTO.into());
            }
            if let Some(top) = thread.transaction_stack {
                if graph
                    .transactions
                    .get(&top)
                    .is_some_and(|top| top.to_thread != Some(self.thread))
                {
                    user_error!(
                        Kind::BadCallStack,
                        "got new transaction with bad transaction stack"
                    );
                    return Err(Errno::EPROTO.into());
                }
                target.look_for_thread(graph, top);
            }
        }
        graph.inc_node(node_id, true, false, None)?;
        graph.inc_node_tmpref(node_id);
        Ok(target)
    }
}
