//! The FUSE door: a mounted directory whose files are devices.
//!
//! A client opens `NAME`, a link, and through it a file of its own (see [`tree`](super::tree)).
//! At OPEN the file gets the client's buffer as its backing file (passthrough), so that a plain
//! mmap maps the buffer, and everything else (`FOPEN_DIRECT_IO`) comes here. Ioctls are
//! restricted: the kernel copies the argument in and out as the ioctl's number says.
//!
//! The kernel opens the backing file anew, with the client's flags and our credentials
//! (`fuse_passthrough_open`): a client that has opened a device for writing can map its own
//! buffer writable, whatever descriptor we give. See `mm_shim` for what that means.

use super::session::{Door, MAJOR, MINOR, Responder, Session};
use super::tree::{Node, Permissions, Tree};
use super::wire::{Header, Ioctl, Request};
use super::{Device, Open, Opens, workers};
use crate::client_log::{Kind, client_log};
use crate::lock_order::rank;
use crate::mm_shim::{BufferFile, MappingKind, Verb, create_memfd, fault};
use crate::shortage;
use crate::sync::Mutex;
use crate::{Errno, uapi};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The type of our mounts, in `/proc/mounts`.
pub const FILE_SYSTEM: &str = "fuse.fakebinder";

/// The smallest that the kernel accepts: nothing is ever written.
const MAX_WRITE: u32 = 4096;
/// Releases are sent in the background; many may be on their way when many clients exit at once.
const MAX_BACKGROUND: u16 = 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("/dev/fuse: {0} (is the fuse module loaded, and does a container pass the device on?)")]
    Device(std::io::Error),
    #[error("mounting on {0}: {1} (it takes CAP_SYS_ADMIN)")]
    Mount(PathBuf, Errno),
    #[error("{0} is not in /proc/self/mountinfo")]
    Unknown(PathBuf),
    #[error("starting threads: {0}")]
    Threads(std::io::Error),
}

/// A file that is open.
struct OpenFile {
    node: u64,
    /// Number of the backing file; 0 without passthrough.
    backing: i32,
}

struct FuseDoor {
    session: Arc<Session>,
    tree: Tree,
    opens: Opens,
    files: Mutex<Files, rank::Files>,
    /// `st_dev` of the mount.
    dev: u64,
    /// Whether INIT agreed on passthrough.
    passthrough: AtomicBool,
    want_passthrough: bool,
}

#[derive(Default)]
struct Files {
    by_handle: HashMap<u64, OpenFile>,
    /// The nodes that are open, or are being opened.
    busy: HashSet<u64>,
    /// What open files of text say, by their handles.
    texts: HashMap<u64, Vec<u8>>,
    last_text: u64,
}

/// Mounts the directory of `devices` on the existing directory `path`, and serves it until it is
/// unmounted; then calls `on_end`.
pub fn open(
    path: &Path,
    devices: Vec<Arc<Device>>,
    permissions: Permissions,
    want_passthrough: bool,
    on_end: Box<dyn FnOnce() + Send>,
) -> Result<(), Error> {
    let fuse = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/fuse")
        .map_err(Error::Device)?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        fuse.as_raw_fd()
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    mount(Some("fakebinder"), path, Some(FILE_SYSTEM), flags, Some(options.as_str()))
        .map_err(|error| Error::Mount(path.to_owned(), error))?;
    let unmount = |error| {
        let _ = umount2(path, MntFlags::MNT_DETACH);
        error
    };
    let dev = device_of_mount(path).ok_or_else(|| unmount(Error::Unknown(path.to_owned())))?;
    let session = Session::new(fuse.into(), format!("{} (FUSE)", path.display()));
    let door = door(session.clone(), devices, permissions, dev, want_passthrough);
    let closing = door.clone();
    let ended = Box::new(move || {
        closing.ended();
        on_end();
    });
    workers::start(session, door, workers::Limits::of_this_machine(), ended)
        .map_err(|error| unmount(Error::Threads(error)))
}

