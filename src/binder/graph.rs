//! The object graph of a context: its processes and threads, who refers to whom, who waits for
//! whom.
//!
//! One lock guards all of it. Nothing here copies to or from a client, installs a page or makes a
//! system call: what has to be done in the world is noted as an `Effect` and posted when the
//! lock is dropped ([`super::outbox`]).
//!
//! Records refer to one another by ids that are never used again, so a stale id finds nothing,
//! never somebody else's record.

use super::death::Death;
use super::freeze::Freeze;
use super::limits::Limits;
use super::node::Node;
use super::outbox::Effects;
use super::pieces::{AT_ONCE, Rest, handled};
use super::poll::Notice;
use super::process::ProcessInner;
use super::table::Table;
use super::thread::{Looper, Thread};
use super::traffic::Created;
use super::transaction::Transaction;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
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

/// The place of a piece of work: which list, and where in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub queue: Queue,
    pub sequence: u64,
}

/// `struct binder_work`: something that a thread will read.
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
    /// Dead, dead and cleared, or cleared: the death record says which.
    Death(DeathId),
    Freeze(FreezeId),
}

impl Work {
    fn is_transaction(self) -> bool {
        matches!(self, Work::Transaction(_))
    }

    fn is_complete(self) -> bool {
        match self {
            Work::TransactionComplete
            | Work::TransactionPending
            | Work::TransactionOnewaySpamSuspect => true,
            Work::Transaction(_)
            | Work::ReturnError
            | Work::ReplyError
            | Work::Node(_)
            | Work::Death(_)
            | Work::Freeze(_) => false,
        }
    }
}

/// A list of work, oldest first, from which any item can be taken.
#[derive(Debug, Default)]
pub(crate) struct WorkList {
    works: BTreeMap<u64, Work>,
    /// How many of the items are transactions.
    transactions: usize,
    /// How many say that a transaction was sent (BR_TRANSACTION_COMPLETE).
    completes: usize,
}

impl WorkList {
    fn insert(&mut self, sequence: u64, work: Work) {
        self.transactions += usize::from(work.is_transaction());
        self.completes += usize::from(work.is_complete());
        self.works.insert(sequence, work);
    }

    fn remove(&mut self, sequence: u64) -> Option<Work> {
        let work = self.works.remove(&sequence)?;
        self.transactions -= usize::from(work.is_transaction());
        self.completes -= usize::from(work.is_complete());
        Some(work)
    }

    fn pop_first(&mut self) -> Option<Work> {
        let sequence = *self.works.first_key_value()?.0;
        self.remove(sequence)
    }

    pub fn first(&self) -> Option<Work> {
        self.works.first_key_value().map(|(_, work)| *work)
    }

    /// A place before the first item; none where there is no item.
    fn before_first(&self) -> Option<u64> {
        self.works.first_key_value().map(|(sequence, _)| sequence - 1)
    }

    pub fn get(&self, sequence: u64) -> Option<Work> {
        self.works.get(&sequence).copied()
    }

    pub fn len(&self) -> usize {
        self.works.len()
    }

    pub fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    pub fn transactions(&self) -> usize {
        self.transactions
    }

    pub fn completes(&self) -> usize {
        self.completes
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, Work)> {
        self.after(0)
    }

    /// The work behind a place.
    pub fn after(&self, sequence: u64) -> impl Iterator<Item = (u64, Work)> {
        let later = self.works.range((Bound::Excluded(sequence), Bound::Unbounded));
        later.map(|(sequence, work)| (*sequence, *work)).inspect(|_| handled())
    }
}

/// The places of a process's delivered notices, by the cookie that acknowledges them and oldest
/// first: one client may have very many.
pub(crate) type Cookies = BTreeSet<(u64, u64)>;

/// Every record of a context.
pub(crate) struct Graph {
    pub processes: Table<ProcessId, ProcessInner>,
    pub threads: Table<ThreadId, Thread>,
    pub nodes: Table<NodeId, Node>,
    pub transactions: Table<TransactionId, Transaction>,
    pub deaths: Table<DeathId, Death>,
    pub freezes: Table<FreezeId, Freeze>,
    /// The processes, by their openers' pids.
    pub by_pid: BTreeSet<(i32, ProcessId)>,
    /// The work lists of threads that are gone, until all their work is dropped.
    pub leftovers: BTreeMap<ThreadId, WorkList>,
    /// The context manager's node.
    pub manager: Option<NodeId>,
    /// The uid of the first context manager: later ones must have it too.
    pub manager_uid: Option<u32>,
    /// Threads to look at before the lock is dropped: they may have something to read.
    pub woken: Vec<ThreadId>,
    /// Pollers to be told, when the lock is dropped, that there may be something to read.
    pub told: Vec<Notice>,
    pub effects: Effects,
    /// Work that is left for further sections.
    pub rest: Vec<Rest>,
    /// How many more steps this section may take.
    pub left: usize,
    pub limits: Limits,
    pub created: Created,
    /// How many sections there have been, ever.
    pub sections: u64,
    ids: Arc<AtomicU64>,
    sequence: u64,
}

