//! Fuzzing of fakebinder: what the targets in `fuzz_targets/` run, usable by tests too.
//!
//! | module | what |
//! |---|---|
//! | [`grammar`] | programs: what clients may do |
//! | [`records`] | programs from bytes, and mutations that keep their steps whole |
//! | [`stage`] | clients in plain memory, and races at a place of one's choice |
//! | [`interpret`] | plays a program and checks it |
//! | [`ledger`] | what was sent, and whether it arrives |
//! | [`report`] | tells people what happened |

pub mod grammar;
pub mod interpret;
pub mod ledger;
pub mod records;
pub mod report;
pub mod stage;
