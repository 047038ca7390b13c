//! Device files of the FUSE mount, treated as those of a binderfs are: chmod, chown, rm, mv, and
//! who watches the directory.

mod common;

use common::binderfs::Control;
use common::{Daemon, Door, Pair, Target, open, skip};
use fakebinder_client::{Call, Command, Device, Errno, Reply, Return, Thread};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, lstat, mknod};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::{Duration, SystemTime};

/// A daemon with the FUSE door alone, and its mount.
fn start(arguments: &[&str]) -> Option<(Daemon, PathBuf)> {
    if !nix::unistd::geteuid().is_root() || !Door::Fuse.is_here() {
        skip("it takes root and /dev/fuse");
        return None;
    }
    let daemon = Daemon::start_with(arguments, None);
    let mount = daemon.mount.clone();
    Some((daemon, mount))
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Errno {
    Errno::from_raw(result.expect_err("it is refused").raw_os_error().unwrap_or(0))
}

fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Mode, user and group, as stat says them.
fn owned(path: &Path) -> (u32, u32, u32) {
    let status = fs::metadata(path).unwrap();
    (status.mode() & 0o7777, status.uid(), status.gid())
}

/// Whether a shell of that user can do this to the file `$0`.
fn user_can(user: u32, script: &str, path: &Path) -> bool {
    let mut shell = Program::new("sh");
    shell.args(["-c", script]).arg(path).uid(user).gid(user);
    shell.stderr(std::process::Stdio::null()).status().unwrap().success()
}

const OPEN: &str = ": <>\"$0\"";

#[test]
fn a_device_file_has_permissions_and_an_owner_that_can_be_changed() {
    let Some((daemon, mount)) = start(&["--mode", "640", "--owner", "7:8"]) else { return };
    let path = daemon.fuse();
    Control::of(&mount).add(b"other").unwrap();
    assert_eq!(owned(&path), (0o640, 7, 8));
    assert_eq!(owned(&mount.join("other")), (0o600, 0, 0), "as binderfs starts it");
    let before = File::open(&path).unwrap();
    assert!(!user_can(1000, OPEN, &path));

    chmod(&path, 0o666).unwrap();
    assert!(user_can(1000, OPEN, &path));
    chmod(&path, 0o600).unwrap();
    assert!(!user_can(1000, OPEN, &path));
    assert!(!user_can(1000, "chmod 666 \"$0\"", &path), "it is not its owner");
    chown(&path, Some(1000), Some(1001)).unwrap();
    assert!(user_can(1000, OPEN, &path));
    assert!(user_can(1000, "chmod 660 \"$0\"", &path), "its owner may");
    assert!(!user_can(1000, "chown 0 \"$0\"", &path), "but not give it away");
    assert_eq!(owned(&path), (0o660, 1000, 1001));
    assert!(!user_can(2000, OPEN, &path));

    // What is open is the same device, and other devices are not.
    let status = before.metadata().unwrap();
    assert_eq!((status.mode() & 0o777, status.uid(), status.gid()), (0o660, 1000, 1001));
    assert_eq!(owned(&mount.join("other")), (0o600, 0, 0));
    // Android's init says lchown, which is about the link here.
    lchown(&path, Some(2000), None).unwrap();
    assert_eq!(owned(&path), (0o660, 2000, 1001));
    assert_eq!(lstat(&path).unwrap().st_uid, 2000);
    assert!(user_can(2000, OPEN, &path));
    // The kernel itself refuses it, to links of every file system.
    let mode = Mode::from_bits_truncate(0o666);
    let refused = fchmodat(AT_FDCWD, &path, mode, FchmodatFlags::NoFollowSymlink);
    assert_eq!(refused, Err(Errno::EOPNOTSUPP));
    daemon.stop();
}

#[test]
fn a_device_file_has_times_and_a_size_that_cannot_be_set() {
    let Some((daemon, _)) = start(&[]) else { return };
    let file = OpenOptions::new().write(true).open(daemon.fuse()).unwrap();
    let started = fs::metadata(daemon.fuse()).unwrap().modified().unwrap();
    assert!(started.elapsed().unwrap() < Duration::from_secs(3600));
    let moment = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5);
    file.set_times(fs::FileTimes::new().set_modified(moment)).unwrap();
    assert_eq!(fs::metadata(daemon.fuse()).unwrap().modified().unwrap(), moment);
    assert_eq!(errno(file.set_len(0)), Errno::EINVAL);
    daemon.stop();
}

