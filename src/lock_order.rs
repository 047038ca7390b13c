//! The check of the lock order that [the crate's map](crate) states, in debug builds.
//!
//! Whoever waits for a lock says which ([`waiting_for`]); the guard that comes back stands for the
//! lock being held. A lock may be waited for only while those held come before it. Locks that are
//! only tried may be taken in any order, and need not be told of.

#[cfg(debug_assertions)]
use std::cell::RefCell;

/// The locks of the daemon, outermost first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// A context's object graph. Under it nothing else is waited for, not even another graph.
    Graph,
    /// A client's mm: page installs read it, mmap and release write it.
    Mmap,
    /// The buffer mutex of an allocator.
    Buffers,
    /// The LRU of reclaimable pages.
    Lru,
}

#[cfg(debug_assertions)]
thread_local! {
    static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
}

/// A lock that this thread holds.
#[must_use = "the lock counts as held as long as this lives"]
#[derive(Debug)]
pub struct Held {
    #[cfg(debug_assertions)]
    rank: Rank,
}

/// This thread is about to wait for a lock.
///
/// # Panics
/// In debug builds, when the order forbids it.
#[track_caller]
#[inline]
pub fn waiting_for(rank: Rank) -> Held {
    #[cfg(debug_assertions)]
    {
        HELD.with_borrow_mut(|held| {
            let allowed = held.iter().all(|other| *other < rank && *other != Rank::Graph);
            assert!(allowed, "lock order: {rank:?} wanted while {held:?} is held");
            held.push(rank);
        });
        Held { rank }
    }
    #[cfg(not(debug_assertions))]
    {
        let _ = rank;
        Held {}
    }
}

/// This thread is about to copy to or from a client, or to call the system for one: nothing that
/// may happen under a graph's lock.
///
/// # Panics
/// In debug builds, when it holds one.
#[track_caller]
#[inline]
pub fn assert_outside_graph() {
    #[cfg(debug_assertions)]
    HELD.with_borrow(|held| {
        assert!(!held.contains(&Rank::Graph), "a client is reached under the graph's lock");
    });
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            if let Some(index) = held.iter().rposition(|rank| *rank == self.rank) {
                held.remove(index);
            }
        });
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn the_stated_order_is_accepted() {
        let _mmap = waiting_for(Rank::Mmap);
        let _buffers = waiting_for(Rank::Buffers);
        let _lru = waiting_for(Rank::Lru);
    }

    #[test]
    #[should_panic(expected = "lock order: Mmap wanted while [Buffers] is held")]
    fn the_reverse_is_refused() {
        let _buffers = waiting_for(Rank::Buffers);
        let _mmap = waiting_for(Rank::Mmap);
    }

    #[test]
    #[should_panic(expected = "lock order: Lru wanted while [Graph] is held")]
    fn nothing_is_waited_for_under_a_graph() {
        let _graph = waiting_for(Rank::Graph);
        let _lru = waiting_for(Rank::Lru);
    }

    #[test]
    #[should_panic(expected = "a client is reached under the graph's lock")]
    fn no_client_is_reached_under_a_graph() {
        let _graph = waiting_for(Rank::Graph);
        assert_outside_graph();
    }
}
