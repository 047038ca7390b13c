//! Clients of 32 bit beside those of 64: binder's records are the same for both, since protocol
//! version 8 has addresses of 64 bits everywhere.
//!
//! Needs a C compiler with the C library's 32-bit part (`scripts/install-deps test`), and for the
//! preload library Rust's own for i686.

mod common;

use common::{Daemon, Door, PATIENCE, Target, in_time, library, on_devices, skip, unique_name};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const I686: &str = "i686-unknown-linux-gnu";

/// raw_ping.c, which calls or serves.
struct RawPing {
    program: PathBuf,
    what: &'static str,
}

const STATIC: [&str; 2] = ["-DLIBC", "-static"];
const RAW: [&str; 5] =
    ["-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-no-pie"];
const DYNAMIC: [&str; 1] = ["-DLIBC"];

impl RawPing {
    /// Built once and kept: the test VM, where compiling takes long, has what was built outside.
    fn build(what: &'static str, flags: &[&str]) -> RawPing {
        let name = format!("raw-ping{}", flags.concat());
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if common::all_is_built() && program.exists() {
            return RawPing { program, what };
        }
        let fresh = program.with_file_name(unique_name());
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-Wall", "-Werror"]).args(flags).arg("-o").arg(&fresh);
        gcc.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/raw_ping.c"));
        assert!(gcc.status().unwrap().success(), "raw_ping.c builds with {flags:?}");
        std::fs::rename(fresh, &program).unwrap();
        RawPing { program, what }
    }

    fn command(&self, device: &Path, preload: Option<&Path>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(device);
        if let Some(library) = preload {
            command.env("LD_PRELOAD", library);
        }
        command
    }

    /// The step that failed, or 0.
    fn ping(&self, device: &Path, preload: Option<&Path>) -> Option<i32> {
        let mut command = self.command(device, preload);
        in_time("raw_ping", move || command.status().unwrap()).code()
    }
}

/// Whether gcc makes 32-bit programs here.
fn possible() -> bool {
    if !cfg!(target_arch = "x86_64") {
        skip("it takes a machine that runs programs of 32 and of 64 bit");
        return false;
    }
    let trial = std::env::temp_dir().join(unique_name() + ".c");
    std::fs::write(&trial, "#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }")
        .unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-m32", "-static", "-o", "/dev/null"]).arg(&trial);
    let output = gcc.output();
    std::fs::remove_file(&trial).unwrap();
    let possible = output.is_ok_and(|output| output.status.success());
    if !possible {
        skip("gcc -m32 -static does not work (Debian: gcc-multilib)");
    }
    possible
}

/// One serves, the other calls it.
fn calls(caller: (&RawPing, Option<&Path>), server: (&RawPing, Option<&Path>), device: &Path) {
    let what = format!("{} calls {} on {}", caller.0.what, server.0.what, device.display());
    let mut serving = server.0.command(device, server.1).arg("serve").spawn().unwrap();
    // There is nobody to call before it is the context manager.
    const DEAD: i32 = 5;
    let mut step = Some(DEAD);
    common::wait_until(PATIENCE, || {
        step = caller.0.ping(device, caller.1);
        step != Some(DEAD) || serving.try_wait().unwrap().is_some()
    });
    if step != Some(0) {
        let _ = serving.kill();
    }
    let served = in_time("raw_ping", move || serving.wait().unwrap()).code();
    assert_eq!((step, served), (Some(0), Some(0)), "the step that failed: {what}");
}

/// On the FUSE door, and on the driver.
fn can_be_mapped(target: &Target) -> bool {
    let kind = std::fs::metadata(&target.path).unwrap().file_type();
    !(kind.is_char_device() && target.is_fakebinder())
}

#[test]
fn programs_of_32_bit_call_and_serve_those_of_64() {
    if !possible() {
        return;
    }
    let programs = [
        RawPing::build("64 bit, static", &STATIC),
        RawPing::build("32 bit, static", &[&["-m32"], &STATIC[..]].concat()),
        RawPing::build("32 bit, raw system calls", &[&["-m32"], &RAW[..]].concat()),
        RawPing::build("32 bit, dynamic", &[&["-m32"], &DYNAMIC[..]].concat()),
    ];
    on_devices(|target| {
        if !can_be_mapped(target) {
            return;
        }
        for server in &programs {
            for caller in &programs {
                calls((caller, None), (server, None), &target.path);
            }
        }
    });
}

/// Builds the preload library for 32-bit programs, where Rust can.
fn library_of_32_bit(of_64_bit: &Path) -> Option<PathBuf> {
    let folder = of_64_bit.parent().unwrap();
    let (target, profile) = (folder.parent().unwrap(), folder.file_name().unwrap());
    let library = target.join(I686).join(profile).join(of_64_bit.file_name().unwrap());
    if common::all_is_built() {
        return library.exists().then_some(library);
    }
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", I686]);
    let there = rustc.output().unwrap().stdout;
    if !Path::new(String::from_utf8(there).unwrap().trim()).exists() {
        return None;
    }
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.args(["build", "--quiet", "-p", "fakebinder-preload", "--target", I686]);
    cargo.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile == "release" {
        cargo.arg("--release");
    }
    assert!(cargo.status().unwrap().success(), "the preload library builds for {I686}");
    Some(library)
}

/// Where the kernel cannot map the device, on both doors.
#[test]
fn the_preload_library_of_32_bit_attaches() {
    if !possible() {
        return;
    }
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let of_64_bit = library("libfakebinder_preload.so");
    let Some(of_32_bit) = library_of_32_bit(&of_64_bit) else {
        return skip(
            "Rust's library for i686 is missing (rustup target add i686-unknown-linux-gnu)",
        );
    };
    let program_64 = RawPing::build("64 bit, preloaded", &DYNAMIC);
    let program_32 = RawPing::build("32 bit, preloaded", &[&["-m32"], &DYNAMIC[..]].concat());
    let on_64 = (&program_64, Some(&*of_64_bit));
    let on_32 = (&program_32, Some(&*of_32_bit));
    let mut daemons = vec![Daemon::start_with(&["--no-passthrough"], None)];
    let mut devices = vec![daemons[0].fuse()];
    if Door::Cuse.is_here() {
        daemons.push(Daemon::start(Door::Cuse));
        devices.push(daemons[1].cuse());
    }
    for device in &devices {
        for (caller, server) in [(on_32, on_64), (on_64, on_32), (on_32, on_32)] {
            calls(caller, server, device);
        }
    }
    daemons.into_iter().for_each(Daemon::stop);
}
