//! Ioctls whose argument the driver does not look at.
//!
//! On the FUSE door the kernel copies an ioctl's argument by itself, and fails with EFAULT when it
//! cannot, before the daemon is asked. The driver looks at the argument later, or not at all. So
//! once the kernel has refused the program's own call, this module does what the driver would have
//! done.

use crate::next;
use fakebinder_client::{Errno, kernel_copies_arguments, uapi};
use std::ffi::{c_int, c_ulong, c_void};
use std::os::fd::BorrowedFd;

/// The result that the driver has for an ioctl which the kernel has refused with EFAULT; none when
/// EFAULT is the driver's own answer.
///
/// # Safety
/// `fd` must stay open in this call.
pub(crate) unsafe fn instead_of_efault(fd: c_int, request: c_ulong) -> Option<c_int> {
    let command = request as u32;
    let answer = match command {
        // The driver ignores the argument: libbinder gives BINDER_THREAD_EXIT none, nor do old
        // service managers give one to BINDER_SET_CONTEXT_MGR.
        uapi::BINDER_THREAD_EXIT | uapi::BINDER_SET_CONTEXT_MGR => Answer::DoIt,
        // The driver clears the thread's error even if the pointer turns out to be bad.
        uapi::BINDER_GET_EXTENDED_ERROR => Answer::DoItAndFail,
        uapi::BINDER_VERSION | uapi::BINDER_SET_MAX_THREADS | uapi::BINDER_SET_CONTEXT_MGR_EXT => {
            Answer::Einval
        }
        _ => return None,
    };
    // SAFETY: the kernel has just looked up the descriptor, and the caller keeps it open.
    let device = unsafe { BorrowedFd::borrow_raw(fd) };
    if !kernel_copies_arguments(device) {
        return None;
    }
    match answer {
        Answer::Einval => fail(Errno::EINVAL),
        Answer::DoIt => Some(do_it(fd, request)),
        Answer::DoItAndFail => {
            do_it(fd, request);
            fail(Errno::EFAULT)
        }
    }
}

enum Answer {
    DoIt,
    DoItAndFail,
    Einval,
}

fn fail(errno: Errno) -> Option<c_int> {
    errno.set();
    Some(-1)
}

/// The same ioctl with an argument.
fn do_it(fd: c_int, request: c_ulong) -> c_int {
    let mut argument = uapi::binder_extended_error::default();
    let argument: *mut uapi::binder_extended_error = &mut argument;
    // SAFETY: the argument is the largest that these ioctls have, and only integers.
    unsafe { next::ioctl(fd, request, argument.cast::<c_void>()) }
}
