//! The daemon's threads that stop threads of clients, to give them descriptors.
//!
//! A client that knows nothing of fakebinder gets its descriptors in this way:
//! 1. [`Tracers::hold`]: the thread, which waits in an ioctl, is seized, and will stop when the
//!    ioctl ends. No other thread of the client notices.
//! 2. The caller of `hold` ends the ioctl as one that is to be called again (-ERESTARTSYS).
//! 3. [`HeldThread::install_files`]: at its stop the thread itself makes the system calls that
//!    bring the files ([`placing`](super::placing)).
//! 4. [`HeldThread::finish`]: the ioctl has its result after all, and the thread goes on. If a
//!    [`Held`] is dropped instead, the thread calls the ioctl again, and the descriptors that it
//!    was given are closed.
//!
//! The kernel takes all ptrace calls for a stopped thread from one thread only. So each stopped
//! thread has a thread of the daemon, from step 1 to step 4, which is used again if all went well.
//! If a client does not come to its stop (a frozen one, say), that thread of the daemon ends after
//! a while, and with it the seizure: the client never stops, and the ioctl is called again.
//!
//! Their number is bounded: for each process, for each user, and in all.
//!
//! A thread with seccomp filters is stopped by another process of the daemon's ([`TracingProcess`]),
//! if there is one.

mod aside;

pub use aside::TracingProcess;

use super::client::{errno, numbers};
use super::placing::Place;
use super::taken_file::taken_descriptors;
use super::tracee::{IS_KNOWN, Tracee};
use crate::binder::{File, HeldThread};
use crate::client_mem::ClientMemory;
use crate::lock_order::{assert_nothing_held, rank};
use crate::sync::Mutex;
use crate::{Errno, uapi};
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

/// The most threads at a time: in all, for one user other than root, and for one process.
const MOST: usize = 128;
const MOST_OF_USER: usize = MOST / 2;
const MOST_OF_PROCESS: usize = 16;
/// How long a client may take to come to its stop.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the installing of a transaction's descriptors may take in all.
const INSTALL_PATIENCE: Duration = Duration::from_secs(3);
/// How long a thread of the daemon waits for a further job.
const IDLE: Duration = Duration::from_secs(2);

/// A thread of a client that is in an ioctl.
#[derive(Clone)]
pub struct Subject {
    /// The thread group that the thread must belong to.
    pub pid: i32,
    pub pidfd: Arc<OwnedFd>,
    pub uid: u32,
    pub tid: i32,
}

/// The threads of the daemon that stop threads of clients, as [the module](self) says.
#[derive(Default)]
pub struct Tracers {
    /// For threads with seccomp filters. None: they are stopped as others are.
    aside: Option<Arc<TracingProcess>>,
    state: Mutex<State, rank::Tracers>,
}

#[derive(Default)]
struct State {
    /// The threads that wait for a job.
    idle: Vec<(u64, SyncSender<Job>)>,
    last: u64,
    count: usize,
    by_user: HashMap<u32, usize>,
    by_process: HashMap<i32, usize>,
}

/// Counts as one thread, until it is dropped.
struct Counted {
    tracers: Arc<Tracers>,
    uid: u32,
    pid: i32,
}

impl Drop for Counted {
    fn drop(&mut self) {
        fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
            if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
        let mut state = self.tracers.state.lock();
        state.count -= 1;
        less(&mut state.by_user, self.uid);
        less(&mut state.by_process, self.pid);
    }
}

/// What a thread of the daemon does with a thread of a client.
struct Job {
    subject: Subject,
    /// Descriptors that are closed in any case.
    closing: Vec<i32>,
    ready: SyncSender<Result<(), Errno>>,
    orders: Receiver<Order>,
    _counted: Counted,
}

enum Order {
    Install { files: Vec<Arc<dyn File>>, answer: SyncSender<Result<Vec<i32>, Errno>> },
    Finish(Finish),
}

/// How a thread's ioctl ends.
#[derive(Debug, PartialEq, Eq)]
struct Finish {
    result: Result<i32, Errno>,
    argument: Vec<u8>,
    /// What is closed before.
    closing: Vec<i32>,
}

