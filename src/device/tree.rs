//! The directory that the FUSE door shows, as data: which nodes there are, and what they look like.
//!
//! ```text
//! /                 the devices, as in binderfs
//! /binder-control   BINDER_CTL_ADD adds a device
//! /features/NAME    what this driver can do: "1"
//! /binder_logs/...  what the driver holds and has done, for root: see binder/logs.rs
//! /NAME             a device: a symbolic link that names another file each time it is read
//! /.open/NAME.D.N.K one file per open; D is the device's number, N counts, and K is a key that
//!                   only a reader of the link knows
//! ```
//! There is one file for each open, because the kernel ties one backing file to an inode, and every
//! open has a buffer of its own. The new file comes of reading a link, and not of looking up a
//! name, because opens of one name wait for each other in the kernel's `d_alloc_parallel`.
//!
//! Nothing is stored for a node: its number says what it is, and names that are looked up and never
//! opened cost nothing here. Lookups are only counted, for each device, and a device is kept while
//! the kernel knows one of its nodes. An entry of `.open` is valid for no time at all, and is
//! dropped when nobody will look it up again (`device::stale`). A device's attributes are valid for
//! no time either, because they can be changed through another of its nodes.
//!
//! What binderfs allows in its directories is allowed here, and what it refuses is refused with its
//! errors (`binderfs_unlink`, `binderfs_rename`); only its directories cannot be renamed.

mod nodes;

pub use nodes::{Log, Node};

use super::attributes::Attributes;
use super::devices::{Devices, Existing};
use super::options::{MountOptions, Stats};
use super::wire::{SetAttr, push_dirent};
use super::{Device, Hub};
use crate::lock_order::rank;
use crate::page::MAX_BUFFER_SIZE;
use crate::sync::{Mutex, RwLock};
use crate::{Errno, uapi};
use nodes::{
    CONTROL, FEATURES, FEATURES_HERE, LOG_FILES, LOGS, PROCESSES, ROOT, SERIAL_BITS, feature_text,
};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long the kernel may remember answers that never change, in seconds.
const LONG: u64 = 24 * 3600;

/// `BINDERFS_MAX_NAME`: longer names are cut off.
const MAX_NAME: usize = 255;

const OPENS_NAME: &[u8] = b".open";
const CONTROL_NAME: &[u8] = b"binder-control";
const FEATURES_NAME: &[u8] = b"features";

const LOGS_NAME: &[u8] = b"binder_logs";
const PROCESSES_NAME: &[u8] = b"proc";

/// Who may open the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    /// Permissions, as chmod takes them.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group of the owner.
    pub gid: u32,
}

/// The mode of a device that is added (`binderfs_binder_device_create`).
const ADDED: u32 = 0o600;

/// The nodes of a mount, and who may see them.
pub struct Tree {
    hub: Arc<Hub>,
    devices: RwLock<Devices, rank::Devices>,
    /// The attributes of nodes that are no devices and have been changed.
    attributes: Mutex<HashMap<Node, Attributes>, rank::Attributes>,
    /// The times of nodes that have not been changed: the moment of the mount.
    made: Attributes,
    /// The owner of all that no option gives to others.
    root: (u32, u32),
    stats: Stats,
    serial: AtomicU64,
    keys: RandomState,
}

/// The name that `BINDER_CTL_ADD` is given: up to its first NUL.
pub fn added_name(name: &[u8; MAX_NAME + 1]) -> &[u8] {
    name[..MAX_NAME].split(|byte| *byte == 0).next().unwrap_or_default()
}

impl Tree {
    /// The first devices have room even if the options say less.
    pub fn new(hub: Arc<Hub>, devices: Vec<Arc<Device>>, options: &MountOptions) -> Tree {
        let made = Attributes::new(options.permissions);
        let mut all = Devices::new(options.max_devices.max(devices.len()));
        for device in devices {
            // Two devices of one name are one.
            let _ = all.add(device.name.clone().as_bytes(), device, made);
        }
        Tree {
            hub,
            devices: RwLock::new(all),
            attributes: Mutex::default(),
            made,
            root: options.root,
            stats: options.stats,
            serial: AtomicU64::new(0),
            keys: RandomState::new(),
        }
    }

    /// The device of this number, while it has its name or the kernel knows one of its nodes.
    pub fn device(&self, number: u32) -> Option<Arc<Device>> {
        self.devices.read().get(number).cloned()
    }

    /// Whether something other than a device has this name.
    fn is_reserved(&self, name: &[u8]) -> bool {
        [OPENS_NAME, CONTROL_NAME, FEATURES_NAME].contains(&name)
            || name == LOGS_NAME && self.stats != Stats::None
    }

