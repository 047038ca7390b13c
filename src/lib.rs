//! Android's Binder IPC in userspace: a device that binder programs open, map and call, without a
//! binder driver in the kernel.
//!
//! The way of a call and the life of a page are drawn in [`architecture`]. Data flows one way, and
//! nothing below knows anything above:
//!
//! ```text
//! device::session -> device -> binder -> alloc -> mm_shim -> memory -> page
//!                                                 shrinker -> memory
//! ```
//!
//! A test (`tests/house.rs`) reads which module uses which, and fails when one uses what is not
//! below it.
//!
//! - [`device`]: what a device is. Its two doors, CUSE and FUSE, speak the kernel's wire protocol
//!   and hand opens, ioctls, polls and interrupts to the engine; replies go back from any thread.
//! - [`binder`]: the driver. Contexts, processes, threads, nodes, references and transactions, and
//!   the commands and returns that clients exchange with it.
//! - [`alloc`]: binder_alloc, the buffers in a client's mapping and the pages under them.
//! - [`mm_shim`]: the kernel's memory management as the allocator sees it, over real pages of
//!   real clients, or over plain memory.
//! - [`memory`]: what the pages of all clients have in common: their budget, and the LRU of those
//!   that can be reclaimed.
//! - [`shrinker`]: what drives reclaim, and the thread that does it.
//! - [`page`]: the sizes of pages and mappings.
//! - [`probe`]: faults and delays on purpose, and how long senders wait for pages; handed to an
//!   allocator when it is made.
//! - [`mod@client_log`], [`log_writer`]: what clients can have logged, and the thread that writes
//!   the log.
//! - [`events`], [`recorder`]: what the driver does, event by event, and what clients do, byte by
//!   byte, for whoever listens.
//! - [`client_mem`]: reading and writing the memory of a client.
//! - [`quota`]: what one user may make the daemon hold.
//! - [`shortage`]: what the daemon itself runs out of.
//! - [`snapshot`]: what the daemon tells the administrator that it holds.
//! - [`uapi`]: the kernel's structures and constants.
//! - [`sync`], [`lock_order`]: the locks, and the check of their order.
//!
//! # Locks
//!
//! Every lock has a rank in its type ([`sync`]), and a rank says which others may be waited for
//! while it is held ([`lock_order::Rank::under`]). While the first of these is held, the others may
//! be waited for:
//!
//! - the devices of a mount, while a device is added or goes: the driver's lists of contexts, and
//!   the counts of what was made in contexts that are gone;
//! - the contexts of a driver by name: the list of all its contexts;
//! - the copies of a client (`binder::copies`): the clients that starve for copies that others
//!   hold;
//! - the turn of long work in a context (`binder::pieces`): the object graph of that context, and
//!   what may be waited for under the graph;
//! - the object graph of a context (`binder::graph`): a session's requests in flight (has a signal
//!   come?), the callers that wait for a freeze, the log of transactions;
//! - the mm of a client, read by page installs, written by mmap and release: the buffer mutex, the
//!   LRU, the users of the mm, the text of its mappings, the page table, the pages that are to go
//!   from the kernel's page cache;
//! - the buffer mutex of an allocator: the LRU, the page table, the pages that are to go.
//!
//! Under every other lock nothing is waited for. (The limits of the client log, the log's queue,
//! the queues of events, a recording and the table of users are leaves without a rank, which may be taken under any.) The shrinker comes
//! from the other end, from the LRU: it only tries the mm and the buffer mutex, and skips a page
//! whose locks are busy.
//!
//! A client is reached (its memory, its descriptors, what the system says of it) with no lock held
//! at all, since that takes as long as the client likes. Sections under a graph are short: no
//! copying, no page install, no system call.
//!
//! Debug builds and fuzz targets check all of this, and panic.

// Locks without a rank (clippy.toml).
#![warn(clippy::disallowed_types)]
// The locks that a model checker steps through stand in for documented ones.
#![cfg_attr(not(loom), deny(missing_docs))]

/// The kernel's error numbers, as every layer of this crate returns them.
#[cfg(feature = "daemon")]
pub use nix::errno::Errno;

// The users of this library know it by this name, and so does the code that its unit tests share
// with them.
#[cfg(test)]
extern crate self as fakebinder;

#[cfg(feature = "daemon")]
#[doc = include_str!("../docs/architecture.md")]
pub mod architecture {}

#[cfg(feature = "daemon")]
pub mod alloc;
#[cfg(feature = "daemon")]
pub mod binder;
#[cfg(feature = "daemon")]
pub mod client_log;
#[cfg(feature = "daemon")]
pub mod client_mem;
#[cfg(feature = "daemon")]
pub mod device;
#[cfg(feature = "daemon")]
pub mod events;
#[cfg(feature = "daemon")]
pub mod lock_order;
#[cfg(feature = "daemon")]
pub mod log_writer;
#[cfg(feature = "daemon")]
pub mod memory;
#[cfg(feature = "daemon")]
pub mod mm_shim;
#[cfg(feature = "daemon")]
pub mod page;
#[cfg(feature = "daemon")]
pub mod probe;
pub mod protocol;
#[cfg(feature = "daemon")]
pub mod quota;
#[cfg(feature = "daemon")]
pub mod recorder;
#[cfg(feature = "daemon")]
pub mod shortage;
#[cfg(feature = "daemon")]
pub mod shrinker;
#[cfg(feature = "snapshot")]
pub mod snapshot;
#[cfg(feature = "daemon")]
pub mod sync;
pub mod uapi;
