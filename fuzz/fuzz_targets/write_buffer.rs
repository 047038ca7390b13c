//! Any bytes as a write buffer, written by a client in the middle of things.
#![no_main]

use fakebinder_fuzz::report::{self, WriteBuffer};
use fakebinder_fuzz::write_buffer::play;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    report::run(WriteBuffer(bytes.to_vec()), |written| play(&written.0));
});