/// What Android's init and waydroid do to a binderfs before they use it.
#[test]
fn the_directory_and_binder_control_have_owners_too() {
    let Some((daemon, mount)) = start(&[]) else { return };
    let control = mount.join("binder-control");
    assert_eq!(owned(&control), (0o600, 0, 0));
    assert!(!user_can(1000, OPEN, &control));
    chmod(&control, 0o666).unwrap();
    assert!(user_can(1000, OPEN, &control));
    for path in ["features", "features/extended_error", "binder_logs", "binder_logs/state", ""] {
        let path = mount.join(path);
        chmod(&path, 0o750).unwrap();
        chown(&path, Some(5), Some(6)).unwrap();
        assert_eq!(owned(&path), (0o750, 5, 6), "{}", path.display());
    }
    assert!(!user_can(1000, OPEN, &control), "the directory is closed");
    daemon.stop();
}

/// Serves one call.
fn serve_one(server: Device) {
    let mut thread = Thread::new(&server);
    thread.queue(Command::EnterLooper);
    let served = |thread: &mut Thread<'_>| {
        thread.serve(&mut |_, _, contents, reply| _ = reply.bytes(&contents.data)).unwrap()
    };
    while !matches!(served(&mut thread), Return::Transaction(_)) {}
    thread.flush().unwrap();
}

#[test]
fn who_has_a_removed_device_open_goes_on_and_the_name_is_another_s() {
    let Some((daemon, mount)) = start(&[]) else { return };
    let (path, control) = (daemon.fuse(), Control::of(&mount));
    let target = Target { path: path.clone(), daemon: None };
    let pair = target.pair();
    fs::remove_file(&path).unwrap();
    assert_eq!(errno(File::open(&path)), Errno::ENOENT);
    assert_eq!(errno(fs::remove_file(&path)), Errno::ENOENT);
    assert!(!fs::read_dir(&mount).unwrap().any(|it| it.unwrap().path() == path));

    let Pair { server, client, handle, .. } = pair;
    let server = std::thread::spawn(move || serve_one(server));
    let reply = Thread::new(&client).call(&Call::to(handle).data(b"still")).unwrap();
    assert!(matches!(&reply, Reply::Data(contents) if contents.data == b"still"), "{reply:?}");
    server.join().unwrap();
    let state = fs::read_to_string(mount.join("binder_logs/state")).unwrap();
    assert!(state.contains(&format!("proc {}\n", std::process::id())), "{state}");

    control.add(daemon.name.as_bytes()).unwrap();
    assert_eq!(owned(&path), (0o600, 0, 0));
    // A context of its own: the old one has a manager.
    open(&path).set_context_manager().unwrap();
    assert_eq!(Thread::new(&client).call(&Call::to(99)).unwrap(), Reply::Failed);
    drop(client);
    daemon.stop();
}

