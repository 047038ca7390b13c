//! What one user may make the daemon hold: the excess is that user's own trouble, and what it
//! takes in descriptors and memory is given back.
//!
//! Needs root and /dev/fuse; where they are missing each test says so and does nothing.

mod common;

use common::forked::Forked;
use common::{Daemon, Door, PATIENCE, Pair, Target, alone, skip, wait_until};
use fakebinder_client::{Call, Command, Device, Errno, Parcel, Reply, Thread, uapi};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

fn possible() -> bool {
    let possible = nix::unistd::geteuid().is_root() && Door::Fuse.is_here();
    if !possible {
        skip("it takes root and /dev/fuse");
    }
    possible
}

fn start(options: &[&str]) -> Target {
    let daemon = Daemon::start_with(options, None);
    Target::private(daemon.fuse(), daemon)
}

fn daemon(target: &Target) -> &Daemon {
    target.daemon.as_ref().expect("a private one")
}

/// A process of this user that does something with the device, says so, and stays until it is
/// dropped. What it says is a number.
fn process(path: &Path, uid: u32, work: impl FnOnce(&Path) -> (u32, Vec<Device>)) -> (Forked, u32) {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    let process = Forked::start(move || {
        nix::unistd::setuid(uid.into()).unwrap();
        let (number, _devices) = work(path);
        theirs.write_all(&number.to_ne_bytes()).unwrap();
        loop {
            nix::unistd::pause();
        }
    });
    let mut number = [0; 4];
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    ours.read_exact(&mut number).expect("the process does its work");
    (process, u32::from_ne_bytes(number))
}

/// How many opens succeed before the first that does not, of so many.
fn opens(path: &Path, most: u32) -> (u32, Vec<Device>) {
    let mut devices = Vec::new();
    for number in 0..most {
        match Device::open(path) {
            Ok(device) => devices.push(device),
            Err(error) => {
                assert_eq!(error.errno(), Errno::EMFILE);
                return (number, devices);
            }
        }
    }
    (most, devices)
}

/// A pair of living processes, which goes on.
fn goes_on(pair: &Pair) {
    let call = Call::to(pair.handle).oneway().data(b"and on");
    let mut thread = Thread::new(&pair.client);
    assert_eq!(thread.call(&call).unwrap(), Reply::Sent);
    let mut server = Thread::new(&pair.server);
    server.queue(Command::EnterLooper);
    let mut served = false;
    while !served {
        server.serve(&mut |_, _, contents, _| served = contents.data == b"and on").unwrap();
    }
    server.flush().unwrap();
    thread.flush().unwrap();
}

#[test]
fn a_user_opens_until_refused_and_others_go_on() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let target = start(&["--user-limit", "opens=20"]);
    let pair = target.pair();
    let (first, opened) = process(&target.path, 1000, |path| opens(path, 15));
    assert_eq!(opened, 15);
    // Another process of the same user has what is left, a thousand times refused or not.
    let (second, opened) = process(&target.path, 1000, |path| {
        (0..1_000).for_each(|_| drop(opens(path, 6)));
        // The kernel releases a little after the close.
        let mut opened = opens(path, 100);
        wait_until(PATIENCE, || {
            if opened.0 < 5 {
                opened.1.clear();
                opened = opens(path, 100);
            }
            opened.0 == 5
        });
        opened
    });
    assert_eq!(opened, 5);
    let (other, opened) = process(&target.path, 1001, |path| opens(path, 10));
    assert_eq!(opened, 10);
    let (root, opened) = process(&target.path, 0, |path| opens(path, 100));
    assert_eq!(opened, 100);
    goes_on(&pair);
    let log = || daemon(&target).log();
    let said = || log().matches("uid 1000 has 20 opens and may have 20").count();
    assert!(wait_until(PATIENCE, || said() > 0) && said() <= 10, "{}", log());
    drop((first, second, other, root));
    let again =
        wait_until(PATIENCE, || process(&target.path, 1000, |path| opens(path, 20)).1 == 20);
    assert!(again, "what was closed is given back");
}

