//! System calls and mapped memory: all of this crate's unsafe code.

use crate::Errno;
use crate::device::Device;
use crate::uapi;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use zerocopy::{FromBytes, IntoBytes};

/// An ioctl whose argument is `arg`, which holds no pointers.
pub(crate) fn ioctl<T: FromBytes + IntoBytes>(
    fd: BorrowedFd<'_>,
    cmd: u32,
    arg: &mut T,
) -> Result<i32, Errno> {
    assert!(uapi::ioc_size(cmd) <= size_of::<T>() && cmd != uapi::BINDER_WRITE_READ);
    let arg: *mut T = arg;
    // SAFETY: the kernel touches no more than _IOC_SIZE(cmd) bytes, which `arg` has, and any
    // bytes are a valid T.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), cmd.into(), arg) })
}

/// Whether a file lies in a FUSE file system.
pub(crate) fn is_fuse(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(nix::sys::statfs::fstatfs(fd)?.filesystem_type() == nix::sys::statfs::FUSE_SUPER_MAGIC)
}

/// Lets a process and its children trace this one, where Yama asks for that. EINVAL: there is no
/// Yama, or no such process.
pub(crate) fn let_trace(pid: i32) -> Result<(), Errno> {
    let pid = libc::c_ulong::try_from(pid).ok().filter(|pid| *pid != 0).ok_or(Errno::EINVAL)?;
    // SAFETY: a number is all that it takes. (0 would take back what was allowed before.)
    Errno::result(unsafe { libc::prctl(libc::PR_SET_PTRACER, pid, 0, 0, 0) }).map(drop)
}

/// `BINDER_WRITE_READ` with whole buffers. The consumed counts come back on errors too.
pub(crate) fn write_read(
    fd: BorrowedFd<'_>,
    write: &[u8],
    read: &mut [u8],
) -> (u64, u64, Result<i32, Errno>) {
    let mut arg = uapi::binder_write_read {
        write_size: write.len() as u64,
        write_consumed: 0,
        write_buffer: write.as_ptr().expose_provenance() as u64,
        read_size: read.len() as u64,
        read_consumed: 0,
        read_buffer: read.as_mut_ptr().expose_provenance() as u64,
    };
    let pointer: *mut uapi::binder_write_read = &mut arg;
    // SAFETY: the driver reads `write`, fills `read` and updates `arg`: all three are borrowed
    // for the call, and the latter two exclusively.
    let result = Errno::result(unsafe {
        libc::ioctl(fd.as_raw_fd(), uapi::BINDER_WRITE_READ.into(), pointer)
    });
    (arg.write_consumed, arg.read_consumed, result)
}

impl Device {
    /// Any ioctl with any pointer, wrong ones included (for tests). Returns what the ioctl does.
    ///
    /// # Safety
    /// What the kernel writes to `arg`, and to pointers inside it, must be memory that the caller
    /// may let it write to (or not memory at all: then EFAULT).
    pub unsafe fn raw_ioctl(&self, cmd: u32, arg: *mut c_void) -> Result<i32, Errno> {
        // SAFETY: the caller's promise.
        Errno::result(unsafe { libc::ioctl(self.as_fd().as_raw_fd(), cmd.into(), arg) })
    }

    /// `BINDER_WRITE_READ` with the struct as it is, wrong pointers included (for tests). The
    /// consumed counts are updated on errors too.
    ///
    /// # Safety
    /// `read_buffer..read_buffer + read_size` must be memory that the caller may let the driver
    /// write to (or not memory at all: then EFAULT).
    pub unsafe fn raw_write_read(&self, arg: &mut uapi::binder_write_read) -> Result<(), Errno> {
        let pointer: *mut uapi::binder_write_read = arg;
        // SAFETY: the caller's promise.
        unsafe { self.raw_ioctl(uapi::BINDER_WRITE_READ, pointer.cast()) }.map(drop)
    }
}

/// A mapping of this library's; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: the region is only ever read, byte by byte, and unmapped by its one owner.
unsafe impl Send for Region {}
// SAFETY: as above; reads from several threads do not disturb each other.
unsafe impl Sync for Region {}

impl Region {
    /// A new mapping of the file, at an address of the kernel's choice.
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        len: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<Region, Errno> {
        let len = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        // SAFETY: without MAP_FIXED a new mapping covers no memory that is in use.
        let start =
            unsafe { nix::sys::mman::mmap(None, len, prot, flags - MapFlags::MAP_FIXED, fd, 0) }?;
        Ok(Region { start, len })
    }

    /// Keeps the mapping from being inherited by a child.
    pub(crate) fn do_not_inherit(&self) -> Result<(), Errno> {
        // SAFETY: the mapping is this value's, and its contents stay as they are.
        unsafe { madvise(self.start, self.len(), MmapAdvise::MADV_DONTFORK) }
    }

    pub(crate) fn into_raw(self) -> *mut c_void {
        std::mem::ManuallyDrop::new(self).start.as_ptr()
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    /// Copies from `offset` on; `None` when the range does not lie inside. The driver may be
    /// writing there: the bytes are then any mixture of old and new.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Option<()> {
        let end = offset.checked_add(out.len())?;
        if end > self.len() {
            return None;
        }
        // SAFETY: the range is inside the mapping, which lives as long as `self`; no Rust
        // reference ever covers it, and the copy is a plain memory read that tolerates changes.
        unsafe {
            let from = self.start.as_ptr().cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len());
        }
        Some(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `map` made exactly this mapping, and nothing refers to it any more.
        // An error could only mean that there is no such mapping: nothing is to be done then.
        let _ = unsafe { nix::sys::mman::munmap(self.start, self.len()) };
    }
}

/// Takes over a descriptor that the kernel has just installed here (SCM_RIGHTS).
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: only called with numbers out of a received SCM_RIGHTS message: open, and owned by
    // nothing else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
