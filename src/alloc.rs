//! binder_alloc: the buffers in a client's mapping, and their pages.
//!
//! Locks, in the order they are taken:
//! 1. the mm's read-write lock ([`MmStruct`]): taken for reading to install or zap pages, for
//!    writing by mmap and release (and by installers under `--page-install exclusive`);
//! 2. the buffer mutex (`Alloc::buffers`): which ranges and pages are in use;
//! 3. the LRU lock ([`Memory`]): which pages may be reclaimed.
//!
//! The shrinker comes from the other end: it holds the LRU lock and only *tries* the other two
//! ([`Alloc::free_page`]). Page slots are atomics: written by installers that hold no lock, and
//! cleared under the buffer mutex.
//!
//! A page of the mapping is in one of three states:
//! - free: no page; slot clear, not on the LRU
//! - lru: a page that no buffer uses; slot set, on the LRU
//! - active: a page that a buffer uses; slot set, not on the LRU
//!
//! From free to active: `install_single_page`, outside the buffer mutex. Between active and lru:
//! allocating and freeing buffers, under the mutex. From lru to free: the shrinker.
#![forbid(unsafe_code)]

mod buffers;
pub mod invariants;
mod pages;
mod search;

pub use buffers::{Buffer, BufferRequest};
pub use pages::{PageCounts, PageState};

use crate::client_log::{Kind, client_log};
use crate::client_mem::ClientMemory;
use crate::events;
use crate::lock_order::rank;
use crate::memory::{LruKey, LruOne, LruStatus, Memory, PageInstall, Reclaim};
use crate::mm_shim::{MmStruct, MmWithUser, MmapLock, NoVma, Page};
use crate::page::{MAX_BUFFER_SIZE, PAGE_SIZE};
use crate::probe::Probes;
use crate::quota::User;
use crate::sync::modelled::Mutex;
use crate::sync::modelled::atomic::{AtomicBool, Ordering};
use crate::uapi::{FAKEBINDER_EVENT_PAGE_END, FAKEBINDER_EVENT_PAGE_START};
use crate::{Errno, mm_shim::AddressSpace};
use buffers::Buffers;
use pages::Mapping;
use search::Searches;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};

/// What the buffer mutex protects, from mmap to release.
struct Locked {
    buffers: Buffers,
    /// Where each page is on the LRU, if it is.
    lru: Box<[Option<LruKey>]>,
    pages_high: usize,
}

/// The allocator of one binder process (`struct binder_alloc`).
pub struct Alloc {
    this: Weak<Alloc>,
    mm: MmStruct,
    memory: Arc<Memory>,
    mapping: OnceLock<Mapping>,
    /// Whether the client has its mapping: set by mmap, cleared for good when that is closed.
    mapped: AtomicBool,
    searches: Searches,
    /// `None` before mmap and after release.
    buffers: Mutex<Option<Locked>, rank::Buffers>,
}

impl Alloc {
    /// `binder_alloc_init`: an allocator without a mapping, for one open of a device.
    pub fn new(mm: Arc<dyn AddressSpace>, memory: &Arc<Memory>) -> Arc<Alloc> {
        Alloc::of_user(mm, memory, User::unlimited(), Probes::default())
    }

    /// The same for a user to whom the pages are charged, with probes.
    pub fn of_user(
        mm: Arc<dyn AddressSpace>,
        memory: &Arc<Memory>,
        user: Arc<User>,
        probes: Probes,
    ) -> Arc<Alloc> {
        Arc::new_cyclic(|this| Alloc {
            this: this.clone(),
            mm: MmStruct::new(mm, memory, user, probes),
            memory: memory.clone(),
            mapping: OnceLock::new(),
            mapped: AtomicBool::new(false),
            searches: Searches::default(),
            buffers: Mutex::new(None),
        })
    }

