//! The driver's own view of itself, in the kernel's words: what binderfs shows in `binder_logs/`.
//!
//! Pointers that the kernel prints hashed are ids here; line numbers of its source are 0.

use super::death::DeathWork;
use super::freeze::FreezeWork;
use super::graph::{Graph, ThreadId, TransactionId, Work, WorkList};
use super::node::Node;
use super::process::ProcessRecord;
use super::stats::Stats;
use super::traffic::{Created, TransactionLog};
use super::{Binder, Context};
use std::fmt::Write;
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
        let contexts = self.contexts.lock().clone();
        let mut dead = String::new();
        for context in &contexts {
            context.with_graph(|graph| {
                let mut nodes: Vec<_> =
                    graph.nodes.iter().filter(|(_, node)| node.process.is_none()).collect();
                nodes.sort_by_key(|(id, _)| **id);
                let view = View { graph, now: self.shared.timers.now() };
                nodes.iter().for_each(|(id, node)| view.node(&mut dead, id.0, node));
            });
        }
        if !dead.is_empty() {
            out += "dead nodes:\n";
            out += &dead;
        }
        contexts.iter().for_each(|context| context.log_processes(&mut out, Show::All, |_| true));
        out
    }

    /// `transactions_show`.
    pub fn log_transactions(&self) -> String {
        let mut out = "binder transactions:\n".to_owned();
        let contexts = self.contexts.lock().clone();
        contexts.iter().for_each(|context| context.log_processes(&mut out, Show::Busy, |_| true));
        out
    }

    /// `proc_show`: every open file of a process. None when it has none.
    pub fn log_process(&self, pid: i32) -> Option<String> {
        let mut out = String::new();
        let contexts = self.contexts.lock().clone();
        for context in &contexts {
            context.log_processes(&mut out, Show::ProcessState, |it| it.process.pid == pid);
        }
        (!out.is_empty()).then_some(out)
    }

    /// The processes that have a device open, by pid.
    pub fn pids(&self) -> Vec<i32> {
        let contexts = self.contexts.lock().clone();
        let mut pids: Vec<i32> = contexts
            .iter()
            .flat_map(|context| {
                context.with_graph(|graph| {
                    graph.processes.values().map(|it| it.process.pid).collect::<Vec<_>>()
                })
            })
            .collect();
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
        let contexts = self.contexts.lock().clone();
        let mut created = Created::default();
        let mut completes = 0;
        let mut processes = Vec::new();
        for context in &contexts {
            context.with_graph(|graph| {
                created = created + graph.created;
                completes += graph.threads.values().map(|it| completes_in(&it.todo)).sum::<usize>();
                processes.extend(graph.processes.values().map(|record| {
                    let mut head = String::new();
                    let tail = process_stats(record, &mut head);
                    (record.process.clone(), head, tail)
                }));
            });
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
        for (process, head, tail) in processes {
            out += &head;
            put!(out, "  free async space {}", process.alloc.free_async_space());
            out += &tail.records;
            put!(out, "  buffers: {}", process.alloc.allocated_count());
            let pages = process.alloc.pages();
            put!(out, "  pages: {}:{}:{}", pages.active, pages.lru, pages.free);
            put!(out, "  pages high watermark: {}", pages.high);
            put!(out, "  pending transactions: {}", tail.pending);
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

struct Tail {
    records: String,
    pending: usize,
}

/// `print_binder_proc_stats`, but for what the allocator and the counters say.
fn process_stats(record: &ProcessRecord, head: &mut String) -> Tail {
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
    let mut records = String::new();
    let strong: u64 = record.refs.values().map(|it| it.strong).sum();
    let weak: u64 = record.refs.values().map(|it| it.weak).sum();
    put!(records, "  nodes: {}", record.nodes.len());
    put!(records, "  refs: {} s {strong} w {weak}", record.refs.len());
    let is_transaction = |work: &&Work| matches!(work, Work::Transaction(_));
    Tail { records, pending: record.todo.values().filter(is_transaction).count() }
}

fn completes_in(todo: &WorkList) -> usize {
    let is_complete = |work: &&Work| {
        matches!(
            work,
            Work::TransactionComplete
                | Work::TransactionPending
                | Work::TransactionOnewaySpamSuspect
        )
    };
    todo.values().filter(is_complete).count()
}

impl Context {
    fn log_processes(
        self: &Arc<Self>,
        out: &mut String,
        show: Show,
        wanted: impl Fn(&ProcessRecord) -> bool,
    ) {
        self.with_graph(|graph| {
            let view = View { graph, now: self.shared.timers.now() };
            let mut records: Vec<_> =
                graph.processes.iter().filter(|(_, record)| wanted(record)).collect();
            records.sort_by_key(|(id, _)| std::cmp::Reverse(**id));
            for (_, record) in records {
                if show == Show::ProcessState {
                    put!(out, "binder proc state:");
                }
                view.process(out, record, show != Show::Busy);
            }
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

impl View<'_> {
    /// `print_binder_proc`. Unless `all` is wanted, only what is under way.
    fn process(&self, out: &mut String, record: &ProcessRecord, all: bool) {
        let start = out.len();
        put!(out, "proc {}\ncontext {}", record.process.pid, record.process.context.name);
        let head = out.len();
        for thread in record.threads.values() {
            self.thread(out, *thread, all);
        }
        for id in record.nodes.values() {
            if let Some(node) = self.graph.nodes.get(id)
                && (all || node.has_async_transaction)
            {
                self.node(out, id.0, node);
            }
        }
        if all {
            for (handle, it) in &record.refs {
                let node = self.graph.nodes.get(&it.node);
                let dead = if node.is_some_and(|it| it.process.is_some()) { "" } else { "dead " };
                let death = it.death.map_or(0, |death| death.0);
                put!(
                    out,
                    "  ref {}: desc {handle} {dead}node {} s {} w {} d {death:016x}",
                    it.id,
                    it.node.0,
                    it.strong,
                    it.weak
                );
            }
        }
        let mut buffers: Vec<_> = record.buffers.values().collect();
        buffers.sort_by_key(|it| it.buffer.offset);
        for it in buffers {
            let buffer = &it.buffer;
            put!(
                out,
                "  buffer {}: {:x} size {}:{}:{} {}",
                it.id.0,
                buffer.offset,
                buffer.data_size,
                buffer.offsets_size,
                buffer.extra_buffers_size,
                if it.transaction.is_some() { "active" } else { "delivered" }
            );
        }
        for work in record.todo.values() {
            self.work(out, Some(record), "  ", "  pending transaction", work);
        }
        if !record.delivered_death.is_empty() {
            put!(out, "  has delivered dead binder");
        }
        if !record.delivered_freeze.is_empty() {
            put!(out, "  has delivered freeze binder");
        }
        if !all && out.len() == head {
            out.truncate(start);
        }
    }

    fn thread(&self, out: &mut String, id: ThreadId, all: bool) {
        let Some(thread) = self.graph.threads.get(&id) else { return };
        let owner = self.graph.processes.get(&thread.process);
        let start = out.len();
        let waiting = if thread.parked.is_some() { WAITING } else { 0 };
        put!(
            out,
            "  thread {}: l {:02x} need_return {} tr 0",
            thread.tid,
            thread.looper.bits() | waiting,
            u8::from(thread.looper_need_return)
        );
        let head = out.len();
        let mut next = thread.transaction_stack;
        while let Some((top, it)) =
            next.and_then(|top| Some((top, self.graph.transactions.get(&top)?)))
        {
            let (prefix, below) = if it.from == Some(id) {
                ("    outgoing transaction", it.from_parent)
            } else if it.to_thread == Some(id) {
                ("    incoming transaction", it.to_parent)
            } else {
                ("    bad transaction", None)
            };
            self.transaction(out, owner, prefix, top);
            next = below;
        }
        for work in thread.todo.values() {
            self.work(out, owner, "    ", "    pending transaction", work);
        }
        if !all && out.len() == head {
            out.truncate(start);
        }
    }

    fn transaction(
        &self,
        out: &mut String,
        owner: Option<&ProcessRecord>,
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
        owner: Option<&ProcessRecord>,
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

    fn node(&self, out: &mut String, id: u64, node: &Node) {
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
            // The latest first.
            for holder in node.refs.values().rev() {
                let pid = self.graph.processes.get(holder).map_or(0, |it| it.process.pid);
                let _ = write!(out, " {pid}");
            }
        }
        put!(out, "");
        let owner = node.process.and_then(|id| self.graph.processes.get(&id));
        for waiting in node.async_todo.iter().filter(|_| owner.is_some()) {
            self.transaction(out, owner, "    pending async transaction", *waiting);
        }
    }
}
