//! The kernel's interfaces: bindgen's view of `<linux/fuse.h>` and `<linux/android/binder.h>`, and,
//! written by hand, what is newer than the oldest headers that this crate builds with (Linux 6.1).
//!
//! An item defined here shadows the generated one of the same name, so the crate means the same
//! thing whichever headers it was built with; the asserts at the end compare both.

mod own;

pub use generated::*;
pub use own::*;

#[allow(
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    dead_code,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    missing_docs,
    reason = "written by bindgen from the kernel's headers"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/uapi.rs"));
}

use std::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// ---------------------------------------------------------------- ioctl numbers

const IOC_WRITE: u32 = 1;
const IOC_READ: u32 = 2;

/// `_IOC(dir, type, nr, size)` of `<asm-generic/ioctl.h>`.
const fn ioc(direction: u32, kind: u8, nr: u8, size: usize) -> u32 {
    (direction << 30) | ((size as u32) << 16) | ((kind as u32) << 8) | nr as u32
}

const fn io(kind: u8, nr: u8) -> u32 {
    ioc(0, kind, nr, 0)
}

const fn ior<T>(kind: u8, nr: u8) -> u32 {
    ioc(IOC_READ, kind, nr, size_of::<T>())
}

const fn iow<T>(kind: u8, nr: u8) -> u32 {
    ioc(IOC_WRITE, kind, nr, size_of::<T>())
}

const fn iowr<T>(kind: u8, nr: u8) -> u32 {
    ioc(IOC_READ | IOC_WRITE, kind, nr, size_of::<T>())
}

/// `_IOC_SIZE(cmd)`: the size of the argument, as the ioctl number has it.
pub const fn ioc_size(cmd: u32) -> usize {
    ((cmd >> 16) & 0x3fff) as usize
}

/// Whether the caller's argument is copied in (`_IOC_DIR(cmd) & _IOC_WRITE`).
pub const fn ioc_copies_in(cmd: u32) -> bool {
    (cmd >> 30) & IOC_WRITE != 0
}

/// Whether the caller's argument is copied out (`_IOC_DIR(cmd) & _IOC_READ`).
pub const fn ioc_copies_out(cmd: u32) -> bool {
    (cmd >> 30) & IOC_READ != 0
}

/// `_IOC_TYPE(cmd)`: `b'b'` for binder's ioctls, `b'F'` for fakebinder's own.
pub const fn ioc_type(cmd: u32) -> u8 {
    (cmd >> 8) as u8
}

/// Carries out commands and reads returns.
pub const BINDER_WRITE_READ: u32 = iowr::<binder_write_read>(b'b', 1);
/// An ioctl of the old driver: EINVAL.
pub const BINDER_SET_IDLE_TIMEOUT: u32 = iow::<i64>(b'b', 3);
/// How many threads the driver may ask a process for.
pub const BINDER_SET_MAX_THREADS: u32 = iow::<u32>(b'b', 5);
/// An ioctl of the old driver: EINVAL.
pub const BINDER_SET_IDLE_PRIORITY: u32 = iow::<i32>(b'b', 6);
/// Makes the caller the context manager.
pub const BINDER_SET_CONTEXT_MGR: u32 = iow::<i32>(b'b', 7);
/// The calling thread is done with binder.
pub const BINDER_THREAD_EXIT: u32 = iow::<i32>(b'b', 8);
/// The version of the protocol.
pub const BINDER_VERSION: u32 = iowr::<binder_version>(b'b', 9);
/// The next node of the process, with its counts.
pub const BINDER_GET_NODE_DEBUG_INFO: u32 = iowr::<binder_node_debug_info>(b'b', 11);
/// How many references the node of a handle has; for the context manager only.
pub const BINDER_GET_NODE_INFO_FOR_REF: u32 = iowr::<binder_node_info_for_ref>(b'b', 12);
/// [`BINDER_SET_CONTEXT_MGR`], with the flags of its node.
pub const BINDER_SET_CONTEXT_MGR_EXT: u32 = iow::<flat_binder_object>(b'b', 13);
/// Freezes or thaws a process.
pub const BINDER_FREEZE: u32 = iow::<binder_freeze_info>(b'b', 14);
/// Whether a process has got calls while it was frozen.
pub const BINDER_GET_FROZEN_INFO: u32 = iowr::<binder_frozen_status_info>(b'b', 15);
/// Whether the process is told when it takes too much one-way space (BR_ONEWAY_SPAM_SUSPECT).
pub const BINDER_ENABLE_ONEWAY_SPAM_DETECTION: u32 = iow::<u32>(b'b', 16);
/// Why the thread's last transaction failed.
pub const BINDER_GET_EXTENDED_ERROR: u32 = iowr::<binder_extended_error>(b'b', 17);

