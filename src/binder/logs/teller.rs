//! The records of one process as the logs show them, a line at a time (`print_binder_proc`).

use crate::binder::death::DeathWork;
use crate::binder::freeze::FreezeWork;
use crate::binder::graph::{Graph, NodeId, TransactionId, Work};
use crate::binder::node::Node;
use crate::binder::pieces::{behind, handled};
use crate::binder::process::ProcessInner;
use std::fmt::Write;
use std::time::Duration;

/// `BINDER_LOOPER_STATE_WAITING`.
const WAITING: u32 = 0x10;

/// The graph while its lock is held, and the time.
pub(super) struct View<'a> {
    pub graph: &'a Graph,
    pub now: Duration,
}

/// Which record of a process comes next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Next {
    Thread { after: Option<i32> },
    Stack { tid: i32, call: Option<TransactionId> },
    ThreadWork { tid: i32, after: u64 },
    Node { after: Option<u64> },
    Holder { ptr: u64, before: u64 },
    Waiting { ptr: u64, after: u64 },
    Reference { after: Option<u32> },
    Buffer { after: Option<usize> },
    Work { after: u64 },
}

/// `print_binder_proc`, a line at a time.
pub(super) struct Teller {
    /// All records, and not only those that are under way.
    pub all: bool,
    /// Where in `out` the first line of the latest thread begins and ends.
    pub thread: (usize, usize),
}

impl Teller {
    /// Writes the record that is next, and returns which one follows; none at the end.
    pub fn tell(
        &mut self,
        out: &mut String,
        view: &View<'_>,
        record: &ProcessInner,
        next: Next,
    ) -> Option<Next> {
        handled();
        let graph = view.graph;
        Some(match next {
            Next::Thread { after } => match behind!(record.threads, after) {
                Some((&tid, id)) => match graph.threads.get(id) {
                    Some(thread) => {
                        let start = out.len();
                        let waiting = if thread.parked.is_some() { WAITING } else { 0 };
                        put!(
                            out,
                            "  thread {tid}: l {:02x} need_return {} tr 0",
                            thread.looper.bits() | waiting,
                            u8::from(thread.looper_need_return)
                        );
                        self.thread = (start, out.len());
                        Next::Stack { tid, call: thread.transaction_stack }
                    }
                    None => Next::Thread { after: Some(tid) },
                },
                None => Next::Node { after: None },
            },
            Next::Stack { tid, call } => {
                let told = call.and_then(|top| Some((top, graph.transactions.get(&top)?)));
                match told {
                    Some((top, it)) => {
                        let id = record.threads.get(&tid).copied();
                        let (prefix, below) = if it.from.is_some() && it.from == id {
                            ("    outgoing transaction", it.from_parent)
                        } else if it.to_thread.is_some() && it.to_thread == id {
                            ("    incoming transaction", it.to_parent)
                        } else {
                            ("    bad transaction", None)
                        };
                        view.transaction(out, Some(record), prefix, top);
                        Next::Stack { tid, call: below }
                    }
                    None => Next::ThreadWork { tid, after: 0 },
                }
            }
            Next::ThreadWork { tid, after } => {
                let thread = record.threads.get(&tid).and_then(|id| graph.threads.get(id));
                match thread.and_then(|thread| thread.todo.after(after).next()) {
                    Some((after, work)) => {
                        let transaction = "    pending transaction";
                        view.work(out, Some(record), "    ", transaction, &work);
                        Next::ThreadWork { tid, after }
                    }
                    None => {
                        let (start, head) = self.thread;
                        if !self.all && out.len() == head {
                            out.truncate(start);
                        }
                        Next::Thread { after: Some(tid) }
                    }
                }
            }
            Next::Node { after } => match behind!(record.nodes, after) {
                Some((&ptr, id)) => match graph.nodes.get(id) {
                    Some(node) if self.all || node.has_async_transaction => {
                        node_head(out, id.0, node);
                        Next::Holder { ptr, before: u64::MAX }
                    }
                    Some(_) | None => Next::Node { after: Some(ptr) },
                },
                None if self.all => Next::Reference { after: None },
                None => Next::Buffer { after: None },
            },
            Next::Holder { ptr, before } => {
                // The node may be gone by now; its line ends all the same.
                let id = record.nodes.get(&ptr).copied().unwrap_or(NodeId(0));
                match view.holder(out, id, before) {
                    Some(before) => Next::Holder { ptr, before },
                    None => Next::Waiting { ptr, after: 0 },
                }
            }
            Next::Waiting { ptr, after } => {
                let node = record.nodes.get(&ptr).and_then(|id| graph.nodes.get(id));
                match node.and_then(|node| node.async_todo.after(after).next()) {
                    Some((after, id)) => {
                        let prefix = "    pending async transaction";
                        view.transaction(out, Some(record), prefix, id);
                        Next::Waiting { ptr, after }
                    }
                    None => Next::Node { after: Some(ptr) },
                }
            }
            Next::Reference { after } => match behind!(record.refs, after) {
                Some((&handle, it)) => {
                    let node = graph.nodes.get(&it.node);
                    let is_alive = node.is_some_and(|it| it.process.is_some());
                    put!(
                        out,
                        "  ref {}: desc {handle} {}node {} s {} w {} d {:016x}",
                        it.id,
                        if is_alive { "" } else { "dead " },
                        it.node.0,
                        it.strong,
                        it.weak,
                        it.death.map_or(0, |death| death.0)
                    );
                    Next::Reference { after: Some(handle) }
                }
                None => Next::Buffer { after: None },
            },
            Next::Buffer { after } => match behind!(record.buffers, after) {
                Some((&offset, it)) => {
                    let buffer = &it.buffer;
                    put!(
                        out,
                        "  buffer {}: {offset:x} size {}:{}:{} {}",
                        it.id.0,
                        buffer.data_size,
                        buffer.offsets_size,
                        buffer.extra_buffers_size,
                        if it.transaction.is_some() { "active" } else { "delivered" }
                    );
                    Next::Buffer { after: Some(offset) }
                }
                None => Next::Work { after: 0 },
            },
            Next::Work { after } => match record.todo.after(after).next() {
                Some((after, work)) => {
                    view.work(out, Some(record), "  ", "  pending transaction", &work);
                    Next::Work { after }
                }
                None => {
                    if !record.delivered_death.is_empty() {
                        put!(out, "  has delivered dead binder");
                    }
                    if !record.delivered_freeze.is_empty() {
                        put!(out, "  has delivered freeze binder");
                    }
                    return None;
                }
            },
        })
    }
}

