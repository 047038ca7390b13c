//! The process behind an open file, as the engine reaches it.

use super::security_context::SecurityContexts;
use super::supervised::Supervision;
use super::taken_file::{TakenFile, taken_descriptors};
use super::threads::{self, Threads};
use super::tracee::IS_KNOWN;
use super::tracers::{self, Tracers};
use super::{files::Channel, ids};
use crate::binder::copies::{Allowance, COPIES, Carriers, Copies};
use crate::client_log::{Caller, Kind, client_log, user_error};
use crate::lock_order::rank;
use crate::probe::{Verb, fault};
use crate::quota::{ByUid, Quotas, User, What};
use crate::shortage::is_shortage;
use crate::sync::Mutex;
use crate::{Errno, binder, client_mem, uapi};
use nix::sys::resource::{Resource, getrlimit};
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Whether a process runs a 64-bit program, according to its file's header.
fn is_64_bit(pid: i32) -> bool {
    const EI_CLASS: usize = 4;
    const ELFCLASS64: u8 = 2;
    let mut head = [0; EI_CLASS + 1];
    let file = fs::File::open(format!("/proc/{pid}/exe"));
    file.and_then(|mut file| file.read_exact(&mut head)).is_ok() && head[EI_CLASS] == ELFCLASS64
}

/// Copies of one process that may be under way at a time, over all its open files: all of them may
/// stall, and hold a thread each.
const COPIES_OF_A_PROCESS: usize = 32;

/// A process that has opened a device: its thread group, seen from the daemon's pid namespace.
pub struct Client {
    /// The thread group.
    pub pid: i32,
    /// The opener's uid, as the device's OPEN tells it.
    pub uid: u32,
    /// The user to whom the records of this process are charged.
    pub user: Arc<User>,
    /// Names the process itself; the number may become another process's.
    pub pidfd: Arc<OwnedFd>,
    /// The context at the open, with its NUL: `binder_transaction` uses `proc->cred`, whichever
    /// thread calls.
    security_context: Result<Vec<u8>, Errno>,
    namespaces: OnceLock<Namespaces>,
    user_namespaces: ids::Namespaces,
    clients: Arc<Clients>,
    copies: Arc<Copies>,
    /// Shared by all open files of the process.
    allowance: Arc<Allowance>,
    /// The way of descriptors into the process, once it has attached.
    channel: Mutex<Option<Channel>, rank::Channel>,
    /// Who else may put descriptors into the process.
    pub(super) supervision: Supervision,
    /// The log has said that there is no such way.
    said_no_channel: AtomicBool,
    watched_threads: threads::Count,
    is_64_bit: OnceLock<bool>,
}

/// Where a process stands among the pid namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Namespaces {
    /// The inode of its pid namespace, if that is not the daemon's own.
    innermost: Option<u64>,
    /// The process's number there.
    pid: i32,
}

impl Namespaces {
    fn of(pid: i32) -> Result<Namespaces, Errno> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(errno)?;
        let mut numbers = numbers(&status, "NSpid:").ok_or(Errno::EIO)?;
        // One number for each namespace from the daemon's inwards.
        let (outermost, inner) = (numbers.next().ok_or(Errno::EIO)?, numbers.next_back());
        match inner {
            None => Ok(Namespaces { innermost: None, pid: outermost }),
            // Unlike the status, this takes ptrace access.
            Some(inner) => {
                let namespace = fs::metadata(format!("/proc/{pid}/ns/pid")).map_err(errno)?;
                Ok(Namespaces { innermost: Some(namespace.ino()), pid: inner })
            }
        }
    }
}

/// The numbers on the line that starts with `key`.
pub(super) fn numbers<'a>(
    status: &'a str,
    key: &str,
) -> Option<impl DoubleEndedIterator<Item = i32> + 'a> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_ascii_whitespace().filter_map(|number| number.parse().ok()))
}

