//! The nodes of the directory: what a node number says.

use crate::uapi;

pub(super) const ROOT: u64 = uapi::FUSE_ROOT_ID as u64;
const OPENS: u64 = 2;
pub(super) const CONTROL: u64 = 3;
pub(super) const FEATURES: u64 = 4;
pub(super) const LOGS: u64 = 5;
pub(super) const PROCESSES: u64 = 6;
/// Numbers from here on are features.
const FEATURE: u64 = 1 << 4;
/// Numbers from here on are logs.
const LOG: u64 = 1 << 5;
/// Numbers from here on are devices.
const DEVICES: u64 = 1 << 8;
/// This bit and a pid: the log of a process.
const PROCESS_LOG: u64 = 1 << 62;
/// A device's number (from 1 on) stands above so many bits, the number of the open in them.
pub(super) const SERIAL_BITS: u32 = 40;

/// A file of `binder_logs/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Log {
    /// Every process, thread, node, reference and buffer.
    State,
    /// Counts of commands, returns and records.
    Stats,
    /// What is under way.
    Transactions,
    /// The last transactions.
    TransactionLog,
    /// The last transactions that failed.
    FailedTransactionLog,
}

pub(super) const LOG_FILES: [(Log, &str); 5] = [
    (Log::State, "state"),
    (Log::Stats, "stats"),
    (Log::Transactions, "transactions"),
    (Log::TransactionLog, "transaction_log"),
    (Log::FailedTransactionLog, "failed_transaction_log"),
];

/// The features that clients look for before they use them (`binder_features`), and whether each is
/// here. `transaction_report` promises a netlink family that reports failed transactions; only a
/// kernel can have one. Such a report is in `binder_logs/failed_transaction_log`.
pub(super) const FEATURES_HERE: [(&str, bool); 4] = [
    ("oneway_spam_detection", true),
    ("extended_error", true),
    ("freeze_notification", true),
    ("transaction_report", false),
];

/// `binder_features_show`.
pub(super) fn feature_text(feature: usize) -> &'static str {
    match FEATURES_HERE.get(feature) {
        Some((_, true)) => "1\n",
        Some((_, false)) | None => "0\n",
    }
}

/// What a node number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Node {
    /// The directory that is mounted.
    Root,
    /// The directory of files to be opened.
    Opens,
    /// `binder-control`.
    Control,
    /// The directory of features.
    Features,
    /// A feature, by its place in the list of features.
    Feature(usize),
    /// The directory of logs.
    Logs,
    /// `binder_logs/proc`.
    Processes,
    /// A file of `binder_logs/`.
    Log(Log),
    /// `proc/PID`.
    ProcessLog(i32),
    /// The link that is a device's name.
    Link {
        /// The number of the device.
        device: u32,
    },
    /// The file of one open.
    File {
        /// The number of the device.
        device: u32,
        /// The number of the open.
        serial: u64,
    },
}

impl Node {
    /// Whether a node number is that of one open's file: so much is told at each ioctl without
    /// looking at the devices.
    pub fn is_file(number: u64) -> bool {
        number & PROCESS_LOG == 0 && number >> SERIAL_BITS != 0
    }

    /// None for a number that stands for nothing. A device of the number need not exist.
    pub(super) fn from_number(number: u64) -> Option<Node> {
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
            0 => Node::Link { device: u32::try_from(number.checked_sub(DEVICES)?).ok()? },
            device => Node::File { device: u32::try_from(device - 1).ok()?, serial },
        };
        match node {
            Node::Feature(feature) => FEATURES_HERE.get(feature).map(|_| node),
            node => Some(node),
        }
    }

    /// The number that the kernel knows the node by.
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
            Node::Link { device } => DEVICES + u64::from(device),
            Node::File { device, serial } => (u64::from(device) + 1) << SERIAL_BITS | serial,
        }
    }
}
