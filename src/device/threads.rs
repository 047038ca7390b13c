//! Which threads of clients have ended.
//!
//! A descriptor of one thread (`PIDFD_THREAD`, Linux 6.9) becomes readable when the thread ends.
//! The descriptors of watched threads are in one epoll set, which one thread of the daemon waits
//! on. One is enough, since it never touches a client's memory: the engine only decides what
//! follows from an end, and hands that over ([`Carriers`](crate::binder::Carriers)).
//!
//! A watched thread costs a descriptor, so the number of them is limited. The device has to be
//! asked after all others, and after those that cannot be watched:
//! - any thread, before Linux 6.9;
//! - the first thread of a process: since Linux 6.15 its descriptor is silent while the others go
//!   on (measured on 6.18: `pthread_exit` in `main` leaves a zombie that nobody hears of).

use crate::Errno;
use crate::binder::{Birth, Watching};
use crate::client_mem::{pidfd_open, pidfd_open_thread};
use crate::lock_order::{assert_nothing_held, rank};
use crate::sync::Mutex;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

type Ended = Box<dyn FnOnce() + Send>;

/// The most threads of one open file that are watched.
const MOST_OF_ONE: usize = 256;
/// The ticket of the event that ends the thread, and of no watched thread.
const STOP: u64 = 0;

/// The threads that are watched, and what is to be done when one of them ends.
pub struct Threads {
    shared: Arc<Shared>,
}

struct Shared {
    epoll: Epoll,
    stop: EventFd,
    watched: Mutex<HashMap<u64, Ended>, rank::WatchedThreads>,
    last: AtomicU64,
    /// Descriptors in the set, and how many there may be.
    count: AtomicUsize,
    most: usize,
}

/// How many threads of one client are watched.
pub type Count = Arc<AtomicUsize>;

/// A thread that is watched until this value is dropped.
struct Watch {
    shared: Arc<Shared>,
    ticket: u64,
    /// Closing it takes it out of the epoll set.
    _pidfd: OwnedFd,
    of_one: Count,
}

impl Drop for Watch {
    fn drop(&mut self) {
        assert_nothing_held();
        let ended = self.shared.watched.lock().remove(&self.ticket);
        self.shared.count.fetch_sub(1, SeqCst);
        self.of_one.fetch_sub(1, SeqCst);
        drop(ended);
    }
}

impl Threads {
    /// `most` threads may be watched at a time.
    pub fn start(most: usize) -> std::io::Result<Threads> {
        let shared = Arc::new(Shared {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            stop: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            watched: Mutex::default(),
            last: AtomicU64::new(STOP),
            count: AtomicUsize::new(0),
            most,
        });
        shared.epoll.add(&shared.stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let listener = shared.clone();
        let thread = std::thread::Builder::new().name("thread ends".into());
        thread.spawn(move || listener.tell())?;
        Ok(Threads { shared })
    }

    /// Watches a thread: see [`Task::watch_thread`](crate::binder::Task::watch_thread).
    pub fn watch(&self, tid: i32, birth: Option<Birth>, of_one: &Count, ended: Ended) -> Watching {
        assert_nothing_held();
        let pidfd = match pidfd_open_thread(tid) {
            Ok(pidfd) => pidfd,
            Err(Errno::ESRCH) => return Watching::Gone,
            Err(_) => return Watching::Untold,
        };
        if is_another(birth, birth_of(pidfd.as_fd(), tid)) {
            return Watching::Gone;
        }
        if is_first(tid) {
            return Watching::Untold;
        }
        self.shared
            .watch(pidfd, of_one, ended)
            .map_or(Watching::Untold, |watch| Watching::Told(Box::new(watch)))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The event stays readable: the thread sees it when it next waits.
        let _ = self.shared.stop.write(1);
    }
}

impl Shared {
    fn watch(self: &Arc<Self>, pidfd: OwnedFd, of_one: &Count, ended: Ended) -> Option<Watch> {
        let (all, own) = (self.count.fetch_add(1, SeqCst), of_one.fetch_add(1, SeqCst));
        let ticket = self.last.fetch_add(1, SeqCst) + 1;
        self.watched.lock().insert(ticket, ended);
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        let room = all < self.most && own < MOST_OF_ONE;
        let added = room && self.epoll.add(&pidfd, EpollEvent::new(flags, ticket)).is_ok();
        let watch = Watch { shared: self.clone(), ticket, _pidfd: pidfd, of_one: of_one.clone() };
        added.then_some(watch)
    }

    /// Tells of the ends of threads, one after another.
    fn tell(&self) {
        let mut events = [EpollEvent::empty()];
        loop {
            match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return log::error!("waiting for the end of threads: {error}"),
            }
            let ticket = std::mem::replace(&mut events[0], EpollEvent::empty());
            if ticket.events().is_empty() {
                continue;
            }
            if ticket.data() == STOP {
                return;
            }
            let ended = self.watched.lock().remove(&ticket.data());
            if let Some(ended) = ended {
                ended();
            }
        }
    }
}

