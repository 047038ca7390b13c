//! `fakebinder record` and `replay`: what clients did is done again, and gives the same.

mod common;

use common::asking::{ask, end, listen, processes, text};
use common::{
    Daemon, Door, Killed, become_manager, on_devices, on_doors, open, program, role, role_device,
    skip, unique_name,
};
use fakebinder_client::{Call, Command as Write, Object, Parcel, Thread};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Nobody in particular.
const ORDINARY: u32 = 65534;

/// What the manager and its caller send to each other.
const SECRET: &[u8] = b"what they say";

/// A file that is gone when this is dropped.
struct File(PathBuf);

impl File {
    fn new() -> File {
        File(std::env::temp_dir().join(unique_name() + ".json"))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Not a test: the context manager. It calls the nodes that it is given, and ends after a one-way
/// call.
#[test]
#[ignore = "a role in other tests"]
fn manager() {
    let Some(device) = role_device() else { return };
    become_manager(&device);
    let mut thread = Thread::new(&device);
    thread.queue(Write::EnterLooper);
    thread.flush().unwrap();
    println!("ready");
    let mut ends = false;
    while !ends {
        let took = thread.serve(&mut |thread, transaction, contents, _| {
            ends = transaction.is_oneway();
            if let Some(Some(Object::Handle { handle, .. })) = contents.objects().next() {
                thread.queue(Write::Acquire(handle));
                thread.queue(Write::RequestDeathNotification { handle, cookie: 5 });
                thread.call(&Call::to(handle).code(9).data(SECRET)).unwrap();
            }
        });
        took.unwrap();
    }
}

/// Not a test: gives the manager a node, which the manager calls before it replies.
#[test]
#[ignore = "a role in other tests"]
fn caller() {
    let Some(device) = role_device() else { return };
    let mut parcel = Parcel::new();
    parcel.binder(0x1000, 0x2000, 0);
    let mut thread = Thread::new(&device);
    thread.call(&Call::to(0).code(1).parcel(&parcel)).unwrap();
    thread.call(&Call::to(0).code(2).data(SECRET)).unwrap();
}

/// Records what the two do with a device, from its opening on; what `record` has printed.
fn record(device: &Path, flags: &[&str], session: &File) -> Value {
    let recorder = listen(device, &[&["record", "--json", "-o", session.path()], flags].concat());
    let mut manager = Killed(role("manager", device).spawn().unwrap());
    manager.wait_for("ready");
    assert!(role("caller", device).status().unwrap().success());
    let last = open(device);
    let mut thread = Thread::new(&last);
    thread.call(&Call::to(0).oneway()).unwrap();
    // Its output is not read any more, so it may say that it failed.
    manager.0.wait().unwrap();
    drop(last);
    // All but the recorder are seen to be gone.
    processes(device, 1);
    serde_json::from_str(&end(recorder)).unwrap()
}

fn replay(session: &str, device: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program("fakebinder"));
    command.arg("replay").arg(session).arg("--device").arg(device).args(flags);
    let output = command.output().unwrap();
    (output.status.code(), text(&output))
}

#[test]
fn what_was_recorded_gives_the_same_again() {
    on_doors(|target, _| {
        let (session, saved) = (File::new(), File::new());
        let told = record(&target.path, &[], &session);
        assert_eq!(
            (&told["processes"], &told["left_out"], &told["is_cut"]),
            (&3.into(), &0.into(), &false.into()),
            "{told}"
        );
        // Two calls, the one within, their three replies, and the one-way call.
        assert_eq!(told["messages"], 7, "{told}");
        assert_eq!(fs::metadata(session.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(session.text().contains(r#"{"Bytes":13}"#), "{}", session.text());
        let (code, said) = replay(session.path(), &target.path, &["--save", saved.path(), "-v"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("there is nothing to compare them with"), "{said}");
        // All that was recorded happens again.
        assert!(said.contains("TRANSACTION(node 4096,8192 code 9 "), "{said}");
        assert!(said.contains("DEAD_BINDER(5)"), "{said}");
        assert_eq!(said.matches("REPLY(").count(), 3, "{said}");
        let again = replay(saved.path(), &target.path, &[]);
        assert!(again.0 == Some(0) && again.1.contains("all as the session has it"), "{again:?}");
        let against =
            replay(session.path(), &target.path, &["--against", target.path.to_str().unwrap()]);
        assert!(against.0 == Some(0) && against.1.contains(": all as on "), "{against:?}");
    });
}

#[test]
fn a_step_that_gives_something_else_is_told_of() {
    on_doors(|target, _| {
        let (session, saved) = (File::new(), File::new());
        record(&target.path, &[], &session);
        replay(session.path(), &target.path, &["--save", saved.path()]);
        let changed = saved.text().replacen("code 9 ", "code 10 ", 1);
        assert_ne!(changed, saved.text());
        fs::write(saved.path(), changed).unwrap();
        let (code, said) = replay(saved.path(), &target.path, &[]);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains(" differs\n") && said.contains("as the session has it: ok, "),
            "{said}"
        );
        assert!(said.contains("\nhere: ok, ") && said.contains("call to 0 code 1"), "{said}");
    });
}

#[test]
fn the_bytes_are_recorded_when_they_are_asked_for() {
    on_doors(|target, _| {
        let session = File::new();
        record(&target.path, &["--data"], &session);
        let digits: String = SECRET.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(session.text().matches(&digits).count(), 2, "{}", session.text());
        let (code, said) = replay(session.path(), &target.path, &["-v"]);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(said.matches(&format!("data {digits})")).count(), 2, "{said}");
    });
}

#[test]
fn who_was_there_before_is_left_out() {
    on_doors(|target, _| {
        let session = File::new();
        let mut manager = Killed(role("manager", &target.path).spawn().unwrap());
        manager.wait_for("ready");
        let recorder = listen(&target.path, &["record", "--json", "-o", session.path()]);
        assert!(role("caller", &target.path).status().unwrap().success());
        let told: Value = serde_json::from_str(&end(recorder)).unwrap();
        assert_eq!((&told["processes"], &told["left_out"]), (&1.into(), &1.into()), "{told}");
    });
}

#[test]
fn who_cannot_record_or_replay_is_told_why() {
    if !Door::Fuse.is_here() || !nix::unistd::geteuid().is_root() {
        return skip("it takes root and /dev/fuse");
    }
    let daemon = Daemon::start(Door::Fuse);
    let device = daemon.fuse();
    let session = File::new();
    let recorder = listen(&device, &["record", "-o", session.path()]);
    let refused = |arguments: &[&str], uid: u32, said: &str| {
        let output = ask(&device, arguments).uid(uid).output().unwrap();
        assert!(!output.status.success() && text(&output).contains(said), "{}", text(&output));
    };
    refused(&["record", "-o", "/dev/null"], 0, "another command records already");
    refused(&["record", "-o", "/dev/null"], ORDINARY, "tells root, and the user");
    end(recorder);
    refused(&["record", "-o", "/nowhere/session"], 0, "/nowhere/session: No such file");
    refused(&["replay", "/nowhere/session"], 0, "/nowhere/session: No such file");
    refused(&["replay", "/etc/passwd"], 0, "/etc/passwd: not a recorded session");
    fs::write(session.path(), session.text().replace("\"version\":1", "\"version\":9")).unwrap();
    refused(&["replay", session.path()], 0, "version 9, where this program reads 1");
    daemon.stop();
}

/// Sessions of users: what their steps have to give is what the kernel's driver gave.
#[test]
fn checked_in_sessions_give_what_the_driver_gave() {
    let sessions = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions");
    let sessions: Vec<_> =
        fs::read_dir(sessions).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!sessions.is_empty(), "there are none");
    on_devices(|target| {
        for session in &sessions {
            let (code, said) = replay(session.to_str().unwrap(), &target.path, &[]);
            assert_eq!(code, Some(0), "{said}");
            assert!(said.contains("all as the session has it"), "{said}");
        }
    });
}
