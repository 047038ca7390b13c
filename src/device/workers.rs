//! The threads that serve a session, and the threads that replace those that are held up.
//!
//! A worker never waits for a client on purpose, but a client can make one wait: its memory may lie
//! behind a userfaultfd or a file system of its own, and then `process_vm_readv` takes as long as
//! the client likes. A worker that has been at one request for [`WorkerLimits::stuck`] counts as
//! held up, and another one is started in its place, up to [`WorkerLimits::most`]: so
//! [`WorkerLimits::least`] always serve. A worker that begins long work of the daemon's own says
//! so, and is replaced at once (`stand_in`). A worker that comes back leaves if `least` others wait
//! for requests already. How many workers a client can hold up is bounded where places are given
//! out ([`crate::binder::copies`]).
//!
//! A supervisor (`supervisor.rs`) looks for workers that are held up, and for clients that die
//! while a worker is at work for them ([`Session::answer_the_dying`]). In an idle pool all threads
//! sleep, the supervisor too.

use super::session::{BUFFER_SIZE, Door, Session};
use super::supervisor::{Busy, Supervisor};
use crate::binder::copies::Work;
use crate::client_log::{Kind, client_log};
use crate::lock_order::rank;
use crate::probe::{Verb, fault};
use crate::sync::Mutex;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// How many workers a session has.
#[derive(Debug, Clone, Copy)]
pub struct WorkerLimits {
    /// Workers that are not held up, at least.
    pub least: usize,
    /// Workers in all, at most.
    pub most: usize,
    /// How long a worker may be at one request before it counts as held up.
    pub stuck: Duration,
}

impl WorkerLimits {
    /// As many workers as there are cores, 2 to 4; up to 256 while clients hold some of them up. A
    /// worker that is held up costs its stack and little else.
    pub fn of_this_machine() -> WorkerLimits {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        WorkerLimits { least: cores.clamp(2, 4), most: 256, stuck: Duration::from_millis(10) }
    }
}

/// What a thread that serves requests is to the others of its kind.
pub(super) trait Place {
    /// Has another thread serve in place of this one, unless enough others are left.
    fn stand_in(&self);

    /// Sends what this thread has answered and not sent yet.
    fn submit(&self) {}

    /// Whether requests that nobody else can take wait for this thread.
    fn must_not_stall(&self) -> bool {
        false
    }

    /// Has another thread of the same kind do `work`. Gives it back where there is none.
    fn hand_over(&self, work: Work) -> Result<(), Work> {
        Err(work)
    }
}

thread_local! {
    /// The place of this thread, if it serves requests.
    static PLACE: RefCell<Option<Rc<dyn Place>>> = const { RefCell::new(None) };
}

/// The calling thread serves requests from now on, or no longer.
pub(super) fn take_place(place: Option<Rc<dyn Place>>) {
    PLACE.set(place);
}

fn place() -> Option<Rc<dyn Place>> {
    PLACE.with_borrow(Clone::clone)
}

/// The calling thread will be at its request for long. If it is a worker, another one is started in
/// its place, unless enough others are left to serve.
pub(super) fn stand_in() {
    if let Some(place) = place() {
        place.stand_in();
    }
}

/// The calling thread is about to wait for what an answer of its own leads to.
pub(super) fn submit() {
    if let Some(place) = place() {
        place.submit();
    }
}

/// Whether the calling thread must do nothing that a client's memory may hold up: see
/// [`Carriers::must_not_stall`](crate::binder::Carriers::must_not_stall).
pub(super) fn must_not_stall() -> bool {
    PLACE.with_borrow(|place| place.as_ref().is_some_and(|place| place.must_not_stall()))
}

/// Has another thread that serves requests do `work`, if the calling thread must not stall.
pub(super) fn hand_over(work: Work) -> Result<(), Work> {
    match place() {
        Some(place) if place.must_not_stall() => place.hand_over(work),
        _ => Err(work),
    }
}

/// The place of a worker in its pool.
struct InPool {
    pool: Arc<Pool>,
    slot: Arc<Busy>,
}

impl Place for InPool {
    fn stand_in(&self) {
        if self.slot.go_away() {
            self.pool.replace_the_held_up();
        }
    }
}

