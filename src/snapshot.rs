//! What the daemon holds, as a person at the machine is shown it: the answer to
//! `FAKEBINDER_SNAPSHOT`, as JSON.
//!
//! Ids are the daemon's own (the driver's debug ids); none is used twice. A snapshot does not show
//! one moment: clients go on while it is taken, so an id may name what is not in it any more.

pub mod deadlock;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// [`Snapshot::version`]: another number means that a field has another meaning. Fields may be
/// added without.
pub const VERSION: u32 = 1;

/// What a daemon holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`VERSION`].
    pub version: u32,
    /// The daemon itself.
    pub daemon: Daemon,
    /// Every context, of all mounts, in the order of their making.
    pub contexts: Vec<Context>,
    /// The users who make the daemon hold something, by uid.
    pub users: Vec<User>,
}

/// The daemon itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its process id.
    pub pid: u32,
    /// Milliseconds by its clock, which says nothing but how long ago things were.
    pub now_ms: u64,
    /// Pages of 4 KiB in the mappings of clients.
    pub pages: u64,
    /// Those that no buffer uses.
    pub reclaimable_pages: u64,
    /// The most bytes that pages and records may take; none without a budget.
    pub budget_bytes: Option<u64>,
    /// Its open descriptors.
    pub descriptors: u64,
    /// Its threads.
    pub threads: u64,
}

/// A user, and how much of the daemon that user takes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// The uid that opened the devices.
    pub uid: u32,
    /// What is counted, by the names that `--user-limit` takes.
    pub held: Vec<Held>,
}

/// How much there is of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The kind.
    pub what: String,
    /// How much.
    pub held: u64,
    /// The most that this user may have; none without a limit.
    pub most: Option<u64>,
}

/// A device, or several of one name: one context manager, one object graph.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// Its number.
    pub id: u64,
    /// The device's name when it was made.
    pub name: String,
    /// Which mount it belongs to, from 1 on.
    pub instance: u64,
    /// The context manager's node.
    pub manager: Option<u64>,
    /// Its open files, latest first.
    pub processes: Vec<Process>,
    /// Transactions that are queued, or not answered yet, oldest first.
    pub transactions: Vec<Transaction>,
    /// Nodes whose owner has died and that somebody refers to. Only where objects were asked for.
    pub dead_nodes: Vec<Node>,
}

/// An open file of a device (`struct binder_proc`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub id: u64,
    /// Who opened the file.
    pub pid: i32,
    /// That program's name, as in `/proc/PID/comm`; empty when it is gone.
    pub name: String,
    /// The user who opened it.
    pub uid: u32,
    /// BINDER_SET_MAX_THREADS.
    pub max_threads: u32,
    /// Threads that it was told to start (BR_SPAWN_LOOPER), and that have not come yet.
    pub requested_threads: u32,
    /// Threads that have come (BC_REGISTER_LOOPER).
    pub started_threads: u32,
    /// BINDER_FREEZE.
    pub is_frozen: bool,
    /// By thread id.
    pub threads: Vec<Thread>,
    /// What any of its threads may read, oldest first.
    pub todo: Vec<Work>,
    /// The mapping.
    pub space: Space,
    /// Its pages.
    pub pages: Pages,
    /// Commands that it has sent and returns that it was given, by name; those that there were.
    pub traffic: BTreeMap<String, u64>,
    /// How many nodes it offers.
    pub node_count: u64,
    /// How many references it has.
    pub reference_count: u64,
    /// By pointer. Only where objects were asked for.
    pub nodes: Vec<Node>,
    /// By handle. Only where objects were asked for.
    pub references: Vec<Reference>,
    /// By offset. Only where objects were asked for.
    pub buffers: Vec<Buffer>,
}

/// The space for buffers, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Space {
    /// The mapping; 0 when there is none.
    pub size: u64,
    /// What buffers take.
    pub used: u64,
    /// How many they are.
    pub buffers: u64,
    /// What one-way calls may still take.
    pub free_async: u64,
}

