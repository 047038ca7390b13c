//! The FUSE mount as a directory like binderfs: what can be done, and adding devices.

mod common;

use common::binderfs::Control;
use common::forked::Forked;
use common::{Daemon, Door, PATIENCE, Pair, Target, open, skip, wait_until};
use fakebinder::uapi;
use fakebinder_client::{Call, Command, Device, Errno, Parcel, Reply, Return, Thread};
use nix::mount::{MsFlags, mount};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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
    let expected = ["binder-control", "binder_logs", "features", &daemon.name].map(str::to_owned);
    assert_eq!(listed(mount.clone()), BTreeSet::from(expected));
    // The newest driver's. The last would be a netlink family, which only a kernel can have.
    let features = [
        ("oneway_spam_detection", "1\n"),
        ("extended_error", "1\n"),
        ("freeze_notification", "1\n"),
        ("transaction_report", "0\n"),
    ];
    let names = features.map(|(name, _)| name.to_owned());
    assert_eq!(listed(mount.join("features")), BTreeSet::from(names));
    for (feature, here) in features {
        assert_eq!(fs::read_to_string(mount.join("features").join(feature)).unwrap(), here);
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
    let control = Control::of(&mount);
    assert_eq!(control.0.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    assert_eq!(control.add(b"added"), Ok(()));
    // A context of its own, with a manager of its own.
    let (first, added) = (open(&daemon.fuse()), open(&mount.join("added")));
    first.set_context_manager().unwrap();
    added.set_context_manager().unwrap();
    let again = Device::open(mount.join("added")).unwrap();
    assert_eq!(again.set_context_manager().unwrap_err().errno(), Errno::EBUSY);

    assert_eq!(control.add(b"added"), Err(Errno::EEXIST));
    assert_eq!(control.add(daemon.name.as_bytes()), Err(Errno::EEXIST));
    for taken in ["binder-control", "binder_logs", "features", ".open"] {
        assert_eq!(control.add(taken.as_bytes()), Err(Errno::EEXIST));
    }
    for name in ["", ".", "..", "a/b", "/"] {
        assert_eq!(control.add(name.as_bytes()), Err(Errno::EACCES), "{name:?}");
    }
    assert_eq!(control.add(b"\xff\xfe"), Ok(()));
    open(&mount.join(OsStr::from_bytes(b"\xff\xfe")));
    // As binderfs: the last byte counts as the terminating NUL.
    assert_eq!(control.add(&[b'x'; 256]), Ok(()));
    open(&mount.join("x".repeat(255)));
    // Other ioctls, and reading.
    assert_eq!(control.ioctl(uapi::BINDER_VERSION, &mut [0u8; 4]), Err(Errno::EINVAL));
    let refused = fs::read(mount.join("binder-control")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    daemon.stop();
}

/// Whoever lists and whoever adds want the same table; the one must not wait inside of it for the
/// other.
#[test]
fn processes_are_listed_while_devices_are_added() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    let mount = daemon.fuse().parent().unwrap().to_owned();
    let opened = open(&daemon.fuse());
    let control = Control::of(&mount);
    let adding = std::thread::spawn(move || {
        (0..300).for_each(|number| control.add(format!("n{number}").as_bytes()).unwrap());
    });
    let processes = mount.join("binder_logs/proc");
    let own = std::process::id().to_string();
    while !adding.is_finished() {
        let listed = fs::read_dir(&processes).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(listed.collect::<Vec<_>>(), [own.as_str()]);
    }
    adding.join().unwrap();
    drop(opened);
    daemon.stop();
}

/// More of them than one read of the directory has room for.
#[test]
fn each_of_many_processes_is_listed_once() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    let device = daemon.fuse();
    let processes = device.parent().unwrap().join("binder_logs/proc");
    let listed = || -> Vec<String> {
        let entries = fs::read_dir(&processes).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let opener = || {
        let Ok(_open) = fs::File::open(&device) else { return 1 };
        nix::unistd::pause();
        0
    };
    let openers: Vec<Forked> = (0..300).map(|_| Forked::start(opener)).collect();
    assert!(wait_until(PATIENCE, || listed().len() >= openers.len()), "{:?}", listed());
    let mut expected: Vec<i32> = openers.iter().map(|it| it.pid().as_raw()).collect();
    expected.sort_unstable();
    let expected: Vec<String> = expected.iter().map(i32::to_string).collect();
    assert_eq!(listed(), expected);
    drop(openers);
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
    let control = Control::of(&mount);
    let added = (0..5000).take_while(|number| control.add(format!("n{number}").as_bytes()).is_ok());
    assert_eq!(added.count(), 4095, "and the one that was there");
    assert_eq!(control.add(b"more"), Err(Errno::ENOSPC));
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 4096 + 3);
    open(&mount.join("n4094"));
    daemon.stop();
}

// ---------------------------------------------------------------- binder_logs

const LOGS: [&str; 5] =
    ["state", "stats", "transactions", "transaction_log", "failed_transaction_log"];