/// A thread of a client that will stop, or has stopped, at the end of its ioctl.
pub struct Held {
    orders: Sender<Order>,
}

impl HeldThread for Held {
    fn install_files(&mut self, files: Vec<Arc<dyn File>>) -> Result<Vec<i32>, Errno> {
        let (answer, answered) = sync_channel(1);
        self.orders.send(Order::Install { files, answer }).map_err(|_| Errno::ESRCH)?;
        answered.recv_timeout(INSTALL_PATIENCE).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Err(Errno::ETIMEDOUT),
            RecvTimeoutError::Disconnected => Err(Errno::ESRCH),
        })
    }

    fn finish(self: Box<Self>, result: Result<i32, Errno>, argument: &[u8], closing: &[i32]) {
        let (argument, closing) = (argument.to_vec(), closing.to_vec());
        let _ = self.orders.send(Order::Finish(Finish { result, argument, closing }));
    }
}

impl Tracers {
    /// No threads yet.
    pub fn new(aside: Option<Arc<TracingProcess>>) -> Tracers {
        Tracers { aside, state: Mutex::default() }
    }

    /// Seizes a thread, whose ioctl is to be ended next. The descriptors in `closing` are closed in
    /// the client before the thread goes on, in any case.
    ///
    /// EPERM: the thread belongs to another process, is traced already (a debugger, strace), has
    /// seccomp filters that the daemon cannot suspend, or the daemon may not trace it; EAGAIN: too
    /// many threads are held; ESRCH: the thread is gone.
    pub fn hold(self: &Arc<Self>, subject: Subject, closing: Vec<i32>) -> Result<Held, Errno> {
        assert_nothing_held();
        let (ready, is_ready) = sync_channel(1);
        let (orders, taken) = channel();
        let _counted = self.count(&subject)?;
        self.begin(Job { subject, closing, ready, orders: taken, _counted })?;
        is_ready.recv().map_err(|_| Errno::ESRCH)??;
        Ok(Held { orders })
    }

    fn count(self: &Arc<Self>, subject: &Subject) -> Result<Counted, Errno> {
        let (uid, pid) = (subject.uid, subject.pid);
        let mut state = self.state.lock();
        let of_user = state.by_user.get(&uid).copied().unwrap_or(0);
        let of_process = state.by_process.get(&pid).copied().unwrap_or(0);
        let full = uid != 0 && of_user >= MOST_OF_USER || of_process >= MOST_OF_PROCESS;
        if full || state.count >= MOST {
            return Err(Errno::EAGAIN);
        }
        state.count += 1;
        *state.by_user.entry(uid).or_default() += 1;
        *state.by_process.entry(pid).or_default() += 1;
        drop(state);
        Ok(Counted { tracers: self.clone(), uid, pid })
    }

    fn begin(self: &Arc<Self>, mut job: Job) -> Result<(), Errno> {
        loop {
            let Some((_, idle)) = self.state.lock().idle.pop() else { break };
            match idle.send(job) {
                Ok(()) => return Ok(()),
                Err(back) => job = back.0,
            }
        }
        let tracers = self.clone();
        let run = move || tracers.run(job);
        let thread = std::thread::Builder::new().name("tracer".into()).stack_size(256 << 10);
        thread.spawn(run).map(drop).map_err(|_| Errno::EAGAIN)
    }

    /// The life of a thread of the daemon. It ends if it still has a client's thread seized: then
    /// the kernel lets that thread go.
    fn run(self: Arc<Self>, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next.take() {
            if !job.carry_out(self.aside.as_deref()) {
                return;
            }
            let (idle, jobs) = sync_channel(1);
            let ticket = {
                let mut state = self.state.lock();
                state.last += 1;
                let ticket = state.last;
                state.idle.push((ticket, idle));
                ticket
            };
            next = jobs.recv_timeout(IDLE).ok().or_else(|| {
                let mut state = self.state.lock();
                let before = state.idle.len();
                state.idle.retain(|(other, _)| *other != ticket);
                let taken = state.idle.len() == before;
                drop(state);
                // Another thread has taken this one out of the list, and sends a job.
                taken.then(|| jobs.recv().ok()).flatten()
            });
        }
    }
}

