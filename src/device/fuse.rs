//! The FUSE door: a mounted directory whose files are devices.
//!
//! A client opens `NAME`, a link, and through it a file of its own (see [`tree`](super::tree)).
//! At OPEN the file gets the client's buffer as its backing file (passthrough), so that a plain
//! mmap maps the buffer, and everything else (`FOPEN_DIRECT_IO`) comes here. Ioctls are
//! restricted: the kernel copies the argument in and out as the ioctl's number says.
//!
//! The kernel opens the backing file anew, with the client's flags and the daemon's credentials
//! (`fuse_passthrough_open`): a client that has opened a device for writing can map its own buffer
//! writable, whichever descriptor the daemon gives. See `mm_shim` for what that means.

mod opening;
mod plain_files;

use opening::{Busy, OpenFile};

use super::announce::Announcer;
use super::cached::Zapped;
use super::claim::Claim;
use super::mounting::{self, Keeper, Mounted, MountedBy};
use super::mounts::MountPoint;
use super::options::MountOptions;
use super::session::{BUFFER_SIZE, Door, MAJOR, MINOR, Responder, Session};
use super::stale::Stale;
use super::tree::{Node, Tree};
use super::uring::{self, Rings, Transport};
use super::wire::{Forgotten, Header, Request};
use super::{Device, Hub, Opens, workers};
use crate::lock_order::rank;
use crate::sync::Mutex;
use crate::{Errno, uapi};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use zerocopy::{Immutable, IntoBytes};

/// The smallest value that the kernel accepts: nothing is ever written.
const MAX_WRITE: u32 = 4096;
/// Releases are sent in the background; many may be on their way when many clients exit at once.
const MAX_BACKGROUND: u16 = 1024;

