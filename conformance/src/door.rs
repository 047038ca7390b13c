//! Which kind of device a path leads to.

use std::ffi::OsStr;
use std::path::Path;

/// Which kind of device a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The kernel's driver.
    Kernel,
    /// A character device in userspace.
    Cuse,
    /// A file of a FUSE mount.
    Fuse,
}

/// The kind of the device at a path; the kernel's driver, if the path does not exist.
pub(super) fn door(device: &Path) -> Door {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Ok(metadata) = std::fs::metadata(device) else { return Door::Kernel };
    if !metadata.file_type().is_char_device() {
        return Door::Fuse;
    }
    let (major, minor) =
        (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
    let link = std::fs::canonicalize(format!("/sys/dev/char/{major}:{minor}"));
    let cuse =
        link.is_ok_and(|path| path.components().any(|part| part.as_os_str() == OsStr::new("cuse")));
    if cuse { Door::Cuse } else { Door::Kernel }
}
