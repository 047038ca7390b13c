//! The sizes of pages and mappings, which every layer of the memory knows.

/// The unit in which buffers are installed and reclaimed, in bytes.
pub const PAGE_SIZE: usize = 4096;

/// The most that a client gets, however much it maps (`SZ_4M`), in bytes.
pub const MAX_BUFFER_SIZE: usize = 4 << 20;
