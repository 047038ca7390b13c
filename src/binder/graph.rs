//! The object graph of a context: who there is, who refers to whom, and what waits for whom.
//!
//! One lock guards all of it. Nothing here copies to or from a client, installs a page or makes a
//! system call: what has to be done in the world is noted as an [`Effect`] and posted when the
//! lock is dropped ([`super::outbox`]).
//!
//! Records refer to one another by ids that are never used again, so a stale reference finds
//! nothing instead of somebody else.

use super::death::Death;
use super::freeze::Freeze;
use super::limits::Limits;
use super::node::Node;
use super::outbox::{Effect, Effects};
use super::poll::Notice;
use super::process::ProcessRecord;
use super::thread::{Looper, Thread};
use super::traffic::Created;
use super::transaction::Transaction;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name(pub u64);
    )*};
}

ids! {
    /// One open file.
    ProcessId
    ThreadId
    NodeId
    TransactionId
    DeathId
    FreezeId
}

/// A to-do list, or a list of what was delivered and not yet acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    Thread(ThreadId),
    Process(ProcessId),
    DeliveredDeath(ProcessId),
    DeliveredFreeze(ProcessId),
}

/// Where a piece of work stands: which list, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub queue: Queue,
    pub sequence: u64,
}

/// `struct binder_work`: what a thread will be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Transaction(TransactionId),
    /// The thread's own command failed (`return_error`).
    ReturnError,
    /// The reply that the thread waits for will not come (`reply_error`).
    ReplyError,
    TransactionComplete,
    TransactionPending,
    TransactionOnewaySpamSuspect,
    Node(NodeId),
    /// Dead, dead and clear, or clear: what it is stands in the death record.
    Death(DeathId),
    Freeze(FreezeId),
}

/// A list of work, oldest first, from which any entry can be taken.
pub(crate) type WorkList = BTreeMap<u64, Work>;

/// Where the delivered notices of a process stand, by the cookie that acknowledges them, oldest
/// first: one client may have very many.
pub(crate) type Cookies = BTreeSet<(u64, u64)>;

fn shrink<K, V>(table: &mut FxHashMap<K, V>, effects: &mut Effects)
where
    K: Eq + std::hash::Hash + Send + 'static,
    V: Send + 'static,
{
    const SMALL: usize = 1 << 12;
    if table.capacity() < SMALL || table.len() > table.capacity() / 8 {
        return;
    }
    let mut smaller = FxHashMap::with_capacity_and_hasher(table.len() * 2, Default::default());
    smaller.extend(table.drain());
    effects.push(Effect::Discard(Box::new(std::mem::replace(table, smaller))));
}

/// Every record of a context.
pub(crate) struct Graph {
    pub processes: FxHashMap<ProcessId, ProcessRecord>,
    pub threads: FxHashMap<ThreadId, Thread>,
    pub nodes: FxHashMap<NodeId, Node>,
    pub transactions: FxHashMap<TransactionId, Transaction>,
    pub deaths: FxHashMap<DeathId, Death>,
    pub freezes: FxHashMap<FreezeId, Freeze>,
    /// The context manager's node.
    pub manager: Option<NodeId>,
    /// The uid of the first context manager: later ones must have it too.
    pub manager_uid: Option<u32>,
    /// Threads to look at before the lock is dropped: they may have something to read.
    pub woken: Vec<ThreadId>,
    /// Those who are to be told, when the lock is dropped, that there may be something to read.
    pub told: Vec<Notice>,
    pub effects: Effects,
    pub limits: Limits,
    pub created: Created,
    /// How many sections there have been.
    pub sections: u64,
    ids: Arc<AtomicU64>,
    sequence: u64,
}

impl Graph {
    pub fn new(ids: Arc<AtomicU64>, limits: Limits) -> Graph {
        Graph {
            processes: FxHashMap::default(),
            threads: FxHashMap::default(),
            nodes: FxHashMap::default(),
            transactions: FxHashMap::default(),
            deaths: FxHashMap::default(),
            freezes: FxHashMap::default(),
            manager: None,
            manager_uid: None,
            woken: Vec::new(),
            told: Vec::new(),
            effects: Effects::new(),
            limits,
            created: Created::default(),
            sections: 0,
            ids,
            sequence: 0,
        }
    }

    /// Gives back tables that have become far too large for what is left in them: a hash table never
    /// shrinks by itself, and that of a million nodes takes hundreds of megabytes.
    pub fn shrink(&mut self) {
        let effects = &mut self.effects;
        shrink(&mut self.processes, effects);
        shrink(&mut self.threads, effects);
        shrink(&mut self.nodes, effects);
        shrink(&mut self.transactions, effects);
        shrink(&mut self.deaths, effects);
        shrink(&mut self.freezes, effects);
    }

