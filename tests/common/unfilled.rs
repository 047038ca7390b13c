//! Memory that blocks whoever looks at it.

use fakebinder::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Pages that nobody fills until this is dropped: who reads them waits.
pub struct Unfilled {
    userfault: Option<OwnedFd>,
    start: *mut libc::c_void,
}

// SAFETY: nothing here is looked at but by the kernel.
unsafe impl Send for Unfilled {}
// SAFETY: as above.
unsafe impl Sync for Unfilled {}

impl Unfilled {
    pub const SIZE: usize = 4096;

    pub fn new() -> Unfilled {
        const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
        const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
        // SAFETY: a new descriptor, a new mapping, and two structures that live through their
        // calls.
        unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
            let fd = OwnedFd::from_raw_fd(Errno::result(fd).unwrap() as i32);
            let start = libc::mmap(
                std::ptr::null_mut(),
                Self::SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(start, libc::MAP_FAILED);
            let mut api = [0xaau64, 0, 0];
            Errno::result(libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr())).unwrap();
            let mut register = [start as u64, Self::SIZE as u64, 1, 0];
            let registered = libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr());
            Errno::result(registered).unwrap();
            Unfilled { userfault: Some(fd), start }
        }
    }

    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// Gives it a page of zeros: it is memory like any other, until that is [taken
    /// away](Unfilled::take_away).
    pub fn provide(&self) {
        const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
        let userfault = self.userfault.as_ref().expect("it is not filled");
        let mut zeropage = [self.start as u64, Self::SIZE as u64, 0, 0];
        // SAFETY: a structure that lives through the call.
        let done =
            unsafe { libc::ioctl(userfault.as_raw_fd(), UFFDIO_ZEROPAGE, zeropage.as_mut_ptr()) };
        Errno::result(done).unwrap();
    }

    /// Takes the page away: who looks at the memory waits again.
    pub fn take_away(&self) {
        // SAFETY: our own mapping, whose contents nobody relies on.
        let done = unsafe { libc::madvise(self.start, Self::SIZE, libc::MADV_DONTNEED) };
        Errno::result(done).unwrap();
    }

    /// Without its descriptor it is memory like any other, and reads as zeros.
    pub fn fill(&mut self) {
        self.userfault = None;
    }
}

impl Drop for Unfilled {
    fn drop(&mut self) {
        self.fill();
        // SAFETY: our own mapping, which is not used any more.
        unsafe { libc::munmap(self.start, Self::SIZE) };
    }
}
