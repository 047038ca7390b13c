//! `list_lru`: the pages that no buffer uses, in the order they fell out of use.
//!
//! A walk has a node of its own in the list, behind the pages that it has come to, so it can go on
//! after its lock was dropped, whatever happened to the list.

use crate::lock_order::rank;
use crate::sync::modelled::{Mutex, MutexGuard};
use std::num::NonZeroU32;
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

/// The place of a page on the LRU: the number of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LruKey(NonZeroU32);

#[derive(Debug)]
struct Item {
    owner: Weak<dyn Reclaim>,
    index: u32,
}

impl std::fmt::Debug for dyn Reclaim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reclaim")
    }
}

/// A node of the list: a page, or the place that a walk has come to.
#[derive(Debug, Default)]
struct Node {
    prev: u32,
    next: u32,
    page: Option<Item>,
}

/// The node that is both ends of the list: the oldest page follows it.
const HEAD: u32 = 0;

/// Nodes that are made at a time. They do not move: with a million pages everybody would wait for
/// that.
const CHUNK: usize = 256;

/// The list, linked through nodes that are used again: a hundredth of the memory of the pages that
/// were ever on it together.
#[derive(Debug)]
struct Items {
    chunks: Vec<Box<[Node; CHUNK]>>,
    /// The first of the nodes that are not used, linked by `next`; [`HEAD`]: there is none.
    unused: u32,
    pages: usize,
    len: Arc<AtomicUsize>,
}

impl Items {
    fn node(&mut self, at: u32) -> &mut Node {
        &mut self.chunks[at as usize / CHUNK][at as usize % CHUNK]
    }

    fn new_node(&mut self, page: Option<Item>) -> u32 {
        if self.unused == HEAD {
            let first = self.chunks.len() * CHUNK;
            self.chunks.push(Box::new(std::array::from_fn(|_| Node::default())));
            for at in (first.max(1)..first + CHUNK).rev() {
                let at = u32::try_from(at).expect("as many pages as there are numbers");
                self.node(at).next = std::mem::replace(&mut self.unused, at);
            }
        }
        let at = self.unused;
        let node = self.node(at);
        node.page = page;
        self.unused = node.next;
        at
    }

    /// Puts a node before another one.
    fn link(&mut self, at: u32, next: u32) {
        let prev = std::mem::replace(&mut self.node(next).prev, at);
        self.node(prev).next = at;
        let node = self.node(at);
        (node.prev, node.next) = (prev, next);
    }

    fn unlink(&mut self, at: u32) {
        let (prev, next) = (self.node(at).prev, self.node(at).next);
        self.node(prev).next = next;
        self.node(next).prev = prev;
    }

    /// Takes a node off the list, to be used again.
    fn remove(&mut self, at: u32) -> Option<Item> {
        self.unlink(at);
        let unused = std::mem::replace(&mut self.unused, at);
        let node = self.node(at);
        node.next = unused;
        node.page.take()
    }

    fn remove_page(&mut self, key: LruKey) -> bool {
        let was_there = self.remove(key.0.get()).is_some();
        self.pages -= usize::from(was_there);
        self.len.store(self.pages, Ordering::Relaxed);
        was_there
    }

    /// Moves a walk's node behind the next page, and returns that page and its node; none at the
    /// end.
    fn advance(&mut self, walk: u32) -> Option<(LruKey, &Item)> {
        loop {
            let next = NonZeroU32::new(self.node(walk).next)?;
            self.unlink(walk);
            let behind = self.node(next.get()).next;
            self.link(walk, behind);
            // Nodes of other walks are no pages.
            if self.node(next.get()).page.is_some() {
                return self.node(next.get()).page.as_ref().map(|page| (LruKey(next), page));
            }
        }
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
        let (chunks, unused) = (Vec::new(), HEAD);
        Self { items: Mutex::new(Items { chunks, unused, pages: 0, len: len.clone() }), len }
    }
}

/// The LRU, locked to put pages on it.
pub(crate) struct LruLocked<'lru>(MutexGuard<'lru, Items>);

impl LruLocked<'_> {
    /// `list_lru_add`: puts a page on the list as the most recently used.
    pub(crate) fn add(&mut self, owner: Weak<dyn Reclaim>, index: usize) -> LruKey {
        let index = u32::try_from(index).expect("a mapping has few pages");
        let at = self.0.new_node(Some(Item { owner, index }));
        self.0.link(at, HEAD);
        self.0.pages += 1;
        self.0.len.store(self.0.pages, Ordering::Relaxed);
        LruKey(NonZeroU32::new(at).expect("no page is at the list's end"))
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
        self.items.remove_page(self.key);
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
            let there = items.remove_page(key);
            debug_assert!(there, "a page that its owner has on the LRU is not there");
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self) -> usize {
        self.items.lock().pages
    }

    /// `list_lru_walk`: comes to at most `nr_to_walk` pages, each once, oldest first, and returns
    /// how many their owners have freed.
    pub(super) fn walk(&self, nr_to_walk: usize) -> usize {
        // The walk may hold the last `Arc` of an owner. Dropping that takes the LRU lock, so it
        // waits for the end of the walk.
        let mut busy: Vec<Arc<dyn Reclaim>> = Vec::new();
        let mut isolated = 0;
        let mut items = self.items.lock();
        let walk = items.new_node(None);
        let oldest = items.node(HEAD).next;
        items.link(walk, oldest);
        for _ in 0..nr_to_walk {
            let Some((key, page)) = items.advance(walk) else {
                break;
            };
            let index = page.index as usize;
            let Some(owner) = page.owner.upgrade() else {
                // The page's owner is being dropped, and is about to take the page off the list.
                continue;
            };
            match owner.free_page(index, LruOne { items, key }) {
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
        items.remove(walk);
        drop(items);
        isolated
    }
}
