//! Programs of target `alloc`: what clients of two allocators do, and what they ask for.
#![allow(
    missing_docs,
    reason = "the fields and variants of a program are named as in the protocol"
)]

use crate::grammar::{Fault, Install, List, Pick, grammar};
use arbitrary::{Arbitrary, Result, Unstructured};
use fakebinder::alloc::BufferRequest;
use fakebinder::page::PAGE_SIZE;

/// The most steps of one input.
const MAX_STEPS: usize = 64;

grammar! {
    pub enum Step {
        40 => Allocate { client: Pick, size: Size, oneway: Oneway, trouble: Meanwhile },
        30 => Free { client: Pick, buffer: Pick },
        /// By its address, as BC_FREE_BUFFER does.
        8 => UserFree { client: Pick, buffer: Pick, allowed: bool },
        10 => Write { client: Pick, buffer: Pick, at: u8, length: u8 },
        3 => Clear { client: Pick, buffer: Pick },
        14 => Reclaim { pages: u8, trouble: Meanwhile },
        2 => Unmap { client: Pick },
        1 => Exit { client: Pick },
        1 => Release { client: Pick },
        2 => OutOfBounds { client: Pick, buffer: Pick, offset: u16, length: u16 },
    }

    /// Bytes of a buffer.
    pub enum Size {
        4 => Bytes { count: u8 },
        /// In units of 64.
        4 => Chunks { count: u8 },
        /// Whole pages, and a little more or less.
        3 => Pages { count: u8, more: i8 },
        1 => Huge { bits: u8 },
    }

    pub enum Oneway {
        3 => TwoWay,
        2 => OneWay,
    }

    /// What somebody else does at the n-th time that a verb of the mm is carried out in a step.
    pub enum Meanwhile {
        8 => Nothing,
        4 => Do { nth: u8, what: Aside },
    }

    pub enum Aside {
        4 => AllocateToo { client: Pick, size: Size },
        3 => FreeToo { client: Pick, buffer: Pick },
        3 => ReclaimToo { pages: u8 },
        1 => UnmapToo { client: Pick },
    }
}

#[derive(Debug, Clone, PartialEq, Arbitrary)]
pub struct Setting {
    /// Pages for both clients together: from 128 on as many as they like, else a few.
    pub budget: u8,
    pub pages: u8,
    pub install: Install,
    pub faults: List<Fault>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    pub setting: Setting,
    pub steps: List<Step>,
}

impl Program {
    /// Steps follow one another without gaps, until the bytes end.
    pub fn from_bytes(bytes: &[u8]) -> Program {
        let mut bytes = Unstructured::new(bytes);
        let setting = Setting::arbitrary(&mut bytes).expect("never runs out");
        let mut steps = Vec::new();
        while !bytes.is_empty() && steps.len() < MAX_STEPS {
            steps.push(Step::arbitrary(&mut bytes).expect("never runs out"));
        }
        Program { setting, steps: List(steps) }
    }
}

pub(super) fn bytes(size: &Size) -> u64 {
    match *size {
        Size::Bytes { count } => u64::from(count),
        Size::Chunks { count } => 64 * u64::from(count),
        Size::Pages { count, more } => {
            (PAGE_SIZE as u64 * u64::from(1 + count % 5)).saturating_add_signed(i64::from(more))
        }
        Size::Huge { bits } => u64::MAX >> (bits % 64),
    }
}

/// A size in its three parts: the same sum in different ways.
pub(super) fn request(size: &Size, oneway: bool, client: usize) -> BufferRequest {
    let all = bytes(size);
    let (data, rest) = if all % 3 == 1 { (all / 2, all - all / 2) } else { (all, 0) };
    BufferRequest {
        data_size: data,
        offsets_size: rest / 2,
        extra_buffers_size: rest - rest / 2,
        is_async: oneway,
        pid: 100 + client as i32,
    }
}

pub(super) fn total(request: &BufferRequest) -> Option<usize> {
    let part = |size: u64| size.checked_next_multiple_of(8);
    let sum = part(request.data_size)?.checked_add(part(request.offsets_size)?)?;
    usize::try_from(sum.checked_add(part(request.extra_buffers_size)?)?.max(8)).ok()
}
