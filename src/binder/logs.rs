//! What the driver says about itself, in the kernel's words: the files that binderfs shows in
//! `binder_logs/`.
//!
//! The logs are those of one instance of binderfs. (The driver's tell of all, in each mount that its
//! administrator has made with `stats=global`: `binderfs_fs_context_parse_param` asks for
//! CAP_SYS_ADMIN in the first user namespace.)
//!
//! Pointers that the kernel prints hashed are ids here; line numbers of its source are 0.
//!
//! A file of more than [`LINES_AT_ONCE`] lines does not show one moment: the lock is let go of in
//! between, as the driver does between two nodes, and records that are gone by then are left out.

use super::graph::{NodeId, ProcessId, ThreadId};
use super::pieces::{LINES_AT_ONCE, handled};
use super::stats::Stats;
use super::traffic::{Created, TransactionLog};
use super::{Binder, Context, Process};
use std::fmt::Write;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

/// Writing into a `String` cannot fail.
macro_rules! put {
    ($out:expr, $($format:tt)*) => {{ let _ = writeln!($out, $($format)*); }};
}

mod teller;

use teller::{Next, Teller, View, node_head};

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

    /// `proc_show`: every open file of a process. None when the process has no device open.
    pub fn log_process(&self, pid: i32) -> Option<String> {
        let mut out = String::new();
        for context in &self.contexts() {
            context.log_processes(&mut out, Show::ProcessState, Some(pid));
        }
        (!out.is_empty()).then_some(out)
    }

    /// The processes that have a device open, by pid.
    pub fn pids(&self) -> Vec<i32> {
        self.pids_from(i32::MIN, usize::MAX)
    }

    /// The same from a pid on: as many as are asked for, if there are so many.
    pub fn pids_from(&self, least: i32, most: usize) -> Vec<i32> {
        let mut pids = Vec::new();
        for context in self.contexts() {
            let mut left = most;
            context.in_pieces(|graph, after: Option<i32>| {
                let mut last = after;
                for _ in 0..LINES_AT_ONCE {
                    let from = match last {
                        Some(pid) => Bound::Excluded((pid, ProcessId(u64::MAX))),
                        None => Bound::Included((least, ProcessId(0))),
                    };
                    let (pid, _) = *graph.by_pid.range((from, Bound::Unbounded)).next()?;
                    handled();
                    left = left.checked_sub(1)?;
                    pids.push(pid);
                    last = Some(pid);
                }
                last
            });
        }
        pids.sort_unstable();
        pids.dedup();
        pids.truncate(most);
        pids
    }

    /// Whether a process has a device open.
    pub fn has_open(&self, pid: i32) -> bool {
        self.pids_from(pid, 1) == [pid]
    }

    /// `stats_show`.
    pub fn log_stats(&self) -> String {
        let mut out = "binder stats:\n".to_owned();
        for (name, count) in self.instance.traffic.counts() {
            put!(out, "{name}: {count}");
        }
        let contexts = self.contexts();
        let mut created: Created = *self.instance.created.lock();
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
        // The allocator's lock is not taken under the graph's.
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
            if failed { &self.instance.failed_log } else { &self.instance.transaction_log };
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

/// `print_binder_proc_stats`, except for what the allocator and the counters say.
#[derive(Default)]
struct ProcessStats {
    head: String,
    records: String,
    pending: usize,
}

impl Context {
    /// None when the process is gone.
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

    /// The processes of a context, or those of one thread group, latest first.
    pub(super) fn process_ids(&self, pid: Option<i32>) -> Vec<ProcessId> {
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
            let mut teller = Teller { all: show != Show::Busy, thread: (0, 0) };
            let mut head = 0;
            self.in_pieces_of_text(out, |graph, out, next: Option<Next>| {
                let record = graph.processes.get(&id)?;
                let mut next = next.unwrap_or_else(|| {
                    let process = &record.process;
                    put!(out, "proc {}\ncontext {}", process.pid, process.context.name);
                    head = out.len();
                    Next::Thread { after: None }
                });
                for _ in 0..LINES_AT_ONCE {
                    next = teller.tell(out, &View { graph, now }, record, next)?;
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
        // The last node looked at, and, while its holders are being listed, the reference before
        // which to go on.
        self.in_pieces_of_text(out, |graph, out, at: Option<(NodeId, Option<u64>)>| {
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

/// Which records of a process to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    All,
    /// All of them, each process under a heading.
    ProcessState,
    /// Only what is under way.
    Busy,
}
