//! What went wrong: an errno, the operation that gave it, and the device.

use crate::Errno;
use std::path::{Path, PathBuf};

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation on a device.
///
/// `errno` is what the system call gave, unchanged. Where this library itself refuses
/// something, its documentation names the errno that stands for it.
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
    /// reports it as ENOTCONN or ECONNABORTED (FUSE) or ENODEV (CUSE); the driver itself never
    /// gives one of these from an ioctl.
    pub fn is_disconnected(&self) -> bool {
        matches!(self.errno, Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ENODEV)
            && self.operation != "mmap"
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        std::io::Error::from_raw_os_error(error.errno as i32)
    }
}
