//! fakebinder's own ioctls (type 'F'), and the messages on the sockets that they make.

use super::{ior, iow, iowr};
use std::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the handshake below.
pub const FAKEBINDER_ATTACH_VERSION: u32 = 1;

/// Argument of [`FAKEBINDER_ATTACH`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct fakebinder_attach {
    /// In: [`FAKEBINDER_ATTACH_VERSION`]. Out: the version that the daemon speaks.
    pub version: u32,
    /// In: the number, in the caller, of the daemon's end of a `SOCK_SEQPACKET` socketpair. -1: the
    /// caller has connected to the name that [`FAKEBINDER_ATTACH_NAME`] gave it, or only asks what
    /// the device can do (ENOTCONN, with the other members filled in).
    pub socket: i32,
    /// Out: [`FAKEBINDER_ATTACH_NATIVE_MMAP`] or 0.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Out: the most bytes that can be mapped (4 MiB).
    pub max_size: u64,
}

/// The file itself can be mapped (FUSE door with passthrough): no descriptor comes over the socket.
pub const FAKEBINDER_ATTACH_NATIVE_MMAP: u32 = 1;

/// Argument of [`FAKEBINDER_MAPPED`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct fakebinder_mapped {
    /// Where the caller has mapped the descriptor that the attach brought.
    pub address: u64,
    /// Length of that mapping in bytes.
    pub size: u64,
}

/// Argument of [`FAKEBINDER_ATTACH_NAME`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy)]
pub struct fakebinder_attach_name {
    /// In: [`FAKEBINDER_ATTACH_VERSION`]. Out: the version that the daemon speaks.
    pub version: u32,
    /// Out: bytes of `name`.
    pub length: u32,
    /// Out: the name of a `SOCK_SEQPACKET` socket in the abstract namespace, without the leading
    /// NUL.
    pub name: [u8; 56],
}

impl Default for fakebinder_attach_name {
    fn default() -> Self {
        Self { version: 0, length: 0, name: [0; 56] }
    }
}

/// Hands the daemon one end of a socketpair. EPERM: the daemon may not take it. On the CUSE door
/// the daemon answers through it with one message of one byte and, by SCM_RIGHTS, a read-only
/// descriptor of the caller's buffer, which is there when the ioctl returns.
pub const FAKEBINDER_ATTACH: u32 = iowr::<fakebinder_attach>(b'F', 1);
/// Where the daemon may not take descriptors from the caller: asks for a socket to connect to (in
/// the daemon's network namespace). [`FAKEBINDER_ATTACH`] with socket -1 follows.
pub const FAKEBINDER_ATTACH_NAME: u32 = iowr::<fakebinder_attach_name>(b'F', 6);
/// Says where the caller has mapped the buffer; stands for the driver's mmap, with its errors.
pub const FAKEBINDER_MAPPED: u32 = iow::<fakebinder_mapped>(b'F', 2);

/// Argument of [`FAKEBINDER_SLOTS`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy)]
pub struct fakebinder_slots {
    /// How many of `numbers` count.
    pub count: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Descriptors of the caller that the daemon may have replaced by ones that it sends.
    pub numbers: [i32; 62],
}

impl Default for fakebinder_slots {
    fn default() -> Self {
        Self { count: 0, reserved: 0, numbers: [-1; 62] }
    }
}

/// Offers the daemon descriptor numbers that the caller keeps free (it has something worthless open
/// there): files in transactions to the caller arrive at these. Offers add up.
pub const FAKEBINDER_SLOTS: u32 = iow::<fakebinder_slots>(b'F', 3);

/// What [`FAKEBINDER_STATS`] tells: what the daemon holds, over all devices and clients, the
/// asking file included.
#[repr(C)]
#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy, PartialEq, Eq,
)]
pub struct fakebinder_stats {
    /// Open files of devices.
    pub processes: u64,
    /// Threads that have called since they last exited.
    pub threads: u64,
    /// Nodes.
    pub nodes: u64,
    /// References.
    pub references: u64,
    /// Transactions that are queued, or not answered yet.
    pub transactions: u64,
    /// Buffers that clients hold or that are on their way to them.
    pub buffers: u64,
    /// Death links.
    pub deaths: u64,
    /// Freeze links.
    pub freezes: u64,
    /// Pages installed in the mappings of clients.
    pub pages: u64,
    /// Installed pages that no buffer uses.
    pub reclaimable_pages: u64,
    /// Descriptors of the daemon.
    pub descriptors: u64,
    /// Threads of the daemon.
    pub daemon_threads: u64,
}

/// Asks what the daemon holds. Root only (EPERM).
pub const FAKEBINDER_STATS: u32 = ior::<fakebinder_stats>(b'F', 4);