/// A context manager that answers each call with what it says.
fn echo(path: &Path) -> (u32, Vec<Device>) {
    let mut device = Device::open(path).unwrap();
    device.mmap(1 << 20).unwrap();
    device.set_context_manager().unwrap();
    std::thread::spawn(move || {
        let mut thread = Thread::new(&device);
        thread.queue(Command::EnterLooper);
        loop {
            let answer = thread.serve(&mut |_, _, contents, reply| _ = reply.bytes(&contents.data));
            answer.unwrap();
        }
    });
    (0, Vec::new())
}

/// A process of this user that calls the context manager on and on, until it is told to stop; then
/// it says how often it did. What is not the right answer ends it.
fn caller(path: &Path, uid: u32) -> (Forked, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let process = Forked::start(move || {
        nix::unistd::setuid(uid.into()).unwrap();
        let mut device = Device::open(path).unwrap();
        device.mmap(1 << 20).unwrap();
        let mut thread = Thread::new(&device);
        theirs.set_nonblocking(true).unwrap();
        let mut calls = 0u32;
        while theirs.read(&mut [0]).is_err() {
            let data = calls.to_ne_bytes();
            let reply = thread.call(&Call::to(0).data(&data)).unwrap();
            assert!(matches!(&reply, Reply::Data(contents) if contents.data == data), "{reply:?}");
            calls += 1;
        }
        theirs.write_all(&calls.to_ne_bytes()).unwrap();
        0
    });
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    (process, ours)
}

/// The same with nothing said about limits, while a pair of another ordinary user goes on.
#[test]
fn by_default_who_opens_until_refused_leaves_another_user_an_open_and_a_living_pair() {
    /// Opens of one process, whose own limit of descriptors must not come first.
    const EACH: u32 = 900;
    if !possible() {
        return;
    }
    let _alone = alone();
    let target = start(&[]);
    let (server, _) = process(&target.path, 1001, echo);
    let (client, mut told) = caller(&target.path, 1001);
    let mut greedy = Vec::new();
    let mut all = 0;
    loop {
        let (process, opened) = process(&target.path, 1000, |path| opens(path, EACH));
        greedy.push(process);
        all += opened;
        if opened < EACH {
            break;
        }
        // Half of the mappings that a process of this kernel may have is less.
        assert!(greedy.len() < 1_000, "nobody is refused");
    }
    let (other, opened) = process(&target.path, 1001, |path| opens(path, 1));
    assert_eq!(opened, 1, "another user's open, while one has {all}");
    told.write_all(b"s").unwrap();
    let mut calls = [0; 4];
    told.read_exact(&mut calls).expect("the pair has gone on without an error");
    client.succeed();
    let calls = u32::from_ne_bytes(calls);
    println!("{all} opens were granted, while {calls} calls of the pair were answered");
    assert!(calls > 0);
    let log = daemon(&target).log();
    assert!(log.contains(&format!("uid 1000 has {all} opens and may have {all}")), "{log}");
    drop((greedy, other, server));
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

/// What is kept for clients that are served often, whatever the number of clients.
const KEPT: usize = 32;

#[test]
fn an_open_costs_the_daemon_one_descriptor_at_most() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let target = start(&[]);
    let pair = target.pair();
    goes_on(&pair);
    let before = descriptors(daemon(&target));
    let (several, _) = process(&target.path, 1000, |path| opens(path, 100));
    let of_one = descriptors(daemon(&target)) - before;
    assert!(of_one <= 1, "{of_one} for 100 opens of a process");
    const PROCESSES: usize = 50;
    let each = |path: &Path| {
        let mut device = Device::open(path).unwrap();
        device.mmap(128 << 10).unwrap();
        let reply = Thread::new(&device).call(&Call::to(0).code(common::GET)).unwrap();
        assert!(matches!(reply, Reply::Data(_)));
        (0, vec![device])
    };
    let many: Vec<_> = (0..PROCESSES).map(|_| process(&target.path, 1000, each)).collect();
    let of_many = descriptors(daemon(&target)) - before - of_one;
    assert!(of_many <= PROCESSES + KEPT, "{of_many} for {PROCESSES} processes");
    drop((several, many));
    let left = || descriptors(daemon(&target)) <= before + KEPT;
    assert!(wait_until(PATIENCE, left), "{} of {before}", descriptors(daemon(&target)));
}

