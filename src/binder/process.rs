//! A process: one open file of a device. Two opens of one program are two processes here.

use super::Process;
use super::freeze::FreezeWait;
use super::graph::{Cookies, Graph, NodeId, ProcessId, Queue, ThreadId, TransactionId, WorkList};
use super::node::Node;
use super::outbox::Effect;
use super::poll::Polls;
use super::reference::Ref;
use super::transaction::HeldRef;
use crate::Errno;
use crate::alloc::Buffer;
use crate::client_log::{Kind, user_error};
use crate::protocol::object::FlatObject;
use crate::quota;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The record of a buffer that a client holds: everything that has to be undone when the buffer is
/// freed. Nothing is read back from the buffer, which its client may be able to write.
pub(crate) struct BufferRecord {
    /// The transaction that brought it (`debug_id`).
    pub id: TransactionId,
    pub buffer: Buffer,
    /// The transaction that the buffer carries, until that is done.
    pub transaction: Option<TransactionId>,
    /// The node that a call was sent to; none for a reply.
    pub target_node: Option<NodeId>,
    /// What the buffer's objects hold, as far as they have been translated.
    pub held: Vec<HeldRef>,
    /// Descriptors (of arrays) that were installed in the client and are closed with the buffer.
    pub close_on_free: Vec<i32>,
    #[expect(dead_code, reason = "held for its drop")]
    pub charge: quota::Charge,
}

/// `struct binder_proc`, the part that the graph's lock guards.
pub(crate) struct ProcessInner {
    pub process: Arc<Process>,
    /// By thread id.
    pub threads: BTreeMap<i32, ThreadId>,
    /// From this number of threads on, those that are gone are looked for, but not before that
    /// time.
    pub look_through_at: usize,
    pub look_through_after: Duration,
    /// By pointer.
    pub nodes: BTreeMap<u64, NodeId>,
    /// By handle.
    pub refs: BTreeMap<u32, Ref>,
    pub handles: BTreeMap<NodeId, u32>,
    /// Handles below `next_handle` that are free again.
    pub free_handles: BTreeSet<u32>,
    pub next_handle: u32,
    /// By offset in the mapping.
    pub buffers: BTreeMap<usize, Box<BufferRecord>>,
    pub todo: WorkList,
    pub delivered_death: WorkList,
    pub death_cookies: Cookies,
    pub delivered_freeze: WorkList,
    pub freeze_cookies: Cookies,
    /// Threads parked in a read that may take the process's work, by their turn
    /// ([`Thread::turn`](super::thread::Thread::turn)): the latest to wait has the largest.
    pub waiting_threads: BTreeMap<u64, ThreadId>,
    pub polls: Polls,
    pub max_threads: u32,
    pub requested_threads: u32,
    pub requested_threads_started: u32,
    pub outstanding_txns: u64,
    /// The file is closed; its records are being released.
    pub is_dead: bool,
    pub is_frozen: bool,
    pub sync_recv: bool,
    pub async_recv: bool,
    /// By ticket.
    pub freeze_waits: BTreeMap<u64, FreezeWait>,
    /// The number of the latest telling that this process froze or thawed.
    pub freeze_telling: u64,
    pub oneway_spam_detection: bool,
    /// Death and freeze links that exist.
    pub deaths: usize,
    pub freezes: usize,
    /// Descriptors in transactions to this process that were not delivered yet.
    pub files_in_flight: usize,
}

impl ProcessInner {
    pub fn new(process: Arc<Process>) -> ProcessInner {
        ProcessInner {
            process,
            threads: BTreeMap::new(),
            look_through_at: super::exit::FEW,
            look_through_after: Duration::ZERO,
            nodes: BTreeMap::new(),
            refs: BTreeMap::new(),
            handles: BTreeMap::new(),
            free_handles: BTreeSet::new(),
            next_handle: 0,
            buffers: BTreeMap::new(),
            todo: WorkList::default(),
            delivered_death: WorkList::default(),
            death_cookies: Cookies::new(),
            delivered_freeze: WorkList::default(),
            freeze_cookies: Cookies::new(),
            waiting_threads: BTreeMap::new(),
            polls: Polls::default(),
            max_threads: 0,
            requested_threads: 0,
            requested_threads_started: 0,
            outstanding_txns: 0,
            is_dead: false,
            is_frozen: false,
            sync_recv: false,
            async_recv: false,
            freeze_waits: BTreeMap::new(),
            freeze_telling: 0,
            oneway_spam_detection: false,
            deaths: 0,
            freezes: 0,
            files_in_flight: 0,
        }
    }

    /// Takes the smallest free handle that is not below `least` (`get_ref_desc_olocked`).
    pub fn free_handle(&mut self, least: u32) -> u32 {
        if let Some(&handle) = self.free_handles.range(least..).next() {
            self.free_handles.remove(&handle);
            return handle;
        }
        self.free_handles.extend(self.next_handle..least);
        let handle = self.next_handle.max(least);
        self.next_handle = handle + 1;
        handle
    }

