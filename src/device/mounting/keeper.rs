//! A process in user and mount namespaces of its own, in which it has mounted.
//!
//! It is this program again: between fork and exec the child enters the namespaces and mounts, with
//! `/dev/fuse` as its standard output; after exec it sends that descriptor to the daemon through
//! its standard input, a socket, and waits there until the daemon is gone. With it the namespaces
//! end, and the mount.
//!
//! In the namespace the user keeps its own number, and no other has one. So requests name users as
//! the daemon knows them.

use super::{Error, FILE_SYSTEM, SOURCE, flags, fusermount, options};
use crate::Errno;
use crate::device::mounts::MountPoint;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair,
};
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid, read, write};
use std::ffi::{CStr, CString};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The argument with which this program is such a process.
pub const KEEP_MOUNT: &str = "--keep-mount";

/// Where it mounts: a directory that is there wherever the daemon runs.
const MOUNT: &CStr = c"/dev";

/// What the child does before it is this program again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Enters the namespaces.
    Unshare,
    /// Gives the user's number a meaning there.
    Map,
    /// Opens /dev/fuse.
    Open,
    /// Mounts.
    Mount,
}

impl Step {
    const ALL: [Step; 4] = [Step::Unshare, Step::Map, Step::Open, Step::Mount];

    pub(super) fn what(self) -> &'static str {
        match self {
            Step::Unshare => "entering a user namespace",
            Step::Map => "mapping the user there",
            Step::Open => "/dev/fuse",
            Step::Mount => "mounting there",
        }
    }

    pub(super) fn hint(self, errno: Errno) -> &'static str {
        match (self, errno) {
            (Step::Unshare, Errno::EPERM | Errno::ENOSPC | Errno::EUSERS) => {
                " (kernel.unprivileged_userns_clone, user.max_user_namespaces)"
            }
            (Step::Map | Step::Mount, Errno::EPERM | Errno::EACCES) => {
                " (AppArmor: kernel.apparmor_restrict_unprivileged_userns)"
            }
            (Step::Open, Errno::EACCES) => " (udev opens it to all users: chmod 666 /dev/fuse)",
            _ => "",
        }
    }
}

/// The process; dropped, it is ended, and the mount with it.
pub struct Keeper {
    child: Child,
    /// None from the end on.
    socket: Option<OwnedFd>,
}

/// What the child needs, made before the fork: after it nothing may be allocated.
struct Prepared {
    uid_map: String,
    gid_map: String,
    options: CString,
    source: CString,
    kind: CString,
}

impl Prepared {
    fn new() -> io::Result<Prepared> {
        let (uid, gid) = (geteuid(), getegid());
        Ok(Prepared {
            uid_map: format!("{uid} {uid} 1"),
            gid_map: format!("{gid} {gid} 1"),
            options: CString::new(options(libc::STDOUT_FILENO))?,
            source: CString::new(SOURCE)?,
            kind: CString::new(FILE_SYSTEM)?,
        })
    }

    fn carry_out(&self) -> Result<(), (Step, Errno)> {
        let step = |step| move |errno| (step, errno);
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
            .map_err(step(Step::Unshare))?;
        for (file, text) in [
            // Without which an ordinary user may not write the next.
            (c"/proc/self/setgroups", "deny"),
            (c"/proc/self/gid_map", &*self.gid_map),
            (c"/proc/self/uid_map", &*self.uid_map),
        ] {
            let file = open(file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
            file.and_then(|file| write(file, text.as_bytes())).map_err(step(Step::Map))?;
        }
        let fuse = open(c"/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
        let fuse = fuse.map_err(step(Step::Open))?;
        // SAFETY: both are descriptors; the child's standard output is used by nobody else.
        Errno::result(unsafe { libc::dup2(fuse.as_raw_fd(), libc::STDOUT_FILENO) })
            .map_err(step(Step::Open))?;
        nix::mount::mount(
            Some(&*self.source),
            MOUNT,
            Some(&*self.kind),
            flags(),
            Some(&*self.options),
        )
        .map_err(step(Step::Mount))
    }
}

impl Keeper {
    /// Starts the process, which has mounted then. Also gives the mount's `/dev/fuse`.
    pub fn start() -> Result<(Keeper, OwnedFd), Error> {
        let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = pair.map_err(|error| Error::Keeper(error.into()))?;
        let prepared = Prepared::new().map_err(Error::Keeper)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(KEEP_MOUNT).env_clear().stdin(theirs);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let enter = move || {
            prepared.carry_out().map_err(|(step, errno)| {
                // SAFETY: the child's standard input is the socket.
                let socket = unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) };
                let _ = write(socket, &[step as u8]);
                io::Error::from(errno)
            })
        };
        // SAFETY: system calls alone, and no memory is allocated.
        unsafe { command.pre_exec(enter) };
        let spawned = command.spawn();
        // What was in it for the child is closed here.
        drop(command);
        let child = match spawned {
            Ok(child) => child,
            Err(error) => return Err(failed(&ours, error)),
        };
        let mut keeper = Keeper { child, socket: None };
        let fuse = fusermount::receive(&ours).map_err(Error::Keeper)?;
        keeper.socket = Some(ours);
        Ok((keeper, fuse))
    }

    /// Where it has mounted.
    pub fn mount_point(&self) -> MountPoint {
        let path = Path::new(MOUNT.to_str().expect("it is ASCII"));
        MountPoint::of_process(self.child.id(), path)
    }
}

/// Which step failed: the child has said so, unless it could not be started at all.
fn failed(socket: &OwnedFd, error: io::Error) -> Error {
    let mut byte = [0];
    let told = read(socket.as_fd(), &mut byte).is_ok_and(|length| length == 1);
    let step = Step::ALL.into_iter().find(|step| told && *step as u8 == byte[0]);
    match (step, error.raw_os_error()) {
        (Some(step), Some(number)) => Error::Namespace { step, errno: Errno::from_raw(number) },
        _ => Error::Keeper(error),
    }
}

/// The life of the process.
pub fn keep_mount() -> io::Result<()> {
    let (socket, fuse) = (io::stdin(), io::stdout());
    let numbers = [fuse.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&[0])], &rights, flags, None)?;
    // The mount must not stay connected when the daemon is gone.
    // SAFETY: nothing is written to the standard output from now on.
    unsafe { libc::close(libc::STDOUT_FILENO) };
    // A Ctrl-C is for the daemon.
    nix::unistd::setsid()?;
    loop {
        match read(socket.as_fd(), &mut [0]) {
            Err(Errno::EINTR) => {}
            _ => return Ok(()),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
