//! What is done next, by chance: the same seed gives the same choices.

use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::SplitMix64;

pub struct Chance(SplitMix64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(SplitMix64::seed_from_u64(seed))
    }

    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `limit`; 0 for limit 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit.max(1)
    }

    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// A size up to `most`: small ones are as likely as large ones.
    pub fn size(&mut self, most: u32) -> u32 {
        let magnitude = self.below(u64::from(most.ilog2()) + 1);
        let size = (1u64 << magnitude) + self.below(1 << magnitude);
        (size as u32 - 1).min(most)
    }

    pub fn some<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len() as u64) as usize).copied()
    }
}