/// Reclaims every page that no buffer uses, before it returns; gives their number. Root only
/// (EPERM).
pub const FAKEBINDER_RECLAIM: u32 = ior::<u64>(b'F', 5);

/// The most slots that a client may have on offer.
pub const FAKEBINDER_MAX_SLOTS: usize = 4096;

/// First word of a message on the socket of an attach: the files that come with it, by
/// SCM_RIGHTS, belong at the numbers that follow (32 bits each). It is there before the ioctl
/// returns that tells of their transaction.
pub const FAKEBINDER_FILES_INSTALL: u32 = 1;
/// First word of a message: the numbers that follow are to be closed (a freed buffer held an
/// array of them). It is there before the ioctl returns that freed the buffer.
pub const FAKEBINDER_FILES_CLOSE: u32 = 2;

/// Numbers in one message at most: what SCM_RIGHTS carries.
pub const FAKEBINDER_FILES_MAX: usize = 253;

/// Version of what follows: how a supervisor puts descriptors into a program (`fakebinder exec`).
pub const FAKEBINDER_SUPERVISE_VERSION: u32 = 1;

/// Argument of [`FAKEBINDER_SUPERVISE`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct fakebinder_supervise {
    /// In: [`FAKEBINDER_SUPERVISE_VERSION`]. Out: the version that the daemon speaks.
    pub version: u32,
    /// In: the number, in the caller, of the daemon's end of a `SOCK_SEQPACKET` socketpair. -1: the
    /// caller only asks which open file this is.
    pub socket: i32,
    /// Out: a number that no other open file has.
    pub open: u64,
    /// Out: the process that has opened the file, as the caller numbers it.
    pub opener: i32,
    /// Out: [`FAKEBINDER_SUPERVISE_MAPS`] or 0.
    pub flags: u32,
}

/// The kernel maps the file without asking the daemon, and the mapping shows the buffers.
pub const FAKEBINDER_SUPERVISE_MAPS: u32 = 1;

/// The caller will put the descriptors of transactions into the processes that use this open file.
/// It has a descriptor of that very file, and the uid of its opener (or 0).
pub const FAKEBINDER_SUPERVISE: u32 = iowr::<fakebinder_supervise>(b'F', 7);

/// Argument of [`FAKEBINDER_FOR_THREAD`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct fakebinder_for_thread {
    /// A thread of the process that has opened the file, as the caller numbers it.
    pub tid: i32,
    /// `BINDER_SET_CONTEXT_MGR`, `BINDER_THREAD_EXIT`, or `BINDER_GET_EXTENDED_ERROR`, whose answer
    /// nobody gets.
    pub command: u32,
}

/// The supervisor of an open file does an ioctl in the place of a thread: one whose argument the
/// driver does not look at, and the kernel cannot copy.
pub const FAKEBINDER_FOR_THREAD: u32 = iow::<fakebinder_for_thread>(b'F', 8);

/// First word of a message to a supervisor. A ticket, a thread (as the supervisor numbers it) and a
/// number follow, with files by SCM_RIGHTS: they belong into the process of that thread, when the
/// thread makes its next ioctl. The number says how many files follow in further messages of this
/// ticket. It is there before the thread's ioctl returns that finds nothing.
pub const FAKEBINDER_PLACE: u32 = 1;
/// First word of a message to a supervisor. A thread follows, and descriptors that are to be closed
/// in its process.
pub const FAKEBINDER_PLACE_CLOSE: u32 = 2;
/// First word of a message to a supervisor. A ticket follows, whose files nobody wants any more.
pub const FAKEBINDER_PLACE_FORGET: u32 = 3;
/// First word of a message of a supervisor. A ticket follows, an errno, and, if that is 0, the
/// numbers that the files have got, in order; if they do not fit into one message, further messages
/// have the others. It is there before the thread's next ioctl is.
pub const FAKEBINDER_PLACED: u32 = 4;

/// Argument of [`FAKEBINDER_SNAPSHOT`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy)]
pub struct fakebinder_snapshot {
    /// Which part of the text to copy. 0 takes a new snapshot.
    pub offset: u64,
    /// Is set to the length of the whole text.
    pub length: u64,
    /// [`FAKEBINDER_SNAPSHOT_OBJECTS`] or 0; of use at offset 0.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Is set to the text from `offset` on, as much of it as there is room for.
    pub text: [u8; 4000],
}

impl Default for fakebinder_snapshot {
    fn default() -> Self {
        Self { offset: 0, length: 0, flags: 0, reserved: 0, text: [0; 4000] }
    }
}

/// The snapshot tells of every node, reference and buffer, too.
pub const FAKEBINDER_SNAPSHOT_OBJECTS: u32 = 1;