fn resident_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Sends nodes to the context manager, many at a time, until that is refused or there are so many;
/// gives their number.
fn hog(path: &Path, most: u64) -> (u32, Vec<Device>) {
    const AT_ONCE: u64 = 500;
    let mut device = Device::open_nonblock(path).unwrap();
    device.mmap(1 << 20).unwrap();
    let mut nodes = 0;
    'nodes: while nodes < most {
        let mut parcel = Parcel::new();
        for number in 0..AT_ONCE {
            parcel.binder((nodes + number + 1) * 16, 0, 0);
        }
        let call = Command::Transaction(Call::to(0).oneway().parcel(&parcel));
        let mut write = vec![call];
        let mut read = [0; 4096];
        loop {
            let returns = device.write_read(&write, &mut read);
            write.clear();
            let Ok(returns) = returns else { break };
            for read in returns {
                if read == fakebinder_client::Return::FailedReply {
                    let error = device.extended_error().unwrap();
                    if error.param == -(Errno::ENOSPC as i32) {
                        // The manager has not come to free what it has.
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        continue 'nodes;
                    }
                    assert_eq!(error.param, -(Errno::ENOMEM as i32));
                    return (nodes as u32, vec![device]);
                }
            }
        }
        nodes += AT_ONCE;
    }
    (nodes as u32, vec![device])
}

/// A context manager that frees what it is sent, and keeps the references that came with it.
fn collector(path: &Path) -> (u32, Vec<Device>) {
    let path = path.to_owned();
    let mut device = Device::open(&path).unwrap();
    device.mmap(1 << 20).unwrap();
    device.set_context_manager().unwrap();
    std::thread::spawn(move || {
        let mut thread = Thread::new(&device);
        thread.queue(Command::EnterLooper);
        loop {
            let served = thread.serve(&mut |thread, _, contents, _| {
                for object in contents.objects().flatten() {
                    if let fakebinder_client::Object::Handle { handle, .. } = object {
                        thread.queue(Command::Acquire(handle));
                    }
                }
            });
            if served.is_err() {
                return;
            }
        }
    });
    (0, Vec::new())
}

/// Records come out of the budget that buffers have: a hog of them is refused, and half of the
/// budget is left to the others.
#[test]
fn a_hog_of_records_stays_within_the_budget_and_leaves_half_of_it() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let target = start(&["--page-budget", "32M"]);
    let (manager, _) = process(&target.path, 1001, collector);
    let before = resident_kib(daemon(&target));
    let (hog, nodes) = process(&target.path, 1000, |path| hog(path, u64::MAX));
    let held = resident_kib(daemon(&target)) - before;
    println!("{nodes} nodes took {held} KiB of 32 MiB");
    assert!(nodes > 5_000, "{nodes} nodes");
    assert!(held < 48 << 10, "{held} KiB");
    // Somebody else has buffers, and calls.
    let (other, _) = process(&target.path, 1002, |path| {
        let mut device = Device::open(path).unwrap();
        device.mmap(1 << 20).unwrap();
        let call = Call::to(0).oneway().data(&[0; 100_000]);
        // The hog's one-way calls may still fill the manager's space.
        let mut thread = Thread::new(&device);
        assert!(wait_until(PATIENCE, || thread.call(&call).unwrap() == Reply::Sent));
        drop(thread);
        (0, vec![device])
    });
    drop((hog, other, manager));
    let open = || Device::open(&target.path).and_then(|device| device.daemon_stats());
    let gone = |stats: uapi::fakebinder_stats| stats.nodes == 0;
    assert!(wait_until(PATIENCE, || open().is_ok_and(gone)), "{:?}", open());
}