/// Argument of [`BINDER_CTL_ADD`] (`<linux/android/binderfs.h>`).
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy)]
pub struct binderfs_device {
    /// In: the device's name, up to the first NUL; the last byte counts as one.
    pub name: [u8; 256],
    /// Out: the device's major number, on binderfs.
    pub major: u32,
    /// Out: the device's minor number, on binderfs.
    pub minor: u32,
}

impl Default for binderfs_device {
    fn default() -> Self {
        Self { name: [0; 256], major: 0, minor: 0 }
    }
}

/// Adds a device; an ioctl of binderfs' `binder-control`.
pub const BINDER_CTL_ADD: u32 = iowr::<binderfs_device>(b'b', 1);

// ---------------------------------------------------------------- binder, newer than 6.1

/// What `BR_FROZEN_BINDER` carries: whose state changed, and to what.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct binder_frozen_state_info {
    /// The cookie of the request for notifications.
    pub cookie: u64,
    /// 1: the process is frozen; 0: it is not.
    pub is_frozen: u32,
    /// 0.
    pub reserved: u32,
}

/// The one-way call waits for a target that is frozen.
pub const BR_TRANSACTION_PENDING_FROZEN: u32 = io(b'r', 20);
/// A process has frozen or thawed; with a [`binder_frozen_state_info`].
pub const BR_FROZEN_BINDER: u32 = ior::<binder_frozen_state_info>(b'r', 21);
/// With the cookie of the freeze notification that was cleared.
pub const BR_CLEAR_FREEZE_NOTIFICATION_DONE: u32 = ior::<u64>(b'r', 22);
/// Asks for freeze notifications.
pub const BC_REQUEST_FREEZE_NOTIFICATION: u32 = iow::<binder_handle_cookie>(b'c', 19);
/// Ends freeze notifications.
pub const BC_CLEAR_FREEZE_NOTIFICATION: u32 = iow::<binder_handle_cookie>(b'c', 20);
/// With the cookie of the [`BR_FROZEN_BINDER`] that was read.
pub const BC_FREEZE_NOTIFICATION_DONE: u32 = iow::<u64>(b'c', 21);

/// No thread waits for a reply.
pub const TF_ONE_WAY: u32 = 0x01;
/// Of the root object of a component; the driver passes it on.
pub const TF_ROOT_OBJECT: u32 = 0x04;
/// The data is a status of 32 bits; the driver passes it on.
pub const TF_STATUS_CODE: u32 = 0x08;
/// The reply may carry descriptors.
pub const TF_ACCEPT_FDS: u32 = 0x10;
/// The buffer is overwritten with zeros when it is freed.
pub const TF_CLEAR_BUF: u32 = 0x20;
/// Replaces an earlier call of the same kind that waits for a frozen process.
pub const TF_UPDATE_TXN: u32 = 0x40;

// ---------------------------------------------------------------- FUSE, newer than 7.38

/// The file is opened in passthrough: the kernel goes to its backing file by itself.
pub const FOPEN_PASSTHROUGH: u32 = 1 << 7;
/// flags2 of INIT (bit 37 of the whole): the server may open files in passthrough.
pub const FUSE2_PASSTHROUGH: u32 = 1 << 5;