/// Whether each descriptor of a thread has an inode that is never used again (pidfs).
fn inodes_tell(pidfd: BorrowedFd<'_>) -> bool {
    /// `PID_FS_MAGIC`, which the C library has no name for.
    const PID_FS: FsType = FsType(0x5049_4446);
    static THEY_DO: OnceLock<bool> = OnceLock::new();
    *THEY_DO.get_or_init(|| fstatfs(pidfd).is_ok_and(|it| it.filesystem_type() == PID_FS))
}

fn birth_of(pidfd: BorrowedFd<'_>, tid: i32) -> Option<Birth> {
    match inodes_tell(pidfd) {
        #[allow(clippy::unnecessary_cast, reason = "in a 32-bit process it is narrower")]
        true => fstat(pidfd).ok().map(|it| Birth(it.st_ino as u64)),
        false => stat_of(tid).ok().map(|(_, start)| Birth(start)),
    }
}

/// Whether a thread is not the one whose birth was seen. What could not be seen tells nothing.
fn is_another(seen: Option<Birth>, now: Option<Birth>) -> bool {
    seen.zip(now).is_some_and(|(seen, now)| seen != now)
}

/// What tells a thread that waits in a request from others of the same number: the inode of its
/// descriptor, or, before Linux 6.9, the time of its start in clock ticks. None where the daemon has
/// no descriptor left to look with: a start is not to be compared with an inode later.
pub fn birth(tid: i32) -> Option<Birth> {
    assert_nothing_held();
    birth_by(pidfd_open_thread(tid), tid)
}

fn birth_by(pidfd: Result<OwnedFd, Errno>, tid: i32) -> Option<Birth> {
    match pidfd {
        Ok(pidfd) => birth_of(pidfd.as_fd(), tid),
        // PIDFD_THREAD is not known.
        Err(Errno::EINVAL) => stat_of(tid).ok().map(|(_, start)| Birth(start)),
        Err(_) => None,
    }
}

/// Whether a thread is the first of its process.
fn is_first(tid: i32) -> bool {
    pidfd_open(tid).is_ok()
}

/// Whether a thread has ended. A first thread that has ended before the others is a zombie.
pub fn is_gone(tid: i32, birth: Option<Birth>) -> bool {
    assert_nothing_held();
    is_gone_by(pidfd_open_thread(tid), tid, birth)
}

fn is_gone_by(pidfd: Result<OwnedFd, Errno>, tid: i32, birth: Option<Birth>) -> bool {
    let same = match pidfd {
        Ok(pidfd) if inodes_tell(pidfd.as_fd()) => !is_another(birth, birth_of(pidfd.as_fd(), tid)),
        Err(Errno::ESRCH) => false,
        Ok(_) | Err(Errno::EINVAL) => match stat_of(tid) {
            Ok((_, start)) => birth.is_none_or(|birth| birth == Birth(start)),
            Err(errno) => errno != Errno::ESRCH,
        },
        // No descriptor is left: whether it is the same one will be seen when there is one again.
        Err(_) => stat_of(tid) != Err(Errno::ESRCH),
    };
    let ended = || stat_of(tid).is_ok_and(|(state, _)| matches!(state, b'Z' | b'X'));
    !same || (is_first(tid) && ended())
}