/// `binderfs_unlink`, and what the directories of binderfs have no operation for.
#[test]
fn what_binderfs_refuses_is_refused_with_its_errors() {
    let Some((daemon, mount)) = start(&[]) else { return };
    let at = |name: &str| mount.join(name);
    assert_eq!(errno(fs::remove_file(at("binder-control"))), Errno::EPERM);
    assert_eq!(errno(fs::remove_file(at("features/extended_error"))), Errno::EPERM);
    assert_eq!(errno(fs::remove_file(at("binder_logs/state"))), Errno::EPERM);
    assert_eq!(errno(fs::remove_file(at("features"))), Errno::EISDIR);
    assert_eq!(errno(fs::remove_dir(at("features"))), Errno::EPERM);
    assert_eq!(errno(fs::remove_dir(daemon.fuse())), Errno::ENOTDIR);
    assert_eq!(errno(fs::remove_file(at("absent"))), Errno::ENOENT);
    assert!(!user_can(1000, "rm -f \"$0\"", &daemon.fuse()));

    assert_eq!(errno(fs::create_dir(at("new"))), Errno::EPERM);
    assert_eq!(errno(symlink("target", at("new"))), Errno::EPERM);
    assert_eq!(errno(fs::hard_link(at("binder-control"), at("new"))), Errno::EPERM);
    assert_eq!(errno(File::create(at("new"))), Errno::EACCES);
    let node = |kind| mknod(&at("new"), kind, Mode::S_IRWXU, 0);
    assert_eq!(node(SFlag::S_IFREG), Err(Errno::EACCES));
    assert_eq!(node(SFlag::S_IFIFO), Err(Errno::EPERM));
    assert_eq!(node(SFlag::S_IFCHR), Err(Errno::EPERM));
    assert_eq!(errno(File::create(at("features/new"))), Errno::EACCES);

    let there = |name| fs::symlink_metadata(at(name)).is_ok();
    assert!(there("binder-control") && there("features/extended_error") && !there("new"));
    assert_eq!(open(&daemon.fuse()).version().unwrap(), 8);
    daemon.stop();
}

#[test]
fn a_device_can_be_renamed() {
    let Some((daemon, mount)) = start(&[]) else { return };
    let at = |name: &str| mount.join(name);
    let control = Control::of(&mount);
    control.add(b"one").unwrap();
    control.add(b"two").unwrap();
    let one = open(&at("one"));
    one.set_context_manager().unwrap();
    let is_one = |name: &str| open(&at(name)).set_context_manager().is_err();
    chmod(&at("one"), 0o644).unwrap();

    fs::rename(at("one"), at("uno")).unwrap();
    assert_eq!(errno(File::open(at("one"))), Errno::ENOENT);
    assert!(is_one("uno"));
    assert_eq!(owned(&at("uno")), (0o644, 0, 0));
    let rename =
        |old: &str, new: &str, flags| renameat2(AT_FDCWD, &at(old), AT_FDCWD, &at(new), flags);
    let (refuse, exchange) = (RenameFlags::RENAME_NOREPLACE, RenameFlags::RENAME_EXCHANGE);
    assert_eq!(rename("uno", "two", refuse), Err(Errno::EEXIST));
    assert_eq!(rename("uno", "absent", exchange), Err(Errno::ENOENT));
    rename("uno", "two", exchange).unwrap();
    assert!(is_one("two") && !is_one("uno"));
    // The one that had the name is removed.
    rename("two", "uno", RenameFlags::empty()).unwrap();
    assert!(is_one("uno"));
    assert_eq!(errno(File::open(at("two"))), Errno::ENOENT);
    control.add(b"two").unwrap();
    assert!(!is_one("two"));

    for (old, new) in [
        ("binder-control", "x"),
        ("two", "binder-control"),
        ("features/extended_error", "x"),
        ("two", "features/x"),
        ("features", "x"),
    ] {
        assert_eq!(rename(old, new, RenameFlags::empty()), Err(Errno::EPERM), "{old} {new}");
    }
    let whiteout = RenameFlags::RENAME_WHITEOUT;
    assert_eq!(rename("two", "x", whiteout), Err(Errno::EINVAL));
    assert_eq!(one.version().unwrap(), 8);
    daemon.stop();
}

