//! What `fakebinder` shows of a running daemon.

mod common;

use common::asking::{answer, ask, end, json, listen, processes, text};
use common::{
    Daemon, Door, Killed, PATIENCE, become_manager, on_doors, open, program, role, role_device,
    skip, unique_name, wait_until,
};
use fakebinder_client::{Call, Command as Write, Device, Object, Parcel, Reply, Thread};
use serde_json::Value;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Nobody in particular.
const ORDINARY: u32 = 65534;

/// Not a test: the context manager, of one thread. It takes a node from the first who calls, and
/// calls that.
#[test]
#[ignore = "a role in other tests"]
fn manager() {
    let Some(device) = role_device() else { return };
    become_manager(&device);
    let mut thread = Thread::new(&device);
    thread.queue(Write::EnterLooper);
    thread.flush().unwrap();
    println!("ready");
    let mut known = None;
    while known.is_none() {
        let took = thread.serve(&mut |thread, _, contents, _| {
            if let Some(Some(Object::Handle { handle, .. })) = contents.objects().next() {
                thread.queue(Write::Acquire(handle));
                known = Some(handle);
            }
        });
        took.unwrap();
    }
    let _ = thread.call(&Call::to(known.unwrap()).code(9));
}

/// Not a test: gives the manager a node, and calls the manager instead of serving it.
#[test]
#[ignore = "a role in other tests"]
fn other() {
    let Some(device) = role_device() else { return };
    let mut parcel = Parcel::new();
    parcel.binder(0x1000, 0x2000, 0);
    let mut thread = Thread::new(&device);
    thread.queue(Write::EnterLooper);
    thread.call(&Call::to(0).parcel(&parcel)).unwrap();
    println!("ready");
    let _ = thread.call(&Call::to(0).code(7).data(&[0; 100]));
}

/// Two programs of one thread each that have called each other.
struct Deadlock {
    manager: Killed,
    other: Killed,
}

impl Deadlock {
    fn start(device: &Path) -> Deadlock {
        let start = |name: &str| {
            let mut child = Killed(role(name, device).spawn().unwrap());
            child.wait_for("ready");
            child
        };
        let deadlock = Deadlock { manager: start("manager"), other: start("other") };
        let both = || json(device, &["transactions"]).as_array().unwrap().len() == 2;
        assert!(wait_until(PATIENCE, both), "{}", answer(device, &["transactions"]));
        deadlock
    }

    fn pids(&self) -> [u32; 2] {
        [self.manager.0.id(), self.other.0.id()]
    }
}

#[test]
fn a_deadlock_is_explained() {
    on_doors(|target, _| {
        let deadlock = Deadlock::start(&target.path);
        for pid in deadlock.pids() {
            let told = answer(&target.path, &["why", &pid.to_string()]);
            let waits = |line: &&str| line.contains("waits for the reply to call");
            assert_eq!(told.lines().filter(waits).count(), 2, "{told}");
            assert!(told.contains("(code 7)") && told.contains("(code 9)"), "{told}");
            assert!(told.contains("has no free thread; its one thread is busy:"), "{told}");
            assert!(told.contains(", of which is told above\nDEADLOCK: "), "{told}");
            let answers = json(&target.path, &["why", &pid.to_string()]);
            let [answer] = answers.as_array().unwrap().as_slice() else { panic!("{answers}") };
            assert_eq!(answer["is_deadlocked"], true, "{answer}");
            assert_eq!(answer["pid"], pid, "{answer}");
            let name = target.path.file_name().unwrap().to_str().unwrap();
            assert_eq!(answer["context"], name, "{answer}");
            // By the thread's number it is the same, but for the time.
            let alone = json(&target.path, &["why", &answer["tid"].to_string()]);
            assert_eq!(alone[0]["chain"].as_array().unwrap().len(), 5, "{alone}");
        }
        let dot = answer(&target.path, &["graph"]);
        assert_eq!(dot.matches("DEADLOCK").count(), 2, "{dot}");
    });
}

/// Not a test: calls the context manager, and waits.
#[test]
#[ignore = "a role in other tests"]
fn caller() {
    let Some(device) = role_device() else { return };
    println!("ready");
    let _ = Thread::new(&device).call(&Call::to(0).code(5));
}

