//! Random programs: each step is chosen in view of what the reference has answered so far, so that
//! most steps are meaningful, some are nearly so, and a few are nonsense.

use super::program::{Act, Buffer, MAPPING, PROCESSES, Part, Send, Step, THREADS, Twist, Write};
use super::setup::{Client, Setup};
use fakebinder_client::uapi;
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::SplitMix64;

/// Programs of this seed and above have numbers of any size in them. The programs of lower seeds
/// are as they were when the driver's outcomes were recorded.
pub const ANY_NUMBER: u64 = 1000;

/// Random numbers. A program is the same for the same seed, everywhere and for ever, because the
/// driver's outcomes of some seeds' programs are recorded.
pub(super) struct Rng {
    numbers: SplitMix64,
    any_number: bool,
}

impl Rng {
    pub(super) fn new(seed: u64, program: u64) -> Rng {
        let state =
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ program.wrapping_mul(0xd134_2543_de82_ef95);
        Rng { numbers: SplitMix64::seed_from_u64(state), any_number: seed >= ANY_NUMBER }
    }

    /// Now and then another number: a power of two, the one before or the one behind it, up to the
    /// largest. There are the limits of every type that the number may be kept in.
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
        (self.numbers.next_u64() % limit.max(1) as u64) as usize
    }

    /// True once in so many times.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())].clone()) }
    }

    /// A random index, by weights.
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

/// The next step. `unmap`: whether it may be a munmap.
pub(super) fn step(rng: &mut Rng, setup: &Setup, unmap: bool) -> Step {
    let living: Vec<_> = (0..PROCESSES).filter(|&index| setup.clients[index].alive).collect();
    let process = rng.pick(&living).unwrap_or(0);
    let thread = if rng.once_in(4) { 1 % THREADS } else { 0 };
    let client = &setup.clients[process];
    let act = match rng.weighted(&[50, 35, 2, 1, 1, 3, 1, 2, 1, 3, 2, 1, 1, 2]) {
        0 => {
            let count = 1 + rng.below(3);
            let write = (0..count).map(|_| write(rng, client, thread)).collect();
            Act::WriteRead { write, read: if rng.once_in(2) { 256 } else { 0 } }
        }
        1 => Act::WriteRead {
            write: Vec::new(),
            read: {
                let size = rng.pick(&[256, 256, 256, 256, 1024, 80, 79, 120, 4]);
                rng.or_any(size.unwrap_or(256)) as usize
            },
        },
        2 => Act::Poll,
        3 => {
            let threads = rng.below(4) as u32;
            Act::MaxThreads(rng.or_any_u32(threads))
        }
        4 => Act::ThreadExit,
        5 => Act::ExtendedError,
        6 => {
            let after = rng.below(5) as u64;
            Act::NodeDebugInfo(rng.or_any(after))
        }
        7 => Act::NodeInfo(handle(rng, client)),
        8 => Act::SpamDetection(!rng.once_in(4)),
        9 => Act::Freeze { process: rng.below(PROCESSES), enable: rng.once_in(2) },
        10 => Act::FrozenInfo(rng.below(PROCESSES)),
        11 => Act::SetContextManager,
        12 if unmap && rng.once_in(3) => Act::Unmap,
        13 if living.len() > 2 && rng.once_in(2) => Act::Kill,
        _ => Act::Poll,
    };
    Step { process, thread, act }
}

fn handle(rng: &mut Rng, client: &Client) -> u32 {
    let known: Vec<_> = client.handles.iter().copied().collect();
    match rng.below(12) {
        0 => {
            let handle = rng.below(6) as u32;
            rng.or_any_u32(handle)
        }
        1 => {
            let handle = rng.pick(&[7, 99, u32::MAX]).unwrap_or(0);
            rng.or_any_u32(handle)
        }
        2 | 3 => 0,
        _ => rng.pick(&known).unwrap_or(0),
    }
}

fn cookie(rng: &mut Rng) -> u64 {
    let cookie = 1 + rng.below(3) as u64;
    rng.or_any(cookie)
}

