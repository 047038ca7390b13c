//! Threads of real programs that end: with BINDER_THREAD_EXIT or without, in the middle of a call
//! and one after the other.
//!
//! The kernel's driver does not notice the end of a thread that says nothing; there the caller is
//! seen to wait, until the process is gone.
//!
//! `FAKEBINDER_THREADS`: how many threads there are in turn (100,000), for an emulated machine.

mod common;

use common::{
    Killed, PATIENCE, Target, become_manager, in_time, library, on_devices, open, skip, wait_until,
};
use fakebinder_client::{Call, Device, Reply, Thread};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// For how long a caller is seen to wait where nobody notices: many times as long as the daemon
/// takes.
const IN_VAIN: Duration = Duration::from_millis(1500);

/// thread_end.c, built; `None` where there is no gcc.
fn program() -> Option<PathBuf> {
    let program = std::env::temp_dir().join(format!("{}-thread-end", common::unique_name()));
    let built = Command::new("gcc")
        .args(["-O2", "-Wall", "-Werror", "-pthread", "-o"])
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/thread_end.c"))
        .status();
    match built {
        Ok(status) => assert!(status.success(), "thread_end.c builds"),
        Err(error) => {
            skip(&format!("gcc: {error}"));
            return None;
        }
    }
    Some(program)
}

/// The program on that device; preloaded where the device cannot be mapped.
fn command(program: &Path, device: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg(device).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    if open(device).is_attached() {
        command.env("LD_PRELOAD", library("libfakebinder_preload.so"));
    }
    command
}

/// Calls the context manager in a thread of its own.
fn call(device: &Device) -> Receiver<Reply> {
    let (tell, told) = channel();
    let device = open(device.path());
    std::thread::spawn(move || {
        let mut thread = Thread::new(&device);
        let reply = thread.call(&Call::to(0).data(b"echo"));
        let _ = tell.send(reply.unwrap());
    });
    told
}

/// Whether a thread of that process sleeps in an ioctl; where the kernel does not tell (user-mode
/// Linux), whether all of them sleep.
fn waits_in_ioctl(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let tasks: Vec<PathBuf> = tasks.map(|task| task.path()).collect();
    let calls: Vec<String> =
        tasks.iter().filter_map(|task| fs::read_to_string(task.join("syscall")).ok()).collect();
    if calls.is_empty() {
        let stat = |task: &PathBuf| fs::read_to_string(task.join("stat")).unwrap_or_default();
        return tasks.iter().all(|task| stat(task).contains(") S "));
    }
    let ioctl = format!("{} ", libc::SYS_ioctl);
    calls.iter().any(|call| call.starts_with(&ioctl))
}

fn is_echo(reply: &Reply) -> bool {
    matches!(reply, Reply::Data(contents) if contents.data == b"echo")
}

/// A process whose thread ends with a call; the caller learns of it, and the process goes on.
fn ends_with_a_call(target: &Target, program: &Path, how: &str) {
    let device = open(&target.path);
    let mut server = Killed(command(program, &target.path, &["serve", how]).spawn().unwrap());
    server.wait_for("ready");
    assert!(wait_until(PATIENCE, || waits_in_ioctl(server.0.id())), "{how}: its thread reads");
    let answer = call(&device);
    let noticed = target.is_fakebinder() || how == "ioctl";
    if !noticed {
        let early = answer.recv_timeout(IN_VAIN);
        assert_eq!(early.err(), Some(RecvTimeoutError::Timeout), "{how}");
        drop(server);
        let dead = answer.recv_timeout(PATIENCE);
        assert!(matches!(dead, Ok(Reply::Dead)), "{how}: {dead:?}");
        return;
    }
    let dead = answer.recv_timeout(PATIENCE);
    assert!(matches!(dead, Ok(Reply::Dead)), "{}, {how}: {dead:?}", target.path.display());
    let next = call(&device).recv_timeout(PATIENCE);
    let mut cannot_choose =
        || server.0.try_wait().unwrap().is_some_and(|status| status.code() == Some(77));
    if how == "reused"
        && !next.as_ref().is_ok_and(is_echo)
        && wait_until(Duration::from_secs(2), &mut cannot_choose)
    {
        return skip("the number of a thread cannot be chosen (/proc/sys/kernel/ns_last_pid)");
    }
    assert!(next.as_ref().is_ok_and(is_echo), "{}, {how}: {next:?}", target.path.display());
}

#[test]
fn a_call_ends_with_the_thread_that_took_it() {
    let Some(program) = program() else { return };
    on_devices(|target| {
        for how in ["quiet", "ioctl", "main"] {
            ends_with_a_call(target, &program, how);
        }
    });
    fs::remove_file(program).unwrap();
}

#[test]
fn a_call_ends_with_the_thread_that_has_not_read_it() {
    let Some(program) = program() else { return };
    on_devices(|target| ends_with_a_call(target, &program, "unread"));
    fs::remove_file(program).unwrap();
}

/// A thread has the number of one that ended, in a call or with one of its own open, and is a new
/// one all the same.
#[test]
fn a_thread_id_used_again_is_a_new_thread() {
    let Some(program) = program() else { return };
    on_devices(|target| {
        if !target.is_fakebinder() {
            return;
        }
        ends_with_a_call(target, &program, "reused");
        let registrar = target.registrar();
        let mut client = command(&program, &target.path, &["reused"]);
        let status = in_time("the client", move || client.status().unwrap());
        drop(registrar);
        match status.code() {
            Some(77) => skip("the number of a thread cannot be chosen"),
            code => assert_eq!(code, Some(0), "{}", target.path.display()),
        }
    });
    fs::remove_file(program).unwrap();
}

/// Many times as many as a process may have at a time (16,384 records).
#[test]
fn threads_in_turn_are_all_served() {
    let Some(program) = program() else { return };
    let threads = std::env::var("FAKEBINDER_THREADS").unwrap_or_else(|_| "100000".to_owned());
    on_devices(|target| {
        let device = open(&target.path);
        become_manager(&device);
        let before = target.is_fakebinder().then(|| device.daemon_stats().unwrap().threads);
        let server = std::thread::spawn({
            let count: usize = threads.parse().unwrap();
            move || {
                let mut thread = Thread::new(&device);
                thread.queue(fakebinder_client::Command::EnterLooper);
                let mut served = 0;
                while served < count {
                    let done = thread.serve(&mut |_, _, _, _| {}).unwrap();
                    served +=
                        usize::from(matches!(done, fakebinder_client::Return::Transaction(_)));
                }
                thread.flush().unwrap();
                device
            }
        });
        let mut clients = command(&program, &target.path, &["threads", &threads]);
        let clients = clients.stdout(Stdio::piped()).spawn().unwrap();
        let done = clients.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{}: {said}", target.path.display());
        let device = server.join().unwrap();
        if let Some(before) = before {
            let after = device.daemon_stats().unwrap().threads;
            assert!(after < before + 200, "{after} records of threads, {before} before");
        }
    });
    fs::remove_file(program).unwrap();
}
