//! The form of an input for target `ioctl`: one record for the setting, one for each step, all of
//! the same size. So a mutation of one step leaves the others as they are, and steps can be
//! inserted, removed, repeated, moved and crossed over as wholes, which is what [`mutate`] does.

use crate::grammar::{List, Program, Setting, Step};
use arbitrary::{Arbitrary, Unstructured};
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::SplitMix64;

/// Bytes of a record. A step that needs more reads zeros, which are the plainest of everything.
pub const RECORD: usize = 64;

/// The most steps of a program.
pub const MAX_STEPS: usize = 48;

impl Program {
    /// The setting is in the first record; what lies behind [`MAX_STEPS`] more is left out.
    pub fn from_bytes(bytes: &[u8]) -> Program {
        let (setting, steps) = bytes.split_at(bytes.len().min(RECORD));
        let setting = Setting::arbitrary(&mut Unstructured::new(setting)).expect("never runs out");
        let steps = steps.chunks(RECORD).take(MAX_STEPS);
        let step = |chunk| Step::arbitrary(&mut Unstructured::new(chunk)).expect("never runs out");
        Program { setting, steps: List(steps.map(step).collect()) }
    }
}

/// Choices that a seed must repeat.
struct Rng(SplitMix64);

impl Rng {
    fn seeded(seed: u32) -> Rng {
        Rng(SplitMix64::seed_from_u64(seed.into()))
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound.max(1) as u64) as usize
    }
}

/// A custom mutator for libFuzzer: half of the time it moves whole records, else it lets `inner`,
/// libFuzzer's own, change the bytes of one. Returns the new size.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    inner: impl FnOnce(&mut [u8], usize, usize) -> usize,
) -> usize {
    let mut rng = Rng::seeded(seed);
    let max_records = max_size.min(data.len()) / RECORD;
    let records = size.div_ceil(RECORD).clamp(1, max_records.max(1));
    if max_records < 2 {
        return inner(data, size, max_size);
    }
    let end = records * RECORD;
    if size < end {
        data[size..end].fill(0);
    }
    let at = |record: usize| record * RECORD;
    match rng.below(10) {
        // One step more, random or a copy of another, anywhere.
        0..2 if records < max_records => {
            let place = 1 + rng.below(records);
            data.copy_within(at(place)..end, at(place + 1));
            if rng.below(2) == 0 && records > 1 {
                let mut model = 1 + rng.below(records - 1);
                model += usize::from(model >= place);
                data.copy_within(at(model)..at(model + 1), at(place));
            } else {
                for byte in &mut data[at(place)..at(place + 1)] {
                    *byte = rng.below(256) as u8;
                }
            }
            end + RECORD
        }
        2 if records > 2 => {
            let place = 1 + rng.below(records - 1);
            data.copy_within(at(place + 1)..end, at(place));
            end - RECORD
        }
        3 if records > 2 => {
            let (one, other) = (1 + rng.below(records - 1), 1 + rng.below(records - 1));
            for index in 0..RECORD {
                data.swap(at(one) + index, at(other) + index);
            }
            end
        }
        // A few bytes of one step.
        4..7 => {
            let place = at(rng.below(records));
            for _ in 0..=rng.below(3) {
                let index = rng.below(RECORD) * rng.below(RECORD) / RECORD;
                data[place + index] = rng.below(256) as u8;
            }
            end
        }
        _ => {
            let place = at(rng.below(records));
            let mut record = [0; RECORD];
            record.copy_from_slice(&data[place..place + RECORD]);
            let changed = inner(&mut record, RECORD, RECORD).min(RECORD);
            record[changed..].fill(0);
            data[place..place + RECORD].copy_from_slice(&record);
            end
        }
    }
}

/// Crosses two programs over between steps. Returns the size of the new one.
pub fn cross_over(one: &[u8], other: &[u8], out: &mut [u8], seed: u32) -> usize {
    let mut rng = Rng::seeded(seed);
    let (ones, others) = (one.len() / RECORD, other.len() / RECORD);
    let head = 1 + rng.below(ones);
    let tail = 1 + rng.below(others);
    let head = &one[..(head * RECORD).min(one.len())];
    let tail = &other[(tail * RECORD).min(other.len())..];
    let head = &head[..head.len().min(out.len())];
    out[..head.len()].copy_from_slice(head);
    let tail = &tail[..tail.len().min(out.len() - head.len())];
    out[head.len()..][..tail.len()].copy_from_slice(tail);
    head.len() + tail.len()
}

/// The smallest input found that still `fails`: fewer steps, and plainer ones.
pub fn minimize(bytes: &[u8], mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut best = bytes.to_vec();
    best.resize(best.len().next_multiple_of(RECORD), 0);
    loop {
        let before = best.clone();
        for record in (1..best.len() / RECORD).rev() {
            let mut smaller = best.clone();
            smaller.drain(record * RECORD..(record + 1) * RECORD);
            if fails(&smaller) {
                best = smaller;
            }
        }
        for record in 0..best.len() / RECORD {
            // The tail of a record at once, then byte by byte.
            for keep in (0..RECORD).step_by(4) {
                let mut plainer = best.clone();
                plainer[record * RECORD + keep..(record + 1) * RECORD].fill(0);
                if plainer != best && fails(&plainer) {
                    best = plainer;
                    break;
                }
            }
            for index in record * RECORD..(record + 1) * RECORD {
                for plain in [0, 1, best[index] / 2] {
                    if plain < best[index] {
                        let mut plainer = best.clone();
                        plainer[index] = plain;
                        if fails(&plainer) {
                            best = plainer;
                            break;
                        }
                    }
                }
            }
        }
        if best == before {
            return best;
        }
    }
}
