//! Descriptors for programs that know nothing of fakebinder: a thread of theirs is stopped at the
//! end of its ioctl and installs them itself. The programs are descriptors.c, which look at
//! themselves.

mod common;

use common::receiver::{
    Program, answer, assert_came, build, call, fill, parcel, refused, stop, written,
};
use common::{Daemon, Door, PATIENCE, Target, alone, become_manager, open, skip, wait_until};
use fakebinder_client::{Errno, Reply};
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::io::pipe;
use std::process::Command;

/// FUSE and x86-64: there a C program can map the device, and its thread can be stopped.
fn on_fuse(scene: impl Fn(&Target, &Daemon)) {
    on_fuse_with(&[], scene);
}

fn on_fuse_with(flags: &[&str], scene: impl Fn(&Target, &Daemon)) {
    if !Door::Fuse.is_here() || !cfg!(target_arch = "x86_64") {
        return skip("it takes /dev/fuse and an x86-64");
    }
    let _alone = alone();
    let daemon = Daemon::start_with(flags, None);
    let target = Target::private(daemon.fuse(), daemon);
    scene(&target, target.daemon.as_ref().unwrap());
}

/// 10,000 descriptors in calls, of which a half come in arrays: each has the lowest free number and
/// is close-on-exec, and registers, signal mask, limit, mappings and descriptors of the program are
/// in the end what they were. No other thread of it is ever traced.
fn ten_thousand_in_calls(flags: &[&str], options: &[&str]) {
    let Some(program) = build(flags) else { return };
    on_fuse(|target, _| {
        let (reader, writer) = pipe().unwrap();
        let arguments = [&["serve"], options].concat();
        let program = Program::start(&program, &target.path, &arguments);
        let device = target.open();
        let parcel = parcel(&writer, 50, 50);
        for index in 1..=100 {
            assert_came(&call(&device, &parcel), 100 * index);
        }
        stop(&device);
        assert_eq!(program.ended(), "done 10000 failed 0");
        drop(parcel);
        assert_eq!(written(reader, writer), 10_000);
    });
}

#[test]
fn a_static_program_receives_ten_thousand_in_calls() {
    ten_thousand_in_calls(&["-static"], &["watch"]);
}

#[test]
fn a_dynamic_program_receives_ten_thousand_in_calls() {
    ten_thousand_in_calls(&[], &["watch"]);
}

/// Handlers without SA_RESTART run whenever a signal comes; nothing is lost or comes twice.
#[test]
fn signals_come_while_descriptors_do() {
    ten_thousand_in_calls(&["-static"], &["signals"]);
}

/// The filter would kill the program for the calls that bring descriptors: it is suspended for
/// them.
#[test]
fn a_seccomp_filter_neither_kills_nor_refuses() {
    ten_thousand_in_calls(&["-static"], &["filtered"]);
}

#[test]
fn programs_receive_descriptors_in_replies() {
    for flags in [&["-static"][..], &[]] {
        let Some(program) = build(flags) else { return };
        on_fuse(|target, _| {
            let (reader, writer) = pipe().unwrap();
            let manager = target.open();
            become_manager(&manager);
            let program = Program::start(&program, &target.path, &["call", "200", "watch"]);
            std::thread::scope(|scope| {
                scope.spawn(|| answer(&manager, 200, |reply| fill(reply, &writer, 3, 2)));
            });
            assert_eq!(program.ended(), "done 1000 failed 0");
            assert_eq!(written(reader, writer), 1000);
        });
    }
}

/// The program has as many numbers left as come, though not one for how they come; and then one
/// less: EMFILE, and the next ones come.
#[test]
fn the_numbers_that_are_left_are_enough_or_the_call_fails() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, daemon| {
        let (reader, writer) = pipe().unwrap();
        let program = Program::start(&program, &target.path, &["serve", "full=2"]);
        let device = target.open();
        assert_came(&call(&device, &parcel(&writer, 1, 1)), 2);
        for (single, in_array) in [(2, 1), (0, 4), (3, 0)] {
            refused(&device, &parcel(&writer, single, in_array), Errno::EMFILE);
        }
        assert_came(&call(&device, &parcel(&writer, 2, 0)), 4);
        stop(&device);
        assert_eq!(program.ended(), "done 4 failed 0");
        assert_eq!(written(reader, writer), 4);
        assert!(daemon.log().contains("cannot be given the descriptors"), "{}", daemon.log());
    });
}

/// At its hard limit a program may need one number more than descriptors come (where the daemon has
/// no CAP_SYS_RESOURCE), and no two.
#[test]
fn a_program_at_its_hard_limit_receives() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, _| {
        let (reader, writer) = pipe().unwrap();
        let program = Program::start(&program, &target.path, &["serve", "hard=3"]);
        let device = target.open();
        refused(&device, &parcel(&writer, 4, 0), Errno::EMFILE);
        assert_came(&call(&device, &parcel(&writer, 1, 1)), 2);
        assert_came(&call(&device, &parcel(&writer, 1, 0)), 3);
        stop(&device);
        assert_eq!(program.ended(), "done 3 failed 0");
        assert_eq!(written(reader, writer), 3);
    });
}

