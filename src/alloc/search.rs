//! The search for a client's mapping, where the daemon was not told of the mmap (passthrough).

use super::Alloc;
use super::pages::Mapping;
use crate::Errno;
use crate::lock_order::rank;
use crate::sync::Mutex;
// Not a part of the page protocol: the model check need not look at it.
use std::sync::atomic::{AtomicU64, Ordering};

/// What is known from earlier searches of one client.
#[derive(Default)]
pub(super) struct Searches {
    /// How often the client has called while no mapping of it was known.
    calls: AtomicU64,
    /// The state of the client when it was last searched in vain.
    missed: Mutex<Option<Missed>, rank::Missed>,
}

/// The state of a client that has not mapped its buffer, from before it was searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Missed {
    /// How often the client had called.
    calls: u64,
    /// How many pages the client had mapped, of anything.
    total_vm: Option<u64>,
}

impl Alloc {
    /// The client calls the driver: it may have mapped its buffer since it was last searched.
    pub fn owner_calls(&self) {
        self.memory.relieve();
        if self.mapping.get().is_none() {
            self.searches.calls.fetch_add(1, Ordering::Release);
        }
    }

    /// Where the client has its mapping, and how many bytes, once that is known.
    pub fn place(&self) -> Option<(u64, usize)> {
        self.mapping.get().map(|mapping| (mapping.vm_start, mapping.buffer_size))
    }

    /// The mapping; searched for in the client when the daemon was not told of it. ESRCH: there is
    /// none; other errors: whether there is one could not be found out.
    ///
    /// A search takes the longer the more mappings the client has, and other threads wait for it.
    /// After a search in vain the next one is made only when the client has called since, or has
    /// another amount of memory mapped.
    pub(super) fn mapping(&self) -> Result<&Mapping, Errno> {
        if !self.is_mapped() {
            if let Some(mapping) = self.mapping.get() {
                // The mapping is gone; or another sender has just found it, and holds this lock
                // until everything about it is noted.
                drop(self.buffers.lock());
                return if self.is_mapped() { Ok(mapping) } else { Err(Errno::ESRCH) };
            }
            let searches = &self.searches;
            let calls = searches.calls.load(Ordering::Acquire);
            let now = Missed { calls, total_vm: self.mm.total_vm() };
            if *searches.missed.lock() == Some(now) {
                return Err(Errno::ESRCH);
            }
            let found = self.mm.find_mapping();
            if matches!(found, Err(Errno::ESRCH | Errno::EPERM)) {
                *searches.missed.lock() = Some(now);
            }
            let (address, size) = found.map_err(|errno| match errno {
                Errno::EPERM => Errno::ESRCH,
                errno => errno,
            })?;
            match self.mmap_handler(address, size) {
                // EBUSY: another sender has found the mapping at the same time.
                Ok(()) | Err(Errno::EBUSY) if self.is_mapped() => {}
                _ => return Err(Errno::ESRCH),
            }
        }
        self.mapping.get().ok_or(Errno::ESRCH)
    }
}