struct Pool {
    session: Arc<Session>,
    door: Arc<dyn Door>,
    limits: WorkerLimits,
    slots: Mutex<Vec<Arc<Busy>>, rank::Slots>,
    /// All worker threads.
    workers: AtomicUsize,
    /// Workers that wait for a request, or are about to.
    reading: AtomicUsize,
    supervisor: Supervisor,
    on_end: Mutex<Option<Box<dyn FnOnce() + Send>>, rank::SessionEnd>,
}

/// Serves `session` with threads of its own until it ends, then calls `on_end` once.
pub fn start(
    session: Arc<Session>,
    door: Arc<dyn Door>,
    limits: WorkerLimits,
    on_end: Box<dyn FnOnce() + Send>,
) -> std::io::Result<()> {
    let pool = Pool::new(session, door, limits, on_end);
    for _ in 0..limits.least {
        pool.add_worker()?;
    }
    std::thread::Builder::new().name("supervisor".into()).spawn(move || pool.supervise())?;
    Ok(())
}

impl Pool {
    fn new(
        session: Arc<Session>,
        door: Arc<dyn Door>,
        limits: WorkerLimits,
        on_end: Box<dyn FnOnce() + Send>,
    ) -> Arc<Pool> {
        Arc::new(Pool {
            session,
            door,
            limits,
            slots: Mutex::default(),
            workers: AtomicUsize::new(0),
            reading: AtomicUsize::new(0),
            supervisor: Supervisor::new(limits.stuck),
            on_end: Mutex::new(Some(on_end)),
        })
    }

    /// Starts a worker, which counts as waiting for a request from now on.
    fn add_worker(self: &Arc<Self>) -> std::io::Result<()> {
        let (pool, slot) = (self.clone(), Arc::new(Busy::default()));
        self.slots.lock().push(slot.clone());
        self.workers.fetch_add(1, SeqCst);
        self.reading.fetch_add(1, SeqCst);
        let thread = std::thread::Builder::new().name("worker".into());
        let forgotten = slot.clone();
        let started = fault(Verb::Thread)
            .map_err(std::io::Error::from)
            .and_then(|()| thread.spawn(move || pool.work(&slot)).map(drop));
        if started.is_err() {
            self.reading.fetch_sub(1, SeqCst);
            self.forget_worker(&forgotten);
        }
        started
    }

    fn forget_worker(&self, slot: &Arc<Busy>) {
        self.slots.lock().retain(|other| !Arc::ptr_eq(other, slot));
        self.workers.fetch_sub(1, SeqCst);
    }

    fn work(self: &Arc<Self>, slot: &Arc<Busy>) {
        let mut buffer = vec![0; BUFFER_SIZE];
        take_place(Some(Rc::new(InPool { pool: self.clone(), slot: slot.clone() })));
        loop {
            let message = match self.session.receive(&mut buffer) {
                Ok(Some(message)) => message,
                Ok(None) => break self.end(),
                Err(error) => {
                    log::error!("{}: reading requests: {error}", self.session.name());
                    break self.end();
                }
            };
            slot.begin(self.supervisor.looks());
            if self.reading.fetch_sub(1, SeqCst) == 1 {
                self.supervisor.rouse();
            }
            // A panic costs its request (the answer is EIO), not the thread.
            let dispatch = || self.session.dispatch(message, &*self.door);
            if catch_unwind(AssertUnwindSafe(dispatch)).is_err() {
                log::error!("{}: a request was given up after a panic", self.session.name());
            }
            slot.end();
            if self.session.is_held_up() {
                self.supervisor.rouse();
            }
            if self.reading.fetch_add(1, SeqCst) >= self.limits.least {
                self.reading.fetch_sub(1, SeqCst);
                break;
            }
        }
        take_place(None);
        self.forget_worker(slot);
    }

    fn end(&self) {
        if self.supervisor.end() {
            let on_end = self.on_end.lock().take();
            if let Some(on_end) = on_end {
                on_end();
            }
        }
    }

    fn supervise(self: &Arc<Self>) {
        let is_busy = || self.reading.load(SeqCst) == 0 || self.session.is_held_up();
        self.supervisor.supervise(is_busy, || {
            self.replace_the_held_up();
            self.session.answer_the_dying();
        });
    }

