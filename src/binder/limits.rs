//! What one client may make the daemon hold. Past a limit the client's own call fails, as it does
//! in the driver when the kernel has no memory; nobody else notices.

/// Threads of one open file; a further thread's ioctl fails with ENOMEM.
pub const THREADS: usize = 16_384;

/// Nodes of one open file; a transaction that brings a further one fails with ENOMEM inside.
pub const NODES: usize = 262_144;

/// References of one open file; a transaction that brings a further one fails with ENOMEM inside.
pub const REFS: usize = 262_144;

/// Death links and freeze links (each) of one open file, counted until their last notice is read;
/// BC_REQUEST_DEATH_NOTIFICATION past it reads BR_ERROR, BC_REQUEST_FREEZE_NOTIFICATION fails with ENOMEM.
pub const LINKS: usize = 262_144;

/// Returns that wait for one thread; a transaction of a thread that does not read fails with ENOMEM inside.
pub const THREAD_TODO: usize = 65_536;

/// Descriptors that one transaction may carry; the rest is EINVAL inside.
pub const FILES_PER_TRANSACTION: usize = 1_024;

/// Descriptors in transactions on their way to one open file; past it EMFILE inside.
pub const FILES_IN_FLIGHT: usize = 4_096;
