//! The directory that the FUSE door shows, as data: which nodes there are, and what they look like.
//!
//! ```text
//! /                 the devices, as in binderfs
//! /NAME             a device: a symbolic link that names another file each time it is read
//! /.open/NAME.N.K   one file per open; N counts, K is a key that only a reader of the link knows
//! ```
//! A file per open, because the kernel ties one backing file to an inode, and every open has a
//! buffer of its own. A new file by a link that is read, and not by a name that is looked up,
//! because opens of one name wait for each other in the kernel's `d_alloc_parallel`.
//!
//! Nothing is stored for a node: its number says what it is. So lookups need no counting, FORGET
//! has nothing to do, and names that are looked up and never opened cost nothing here. An entry
//! of `.open` is valid for no time at all, so that the kernel drops it with its last user.

use super::Device;
use super::wire::push_dirent;
use crate::alloc::MAX_BUFFER_SIZE;
use crate::uapi;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long the kernel may remember what never changes, in seconds.
const LONG: u64 = 24 * 3600;

const ROOT: u64 = uapi::FUSE_ROOT_ID as u64;
const OPENS: u64 = 2;
/// Numbers from here on are devices.
const DEVICES: u64 = 1 << 8;
/// Below the index of the device (from 1 on): the number of the open.
const SERIAL_BITS: u32 = 40;

const OPENS_NAME: &[u8] = b".open";

/// What a node number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    Root,
    /// The directory of files to be opened.
    Opens,
    /// The link that is a device's name.
    Link {
        device: usize,
    },
    /// What one open opens.
    File {
        device: usize,
        serial: u64,
    },
}

impl Node {
    pub fn number(self) -> u64 {
        match self {
            Node::Root => ROOT,
            Node::Opens => OPENS,
            Node::Link { device } => DEVICES + device as u64,
            Node::File { device, serial } => (device as u64 + 1) << SERIAL_BITS | serial,
        }
    }
}

/// Who may open the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

pub struct Tree {
    devices: Vec<Arc<Device>>,
    permissions: Permissions,
    serial: AtomicU64,
    keys: RandomState,
}

impl Tree {
    pub fn new(devices: Vec<Arc<Device>>, permissions: Permissions) -> Tree {
        Tree { devices, permissions, serial: AtomicU64::new(0), keys: RandomState::new() }
    }

    pub fn device(&self, index: usize) -> Option<&Arc<Device>> {
        self.devices.get(index)
    }

    /// None for a number that was never given out.
    pub fn node(&self, number: u64) -> Option<Node> {
        let serial = number & ((1 << SERIAL_BITS) - 1);
        let node = match number >> SERIAL_BITS {
            0 if number == ROOT => Node::Root,
            0 if number == OPENS => Node::Opens,
            0 => Node::Link { device: number.checked_sub(DEVICES)? as usize },
            device => Node::File { device: device as usize - 1, serial },
        };
        match node {
            Node::Link { device } | Node::File { device, .. } if device >= self.devices.len() => {
                None
            }
            node => Some(node),
        }
    }

    pub fn lookup(&self, parent: Node, name: &[u8]) -> Option<Node> {
        match parent {
            Node::Root if name == OPENS_NAME => Some(Node::Opens),
            Node::Root => {
                let device = self.devices.iter().position(|it| it.name.as_bytes() == name)?;
                Some(Node::Link { device })
            }
            Node::Opens => self.lookup_file(name),
            Node::Link { .. } | Node::File { .. } => None,
        }
    }

    fn lookup_file(&self, name: &[u8]) -> Option<Node> {
        let mut parts = std::str::from_utf8(name).ok()?.rsplitn(3, '.');
        let (_key, serial, device) = (parts.next()?, parts.next()?, parts.next()?);
        let serial = serial.parse().ok().filter(|it| *it <= self.serial.load(Ordering::Relaxed))?;
        let device = self.devices.iter().position(|it| it.name == device)?;
        (self.file_name(device, serial)?.as_bytes() == name)
            .then_some(Node::File { device, serial })
    }

    /// The key keeps other clients from opening the file first: they cannot guess it.
    fn file_name(&self, device: usize, serial: u64) -> Option<String> {
        let key = self.keys.hash_one((device, serial));
        Some(format!("{}.{serial}.{key:016x}", self.devices.get(device)?.name))
    }

    /// Where the link of a device leads this time. None once all numbers are used up.
    pub fn read_link(&self, device: usize) -> Option<String> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        if serial >> SERIAL_BITS != 0 {
            return None;
        }
        Some(format!(".open/{}", self.file_name(device, serial)?))
    }

    pub fn attr(&self, node: Node) -> uapi::fuse_attr {
        let Permissions { mode, uid, gid } = self.permissions;
        let (mode, nlink, size) = match node {
            Node::Root => (libc::S_IFDIR | 0o755, 2, 0),
            // Its names are not listed, but whoever knows one may use it.
            Node::Opens => (libc::S_IFDIR | 0o711, 2, 0),
            Node::Link { device } => {
                let length = self.file_name(device, 0).map_or(0, |name| name.len());
                (libc::S_IFLNK | 0o777, 1, length as u64)
            }
            // What can be mapped: some programs ask before they map.
            Node::File { .. } => (libc::S_IFREG | mode, 1, MAX_BUFFER_SIZE as u64),
        };
        let (uid, gid) = match node {
            Node::File { .. } => (uid, gid),
            Node::Root | Node::Opens | Node::Link { .. } => (0, 0),
        };
        uapi::fuse_attr {
            ino: node.number(),
            size,
            mode,
            nlink,
            uid,
            gid,
            blksize: 4096,
            ..Default::default()
        }
    }

    pub fn attr_out(&self, node: Node) -> uapi::fuse_attr_out {
        uapi::fuse_attr_out { attr_valid: LONG, attr: self.attr(node), ..Default::default() }
    }

    pub fn entry_out(&self, node: Node) -> uapi::fuse_entry_out {
        let entry_valid = match node {
            Node::Root | Node::Opens | Node::Link { .. } => LONG,
            Node::File { .. } => 0,
        };
        uapi::fuse_entry_out {
            nodeid: node.number(),
            entry_valid,
            attr_valid: LONG,
            attr: self.attr(node),
            ..Default::default()
        }
    }

    /// The entries of a directory from number `offset` on, as many as fit into `size` bytes.
    pub fn list(&self, directory: Node, offset: u64, size: usize) -> Vec<u8> {
        const DIRECTORY: u32 = libc::DT_DIR as u32;
        const LINK: u32 = libc::DT_LNK as u32;
        let mut entries =
            vec![(directory.number(), DIRECTORY, &b"."[..]), (ROOT, DIRECTORY, &b".."[..])];
        if directory == Node::Root {
            entries.extend(
                self.devices
                    .iter()
                    .enumerate()
                    .map(|(device, it)| (Node::Link { device }.number(), LINK, it.name.as_bytes())),
            );
        }
        let mut listing = Vec::new();
        for (index, (node, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if !push_dirent(&mut listing, size, node, index as u64 + 1, kind, name) {
                break;
            }
        }
        listing
    }
}
