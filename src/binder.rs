//! The driver itself: what an open binder device does, without knowing how it is reached.
//!
//! A [`Context`] is a device name: one context manager and one graph of processes, threads, nodes,
//! references and transactions, under one lock. A [`Process`] is an open file of it. A [`Binder`]
//! is one instance of binderfs: names of contexts, and what its logs tell. The engine
//! has no descriptor, no clock and no thread of its own: the device hands it ioctls ([`Call`]) and
//! gives it what it needs of the world ([`Task`], [`Timers`], the memory of a client); tests and
//! fuzz targets do the same with plain bytes.
//!
//! Where to find how the driver does something:
//!
//! | file | noun |
//! |---|---|
//! | `ioctl` | the ioctls |
//! | `write`, `read` | the two halves of BINDER_WRITE_READ |
//! | `section` | an ioctl's stay under the lock, over several commands |
//! | `send` | `binder_transaction`: the way of a transaction to its target's list of work |
//! | `target` | where a transaction goes |
//! | `message` | how the buffer of a transaction is filled |
//! | `delivery` | how returns get to a client's memory; a drawing of a call's way |
//! | `stop` | delivery of descriptors to a thread that is stopped on its way back to its program |
//! | `outbox` | what was decided under the lock and is still to be done |
//! | `copies` | the cap on copies to and from a client's memory that stall |
//! | `oneway` | the calls that wait for a node |
//! | `transaction` | a transaction's life, replies that fail, buffers that are freed |
//! | `exit` | threads that have ended without BINDER_THREAD_EXIT |
//! | `thread`, `process`, `node`, `reference` | the records of the driver |
//! | `death`, `freeze` | the notifications, and what freezing does to a process |
//! | `ports` | what a device hands in: the calls, and how the engine reaches the world |
//! | `poll` | who polls, and who is told |
//! | `graph` | all records of a context, and their work lists |
//! | `table`, `pieces` | the tables of records; long work, a piece in each section |
//! | `logs`, `traffic` | what binderfs shows in `binder_logs` |
//! | `limits` | what one client may make the daemon hold |
//! | `invariants` | what holds of a context between two ioctls |
#![forbid(unsafe_code)]

pub mod copies;
mod deadlocks;
mod death;
mod delivery;
mod exit;
mod foresee;
mod freeze;
mod graph;
pub mod invariants;
mod ioctl;
mod limits;
mod logs;
mod message;
mod node;
mod oneway;
pub mod outbox;
mod pieces;
mod poll;
mod ports;
mod postpone;
mod process;
mod read;
mod reference;
mod section;
mod send;
mod snapshot;
mod stats;
mod stop;
mod table;
mod target;
mod tell;
mod thread;
mod traffic;
mod transaction;
mod write;

pub use copies::{AtOnce, Carriers, Copies};
pub use limits::Limits;
pub use ports::{
    Birth, Call, Completion, File, HeldThread, Identity, Installed, Poller, Task, Timers, Watching,
};
pub use stats::Stats;

use crate::lock_order::rank;
use crate::protocol::record::Put;
use crate::quota::User;
use crate::sync::Mutex;
use crate::uapi::{FAKEBINDER_RECORD_CLOSE, FAKEBINDER_RECORD_OPEN};
use crate::{Errno, alloc::Alloc};
use copies::Subject;
use deadlocks::Deadlocks;
use graph::{Graph, ProcessId};
use outbox::{Item, Outbox};
use pieces::AT_ONCE;
use process::ProcessInner;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use traffic::{Created, Traffic, TransactionLog};

/// A byte string that is kept inline while it is short: the argument of an ioctl, the returns of a
/// read.
pub type FewBytes = SmallVec<[u8; 128]>;

impl Put for FewBytes {
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// An ioctl that is to be ended.
pub(crate) struct Finish {
    /// The open file that the ioctl was called on.
    pub process: Arc<Process>,
    pub reply: Box<dyn Completion>,
    pub result: Result<i32, Errno>,
    pub out: FewBytes,
}

impl Finish {
    fn send(self) {
        self.reply.send(self.result, &self.out);
    }

