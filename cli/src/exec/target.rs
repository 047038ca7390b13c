//! What can be seen of a process that waits: its descriptors and its memory.

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeMap;
use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What lies at the number of a descriptor that was closed for the program, which only the program
/// itself could free ([`placing`](super::placing)).
pub const PLACEHOLDER: &str = "fakebinder-closed";

/// Whether `/proc` has this process by its own number: it may be that of another pid namespace.
pub fn proc_is_ours() -> bool {
    let own = std::process::id().to_string();
    fs::read_link("/proc/self").is_ok_and(|link| link == Path::new(&own))
}

fn descriptor(tid: i32, fd: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{tid}/fd/{fd}"))
}

/// The file behind a descriptor, as the kernel names it: for files of the FUSE door no two open
/// files have the same name. None: there is no such descriptor, or it cannot be seen.
pub fn link(tid: i32, fd: i32) -> Option<PathBuf> {
    fs::read_link(descriptor(tid, fd)).ok()
}

/// Whether a file of that name may be a character device that is a binder device: it lies in /dev, or
/// in a mount that is elsewhere in this process's view. No other file is looked at, since its file
/// system may not answer.
pub fn may_be_character_device(tid: i32, fd: i32, link: &Path) -> bool {
    link.parent().is_some_and(|parent| parent.starts_with("/dev") || parent == Path::new("/"))
        && fs::metadata(descriptor(tid, fd)).is_ok_and(|it| it.file_type().is_char_device())
}

/// The number of the mount that a descriptor's file lies in.
pub fn mount(tid: i32, fd: i32) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/{tid}/fdinfo/{fd}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// Whether that mount is one of fakebinder's: of the whole directory, or of a file in it.
pub fn is_of_fakebinder(tid: i32, mount: u64) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{tid}/mountinfo")).unwrap_or_default();
    let begin = format!("{mount} ");
    let line = mounts.lines().find(|line| line.starts_with(&begin));
    line.is_some_and(|line| line.contains(" - fuse.fakebinder "))
}

/// The thread group of a thread.
pub fn thread_group(tid: i32) -> Result<i32, Errno> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).map_err(|_| Errno::ESRCH)?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|number| number.trim().parse().ok()).ok_or(Errno::ESRCH)
}

/// A copy of a descriptor of a thread. EPERM: that is not allowed here.
pub fn copy(tid: i32, fd: i32) -> Result<OwnedFd, Errno> {
    let errno = |error: rustix::io::Errno| Errno::from_raw(error.raw_os_error());
    let of = |number: i32, flags| {
        let pid = rustix::process::Pid::from_raw(number).ok_or(Errno::ESRCH)?;
        pidfd_open(pid, flags).map_err(errno)
    };
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    // Of the very thread, since Linux 6.9 (PIDFD_THREAD).
    let thread = of(tid, PidfdFlags::from_bits_retain(libc::O_EXCL as u32));
    let pidfd = thread.or_else(|_| of(thread_group(tid)?, PidfdFlags::empty()))?;
    pidfd_getfd(pidfd.as_fd(), fd, PidfdGetfdFlags::empty()).map_err(errno)
}

/// Whether the kernel could not copy so many bytes from there.
pub fn is_bad_address(tid: i32, address: u64, length: usize) -> bool {
    let mut bytes = vec![0; length];
    let local = &mut [IoSliceMut::new(&mut bytes)];
    let remote = [RemoteIoVec { base: address as usize, len: length }];
    match process_vm_readv(Pid::from_raw(tid), local, &remote) {
        Ok(read) => read < length,
        // Not to be seen is not the same as bad.
        Err(errno) => errno == Errno::EFAULT,
    }
}

/// The numbers of a process's descriptors: whether each is but a placeholder. Only `look` looks at
/// what they are.
pub fn numbers(tid: i32, look: bool) -> Result<BTreeMap<i32, bool>, Errno> {
    let entries = fs::read_dir(format!("/proc/{tid}/fd")).map_err(|_| Errno::ESRCH)?;
    let numbers = entries.filter_map(|it| it.ok()?.file_name().to_str()?.parse::<i32>().ok());
    Ok(numbers.map(|number| (number, look && is_placeholder(tid, number))).collect())
}

pub fn is_placeholder(tid: i32, number: i32) -> bool {
    let name = format!("/memfd:{PLACEHOLDER} (deleted)");
    link(tid, number).is_some_and(|link| link == Path::new(&name))
}

/// How many descriptors a process may have; none where that is not known.
pub fn limit(tid: i32) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes the limit, and reads none.
    let result =
        unsafe { libc::prlimit(tid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit) };
    (result == 0).then_some(limit.rlim_cur)
}
