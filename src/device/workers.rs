//! The threads that serve a session, and the rescue when all of them are stuck.
//!
//! A worker never waits for a client on purpose, but a client can make one wait: its memory may
//! lie behind a userfaultfd or a mount of its own, and then `process_vm_readv` blocks. So when
//! all workers have been busy for [`Limits::stuck`] and none has come back for another request,
//! one more is started, up to [`Limits::most`]; and when that, too, is soon held up, the next ones
//! come after a tenth of the time. A worker that comes back and finds
//! [`Limits::least`] others waiting for requests leaves. An idle pool has `least` threads, all of
//! them asleep in `read`, and a supervisor that sleeps, too.

use super::session::{BUFFER_SIZE, Door, Session};
use crate::client_log::{Kind, client_log};
use crate::mm_shim::{Verb, fault};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// How many workers a session has.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub least: usize,
    pub most: usize,
    /// How long all workers may be busy before another one is started.
    pub stuck: Duration,
}

impl Limits {
    /// As many as there are cores, 2 to 4; up to 256 while clients hold some of them up. One that
    /// is held up costs its stack and little else.
    pub fn of_this_machine() -> Limits {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        Limits { least: cores.clamp(2, 4), most: 256, stuck: Duration::from_millis(100) }
    }
}

struct Pool {
    session: Arc<Session>,
    door: Arc<dyn Door>,
    limits: Limits,
    /// All worker threads.
    workers: AtomicUsize,
    /// Those that wait for a request, or are about to.
    reading: AtomicUsize,
    /// How often a worker has gone to read: stands still while all of them are stuck.
    reads: AtomicU64,
    /// The supervisor sleeps until a worker finds that it is the last one.
    asleep: AtomicBool,
    ended: AtomicBool,
    supervisor: Mutex<bool>,
    wake: Condvar,
    on_end: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// Serves `session` with threads of its own until it ends, then calls `on_end` once.
pub fn start(
    session: Arc<Session>,
    door: Arc<dyn Door>,
    limits: Limits,
    on_end: Box<dyn FnOnce() + Send>,
) -> std::io::Result<()> {
    let pool = Arc::new(Pool {
        session,
        door,
        limits,
        workers: AtomicUsize::new(0),
        reading: AtomicUsize::new(limits.least),
        reads: AtomicU64::new(0),
        asleep: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        supervisor: Mutex::new(false),
        wake: Condvar::new(),
        on_end: Mutex::new(Some(on_end)),
    });
    for _ in 0..limits.least {
        pool.add_worker()?;
    }
    std::thread::Builder::new().name("supervisor".into()).spawn(move || pool.supervise())?;
    Ok(())
}

impl Pool {
    /// Starts a worker that has been counted as one that reads: until it runs, it is on its way.
    fn add_worker(self: &Arc<Self>) -> std::io::Result<()> {
        let pool = self.clone();
        self.workers.fetch_add(1, SeqCst);
        let worker = std::thread::Builder::new().name("worker".into());
        let started = fault(Verb::Thread)
            .map_err(std::io::Error::from)
            .and_then(|()| worker.spawn(move || pool.work()).map(drop));
        if started.is_err() {
            self.workers.fetch_sub(1, SeqCst);
            self.reading.fetch_sub(1, SeqCst);
        }
        started
    }

    fn work(self: &Arc<Self>) {
        let mut buffer = vec![0; BUFFER_SIZE];
        loop {
            self.reads.fetch_add(1, SeqCst);
            let message = match self.session.receive(&mut buffer) {
                Ok(Some(message)) => message,
                Ok(None) => break self.end(),
                Err(error) => {
                    log::error!("{}: reading requests: {error}", self.session.name());
                    break self.end();
                }
            };
            if self.reading.fetch_sub(1, SeqCst) == 1 {
                self.last_one_busy();
            }
            self.session.dispatch(message, &*self.door);
            if self.reading.fetch_add(1, SeqCst) >= self.limits.least {
                self.reading.fetch_sub(1, SeqCst);
                break;
            }
        }
        self.workers.fetch_sub(1, SeqCst);
    }

    fn last_one_busy(&self) {
        if self.asleep.swap(false, SeqCst) {
            *self.supervisor.lock() = true;
            self.wake.notify_one();
        }
    }

    fn end(&self) {
        if !self.ended.swap(true, SeqCst) {
            *self.supervisor.lock() = true;
            self.wake.notify_one();
            let on_end = self.on_end.lock().take();
            if let Some(on_end) = on_end {
                on_end();
            }
        }
    }