    fn restart(self) {
        self.reply.restart(&self.out);
    }
}

/// The wait of a BINDER_FREEZE caller: which process is to be frozen, and the ticket of the wait.
struct FreezeCaller {
    target: Weak<Process>,
    ticket: u64,
}

/// The driver, as one mount sees it: the contexts of an instance of binderfs, and every open
/// process in them. The logs tell of these alone. (The driver's tell of all instances, to whoever
/// its administrator lets see them.)
pub struct Binder {
    /// The contexts that [`Binder::context`] finds by name.
    named: Mutex<BTreeMap<Arc<str>, Arc<Context>>, rank::Contexts>,
    instance: Arc<Instance>,
    shared: Arc<Shared>,
}

/// What the logs of an instance tell, besides what is in its contexts.
struct Instance {
    /// From 1 on.
    number: u64,
    /// How many records were made in contexts that are gone: the totals of `binder_logs/stats`
    /// include them.
    created: Mutex<Created, rank::Created>,
    traffic: Traffic,
    transaction_log: TransactionLog,
    failed_log: TransactionLog,
}

/// What the contexts of all instances share.
struct Shared {
    /// Every context that exists, in the order of their making.
    contexts: Mutex<BTreeMap<u64, Weak<Context>>, rank::SharedContexts>,
    last_context: AtomicU64,
    last_instance: AtomicU64,
    ids: Arc<AtomicU64>,
    limits: Limits,
    timers: Arc<dyn Timers>,
    carriers: Arc<dyn Carriers>,
    outbox: Outbox<Item>,
    freeze_callers: Mutex<FxHashMap<(ProcessId, i32), FreezeCaller>, rank::FreezeCallers>,
    deadlocks: Deadlocks,
}

/// A device name: one context manager, one object graph, one lock.
///
/// A context lives as long as its device or an open file of that.
pub struct Context {
    number: u64,
    name: Arc<str>,
    instance: Arc<Instance>,
    shared: Arc<Shared>,
    graph: Mutex<Graph, rank::Graph>,
    long_work: Mutex<(), rank::LongWork>,
}

/// An open file of a device (`struct binder_proc`): the part that never changes. The part that
/// changes is a record of the context's graph. Dropping the last `Arc` of a process frees its
/// buffers.
pub struct Process {
    id: ProcessId,
    /// The opener's thread group, in the daemon's pid namespace.
    pid: i32,
    /// The opener's nice value.
    default_nice: i32,
    context: Arc<Context>,
    task: Arc<dyn Task>,
    /// The user that the records of this open file are charged to.
    user: Arc<User>,
    alloc: Arc<Alloc>,
    copies: Arc<Copies>,
    traffic: Traffic,
}

/// What an entry into the driver has left to do for other clients; it is done when this value is
/// dropped. By then the caller must have its answer, or be parked, and must have given back its
/// [`copies::Place`], so that no caller waits for another client's memory.
pub struct Due<'a>(&'a Arc<Shared>);

