//! One-way calls that wait for a node: they are handed out one at a time, in the order of their
//! sending, and one with TF_UPDATE_TXN may take the place of an earlier one.
//!
//! There may be as many as the owner's mapping has room for, so the one that is replaced is
//! found by what it must have in common with the new one, and not by looking at all of them.

use super::graph::TransactionId;
use super::pieces::handled;
use super::transaction::Transaction;
use crate::uapi::{TF_ONE_WAY, TF_UPDATE_TXN};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// What makes two one-way calls to one node the same (`binder_can_update_transaction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Update {
    from_pid: i32,
    flags: u32,
    code: u32,
}

impl Update {
    /// None for a call that neither replaces another nor is replaced.
    pub fn of(transaction: &Transaction) -> Option<Update> {
        const BOTH: u32 = TF_ONE_WAY | TF_UPDATE_TXN;
        let Transaction { from_pid, flags, code, .. } = *transaction;
        (flags & BOTH == BOTH).then_some(Update { from_pid, flags, code })
    }
}

/// `async_todo` of `struct binder_node`.
#[derive(Debug, Default)]
pub(crate) struct AsyncTodo {
    /// All calls, oldest first.
    calls: BTreeMap<u64, (TransactionId, Option<Update>)>,
    /// The calls that may be replaced.
    updates: BTreeSet<(Update, u64)>,
    sequence: u64,
}

impl AsyncTodo {
    pub fn push(&mut self, id: TransactionId, update: Option<Update>) {
        self.sequence += 1;
        self.calls.insert(self.sequence, (id, update));
        self.updates.extend(update.map(|update| (update, self.sequence)));
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<TransactionId> {
        let (sequence, (id, update)) = self.calls.pop_first()?;
        if let Some(update) = update {
            self.updates.remove(&(update, sequence));
        }
        Some(id)
    }

    /// Takes the oldest call that a new one replaces (`binder_find_outdated_transaction_ilocked`).
    pub fn take_outdated(&mut self, update: Update) -> Option<TransactionId> {
        let (_, sequence) = *self.updates.range((update, 0)..=(update, u64::MAX)).next()?;
        self.updates.remove(&(update, sequence));
        self.calls.remove(&sequence).map(|(id, _)| id)
    }

    pub fn len(&self) -> usize {
        self.calls.len()
    }

    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = TransactionId> {
        self.after(0).map(|(_, id)| id)
    }

    /// The calls behind a place, with their own places.
    pub fn after(&self, sequence: u64) -> impl Iterator<Item = (u64, TransactionId)> {
        let later = self.calls.range((Bound::Excluded(sequence), Bound::Unbounded));
        later.map(|(sequence, (id, _))| (*sequence, *id)).inspect(|_| handled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(code: u32) -> Option<Update> {
        Some(Update { from_pid: 1, flags: TF_ONE_WAY | TF_UPDATE_TXN, code })
    }

    #[test]
    fn the_oldest_of_its_kind_is_replaced_and_the_others_keep_their_order() {
        let mut todo = AsyncTodo::default();
        let calls = [(1, update(7)), (2, None), (3, update(8)), (4, update(7)), (5, update(7))];
        calls.into_iter().for_each(|(id, update)| todo.push(TransactionId(id), update));
        let replaced =
            |todo: &mut AsyncTodo, code| todo.take_outdated(update(code).unwrap()).map(|id| id.0);
        assert_eq!(replaced(&mut todo, 9), None);
        assert_eq!(replaced(&mut todo, 7), Some(1));
        assert_eq!(todo.pop(), Some(TransactionId(2)));
        assert_eq!(todo.pop(), Some(TransactionId(3)));
        assert_eq!(replaced(&mut todo, 8), None, "it has been handed out");
        assert_eq!(replaced(&mut todo, 7), Some(4));
        todo.push(TransactionId(6), update(7));
        assert_eq!(todo.iter().map(|id| id.0).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(todo.len(), 2);
        assert!(!todo.is_empty());
    }
}