    fn supervise(self: &Arc<Self>) {
        /// Ticks without all workers busy after which the supervisor goes to sleep.
        const CALM: u32 = 10;
        let mut calm = CALM;
        let mut last_reads = None;
        let mut patience = self.limits.stuck;
        while !self.ended.load(SeqCst) {
            if calm >= CALM {
                self.asleep.store(true, SeqCst);
                if self.reading.load(SeqCst) > 0 {
                    let mut woken = self.supervisor.lock();
                    while !std::mem::take(&mut *woken) {
                        self.wake.wait(&mut woken);
                    }
                }
                self.asleep.store(false, SeqCst);
                (calm, last_reads) = (0, None);
            }
            let mut woken = self.supervisor.lock();
            self.wake.wait_for(&mut woken, patience);
            *woken = false;
            drop(woken);
            if self.reading.load(SeqCst) > 0 {
                (calm, last_reads) = (calm + 1, None);
                patience = self.limits.stuck;
                continue;
            }
            calm = 0;
            let reads = self.reads.load(SeqCst);
            if last_reads.replace(reads) == Some(reads) {
                self.rescue();
                last_reads = None;
                patience = self.limits.stuck / 10;
            }
        }
    }

    fn rescue(self: &Arc<Self>) {
        let workers = self.workers.load(SeqCst);
        if workers >= self.limits.most {
            return;
        }
        if workers + 1 == self.limits.most {
            client_log!(
                Kind::WorkersHeldUp,
                "{}: clients hold up {workers} threads; the next one is the last",
                self.session.name()
            );
        }
        // Unless one has just come back: it has counted on being the only one that reads.
        if self.reading.compare_exchange(0, 1, SeqCst, SeqCst).is_err() {
            return;
        }
        if let Err(error) = self.add_worker() {
            client_log!(
                Kind::WorkersHeldUp,
                "{}: starting another thread: {error}",
                self.session.name()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::Responder;
    use super::super::wire::{Header, Request, tests::message};
    use super::*;
    use crate::uapi;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::OwnedFd;
    use std::sync::mpsc;
    use std::time::Instant;

    /// Every STATFS is stuck until the gate opens; a GETATTR is answered at once.
    struct Stuck {
        open: Mutex<bool>,
        opened: Condvar,
    }

    impl Door for Stuck {
        fn request(&self, _: Header, request: Request<'_>, responder: Responder) {
            if request == Request::StatFs {
                let mut open = self.open.lock();
                while !*open {
                    self.opened.wait(&mut open);
                }
            }
            responder.done();
        }
        fn interrupt(&self, _: u64, _: i32) {}
    }

    fn scene() -> (OwnedFd, Arc<Pool>, Arc<Stuck>, mpsc::Receiver<()>) {
        let (kernel, ours) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        let door = Arc::new(Stuck { open: Mutex::new(false), opened: Condvar::new() });
        let limits = Limits { least: 2, most: 5, stuck: Duration::from_millis(20) };
        let (tell, ended) = mpsc::channel();
        let pool = Arc::new(Pool {
            session: Session::new(ours, "test"),
            door: door.clone(),
            limits,
            workers: AtomicUsize::new(0),
            reading: AtomicUsize::new(limits.least),
            reads: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            supervisor: Mutex::new(false),
            wake: Condvar::new(),
            on_end: Mutex::new(Some(Box::new(move || tell.send(()).unwrap()))),
        });
        for _ in 0..limits.least {
            pool.add_worker().unwrap();
        }
        let supervised = pool.clone();
        std::thread::spawn(move || supervised.supervise());
        (kernel, pool, door, ended)
    }

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn requests_are_served_while_workers_are_stuck_and_the_extra_ones_leave() {
        let (kernel, pool, door, ended) = scene();
        for unique in [2, 4, 6] {
            nix::unistd::write(&kernel, &message(uapi::FUSE_STATFS, unique, 1, 1, &[])).unwrap();
        }
        nix::unistd::write(&kernel, &message(uapi::FUSE_GETATTR, 8, 1, 1, &[&[0; 16]])).unwrap();
        let mut buffer = [0; 64];
        nix::unistd::read(&kernel, &mut buffer).unwrap();
        let first: uapi::fuse_out_header = uapi::parse(&buffer).unwrap();
        assert_eq!(first.unique, 8, "answered past three stuck workers");
        assert!(pool.workers.load(SeqCst) >= 4);

        *door.open.lock() = true;
        door.opened.notify_all();
        for _ in 0..3 {
            nix::unistd::read(&kernel, &mut buffer).unwrap();
        }
        wait_until("two workers are left", || pool.workers.load(SeqCst) == 2);
        wait_until("the supervisor sleeps", || pool.asleep.load(SeqCst));

        drop(kernel);
        ended.recv_timeout(Duration::from_secs(20)).unwrap();
        wait_until("all workers have left", || pool.workers.load(SeqCst) == 0);
    }

    #[test]
    fn no_more_workers_than_the_limit() {
        let (kernel, pool, door, _ended) = scene();
        for unique in 1..=20 {
            let stuck = message(uapi::FUSE_STATFS, unique * 2, 1, 1, &[]);
            nix::unistd::write(&kernel, &stuck).unwrap();
        }
        wait_until("five workers", || pool.workers.load(SeqCst) == 5);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(pool.workers.load(SeqCst), 5);
        *door.open.lock() = true;
        door.opened.notify_all();
        let mut buffer = [0; 64];
        for _ in 0..20 {
            nix::unistd::read(&kernel, &mut buffer).unwrap();
        }
        wait_until("two workers are left", || pool.workers.load(SeqCst) == 2);
    }
}
