//! The target `device` on the checked-in seeds of `ioctl`. Its mount lies in a namespace of the
//! process's first thread, so this is a program without a test harness.

#[path = "../../tests/common/skip.rs"]
mod skip;

use fakebinder_fuzz::{device, grammar};
use std::path::Path;

fn main() {
    if !Path::new("/dev/fuse").exists() || !nix::unistd::geteuid().is_root() {
        return skip::skip("no /dev/fuse, or not root");
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/ioctl");
    let mut played = 0;
    for seed in std::fs::read_dir(directory).expect("a corpus") {
        let path = seed.expect("an entry").path();
        let program = grammar::Program::from_bytes(&std::fs::read(&path).expect("a seed"));
        println!("{}", path.display());
        device::play(&program);
        played += 1;
    }
    assert!(played > 10, "the corpus of ioctl is not here");
    println!("test seeds_through_a_mount ... ok ({played} programs)");
}
