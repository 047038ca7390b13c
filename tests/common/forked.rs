//! Clients as children that are forked and never execute another program: cheap enough for a
//! thousand of them, and with their parent's descriptors and memory where a scene is about those.

use super::{PATIENCE, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a child that panicked exits with.
pub const PANICKED: i32 = 101;

/// A child; killed when this is dropped.
pub struct Forked {
    pid: Pid,
    ended: Option<WaitStatus>,
}

impl Forked {
    /// Runs `work` in a child, which exits with what it returns. The child has only the thread
    /// that forked, and goes when that goes; it must not print (another thread may have held the
    /// lock).
    pub fn start(work: impl FnOnce() -> i32) -> Forked {
        // SAFETY: the child has one thread. It takes no lock that another one may have held but
        // the allocator's, which glibc makes good after a fork, and it never returns from here.
        match unsafe { fork() }.expect("a process can be forked") {
            ForkResult::Parent { child } => Forked { pid: child, ended: None },
            ForkResult::Child => {
                let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                exit(guarded(work))
            }
        }
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn kill(&self) {
        if self.ended.is_none() {
            kill(self.pid, Signal::SIGKILL).expect("it is a child of ours");
        }
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<WaitStatus> {
        if self.ended.is_none() {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).expect("it is a child of ours") {
                WaitStatus::StillAlive => {}
                status => self.ended = Some(status),
            }
        }
        self.ended
    }

    /// Waits for its end; panics when that takes too long.
    pub fn wait(&mut self) -> WaitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ended() {
                Some(status) => return status,
                None => assert!(Instant::now() < deadline, "process {} does not end", self.pid),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for its end, which must be an exit with status 0.
    #[track_caller]
    pub fn succeed(mut self) {
        assert_eq!(self.wait(), WaitStatus::Exited(self.pid, 0));
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
            // A daemon that does not answer keeps it; then the test must fail, not hang.
            wait_until(PATIENCE, || self.ended().is_some());
        }
    }
}

/// Runs `work`; a panic ends this process.
pub fn guarded<T>(work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        complain(message_of(&*panic));
        exit(PANICKED)
    })
}

/// Ends this process, and runs nothing of what the parent had in mind for its own end.
pub fn exit(status: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(status) }
}

/// Says something past locks and captures.
pub fn complain(what: &str) {
    let line = format!("process {}: {what}\n", std::process::id());
    // SAFETY: as many bytes as there are.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked")
}
