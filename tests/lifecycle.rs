//! The daemon's life: start, stop, a second one, and the worst that can happen to it.

mod common;

use common::{Daemon, Door, PATIENCE, in_time, program, skip, unique_name, wait_until};
use fakebinder_client::{Call, Command, Device, Errno, Reply, Thread};
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant};

fn doors(scene: impl Fn(Door)) {
    let here: Vec<_> = [Door::Fuse, Door::Cuse].into_iter().filter(|door| door.is_here()).collect();
    if here.is_empty() {
        skip("neither /dev/fuse nor /dev/cuse is here");
    }
    here.into_iter().for_each(scene);
}

fn device(daemon: &Daemon, door: Door) -> std::path::PathBuf {
    if door == Door::Cuse { daemon.cuse() } else { daemon.fuse() }
}

fn fb_ping(path: &std::path::Path, count: &str) -> Program {
    let mut ping = Program::new(program("fb-ping"));
    ping.arg("--device").arg(path).args(["-n", count]);
    ping.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    ping
}

#[test]
fn a_stopped_daemon_leaves_nothing_behind() {
    doors(|door| {
        let daemon = Daemon::start(door);
        let path = device(&daemon, door);
        assert_eq!(Device::open(&path).unwrap().version().unwrap(), 8);
        daemon.stop();
        assert!(Device::open(&path).is_err());
    });
}

/// A daemon stops although clients have its device open; they get an error.
#[test]
fn a_daemon_stops_under_its_clients() {
    doors(|door| {
        let daemon = Daemon::start(door);
        let mut client = Device::open(device(&daemon, door)).unwrap();
        client.mmap(128 << 10).unwrap();
        client.write(&[Command::EnterLooper]).unwrap();
        let blocked = std::thread::spawn(move || {
            let mut buffer = [0; 256];
            loop {
                match client.read(&mut buffer) {
                    Err(error) if error.errno() != Errno::EINTR => return error,
                    _ => {}
                }
            }
        });
        std::thread::sleep(Duration::from_millis(100));
        daemon.stop();
        let error = in_time("the blocked client", move || blocked.join().unwrap());
        assert!(error.is_disconnected(), "{error}");
    });
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    doors(|door| {
        let first = Daemon::start(door);
        let before = Device::open(device(&first, door)).unwrap();
        let mut second = Daemon::spawn(&first.name, door);
        assert!(wait_until(PATIENCE, || second.exited().is_some()), "it goes on");
        let status = second.exited().unwrap();
        assert_eq!(status.code(), Some(1), "{}", second.log());
        assert!(second.log().contains(&first.name), "it says why: {}", second.log());
        second.forget();
        assert_eq!(before.version().unwrap(), 8);
        assert_eq!(Device::open(device(&first, door)).unwrap().version().unwrap(), 8);
        first.stop();
    });
}

/// `kill -9` in the middle of calls: everybody gets an error at once, and a new daemon of the
/// same name works at once, on the mount that the dead one left.
#[test]
fn a_killed_daemon_frees_its_clients_and_the_next_one_works() {
    doors(|door| {
        let name = unique_name();
        let first = Daemon::start_as(&name, door);
        let path = device(&first, door);
        let ping = fb_ping(&path, "100000000").spawn().unwrap();
        let mut old = Device::open(&path).unwrap();
        old.mmap(128 << 10).unwrap();
        // It is pinging when its manager answers.
        let pinging = || match Thread::new(&old).call(&Call::to(0)) {
            Ok(reply) => matches!(reply, Reply::Data(_)),
            Err(error) => panic!("{error}"),
        };
        assert!(wait_until(PATIENCE, pinging), "{}", first.log());
        std::thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        first.kill();
        let output = in_time("fb-ping", move || ping.wait_with_output().unwrap());
        let elapsed = start.elapsed();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("the daemon is gone"), "it says what happened: {said}");
        assert!(elapsed < Duration::from_secs(5), "it took {elapsed:?}");
        assert!(old.version().unwrap_err().is_disconnected());

        let second = Daemon::start_as(&name, door);
        let output = fb_ping(&device(&second, door), "200").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("200 transactions, 0 failed"), "{said}");
        drop(old);
        second.stop();
    });
}

/// A daemon without a helper that knows its mount: `kill -9`, and then another one that has nothing
/// to do with it but that it starts.
#[test]
fn what_a_killed_daemon_left_is_cleared_by_any_other() {
    if !Door::Fuse.is_here() || !nix::unistd::geteuid().is_root() {
        return skip("it takes root and /dev/fuse");
    }
    // What ends a field or a line in the lists of mounts, what looks like an escape there, and what
    // is not UTF-8.
    for odd in [&b"with spaces"[..], b"tab\tand\nline", br"\040 and \", b"#\xff\x01"] {
        let name = unique_name();
        let scratch = std::env::temp_dir().join(&name);
        let mount = scratch.join(OsStr::from_bytes(odd));
        std::fs::create_dir(&scratch).unwrap();
        let mut killed = Program::new(env!("CARGO_BIN_EXE_fakebinderd"));
        killed.args(["--door", "fuse", "--name", &name, "--mount"]).arg(&mount);
        let mut killed = killed.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = [0; 19];
        killed.stdout.take().unwrap().read_exact(&mut said).unwrap();
        let link = Path::new("/dev").join(&name);
        assert_eq!(Device::open(&link).unwrap().version().unwrap(), 8);
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert!(Device::open(&link).is_err());

        let other = Daemon::start(Door::Fuse);
        let log = other.log();
        assert!(!link.is_symlink(), "the link dangles:\n{log}");
        assert!(std::fs::symlink_metadata(&mount).is_err(), "{} is left:\n{log}", mount.display());
        std::fs::remove_dir(&scratch).expect("nothing is left in it");
        other.stop();
    }
}

/// What is wrong is said in one line, with what to do, and the exit status tells.
#[test]
fn fb_ping_says_what_is_wrong() {
    let missing = fb_ping("/dev/fbtest-not-there".as_ref(), "1").output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("no such device") && said.contains("fakebinderd"), "{said}");

    let null = fb_ping("/dev/null".as_ref(), "1").output().unwrap();
    assert_eq!(null.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&null.stderr).contains("not a binder device"));

    let wrong = fb_ping("/dev/null".as_ref(), "none").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));

    doors(|door| {
        let daemon = Daemon::start(door);
        let mut manager = Device::open(device(&daemon, door)).unwrap();
        manager.mmap(128 << 10).unwrap();
        manager.set_context_manager().unwrap();
        let busy = fb_ping(&device(&daemon, door), "1").output().unwrap();
        assert_eq!(busy.status.code(), Some(1));
        let said = String::from_utf8_lossy(&busy.stderr).into_owned();
        assert!(said.contains("context manager") && said.contains("EBUSY"), "{said}");
        drop(manager);
        daemon.stop();
    });
}
