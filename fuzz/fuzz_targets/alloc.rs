//! The allocator with its shrinker, against a model.
#![no_main]

use fakebinder_fuzz::allocator::{Program, play};
use fakebinder_fuzz::report;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    report::run(Program::from_bytes(bytes), play);
});
