//! The mm that the allocator sees: the kernel's verbs over real memory.
//!
//! | verb | what it does here |
//! |---|---|
//! | `mmget_not_zero`, `mmput` | the client lives; its mappings can be looked at until the put |
//! | `mmap_read_lock`, `_write_lock`, `_read_trylock` | a read-write lock per client |
//! | `vma_lookup` | the client's real mapping; none after munmap, nor for an impostor there |
//! | `alloc_page`, `free_page` | takes from and gives to the budget of pages |
//! | `vm_insert_page` | installs one page of the buffer file; EBUSY when it is there |
//! | `get_user_pages_remote` | finds a page that another thread installed; never makes one |
//! | `zap_page_range_single` | takes a page out of the client, the daemon and the accounting |
//!
//! [`MmStruct`] is what these verbs share: locks, budget, fault injection. Behind it there is an
//! [`AddressSpace`]: a client process ([`RemoteMm`]) or, for tests and fuzzing, the plain memory of
//! the package `fakebinder-sim`.

mod buffer_file;
mod image;
mod maps;
mod remote;
mod userfault;

// The mm of the unit tests, too. They cannot take it from its package, which sees this library from
// outside, and so has another trait `Mm`.
#[cfg(test)]
#[path = "../sim/src/heap.rs"]
#[allow(dead_code, reason = "these tests use a part of it")]
mod heap;

pub use buffer_file::{BufferFile, PageCache, create_memfd};
#[cfg(test)]
pub(crate) use heap::HeapMm;
pub use remote::{Features, KeptMaps, MappingKind, RemoteMm};

use crate::Errno;
use crate::client_log::{Kind, client_log};
use crate::client_mem::ClientMemory;
use crate::lock_order::rank;
use crate::memory::Memory;
use crate::page::{MAX_BUFFER_SIZE, PAGE_SIZE};
use crate::probe::{Installing, Probes, Verb};
use crate::quota::{User, What};
use crate::sync::modelled::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MAX_PAGES: usize = MAX_BUFFER_SIZE / PAGE_SIZE;

/// A page that is part of no buffer, not yet or no longer: the right to one page of the budget. Its
/// bytes come into being when the page is inserted.
#[derive(Debug)]
#[must_use = "a page that is dropped instead of freed stays charged"]
pub struct Page(());

/// The buffer file of a client and its address space: what differs between real memory and memory
/// for tests. Offsets are bytes from the start of the mapping, indices count its pages.
pub trait AddressSpace: Send + Sync {
    /// The client, for log lines.
    fn pid(&self) -> i32;

    /// Where the client has mapped its buffer, for a daemon that was not told of it: address and
    /// length in bytes. ESRCH: nowhere. EPERM: in a way that is not allowed.
    fn find_mapping(&self) -> Result<(u64, usize), Errno>;

    /// How many pages the client has mapped, of anything; none where that is not known. Cheaper
    /// than a search: while the number stays the same, the client has most likely mapped nothing
    /// new.
    fn total_vm(&self) -> Option<u64>;

    /// Whether the client lives. If so, [`AddressSpace::mmput`] must follow.
    fn mmget_not_zero(&self) -> bool;

    /// Ends a use of the mm; one for each [`AddressSpace::mmget_not_zero`] that found a client.
    fn mmput(&self);

    /// Whether the client has page `index` of its buffer file mapped at `address` now. If so,
    /// returns the pages around it for which the same look has found the same: one page where
    /// looking is cheap, the whole mapping where it is not.
    fn vma_lookup(&self, address: u64, index: usize) -> Result<Range<usize>, NoVma>;

    /// Makes a page of zeros. EBUSY: there is a page already.
    fn vm_insert_page(&self, index: usize) -> Result<(), Errno>;

    /// Whether there is a page, whoever made it.
    fn get_user_pages_remote(&self, index: usize) -> bool;

    /// Removes a page that is installed.
    fn zap_page(&self, index: usize) -> Result<(), Errno>;

    /// Removes every page. Does not fail, since nobody looks after the pages any more.
    fn exit_mmap(&self);

    /// Copies `len` bytes from a client into installed pages. EFAULT: the client's memory or a page
    /// is missing.
    fn copy_from_client(
        &self,
        offset: usize,
        from: &dyn ClientMemory,
        addr: u64,
        len: usize,
    ) -> Result<(), Errno>;

    /// Copies `bytes` into installed pages. EFAULT: one of the pages is missing.
    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno>;

    /// Lets the client see what was written, where it has mapped something else than what was
    /// written to. ENOMEM: there is no memory for that.
    fn publish(&self, _offset: usize, _len: usize) -> Result<(), Errno> {
        Ok(())
    }

