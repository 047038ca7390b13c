//! Where the memory of buffers goes: back to the machine, when somebody asks or when it is short.

mod common;

use common::{Daemon, Killed, PATIENCE, alone, become_manager, open, role, role_device, skip};
use fakebinder_client::{Call, Command, Device, Parcel, Reply, Return, Thread, uapi};
use std::fs;
use std::path::{Path, PathBuf};

const MAPPING: usize = 1 << 20;

/// What fills a mapping but for a page or two.
const WHOLE: u32 = (MAPPING - 8192) as u32;

/// Answers each call with as many bytes as its code says, each of them `code % 251`.
#[test]
#[ignore = "a role in other tests"]
fn giver() {
    let Some(device) = role_device() else { return };
    become_manager(&device);
    println!("ready");
    let mut thread = Thread::new(&device);
    loop {
        let served = thread.serve(&mut |_, call, _, reply: &mut Parcel| {
            reply.bytes(&vec![(call.code % 251) as u8; call.code as usize]);
        });
        match served {
            Ok(_) => {}
            Err(error) if error.is_disconnected() => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Has `device` receive a reply that takes its whole mapping, and checks every byte of it.
fn use_and_free_all(device: &Device, size: u32) -> Result<(), String> {
    let mut thread = Thread::new(device);
    match thread.call(&Call::to(0).code(size)) {
        Ok(Reply::Data(reply)) => {
            thread.flush().map_err(|error| error.to_string())?;
            let right = reply.data.len() == size as usize
                && reply.data.iter().all(|byte| u32::from(*byte) == size % 251);
            if right { Ok(()) } else { Err("wrong bytes".into()) }
        }
        other => Err(format!("{other:?}")),
    }
}

/// Resident kilobytes of a process's mappings whose path contains `name`, per smaps.
fn resident(pid: u32, name: &str) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let (mut ours, mut sum) = (false, 0);
    for line in smaps.lines() {
        let key = line.split_ascii_whitespace().next().unwrap_or("");
        if !key.ends_with(':') {
            ours = line.contains(name);
        } else if ours && key == "Rss:" {
            sum += line.split_ascii_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or(0);
        }
    }
    sum
}

fn clients(device: &Path, count: usize) -> Vec<Device> {
    (0..count)
        .map(|_| {
            let mut client = Device::open(device).unwrap();
            client.mmap(MAPPING).unwrap();
            client
        })
        .collect()
}

#[test]
fn reclaim_by_hand_returns_what_200_clients_used_and_freed() {
    let _alone = alone();
    // What else the machine does may press on its memory.
    let daemon = Daemon::start_with(&["--no-pressure"], None);
    let mut giver = Killed(role("giver", &daemon.fuse()).spawn().unwrap());
    giver.wait_for("ready");
    let clients = clients(&daemon.fuse(), 200);
    for client in &clients {
        use_and_free_all(client, WHOLE).unwrap();
    }
    let own = std::process::id();
    let file = daemon.mount.to_str().unwrap().to_owned();
    let measure = || (resident(daemon.pid(), "/memfd:"), resident(own, &file));
    let before = measure();
    let held = clients[0].daemon_stats().unwrap();
    let reclaimed = clients[0].daemon_reclaim().unwrap();
    let after = measure();
    println!("           daemon (kB)  clients (kB)");
    println!("used, free {:>11} {:>13}", before.0, before.1);
    println!("reclaimed  {:>11} {:>13}", after.0, after.1);
    let pages = 200 * (u64::from(WHOLE) / 4096);
    assert!(held.reclaimable_pages >= pages, "{held:?}");
    assert!(before.0 >= pages * 4 && before.1 >= pages * 4, "all of it was resident: {before:?}");
    assert!(reclaimed >= pages, "{reclaimed} pages reclaimed");
    // What the giver's calls hold, which come and go, is not counted here.
    assert!(after.0 <= 64 && after.1 == 0, "all of it is gone: {after:?}");
    for client in &clients {
        use_and_free_all(client, 100_000).unwrap();
    }
    drop(clients);
    drop(giver);
    daemon.stop();
}

#[test]
fn sigusr2_reclaims() {
    let _alone = alone();
    let daemon = Daemon::start_with(&["--no-pressure"], None);
    let mut giver = Killed(role("giver", &daemon.fuse()).spawn().unwrap());
    giver.wait_for("ready");
    let client = open(&daemon.fuse());
    use_and_free_all(&client, 100_000).unwrap();
    assert!(client.daemon_stats().unwrap().reclaimable_pages >= 24);
    let pid = nix::unistd::Pid::from_raw(daemon.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR2).unwrap();
    let gone =
        common::wait_until(PATIENCE, || client.daemon_stats().unwrap().reclaimable_pages == 0);
    assert!(gone, "{:?}", client.daemon_stats());
    drop(client);
    drop(giver);
    daemon.stop();
}

/// With room for two mappings, three clients take turns; and a fourth that asks while two hold
/// theirs fails alone.
#[test]
fn a_page_budget_reclaims_first_and_then_fails_that_transaction_alone() {
    let _alone = alone();
    let daemon = Daemon::start_with(&["--page-budget", "2200K"], None);
    let mut giver = Killed(role("giver", &daemon.fuse()).spawn().unwrap());
    giver.wait_for("ready");
    let clients = clients(&daemon.fuse(), 4);
    for client in clients.iter().chain(&clients) {
        use_and_free_all(client, WHOLE).unwrap();
    }
    let hold = |client: &Device| {
        client.write(&[Command::Transaction(Call::to(0).code(WHOLE))]).unwrap();
        loop {
            for returned in client.read(&mut [0; 256]).unwrap() {
                match returned {
                    Return::Reply(reply) => return Ok(reply.buffer),
                    Return::FailedReply | Return::DeadReply => return Err(returned),
                    _ => {}
                }
            }
        }
    };
    let first = hold(&clients[0]).unwrap();
    let _second = hold(&clients[1]).unwrap();
    assert_eq!(hold(&clients[2]), Err(Return::FailedReply));
    clients[0].write(&[Command::FreeBuffer(first)]).unwrap();
    hold(&clients[2]).unwrap();
    drop(clients);
    drop(giver);
    daemon.stop();
}

/// We send nothing, in a buffer of one page, and are sent 25 pages.
#[test]
fn a_fault_for_one_sender_is_its_alone_and_how_long_pages_took_is_told_by_sender() {
    let _alone = alone();
    let path = std::env::temp_dir().join(common::unique_name());
    let us = std::process::id();
    let inject = format!("alloc_page:pid={us}:delay=50ms");
    let told = path.to_str().unwrap();
    let daemon = Daemon::start_with(&["--inject", &inject, "--install-latency", told], None);
    let mut giver = Killed(role("giver", &daemon.fuse()).spawn().unwrap());
    giver.wait_for("ready");
    let client = open(&daemon.fuse());
    use_and_free_all(&client, 100_000).unwrap();
    drop(client);
    let other = giver.0.id();
    drop(giver);
    daemon.stop();
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let times = |pid: u32| -> Vec<u64> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(&format!("{pid} ")));
        lines.map(|line| line.strip_suffix(" 1").unwrap().parse().unwrap()).collect()
    };
    assert!(matches!(times(us)[..], [time] if time >= 50_000_000), "{us}: {text}");
    assert!(matches!(times(other)[..], [time] if time < 25 * 50_000_000), "{other}: {text}");
}

