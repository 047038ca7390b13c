//! `LD_PRELOAD=libfakebinder_preload.so program`: lets a program that knows nothing of fakebinder
//! use what the kernel cannot map: CUSE devices, and those of the FUSE door without passthrough.
//!
//! `mmap` is the only function replaced. When the kernel answers ENODEV for a character device, or
//! the file is such a one on the FUSE door, the attach handshake is tried; in all other cases the
//! program gets what the kernel said.

use fakebinder_client::{Errno, attach, must_attach};
use nix::sys::mman::{MapFlags, ProtFlags};
use std::ffi::{c_int, c_long, c_void};
use std::os::fd::BorrowedFd;

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
    // A private mapping is what binder programs ask for, and what the kernel allows of any file.
    // SAFETY: if the number is no descriptor, the kernel says so.
    let useless = fd >= 0
        && flags & libc::MAP_PRIVATE != 0
        && must_attach(unsafe { BorrowedFd::borrow_raw(fd) });
    if !useless {
        // SAFETY: the caller's own call, passed on as it is.
        let result = unsafe {
            libc::syscall(libc::SYS_mmap, address, length, prot, flags, fd, offset as c_long)
        };
        if result != -1 || Errno::last() != Errno::ENODEV {
            return std::ptr::without_provenance_mut(result as usize);
        }
    }
    let errno = match attached(length, prot, flags, fd, offset) {
        Ok(start) => return start,
        Err(errno) => errno,
    };
    errno.set();
    libc::MAP_FAILED
}

/// The same function by its other name.
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
    // SAFETY: as above.
    unsafe { mmap(address, length, prot, flags, fd, offset) }
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
    let mode = nix::sys::stat::fstat(device)?.st_mode;
    if mode & libc::S_IFMT != libc::S_IFCHR && !must_attach(device) {
        return Err(Errno::ENODEV);
    }
    let prot = ProtFlags::from_bits_retain(prot);
    let mapping = attach(device, length, prot, MapFlags::from_bits_retain(flags))?;
    Ok(mapping.into_raw())
}
