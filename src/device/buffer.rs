//! The file behind a client's buffer, and the mm that the allocator gets for it.

use super::client::Client;
use crate::mm_shim::Mm;
use crate::{Errno, mm_shim};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// The most that a client may map, and so the size of its buffer's file (as in the driver).
pub const MAX_SIZE: usize = 4 << 20;

/// How the client's mapping of its buffer is known among its other mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingKind {
    /// It maps the opened file itself; `dev` as stat gives it.
    FuseFile { dev: u64, ino: u64 },
    /// It maps the descriptor that the attach handshake has brought.
    Memfd,
}

pub struct BufferFile {
    pub memfd: OwnedFd,
    pub read_only: OwnedFd,
}

/// A new buffer of [`MAX_SIZE`] bytes, none of them there yet.
pub fn create(name: &str) -> Result<BufferFile, Errno> {
    let memfd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    nix::unistd::ftruncate(&memfd, MAX_SIZE as i64)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals))?;
    let own = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let read_only = open(own.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    // A client could open it again for writing through its own /proc/self/fd.
    fchmod(&memfd, Mode::empty())?;
    Ok(BufferFile { memfd, read_only })
}

struct Unmapped;

impl mm_shim::Mm for Unmapped {
    fn find_mapping(&self) -> Result<(u64, usize), Errno> {
        Err(Errno::ESRCH)
    }
}

/// The mm of a client, whose buffer is `memfd`.
pub fn client_mm(_: &Client, _memfd: OwnedFd, _: MappingKind) -> Result<Arc<dyn Mm>, Errno> {
    Ok(Arc::new(Unmapped))
}

/// The length of the mapping of this buffer that starts at `address` in the client. EINVAL: there is none; EPERM:
/// it is writable, or can be made so.
pub fn mapping_at(
    pid: i32,
    memfd: &OwnedFd,
    kind: MappingKind,
    address: u64,
) -> Result<u64, Errno> {
    let (dev, ino) = match kind {
        MappingKind::FuseFile { dev, ino } => (dev, ino),
        MappingKind::Memfd => {
            let stat = nix::sys::stat::fstat(memfd)?;
            (stat.st_dev, stat.st_ino)
        }
    };
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|_| Errno::EINVAL)?;
    let mapping = maps
        .lines()
        .filter_map(Line::parse)
        .find(|line| line.start == address)
        .ok_or(Errno::EINVAL)?;
    if (mapping.dev, mapping.ino, mapping.offset) != (dev, ino, 0) {
        return Err(Errno::EINVAL);
    }
    if mapping.writable {
        return Err(Errno::EPERM);
    }
    Ok(mapping.end - mapping.start)
}

/// A line of `/proc/PID/maps`.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    start: u64,
    end: u64,
    writable: bool,
    offset: u64,
    dev: u64,
    ino: u64,
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let offset = fields.next()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
        Some(Line {
            start: hex(start)?,
            end: hex(end)?,
            writable: permissions.contains('w'),
            offset: hex(offset)?,
            dev: nix::sys::stat::makedev(hex(major)?, hex(minor)?),
            ino: fields.next()?.parse().ok()?,
        })
    }
}