    /// Overwrites with zeros.
    fn clear(&self, offset: usize, len: usize) -> Result<(), Errno>;
}

/// Why [`MmStruct::vma_lookup`] has found nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoVma {
    /// The client has unmapped its buffer, or has put something else there.
    Closed,
    /// Whether it is there could not be found out, for this reason.
    Unknown(Errno),
}

/// The client's mapping, found under the mm's lock and not to be kept beyond it.
///
/// What the lock guarantees, and what not: it belongs to the daemon. It keeps out the driver's side
/// of munmap (`mmap_handler`, `vma_close` and release), and not the client, whose munmap the kernel
/// carries out without the daemon, before, between or after its steps. A page that is inserted into
/// the buffer file of a client that has just unmapped the file is seen by nobody, and reclaimed
/// like any other; the next use of the mm finds the mapping gone. So one look may serve for one use
/// of the mm ([`MmWithUser`], one buffer's pages), and never for a second one.
#[derive(Debug)]
pub struct Vma<'lock>(PhantomData<&'lock ()>);

/// The mm's lock, held.
#[derive(Debug)]
pub enum MmapLock<'mm> {
    /// Held to install or zap pages.
    #[allow(dead_code, reason = "held for its drop")]
    Read(RwLockReadGuard<'mm, ()>),
    /// Held by mmap and release.
    #[allow(dead_code, reason = "held for its drop")]
    Write(RwLockWriteGuard<'mm, ()>),
}

/// A use of the mm, from `mmget_not_zero` to `mmput`.
pub struct MmWithUser<'mm> {
    mm: &'mm dyn AddressSpace,
    /// The pages for which the last look in this use has found the mapping.
    seen: Cell<(usize, usize)>,
}

impl Drop for MmWithUser<'_> {
    fn drop(&mut self) {
        self.mm.mmput();
    }
}

/// The address space of one client (`struct mm_struct`), as far as binder cares.
pub struct MmStruct {
    mm: Arc<dyn AddressSpace>,
    user: Arc<User>,
    memory: Arc<Memory>,
    probes: Probes,
    mmap_lock: RwLock<(), rank::Mmap>,
    /// For each page whether it is paid for out of the budget. The thread that sets one of these
    /// has paid.
    charged: Box<[AtomicBool]>,
}

impl MmStruct {
    /// The mm of a client, whose pages are charged to `user`.
    pub fn new(
        mm: Arc<dyn AddressSpace>,
        memory: &Arc<Memory>,
        user: Arc<User>,
        probes: Probes,
    ) -> Self {
        Self {
            mm,
            user,
            memory: memory.clone(),
            probes,
            mmap_lock: RwLock::new(()),
            charged: (0..MAX_PAGES).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// The client, for log lines.
    pub fn pid(&self) -> i32 {
        self.mm.pid()
    }

    /// As [`AddressSpace::find_mapping`].
    pub fn find_mapping(&self) -> Result<(u64, usize), Errno> {
        self.mm.find_mapping()
    }

    /// Until the result is dropped, the calling thread installs pages for this sender (as `current`
    /// tells the kernel).
    pub(crate) fn installing(&self, sender: i32) -> Installing<'_> {
        self.probes.installing(sender)
    }

    /// As [`AddressSpace::total_vm`].
    pub fn total_vm(&self) -> Option<u64> {
        self.mm.total_vm()
    }

    /// Begins a use of the mm. ESRCH: the client is gone.
    pub fn mmget_not_zero(&self) -> Result<MmWithUser<'_>, Errno> {
        self.probes.at(Verb::MmGet)?;
        match self.mm.mmget_not_zero() {
            true => Ok(MmWithUser { mm: &*self.mm, seen: Cell::default() }),
            false => Err(Errno::ESRCH),
        }
    }

