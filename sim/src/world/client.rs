//! What the engine can ask of a simulated client.

use fakebinder::Errno;
use fakebinder::binder::{Birth, File, Installed, Task, Watching};
use fakebinder::lock_order::assert_nothing_held;
use fakebinder::quota::User;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A file that clients pass on; its number tells it from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimFile(pub u64);

impl File for SimFile {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// What the engine can ask of a simulated client, with no lock held.
#[derive(Default)]
pub struct SimClient {
    /// Called whenever the driver reaches out to this client.
    at_reach: OnceLock<Hook>,
    pub(super) files: Mutex<BTreeMap<i32, Arc<dyn File>>>,
    pub(super) nice: Mutex<BTreeMap<i32, i32>>,
    no_files: AtomicBool,
    pub(super) user: Mutex<Option<Arc<User>>>,
    /// The process has ended and was waited for; a child goes on with the open file.
    pub(super) reaped: AtomicBool,
    security_context: Mutex<Option<Vec<u8>>>,
    /// How many files may still be installed; for tests of a full descriptor table.
    room: Mutex<Option<usize>>,
    /// The threads that will have their files when they call again, where files come so.
    postponed: Mutex<Option<BTreeSet<i32>>>,
    pub(super) threads: SimThreads,
}

/// Called where the driver holds no lock: what another client may do at that moment.
type Hook = Box<dyn Fn() + Send + Sync>;

impl SimClient {
    /// Calls `happens` whenever the driver asks this client for a file, a nice value or its
    /// security context, or gives it files.
    ///
    /// # Panics
    /// When there is such a hook already.
    pub fn at_reach(&self, happens: impl Fn() + Send + Sync + 'static) {
        assert!(self.at_reach.set(Box::new(happens)).is_ok(), "it has a hook already");
    }

    /// Called when the driver reaches out.
    fn reach(&self) {
        assert_nothing_held();
        self.at_reach.get().into_iter().for_each(|happens| happens());
    }

    /// Puts a file at the lowest free number.
    ///
    /// # Panics
    /// When no number is free.
    pub fn add_file(&self, file: Arc<dyn File>) -> i32 {
        let mut table = self.files.lock();
        let free = (3..).find(|fd| !table.contains_key(fd)).expect("a free number");
        table.insert(free, file);
        free
    }

    /// The file behind a descriptor.
    pub fn file(&self, fd: i32) -> Option<Arc<dyn File>> {
        self.files.lock().get(&fd).cloned()
    }

    /// Every descriptor in use.
    pub fn fds(&self) -> Vec<i32> {
        self.files.lock().keys().copied().collect()
    }

    /// Sets whether the client refuses files.
    pub fn refuse_files(&self, refuse: bool) {
        self.no_files.store(refuse, Ordering::Relaxed);
    }

    /// Lets only so many more files be installed.
    pub fn limit_files(&self, room: Option<usize>) {
        *self.room.lock() = room;
    }

    /// From now on files come when the thread that reads of them calls again.
    pub fn postpone_files(&self) {
        *self.postponed.lock() = Some(BTreeSet::new());
    }

    /// Sets the client's security context, if it is to have one.
    pub fn set_security_context(&self, context: Option<Vec<u8>>) {
        *self.security_context.lock() = context;
    }
}

/// The threads of a client that have ended, and those that are watched.
#[derive(Default)]
pub(super) struct SimThreads {
    /// For each thread id, how many threads that had it have ended.
    pub(super) ended: Mutex<BTreeMap<i32, u64>>,
    pub(super) watches: Arc<Mutex<Watches>>,
    last: AtomicU64,
    /// As on a kernel that does not report the end of threads.
    pub(super) cannot_watch: AtomicBool,
}

impl SimThreads {
    fn birth(&self, tid: i32) -> Birth {
        Birth(self.ended.lock().get(&tid).copied().unwrap_or(0))
    }
}

/// Ends a watch when it is dropped.
struct SimWatch {
    watches: Arc<Mutex<Watches>>,
    ticket: u64,
}

impl Drop for SimWatch {
    fn drop(&mut self) {
        assert_nothing_held();
        self.watches.lock().remove(&self.ticket);
    }
}

impl Task for SimClient {
    fn take_file(&self, _tid: i32, fd: i32) -> Result<Arc<dyn File>, Errno> {
        self.reach();
        self.files.lock().get(&fd).cloned().ok_or(Errno::EBADF)
    }

    fn accepts_files(&self) -> bool {
        !self.no_files.load(Ordering::Relaxed)
    }

    fn install_files(&self, tid: i32, files: Vec<Arc<dyn File>>) -> Result<Installed, Errno> {
        self.reach();
        if let Some(postponed) = self.postponed.lock().as_mut()
            && !postponed.remove(&tid)
        {
            postponed.insert(tid);
            return Ok(Installed::AtNextCall);
        }
        if let Some(room) = self.room.lock().as_mut() {
            *room = room.checked_sub(files.len()).ok_or(Errno::EMFILE)?;
        }
        Ok(Installed::Now(files.into_iter().map(|file| self.add_file(file)).collect()))
    }

    fn close_files(&self, _tid: i32, fds: &[i32]) -> bool {
        assert_nothing_held();
        let mut table = self.files.lock();
        for fd in fds {
            assert!(table.remove(fd).is_some(), "descriptor {fd} is closed twice");
        }
        true
    }

    fn nice(&self, tid: i32) -> i32 {
        self.reach();
        self.nice.lock().get(&tid).copied().unwrap_or(0)
    }

    fn set_nice(&self, tid: i32, nice: i32) {
        assert_nothing_held();
        self.nice.lock().insert(tid, nice.clamp(-20, 19));
    }

    fn user(&self) -> Arc<User> {
        assert_nothing_held();
        self.user.lock().clone().unwrap_or_else(User::unlimited)
    }

    fn security_context(&self) -> Result<Vec<u8>, Errno> {
        self.reach();
        self.security_context.lock().clone().ok_or(Errno::EOPNOTSUPP)
    }

    fn pid_as_seen(&self, pid: i32) -> i32 {
        assert_nothing_held();
        pid
    }

    fn has_pid(&self) -> bool {
        assert_nothing_held();
        !self.reaped.load(Ordering::Relaxed)
    }

    fn thread_birth(&self, tid: i32) -> Option<Birth> {
        assert_nothing_held();
        Some(self.threads.birth(tid))
    }

    fn thread_is_gone(&self, tid: i32, birth: Option<Birth>) -> bool {
        assert_nothing_held();
        birth.is_some_and(|birth| birth != self.threads.birth(tid))
    }

    fn watch_thread(&self, tid: i32, birth: Option<Birth>, ended: Fire) -> Watching {
        if self.thread_is_gone(tid, birth) {
            return Watching::Gone;
        }
        if self.threads.cannot_watch.load(Ordering::Relaxed) {
            return Watching::Untold;
        }
        let ticket = self.threads.last.fetch_add(1, Ordering::Relaxed);
        let watches = self.threads.watches.clone();
        watches.lock().insert(ticket, (tid, ended));
        Watching::Told(Box::new(SimWatch { watches, ticket }))
    }
}

/// Watched threads, by a number of the watch: the thread's id, and what to call when it ends.
pub(super) type Watches = BTreeMap<u64, (i32, Fire)>;

pub(super) type Fire = Box<dyn FnOnce() + Send>;
