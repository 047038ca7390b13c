//! Android's Binder IPC in userspace: a device that binder programs open, map and call, without a
//! binder driver in the kernel.
//!
//! Data flows one way, and nothing below knows anything above:
//!
//! ```text
//! device::session -> device -> binder -> alloc -> mm_shim
//! ```
//!
//! - [`device`]: what a device is. Its two doors, CUSE and FUSE, speak the kernel's wire protocol
//!   and hand opens, ioctls, polls and interrupts to the engine; replies go back from any thread.
//! - [`binder`]: the driver. Contexts, processes, threads, nodes, references and transactions, and
//!   the commands and returns that clients exchange with it.
//! - [`alloc`]: binder_alloc, the buffers in a client's mapping and the pages under them.
//! - [`mm_shim`]: the kernel's memory management as the allocator sees it, over real pages of
//!   real clients, or over plain memory.
//! - [`shrinker`]: the LRU of reclaimable pages over all clients, and what drives reclaim.
//! - [`client_log`], [`log_writer`]: what clients can have logged, and the thread that writes the log.
//! - [`client_mem`]: reading and writing the memory of a client.
//! - [`quota`]: what one user may make the daemon hold.
//! - [`shortage`]: what the daemon itself runs out of.
//! - [`uapi`]: the kernel's structures and constants.
//! - [`sim`]: clients in plain memory, for tests and fuzz targets.
//! - [`sync`], [`lock_order`]: the locks of the allocator, and the check of their order.
//! - [`mod@wrong`]: rules that a test build can break on purpose.
//!
//! # Locks
//!
//! In the order in which they are taken:
//!
//! 1. a context's object graph (`binder::graph`). Sections under it are short: no copying, no page
//!    install, no system call; no other lock is waited for but leaves that are never held across
//!    anything (a session's table of open requests, the table of waiting freezes, the limits of the
//!    client log). What records hold is counted by atomics ([`quota`]).
//! 2. the mm of a client (read by page installs, written by mmap and release), then
//! 3. the buffer mutex of its allocator, then
//! 4. the LRU lock.
//!
//! 1 is never held together with 2 to 4. The shrinker comes from the other end, from 4: it only
//! tries 2 and 3, and skips a page whose locks are busy. Debug builds check the order
//! ([`lock_order`]).

/// The kernel's error numbers, as every layer of this crate returns them.
pub use nix::errno::Errno;

pub mod alloc;
pub mod binder;
pub mod client_log;
pub mod client_mem;
pub mod device;
pub mod lock_order;
pub mod log_writer;
pub mod mm_shim;
pub mod quota;
pub mod shortage;
pub mod shrinker;
pub mod sim;
pub mod sync;
pub mod uapi;
pub mod wrong;
