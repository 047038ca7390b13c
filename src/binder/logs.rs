//! The driver's own view of itself, in the kernel's words: what binderfs shows in `binder_logs/`.
//!
//! Pointers that the kernel prints hashed are ids here; line numbers of its source are 0.
//!
//! Whatever has more than [`LINES_AT_ONCE`] lines is not told as of one moment: the lock is let go of in
//! between, as the driver does between two nodes, and what is gone by then is left out.

use super::death::DeathWork;
use super::freeze::FreezeWork;
use super::graph::{Graph, NodeId, ProcessId, ThreadId, TransactionId, Work};
use super::node::Node;
use super::pieces::{LINES_AT_ONCE, handled};
use super::process::ProcessInner;
use super::stats::Stats;
use super::traffic::{Created, TransactionLog};
use super::{Binder, Context, Process};
use std::fmt::Write;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

/// `BINDER_LOOPER_STATE_WAITING`.
const WAITING: u32 = 0x10;

/// Writing into a `String` cannot fail.
macro_rules! put {
    ($out:expr, $($format:tt)*) => {{ let _ = writeln!($out, $($format)*); }};
}

impl Binder {
    /// `state_show`.
    pub fn log_state(&self) -> String {
        let mut out = "binder state:\n".to_owned();
        let contexts = self.contexts();
        let mut dead = String::new();
        contexts.iter().for_each(|context| context.log_dead_nodes(&mut dead));
        if !dead.is_empty() {
            out += "dead nodes:\n";
            out += &dead;
        }
        contexts.iter().for_each(|context| context.log_processes(&mut out, Show::All, None));
        out
    }

    /// `transactions_show`.
    pub fn log_transactions(&self) -> String {
        let mut out = "binder transactions:\n".to_owned();
        let contexts = self.contexts();
        contexts.iter().for_each(|context| context.log_processes(&mut out, Show::Busy, None));
        out
    }

    /// `proc_show`: every open file of a process. None when it has none.
    pub fn log_process(&self, pid: i32) -> Option<String> {
        let mut out = String::new();
        for context in &self.contexts() {
            context.log_processes(&mut out, Show::ProcessState, Some(pid));
        }
        (!out.is_empty()).then_some(out)
    }

    /// The processes that have a device open, by pid.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for context in self.contexts() {
            context.in_pieces(|graph, after: Option<i32>| {
                let mut last = after;
                for _ in 0..LINES_AT_ONCE {
                    let least =
                        last.map_or((i32::MIN, ProcessId(0)), |pid| (pid, ProcessId(u64::MAX)));
                    let later = (Bound::Excluded(least), Bound::Unbounded);
                    let (pid, _) = *graph.by_pid.range(later).next()?;
                    handled();
                    pids.push(pid);
                    last = Some(pid);
                }
                last
            });
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// `stats_show`.
    pub fn log_stats(&self) -> String {
        let mut out = "binder stats:\n".to_owned();
        for (name, count) in self.shared.traffic.counts() {
            put!(out, "{name}: {count}");
        }
        let contexts = self.contexts();
        let mut created: Created = *self.shared.created.lock();
        let mut completes = 0;
        let mut processes = Vec::new();
        for context in &contexts {
            created = created + context.with_graph(|graph| graph.created);
            context.in_pieces(|graph, after: Option<ThreadId>| {
                let from = after.map_or(ThreadId(0), |id| ThreadId(id.0 + 1));
                let mut last = None;
                for (number, (id, it)) in
                    graph.threads.range(from..).take(LINES_AT_ONCE).enumerate()
                {
                    completes += it.todo.completes();
                    last = Some(*id).filter(|_| number + 1 == LINES_AT_ONCE);
                }
                last
            });
            for id in context.process_ids(None) {
                processes.extend(context.process_stats(id));
            }
        }
        let active: Stats = contexts.iter().map(|context| context.stats()).sum();
        for (name, active, total) in [
            ("proc", active.processes, created.processes),
            ("thread", active.threads, created.threads),
            ("node", active.nodes, created.nodes),
            ("ref", active.references, created.references),
            ("death", active.deaths, created.deaths),
            ("transaction", active.transactions, created.transactions),
            ("transaction_complete", completes, created.transaction_completes),
            ("freeze", active.freezes, created.freezes),
        ] {
            if total > 0 {
                put!(out, "{name}: active {active} total {total}");
            }
        }
        processes.sort_by_key(|(process, ..)| std::cmp::Reverse(process.id));
        // The allocator's own lock is not taken under that of the graph.
        for (process, told) in processes {
            out += &told.head;
            put!(out, "  free async space {}", process.alloc.free_async_space());
            out += &told.records;
            put!(out, "  buffers: {}", process.alloc.allocated_count());
            let pages = process.alloc.pages();
            put!(out, "  pages: {}:{}:{}", pages.active, pages.lru, pages.free);
            put!(out, "  pages high watermark: {}", pages.high);
            put!(out, "  pending transactions: {}", told.pending);
            for (name, count) in process.traffic.counts() {
                put!(out, "  {name}: {count}");
            }
        }
        out
    }

