//! What a mount of the FUSE door shows: the counterpart of binderfs's mount options.

use super::mounting::MountBy;
use super::tree::Permissions;
use super::uring::Transport;

/// How many devices there may be unless an option says so. (binderfs: a million.)
pub const MAX_DEVICES: usize = 4096;
/// The largest value of that option (`BINDERFS_MAX_MINOR`).
pub const MOST_DEVICES: usize = 1 << 20;

/// Who may see `binder_logs/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Stats {
    /// Root alone: the logs tell of all clients.
    Root,
    /// Everybody, as on a binderfs mounted with `stats=global`.
    Global,
    /// Nobody: there are no logs, as on a binderfs mounted without that option.
    None,
}

/// The options of a mount of the FUSE door.
#[derive(Debug, Clone, Copy)]
pub struct MountOptions {
    /// Owner and mode of the first devices. Added devices start as in binderfs: root's, 0600.
    pub permissions: Permissions,
    /// Who owns all else, by uid and gid: root, or the ordinary user who runs the daemon.
    pub root: (u32, u32),
    /// Who is to mount.
    pub mount_by: MountBy,
    /// The most devices that there may be, the first ones included (`max=`).
    pub max_devices: usize,
    /// Who may see `binder_logs/` (`stats=`).
    pub stats: Stats,
    /// False: act as if the kernel had no passthrough.
    pub passthrough: bool,
    /// How requests come.
    pub transport: Transport,
}

impl MountOptions {
    /// The default options, for devices with these permissions.
    pub fn new(permissions: Permissions) -> MountOptions {
        MountOptions {
            permissions,
            root: (0, 0),
            mount_by: MountBy::Auto,
            max_devices: MAX_DEVICES,
            stats: Stats::Root,
            passthrough: true,
            transport: Transport::Read,
        }
    }
}
