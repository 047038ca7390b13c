//! The two doors: a client that knows nothing of fakebinder, and calls from one to the other.

mod common;

use common::{
    Daemon, Door, Pair, Target, become_manager, in_time, library, open, skip, wait_until,
};
use fakebinder::client_log::PER_KIND;
use fakebinder_client::{Call, Command, Device, Object, Parcel, Reply, Return, Thread};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::Duration;

/// Serves `calls` calls, each byte plus one.
fn serving(device: Device, calls: usize) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut thread = Thread::new(&device);
        thread.queue(Command::EnterLooper);
        let mut served = 0;
        while served < calls {
            let done = thread.serve(&mut |_, _, contents, reply| {
                let data: Vec<u8> = contents.data.iter().map(|byte| byte.wrapping_add(1)).collect();
                reply.bytes(&data);
            });
            served += usize::from(matches!(done.unwrap(), Return::Transaction(_)));
        }
        thread.flush().unwrap();
    })
}

/// Builds raw_ping.c with these flags; `None` where there is no gcc.
fn build_raw_ping(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let program = std::env::temp_dir().join(format!("{name}-raw-ping"));
    let built = Program::new("gcc")
        .args(["-O2", "-Wall", "-Werror"])
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/raw_ping.c"))
        .status();
    match built {
        Ok(status) => assert!(status.success(), "raw_ping.c builds"),
        Err(error) => {
            skip(&format!("gcc: {error}"));
            return None;
        }
    }
    Some(program)
}

/// The step of raw_ping.c that failed on that device, or 0.
fn step(program: &Path, device: &Path, preload: Option<PathBuf>) -> Option<i32> {
    let mut command = Program::new(program);
    command.arg(device);
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    in_time("raw_ping", move || command.status().unwrap()).code()
}

/// A static program of raw system calls works on the FUSE door as it is.
#[test]
fn a_static_program_with_raw_system_calls_pings() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    let flags = ["-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"];
    let Some(program) = build_raw_ping(&daemon.name, &[&flags[..], &["-no-pie"]].concat()) else {
        return;
    };
    let device = open(&daemon.fuse());
    device.set_context_manager().unwrap();
    let server = serving(device, 1);
    assert_eq!(step(&program, &daemon.fuse(), None), Some(0), "the step that failed");
    server.join().unwrap();
    std::fs::remove_file(program).unwrap();
    daemon.stop();
}

/// A dynamically linked program that knows nothing of fakebinder works on the FUSE door as it is,
/// and on the CUSE door with the preload library, which does no harm on the other.
#[test]
fn an_unmodified_program_pings() {
    const CANNOT_MAP: i32 = 3;
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Auto);
    let Some(program) = build_raw_ping(&daemon.name, &["-DLIBC"]) else { return };
    let preload = library("libfakebinder_preload.so");
    let (fuse, cuse) = (daemon.fuse(), daemon.cuse());
    let mut pings = vec![(&fuse, false, 0), (&fuse, true, 0)];
    if Door::Cuse.is_here() {
        pings.extend([(&cuse, false, CANNOT_MAP), (&cuse, true, 0)]);
    }
    let device = open(&fuse);
    device.set_context_manager().unwrap();
    let answered = pings.iter().filter(|(_, _, expected)| *expected == 0).count();
    let server = serving(device, answered);
    for (device, preloaded, expected) in pings {
        let done = step(&program, device, preloaded.then(|| preload.clone()));
        assert_eq!(done, Some(expected), "{}, preloaded: {preloaded}", device.display());
    }
    server.join().unwrap();
    std::fs::remove_file(program).unwrap();
    daemon.stop();
}

/// What is opened is what the README says: a character device, and a regular file.
#[test]
fn each_door_is_the_kind_of_file_it_should_be() {
    if Door::Fuse.is_here() {
        let daemon = Daemon::start(Door::Fuse);
        assert!(std::fs::metadata(daemon.fuse()).unwrap().is_file());
        assert!(!open(&daemon.fuse()).is_attached(), "it maps by itself");
        daemon.stop();
    } else {
        skip("/dev/fuse is not here");
    }
    if Door::Cuse.is_here() {
        let daemon = Daemon::start(Door::Cuse);
        assert!(std::fs::symlink_metadata(daemon.cuse()).unwrap().file_type().is_char_device());
        assert!(open(&daemon.cuse()).is_attached(), "it cannot be mapped");
        daemon.stop();
    } else {
        skip("/dev/cuse is not here (the VM of tests/vm has it)");
    }
}

/// Where the kernel has no passthrough, the library's clients attach, and so do programs that have
/// it preloaded; others map the kernel's copy of their buffers.
#[test]
fn without_passthrough_clients_attach() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start_with(&["--no-passthrough"], None);
    let Some(program) = build_raw_ping(&daemon.name, &["-DLIBC"]) else { return };
    let preload = library("libfakebinder_preload.so");
    let target = Target::private(daemon.fuse(), daemon);
    let pair = target.pair_with(open(&target.path), &target.path);
    assert!(pair.server.is_attached() && pair.client.is_attached());
    bytes_cross(pair);
    a_node_crosses(target.pair_with(open(&target.path), &target.path));

    let device = open(&target.path);
    become_manager(&device);
    let server = serving(device, 2);
    assert_eq!(step(&program, &target.path, None), Some(0), "the step that failed");
    assert_eq!(step(&program, &target.path, Some(preload)), Some(0), "the step that failed");
    server.join().unwrap();
    std::fs::remove_file(program).unwrap();
}