    /// `binder_alloc_mmap_handler`: the client has mapped `size` bytes at `address`, of which at
    /// most 4 MiB are used.
    ///
    /// EBUSY: the client has mapped before, even if that is gone. EINVAL: not a range of pages.
    pub fn mmap_handler(&self, address: u64, size: usize) -> Result<(), Errno> {
        let page = PAGE_SIZE as u64;
        if size == 0 || !address.is_multiple_of(page) || address.checked_add(size as u64).is_none()
        {
            return Err(Errno::EINVAL);
        }
        let buffer_size = size.min(MAX_BUFFER_SIZE).next_multiple_of(PAGE_SIZE);
        let pages = buffer_size / PAGE_SIZE;
        let _mmap = self.mm.mmap_write_lock();
        let mut locked = self.buffers.lock();
        let mapping = Mapping {
            vm_start: address,
            buffer_size,
            pages: (0..pages).map(|_| AtomicBool::new(false)).collect(),
        };
        if self.mapping.set(mapping).is_err() {
            return Err(Errno::EBUSY);
        }
        *locked = Some(Locked {
            buffers: Buffers::new(address, buffer_size),
            lru: vec![None; pages].into_boxed_slice(),
            pages_high: 0,
        });
        self.set_mapped(true);
        Ok(())
    }

    fn set_mapped(&self, mapped: bool) {
        self.mapped.store(mapped, Ordering::Release);
    }

    /// Whether the client has its mapping, as far as the daemon knows (`binder_alloc_is_mapped`).
    pub fn is_mapped(&self) -> bool {
        self.mapped.load(Ordering::Acquire)
    }

    /// `binder_alloc_vma_close`: the mapping is gone, and no other will come. Buffers that exist
    /// stay until they are freed; new ones are refused with ESRCH.
    pub fn vma_close(&self) {
        self.set_mapped(false);
    }

    /// `binder_alloc_new_buf`: a buffer whose pages are all installed.
    ///
    /// ESRCH: the client has no mapping, or is gone. EINVAL: the sizes overflow. ENOSPC: no room,
    /// or not in the half that one-way calls may use. ENOMEM: no page to be had. Other errors are
    /// those of [`MmStruct::vm_insert_page`].
    pub fn alloc_new_buf(&self, request: &BufferRequest) -> Result<Buffer, Errno> {
        let mapping = self.mapping()?;
        let size = buffers::sanitized_size(request)?;

        let buffer = {
            let mut locked = self.buffers.lock();
            let locked = locked.as_mut().ok_or(Errno::ESRCH)?;
            let (buffer, pages) = locked.buffers.take(size, request)?;
            self.lru_freelist_del(mapping, locked, pages);
            buffer
        };
        if let Err(errno) = self.install_buffer_pages(mapping, &buffer, request.pid) {
            self.free_buf(&buffer);
            return Err(errno);
        }
        Ok(buffer)
    }

    /// Takes the pages that a new buffer is the first to use off the LRU.
    fn lru_freelist_del(&self, mapping: &Mapping, locked: &mut Locked, pages: Range<usize>) {
        for index in pages.clone().filter(|&index| !mapping.installed_page(index)) {
            locked.pages_high = locked.pages_high.max(index + 1);
        }
        self.memory.lru_del(locked.lru[pages].iter_mut().filter_map(Option::take));
    }

    /// Puts the pages that no buffer uses any more on the LRU.
    fn lru_freelist_add(&self, mapping: &Mapping, locked: &mut Locked, pages: Range<usize>) {
        let mut lru = None;
        for index in pages.filter(|&index| mapping.installed_page(index)) {
            debug_assert!(locked.lru[index].is_none(), "page {index} is on the LRU twice");
            let lru = lru.get_or_insert_with(|| self.memory.lru_lock());
            locked.lru[index] = Some(lru.add(self.this.clone(), index));
        }
    }

