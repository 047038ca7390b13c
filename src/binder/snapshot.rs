//! The graph of every context as a [`Snapshot`](crate::snapshot::Snapshot) shows it.
//!
//! As with the logs, a long table is gone through in pieces ([`super::pieces`]).

use super::graph::{Graph, NodeId, ProcessId, ThreadId, TransactionId, Work, WorkList};
use super::node::Node;
use super::pieces::{LINES_AT_ONCE, behind, handled};
use super::process::ProcessInner;
use super::thread::Thread;
use super::{Binder, Context, Process};
use crate::snapshot::{self, Call, Pages, Space, Waits};
use std::sync::Arc;
use std::time::Duration;

impl Binder {
    /// The contexts of all instances; with every node, reference and buffer if `objects`.
    pub fn snapshot(&self, objects: bool) -> Vec<snapshot::Context> {
        let contexts = self.shared.contexts();
        contexts.iter().map(|context| context.snapshot(objects)).collect()
    }

    /// The time by the clock that the ages of transactions are told by.
    pub fn now(&self) -> Duration {
        self.shared.timers.now()
    }
}

/// Which record of a process comes next.
#[derive(Debug, Clone, Copy)]
enum Next {
    Thread { after: Option<i32> },
    Stack { tid: i32, call: Option<TransactionId> },
    ThreadWork { tid: i32, after: u64 },
    Work { after: u64 },
    Buffer { after: Option<usize> },
    Node { after: Option<u64> },
    Waiting { ptr: u64, after: u64 },
    Reference { after: Option<u32> },
}

impl Context {
    pub(super) fn snapshot(self: &Arc<Self>, objects: bool) -> snapshot::Context {
        let mut told = snapshot::Context {
            id: self.number,
            name: self.name.to_string(),
            instance: self.instance.number,
            manager: self.with_graph(|graph| graph.manager.map(|node| node.0)),
            ..snapshot::Context::default()
        };
        for id in self.process_ids(None) {
            told.processes.extend(self.snapshot_of_process(id, objects));
        }
        let now = self.shared.timers.now();
        self.in_pieces(|graph, after: Option<TransactionId>| {
            let from = after.map_or(TransactionId(0), |id| TransactionId(id.0 + 1));
            let known = told.transactions.len();
            for (id, _) in graph.transactions.range(from..).take(LINES_AT_ONCE) {
                told.transactions.extend(transaction(graph, now, *id));
            }
            let last = told.transactions.last().map(|it| TransactionId(it.id));
            last.filter(|_| told.transactions.len() - known == LINES_AT_ONCE)
        });
        if objects {
            self.in_pieces(|graph, after: Option<NodeId>| {
                let from = after.map_or(NodeId(0), |id| NodeId(id.0 + 1));
                let mut last = None;
                let later = graph.nodes.range(from..).take(LINES_AT_ONCE);
                for (number, (id, record)) in later.enumerate() {
                    if record.process.is_none() {
                        told.dead_nodes.push(node(*id, record));
                    }
                    last = Some(*id).filter(|_| number + 1 == LINES_AT_ONCE);
                }
                last
            });
        }
        told
    }

    /// None when the process is gone.
    fn snapshot_of_process(&self, id: ProcessId, objects: bool) -> Option<snapshot::Process> {
        let mut told = snapshot::Process::default();
        let mut process: Option<Arc<Process>> = None;
        self.in_pieces(|graph, next: Option<Next>| {
            let record = graph.processes.get(&id)?;
            let mut next = next.unwrap_or_else(|| {
                process = Some(record.process.clone());
                head(&mut told, record);
                Next::Thread { after: None }
            });
            for _ in 0..LINES_AT_ONCE {
                next = tell(&mut told, graph, record, next, objects)?;
            }
            Some(next)
        });
        let process = process?;
        // The allocator's lock is not taken under the graph's.
        let alloc = &process.alloc;
        let pages = alloc.pages();
        told.space.size = alloc.buffer_size() as u64;
        told.space.free_async = alloc.free_async_space() as u64;
        let counts = process.traffic.counts();
        told.traffic = counts.map(|(name, count)| (name.to_owned(), count)).collect();
        told.pages =
            Pages { active: pages.active as u64, lru: pages.lru as u64, free: pages.free as u64 };
        Some(told)
    }
}

