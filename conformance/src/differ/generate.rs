//! Programs by chance: each next step is chosen in view of what the reference has answered so
//! far, so that most of them mean something, some nearly, and a few nothing at all.

use super::program::{Act, Buffer, MAPPING, PROCESSES, Part, Send, Step, THREADS, Twist, Write};
use super::stage::{Actor, Stage};
use fakebinder_client::uapi;
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::SplitMix64;

/// Programs of this seed and above have numbers of any size in them. Those below are as they were
/// when the driver's outcomes were recorded.
pub const ANY_NUMBER: u64 = 1000;

/// A program is the same for the same seed, everywhere and for ever: what the driver gave to the
/// programs of some seeds is recorded.
pub(super) struct Chance {
    rng: SplitMix64,
    any_number: bool,
}

impl Chance {
    pub(super) fn new(seed: u64, program: u64) -> Chance {
        let state =
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ program.wrapping_mul(0xd134_2543_de82_ef95);
        Chance { rng: SplitMix64::seed_from_u64(state), any_number: seed >= ANY_NUMBER }
    }

    /// Now and then another number: a power of two, the one before it or the one behind it, up to
    /// the largest there is. There lie the edges of every type that it may be kept in.
    fn or_any(&mut self, number: u64) -> u64 {
        if !self.any_number || !self.once_in(6) {
            return number;
        }
        let power = 1u64.checked_shl(self.below(65) as u32).unwrap_or(0);
        power.wrapping_add(self.below(3) as u64).wrapping_sub(1)
    }

    fn or_any_u32(&mut self, number: u32) -> u32 {
        if !self.any_number || !self.once_in(6) {
            return number;
        }
        let power = 1u32.checked_shl(self.below(33) as u32).unwrap_or(0);
        power.wrapping_add(self.below(3) as u32).wrapping_sub(1)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.rng.next_u64() % limit.max(1) as u64) as usize
    }

    /// Once in so many times.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())].clone()) }
    }

    /// An index, by weights.
    fn weighted(&mut self, weights: &[usize]) -> usize {
        let mut left = self.below(weights.iter().sum());
        weights
            .iter()
            .position(|&weight| {
                let here = left < weight;
                left = left.saturating_sub(weight);
                here
            })
            .unwrap_or(0)
    }
}

/// The next step; `unmap`: whether it may be a munmap.
pub(super) fn step(chance: &mut Chance, stage: &Stage, unmap: bool) -> Step {
    let living: Vec<_> = (0..PROCESSES).filter(|&index| stage.actors[index].alive).collect();
    let process = chance.pick(&living).unwrap_or(0);
    let thread = if chance.once_in(4) { 1 % THREADS } else { 0 };
    let actor = &stage.actors[process];
    let act = match chance.weighted(&[50, 35, 2, 1, 1, 3, 1, 2, 1, 3, 2, 1, 1, 2]) {
        0 => {
            let count = 1 + chance.below(3);
            let write = (0..count).map(|_| write(chance, actor, thread)).collect();
            Act::WriteRead { write, read: if chance.once_in(2) { 256 } else { 0 } }
        }
        1 => Act::WriteRead {
            write: Vec::new(),
            read: {
                let size = chance.pick(&[256, 256, 256, 256, 1024, 80, 79, 120, 4]);
                chance.or_any(size.unwrap_or(256)) as usize
            },
        },
        2 => Act::Poll,
        3 => {
            let threads = chance.below(4) as u32;
            Act::MaxThreads(chance.or_any_u32(threads))
        }
        4 => Act::ThreadExit,
        5 => Act::ExtendedError,
        6 => {
            let after = chance.below(5) as u64;
            Act::NodeDebugInfo(chance.or_any(after))
        }
        7 => Act::NodeInfo(handle(chance, actor)),
        8 => Act::SpamDetection(!chance.once_in(4)),
        9 => Act::Freeze { process: chance.below(PROCESSES), enable: chance.once_in(2) },
        10 => Act::FrozenInfo(chance.below(PROCESSES)),
        11 => Act::SetContextManager,
        12 if unmap && chance.once_in(3) => Act::Unmap,
        13 if living.len() > 2 && chance.once_in(2) => Act::Kill,
        _ => Act::Poll,
    };
    Step { process, thread, act }
}

