//! The functions behind those that this library defines.

use std::ffi::{CStr, c_int, c_long, c_ulong, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

pub(crate) type Ioctl = unsafe extern "C" fn(c_int, c_ulong, *mut c_void) -> c_int;
pub(crate) type Syscall =
    unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

/// The function of that name in the libraries after this one: the C library's, or that of another
/// preloaded library.
pub(crate) struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

pub(crate) static IOCTL: Next = Next::new(c"ioctl");
pub(crate) static SYSCALL: Next = Next::new(c"syscall");

impl Next {
    const fn new(name: &'static CStr) -> Next {
        Next { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// The function's address. Found without a lock or an allocation, since it may be wanted at any
    /// time: before `main`, in a signal's handler, after fork.
    fn address(&self) -> *mut c_void {
        let found = self.found.load(Ordering::Relaxed);
        if !found.is_null() {
            return found;
        }
        // SAFETY: the name ends with a NUL.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        // Without the function in the C library the program would not have started.
        if found.is_null() {
            std::process::abort();
        }
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

/// `ioctl(2)`, as if this library were not there.
///
/// # Safety
/// As for ioctl itself.
pub(crate) unsafe fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the C library's function has this form: its only argument without a type is passed
    // like a pointer.
    let next: Ioctl = unsafe { std::mem::transmute(IOCTL.address()) };
    // SAFETY: the caller's own call.
    unsafe { next(fd, request, argument) }
}

/// `syscall(2)`, as if this library were not there.
///
/// # Safety
/// As for syscall itself.
pub(crate) unsafe fn syscall(number: c_long, arguments: [c_long; 6]) -> c_long {
    // SAFETY: the C library's function takes so many integers, each passed as a long.
    let next: Syscall = unsafe { std::mem::transmute(SYSCALL.address()) };
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller's own call.
    unsafe { next(number, a, b, c, d, e, f) }
}