/// ENOENT from `/proc` means that the process is gone: ESRCH. EMFILE is the daemon's own trouble.
pub(super) fn errno(error: std::io::Error) -> Errno {
    match error.raw_os_error().map_or(Errno::EIO, Errno::from_raw) {
        Errno::ENOENT => Errno::ESRCH,
        other => other,
    }
}

/// The thread group of a thread that waits for a reply, and therefore lives. ESRCH when it does
/// not; EMFILE and ENFILE when the daemon has no descriptor left to look with.
pub fn thread_group(tid: i32) -> Result<i32, Errno> {
    fault(Verb::Descriptor)?;
    let status = fs::read_to_string(format!("/proc/{tid}/status")).map_err(errno)?;
    numbers(&status, "Tgid:").and_then(|mut numbers| numbers.next()).ok_or(Errno::ESRCH)
}

/// Files on their way may take half of the daemon's descriptors: the others are for opens.
fn most_taken() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        getrlimit(Resource::RLIMIT_NOFILE).map_or(512, |(soft, _)| soft as usize / 2)
    })
}

/// All clients, by thread group.
pub struct Clients {
    threads: Threads,
    by_pid: Mutex<HashMap<i32, Weak<Client>>, rank::Clients>,
    users: Mutex<ByUid<Allowance>, rank::Allowances>,
    carriers: Arc<dyn Carriers>,
    /// How many of the daemon's descriptors are files on their way from one client to another.
    pub(super) taken: AtomicUsize,
    security_contexts: SecurityContexts,
    quotas: Quotas,
    /// None where threads of clients are never stopped.
    tracers: Option<Arc<Tracers>>,
}

impl Clients {
    /// No clients yet. Fails when the thread that watches threads cannot be started.
    pub fn start(
        carriers: Arc<dyn Carriers>,
        security_contexts: SecurityContexts,
        quotas: Quotas,
        tracers: Option<Tracers>,
    ) -> std::io::Result<Arc<Clients>> {
        // A quarter of the daemon's descriptors may be those of watched threads.
        let threads = Threads::start(most_taken() / 2)?;
        Ok(Arc::new(Clients {
            threads,
            by_pid: Mutex::default(),
            users: Mutex::default(),
            carriers,
            taken: AtomicUsize::new(0),
            security_contexts,
            quotas,
            tracers: tracers.map(Arc::new),
        }))
    }

    /// What users make the daemon hold.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// The allowance for copies of a process of the user `uid`, over all that it opens.
    fn allowance(&self, pid: i32, uid: u32) -> Arc<Allowance> {
        // Not the allowance of a process that had this pid before.
        if let Some(known) = self.find(pid).filter(|known| binder::Task::has_pid(&**known)) {
            return known.allowance.clone();
        }
        let new = || Allowance::new(self.quotas.limit(uid, What::StalledCopies), None);
        let user = self.users.lock().get_or_make(uid, new);
        Allowance::new(COPIES_OF_A_PROCESS, Some(user))
    }

    /// The process of the thread `tid` of the user `uid`, which waits in an open.
    pub fn of_thread(self: &Arc<Self>, tid: i32, uid: u32) -> Result<Arc<Client>, Errno> {
        let pid = thread_group(tid)?;
        // Open files of one process share a descriptor, as long as its number is its own.
        let pidfd = match self.find(pid) {
            Some(known) if binder::Task::has_pid(&*known) => known.pidfd.clone(),
            _ => Arc::new(client_mem::pidfd_open(pid)?),
        };
        let security_context = self.security_contexts.of(tid, uid);
        if let Err(errno) = security_context
            && is_shortage(errno)
        {
            return Err(errno);
        }
        let allowance = self.allowance(pid, uid);
        let copies = Copies::new(COPIES, allowance.clone(), self.carriers.clone());
        let client = Arc::new(Client {
            pid,
            uid,
            user: self.quotas.user(uid),
            pidfd,
            security_context,
            namespaces: OnceLock::new(),
            user_namespaces: ids::Namespaces::default(),
            clients: self.clone(),
            copies,
            allowance,
            channel: Mutex::new(None),
            supervision: Supervision::default(),
            said_no_channel: AtomicBool::new(false),
            watched_threads: threads::Count::default(),
            is_64_bit: OnceLock::new(),
        });
        self.by_pid.lock().insert(pid, Arc::downgrade(&client));
        Ok(client)
    }