/// The door to `devices` for a session that may have any kernel at its other end. `dev` is the
/// `st_dev` by which clients' mappings of its files are known.
pub fn door(
    session: Arc<Session>,
    devices: Vec<Arc<Device>>,
    permissions: Permissions,
    dev: u64,
    want_passthrough: bool,
) -> Arc<dyn Door> {
    Arc::new(FuseDoor {
        session,
        tree: Tree::new(devices, permissions),
        opens: Opens::default(),
        files: Mutex::default(),
        dev,
        passthrough: AtomicBool::new(false),
        want_passthrough,
    })
}

/// `st_dev` of what is mounted on `path`, without asking the file system (which is us).
fn device_of_mount(path: &Path) -> Option<u64> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let found = mounts.lines().rfind(|line| {
        let mut fields = line.split(' ');
        let on = fields.nth(4).map(unescape);
        on.as_deref() == path.to_str() && line.contains(FILE_SYSTEM)
    })?;
    let (major, minor) = found.split(' ').nth(2)?.split_once(':')?;
    Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Blanks and backslashes are octal in `/proc/self/mountinfo`.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |field, (code, text)| field.replace(code, text))
}

impl FuseDoor {
    fn init(&self, (major, minor): (u32, u32), offered: u64, responder: Responder) {
        const PASSTHROUGH: u64 = (uapi::FUSE2_PASSTHROUGH as u64) << 32;
        if major < MAJOR {
            log::error!("{}: the kernel speaks FUSE {major}.{minor}", self.session.name());
            return responder.error(Errno::EPROTO);
        }
        let mut flags = u64::from(uapi::FUSE_PARALLEL_DIROPS | uapi::FUSE_ATOMIC_O_TRUNC) & offered;
        if offered & PASSTHROUGH != 0 && self.want_passthrough {
            self.passthrough.store(true, Ordering::Relaxed);
            flags |= PASSTHROUGH | u64::from(uapi::FUSE_INIT_EXT);
        } else {
            log::warn!(
                "{}: this kernel has no FUSE passthrough (Linux 6.9, CONFIG_FUSE_PASSTHROUGH), so devices \
                 cannot be mapped directly: clients need fakebinder's client library or preload shim",
                self.session.name()
            );
        }
        log::debug!("{}: FUSE {major}.{minor}, flags {offered:#x}", self.session.name());
        responder.value(&uapi::fuse_init_out {
            major: MAJOR,
            minor: MINOR,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND * 3 / 4,
            max_write: MAX_WRITE,
            time_gran: 1,
            // Backing files are memfds, on no other file system.
            max_stack_depth: u32::from(flags & PASSTHROUGH != 0),
            ..Default::default()
        });
    }

    fn open_file(&self, header: &Header, flags: u32, responder: Responder) {
        let Some(Node::File { device, .. }) = self.tree.node(header.node) else {
            return responder.error(Errno::EINVAL);
        };
        let Some(device) = self.tree.device(device) else {
            return responder.error(Errno::ENOENT);
        };
        if !self.files.lock().busy.insert(header.node) {
            client_log!(
                Kind::OpenedTwice,
                "{}: one file was opened twice. Is the device bind-mounted by itself? Then all who open it get the same \
                 file, which can be open only once: bind its directory instead",
                self.session.name()
            );
            return responder.error(Errno::EBUSY);
        }
        match self.try_open(header, flags, &device) {
            Ok(opened) => responder.value(&opened),
            Err(error) => {
                shortage::note(&error);
                self.files.lock().busy.remove(&header.node);
                responder.error(error);
            }
        }
    }

    fn try_open(
        &self,
        header: &Header,
        flags: u32,
        device: &Device,
    ) -> Result<uapi::fuse_open_out, Errno> {
        let file = create_memfd(&device.name)?;
        let backing = self.backing(&file)?;
        let mapping = match backing {
            0 => MappingKind::Memfd,
            _ => MappingKind::FuseFile { dev: self.dev, ino: header.node },
        };
        let open = device.open(header, flags, file, mapping).inspect_err(|_| {
            if backing != 0 {
                self.session.backing_close(backing);
            }
        })?;
        let fh = self.opens.add(open);
        self.files.lock().by_handle.insert(fh, OpenFile { node: header.node, backing });
        let passthrough = if backing != 0 { uapi::FOPEN_PASSTHROUGH } else { 0 };
        Ok(uapi::fuse_open_out {
            fh,
            open_flags: uapi::FOPEN_DIRECT_IO | passthrough,
            backing_id: backing,
        })
    }

