//! How the FUSE door's directory is mounted: by the daemon, or by others where it may not.
//!
//! Root mounts by itself. An ordinary user has two ways, and neither gives the kernel's mmap
//! (passthrough takes CAP_SYS_ADMIN in the first user namespace):
//! - `fusermount3`, a program that is set-user-ID root, makes a mount that all see, and that the
//!   user alone may enter, or everybody where `/etc/fuse.conf` has `user_allow_other`;
//! - in a user namespace of its own a process ([`Keeper`]) may mount. That mount is in no other
//!   process's namespace, but programs of the user reach it through `/proc/PID/root`, to which the
//!   daemon makes a link. The daemon itself stays outside: from inside it would not be allowed to
//!   reach the memory of programs outside.

mod fusermount;
mod keeper;

pub use keeper::{KEEP_MOUNT, Keeper, keep_mount};

use super::claim::{self, Artifact, Claim};
use super::mounts::MountPoint;
use crate::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{getegid, geteuid};
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file system type of the daemon's mounts, in `/proc/mounts`.
pub const FILE_SYSTEM: &str = "fuse.fakebinder";

const SOURCE: &str = "fakebinder";

/// Who is to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MountBy {
    /// The daemon if it has CAP_SYS_ADMIN or is root, else fusermount3, else a process in a user
    /// namespace.
    Auto,
    /// The daemon.
    Daemon,
    /// fusermount3.
    Fusermount,
    /// A process in a user namespace.
    Namespace,
}

/// Who has mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountedBy {
    /// The daemon.
    Daemon,
    /// fusermount3.
    Fusermount {
        /// Others than the daemon's user may enter.
        for_all: bool,
    },
    /// A process in a user namespace.
    Namespace,
}

impl fmt::Display for MountedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MountedBy::Daemon => "by the daemon, for everybody",
            MountedBy::Fusermount { for_all: true } => "by fusermount3, for everybody",
            MountedBy::Fusermount { for_all: false } => {
                "by fusermount3, for this user alone (user_allow_other is not in /etc/fuse.conf)"
            }
            MountedBy::Namespace => {
                "in a user namespace, for programs of this user that are in none"
            }
        })
    }
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /dev/fuse could not be opened.
    #[error("/dev/fuse: {0} (is the fuse module loaded, and does a container pass the device on?)")]
    Device(io::Error),
    /// The mount was refused.
    #[error("mounting on {0}: {1} (it takes CAP_SYS_ADMIN)")]
    Mount(PathBuf, Errno),
    /// The place cannot be used.
    #[error(transparent)]
    Claim(#[from] claim::Error),
    /// There is no such program.
    #[error("fusermount3 is not here (apt-get install fuse3)")]
    NoFusermount,
    /// What it said.
    #[error("fusermount3: {0}")]
    Fusermount(String),
    /// A step in the user namespace failed.
    #[error("{}: {errno}{}", .step.what(), .step.hint(*.errno))]
    Namespace {
        /// Which.
        step: keeper::Step,
        /// Why.
        errno: Errno,
    },
    /// The process in the user namespace could not be started, or does not answer.
    #[error("starting a process for it: {0}")]
    Keeper(io::Error),
    /// An ordinary user can mount in neither way.
    #[error(
        "an ordinary user cannot mount here, neither by fusermount3 ({0}) nor in a user namespace ({1}); \
         run it as root, or see to one of these"
    )]
    Neither(Box<Error>, Box<Error>),
}

/// A mount whose first request waits to be read.
pub struct Mounted {
    /// `/dev/fuse`, over which the requests come.
    pub fuse: OwnedFd,
    /// Where it is.
    pub at: MountPoint,
    /// Who has made it.
    pub by: MountedBy,
    /// The process in whose namespace the mount is; the mount ends with it.
    pub keeper: Option<Keeper>,
}

/// Whether this process has CAP_SYS_ADMIN in its user namespace.
fn is_admin() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

/// Mounts on `path`, which is claimed: a directory that is made if there is none. Notes in the
/// claim what is to be removed.
pub fn mount(claim: &mut Claim, path: &Path, by: MountBy) -> Result<Mounted, Error> {
    match by {
        MountBy::Auto if is_admin() || geteuid().is_root() => by_daemon(claim, path),
        MountBy::Auto => match by_fusermount(claim, path) {
            Ok(mounted) => Ok(mounted),
            // Another place is what that takes, and not another way.
            Err(error @ Error::Claim(_)) => Err(error),
            Err(error) => {
                log::info!("mounting in a user namespace: {error}");
                claim.undo();
                let both = |other| Error::Neither(Box::new(error), Box::new(other));
                in_namespace(claim, path).map_err(both)
            }
        },
        MountBy::Daemon => by_daemon(claim, path),
        MountBy::Fusermount => by_fusermount(claim, path),
        MountBy::Namespace => in_namespace(claim, path),
    }
}

/// Options of the mount, with `/dev/fuse` open as `fd`.
fn options(fd: i32) -> String {
    let (uid, gid) = (geteuid(), getegid());
    format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions")
}

fn flags() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME
}

fn by_daemon(claim: &mut Claim, path: &Path) -> Result<Mounted, Error> {
    let mut open = OpenOptions::new();
    open.read(true).write(true).custom_flags(libc::O_CLOEXEC);
    let fuse: OwnedFd = open.open("/dev/fuse").map_err(Error::Device)?.into();
    prepare(claim, path)?;
    let options = options(fuse.as_raw_fd()) + ",allow_other";
    nix::mount::mount(Some(SOURCE), path, Some(FILE_SYSTEM), flags(), Some(options.as_str()))
        .map_err(|error| Error::Mount(path.to_owned(), error))?;
    let at = MountPoint::here(path);
    Ok(Mounted { fuse, at, by: MountedBy::Daemon, keeper: None })
}

fn by_fusermount(claim: &mut Claim, path: &Path) -> Result<Mounted, Error> {
    let program = fusermount::find().ok_or(Error::NoFusermount)?;
    prepare(claim, path)?;
    let for_all = fusermount::allows_others();
    let fuse = fusermount::mount(&program, path, for_all)?;
    let (at, by) = (MountPoint::here(path), MountedBy::Fusermount { for_all });
    Ok(Mounted { fuse, at, by, keeper: None })
}

/// A directory to mount on.
fn prepare(claim: &mut Claim, path: &Path) -> Result<(), Error> {
    claim.directory(path)?;
    claim.note(Artifact::Mount { path: path.to_owned() })?;
    Ok(())
}

fn in_namespace(claim: &mut Claim, path: &Path) -> Result<Mounted, Error> {
    claim.clear_dead_mount(path)?;
    claim.free(path)?;
    let (keeper, fuse) = Keeper::start()?;
    let at = keeper.mount_point();
    claim.link(path, at.reached())?;
    Ok(Mounted { fuse, at, by: MountedBy::Namespace, keeper: Some(keeper) })
}

/// Unmounts, at once for all who would enter; who is inside stays there.
pub fn unmount(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Err(Errno::EPERM) => match fusermount::find() {
            Some(program) => fusermount::unmount(&program, path),
            None => Err(Errno::EPERM.into()),
        },
        result => result.map_err(io::Error::from),
    }
}
