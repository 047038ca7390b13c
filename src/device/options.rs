//! What a mount of the FUSE door shows, as the options of binderfs's own mount do.

use super::tree::Permissions;

/// More devices cannot be added unless an option says so. binderfs: a million.
pub const MAX_DEVICES: usize = 4096;
/// The most that the option may say (`BINDERFS_MAX_MINOR`).
pub const MOST_DEVICES: usize = 1 << 20;

/// Who may see `binder_logs/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Stats {
    /// Root alone: the logs tell of everybody.
    Root,
    /// Everybody, as on a binderfs mounted with `stats=global`.
    Global,
    /// Nobody: there are none, as on a binderfs mounted without that option.
    None,
}

/// What the mount of the FUSE door is like.
#[derive(Debug, Clone, Copy)]
pub struct MountOptions {
    /// What the first devices start with. Added ones start as in binderfs: root's alone, 0600.
    pub permissions: Permissions,
    /// At most so many devices, the first ones included (`max=`).
    pub max_devices: usize,
    /// Who may see `binder_logs/` (`stats=`).
    pub stats: Stats,
    /// Off: act as if the kernel had no passthrough.
    pub passthrough: bool,
}

impl MountOptions {
    /// What is usual, for devices with these permissions.
    pub fn new(permissions: Permissions) -> MountOptions {
        MountOptions {
            permissions,
            max_devices: MAX_DEVICES,
            stats: Stats::Root,
            passthrough: true,
        }
    }
}
