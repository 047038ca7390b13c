//! A session: one descriptor on which the kernel sends requests and takes replies.
//!
//! A FUSE mount, a CUSE device and, in tests, one end of a socketpair are the same here. Requests
//! are read by the threads of a [pool](super::workers), handed to the [`Door`], and answered
//! through their [`Responder`], from any thread, at once or much later. Where the kernel has it,
//! most requests of a mount come another [way](ReplyWay) instead, through [rings](super::uring).
//!
//! Interrupts: a signal for a thread that waits for a reply makes the kernel send INTERRUPT,
//! which another worker may read before the worker that has read the request gets any further.
//! So a request is *in flight* from the moment it is decoded until its reply is written, and an
//! interrupt for a request that is not in flight is answered with EAGAIN: the kernel sends it
//! again if the request still waits, and drops it if it has been answered.
//!
//! **A fatal signal is always answered**, even while a copy to or from the caller's memory stalls.
//! A request that an interrupt does not end is looked at again and again
//! ([`Session::answer_the_dying`]). Once its thread cannot return to its program any more, the
//! request gets its answer; a worker that is still at work for it then finds that the memory is not
//! to be touched and that the answer is not needed.
//!
//! Locks: the table of requests in flight, and the list of requests that an interrupt did not end.
//! Both are leaves: nothing is called and nothing written under them.

mod responder;
mod store;
#[cfg(test)]
mod tests;

pub use responder::Responder;

use super::signals;
use super::wire::{self, Forgotten, Header, Ioctl, Request};
use crate::client_log::{Caller, Kind, client_log};
use crate::client_mem::ProcessMemory;
use crate::lock_order::rank;
use crate::probe::{Verb, fault};
use crate::shortage::{self, is_shortage};
use crate::sync::Mutex;
use crate::{Errno, uapi};
use rustc_hash::FxHashMap;
use std::io::IoSlice;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The protocol version of this program; the kernel speaks the older one of both sides.
pub const MAJOR: u32 = uapi::FUSE_KERNEL_VERSION;
/// 7.40 brought passthrough. Nothing newer is used; what an older kernel lacks is told by INIT's
/// flags.
pub const MINOR: u32 = 40;

/// Bytes to read a request into: the largest is an ioctl with what a retry has gathered, 32 pages.
pub const BUFFER_SIZE: usize = 32 * 4096 + 8192;

/// The bit by which the kernel names an INTERRUPT after the request that it is about.
const INTERRUPT_BIT: u64 = 1;

/// The kernel had no memory for the daemon: a little later it may have.
fn out_of_breath(errno: &Errno) {
    shortage::note(errno);
    std::thread::sleep(Duration::from_millis(1));
}