fn write(rng: &mut Rng, client: &Client, thread: usize) -> Write {
    let serving = client.serving[thread] > 0;
    let weights = [
        14,
        10,
        if serving { 25 } else { 1 },
        if client.held.is_empty() { 1 } else { 12 },
        if client.undone.is_empty() { 1 } else { 14 },
        if client.dead.is_empty() { 1 } else { 8 },
        if client.freezes.is_empty() { 1 } else { 8 },
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
    match rng.weighted(&weights) {
        0 => Write::Send(send(rng, client, false, 0)),
        1 => Write::Send(send(rng, client, false, uapi::TF_ONE_WAY)),
        2 => Write::Send(send(rng, client, true, 0)),
        3 => Write::Free(match rng.below(12) {
            0 => {
                let at = [0, 8, 64, -8, 4096, MAPPING as i64][rng.below(6)];
                Buffer::At(rng.or_any(at as u64) as i64)
            }
            1 => Buffer::Received(rng.below(8)),
            _ => Buffer::Received(rng.pick(&client.held).unwrap_or(0)),
        }),
        4 => match client.undone.get(rng.below(client.undone.len())) {
            Some(&(ptr, cookie, false)) if !rng.once_in(10) => Write::IncrefsDone(ptr, cookie),
            Some(&(ptr, cookie, true)) if !rng.once_in(10) => Write::AcquireDone(ptr, cookie),
            _ if rng.once_in(2) => Write::IncrefsDone(cookie(rng), cookie(rng)),
            _ => Write::AcquireDone(cookie(rng), cookie(rng)),
        },
        5 => Write::DeadBinderDone(client.dead.front().copied().unwrap_or(cookie(rng))),
        6 => Write::FreezeDone(client.freezes.front().copied().unwrap_or(cookie(rng))),
        7 => Write::Increfs(handle(rng, client)),
        8 => Write::Acquire(handle(rng, client)),
        9 => Write::Release(handle(rng, client)),
        10 => Write::Decrefs(handle(rng, client)),
        11 => Write::RequestDeath(handle(rng, client), cookie(rng)),
        12 => Write::ClearDeath(handle(rng, client), cookie(rng)),
        13 => Write::RequestFreeze(handle(rng, client), cookie(rng)),
        14 => Write::ClearFreeze(handle(rng, client), cookie(rng)),
        15 => rng
            .pick(&[Write::EnterLooper, Write::RegisterLooper, Write::ExitLooper])
            .unwrap_or(Write::EnterLooper),
        _ => match rng.below(4) {
            0 => Write::AttemptAcquire,
            1 => Write::AcquireResult,
            2 => Write::Words(vec![uapi::BR_NOOP]),
            _ => {
                Write::Words((0..1 + rng.below(3)).map(|_| rng.numbers.next_u64() as u32).collect())
            }
        },
    }
}

fn send(rng: &mut Rng, client: &Client, reply: bool, flags: u32) -> Send {
    let mut flags = flags;
    for flag in [uapi::TF_ACCEPT_FDS, uapi::TF_CLEAR_BUF, uapi::TF_UPDATE_TXN, uapi::TF_STATUS_CODE]
    {
        if rng.once_in(6) {
            flags |= flag;
        }
    }
    let mut parts = Vec::new();
    if !rng.once_in(3) {
        parts.push(Part::Bytes(match rng.below(10) {
            0 => MAPPING as usize / 2,
            1 => MAPPING as usize / 4,
            2 => MAPPING as usize / 10,
            3 => 4096,
            _ => rng.below(64),
        }));
    }
    let mut offsets = 0;
    for _ in 0..[0, 0, 1, 1, 1, 2, 3][rng.below(7)] {
        let weak = rng.once_in(4);
        match rng.weighted(&[10, 8, 3, 4, 1]) {
            0 => {
                let ptr = 1 + rng.below(3) as u64;
                let ptr = rng.or_any(ptr);
                // The cookie belongs to the node; now and then another one is sent.
                let cookie = if rng.once_in(12) { 9 } else { ptr.wrapping_mul(10) };
                let accepts = if rng.once_in(2) { uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS } else { 0 };
                parts.push(Part::Binder { ptr, cookie, flags: accepts, weak });
            }
            1 => parts.push(Part::Handle { handle: handle(rng, client), weak }),
            2 => parts.push(Part::Fd((!rng.once_in(8)).then(|| rng.below(4)))),
            3 => {
                let parent = (offsets > 0 && rng.once_in(2))
                    .then(|| (rng.below(offsets + 1) as u64, [0, 8, 16, 4, 60][rng.below(5)]));
                let parent = parent.map(|(parent, at)| (rng.or_any(parent), rng.or_any(at)));
                parts.push(Part::Buffer { length: [8, 24, 40, 5, 0][rng.below(5)], parent });
            }
            _ => {
                parts.push(Part::Buffer { length: 16, parent: None });
                offsets += 1;
                let count = [1, 2, 4, 5, 0][rng.below(5)];
                let parent = if rng.once_in(8) { 0 } else { offsets as u64 - 1 };
                let offset = [0, 4, 8, 2][rng.below(4)];
                parts.push(Part::FdArray {
                    count: rng.or_any(count),
                    parent: rng.or_any(parent),
                    offset: rng.or_any(offset),
                });
            }
        }
        offsets += 1;
        if rng.once_in(3) {
            parts.push(Part::Bytes(rng.below(12)));
        }
    }
    let twist = rng.once_in(12).then(|| match rng.below(10) {
        0 => Twist::DataAt([16, 0xffff_8880_0000_0000][rng.below(2)]),
        1 => Twist::DataSize([0, 1, 100_000, u64::MAX, u64::MAX - 16][rng.below(5)]),
        2 => Twist::OffsetsAt([16, 0xffff_8880_0000_0000][rng.below(2)]),
        3 => Twist::OffsetsSize([1, 4, 12, 1 << 40, u64::MAX - 7][rng.below(5)]),
        4 => Twist::Offset([0, 4, 8, 24, 1000, u64::MAX][rng.below(6)]),
        5 => Twist::Shift([1, 2, 4, -4, 8, -24, 24][rng.below(7)]),
        6 => Twist::Reverse,
        7 => Twist::BuffersSize([0, 8, 12, 64, u64::MAX - 7][rng.below(5)]),
        8 => Twist::Flip(rng.below(128)),
        _ => Twist::Cut(1 + rng.below(30)),
    });
    let twist = twist.map(|twist| match twist {
        Twist::DataSize(size) => Twist::DataSize(rng.or_any(size)),
        Twist::OffsetsSize(size) => Twist::OffsetsSize(rng.or_any(size)),
        Twist::Offset(offset) => Twist::Offset(rng.or_any(offset)),
        Twist::BuffersSize(size) => Twist::BuffersSize(rng.or_any(size)),
        as_it_is @ (Twist::DataAt(_)
        | Twist::OffsetsAt(_)
        | Twist::Shift(_)
        | Twist::Reverse
        | Twist::Flip(_)
        | Twist::Cut(_)) => as_it_is,
    });
    let handle = if reply { 0 } else { handle(rng, client) };
    let code = rng.below(4) as u32;
    Send { reply, handle, code: rng.or_any_u32(code), flags, parts, twist }
}
