//! The directory that the FUSE door shows, as data: which nodes there are, and what they look like.
//!
//! ```text
//! /                 the devices, as in binderfs
//! /binder-control   BINDER_CTL_ADD adds a device
//! /features/NAME    what this driver can do: "1"
//! /binder_logs/...  what the driver holds and has done, for root: see binder/logs.rs
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
use crate::lock_order::rank;
use crate::sync::RwLock;
use crate::{Errno, uapi};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long the kernel may remember what never changes, in seconds.
const LONG: u64 = 24 * 3600;

const ROOT: u64 = uapi::FUSE_ROOT_ID as u64;
const OPENS: u64 = 2;
const CONTROL: u64 = 3;
const FEATURES: u64 = 4;
const LOGS: u64 = 5;
const PROCESSES: u64 = 6;
/// Numbers from here on are features.
const FEATURE: u64 = 1 << 4;
/// Numbers from here on are logs.
const LOG: u64 = 1 << 5;
/// Numbers from here on are devices.
const DEVICES: u64 = 1 << 8;
/// `BINDERFS_MAX_NAME`: what is longer is cut off.
const MAX_NAME: usize = 255;
/// More cannot be added. binderfs: as its mount option says, else a million.
const MAX_DEVICES: usize = 4096;
/// This bit and a pid: the log of a process.
const PROCESS_LOG: u64 = 1 << 62;
/// Below the index of the device (from 1 on): the number of the open.
const SERIAL_BITS: u32 = 40;

const OPENS_NAME: &[u8] = b".open";
const CONTROL_NAME: &[u8] = b"binder-control";
const FEATURES_NAME: &[u8] = b"features";

const LOGS_NAME: &[u8] = b"binder_logs";
const PROCESSES_NAME: &[u8] = b"proc";

/// A file of `binder_logs/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    State,
    Stats,
    Transactions,
    TransactionLog,
    FailedTransactionLog,
}

const LOG_FILES: [(Log, &str); 5] = [
    (Log::State, "state"),
    (Log::Stats, "stats"),
    (Log::Transactions, "transactions"),
    (Log::TransactionLog, "transaction_log"),
    (Log::FailedTransactionLog, "failed_transaction_log"),
];

/// What clients look for before they use it (`binder_features`).
const FEATURE_NAMES: [&str; 3] = ["oneway_spam_detection", "extended_error", "freeze_notification"];
/// What each of these files says.
const FEATURE_CONTENTS: &str = "1\n";