impl Graph {
    pub fn new(ids: Arc<AtomicU64>, limits: Limits) -> Graph {
        Graph {
            processes: Table::default(),
            threads: Table::default(),
            nodes: Table::default(),
            transactions: Table::default(),
            deaths: Table::default(),
            freezes: Table::default(),
            by_pid: BTreeSet::new(),
            leftovers: BTreeMap::new(),
            manager: None,
            manager_uid: None,
            woken: Vec::new(),
            told: Vec::new(),
            effects: Effects::new(),
            rest: Vec::new(),
            left: AT_ONCE,
            limits,
            created: Created::default(),
            sections: 0,
            ids,
            // What is put before others has numbers below theirs, and none is 0.
            sequence: 1 << 32,
        }
    }

    /// A new id (`binder_last_id`): unique over all contexts, never used again.
    pub fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A number larger than all before it, for what keeps an order.
    pub fn next_in_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Appends work to a list (`binder_enqueue_work_ilocked`); does nothing when the list's owner
    /// is gone.
    pub fn enqueue(&mut self, queue: Queue, work: Work) -> Option<Place> {
        let sequence = self.next_in_sequence();
        let list = match queue {
            // Not to the list of a thread that is gone.
            Queue::Thread(id) => &mut self.threads.get_mut(&id)?.todo,
            Queue::Process(_) | Queue::DeliveredDeath(_) | Queue::DeliveredFreeze(_) => {
                self.list(queue)?
            }
        };
        list.insert(sequence, work);
        Some(Place { queue, sequence })
    }

    /// Takes work out of the list that it stands in (`binder_dequeue_work_ilocked`).
    pub fn dequeue(&mut self, place: Place) {
        if let Some(list) = self.list(place.queue) {
            list.remove(place.sequence);
        }
    }

    /// The list that `queue` names; none once its owner has been released.
    pub fn list(&mut self, queue: Queue) -> Option<&mut WorkList> {
        match queue {
            Queue::Thread(id) => match self.threads.get_mut(&id) {
                Some(thread) => Some(&mut thread.todo),
                None => self.leftovers.get_mut(&id),
            },
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

    /// Appends a notice to the delivered ones, to wait for this cookie.
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
        self.list(queue)?.get(sequence)
    }

    /// Takes the oldest work of a list (`binder_dequeue_work_head_ilocked`). A node, a death or a
    /// freeze record notes that its work stands in no list any more.
    pub fn dequeue_head(&mut self, queue: Queue) -> Option<Work> {
        let work = self.list(queue)?.pop_first()?;
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
        self.have_thread_read(thread);
        place
    }

    /// There is something in a thread's list that is worth reading for.
    fn have_thread_read(&mut self, thread: ThreadId) {
        if let Some(thread_record) = self.threads.get_mut(&thread) {
            let first = !thread_record.process_todo;
            thread_record.process_todo = true;
            let polls = thread_record.looper.contains(Looper::POLL);
            if first && polls && thread_record.parked.is_none() {
                let process = thread_record.process;
                self.tell_pollers(process);
            }
        }
    }

    /// Puts work at the head of a thread's list; the thread's next read begins with it.
    pub fn enqueue_thread_work_first(&mut self, thread: ThreadId, work: Work) {
        let sequence = self.threads.get(&thread).and_then(|thread| thread.todo.before_first());
        let Some(sequence) = sequence else {
            self.enqueue_thread_work(thread, work);
            return;
        };
        if let Some(record) = self.threads.get_mut(&thread) {
            record.todo.insert(sequence, work);
        }
        self.have_thread_read(thread);
    }

    /// Appends work to a process's list and wakes one of its threads.
    pub fn enqueue_process_work(&mut self, process: ProcessId, work: Work) -> Option<Place> {
        let place = self.enqueue(Queue::Process(process), work)?;
        self.wakeup_process(process);
        Some(place)
    }
}
