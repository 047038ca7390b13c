//! How much a context holds: what a test counts after a storm, and what a user may ask for.

use super::Context;
use super::graph::ProcessId;
use super::pieces::AT_ONCE;
use derive_more::{Add, Sum};

/// Records that exist. All are 0 when every client is gone.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Add, Sum)]
pub struct Stats {
    pub processes: usize,
    pub threads: usize,
    pub nodes: usize,
    pub references: usize,
    pub transactions: usize,
    /// Buffers that clients hold or that are on their way to them.
    pub buffers: usize,
    pub deaths: usize,
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