/// Why there is no FUSE door.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be mounted.
    #[error(transparent)]
    Mount(#[from] mounting::Error),
    /// The mount was made, and cannot be found.
    #[error("{0} is not in the kernel's list of mounts")]
    Unknown(PathBuf),
    /// The workers could not be started.
    #[error("starting threads: {0}")]
    Threads(std::io::Error),
    /// INIT did not come, or could not be answered.
    #[error("the kernel did not begin a session: {0}")]
    NoInit(Errno),
    /// The transport that was asked for cannot be had.
    #[error("--transport uring: {0}")]
    Transport(#[from] uring::Error),
}

struct FuseDoor {
    this: Weak<FuseDoor>,
    session: Arc<Session>,
    /// The daemon's own way to make names in the mount.
    announcer: Announcer,
    /// The names of `.open` that nobody will look up again; none where there is no mount.
    stale: Option<Arc<Stale>>,
    zapped: Arc<Zapped>,
    tree: Arc<Tree>,
    opens: Opens,
    files: Mutex<OpenFiles, rank::Files>,
    /// `st_dev` of the mount.
    dev: u64,
    /// Whether INIT agreed on passthrough.
    passthrough: AtomicBool,
    /// Why passthrough is not even asked for, if it is not.
    no_passthrough: Option<&'static str>,
    want_uring: bool,
    /// Whether INIT has been answered.
    begun: AtomicBool,
    /// Whether INIT agreed on io_uring.
    over_uring: AtomicBool,
    rings: Mutex<Option<Arc<Rings>>, rank::Rings>,
}

#[derive(Default)]
struct OpenFiles {
    by_handle: HashMap<u64, OpenFile>,
    busy: HashMap<u64, Busy>,
    /// The text that open files of text read, by their handles.
    texts: HashMap<u64, Arc<[u8]>>,
    last_text: u64,
}

/// A mount that is served.
pub struct Served {
    /// Who has mounted it.
    pub by: MountedBy,
    /// The process that keeps it, if one does.
    pub keeper: Option<Keeper>,
    /// Where it is, and `st_dev` of its files.
    pub mount: (MountPoint, u64),
}

/// Mounts the directory of `devices` on `path`, which is claimed, and serves it until it is
/// unmounted; then calls `on_end`. When it fails, dropping the claim unmounts.
pub fn open(
    path: &Path,
    claim: &mut Claim,
    hub: &Arc<Hub>,
    devices: Vec<Arc<Device>>,
    options: &MountOptions,
    on_end: Box<dyn FnOnce() + Send>,
) -> Result<Served, Error> {
    let uring = match options.transport {
        Transport::Read => None,
        Transport::Auto => Some(uring::enable()),
        Transport::Uring => Some(Ok(uring::enable()?)),
    };
    let Mounted { fuse, at, by, keeper } = mounting::mount(claim, path, options.mount_by)?;
    // Asked of the kernel's list: a question to the file system would come back here.
    let mounted = at.topmost().filter(|mount| mount.kind == mounting::FILE_SYSTEM);
    let dev = mounted.ok_or_else(|| Error::Unknown(path.to_owned()))?.dev;
    let session = Session::new(fuse, format!("{} (FUSE)", path.display()));
    let tree = Tree::new(hub.clone(), devices, options);
    let announcer = Announcer::new(Some((at.clone(), dev)));
    let mount = (at.clone(), dev);
    let ask = matches!(uring, Some(Ok(())));
    let no_passthrough = match (options.passthrough, by) {
        (false, _) => Some("as told"),
        (true, MountedBy::Daemon) => None,
        (true, MountedBy::Fusermount { .. } | MountedBy::Namespace) => Some("that takes root"),
    };
    let door = FuseDoor::new(session.clone(), tree, announcer, dev, no_passthrough, ask);
    door.begin()?;
    let over_uring = uring.map(|enabled| enabled.and_then(|()| door.start_rings(at.reached())));
    match over_uring {
        Some(Ok(queues)) => {
            log::info!("{}: requests come through io_uring, {queues} queues", session.name());
        }
        Some(Err(error)) if options.transport == Transport::Uring => {
            return Err(Error::Transport(error));
        }
        Some(Err(error)) => {
            log::info!("{}: requests are read from /dev/fuse: {error}", session.name());
        }
        None => log::info!("{}: requests are read from /dev/fuse, as told", session.name()),
    }
    let closing = door.clone();
    let ended = Box::new(move || {
        closing.ended();
        on_end();
    });
    workers::start(session, door, workers::WorkerLimits::of_this_machine(), ended)
        .map_err(Error::Threads)?;
    Ok(Served { by, keeper, mount })
}

/// The door to `devices` for a session that may have any kernel at its other end. `dev` is the
/// `st_dev` by which clients' mappings of its files are known.
pub fn door(
    session: Arc<Session>,
    hub: &Arc<Hub>,
    devices: Vec<Arc<Device>>,
    options: &MountOptions,
    dev: u64,
) -> Arc<dyn Door> {
    let tree = Tree::new(hub.clone(), devices, options);
    let no_passthrough = (!options.passthrough).then_some("as told");
    FuseDoor::new(session, tree, Announcer::new(None), dev, no_passthrough, false)
}

impl FuseDoor {
    fn new(
        session: Arc<Session>,
        tree: Tree,
        announcer: Announcer,
        dev: u64,
        no_passthrough: Option<&'static str>,
        want_uring: bool,
    ) -> Arc<FuseDoor> {
        Arc::new_cyclic(|this| FuseDoor {
            this: this.clone(),
            session,
            stale: announcer.has_mount().then(Arc::default),
            zapped: Arc::default(),
            announcer,
            tree: Arc::new(tree),
            opens: Opens::default(),
            files: Mutex::default(),
            dev,
            passthrough: AtomicBool::new(false),
            no_passthrough,
            want_uring,
            begun: AtomicBool::new(false),
            over_uring: AtomicBool::new(false),
            rings: Mutex::default(),
        })
    }

    /// Answers INIT, which the kernel has sent when it mounted.
    fn begin(&self) -> Result<(), Error> {
        let mut buffer = vec![0; BUFFER_SIZE];
        while !self.begun.load(Ordering::Relaxed) {
            match self.session.receive(&mut buffer) {
                Ok(Some(message)) => self.session.dispatch(message, self),
                Ok(None) => return Err(Error::NoInit(Errno::ENODEV)),
                Err(error) => return Err(Error::NoInit(error)),
            }
        }
        Ok(())
    }

    /// Requests come through rings from now on. How many.
    fn start_rings(&self, mount: &Path) -> Result<usize, uring::Error> {
        let door = self.this.upgrade().filter(|_| self.over_uring.load(Ordering::Relaxed));
        let door = door.ok_or(uring::Error::NotOffered)?;
        let rings = Rings::start(&self.session, door, Some(mount.to_owned()))?;
        let queues = rings.queues();
        *self.rings.lock() = Some(rings);
        Ok(queues)
    }

    fn init(&self, (major, minor): (u32, u32), offered: u64, responder: Responder) {
        const PASSTHROUGH: u64 = (uapi::FUSE2_PASSTHROUGH as u64) << 32;
        const SHARED_MMAP: u64 = (uapi::FUSE2_DIRECT_IO_ALLOW_MMAP as u64) << 32;
        const OVER_IO_URING: u64 = (uapi::FUSE2_OVER_IO_URING as u64) << 32;
        if major < MAJOR {
            log::error!("{}: the kernel speaks FUSE {major}.{minor}", self.session.name());
            return responder.error(Errno::EPROTO);
        }
        let mut flags = u64::from(uapi::FUSE_PARALLEL_DIROPS | uapi::FUSE_ATOMIC_O_TRUNC) & offered;
        if offered & SHARED_MMAP != 0 {
            flags |= SHARED_MMAP | u64::from(uapi::FUSE_INIT_EXT);
        }
        if offered & PASSTHROUGH != 0 && self.no_passthrough.is_none() {
            self.passthrough.store(true, Ordering::Relaxed);
            flags |= PASSTHROUGH | u64::from(uapi::FUSE_INIT_EXT);
        } else {
            let why = self
                .no_passthrough
                .unwrap_or("this kernel has none (Linux 6.9, CONFIG_FUSE_PASSTHROUGH)");
            log::warn!(
                "{}: without FUSE passthrough ({why}) what programs map is a copy of their buffers; those with \
                 fakebinder's client library or preload library map the buffers themselves",
                self.session.name()
            );
        }
        let mut max_pages = 0;
        if self.want_uring && offered & OVER_IO_URING != 0 {
            self.over_uring.store(true, Ordering::Relaxed);
            flags |= OVER_IO_URING | u64::from(uapi::FUSE_INIT_EXT | uapi::FUSE_MAX_PAGES);
            max_pages = uring::MAX_PAGES;
        }
        self.begun.store(true, Ordering::Relaxed);
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
            max_pages,
            // Backing files are memfds, which lie on no further file system.
            max_stack_depth: u32::from(flags & PASSTHROUGH != 0),
            ..Default::default()
        });
    }

    /// The name of a node in `.open` is used up: it was looked up, or its file was closed.
    fn served(&self, node: u64) {
        let Some(stale) = &self.stale else { return };
        if stale.push(node) {
            let (stale, door) = (stale.clone(), self.this.clone());
            let run = move || {
                stale.run(|node| {
                    if let Some(door) = door.upgrade() {
                        door.drop_name(node);
                    }
                });
            };
            let thread = std::thread::Builder::new().name("stale names".into());
            if let Err(error) = thread.spawn(run) {
                log::warn!(
                    "{}: the kernel keeps names of closed files: {error}",
                    self.session.name()
                );
            }
        }
    }

    fn drop_name(&self, number: u64) {
        let Some(Node::File { device, serial }) = self.tree.node(number) else { return };
        // While the file is open, /proc/PID/maps shows its name; the file's RELEASE comes here
        // again.
        if self.files.lock().busy.contains_key(&number) {
            return;
        }
        let Some(name) = self.tree.open_name(device, serial) else { return };
        let inval = uapi::fuse_notify_inval_entry_out {
            parent: Node::Opens.number(),
            namelen: name.len() as u32,
            ..Default::default()
        };
        let parts = [uapi::bytes_of(&inval), name.as_bytes(), &[0]];
        // The kernel may have dropped the name already.
        let _ = self.session.notify(uapi::FUSE_NOTIFY_INVAL_ENTRY, &parts);
    }

    /// SYMLINK: links are made by the daemon alone, each for a device that is added.
    fn symlink(&self, header: &Header, name: &[u8], responder: Responder) {
        let root = self.tree.node(header.node) == Some(Node::Root);
        if !root || !self.announcer.is_made_by(header.tid, name) {
            return responder.error(Errno::EPERM);
        }
        let made = self.tree.add_device(name);
        match made.map(|_| self.tree.lookup(Node::Root, name)) {
            Ok(link) => answer(link.and_then(|link| self.tree.entry_out(link)), responder),
            Err(error) => responder.error(error),
        }
    }
}