#[test]
fn a_deadlock_is_logged_once_whoever_else_comes_to_wait_for_it() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    let first = Deadlock::start(&daemon.fuse());
    let said = || daemon.log().matches("deadlock on ").count();
    assert!(wait_until(PATIENCE, || said() == 1), "{}", daemon.log());
    for pid in first.pids() {
        assert!(daemon.log().contains(&format!(" {pid}:")), "{}", daemon.log());
    }
    let mut third = Killed(role("caller", &daemon.fuse()).spawn().unwrap());
    third.wait_for("ready");
    let pid = third.0.id().to_string();
    let is_in_it = || {
        let answers = json(&daemon.fuse(), &["why", &pid]);
        answers[0]["is_deadlocked"] == true
    };
    assert!(wait_until(PATIENCE, is_in_it), "{}", answer(&daemon.fuse(), &["transactions"]));
    // Its call has the daemon look again, a second later.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(said(), 1, "{}", daemon.log());
    // Another deadlock is told of.
    drop((first, third));
    let _second = Deadlock::start(&daemon.fuse());
    assert!(wait_until(PATIENCE, || said() == 2), "{}", daemon.log());
}

#[test]
fn processes_transactions_and_objects_are_shown() {
    on_doors(|target, _| {
        let deadlock = Deadlock::start(&target.path);
        for row in processes(&target.path, 2) {
            assert!(deadlock.pids().iter().any(|pid| row["pid"] == *pid), "{row}");
            assert_eq!(row["queued"], 1, "{row}");
            assert_eq!((&row["waiting"], &row["free"]), (&1.into(), &0.into()), "{row}");
            assert_eq!(row["mapped_bytes"], 128 << 10, "{row}");
            assert!(row["used_bytes"].as_u64().unwrap() >= 8, "{row}");
            assert!(row["name"].as_str().unwrap().starts_with("inspect"), "{row}");
        }
        let rows = json(&target.path, &["transactions"]);
        for (row, code) in rows.as_array().unwrap().iter().zip([[7, 9], [7, 9]]) {
            assert!(code.contains(&row["code"].as_i64().unwrap()), "{row}");
            assert_eq!(
                (&row["kind"], &row["state"]),
                (&"call".into(), &"waits for a thread".into())
            );
            assert_eq!(row["size"], if row["code"] == 7 { 100 } else { 0 }, "{row}");
        }
        let state = json(&target.path, &["state"]);
        let processes = state["contexts"][0]["processes"].as_array().unwrap();
        let all = |field: &str| -> usize {
            processes.iter().map(|it| it[field].as_array().unwrap().len()).sum()
        };
        // The manager's node, whose handle is no reference, and the other's.
        assert_eq!((all("nodes"), all("references"), all("buffers")), (2, 1, 2), "{state}");
        let stats = || answer(&target.path, &["stats"]);
        let held = || stats().contains("2 open files, 2 threads, 2 transactions under way");
        assert!(wait_until(PATIENCE, held), "{}", stats());
        let stats = stats();
        assert!(stats.contains("uid 0"), "{stats}");
        // For people: a heading and a line each.
        let lines = || answer(&target.path, &["procs"]).lines().count();
        assert!(wait_until(PATIENCE, || lines() == 3), "{}", lines());
        assert!(answer(&target.path, &["state"]).contains("context manager node"));
    });
}

/// A client that has sent so many nodes to the manager.
fn with_nodes(path: &Path, count: u64) -> Device {
    let mut parcel = Parcel::new();
    for node in 0..count {
        parcel.binder(0x1000 + node * 8, node, 0);
    }
    let device = open(path);
    let sent = Thread::new(&device).call(&Call::to(0).oneway().parcel(&parcel)).unwrap();
    assert_eq!(sent, Reply::Sent);
    device
}

#[test]
fn what_is_told_comes_out_of_the_daemons_memory_budget() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start_with(&["--page-budget", "800K"], None);
    let device = daemon.fuse();
    let _deadlock = Deadlock::start(&device);
    // Nodes and references, 560 KiB, and 500 more to tell of them.
    let _many = with_nodes(&device, 500);
    for command in ["state", "graph"] {
        let output = ask(&device, &[command]).output().unwrap();
        let said = text(&output);
        assert!(!output.status.success() && said.contains("memory budget is too small"), "{said}");
    }
    let output = ask(&device, &["reports"]).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success() && said.contains("has no room for events"), "{said}");
    // What it did take it has given back.
    for _ in 0..100 {
        processes(&device, 3);
    }
}

