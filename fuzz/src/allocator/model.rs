//! The model of one allocator: which ranges are taken, and what was written there.

use crate::grammar::Pick;
use fakebinder::alloc::{Alloc, Buffer};
use fakebinder_sim::HeapMm;
use std::sync::Arc;

/// A buffer, as the model knows it.
#[derive(Clone)]
pub(super) struct Taken {
    pub(super) buffer: Buffer,
    pub(super) size: usize,
    /// The user may free it.
    pub(super) allowed: bool,
    pub(super) clear: bool,
    /// What was written, where it was.
    pub(super) content: Vec<Option<u8>>,
}

pub(super) struct Client {
    pub(super) alloc: Arc<Alloc>,
    pub(super) mm: Arc<HeapMm>,
    pub(super) mapped: bool,
    pub(super) taken: Vec<Taken>,
}

impl Client {
    pub(super) fn size(&self) -> usize {
        self.alloc.buffer_size()
    }

    /// Where the best fit for `size` bytes is: the smallest gap, of equals the first.
    pub(super) fn best_fit(&self, size: usize) -> Option<usize> {
        let mut taken: Vec<(usize, usize)> =
            self.taken.iter().map(|taken| (taken.buffer.offset, taken.size)).collect();
        taken.sort_unstable();
        taken.push((self.size(), 0));
        let mut end = 0;
        let mut best: Option<(usize, usize)> = None;
        for (offset, length) in taken {
            let gap = offset - end;
            if gap >= size.max(1) && best.is_none_or(|(smallest, _)| gap < smallest) {
                best = Some((gap, end));
            }
            end = offset + length;
        }
        best.map(|(_, offset)| offset)
    }

    pub(super) fn oneway_left(&self) -> usize {
        let taken: usize = self.taken.iter().filter(|t| t.buffer.is_async).map(|t| t.size).sum();
        self.size() / 2 - taken
    }

    pub(super) fn pick(&self, pick: Pick) -> Option<usize> {
        usize::from(pick.0).checked_rem(self.taken.len())
    }
}
