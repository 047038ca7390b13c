//! One daemon with several mounts, as for containers: each is a world of its own, as instances of
//! binderfs are.

mod common;

use common::binderfs::Control;
use common::{
    Daemon, Door, Killed, PATIENCE, Target, become_manager, look_up, offer, open, skip,
    unique_name, wait_until,
};
use fakebinder_client::{Call, Device, Errno, Reply, Thread};
use nix::mount::{MntFlags, umount2};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn possible() -> bool {
    let possible = nix::unistd::geteuid().is_root() && Door::Fuse.is_here();
    if !possible {
        skip("it takes root and /dev/fuse");
    }
    possible
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// A daemon with two mounts, and the second one.
fn two_mounts(flags: &[&str]) -> (Daemon, PathBuf) {
    let second = std::env::temp_dir().join(unique_name() + "-second");
    let mut arguments = vec!["--mount", second.to_str().unwrap()];
    arguments.extend(flags);
    let daemon = Daemon::start_with(&arguments, None);
    // It was waited for until the first one is there.
    let is_there = || second.join(&daemon.name).exists();
    assert!(wait_until(PATIENCE, is_there), "{}", daemon.log());
    (daemon, second)
}

/// Whoever serves on one mount is not there for those on the other, by no handle; and the
/// notification of a death does not cross over.
#[test]
fn nobody_reaches_the_context_manager_of_another_mount() {
    if !possible() {
        return;
    }
    let (daemon, second) = two_mounts(&[]);
    let (here, there) = (daemon.fuse(), second.join(&daemon.name));
    let first = Target { path: here.clone(), daemon: None };
    let _registrar = first.registrar();
    let server = open(&here);
    offer(&server, 0);
    let client = open(&here);
    let held = look_up(&client);
    // The same process there: nobody serves, and what it holds here is nothing.
    let stranger = open(&there);
    assert_eq!(Thread::new(&stranger).call(&Call::to(0)).unwrap(), Reply::Dead);
    for handle in [held, held + 1] {
        assert_eq!(Thread::new(&stranger).call(&Call::to(handle)).unwrap(), Reply::Failed);
    }
    // A manager of its own, beside the first.
    let second_target = Target { path: there.clone(), daemon: None };
    let _registrar = second_target.registrar();
    let their_server = open(&there);
    offer(&their_server, 0);
    assert!(look_up(&stranger) > 0);
    let third = Device::open(&there).unwrap();
    assert_eq!(third.set_context_manager().unwrap_err().errno(), Errno::EBUSY);
    drop((server, client, stranger, their_server, third));
    daemon.stop();
    assert!(!second.exists());
}

/// Root in a container that has one mount reads nothing of those that have another.
#[test]
fn the_logs_of_a_mount_tell_of_it_alone() {
    if !possible() {
        return;
    }
    let (daemon, second) = two_mounts(&[]);
    let first = Target { path: daemon.fuse(), daemon: None };
    let mut registrar = first.registrar();
    let pid = registrar.0.id().to_string();
    let client = open(&daemon.fuse());
    assert_eq!(Thread::new(&client).call(&Call::to(999)).unwrap(), Reply::Failed);
    let read = |mount: &Path, log: &str| fs::read_to_string(mount.join("binder_logs").join(log));
    for log in ["state", "stats"] {
        assert!(read(&daemon.mount, log).unwrap().contains(&format!("proc {pid}\n")), "{log}");
        assert!(!read(&second, log).unwrap().contains("proc "), "{}", read(&second, log).unwrap());
    }
    assert!(read(&daemon.mount, "failed_transaction_log").unwrap().contains("handle 999"));
    for log in ["transactions", "transaction_log", "failed_transaction_log"] {
        assert!(!read(&second, log).unwrap().contains(" handle "), "{log}");
    }
    let processes = |mount: &Path| fs::read_dir(mount.join("binder_logs/proc")).unwrap().count();
    assert_eq!((processes(&daemon.mount), processes(&second)), (2, 0));
    assert!(read(&daemon.mount, &format!("proc/{pid}")).is_ok());
    assert!(read(&second, &format!("proc/{pid}")).is_err());
    registrar.0.kill().unwrap();
    drop((client, registrar));
    daemon.stop();
}

/// What is done to the devices of one mount is done to no other's.
#[test]
fn devices_are_added_changed_and_removed_in_one_mount_alone() {
    if !possible() {
        return;
    }
    let (daemon, second) = two_mounts(&["--max-devices", "2"]);
    Control::of(&second).add(b"added").unwrap();
    assert_eq!(Control::of(&second).add(b"more"), Err(Errno::ENOSPC));
    assert!(!daemon.mount.join("added").exists());
    Control::of(&daemon.mount).add(b"added").unwrap();
    let there = second.join(&daemon.name);
    fs::set_permissions(&there, fs::Permissions::from_mode(0o600)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&daemon.fuse()), mode(&there)), (0o666, 0o600));
    fs::remove_file(second.join("added")).unwrap();
    become_manager(&open(&daemon.mount.join("added")));
    daemon.stop();
}

