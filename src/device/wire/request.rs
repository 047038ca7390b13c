//! The requests of the kernel, as types, and the ways in which a message can be malformed.

use crate::uapi;
use std::mem::size_of;

/// The caller of a request, and the node that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kernel's name for the request; even, never 0.
    pub unique: u64,
    /// The node that the request is about; 0 where it is about none.
    pub node: u64,
    /// fsuid of the caller.
    pub uid: u32,
    /// fsgid of the caller.
    pub gid: u32,
    /// The calling thread in the server's pid namespace; 0 when it cannot be seen from there, and
    /// for requests that the kernel makes by itself (INIT, RELEASE).
    pub tid: i32,
}

/// An ioctl on its way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ioctl<'a> {
    /// The handle of the open file, which OPEN has answered with.
    pub fh: u64,
    /// The number of the ioctl.
    pub cmd: u32,
    /// The caller's argument: mostly an address in the caller.
    pub arg: u64,
    /// The bytes that the kernel has copied in: all of the argument (restricted), what a retry
    /// asked for, or nothing.
    pub input: &'a [u8],
    /// How many bytes the kernel will copy out.
    pub out_size: usize,
    /// Whether the server reaches the caller's memory by itself (CUSE).
    pub unrestricted: bool,
}

/// What chmod, chown, touch or truncate ask for; only the fields that `valid` names count
/// (`FATTR_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetAttr {
    /// Which of the other fields are asked for (`FATTR_*`).
    pub valid: u32,
    /// The new permissions.
    pub mode: u32,
    /// The new owner.
    pub uid: u32,
    /// The new group.
    pub gid: u32,
    /// Seconds since 1970 (negative ones as two's complement), nanoseconds.
    pub atime: (u64, u32),
    /// As `atime`, for the last change of the content.
    pub mtime: (u64, u32),
}

/// The nodes that the kernel has forgotten, each with the number of lookups that it undoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten<'a> {
    pub(super) one: Option<(u64, u64)>,
    pub(super) batch: &'a [u8],
}

impl Forgotten<'_> {
    /// Each forgotten node, and how many lookups it has less.
    pub fn nodes(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let batch = self.batch.chunks_exact(size_of::<uapi::fuse_forget_one>());
        let batch = batch.filter_map(uapi::parse::<uapi::fuse_forget_one>);
        self.one.into_iter().chain(batch.map(|it| (it.nodeid, it.nlookup)))
    }
}

/// Every request that this program answers, and `Other` for those it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// The first request of a session of FUSE.
    Init {
        /// The first half of the version that the kernel speaks.
        major: u32,
        /// The second half.
        minor: u32,
        /// The `FUSE_*` flags that the kernel has.
        flags: u64,
    },
    /// The first request of a session of CUSE.
    CuseInit {
        /// The first half of the version that the kernel speaks.
        major: u32,
        /// The second half.
        minor: u32,
        /// The `CUSE_*` flags that the kernel has.
        flags: u32,
    },
    /// Asks for the node of this name in the directory.
    Lookup {
        /// Without its NUL.
        name: &'a [u8],
    },
    /// The kernel forgets nodes that it has looked up. Not answered.
    Forget(Forgotten<'a>),
    /// stat.
    GetAttr,
    /// chmod, chown, touch or truncate.
    SetAttr(SetAttr),
    /// Asks where a symbolic link leads.
    ReadLink,
    /// A new symbolic link.
    Symlink {
        /// The name of the link; its target is not kept.
        name: &'a [u8],
    },
    /// A new file of any type but a link.
    Mknod {
        /// Type and permissions.
        mode: u32,
    },
    /// Removes a name.
    Unlink {
        /// Without its NUL.
        name: &'a [u8],
    },
    /// Gives a node another name.
    Rename {
        /// The old name.
        name: &'a [u8],
        /// The node of the directory that the new name is in.
        directory: u64,
        /// The new name.
        new_name: &'a [u8],
        /// `RENAME_*` of renameat2.
        flags: u32,
    },
    /// Opens a file.
    Open {
        /// `O_*`, without those that the kernel deals with.
        flags: u32,
    },
    /// Reads a file.
    Read {
        /// The handle of the open file.
        fh: u64,
        /// The offset to begin at, in bytes.
        offset: u64,
        /// The most that is wanted, in bytes.
        size: u32,
        /// For the page cache, and not for a read(2).
        for_cache: bool,
    },
    /// Writes a file. No file can be written.
    Write,
    /// statfs.
    StatFs,
    /// A descriptor of the file has been closed.
    Flush {
        /// The handle of the open file.
        fh: u64,
    },
    /// The last descriptor of the file has been closed.
    Release {
        /// The handle of the open file.
        fh: u64,
    },
    /// Opens a directory.
    OpenDir,
    /// The entries of a directory.
    ReadDir {
        /// The entry behind which to go on.
        offset: u64,
        /// The most that is wanted, in bytes.
        size: u32,
    },
    /// Closes a directory.
    ReleaseDir,
    /// An ioctl.
    Ioctl(Ioctl<'a>),
    /// Asks which of the events there are.
    Poll {
        /// The handle of the open file.
        fh: u64,
        /// The kernel's name for the open file in later notifications.
        handle: u64,
        /// The kernel wants to be told when there is more (`FUSE_POLL_SCHEDULE_NOTIFY`).
        notify: bool,
        /// The `POLL*` that are asked for.
        events: u32,
    },
    /// A signal has arrived for the caller of a request.
    Interrupt {
        /// The `unique` of that request.
        unique: u64,
    },
    /// The session ends.
    Destroy,
    /// A request that is refused with ENOSYS.
    Other {
        /// The opcode (`FUSE_*`).
        opcode: u32,
    },
}

/// A message that does not follow the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer bytes than a header has.
    #[error("{length} bytes are no request")]
    NoHeader {
        /// Bytes of the message.
        length: usize,
    },
    /// The length in the header is not the length of the message.
    #[error("the header says {claimed} bytes, {length} were read (opcode {opcode})")]
    Length {
        /// The kernel's name for the request.
        unique: u64,
        /// The opcode of the request.
        opcode: u32,
        /// The length in the header, in bytes.
        claimed: usize,
        /// Bytes of the message.
        length: usize,
    },
    /// The opcode needs a longer body.
    #[error("a request with opcode {opcode} is too short ({length} bytes)")]
    Short {
        /// The kernel's name for the request.
        unique: u64,
        /// The opcode of the request.
        opcode: u32,
        /// Bytes of the message.
        length: usize,
    },
    /// A name without its NUL.
    #[error("a name is not terminated (opcode {opcode})")]
    Name {
        /// The kernel's name for the request.
        unique: u64,
        /// The opcode of the request.
        opcode: u32,
    },
}

impl Malformed {
    /// The `unique` of the request to refuse, where so much of the message could be read.
    pub fn unique(&self) -> Option<u64> {
        match *self {
            Malformed::NoHeader { .. } => None,
            Malformed::Length { unique, .. }
            | Malformed::Short { unique, .. }
            | Malformed::Name { unique, .. } => (unique != 0).then_some(unique),
        }
    }
}
