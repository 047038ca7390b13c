//! Every way in which five buffers can share pages, and every order of freeing them.
//!
//! Each buffer ends on the page where the one before it ends, or on the next, or on the one after
//! that, on a page boundary or not: 5 kinds of end for each of 5 buffers. The buffers lie at the
//! front of the mapping, or at its back. They are freed in all 5! orders. For each of these
//! 5^5 x 2 x 120 cases: allocate, free, allocate again (now from the LRU), free, reclaim; and look
//! at the state of every page after each step.
//!
//! A debug build takes a sample.

mod common;

use common::mapped::request;
use fakebinder::alloc::{Alloc, Buffer, PageState};
use fakebinder::memory::{Memory, MemoryConfig};
use fakebinder_sim::HeapMm;
use std::sync::Arc;

const PAGE: usize = 4096;
const MAPPING: usize = 128 << 10;
const BUFFERS: usize = 5;
/// What a buffer is longer than to the last page boundary when its end is on none.
const PIECE: usize = PAGE / 8;

/// Where a buffer ends, seen from the end of the one before.
#[derive(Debug, Clone, Copy)]
enum End {
    SamePage,
    SamePageBoundary,
    NextPage,
    NextPageBoundary,
    PageAfterNext,
}

const ENDS: [End; 5] = [
    End::SamePage,
    End::SamePageBoundary,
    End::NextPage,
    End::NextPageBoundary,
    End::PageAfterNext,
];

impl End {
    fn after(self, previous: usize) -> usize {
        let boundary = (previous + PIECE).next_multiple_of(PAGE);
        match self {
            End::SamePage => previous + PIECE,
            End::SamePageBoundary => boundary,
            End::NextPage => boundary + PIECE,
            End::NextPageBoundary => boundary + PAGE,
            End::PageAfterNext => boundary + PAGE + PIECE,
        }
    }
}

fn permutations() -> Vec<[usize; BUFFERS]> {
    fn extend(order: &mut Vec<usize>, all: &mut Vec<[usize; BUFFERS]>) {
        if let Ok(order) = <[usize; BUFFERS]>::try_from(order.as_slice()) {
            return all.push(order);
        }
        for next in 0..BUFFERS {
            if !order.contains(&next) {
                order.push(next);
                extend(order, all);
                order.pop();
            }
        }
    }
    let mut all = Vec::new();
    extend(&mut Vec::new(), &mut all);
    all
}

struct Bench {
    memory: Arc<Memory>,
    mm: Arc<HeapMm>,
    alloc: Arc<Alloc>,
}

impl Bench {
    fn new() -> Bench {
        let memory = Memory::new(MemoryConfig::default());
        let mm = HeapMm::new();
        let alloc = Alloc::new(mm.clone(), &memory);
        mm.attach(0x7000_0000, MAPPING);
        alloc.mmap_handler(0x7000_0000, MAPPING).expect("the first mapping");
        Bench { memory, mm, alloc }
    }

    fn allocate(&self, sizes: &[usize; BUFFERS]) -> Result<Vec<Buffer>, String> {
        let mut buffers = Vec::new();
        for (number, &size) in sizes.iter().enumerate() {
            let buffer = self
                .alloc
                .alloc_new_buf(&request(size))
                .map_err(|e| format!("buffer {number}: {e}"))?;
            let states = self.alloc.page_states();
            let unused =
                common::mapped::pages(&buffer).find(|&page| states[page] != PageState::Active);
            if let Some(page) = unused {
                return Err(format!("buffer {number}: page {page} is {:?}", states[page]));
            }
            buffers.push(buffer);
        }
        Ok(buffers)
    }

    /// Frees the buffers; of the first `end` bytes of the mapping every page is then on the LRU.
    fn free(&self, buffers: &[Buffer], order: &[usize; BUFFERS], end: usize) -> Result<(), String> {
        order.iter().for_each(|&number| self.alloc.free_buf(&buffers[number]));
        let states = self.alloc.page_states();
        let touched = end.div_ceil(PAGE);
        match (0..touched).find(|&page| states[page] != PageState::Lru) {
            Some(page) => Err(format!("freed, and page {page} is {:?}", states[page])),
            None if self.memory.count() != touched => {
                Err(format!("{} pages on the LRU", self.memory.count()))
            }
            None => Ok(()),
        }
    }

    fn reclaim(&self) -> Result<(), String> {
        while self.memory.count() > 0 {
            if self.memory.reclaim_all() == 0 {
                return Err("nothing is reclaimed".into());
            }
        }
        let states = self.alloc.page_states();
        match states.iter().position(|&state| state != PageState::Free) {
            Some(page) => Err(format!("reclaimed, and page {page} is {:?}", states[page])),
            None if self.memory.used() + self.mm.resident() != 0 => Err("pages remain".into()),
            None => Ok(()),
        }
    }

    fn case(
        &self,
        sizes: &[usize; BUFFERS],
        order: &[usize; BUFFERS],
        end: usize,
    ) -> Result<(), String> {
        let buffers = self.allocate(sizes)?;
        self.free(&buffers, order, end)?;
        let buffers = self.allocate(sizes)?;
        if self.memory.count() != 0 {
            return Err(format!("{} pages in use are on the LRU", self.memory.count()));
        }
        self.free(&buffers, order, end)?;
        self.reclaim()
    }
}

#[test]
fn every_alignment_and_every_order_of_freeing() {
    let mut bench = Bench::new();
    let orders = permutations();
    let step = if cfg!(debug_assertions) { 31 } else { 1 };
    let (mut cases, mut failed) = (0, 0);
    for combination in (0..ENDS.len().pow(BUFFERS as u32)).step_by(step) {
        let ends: [End; BUFFERS] =
            std::array::from_fn(|number| ENDS[combination / 5usize.pow(number as u32) % 5]);
        let mut offset = 0;
        let front: [usize; BUFFERS] = ends.map(|end| {
            let previous = offset;
            offset = end.after(previous);
            offset - previous
        });
        // The same from the back, behind one large buffer.
        let mut back = front;
        back.reverse();
        back[0] += MAPPING - offset;
        for (place, sizes, end) in [("front", front, offset), ("back", back, MAPPING)] {
            for order in &orders {
                cases += 1;
                if let Err(reason) = bench.case(&sizes, order, end) {
                    failed += 1;
                    println!("case {cases}: {place}, {ends:?}, freed in order {order:?}: {reason}");
                    // What it left behind must not fail the next one.
                    bench = Bench::new();
                }
            }
        }
    }
    println!("{cases} cases, {failed} failed");
    assert_eq!(failed, 0);
    if step == 1 {
        assert_eq!(cases, 5usize.pow(5) * 2 * 120);
    }
}
