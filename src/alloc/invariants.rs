//! What holds of an allocator whenever nobody is allocating, installing, freeing or reclaiming.

use super::buffers::Buffers;
use super::{Alloc, PageState};
use crate::mm_shim::PAGE_SIZE;

/// A rule that does not hold, and of what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Goes on when the rule holds, else returns what is wrong.
macro_rules! rule {
    ($holds:expr, $($wrong:tt)+) => {
        if !$holds {
            return Err($crate::alloc::invariants::Violation(format!($($wrong)+)));
        }
    };
}
pub(crate) use rule;

type Checked = Result<(), Violation>;

impl Alloc {
    /// Checks every rule about the buffers of a mapping and their pages. To be called while no
    /// other thread uses this allocator.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        let pid = self.mm.pid();
        let states = self.page_states();
        let locked = self.buffers.lock();
        let Some(locked) = locked.as_ref() else { return Ok(()) };
        locked.buffers.check()?;

        // Pages that a buffer touches are in use; the others are not.
        let mut used = vec![false; states.len()];
        for buffer in locked.buffers.iter() {
            let end = buffer.offset + buffer.size();
            used[buffer.offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE)].fill(true);
        }
        for (index, state) in states.iter().enumerate() {
            rule!(
                used[index] == (*state == PageState::Active),
                "{pid}: page {index} is {state:?}; a buffer uses it: {}",
                used[index]
            );
            rule!(
                locked.lru[index].is_none() || *state == PageState::Lru,
                "{pid}: page {index} is on the LRU and {state:?}"
            );
            rule!(
                *state == PageState::Free || self.mm.is_paid_for(index),
                "{pid}: page {index} is {state:?}, and nobody has paid for it"
            );
        }
        Ok(())
    }
}

impl Buffers {
    /// The ranges cover the mapping without gap or overlap, and what is kept beside them agrees.
    fn check(&self) -> Checked {
        let (mut end, mut allocated, mut free, mut oneway_bytes) = (0, 0, 0, 0);
        let mut last_was_free = false;
        for (&offset, range) in &self.ranges {
            rule!(offset == end, "a range begins at {offset:#x}, the last ended at {end:#x}");
            rule!(
                range.size > 0 && range.size.is_multiple_of(8),
                "the range at {offset:#x} has {} bytes",
                range.size
            );
            end += range.size;
            match &range.taken {
                Some(taken) => {
                    allocated += 1;
                    oneway_bytes += if taken.is_async { range.size } else { 0 };
                }
                None => {
                    free += 1;
                    rule!(!last_was_free, "the free ranges that meet at {offset:#x} are two");
                    rule!(
                        self.free.contains(&(range.size, offset)),
                        "the free range at {offset:#x} cannot be found by its size"
                    );
                }
            }
            last_was_free = range.taken.is_none();
        }
        rule!(end == self.buffer_size, "the ranges add up to {end} of {}", self.buffer_size);
        rule!(free == self.free.len(), "{free} free ranges, {} by size", self.free.len());
        rule!(
            allocated == self.allocated(),
            "{allocated} buffers are allocated, not {}",
            self.allocated()
        );
        rule!(
            self.free_async_space() + oneway_bytes == self.buffer_size / 2,
            "{oneway_bytes} bytes are one-way, and {} of {} left",
            self.free_async_space(),
            self.buffer_size / 2
        );
        let counted: usize = self.oneway.values().map(|used| used.bytes).sum();
        rule!(counted == oneway_bytes, "senders are charged {counted} of {oneway_bytes} bytes");
        rule!(
            self.oneway.values().all(|used| used.buffers > 0),
            "a sender is charged for no buffers"
        );
        Ok(())
    }
}