/// Resident memory of the daemon, in KiB.
fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// What stays resident when the daemon has nothing to do: its heap gives back within a second or
/// two what was freed.
fn resident_at_rest(daemon: &Daemon) -> u64 {
    let samples = (0..25).map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        resident(daemon)
    });
    samples.min().unwrap_or_default()
}

#[test]
fn nothing_grows_when_devices_are_added_and_removed() {
    let Some((daemon, mount)) = start(&["--max-devices", "50"]) else { return };
    let control = Control::of(&mount);
    let observer = open(&daemon.fuse());
    let (mut at_rest, mut numbers) = (Vec::new(), 0);
    for round in 0..15_000u32 {
        if round % 5000 == 0 {
            at_rest.push(resident_at_rest(&daemon));
        }
        let name = format!("device-{round}");
        control.add(name.as_bytes()).unwrap();
        let path = mount.join(&name);
        numbers = numbers.max(fs::symlink_metadata(&path).unwrap().ino());
        let used = (round % 4 == 0).then(|| open(&path));
        fs::remove_file(&path).unwrap();
        drop(used);
    }
    at_rest.push(resident_at_rest(&daemon));
    // A context takes some hundred bytes: 5,000 of them would be a megabyte each time. The heap
    // grows now and then by a part for another thread, but not each time.
    let grown = at_rest.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).min().unwrap();
    assert!(grown < 512, "KiB at rest after each 5,000 devices: {at_rest:?}");
    // Numbers of nodes are used again once the kernel has forgotten them.
    assert!(numbers < 5000, "a device has number {numbers}");
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 4);
    let stats = observer.daemon_stats().unwrap();
    assert_eq!((stats.processes, stats.nodes), (1, 0));
    daemon.stop();
}

