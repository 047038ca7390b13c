//! Processes, and system calls with any arguments.
//!
//! A child (see [`super`]) is a process that exists to make system calls that are wrong on purpose.
//! It touches nothing but what it is told to touch, and never returns into its parent's code.

use super::request::Catch;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, Pid};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub(super) const PAGE: usize = 4096;

/// Runs `child` in a new process, which ends with the returned status.
///
/// Where this process has other threads, `child` must not wait for a lock that one of them may
/// hold: it may make system calls, and allocate. Errors: those of fork(2).
pub fn fork(child: impl FnOnce() -> i32) -> nix::Result<Pid> {
    // SAFETY: the child does no more than this function allows it; glibc makes malloc usable after
    // a fork.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the process without running what belongs to its parent.
            unsafe { libc::_exit(status.unwrap_or(101)) }
        }
    }
}

/// Any system call, in a child. Returns the raw result: a value or a negative errno.
pub(super) fn system_call(number: u64, args: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: a child's memory holds nothing that matters but its own code and stack, and its
    // driver gives addresses in the shared memory, in mappings that the child was told to make, or
    // invalid ones.
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

/// Closes every descriptor from 3 on, except these.
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

/// The numbers that [`pack`] moves these descriptors to: the lowest from 3 on, in their own order.
pub(super) fn places(keep: &[RawFd]) -> Vec<RawFd> {
    let mut sorted = keep.to_vec();
    sorted.sort_unstable();
    let place = |fd: &RawFd| 3 + sorted.iter().position(|one| one == fd).unwrap_or(0) as RawFd;
    keep.iter().map(place).collect()
}

/// Closes every descriptor from 3 on except these, and moves these to the lowest numbers; returns
/// those numbers.
pub(super) fn pack(keep: &[RawFd]) -> Vec<RawFd> {
    close_all_but(keep);
    let places = places(keep);
    let mut moves: Vec<_> = keep.iter().copied().zip(places.iter().copied()).collect();
    moves.sort_unstable();
    moves.dedup();
    // In ascending order: a number that is closed or taken here was moved before, or was never to
    // be kept.
    for (fd, place) in moves.into_iter().filter(|(fd, place)| fd != place) {
        // SAFETY: what is closed here belongs to the parent, and is never used in this child.
        unsafe {
            libc::dup2(fd, place);
            libc::close(fd);
        }
    }
    places
}

/// Takes over a descriptor that came through fork.
pub(super) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: only called in a new child, for the ends of sockets that are its own.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A descriptor that a request names, in a child, for the length of one system call.
///
/// # Panics
/// When the number is negative.
pub fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    assert!(fd >= 0);
    // SAFETY: used for one system call; a closed one gives EBADF, as it should.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Sets the nice value that scenes begin with, whatever the tests were started with (as far as
/// allowed).
pub(super) fn begin_at_nice_0() {
    // SAFETY: no memory is involved.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
}

/// Keeps this process, and those that it makes, on one CPU: of two that take turns, neither is then
/// woken up on another CPU.
pub fn stay_on(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = nix::sched::sched_setaffinity(Pid::from_raw(0), &set);
    }
}
