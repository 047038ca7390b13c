//! `LD_PRELOAD=libfakebinder_preload.so program`: lets a program that knows nothing of fakebinder
//! use devices that the kernel cannot map: those of the CUSE door, and those of the FUSE door
//! without passthrough.
//!
//! - `mmap`: the attach handshake is tried when the kernel answers ENODEV for a character device,
//!   and for files on the FUSE door without passthrough. A mapping that the kernel makes on the
//!   FUSE door without asking the daemon is checked as the driver does (not writable, not another
//!   process's, not inherited by a child);
//! - `ioctl`: when the kernel answers EFAULT on the FUSE door, the program gets the driver's answer
//!   (`argument`);
//! - `syscall`, for programs that make these two calls through it.
//!
//! In all other cases the program gets the kernel's answer, and other files are left alone. There
//! is no state and no lock here: what a program may do with these functions (before `main`, in
//! several threads, in a signal's handler, after fork) it may still do. The C library is all that is
//! needed, and it may be the program's own: glibc, or in 64-bit programs musl (`build.rs`).

#[cfg(without_libgcc_s)]
mod abort;
mod argument;
mod next;

use fakebinder_client::{Errno, KernelMapping, attach, kernel_mapping, must_attach};
use nix::sys::mman::{MapFlags, ProtFlags};
use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `ioctl(2)`. In C its last argument has no type and may be left out; either way it is passed like
/// this one.
///
/// # Safety
/// As for ioctl itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's own call, passed on as it is.
    let result = unsafe { next::ioctl(fd, request, argument) };
    if result != -1 || Errno::last() != Errno::EFAULT {
        return result;
    }
    // SAFETY: the program waits in this call.
    let answer = unsafe { argument::instead_of_efault(fd, request) };
    answer.unwrap_or_else(|| {
        Errno::EFAULT.set();
        -1
    })
}

/// `syscall(2)`. In C it takes as many arguments as the system call; surplus ones are not looked
/// at.
///
/// # Safety
/// As for the system call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    match number {
        libc::SYS_ioctl => {
            let argument = std::ptr::without_provenance_mut(c as usize);
            // SAFETY: the caller's own call; the kernel takes the lower half of these two as well.
            unsafe { ioctl(a as c_int, b as c_ulong, argument) }.into()
        }
        MMAP => {
            let address = std::ptr::without_provenance_mut(a as usize);
            let (length, prot, flags, fd) = (b as usize, c as c_int, d as c_int, e as c_int);
            // SAFETY: as above.
            unsafe { map(address, length, prot, flags, fd, from_units(f)) }.addr() as c_long
        }
        // SAFETY: the caller's own call, passed on as it is.
        _ => unsafe { next::syscall(number, [a, b, c, d, e, f]) },
    }
}

/// `mmap(2)`.
///
/// # Safety
/// As for mmap itself.
#[unsafe(no_mangle)]
#[allow(clippy::useless_conversion, reason = "the offset is shorter on 32-bit machines")]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    // SAFETY: the caller's own call.
    unsafe { map(address, length, prot, flags, fd, offset.into()) }
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
    // SAFETY: the caller's own call.
    unsafe { map(address, length, prot, flags, fd, offset) }
}

/// The system call. Its offset is in bytes.
#[cfg(target_pointer_width = "64")]
const MMAP: c_long = libc::SYS_mmap;

#[cfg(target_pointer_width = "64")]
fn in_units(offset: i64) -> Option<c_long> {
    Some(offset)
}

#[cfg(target_pointer_width = "64")]
fn from_units(offset: c_long) -> i64 {
    offset
}

/// The system call. Its offset is in units of 4096 bytes.
#[cfg(target_pointer_width = "32")]
const MMAP: c_long = libc::SYS_mmap2;

#[cfg(target_pointer_width = "32")]
fn in_units(offset: i64) -> Option<c_long> {
    (offset % 4096 == 0).then(|| c_long::try_from(offset / 4096).ok()).flatten()
}

#[cfg(target_pointer_width = "32")]
fn from_units(offset: c_long) -> i64 {
    i64::from(offset) * 4096
}

/// # Safety
/// As for mmap itself.
unsafe fn map(
    address: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    let kind = if fd >= 0 && flags & libc::MAP_ANONYMOUS == 0 {
        // SAFETY: if the number is no descriptor, the kernel says so.
        kernel_mapping(unsafe { BorrowedFd::borrow_raw(fd) })
    } else {
        KernelMapping::Right
    };
    // The checks of the driver's mmap.
    let refused = match kind {
        KernelMapping::Right => None,
        KernelMapping::Strange => Some(Errno::EINVAL),
        KernelMapping::Unchecked | KernelMapping::Copied => {
            (prot & libc::PROT_WRITE != 0).then_some(Errno::EPERM)
        }
    };
    if let Some(errno) = refused {
        errno.set();
        return libc::MAP_FAILED;
    }
    // Binder programs ask for a private mapping, which the kernel allows of any file.
    if kind != KernelMapping::Copied || flags & libc::MAP_PRIVATE == 0 {
        let Some(offset) = in_units(offset) else {
            Errno::EINVAL.set();
            return libc::MAP_FAILED;
        };
        let call = [
            address.expose_provenance() as c_long,
            length as c_long,
            prot.into(),
            flags.into(),
            fd.into(),
            offset,
        ];
        // SAFETY: the caller's own call, passed on as it is.
        let result = unsafe { next::syscall(MMAP, call) };
        if result != -1 || Errno::last() != Errno::ENODEV {
            let start = std::ptr::with_exposed_provenance_mut(result as usize);
            if kind == KernelMapping::Unchecked && start != libc::MAP_FAILED {
                // VM_DONTCOPY, as in the driver: a child does not get the mapping.
                // SAFETY: the kernel has just made this mapping; its contents stay as they are.
                unsafe { libc::madvise(start, length, libc::MADV_DONTFORK) };
            }
            return start;
        }
    }
    match attached(length, prot, flags, fd, offset) {
        Ok(start) => start,
        Err(errno) => {
            errno.set();
            libc::MAP_FAILED
        }
    }
}

/// The handshake's mapping, for the program to keep. ENODEV: the file is not fakebinder's, or it is
/// to be mapped in a way that only the kernel can.
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
