//! The means by which tests and fuzz targets drive the daemon; none of it is in the daemon.
//!
//! - [`world`]: binder clients in plain memory, without a device, a kernel or a process
//! - [`HeapMm`]: a client's address space in plain memory, for the allocator
//! - [`child`]: child processes that make the system calls that they are told to, as clients of a
//!   device
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod child;
#[cfg(feature = "world")]
mod heap;
#[cfg(feature = "world")]
pub mod world;

#[cfg(feature = "world")]
pub use heap::HeapMm;
#[cfg(feature = "world")]
pub use world::{
    ARENA, Arena, Ended, MAPPING, ManualTimers, Pending, Sim, SimClient, SimFile, SimReply,
    SimThread, Slot, World,
};
