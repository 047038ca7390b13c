//! Binder clients in plain memory: the engine and the allocator without a device, a kernel or a
//! process. Tests read as scenes, and fuzz targets run at the speed of function calls.
//!
//! A [`World`] is a driver; a [`Sim`] is an open file of a device, with an address space and a
//! descriptor table of its own; a [`SimThread`] is one of its threads. A read that finds nothing
//! does not block: it is a [`Pending`], which another client's call may complete.

mod arena;
mod client;
mod open;
mod pending;
mod thread;
mod timers;

pub use arena::{ARENA, Arena};
pub use client::{SimClient, SimFile};
pub use open::{MAPPING, Sim};
pub use pending::{Ended, Pending, SimReply, Slot};
pub use thread::SimThread;
pub use timers::ManualTimers;

use crate::HeapMm;
use fakebinder::alloc::Alloc;
use fakebinder::binder::{Binder, Limits, Stats};
use fakebinder::memory::{Memory, MemoryConfig};
use fakebinder::probe::Probes;
use fakebinder::quota::User;
use std::sync::Arc;

/// A driver, its memory and its clock.
pub struct World {
    /// The engine.
    pub binder: Arc<Binder>,
    /// The driver's page budget and LRU.
    pub memory: Arc<Memory>,
    /// The driver's clock.
    pub timers: Arc<ManualTimers>,
}

impl Default for World {
    fn default() -> World {
        World::new(MemoryConfig::default())
    }
}

impl World {
    /// A driver with that memory.
    pub fn new(config: MemoryConfig) -> World {
        World::with_limits(config, Limits::default())
    }

    /// The same, with these limits on what a client may make the driver hold.
    pub fn with_limits(config: MemoryConfig, limits: Limits) -> World {
        let timers = Arc::new(ManualTimers::default());
        let binder = Binder::with_limits(timers.clone(), limits);
        World { binder, memory: Memory::new(config), timers }
    }

    /// Opens the device `binder` as the thread group `pid` and maps 128 KiB.
    pub fn open(&self, pid: i32) -> Sim {
        let sim = self.open_unmapped("binder", pid);
        sim.mmap(128 << 10).expect("a first mapping succeeds");
        sim
    }

    /// Opens a device and maps nothing.
    pub fn open_unmapped(&self, device: &str, pid: i32) -> Sim {
        self.open_for(User::unlimited(), device, pid)
    }

    /// As [`World::open_unmapped`], for a user, who may have other open files.
    pub fn open_for(&self, user: Arc<User>, device: &str, pid: i32) -> Sim {
        let client = Arc::new(SimClient::default());
        *client.user.lock() = Some(user.clone());
        let mm = HeapMm::new();
        let alloc = Alloc::of_user(mm.clone(), &self.memory, user, Probes::default());
        let context = self.binder.context(device);
        let process = context.open(pid, pid, client.clone(), alloc.clone());
        Sim { context, process, client, alloc, mm, arena: Arc::default(), pid, euid: 1000 }
    }

    /// What the driver holds.
    pub fn stats(&self) -> Stats {
        self.binder.stats()
    }
}