    /// Whether `BINDER_CTL_ADD` may take this name, in binderfs's order: ENOSPC: no room; EACCES:
    /// no valid name of a file; EEXIST.
    pub fn check_new(&self, name: &[u8]) -> Result<(), Errno> {
        let devices = self.devices.read();
        devices.check_room()?;
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
            return Err(Errno::EACCES);
        }
        match self.is_reserved(name) || devices.named(name).is_some() {
            true => Err(Errno::EEXIST),
            false => Ok(()),
        }
    }

    /// Adds a device. Errors as those of [`Tree::check_new`].
    pub fn add_device(&self, name: &[u8]) -> Result<Node, Errno> {
        self.check_new(name)?;
        let device = self.hub.new_device(&String::from_utf8_lossy(name));
        let (uid, gid) = self.root;
        let attributes = Attributes::new(Permissions { mode: ADDED, uid, gid });
        let device = self.devices.write().add(name, device, attributes)?;
        Ok(Node::Link { device })
    }

    /// `binderfs_unlink`. EPERM for what is not a device.
    pub fn unlink(&self, parent: Node, name: &[u8]) -> Result<(), Errno> {
        match parent {
            Node::Root if !self.is_reserved(name) => self.devices.write().remove(name),
            _ => Err(Errno::EPERM),
        }
    }

    /// `binderfs_rename`. EPERM: not a device (binderfs would rename directories, too); EINVAL:
    /// unknown flags.
    pub fn rename(
        &self,
        (from, old): (Node, &[u8]),
        (to, new): (Node, &[u8]),
        flags: u32,
    ) -> Result<(), Errno> {
        let existing = match flags {
            0 => Existing::Replace,
            libc::RENAME_NOREPLACE => Existing::Refuse,
            libc::RENAME_EXCHANGE => Existing::Exchange,
            _ => return Err(Errno::EINVAL),
        };
        let between_devices = from == Node::Root && to == Node::Root;
        if !between_devices || self.is_reserved(old) || self.is_reserved(new) {
            return Err(Errno::EPERM);
        }
        self.devices.write().rename(old, new, existing)
    }

    /// The node of a number; None if it was never given out.
    pub fn node(&self, number: u64) -> Option<Node> {
        let node = Node::from_number(number)?;
        match node {
            Node::Link { device } | Node::File { device, .. } => self.device(device).map(|_| node),
            node => Some(node),
        }
    }

    /// The present content of a file that is neither a device nor empty.
    pub fn contents(&self, node: Node) -> Option<Vec<u8>> {
        let binder = self.hub.binder();
        let text = match node {
            Node::Feature(feature) => feature_text(feature).to_owned(),
            Node::Log(Log::State) => binder.log_state(),
            Node::Log(Log::Stats) => binder.log_stats(),
            Node::Log(Log::Transactions) => binder.log_transactions(),
            Node::Log(Log::TransactionLog) => binder.log_of_transactions(false),
            Node::Log(Log::FailedTransactionLog) => binder.log_of_transactions(true),
            Node::ProcessLog(pid) => binder.log_process(pid)?,
            _ => return None,
        };
        Some(text.into_bytes())
    }

    /// A node by its name. The kernel learns of the node, until [`Tree::forgotten`].
    pub fn lookup(&self, parent: Node, name: &[u8]) -> Option<Node> {
        match parent {
            Node::Root if name == OPENS_NAME => Some(Node::Opens),
            Node::Root if name == CONTROL_NAME => Some(Node::Control),
            Node::Root if name == FEATURES_NAME => Some(Node::Features),
            Node::Root if name == LOGS_NAME && self.stats != Stats::None => Some(Node::Logs),
            Node::Root => {
                let devices = self.devices.read();
                let device = devices.named(name)?;
                devices.looked_up(device);
                Some(Node::Link { device })
            }
            Node::Opens => self.lookup_file(name),
            Node::Features => {
                FEATURES_HERE.iter().position(|it| it.0.as_bytes() == name).map(Node::Feature)
            }
            Node::Logs if name == PROCESSES_NAME => Some(Node::Processes),
            Node::Logs => {
                LOG_FILES.iter().find(|it| it.1.as_bytes() == name).map(|it| Node::Log(it.0))
            }
            Node::Processes => {
                let pid = std::str::from_utf8(name).ok()?.parse().ok()?;
                self.hub.binder().has_open(pid).then_some(Node::ProcessLog(pid))
            }
            Node::Control
            | Node::Feature(_)
            | Node::Log(_)
            | Node::ProcessLog(_)
            | Node::Link { .. }
            | Node::File { .. } => None,
        }
    }

    fn lookup_file(&self, name: &[u8]) -> Option<Node> {
        let mut parts = std::str::from_utf8(name).ok()?.rsplitn(4, '.');
        let (_key, serial, device) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
        let serial = serial.parse().ok().filter(|it| *it <= self.serial.load(Ordering::Relaxed))?;
        let devices = self.devices.read();
        let found = self.file_name(devices.get(device)?, device, serial).as_bytes() == name;
        found.then(|| {
            devices.looked_up(device);
            Node::File { device, serial }
        })
    }

    /// The kernel forgets `lookups` of its lookups of a node.
    pub fn forgotten(&self, number: u64, lookups: u64) {
        if let Some(Node::Link { device } | Node::File { device, .. }) = self.node(number) {
            self.devices.write().forgotten(device, lookups);
        }
    }

    /// One of a device's files has been opened, until [`Tree::released`].
    pub fn opened(&self, device: u32) {
        self.devices.write().opened(device);
    }

    /// A file that was opened ([`Tree::opened`]) is closed.
    pub fn released(&self, device: u32) {
        self.devices.write().released(device);
    }

    /// The name of the file of one open. Its key keeps other clients from opening it first.
    fn file_name(&self, device: &Device, number: u32, serial: u64) -> String {
        let key = self.keys.hash_one((number, serial));
        format!("{}.{number}.{serial}.{key:016x}", device.name)
    }

    /// The name of the file of one open in [`Node::Opens`]; None once the device is gone.
    pub fn open_name(&self, number: u32, serial: u64) -> Option<String> {
        let device = self.device(number)?;
        Some(self.file_name(&device, number, serial))
    }

    /// Where the link of a device leads this time. ENOENT: the device has been removed; ENFILE: all
    /// numbers are used up.
    pub fn read_link(&self, number: u32) -> Result<String, Errno> {
        let devices = self.devices.read();
        let device = devices.get(number).filter(|_| devices.has_name(number));
        let device = device.ok_or(Errno::ENOENT)?;
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        match serial >> SERIAL_BITS {
            0 => Ok(format!(".open/{}", self.file_name(device, number, serial))),
            _ => Err(Errno::ENFILE),
        }
    }

    /// The stored attributes of a node, or those that it starts with. None once its device is gone.
    fn attributes(&self, node: Node) -> Option<Attributes> {
        if let Node::Link { device } | Node::File { device, .. } = node {
            return self.devices.read().attributes(device).copied();
        }
        self.attributes.lock().get(&node).copied().or_else(|| self.first_attributes(node))
    }

    fn first_attributes(&self, node: Node) -> Option<Attributes> {
        let everybody = self.stats == Stats::Global;
        let mode = match node {
            Node::Root | Node::Features => 0o755,
            // The names in it are not listed, but a process that knows one may use it.
            Node::Opens => 0o711,
            Node::Logs | Node::Processes if everybody => 0o755,
            Node::Logs | Node::Processes => 0o700,
            Node::Log(_) | Node::ProcessLog(_) if everybody => 0o444,
            Node::Log(_) | Node::ProcessLog(_) => 0o400,
            Node::Control => 0o600,
            Node::Feature(_) => 0o444,
            Node::Link { .. } | Node::File { .. } => return None,
        };
        let (uid, gid) = self.root;
        Some(Attributes { mode, uid, gid, ..self.made })
    }

    /// `simple_setattr`. EINVAL: the size cannot be set; EPERM: this node's attributes cannot be
    /// changed; ENOENT: the node is gone.
    pub fn set_attr(&self, node: Node, changes: &SetAttr) -> Result<uapi::fuse_attr_out, Errno> {
        if changes.valid & uapi::FATTR_SIZE != 0 {
            return Err(Errno::EINVAL);
        }
        match node {
            Node::Opens | Node::ProcessLog(_) => return Err(Errno::EPERM),
            Node::Link { device } | Node::File { device, .. } => {
                let mut devices = self.devices.write();
                devices.attributes_mut(device).ok_or(Errno::ENOENT)?.set(changes);
            }
            _ => {
                let first = self.first_attributes(node).ok_or(Errno::EPERM)?;
                self.attributes.lock().entry(node).or_insert(first).set(changes);
            }
        }
        self.attr_out(node).ok_or(Errno::ENOENT)
    }

    fn attr(&self, node: Node) -> Option<uapi::fuse_attr> {
        let it = self.attributes(node)?;
        let (mode, nlink, size) = match node {
            Node::Root | Node::Opens | Node::Features | Node::Logs | Node::Processes => {
                (libc::S_IFDIR | it.mode, 2, 0)
            }
            Node::Log(_) | Node::ProcessLog(_) | Node::Control => (libc::S_IFREG | it.mode, 1, 0),
            Node::Feature(feature) => {
                (libc::S_IFREG | it.mode, 1, feature_text(feature).len() as u64)
            }
            Node::Link { device } => {
                let target = self.device(device).map(|it| self.file_name(&it, device, 0));
                (libc::S_IFLNK | 0o777, 1, target.map_or(0, |name| name.len() as u64))
            }
            // The size that can be mapped: some programs ask before they map.
            Node::File { device, .. } => {
                let links = u32::from(self.devices.read().has_name(device));
                (libc::S_IFREG | it.mode, links, MAX_BUFFER_SIZE as u64)
            }
        };
        Some(uapi::fuse_attr {
            ino: node.number(),
            size,
            mode,
            nlink,
            uid: it.uid,
            gid: it.gid,
            atime: it.atime.0,
            mtime: it.mtime.0,
            ctime: it.ctime.0,
            atimensec: it.atime.1,
            mtimensec: it.mtime.1,
            ctimensec: it.ctime.1,
            blksize: 4096,
            ..Default::default()
        })
    }

    /// How long the kernel may remember a node's attributes. A device has many nodes, and a change
    /// through one of them counts for all.
    fn attr_valid(node: Node) -> u64 {
        match node {
            Node::Link { .. } | Node::File { .. } => 0,
            _ => LONG,
        }
    }

    /// The answer to GETATTR. None: there is no such node.
    pub fn attr_out(&self, node: Node) -> Option<uapi::fuse_attr_out> {
        let (attr_valid, attr) = (Tree::attr_valid(node), self.attr(node)?);
        Some(uapi::fuse_attr_out { attr_valid, attr, ..Default::default() })
    }

    /// The answer to LOOKUP and its like. None: there is no such node.
    pub fn entry_out(&self, node: Node) -> Option<uapi::fuse_entry_out> {
        let entry_valid = match node {
            Node::File { .. } | Node::ProcessLog(_) => 0,
            _ => LONG,
        };
        Some(uapi::fuse_entry_out {
            nodeid: node.number(),
            entry_valid,
            attr_valid: Tree::attr_valid(node),
            attr: self.attr(node)?,
            ..Default::default()
        })
    }

    /// The entries of a directory from `offset` on, as many as fit into `size` bytes.
    pub fn list(&self, directory: Node, offset: u64, size: usize) -> Vec<u8> {
        const DIRECTORY: u32 = libc::DT_DIR as u32;
        const FILE: u32 = libc::DT_REG as u32;
        const LINK: u32 = libc::DT_LNK as u32;
        /// Devices and processes come after all other entries, at their numbers: one that goes
        /// shifts no other entry.
        const FIRST_NUMBER: u64 = 16;
        /// The bytes of the shortest entry (`fuse_dirent`).
        const SHORTEST: usize = 32;
        let mut entries =
            vec![(directory.number(), DIRECTORY, &b"."[..]), (ROOT, DIRECTORY, &b".."[..])];
        match directory {
            Node::Root => {
                entries.push((CONTROL, FILE, CONTROL_NAME));
                entries.push((FEATURES, DIRECTORY, FEATURES_NAME));
                if self.stats != Stats::None {
                    entries.push((LOGS, DIRECTORY, LOGS_NAME));
                }
            }
            Node::Features => entries.extend(
                FEATURES_HERE
                    .iter()
                    .enumerate()
                    .map(|(feature, it)| (Node::Feature(feature).number(), FILE, it.0.as_bytes())),
            ),
            Node::Logs => {
                entries.push((PROCESSES, DIRECTORY, PROCESSES_NAME));
                entries.extend(
                    LOG_FILES
                        .iter()
                        .map(|(log, name)| (Node::Log(*log).number(), FILE, name.as_bytes())),
                );
            }
            _ => {}
        }
        let mut listing = Vec::new();
        for (index, (node, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if !push_dirent(&mut listing, size, node, index as u64 + 1, kind, name) {
                return listing;
            }
        }
        let from = u32::try_from(offset.saturating_sub(FIRST_NUMBER)).unwrap_or(u32::MAX);
        if directory == Node::Processes {
            let least = i32::try_from(from).unwrap_or(i32::MAX);
            for pid in self.hub.binder().pids_from(least, size / SHORTEST) {
                let next = FIRST_NUMBER + u64::from(pid.unsigned_abs()) + 1;
                let node = Node::ProcessLog(pid).number();
                if !push_dirent(&mut listing, size, node, next, FILE, pid.to_string().as_bytes()) {
                    break;
                }
            }
        }
        if directory == Node::Root {
            for (device, name) in self.devices.read().from(from) {
                let next = FIRST_NUMBER + u64::from(device) + 1;
                let node = Node::Link { device }.number();
                if !push_dirent(&mut listing, size, node, next, LINK, name) {
                    break;
                }
            }
        }
        listing
    }
}
