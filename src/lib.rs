//! Android's Binder IPC in userspace.

/// The kernel's error numbers, as every layer of this crate returns them.
pub use nix::errno::Errno;

pub mod alloc;
pub mod binder;
pub mod client_mem;
pub mod device;
pub mod mm_shim;
pub mod shrinker;
pub mod sim;
pub mod sync;
pub mod uapi;