    pub fn release_handle(&mut self, handle: u32) {
        // The process is dead: nobody is given a handle in it any more.
        if self.is_dead {
            return;
        }
        self.free_handles.insert(handle);
        // Not all free handles at the end at once, since there may be a million. Two for each
        // handle that is released keep the table no larger than it has to be.
        for _ in 0..2 {
            if self.next_handle > 0 && self.free_handles.remove(&(self.next_handle - 1)) {
                self.next_handle -= 1;
            }
        }
    }
}

impl ProcessInner {
    /// A list of work that is not empty.
    fn lists_left(&self) -> Option<Queue> {
        let id = self.process.id;
        [
            (Queue::Process(id), &self.todo),
            (Queue::DeliveredDeath(id), &self.delivered_death),
            (Queue::DeliveredFreeze(id), &self.delivered_freeze),
        ]
        .into_iter()
        .find_map(|(queue, list)| (!list.is_empty()).then_some(queue))
    }
}

impl Graph {
    /// BINDER_SET_CONTEXT_MGR. EBUSY: there is one; EPERM: another uid than the first manager's.
    pub fn set_context_manager(
        &mut self,
        process: ProcessId,
        euid: u32,
        object: &FlatObject,
    ) -> Result<(), Errno> {
        if self.manager.is_some() {
            user_error!(Kind::BadManager, "BINDER_SET_CONTEXT_MGR already set");
            return Err(Errno::EBUSY);
        }
        match self.manager_uid {
            Some(uid) if uid != euid => {
                user_error!(Kind::BadManager, "BINDER_SET_CONTEXT_MGR bad uid {euid} != {uid}");
                return Err(Errno::EPERM);
            }
            _ => self.manager_uid = Some(euid),
        }
        let id = self.get_or_new_node(process, object)?;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.local_weak_refs += 1;
            node.local_strong_refs += 1;
            node.has_strong_ref = true;
            node.has_weak_ref = true;
        }
        self.manager = Some(id);
        Ok(())
    }

    /// The owner of the context manager's node.
    pub fn manager_process(&self) -> Option<ProcessId> {
        self.nodes.get(&self.manager?)?.process
    }

    /// BINDER_GET_NODE_DEBUG_INFO: the first node of a process with a pointer greater than `ptr`.
    pub fn next_node(&self, process: ProcessId, ptr: u64) -> Option<&Node> {
        let nodes = &self.processes.get(&process)?.nodes;
        let (_, id) = nodes.range(ptr.checked_add(1)?..).next()?;
        self.nodes.get(id)
    }

    /// The file is closed for good (`binder_deferred_release`): from here on nothing new reaches
    /// the process. [`Graph::release_some`] does the rest.
    pub fn begin_release(&mut self, id: ProcessId) {
        let Some(record) = self.processes.get_mut(&id) else {
            return;
        };
        record.is_dead = true;
        record.is_frozen = false;
        record.sync_recv = false;
        record.async_recv = false;
        if self.manager_process() == Some(id) {
            self.manager = None;
        }
    }

    /// Releases some records of a process that is dead: its threads, its nodes, its references, its
    /// work, its buffers; then the process. Returns whether something is left: the caller lets go
    /// of the lock in between, as the driver does.
    pub fn release_some(&mut self, id: ProcessId) -> bool {
        while self.spend() {
            let Some(record) = self.processes.get_mut(&id) else {
                return false;
            };
            if let Some(&thread) = record.threads.values().next() {
                self.release_thread(thread);
            } else if let Some(&node) = record.nodes.values().next() {
                self.release_some_of_node(id, node);
            } else if let Some(&handle) = record.refs.keys().next() {
                self.cleanup_ref(id, handle);
            } else if let Some(queue) = record.lists_left() {
                self.release_first_work(queue);
            } else if let Some((_, buffer)) = record.buffers.pop_first() {
                self.forget_buffer(&buffer);
            } else {
                self.forget_process(id);
                return false;
            }
        }
        true
    }

    /// Releases the next one-way call that waits for a node, or, when there is none, the node.
    fn release_some_of_node(&mut self, process: ProcessId, id: NodeId) {
        if self.release_first_async(id) {
            return;
        }
        if let Some(record) = self.processes.get_mut(&process) {
            record.nodes.pop_first();
        }
        self.inc_node_tmpref(id);
        self.release_node(id);
    }

    /// Forgets a buffer that remains (`binder_alloc_deferred_release`): what it held is released
    /// already, and its memory is freed with the last `Arc` of the process.
    fn forget_buffer(&mut self, buffer: &BufferRecord) {
        let transaction = buffer.transaction.and_then(|id| self.transactions.get_mut(&id));
        if let Some(transaction) = transaction {
            transaction.buffer = None;
        }
    }

    fn forget_process(&mut self, id: ProcessId) {
        let Some(mut record) = self.processes.remove(&id) else {
            return;
        };
        self.by_pid.remove(&(record.process.pid, id));
        // The callers that wait to freeze this process find nothing outstanding any more.
        self.effects.push(Effect::Frozen(std::mem::take(&mut record.freeze_waits)));
        self.effects.push(Effect::DropProcess(record.process.clone()));
        self.effects.push(Effect::DropRecord(record));
    }
}
