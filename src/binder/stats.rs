//! How many records a context holds, for tests and for FAKEBINDER_STATS.

use super::Context;
use super::graph::ProcessId;
use super::pieces::AT_ONCE;
use derive_more::{Add, Sum};

/// Records that exist. All are 0 when every client is gone.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Add, Sum)]
pub struct Stats {
    /// Open files.
    pub processes: usize,
    /// Threads that have called since they last exited.
    pub threads: usize,
    /// Nodes, also those whose process is gone while somebody holds a reference.
    pub nodes: usize,
    /// References, over all processes.
    pub references: usize,
    /// Transactions that are queued, or not answered yet.
    pub transactions: usize,
    /// Buffers that clients hold or that are on their way to them.
    pub buffers: usize,
    /// Death links.
    pub deaths: usize,
    /// Freeze links.
    pub freezes: usize,
}

impl Stats {
    pub(super) fn of(context: &Context) -> Stats {
        let mut stats = context.with_graph(|graph| Stats {
            processes: graph.processes.len(),
            threads: graph.threads.len(),
            nodes: graph.nodes.len(),
            transactions: graph.transactions.len(),
            deaths: graph.deaths.len(),
            freezes: graph.freezes.len(),
            ..Stats::default()
        });
        context.in_pieces(|graph, after: Option<ProcessId>| {
            let from = after.map_or(ProcessId(0), |id| ProcessId(id.0 + 1));
            let mut last = None;
            for (number, (id, record)) in graph.processes.range(from..).take(AT_ONCE).enumerate() {
                stats.references += record.refs.len();
                stats.buffers += record.buffers.len();
                last = Some(*id).filter(|_| number + 1 == AT_ONCE);
            }
            last
        });
        stats
    }
}
