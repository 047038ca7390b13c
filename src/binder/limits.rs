//! What one client may make the daemon hold. Past a limit the client's own call fails, as it does
//! in the driver when the kernel has no memory; no other client notices.

/// The limits of a driver, the same for each of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads of one open file; a further thread's ioctl fails with ENOMEM.
    pub threads: usize,

    /// Nodes of one open file; a transaction that would add one fails with ENOMEM
    /// (BR_FAILED_REPLY).
    pub nodes: usize,

    /// References of one open file; a transaction that would add one fails with ENOMEM
    /// (BR_FAILED_REPLY).
    pub refs: usize,

    /// Death links and freeze links (each) of one open file, counted until their last notice is
    /// read; BC_REQUEST_DEATH_NOTIFICATION past it reads BR_ERROR,
    /// BC_REQUEST_FREEZE_NOTIFICATION fails with ENOMEM.
    pub links: usize,

    /// Returns that wait for one thread; further transactions of a thread that does not read fail
    /// with ENOMEM (BR_FAILED_REPLY).
    pub thread_todo: usize,

    /// Descriptors that one transaction may carry (one message to the receiver has room for 253);
    /// more of them fail it with EINVAL (BR_FAILED_REPLY).
    pub files_per_transaction: usize,

    /// Descriptors in transactions on their way to one open file; more of them fail with EMFILE
    /// (BR_FAILED_REPLY).
    pub files_in_flight: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            threads: 16_384,
            nodes: 262_144,
            refs: 1_048_576,
            links: 1_048_576,
            thread_todo: 65_536,
            files_per_transaction: crate::uapi::FAKEBINDER_FILES_MAX,
            files_in_flight: 4_096,
        }
    }
}
