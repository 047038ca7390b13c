//! Opening a device: the file of one open, and its backing file.

use super::FuseDoor;
use crate::client_log::{Kind, client_log};
use crate::device::cached::CachedFile;
use crate::device::session::Responder;
use crate::device::tree::Node;
use crate::device::wire::Header;
use crate::device::{Device, Open, mounts};
use crate::mm_shim::{BufferFile, MappingKind, create_memfd};
use crate::probe::{Verb, fault};
use crate::shortage;
use crate::{Errno, uapi};
use std::collections::hash_map::Entry;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A file that is open.
pub(super) struct OpenFile {
    node: u64,
    device: u32,
    /// Number of the backing file; 0 without passthrough.
    backing: i32,
}

/// How a node is open, or is being opened. While it is open with passthrough, the kernel opens it
/// in no other way, and for no other buffer (`fuse_file_io_open`: EIO).
pub(super) enum Busy {
    Mappable,
    /// So many opens, none of which can be mapped.
    Shared(usize),
}

impl FuseDoor {
    pub(super) fn open_file(&self, header: &Header, flags: u32, responder: Responder) {
        let Some(Node::File { device: number, serial }) = self.tree.node(header.node) else {
            return responder.error(Errno::EINVAL);
        };
        let Some(device) = self.tree.device(number) else {
            return responder.error(Errno::ENOENT);
        };
        let shared = self.is_bind_mounted(header.tid, number, serial);
        let mappable = match self.occupy(header.node, shared) {
            Ok(mappable) => mappable,
            Err(error) => return responder.error(error),
        };
        match self.try_open(header, flags, (number, &device), mappable) {
            Ok(opened) => responder.value(&opened),
            Err(error) => {
                shortage::note(&error);
                self.vacate(header.node);
                responder.error(error);
            }
        }
    }

    /// Whether a file has been bind-mounted by itself where the opener sees it: then other
    /// processes will open this very file.
    fn is_bind_mounted(&self, tid: i32, device: u32, serial: u64) -> bool {
        let Some(name) = self.tree.open_name(device, serial) else { return false };
        let path = format!("/.open/{name}");
        // The kernel shows a mount whose file has lost its name in this way.
        let nameless = format!("{path}//deleted");
        let is_it = |root: &Path| root == Path::new(&path) || root == Path::new(&nameless);
        let mounts = mounts::of(&tid.to_string()).unwrap_or_default();
        mounts.iter().any(|mount| mount.dev == self.dev && is_it(&mount.root))
    }

    /// Notes that a node is about to be open; returns whether its buffer can be mapped. EBUSY: the
    /// node is open, and may be mapped.
    fn occupy(&self, node: u64, shared: bool) -> Result<bool, Errno> {
        match self.files.lock().busy.entry(node) {
            Entry::Vacant(entry) => {
                entry.insert(if shared { Busy::Shared(1) } else { Busy::Mappable });
                Ok(!shared)
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Busy::Shared(opens) => {
                    *opens += 1;
                    Ok(false)
                }
                Busy::Mappable => {
                    client_log!(
                        Kind::OpenedTwice,
                        "{}: refused (EBUSY) to open one file a second time: who opened it first may have mapped it. \
                         A device is opened by its name, not by a descriptor of it (/proc/PID/fd/N); for a \
                         container bind its directory",
                        self.session.name()
                    );
                    Err(Errno::EBUSY)
                }
            },
        }
    }

    fn vacate(&self, node: u64) {
        if let Entry::Occupied(mut entry) = self.files.lock().busy.entry(node) {
            match entry.get_mut() {
                Busy::Shared(opens) if *opens > 1 => *opens -= 1,
                Busy::Shared(_) | Busy::Mappable => drop(entry.remove()),
            }
        }
    }

    fn try_open(
        &self,
        header: &Header,
        flags: u32,
        (number, device): (u32, &Device),
        mappable: bool,
    ) -> Result<uapi::fuse_open_out, Errno> {
        let mut file = create_memfd(&device.name)?;
        let backing = if mappable { self.backing(&file)? } else { 0 };
        let (dev, ino) = (self.dev, header.node);
        let mapping = match backing {
            0 if mappable => MappingKind::CachedFile { dev, ino },
            0 => MappingKind::Memfd,
            _ => MappingKind::FuseFile { dev, ino },
        };
        if matches!(mapping, MappingKind::CachedFile { .. }) {
            self.zapped.start(&self.session)?;
            let (session, zapped) = (self.session.clone(), self.zapped.clone());
            file.cache = Some(Box::new(CachedFile { session, node: header.node, zapped }));
        }
        let open = device.open(header, flags, file, mapping).inspect_err(|_| {
            if backing != 0 {
                self.session.backing_close(backing);
            }
        })?;
        if !mappable {
            client_log!(
                Kind::OpenedWithoutMapping,
                "{}: process {} has opened {} through a bind mount of this one file, where it cannot be mapped: \
                 clients need fakebinder's client library or preload shim there; or bind the device's \
                 directory instead",
                self.session.name(),
                open.pid(),
                device.name
            );
        }
        let fh = self.opens.add(open);
        let file = OpenFile { node: header.node, device: number, backing };
        self.files.lock().by_handle.insert(fh, file);
        self.tree.opened(number);
        let passthrough = if backing != 0 { uapi::FOPEN_PASSTHROUGH } else { 0 };
        Ok(uapi::fuse_open_out {
            fh,
            open_flags: uapi::FOPEN_DIRECT_IO | passthrough,
            backing_id: backing,
        })
    }

    /// Registers the buffer file as a backing file; 0 without passthrough. The number is given back
    /// at RELEASE: the opener's thread looks for it some time after the reply to OPEN.
    fn backing(&self, file: &BufferFile) -> Result<i32, Errno> {
        fault(Verb::Descriptor)?;
        if !self.passthrough.load(Ordering::Relaxed) {
            return Ok(0);
        }
        match self.session.backing_open(file.read_only.as_fd()) {
            Err(Errno::EPERM) => {
                if self.passthrough.swap(false, Ordering::Relaxed) {
                    log::warn!(
                        "{}: passthrough needs CAP_SYS_ADMIN in the first user namespace; without it what programs map \
                         is a copy of their buffers; those with fakebinder's client library or preload library map \
                         the buffers themselves",
                        self.session.name()
                    );
                }
                Ok(0)
            }
            result => result,
        }
    }

    pub(super) fn remove(&self, fh: u64) -> Option<Arc<Open>> {
        let open = self.opens.remove(fh);
        let file = self.files.lock().by_handle.remove(&fh);
        let Some(file) = file else { return open };
        self.vacate(file.node);
        self.tree.released(file.device);
        self.served(file.node);
        if file.backing != 0 {
            self.session.backing_close(file.backing);
        }
        open
    }
}