/// One that is unmounted from outside takes its clients along, and no other's.
#[test]
fn a_mount_that_is_taken_away_leaves_the_others() {
    if !possible() {
        return;
    }
    for first in [true, false] {
        let (mut daemon, second) = two_mounts(&[]);
        let (gone, stays) = match first {
            true => (daemon.mount.clone(), second.clone()),
            false => (second.clone(), daemon.mount.clone()),
        };
        let client = open(&stays.join(&daemon.name));
        umount2(&gone, MntFlags::MNT_DETACH).unwrap();
        let said = format!("{} (FUSE) was closed from outside", gone.display());
        assert!(wait_until(PATIENCE, || daemon.log().contains(&said)), "{}", daemon.log());
        assert_eq!(client.version().unwrap(), 8);
        let target = Target { path: stays.join(&daemon.name), daemon: None };
        let pair = target.pair();
        assert_eq!(Thread::new(&pair.client).call(&Call::to(999)).unwrap(), Reply::Failed);
        assert!(daemon.exited().is_none());
        drop((pair, client));
        daemon.stop();
    }
}

/// A daemon that is waited for, by its own arguments.
fn start(arguments: &[&str]) -> Killed {
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_fakebinderd"));
    daemon.args(["--door", "fuse", "--no-link"]).args(arguments);
    let mut daemon = daemon.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "fakebinderd: ready\n");
    Killed(daemon)
}

/// Each mount of a killed daemon, whatever the next one's are.
#[test]
fn all_mounts_of_a_killed_daemon_are_cleared_by_the_next() {
    if !possible() {
        return;
    }
    let scratch = std::env::temp_dir().join(unique_name());
    let mounts: Vec<PathBuf> = (0..5).map(|number| scratch.join(format!("{number}/fs"))).collect();
    let names: Vec<&str> = mounts.iter().map(|path| path.to_str().unwrap()).collect();
    let flags: Vec<&str> = names.iter().flat_map(|name| ["--mount", name]).collect();
    let name = unique_name();
    let mut killed = start(&[&["--name", &name], &flags[..]].concat());
    let held = open(&mounts[3].join(&name));
    killed.0.kill().unwrap();
    killed.0.wait().unwrap();
    assert!(held.version().unwrap_err().is_disconnected());

    // (Other daemons that start at the same time may have cleared them by now.) One of them again,
    // and a new one.
    let other = scratch.join("other");
    let next = [&["--name", &name, "--mount", names[2]][..], &["--mount", other.to_str().unwrap()]];
    let mut next = start(&next.concat());
    let left: Vec<&PathBuf> = mounts.iter().filter(|mount| is_mounted(mount)).collect();
    assert_eq!(left, [&mounts[2]]);
    assert!(!mounts[0].exists());
    assert_eq!(open(&mounts[2].join(&name)).version().unwrap(), 8);
    let pid = nix::unistd::Pid::from_raw(next.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(next.0.wait().unwrap().success());
    assert!(!is_mounted(&mounts[2]) && !is_mounted(&other));
    drop(held);
    fs::remove_dir_all(&scratch).unwrap();
}

/// Nobody would notice that one is missing: so all have to be.
#[test]
fn a_mount_that_cannot_be_made_is_named_and_nothing_is_left() {
    if !possible() {
        return;
    }
    let scratch = std::env::temp_dir().join(unique_name());
    fs::create_dir_all(scratch.join("full/precious")).unwrap();
    let (good, full) = (scratch.join("good"), scratch.join("full"));
    for (second, why) in [
        (full.clone(), "is not empty"),
        (good.join("inner"), "are one inside the other"),
        (good.clone(), "are one inside the other"),
        (PathBuf::from("/proc/no/such"), "/proc/no"),
    ] {
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_fakebinderd"));
        daemon.args(["--no-link", "--name", &unique_name(), "--mount"]).arg(&good);
        let output = daemon.arg("--mount").arg(&second).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let last = said.lines().last().unwrap();
        assert!(last.contains(why) && last.contains(second.to_str().unwrap()), "{said}");
        assert!(!good.exists(), "{said}");
    }
    fs::remove_dir_all(&scratch).unwrap();
}