    /// Starts as many workers as are needed for `least` to serve.
    fn replace_the_held_up(self: &Arc<Self>) {
        let looks = self.supervisor.looks();
        let serving = self.slots.lock().iter().filter(|slot| !slot.is_held_up(looks)).count();
        for _ in serving..self.limits.least {
            let workers = self.workers.load(SeqCst);
            if workers >= self.limits.most || self.supervisor.has_ended() {
                return;
            }
            if workers + 1 == self.limits.most {
                client_log!(
                    Kind::WorkersHeldUp,
                    "{}: clients hold up {workers} threads; the next one is the last",
                    self.session.name()
                );
            }
            if let Err(error) = self.add_worker() {
                client_log!(
                    Kind::WorkersHeldUp,
                    "{}: starting another thread: {error}",
                    self.session.name()
                );
                return;
            }
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
    #[allow(clippy::disallowed_types, reason = "no thread of the daemon's holds it with another")]
    struct Stuck {
        open: std::sync::Mutex<bool>,
        opened: std::sync::Condvar,
        /// A worker that is stuck has said so.
        says_so: bool,
    }

    impl Door for Stuck {
        fn request(&self, _: Header, request: Request<'_>, responder: Responder) {
            if request == Request::StatFs {
                if self.says_so {
                    stand_in();
                    stand_in();
                }
                let open = self.open.lock().unwrap();
                drop(self.opened.wait_while(open, |open| !*open).unwrap());
            }
            responder.done();
        }
        fn interrupt(&self, _: u64, _: i32) {}
    }

    fn scene() -> (OwnedFd, Arc<Pool>, Arc<Stuck>, mpsc::Receiver<()>) {
        scene_of(false, Duration::from_millis(20))
    }

    fn scene_of(
        says_so: bool,
        stuck: Duration,
    ) -> (OwnedFd, Arc<Pool>, Arc<Stuck>, mpsc::Receiver<()>) {
        let (kernel, ours) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        let door = Arc::new(Stuck { open: false.into(), opened: Default::default(), says_so });
        let limits = WorkerLimits { least: 2, most: 5, stuck };
        let (tell, ended) = mpsc::channel();
        let on_end = Box::new(move || tell.send(()).unwrap());
        let pool = Pool::new(Session::new(ours, "test"), door.clone(), limits, on_end);
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

        *door.open.lock().unwrap() = true;
        door.opened.notify_all();
        for _ in 0..3 {
            nix::unistd::read(&kernel, &mut buffer).unwrap();
        }
        wait_until("two workers are left", || pool.workers.load(SeqCst) == 2);
        wait_until("the supervisor sleeps", || pool.supervisor.is_asleep());

        drop(kernel);
        ended.recv_timeout(Duration::from_secs(20)).unwrap();
        wait_until("all workers have left", || pool.workers.load(SeqCst) == 0);
    }

    #[test]
    fn who_says_that_a_request_takes_long_is_replaced_before_the_supervisor_looks() {
        let (kernel, pool, door, _ended) = scene_of(true, Duration::from_secs(600));
        for unique in [2, 4] {
            nix::unistd::write(&kernel, &message(uapi::FUSE_STATFS, unique, 1, 1, &[])).unwrap();
        }
        nix::unistd::write(&kernel, &message(uapi::FUSE_GETATTR, 8, 1, 1, &[&[0; 16]])).unwrap();
        let mut buffer = [0; 64];
        nix::unistd::read(&kernel, &mut buffer).unwrap();
        let first: uapi::fuse_out_header = uapi::parse(&buffer).unwrap();
        assert_eq!(first.unique, 8, "answered past two workers that are at something long");
        assert_eq!(pool.workers.load(SeqCst), 4, "one for each");

        *door.open.lock().unwrap() = true;
        door.opened.notify_all();
        for _ in 0..2 {
            nix::unistd::read(&kernel, &mut buffer).unwrap();
        }
        wait_until("two workers are left", || pool.workers.load(SeqCst) == 2);
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
        *door.open.lock().unwrap() = true;
        door.opened.notify_all();
        let mut buffer = [0; 64];
        for _ in 0..20 {
            nix::unistd::read(&kernel, &mut buffer).unwrap();
        }
        wait_until("two workers are left", || pool.workers.load(SeqCst) == 2);
    }
}
