//! Uids and pids: who a client is, and by which numbers other clients know it.
//!
//! The wire names the uid that a thread uses on file systems (`fuse_in_header.uid`); binder uses
//! the effective uid, which `setfsuid` does not change. A receiver is shown the sender's uid as it
//! is named in the receiver's user namespace (`from_kuid`): root outside is not root inside, and
//! most uids have no name there at all.
//!
//! All uids of the engine are those of the daemon's own user namespace.

use crate::Errno;
use crate::lock_order::rank;
use crate::sync::Mutex;
use nix::sys::stat::FileStat;
use rustc_hash::FxHashMap;
use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{fmt, fs};

/// (uid_t)-1: a uid that has no name.
pub const NOBODY: u32 = u32::MAX;

/// How long a thread is taken to be in the user namespace that it was last seen in. Only a thread
/// that is alone in its process can leave it.
const FRESH: Duration = Duration::from_millis(10);

/// How many threads of a client are remembered.
const REMEMBERED: usize = 256;

/// The effective uid of a thread that waits for the daemon: the owner of the thread's directory in
/// /proc, as the kernel has always had it (`task_dump_owner`). The status says it too, at ten times
/// the price. Never remembered: a thread may change its effective uid and keep that of the wire.
pub fn euid(tid: i32) -> Result<u32, Errno> {
    stat(format_args!("/proc/{tid}")).map(|it| it.st_uid)
}

/// The same, of a thread of the process `pid`. ENOENT: the thread belongs to another process.
pub fn euid_of_thread(pid: i32, tid: i32) -> Result<u32, Errno> {
    stat(format_args!("/proc/{pid}/task/{tid}")).map(|it| it.st_uid)
}

/// What the kernel says of a process by its descriptor (`struct pidfd_info`, `linux/pidfd.h`).
#[repr(C)]
#[derive(Default)]
pub struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    /// What lies behind it in the first version of the structure, of 64 bytes.
    rest: [u32; 6],
}

nix::ioctl_readwrite!(
    /// `PIDFD_GET_INFO`.
    pidfd_get_info,
    0xff,
    11,
    PidfdInfo
);

/// Whether this kernel is not known to lack it.
static IS_KNOWN: AtomicBool = AtomicBool::new(true);

/// The effective uid of the first thread of a process, while it waits for the daemon: as [`euid`],
/// at an eighth of the price (measured). ENOTTY or EINVAL before Linux 6.13, which is asked once.
pub fn euid_of_first_thread(pidfd: BorrowedFd<'_>) -> Result<u32, Errno> {
    /// `PIDFD_INFO_PID` and `PIDFD_INFO_CREDS`.
    const PID_AND_CREDENTIALS: u64 = 0b11;
    if !IS_KNOWN.load(Relaxed) {
        return Err(Errno::ENOTTY);
    }
    let mut info = PidfdInfo { mask: PID_AND_CREDENTIALS, ..Default::default() };
    // SAFETY: the kernel writes the structure, whose size the request's number tells it.
    match unsafe { pidfd_get_info(pidfd.as_raw_fd(), &mut info) } {
        Ok(_) if info.mask & PID_AND_CREDENTIALS == PID_AND_CREDENTIALS => Ok(info.euid),
        Ok(_) => Err(Errno::ENOTTY),
        Err(errno @ (Errno::ENOTTY | Errno::EINVAL)) => {
            IS_KNOWN.store(false, Relaxed);
            Err(errno)
        }
        Err(errno) => Err(errno),
    }
}

/// Stats a file whose name is short: called for every call, so nothing is allocated.
fn stat(path: fmt::Arguments<'_>) -> Result<FileStat, Errno> {
    let mut name = [0; 64];
    let mut rest = &mut name[..];
    rest.write_fmt(path).map_err(|_| Errno::ENAMETOOLONG)?;
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| Errno::ENAMETOOLONG)?;
    nix::sys::stat::stat(name)
}

/// The names that uids have in a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Names {
    /// The daemon's own namespace.
    Ours,
    Of(Arc<UidMap>),
}

/// `/proc/PID/uid_map`, as read from outside.
#[derive(Debug, Default, PartialEq, Eq)]
struct UidMap(Vec<Extent>);

/// An extent: `count` uids from `inside` on are those from `outside` on in the daemon's namespace.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    inside: u32,
    outside: u32,
    count: u32,
}

impl UidMap {
    fn parse(text: &str) -> UidMap {
        let extents = text.lines().filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(|word| word.parse().ok());
            let mut next = || numbers.next().flatten();
            Some(Extent { inside: next()?, outside: next()?, count: next()? })
        });
        // An extent whose uids have no name in the daemon's namespace is of no use.
        UidMap(extents.filter(|extent| extent.outside != NOBODY).collect())
    }

    fn name_of(&self, uid: u32) -> u32 {
        self.0
            .iter()
            .find_map(|extent| {
                let index = uid.checked_sub(extent.outside)?;
                (index < extent.count).then(|| extent.inside.checked_add(index))?
            })
            .unwrap_or(NOBODY)
    }
}