/// The state of a thread, and its start. ESRCH: there is no thread of that number.
fn stat_of(tid: i32) -> Result<(u8, u64), Errno> {
    const START: usize = 22 - 3;
    let stat = fs::read(format!("/proc/{tid}/stat")).map_err(super::client::errno)?;
    // The thread's name, in brackets, may be anything.
    let rest = stat.iter().rposition(|byte| *byte == b')').map(|end| &stat[end + 1..]);
    let mut fields = rest.unwrap_or_default().split(|byte| *byte == b' ').skip(1);
    let state = fields.next().and_then(|state| state.first().copied()).ok_or(Errno::EIO)?;
    let start = fields.nth(START - 1).and_then(|start| std::str::from_utf8(start).ok());
    Ok((state, start.and_then(|start| start.parse().ok()).ok_or(Errno::EIO)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_thread_is_not_taken_for_gone_where_descriptors_are_short() {
        let tid = nix::unistd::gettid().as_raw();
        let born = birth(tid);
        assert!(born.is_some() && !is_gone(tid, born));
        for short in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM] {
            let unseen = birth_by(Err(short), tid);
            assert!(!is_gone(tid, unseen), "{short:?} at its first call");
            assert!(!is_gone_by(Err(short), tid, born), "{short:?} when it is asked after");
        }
        assert!(is_gone(tid, born.map(|Birth(number)| Birth(number + 1))), "another's");
        assert!(is_gone(i32::MAX, None), "nobody's");
    }

    /// A thread that lives until it is told to end.
    struct Mortal {
        tid: i32,
        end: Sender<()>,
        thread: std::thread::JoinHandle<()>,
    }

    impl Mortal {
        fn new() -> Mortal {
            let (tell, told) = channel();
            let (end, ending) = channel();
            let thread = std::thread::spawn(move || {
                tell.send(nix::unistd::gettid().as_raw()).unwrap();
                let _ = ending.recv();
            });
            Mortal { tid: told.recv().unwrap(), end, thread }
        }

        fn end(self) {
            self.end.send(()).unwrap();
            self.thread.join().unwrap();
        }
    }

    fn watch(threads: &Threads, tid: i32, birth: Option<Birth>) -> (Watching, Receiver<i32>) {
        let (tell, told) = channel();
        let watching =
            threads.watch(tid, birth, &Count::default(), Box::new(move || tell.send(tid).unwrap()));
        (watching, told)
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let began = std::time::Instant::now();
        while !condition() {
            assert!(began.elapsed() < PATIENCE, "waited in vain");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_untold(watching: &Watching) -> bool {
        matches!(watching, Watching::Untold)
    }

    /// Before Linux 6.9 no thread can be watched.
    fn cannot_watch() -> bool {
        let own = nix::unistd::gettid().as_raw();
        let cannot = pidfd_open_thread(own).err() == Some(Errno::EINVAL);
        if cannot {
            eprintln!("SKIPPED: this kernel has no descriptors of threads");
            assert!(std::env::var_os("FAKEBINDER_NO_SKIP").is_none_or(|set| set != "1"));
        }
        cannot
    }

    #[test]
    fn the_end_of_a_thread_is_told_once() {
        if cannot_watch() {
            return;
        }
        let threads = Threads::start(10).unwrap();
        let (one, other) = (Mortal::new(), Mortal::new());
        let (_watching, told) = watch(&threads, one.tid, birth(one.tid));
        let (_other, not_told) = watch(&threads, other.tid, None);
        let tid = one.tid;
        one.end();
        assert_eq!(told.recv_timeout(PATIENCE), Ok(tid));
        assert_eq!(told.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
        assert!(not_told.try_recv().is_err());
        other.end();
        assert!(not_told.recv_timeout(PATIENCE).is_ok());
    }

    #[test]
    fn what_is_not_watched_any_more_is_not_told() {
        if cannot_watch() {
            return;
        }
        let threads = Threads::start(10).unwrap();
        let mortal = Mortal::new();
        let (watching, told) = watch(&threads, mortal.tid, None);
        assert!(matches!(watching, Watching::Told(_)));
        drop(watching);
        assert_eq!(told.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected));
        assert_eq!(threads.shared.count.load(SeqCst), 0);
        mortal.end();
    }

    #[test]
    fn a_thread_that_has_ended_is_gone() {
        let threads = Threads::start(10).unwrap();
        let mortal = Mortal::new();
        let (tid, birth) = (mortal.tid, birth(mortal.tid));
        assert!(birth.is_some());
        assert!(!is_gone(tid, birth) && !is_gone(tid, None));
        mortal.end();
        // A thread that was joined may still be on its way out.
        wait_until(|| is_gone(tid, None));
        assert!(is_gone(tid, birth));
        if !cannot_watch() {
            assert!(matches!(watch(&threads, tid, birth).0, Watching::Gone));
        }
    }

    /// As if a later thread had its number.
    #[test]
    fn a_thread_of_another_birth_is_gone() {
        let threads = Threads::start(10).unwrap();
        let mortal = Mortal::new();
        let Some(Birth(own)) = birth(mortal.tid) else { panic!("it has none") };
        assert!(is_gone(mortal.tid, Some(Birth(own + 1))));
        if !cannot_watch() {
            let (watching, _) = watch(&threads, mortal.tid, Some(Birth(own + 1)));
            assert!(matches!(watching, Watching::Gone));
        }
        mortal.end();
    }

    #[test]
    fn a_first_thread_and_one_too_many_are_asked_after() {
        let threads = Threads::start(1).unwrap();
        let own = nix::unistd::getpid().as_raw();
        assert!(is_untold(&watch(&threads, own, None).0));
        assert!(!is_gone(own, birth(own)));
        if cannot_watch() {
            return;
        }
        let (one, other) = (Mortal::new(), Mortal::new());
        let (watching, _told) = watch(&threads, one.tid, None);
        assert!(matches!(watching, Watching::Told(_)));
        assert!(is_untold(&watch(&threads, other.tid, None).0));
        drop(watching);
        assert!(matches!(watch(&threads, other.tid, None).0, Watching::Told(_)));
        one.end();
        other.end();
    }
}
