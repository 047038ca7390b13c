//! The CUSE door: a character device in userspace.
//!
//! Ioctls are unrestricted: the request carries only a pointer, and the daemon reads and writes the
//! caller's memory by itself, or has the kernel do it (see [`retry`](super::retry)). A CUSE device
//! has no mmap (clients attach, see [`attach`](super::attach)) and no flush.

use super::claim::{Artifact, Claim};
use super::session::{BUFFER_SIZE, Door, MAJOR, MINOR, Responder, Session};
use super::tree::Permissions;
use super::wire::{Header, Request};
use super::{Device, Opens, claim, workers};
use crate::mm_shim::{MappingKind, create_memfd};
use crate::{Errno, uapi};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, makedev, mknod};
use nix::unistd::{Gid, Uid};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The most that one read or write could carry; there are none.
const MAX_TRANSFER: u32 = 4096;

/// Why there is no CUSE door.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /dev/cuse could not be opened.
    #[error("/dev/cuse: {0} (it takes root, and the cuse module)")]
    Device(std::io::Error),
    /// The first request was not INIT, or could not be read.
    #[error("the kernel did not ask for a device: {0}")]
    NoInit(Errno),
    /// The kernel ended the session instead of making the device.
    #[error("the kernel refused the device {0}: is there one of this name already?")]
    Refused(String),
    /// The node in /dev could not be made.
    #[error("{0}: {1}")]
    Node(PathBuf, std::io::Error),
    /// The place of the node belongs to something else.
    #[error(transparent)]
    Claim(#[from] claim::Error),
    /// The workers could not be started.
    #[error("starting threads: {0}")]
    Threads(std::io::Error),
}

struct CuseDoor {
    device: Arc<Device>,
    opens: Opens,
    initialised: AtomicBool,
}

/// Makes `/dev/NAME` and serves it until the kernel drops it; then calls `on_end`.
pub fn open(
    device: Arc<Device>,
    claim: &mut Claim,
    permissions: Permissions,
    on_end: Box<dyn FnOnce() + Send>,
) -> Result<(), Error> {
    let path = Path::new("/dev").join(&device.name);
    let cuse = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/cuse")
        .map_err(Error::Device)?;
    claim.free(&path)?;
    let name = device.name.clone();
    let session = Session::new(cuse.into(), format!("{} (CUSE)", path.display()));
    let door = CuseDoor::new(device);
    // The kernel makes the device while it takes this answer, in this thread.
    let mut buffer = vec![0; BUFFER_SIZE];
    match session.receive(&mut buffer) {
        Ok(Some(message)) => session.dispatch(message, &*door),
        Ok(None) => return Err(Error::NoInit(Errno::ENODEV)),
        Err(error) => return Err(Error::NoInit(error)),
    }
    if !door.initialised.load(Ordering::Relaxed) {
        return Err(Error::NoInit(Errno::EPROTO));
    }
    let rdev = device_number(&name).ok_or(Error::Refused(name))?;
    node(claim, &path, rdev, permissions)?;
    let closing = door.clone();
    let ended = Box::new(move || {
        closing.ended();
        on_end();
    });
    workers::start(session, door, workers::WorkerLimits::of_this_machine(), ended)
        .map_err(Error::Threads)
}

fn device_number(name: &str) -> Option<u64> {
    let number = fs::read_to_string(format!("/sys/class/cuse/{name}/dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The node is made by devtmpfs, where there is one; elsewhere (most containers) by the daemon.
fn node(claim: &mut Claim, path: &Path, rdev: u64, permissions: Permissions) -> Result<(), Error> {
    let failed = |error: Errno| Error::Node(path.to_owned(), error.into());
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_char_device() && found.rdev() == rdev => {}
        Ok(_) => return Err(claim::Error::Foreign(path.to_owned()).into()),
        Err(_) => {
            claim.note(Artifact::Node { path: path.to_owned(), rdev })?;
            mknod(path, SFlag::S_IFCHR, Mode::empty(), rdev).map_err(failed)?;
        }
    }
    let (uid, gid) = (Uid::from_raw(permissions.uid), Gid::from_raw(permissions.gid));
    nix::unistd::chown(path, Some(uid), Some(gid)).map_err(failed)?;
    let mode = Mode::from_bits_truncate(permissions.mode);
    fchmodat(nix::fcntl::AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink).map_err(failed)
}

/// The door to a device for a session that may have any kernel at its other end.
pub fn door(device: Arc<Device>) -> Arc<dyn Door> {
    CuseDoor::new(device)
}

impl CuseDoor {
    fn new(device: Arc<Device>) -> Arc<CuseDoor> {
        Arc::new(CuseDoor { device, opens: Opens::default(), initialised: AtomicBool::new(false) })
    }

    fn init(&self, (major, minor): (u32, u32), flags: u32, responder: Responder) {
        if major != MAJOR || flags & uapi::CUSE_UNRESTRICTED_IOCTL == 0 {
            log::error!("the kernel speaks CUSE {major}.{minor} with flags {flags:#x}");
            return responder.error(Errno::EPROTO);
        }
        let out = uapi::cuse_init_out {
            major: MAJOR,
            minor: MINOR,
            flags: uapi::CUSE_UNRESTRICTED_IOCTL,
            max_read: MAX_TRANSFER,
            max_write: MAX_TRANSFER,
            ..Default::default()
        };
        let information = format!("DEVNAME={}\0", self.device.name);
        self.initialised.store(true, Ordering::Relaxed);
        responder.value_and_bytes(&out, information.as_bytes());
    }

    fn open_file(&self, header: &Header, flags: u32) -> Result<u64, Errno> {
        let buffer = create_memfd(&self.device.name)?;
        let open = self.device.open(header, flags, buffer, MappingKind::Memfd)?;
        Ok(self.opens.add(open))
    }
}

impl Door for CuseDoor {
    fn request(&self, header: Header, request: Request<'_>, responder: Responder) {
        let remove = |fh| self.opens.remove(fh);
        let Some(responder) = self.opens.request(&header, &request, responder, remove) else {
            return;
        };
        match request {
            Request::CuseInit { major, minor, flags } => {
                self.init((major, minor), flags, responder);
            }
            Request::Open { flags } => match self.open_file(&header, flags) {
                Ok(fh) => responder.value(&uapi::fuse_open_out {
                    fh,
                    open_flags: uapi::FOPEN_DIRECT_IO,
                    ..Default::default()
                }),
                Err(error) => responder.error(error),
            },
            Request::Destroy => responder.done(),
            Request::Init { .. }
            | Request::Lookup { .. }
            | Request::Forget(_)
            | Request::GetAttr
            | Request::SetAttr(_)
            | Request::ReadLink
            | Request::Symlink { .. }
            | Request::Mknod { .. }
            | Request::Unlink { .. }
            | Request::Rename { .. }
            | Request::Read { .. }
            | Request::Write
            | Request::StatFs
            | Request::Flush { .. }
            | Request::Release { .. }
            | Request::OpenDir
            | Request::ReadDir { .. }
            | Request::ReleaseDir
            | Request::Ioctl(_)
            | Request::Poll { .. }
            | Request::Interrupt { .. }
            | Request::Other { .. } => responder.error(Errno::ENOSYS),
        }
    }

    fn interrupt(&self, fh: u64, tid: i32) {
        self.opens.interrupt(fh, tid);
    }

    fn ended(&self) {
        self.opens.release_all();
    }
}