/// What a watcher is told, as names of events and of files.
fn events(watcher: &Inotify) -> Vec<(AddWatchFlags, OsString)> {
    match watcher.read_events() {
        Ok(events) => events.into_iter().map(|it| (it.mask, it.name.unwrap_or_default())).collect(),
        Err(Errno::EAGAIN) => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

/// All of them are there when the call that caused them returns, as on binderfs.
#[test]
fn who_watches_the_directory_is_told_what_comes_and_goes() {
    type Is = AddWatchFlags;
    let Some((daemon, mount)) = start(&[]) else { return };
    let control = Control::of(&mount);
    let watcher = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let watched = Is::IN_CREATE | Is::IN_DELETE | Is::IN_MOVE | Is::IN_ATTRIB | Is::IN_MODIFY;
    watcher.add_watch(&mount, watched).unwrap();
    let told = |expected: &[(AddWatchFlags, &str)]| {
        let expected: Vec<_> = expected.iter().map(|(is, name)| (*is, (*name).into())).collect();
        assert_eq!(events(&watcher), expected);
    };

    control.add(b"new").unwrap();
    told(&[(Is::IN_CREATE, "new")]);
    assert_eq!(control.add(b"new"), Err(Errno::EEXIST));
    told(&[]);
    fs::rename(mount.join("new"), mount.join("newer")).unwrap();
    told(&[(Is::IN_MOVED_FROM, "new"), (Is::IN_MOVED_TO, "newer")]);
    // A change of the device's own file has another name, in a directory that nobody watches;
    // one of the link is told.
    chmod(&mount.join("newer"), 0o666).unwrap();
    told(&[]);
    lchown(mount.join("newer"), Some(1000), None).unwrap();
    told(&[(Is::IN_ATTRIB, "newer")]);
    fs::remove_file(mount.join("newer")).unwrap();
    told(&[(Is::IN_DELETE, "newer")]);
    daemon.stop();
}

#[test]
fn a_look_at_a_name_does_not_hide_the_device_that_is_added() {
    let Some((daemon, mount)) = start(&[]) else { return };
    let control = Control::of(&mount);
    for round in 0..50 {
        let path = mount.join(format!("device-{round}"));
        assert_eq!(errno(fs::metadata(&path)), Errno::ENOENT);
        assert_eq!(errno(fs::symlink_metadata(&path)), Errno::ENOENT);
        control.add(format!("device-{round}").as_bytes()).unwrap();
        assert_eq!(open(&path).version().unwrap(), 8);
        fs::remove_file(&path).unwrap();
        assert_eq!(errno(fs::metadata(&path)), Errno::ENOENT);
        control.add(format!("device-{round}").as_bytes()).unwrap();
        assert_eq!(open(&path).version().unwrap(), 8);
    }
    daemon.stop();
}

/// Where the mount cannot be reached by its path the device comes without an event.
#[test]
fn a_device_is_added_to_a_mount_that_another_one_hides() {
    use nix::mount::{MntFlags, MsFlags, mount as mount_fs, umount2};
    let Some((daemon, mount)) = start(&[]) else { return };
    let (control, directory) = (Control::of(&mount), File::open(&mount).unwrap());
    let nothing = None::<&str>;
    mount_fs(Some("none"), &mount, Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
    let added = control.add(b"hidden");
    let made_there = mount.join("hidden").symlink_metadata().is_ok();
    umount2(&mount, MntFlags::empty()).unwrap();
    assert_eq!(added, Ok(()));
    assert!(!made_there);
    assert_eq!(open(&mount.join("hidden")).version().unwrap(), 8);
    drop(directory);

    // Read-only to all who go by the path, as a binderfs is to nobody's ioctl.
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount_fs(nothing, &mount, nothing, read_only, nothing).unwrap();
    assert_eq!(errno(fs::remove_file(mount.join("hidden"))), Errno::EROFS);
    assert_eq!(control.add(b"another"), Ok(()));
    assert_eq!(control.add(b"another"), Err(Errno::EEXIST));
    daemon.stop();
}

#[test]
fn options_are_those_of_binderfs() {
    let Some((daemon, mount)) = start(&["--max-devices", "3", "--stats"]) else { return };
    let control = Control::of(&mount);
    control.add(b"second").unwrap();
    control.add(b"third").unwrap();
    assert_eq!(control.add(b"fourth"), Err(Errno::ENOSPC));
    assert_eq!(control.add(b"third"), Err(Errno::ENOSPC), "looked at first, as in binderfs");
    // It counts until it is closed.
    let third = open(&mount.join("third"));
    fs::remove_file(mount.join("third")).unwrap();
    assert_eq!(control.add(b"fourth"), Err(Errno::ENOSPC));
    drop(third);
    assert!(common::wait_until(common::PATIENCE, || control.add(b"fourth").is_ok()));
    assert_eq!(owned(&mount.join("binder_logs")), (0o755, 0, 0));
    assert!(user_can(1000, "cat \"$0\"", &mount.join("binder_logs/state")));
    daemon.stop();

    let Some((daemon, mount)) = start(&["--stats=none"]) else { return };
    assert!(!mount.join("binder_logs").exists());
    Control::of(&mount).add(b"binder_logs").unwrap();
    assert_eq!(open(&mount.join("binder_logs")).version().unwrap(), 8);
    daemon.stop();

    let mut few = Program::new(env!("CARGO_BIN_EXE_fakebinderd"));
    few.args(["--door", "fuse", "--name", "a", "--name", "b", "--max-devices", "1"]);
    let output = few.args(["--mount", "/tmp/fbtest-never"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--max-devices"), "{output:?}");
}

/// binderfs's is 0x6c6f6f70; the kernel says FUSE's for every FUSE mount, whatever its server.
#[test]
fn the_file_system_s_magic_is_fuse_s() {
    let Some((daemon, mount)) = start(&[]) else { return };
    let status = nix::sys::statfs::statfs(&mount).unwrap();
    assert_eq!(status.filesystem_type().0, 0x6573_5546);
    assert_eq!((status.block_size(), status.maximum_name_length()), (4096, 255));
    daemon.stop();
}