/// Asks what the daemon holds, in JSON (`src/snapshot.rs`), part by part: the text stays as it is
/// until its end has been copied, or offset 0 is asked for again. Root, and the user who runs the
/// daemon (EPERM). EINVAL: an unknown flag, or an offset behind the end; ENODATA: there is none
/// yet, or it was copied to its end; ENOMEM: the daemon's memory budget is too small for it.
pub const FAKEBINDER_SNAPSHOT: u32 = iowr::<fakebinder_snapshot>(b'F', 9);

/// What the driver did: a record of [`FAKEBINDER_EVENTS`]. A member that is not spoken of for a kind
/// is 0.
#[repr(C)]
#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy, PartialEq, Eq,
)]
pub struct fakebinder_event {
    /// When, in nanoseconds of CLOCK_BOOTTIME.
    pub at: u64,
    /// What: one of the constants `FAKEBINDER_EVENT_...`.
    pub kind: u32,
    /// The command, the return, or the code of a transaction.
    pub number: u32,
    /// The process and the thread whose doing this was.
    pub pid: i32,
    /// See `pid`.
    pub tid: i32,
    /// The process and the thread that a transaction goes to; 0: none was found, or any thread.
    pub to_pid: i32,
    /// See `to_pid`.
    pub to_tid: i32,
    /// The flags of a transaction.
    pub flags: u32,
    /// What the sender of a transaction reads of it: BR_FAILED_REPLY and so on, or 0.
    pub error: u32,
    /// The number of a transaction.
    pub id: u64,
    /// For a reply: the number of the call, or the largest number where there is none.
    pub reply_to: u64,
    /// Bytes of a transaction's data, the number of a page in its mapping, or a count of pages.
    pub size: u64,
    /// The number of the context, as a snapshot has it.
    pub context: u64,
}

/// `binder_command`: a command is carried out.
pub const FAKEBINDER_EVENT_COMMAND: u32 = 1;
/// `binder_return`: a return was given to a client.
pub const FAKEBINDER_EVENT_RETURN: u32 = 1 << 1;
/// `binder_transaction`: a call or a reply was queued.
pub const FAKEBINDER_EVENT_TRANSACTION: u32 = 1 << 2;
/// `binder_transaction_received`: the receiver has a call or a reply.
pub const FAKEBINDER_EVENT_RECEIVED: u32 = 1 << 3;
/// What the newest drivers multicast by netlink (family `binder`, group `report`): a transaction
/// failed, went to a frozen process, or is suspected to be spam.
pub const FAKEBINDER_EVENT_REPORT: u32 = 1 << 4;
/// `binder_alloc_page_start`: a page is about to be installed for the sender `pid`.
pub const FAKEBINDER_EVENT_PAGE_START: u32 = 1 << 5;
/// `binder_alloc_page_end`: it is installed, or could not be.
pub const FAKEBINDER_EVENT_PAGE_END: u32 = 1 << 6;
/// So many pages are installed in all.
pub const FAKEBINDER_EVENT_PAGES: u32 = 1 << 7;
/// Every kind.
pub const FAKEBINDER_EVENTS_ALL: u32 = (1 << 8) - 1;

/// Events that one ioctl copies at most.
pub const FAKEBINDER_EVENTS_MAX: usize = 55;

/// Argument of [`FAKEBINDER_EVENTS`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy)]
pub struct fakebinder_events {
    /// In: the kinds that are wanted. Another value than the last time begins anew; 0 ends it.
    pub wanted: u32,
    /// Out: how many of `events` count.
    pub count: u32,
    /// Out: how many more there have been, for which there was no room, since the last ioctl.
    pub lost: u64,
    /// Out: what happened, the earliest first.
    pub events: [fakebinder_event; FAKEBINDER_EVENTS_MAX],
}

impl Default for fakebinder_events {
    fn default() -> Self {
        let events = [fakebinder_event::default(); FAKEBINDER_EVENTS_MAX];
        Self { wanted: 0, count: 0, lost: 0, events }
    }
}

/// Takes what has happened since the last time, in all contexts. Root, and the user who runs the
/// daemon (EPERM). EINVAL: an unknown kind; EBUSY: so many open files listen that there is no room
/// for another; ENOMEM: the daemon's memory budget is too small. Closing the file ends it.
pub const FAKEBINDER_EVENTS: u32 = iowr::<fakebinder_events>(b'F', 10);

/// Bytes that one ioctl copies of a recording at most.
pub const FAKEBINDER_RECORDING_MAX: usize = 3952;