    /// `binder_install_buffer_pages`, outside the buffer mutex. Any number of threads do this at
    /// the same time for one client and, where buffers share a page, for one page.
    fn install_buffer_pages(
        &self,
        mapping: &Mapping,
        buffer: &Buffer,
        pid: i32,
    ) -> Result<(), Errno> {
        let mut users = None;
        let end = buffer.offset + buffer.size();
        for index in buffer.offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE) {
            if mapping.installed_page(index) {
                continue;
            }
            // A use of the mm over the whole buffer makes the further ones per page cheap.
            let (_, users) = match &users {
                Some(users) => users,
                None => {
                    let installing = self.mm.installing(pid);
                    users.insert((installing, self.mm.mmget_not_zero()?))
                }
            };
            events::tell_page(FAKEBINDER_EVENT_PAGE_START, pid, index);
            let installed = self.install_single_page(users, mapping, index);
            events::tell_page(FAKEBINDER_EVENT_PAGE_END, pid, index);
            installed?;
        }
        Ok(())
    }

    /// `binder_install_single_page`.
    fn install_single_page(
        &self,
        buffer_users: &MmWithUser<'_>,
        mapping: &Mapping,
        index: usize,
    ) -> Result<(), Errno> {
        let _users = self.mm.mmget_not_zero()?;
        match self.memory.page_install {
            PageInstall::Exclusive => self.install_exclusive(buffer_users, mapping, index),
            PageInstall::Shared => self.install_shared(buffer_users, mapping, index),
        }
    }

    /// The rule of today's driver: the page comes before any lock, and the mm is locked for
    /// reading, so installers meet at one page only.
    fn install_shared(
        &self,
        users: &MmWithUser<'_>,
        mapping: &Mapping,
        index: usize,
    ) -> Result<(), Errno> {
        let pid = self.mm.pid();
        let page = self.mm.alloc_page()?;
        match self.page_insert(users, mapping, index, page) {
            Ok(()) => {}
            Err((Errno::EBUSY, page)) => {
                // Another installer was first, and has not set the slot yet.
                self.mm.free_page(page);
                if !self.page_lookup(index) {
                    client_log!(Kind::PageNotInstalled, "{pid}: failed to find page {index}");
                    return Err(Errno::ESRCH);
                }
            }
            Err((errno, page)) => {
                self.mm.free_page(page);
                client_log!(
                    Kind::PageNotInstalled,
                    "{pid}: failed to insert page {index}: {errno}"
                );
                return Err(errno);
            }
        }
        mapping.set_installed_page(index, true);
        Ok(())
    }

    /// The rule of older drivers: one installer at a time in a client. Its page allocation holds up
    /// the others.
    fn install_exclusive(
        &self,
        users: &MmWithUser<'_>,
        mapping: &Mapping,
        index: usize,
    ) -> Result<(), Errno> {
        let mmap = self.mm.mmap_write_lock();
        if mapping.installed_page(index) {
            return Ok(());
        }
        let page = self.mm.alloc_page()?;
        match self.insert_locked(users, mapping, index, page, &mmap) {
            Ok(()) => {}
            // The client has read the page before it was installed here (see `RemoteMm`).
            Err((Errno::EBUSY, page)) if self.mm.get_user_pages_remote(&mmap, index) => {
                self.mm.free_page(page)
            }
            Err((errno, page)) => {
                self.mm.free_page(page);
                return Err(errno);
            }
        }
        mapping.set_installed_page(index, true);
        Ok(())
    }

    /// `binder_page_insert`: puts the page where the client sees it; gives it back on failure.
    fn page_insert(
        &self,
        users: &MmWithUser<'_>,
        mapping: &Mapping,
        index: usize,
        page: Page,
    ) -> Result<(), (Errno, Page)> {
        let mmap = self.mm.mmap_read_lock();
        self.insert_locked(users, mapping, index, page, &mmap)
    }

    fn insert_locked(
        &self,
        users: &MmWithUser<'_>,
        mapping: &Mapping,
        index: usize,
        page: Page,
        mmap: &MmapLock<'_>,
    ) -> Result<(), (Errno, Page)> {
        if !self.is_mapped() {
            return Err((Errno::ESRCH, page));
        }
        match self.mm.vma_lookup(users, mmap, mapping.page_addr(index), index) {
            Ok(vma) => self.mm.vm_insert_page(&vma, index, page),
            Err(NoVma::Closed) => {
                // The kernel hears of an munmap at once; the daemon only when it looks.
                self.vma_close();
                Err((Errno::ESRCH, page))
            }
            // Nothing is known of the client, and certainly not that it is gone.
            Err(NoVma::Unknown(errno)) => Err((errno, page)),
        }
    }

    /// `binder_page_lookup`: whether the page that another installer has inserted is there. Never
    /// makes one.
    fn page_lookup(&self, index: usize) -> bool {
        let mmap = self.mm.mmap_read_lock();
        self.is_mapped() && self.mm.get_user_pages_remote(&mmap, index)
    }

    /// `binder_alloc_prepare_to_free`: the buffer that the client frees by its address, once.
    ///
    /// ENOENT (the driver: NULL): no buffer begins there. EPERM: the client may not free the
    /// buffer, since it has not been given the buffer yet or has freed it already.
    pub fn prepare_to_free(&self, user_ptr: u64) -> Result<Buffer, Errno> {
        let mut locked = self.buffers.lock();
        locked.as_mut().ok_or(Errno::ENOENT)?.buffers.prepare_to_free(user_ptr)
    }

    /// Lets the client free the buffer, which has been given to the client, or takes that back.
    pub fn set_allow_user_free(&self, buffer: &Buffer, allow: bool) {
        if let Some(locked) = self.buffers.lock().as_mut() {
            locked.buffers.set_allow_user_free(buffer.offset, allow);
        }
    }

    /// Marks the buffer to be zeroed before it is freed (`TF_CLEAR_BUF`).
    pub fn set_clear_on_free(&self, buffer: &Buffer) {
        if let Some(locked) = self.buffers.lock().as_mut() {
            locked.buffers.set_clear_on_free(buffer.offset);
        }
    }

    /// `binder_alloc_free_buf`. After [`Alloc::deferred_release`] there is nothing left to do.
    pub fn free_buf(&self, buffer: &Buffer) {
        let mut locked = self.buffers.lock();
        if locked.as_mut().is_some_and(|l| l.buffers.take_clear_on_free(buffer.offset)) {
            // Outside the mutex: a large buffer takes long, and no other thread touches it now.
            drop(locked);
            self.clear_buf(buffer);
            locked = self.buffers.lock();
        }
        let (Some(mapping), Some(locked)) = (self.mapping.get(), locked.as_mut()) else {
            return;
        };
        match locked.buffers.give_back(buffer.offset) {
            Some(pages) => self.lru_freelist_add(mapping, locked, pages),
            None => {
                client_log!(
                    Kind::BufferNotFound,
                    "{}: no buffer at offset {:#x} to free",
                    self.mm.pid(),
                    buffer.offset
                )
            }
        }
    }

    fn clear_buf(&self, buffer: &Buffer) {
        let cleared = self.mm.clear(buffer.offset, buffer.size());
        if cleared.and_then(|()| self.publish(buffer)).is_err() {
            client_log!(
                Kind::PageNotRemoved,
                "{}: cannot clear the buffer at offset {:#x}",
                self.mm.pid(),
                buffer.offset
            );
        }
    }

    /// `check_buffer`: whether `offset` is a multiple of 4, and the buffer has `len` bytes there.
    fn check_buffer(&self, buffer: &Buffer, offset: usize, len: usize) -> bool {
        let size = buffer.size();
        size >= len && offset <= size - len && offset.is_multiple_of(4)
    }

    /// `binder_alloc_copy_user_to_buffer`: one system call for another process's memory. EFAULT:
    /// the sender's memory cannot be read, or the range is not within the buffer.
    pub fn copy_user_to_buffer(
        &self,
        buffer: &Buffer,
        offset: usize,
        from: &dyn ClientMemory,
        addr: u64,
        len: usize,
    ) -> Result<(), Errno> {
        if !self.check_buffer(buffer, offset, len) {
            return Err(Errno::EFAULT);
        }
        self.mm.copy_from_client(buffer.offset + offset, from, addr, len)
    }

    /// `binder_alloc_copy_to_buffer`. EINVAL: not within the buffer.
    pub fn copy_to_buffer(
        &self,
        buffer: &Buffer,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        if !self.check_buffer(buffer, offset, bytes.len()) {
            return Err(Errno::EINVAL);
        }
        self.mm.write(buffer.offset + offset, bytes)
    }

    /// Lets the client see a buffer that is complete. Errors as [`AddressSpace::publish`].
    pub fn publish(&self, buffer: &Buffer) -> Result<(), Errno> {
        self.mm.publish(buffer.offset, buffer.size())
    }

    /// `binder_alloc_deferred_release`: the client is gone. Its buffers and pages go too, even if a
    /// thread is installing a page or copying into one. Nothing can be allocated afterwards.
    pub fn deferred_release(&self) {
        self.vma_close();
        // A thread that inserts a page holds this lock for reading and looks at `mapped` first.
        self.release(self.mm.mmap_write_lock());
    }

    fn release(&self, mmap: MmapLock<'_>) {
        let mut locked = self.buffers.lock();
        let Some(mut released) = locked.take() else {
            return;
        };
        if let Some(mapping) = self.mapping.get() {
            (0..mapping.pages.len()).for_each(|index| mapping.set_installed_page(index, false));
        }
        let left = released.buffers.allocated();
        self.memory.lru_del(released.lru.iter_mut().filter_map(Option::take));
        let pages = self.mm.exit_mmap(&mmap);
        log::debug!("{}: released {left} buffers, {pages} pages", self.mm.pid());
    }

    /// Bytes that one-way calls may still take (`binder_alloc_get_free_async_space`).
    pub fn free_async_space(&self) -> usize {
        self.buffers.lock().as_ref().map_or(0, |locked| locked.buffers.free_async_space())
    }

    /// How many buffers are allocated (`binder_alloc_get_allocated_count`).
    pub fn allocated_count(&self) -> usize {
        self.buffers.lock().as_ref().map_or(0, |locked| locked.buffers.allocated())
    }

    /// Every allocated buffer, by address (`binder_alloc_print_allocated`).
    pub fn allocated_buffers(&self) -> Vec<Buffer> {
        self.buffers.lock().as_ref().map_or_else(Vec::new, |locked| locked.buffers.iter().collect())
    }
}