/// What a node number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    Root,
    /// The directory of files to be opened.
    Opens,
    /// `binder-control`.
    Control,
    /// The directory of features.
    Features,
    Feature(usize),
    /// The directory of logs, and that of processes in it.
    Logs,
    Processes,
    Log(Log),
    /// `proc/PID`.
    ProcessLog(i32),
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
    /// Whether that is the number of what one open of a device opens: to be known at each of its ioctls
    /// without looking at the devices.
    pub fn is_file(number: u64) -> bool {
        number & PROCESS_LOG == 0 && number >> SERIAL_BITS != 0
    }

    pub fn number(self) -> u64 {
        match self {
            Node::Root => ROOT,
            Node::Opens => OPENS,
            Node::Control => CONTROL,
            Node::Features => FEATURES,
            Node::Feature(feature) => FEATURE + feature as u64,
            Node::Logs => LOGS,
            Node::Processes => PROCESSES,
            Node::Log(log) => LOG + log as u64,
            Node::ProcessLog(pid) => PROCESS_LOG | u64::from(pid as u32),
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
    /// Only ever grows: a device's number is its index.
    devices: RwLock<Vec<Arc<Device>>, rank::Devices>,
    permissions: Permissions,
    serial: AtomicU64,
    keys: RandomState,
}

impl Tree {
    pub fn new(devices: Vec<Arc<Device>>, permissions: Permissions) -> Tree {
        let devices = RwLock::new(devices);
        Tree { devices, permissions, serial: AtomicU64::new(0), keys: RandomState::new() }
    }

    pub fn device(&self, index: usize) -> Option<Arc<Device>> {
        self.devices.read().get(index).cloned()
    }

    fn device_named(&self, name: &[u8]) -> Option<usize> {
        self.devices.read().iter().position(|it| it.name.as_bytes() == name)
    }

    /// `BINDER_CTL_ADD`: `name` up to its first NUL. EEXIST; EACCES for what is no name of a file; EINVAL
    /// where it is not UTF-8; ENOSPC when there are 4,096.
    pub fn add_device(&self, name: &[u8]) -> Result<(), Errno> {
        let name = &name[..name.len().min(MAX_NAME)];
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
            return Err(Errno::EACCES);
        }
        let text = std::str::from_utf8(name).map_err(|_| Errno::EINVAL)?;
        let mut devices = self.devices.write();
        let taken = [OPENS_NAME, CONTROL_NAME, FEATURES_NAME, LOGS_NAME].contains(&name)
            || devices.iter().any(|it| it.name == text);
        match devices.first() {
            _ if taken => Err(Errno::EEXIST),
            Some(first) if devices.len() < MAX_DEVICES => {
                let device = first.sibling(text);
                devices.push(device);
                Ok(())
            }
            _ => Err(Errno::ENOSPC),
        }
    }

    /// None for a number that was never given out.
    pub fn node(&self, number: u64) -> Option<Node> {
        if number & PROCESS_LOG != 0 {
            return i32::try_from(number ^ PROCESS_LOG).ok().map(Node::ProcessLog);
        }
        let serial = number & ((1 << SERIAL_BITS) - 1);
        let node = match number >> SERIAL_BITS {
            0 if number == ROOT => Node::Root,
            0 if number == OPENS => Node::Opens,
            0 if number == CONTROL => Node::Control,
            0 if number == FEATURES => Node::Features,
            0 if number == LOGS => Node::Logs,
            0 if number == PROCESSES => Node::Processes,
            0 if (LOG..DEVICES).contains(&number) => {
                Node::Log(LOG_FILES.get((number - LOG) as usize)?.0)
            }
            0 if number < LOG => Node::Feature(number.checked_sub(FEATURE)? as usize),
            0 => Node::Link { device: number.checked_sub(DEVICES)? as usize },
            device => Node::File { device: device as usize - 1, serial },
        };
        match node {
            Node::Feature(feature) => FEATURE_NAMES.get(feature).map(|_| node),
            Node::Link { device } | Node::File { device, .. } => self.device(device).map(|_| node),
            node => Some(node),
        }
    }

    /// What a file says just now that is neither a device nor empty.
    pub fn contents(&self, node: Node) -> Option<Vec<u8>> {
        let binder = self.device(0)?.binder().clone();
        let text = match node {
            Node::Feature(_) => FEATURE_CONTENTS.to_owned(),
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

    fn pids(&self) -> Vec<i32> {
        self.device(0).map_or_else(Vec::new, |device| device.binder().pids())
    }

    pub fn lookup(&self, parent: Node, name: &[u8]) -> Option<Node> {
        match parent {
            Node::Root if name == OPENS_NAME => Some(Node::Opens),
            Node::Root if name == CONTROL_NAME => Some(Node::Control),
            Node::Root if name == FEATURES_NAME => Some(Node::Features),
            Node::Root if name == LOGS_NAME => Some(Node::Logs),
            Node::Root => self.device_named(name).map(|device| Node::Link { device }),
            Node::Opens => self.lookup_file(name),
            Node::Features => {
                FEATURE_NAMES.iter().position(|it| it.as_bytes() == name).map(Node::Feature)
            }
            Node::Logs if name == PROCESSES_NAME => Some(Node::Processes),
            Node::Logs => {
                LOG_FILES.iter().find(|it| it.1.as_bytes() == name).map(|it| Node::Log(it.0))
            }
            Node::Processes => {
                let pid = std::str::from_utf8(name).ok()?.parse().ok()?;
                self.pids().contains(&pid).then_some(Node::ProcessLog(pid))
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
        let mut parts = std::str::from_utf8(name).ok()?.rsplitn(3, '.');
        let (_key, serial, device) = (parts.next()?, parts.next()?, parts.next()?);
        let serial = serial.parse().ok().filter(|it| *it <= self.serial.load(Ordering::Relaxed))?;
        let device = self.device_named(device.as_bytes())?;
        (self.file_name(device, serial)?.as_bytes() == name)
            .then_some(Node::File { device, serial })
    }

    /// The key keeps other clients from opening the file first: they cannot guess it.
    fn file_name(&self, device: usize, serial: u64) -> Option<String> {
        let key = self.keys.hash_one((device, serial));
        Some(format!("{}.{serial}.{key:016x}", self.device(device)?.name))
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
            Node::Features => (libc::S_IFDIR | 0o755, 2, 0),
            // They tell of everybody: for root, unlike binderfs, where a security module decides.
            Node::Logs | Node::Processes => (libc::S_IFDIR | 0o700, 2, 0),
            Node::Log(_) | Node::ProcessLog(_) => (libc::S_IFREG | 0o400, 1, 0),
            Node::Control => (libc::S_IFREG | 0o600, 1, 0),
            Node::Feature(_) => (libc::S_IFREG | 0o444, 1, FEATURE_CONTENTS.len() as u64),
            Node::Link { device } => {
                let length = self.file_name(device, 0).map_or(0, |name| name.len());
                (libc::S_IFLNK | 0o777, 1, length as u64)
            }
            // What can be mapped: some programs ask before they map.
            Node::File { .. } => (libc::S_IFREG | mode, 1, MAX_BUFFER_SIZE as u64),
        };
        let (uid, gid) = match node {
            Node::File { .. } => (uid, gid),
            _ => (0, 0),
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
            Node::File { .. } | Node::ProcessLog(_) => 0,
            _ => LONG,
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
        const FILE: u32 = libc::DT_REG as u32;
        const LINK: u32 = libc::DT_LNK as u32;
        let pids: Vec<(i32, String)> = match directory {
            Node::Processes => self.pids().into_iter().map(|pid| (pid, pid.to_string())).collect(),
            _ => Vec::new(),
        };
        // Not before: whoever lists the processes looks for a device, too, and a second look would
        // wait for one who adds a device and waits for the first.
        let devices = self.devices.read();
        let mut entries =
            vec![(directory.number(), DIRECTORY, &b"."[..]), (ROOT, DIRECTORY, &b".."[..])];
        match directory {
            Node::Root => {
                entries.push((CONTROL, FILE, CONTROL_NAME));
                entries.push((FEATURES, DIRECTORY, FEATURES_NAME));
                entries.push((LOGS, DIRECTORY, LOGS_NAME));
                entries.extend(devices.iter().enumerate().map(|(device, it)| {
                    (Node::Link { device }.number(), LINK, it.name.as_bytes())
                }));
            }
            Node::Features => {
                entries.extend(FEATURE_NAMES.iter().enumerate().map(|(feature, name)| {
                    (Node::Feature(feature).number(), FILE, name.as_bytes())
                }))
            }
            Node::Logs => {
                entries.push((PROCESSES, DIRECTORY, PROCESSES_NAME));
                entries.extend(
                    LOG_FILES
                        .iter()
                        .map(|(log, name)| (Node::Log(*log).number(), FILE, name.as_bytes())),
                );
            }
            Node::Processes => entries.extend(
                pids.iter()
                    .map(|(pid, name)| (Node::ProcessLog(*pid).number(), FILE, name.as_bytes())),
            ),
            _ => {}
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
