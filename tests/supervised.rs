//! Programs under `fakebinder exec`, and a daemon that may stop none of their threads.

mod common;

use common::c_program::{self, IGNORED_ARGUMENT};
use common::receiver::{
    Program, answer, assert_came, build, call, fill, parcel, refused, stop, written,
};
use common::{
    Daemon, Door, PATIENCE, Target, alone, become_manager, in_time, library, program, skip,
    wait_until,
};
use fakebinder_client::{Call, Errno, Reply, Thread};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{Read, pipe};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// An ordinary user.
const USER: u32 = 65534;

/// `fakebinder exec -- ...`.
fn exec(words: &[&str]) -> Command {
    let mut command = Command::new(program("fakebinder"));
    command.args(["exec", "--"]).args(words);
    command
}

/// descriptors.c under the supervisor.
fn supervised(program: &Path, device: &Path, arguments: &[&str]) -> Command {
    let mut command = exec(&[program.to_str().unwrap(), device.to_str().unwrap()]);
    command.args(arguments).arg("supervised");
    command
}

/// On the FUSE door of a daemon that stops nobody.
fn on_fuse(scene: impl Fn(&Target, &Daemon)) {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let _alone = alone();
    let daemon = Daemon::start_with(&["--never-trace"], None);
    let target = Target::private(daemon.fuse(), daemon);
    scene(&target, target.daemon.as_ref().unwrap());
}

fn as_user(mut command: Command, uid: u32) -> Command {
    if uid != 0 {
        command.uid(uid).gid(uid);
    }
    command
}

/// A thousand descriptors in calls, of which a half come in arrays, and a thousand in replies: each
/// has the lowest free number and is close-on-exec, and registers, signal mask, limit, mappings and
/// descriptors of the program are in the end what they were.
fn a_thousand_each_way(flags: &[&str], uid: u32) {
    let Some(program) = build(flags) else { return };
    on_fuse(|target, _| {
        let (reader, writer) = pipe().unwrap();
        let command = supervised(&program, &target.path, &["serve", "watch"]);
        let receiver = Program::from(as_user(command, uid));
        let device = target.open();
        let contents = parcel(&writer, 50, 50);
        for index in 1..=10 {
            assert_came(&call(&device, &contents), 100 * index);
        }
        stop(&device);
        assert_eq!(receiver.ended(), "done 1000 failed 0");
        drop((contents, device));
        assert_eq!(written(reader, writer), 1000);

        let (reader, writer) = pipe().unwrap();
        let manager = target.open();
        become_manager(&manager);
        let command = supervised(&program, &target.path, &["call", "200", "watch"]);
        let receiver = Program::from(as_user(command, uid));
        std::thread::scope(|scope| {
            scope.spawn(|| answer(&manager, 200, |reply| fill(reply, &writer, 3, 2)));
        });
        assert_eq!(receiver.ended(), "done 1000 failed 0");
        assert_eq!(written(reader, writer), 1000);
    });
}

#[test]
fn a_static_program_receives_a_thousand_each_way() {
    a_thousand_each_way(&["-static"], 0);
}

#[test]
fn a_dynamic_program_receives_a_thousand_each_way() {
    a_thousand_each_way(&[], 0);
}

/// The context manager's uid stays the first one's: a daemon of its own for each.
#[test]
fn a_program_of_an_ordinary_user_receives_a_thousand_each_way() {
    if !nix::unistd::geteuid().is_root() {
        return skip("it takes root to become another user");
    }
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, _| {
        let (reader, writer) = pipe().unwrap();
        let command = supervised(&program, &target.path, &["serve"]);
        let receiver = Program::from(as_user(command, USER));
        let device = target.open();
        let contents = parcel(&writer, 50, 50);
        for index in 1..=10 {
            assert_came(&call(&device, &contents), 100 * index);
        }
        stop(&device);
        assert_eq!(receiver.ended(), "done 1000 failed 0");
        drop(contents);
        assert_eq!(written(reader, writer), 1000);
    });
    on_fuse(|target, _| {
        let (reader, writer) = pipe().unwrap();
        let manager = target.open();
        become_manager(&manager);
        let command = supervised(&program, &target.path, &["call", "200"]);
        let receiver = Program::from(as_user(command, USER));
        std::thread::scope(|scope| {
            scope.spawn(|| answer(&manager, 200, |reply| fill(reply, &writer, 3, 2)));
        });
        assert_eq!(receiver.ended(), "done 1000 failed 0");
        assert_eq!(written(reader, writer), 1000);
    });
}