impl Reclaim for Alloc {
    /// `binder_alloc_free_page`: the shrinker has found this page on the LRU.
    ///
    /// Neither the VMA nor the process is looked at: the page belongs to the buffer file, and
    /// leaves that whatever the client has mapped at the address meanwhile.
    fn free_page<'lru>(&self, index: usize, lru: LruOne<'lru>) -> LruStatus<'lru> {
        let Some(mmap) = self.mm.mmap_read_trylock() else {
            return LruStatus::Skip(lru);
        };
        let Some(mut locked) = self.buffers.try_lock() else {
            return LruStatus::Skip(lru);
        };
        let (Some(mapping), Some(released)) = (self.mapping.get(), locked.as_mut()) else {
            return LruStatus::Skip(lru);
        };
        mapping.set_installed_page(index, false);
        released.lru[index] = None;
        lru.isolate();

        // Still under the mutex: once the slot is clear and the mutex free, another page may be
        // installed here, and that one must not be zapped.
        let page = self.mm.zap_page_range_single(&mmap, index);
        drop(locked);
        drop(mmap);
        page.into_iter().for_each(|page| self.mm.free_page(page));
        LruStatus::RemovedRetry
    }
}

impl Drop for Alloc {
    fn drop(&mut self) {
        self.vma_close();
        // Nobody else holds the lock, since this was the last `Arc`. It is only tried, because the
        // shrinker may be what drops the last `Arc`, and under `--page-install exclusive` another
        // mm's lock is held then.
        if let Some(mmap) = self.mm.mmap_write_trylock() {
            self.release(mmap);
        }
    }
}
