//! `binder-control` of a mount.

use fakebinder_client::{Errno, uapi};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `binder-control`, open.
pub struct Control(pub File);

impl Control {
    pub fn of(mount: &Path) -> Control {
        Control(File::open(mount.join("binder-control")).expect("binder-control can be opened"))
    }

    /// BINDER_CTL_ADD with such a name.
    pub fn add(&self, name: &[u8]) -> Result<(), Errno> {
        let mut device = uapi::binderfs_device::default();
        device.name[..name.len()].copy_from_slice(name);
        self.ioctl(uapi::BINDER_CTL_ADD, &mut device)
    }

    pub fn ioctl<T>(&self, cmd: u32, argument: &mut T) -> Result<(), Errno> {
        let argument = std::ptr::from_mut(argument);
        // SAFETY: the ioctls used in tests have an argument of this type.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), cmd.into(), argument) };
        Errno::result(result).map(drop)
    }
}
