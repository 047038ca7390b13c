//! The allocator against a simple model: a list of what is taken, scanned from end to end.

mod common;

use fakebinder::Errno;
use fakebinder::alloc::{Alloc, Buffer, BufferRequest, PageState};
use fakebinder::memory::{Memory, MemoryConfig};
use fakebinder_sim::HeapMm;
use proptest::prelude::*;
use std::sync::Arc;

const PAGE: usize = 4096;
const ADDRESS: u64 = 0x7000_0000;

#[derive(Debug, Clone)]
enum Op {
    Allocate {
        data: u64,
        offsets: u64,
        extra: u64,
        is_async: bool,
        pid: i32,
    },
    /// Hands the buffer (of those that live, modulo their number) to the client.
    Deliver(usize),
    /// BC_FREE_BUFFER.
    UserFree(usize),
    /// BC_FREE_BUFFER of an address where no buffer may begin.
    UserFreeAt(u64),
    ClearOnFree(usize),
    Free(usize),
    Write(usize, usize, u8),
    Reclaim(usize),
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..200u64, 3 => 0..3 * PAGE as u64, 1 => Just(PAGE as u64), 1 => 0..20 * PAGE as u64]
}

fn op() -> impl Strategy<Value = Op> {
    let huge = prop_oneof![30 => size(), 1 => u64::MAX - 16..=u64::MAX];
    let extra = prop_oneof![3 => Just(0), 1 => 0..64u64];
    prop_oneof![
        6 => (huge, 0..80u64, extra, any::<bool>(), 1..3i32)
            .prop_map(|(data, offsets, extra, is_async, pid)| Op::Allocate { data, offsets, extra, is_async, pid }),
        1 => any::<usize>().prop_map(Op::Deliver),
        1 => any::<usize>().prop_map(Op::UserFree),
        1 => (0..64u64).prop_map(|n| Op::UserFreeAt(ADDRESS + n * 100)),
        1 => any::<usize>().prop_map(Op::ClearOnFree),
        4 => any::<usize>().prop_map(Op::Free),
        2 => (any::<usize>(), any::<usize>(), any::<u8>()).prop_map(|(n, at, byte)| Op::Write(n, at, byte)),
        1 => (0..20usize).prop_map(Op::Reclaim),
    ]
}

struct Taken {
    buffer: Buffer,
    pid: i32,
    bytes: Vec<u8>,
    delivered: bool,
    clear: bool,
}

/// What a reader of `binder_alloc.c` would write down on paper.
struct Model {
    size: usize,
    taken: Vec<Taken>,
    installed: Vec<bool>,
    high: usize,
    spam_detected: bool,
    /// The records of free ranges that remember their last user, by offset.
    last_user: std::collections::BTreeMap<usize, i32>,
}

impl Model {
    fn new(size: usize) -> Self {
        let installed = vec![false; size / PAGE];
        Self {
            size,
            taken: Vec::new(),
            installed,
            high: 0,
            spam_detected: false,
            last_user: Default::default(),
        }
    }

    /// The free ranges, by address.
    fn free(&self) -> Vec<(usize, usize)> {
        let mut edges: Vec<(usize, usize)> = self
            .taken
            .iter()
            .map(|t| (t.buffer.offset, t.buffer.offset + t.buffer.size()))
            .collect();
        edges.sort_unstable();
        edges.push((self.size, self.size));
        let mut end = 0;
        let mut free = Vec::new();
        for (start, next) in edges {
            if start > end {
                free.push((end, start - end));
            }
            end = next;
        }
        free
    }

    fn async_left(&self) -> usize {
        let taken: usize =
            self.taken.iter().filter(|t| t.buffer.is_async).map(|t| t.buffer.size()).sum();
        self.size / 2 - taken
    }

    fn place(&self, request: &BufferRequest) -> Result<(usize, usize), Errno> {
        let round = |n: u64| n.checked_add(7).map(|n| n / 8 * 8).ok_or(Errno::EINVAL);
        let sum = round(request.data_size)?
            .checked_add(round(request.offsets_size)?)
            .and_then(|sum| sum.checked_add(round(request.extra_buffers_size).ok()?))
            .ok_or(Errno::EINVAL)?;
        let size = (sum as usize).max(8);
        if request.is_async && size > self.async_left() {
            return Err(Errno::ENOSPC);
        }
        let fits = self.free().into_iter().filter(|&(_, free)| free >= size);
        let best = fits.min_by_key(|&(offset, free)| (free, offset)).ok_or(Errno::ENOSPC)?;
        Ok((best.0, size))
    }

