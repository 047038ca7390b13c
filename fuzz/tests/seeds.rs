//! The checked-in seeds of the targets that need nothing but memory.

use fakebinder_fuzz::{allocator, grammar, interpret, write_buffer};
use std::path::Path;

fn each_seed(target: &str, play: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut seeds = 0;
    for entry in std::fs::read_dir(directory).expect("a corpus") {
        play(&std::fs::read(entry.expect("an entry").path()).expect("a seed"));
        seeds += 1;
    }
    assert!(seeds > 10, "the corpus of {target} is not here");
}

#[test]
fn seeds_of_ioctl() {
    each_seed("ioctl", |bytes| {
        interpret::play(&grammar::Program::from_bytes(bytes));
    });
}

#[test]
fn seeds_of_alloc() {
    each_seed("alloc", |bytes| allocator::play(&allocator::Program::from_bytes(bytes)));
}

#[test]
fn seeds_of_write_buffer() {
    each_seed("write_buffer", write_buffer::play);
}

#[test]
fn programs_print_as_rust() {
    let program = grammar::Program::from_bytes(&[7; 640]);
    let printed = format!("{program:?}");
    assert!(printed.starts_with("Program { setting: Setting {"), "{printed}");
    assert!(printed.contains("steps: list!["), "{printed}");
}
