//! The memory that all clients of a daemon share, which the kernel has in globals: the budget of
//! pages, the list of pages that no buffer uses (`binder_freelist`), and the rule by which pages
//! are installed.

mod lru;
mod total;

pub use lru::{LruKey, LruOne, LruStatus, Reclaim};
pub use total::{available_memory, group_limit};

use crate::Errno;
use crate::events;
use crate::page::PAGE_SIZE;
use crate::uapi::{FAKEBINDER_EVENT_PAGES, fakebinder_event};
use lru::ListLru;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
// No lock, and not part of the protocol: the model check need not look at a counter.
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Pages that an allocation frees when the budget is used up (the kernel's `SWAP_CLUSTER_MAX`).
const DIRECT_RECLAIM: usize = 32;

/// The rule by which pages are installed into a client: `--page-install`.
///
/// Today's driver has a third rule, a lock per VMA that is tried before the mm's lock, so that an
/// installer does not wait for whatever else the process maps. The lock that stands for the mm's
/// here belongs to one mapping, and nothing else takes it: it is a lock per VMA already.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum PageInstall {
    /// One installer at a time in a client, allocating under the mm's lock.
    Exclusive,
    /// Allocate first, install under the mm's lock for reading, and settle races per page.
    #[default]
    Shared,
}

impl FromStr for PageInstall {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "exclusive" => Ok(Self::Exclusive),
            "shared" => Ok(Self::Shared),
            _ => Err(format!("no page-install policy '{name}': exclusive or shared")),
        }
    }
}

impl fmt::Display for PageInstall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        })
    }
}

/// The configuration of a [`Memory`].
#[derive(Debug, Default)]
pub struct MemoryConfig {
    /// The most that all clients together may have installed, in bytes; no limit if `None`.
    pub page_budget: Option<u64>,
    /// The rule by which pages are installed.
    pub page_install: PageInstall,
}

/// The memory that all clients of a daemon share.
#[derive(Debug)]
pub struct Memory {
    budget: usize,
    /// Pages installed, or on their way to be.
    used: AtomicUsize,
    /// Bytes of records, which come out of the same budget.
    bytes: AtomicUsize,
    /// Records have taken the place in the budget of unused pages that are still installed.
    pressed: AtomicBool,
    lru: ListLru,
    /// The rule of [`MemoryConfig::page_install`].
    pub page_install: PageInstall,
}

impl Memory {
    /// A memory of which nothing is used yet.
    pub fn new(config: MemoryConfig) -> Arc<Memory> {
        let pages = |bytes: u64| usize::try_from(bytes / PAGE_SIZE as u64).unwrap_or(usize::MAX);
        Arc::new(Memory {
            budget: config.page_budget.map_or(usize::MAX, pages),
            used: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            pressed: AtomicBool::new(false),
            lru: ListLru::default(),
            page_install: config.page_install,
        })
    }

    /// Takes one page out of the budget, reclaiming others if there is none left. To be called
    /// under neither the buffer mutex nor the LRU lock. ENOMEM: all pages are in use.
    pub(crate) fn charge(&self) -> Result<(), Errno> {
        let take = |used: usize| (used < self.pages_left()).then_some(used + 1);
        while self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            if self.reclaim_some() == 0 {
                return Err(Errno::ENOMEM);
            }
        }
        self.tell_used();
        Ok(())
    }

    fn tell_used(&self) {
        let event = || fakebinder_event { size: self.used() as u64, ..Default::default() };
        events::tell(FAKEBINDER_EVENT_PAGES, event);
    }

    /// Reclaims a few pages, the longest unused first; returns how many.
    pub(crate) fn reclaim_some(&self) -> usize {
        // Pages of busy clients may fill the front of the list.
        match self.scan(DIRECT_RECLAIM) {
            0 => self.scan(self.count()),
            some => some,
        }
    }

    /// The budget, in pages, less what records take of it.
    fn pages_left(&self) -> usize {
        self.budget.saturating_sub(self.bytes.load(Ordering::Relaxed).div_ceil(PAGE_SIZE))
    }

    /// Takes the bytes of a record out of the budget. May be called under any lock: pages that have
    /// to be reclaimed for it are reclaimed later, by [`Memory::relieve`]. ENOMEM: there are too
    /// few of those.
    pub(crate) fn charge_bytes(&self, bytes: usize) -> Result<(), Errno> {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let (left, used) = (self.pages_left(), self.used());
        if used <= left && self.bytes.load(Ordering::Relaxed) <= self.budget_bytes() {
            return Ok(());
        }
        if self.lru.len() < used.saturating_sub(left) || left == 0 {
            self.uncharge_bytes(bytes);
            return Err(Errno::ENOMEM);
        }
        self.pressed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn budget_bytes(&self) -> usize {
        self.budget.saturating_mul(PAGE_SIZE)
    }

    /// The most bytes that pages and records may take together; none without a limit.
    pub fn limit(&self) -> Option<u64> {
        (self.budget != usize::MAX).then(|| self.budget_bytes() as u64)
    }

    pub(crate) fn uncharge_bytes(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "{bytes} bytes of records freed, {before} in use");
    }

    /// Reclaims the pages whose place in the budget was taken by records. To be called under no
    /// lock.
    pub(crate) fn relieve(&self) {
        if self.pressed.load(Ordering::Relaxed) && self.pressed.swap(false, Ordering::Relaxed) {
            self.scan(self.used().saturating_sub(self.pages_left()));
        }
    }

    /// Bytes of all records.
    pub fn record_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes one page out of the budget though it may be used up: the page exists already.
    pub(crate) fn charge_existing(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
        self.tell_used();
    }

    pub(crate) fn uncharge(&self, pages: usize) {
        let before = self.used.fetch_sub(pages, Ordering::Relaxed);
        debug_assert!(before >= pages, "{pages} pages freed, {before} in use");
        self.tell_used();
    }

    /// Pages that all clients have installed, or are about to.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// `binder_shrink_count`: pages that could be reclaimed.
    pub fn count(&self) -> usize {
        self.lru.count()
    }

    /// `binder_shrink_scan`: looks at up to `nr_to_scan` pages, the longest unused first, and
    /// reclaims those whose owners are not busy. Returns how many that were.
    pub fn scan(&self, nr_to_scan: usize) -> usize {
        self.lru.walk(nr_to_scan)
    }

    /// Reclaims every page that is not in use, except for those of clients that are busy just now.
    pub fn reclaim_all(&self) -> usize {
        self.scan(self.count())
    }

    pub(crate) fn lru_lock(&self) -> lru::LruLocked<'_> {
        self.lru.lock()
    }

    pub(crate) fn lru_del(&self, keys: impl Iterator<Item = LruKey>) {
        self.lru.del(keys);
    }
}