/// How many pages of 4 KiB.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pages {
    /// Installed, and part of a buffer.
    pub active: u64,
    /// Installed, part of no buffer: reclaimed when memory is short.
    pub lru: u64,
    /// Not installed.
    pub free: u64,
}

/// A thread that has called.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// Its id.
    pub id: u64,
    /// The kernel's.
    pub tid: i32,
    /// Whether it serves what comes to its process (BC_ENTER_LOOPER, BC_REGISTER_LOOPER).
    pub is_looper: bool,
    /// What it waits for.
    pub waits: Waits,
    /// Its transactions, the innermost first.
    pub stack: Vec<Call>,
    /// What it will read before anything else.
    pub todo: Vec<Work>,
}

/// What a thread waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waits {
    /// Nothing of binder's: it runs in its program, or is being served.
    #[default]
    Not,
    /// The reply to the innermost of its transactions.
    Reply,
    /// Whatever comes to its process.
    ProcessWork,
    /// What comes to itself alone.
    OwnWork,
}

/// A transaction on the stack of a thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The transaction.
    pub transaction: u64,
    /// The thread has sent it; else it has read it, and has not answered it yet.
    pub is_outgoing: bool,
}

/// A piece of work that a thread will read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// BR_TRANSACTION or BR_REPLY.
    Transaction {
        /// Which.
        id: u64,
    },
    /// BR_DEAD_REPLY, BR_FAILED_REPLY and their kin.
    Error,
    /// BR_TRANSACTION_COMPLETE and its kin.
    Complete,
    /// BR_INCREFS, BR_ACQUIRE, BR_RELEASE, BR_DECREFS.
    Node {
        /// Whose.
        id: u64,
    },
    /// BR_DEAD_BINDER, BR_CLEAR_DEATH_NOTIFICATION_DONE.
    Death,
    /// BR_FROZEN_BINDER, BR_CLEAR_FREEZE_NOTIFICATION_DONE.
    Freeze,
}

/// A transaction on its way (`struct binder_transaction`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    /// Its id.
    pub id: u64,
    /// Nobody waits for an answer.
    pub is_oneway: bool,
    /// It is an answer.
    pub is_reply: bool,
    /// Its sender's.
    pub from_pid: i32,
    /// Its sender's.
    pub from_tid: i32,
    /// The thread that waits for the answer.
    pub from_thread: Option<u64>,
    /// The process that it goes to; none when that has died.
    pub to_process: Option<u64>,
    /// The thread that has read it, or is to; none while any may.
    pub to_thread: Option<u64>,
    /// The node that was called.
    pub node: Option<u64>,
    /// What was called.
    pub code: u32,
    /// `TF_*`.
    pub flags: u32,
    /// Bytes of its data, while it has a buffer.
    pub size: u64,
    /// Milliseconds since it was queued.
    pub age_ms: u64,
}

/// A node (`struct binder_node`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: u64,
    /// Its owner's.
    pub ptr: u64,
    /// Its owner's.
    pub cookie: u64,
    /// How many processes refer to it.
    pub holders: u64,
    /// How many of the references are strong.
    pub strong: u64,
    /// A one-way call that the owner has not done with yet.
    pub has_async_transaction: bool,
    /// One-way calls that wait for that one, oldest first.
    pub async_todo: Vec<u64>,
}

/// A handle (`struct binder_ref`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The number that the process knows it by.
    pub handle: u32,
    /// To which node.
    pub node: u64,
    /// Strong counts of the process.
    pub strong: u64,
    /// Weak counts of the process.
    pub weak: u64,
    /// Whether it wants to know of the death of the node's owner.
    pub has_death: bool,
    /// Whether it wants to know of the owner's freezing.
    pub has_freeze: bool,
}

/// A buffer (`struct binder_buffer`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// In the mapping, in bytes.
    pub offset: u64,
    /// What it takes there, in bytes.
    pub size: u64,
    /// The transaction that brought it.
    pub transaction: u64,
    /// Whether that is not done yet.
    pub is_active: bool,
    /// Whether it counts as a one-way call's.
    pub is_async: bool,
}