/// The line of a node, up to the pids of its holders (`print_binder_node_nilocked`).
pub(super) fn node_head(out: &mut String, id: u64, node: &Node) {
    let _ = write!(
        out,
        "  node {id}: u{:016x} c{:016x} hs {} hw {} ls {} lw {} is {} iw {} tr {}",
        node.ptr,
        node.cookie,
        u8::from(node.has_strong_ref),
        u8::from(node.has_weak_ref),
        node.local_strong_refs,
        node.local_weak_refs,
        node.internal_strong_refs,
        node.refs.len(),
        // The driver holds one temporary reference while it prints.
        node.tmp_refs + 1
    );
    if !node.refs.is_empty() {
        let _ = write!(out, " proc");
    }
}

impl View<'_> {
    /// Writes the next holder of a node, latest first, and returns its reference; after the last,
    /// ends the line.
    pub fn holder(&self, out: &mut String, node: NodeId, before: u64) -> Option<u64> {
        let holder = self.graph.nodes.get(&node).and_then(|node| node.holder(before));
        let Some((reference, holder)) = holder else {
            put!(out, "");
            return None;
        };
        let pid = self.graph.processes.get(&holder).map_or(0, |it| it.process.pid);
        let _ = write!(out, " {pid}");
        Some(reference)
    }

    fn transaction(
        &self,
        out: &mut String,
        owner: Option<&ProcessInner>,
        prefix: &str,
        id: TransactionId,
    ) {
        let Some(it) = self.graph.transactions.get(&id) else { return };
        let target = it.to_process.and_then(|id| self.graph.processes.get(&id));
        let thread = it.to_thread.and_then(|id| self.graph.threads.get(&id));
        let _ = write!(
            out,
            "{prefix} {0}: {0:016x} from {1}:{2} to {3}:{4} code {5:x} flags {6:x} pri {7} a{8} r{9} elapsed {10}ms",
            id.0,
            it.from_pid,
            it.from_tid,
            target.map_or(0, |it| it.process.pid),
            thread.map_or(0, |it| it.tid),
            it.code,
            it.flags,
            it.priority,
            u8::from(it.is_oneway()),
            u8::from(it.is_reply),
            self.now.saturating_sub(it.start).as_millis()
        );
        let own = owner.zip(target).is_some_and(|(a, b)| a.process.id == b.process.id);
        let buffer = target.zip(it.buffer).and_then(|(target, at)| target.buffers.get(&at));
        match buffer {
            _ if !own => put!(out, ""),
            None => put!(out, " buffer free"),
            Some(record) => {
                if let Some(node) = record.target_node {
                    let _ = write!(out, " node {}", node.0);
                }
                let buffer = &record.buffer;
                put!(
                    out,
                    " size {}:{} offset {:x}",
                    buffer.data_size,
                    buffer.offsets_size,
                    buffer.offset
                );
            }
        }
    }

    fn work(
        &self,
        out: &mut String,
        owner: Option<&ProcessInner>,
        prefix: &str,
        transaction: &str,
        work: &Work,
    ) {
        match work {
            Work::Transaction(id) => self.transaction(out, owner, transaction, *id),
            Work::ReturnError | Work::ReplyError => put!(out, "{prefix}transaction error"),
            Work::TransactionComplete
            | Work::TransactionPending
            | Work::TransactionOnewaySpamSuspect => put!(out, "{prefix}transaction complete"),
            Work::Node(id) => {
                if let Some(node) = self.graph.nodes.get(id) {
                    put!(
                        out,
                        "{prefix}node work {}: u{:016x} c{:016x}",
                        id.0,
                        node.ptr,
                        node.cookie
                    );
                }
            }
            Work::Death(id) => {
                let what = match self.graph.deaths.get(id).map(|it| it.work) {
                    Some(DeathWork::DeadBinder) | None => "has dead binder",
                    Some(DeathWork::DeadBinderAndClear) => "has cleared dead binder",
                    Some(DeathWork::Clear) => "has cleared death notification",
                };
                put!(out, "{prefix}{what}");
            }
            Work::Freeze(id) => {
                let what = match self.graph.freezes.get(id).map(|it| it.work) {
                    Some(FreezeWork::FrozenBinder) | None => "has frozen binder",
                    Some(FreezeWork::Clear) => "has cleared freeze notification",
                };
                put!(out, "{prefix}{what}");
            }
        }
    }
}