/// The preload library maps what the kernel cannot; descriptors come by the supervisor.
#[test]
fn a_program_with_the_preload_library_receives_on_each_door() {
    let Some(program) = build(&[]) else { return };
    let _alone = alone();
    for door in [Door::Fuse, Door::Cuse].into_iter().filter(|door| door.is_here()) {
        let daemon = Daemon::try_start(door, &[], &["--never-trace"]).unwrap();
        let path = if door == Door::Cuse { daemon.cuse() } else { daemon.fuse() };
        let target = Target::private(path, daemon);
        let (reader, writer) = pipe().unwrap();
        let mut command = supervised(&program, &target.path, &["serve"]);
        command.env("LD_PRELOAD", library("libfakebinder_preload.so"));
        let receiver = Program::from(command);
        let device = target.open();
        for index in 1..=10 {
            assert_came(&call(&device, &parcel(&writer, 2, 3)), 5 * index);
        }
        stop(&device);
        assert_eq!(receiver.ended(), "done 50 failed 0");
        assert_eq!(written(reader, writer), 50);
    }
}

/// What cannot be had is refused, and told.
#[test]
fn a_file_that_cannot_be_mapped_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return skip("it takes root to mount");
    }
    let Some(program) = build(&["-static"]) else { return };
    let refused = |device: &Path| {
        let mut command = supervised(&program, device, &["serve"]);
        let output = in_time("the program", move || command.output().unwrap());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot be mapped") && said.ends_with("mmap\n"), "{said}");
    };
    on_fuse(|target, _| {
        // Everybody behind a bind mount of the one file has the same file.
        let place = std::env::temp_dir().join(common::unique_name());
        fs::write(&place, "").unwrap();
        let mounted = Command::new("mount").arg("--bind").args([&target.path, &place]).status();
        assert!(mounted.unwrap().success());
        refused(&place);
        assert!(Command::new("umount").arg(&place).status().unwrap().success());
        fs::remove_file(place).unwrap();
    });
    if Door::Cuse.is_here() {
        let _alone = alone();
        let daemon = Daemon::start(Door::Cuse);
        refused(&daemon.cuse());
    }
}

/// Which no other way reaches.
#[test]
fn a_32_bit_program_receives() {
    a_thousand_each_way(&["-m32", "-static"], 0);
}

/// A filter of the program's own is left alone, and a debugger may watch.
#[test]
fn filters_signals_and_debuggers_are_not_in_the_way() {
    let Some(program) = build(&["-static"]) else { return };
    let has_strace = Command::new("strace").arg("-V").output().is_ok();
    on_fuse(|target, _| {
        let path = (program.to_str().unwrap(), target.path.to_str().unwrap());
        let strace = ["strace", "-f", "-o", "/dev/null", path.0, path.1, "serve", "supervised"];
        let mut commands = vec![
            supervised(&program, &target.path, &["serve", "filtered"]),
            supervised(&program, &target.path, &["serve", "signals"]),
        ];
        if has_strace {
            commands.push(exec(&strace));
        } else {
            skip("strace is not here");
        }
        for command in commands {
            let (reader, writer) = pipe().unwrap();
            let receiver = Program::from(command);
            let device = target.open();
            let contents = parcel(&writer, 5, 5);
            for index in 1..=20 {
                assert_came(&call(&device, &contents), 10 * index);
            }
            stop(&device);
            assert_eq!(receiver.ended(), "done 200 failed 0");
            drop((contents, device));
            assert_eq!(written(reader, writer), 200);
        }
    });
}

