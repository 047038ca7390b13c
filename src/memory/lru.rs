//! `list_lru`: the pages that no buffer uses, in the order they fell out of use.

use crate::lock_order::rank;
use crate::sync::modelled::{Mutex, MutexGuard};
use std::collections::BTreeMap;
// Not a part of the page protocol: the model check need not look at a counter.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// An owner of pages on the LRU.
pub trait Reclaim: Send + Sync {
    /// Called with the LRU lock held: frees page `index`, if that can be done without waiting.
    fn free_page<'lru>(&self, index: usize, lru: LruOne<'lru>) -> LruStatus<'lru>;
}

/// What became of a page that a walk came to (`enum lru_status`).
pub enum LruStatus<'lru> {
    /// The page is gone, and the LRU lock was dropped meanwhile.
    RemovedRetry,
    /// The page's owner is busy: the page stays.
    Skip(LruOne<'lru>),
}

/// The place of a page on the LRU. Keys ascend in the order of age, so a walk can go on after its
/// lock was dropped, whatever happened to the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LruKey(std::num::NonZeroU64);

#[derive(Debug)]
struct Item {
    owner: Weak<dyn Reclaim>,
    index: usize,
}

impl std::fmt::Debug for dyn Reclaim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reclaim")
    }
}

#[derive(Debug)]
struct Items {
    by_age: BTreeMap<LruKey, Item>,
    next: LruKey,
    len: Arc<AtomicUsize>,
}

impl Items {
    fn remove(&mut self, key: LruKey) -> bool {
        let removed = self.by_age.remove(&key).is_some();
        self.len.store(self.by_age.len(), Ordering::Relaxed);
        removed
    }
}

#[derive(Debug)]
pub(super) struct ListLru {
    items: Mutex<Items, rank::Lru>,
    /// The length of the list as of some moment ago, for callers that may not take the lock.
    len: Arc<AtomicUsize>,
}

impl Default for ListLru {
    fn default() -> Self {
        let len = Arc::<AtomicUsize>::default();
        let next = LruKey(std::num::NonZeroU64::MIN);
        let items = Items { by_age: BTreeMap::new(), next, len: len.clone() };
        Self { items: Mutex::new(items), len }
    }
}

/// The LRU, locked to put pages on it.
pub(crate) struct LruLocked<'lru>(MutexGuard<'lru, Items>);

impl LruLocked<'_> {
    /// `list_lru_add`: puts a page on the list as the most recently used.
    pub(crate) fn add(&mut self, owner: Weak<dyn Reclaim>, index: usize) -> LruKey {
        let key = self.0.next;
        self.0.next = LruKey(key.0.checked_add(1).expect("2^64 frees"));
        self.0.by_age.insert(key, Item { owner, index });
        self.0.len.store(self.0.by_age.len(), Ordering::Relaxed);
        key
    }
}

/// The LRU, locked by a walk that has come to one page of it.
pub struct LruOne<'lru> {
    items: MutexGuard<'lru, Items>,
    key: LruKey,
}

impl LruOne<'_> {
    /// `list_lru_isolate`: takes the page off the list, and drops the lock.
    pub fn isolate(mut self) {
        self.items.remove(self.key);
    }
}

impl ListLru {
    pub(super) fn lock(&self) -> LruLocked<'_> {
        LruLocked(self.items.lock())
    }

    /// `list_lru_del`: takes pages off the list.
    pub(super) fn del(&self, mut keys: impl Iterator<Item = LruKey>) {
        let Some(first) = keys.next() else { return };
        let mut items = self.items.lock();
        for key in std::iter::once(first).chain(keys) {
            let there = items.remove(key);
            debug_assert!(there, "a page that its owner has on the LRU is not there");
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self) -> usize {
        self.items.lock().by_age.len()
    }

    /// `list_lru_walk`: comes to at most `nr_to_walk` pages, each once, oldest first, and returns
    /// how many their owners have freed.
    pub(super) fn walk(&self, nr_to_walk: usize) -> usize {
        // The walk may hold the last `Arc` of an owner. Dropping that takes the LRU lock, so it
        // waits for the end of the walk.
        let mut busy: Vec<Arc<dyn Reclaim>> = Vec::new();
        let mut isolated = 0;
        let mut from = LruKey(std::num::NonZeroU64::MIN);
        let mut items = self.items.lock();
        for _ in 0..nr_to_walk {
            let Some((&key, item)) = items.by_age.range(from..).next() else {
                break;
            };
            from = LruKey(key.0.saturating_add(1));
            let Some(owner) = item.owner.upgrade() else {
                // The page's owner is being dropped, and is about to take the page off the list.
                continue;
            };
            match owner.free_page(item.index, LruOne { items, key }) {
                LruStatus::RemovedRetry => {
                    isolated += 1;
                    items = self.items.lock();
                }
                LruStatus::Skip(lru) => items = lru.items,
            }
            if !busy.last().is_some_and(|last| Arc::ptr_eq(last, &owner)) {
                busy.push(owner);
            }
        }
        drop(items);
        isolated
    }
}
