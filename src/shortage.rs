//! What the daemon itself may run out of: descriptors and memory.
//!
//! An error of that kind says nothing about any client. The operation that meets the error fails
//! with it, and never takes it for the end of a client's process.

use crate::Errno;
use crate::client_log::{Kind, user_error};
use std::time::Duration;

/// Whether an error says that this process, or the machine, has run out of something.
pub fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS)
}

/// Repeats `attempt` for at most a fiftieth of a second while it fails for a shortage, which may
/// pass. For operations whose failure cannot be undone.
pub fn retry<T>(mut attempt: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..20 {
        match attempt() {
            Err(errno) if is_shortage(errno) => {
                note(&errno);
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
    attempt()
}

/// Logs what the daemon is short of, if the error says so. For `inspect_err`.
pub fn note(errno: &Errno) {
    match errno {
        Errno::EMFILE | Errno::ENFILE => user_error!(
            Kind::OutOfDescriptors,
            "fakebinderd is out of descriptors ({errno}): raise its limit (ulimit -n, LimitNOFILE=)"
        ),
        Errno::ENOMEM | Errno::ENOBUFS => user_error!(
            Kind::OutOfMemory,
            "fakebinderd is out of memory ({errno}), of its own or of what --page-budget leaves it"
        ),
        _ => {}
    }
}