/// Argument of [`FAKEBINDER_RECORD`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy)]
pub struct fakebinder_recording {
    /// In: [`FAKEBINDER_RECORD_ON`], with others if they are wanted. Another value than the last
    /// time begins anew; 0 ends it.
    pub wanted: u32,
    /// Out: how many of `bytes` count.
    pub count: u32,
    /// Out: 1 when there was no room for more: the recording ends with what was taken so far.
    pub full: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Out: records, one behind the other, each a [`fakebinder_record`] and its body. A record may
    /// begin in one ioctl and end in a later one.
    pub bytes: [u8; FAKEBINDER_RECORDING_MAX],
}

impl Default for fakebinder_recording {
    fn default() -> Self {
        Self { wanted: 0, count: 0, full: 0, reserved: 0, bytes: [0; FAKEBINDER_RECORDING_MAX] }
    }
}

/// Record what clients of this context do.
pub const FAKEBINDER_RECORD_ON: u32 = 1;
/// With the bytes that they send.
pub const FAKEBINDER_RECORD_DATA: u32 = 1 << 1;

/// What a client did, or was told. A body follows, as is said for each kind.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default, Clone, Copy)]
pub struct fakebinder_record {
    /// When, in nanoseconds of CLOCK_BOOTTIME.
    pub at: u64,
    /// The open file, by a number that no other has.
    pub process: u64,
    /// Bytes of the body.
    pub length: u32,
    /// What: one of the constants `FAKEBINDER_RECORD_...`.
    pub kind: u32,
    /// The process that has opened the file, as the daemon numbers it.
    pub pid: i32,
    /// The thread.
    pub tid: i32,
}

/// The device is opened. No body.
pub const FAKEBINDER_RECORD_OPEN: u32 = 1;
/// The last descriptor of the open file is closed. No body.
pub const FAKEBINDER_RECORD_CLOSE: u32 = 2;
/// An ioctl other than BINDER_WRITE_READ begins: its number (32 bits), and its argument.
pub const FAKEBINDER_RECORD_IOCTL: u32 = 3;
/// A BINDER_WRITE_READ begins: its argument (`struct binder_write_read`).
pub const FAKEBINDER_RECORD_WRITE_READ: u32 = 4;
/// A command is about to be carried out: its number (32 bits), and its payload.
pub const FAKEBINDER_RECORD_COMMAND: u32 = 5;
/// What the transaction of the thread's last command says, as its sender wrote it: how many objects
/// (32 bits), then for each its offset in the data and its length (64 bits each) and its bytes; then
/// the data, if they are wanted.
pub const FAKEBINDER_RECORD_MESSAGE: u32 = 6;
/// Returns were given to the thread: where its process has mapped the device, and how many bytes
/// (64 bits each; 0 as long as that is not known), then the returns.
pub const FAKEBINDER_RECORD_RETURNS: u32 = 7;

/// Takes what clients have done since the last time, in the context of this device. Root, and the
/// user who runs the daemon (EPERM). EINVAL: an unknown flag; EBUSY: another open file records;
/// ENOMEM: the daemon's memory budget is too small. Closing the file ends it.
pub const FAKEBINDER_RECORD: u32 = iowr::<fakebinder_recording>(b'F', 11);

/// Argument of [`FAKEBINDER_INJECT`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy)]
pub struct fakebinder_inject {
    /// In: 1 to replace the rules in force, 0 to ask for them. Out: 0, or the errno for which the
    /// rules were not replaced, with the reason as the text.
    pub state: u32,
    /// In, and out: how many bytes of `text` count.
    pub length: u32,
    /// In: the new rules, as `fakebinderd --inject` takes them. Out: the rules in force, a line for
    /// each: how many calls it was about, how many of them it has hit, and the rule, with spaces
    /// between them; as many as there is room for.
    pub text: [u8; 4000],
}

impl Default for fakebinder_inject {
    fn default() -> Self {
        Self { state: 0, length: 0, text: [0; 4000] }
    }
}

/// Has the daemon's own work fail or take long, or says what does. Root, and the user who runs the
/// daemon (EPERM). EINVAL: another state, or more text than there is room for.
pub const FAKEBINDER_INJECT: u32 = iowr::<fakebinder_inject>(b'F', 12);

const _: () = {
    assert!(size_of::<fakebinder_event>() == 72);
    assert!(size_of::<fakebinder_events>() == 3976);
    assert!(size_of::<fakebinder_recording>() == 3968);
    assert!(size_of::<fakebinder_record>() == 32);
    assert!(size_of::<fakebinder_inject>() == 4008);
    assert!(size_of::<fakebinder_attach>() == 24);
    assert!(size_of::<fakebinder_attach_name>() == 64);
    assert!(size_of::<fakebinder_slots>() == 256);
    assert!(size_of::<fakebinder_stats>() == 96);
    assert!(size_of::<fakebinder_supervise>() == 24);
    assert!(size_of::<fakebinder_for_thread>() == 8);
    assert!(size_of::<fakebinder_snapshot>() == 4024);
};