    /// A new id (`binder_last_id`): unique over all contexts, never used again.
    pub fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Appends work to a list (`binder_enqueue_work_ilocked`); nothing when its owner is gone.
    pub fn enqueue(&mut self, queue: Queue, work: Work) -> Option<Place> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.list(queue)?.insert(sequence, work);
        Some(Place { queue, sequence })
    }

    /// Takes work out of the list that it stands in (`binder_dequeue_work_ilocked`).
    pub fn dequeue(&mut self, place: Place) {
        if let Some(list) = self.list(place.queue) {
            list.remove(&place.sequence);
        }
    }

    /// The list behind a name, while its owner lives.
    pub fn list(&mut self, queue: Queue) -> Option<&mut WorkList> {
        match queue {
            Queue::Thread(id) => self.threads.get_mut(&id).map(|t| &mut t.todo),
            Queue::Process(id) => self.processes.get_mut(&id).map(|p| &mut p.todo),
            Queue::DeliveredDeath(id) => {
                self.processes.get_mut(&id).map(|p| &mut p.delivered_death)
            }
            Queue::DeliveredFreeze(id) => {
                self.processes.get_mut(&id).map(|p| &mut p.delivered_freeze)
            }
        }
    }

    /// The table of cookies beside a list of delivered notices.
    fn cookies(&mut self, queue: Queue) -> Option<&mut Cookies> {
        match queue {
            Queue::Thread(_) | Queue::Process(_) => None,
            Queue::DeliveredDeath(id) => self.processes.get_mut(&id).map(|p| &mut p.death_cookies),
            Queue::DeliveredFreeze(id) => {
                self.processes.get_mut(&id).map(|p| &mut p.freeze_cookies)
            }
        }
    }

    /// Appends a notice to those that are delivered and wait for this cookie.
    pub fn enqueue_delivered(&mut self, queue: Queue, work: Work, cookie: u64) -> Option<Place> {
        let place = self.enqueue(queue, work)?;
        self.cookies(queue)?.insert((cookie, place.sequence));
        Some(place)
    }

    /// Takes a notice with that cookie out of the list that it stands in, delivered or not.
    pub fn dequeue_notice(&mut self, place: Place, cookie: u64) {
        self.dequeue(place);
        if let Some(cookies) = self.cookies(place.queue) {
            cookies.remove(&(cookie, place.sequence));
        }
    }

    /// The oldest delivered notice that waits for this cookie.
    pub fn delivered(&mut self, queue: Queue, cookie: u64) -> Option<Work> {
        let (_, sequence) = *self.cookies(queue)?.range((cookie, 0)..=(cookie, u64::MAX)).next()?;
        self.list(queue)?.get(&sequence).copied()
    }

    /// Takes the oldest work of a list (`binder_dequeue_work_head_ilocked`) and, where the work
    /// has a record of its own, notes there that it stands in no list.
    pub fn dequeue_head(&mut self, queue: Queue) -> Option<Work> {
        let (_, work) = self.list(queue)?.pop_first()?;
        match work {
            Work::Node(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.work = None;
                }
            }
            Work::Death(id) => {
                if let Some(death) = self.deaths.get_mut(&id) {
                    death.place = None;
                }
            }
            Work::Freeze(id) => {
                if let Some(freeze) = self.freezes.get_mut(&id) {
                    freeze.place = None;
                }
            }
            Work::Transaction(_)
            | Work::ReturnError
            | Work::ReplyError
            | Work::TransactionComplete
            | Work::TransactionPending
            | Work::TransactionOnewaySpamSuspect => {}
        }
        Some(work)
    }

    /// Appends work to a thread's list without asking the thread to come and fetch it
    /// (`binder_enqueue_deferred_thread_work_ilocked`).
    pub fn enqueue_deferred_thread_work(&mut self, thread: ThreadId, work: Work) -> Option<Place> {
        self.enqueue(Queue::Thread(thread), work)
    }

    /// Appends work to a thread's list; the thread's next read gives it
    /// (`binder_enqueue_thread_work_ilocked`).
    pub fn enqueue_thread_work(&mut self, thread: ThreadId, work: Work) -> Option<Place> {
        let place = self.enqueue(Queue::Thread(thread), work);
        if let Some(thread_record) = self.threads.get_mut(&thread) {
            let first = !thread_record.process_todo;
            thread_record.process_todo = true;
            let polls = thread_record.looper.contains(Looper::POLL);
            if first && polls && thread_record.parked.is_none() {
                let process = thread_record.process;
                self.tell_pollers(process);
            }
        }
        place
    }

    /// Appends work to a process's list and wakes one of its threads.
    pub fn enqueue_process_work(&mut self, process: ProcessId, work: Work) -> Option<Place> {
        let place = self.enqueue(Queue::Process(process), work)?;
        self.wakeup_process(process);
        Some(place)
    }
}
