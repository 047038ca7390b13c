//! A node: an object that a process offers to others.
//!
//! What keeps a node: `refs` are the references of other processes, and `internal_strong_refs`
//! counts the strong ones among them; `local_strong_refs` and `local_weak_refs` count what is on
//! its way (transactions to the node, objects in buffers, notices that the owner has not
//! confirmed); `tmp_refs` keeps it while a transaction to it is being built without the lock.
//! `has_strong_ref` and `has_weak_ref` are what the owner has been told (BR_ACQUIRE, BR_INCREFS).

use super::graph::{Graph, NodeId, Place, ProcessId, Queue, ThreadId, Work};
use super::oneway::AsyncTodo;
use super::pieces::Rest;
use crate::Errno;
use crate::client_log::{Kind, user_error};
use crate::protocol::object::FlatObject;
use crate::quota::{Charge, bytes};
use crate::uapi;
use std::collections::BTreeMap;

/// `struct binder_node`.
pub(crate) struct Node {
    /// The owner; none once the owner has died.
    pub process: Option<ProcessId>,
    pub ptr: u64,
    pub cookie: u64,
    /// The low byte of the flags, 0 to 255, compared with nice values without conversion.
    pub min_priority: i32,
    pub accept_fds: bool,
    pub txn_security_ctx: bool,
    pub internal_strong_refs: u64,
    pub local_strong_refs: u64,
    pub local_weak_refs: u64,
    pub tmp_refs: u64,
    pub has_strong_ref: bool,
    pub has_weak_ref: bool,
    pub pending_strong_ref: bool,
    pub pending_weak_ref: bool,
    /// The holders of references to this node, by the reference's id (oldest first).
    pub refs: BTreeMap<u64, ProcessId>,
    /// The place of the notice for the owner, if one is due.
    pub work: Option<Place>,
    /// The last notice was lost with the thread that was to read it. Only the invariants need to
    /// know.
    pub notice_lost: bool,
    /// A one-way transaction is with the owner; further ones wait in `async_todo`.
    pub has_async_transaction: bool,
    pub async_todo: AsyncTodo,
    #[expect(dead_code, reason = "held for its drop")]
    pub charge: Charge,
}

impl Node {
    fn is_strong(&self) -> bool {
        self.internal_strong_refs > 0 || self.local_strong_refs > 0
    }

    /// The latest holder among those whose references come before that one.
    pub fn holder(&self, before: u64) -> Option<(u64, ProcessId)> {
        let (reference, holder) = self.refs.range(..before).next_back()?;
        Some((*reference, *holder))
    }

    fn is_weak(&self) -> bool {
        !self.refs.is_empty() || self.local_weak_refs > 0 || self.tmp_refs > 0 || self.is_strong()
    }
}

/// What a node's owner has to be told, in this order.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct NodeNotice {
    pub increfs: bool,
    pub acquire: bool,
    pub release: bool,
    pub decrefs: bool,
}

impl Graph {
    /// The process's node with that pointer (`binder_get_node_ilocked`).
    pub fn find_node(&self, process: ProcessId, ptr: u64) -> Option<NodeId> {
        self.processes.get(&process)?.nodes.get(&ptr).copied()
    }

    /// The process's node with that pointer, made if there is none (`binder_new_node`). ENOMEM: too
    /// many nodes.
    pub fn get_or_new_node(
        &mut self,
        process: ProcessId,
        object: &FlatObject,
    ) -> Result<NodeId, Errno> {
        if let Some(node) = self.find_node(process, object.binder) {
            return Ok(node);
        }
        let id = NodeId(self.next_id());
        let limit = self.limits.nodes;
        let record = self.processes.get_mut(&process).ok_or(Errno::ESRCH)?;
        if record.nodes.len() >= limit {
            return Err(Errno::ENOMEM);
        }
        let charge = record.process.user.hold_record(bytes::NODE)?;
        record.nodes.insert(object.binder, id);
        self.created.nodes += 1;
        self.nodes.insert(
            id,
            Node {
                process: Some(process),
                ptr: object.binder,
                cookie: object.cookie,
                min_priority: (object.flags & uapi::FLAT_BINDER_FLAG_PRIORITY_MASK) as i32,
                accept_fds: object.flags & uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS != 0,
                txn_security_ctx: object.flags & uapi::FLAT_BINDER_FLAG_TXN_SECURITY_CTX != 0,
                internal_strong_refs: 0,
                local_strong_refs: 0,
                local_weak_refs: 0,
                tmp_refs: 0,
                has_strong_ref: false,
                has_weak_ref: false,
                notice_lost: false,
                pending_strong_ref: false,
                pending_weak_ref: false,
                refs: BTreeMap::new(),
                work: None,
                has_async_transaction: false,
                async_todo: AsyncTodo::default(),
                charge,
            },
        );
        Ok(id)
    }

