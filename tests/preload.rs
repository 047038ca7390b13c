//! The preload library: programs that know nothing of fakebinder, and what the kernel would not let
//! them do.

mod common;

use common::c_program::{IGNORED_ARGUMENT, build, build_for_musl};
use common::{
    Daemon, Door, Killed, Target, alone, become_manager, in_time, library, on_devices, role,
    role_device, skip,
};
use fakebinder_client::Thread;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the program says on that device, with the library where it is fakebinder's.
fn says(program: &Path, target: &Target, preloaded: bool) -> String {
    let mut command = Command::new(program);
    command.arg(&target.path);
    if preloaded && target.is_fakebinder() {
        command.env("LD_PRELOAD", library("libfakebinder_preload.so"));
    }
    let done = in_time("the program", move || command.output().unwrap());
    assert!(done.status.success(), "{:?}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// The C service manager of older Androids gives BINDER_SET_CONTEXT_MGR a null pointer, libbinder
/// gives one to BINDER_THREAD_EXIT.
#[test]
fn an_argument_that_the_driver_ignores_may_lead_nowhere() {
    for flags in [&[][..], &["-DSYSCALL"]] {
        let Some(program) = build("ignored_argument", flags) else { return };
        on_devices(|target| {
            let said = says(&program, target, true);
            assert_eq!(said, IGNORED_ARGUMENT, "{}, {flags:?}", target.path.display());
        });
        fs::remove_file(program).unwrap();
    }
}

/// The library as it is shipped: it is loaded into programs that have no use for a daemon.
#[test]
fn the_library_is_small() {
    let library = library("libfakebinder_preload.so");
    if cfg!(debug_assertions) {
        return;
    }
    let size = fs::metadata(library).unwrap().len();
    assert!(size <= 600_000, "{size} bytes");
}

/// What it says on the kernel's driver.
const LIFE: &str = "\
a call before main: yes
a call from main: yes
a call from another thread: yes
a call from a library that was loaded: yes
a buffer can be read: yes
a child can read it: EFAULT
a child can map the device that it inherits: EINVAL
a call of a child on a device of its own: yes
a call after exec: yes
a writable mapping: EPERM
a second device: yes
munmap: yes
the buffer can be read after that: EFAULT
the first device goes on: yes
a third device: yes
its mapping can be moved: yes
a program file can be mapped: yes
shared memory can be mapped: yes
and moved: yes
memory can be mapped: yes
a descriptor that is none: EBADF
no bytes: EINVAL
";

/// Serves whoever calls, until the device is closed with its process.
fn echoing(path: &Path) -> Killed {
    let mut server = Killed(role("echo", path).spawn().unwrap());
    server.wait_for("ready");
    server
}

/// Not a test: a context manager that gives back what it is given.
#[test]
#[ignore = "a role in other tests"]
fn echo() {
    let Some(device) = role_device() else { return };
    become_manager(&device);
    let mut thread = Thread::new(&device);
    thread.queue(fakebinder_client::Command::EnterLooper);
    thread.flush().unwrap();
    println!("ready");
    while thread.serve(&mut |_, _, contents, reply| _ = reply.bytes(&contents.data)).is_ok() {}
}

type Build = fn(&str, &[&str]) -> Option<PathBuf>;

fn lives(target: &Target, build: Build) {
    let Some(program) = build("preload_life", &["-pthread"]) else { return };
    let Some(loaded) = build("preload_life", &["-shared", "-fPIC", "-DLIBRARY"]) else { return };
    let server = echoing(&target.path);
    let mut command = Command::new(&program);
    command.arg(&target.path).arg(&loaded).env("BINDER_DEVICE", &target.path);
    if target.is_fakebinder() {
        command.env("LD_PRELOAD", library("libfakebinder_preload.so"));
    }
    let done = in_time("the program", move || command.output().unwrap());
    drop(server);
    let said = String::from_utf8_lossy(&done.stdout);
    assert_eq!(said, LIFE, "{}", target.path.display());
    fs::remove_file(program).unwrap();
    fs::remove_file(loaded).unwrap();
}

/// Before main, in threads, in a loaded library, after fork and exec.
#[test]
fn a_program_lives_as_on_the_driver() {
    on_devices(|target| lives(target, build));
}

#[test]
fn a_program_lives_as_on_the_driver_without_passthrough() {
    without_passthrough(build);
}

/// The library was built for glibc. One that needed another one would not be loaded.
#[test]
fn so_does_one_with_another_c_library() {
    on_devices(|target| lives(target, build_for_musl));
    without_passthrough(build_for_musl);
}

fn without_passthrough(build: Build) {
    let _alone = alone();
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start_with(&["--no-passthrough"], None);
    lives(&Target::private(daemon.fuse(), daemon), build);
}