/// All or none, as on the driver.
#[test]
fn the_numbers_that_are_left_are_enough_or_the_call_fails() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, daemon| {
        let (reader, writer) = pipe().unwrap();
        let receiver = Program::from(supervised(&program, &target.path, &["serve", "hard=2"]));
        let device = target.open();
        assert_came(&call(&device, &parcel(&writer, 1, 1)), 2);
        for (single, in_array) in [(2, 1), (0, 4), (3, 0)] {
            refused(&device, &parcel(&writer, single, in_array), Errno::EMFILE);
        }
        assert_came(&call(&device, &parcel(&writer, 2, 0)), 4);
        stop(&device);
        assert_eq!(receiver.ended(), "done 4 failed 0");
        assert_eq!(written(reader, writer), 4);
        assert!(daemon.log().contains("cannot be given the descriptors"), "{}", daemon.log());
    });
}

/// What is closed for a program is not held by it: the last writer of a pipe is gone.
#[test]
fn an_array_is_closed_with_its_buffer() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, _| {
        let receiver = Program::from(supervised(&program, &target.path, &["serve"]));
        let device = target.open();
        for index in 1..=3 {
            let (reader, writer) = pipe().unwrap();
            assert_came(&call(&device, &parcel(&writer, 0, 4)), 4 * index);
            // The program waits for its next call.
            assert_eq!(written(reader, writer), 4);
        }
        stop(&device);
        assert_eq!(receiver.ended(), "done 12 failed 0");
    });
}

/// Both in a forked child and in a program that it executes, whoever has opened the device.
#[test]
fn processes_of_the_program_are_supervised_too() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, _| {
        let (reader, writer) = pipe().unwrap();
        let script = "\"$0\" \"$@\"; exit $?";
        let words =
            [program.to_str().unwrap(), target.path.to_str().unwrap(), "serve", "supervised"];
        let receiver = Program::from(exec(&[&["sh", "-c", script], &words[..]].concat()));
        let device = target.open();
        for index in 1..=10 {
            assert_came(&call(&device, &parcel(&writer, 2, 3)), 5 * index);
        }
        stop(&device);
        assert_eq!(receiver.ended(), "done 50 failed 0");
        assert_eq!(written(reader, writer), 50);
    });
}

/// In pid and user namespaces of the program's own, as in a container.
#[test]
fn a_program_in_other_namespaces_receives() {
    let Some(program) = build(&["-static"]) else { return };
    let unshare =
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let trial = Command::new(unshare[0]).args(&unshare[1..]).arg("true").status();
    if !trial.is_ok_and(|status| status.success()) {
        return skip("unshare --user --pid --mount-proc is not possible here");
    }
    on_fuse(|target, _| {
        let words =
            [program.to_str().unwrap(), target.path.to_str().unwrap(), "serve", "supervised"];
        let fakebinder = common::program("fakebinder");
        let inside = [&unshare[..], &[fakebinder.to_str().unwrap(), "exec", "--"]].concat();
        let inside = [&inside[..], &words].concat();
        let outside = [&unshare[..], &words].concat();
        let mut from_inside = Command::new(inside[0]);
        from_inside.args(&inside[1..]);
        for command in [from_inside, exec(&outside)] {
            let (reader, writer) = pipe().unwrap();
            let receiver = Program::from(command);
            let device = target.open();
            for index in 1..=10 {
                assert_came(&call(&device, &parcel(&writer, 2, 3)), 5 * index);
            }
            stop(&device);
            assert_eq!(receiver.ended(), "done 50 failed 0");
            assert_eq!(written(reader, writer), 50);
        }
    });
}

