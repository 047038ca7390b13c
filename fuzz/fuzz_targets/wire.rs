//! Any bytes as FUSE and CUSE messages.
#![no_main]

use fakebinder_fuzz::report::{self, Messages};
use fakebinder_fuzz::wire;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    report::run(Messages(bytes.to_vec()), |messages| wire::play(&messages.0));
});