    /// `transaction_log_show`: the last transactions, or the last that failed.
    pub fn log_of_transactions(&self, failed: bool) -> String {
        let log: &TransactionLog =
            if failed { &self.shared.failed_log } else { &self.shared.transaction_log };
        let mut out = String::new();
        log.for_each(|it| {
            let kind = match (it.is_reply, it.is_oneway) {
                (true, _) => "reply",
                (false, true) => "async",
                (false, false) => "call ",
            };
            let (error, param) =
                it.failure.map_or((0, 0), |it| (it.error.number() as i32, it.param));
            put!(
                out,
                "{}: {kind} from {}:{} to {}:{} context {} node {} handle {} size {}:{} ret {error}/{param} l=0",
                it.id,
                it.from.0,
                it.from.1,
                it.to.0,
                it.to.1,
                it.context,
                it.node,
                it.handle as i32,
                it.data_size,
                it.offsets_size,
            );
        });
        out
    }
}

/// `print_binder_proc_stats`, but for what the allocator and the counters say.
#[derive(Default)]
struct ProcessStats {
    head: String,
    records: String,
    pending: usize,
}

impl Context {
    /// None when it is gone.
    fn process_stats(&self, id: ProcessId) -> Option<(Arc<Process>, ProcessStats)> {
        let mut stats = ProcessStats::default();
        let ProcessStats { head, records, pending } = &mut stats;
        let process = self.with_graph(|graph| {
            let record = graph.processes.get(&id)?;
            put!(head, "proc {}\ncontext {}", record.process.pid, record.process.context.name);
            put!(head, "  threads: {}", record.threads.len());
            put!(
                head,
                "  requested threads: {}+{}/{}",
                record.requested_threads,
                record.requested_threads_started,
                record.max_threads
            );
            put!(head, "  ready threads {}", record.waiting_threads.len());
            put!(records, "  nodes: {}", record.nodes.len());
            *pending = record.todo.transactions();
            Some(record.process.clone())
        })?;
        let (mut refs, mut strong, mut weak) = (0, 0, 0);
        self.in_pieces(|graph, after: Option<u32>| {
            let least = after.map_or(Bound::Unbounded, Bound::Excluded);
            let later = graph.processes.get(&id)?.refs.range((least, Bound::Unbounded));
            let mut last = None;
            for (number, (handle, it)) in later.take(LINES_AT_ONCE).enumerate() {
                handled();
                (refs, strong, weak) = (refs + 1, strong + it.strong, weak + it.weak);
                last = Some(*handle).filter(|_| number + 1 == LINES_AT_ONCE);
            }
            last
        });
        put!(records, "  refs: {refs} s {strong} w {weak}");
        Some((process, stats))
    }