/// More than one ioctl copies, on either door.
#[test]
fn a_long_answer_comes_in_parts() {
    on_doors(|target, _| {
        // Whose manager reads nothing.
        let _deadlock = Deadlock::start(&target.path);
        let _many = with_nodes(&target.path, 500);
        let state = json(&target.path, &["state"]);
        let processes = state["contexts"][0]["processes"].as_array().unwrap();
        let nodes = processes.iter().flat_map(|it| it["nodes"].as_array().unwrap());
        // And those of the deadlock.
        assert_eq!(nodes.count(), 502);
        let drawn = ask(&target.path, &["graph", "--svg", "/nowhere/graph.svg"]).output().unwrap();
        assert!(text(&drawn).contains("objects are too many for a picture"), "{}", text(&drawn));
    });
}

#[test]
fn a_picture_is_drawn() {
    on_doors(|target, _| {
        let _deadlock = Deadlock::start(&target.path);
        let path = std::env::temp_dir().join(unique_name() + ".svg");
        answer(&target.path, &["graph", "--svg", path.to_str().unwrap()]);
        let drawn = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(drawn.contains("<svg") && drawn.contains("DEADLOCK"), "{drawn}");
    });
}

#[test]
fn only_the_administrator_is_told() {
    if !nix::unistd::geteuid().is_root() {
        return skip("only root starts programs of another user");
    }
    on_doors(|target, _| {
        let listening = [&["reports"][..], &["trace", "-o", "/dev/null"]];
        let asking = ["stats", "procs", "transactions", "state", "graph", "shrink", "inject"];
        for command in asking.iter().map(std::slice::from_ref).chain(listening) {
            let output = ask(&target.path, command).uid(ORDINARY).gid(ORDINARY).output().unwrap();
            let said = text(&output);
            assert!(
                !output.status.success() && said.contains("tells root, and the user"),
                "{said}"
            );
        }
    });
}

#[test]
fn faults_are_injected_into_a_running_daemon() {
    on_doors(|target, _| {
        let device = &target.path;
        assert_eq!(answer(device, &["inject"]), "nothing is injected\n");
        let sends = || {
            let ping = Command::new(program("fb-ping"))
                .arg("--device")
                .arg(device)
                .args(["-n", "20"])
                .output();
            let ping = ping.unwrap();
            (ping.status.success(), text(&ping))
        };
        assert!(sends().0);
        let told = answer(device, &["inject", "record:nth=3, alloc_page:errno=EIO"]);
        assert_eq!(
            told,
            "record:nth=3: has hit 0 of 0 calls\nalloc_page:errno=EIO: has hit 0 of 0 calls\n"
        );
        let (succeeds, said) = sends();
        assert!(!succeeds, "{said}");
        let rules = json(device, &["inject"]);
        assert!(
            rules[0]["hit"].as_u64() == Some(1) && rules[0]["seen"].as_u64() >= Some(3),
            "{rules}"
        );
        assert_eq!(rules[0]["rule"], "record:nth=3");
        // Rules that are wrong leave those in force as they are.
        let wrong = ask(device, &["inject", "zap:often=1"]).output().unwrap();
        assert!(
            !wrong.status.success() && text(&wrong).contains("a rule has no 'often'"),
            "{}",
            text(&wrong)
        );
        assert_eq!(json(device, &["inject"]).as_array().unwrap().len(), 2);
        assert_eq!(answer(device, &["inject", "--off"]), "nothing is injected\n");
        let (succeeds, said) = sends();
        assert!(succeeds, "{said}");
    });
}