fn head(told: &mut snapshot::Process, record: &ProcessInner) {
    let process = &record.process;
    *told = snapshot::Process {
        id: process.id.0,
        pid: process.pid,
        uid: process.user.uid(),
        max_threads: record.max_threads,
        requested_threads: record.requested_threads,
        started_threads: record.requested_threads_started,
        is_frozen: record.is_frozen,
        node_count: record.nodes.len() as u64,
        reference_count: record.refs.len() as u64,
        space: Space { buffers: record.buffers.len() as u64, ..Space::default() },
        ..snapshot::Process::default()
    };
}

/// Adds the record that is next, and returns which one follows; none at the end.
fn tell(
    told: &mut snapshot::Process,
    graph: &Graph,
    record: &ProcessInner,
    next: Next,
    objects: bool,
) -> Option<Next> {
    handled();
    Some(match next {
        Next::Thread { after } => match behind!(record.threads, after) {
            Some((&tid, id)) => match graph.threads.get(id) {
                Some(it) => {
                    told.threads.push(thread(graph, *id, it));
                    Next::Stack { tid, call: it.transaction_stack }
                }
                None => Next::Thread { after: Some(tid) },
            },
            None => Next::Work { after: 0 },
        },
        Next::Stack { tid, call } => {
            let id = record.threads.get(&tid).copied();
            let top = call.and_then(|call| Some((call, graph.transactions.get(&call)?)));
            match (top, told.threads.last_mut()) {
                (Some((call, it)), Some(thread)) => {
                    let is_outgoing = it.from.is_some() && it.from == id;
                    thread.stack.push(Call { transaction: call.0, is_outgoing });
                    let is_incoming = it.to_thread.is_some() && it.to_thread == id;
                    let below = if is_outgoing { it.from_parent } else { it.to_parent };
                    Next::Stack { tid, call: below.filter(|_| is_outgoing || is_incoming) }
                }
                _ => Next::ThreadWork { tid, after: 0 },
            }
        }
        Next::ThreadWork { tid, after } => {
            let thread = record.threads.get(&tid).and_then(|id| graph.threads.get(id));
            match (thread.and_then(|it| work_after(&it.todo, after)), told.threads.last_mut()) {
                (Some((after, work)), Some(thread)) => {
                    thread.todo.push(work);
                    Next::ThreadWork { tid, after }
                }
                _ => Next::Thread { after: Some(tid) },
            }
        }
        Next::Work { after } => match work_after(&record.todo, after) {
            Some((after, work)) => {
                told.todo.push(work);
                Next::Work { after }
            }
            None => Next::Buffer { after: None },
        },
        Next::Buffer { after } => match behind!(record.buffers, after) {
            Some((&offset, it)) => {
                let size = it.buffer.size() as u64;
                told.space.used += size;
                if objects {
                    told.buffers.push(snapshot::Buffer {
                        offset: offset as u64,
                        size,
                        transaction: it.id.0,
                        is_active: it.transaction.is_some(),
                        is_async: it.buffer.is_async,
                    });
                }
                Next::Buffer { after: Some(offset) }
            }
            None if objects => Next::Node { after: None },
            None => return None,
        },
        Next::Node { after } => match behind!(record.nodes, after) {
            Some((&ptr, id)) => match graph.nodes.get(id) {
                Some(it) => {
                    told.nodes.push(node(*id, it));
                    Next::Waiting { ptr, after: 0 }
                }
                None => Next::Node { after: Some(ptr) },
            },
            None => Next::Reference { after: None },
        },
        Next::Waiting { ptr, after } => {
            let node = record.nodes.get(&ptr).and_then(|id| graph.nodes.get(id));
            let waiting = node.and_then(|node| node.async_todo.after(after).next());
            match (waiting, told.nodes.last_mut()) {
                (Some((after, id)), Some(node)) => {
                    node.async_todo.push(id.0);
                    Next::Waiting { ptr, after }
                }
                _ => Next::Node { after: Some(ptr) },
            }
        }
        Next::Reference { after } => match behind!(record.refs, after) {
            Some((&handle, it)) => {
                told.references.push(snapshot::Reference {
                    handle,
                    node: it.node.0,
                    strong: it.strong,
                    weak: it.weak,
                    has_death: it.death.is_some(),
                    has_freeze: it.freeze.is_some(),
                });
                Next::Reference { after: Some(handle) }
            }
            None => return None,
        },
    })
}