/// What the kernel answers in the daemon's place on the FUSE door: a static program gets the
/// driver's answer.
#[test]
fn an_argument_that_the_driver_ignores_may_lead_nowhere() {
    let Some(program) = c_program::build("ignored_argument", &["-static"]) else { return };
    on_fuse(|target, _| {
        let mut command = exec(&[program.to_str().unwrap(), target.path.to_str().unwrap()]);
        let done = in_time("the program", move || command.output().unwrap());
        assert_eq!(String::from_utf8_lossy(&done.stdout), IGNORED_ARGUMENT);
        assert_eq!(String::from_utf8_lossy(&done.stderr), "");
    });
    fs::remove_file(program).unwrap();
}

/// The rows of the table of known differences that it removes, and what it leaves as it was.
#[test]
fn the_driver_answers_where_the_kernel_would() {
    const REMOVED: [&str; 10] = [
        "file/mmap_a_second_time_is_busy",
        "file/mmap_after_munmap_is_busy",
        "file/mmap_writable_is_refused",
        "file/mmap_by_another_process_is_refused",
        "ioctl/version_to_a_bad_pointer",
        "ioctl/set_max_threads_from_a_bad_pointer",
        "ioctl/set_context_manager_ignores_its_argument",
        "ioctl/set_context_manager_ext_from_a_bad_pointer",
        "ioctl/thread_exit_ignores_its_argument",
        "ioctl/extended_error_to_a_bad_pointer_is_lost",
    ];
    let conformance = program("fb-conformance");
    on_fuse(|target, _| {
        let words = [conformance.to_str().unwrap(), "--device", target.path.to_str().unwrap()];
        let filters = ["file/*", "ioctl/*", "call/*", "poll/*", "signal/*"];
        let mut command = exec(&words);
        filters.iter().for_each(|filter| _ = command.args(["--filter", filter]));
        let done = in_time("fb-conformance", move || command.output().unwrap());
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
        for test in REMOVED {
            let passed = said
                .lines()
                .any(|line| line.starts_with("ok ") && line.ends_with(&format!(" - {test}")));
            assert!(passed, "{test}:\n{said}");
        }
    });
}

fn done(mut command: Command) -> Output {
    in_time("the command", move || command.output().unwrap())
}

#[test]
fn the_command_ends_as_the_program_does() {
    for (script, code, signal) in [
        ("exit 0", Some(0), None),
        ("exit 7", Some(7), None),
        ("kill -TERM $$", None, Some(Signal::SIGTERM)),
        ("kill -ABRT $$", None, Some(Signal::SIGABRT)),
        // What it leaves behind is waited for.
        ("(sleep 0.2; echo left) & exit 3", Some(3), None),
    ] {
        let output = done(exec(&["sh", "-c", script]));
        let expected = (code, signal.map(|signal| signal as i32));
        assert_eq!((output.status.code(), output.status.signal()), expected, "{script}");
        if script.contains("left") {
            assert_eq!(output.stdout, b"left\n");
        }
    }
}

