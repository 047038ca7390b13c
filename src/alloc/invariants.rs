//! What holds of an allocator whenever nobody is allocating, installing, freeing or reclaiming.

use super::buffers::Buffers;
use super::{Alloc, PageState};
use crate::page::PAGE_SIZE;

/// A rule that does not hold, and for what.
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
    /// Whether a call that takes the buffer mutex, or reads under the mm's lock, would have to
    /// wait; for tests that act in the middle of another call on the same thread.
    pub fn is_busy(&self) -> bool {
        self.buffers.try_lock().is_none() || self.mm.mmap_read_trylock().is_none()
    }

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
    /// The ranges cover the mapping without gap or overlap, and the sums and indexes agree with
    /// them.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc::buffers::Node;
    use crate::alloc::{Buffer, BufferRequest, Locked, Mapping};
    use crate::memory::{Memory, MemoryConfig};
    use crate::mm_shim::HeapMm;
    use std::sync::Arc;

    /// An allocator with three buffers of a page: a one-way one, an unused one and a synchronous
    /// one.
    fn three_buffers() -> (Arc<Alloc>, [Buffer; 3]) {
        let mm = HeapMm::new();
        mm.attach(0x7000_0000, 16 * PAGE_SIZE);
        let alloc = Alloc::new(mm, &Memory::new(MemoryConfig::default()));
        alloc.mmap_handler(0x7000_0000, 16 * PAGE_SIZE).expect("the first mapping");
        let sizes = BufferRequest {
            data_size: PAGE_SIZE as u64,
            offsets_size: 0,
            extra_buffers_size: 0,
            is_async: false,
            pid: 1,
        };
        let buffers = [true, false, false].map(|is_async| {
            alloc.alloc_new_buf(&BufferRequest { is_async, ..sizes }).expect("room for all three")
        });
        alloc.free_buf(&buffers[1]);
        assert_eq!(alloc.check_invariants(), Ok(()));
        (alloc, buffers)
    }

    /// What the check says about three buffers after `fault` has changed them as no call does.
    fn said(fault: impl FnOnce(&mut Locked, &Mapping, [usize; 3])) -> String {
        let (alloc, buffers) = three_buffers();
        let mut locked = alloc.buffers.lock();
        let mapping = alloc.mapping.get().expect("mapped");
        fault(locked.as_mut().expect("mapped"), mapping, buffers.map(|buffer| buffer.offset));
        drop(locked);
        alloc.check_invariants().expect_err("there is something wrong").to_string()
    }

    fn of_buffers(fault: impl FnOnce(&mut Buffers, [usize; 3])) -> String {
        said(|locked, _, at| fault(&mut locked.buffers, at))
    }

    #[test]
    fn ranges_that_do_not_add_up_are_noticed() {
        let resize = |size| {
            of_buffers(|buffers, at| buffers.ranges.get_mut(&at[0]).expect("there").size = size)
        };
        assert_eq!(resize(4104), "a range begins at 0x1000, the last ended at 0x1008");
        assert_eq!(resize(0), "the range at 0x0 has 0 bytes");
        assert_eq!(resize(4100), "the range at 0x0 has 4100 bytes");
        let longer = of_buffers(|buffers, _| buffers.buffer_size += 8);
        assert_eq!(longer, "the ranges add up to 65536 of 65544");
    }

    #[test]
    fn free_ranges_that_are_not_found_or_not_merged_are_noticed() {
        let free = |buffers: &mut Buffers, offset| {
            buffers.ranges.get_mut(&offset).expect("there").taken = None;
            buffers.free.insert((PAGE_SIZE, offset));
        };
        let lost = of_buffers(|buffers, at| assert!(buffers.free.remove(&(PAGE_SIZE, at[1]))));
        assert_eq!(lost, "the free range at 0x1000 cannot be found by its size");
        let apart = of_buffers(|buffers, at| free(buffers, at[0]));
        assert_eq!(apart, "the free ranges that meet at 0x1000 are two");
        let invented = of_buffers(|buffers, at| assert!(buffers.free.insert((8, at[0]))));
        assert_eq!(invented, "2 free ranges, 3 by size");
    }

    #[test]
    fn buffers_and_their_senders_that_are_miscounted_are_noticed() {
        let forgotten = of_buffers(|buffers, at| {
            // The ranges before and after are in use; else the missing merge would be noticed
            // first.
            let taken = buffers.ranges.get_mut(&at[2]).expect("there").taken.take();
            buffers.ranges.get_mut(&at[1]).expect("there").taken = taken;
            buffers.ranges.get_mut(&at[0]).expect("there").taken = None;
            buffers.free.remove(&(PAGE_SIZE, at[1]));
            let rest = buffers.ranges.split_off(&at[2]).into_values().map(|node| node.size).sum();
            buffers.ranges.insert(at[2], Node { size: rest, taken: None, pid: 0 });
            buffers.free = [(PAGE_SIZE, at[0]), (rest, at[2])].into();
        });
        assert_eq!(forgotten, "1 buffers are allocated, not 2");
        let uncharged = of_buffers(|buffers, _| buffers.oneway.clear());
        assert_eq!(uncharged, "senders are charged 0 of 4096 bytes");
        let for_nothing = of_buffers(|buffers, _| {
            assert!(buffers.oneway.insert(2, Default::default()).is_none())
        });
        assert_eq!(for_nothing, "a sender is charged for no buffers");
        let synchronous = of_buffers(|buffers, at| {
            let node = buffers.ranges.get_mut(&at[0]).expect("there");
            node.taken.as_mut().expect("allocated").is_async = false;
        });
        assert_eq!(synchronous, "0 bytes are one-way, and 28672 of 32768 left");
    }

    #[test]
    fn pages_whose_state_is_not_that_of_their_buffers_are_noticed() {
        let slot = |page: usize| said(|_, mapping, _| mapping.set_installed_page(page, false));
        assert_eq!(slot(0), "0: page 0 is Free; a buffer uses it: true");
        assert_eq!(slot(2), "0: page 2 is Free; a buffer uses it: true");
        assert_eq!(slot(1), "0: page 1 is on the LRU and Free");
        let installed = said(|_, mapping, _| mapping.set_installed_page(5, true));
        assert_eq!(installed, "0: page 5 is Active; a buffer uses it: false");

        let (alloc, _) = three_buffers();
        alloc.mm.exit_mmap(&alloc.mm.mmap_write_lock());
        let unpaid = alloc.check_invariants().map_err(|violation| violation.to_string());
        assert_eq!(unpaid, Err("0: page 0 is Active, and nobody has paid for it".into()));
    }
}