impl Job {
    /// False: the client's thread is not released, so this thread of the daemon must end.
    fn carry_out(self, aside: Option<&TracingProcess>) -> bool {
        let is_filtered = self.subject.is_filtered();
        if let Some(aside) = aside.filter(|_| is_filtered == Ok(true)) {
            aside.carry_out(self);
            return true;
        }
        let mut tracee = match is_filtered.and_then(|it| self.subject.trace(it)) {
            Ok(tracee) => tracee,
            Err(errno) => {
                let _ = self.ready.send(Err(errno));
                // The client's thread may have been seized, but not interrupted.
                return false;
            }
        };
        let _ = self.ready.send(Ok(()));
        let mut holding = Holding::stop(&mut tracee, &self.subject);
        while let Ok(order) = self.orders.recv() {
            match order {
                Order::Install { files, answer } => {
                    let files = taken_descriptors(&files);
                    let _ = answer.send(files.and_then(|files| holding.install(&files)));
                }
                Order::Finish(finish) => {
                    holding.finish(finish);
                    break;
                }
            }
        }
        holding.end(&self.closing);
        tracee.release()
    }
}

/// A thread of a client that is to stop at the end of its ioctl, and what it was given there.
struct Holding<'a> {
    place: Place<'a>,
    stopped: Result<(), Errno>,
    /// Descriptors that were installed, and of which the client has not been told.
    untold: Vec<i32>,
}

impl<'a> Holding<'a> {
    /// Waits for the stop.
    fn stop(tracee: &'a mut Tracee, subject: &'a Subject) -> Holding<'a> {
        let stopped = tracee.stop(uapi::BINDER_WRITE_READ, PATIENCE);
        let place = Place { tracee, tid: subject.tid, pidfd: subject.pidfd.as_fd() };
        Holding { place, stopped, untold: Vec::new() }
    }

    fn install(&mut self, files: &[RawFd]) -> Result<Vec<i32>, Errno> {
        let installed = self.stopped.and_then(|()| self.place.install(files));
        self.untold.extend(installed.iter().flatten());
        installed
    }

    fn finish(&mut self, finish: Finish) {
        self.untold.clear();
        self.place.close(&finish.closing);
        let tracee = &mut *self.place.tracee;
        let told = tracee.argument().and_then(|at| tracee.memory().write(at, &finish.argument));
        let result = told.and(finish.result);
        tracee.set_result(result.map_or_else(|it| -(it as i64), i64::from));
    }

    /// Closes what the client was not told of, and `closing`.
    fn end(mut self, closing: &[i32]) {
        let untold = std::mem::take(&mut self.untold);
        self.place.close(&untold);
        self.place.close(closing);
    }
}

/// Whether the thread of this `/proc/TID/status` has seccomp filters.
fn has_filters(status: &str) -> bool {
    numbers(status, "Seccomp:").and_then(|mut mode| mode.next()).is_some_and(|mode| mode != 0)
}

impl Subject {
    /// Whether the thread has seccomp filters. EPERM: it belongs to another process, or is traced.
    fn is_filtered(&self) -> Result<bool, Errno> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.tid)).map_err(errno)?;
        let field = |name: &str| numbers(&status, name)?.next();
        if field("Tgid:") != Some(self.pid) || field("TracerPid:") != Some(0) {
            return Err(Errno::EPERM);
        }
        Ok(has_filters(&status))
    }

    /// Seizes the thread, which will stop.
    fn trace(&self, is_filtered: bool) -> Result<Tracee, Errno> {
        let tracee = Tracee::seize(self.tid, is_filtered).map_err(|errno| match errno {
            // This kernel cannot suspend seccomp filters.
            Errno::EINVAL => Errno::EPERM,
            errno => errno,
        })?;
        tracee.interrupt()?;
        Ok(tracee)
    }
}