#[test]
fn signals_for_the_command_are_the_programs() {
    // Not SIGHUP, which a shell under nohup ignores for good.
    let script = "trap 'echo user' USR1; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    let mut receiver = Program::from(exec(&["sh", "-c", script]));
    kill(receiver.pid(), Signal::SIGUSR1).unwrap();
    assert_eq!(receiver.line(), "user");
    kill(receiver.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(receiver.line(), "term");
    assert_eq!(in_time("its end", move || receiver.child.0.wait().unwrap()).code(), Some(5));
}

#[test]
fn wrong_use_is_told() {
    let directory = std::env::temp_dir();
    let other_proc = {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork"]).arg(program("fakebinder")).args(["exec", "true"]);
        unshare
    };
    let cases = [
        (other_proc, 125, "/proc is not that of this pid namespace"),
        (exec(&["/no/such/program"]), 127, "/no/such/program: No such file"),
        (exec(&[directory.to_str().unwrap()]), 126, "Permission denied"),
        (exec(&[]), 2, "PROGRAM"),
        (
            exec(&[program("fakebinder").to_str().unwrap(), "exec", "true"]),
            125,
            "there can be only one",
        ),
    ];
    for (command, status, message) in cases {
        let output = done(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(status) && said.contains(message), "{output:?}");
    }
}

/// The one process whose parent this is.
fn child_of(pid: Pid) -> Pid {
    let children = format!("/proc/{pid}/task/{pid}/children");
    let child = fs::read_to_string(children).unwrap();
    Pid::from_raw(child.split_whitespace().next().unwrap().parse().unwrap())
}

fn is_gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

/// Whichever of the two is killed, the other one goes, and the daemon has nothing of them left.
#[test]
fn to_kill_either_leaves_nothing() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, daemon| {
        let descriptors = || fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
        let device = target.open();
        let mut before = 0;
        for round in 0..20u64 {
            let (reader, writer) = pipe().unwrap();
            let receiver = Program::from(supervised(&program, &target.path, &["serve"]));
            let supervisor = receiver.pid();
            let child = child_of(supervisor);
            let victim = if round % 2 == 0 { supervisor } else { child };
            let killer = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_micros(2000 + 300 * round));
                kill(victim, Signal::SIGKILL).unwrap();
            });
            let contents = parcel(&writer, 10, 10);
            while let Reply::Data(_) = call(&device, &contents) {}
            killer.join().unwrap();
            let mut ended = receiver.child;
            let status = in_time("its end", move || ended.0.wait().unwrap());
            assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
            assert!(wait_until(PATIENCE, || is_gone(child)), "the program lives on");
            drop(contents);
            written(reader, writer);
            if round == 0 {
                before = descriptors();
            }
        }
        let back = wait_until(PATIENCE, || descriptors() <= before + 1);
        assert!(back, "{} descriptors, {before} before", descriptors());
    });
}

/// What was on its way to a program that is killed goes with it, though its supervisor goes on for
/// the shell.
#[test]
fn what_nobody_fetches_is_dropped() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, _| {
        let device = target.open();
        for round in 0..20u64 {
            let (reader, writer) = pipe().unwrap();
            let script = "\"$0\" \"$@\"; read line";
            let words =
                [program.to_str().unwrap(), target.path.to_str().unwrap(), "serve", "supervised"];
            let mut command = exec(&[&["sh", "-c", script], &words[..]].concat());
            command.stdin(Stdio::piped());
            let receiver = Program::from(command);
            let victim = child_of(child_of(receiver.pid()));
            let killer = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_micros(2000 + 300 * round));
                kill(victim, Signal::SIGKILL).unwrap();
            });
            let contents = parcel(&writer, 10, 10);
            while let Reply::Data(_) = call(&device, &contents) {}
            killer.join().unwrap();
            written(reader, writer);
            assert!(!is_gone(receiver.pid()), "the supervisor lives on");
        }
    });
}

/// Processes that outlive the supervisor are not held up: their ioctls fail with ENOSYS.
#[test]
fn without_its_supervisor_nobody_hangs() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, _| {
        let script = "\"$0\" \"$@\" & wait";
        let words = [program.to_str().unwrap(), target.path.to_str().unwrap(), "serve"];
        let mut command = exec(&[&["sh", "-c", script], &words[..]].concat());
        command.stderr(Stdio::piped());
        let mut receiver = Program::from(command);
        let mut said = receiver.child.0.stderr.take().unwrap();
        let left = child_of(child_of(receiver.pid()));
        kill(receiver.pid(), Signal::SIGKILL).unwrap();
        let device = target.open();
        let reply = in_time("the call", move || Thread::new(&device).call(&Call::to(0)).unwrap());
        assert!(matches!(reply, Reply::Dead), "{reply:?}");
        assert!(wait_until(PATIENCE, || is_gone(left)), "it has met an error");
        let mut message = String::new();
        said.read_to_string(&mut message).unwrap();
        assert_eq!(message, "BINDER_WRITE_READ: Function not implemented\n");
    });
}