/// A log with every number as `N`, every address as `P`, and the device's name as `NAME`.
fn masked(log: &str, name: &str) -> String {
    let mut out = String::new();
    let mut rest = log;
    while let Some(first) = rest.chars().next() {
        let hex = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_hexdigit()).len();
        let decimal = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if rest.starts_with(name) {
            out += "NAME";
            rest = &rest[name.len()..];
        } else if hex >= 16 {
            out.push('P');
            rest = &rest[hex..];
        } else if decimal > 0 {
            out.push('N');
            rest = &rest[decimal..];
        } else {
            // A sign belongs to its number.
            if !(first == '-' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
                out.push(first);
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// Waits for a reply, holds a buffer, has calls of both kinds waiting, watches a death and has
/// failed once; then gives what the logs say.
fn scene(device: &Path, logs: &Path) -> BTreeMap<String, String> {
    let target = Target { path: device.to_owned(), daemon: None };
    let Pair { server, client, handle, .. } = &target.pair();
    server.write(&[Command::EnterLooper]).unwrap();
    let oneway = Call::to(*handle).oneway().data(b"five!");
    for _ in 0..2 {
        assert_eq!(Thread::new(client).call(&oneway).unwrap(), Reply::Sent);
    }
    let mut buffer = [0; 256];
    let mut held = None;
    while held.is_none() {
        held = server.read(&mut buffer).unwrap().find_map(|it| match it {
            Return::Transaction(transaction) => Some(transaction.buffer),
            _ => None,
        });
    }
    let cookie = 0x5000;
    client.write(&[Command::RequestDeathNotification { handle: *handle, cookie }]).unwrap();
    assert_eq!(Thread::new(client).call(&Call::to(999)).unwrap(), Reply::Failed);
    let read = |log: &str| fs::read_to_string(logs.join(log)).unwrap();
    std::thread::scope(|scope| {
        let mut parcel = Parcel::new();
        parcel.bytes(b"four");
        let caller =
            scope.spawn(move || Thread::new(client).call(&Call::to(*handle).parcel(&parcel)));
        assert!(wait_until(common::PATIENCE, || read("state").contains("outgoing transaction")));
        let mut logs: BTreeMap<String, String> =
            LOGS.iter().map(|log| (log.to_string(), read(log))).collect();
        logs.insert("proc".to_owned(), read(&format!("proc/{}", std::process::id())));
        // The second one-way call comes when the first is freed; the call is answered meanwhile.
        server.write(&[Command::FreeBuffer(held.unwrap())]).unwrap();
        let mut thread = Thread::new(server);
        let mut served = 0;
        while served < 2 {
            let done = thread.serve(&mut |_, _, _, _| {}).unwrap();
            served += u32::from(matches!(done, Return::Transaction(_)));
        }
        thread.flush().unwrap();
        assert!(matches!(caller.join().unwrap(), Ok(Reply::Data(_))));
        logs
    })
}

/// Those parts of a log that only this scene can have made, in words.
fn own_part(log: &str, text: &str, name: &str) -> Vec<String> {
    let text = match log {
        "stats" => text.split_once("\nproc ").map_or("", |(_, processes)| processes),
        _ => text,
    };
    let lines = text.lines().filter(|line| !log.ends_with("_log") || line.contains(name));
    lines.map(|line| masked(line, name)).collect()
}

#[test]
fn the_logs_tell_who_waits_for_what() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    let mount = daemon.fuse().parent().unwrap().to_owned();
    let directory = mount.join("binder_logs");
    for private in [directory.clone(), directory.join("state")] {
        assert_eq!(fs::metadata(private).unwrap().permissions().mode() & 0o077, 0);
    }
    let logs = scene(&daemon.fuse(), &directory);
    logs.iter().for_each(|(log, text)| println!("--- {log}\n{text}"));
    let pid = std::process::id();
    let says = |log: &str, what: &str| {
        assert!(logs[log].contains(what), "{log} does not say {what:?}:\n{}", logs[log]);
    };
    for log in ["state", "transactions", "proc"] {
        says(log, &format!("proc {pid}\ncontext {}\n", daemon.name));
        says(log, "    outgoing transaction ");
        says(log, "  pending transaction ");
        says(log, "    pending async transaction ");
        says(log, "size 5:0:0 delivered");
    }
    says("state", "u0000000000001000 c0000000000002000 hs 1 hw 1");
    says("stats", "BC_ENTER_LOOPER: 1");
    says("stats", "proc: active 3 total ");
    says("stats", "death: active 1 total 1");
    says("transaction_log", &format!("async from {pid}:"));
    says("failed_transaction_log", "handle 999 size 0:0 ret 29201/-22");
    assert!(!directory.join("proc/1").exists());
    daemon.stop();
}

/// Line by line, and word by word but for the numbers, as the kernel's, which shows them in debugfs
/// where it has no binderfs.
#[test]
fn the_logs_look_like_the_driver_s() {
    const DEBUGFS: &str = "/sys/kernel/debug";
    const DRIVER: &str = "vndbinder";
    let device = Path::new("/dev").join(DRIVER);
    if !Door::Fuse.is_here() || !device.exists() {
        return skip("it takes /dev/fuse and the kernel's binder (the VM of tests/vm has them)");
    }
    let daemon = Daemon::start(Door::Fuse);
    let ours = scene(&daemon.fuse(), &daemon.fuse().with_file_name("binder_logs"));
    let logs = Path::new(DEBUGFS).join("binder");
    if !logs.exists() {
        mount(None::<&str>, DEBUGFS, Some("debugfs"), MsFlags::empty(), None::<&str>)
            .expect("debugfs");
    }
    let theirs = scene(&device, &logs);
    for (log, text) in &ours {
        println!("--- {log}\n{}", theirs[log]);
        let ours = own_part(log, text, &daemon.name);
        let theirs = own_part(log, &theirs[log], DRIVER);
        assert!(!theirs.is_empty(), "{log} says nothing");
        assert_eq!(ours.join("\n"), theirs.join("\n"), "{log}");
    }
    daemon.stop();
}
