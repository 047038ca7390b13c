//! `fusermount3`, which mounts for ordinary users.
//!
//! It opens `/dev/fuse`, mounts, and sends the descriptor through a socket whose number is in
//! `_FUSE_COMMFD`: the way of libfuse (`fusermount.c`).

use super::{Error, SOURCE};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// The program: in `PATH`, or where it usually is.
pub fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/sbin"].map(PathBuf::from);
    let mut folders = env::split_paths(&path).filter(|folder| folder.is_absolute()).chain(usual);
    folders.find_map(|folder| Some(folder.join("fusermount3")).filter(|program| program.is_file()))
}

/// Whether it mounts for others than the user.
pub fn allows_others() -> bool {
    let text = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    text.lines().any(|line| line.trim() == "user_allow_other")
}

/// Mounts, and gives `/dev/fuse`.
pub fn mount(program: &Path, path: &Path, for_all: bool) -> Result<OwnedFd, Error> {
    let failed = |error: io::Error| Error::Fusermount(error.to_string());
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|error| failed(error.into()))?;
    let mut options =
        format!("nosuid,nodev,noexec,noatime,default_permissions,fsname={SOURCE},subtype={SOURCE}");
    if for_all {
        options.push_str(",allow_other");
    }
    let output = Command::new(program)
        .args(["-o", &options, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(theirs)
        .stdout(Stdio::null())
        .output()
        .map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().next().unwrap_or("it says nothing");
        // It begins with the name by which it was called.
        let name = format!("{}: ", program.display());
        return Err(Error::Fusermount(line.strip_prefix(&name).unwrap_or(line).to_owned()));
    }
    receive(&ours).map_err(failed)
}

/// The descriptor that has been sent through a socket. An error if none has.
pub fn receive(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control
            && let [number] = numbers[..]
        {
            // SAFETY: the kernel has just made this descriptor for us alone.
            return Ok(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"))
}

/// Unmounts what it has mounted.
pub fn unmount(program: &Path, path: &Path) -> io::Result<()> {
    let output = Command::new(program)
        .args(["-u", "-z", "-q", "--"])
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(io::Error::other(said))
        }
    }
}
