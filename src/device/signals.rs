//! What a client thread's pending signals will do to it (`/proc/PID/status`).

use std::fs;

/// Signals without a handler that do not end a process: SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP,
/// SIGTTIN, SIGTTOU, SIGURG, SIGWINCH (signal(7)).
const HARMLESS: u64 = mask(&[
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
]);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

const fn mask(signals: &[i32]) -> u64 {
    let (mut mask, mut index) = (0, 0);
    while index < signals.len() {
        mask |= bit(signals[index]);
        index += 1;
    }
    mask
}

/// Whether the thread `tid`, which waits in a system call, will never return to its program: a
/// signal that ends its process is pending. A thread that is gone counts as dying, too.
pub fn is_dying(tid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{tid}/status")) {
        Ok(status) => says_dying(&status),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Whether a signal waits for the thread `tid`, which it will take when it leaves the kernel. A
/// thread that is gone needs nothing.
pub fn is_due(tid: i32) -> bool {
    fs::read_to_string(format!("/proc/{tid}/status")).is_ok_and(|status| says_due(&status))
}

fn says_due(status: &str) -> bool {
    let mask = |name| field(status, name).unwrap_or(0);
    (mask("SigPnd:") | mask("ShdPnd:")) & !(mask("SigBlk:") | mask("SigIgn:")) != 0
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn says_dying(status: &str) -> bool {
    let mask = |name| field(status, name).unwrap_or(0);
    // The kernel makes SIGKILL pending for every thread of a process that a signal ends.
    if mask("SigPnd:") & bit(libc::SIGKILL) != 0 {
        return true;
    }
    // Except for a signal that ends in a core dump: that begins when a thread takes the signal.
    let pending = mask("SigPnd:") | mask("ShdPnd:");
    pending & !(mask("SigBlk:") | mask("SigIgn:") | mask("SigCgt:") | HARMLESS) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(thread: i32, shared: i32, blocked: i32, ignored: i32, caught: i32) -> String {
        let mask = |signal: i32| if signal == 0 { 0 } else { bit(signal) };
        format!(
            "Name:\tx\nSigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\t{:016x}\nSigIgn:\t{:016x}\nSigCgt:\t{:016x}\n",
            mask(thread),
            mask(shared),
            mask(blocked),
            mask(ignored),
            mask(caught)
        )
    }

    #[test]
    fn a_thread_dies_of_a_signal_that_nobody_takes() {
        use libc::{SIGABRT, SIGKILL, SIGUSR1, SIGWINCH};
        assert!(says_dying(&status(SIGKILL, 0, 0, 0, 0)));
        assert!(says_dying(&status(0, SIGABRT, 0, 0, 0)));
        assert!(says_dying(&status(SIGUSR1, 0, 0, 0, 0)));
        assert!(!says_dying(&status(SIGUSR1, 0, 0, 0, SIGUSR1)), "it has a handler");
        assert!(!says_dying(&status(SIGUSR1, 0, SIGUSR1, 0, 0)), "it is blocked");
        assert!(!says_dying(&status(0, SIGUSR1, 0, SIGUSR1, 0)), "it is ignored");
        assert!(!says_dying(&status(SIGWINCH, 0, 0, 0, 0)), "it does nothing");
        assert!(!says_dying(&status(0, 0, 0, 0, 0)));
    }

    #[test]
    fn a_signal_is_due_unless_it_is_blocked_or_ignored() {
        use libc::{SIGKILL, SIGUSR1};
        assert!(says_due(&status(SIGUSR1, 0, 0, 0, SIGUSR1)));
        assert!(says_due(&status(0, SIGUSR1, 0, 0, SIGUSR1)));
        assert!(says_due(&status(SIGKILL, 0, 0, 0, 0)));
        assert!(!says_due(&status(SIGUSR1, 0, SIGUSR1, 0, SIGUSR1)), "it is blocked");
        assert!(!says_due(&status(0, SIGUSR1, 0, SIGUSR1, 0)), "it is ignored");
        assert!(!says_due(&status(0, 0, 0, 0, 0)));
    }

    #[test]
    fn this_thread_lives_and_nobody_does_not() {
        assert!(!is_dying(nix::unistd::gettid().as_raw()));
        assert!(is_dying(i32::MAX));
    }
}