/// A control group of our own with a limit; removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new(settings: &[(&str, &str)]) -> Result<Group, String> {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if !controllers.split_whitespace().any(|controller| controller == "memory") {
            return Err("no memory controller on the unified hierarchy of control groups".into());
        }
        fs::write(root.join("cgroup.subtree_control"), "+memory").map_err(|e| e.to_string())?;
        let group = Group(root.join(common::unique_name()));
        fs::create_dir(&group.0).map_err(|error| error.to_string())?;
        for (file, value) in settings {
            fs::write(group.0.join(file), value).map_err(|error| format!("{file}: {error}"))?;
        }
        Ok(group)
    }

    fn event(&self, name: &str) -> u64 {
        let events = fs::read_to_string(self.0.join("memory.events")).unwrap();
        let line = events.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        line.unwrap_or_else(|| panic!("no {name} in {events}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        common::wait_until(PATIENCE, || fs::remove_dir(&self.0).is_ok());
    }
}

/// The load of the 200 clients, three times the group's memory, in a group of 64 MiB.
fn runs_through_64_mib(settings: &[(&str, &str)], arguments: &[&str]) {
    let _alone = alone();
    let group = match Group::new(settings) {
        Ok(group) => group,
        Err(reason) => return skip(&reason),
    };
    let daemon = Daemon::start_with(arguments, Some(&group.0));
    let mut giver = Killed(role("giver", &daemon.fuse()).spawn().unwrap());
    giver.wait_for("ready");
    let clients = clients(&daemon.fuse(), 200);
    for client in &clients {
        use_and_free_all(client, WHOLE).unwrap();
    }
    let stats: uapi::fakebinder_stats = clients[0].daemon_stats().unwrap();
    let log = daemon.log();
    let by_pressure = log
        .lines()
        .filter(|line| line.contains("under memory pressure") && line.contains("reclaimed"))
        .count();
    println!(
        "{settings:?}: {} pages left, {by_pressure} rounds by pressure, {} OOM kills",
        stats.pages,
        group.event("oom_kill ")
    );
    assert_eq!(group.event("oom_kill "), 0);
    if settings.iter().any(|(file, _)| *file == "memory.high") {
        assert!(by_pressure > 0, "pages are reclaimed by pressure:\n{log}");
    }
    drop(clients);
    drop(giver);
    daemon.stop();
}

#[test]
fn in_a_group_that_throttles_pages_are_reclaimed_by_pressure() {
    let settings = [("memory.max", "64M"), ("memory.high", "40M")];
    runs_through_64_mib(&settings, &["-v", "--page-budget", "1G"]);
}

#[test]
fn in_a_group_with_a_hard_limit_alone_the_budget_keeps_below_it() {
    runs_through_64_mib(&[("memory.max", "64M")], &[]);
}