    fn find(&self, pid: i32) -> Option<Arc<Client>> {
        self.by_pid.lock().get(&pid)?.upgrade()
    }
}

impl Client {
    /// The caller for log lines about the process as a whole, and not about one request.
    pub fn caller(&self) -> Caller {
        Caller { uid: self.uid, pid: self.pid, tid: self.pid }
    }

    /// The client has attached: files reach it through this socket from now on.
    pub fn set_channel(&self, channel: Channel) {
        *self.channel.lock() = Some(channel);
    }

    /// ENOTCONN: the client has not attached; else the errors of [`Channel::offer`].
    pub fn offer_slots(&self, slots: &uapi::fakebinder_slots) -> Result<(), Errno> {
        self.channel.lock().as_mut().ok_or(Errno::ENOTCONN)?.offer(slots)
    }

    /// Whether the client receives descriptors through its own socket.
    pub fn has_slots(&self) -> bool {
        self.channel.lock().as_ref().is_some_and(Channel::receives)
    }

    /// Whether descriptors come to the client before its ioctls, or while they last: no thread of it
    /// has to be stopped.
    pub fn needs_no_stop(&self) -> bool {
        self.has_slots() || self.supervision.living().is_some()
    }

    /// Whether the client's threads can be stopped, as far as that shows in the process: it is a
    /// 64-bit program, and the daemon may trace it.
    fn can_be_traced(&self) -> bool {
        // No descriptor has this number: EBADF means that the daemon may take one.
        let may = || client_mem::pidfd_getfd(self.pidfd.as_fd(), i32::MAX).err();
        self.clients.tracers.is_some()
            && IS_KNOWN
            && *self.is_64_bit.get_or_init(|| is_64_bit(self.pid))
            && may() == Some(Errno::EBADF)
    }

    /// See `Tracers::hold`. EOPNOTSUPP: threads of clients are never stopped.
    pub fn hold_thread(&self, tid: i32, closing: Vec<i32>) -> Result<tracers::Held, Errno> {
        let tracers = self.clients.tracers.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        let (pid, pidfd, uid) = (self.pid, self.pidfd.clone(), self.uid);
        tracers.hold(tracers::Subject { pid, pidfd, uid, tid }, closing)
    }

    fn namespaces(&self) -> Option<&Namespaces> {
        if self.namespaces.get().is_none() {
            let namespaces = Namespaces::of(self.pid).ok()?;
            // Only now it is certain that the answer was about this process.
            if !binder::Task::has_pid(self) {
                return None;
            }
            let _ = self.namespaces.set(namespaces);
        }
        self.namespaces.get()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut by_pid = self.clients.by_pid.lock();
        // A later open of the same process may have taken the entry over.
        if by_pid.get(&self.pid).is_some_and(|client| client.strong_count() == 0) {
            by_pid.remove(&self.pid);
        }
    }
}

impl binder::Task for Client {
    fn user(&self) -> Arc<User> {
        self.user.clone()
    }