fn handle(chance: &mut Chance, actor: &Actor) -> u32 {
    let known: Vec<_> = actor.handles.iter().copied().collect();
    match chance.below(12) {
        0 => {
            let handle = chance.below(6) as u32;
            chance.or_any_u32(handle)
        }
        1 => {
            let handle = chance.pick(&[7, 99, u32::MAX]).unwrap_or(0);
            chance.or_any_u32(handle)
        }
        2 | 3 => 0,
        _ => chance.pick(&known).unwrap_or(0),
    }
}

fn cookie(chance: &mut Chance) -> u64 {
    let cookie = 1 + chance.below(3) as u64;
    chance.or_any(cookie)
}

fn write(chance: &mut Chance, actor: &Actor, thread: usize) -> Write {
    let serving = actor.serving[thread] > 0;
    let weights = [
        14,
        10,
        if serving { 25 } else { 1 },
        if actor.held.is_empty() { 1 } else { 12 },
        if actor.undone.is_empty() { 1 } else { 14 },
        if actor.dead.is_empty() { 1 } else { 8 },
        if actor.frosts.is_empty() { 1 } else { 8 },
        3,
        5,
        4,
        3,
        4,
        3,
        3,
        3,
        2,
        1,
    ];
    match chance.weighted(&weights) {
        0 => Write::Send(send(chance, actor, false, 0)),
        1 => Write::Send(send(chance, actor, false, uapi::TF_ONE_WAY)),
        2 => Write::Send(send(chance, actor, true, 0)),
        3 => Write::Free(match chance.below(12) {
            0 => {
                let at = [0, 8, 64, -8, 4096, MAPPING as i64][chance.below(6)];
                Buffer::At(chance.or_any(at as u64) as i64)
            }
            1 => Buffer::Received(chance.below(8)),
            _ => Buffer::Received(chance.pick(&actor.held).unwrap_or(0)),
        }),
        4 => match actor.undone.get(chance.below(actor.undone.len())) {
            Some(&(ptr, cookie, false)) if !chance.once_in(10) => Write::IncrefsDone(ptr, cookie),
            Some(&(ptr, cookie, true)) if !chance.once_in(10) => Write::AcquireDone(ptr, cookie),
            _ if chance.once_in(2) => Write::IncrefsDone(cookie(chance), cookie(chance)),
            _ => Write::AcquireDone(cookie(chance), cookie(chance)),
        },
        5 => Write::DeadBinderDone(actor.dead.front().copied().unwrap_or(cookie(chance))),
        6 => Write::FreezeDone(actor.frosts.front().copied().unwrap_or(cookie(chance))),
        7 => Write::Increfs(handle(chance, actor)),
        8 => Write::Acquire(handle(chance, actor)),
        9 => Write::Release(handle(chance, actor)),
        10 => Write::Decrefs(handle(chance, actor)),
        11 => Write::RequestDeath(handle(chance, actor), cookie(chance)),
        12 => Write::ClearDeath(handle(chance, actor), cookie(chance)),
        13 => Write::RequestFreeze(handle(chance, actor), cookie(chance)),
        14 => Write::ClearFreeze(handle(chance, actor), cookie(chance)),
        15 => chance
            .pick(&[Write::EnterLooper, Write::RegisterLooper, Write::ExitLooper])
            .unwrap_or(Write::EnterLooper),
        _ => match chance.below(4) {
            0 => Write::AttemptAcquire,
            1 => Write::AcquireResult,
            2 => Write::Words(vec![uapi::BR_NOOP]),
            _ => Write::Words(
                (0..1 + chance.below(3)).map(|_| chance.rng.next_u64() as u32).collect(),
            ),
        },
    }
}

