//! The threads of ours that stop threads of clients, to give them descriptors.
//!
//! A client that knows nothing of fakebinder gets its descriptors in this way:
//! 1. [`Tracers::hold`]: the thread, which waits in an ioctl, is seized, and will stop when that
//!    ends. No other thread of the client notices.
//! 2. Whoever asked ends the ioctl as one that is to be called again (-ERESTARTSYS).
//! 3. [`HeldThread::install_files`]: at its stop the thread itself makes the system calls that
//!    bring the files ([`placing`](super::placing)).
//! 4. [`HeldThread::finish`]: the ioctl has its result after all, and the thread goes on. Where a
//!    [`Held`] is dropped instead, the thread calls the ioctl again, and what it was given is
//!    closed.
//!
//! The kernel takes all of this from one thread for each that is stopped, so there is a thread of
//! ours for each of them, from 1 to 4. It is used again if all went well. Where a client does not
//! come to its stop (a frozen one, say) it ends after a while, and so does the seizure: the client
//! never stops, and the ioctl is called again.
//!
//! How many there are is bounded, for each process, for each user, and in all.

use super::placing::Place;
use super::taken_file::taken_descriptors;
use super::tracee::Tracee;
use crate::binder::{File, HeldThread};
use crate::client_mem::ClientMemory;
use crate::lock_order::{assert_nothing_held, rank};
use crate::sync::Mutex;
use crate::{Errno, uapi};
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

/// Threads at a time: in all, for one user other than root, and for one process.
const MOST: usize = 128;
const MOST_OF_USER: usize = MOST / 2;
const MOST_OF_PROCESS: usize = 16;
/// How long a client may take to come to its stop.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long its descriptors may take in all.
const INSTALL_PATIENCE: Duration = Duration::from_secs(3);
/// How long a thread of ours waits for more to do.
const IDLE: Duration = Duration::from_secs(2);

/// A thread of a client that is in an ioctl.
#[derive(Clone)]
pub struct Subject {
    /// The thread group, which must be that of the thread.
    pub pid: i32,
    pub pidfd: Arc<OwnedFd>,
    pub uid: u32,
    pub tid: i32,
}

/// See [the module](self).
#[derive(Default)]
pub struct Tracers {
    state: Mutex<State, rank::Tracers>,
}

#[derive(Default)]
struct State {
    /// Those that wait for something to do.
    idle: Vec<(u64, SyncSender<Job>)>,
    last: u64,
    count: usize,
    by_user: HashMap<u32, usize>,
    by_process: HashMap<i32, usize>,
}

/// What counts as one, until it is dropped.
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

/// What a thread of ours does with one of a client's.
struct Job {
    subject: Subject,
    /// To be closed in any case.
    closing: Vec<i32>,
    ready: SyncSender<Result<(), Errno>>,
    orders: Receiver<Order>,
    _counted: Counted,
}

enum Order {
    Install { files: Vec<Arc<dyn File>>, answer: SyncSender<Result<Vec<i32>, Errno>> },
    Finish { result: Result<i32, Errno>, argument: Vec<u8>, closing: Vec<i32> },
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
        let _ = self.orders.send(Order::Finish { result, argument, closing });
    }
}

impl Tracers {
    /// Seizes a thread, whose ioctl is to be ended next. What is in `closing` is closed in the
    /// client before the thread goes on, whatever comes.
    ///
    /// EPERM: it is of another process, is traced already (a debugger, strace), has seccomp filters
    /// that we cannot suspend, or we may not trace it; EAGAIN: too many are on their way; ESRCH: it
    /// is gone.
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

    /// A thread of ours, which ends where it still has a client's: then the kernel lets that go.
    fn run(self: Arc<Self>, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next.take() {
            if !job.carry_out() {
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
                // Somebody has taken it out, and sends a job.
                taken.then(|| jobs.recv().ok()).flatten()
            });
        }
    }
}

impl Job {
    /// False: the client's thread is not done with, and this one must end.
    fn carry_out(self) -> bool {
        let mut tracee = match self.seize() {
            Ok(tracee) => tracee,
            Err(errno) => {
                let _ = self.ready.send(Err(errno));
                // It may have been seized, and not been interrupted.
                return false;
            }
        };
        let _ = self.ready.send(Ok(()));
        let stopped = tracee.stop(uapi::BINDER_WRITE_READ, PATIENCE);
        let (tid, pidfd) = (self.subject.tid, self.subject.pidfd.clone());
        let mut place = Place { tracee: &mut tracee, tid, pidfd: pidfd.as_fd() };
        // What the client has been given, as long as it is not told of it.
        let mut untold = Vec::new();
        while let Ok(order) = self.orders.recv() {
            match order {
                Order::Install { files, answer } => {
                    let installed = stopped
                        .and_then(|()| taken_descriptors(&files))
                        .and_then(|descriptors| place.install(&descriptors));
                    untold.extend(installed.iter().flatten());
                    let _ = answer.send(installed);
                }
                Order::Finish { result, argument, closing } => {
                    untold.clear();
                    place.close(&closing);
                    let address = place.tracee.argument();
                    let told = address.and_then(|at| place.tracee.memory().write(at, &argument));
                    let result = told.and(result);
                    place.tracee.set_result(result.map_or_else(|it| -(it as i64), i64::from));
                    break;
                }
            }
        }
        place.close(&untold);
        place.close(&self.closing);
        tracee.release()
    }

    fn seize(&self) -> Result<Tracee, Errno> {
        let Subject { pid, tid, .. } = self.subject;
        let status = fs::read_to_string(format!("/proc/{tid}/status"));
        let status = status.map_err(super::client::errno)?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<i32>().ok()
        };
        if field("Tgid:") != Some(pid) || field("TracerPid:") != Some(0) {
            return Err(Errno::EPERM);
        }
        let is_filtered = field("Seccomp:").is_some_and(|mode| mode != 0);
        let tracee = Tracee::seize(tid, is_filtered).map_err(|errno| match errno {
            // This kernel has no way to suspend a filter.
            Errno::EINVAL => Errno::EPERM,
            errno => errno,
        })?;
        tracee.interrupt()?;
        Ok(tracee)
    }
}
