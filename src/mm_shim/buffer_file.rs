//! The buffer file of an open file: a memfd, whose pages are the installed ones.

use crate::Errno;
use crate::page::MAX_BUFFER_SIZE;
use crate::probe::{Verb, fault};
use nix::fcntl::{self, FcntlArg, OFlag, SealFlag};
use nix::sys::memfd::{self, MFdFlags};
use nix::sys::stat::{self, Mode};
use nix::unistd;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

/// A buffer file, as [`create_memfd`] makes it.
pub struct BufferFile {
    /// The descriptor of the daemon, for writing.
    pub memfd: OwnedFd,
    /// The descriptor for the client, or for the kernel's passthrough.
    pub read_only: OwnedFd,
    /// Where else its bytes are to be, if the client maps something else.
    pub cache: Option<Box<dyn PageCache>>,
}

/// The kernel's page cache of a file that shows a buffer, and is not the buffer file.
pub trait PageCache: Send + Sync {
    /// Has these bytes in the page cache, at an offset of whole pages. ENOMEM: there is no page for
    /// them.
    fn store(&self, offset: usize, from: *const u8, len: usize) -> Result<(), Errno>;

    /// A page is gone, and is to go from the page cache soon. Called under the locks of the mm and
    /// its allocator.
    fn zapped(&self, page: usize);
}

/// A buffer file of 4 MiB without pages. Its size and seals are final, and no unprivileged process
/// can reopen it for writing.
///
/// It is not sealed against future writes: that seal would keep the daemon from punching holes too
/// (EPERM).
pub fn create_memfd(name: &str) -> Result<BufferFile, Errno> {
    fault(Verb::Descriptor)?;
    // memfd_create takes 249 bytes; the name is for people who read /proc/PID/maps.
    let name: String = name.chars().take(60).collect();
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Linux 6.3 has flags about executing the file, and complains in its log when none is given.
    let noexec = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let memfd = match memfd::memfd_create(name.as_c_str(), flags | noexec) {
        Err(Errno::EINVAL) => memfd::memfd_create(name.as_c_str(), flags)?,
        other => other?,
    };
    unistd::ftruncate(&memfd, MAX_BUFFER_SIZE as libc::off_t)?;
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let read_only = fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    stat::fchmod(&memfd, Mode::empty())?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl::fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(BufferFile { memfd, read_only, cache: None })
}
