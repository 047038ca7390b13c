//! The pages of a mapping: which are installed, and how many are in which state.

use super::Alloc;
use crate::page::PAGE_SIZE;
use crate::sync::modelled::atomic::{AtomicBool, Ordering};

/// How many pages of a mapping are in which state (`binder_alloc_print_pages`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PageCounts {
    /// Installed, and part of a buffer.
    pub active: usize,
    /// Installed, part of no buffer, and to be reclaimed when memory is short.
    pub lru: usize,
    /// Not installed.
    pub free: usize,
    /// One more than the highest page that was ever installed.
    pub high: usize,
}

/// The state of one page of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// Not installed.
    Free,
    /// Installed, and on the list of those that can be reclaimed.
    Lru,
    /// Installed, and in use by a buffer.
    Active,
}

/// What mmap settles, once in the life of an allocator.
pub(super) struct Mapping {
    pub vm_start: u64,
    pub buffer_size: usize,
    /// Whether a page is installed. Set with release by its installer, read with acquire.
    pub pages: Box<[AtomicBool]>,
}

impl Mapping {
    pub fn set_installed_page(&self, index: usize, installed: bool) {
        self.pages[index].store(installed, Ordering::Release);
    }

    pub fn installed_page(&self, index: usize) -> bool {
        self.pages[index].load(Ordering::Acquire)
    }

    pub fn page_addr(&self, index: usize) -> u64 {
        self.vm_start + (index * PAGE_SIZE) as u64
    }
}

impl Alloc {
    /// Bytes of the mapping that are used; 0 before mmap.
    pub fn buffer_size(&self) -> usize {
        self.mapping.get().map_or(0, |mapping| mapping.buffer_size)
    }

    /// The state of every page of the mapping.
    pub fn page_states(&self) -> Vec<PageState> {
        let mut states = Vec::new();
        self.for_each_page(|state| states.push(state));
        states
    }

    /// `binder_alloc_print_pages`; all zero where nothing is mapped.
    pub fn pages(&self) -> PageCounts {
        let (mut active, mut lru, mut free) = (0, 0, 0);
        let high = self.for_each_page(|state| match state {
            PageState::Active => active += 1,
            PageState::Lru => lru += 1,
            PageState::Free => free += 1,
        });
        PageCounts { active, lru, free, high }
    }

    /// Calls `f` for each page of the mapping, in order; returns `pages_high`.
    fn for_each_page(&self, mut f: impl FnMut(PageState)) -> usize {
        let locked = self.buffers.lock();
        let (Some(mapping), Some(locked)) = (self.mapping.get(), locked.as_ref()) else {
            return 0;
        };
        for (index, lru) in locked.lru.iter().enumerate() {
            f(match (mapping.installed_page(index), lru) {
                (false, _) => PageState::Free,
                (true, Some(_)) => PageState::Lru,
                (true, None) => PageState::Active,
            });
        }
        locked.pages_high
    }
}
