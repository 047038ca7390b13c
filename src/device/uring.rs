//! FUSE over io_uring: requests come, and answers go, through rings (Linux 6.14).
//!
//! The kernel has a queue for each CPU, and gives what a thread asks to the queue of the CPU that
//! the thread is on. We give the kernel *entries*, each with room for a request. An entry comes back
//! with a request and keeps it until it is answered (a read that blocks keeps its entry); one
//! submission takes the answer to the kernel and has the entry wait there for the next request.
//!
//! **An entry is tied to the thread that has submitted it**: the kernel fills it when that thread
//! waits in its ring. A request that is given to an entry of a thread which a client holds up waits
//! as long as that client likes, and nobody can take it back. So the one rule here is that **who may
//! be held up has nothing with the kernel**:
//! - The *reserve* of a queue is a thread that touches no client's memory. It has most entries,
//!   registers more before they run out, hands requests to workers, and submits what others answer.
//! - A *worker* submits the answers that it has given (its caller's, and that of the client who is
//!   told of it) by one system call, and waits with their entries. The kernel prefers the entry that
//!   was given last, so most requests come straight to a worker. The last of its entries comes with
//!   a request that it may do anything for. While there are others with the kernel it does only
//!   what cannot hold it up (`Entry::is_light`): it parks a read. What such a read finds, and
//!   every other request, goes to a worker that is free
//!   ([`Carriers::must_not_stall`](crate::binder::Carriers::must_not_stall)).
//! - An answer may be given by any thread. One that no worker of its queue has given goes to a
//!   worker of that queue that is free, or to the reserve; so do those of a worker that turns out to
//!   be held up, some milliseconds later.
//!
//! A request that finds no entry waits in the kernel until an entry is *committed* on that queue:
//! registering one does not help. So whenever the reserve has registered more, a request of our own
//! brings about such a commit, again and again until nothing more comes with it (`kick`).
//!
//! INIT, FORGET and INTERRUPT come through `/dev/fuse` all the same, and notifications go there.
//! The kernel loses a signal that arrives for a thread while its request is on its way here
//! (`fuse_uring_prepare_send` does not look whether an interrupt was due, and there is no way to
//! have an INTERRUPT sent again): so a request that has not been answered a moment later is looked
//! at once, see [`Session::look_for_signals`].

#![allow(clippy::vec_box, reason = "an entry keeps its box from its first owner to its last")]

mod entry;
mod kick;
mod queue;
mod ring;
mod threads;

pub use entry::MAX_PAGES;

use self::entry::Entry;
use self::queue::{AT_ONCE, LEAST, MOST, Queue, Slot};
use self::ring::Ring;
use super::session::{Door, Session};
use super::supervisor::Supervisor;
use crate::client_log::{Kind, client_log};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

/// Whether the kernel offers this; root may write it, and it counts for mounts from then on.
const ENABLE: &str = "/sys/module/fuse/parameters/enable_uring";
/// How long a worker may be at one request before it counts as held up.
const STUCK: Duration = Duration::from_millis(10);

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// Through io_uring where the kernel has it, else by reading
    Auto,
    /// Through io_uring, or not at all
    Uring,
    /// By reading /dev/fuse
    Read,
}

/// Why requests do not come through io_uring.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The fuse module has no such parameter.
    #[error("this kernel has no FUSE over io_uring (Linux 6.14, CONFIG_FUSE_IO_URING)")]
    Missing,
    /// The parameter is off, and cannot be written.
    #[error("{ENABLE} is N and cannot be set: {0}")]
    Disabled(io::Error),
    /// INIT lacks the flag.
    #[error("the kernel did not offer FUSE over io_uring for this mount")]
    NotOffered,
    /// There can be no ring, or no thread for it.
    #[error("io_uring_setup: {0}")]
    Setup(io::Error),
    /// The queue of that CPU could not be started.
    #[error("queue {0}: {1}")]
    Queue(u16, io::Error),
}

/// Sees to it that the kernel will offer it.
pub fn enable() -> Result<(), Error> {
    let enabled = fs::read_to_string(ENABLE).map_err(|_| Error::Missing)?;
    Ring::try_setup().map_err(Error::Setup)?;
    if enabled.trim() != "Y" {
        fs::write(ENABLE, "Y").map_err(Error::Disabled)?;
        log::info!("{ENABLE} was {}, and is Y from now on", enabled.trim());
    }
    Ok(())
}