    /// Counts one more reference (`binder_inc_node_nilocked`). `notify` is a sending thread that
    /// offers its own node: the thread reads the owner's notice of the first reference. EINVAL: a
    /// first strong reference without such an offer.
    pub fn inc_node(
        &mut self,
        id: NodeId,
        strong: bool,
        internal: bool,
        notify: Option<ThreadId>,
    ) -> Result<(), Errno> {
        let is_manager = self.manager == Some(id);
        let Some(node) = self.nodes.get_mut(&id) else {
            return Err(Errno::EINVAL);
        };
        if strong {
            if internal {
                if notify.is_none()
                    && node.internal_strong_refs == 0
                    && !(is_manager && node.process.is_some() && node.has_strong_ref)
                {
                    user_error!(Kind::BadReference, "invalid inc strong node for {}", id.0);
                    return Err(Errno::EINVAL);
                }
                node.internal_strong_refs += 1;
            } else {
                node.local_strong_refs += 1;
            }
            if !node.has_strong_ref
                && let Some(thread) = notify
            {
                if let Some(place) = node.work.take() {
                    self.dequeue(place);
                }
                let place = self.enqueue_deferred_thread_work(thread, Work::Node(id));
                self.node_mut(id).work = place;
            }
        } else {
            if !internal {
                node.local_weak_refs += 1;
            }
            if !node.has_weak_ref
                && node.work.is_none()
                && let Some(thread) = notify
            {
                let place = self.enqueue_deferred_thread_work(thread, Work::Node(id));
                self.node_mut(id).work = place;
            }
        }
        Ok(())
    }