    /// 0 without passthrough. The number is given back at RELEASE: the opener's thread looks for
    /// it some time after our reply.
    fn backing(&self, file: &BufferFile) -> Result<i32, Errno> {
        fault(Verb::Descriptor)?;
        if !self.passthrough.load(Ordering::Relaxed) {
            return Ok(0);
        }
        match self.session.backing_open(file.read_only.as_fd()) {
            Err(Errno::EPERM) => {
                if self.passthrough.swap(false, Ordering::Relaxed) {
                    log::warn!(
                        "{}: passthrough needs CAP_SYS_ADMIN in the first user namespace; without it devices \
                         cannot be mapped directly: clients need fakebinder's client library or preload shim",
                        self.session.name()
                    );
                }
                Ok(0)
            }
            result => result,
        }
    }

    fn remove(&self, fh: u64) -> Option<Arc<Open>> {
        let open = self.opens.remove(fh);
        let mut files = self.files.lock();
        let Some(file) = files.by_handle.remove(&fh) else { return open };
        files.busy.remove(&file.node);
        drop(files);
        if file.backing != 0 {
            self.session.backing_close(file.backing);
        }
        open
    }

    /// The files that are no devices: `binder-control`, the features and the logs. Gives back what is about
    /// something else.
    fn plain_file(
        &self,
        node: Option<Node>,
        request: &Request<'_>,
        responder: Responder,
    ) -> Option<Responder> {
        let node = match node {
            Some(it @ (Node::Control | Node::Feature(_) | Node::Log(_) | Node::ProcessLog(_))) => {
                it
            }
            _ => return Some(responder),
        };
        match *request {
            Request::Open { .. } => {
                let opened = self.open_text(node);
                responder.value(&uapi::fuse_open_out {
                    fh: opened,
                    open_flags: uapi::FOPEN_DIRECT_IO,
                    ..Default::default()
                });
            }
            Request::Read { fh, offset, size } => match self.read_text(fh, offset, size) {
                Some(piece) => responder.bytes(&piece),
                None => responder.error(Errno::EINVAL),
            },
            Request::Release { fh } => {
                self.files.lock().texts.remove(&fh);
                responder.done();
            }
            Request::Flush { .. } => responder.done(),
            Request::Ioctl(ref ioctl) if node == Node::Control => self.control(ioctl, responder),
            // No poll operation: always ready.
            Request::Poll { events, .. } => responder.value(&uapi::fuse_poll_out {
                revents: (libc::POLLIN | libc::POLLOUT) as u32 & events,
                padding: 0,
            }),
            Request::Write | Request::Ioctl(_) => responder.error(Errno::EINVAL),
            _ => return Some(responder),
        }
        None
    }

    /// A file handle for a file of text, whose readers see what there was at the open; 0 for one without.
    fn open_text(&self, node: Node) -> u64 {
        let Some(text) = self.tree.contents(node) else { return 0 };
        let mut files = self.files.lock();
        files.last_text += 1;
        let handle = files.last_text;
        files.texts.insert(handle, text);
        handle
    }

    /// At most `size` bytes from `offset` on; none for a file without text. A copy, so that nobody
    /// waits for the files while the kernel takes it.
    fn read_text(&self, fh: u64, offset: u64, size: u32) -> Option<Vec<u8>> {
        let files = self.files.lock();
        let text = files.texts.get(&fh)?;
        let rest = usize::try_from(offset).ok().and_then(|at| text.get(at..)).unwrap_or_default();
        Some(rest[..rest.len().min(size as usize)].to_vec())
    }