/// The inode of a user namespace. EACCES for a thread of another user, without ptrace access.
fn user_namespace(who: impl fmt::Display) -> Result<u64, Errno> {
    stat(format_args!("/proc/{who}/ns/user")).map(|it| it.st_ino)
}

/// The inode of the daemon's own user namespace.
fn our_user_namespace() -> Option<u64> {
    static OURS: OnceLock<Option<u64>> = OnceLock::new();
    *OURS.get_or_init(|| user_namespace("self").ok())
}

/// Whether a thread that waits for the daemon is in the daemon's user namespace; false where that
/// cannot be seen.
pub fn is_in_our_user_namespace(tid: i32) -> bool {
    user_namespace(tid).ok().is_some_and(|theirs| Some(theirs) == our_user_namespace())
}

impl Names {
    fn name_of(&self, uid: u32) -> u32 {
        match self {
            Names::Ours => uid,
            Names::Of(map) => map.name_of(uid),
        }
    }

    /// The names in the user namespace of a thread that waits for the daemon.
    fn of(tid: i32) -> std::io::Result<Names> {
        let ours = our_user_namespace();
        let map = |who: &str| fs::read_to_string(format!("/proc/{who}/uid_map"));
        match user_namespace(tid) {
            Ok(theirs) if Some(theirs) == ours => Ok(Names::Ours),
            Ok(_) => Ok(Names::Of(Arc::new(UidMap::parse(&map(&tid.to_string())?)))),
            Err(Errno::EACCES) => {
                let theirs = map(&tid.to_string())?;
                match theirs == map("self")? {
                    true => Ok(Names::Ours),
                    false => Ok(Names::Of(Arc::new(UidMap::parse(&theirs)))),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The user namespaces of the threads that read from one open file.
#[derive(Default)]
pub struct Namespaces {
    by_thread: Mutex<FxHashMap<i32, Seen>, rank::UserNamespaces>,
}

struct Seen {
    at: Instant,
    names: Names,
}

impl Namespaces {
    /// The name that a uid has for the thread `tid`, which waits in a read. [`NOBODY`] also when
    /// that cannot be found out.
    pub fn name_of(&self, tid: i32, uid: u32) -> u32 {
        let now = Instant::now();
        let known = self
            .by_thread
            .lock()
            .get(&tid)
            .and_then(|seen| (now.duration_since(seen.at) < FRESH).then(|| seen.names.clone()));
        if let Some(names) = known {
            return names.name_of(uid);
        }
        let names = match Names::of(tid) {
            Ok(names) => names,
            Err(error) => {
                log::debug!("thread {tid}: its user namespace: {error}");
                return NOBODY;
            }
        };
        let name = names.name_of(uid);
        let mut by_thread = self.by_thread.lock();
        if by_thread.len() >= REMEMBERED && !by_thread.contains_key(&tid) {
            by_thread.clear();
        }
        by_thread.insert(tid, Seen { at: now, names });
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_map_is_read_from_outside() {
        let map =
            UidMap::parse("         0       1000          1\n    100000     200000      65536\n");
        assert_eq!([0, 999, 1000, 1001].map(|uid| map.name_of(uid)), [NOBODY, NOBODY, 0, NOBODY]);
        assert_eq!(
            [200_000, 265_535, 265_536].map(|uid| map.name_of(uid)),
            [100_000, 165_535, NOBODY]
        );
        assert_eq!(map.name_of(NOBODY), NOBODY);
        let all = UidMap::parse("0 0 4294967295\n");
        assert_eq!(
            [0, 1000, NOBODY - 1, NOBODY].map(|uid| all.name_of(uid)),
            [0, 1000, NOBODY - 1, NOBODY]
        );
    }

    #[test]
    fn a_map_without_sense_names_nobody() {
        for text in ["", "0\n", "0 1000\n", "a b c\n", "0 4294967295 1\n", "4294967295 5 9\n"] {
            let map = UidMap::parse(text);
            assert_eq!([0, 6, 1000, NOBODY].map(|uid| map.name_of(uid)), [NOBODY; 4], "{text:?}");
        }
    }

    #[test]
    fn this_thread_is_in_our_namespace() {
        let tid = nix::unistd::gettid().as_raw();
        assert_eq!(Names::of(tid).unwrap(), Names::Ours);
        assert_eq!(euid(tid), Ok(nix::unistd::geteuid().as_raw()));
        let namespaces = Namespaces::default();
        assert_eq!([0, 1234].map(|uid| namespaces.name_of(tid, uid)), [0, 1234]);
        assert_eq!(namespaces.name_of(i32::MAX, 0), NOBODY, "no such thread");
        assert_eq!(euid(i32::MAX), Err(Errno::ENOENT));
    }

    /// Linux 6.13 and later say it by the descriptor; what they say is what /proc says.
    #[test]
    fn a_descriptor_of_a_process_tells_its_uid() {
        let pid = nix::unistd::getpid().as_raw();
        let pidfd = crate::client_mem::pidfd_open(pid).unwrap();
        match euid_of_first_thread(pidfd.as_fd()) {
            Err(Errno::ENOTTY | Errno::EINVAL) => {
                assert!(!IS_KNOWN.load(Relaxed), "it is asked once");
            }
            told => assert_eq!(told, euid(pid)),
        }
    }
}
