//! The mm that the allocator sees: the kernel's verbs over real memory.

use crate::Errno;

/// The address space of one client (in the kernel: `struct mm_struct` and its one binder VMA).
pub trait Mm: Send + Sync {
    /// Where the client has mapped its buffer, if it has and nobody has told us yet
    /// (FUSE door: found in `/proc/PID/maps`). `(address, length)`.
    fn find_mapping(&self) -> Result<(u64, usize), Errno>;
}