    /// Whether this one-way buffer, just taken at `offset`, makes its sender a suspect.
    fn suspect(&mut self, offset: usize, size: usize, pid: i32) -> bool {
        if self.async_left() - size >= self.size / 10 {
            self.spam_detected = false;
            return false;
        }
        let sizes: Vec<usize> = self
            .taken
            .iter()
            .filter(|t| t.buffer.is_async && t.pid == pid)
            .map(|t| t.buffer.size())
            .chain((self.last_user.get(&offset) == Some(&pid)).then_some(size))
            .collect();
        let spam = sizes.len() > 50 || sizes.iter().sum::<usize>() > self.size / 4;
        let first = spam && !self.spam_detected;
        self.spam_detected |= spam;
        first
    }

    fn used_pages(&self) -> Vec<bool> {
        let mut used = vec![false; self.size / PAGE];
        for taken in &self.taken {
            common::mapped::pages(&taken.buffer).for_each(|page| used[page] = true);
        }
        used
    }

    fn states(&self) -> Vec<PageState> {
        let state = |(used, &installed)| match (used, installed) {
            (true, _) => PageState::Active,
            (false, true) => PageState::Lru,
            (false, false) => PageState::Free,
        };
        self.used_pages().into_iter().zip(&self.installed).map(state).collect()
    }

    fn give_back(&mut self, index: usize) -> Taken {
        let gone = self.taken.swap_remove(index);
        let free = self.free();
        let (start, len) = *free
            .iter()
            .find(|&&(o, l)| o <= gone.buffer.offset && gone.buffer.offset < o + l)
            .unwrap();
        // The record of the lowest of the merged ranges is the one that stays.
        self.last_user.entry(gone.buffer.offset).or_insert(0);
        self.last_user.insert(gone.buffer.offset, gone.pid);
        let merged: Vec<usize> =
            self.last_user.range(start + 1..start + len).map(|(&offset, _)| offset).collect();
        merged.into_iter().for_each(|offset| {
            self.last_user.remove(&offset);
        });
        gone
    }
}

struct World {
    memory: Arc<Memory>,
    mm: Arc<HeapMm>,
    alloc: Arc<Alloc>,
    model: Model,
}

impl World {
    fn allocate(&mut self, request: BufferRequest) {
        let expected = self.model.place(&request);
        let got = self.alloc.alloc_new_buf(&request);
        let (offset, size) = match (expected, got) {
            (Err(expected), got) => return assert_eq!(got, Err(expected)),
            (Ok(place), Ok(buffer)) => {
                assert_eq!((buffer.offset, buffer.size()), place);
                place
            }
            (Ok(place), Err(errno)) => panic!("there is room at {place:?}, and yet {errno}"),
        };
        let suspect = request.is_async && self.model.suspect(offset, size, request.pid);
        let buffer = got.expect("allocated");
        assert_eq!(
            buffer,
            Buffer {
                offset,
                user_data: ADDRESS + offset as u64,
                data_size: request.data_size as usize,
                offsets_size: request.offsets_size as usize,
                extra_buffers_size: request.extra_buffers_size as usize,
                is_async: request.is_async,
                oneway_spam_suspect: suspect,
            }
        );
        let used = self.model.used_pages();
        for page in common::mapped::pages(&buffer) {
            // What the pages held before is none of the model's business.
            if !std::mem::replace(&mut self.model.installed[page], true) && !used[page] {
                self.model.high = self.model.high.max(page + 1);
            }
        }
        let mut bytes = vec![0; size];
        self.mm.peek(buffer.user_data, &mut bytes).expect("a mapped buffer");
        self.model.last_user.remove(&offset);
        self.model.taken.push(Taken {
            buffer,
            pid: request.pid,
            bytes,
            delivered: false,
            clear: false,
        });
    }

    fn free(&mut self, index: usize) {
        let gone = self.model.give_back(index);
        self.alloc.free_buf(&gone.buffer);
        if gone.clear {
            let mut bytes = vec![1; gone.buffer.size()];
            self.mm.peek(gone.buffer.user_data, &mut bytes).expect("a mapped buffer");
            assert!(bytes.iter().all(|&byte| byte == 0), "not cleared");
        }
    }