impl Drop for Due<'_> {
    fn drop(&mut self) {
        match self.0.carriers.must_not_stall() {
            true => self.0.hand_over(),
            false => self.0.carry_out(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.alloc.deferred_release();
    }
}

impl Binder {
    /// A driver for clients whose memory never stalls.
    pub fn new(timers: Arc<dyn Timers>) -> Arc<Binder> {
        Self::with_limits(timers, Limits::default())
    }

    /// A driver with limits of its own, for clients that are trusted more or less than usual.
    pub fn with_limits(timers: Arc<dyn Timers>, limits: Limits) -> Arc<Binder> {
        Self::with_carriers(timers, Arc::new(AtOnce), limits)
    }

    /// A driver with threads for work that may stall in a client's memory.
    pub fn with_carriers(
        timers: Arc<dyn Timers>,
        carriers: Arc<dyn Carriers>,
        limits: Limits,
    ) -> Arc<Binder> {
        let shared = Arc::new(Shared {
            limits,
            contexts: Mutex::default(),
            last_context: AtomicU64::new(0),
            last_instance: AtomicU64::new(0),
            ids: Arc::default(),
            timers,
            carriers,
            outbox: Outbox::new(),
            freeze_callers: Mutex::default(),
            deadlocks: Deadlocks::default(),
        });
        Self::instance_of(shared)
    }

    /// Another instance: its contexts are others, whatever their names, and its logs do not tell of
    /// this one. BINDER_FREEZE concerns the processes of all instances, as on the driver.
    pub fn another_instance(&self) -> Arc<Binder> {
        Self::instance_of(self.shared.clone())
    }

    fn instance_of(shared: Arc<Shared>) -> Arc<Binder> {
        let instance = Arc::new(Instance {
            number: shared.last_instance.fetch_add(1, Ordering::Relaxed) + 1,
            created: Mutex::default(),
            traffic: Traffic::default(),
            transaction_log: TransactionLog::default(),
            failed_log: TransactionLog::default(),
        });
        Arc::new(Binder { named: Mutex::default(), instance, shared })
    }

    /// The context of that name, made when it is new.
    pub fn context(&self, name: &str) -> Arc<Context> {
        let mut named = self.named.lock();
        if let Some(context) = named.get(name) {
            return context.clone();
        }
        let context = self.new_context(name);
        named.insert(context.name.clone(), context.clone());
        context
    }

    /// A new context, even if another has that name: [`Binder::context`] does not find it.
    pub fn new_context(&self, name: &str) -> Arc<Context> {
        let number = self.shared.last_context.fetch_add(1, Ordering::Relaxed) + 1;
        let context = Arc::new(Context {
            number,
            name: name.into(),
            instance: self.instance.clone(),
            shared: self.shared.clone(),
            graph: Mutex::new(Graph::new(self.shared.ids.clone(), self.shared.limits)),
            long_work: Mutex::default(),
        });
        self.shared.contexts.lock().insert(number, Arc::downgrade(&context));
        context
    }

    /// Carries out what is in the outbox, whoever put it there.
    pub fn carry_out(&self) {
        self.shared.carry_out();
    }

    /// While something waits in the outbox: a number that changes whenever anything is taken out.
    pub fn outbox_progress(&self) -> Option<u64> {
        self.shared.outbox.progress()
    }

    /// The device of this context has been removed: its name is free for another device. Clients
    /// that have the removed device open go on using it.
    pub fn forget_context(&self, context: &Arc<Context>) {
        let mut named = self.named.lock();
        let is_named = named.get(&context.name).is_some_and(|it| Arc::ptr_eq(it, context));
        let forgotten = is_named.then(|| named.remove(&context.name));
        drop(named);
        // Outside the lock: where this `Arc` is the last, the context takes other locks as it goes.
        drop(forgotten);
    }

    /// Every context of this instance, also of devices that have been removed and are still open.
    fn contexts(&self) -> Vec<Arc<Context>> {
        let mut contexts = self.shared.contexts();
        contexts.retain(|context| Arc::ptr_eq(&context.instance, &self.instance));
        contexts
    }

    /// What the driver holds, over the contexts of all instances.
    pub fn stats(&self) -> Stats {
        self.shared.contexts().iter().map(|context| context.stats()).sum()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let made = self.graph.get_mut().created;
        let mut created = self.instance.created.lock();
        *created = *created + made;
        drop(created);
        self.shared.contexts.lock().remove(&self.number);
    }
}

impl Shared {
    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Every context, of all instances.
    fn contexts(&self) -> Vec<Arc<Context>> {
        self.contexts.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Every open file of a thread group, over all contexts, the latest first, each with whether it
    /// is being released.
    fn processes_of(&self, pid: i32) -> Vec<(bool, Arc<Process>)> {
        let contexts = self.contexts().into_iter();
        let mut found: Vec<_> = contexts.flat_map(|context| context.processes_of(pid)).collect();
        found.sort_by_key(|(_, process)| std::cmp::Reverse(process.id));
        found
    }

    fn note_freeze_caller(&self, caller: (ProcessId, i32), target: &Arc<Process>, ticket: u64) {
        let caller_wait = FreezeCaller { target: Arc::downgrade(target), ticket };
        self.freeze_callers.lock().insert(caller, caller_wait);
    }

    fn forget_freeze_caller(&self, caller: (ProcessId, i32)) -> Option<FreezeCaller> {
        let waited = self.freeze_callers.lock().remove(&caller)?;
        self.timers.cancel(waited.ticket);
        Some(waited)
    }
}

impl Context {
    /// The name that the context was made with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `binder_open`. `pid` is the opener's thread group, `tid` the opening thread.
    pub fn open(
        self: &Arc<Self>,
        pid: i32,
        tid: i32,
        task: Arc<dyn Task>,
        alloc: Arc<Alloc>,
    ) -> Arc<Process> {
        let id = ProcessId(self.graph.lock().next_id());
        let default_nice = task.nice(tid);
        let user = task.user();
        let copies = task.copies();
        let process = Arc::new(Process {
            id,
            pid,
            default_nice,
            context: self.clone(),
            task,
            user,
            alloc,
            copies,
            traffic: Traffic::default(),
        });
        let mut graph = self.graph.lock();
        graph.created.processes += 1;
        graph.processes.insert(id, ProcessInner::new(process.clone()));
        graph.by_pid.insert((pid, id));
        drop(graph);
        process.record(FAKEBINDER_RECORD_OPEN, tid, &[]);
        process
    }

    /// How often the context's lock was taken to change something.
    pub fn sections(&self) -> u64 {
        self.with_graph(|graph| graph.sections)
    }

    /// What this context holds.
    pub fn stats(&self) -> Stats {
        Stats::of(self)
    }

    /// Every open file of a thread group, oldest first, each with whether it is being released.
    fn processes_of(&self, pid: i32) -> Vec<(bool, Arc<Process>)> {
        let mut found = Vec::new();
        self.in_pieces(|graph, after: Option<ProcessId>| {
            let from = after.map_or(ProcessId(0), |id| ProcessId(id.0 + 1));
            let some = graph.by_pid.range((pid, from)..=(pid, ProcessId(u64::MAX)));
            let mut last = None;
            for (number, (_, id)) in some.take(AT_ONCE).enumerate() {
                let record = graph.processes.get(id);
                found.extend(record.map(|record| (record.is_dead, record.process.clone())));
                last = Some(*id).filter(|_| number + 1 == AT_ONCE);
            }
            last
        });
        found
    }
}

impl Process {
    fn count_command(&self, number: u32) {
        self.traffic.count_command(number);
        self.context.instance.traffic.count_command(number);
    }

    fn count_return(&self, number: u32) {
        self.traffic.count_return(number);
        self.context.instance.traffic.count_return(number);
    }

    /// The opener's thread group, in the daemon's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The allocator of the buffers in this file's mapping.
    pub fn alloc(&self) -> &Arc<Alloc> {
        &self.alloc
    }

    /// The cap on copies to and from its client's memory.
    pub fn copies(&self) -> &Arc<Copies> {
        &self.copies
    }

    fn due(&self) -> Due<'_> {
        Due(&self.context.shared)
    }

    /// The threads for work that may stall.
    pub fn carriers(&self) -> &dyn Carriers {
        &*self.context.shared.carriers
    }

    fn pid_from_client(&self, pid: i32) -> i32 {
        self.task.pid_named(pid)
    }

    /// A signal has arrived for the thread `tid`: ends its blocked ioctl, if it has one.
    /// To be called once [`Completion::interrupted`] returns true.
    pub fn interrupt(self: &Arc<Self>, tid: i32) -> Due<'_> {
        let caller = self.context.locked(|graph| {
            graph.interrupt_thread(self.id, tid);
            graph.interrupted_caller(self.id, tid)
        });
        if let Some(thread) = caller {
            self.attend_thread(thread);
        }
        if let Some(caller) = self.context.shared.forget_freeze_caller((self.id, tid))
            && let Some(target) = caller.target.upgrade()
        {
            target.end_freeze_wait(caller.ticket, ioctl::FreezeEnd::Interrupted);
        }
        self.due()
    }

    /// The number of its context, which no other has.
    pub fn context_number(&self) -> u64 {
        self.context.number
    }

    /// `binder_flush`: every blocked thread returns once.
    pub fn flush(self: &Arc<Self>) -> Due<'_> {
        self.context.locked(|graph| graph.flush(self.id));
        self.due()
    }

    /// `binder_release`. Blocked reads are ended; nothing of the process remains but the memory of
    /// its buffers, which is freed with the last `Arc` of the process.
    pub fn release(self: &Arc<Self>) -> Due<'_> {
        self.record(FAKEBINDER_RECORD_CLOSE, 0, &[]);
        let mut work = self.context.long_work();
        // A small process is released in one section: nobody sees half of that.
        let some_is_left = |graph: &mut Graph| {
            graph.begin_release(self.id);
            graph.release_some(self.id)
        };
        while work.locked(some_is_left) {
            // Clients that are told of the release need not wait for the rest of it, nor it for
            // them.
            self.context.shared.hand_over();
        }
        // Deliveries that still wait for a place are given up: their threads are released.
        self.copies.give_up(Subject::Process(self.id.0));
        self.due()
    }
}