/// What a hog has taken is the machine's again when it has gone; for a good measure of it,
/// `FAKEBINDER_HOG=1000000`.
#[test]
fn memory_comes_back_after_a_hog() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let references: u64 =
        std::env::var("FAKEBINDER_HOG").map_or(100_000, |number| number.parse().unwrap());
    let target = start(&["--user-limit", "records=10M", "--user-limit", "record-bytes=4G"]);
    let (manager, _) = process(&target.path, 1001, collector);
    let before = resident_kib(daemon(&target));
    const EACH: u64 = 100_000;
    let hogs: Vec<_> = (0..references.div_ceil(EACH))
        .map(|_| process(&target.path, 1000, |path| hog(path, EACH)).0)
        .collect();
    let during = resident_kib(daemon(&target));
    drop((hogs, manager));
    // One tenth stays for what comes next.
    let left = || resident_kib(daemon(&target)) < before + (during - before) / 10 + (8 << 10);
    let came_back = wait_until(PATIENCE, left);
    let after = resident_kib(daemon(&target));
    println!("{references} references: {before} KiB before, {during} during, {after} after");
    assert!(came_back, "{before} KiB before, {during} during, {after} after");
}

/// A control group with a memory limit, on whichever hierarchy this machine has; removed when
/// dropped.
struct Group(std::path::PathBuf);

impl Group {
    fn with_limit(bytes: u64) -> Result<Group, String> {
        let root = Path::new("/sys/fs/cgroup");
        let version_1 = root.join("memory/memory.limit_in_bytes").exists();
        let (parent, file) = match version_1 {
            true => (root.join("memory"), "memory.limit_in_bytes"),
            false => (root.to_owned(), "memory.max"),
        };
        if !version_1 {
            std::fs::write(root.join("cgroup.subtree_control"), "+memory")
                .map_err(|error| format!("no memory controller of control groups: {error}"))?;
        }
        let group = Group(parent.join(common::unique_name()));
        std::fs::create_dir(&group.0).map_err(|error| error.to_string())?;
        let limited = std::fs::write(group.0.join(file), bytes.to_string());
        limited.map_err(|error| format!("{file}: {error}"))?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        wait_until(PATIENCE, || std::fs::remove_dir(&self.0).is_ok());
    }
}

/// 70,000 nodes of one client once ended a daemon in such a group, and all of its clients with it.
#[test]
fn in_a_group_of_64_mib_a_hog_of_nodes_does_not_end_the_daemon() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let group = match Group::with_limit(64 << 20) {
        Ok(group) => group,
        Err(reason) => return skip(&reason),
    };
    let daemon = Daemon::start_with(&[], Some(&group.0));
    let mut target = Target::private(daemon.fuse(), daemon);
    assert!(daemon_says(&target, "three quarters of this control group's memory"));
    let (manager, _) = process(&target.path, 1001, collector);
    let (hog, nodes) = process(&target.path, 1000, |path| hog(path, 70_000));
    println!("{nodes} nodes of 70,000");
    // Half of 48 MiB, at 768 bytes each.
    assert!((5_000..33_000).contains(&nodes), "{nodes} nodes");
    assert_eq!(target.daemon.as_mut().unwrap().exited(), None);
    assert!(Device::open(&target.path).and_then(|device| device.version()).is_ok());
    drop((hog, manager));
}

fn daemon_says(target: &Target, what: &str) -> bool {
    wait_until(PATIENCE, || daemon(target).log().contains(what))
}