/// Answers with the value, or with ENOENT: the node is gone.
fn answer<T: IntoBytes + Immutable>(value: Option<T>, responder: Responder) {
    match value {
        Some(value) => responder.value(&value),
        None => responder.error(Errno::ENOENT),
    }
}

/// Answers a request whose success has no value.
fn answer_done(result: Result<(), Errno>, responder: Responder) {
    match result {
        Ok(()) => responder.done(),
        Err(error) => responder.error(error),
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
                let found = node.and_then(|parent| self.tree.lookup(parent, name));
                if let Some(file @ Node::File { .. }) = found {
                    self.served(file.number());
                }
                answer(found.and_then(|found| self.tree.entry_out(found)), responder);
            }
            Request::GetAttr => {
                answer(node.and_then(|node| self.tree.attr_out(node)), responder);
            }
            Request::SetAttr(changes) => match node {
                Some(node) => match self.tree.set_attr(node, &changes) {
                    Ok(changed) => responder.value(&changed),
                    Err(error) => responder.error(error),
                },
                None => responder.error(Errno::ENOENT),
            },
            Request::ReadLink => match node {
                Some(Node::Link { device }) => match self.tree.read_link(device) {
                    Ok(target) => responder.bytes(target.as_bytes()),
                    Err(error) => responder.error(error),
                },
                _ => responder.error(Errno::EINVAL),
            },
            Request::Unlink { name } => {
                let parent = node.ok_or(Errno::ENOENT);
                answer_done(parent.and_then(|node| self.tree.unlink(node, name)), responder);
            }
            Request::Rename { name, directory, new_name, flags } => {
                let to = self.tree.node(directory);
                let renamed = node
                    .zip(to)
                    .ok_or(Errno::ENOENT)
                    .and_then(|(from, to)| self.tree.rename((from, name), (to, new_name), flags));
                answer_done(renamed, responder);
            }
            // No other file can be made here, as in binderfs, whose directories lack these
            // operations: `vfs_create` then returns EACCES, and its fellows return EPERM.
            Request::Symlink { name } => self.symlink(&header, name, responder),
            Request::Mknod { mode } => responder.error(match mode & libc::S_IFMT {
                0 | libc::S_IFREG => Errno::EACCES,
                _ => Errno::EPERM,
            }),
            Request::Other { opcode: uapi::FUSE_CREATE } => responder.error(Errno::EACCES),
            Request::Other { opcode: uapi::FUSE_MKDIR | uapi::FUSE_LINK | uapi::FUSE_RMDIR } => {
                responder.error(Errno::EPERM);
            }
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
            // FSYNC: the driver's error. All other requests are unsupported, and the kernel need
            // not send them again.
            Request::Other { opcode: uapi::FUSE_FSYNC } => responder.error(Errno::EINVAL),
            Request::Other { .. } | Request::CuseInit { .. } => responder.error(Errno::ENOSYS),
            Request::Forget(_)
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

    fn forget(&self, forgotten: &Forgotten<'_>) {
        for (node, lookups) in forgotten.nodes() {
            self.tree.forgotten(node, lookups);
        }
    }

    fn ended(&self) {
        let rings = self.rings.lock().take();
        if let Some(rings) = rings {
            rings.end();
        }
        self.stale.iter().for_each(|stale| stale.end());
        self.zapped.end();
        self.opens.release_all();
    }
}
