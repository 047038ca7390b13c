//! What the daemon itself may run out of: descriptors, memory.
//!
//! An error of that kind says nothing about any client. The operation that meets the error fails
//! with it, and never takes it for the end of a client's process.

use crate::Errno;
use crate::client_log::{Kind, user_error};
use std::time::Duration;

/// Whether an error is about what this process, or the machine, has left.
pub fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS)
}

/// Does something again, a little later, where it fails for want of something that may come back:
/// for what cannot be undone. At most for a fiftieth of a second.
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

/// Says in the log what the daemon is short of, if that is what an error is about; the error stays
/// the same. For `inspect_err`.
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
