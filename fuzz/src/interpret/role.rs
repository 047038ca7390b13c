//! A client of a program: its threads, and what it knows.

use super::THREADS;
use crate::barrier::View;
use crate::ledger::Identity;
use fakebinder::Errno;
use fakebinder::alloc::Alloc;
use fakebinder::binder::{Poller, Process};
use fakebinder::protocol::record::{HandleCookie, PtrCookie};
use fakebinder_sim::HeapMm;
use fakebinder_sim::{Arena, SimClient, Slot};
use std::sync::Arc;

/// What tells the cookies of nodes from their pointers.
pub(super) const COOKIE: u64 = 0x5eed_0000_0000;

/// A thread of a client.
pub(super) struct Thread {
    /// The ioctl that it is in.
    pub running: Option<Running>,
    /// How the last one ended.
    pub last: Result<i32, Errno>,
    /// Calls that it serves, by their numbers in the ledger, the last on top.
    pub serving: Vec<usize>,
}

impl Default for Thread {
    fn default() -> Thread {
        Thread { running: None, last: Ok(0), serving: Vec::new() }
    }
}

pub(super) struct Running {
    pub slot: Arc<Slot>,
    pub kind: Kind,
}

/// What is to be done when an ioctl ends.
pub(super) enum Kind {
    WriteRead { done: Vec<(u64, Done)> },
    Other(u32),
}

/// What a client remembers of a command, once it was carried out.
#[derive(Clone, Copy)]
pub(super) enum Done {
    Nothing,
    Freed(u64),
    Answered,
    Confirmed(PtrCookie, bool),
    AskedDeath(HandleCookie),
    ClearedDeath(HandleCookie),
    AcceptedDeath(u64),
    AskedFreeze(HandleCookie),
    ClearedFreeze(HandleCookie),
    AcceptedFreeze(u64),
    /// It counts this handle itself; whether that keeps it, too (a first strong count may be
    /// refused).
    Counted {
        handle: u32,
        keeps: bool,
    },
}

/// One open file.
pub(super) struct Role {
    /// Its place on the stage.
    pub index: usize,
    pub pid: i32,
    pub process: Arc<Process>,
    pub client: Arc<SimClient>,
    pub alloc: Arc<Alloc>,
    pub mm: Arc<HeapMm>,
    pub arena: Arc<Arena>,
    pub view: Arc<View>,
    pub threads: [Thread; THREADS + 1],
    pub open: bool,
    pub handles: Vec<u32>,
    /// Handles that it has ever let go of, perhaps too often.
    pub dropped: Vec<u32>,
    pub buffers: Vec<u64>,
    pub freed: Vec<u64>,
    pub notices: Vec<(PtrCookie, bool)>,
    pub death_links: Vec<HandleCookie>,
    /// What it asked to be told of, with the role that owns the node.
    pub death_watches: Vec<(u64, usize)>,
    pub deaths: Vec<u64>,
    pub freeze_links: Vec<HandleCookie>,
    pub freezes: Vec<u64>,
    pub next_cookie: u64,
    /// Handles that it has counted itself.
    pub kept: Vec<u32>,
    /// It may have been told things that it could not read.
    pub is_lossy: bool,
    /// It has freed or released something in this step, perhaps what it received in it.
    pub hasty: bool,
}

impl Role {
    pub fn tid(&self, thread: usize) -> i32 {
        self.pid * 10 + thread as i32
    }

    /// Its `n`-th node; four are enough.
    pub fn node(&self, n: u8) -> Identity {
        let ptr = self.nodes().start + 8 * u64::from(n % 4);
        (ptr, ptr ^ COOKIE)
    }

    pub fn nodes(&self) -> std::ops::Range<u64> {
        let start = (self.index as u64 + 1) << 16;
        start..start + (1 << 16)
    }

    pub fn euid(&self) -> u32 {
        // The second process is somebody else.
        1000 + u32::from(self.index == 1)
    }
}

/// Somebody who polls, and never looks again.
pub(super) struct Idle;

impl Poller for Idle {
    fn wake(&self) {}
}
