//! Threads that wait for one another for ever: found soon after it has come to that, and logged
//! once.
//!
//! A deadlock is complete when a call finds no free thread in its receiver. That happens to busy
//! servers all the time, so then only a timer is set, if none is ([`Shared::no_free_thread`]). When
//! it fires, a carrier looks at the calls; only if one has been waiting for long does it take a
//! snapshot and look for threads that only each other could help.
//!
//! A snapshot does not show one moment, so two are taken: a thread that waits for the reply to the
//! same call in both has been waiting all the while in between, and so have all of them.

use super::graph::TransactionId;
use super::pieces::LINES_AT_ONCE;
use super::{Context, Shared};
use crate::client_log::{Kind, client_log};
use crate::lock_order::rank;
use crate::snapshot::deadlock::Index;
use crate::sync::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a call waits before it is looked at.
const LONG: Duration = Duration::from_secs(1);

/// Threads that a line of the log names at most.
const NAMED: usize = 6;

/// What is known of deadlocks.
#[derive(Default)]
pub(super) struct Deadlocks {
    /// The timer is set, or somebody looks.
    expected: AtomicBool,
    /// The calls of deadlocks that have been logged.
    told: Mutex<BTreeSet<u64>, rank::Deadlocks>,
}

impl Shared {
    /// A call that somebody waits for has found no free thread. To be called under no lock.
    pub(super) fn no_free_thread(self: &Arc<Self>) {
        if !self.deadlocks.expected.swap(true, Ordering::SeqCst) {
            self.look_later();
        }
    }

    fn look_later(self: &Arc<Self>) {
        let shared = Arc::downgrade(self);
        let look = move || {
            if let Some(shared) = shared.upgrade() {
                let carriers = shared.carriers.clone();
                carriers.carry(Box::new(move || shared.look_for_deadlocks()));
            }
        };
        self.timers.look_later(Box::new(look));
    }

    fn look_for_deadlocks(self: &Arc<Self>) {
        self.deadlocks.expected.store(false, Ordering::SeqCst);
        let mut waits = false;
        let mut found = BTreeSet::new();
        for context in self.contexts() {
            match context.longest_call() {
                Some(age) if age >= LONG => found.append(&mut context.log_deadlocks()),
                Some(_) => waits = true,
                None => {}
            }
        }
        // Those that have ended are forgotten.
        *self.deadlocks.told.lock() = found;
        if waits {
            self.no_free_thread();
        }
    }
}

impl Context {
    /// How long the oldest call has been waiting for its reply.
    fn longest_call(&self) -> Option<Duration> {
        let now = self.shared.timers.now();
        let mut longest = None;
        self.in_pieces(|graph, after: Option<TransactionId>| {
            let from = after.map_or(TransactionId(0), |id| TransactionId(id.0 + 1));
            let mut last = None;
            let later = graph.transactions.range(from..).take(LINES_AT_ONCE);
            for (number, (id, it)) in later.enumerate() {
                if it.from.is_some() {
                    longest = Some(now.saturating_sub(it.start));
                    return None;
                }
                last = Some(*id).filter(|_| number + 1 == LINES_AT_ONCE);
            }
            last
        });
        longest
    }

    /// Logs the deadlocks of this context that have not been logged. Gives the calls in all of them.
    fn log_deadlocks(self: &Arc<Self>) -> BTreeSet<u64> {
        let before = self.snapshot(false);
        let before = Index::new(&before).deadlocked();
        if before.is_empty() {
            return BTreeSet::new();
        }
        let now = self.snapshot(false);
        let index = Index::new(&now);
        let deadlocked = index.deadlocked_among(&before);
        for group in index.apart(&deadlocked) {
            let told = self.shared.deadlocks.told.lock();
            // Further threads may wait for a deadlock that was there.
            let is_known = group.values().any(|call| told.contains(call));
            drop(told);
            if !is_known {
                client_log!(
                    Kind::Deadlock,
                    "deadlock on {}: {}none of them will get its reply until one dies",
                    self.name,
                    describe(&index, &group)
                );
            }
        }
        deadlocked.into_values().collect()
    }
}

/// Who waits for whom.
fn describe(index: &Index<'_>, deadlocked: &BTreeMap<u64, u64>) -> String {
    let mut text = String::new();
    for (thread, call) in deadlocked.iter().take(NAMED) {
        let Some((process, thread)) = index.threads.get(thread) else { continue };
        let call = index.transactions.get(call);
        let to = call.and_then(|it| index.processes.get(&it.to_process?)).map_or(0, |to| to.pid);
        let _ = write!(text, "{}:{} waits for {to}, ", process.pid, thread.tid);
    }
    if deadlocked.len() > NAMED {
        let _ = write!(text, "and {} more, ", deadlocked.len() - NAMED);
    }
    text
}
