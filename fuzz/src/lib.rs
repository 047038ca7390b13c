//! Fuzzing of fakebinder: what the targets in `fuzz_targets/` run, usable by tests too.
//!
//! | module | what |
//! |---|---|
//! | [`grammar`] | programs: what clients may do |
//! | [`allocator`] | the allocator and its shrinker, against a model |
//! | [`records`] | programs from bytes, and mutations that keep their steps whole |
//! | `barrier` | races at a place of one's choice |
//! | [`trace`] | what a program did, for people |
//! | [`interpret`] | plays a program and checks it |
//! | [`write_buffer`] | any bytes as commands |
//! | `ledger` | what was sent, and whether it arrives |
//! | [`wire`] | the kernel's end of a session |
//! | [`device`] | programs through a FUSE mount |
//! | [`report`] | tells people what happened |

#![deny(missing_docs)]

pub mod allocator;
mod barrier;
pub mod device;
pub mod grammar;
pub mod interpret;
mod ledger;
pub mod records;
pub mod report;
pub mod trace;
pub mod wire;

pub use interpret::write_buffer;
