//! `LD_PRELOAD=libfakebinder_preload.so program`: lets a program that knows nothing of fakebinder
//! use what the kernel cannot map: CUSE devices, and those of the FUSE door without passthrough.
//!
//! `mmap` is the only function replaced. When the kernel answers ENODEV for a character device, or
//! the file is such a one on the FUSE door, the attach handshake is tried; in all other cases the
//! program gets what the kernel said.

use fakebinder_client::{Errno, attach, must_attach};
use nix::sys::mman::{MapFlags, ProtFlags};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `mmap(2)`.
///
/// # Safety
/// As for mmap itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    // SAFETY: as above.
    unsafe { mmap64(address, length, prot, flags, fd, offset as libc::off64_t) }
}

/// The same with an offset of 64 bits in a 32-bit process too.
///
/// # Safety
/// As for mmap itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off64_t,
) -> *mut c_void {
    // A private mapping is what binder programs ask for, and what the kernel allows of any file.
    // SAFETY: if the number is no descriptor, the kernel says so.
    let useless = fd >= 0
        && flags & libc::MAP_PRIVATE != 0
        && must_attach(unsafe { BorrowedFd::borrow_raw(fd) });
    if !useless {
        // SAFETY: the caller's own call, passed on as it is.
        let result = unsafe { kernel_mmap(address, length, prot, flags, fd, offset) };
        if result != libc::MAP_FAILED || Errno::last() != Errno::ENODEV {
            return result;
        }
    }
    let errno = match attached(length, prot, flags, fd, offset) {
        Ok(start) => return start,
        Err(errno) => errno,
    };
    errno.set();
    libc::MAP_FAILED
}

/// The system call. A 64-bit process has the one that takes the offset in bytes, a 32-bit process
/// the one that takes it in units of 4096.
///
/// # Safety
/// As for mmap itself.
unsafe fn kernel_mmap(
    address: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off64_t,
) -> *mut c_void {
    #[cfg(target_pointer_width = "64")]
    let (number, offset) = (libc::SYS_mmap, offset);
    #[cfg(target_pointer_width = "32")]
    let (number, offset) = {
        const UNIT: libc::off64_t = 4096;
        let Ok(units) = libc::c_ulong::try_from(offset / UNIT) else {
            Errno::EOVERFLOW.set();
            return libc::MAP_FAILED;
        };
        if offset % UNIT != 0 {
            Errno::EINVAL.set();
            return libc::MAP_FAILED;
        }
        (libc::SYS_mmap2, units)
    };
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(number, address, length, prot, flags, fd, offset) };
    std::ptr::without_provenance_mut(result as usize)
}

/// The handshake's mapping, for the program to keep. ENODEV: the file is not ours, or it is to be
/// mapped in a way that only the kernel could.
fn attached(
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> Result<*mut c_void, Errno> {
    if fd < 0 || offset != 0 || flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0 {
        return Err(Errno::ENODEV);
    }
    // SAFETY: the kernel has just looked the descriptor up, and the program waits in this call.
    let device = unsafe { BorrowedFd::borrow_raw(fd) };
    if !is_character_device(device)? && !must_attach(device) {
        return Err(Errno::ENODEV);
    }
    let prot = ProtFlags::from_bits_retain(prot);
    let mapping = attach(device, length, prot, MapFlags::from_bits_retain(flags))?;
    Ok(mapping.into_raw())
}

/// Not by `fstat`, which fails in a 32-bit process where an inode's number is larger (EOVERFLOW).
fn is_character_device(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut status = MaybeUninit::<libc::stat64>::uninit();
    // SAFETY: the kernel fills the structure, or fails.
    Errno::result(unsafe { libc::fstat64(file.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: it has not failed.
    let status = unsafe { status.assume_init() };
    Ok(status.st_mode & libc::S_IFMT == libc::S_IFCHR)
}
