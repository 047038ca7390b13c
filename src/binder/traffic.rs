//! Counts of the commands and returns that were exchanged, and the last transactions: the sources
//! of `binder_logs/stats` and `binder_logs/transaction_log` (see [`logs`](super::logs)).

use super::send::Failure;
use crate::lock_order::rank;
use crate::protocol::names::{COMMAND_NAMES, RETURN_NAMES, nr};
use crate::protocol::returns::Return;
use crate::sync::Mutex;
use crate::uapi;
use derive_more::Add;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// `struct binder_stats`, without the objects.
#[derive(Default)]
pub(super) struct Traffic {
    commands: [AtomicU64; COMMAND_NAMES.len()],
    returns: [AtomicU64; RETURN_NAMES.len()],
}

impl Traffic {
    pub fn count_command(&self, number: u32) {
        if let Some(count) = self.commands.get(nr(number)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn count_return(&self, number: u32) {
        if let Some(count) = self.returns.get(nr(number)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Name and count of each command and return that occurred.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let commands = COMMAND_NAMES.iter().zip(&self.commands);
        let all = commands.chain(RETURN_NAMES.iter().zip(&self.returns));
        all.map(|(name, count)| (*name, count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
    }
}

/// The returns in `bytes`, by number; BR_NOOP is not counted, as in the driver.
pub(super) fn returns_in(mut bytes: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let (number, rest) = bytes.split_first_chunk()?;
        let number = u32::from_ne_bytes(*number);
        bytes = rest.get(Return::payload_size(number)..).unwrap_or_default();
        Some(number)
    })
    .filter(|number| *number != uapi::BR_NOOP)
}

/// `struct binder_transaction_log_entry`.
pub(super) struct Entry {
    pub id: u64,
    pub is_reply: bool,
    pub is_oneway: bool,
    pub from: (i32, i32),
    /// Pid and thread id of the receiver, 0 where unknown.
    pub to: (i32, i32),
    pub node: u64,
    pub handle: u32,
    /// The context's name. (An `Arc` of the context would be a cycle: the context holds this log.)
    pub context: Arc<str>,
    pub data_size: u64,
    pub offsets_size: u64,
    pub failure: Option<Failure>,
}

/// The last 32 transactions, oldest first.
#[derive(Default)]
pub(super) struct TransactionLog(Mutex<VecDeque<Entry>, rank::TransactionLog>);

impl TransactionLog {
    const LENGTH: usize = 32;

    pub fn add(&self, entry: Entry) {
        let mut entries = self.0.lock();
        if entries.len() == Self::LENGTH {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    pub fn for_each(&self, f: impl FnMut(&Entry)) {
        self.0.lock().iter().for_each(f);
    }
}

/// How many records of a kind there have ever been.
#[derive(Debug, Default, Clone, Copy, Add)]
pub(crate) struct Created {
    pub processes: u64,
    pub threads: u64,
    pub nodes: u64,
    pub references: u64,
    pub deaths: u64,
    pub transactions: u64,
    pub transaction_completes: u64,
    pub freezes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::record::PtrCookie;
    use crate::protocol::returns::Return;

    #[test]
    fn returns_are_counted_by_their_names() {
        let mut bytes = Vec::new();
        let node = PtrCookie { ptr: 1, cookie: 2 };
        for it in [Return::Noop, Return::Increfs(node), Return::DeadBinder(7), Return::Noop] {
            it.encode(&mut bytes);
        }
        let traffic = Traffic::default();
        returns_in(&bytes).for_each(|number| traffic.count_return(number));
        let counts: Vec<_> = traffic.counts().collect();
        assert_eq!(counts, [("BR_INCREFS", 1), ("BR_DEAD_BINDER", 1)]);
        traffic.count_command(uapi::BC_FREEZE_NOTIFICATION_DONE);
        traffic.count_command(0xff);
        assert_eq!(traffic.counts().next(), Some(("BC_FREEZE_NOTIFICATION_DONE", 1)));
    }
}