    fn take_file(&self, tid: i32, fd: i32) -> Result<Arc<dyn binder::File>, Errno> {
        let held = self.user.hold(What::Descriptors, 1)?;
        let taken = self.clients.taken.fetch_add(1, Ordering::Relaxed);
        // Counted until the file is dropped; not at all if it could not be taken.
        let not_taken = |_: &Errno| _ = self.clients.taken.fetch_sub(1, Ordering::Relaxed);
        if taken >= most_taken() {
            client_log!(
                Kind::FilesNotFetched,
                "clients do not read the descriptors that they are sent: {taken} are on their way"
            );
            return Err(Errno::EMFILE).inspect_err(not_taken);
        }
        let file = client_mem::getfd(self.pidfd.as_fd(), tid, fd).inspect_err(not_taken)?;
        let (clients, copies) = (self.clients.clone(), self.copies.clone());
        Ok(Arc::new(TakenFile::new(file, clients, copies, held)))
    }

    fn accepts_files(&self) -> bool {
        let accepts = self.needs_no_stop() || self.can_be_traced();
        if !accepts && !self.said_no_channel.swap(true, Ordering::Relaxed) {
            client_log!(
                Kind::NoWayForFiles,
                "a transaction with descriptors to process {} was refused: it has no way to receive them \
                 (it takes a 64-bit program that this daemon may trace, one that was started by `fakebinder exec`, or \
                 one that has called the fakebinder-client library's Device::accept_files)",
                self.pid
            );
        }
        accepts
    }

    fn install_files(
        &self,
        tid: i32,
        files: Vec<Arc<dyn binder::File>>,
    ) -> Result<binder::Installed, Errno> {
        if !self.has_slots()
            && let Some(supervisor) = self.supervision.get()
        {
            return supervisor.place(tid, &files);
        }
        let descriptors = taken_descriptors(&files)?;
        let mut channel = self.channel.lock();
        channel.as_mut().ok_or(Errno::EOPNOTSUPP)?.install(&descriptors).map(binder::Installed::Now)
    }

    fn close_files(&self, tid: i32, fds: &[i32]) -> bool {
        let closed = if self.has_slots() {
            self.channel.lock().as_ref().map(|channel| channel.close(fds))
        } else {
            self.supervision.living().map(|supervisor| supervisor.close(tid, fds))
        };
        if let Some(Err(error)) = closed {
            log::debug!("process {} keeps descriptors of a freed buffer: {error}", self.pid);
        }
        closed.is_some()
    }

    fn copies(&self) -> Arc<Copies> {
        self.copies.clone()
    }

    fn nice(&self, tid: i32) -> i32 {
        client_mem::getpriority(tid).unwrap_or(0)
    }

    fn set_nice(&self, tid: i32, nice: i32) {
        let limit = client_mem::nice_limit(tid).unwrap_or(0);
        let allowed = match 20 - nice <= limit || may_nice(tid) {
            true => nice,
            // `binder_set_nice`: as far as the limit allows; without a limit not at all.
            false => 20 - limit,
        };
        if allowed > 19 {
            log::debug!("thread {tid} may not have a nice value of {nice}");
        } else if let Err(error) = client_mem::setpriority(tid, allowed) {
            log::debug!("nice value {allowed} for thread {tid}: {error}");
        }
    }

    fn security_context(&self) -> Result<Vec<u8>, Errno> {
        self.security_context.clone().inspect_err(|errno| {
            user_error!(
                Kind::NoSecurityContext,
                "no security context for a node that asks for it ({errno}: this kernel's security module gives \
                 none); fakebinderd --security-context LABEL gives one"
            );
        })
    }

    /// Where /proc does not tell, the uid of the wire stands: one that the thread may take on.
    fn identity(&self, tid: i32, uid: u32) -> binder::Identity {
        if tid == self.pid
            && let Ok(euid) = ids::euid_of_first_thread(self.pidfd.as_fd())
        {
            return binder::Identity { euid, is_opener: true };
        }
        match ids::euid_of_thread(self.pid, tid) {
            Ok(euid) => binder::Identity { euid, is_opener: true },
            Err(_) => {
                let euid = ids::euid(tid).unwrap_or(uid);
                binder::Identity { euid, is_opener: false }
            }
        }
    }

    fn uid_as_seen(&self, tid: i32, uid: u32) -> u32 {
        self.user_namespaces.name_of(tid, uid)
    }