fn thread(graph: &Graph, id: ThreadId, it: &Thread) -> snapshot::Thread {
    let waits = match &it.parked {
        None => Waits::Not,
        Some(_) if graph.waits_for_reply(id, it).is_some() => Waits::Reply,
        Some(_) if it.turn.is_some() => Waits::ProcessWork,
        Some(_) => Waits::OwnWork,
    };
    snapshot::Thread {
        id: id.0,
        tid: it.tid,
        is_looper: it.looper.is_looper(),
        waits,
        ..snapshot::Thread::default()
    }
}

impl Graph {
    /// The call that a thread has sent and whose answer it can do nothing without.
    pub fn waits_for_reply(&self, id: ThreadId, thread: &Thread) -> Option<TransactionId> {
        let top = thread.transaction_stack?;
        self.transactions.get(&top).filter(|it| it.from == Some(id)).map(|_| top)
    }
}

fn work_after(list: &WorkList, after: u64) -> Option<(u64, snapshot::Work)> {
    let (sequence, work) = list.after(after).next()?;
    let told = match work {
        Work::Transaction(id) => snapshot::Work::Transaction { id: id.0 },
        Work::ReturnError | Work::ReplyError => snapshot::Work::Error,
        Work::TransactionComplete
        | Work::TransactionPending
        | Work::TransactionOnewaySpamSuspect => snapshot::Work::Complete,
        Work::Node(id) => snapshot::Work::Node { id: id.0 },
        Work::Death(_) => snapshot::Work::Death,
        Work::Freeze(_) => snapshot::Work::Freeze,
    };
    Some((sequence, told))
}

fn node(id: NodeId, it: &Node) -> snapshot::Node {
    snapshot::Node {
        id: id.0,
        ptr: it.ptr,
        cookie: it.cookie,
        holders: it.refs.len() as u64,
        strong: it.internal_strong_refs,
        has_async_transaction: it.has_async_transaction,
        async_todo: Vec::new(),
    }
}

fn transaction(graph: &Graph, now: Duration, id: TransactionId) -> Option<snapshot::Transaction> {
    let it = graph.transactions.get(&id)?;
    let receiver = it.to_process.and_then(|process| graph.processes.get(&process));
    let buffer = receiver.zip(it.buffer).and_then(|(record, at)| record.buffers.get(&at));
    Some(snapshot::Transaction {
        id: id.0,
        is_oneway: it.is_oneway(),
        is_reply: it.is_reply,
        from_pid: it.from_pid,
        from_tid: it.from_tid,
        from_thread: it.from.map(|thread| thread.0),
        to_process: it.to_process.map(|process| process.0),
        to_thread: it.to_thread.map(|thread| thread.0),
        node: it.target_node.map(|node| node.0),
        code: it.code,
        flags: it.flags,
        size: buffer.map_or(0, |record| record.buffer.data_size as u64),
        age_ms: now.saturating_sub(it.start).as_millis() as u64,
    })
}