/// flags2 of INIT (bit 36 of the whole): files that are opened with `FOPEN_DIRECT_IO` may be mapped
/// shared (7.39).
pub const FUSE2_DIRECT_IO_ALLOW_MMAP: u32 = 1 << 4;

/// flags2 of INIT (bit 41 of the whole): requests may come, and answers go, by io_uring (7.42).
pub const FUSE2_OVER_IO_URING: u32 = 1 << 9;
/// Commands of `IORING_OP_URING_CMD` on `/dev/fuse`: hands the kernel an entry for requests.
pub const FUSE_IO_URING_CMD_REGISTER: u32 = 1;
/// Takes the answer in an entry, and hands the entry back for the next request.
pub const FUSE_IO_URING_CMD_COMMIT_AND_FETCH: u32 = 2;

/// How a request or an answer lies in an entry.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct fuse_uring_ent_in_out {
    /// None are known.
    pub flags: u64,
    /// The request by which the entry is committed.
    pub commit_id: u64,
    /// Bytes in the payload area.
    pub payload_sz: u32,
    /// Nothing.
    pub padding: u32,
    /// Nothing.
    pub reserved: u64,
}

/// The first of an entry's two areas; the second is the payload.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy)]
pub struct fuse_uring_req_header {
    /// `fuse_in_header` or `fuse_out_header`.
    pub in_out: [u8; 128],
    /// What an operation's request begins with.
    pub op_in: [u8; 128],
    /// Where what lies.
    pub ring_ent_in_out: fuse_uring_ent_in_out,
}

/// The command area of an SQE on `/dev/fuse`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct fuse_uring_cmd_req {
    /// None are known.
    pub flags: u64,
    /// The request that is answered, for a commit.
    pub commit_id: u64,
    /// The queue, which is that of a CPU.
    pub qid: u16,
    /// Nothing.
    pub padding: [u8; 6],
}

/// The reply to INIT, as of 7.40 (`max_stack_depth` lies in what was unused before).
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct fuse_init_out {
    /// The first half of the version that both sides speak.
    pub major: u32,
    /// The second half of that version.
    pub minor: u32,
    /// Bytes that the kernel may read ahead.
    pub max_readahead: u32,
    /// The `FUSE_*` flags that the server agrees to, the low half.
    pub flags: u32,
    /// Requests that may be on their way in the background.
    pub max_background: u16,
    /// From so many such requests on, the kernel takes the server to be congested.
    pub congestion_threshold: u16,
    /// Bytes of one write at most.
    pub max_write: u32,
    /// The granularity of times, in nanoseconds.
    pub time_gran: u32,
    /// Pages of one request at most.
    pub max_pages: u16,
    /// For DAX: log2 of the alignment of mappings.
    pub map_alignment: u16,
    /// The `FUSE_*` flags that the server agrees to, the high half.
    pub flags2: u32,
    /// How many file systems may lie under a backing file; at least 1 for passthrough.
    pub max_stack_depth: u32,
    /// Seconds after which the kernel ends the session of a server that does not answer; 0: never.
    pub request_timeout: u16,
    /// 0.
    pub unused: [u16; 11],
}

/// The reply to OPEN, as of 7.40 (`backing_id` was padding before).
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct fuse_open_out {
    /// The server's name for the open file.
    pub fh: u64,
    /// `FOPEN_*`.
    pub open_flags: u32,
    /// The kernel's number for the backing file; for [`FOPEN_PASSTHROUGH`].
    pub backing_id: i32,
}

/// Argument of `FUSE_DEV_IOC_BACKING_OPEN`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct fuse_backing_map {
    /// The descriptor of the backing file, in the server.
    pub fd: i32,
    /// 0.
    pub flags: u32,
    /// 0.
    pub padding: u64,
}

/// Registers a backing file, and returns its number.
pub const FUSE_DEV_IOC_BACKING_OPEN: u32 = iow::<fuse_backing_map>(229, 1);
/// Forgets a backing file, by its number.
pub const FUSE_DEV_IOC_BACKING_CLOSE: u32 = iow::<u32>(229, 2);

// ---------------------------------------------------------------- structures as bytes

