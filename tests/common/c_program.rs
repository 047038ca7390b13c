//! Programs in C that know nothing of fakebinder, and what the kernel's driver has them say.

use super::{skip, unique_name};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A C program of tests/, built with these flags; `None` where there is no gcc.
pub fn build(source: &str, flags: &[&str]) -> Option<PathBuf> {
    build_by("gcc", source, flags)
}

/// The same for another C library: that of musl-gcc, which has no headers of the kernel's.
pub fn build_for_musl(source: &str, flags: &[&str]) -> Option<PathBuf> {
    let machine = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let kernel = ["-idirafter", "/usr/include", "-idirafter", &machine];
    build_by("musl-gcc", source, &[&kernel, flags].concat())
}

fn build_by(compiler: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
    let program = std::env::temp_dir().join(format!("{}-{source}", unique_name()));
    let built = Command::new(compiler)
        .args(["-D_GNU_SOURCE", "-O2", "-Wall", "-Werror"])
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(format!("{source}.c")))
        .status();
    match built {
        Ok(status) => assert!(status.success(), "{source}.c builds"),
        Err(error) => {
            skip(&format!("{compiler}: {error}"));
            return None;
        }
    }
    Some(program)
}

/// What ignored_argument.c says on the kernel's driver.
pub const IGNORED_ARGUMENT: &str = "\
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