    /// `binder_ctl_ioctl`.
    fn control(&self, ioctl: &Ioctl<'_>, responder: Responder) {
        let wanted: Option<uapi::binderfs_device> = match ioctl.cmd {
            uapi::BINDER_CTL_ADD => uapi::parse(ioctl.input),
            _ => None,
        };
        let Some(mut wanted) = wanted else { return responder.error(Errno::EINVAL) };
        match self.tree.add_device(&wanted.name) {
            Ok(()) => {
                let name = String::from_utf8_lossy(&wanted.name);
                let name = name.trim_end_matches('\0');
                client_log!(Kind::DeviceAdded, "{}: added {name}", self.session.name());
                // A regular file, not a node of some number.
                (wanted.major, wanted.minor) = (0, 0);
                responder.ioctl(0, uapi::bytes_of(&wanted));
            }
            Err(error) => responder.error(error),
        }
    }

    fn set_attr(&self, valid: u32, responder: Responder) {
        match valid & uapi::FATTR_SIZE {
            // As with any character device.
            0 => responder.error(Errno::EPERM),
            _ => responder.error(Errno::EINVAL),
        }
    }
}

impl Door for FuseDoor {
    fn request(&self, header: Header, request: Request<'_>, responder: Responder) {
        let responder = match Node::is_file(header.node) {
            true => Some(responder),
            false => self.plain_file(self.tree.node(header.node), &request, responder),
        };
        let Some(responder) = responder else { return };
        let Some(responder) =
            self.opens.request(&header, &request, responder, |fh| self.remove(fh))
        else {
            return;
        };
        let node = self.tree.node(header.node);
        match request {
            Request::Init { major, minor, flags } => self.init((major, minor), flags, responder),
            Request::Lookup { name } => {
                match node.and_then(|parent| self.tree.lookup(parent, name)) {
                    Some(found) => responder.value(&self.tree.entry_out(found)),
                    None => responder.error(Errno::ENOENT),
                }
            }
            Request::GetAttr => match node {
                Some(node) => responder.value(&self.tree.attr_out(node)),
                None => responder.error(Errno::ENOENT),
            },
            Request::ReadLink => match node {
                Some(Node::Link { device }) => match self.tree.read_link(device) {
                    Some(target) => responder.bytes(target.as_bytes()),
                    None => responder.error(Errno::ENFILE),
                },
                _ => responder.error(Errno::EINVAL),
            },
            Request::SetAttr { valid } => self.set_attr(valid, responder),
            Request::Open { flags } => self.open_file(&header, flags, responder),
            Request::OpenDir => responder.value(&uapi::fuse_open_out::default()),
            Request::ReadDir { offset, size } => match node {
                Some(
                    node @ (Node::Root
                    | Node::Opens
                    | Node::Features
                    | Node::Logs
                    | Node::Processes),
                ) => {
                    responder.bytes(&self.tree.list(node, offset, size as usize));
                }
                _ => responder.error(Errno::ENOTDIR),
            },
            Request::StatFs => {
                let mut out = uapi::fuse_statfs_out::default();
                (out.st.bsize, out.st.frsize, out.st.namelen) = (4096, 4096, 255);
                responder.value(&out);
            }
            Request::ReleaseDir | Request::Destroy => responder.done(),
            // FSYNC: as in the driver. All else is not supported, and the kernel need not ask again.
            Request::Other { opcode: uapi::FUSE_FSYNC } => responder.error(Errno::EINVAL),
            Request::Other { .. } | Request::CuseInit { .. } => responder.error(Errno::ENOSYS),
            Request::Forget
            | Request::Read { .. }
            | Request::Write
            | Request::Flush { .. }
            | Request::Release { .. }
            | Request::Ioctl(_)
            | Request::Poll { .. }
            | Request::Interrupt { .. } => responder.error(Errno::EINVAL),
        }
    }

    fn interrupt(&self, fh: u64, tid: i32) {
        self.opens.interrupt(fh, tid);
    }

    fn ended(&self) {
        self.opens.release_all();
    }
}