#[test]
fn what_is_wrong_is_said() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    let device = daemon.fuse();
    for (device, arguments, said) in [
        (&*device, &["why", "1"][..], "1 is no process that has a device open"),
        (Path::new("/dev/null"), &["stats"], "/dev/null is no device of fakebinder's"),
        (Path::new("/nowhere"), &["stats"], "/nowhere: no such device"),
        (Path::new("/nowhere"), &["top"], "/nowhere: no such device"),
        (&*device, &["top", "--interval", "0"], "between 0.1 and 3600 seconds"),
        (&*device, &["graph", "--svg", "/nowhere/graph.svg"], "/nowhere/graph.svg: No such file"),
        (&*device, &["trace", "-o", "/nowhere/trace"], "/nowhere/trace: No such file"),
        (&*device, &["trace", "-o", "/dev/null", "--seconds=-1"], "--seconds: "),
        (&*device, &["reports", "--seconds", "1e300"], "--seconds: "),
        (
            &*device,
            &["trace", "-o", "/dev/null", "--names", "/etc/passwd"],
            "/etc/passwd:1: 'root:x:0:0:root:/root:/bin/bash' is not a code and a name",
        ),
        (Path::new("/nowhere"), &["trace", "-o", "/dev/null"], "/nowhere: no such device"),
        (Path::new("/dev/null"), &["reports"], "/dev/null is no device of fakebinder's"),
    ] {
        let output = ask(device, arguments).output().unwrap();
        assert!(!output.status.success() && text(&output).contains(said), "{}", text(&output));
    }
    assert_eq!(answer(&device, &["transactions"]), "no transaction is under way\n");
    let shrunk = json(&device, &["shrink"]);
    assert!(shrunk["pages"].is_u64(), "{shrunk}");
    // Its own open file is not told of.
    processes(&device, 0);
}

/// Protobuf's tag of a field 1 that has a length.
const FIELD_1: u8 = 1 << 3 | 2;

#[test]
fn a_trace_has_every_call_and_its_reply() {
    on_doors(|target, _| {
        let path = std::env::temp_dir().join(unique_name() + ".pftrace");
        let trace = listen(&target.path, &["trace", "--json", "-o", path.to_str().unwrap()]);
        let mut ping = Command::new(program("fb-ping"));
        ping.arg("--device").arg(&target.path).args(["-n", "60", "--clients", "2"]);
        assert!(ping.output().unwrap().status.success());
        let told: Value = serde_json::from_str(&end(trace)).unwrap();
        let written = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let count = |what: &str| told[what].as_u64().unwrap();
        // Whom the clients ask first for their server's attention.
        let calls = count("slices") / 2;
        assert!((60..80).contains(&calls), "{told}");
        assert_eq!((count("slices"), count("flows")), (2 * calls, 2 * calls), "{told}");
        // The count of pages; three processes, each with a thread.
        assert_eq!((count("tracks"), count("lost")), (7, 0), "{told}");
        // A packet for each event and each track. A reply is an event, and the end of a slice.
        let (mut packets, mut rest) = (0, &*written);
        while let Some((FIELD_1, after)) = rest.split_first().map(|(tag, rest)| (*tag, rest)) {
            let ends = after.iter().position(|byte| byte & 0x80 == 0).unwrap();
            let digits = after[..=ends].iter().rev();
            let length = digits.fold(0, |length, byte| length << 7 | usize::from(byte & 0x7f));
            rest = &after[ends + 1 + length..];
            packets += 1;
        }
        assert!(rest.is_empty(), "{} bytes are no packets", rest.len());
        assert_eq!(packets, count("events") + count("slices") + count("tracks"), "{told}");
    });
}

#[test]
fn transactions_that_fail_are_reported() {
    on_doors(|target, _| {
        let reports = listen(&target.path, &["reports", "--json"]);
        let device = open(&target.path);
        let mut thread = Thread::new(&device);
        let refused = thread.call(&Call::to(99).code(5).data(&[0; 12])).unwrap();
        assert_eq!(refused, Reply::Failed);
        let told: Value = serde_json::from_str(&end(reports)).unwrap();
        let pid = std::process::id();
        assert_eq!((&told["error"], &told["code"]), (&"BR_FAILED_REPLY".into(), &5.into()));
        assert_eq!((&told["from-pid"], &told["to-pid"]), (&pid.into(), &0.into()), "{told}");
        assert_eq!((&told["data-size"], &told["is-reply"]), (&12.into(), &false.into()), "{told}");
        let name = target.path.file_name().unwrap().to_str().unwrap();
        assert_eq!(told["context"], name, "{told}");
    });
}

#[test]
fn who_is_killed_does_not_listen_any_more() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start(Door::Fuse);
    for _ in 0..3 {
        let all: Vec<_> = (0..4).map(|_| listen(&daemon.fuse(), &["reports"])).collect();
        let output = ask(&daemon.fuse(), &["reports"]).output().unwrap();
        assert!(text(&output).contains("so many listen to this daemon's events"));
        drop(all);
        let none = || answer(&daemon.fuse(), &["stats"]).contains("0 open files");
        assert!(wait_until(PATIENCE, none), "{}", answer(&daemon.fuse(), &["stats"]));
    }
}