thread_local! {
    /// The worker that this thread is.
    static WORKER: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

/// The way of an answer to the kernel.
struct Way;

impl Way {
    /// The answer is in the entry.
    fn answered(entry: Box<Entry>) {
        let left = WORKER.with_borrow(|worker| {
            let Some(slot) = worker else { return Some(entry) };
            let mut answers = slot.answers.lock();
            if answers.len() == AT_ONCE || !slot.is_of(&entry.queue) {
                return Some(entry);
            }
            answers.push(entry);
            None
        });
        if let Some(entry) = left {
            let queue = entry.queue.clone();
            queue.submit(entry);
        }
    }
}

/// The queues of a session, and their threads.
pub struct Rings {
    session: Arc<Session>,
    door: Arc<dyn Door>,
    queues: Vec<Arc<Queue>>,
    /// Where the daemon's threads may run.
    allowed: CpuSet,
    /// What a request of our own is made on.
    mount: Option<PathBuf>,
    supervisor: Supervisor,
}

impl Rings {
    /// Starts to serve a session whose INIT has agreed on it. When that fails, the kernel goes on
    /// with `/dev/fuse`.
    pub fn start(
        session: &Arc<Session>,
        door: Arc<dyn Door>,
        mount: Option<PathBuf>,
    ) -> Result<Arc<Rings>, Error> {
        let started = Self::try_start(session, door, mount);
        if started.is_err() {
            let _ = Ring::refuse(session);
        }
        started
    }

    fn try_start(
        session: &Arc<Session>,
        door: Arc<dyn Door>,
        mount: Option<PathBuf>,
    ) -> Result<Arc<Rings>, Error> {
        let count = possible_cpus().map_err(Error::Setup)?;
        let queues: io::Result<Vec<_>> = (0..count).map(Queue::new).collect();
        let rings = Arc::new(Rings {
            session: session.clone(),
            door,
            queues: queues.map_err(Error::Setup)?,
            allowed: sched_getaffinity(Pid::from_raw(0)).unwrap_or_default(),
            mount,
            supervisor: Supervisor::new(STUCK),
        });
        let started = rings.start_threads();
        if started.is_err() {
            rings.end();
        }
        started.map(|()| rings)
    }

    fn start_threads(self: &Arc<Self>) -> Result<(), Error> {
        // First the workers: requests come as soon as the last reserve has registered its entries.
        for queue in &self.queues {
            for _ in 0..LEAST {
                self.start_worker(queue).map_err(|error| Error::Queue(queue.cpu, error))?;
            }
        }
        let rings = self.clone();
        std::thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || rings.supervise())
            .map_err(Error::Setup)?;
        for queue in &self.queues {
            self.add_reserve(queue).map_err(|error| Error::Queue(queue.cpu, error))?;
        }
        Ok(())
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// The session has ended.
    pub fn end(&self) {
        if self.supervisor.end() {
            self.queues.iter().for_each(|queue| queue.end());
        }
    }

    fn is_busy(&self) -> bool {
        let busy = |queue: &Arc<Queue>| queue.slots.lock().iter().any(|slot| slot.busy.is_busy());
        self.session.is_held_up() || self.session.has_unlooked() || self.queues.iter().any(busy)
    }

    fn supervise(self: &Arc<Self>) {
        self.supervisor.supervise(
            || self.is_busy(),
            || {
                self.queues.iter().for_each(|queue| self.relieve(queue));
                self.session.look_for_signals(&*self.door);
                self.session.answer_the_dying();
            },
        );
    }

    /// Takes from those that are held up what they have answered, and starts others in their place.
    fn relieve(self: &Arc<Self>, queue: &Arc<Queue>) {
        let looks = self.supervisor.looks();
        let held_up: Vec<_> = {
            let slots = queue.slots.lock();
            slots.iter().filter(|slot| slot.busy.is_held_up(looks)).cloned().collect()
        };
        held_up.iter().for_each(|slot| slot.submit_by_others(queue));
        for _ in queue.serving(looks)..LEAST {
            let workers = queue.workers();
            if workers + 1 == MOST {
                client_log!(
                    Kind::WorkersHeldUp,
                    "{}: clients hold up {workers} threads of CPU {}; the next one is the last",
                    self.session.name(),
                    queue.cpu
                );
            }
            if workers >= MOST || self.supervisor.has_ended() {
                return;
            }
            if let Err(error) = self.add_worker(queue) {
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

/// How many queues the kernel has: one for each CPU that there may be.
fn possible_cpus() -> io::Result<u16> {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = list.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u16>().ok());
    last.and_then(|last| last.checked_add(1)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