/// Somebody else traces the program: EPERM for the sender, one line in the log, and the program is
/// as it was.
#[test]
fn a_program_that_is_traced_is_left_alone() {
    let Some(program) = build(&["-static"]) else { return };
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("strace is not here");
    }
    on_fuse(|target, daemon| {
        let (reader, writer) = pipe().unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null"]).arg(&program).arg(&target.path).arg("serve");
        let program = Program::from(strace);
        let device = target.open();
        refused(&device, &parcel(&writer, 1, 0), Errno::EPERM);
        refused(&device, &parcel(&writer, 1, 3), Errno::EPERM);
        stop(&device);
        assert_eq!(program.ended(), "done 0 failed 0");
        assert_eq!(written(reader, writer), 0);
        assert!(daemon.log().contains("cannot be given the descriptors"), "{}", daemon.log());
    });
}

/// A program that is stopped takes nothing; when it goes on, it has all.
#[test]
fn a_program_that_is_stopped_receives_when_it_goes_on() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, _| {
        let (reader, writer) = pipe().unwrap();
        let program = Program::start(&program, &target.path, &["serve"]);
        let device = target.open();
        let pid = program.pid();
        for round in 1..=20 {
            kill(pid, Signal::SIGSTOP).unwrap();
            // Now and then the call is there before the signal is.
            if round % 2 == 0 {
                let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
                assert!(wait_until(PATIENCE, || state().contains(") T ")), "{}", state());
            }
            std::thread::scope(|scope| {
                let came =
                    scope.spawn(|| assert_came(&call(&device, &parcel(&writer, 2, 3)), 5 * round));
                std::thread::sleep(std::time::Duration::from_millis(5));
                kill(pid, Signal::SIGCONT).unwrap();
                came.join().unwrap();
            });
        }
        stop(&device);
        assert_eq!(program.ended(), "done 100 failed 0");
        assert_eq!(written(reader, writer), 100);
    });
}

/// A program that is killed while descriptors come, at whatever moment: nothing is left of them,
/// the sender reads that it is dead, and the daemon serves the next one.
#[test]
fn a_program_that_is_killed_in_the_middle_leaves_nothing() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse(|target, daemon| {
        let descriptors = || fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
        let device = target.open();
        let mut before = 0;
        for round in 0..40 {
            let (reader, writer) = pipe().unwrap();
            let program = Program::start(&program, &target.path, &["serve"]);
            let pid = program.pid();
            let killer = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_micros(2000 + 150 * round));
                kill(pid, Signal::SIGKILL).unwrap();
            });
            let parcel = parcel(&writer, 10, 10);
            while let Reply::Data(_) = call(&device, &parcel) {}
            killer.join().unwrap();
            drop((program, parcel));
            written(reader, writer);
            if round == 0 {
                before = descriptors();
            }
        }
        let back = wait_until(PATIENCE, || descriptors() <= before + 1);
        assert!(back, "{} descriptors, {before} before", descriptors());
        let program = Program::start(&program, &target.path, &["serve"]);
        let (reader, writer) = pipe().unwrap();
        assert_came(&call(&device, &parcel(&writer, 1, 1)), 2);
        stop(&device);
        assert_eq!(program.ended(), "done 2 failed 0");
        assert_eq!(written(reader, writer), 2);
    });
}

/// 32-bit programs make other system calls: refused before anything is sent.
#[test]
fn a_32_bit_program_is_refused() {
    let Some(program) = build(&["-m32", "-static"]) else { return };
    on_fuse(|target, daemon| {
        let (reader, writer) = pipe().unwrap();
        let program = Program::start(&program, &target.path, &["serve"]);
        let device = target.open();
        refused(&device, &parcel(&writer, 1, 1), Errno::EOPNOTSUPP);
        stop(&device);
        assert_eq!(program.ended(), "done 0 failed 0");
        assert_eq!(written(reader, writer), 0);
        assert!(daemon.log().contains("no way to receive them"), "{}", daemon.log());
    });
}

#[test]
fn never_trace_refuses_and_stops_nobody() {
    let Some(program) = build(&["-static"]) else { return };
    on_fuse_with(&["--never-trace"], |target, _| {
        let (reader, writer) = pipe().unwrap();
        let program = Program::start(&program, &target.path, &["serve"]);
        let device = target.open();
        refused(&device, &parcel(&writer, 1, 1), Errno::EOPNOTSUPP);
        stop(&device);
        assert_eq!(program.ended(), "done 0 failed 0");
        assert_eq!(written(reader, writer), 0);
    });
}

/// A program in pid and user namespaces of its own, as in a container.
#[test]
fn a_program_in_other_namespaces_receives() {
    let Some(program) = build(&["-static"]) else { return };
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]);
        unshare
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        return skip("unshare --user --pid is not possible here");
    }
    on_fuse(|target, _| {
        let (reader, writer) = pipe().unwrap();
        let mut command = unshare();
        command.arg(&program).arg(&target.path).args(["serve"]);
        let program = Program::from(command);
        let device = open(&target.path);
        for index in 1..=20 {
            assert_came(&call(&device, &parcel(&writer, 2, 3)), 5 * index);
        }
        stop(&device);
        assert_eq!(program.ended(), "done 100 failed 0");
        assert_eq!(written(reader, writer), 100);
    });
}