/// A client on either door calls a manager on the other, and a node crosses over and back.
#[test]
fn clients_on_two_doors_call_each_other() {
    if !Door::Fuse.is_here() || !Door::Cuse.is_here() {
        return skip("it takes both /dev/fuse and /dev/cuse (the VM of tests/vm has them)");
    }
    let daemon = Daemon::start(Door::Auto);
    let (fuse, cuse) = (daemon.fuse(), daemon.cuse());
    let target = Target::private(fuse.clone(), daemon);
    for (server, client) in [(&fuse, &cuse), (&cuse, &fuse)] {
        let pair = target.pair_with(open(server), client);
        assert_ne!(pair.server.is_attached(), pair.client.is_attached());
        bytes_cross(pair);
        a_node_crosses(target.pair_with(open(server), client));
    }
}

fn bytes_cross(mut pair: Pair) {
    let unused = pair.another().0;
    let server = serving(std::mem::replace(&mut pair.server, unused), 100);
    let mut thread = Thread::new(&pair.client);
    for number in 0..100u8 {
        let reply = thread.call(&Call::to(pair.handle).data(&[number; 100])).unwrap();
        assert!(matches!(&reply, Reply::Data(c) if c.data == [number + 1; 100]), "{reply:?}");
    }
    server.join().unwrap();
}

/// The client sends a node of its own; the server calls it through the handle it got.
fn a_node_crosses(pair: Pair) {
    let server = std::thread::spawn(move || {
        let mut thread = Thread::new(&pair.server);
        thread.queue(Command::EnterLooper);
        let mut done = false;
        while !done {
            let served = thread.serve(&mut |thread, _, contents, reply| {
                let object = contents.objects().next();
                let Some(Some(Object::Handle { handle, .. })) = object else { return };
                match thread.call(&Call::to(handle).data(b"back")).unwrap() {
                    Reply::Data(contents) => reply.bytes(&contents.data),
                    other => panic!("{other:?}"),
                };
                done = true;
            });
            served.unwrap();
        }
        thread.flush().unwrap();
    });
    let mut parcel = Parcel::new();
    parcel.binder(0x5000, 0x6000, 0);
    let mut called = None;
    let reply = Thread::new(&pair.client)
        .call_serving(&Call::to(pair.handle).parcel(&parcel), &mut |_, call, contents, reply| {
            called = Some((call.target, call.cookie));
            reply.bytes(&contents.data).bytes(b" and forth");
        })
        .unwrap();
    assert_eq!(called, Some((0x5000, 0x6000)));
    assert!(matches!(&reply, Reply::Data(c) if c.data == b"back and forth"), "{reply:?}");
    server.join().unwrap();
}

/// A bind mount of one file, for as long as this lives.
struct Bound(PathBuf);

impl Bound {
    fn new(device: &Path, name: &str) -> Bound {
        let path = std::env::temp_dir().join(format!("{name}-bound"));
        std::fs::write(&path, "").unwrap();
        mount(Some(device), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Bound(path)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(&self.0);
    }
}

/// As containers are given a device (`docker run --device`, `-v FILE:FILE`): all who open it get
/// the same file, which the kernel could map for one of them only. So they attach.
#[test]
fn a_bind_mount_of_the_one_file_serves_everybody() {
    if !Door::Fuse.is_here() || !nix::unistd::geteuid().is_root() {
        return skip("it takes root and /dev/fuse");
    }
    const PROCESSES: usize = 3;
    let daemon = Daemon::start(Door::Fuse);
    let Some(program) = build_raw_ping(&daemon.name, &["-DLIBC"]) else { return };
    let preload = library("libfakebinder_preload.so");
    let bound = Bound::new(&daemon.fuse(), &daemon.name);
    let path = &bound.0;

    // One is held open all the while, by the very thread that has mounted it.
    let first = open(path);
    assert!(first.is_attached());
    let (server, by_name) = (open(path), open(&daemon.fuse()));
    assert!(server.is_attached() && !by_name.is_attached());
    server.set_context_manager().unwrap();
    let server = serving(server, 2 * PROCESSES + 1);
    std::thread::scope(|scope| {
        for _ in 0..PROCESSES {
            scope.spawn(|| {
                for _ in 0..2 {
                    assert_eq!(step(&program, path, Some(preload.clone())), Some(0));
                }
            });
        }
    });
    assert_eq!(step(&program, &daemon.fuse(), None), Some(0), "the name goes on as ever");
    server.join().unwrap();

    // Without the library it cannot map; the log says what to do.
    assert_ne!(step(&program, path, None), Some(0), "it cannot get a reply");
    let log = daemon.log();
    let lines = log.matches("bind the device's directory").count();
    assert!((1..=PER_KIND as usize).contains(&lines), "{log}");

    // A device that is removed goes on where it is bound, as its inode does in binderfs.
    std::fs::remove_file(daemon.fuse()).unwrap();
    assert_eq!(open(path).version().unwrap(), 8);
    // And its permissions are the device's there, too.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(first.version().unwrap(), 8);
    drop((first, by_name, bound));
    std::fs::remove_file(program).unwrap();
    daemon.stop();
}

/// What is open with a buffer that can be mapped cannot be opened again: the kernel would map the
/// first one's buffer. The log says what to do.
#[test]
fn a_file_that_may_be_mapped_is_opened_once() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    let file = std::fs::File::open(daemon.fuse()).unwrap();
    let again = std::fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    // A thread of its own writes the log.
    let said = || daemon.log().contains("bind its directory");
    assert!(wait_until(Duration::from_secs(20), said), "{}", daemon.log());
    daemon.stop();
}
