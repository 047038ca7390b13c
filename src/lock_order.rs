//! The order of the daemon's locks, and the check of it, in debug builds.
//!
//! Every lock has a [`Rank`] in its type (see [`sync`](crate::sync)). A rank lists which others may
//! be waited for while it is held ([`Rank::under`]); nothing else may, and no other lock of the
//! same rank. The listed ranks come later in the order of ranks, so no two threads wait for each
//! other. A lock that is only tried may be tried at any time; it counts as held when that succeeds.
//!
//! A release build checks nothing and remembers nothing. Neither does a model check: that finds
//! deadlocks by itself, and runs many of its threads on one.

#[cfg(all(debug_assertions, not(loom)))]
use std::cell::RefCell;

/// A lock's type names its rank by one of the types in [`rank`].
pub trait Ranked {
    /// The rank of such a lock.
    const RANK: Rank;
}

macro_rules! ranks {
    ($($(#[$doc:meta])* $rank:ident,)*) => {
        /// The locks of the daemon, outermost first.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Rank {
            $($(#[$doc])* $rank,)*
        }

        /// The ranks as types.
        pub mod rank {
            use super::{Rank, Ranked};
            $(
                $(#[$doc])*
                #[derive(Debug)]
                pub enum $rank {}
                impl Ranked for $rank {
                    const RANK: Rank = Rank::$rank;
                }
            )*
        }

        #[cfg(all(test, debug_assertions, not(loom)))]
        mod every {
            use super::{Rank, rank};
            use crate::sync::{Mutex, RwLock};

            pub(super) const RANK: &[Rank] = &[$(Rank::$rank,)*];

            /// Waits for a lock of that rank in that way, and then does `then`.
            pub(super) fn taking(wanted: Rank, way: super::tests::Way, then: &mut dyn FnMut()) {
                use super::tests::Way;
                match wanted {
                    $(Rank::$rank => {
                        let mutex = Mutex::<(), rank::$rank>::default();
                        let lock = RwLock::<(), rank::$rank>::default();
                        match way {
                            Way::Lock => { let _held = mutex.lock(); then() }
                            Way::TryLock => { let _held = mutex.try_lock(); then() }
                            Way::Read => { let _held = lock.read(); then() }
                            Way::TryRead => { let _held = lock.try_read(); then() }
                            Way::Write => { let _held = lock.write(); then() }
                            Way::TryWrite => { let _held = lock.try_write(); then() }
                        }
                    })*
                }
            }
        }
    };
}

ranks! {
    /// The devices of a mount (`device::tree`).
    Devices,
    /// What was changed of a mount's files that are no devices.
    Attributes,
    /// Names that a mount is about to have (`device::announce`).
    Making,
    /// Names of opens that have served (`device::stale`).
    Stale,
    /// The contexts of a driver, by name.
    Contexts,
    /// All contexts, by number.
    SharedContexts,
    /// The counts of what was made in contexts that are gone.
    Created,
    /// The open files of a session.
    Opens,
    /// The files of a mount (`device::fuse`).
    Files,
    /// The socket that a client is to connect to.
    Listener,
    /// The text of a snapshot that is being copied, or who listens to events (`device::control`).
    Snapshot,
    /// The deadlocks that have been logged (`binder::deadlocks`).
    Deadlocks,
    /// The way of descriptors into a client (`device::files`).
    Channel,
    /// Who puts descriptors into the processes of an open file (`device::supervised`).
    Supervision,
    /// What such a supervisor was asked, and has answered.
    Placements,
    /// The threads whose end is waited for (`device::threads`).
    WatchedThreads,
    /// The threads that stop those of clients (`device::tracers`).
    Tracers,
    /// The user namespaces of a client's threads (`device::ids`).
    UserNamespaces,
    /// The clients of a daemon, by pid.
    Clients,
    /// The allowances for copies of the users.
    Allowances,
    /// The copies of a client (`binder::copies`).
    Copies,
    /// The clients that starve for an allowance of copies.
    Starved,
    /// The work of carriers.
    Carriers,
    /// The sleep of the outbox's watcher.
    Watcher,
    /// The items of the outbox.
    Outbox,
    /// The workers of a session, and since when each is busy.
    Slots,
    /// The answer that a worker of a queue has given and not submitted.
    RingAnswer,
    /// What a queue's workers are to do.
    RingJobs,
    /// What a queue's reserve is to submit.
    RingInbox,
    /// The queues of a session, once they are there.
    Rings,
    /// Requests that may have missed a signal.
    Unlooked,
    /// Requests that an interrupt has not ended.
    HeldUp,
    /// The sleep of the supervisor of a session's workers.
    Supervisor,
    /// The function that is called when a session ends.
    SessionEnd,
    /// The timers that are not due yet.
    Timers,
    /// The state of a client when it was last searched for a mapping in vain.
    Missed,
    /// How long senders wait for pages.
    Latency,
    /// The bytes that the kernel is to copy back into a client.
    Gathered,
    /// The turn of long work in a context's object graph (`binder::pieces`).
    LongWork,
    /// A context's object graph.
    Graph,
    /// The requests of a session that have not been answered.
    InFlight,
    /// The callers that wait for a freeze.
    FreezeCallers,
    /// The last transactions, or the last that failed.
    TransactionLog,
    /// A client's mm: page installs read it, mmap and release write it.
    Mmap,
    /// The buffer mutex of an allocator.
    Buffers,
    /// The LRU of reclaimable pages.
    Lru,
    /// The users of a client's mm, and the maps that they look at.
    MmUsers,
    /// The text of a client's mappings, while it is read.
    Maps,
    /// The page table of a buffer file, where adding a page is not atomic, or where it is plain
    /// memory.
    PageTable,
    /// Pages that are to be taken out of the kernel's page cache (`device::cached`).
    Zapped,
}

impl Rank {
    /// What may be waited for while a lock of this rank is held.
    pub const fn under(self) -> &'static [Rank] {
        use Rank::*;
        match self {
            // A new device has a context; a device that goes may be the last user of its context.
            Devices => &[Contexts, SharedContexts, Created],
            Contexts => &[SharedContexts],
            // The copies of a client wait for places that others give back.
            Copies => &[Starved],
            // Asked under the graph: whether a signal has come for a thread that is about to wait
            // (for a read or a freeze). Written: the log of transactions.
            LongWork => &[Graph, InFlight, FreezeCallers, TransactionLog],
            Graph => &[InFlight, FreezeCallers, TransactionLog],
            Mmap => &[Buffers, Lru, MmUsers, Maps, PageTable, Zapped],
            // The shrinker zaps pages under both locks, and has let go of the LRU by then.
            Buffers => &[Lru, PageTable, Zapped],
            SharedContexts | Attributes | Making | Stale | Created | Opens | Files | Listener
            | Snapshot | Deadlocks | Channel | Supervision | Placements | Clients
            | WatchedThreads | Tracers | UserNamespaces | Allowances | Starved | Carriers
            | Watcher | Outbox | Slots | RingAnswer | RingJobs | RingInbox | Rings | Unlooked
            | HeldUp | Supervisor | SessionEnd | Timers | FreezeCallers | Missed | Latency
            | Gathered | InFlight | TransactionLog | Lru | MmUsers | Maps | PageTable | Zapped => {
                &[]
            }
        }
    }
}

#[cfg(all(debug_assertions, not(loom)))]
thread_local! {
    static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
}

/// The locks that this thread holds. A thread that is about to end may hold locks that this does
/// not see any more.
#[cfg(all(debug_assertions, not(loom)))]
fn with_held<R: Default>(f: impl FnOnce(&mut Vec<Rank>) -> R) -> R {
    HELD.try_with(|held| f(&mut held.borrow_mut())).unwrap_or_default()
}

/// A lock that this thread holds, as far as the check is concerned.
#[must_use = "the lock counts as held as long as this lives"]
#[derive(Debug)]
pub(crate) struct HeldLock {
    #[cfg(all(debug_assertions, not(loom)))]
    rank: Rank,
}

impl HeldLock {
    /// The lock counts as not held until the returned value is dropped.
    pub(crate) fn give_back(&self) -> GivenBack {
        #[cfg(all(debug_assertions, not(loom)))]
        {
            release(self.rank);
            GivenBack { rank: self.rank }
        }
        #[cfg(not(all(debug_assertions, not(loom))))]
        GivenBack {}
    }
}

/// A lock that another thread may hold for a while.
#[must_use = "the lock counts as given back as long as this lives"]
pub(crate) struct GivenBack {
    #[cfg(all(debug_assertions, not(loom)))]
    rank: Rank,
}

#[cfg(all(debug_assertions, not(loom)))]
impl Drop for GivenBack {
    fn drop(&mut self) {
        with_held(|held| held.push(self.rank));
    }
}

#[cfg(all(debug_assertions, not(loom)))]
fn release(rank: Rank) {
    with_held(|held| {
        if let Some(index) = held.iter().rposition(|other| *other == rank) {
            held.remove(index);
        }
    });
}

/// This thread is about to wait for a lock.
///
/// # Panics
/// In debug builds, when the order forbids it.
#[track_caller]
#[inline]
pub(crate) fn waiting_for(rank: Rank) -> HeldLock {
    #[cfg(all(debug_assertions, not(loom)))]
    {
        let held = with_held(|held| {
            let allowed = held.iter().all(|other| other.under().contains(&rank));
            (!allowed).then(|| held.clone())
        });
        // Outside of the borrow: the panic drops guards, which borrow the list again.
        if let Some(held) = held {
            panic!("lock order: {rank:?} wanted while {held:?} is held");
        }
    }
    holding(rank)
}

/// This thread has got a lock without waiting for it.
#[inline]
pub(crate) fn holding(rank: Rank) -> HeldLock {
    #[cfg(all(debug_assertions, not(loom)))]
    {
        with_held(|held| held.push(rank));
        HeldLock { rank }
    }
    #[cfg(not(all(debug_assertions, not(loom))))]
    {
        let _ = rank;
        HeldLock {}
    }
}

/// This thread waits for a condition, and gives back one lock meanwhile.
///
/// # Panics
/// In debug builds, when it holds another.
#[track_caller]
#[inline]
pub(crate) fn assert_only(lock: &HeldLock) {
    #[cfg(all(debug_assertions, not(loom)))]
    {
        let held = with_held(|held| held.clone());
        assert!(held == [lock.rank], "a condition is waited for while {held:?} is held");
    }
    #[cfg(not(all(debug_assertions, not(loom))))]
    let _ = lock;
}

/// Asserts that this thread holds no lock: it is about to copy to or from a client, or to make a
/// system call for one. That may take as long as the client likes, so no other thread may have to
/// wait for it.
///
/// # Panics
/// In debug builds, when it holds a lock.
#[track_caller]
#[inline]
pub fn assert_nothing_held() {
    #[cfg(all(debug_assertions, not(loom)))]
    {
        let held = with_held(|held| held.clone());
        assert!(held.is_empty(), "a client is reached while {held:?} is held");
    }
}

/// Does what stands for another thread's work at this moment: a test's hook between two steps. The
/// locks of this thread do not count as that one's.
pub(crate) fn as_another_thread<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(all(debug_assertions, not(loom)))]
    let _back = {
        struct Back(Vec<Rank>);
        impl Drop for Back {
            fn drop(&mut self) {
                with_held(|held| held.append(&mut self.0));
            }
        }
        Back(with_held(std::mem::take))
    };
    f()
}

#[cfg(all(debug_assertions, not(loom)))]
impl Drop for HeldLock {
    fn drop(&mut self) {
        release(self.rank);
    }
}

#[cfg(all(test, debug_assertions, not(loom)))]
mod tests {
    use super::Rank::*;
    use super::*;
    use crate::sync::{Condvar, Mutex, MutexGuard};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// How a lock is taken.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Way {
        Lock,
        TryLock,
        Read,
        TryRead,
        Write,
        TryWrite,
    }

    const WAITING: [Way; 3] = [Way::Lock, Way::Read, Way::Write];
    const TRYING: [Way; 3] = [Way::TryLock, Way::TryRead, Way::TryWrite];

    /// What [the crate's map](crate) states: while the first is held, the second may be waited for.
    const STATED: [(Rank, Rank); 21] = [
        (Devices, Contexts),
        (Devices, SharedContexts),
        (Devices, Created),
        (Contexts, SharedContexts),
        (Copies, Starved),
        (LongWork, Graph),
        (LongWork, InFlight),
        (LongWork, FreezeCallers),
        (LongWork, TransactionLog),
        (Graph, InFlight),
        (Graph, FreezeCallers),
        (Graph, TransactionLog),
        (Mmap, Buffers),
        (Mmap, Lru),
        (Mmap, MmUsers),
        (Mmap, Maps),
        (Mmap, PageTable),
        (Mmap, Zapped),
        (Buffers, Lru),
        (Buffers, PageTable),
        (Buffers, Zapped),
    ];

    /// The message of the panic, if it comes to one.
    fn panic_of(f: impl FnOnce()) -> Option<String> {
        let panic = catch_unwind(AssertUnwindSafe(f)).err()?;
        Some(panic.downcast_ref::<String>().expect("a formatted message").clone())
    }

    /// Two locks after each other, by each way of taking them.
    #[test]
    fn each_wrong_order_of_two_locks_panics_and_no_right_one_does() {
        for (outer, inner) in every::RANK
            .iter()
            .flat_map(|outer| every::RANK.iter().map(move |inner| (*outer, *inner)))
        {
            for first in [WAITING, TRYING].concat() {
                for second in [WAITING, TRYING].concat() {
                    let mut reached = false;
                    let panic = panic_of(|| {
                        every::taking(outer, first, &mut || {
                            every::taking(inner, second, &mut || reached = true);
                        });
                    });
                    let right = STATED.contains(&(outer, inner)) || TRYING.contains(&second);
                    let what = format!("{second:?} of {inner:?} under {first:?} of {outer:?}");
                    assert_eq!(reached, right, "{what}");
                    let message = format!("lock order: {inner:?} wanted while [{outer:?}] is held");
                    assert_eq!(panic, (!right).then_some(message), "{what}");
                    assert_eq!(with_held(|held| held.clone()), [], "{what}");
                }
            }
        }
    }

    #[test]
    fn a_rank_allows_only_what_comes_after_it() {
        for outer in every::RANK {
            assert!(outer.under().iter().all(|inner| inner > outer), "{outer:?}");
        }
    }

    /// All held locks count, not only the one that was taken last.
    #[test]
    fn every_lock_that_is_held_counts() {
        let (graph, mmap) =
            (Mutex::<(), rank::Graph>::default(), Mutex::<(), rank::Mmap>::default());
        let buffers = Mutex::<(), rank::Buffers>::default();
        let _graph = graph.lock();
        let mmap = mmap.try_lock();
        let panic = panic_of(|| drop(buffers.lock()));
        assert_eq!(
            panic.as_deref(),
            Some("lock order: Buffers wanted while [Graph, Mmap] is held")
        );
        drop(mmap);
        let panic = panic_of(|| drop(buffers.lock()));
        assert_eq!(panic.as_deref(), Some("lock order: Buffers wanted while [Graph] is held"));
    }

    #[test]
    fn no_client_is_reached_while_a_lock_is_held() {
        for rank in every::RANK {
            every::taking(*rank, Way::TryLock, &mut || {
                let message = format!("a client is reached while [{rank:?}] is held");
                assert_eq!(panic_of(assert_nothing_held), Some(message));
            });
        }
        assert_nothing_held();
    }

    #[test]
    fn a_lock_that_is_given_back_for_a_while_is_not_held_meanwhile() {
        let (queue, graph) =
            (Mutex::<(), rank::Timers>::default(), Mutex::<(), rank::Graph>::default());
        let mut guard = queue.lock();
        MutexGuard::unlocked(&mut guard, || drop((graph.lock(), queue.try_lock().expect("free"))));
        let message = "lock order: Graph wanted while [Timers] is held";
        assert_eq!(panic_of(|| drop(graph.lock())).as_deref(), Some(message));
        assert_eq!(
            panic_of(|| MutexGuard::unlocked(&mut guard, || panic!("{}", 1))).as_deref(),
            Some("1")
        );
        assert_eq!(panic_of(|| drop(graph.lock())).as_deref(), Some(message));
    }

    #[test]
    fn what_stands_for_another_thread_holds_nothing_and_this_one_still_does() {
        let (outer, inner) =
            (Mutex::<(), rank::Lru>::default(), Mutex::<(), rank::Graph>::default());
        let _outer = outer.lock();
        as_another_thread(|| {
            assert_nothing_held();
            drop(inner.lock());
        });
        let message = "lock order: Graph wanted while [Lru] is held";
        assert_eq!(panic_of(|| drop(inner.lock())).as_deref(), Some(message));
    }

    #[test]
    fn nobody_waits_for_a_condition_with_another_lock_held() {
        let (one, other) =
            (Mutex::<(), rank::Supervisor>::default(), Mutex::<(), rank::Contexts>::default());
        let condition = Condvar::new();
        let moment = std::time::Duration::from_millis(1);
        let mut guard = one.lock();
        condition.wait_for(&mut guard, moment);
        let _other = other.try_lock();
        let panic = panic_of(|| assert!(condition.wait_for(&mut guard, moment).timed_out()));
        let message = "a condition is waited for while [Supervisor, Contexts] is held";
        assert_eq!(panic.as_deref(), Some(message));
    }
}