    /// The processes, or those of a thread group, the latest first.
    fn process_ids(&self, pid: Option<i32>) -> Vec<ProcessId> {
        let mut ids = Vec::new();
        self.in_pieces(|graph, before: Option<ProcessId>| {
            let before = before.unwrap_or(ProcessId(u64::MAX));
            let known = ids.len();
            match pid {
                Some(pid) => {
                    let earlier = graph.by_pid.range((pid, ProcessId(0))..(pid, before)).rev();
                    ids.extend(
                        earlier.take(LINES_AT_ONCE).map(|(_, id)| *id).inspect(|_| handled()),
                    );
                }
                None => {
                    let earlier = graph.processes.range(..before).rev();
                    ids.extend(earlier.take(LINES_AT_ONCE).map(|(id, _)| *id));
                }
            }
            ids.last().copied().filter(|_| ids.len() - known == LINES_AT_ONCE)
        });
        ids
    }

    fn log_processes(self: &Arc<Self>, out: &mut String, show: Show, pid: Option<i32>) {
        let now = self.shared.timers.now();
        for id in self.process_ids(pid) {
            let start = out.len();
            if show == Show::ProcessState {
                put!(out, "binder proc state:");
            }
            let named = out.len();
            let mut teller = Teller { out, all: show != Show::Busy, thread: (0, 0) };
            let mut head = 0;
            self.in_pieces(|graph, next: Option<Next>| {
                let record = graph.processes.get(&id)?;
                let mut next = next.unwrap_or_else(|| {
                    let process = &record.process;
                    put!(teller.out, "proc {}\ncontext {}", process.pid, process.context.name);
                    head = teller.out.len();
                    Next::Thread { after: None }
                });
                for _ in 0..LINES_AT_ONCE {
                    next = teller.tell(&View { graph, now }, record, next)?;
                }
                Some(next)
            });
            let nothing = out.len() == named || (show == Show::Busy && out.len() == head);
            if nothing {
                out.truncate(start);
            }
        }
    }

    fn log_dead_nodes(&self, out: &mut String) {
        // The last node, and before which of its references its holders are still to be told.
        self.in_pieces(|graph, at: Option<(NodeId, Option<u64>)>| {
            let (mut last, mut before) = at.unwrap_or((NodeId(0), None));
            for _ in 0..LINES_AT_ONCE {
                handled();
                if let Some(reference) = before {
                    before = (View { graph, now: Duration::ZERO }).holder(out, last, reference);
                    continue;
                }
                let (id, node) = graph.nodes.range(NodeId(last.0 + 1)..).next()?;
                last = *id;
                if node.process.is_none() {
                    node_head(out, id.0, node);
                    before = Some(u64::MAX);
                }
            }
            Some((last, before))
        });
    }
}

/// What of a process is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    All,
    /// All, each under a heading.
    ProcessState,
    /// What is under way.
    Busy,
}

/// A graph at a moment.
struct View<'a> {
    graph: &'a Graph,
    now: Duration,
}

/// What of a process is to be told next.
#[derive(Debug, Clone, Copy)]
enum Next {
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
struct Teller<'a> {
    out: &'a mut String,
    /// Not only what is under way.
    all: bool,
    /// Where the last thread's first line begins and ends.
    thread: (usize, usize),
}

/// What is behind a key in a tree.
macro_rules! behind {
    ($tree:expr, $after:expr) => {
        $tree.range(($after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)).next()
    };
}

impl Teller<'_> {
    /// Tells what is next, and what comes after that. None: that was all.
    fn tell(&mut self, view: &View<'_>, record: &ProcessInner, next: Next) -> Option<Next> {
        handled();
        let out = &mut *self.out;
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
                // Where the node is gone, its line still ends.
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

/// The line of a node, up to its holders (`print_binder_node_nilocked`).
fn node_head(out: &mut String, id: u64, node: &Node) {
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
        // The driver holds one while it prints.
        node.tmp_refs + 1
    );
    if !node.refs.is_empty() {
        let _ = write!(out, " proc");
    }
}

impl View<'_> {
    /// Tells the next holder of a node, the latest first: the reference that was told, or the end of
    /// the line.
    fn holder(&self, out: &mut String, node: NodeId, before: u64) -> Option<u64> {
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