    fn apply(&mut self, op: Op) {
        let live = self.model.taken.len();
        let pick = |n: usize| (live > 0).then(|| n % live);
        match op {
            Op::Allocate { data, offsets, extra, is_async, pid } => self.allocate(BufferRequest {
                data_size: data,
                offsets_size: offsets,
                extra_buffers_size: extra,
                is_async,
                pid,
            }),
            Op::Deliver(n) => {
                if let Some(taken) = pick(n).map(|n| &mut self.model.taken[n]) {
                    self.alloc.set_allow_user_free(&taken.buffer, true);
                    taken.delivered = true;
                }
            }
            Op::UserFree(n) => {
                let Some(n) = pick(n) else { return };
                let taken = &mut self.model.taken[n];
                let expected = if taken.delivered { Ok(taken.buffer) } else { Err(Errno::EPERM) };
                assert_eq!(self.alloc.prepare_to_free(taken.buffer.user_data), expected);
                taken.delivered = false;
                if expected.is_ok() {
                    assert_eq!(
                        self.alloc.prepare_to_free(taken.buffer.user_data),
                        Err(Errno::EPERM)
                    );
                    self.free(n);
                }
            }
            Op::UserFreeAt(address) => {
                if self.model.taken.iter().all(|taken| taken.buffer.user_data != address) {
                    assert_eq!(self.alloc.prepare_to_free(address), Err(Errno::ENOENT));
                }
            }
            Op::ClearOnFree(n) => {
                if let Some(taken) = pick(n).map(|n| &mut self.model.taken[n]) {
                    self.alloc.set_clear_on_free(&taken.buffer);
                    taken.clear = true;
                }
            }
            Op::Free(n) => {
                if let Some(n) = pick(n) {
                    self.free(n);
                }
            }
            Op::Write(n, at, byte) => {
                let Some(taken) = pick(n).map(|n| &mut self.model.taken[n]) else {
                    return;
                };
                let size = taken.buffer.size();
                let at = at % (size + 9);
                let bytes = [byte; 8];
                let expected = if at % 4 != 0 || at + bytes.len() > size {
                    Err(Errno::EINVAL)
                } else {
                    Ok(())
                };
                assert_eq!(self.alloc.copy_to_buffer(&taken.buffer, at, &bytes), expected);
                if expected.is_ok() {
                    taken.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            Op::Reclaim(pages) => {
                let lru = self.model.states().iter().filter(|&&s| s == PageState::Lru).count();
                assert_eq!(self.memory.scan(pages), pages.min(lru));
                // Which pages went is the LRU's business; how many is not.
                for (page, state) in self.alloc.page_states().into_iter().enumerate() {
                    self.model.installed[page] &= state != PageState::Free;
                }
            }
        }
    }

    fn check(&self) {
        let model = &self.model;
        assert_eq!(self.alloc.check_invariants(), Ok(()));
        assert_eq!(self.alloc.page_states(), model.states());
        let pages = self.alloc.pages();
        assert_eq!(pages.active + pages.lru + pages.free, model.installed.len());
        assert_eq!(pages.high, model.high);
        assert_eq!(self.memory.count(), pages.lru);
        assert_eq!(self.memory.used(), pages.active + pages.lru);
        assert_eq!(self.mm.resident(), self.memory.used());
        assert_eq!(self.alloc.free_async_space(), model.async_left());
        assert_eq!(self.alloc.allocated_count(), model.taken.len());
        let mut expected: Vec<Buffer> = model.taken.iter().map(|taken| taken.buffer).collect();
        expected.sort_unstable_by_key(|buffer| buffer.offset);
        assert_eq!(self.alloc.allocated_buffers(), expected);
        for taken in &model.taken {
            let mut bytes = vec![0; taken.bytes.len()];
            self.mm.read(taken.buffer.offset, &mut bytes).expect("a live buffer");
            assert_eq!(bytes, taken.bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 150 } else { 2000 }))]

    #[test]
    fn it_does_what_a_list_would(pages in 1..40usize, ops in prop::collection::vec(op(), 1..250)) {
        let memory = Memory::new(MemoryConfig::default());
        let mm = HeapMm::new();
        let alloc = Alloc::new(mm.clone(), &memory);
        mm.attach(ADDRESS, pages * PAGE);
        alloc.mmap_handler(ADDRESS, pages * PAGE).expect("the first mapping");
        let mut world = World { memory, mm, alloc, model: Model::new(pages * PAGE) };
        for op in ops {
            world.apply(op);
            world.check();
        }
        world.alloc.deferred_release();
        prop_assert_eq!(world.memory.used() + world.mm.resident() + world.memory.count(), 0);
    }
}
