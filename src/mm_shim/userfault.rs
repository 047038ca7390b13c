//! One userfaultfd for the daemon's mappings of all clients' buffer files.
//!
//! Registered for missing pages, such a mapping never gets a page by being touched, and
//! `UFFDIO_ZEROPAGE` adds one atomically: EEXIST when it is there. It is opened for user-mode
//! faults only, which needs no privilege; a system call that comes to an empty page gets EFAULT.
//!
//! The daemon's own loads and stores go to installed pages only. Should one meet a hole after all
//! (a privileged client has punched it), a thread fills the hole, so that nobody waits for ever.

use crate::Errno;
use crate::client_log::{Kind, client_log};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::{io, mem, thread};

use super::PAGE_SIZE;

const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;

#[repr(C)]
#[derive(Default)]
pub struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
pub struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
pub struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
pub struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

/// `struct uffd_msg`, as a page fault fills it.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct UffdMsg {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, UffdioApi);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, UffdioRegister);
nix::ioctl_read!(uffdio_wake, 0xaa, 0x02, UffdioRange);
nix::ioctl_readwrite!(uffdio_zeropage, 0xaa, 0x04, UffdioZeropage);

#[derive(Debug)]
pub(super) struct Userfault(OwnedFd);

impl Userfault {
    /// The daemon's userfaultfd; `None` where the kernel has none or does not allow it (a
    /// container's seccomp filter), which is logged once.
    pub(super) fn get() -> Option<&'static Userfault> {
        static USERFAULT: OnceLock<Option<Userfault>> = OnceLock::new();
        let get = || {
            Userfault::open()
                .inspect_err(|e| {
                    log::info!("no userfaultfd ({e}): pages are added by writing zeros")
                })
                .ok()
        };
        let userfault = USERFAULT.get_or_init(get).as_ref()?;
        static RESOLVER: OnceLock<bool> = OnceLock::new();
        let running = *RESOLVER.get_or_init(|| {
            let thread = thread::Builder::new().name("userfault".into());
            thread.spawn(move || userfault.resolve_stray_faults()).is_ok()
        });
        running.then_some(userfault)
    }

    fn open() -> io::Result<Userfault> {
        let flags = libc::O_CLOEXEC | UFFD_USER_MODE_ONLY;
        // SAFETY: takes no pointer and returns a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made the descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let mut api = UffdioApi { api: UFFD_API, features: UFFD_FEATURE_MISSING_SHMEM, ioctls: 0 };
        // SAFETY: the argument is of the ioctl's type and outlives the call.
        unsafe { uffdio_api(fd.as_raw_fd(), &mut api) }?;
        Ok(Userfault(fd))
    }

    /// From now on touching a missing page of the range makes none.
    pub(super) fn register(&self, start: *mut u8, len: usize) -> Result<(), Errno> {
        let range = UffdioRange { start: start as u64, len: len as u64 };
        let mut register = UffdioRegister { range, mode: UFFDIO_REGISTER_MODE_MISSING, ioctls: 0 };
        // SAFETY: the argument is of the ioctl's type and outlives the call.
        unsafe { uffdio_register(self.0.as_raw_fd(), &mut register) }?;
        Ok(())
    }

    /// Adds a page of zeros at `address`. EEXIST: there is one.
    pub(super) fn zeropage(&self, address: u64) -> Result<(), Errno> {
        loop {
            let range = UffdioRange { start: address, len: PAGE_SIZE as u64 };
            let mut zeropage = UffdioZeropage { range, mode: 0, zeropage: 0 };
            // SAFETY: the argument is of the ioctl's type and outlives the call.
            match unsafe { uffdio_zeropage(self.0.as_raw_fd(), &mut zeropage) } {
                // The kernel was changing the daemon's mappings; nothing was done.
                Err(Errno::EAGAIN) => thread::yield_now(),
                other => return other.map(drop),
            }
        }
    }

    fn wake(&self, address: u64) {
        let mut range = UffdioRange { start: address, len: PAGE_SIZE as u64 };
        // SAFETY: the argument is of the ioctl's type and outlives the call.
        let _ = unsafe { uffdio_wake(self.0.as_raw_fd(), &mut range) };
    }

    fn resolve_stray_faults(&self) {
        crate::sync::block_signals();
        loop {
            let mut message = UffdMsg::default();
            let len = mem::size_of::<UffdMsg>();
            // SAFETY: the buffer is as long as told, and any bytes are a valid message.
            let got = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut message).cast(), len) };
            if got != len as isize || message.event != UFFD_EVENT_PAGEFAULT {
                continue;
            }
            let address = message.address & !(PAGE_SIZE as u64 - 1);
            client_log!(
                Kind::HolePunched,
                "a page of a buffer was gone while in use: somebody has punched a hole into the file"
            );
            while let Err(errno) = self.zeropage(address) {
                if errno != Errno::ENOMEM {
                    break;
                }
                thread::sleep(std::time::Duration::from_millis(10));
            }
            self.wake(address);
        }
    }
}
