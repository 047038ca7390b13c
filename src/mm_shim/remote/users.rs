//! The users of a client's mm, and the open maps that they look at.

use super::super::image::Image;
use super::super::maps::Maps;
use crate::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many clients may have their maps open while their mm is not in use: opening costs as much as
/// installing a page, and descriptors are few where clients are many.
const MOST: usize = 32;

/// Counts the clients whose maps stay open when nobody uses their mm. All clients of a daemon share
/// one of these.
#[derive(Debug)]
pub struct KeptMaps {
    most: usize,
    kept: AtomicUsize,
}

impl Default for KeptMaps {
    fn default() -> Self {
        Self::at_most(MOST)
    }
}

impl KeptMaps {
    /// Lets `most` clients keep their maps open.
    pub fn at_most(most: usize) -> Self {
        Self { most, kept: AtomicUsize::new(0) }
    }

    fn keep(&self) -> bool {
        let keep = |kept| (kept < self.most).then_some(kept + 1);
        self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, keep).is_ok()
    }
}

/// How many use the mm just now, and what they see of it.
#[derive(Debug)]
pub(super) struct Users {
    pub count: usize,
    pub maps: Option<Result<Arc<Maps>, Errno>>,
    all_kept: Arc<KeptMaps>,
    /// `maps` counts in `all_kept`.
    kept: bool,
}

impl Users {
    pub fn none(all_kept: Arc<KeptMaps>) -> Self {
        Self { count: 0, maps: None, all_kept, kept: false }
    }

    /// Opens the maps of the process, unless they are open.
    pub fn open(&mut self, open: impl FnOnce() -> Result<Maps, Errno>) {
        if matches!(self.maps, None | Some(Err(_))) {
            self.maps = Some(open().map(Arc::new));
        }
    }

    /// The last use of the mm has ended.
    pub fn idle(&mut self) {
        self.kept = self.kept || self.all_kept.keep();
        if !self.kept {
            self.maps = None;
        }
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        if self.kept {
            self.all_kept.kept.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The mappings of the program that the process executed at the open. ESRCH: it has executed
/// another one since, whose mappings do not count (`vma->vm_mm != alloc->mm`).
pub(super) fn open_maps(pid: i32, image: Image, procmap_query: bool) -> Result<Maps, Errno> {
    // In this order: once open, the maps are those of one mm.
    let maps = Maps::open(pid, procmap_query)?;
    if image.differs_from(Image::of(pid)) {
        return Err(Errno::ESRCH);
    }
    Ok(maps)
}
