//! Programs of several clients over the engine, step by step.
#![no_main]

use fakebinder_fuzz::grammar::Program;
use fakebinder_fuzz::interpret::play;
use fakebinder_fuzz::{records, report};
use libfuzzer_sys::{fuzz_crossover, fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|bytes: &[u8]| {
    report::run(Program::from_bytes(bytes), play);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    records::mutate(data, size, max_size, seed, fuzzer_mutate)
});

fuzz_crossover!(|one: &[u8], other: &[u8], out: &mut [u8], seed: u32| {
    records::cross_over(one, other, out, seed)
});
