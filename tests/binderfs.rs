//! The FUSE mount as a directory like binderfs: what can be done, and adding devices.

mod common;

use common::{Daemon, Door, open, skip};
use fakebinder::uapi;
use fakebinder_client::{Device, Errno};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

/// BINDER_CTL_ADD with such a name.
fn add(control: &File, name: &[u8]) -> Result<(), Errno> {
    let mut device = uapi::binderfs_device::default();
    device.name[..name.len()].copy_from_slice(name);
    ioctl(control, uapi::BINDER_CTL_ADD, &mut device)
}

fn ioctl<T>(file: &File, cmd: u32, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: the ioctls used here have an argument of this type.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), cmd.into(), std::ptr::from_mut(argument)) };
    Errno::result(result).map(drop)
}

#[test]
fn features_say_what_the_driver_can_do() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    let mount = daemon.fuse().parent().unwrap().to_owned();
    let listed = |path| -> BTreeSet<String> {
        let entries = fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let expected = ["binder-control", "features", &daemon.name].map(str::to_owned);
    assert_eq!(listed(mount.clone()), BTreeSet::from(expected));
    let features = ["oneway_spam_detection", "extended_error", "freeze_notification"];
    assert_eq!(listed(mount.join("features")), BTreeSet::from(features.map(str::to_owned)));
    for feature in features {
        assert_eq!(fs::read_to_string(mount.join("features").join(feature)).unwrap(), "1\n");
    }
    assert!(!mount.join("features/teleportation").exists());
    daemon.stop();
}

#[test]
fn binder_control_adds_devices() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    let mount = daemon.fuse().parent().unwrap().to_owned();
    let control = File::open(mount.join("binder-control")).unwrap();
    assert_eq!(control.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    assert_eq!(add(&control, b"added"), Ok(()));
    // A context of its own, with a manager of its own.
    let (first, added) = (open(&daemon.fuse()), open(&mount.join("added")));
    first.set_context_manager().unwrap();
    added.set_context_manager().unwrap();
    let again = Device::open(mount.join("added")).unwrap();
    assert_eq!(again.set_context_manager().unwrap_err().errno(), Errno::EBUSY);

    assert_eq!(add(&control, b"added"), Err(Errno::EEXIST));
    assert_eq!(add(&control, daemon.name.as_bytes()), Err(Errno::EEXIST));
    for taken in ["binder-control", "features", ".open"] {
        assert_eq!(add(&control, taken.as_bytes()), Err(Errno::EEXIST));
    }
    for name in ["", ".", "..", "a/b", "/"] {
        assert_eq!(add(&control, name.as_bytes()), Err(Errno::EACCES), "{name:?}");
    }
    assert_eq!(add(&control, b"\xff\xfe"), Err(Errno::EINVAL));
    // As binderfs: the last byte counts as the terminating NUL.
    assert_eq!(add(&control, &[b'x'; 256]), Ok(()));
    open(&mount.join("x".repeat(255)));
    // Other ioctls, and reading.
    assert_eq!(ioctl(&control, uapi::BINDER_VERSION, &mut [0u8; 4]), Err(Errno::EINVAL));
    let refused = fs::read(mount.join("binder-control")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    daemon.stop();
}

/// There is a limit to what even root can make the daemon hold.
#[test]
fn binder_control_adds_no_more_than_so_many() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    let mount = daemon.fuse().parent().unwrap().to_owned();
    let control = File::open(mount.join("binder-control")).unwrap();
    let added =
        (0..5000).take_while(|number| add(&control, format!("n{number}").as_bytes()).is_ok());
    assert_eq!(added.count(), 4095, "and the one that was there");
    assert_eq!(add(&control, b"more"), Err(Errno::ENOSPC));
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 4096 + 2);
    open(&mount.join("n4094"));
    daemon.stop();
}