/// What a session hands its requests to. Called by several threads at once.
pub trait Door: Send + Sync {
    /// A request that waits for its one answer.
    fn request(&self, header: Header, request: Request<'_>, responder: Responder);
    /// A signal has arrived for the thread `tid`, which waits in an ioctl on the open file `fh`;
    /// [`Responder::interrupted`] already says so.
    fn interrupt(&self, fh: u64, tid: i32);
    /// The kernel no longer knows nodes that it has looked up.
    fn forget(&self, _forgotten: &Forgotten<'_>) {}
    /// The session has come to its end, and every open file with it.
    fn ended(&self) {}
}

/// The way of an answer to a request that was not read from the session's descriptor. Such a
/// request's answer always arrives.
pub trait ReplyWay: Send {
    /// `unique` 0: that of the request, where it could not be read.
    fn reply(self: Box<Self>, unique: u64, error: i32, parts: &[&[u8]]);
}

/// A request that has been read and not been answered.
struct InFlight {
    /// How its answer goes to the kernel; none: through the session's descriptor.
    way: Option<Box<dyn ReplyWay>>,
    /// Of an ioctl: what waits for it.
    waiting: Option<Waiting>,
    interrupted: bool,
}

/// The requests that have been read and not been answered.
#[derive(Default)]
struct InFlightTable {
    by_unique: FxHashMap<u64, InFlight>,
    /// The memory of threads that have called before, since they call again and again.
    memories: FxHashMap<i32, Arc<ProcessMemory>>,
}

/// How many threads' memories are remembered.
const REMEMBERED: usize = 1024;

impl InFlightTable {
    /// The memory of a thread that waits in an ioctl.
    fn memory_of(&mut self, tid: i32) -> Arc<ProcessMemory> {
        if let Some(memory) = self.memories.get(&tid)
            && !memory.is_given_up()
        {
            return memory.clone();
        }
        if self.memories.len() >= REMEMBERED {
            self.memories.clear();
        }
        let memory = Arc::new(ProcessMemory::new(tid));
        self.memories.insert(tid, memory.clone());
        memory
    }
}

/// A thread that waits in an ioctl.
struct Waiting {
    /// The open file.
    fh: u64,
    tid: i32,
    memory: Arc<ProcessMemory>,
}

/// A connection to the kernel's side of FUSE or CUSE, from its first request to its last.
pub struct Session {
    fd: OwnedFd,
    /// For log lines: "fakebinder (FUSE)".
    name: String,
    in_flight: Mutex<InFlightTable, rank::InFlight>,
    /// Requests that an interrupt did not end at once, with their threads.
    held_up: Mutex<Vec<(u64, i32)>, rank::HeldUp>,
    /// How many such requests there are.
    held_up_count: AtomicUsize,
    /// Requests that came by another way than the descriptor, and may have missed a signal.
    unlooked: Mutex<Unlooked, rank::Unlooked>,
}

/// See [`Session::look_for_signals`]. Requests and the threads that wait in them.
#[derive(Default)]
struct Unlooked {
    /// Since the last look.
    young: Vec<(u64, i32)>,
    /// Since the one before.
    old: Vec<(u64, i32)>,
}

impl Session {
    /// A session over `fd`, an open /dev/fuse or /dev/cuse.
    pub fn new(fd: OwnedFd, name: impl Into<String>) -> Arc<Session> {
        Arc::new(Session {
            fd,
            name: name.into(),
            in_flight: Mutex::default(),
            held_up: Mutex::default(),
            held_up_count: AtomicUsize::new(0),
            unlooked: Mutex::default(),
        })
    }

    /// The name for log lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads one message, waiting for it; none when the session has come to its end.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>, Errno> {
        let mut patience = 100;
        loop {
            let got = fault(Verb::Receive).and_then(|()| nix::unistd::read(&self.fd, buffer));
            match got {
                Ok(0) => return Ok(None),
                Ok(length) => return Ok(Some(&buffer[..length])),
                // ENOENT: the request was aborted while it was copied to the daemon.
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOENT) => {}
                // A shortage: the request is still there to be read.
                Err(error) if is_shortage(error) => out_of_breath(&error),
                // Unmounted, or aborted.
                Err(Errno::ENODEV | Errno::ECONNABORTED | Errno::ENOTCONN) => return Ok(None),
                // Other errors are unexpected; one must not end the session for every client at
                // once.
                Err(error) if patience > 0 => {
                    patience -= 1;
                    out_of_breath(&error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Decodes a message that was [received](Self::receive), and has it answered.
    pub fn dispatch(self: &Arc<Self>, message: &[u8], door: &dyn Door) {
        self.dispatch_from(message, None, door);
    }

    /// Decodes a message, and has it answered by the way that it came.
    pub fn dispatch_from(
        self: &Arc<Self>,
        message: &[u8],
        way: Option<Box<dyn ReplyWay>>,
        door: &dyn Door,
    ) {
        let (header, request) = match wire::decode(message) {
            Ok(decoded) => decoded,
            Err(malformed) => {
                client_log!(Kind::BadRequest, "{}: malformed request: {malformed}", self.name);
                let unique = malformed.unique().unwrap_or(0);
                if unique != 0 || way.is_some() {
                    self.reply(way, unique, -(Errno::EINVAL as i32), &[]);
                }
                return;
            }
        };
        let _caller = Caller { uid: header.uid, pid: 0, tid: header.tid }.enter();
        if log::log_enabled!(log::Level::Trace) {
            self.trace(header.unique, header.tid, &request);
        }
        let waits_on = match request {
            // No reply is expected.
            Request::Forget(forgotten) => return door.forget(&forgotten),
            Request::Interrupt { unique } => return self.interrupt(header.unique, unique, door),
            Request::Ioctl(Ioctl { fh, .. }) => Some(fh),
            _ => None,
        };
        let memory = self.begin(&header, waits_on, way);
        let responder = Responder { session: self.clone(), unique: header.unique, memory };
        door.request(header, request, responder);
    }

    /// Puts a request in flight. Returns the caller's memory for an ioctl, which is on the open
    /// file `waits_on`.
    fn begin(
        &self,
        header: &Header,
        waits_on: Option<u64>,
        way: Option<Box<dyn ReplyWay>>,
    ) -> Option<Arc<ProcessMemory>> {
        if waits_on.is_some() && way.is_some() {
            self.unlooked.lock().young.push((header.unique, header.tid));
        }
        let mut in_flight = self.in_flight.lock();
        let memory = waits_on.map(|_| in_flight.memory_of(header.tid));
        let waiting = waits_on.zip(memory.clone()).map(|(fh, memory)| Waiting {
            fh,
            tid: header.tid,
            memory,
        });
        in_flight.by_unique.insert(header.unique, InFlight { way, waiting, interrupted: false });
        memory
    }

    /// The line that `fakebinderd -vv` logs for every request, without the bytes that came with it.
    fn trace(&self, unique: u64, tid: i32, request: &Request) {
        match request {
            Request::Ioctl(Ioctl { fh, cmd, .. }) => {
                log::trace!("{}: {unique:#x} of thread {tid}: ioctl {cmd:#x} on {fh}", self.name);
            }
            other => log::trace!("{}: {unique:#x} of thread {tid}: {other:?}", self.name),
        }
    }

    fn interrupt(&self, own_unique: u64, unique: u64, door: &dyn Door) {
        if !self.interrupt_in_flight(unique, door) {
            self.write(own_unique | INTERRUPT_BIT, -(Errno::EAGAIN as i32), &[]);
            // Another thread has just read the request: let it go on.
            std::thread::yield_now();
        }
    }

    /// False when no such request is in flight.
    fn interrupt_in_flight(&self, unique: u64, door: &dyn Door) -> bool {
        let waiting = {
            let mut in_flight = self.in_flight.lock();
            let Some(request) = in_flight.by_unique.get_mut(&unique) else { return false };
            request.interrupted = true;
            request.waiting.as_ref().map(|waiting| (waiting.fh, waiting.tid))
        };
        let Some((fh, tid)) = waiting else { return true };
        door.interrupt(fh, tid);
        if self.in_flight.lock().by_unique.contains_key(&unique) {
            self.held_up.lock().push((unique, tid));
            self.held_up_count.fetch_add(1, Ordering::SeqCst);
        }
        true
    }

    /// Whether there are requests that [`Session::look_for_signals`] is to look at.
    pub fn has_unlooked(&self) -> bool {
        let unlooked = self.unlooked.lock();
        !unlooked.young.is_empty() || !unlooked.old.is_empty()
    }

    /// Looks, once, at each request that was there at the last call and has not been answered since:
    /// if a signal is pending for its thread, that came while the request was on its way here, and
    /// its INTERRUPT may have been lost. To be called every few milliseconds.
    pub fn look_for_signals(&self, door: &dyn Door) {
        let mut old = {
            let mut unlooked = self.unlooked.lock();
            let young = std::mem::take(&mut unlooked.young);
            std::mem::replace(&mut unlooked.old, young)
        };
        {
            let in_flight = self.in_flight.lock();
            old.retain(|(unique, _)| in_flight.by_unique.contains_key(unique));
        }
        for (unique, tid) in old {
            if !self.is_interrupted(unique) && signals::is_due(tid) {
                self.interrupt_in_flight(unique, door);
            }
        }
    }

    fn is_interrupted(&self, unique: u64) -> bool {
        self.in_flight.lock().by_unique.get(&unique).is_some_and(|request| request.interrupted)
    }

    /// Whether there are requests that an interrupt has not ended.
    pub fn is_held_up(&self) -> bool {
        self.held_up_count.load(Ordering::SeqCst) > 0
    }

    /// Answers the interrupted requests of threads that are about to die: these must not wait for a
    /// copy. EINTR, and nothing is copied out, since nobody looks at it.
    pub fn answer_the_dying(&self) {
        let mut held_up = std::mem::take(&mut *self.held_up.lock());
        let before = held_up.len();
        held_up.retain(|(unique, tid)| {
            let in_flight = self.in_flight.lock().by_unique.contains_key(unique);
            if in_flight && signals::is_dying(*tid) {
                self.answer_without(*unique);
                return false;
            }
            in_flight
        });
        let left = held_up.len();
        self.held_up.lock().append(&mut held_up);
        self.held_up_count.fetch_sub(before - left, Ordering::SeqCst);
    }

    /// Answers a request that a worker is still at work for.
    fn answer_without(&self, unique: u64) {
        let Some(request) = self.in_flight.lock().by_unique.remove(&unique) else { return };
        // Before the answer: after it the thread's number may become another thread's.
        if let Some(waiting) = request.waiting {
            waiting.memory.give_up();
        }
        let out = uapi::fuse_ioctl_out { result: -(Errno::EINTR as i32), ..Default::default() };
        self.reply(request.way, unique, 0, &[uapi::bytes_of(&out)]);
    }

    /// Sends an unsolicited message (`FUSE_NOTIFY_*`). ENOENT: the kernel does not know its
    /// subject, or not any more.
    pub fn notify(&self, code: u32, parts: &[&[u8]]) -> Result<(), Errno> {
        self.try_write(0, code as i32, parts)
    }

    /// Wakes the pollers of the file with this handle (`fuse_poll_in.kh`).
    pub fn notify_poll(&self, handle: u64) {
        let wakeup = uapi::fuse_notify_poll_wakeup_out { kh: handle };
        if let Err(error) = self.notify(uapi::FUSE_NOTIFY_POLL, &[uapi::bytes_of(&wakeup)]) {
            log::debug!("{}: poll notification: {error}", self.name);
        }
    }

    fn reply(&self, way: Option<Box<dyn ReplyWay>>, unique: u64, error: i32, parts: &[&[u8]]) {
        match way {
            Some(way) => way.reply(unique, error, parts),
            None => self.write(unique, error, parts),
        }
    }

    fn write(&self, unique: u64, error: i32, parts: &[&[u8]]) {
        match self.try_write(unique, error, parts) {
            Ok(()) => {}
            // The request is gone: the session was aborted, or an interrupt came too late.
            Err(Errno::ENOENT | Errno::ENODEV | Errno::ECONNABORTED | Errno::EPIPE) => {
                log::debug!("{}: request {unique:#x} is gone", self.name);
            }
            Err(error) => {
                client_log!(
                    Kind::NotReplied,
                    "{}: reply to request {unique:#x}: {error}",
                    self.name
                );
            }
        }
    }

    fn try_write(&self, unique: u64, error: i32, parts: &[&[u8]]) -> Result<(), Errno> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let header = uapi::fuse_out_header {
            len: (size_of::<uapi::fuse_out_header>() + length) as u32,
            error,
            unique,
        };
        const PARTS: usize = 4;
        let mut slices = [IoSlice::new(&[]); PARTS];
        slices[0] = IoSlice::new(uapi::bytes_of(&header));
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        debug_assert!(parts.len() < PARTS);
        // A notification that is not sent is only lost; for a reply somebody waits for ever.
        let write = || {
            fault(Verb::Reply)?;
            nix::sys::uio::writev(&self.fd, &slices[..=parts.len()])
        };
        loop {
            match if unique == 0 { write() } else { shortage::retry(write) } {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// `FUSE_DEV_IOC_BACKING_OPEN`: registers `file` as a backing file for passthrough and returns
    /// its id. EPERM: no CAP_SYS_ADMIN, or INIT did not agree on passthrough; ENOTTY: before Linux
    /// 6.9.
    pub fn backing_open(&self, file: BorrowedFd<'_>) -> Result<i32, Errno> {
        let map = uapi::fuse_backing_map { fd: file.as_raw_fd(), ..Default::default() };
        // SAFETY: the kernel reads one `fuse_backing_map`, which lives until the call returns.
        let id = unsafe {
            libc::ioctl(self.fd.as_raw_fd(), uapi::FUSE_DEV_IOC_BACKING_OPEN as _, &raw const map)
        };
        Errno::result(id)
    }

    /// `FUSE_DEV_IOC_BACKING_CLOSE`: files that are open with that backing file keep it.
    pub fn backing_close(&self, id: i32) {
        // SAFETY: the kernel reads one `u32`, which lives until the call returns.
        let result = unsafe {
            libc::ioctl(self.fd.as_raw_fd(), uapi::FUSE_DEV_IOC_BACKING_CLOSE as _, &raw const id)
        };
        if let Err(error) = Errno::result(result) {
            log::debug!("{}: closing backing file {id}: {error}", self.name);
        }
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Session {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
