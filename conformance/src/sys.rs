//! Processes, shared memory and system calls with any arguments: the unsafe code of the
//! conformance programs.
//!
//! A puppet (see [`super::puppet`]) is a process that exists to do system calls that are wrong on
//! purpose. It is forked from a process with one thread, touches nothing but what it is told to,
//! and never returns into its parent's code.

use fakebinder_client::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, Pid};
use std::cell::Cell;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

const PAGE: usize = 4096;

/// Memory that this process and its puppets share, at the same address in all of them. Behind it
/// lies a page that nobody may touch.
#[derive(Debug)]
pub(super) struct Arena {
    start: NonNull<u8>,
    len: usize,
    /// Behind the last byte that was put.
    end: Cell<usize>,
}

impl Arena {
    /// `len` bytes, a multiple of the page size, and the forbidden page.
    pub(super) fn new(len: usize) -> nix::Result<Arena> {
        assert!(len > 0 && len.is_multiple_of(PAGE));
        // SAFETY: an anonymous mapping at an address of the kernel's choice covers nothing else.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len + PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // SAFETY: the last page of the mapping that was just made.
        Errno::result(unsafe { libc::mprotect(start.byte_add(len), PAGE, libc::PROT_NONE) })?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::EFAULT)?;
        Ok(Arena { start, len, end: Cell::new(0) })
    }

    /// Address of the byte at `offset`, in every process that shares it.
    pub(super) fn address(&self, offset: usize) -> u64 {
        self.start.as_ptr().addr() as u64 + offset as u64
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset, "arena is too small");
        self.end.set(self.end.get().max(offset + bytes.len()));
        // SAFETY: inside the mapping, which lives as long as `self`; no reference ever covers it.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.start.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }

    /// Makes whatever was put from `offset` on zero again.
    pub(super) fn clear(&self, offset: usize) {
        let end = self.end.replace(offset);
        if end > offset {
            self.put(offset, &vec![0; end - offset]);
            self.end.set(offset);
        }
    }

    pub(super) fn get(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset <= self.len && len <= self.len - offset, "out of the arena");
        let mut bytes = vec![0; len];
        // SAFETY: as in `put`.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), bytes.as_mut_ptr(), len);
        }
        bytes
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` has made.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len + PAGE) };
    }
}

/// Runs `child` in a new process, which ends with the status that it gives.
pub(super) fn fork(child: impl FnOnce() -> i32) -> nix::Result<Pid> {
    // SAFETY: the callers have one thread, or (a puppet that forks) a child that only does
    // system calls; glibc keeps malloc usable after fork.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the process without running what belongs to its parent.
            unsafe { libc::_exit(status.unwrap_or(101)) }
        }
    }
}

/// Any system call, in a puppet. Returns the raw result: a value or a negative errno.
pub(super) fn syscall(number: u64, args: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: a puppet's memory holds nothing that matters but its own code and stack, and those
    // who drive it give addresses in the arena, in mappings that it was told to make, or none.
    let result = unsafe { libc::syscall(number as i64, a, b, c, d, e, f) };
    if result == -1 { -i64::from(Errno::last_raw()) } else { result }
}

extern "C" fn nothing(_: i32) {}

/// Installs a handler that does nothing, with or without SA_RESTART, or SIG_IGN.
pub(super) fn catch(signal: Signal, how: Catch) -> nix::Result<()> {
    let (handler, flags) = match how {
        Catch::Plain => (SigHandler::Handler(nothing), SaFlags::empty()),
        Catch::Restart => (SigHandler::Handler(nothing), SaFlags::SA_RESTART),
        Catch::Ignore => (SigHandler::SigIgn, SaFlags::empty()),
    };
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: a handler that does nothing is safe whenever it runs.
    unsafe { sigaction(signal, &action) }.map(drop)
}

/// What a process does about a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Catch {
    /// A handler; system calls are interrupted.
    Plain,
    /// A handler; system calls are restarted where they can be.
    Restart,
    /// SIG_IGN.
    Ignore,
}

/// Closes every descriptor from 3 on but these.
pub(super) fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().map(|&fd| fd as u32).filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if first < fd {
            // SAFETY: what is closed here belongs to the parent, and is never used in this child.
            unsafe { libc::close_range(first, fd - 1, 0) };
        }
        first = fd.wrapping_add(1);
    }
}

/// Closes every descriptor from 3 on but these, and moves these to the lowest numbers: gives those.
pub(super) fn pack(keep: &[RawFd]) -> Vec<RawFd> {
    close_all_but(keep);
    let mut sorted = keep.to_vec();
    sorted.sort_unstable();
    let place = |fd: RawFd| 3 + sorted.iter().position(|&one| one == fd).unwrap_or(0) as RawFd;
    // In ascending order: what is closed or taken here was moved before, or never ours to keep.
    for &fd in sorted.iter().filter(|&&fd| fd != place(fd)) {
        // SAFETY: as above.
        unsafe {
            libc::dup2(fd, place(fd));
            libc::close(fd);
        }
    }
    keep.iter().map(|&fd| place(fd)).collect()
}

/// Takes over a descriptor that came through fork.
pub(super) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: only called in a new child, for the ends of sockets that are its own.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A descriptor that a request names, for the length of one system call.
pub(super) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    assert!(fd >= 0);
    // SAFETY: used for one system call; a closed one gives EBADF, as it should.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// The nice value that scenes begin with, whatever the tests were started with (as far as allowed).
pub(super) fn begin_at_nice_0() {
    // SAFETY: no memory is involved.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
}

/// Keeps this process, and those it makes, on one CPU: of two that talk by turns the next is then
/// never woken up on another one.
pub(super) fn stay_on(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = nix::sched::sched_setaffinity(Pid::from_raw(0), &set);
    }
}