    /// Waits until nobody holds the lock for writing.
    pub fn mmap_read_lock(&self) -> MmapLock<'_> {
        MmapLock::Read(self.mmap_lock.read())
    }

    /// Waits until nobody holds the lock.
    pub fn mmap_write_lock(&self) -> MmapLock<'_> {
        MmapLock::Write(self.mmap_lock.write())
    }

    /// None where somebody holds the lock.
    pub fn mmap_write_trylock(&self) -> Option<MmapLock<'_>> {
        self.mmap_lock.try_write().map(MmapLock::Write)
    }

    /// None where somebody holds the lock for writing.
    pub fn mmap_read_trylock(&self) -> Option<MmapLock<'_>> {
        self.mmap_lock.try_read().map(MmapLock::Read)
    }

    /// The client's mapping of page `index` at `address`, if that still maps the buffer file.
    pub fn vma_lookup<'lock>(
        &self,
        users: &MmWithUser<'_>,
        _lock: &'lock MmapLock<'_>,
        address: u64,
        index: usize,
    ) -> Result<Vma<'lock>, NoVma> {
        self.probes.at(Verb::VmaLookup).map_err(NoVma::Unknown)?;
        let (first, end) = users.seen.get();
        if !(first..end).contains(&index) {
            let seen = self.mm.vma_lookup(address, index)?;
            users.seen.set((seen.start, seen.end));
        }
        Ok(Vma(PhantomData))
    }

    /// A page of zeros, out of the budget. To be called under neither the buffer mutex nor the LRU
    /// lock. ENOMEM: the budget, or the user's share of it, is used up.
    pub fn alloc_page(&self) -> Result<Page, Errno> {
        self.probes.at(Verb::AllocPage)?;
        while !self.user.may_have(What::Pages, 1) && self.memory.reclaim_some() > 0 {}
        self.user.charge(What::Pages, 1)?;
        self.memory.charge().inspect_err(|_| self.user.uncharge(What::Pages, 1))?;
        Ok(Page(()))
    }

    /// `__free_page`.
    pub fn free_page(&self, page: Page) {
        let Page(()) = page;
        self.uncharge(1);
    }

    fn uncharge(&self, pages: usize) {
        self.memory.uncharge(pages);
        self.user.uncharge(What::Pages, pages);
    }

    /// Inserts a page. EBUSY: there is a page already. Other errors are those of the kernel.
    pub fn vm_insert_page(
        &self,
        _vma: &Vma<'_>,
        index: usize,
        page: Page,
    ) -> Result<(), (Errno, Page)> {
        if let Err(errno) = self.probes.at(Verb::InsertPage) {
            return Err((errno, page));
        }
        match self.mm.vm_insert_page(index) {
            Ok(()) => {
                if self.charged[index].swap(true, Ordering::Relaxed) {
                    // Another thread has found the page between these two lines, and paid for it.
                    self.uncharge(1);
                }
                Ok(())
            }
            Err(errno) => Err((errno, page)),
        }
    }

    /// Whether there is a page, whoever inserted it. The client itself can have inserted it, since
    /// reading an empty page makes one; then the page is paid for now.
    pub fn get_user_pages_remote(&self, _lock: &MmapLock<'_>, index: usize) -> bool {
        let found = self.mm.get_user_pages_remote(index);
        if found && !self.charged[index].swap(true, Ordering::Relaxed) {
            self.memory.charge_existing();
            self.user.charge_existing(What::Pages, 1);
        }
        found
    }

    /// Takes an installed page away from everyone. `None`: that failed; the page stays where it is,
    /// paid for, and the next installer finds it.
    pub fn zap_page_range_single(&self, _lock: &MmapLock<'_>, index: usize) -> Option<Page> {
        let zapped = self.probes.at(Verb::Zap).and_then(|()| self.mm.zap_page(index));
        match zapped {
            Ok(()) => {
                debug_assert!(
                    self.charged[index].load(Ordering::Relaxed),
                    "page {index} was not paid for"
                );
                self.charged[index].store(false, Ordering::Relaxed);
                Some(Page(()))
            }
            Err(errno) => {
                client_log!(
                    Kind::PageNotRemoved,
                    "{}: cannot zap page {index}: {errno}",
                    self.mm.pid()
                );
                None
            }
        }
    }

    /// Takes every page away, and gives them back to the budget; returns how many.
    pub fn exit_mmap(&self, _lock: &MmapLock<'_>) -> usize {
        self.mm.exit_mmap();
        let pages =
            // Most pages are not charged, and a look is cheaper than a swap.
            self.charged
                .iter()
                .filter(|charged| charged.load(Ordering::Relaxed))
                .filter(|charged| charged.swap(false, Ordering::Relaxed))
                .count();
        self.uncharge(pages);
        pages
    }

    /// Whether a page of the budget was taken for this place.
    pub(crate) fn is_paid_for(&self, index: usize) -> bool {
        self.charged[index].load(Ordering::Relaxed)
    }

    /// As [`AddressSpace::copy_from_client`].
    pub fn copy_from_client(
        &self,
        offset: usize,
        from: &dyn ClientMemory,
        addr: u64,
        len: usize,
    ) -> Result<(), Errno> {
        self.mm.copy_from_client(offset, from, addr, len)
    }

    /// As [`AddressSpace::write`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        self.mm.write(offset, bytes)
    }

    /// As [`AddressSpace::clear`].
    pub fn clear(&self, offset: usize, len: usize) -> Result<(), Errno> {
        self.mm.clear(offset, len)
    }

    /// As [`AddressSpace::publish`].
    pub fn publish(&self, offset: usize, len: usize) -> Result<(), Errno> {
        self.mm.publish(offset, len)
    }
}
