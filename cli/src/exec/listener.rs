//! The descriptor by which the kernel tells of system calls, and what can be done about each.

use super::Error;
use super::filter::Call;
use libc::{seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp, seccomp_notif_sizes};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (Linux 6.6): who waits is woken on the core of the waker.
const SYNC_WAKE_UP: u64 = 1;

/// The filter's listener.
pub struct Listener {
    descriptor: OwnedFd,
    /// What the kernel writes of a call, in words of 8 bytes: newer kernels may write more than
    /// this program knows.
    words: usize,
}

/// A system call of a thread, which waits in it. If this is dropped, the call goes on.
pub struct Waiting {
    listener: Arc<Listener>,
    id: u64,
    /// The thread, in this process's pid namespace.
    pub tid: i32,
    pub call: Call,
    answered: bool,
}

fn sizes() -> Result<seccomp_notif_sizes, Errno> {
    let mut sizes =
        seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
    // SAFETY: the kernel fills the structure.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, &raw mut sizes)
    };
    Errno::result(result).map(|_| sizes)
}

/// Whether a listener can be had, as far as that shows before.
pub fn check_kernel() -> Result<(), Error> {
    match sizes() {
        Ok(_) => Ok(()),
        Err(Errno::EPERM | Errno::EACCES) => Err(Error::Refused(Errno::EPERM)),
        Err(_) => Err(Error::NoNotification),
    }
}

impl Listener {
    pub fn new(descriptor: OwnedFd) -> Result<Listener, Error> {
        let sizes = sizes().map_err(Error::Supervisor)?;
        let length = usize::from(sizes.seccomp_notif).max(size_of::<seccomp_notif>());
        // SAFETY: takes a number.
        let _ = unsafe {
            libc::ioctl(descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP)
        };
        Ok(Listener { descriptor, words: length.div_ceil(8) })
    }

    /// The next call that waits; none if its thread was killed meanwhile.
    pub fn receive(self: &Arc<Self>) -> Result<Option<Waiting>, Errno> {
        // The kernel wants zeros.
        let mut buffer = vec![0u64; self.words];
        let told = buffer.as_mut_ptr().cast::<seccomp_notif>();
        // SAFETY: the buffer is as long as the kernel has said that it writes.
        let received = unsafe {
            libc::ioctl(self.descriptor.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, told)
        };
        match Errno::result(received) {
            Ok(_) => {}
            Err(Errno::ENOENT | Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        // SAFETY: the buffer holds at least this structure, suitably aligned, and any bytes are a
        // valid one.
        let told = unsafe { *told };
        let unknown = Call::Ioctl { fd: -1, command: 0, argument: 0 };
        let call = Call::of(&told.data).unwrap_or(unknown);
        let listener = self.clone();
        Ok(Some(Waiting { listener, id: told.id, tid: told.pid as i32, call, answered: false }))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Waiting {
    /// Whether the thread still waits: what was found out about it before was about it, and not
    /// about another thread that has its number now.
    pub fn is_there(&self) -> bool {
        // SAFETY: the kernel reads a number of 8 bytes.
        let result = unsafe {
            libc::ioctl(
                self.listener.descriptor.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_ID_VALID,
                &raw const self.id,
            )
        };
        result == 0
    }

    /// The kernel carries the call out.
    pub fn go_on(self) {
        drop(self);
    }

    /// The call has this result, and the kernel does nothing for it.
    pub fn end(mut self, result: Result<i64, Errno>) {
        let (val, error) = result.map_or_else(|errno| (0, -(errno as i32)), |value| (value, 0));
        self.send(val, error, 0);
    }

    fn send(&mut self, val: i64, error: i32, flags: u32) {
        if std::mem::replace(&mut self.answered, true) {
            return;
        }
        let mut answer = seccomp_notif_resp { id: self.id, val, error, flags };
        // An error means that the thread has been killed, or, before Linux 5.19, has been
        // interrupted by a signal: then it makes the call again, or its program does.
        // SAFETY: the kernel reads the structure.
        unsafe {
            libc::ioctl(
                self.listener.descriptor.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw mut answer,
            )
        };
    }

    /// Adds a descriptor to the thread's process, close-on-exec: at the lowest free number, or in
    /// the place of the one at `number`. Returns its number. EMFILE: none is free; ENOENT: the
    /// thread is gone.
    pub fn add(&self, file: BorrowedFd<'_>, number: Option<i32>) -> Result<i32, Errno> {
        let add = seccomp_notif_addfd {
            id: self.id,
            flags: number.map_or(0, |_| libc::SECCOMP_ADDFD_FLAG_SETFD as u32),
            srcfd: file.as_raw_fd() as u32,
            newfd: number.unwrap_or(0) as u32,
            newfd_flags: libc::O_CLOEXEC as u32,
        };
        loop {
            // SAFETY: the kernel reads the structure.
            let added = unsafe {
                libc::ioctl(
                    self.listener.descriptor.as_raw_fd(),
                    libc::SECCOMP_IOCTL_NOTIF_ADDFD,
                    &raw const add,
                )
            };
            match Errno::result(added) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.send(0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32);
    }
}