fn send(chance: &mut Chance, actor: &Actor, reply: bool, flags: u32) -> Send {
    let mut flags = flags;
    for flag in [uapi::TF_ACCEPT_FDS, uapi::TF_CLEAR_BUF, uapi::TF_UPDATE_TXN, uapi::TF_STATUS_CODE]
    {
        if chance.once_in(6) {
            flags |= flag;
        }
    }
    let mut parts = Vec::new();
    if !chance.once_in(3) {
        parts.push(Part::Bytes(match chance.below(10) {
            0 => MAPPING as usize / 2,
            1 => MAPPING as usize / 4,
            2 => MAPPING as usize / 10,
            3 => 4096,
            _ => chance.below(64),
        }));
    }
    let mut offsets = 0;
    for _ in 0..[0, 0, 1, 1, 1, 2, 3][chance.below(7)] {
        let weak = chance.once_in(4);
        match chance.weighted(&[10, 8, 3, 4, 1]) {
            0 => {
                let ptr = 1 + chance.below(3) as u64;
                let ptr = chance.or_any(ptr);
                // The cookie belongs to the node; now and then it is another.
                let cookie = if chance.once_in(12) { 9 } else { ptr.wrapping_mul(10) };
                let accepts =
                    if chance.once_in(2) { uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS } else { 0 };
                parts.push(Part::Binder { ptr, cookie, flags: accepts, weak });
            }
            1 => parts.push(Part::Handle { handle: handle(chance, actor), weak }),
            2 => parts.push(Part::Fd((!chance.once_in(8)).then(|| chance.below(4)))),
            3 => {
                let parent = (offsets > 0 && chance.once_in(2)).then(|| {
                    (chance.below(offsets + 1) as u64, [0, 8, 16, 4, 60][chance.below(5)])
                });
                let parent = parent.map(|(parent, at)| (chance.or_any(parent), chance.or_any(at)));
                parts.push(Part::Buffer { length: [8, 24, 40, 5, 0][chance.below(5)], parent });
            }
            _ => {
                parts.push(Part::Buffer { length: 16, parent: None });
                offsets += 1;
                let count = [1, 2, 4, 5, 0][chance.below(5)];
                let parent = if chance.once_in(8) { 0 } else { offsets as u64 - 1 };
                let offset = [0, 4, 8, 2][chance.below(4)];
                parts.push(Part::FdArray {
                    count: chance.or_any(count),
                    parent: chance.or_any(parent),
                    offset: chance.or_any(offset),
                });
            }
        }
        offsets += 1;
        if chance.once_in(3) {
            parts.push(Part::Bytes(chance.below(12)));
        }
    }
    let twist = chance.once_in(12).then(|| match chance.below(10) {
        0 => Twist::DataAt([16, 0xffff_8880_0000_0000][chance.below(2)]),
        1 => Twist::DataSize([0, 1, 100_000, u64::MAX, u64::MAX - 16][chance.below(5)]),
        2 => Twist::OffsetsAt([16, 0xffff_8880_0000_0000][chance.below(2)]),
        3 => Twist::OffsetsSize([1, 4, 12, 1 << 40, u64::MAX - 7][chance.below(5)]),
        4 => Twist::Offset([0, 4, 8, 24, 1000, u64::MAX][chance.below(6)]),
        5 => Twist::Shift([1, 2, 4, -4, 8, -24, 24][chance.below(7)]),
        6 => Twist::Reverse,
        7 => Twist::BuffersSize([0, 8, 12, 64, u64::MAX - 7][chance.below(5)]),
        8 => Twist::Flip(chance.below(128)),
        _ => Twist::Cut(1 + chance.below(30)),
    });
    let twist = twist.map(|twist| match twist {
        Twist::DataSize(size) => Twist::DataSize(chance.or_any(size)),
        Twist::OffsetsSize(size) => Twist::OffsetsSize(chance.or_any(size)),
        Twist::Offset(offset) => Twist::Offset(chance.or_any(offset)),
        Twist::BuffersSize(size) => Twist::BuffersSize(chance.or_any(size)),
        as_it_is @ (Twist::DataAt(_)
        | Twist::OffsetsAt(_)
        | Twist::Shift(_)
        | Twist::Reverse
        | Twist::Flip(_)
        | Twist::Cut(_)) => as_it_is,
    });
    let handle = if reply { 0 } else { handle(chance, actor) };
    let code = chance.below(4) as u32;
    Send { reply, handle, code: chance.or_any_u32(code), flags, parts, twist }
}
