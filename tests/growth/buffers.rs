//! Buffers and pages: the allocator by itself, in plain memory.

use crate::{Row, Work, all, one};
use fakebinder::alloc::{Alloc, Buffer, BufferRequest};
use fakebinder::memory::{Memory, MemoryConfig};
use fakebinder::page::PAGE_SIZE;
use fakebinder_sim::{HeapMm, MAPPING};
use std::sync::Arc;

/// The most that is used of a mapping, and the pages in it.
const MOST: usize = 4 << 20;
const PAGES: usize = MOST / PAGE_SIZE;

pub const ROWS: &[Row] = &[
    one("allocate and free a buffer among n", |n| {
        let alloc = mapped(&memory(None));
        (0..n).for_each(|_| {
            take(&alloc, 8);
        });
        again(move || alloc.free_buf(&take(&alloc, 8)))
    }),
    one("allocate and free a buffer among n free ranges", |n| {
        let alloc = mapped(&memory(None));
        let buffers: Vec<Buffer> = (0..2 * n).map(|i| take(&alloc, 8 + i % 64 * 8)).collect();
        buffers.iter().step_by(2).for_each(|buffer| alloc.free_buf(buffer));
        again(move || alloc.free_buf(&take(&alloc, 128)))
    }),
    one("allocate and free a one-way buffer among those of n senders", |n| {
        let alloc = mapped(&memory(None));
        let request = |pid| BufferRequest { is_async: true, pid, ..request(8) };
        (0..n as i32).for_each(|pid| {
            alloc.alloc_new_buf(&request(pid)).unwrap();
        });
        again(move || alloc.free_buf(&alloc.alloc_new_buf(&request(7)).unwrap()))
    }),
    one("refuse a buffer where n are allocated", |n| {
        let alloc = mapped(&memory(None));
        (0..n).for_each(|_| {
            take(&alloc, 8);
        });
        again(move || assert!(alloc.alloc_new_buf(&request(MOST)).is_err()))
    }),
    one("find the buffer to free among n, by its address", |n| {
        let alloc = mapped(&memory(None));
        let buffers: Vec<Buffer> = (0..n).map(|_| take(&alloc, 8)).collect();
        let buffer = buffers[n / 2];
        again(move || {
            alloc.set_allow_user_free(&buffer, true);
            alloc.prepare_to_free(buffer.user_data).unwrap();
        })
    }),
    one("take a page off an LRU of n, and put it there again", |n| {
        let memory = memory(None);
        let others = unused(&memory, n);
        let alloc = mapped(&memory);
        again(move || {
            alloc.free_buf(&take(&alloc, PAGE_SIZE));
            assert!(!others.is_empty());
        })
    }),
    one("get a page where the budget is used up by an LRU of n", |n| {
        let memory = memory(Some(n));
        let others = unused(&memory, n);
        let (first, second) = (mapped(&memory), mapped(&memory));
        // Reclaim is by batches: the counted buffers need one or two.
        again(move || {
            for alloc in [&first, &second] {
                take(alloc, 48 * PAGE_SIZE);
            }
            assert!(!others.is_empty());
        })
    })
    .from(1_000),
    all("reclaim n pages", |n| {
        let memory = memory(None);
        let others = unused(&memory, n);
        Box::new(move || {
            assert_eq!(memory.reclaim_all(), n);
            assert!(!others.is_empty());
        })
    }),
    all("install the pages of a buffer of n", |n| {
        let alloc = mapped(&memory(None));
        Box::new(move || {
            take(&alloc, n * PAGE_SIZE);
        })
    })
    .from(PAGES / 4),
    all("free a buffer of n pages", |n| {
        let alloc = mapped(&memory(None));
        let buffer = take(&alloc, n * PAGE_SIZE);
        Box::new(move || alloc.free_buf(&buffer))
    })
    .from(PAGES / 4),
    all("allocate n buffers", |n| {
        let alloc = mapped(&memory(None));
        Box::new(move || {
            (0..n).for_each(|i| {
                take(&alloc, 8 + i % 64 * 8);
            })
        })
    }),
    all("free n buffers in another order", |n| {
        let alloc = mapped(&memory(None));
        let buffers: Vec<Buffer> = (0..n).map(|i| take(&alloc, 8 + i % 64 * 8)).collect();
        // 7 has no divisor in common with n: each index occurs once.
        Box::new(move || (0..n).for_each(|i| alloc.free_buf(&buffers[i * 7 % n])))
    }),
    all("release a mapping of n pages", |n| {
        let alloc = mapped(&memory(None));
        (0..n).for_each(|_| {
            take(&alloc, PAGE_SIZE);
        });
        Box::new(move || alloc.deferred_release())
    })
    .from(PAGES / 4),
];

fn memory(pages: Option<usize>) -> Arc<Memory> {
    let page_budget = pages.map(|pages| (pages * PAGE_SIZE) as u64);
    Memory::new(MemoryConfig { page_budget, ..MemoryConfig::default() })
}

fn mapped(memory: &Arc<Memory>) -> Arc<Alloc> {
    let mm = HeapMm::new();
    mm.mmap(MAPPING, MOST);
    let alloc = Alloc::new(mm, memory);
    alloc.mmap_handler(MAPPING, MOST).unwrap();
    alloc
}

fn request(size: usize) -> BufferRequest {
    BufferRequest {
        data_size: size as u64,
        offsets_size: 0,
        extra_buffers_size: 0,
        is_async: false,
        pid: 1,
    }
}

fn take(alloc: &Alloc, size: usize) -> Buffer {
    alloc.alloc_new_buf(&request(size)).unwrap()
}

/// Clients that have `n` pages which no buffer uses.
fn unused(memory: &Arc<Memory>, n: usize) -> Vec<Arc<Alloc>> {
    let of_each = (0..n).step_by(PAGES).map(|first| (n - first).min(PAGES));
    let one = |pages| {
        let alloc = mapped(memory);
        alloc.free_buf(&take(&alloc, pages * PAGE_SIZE));
        alloc
    };
    of_each.map(one).collect()
}

/// Counts `step` eight times, after one that has made whatever is made at the first.
fn again(step: impl Fn() + 'static) -> Work {
    step();
    Box::new(move || (0..8).for_each(|_| step()))
}
