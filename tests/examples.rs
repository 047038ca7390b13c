//! The programs of examples/, as a user builds and runs them.

mod common;

use common::{
    Daemon, Door, Killed, PATIENCE, Target, library, on_devices, on_doors, skip, unique_name,
    within,
};
use nix::unistd::geteuid;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Nobody: a user with no rights of its own.
const ORDINARY: u32 = 65_534;

/// A C program of examples/c, where every user may run it; `None` where there is no gcc.
fn build(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let program = std::env::temp_dir().join(format!("{}-{name}", unique_name()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/c").join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-Wextra", "-Werror"]).args(flags).arg("-o").arg(&program);
    match gcc.arg(source.with_extension("c")).status() {
        Ok(status) => assert!(status.success(), "{name}.c builds with {flags:?}"),
        Err(error) => {
            skip(&format!("gcc: {error}"));
            return None;
        }
    }
    Some(program)
}

/// Of fakebinder's doors only CUSE makes such a one.
fn is_character_device(target: &Target) -> bool {
    std::fs::metadata(&target.path).unwrap().file_type().is_char_device()
}

/// What a client says of a service, both with a descriptor each way, `count` times.
fn says(programs: &[PathBuf; 2], target: &Target, user: Option<u32>, count: usize) -> String {
    let [service, client] = programs.each_ref().map(|program| {
        let mut command = Command::new(program);
        command.arg(&target.path);
        // On the CUSE door the kernel maps nothing, nor on the other without passthrough.
        if target.is_fakebinder() && common::open(&target.path).is_attached() {
            command.env("LD_PRELOAD", library("libfakebinder_preload.so"));
        }
        if let Some(uid) = user {
            command.uid(uid).gid(uid);
        }
        command
    });
    let (mut service, mut client) = (service, client);
    let mut service = Killed(service.stdout(Stdio::piped()).spawn().unwrap());
    service.wait_for("ready");
    client.arg(count.to_string());
    // Thousands of descriptors, in an emulated machine.
    let done = within(3 * PATIENCE, "the client", move || client.output().unwrap());
    let ended = common::wait_until(PATIENCE, || service.0.try_wait().unwrap().is_some());
    assert!(ended, "the service ends when it is asked to");
    assert!(done.status.success(), "{:?}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn expected(count: usize) -> String {
    let right = 2 * count;
    format!(
        "protocol version 8\nhello, binder\n\
         {count} descriptors there and {count} back: {right} right\n"
    )
}

fn programs(flags: &[&str]) -> Option<[PathBuf; 2]> {
    Some([build("service", flags)?, build("client", flags)?])
}

fn forget(programs: [PathBuf; 2]) {
    programs.iter().for_each(|program| std::fs::remove_file(program).unwrap());
}

/// The same on the kernel's driver and on both doors.
#[test]
fn c_programs_call_each_other_with_descriptors_on_every_device() {
    let Some(programs) = programs(&[]) else { return };
    on_devices(|target| assert_eq!(says(&programs, target, None, 1_000), expected(1_000)));
    forget(programs);
}

#[test]
fn static_c_programs_do_so_where_the_kernel_maps_the_device() {
    let Some(programs) = programs(&["-static"]) else { return };
    on_devices(|target| {
        if !(target.is_fakebinder() && is_character_device(target)) {
            assert_eq!(says(&programs, target, None, 1_000), expected(1_000));
        }
    });
    forget(programs);
}

/// As before Linux 6.9.
#[test]
fn programs_that_attach_do_so() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let Some(programs) = programs(&[]) else { return };
    let daemon = Daemon::start_with(&["--no-passthrough"], None);
    let target = Target::private(daemon.fuse(), daemon);
    assert_eq!(says(&programs, &target, None, 100), expected(100));
    forget(programs);
}

/// With daemons of their own: where root has been the context manager nobody else may be.
#[test]
fn programs_of_an_ordinary_user_do_so() {
    if !geteuid().is_root() {
        return skip("only root starts programs of another user");
    }
    let (Some(dynamic), Some(fixed)) = (programs(&[]), programs(&["-static"])) else { return };
    on_doors(|target, _| {
        let programs = if is_character_device(target) { &dynamic } else { &fixed };
        assert_eq!(says(programs, target, Some(ORDINARY), 1_000), expected(1_000));
    });
    forget(dynamic);
    forget(fixed);
}
