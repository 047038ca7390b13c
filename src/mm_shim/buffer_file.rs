//! The buffer file of an open of a device: a memfd, whose pages are the installed ones.

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
#[derive(Debug)]
pub struct BufferFile {
    /// For us.
    pub memfd: OwnedFd,
    /// For the client, or for the kernel to pass mappings through to.
    pub read_only: OwnedFd,
}

/// A buffer file of 4 MiB without pages, whose size and seals are final, and which nobody
/// unprivileged can reopen for writing.
///
/// Not sealed against future writes: that seal would keep us from punching holes too (EPERM).
pub fn create_memfd(name: &str) -> Result<BufferFile, Errno> {
    fault(Verb::Descriptor)?;
    // memfd_create takes 249 bytes; the name is for who reads /proc/PID/maps.
    let name: String = name.chars().take(60).collect();
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Linux 6.3 has a flag against executing it, and complains in its log when neither is given.
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
    Ok(BufferFile { memfd, read_only })
}
