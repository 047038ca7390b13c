//! Clients that a control group freezes while they wait: they freeze, and go on when they thaw.
//!
//! With cgroup.freeze (version 2) and freezer.state (version 1), whichever this machine has.

mod common;

use common::{
    Daemon, Door, Killed, PATIENCE, alone, become_manager, in_time, on_devices, open, role,
    role_device, skip, unique_name, wait_until,
};
use fakebinder_client::{Call, Command, Device, Reply, Return, Thread};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A control group that can be frozen; thawed and removed when dropped.
struct Group {
    root: PathBuf,
    path: PathBuf,
    version: u32,
}

impl Group {
    fn new(version: u32) -> Option<Group> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let ours = match version {
                1 => fields[2] == "cgroup" && fields[3].split(',').any(|it| it == "freezer"),
                _ => fields[2] == "cgroup2",
            };
            ours.then(|| PathBuf::from(fields[1]))
        })?;
        let path = root.join(unique_name());
        fs::create_dir(&path).ok()?;
        let group = Group { root, path, version };
        group.path.join(group.switch()).exists().then_some(group)
    }

    fn switch(&self) -> &'static str {
        if self.version == 1 { "freezer.state" } else { "cgroup.freeze" }
    }

    fn take(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn freeze(&self) {
        let word = if self.version == 1 { "FROZEN" } else { "1" };
        fs::write(self.path.join(self.switch()), word).unwrap();
    }

    fn thaw(&self) {
        let word = if self.version == 1 { "THAWED" } else { "0" };
        fs::write(self.path.join(self.switch()), word).unwrap();
    }

    fn is_frozen(&self) -> bool {
        let (file, word) = match self.version {
            1 => ("freezer.state", "FROZEN\n"),
            _ => ("cgroup.events", "frozen 1\n"),
        };
        fs::read_to_string(self.path.join(file)).unwrap().contains(word)
    }

    /// Freezes it, and waits until all of it is.
    fn freeze_wholly(&self) {
        self.freeze();
        assert!(wait_until(PATIENCE, || self.is_frozen()), "version {} freezes", self.version);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.thaw();
        let members = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines() {
            let _ = fs::write(self.root.join("cgroup.procs"), pid);
        }
        // Members that have ended may take a moment to leave.
        wait_until(PATIENCE, || fs::remove_dir(&self.path).is_ok());
    }
}

/// A scene with each kind of freezer.
fn with_freezers(scene: impl Fn(&dyn Fn() -> Group)) {
    let versions: Vec<u32> =
        [1, 2].into_iter().filter(|version| Group::new(*version).is_some()).collect();
    if versions.is_empty() {
        return skip("no control group can be made and frozen here");
    }
    for version in versions {
        scene(&|| Group::new(version).expect("one could be made before"));
    }
}

/// Each byte plus one.
fn serve_one(thread: &mut Thread<'_>, meanwhile: impl Fn()) {
    loop {
        let served = thread.serve(&mut |_, _, contents, reply| {
            meanwhile();
            let data: Vec<u8> = contents.data.iter().map(|byte| byte + 1).collect();
            reply.bytes(&data);
        });
        if matches!(served.unwrap(), Return::Transaction(_)) {
            break;
        }
    }
    thread.flush().unwrap();
}

fn start(name: &str, device: &Path) -> Killed {
    let mut child = Killed(role(name, device).spawn().unwrap());
    child.wait_for("ready");
    child
}

fn call(device: &Path) -> impl FnOnce() -> Vec<u8> + Send + 'static + use<> {
    let device = device.to_owned();
    move || {
        let device = open(&device);
        match Thread::new(&device).call(&Call::to(0).data(&[1, 2])).unwrap() {
            Reply::Data(contents) => contents.data.clone(),
            other => panic!("{other:?}"),
        }
    }
}

/// Not a test: waits in a read for each call.
#[test]
#[ignore = "a role in other tests"]
fn reader() {
    let Some(device) = role_device() else { return };
    serve_for_ever(&device, || {});
}

/// Not a test: waits in epoll for each call.
#[test]
#[ignore = "a role in other tests"]
fn poller() {
    let Some(device) = role_device() else { return };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(device.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
    serve_for_ever(&device, || {
        let mut events = [EpollEvent::empty()];
        while !matches!(epoll.wait(&mut events, EpollTimeout::NONE), Ok(1)) {}
    });
}

fn serve_for_ever(device: &Device, wait: impl Fn()) {
    become_manager(device);
    let mut thread = Thread::new(device);
    thread.queue(Command::EnterLooper);
    thread.flush().unwrap();
    println!("ready");
    loop {
        wait();
        serve_one(&mut thread, || {});
    }
}

/// Not a test: calls, and says whether the answer is right.
#[test]
#[ignore = "a role in other tests"]
fn caller() {
    let Some(device) = role_device() else { return };
    let reply = Thread::new(&device).call(&Call::to(0).data(&[1, 2])).unwrap();
    assert!(matches!(&reply, Reply::Data(contents) if contents.data == [2, 3]), "{reply:?}");
    println!("answered");
}

#[test]
fn a_client_that_waits_for_work_freezes_and_goes_on() {
    with_freezers(|new_group| {
        on_devices(|target| {
            for waits in ["reader", "poller"] {
                let group = new_group();
                let child = start(waits, &target.path);
                group.take(child.0.id());
                for _ in 0..3 {
                    group.freeze_wholly();
                    let calling = std::thread::spawn(call(&target.path));
                    std::thread::sleep(Duration::from_millis(50));
                    assert!(group.is_frozen() && !calling.is_finished(), "{waits}");
                    group.thaw();
                    let reply = in_time("a call of the thawed", || calling.join().unwrap());
                    assert_eq!(reply, [2, 3], "{waits}");
                }
            }
        });
    });
}

#[test]
fn a_client_that_waits_for_a_reply_freezes_and_gets_it() {
    with_freezers(|new_group| {
        on_devices(|target| {
            let group = new_group();
            let device = target.open();
            become_manager(&device);
            let mut thread = Thread::new(&device);
            thread.queue(Command::EnterLooper);
            let mut child = Killed(role("caller", &target.path).spawn().unwrap());
            group.take(child.0.id());
            // It is frozen before the reply comes, and thawed after.
            serve_one(&mut thread, || group.freeze_wholly());
            group.thaw();
            child.wait_for("answered");
        });
    });
}

/// The order that docs/doors.md gives for a daemon that freezes with its clients, and any other:
/// then a client may not freeze before the daemon has thawed, but nothing is lost.
#[test]
fn a_daemon_that_freezes_too_loses_nothing() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let _alone = alone();
    with_freezers(|new_group| {
        let (clients, server) = (new_group(), new_group());
        let daemon = Daemon::start(Door::Fuse);
        let child = start("reader", &daemon.fuse());
        clients.take(child.0.id());
        server.take(daemon.pid());
        for in_order in [true, false, true] {
            if in_order {
                clients.freeze_wholly();
                server.freeze_wholly();
                server.thaw();
                clients.thaw();
            } else {
                server.freeze_wholly();
                clients.freeze();
                std::thread::sleep(Duration::from_millis(50));
                clients.thaw();
                server.thaw();
            }
            let reply = in_time("a call of the thawed", call(&daemon.fuse()));
            assert_eq!(reply, [2, 3], "in order: {in_order}");
        }
        drop((child, clients, server));
        daemon.stop();
    });
}
