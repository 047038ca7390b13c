//! `fakebinder exec -- PROGRAM`: runs a program under a supervisor, which gives it what the daemon
//! and the kernel cannot: descriptors, where the daemon may not stop the program's threads, and the
//! driver's answer to ioctls that the kernel answers in the daemon's place.
//!
//! The supervisor is this process, and the program is its child. A seccomp filter makes the kernel
//! tell the supervisor of each binder ioctl ([`filter`], [`listener`]); it looks, does what there
//! is to do ([`supervisor`]), and lets the thread go on. No privilege is needed, and the program
//! may be one that knows nothing of any of this, static or of 32 bit.

mod device;
mod filter;
mod listener;
mod placing;
mod program;
mod supervisor;
mod target;

use clap::Args;
use listener::Listener;
use nix::errno::Errno;
use program::Program;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use supervisor::Supervisor;

/// Runs a program so that descriptors in transactions reach it from any daemon.
///
/// The program's exit status is this command's, and signals for this command go to the program. Where it leaves
/// processes behind, the command goes on until the last of them has ended.
#[derive(Args, Debug)]
pub struct Exec {
    /// The program, looked for in PATH, and its arguments.
    #[arg(required = true, value_name = "PROGRAM", trailing_var_arg = true)]
    program: Vec<OsString>,
}

/// What a shell returns for a program that cannot be executed, and for one that is not there.
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{program}: {error}", program = program.display())]
    Program { program: OsString, error: std::io::Error },
    #[error(
        "this kernel cannot tell a supervisor of system calls (seccomp user notification, Linux 5.9, CONFIG_SECCOMP_FILTER)"
    )]
    NoNotification,
    #[error(
        "a supervisor is told of this process's system calls already, and there can be only one: `fakebinder exec` \
         inside `fakebinder exec`, or a container whose manager does the same"
    )]
    Supervised,
    #[error("seccomp is not permitted here (a container's own filter?): {0}")]
    Refused(Errno),
    #[error("the system calls of this machine's architecture are not known to `fakebinder exec`")]
    Architecture,
    #[error(
        "/proc is not that of this pid namespace, so the program's processes cannot be seen (unshare --mount-proc)"
    )]
    Proc,
    #[error("starting the supervisor: {0}")]
    Supervisor(Errno),
}

impl Error {
    fn status(&self) -> u8 {
        match self {
            Error::Program { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
                NOT_FOUND
            }
            Error::Program { .. } => CANNOT_EXECUTE,
            _ => 125,
        }
    }
}

/// Runs the program to its end.
pub fn run(exec: Exec) -> ExitCode {
    match start(exec) {
        Ok((program, supervisor)) => supervisor.run(program),
        Err(error) => {
            eprintln!("fakebinder exec: {error}");
            ExitCode::from(error.status())
        }
    }
}

fn start(exec: Exec) -> Result<(Program, Supervisor), Error> {
    if filter::KNOWN.is_empty() {
        return Err(Error::Architecture);
    }
    listener::check_kernel()?;
    if !target::proc_is_ours() {
        return Err(Error::Proc);
    }
    let (program, descriptor): (Program, OwnedFd) = Program::start(&exec.program)?;
    let supervisor = Supervisor::new(Listener::new(descriptor)?).map_err(Error::Supervisor)?;
    Ok((program, supervisor))
}
