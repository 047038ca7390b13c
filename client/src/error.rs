//! A failed operation: the errno, the operation that gave it, and the device.

use crate::Errno;
use std::path::{Path, PathBuf};

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation on a device.
///
/// `errno` is that of the system call, unchanged. Where this library itself refuses something, its
/// documentation names the errno.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {operation}: {} ({errno:?})", .device.display(), .errno.desc())]
pub struct Error {
    device: PathBuf,
    operation: &'static str,
    errno: Errno,
}

impl Error {
    pub(crate) fn new(device: &Path, operation: &'static str, errno: Errno) -> Error {
        Error { device: device.to_owned(), operation, errno }
    }

    /// The kernel's error number.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The system call or the ioctl by its name in `<linux/android/binder.h>`.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// The path that the device was opened by.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Whether the error says that the daemon behind a fakebinder device is gone. The kernel
    /// reports it as ENOTCONN or ECONNABORTED (FUSE; also as ECANCELED, if the request was on its
    /// way through io_uring when the daemon was killed) or ENODEV (CUSE); the driver itself never
    /// gives one of these from an ioctl.
    pub fn is_disconnected(&self) -> bool {
        match self.errno {
            Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ECANCELED => true,
            // From mmap, ENODEV means that the device cannot be mapped.
            Errno::ENODEV => self.operation != "mmap",
            _ => false,
        }
    }

    /// One line for a person: the device, what is wrong, and what to do about it.
    pub fn explain(&self) -> String {
        let device = self.device.display();
        let advice = match (self.operation, self.errno) {
            ("open", Errno::ENOENT) => {
                "no such device; start the daemon (fakebinderd) or name another with --device PATH"
            }
            ("open", Errno::EACCES | Errno::EPERM) => {
                "no permission to open it; run this as root, or start the daemon with --mode 0666"
            }
            ("open", Errno::ENXIO | Errno::ENODEV | Errno::ENOTCONN | Errno::ECONNABORTED) => {
                "the device is there, but no daemon serves it; start fakebinderd again"
            }
            ("open", Errno::EISDIR) => "a directory; name the device inside it with --device",
            ("BINDER_VERSION", Errno::ENOTTY | Errno::EINVAL) => {
                "not a binder device; name one with --device PATH"
            }
            ("mmap", Errno::ENODEV) => {
                "cannot be mapped and knows no attach handshake; is it a binder device?"
            }
            ("BINDER_SET_CONTEXT_MGR", Errno::EBUSY) => {
                "another process is this device's context manager; stop it, or use a device of your \
                 own (fakebinderd --name NAME)"
            }
            ("BINDER_SET_CONTEXT_MGR", Errno::EPERM) => {
                "this device's context manager must belong to the user who first became it; run this \
                 as that user, or use a device of your own (fakebinderd --name NAME)"
            }
            _ if self.is_disconnected() => {
                "the daemon is gone; look at its log, and start fakebinderd again"
            }
            _ => return self.to_string(),
        };
        format!("{device}: {advice} ({}: {:?})", self.operation, self.errno)
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        std::io::Error::from_raw_os_error(error.errno as i32)
    }
}
