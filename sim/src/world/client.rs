//! What the engine may ask of a simulated client.

use fakebinder::Errno;
use fakebinder::binder::{Birth, Client, File, Watching};
use fakebinder::lock_order::assert_nothing_held;
use fakebinder::quota::User;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A file that clients pass on, told from others by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimFile(pub u64);

impl File for SimFile {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// What the engine may ask of a simulated client, with no lock held.
#[derive(Default)]
pub struct SimClient {
    pub(super) files: Mutex<BTreeMap<i32, Arc<dyn File>>>,
    pub(super) nice: Mutex<BTreeMap<i32, i32>>,
    pub(super) no_files: AtomicBool,
    pub(super) user: Mutex<Option<Arc<User>>>,
    /// The process has ended and was waited for; a child goes on with its open file.
    pub(super) reaped: AtomicBool,
    pub(super) security_context: Mutex<Option<Vec<u8>>>,
    /// How many files may still be installed; for tests of a full descriptor table.
    pub(super) room: Mutex<Option<usize>>,
    pub(super) threads: SimThreads,
}

/// Which threads of a client there have been.
#[derive(Default)]
pub(super) struct SimThreads {
    /// How many threads of a number have ended.
    pub(super) ended: Mutex<BTreeMap<i32, u64>>,
    pub(super) watches: Arc<Mutex<Watches>>,
    last: AtomicU64,
    /// As on a kernel that does not tell of the end of threads.
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

impl Client for SimClient {
    fn take_file(&self, _tid: i32, fd: i32) -> Result<Arc<dyn File>, Errno> {
        assert_nothing_held();
        self.files.lock().get(&fd).cloned().ok_or(Errno::EBADF)
    }

    fn accepts_files(&self) -> bool {
        !self.no_files.load(Ordering::Relaxed)
    }

    fn install_files(&self, _tid: i32, files: Vec<Arc<dyn File>>) -> Result<Vec<i32>, Errno> {
        assert_nothing_held();
        if let Some(room) = self.room.lock().as_mut() {
            *room = room.checked_sub(files.len()).ok_or(Errno::EMFILE)?;
        }
        let mut table = self.files.lock();
        let mut numbers = Vec::new();
        for file in files {
            let free = (3..).find(|fd| !table.contains_key(fd)).ok_or(Errno::EMFILE)?;
            table.insert(free, file);
            numbers.push(free);
        }
        Ok(numbers)
    }

    fn close_files(&self, fds: &[i32]) {
        assert_nothing_held();
        let mut table = self.files.lock();
        for fd in fds {
            table.remove(fd);
        }
    }

    fn nice(&self, tid: i32) -> i32 {
        assert_nothing_held();
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
        assert_nothing_held();
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

/// Threads whose end is waited for, by a number of their own: who, and what happens then.
pub(super) type Watches = BTreeMap<u64, (i32, Fire)>;

pub(super) type Fire = Box<dyn FnOnce() + Send>;