    fn has_pid(&self) -> bool {
        client_mem::pidfd_exists(self.pidfd.as_fd())
    }

    /// Only processes of the client's own pid namespace have a number for it here. Those of
    /// namespaces below have one in the driver, too; here they are 0.
    fn pid_as_seen(&self, pid: i32) -> i32 {
        let Some(own) = self.namespaces() else { return 0 };
        if own.innermost.is_none() {
            return pid;
        }
        let as_seen = |other: &Namespaces| (other.innermost == own.innermost).then_some(other.pid);
        match self.clients.find(pid) {
            Some(client) => client.namespaces().and_then(as_seen),
            None => Namespaces::of(pid).ok().as_ref().and_then(as_seen),
        }
        .unwrap_or(0)
    }

    fn pid_named(&self, pid: i32) -> i32 {
        let Some(own) = self.namespaces() else { return -1 };
        if own.innermost.is_none() {
            return pid;
        }
        let wanted = Namespaces { innermost: own.innermost, pid };
        let all: Vec<Arc<Client>> =
            self.clients.by_pid.lock().values().filter_map(Weak::upgrade).collect();
        let named = all.iter().find(|client| client.namespaces() == Some(&wanted));
        named.map_or(-1, |client| client.pid)
    }

    fn thread_birth(&self, tid: i32) -> Option<binder::Birth> {
        threads::birth(tid)
    }

    fn thread_is_gone(&self, tid: i32, birth: Option<binder::Birth>) -> bool {
        threads::is_gone(tid, birth)
    }

    fn watch_thread(
        &self,
        tid: i32,
        birth: Option<binder::Birth>,
        ended: Box<dyn FnOnce() + Send>,
    ) -> binder::Watching {
        self.clients.threads.watch(tid, birth, &self.watched_threads, ended)
    }
}

/// Whether a thread may have any nice value (CAP_SYS_NICE in the daemon's user namespace).
fn may_nice(tid: i32) -> bool {
    const CAP_SYS_NICE: u32 = 23;
    let effective = client_mem::effective_capabilities(tid).unwrap_or(0);
    effective & (1 << CAP_SYS_NICE) != 0 && ids::is_in_our_user_namespace(tid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binder::Task as _;
    use crate::memory::{Memory, MemoryConfig};
    use crate::quota::UserLimits;

    #[test]
    fn a_thread_belongs_to_its_process() {
        let own = nix::unistd::getpid().as_raw();
        let memory = Memory::new(MemoryConfig::default());
        let quotas = Quotas::new(&memory, UserLimits::NONE);
        let carriers = Arc::new(binder::AtOnce);
        let clients =
            Clients::start(carriers, SecurityContexts::default(), quotas, Some(Tracers::default()))
                .unwrap();
        let seen = clients.clone();
        std::thread::spawn(move || {
            let tid = nix::unistd::gettid().as_raw();
            assert_ne!(tid, own);
            let client = seen.of_thread(tid, 0).unwrap();
            assert_eq!(client.pid, own);
            assert_eq!(client.pid_as_seen(own), own);
            let again = seen.of_thread(tid, 0).unwrap();
            drop(client);
            assert!(seen.find(own).is_some());
            drop(again);
        })
        .join()
        .unwrap();
        assert!(clients.by_pid.lock().is_empty());
        assert_eq!(thread_group(i32::MAX), Err(Errno::ESRCH));
    }

    #[test]
    fn the_innermost_pid_is_the_last_one() {
        let status = "Name:\tx\nTgid:\t41\nNSpid:\t41\t7\t1\n";
        let all = |key| numbers(status, key).map(Iterator::collect::<Vec<_>>);
        assert_eq!(all("NSpid:"), Some(vec![41, 7, 1]));
        assert_eq!(all("Tgid:"), Some(vec![41]));
        assert_eq!(all("Uid:"), None);
    }
}
