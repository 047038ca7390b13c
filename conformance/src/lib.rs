//! Tests of everything that a client of a binder device can see.
//!
//! The measure is the kernel's driver: every test passes there before it judges another device. A
//! test is a scene: several processes make one system call at a time, as one script tells them, so
//! that a scene reads from top to bottom and always goes the same way.
//!
//! - `library`: what its processes (`fakebinder_sim::child`) do besides system calls
//! - `message`: the commands that processes write
//! - `scene`: processes; `thread`: their threads and open files; `exchange`: their calls to the
//!   driver; `reads`: what they read, in words
//! - `uring`: polling by io_uring
//! - `runner`: each test in its own processes, with a time limit; TAP and JUnit
//! - [`differ`]: random programs on two devices
//! - [`session`]: what clients did elsewhere, as such a program
//! - the rest: the tests, one noun of binder each

#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("scenes make system calls with all of their 64-bit arguments: build for 64 bits");

pub mod differ;
mod door;
mod exchange;
mod library;
mod message;
mod reads;
mod runner;
mod scene;
pub mod session;
mod thread;

mod buffer;
mod call;
mod command;
mod death;
mod descriptor;
mod epoll;
mod file;
mod freeze;
mod handle;
mod ioctl;
mod looper;
mod manager;
mod node;
mod object;
mod oneway;
mod poll;
mod release;
mod scatter;
mod signal;
mod uring;
mod wait;

pub use library::map_unaided;
pub use runner::{Options, Outcome, Report, Verdict, list, run};

use scene::Scene;

/// The tests of one noun.
struct Group {
    name: &'static str,
    tests: &'static [(&'static str, Act)],
}

/// A test. It fails by a panic.
type Act = fn(&Scene);

/// Every test, in the order in which they run.
const GROUPS: &[Group] = &[
    file::GROUP,
    ioctl::GROUP,
    manager::GROUP,
    command::GROUP,
    call::GROUP,
    oneway::GROUP,
    object::GROUP,
    handle::GROUP,
    node::GROUP,
    descriptor::GROUP,
    scatter::GROUP,
    buffer::GROUP,
    looper::GROUP,
    death::GROUP,
    freeze::GROUP,
    poll::GROUP,
    epoll::GROUP,
    wait::GROUP,
    signal::GROUP,
    release::GROUP,
];

/// Names a group after its file, and its tests after their functions.
macro_rules! group {
    ($name:literal: $($test:ident),* $(,)?) => {
        pub(super) const GROUP: super::Group = super::Group {
            name: $name,
            tests: &[$((stringify!($test), $test)),*],
        };
    };
}
use group;
