//! The preload library: programs that know nothing of fakebinder, and what the kernel would not let
//! them do.

mod common;

use common::{Target, in_time, library, on_devices, skip, unique_name};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A C program of tests/, built with these flags; `None` where there is no gcc.
fn build(source: &str, flags: &[&str]) -> Option<PathBuf> {
    let program = std::env::temp_dir().join(format!("{}-{source}", unique_name()));
    let built = Command::new("gcc")
        .args(["-D_GNU_SOURCE", "-O2", "-Wall", "-Werror"])
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(format!("{source}.c")))
        .status();
    match built {
        Ok(status) => assert!(status.success(), "{source}.c builds"),
        Err(error) => {
            skip(&format!("gcc: {error}"));
            return None;
        }
    }
    Some(program)
}

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

/// What the kernel's driver answers.
const IGNORED_ARGUMENT: &str = "\
mmap: 0
BINDER_SET_CONTEXT_MGR, null: 0
once more: EBUSY
once more, bad: EBUSY
a new thread's first read: EAGAIN
the next: EAGAIN
BINDER_THREAD_EXIT, null: 0
a new thread's first read: 0
BINDER_THREAD_EXIT, bad: 0
a new thread's first read: 0
the next: EAGAIN
BINDER_VERSION, bad: EINVAL
BINDER_SET_MAX_THREADS, bad: EINVAL
BINDER_SET_CONTEXT_MGR_EXT, bad: EINVAL
BINDER_WRITE_READ, bad: EFAULT
BINDER_GET_FROZEN_INFO, bad: EFAULT
a call that fails: 0
BINDER_GET_EXTENDED_ERROR, bad: EFAULT
BINDER_GET_EXTENDED_ERROR: 0
it says BR_OK
another file: BINDER_THREAD_EXIT, null: ENOTTY
another file: BINDER_VERSION, bad: ENOTTY
another file: BINDER_THREAD_EXIT, null: ENOTTY
another file: BINDER_VERSION, bad: ENOTTY
another file: BINDER_THREAD_EXIT, null: ENOTTY
another file: BINDER_VERSION, bad: ENOTTY
another file: BINDER_THREAD_EXIT, null: EBADF
another file: BINDER_VERSION, bad: EBADF
FIONREAD of a pipe: 0
FIONREAD of a pipe, bad: EFAULT
";

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
