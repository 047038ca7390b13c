//! The outbox: what the driver has decided and still has to do in the world.
//!
//! A section under a context's lock only decides. The effects of its decisions (`Effect`) are
//! posted once the lock is dropped. Effects that touch no client's memory are carried out right
//! then. An answer to another client's read goes into the outbox as an item, and is carried out by
//! whichever thread gets to it first: mostly the one that has posted it, after its own caller has
//! been answered or parked ([`super::Due`]), or any other thread that ends a request. If the poster
//! is held up in its caller's memory, a carrier does it
//! ([`Carriers::watch`](super::Carriers::watch)).

use super::freeze::FreezeWait;
use super::poll::Notice;
use super::process::ProcessInner;
use super::read::Answer;
use super::transaction::Fixup;
use super::{Process, Shared};
use crate::alloc::Buffer;
use crate::lock_order::rank;
use crate::sync::modelled::Mutex;
use crate::sync::modelled::atomic::{AtomicU64, AtomicUsize, Ordering};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What remains to be done once the lock is dropped.
pub(crate) enum Effect {
    /// A read, or another ioctl that waited, has come to its end: to be given to its client.
    Answer(Answer),
    Poll(Notice),
    /// A call that somebody waits for has found no free thread in this process.
    NoFreeThread(Arc<Process>),
    FreeBuffer(Arc<Process>, Buffer),
    /// Files that did not arrive; dropped outside the lock, since that may close them.
    DropFiles(Vec<Fixup>),
    /// The callers that wait for a frozen process, which has no outstanding transactions any more.
    Frozen(BTreeMap<u64, FreezeWait>),
    /// A released process: dropping its last `Arc` frees its buffers.
    DropProcess(Arc<Process>),
    /// The device need not watch a thread any more.
    DropWatch(Box<dyn Send>),
    /// What is left of a released process's record; it may be large.
    DropRecord(Box<ProcessInner>),
}

/// The effects of a section: mostly one or two.
pub(crate) type Effects = SmallVec<[Effect; 2]>;

/// An effect that may have to wait for a client's memory, or may lead to another that does.
pub(crate) enum Item {
    Answer(Answer),
    Frozen(FreezeWait),
}

/// The items that wait, as [the module](self) says. Its lock is a leaf.
pub struct Outbox<I> {
    items: Mutex<VecDeque<I>, rank::Outbox>,
    waiting: AtomicUsize,
    taken: AtomicU64,
}

impl<I> Default for Outbox<I> {
    fn default() -> Self {
        Self::new()
    }
}

impl<I> Outbox<I> {
    /// An empty outbox.
    pub fn new() -> Outbox<I> {
        Outbox {
            items: Mutex::new(VecDeque::new()),
            waiting: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
        }
    }

    /// Puts an item behind the others.
    pub fn post(&self, item: I) {
        let mut items = self.items.lock();
        items.push_back(item);
        self.waiting.store(items.len(), Ordering::SeqCst);
    }

    /// Takes the oldest item.
    pub fn take(&self) -> Option<I> {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut items = self.items.lock();
        let item = items.pop_front()?;
        self.waiting.store(items.len(), Ordering::SeqCst);
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(item)
    }

    /// While items wait, how many were ever taken: as long as the number stays the same, the oldest
    /// item has been waiting.
    pub fn progress(&self) -> Option<u64> {
        (self.waiting.load(Ordering::SeqCst) > 0).then(|| self.taken.load(Ordering::Relaxed))
    }
}

impl Shared {
    /// Carries out the effects that touch no client's memory, and puts the others into the outbox.
    pub fn post(&self, effects: Effects) {
        for effect in effects {
            match effect {
                Effect::Answer(answer) => self.post_item(Item::Answer(answer)),
                Effect::Frozen(waits) => {
                    waits.into_values().for_each(|wait| self.post_item(Item::Frozen(wait)));
                }
                Effect::Poll(notice) => notice.give(),
                Effect::NoFreeThread(process) => process.context.shared.no_free_thread(),
                Effect::FreeBuffer(process, buffer) => process.alloc.free_buf(&buffer),
                Effect::DropFiles(files) => drop(files),
                Effect::DropProcess(process) => drop(process),
                Effect::DropRecord(record) => drop(record),
                Effect::DropWatch(watch) => drop(watch),
            }
        }
    }

    pub fn post_item(&self, item: Item) {
        self.outbox.post(item);
        self.carriers.watch();
    }

    /// Has another thread carry out what is in the outbox.
    pub fn hand_over(self: &Arc<Self>) {
        if self.outbox.progress().is_some() {
            let shared = self.clone();
            self.carriers.carry(Box::new(move || shared.carry_out()));
        }
    }

    /// Carries out what is in the outbox, until it is empty. What an item leads to becomes an item
    /// again, so that a chain of clients that fail does not become a chain of calls.
    pub fn carry_out(&self) {
        while let Some(item) = self.outbox.take() {
            match item {
                Item::Answer(answer) => answer.carry_out(),
                Item::Frozen(wait) => {
                    if let Some(target) = wait.targets.front().cloned() {
                        target.freeze_waited(wait);
                    }
                }
            }
        }
    }
}