    /// Counts one reference fewer, tells the owner when it was the last, and forgets the node when
    /// nothing keeps it (`binder_dec_node_nilocked`). Weak and internal counts nothing, and only
    /// does the rest.
    pub fn dec_node(&mut self, id: NodeId, strong: bool, internal: bool) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if strong {
            let count =
                if internal { &mut node.internal_strong_refs } else { &mut node.local_strong_refs };
            *count = count.saturating_sub(1);
            if node.is_strong() {
                return;
            }
        } else {
            if !internal {
                node.local_weak_refs = node.local_weak_refs.saturating_sub(1);
            }
            if node.local_weak_refs > 0 || node.tmp_refs > 0 || !node.refs.is_empty() {
                return;
            }
        }
        match node.process {
            Some(owner) if node.has_strong_ref || node.has_weak_ref => {
                if node.work.is_none() {
                    let place = self.enqueue_process_work(owner, Work::Node(id));
                    self.node_mut(id).work = place;
                }
            }
            owner => {
                let unused = node.refs.is_empty()
                    && node.local_strong_refs == 0
                    && node.local_weak_refs == 0
                    && node.tmp_refs == 0;
                if unused {
                    let (work, ptr) = (node.work, node.ptr);
                    if let Some(place) = work {
                        self.dequeue(place);
                    }
                    if let Some(owner) = owner.and_then(|o| self.processes.get_mut(&o)) {
                        owner.nodes.remove(&ptr);
                    }
                    self.nodes.remove(&id);
                }
            }
        }
    }

    /// Keeps a node while a transaction to it is built without the lock.
    pub fn inc_node_tmpref(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.tmp_refs += 1;
        }
    }

    /// Undoes [`Graph::inc_node_tmpref`] (`binder_dec_node_tmpref`).
    pub fn dec_node_tmpref(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.tmp_refs = node.tmp_refs.saturating_sub(1);
            self.dec_node(id, false, true);
        }
    }

    /// A node that the caller knows to be there: it holds the lock and has just seen it.
    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("looked up under the same lock")
    }

    /// What the owner is to be told of its node now; notes that it was told, and forgets a node
    /// that nothing keeps any more (the BINDER_WORK_NODE arm of `binder_thread_read`).
    pub fn take_node_notice(&mut self, id: NodeId) -> Option<(u64, u64, NodeNotice)> {
        let node = self.nodes.get_mut(&id)?;
        let (strong, weak) = (node.is_strong(), node.is_weak());
        let notice = NodeNotice {
            increfs: weak && !node.has_weak_ref,
            acquire: strong && !node.has_strong_ref,
            release: !strong && node.has_strong_ref,
            decrefs: !weak && node.has_weak_ref,
        };
        node.notice_lost = false;
        if notice.increfs {
            node.has_weak_ref = true;
            node.pending_weak_ref = true;
            node.local_weak_refs += 1;
        }
        if notice.acquire {
            node.has_strong_ref = true;
            node.pending_strong_ref = true;
            node.local_strong_refs += 1;
        }
        if notice.release {
            node.has_strong_ref = false;
        }
        if notice.decrefs {
            node.has_weak_ref = false;
        }
        let (ptr, cookie, owner) = (node.ptr, node.cookie, node.process);
        if !weak && !strong {
            if let Some(owner) = owner.and_then(|o| self.processes.get_mut(&o)) {
                owner.nodes.remove(&ptr);
            }
            self.nodes.remove(&id);
        }
        Some((ptr, cookie, notice))
    }

    /// The owner confirms a notice (BC_INCREFS_DONE, BC_ACQUIRE_DONE). A confirmation that does not
    /// match is ignored, as in the driver.
    pub fn node_done(&mut self, process: ProcessId, ptr: u64, cookie: u64, strong: bool) {
        let name = |strong| if strong { "BC_ACQUIRE_DONE" } else { "BC_INCREFS_DONE" };
        let Some(id) = self.find_node(process, ptr) else {
            user_error!(Kind::BadNodeDone, "{} u{ptr:016x} no match", name(strong));
            return;
        };
        let node = self.node_mut(id);
        if node.cookie != cookie {
            user_error!(
                Kind::BadNodeDone,
                "{} u{ptr:016x} cookie mismatch {cookie:016x} != {:016x}",
                name(strong),
                node.cookie
            );
            return;
        }
        let pending =
            if strong { &mut node.pending_strong_ref } else { &mut node.pending_weak_ref };
        if !std::mem::take(pending) {
            user_error!(Kind::BadNodeDone, "{} u{ptr:016x} has no pending request", name(strong));
            return;
        }
        self.inc_node_tmpref(id);
        self.dec_node(id, strong, false);
        self.dec_node_tmpref(id);
    }

    /// Fails the first one-way call that waits for a node whose owner has died; returns whether
    /// there was any.
    pub fn release_first_async(&mut self, id: NodeId) -> bool {
        let first = self.nodes.get_mut(&id).and_then(|node| node.async_todo.pop());
        if let Some(transaction) = first {
            self.cleanup_transaction(transaction, crate::protocol::returns::Return::DeadReply);
        }
        first.is_some()
    }

    /// The owner of a node has died (`binder_node_release`). The caller has taken the node out of
    /// the owner's table, failed the calls that waited for the node, and holds a temporary
    /// reference.
    pub fn release_node(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if let Some(place) = node.work.take() {
            self.dequeue(place);
        }
        let node = self.node_mut(id);
        if node.refs.is_empty() && node.tmp_refs == 1 {
            self.nodes.remove(&id);
            return;
        }
        node.process = None;
        node.local_strong_refs = 0;
        node.local_weak_refs = 0;
        self.tell_deaths(id, u64::MAX);
    }

    /// Tells the holders of a dead node, the latest first, and lets go of the node.
    pub fn tell_deaths(&mut self, id: NodeId, mut before: u64) {
        while let Some((reference, holder)) = self.nodes.get(&id).and_then(|n| n.holder(before)) {
            if !self.spend() {
                return self.rest.push(Rest::Deaths { node: id, before });
            }
            self.notify_death(holder, id);
            before = reference;
        }
        self.dec_node_tmpref(id);
    }

    /// Hands out the next one-way transaction of a node, when the buffer of the last is freed.
    pub fn next_async_transaction(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        match (node.async_todo.pop(), node.process) {
            (Some(transaction), Some(owner)) => {
                self.enqueue(Queue::Process(owner), Work::Transaction(transaction));
                self.wakeup_process(owner);
            }
            _ => node.has_async_transaction = false,
        }
    }
}