/// The structure at the start of `bytes`; None when there are too few bytes.
pub fn parse<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

/// The bytes of a structure. The compiler checks that it has none without meaning (padding).
pub fn bytes_of<T: IntoBytes + Immutable>(value: &T) -> &[u8] {
    value.as_bytes()
}

// ---------------------------------------------------------------- layout

const _: () = {
    assert!(size_of::<binder_write_read>() == 48);
    assert!(size_of::<binder_transaction_data>() == 64);
    assert!(size_of::<binder_transaction_data_sg>() == 72);
    assert!(size_of::<binder_transaction_data_secctx>() == 72);
    assert!(size_of::<flat_binder_object>() == 24);
    assert!(size_of::<binder_fd_object>() == 24);
    assert!(size_of::<binder_buffer_object>() == 40);
    assert!(size_of::<binder_fd_array_object>() == 32);
    assert!(size_of::<binder_ptr_cookie>() == 16);
    assert!(size_of::<binder_handle_cookie>() == 12);
    assert!(size_of::<binder_frozen_state_info>() == 16);
    assert!(size_of::<binder_node_debug_info>() == 24);
    assert!(size_of::<binderfs_device>() == 264);
    assert!(size_of::<binder_node_info_for_ref>() == 24);
    assert!(size_of::<binder_freeze_info>() == 12);
    assert!(size_of::<binder_frozen_status_info>() == 12);
    assert!(size_of::<binder_extended_error>() == 12);
    assert!(BINDER_WRITE_READ == 0xc030_6201);
    assert!(BINDER_VERSION == 0xc004_6209);
    assert!(BR_FROZEN_BINDER == 0x8010_7215);

    assert!(offset_of!(binder_write_read, write_consumed) == 8);
    assert!(offset_of!(binder_write_read, write_buffer) == 16);
    assert!(offset_of!(binder_write_read, read_size) == 24);
    assert!(offset_of!(binder_write_read, read_consumed) == 32);
    assert!(offset_of!(binder_write_read, read_buffer) == 40);
    assert!(offset_of!(binder_transaction_data, cookie) == 8);
    assert!(offset_of!(binder_transaction_data, code) == 16);
    assert!(offset_of!(binder_transaction_data, flags) == 20);
    assert!(offset_of!(binder_transaction_data, sender_pid) == 24);
    assert!(offset_of!(binder_transaction_data, sender_euid) == 28);
    assert!(offset_of!(binder_transaction_data, data_size) == 32);
    assert!(offset_of!(binder_transaction_data, offsets_size) == 40);
    assert!(offset_of!(binder_transaction_data, data) == 48);
    assert!(offset_of!(binder_transaction_data_sg, buffers_size) == 64);
    assert!(offset_of!(binder_transaction_data_secctx, secctx) == 64);

    assert!(size_of::<fuse_in_header>() == 40);
    assert!(size_of::<fuse_out_header>() == 16);
    assert!(size_of::<fuse_init_out>() == 64);
    assert!(offset_of!(fuse_init_out, flags2) == 32);
    assert!(offset_of!(fuse_init_out, max_stack_depth) == 36);
    assert!(size_of::<fuse_open_out>() == 16);
    assert!(offset_of!(fuse_open_out, backing_id) == 12);
    assert!(size_of::<fuse_ioctl_in>() == 32);
    assert!(size_of::<fuse_ioctl_out>() == 16);
    assert!(size_of::<fuse_poll_in>() == 24);
    assert!(size_of::<cuse_init_in>() == 16);
    assert!(size_of::<cuse_init_out>() == 72);
    assert!(size_of::<fuse_backing_map>() == 16);
    assert!(FUSE_DEV_IOC_BACKING_OPEN == 0x4010_e501);
    assert!(size_of::<fuse_uring_ent_in_out>() == 32);
    assert!(size_of::<fuse_uring_req_header>() == 288);
    assert!(offset_of!(fuse_uring_req_header, ring_ent_in_out) == 256);
    assert!(size_of::<fuse_uring_cmd_req>() == 24);
};
