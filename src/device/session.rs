//! A session: one descriptor on which the kernel sends requests and takes replies.
//!
//! A FUSE mount, a CUSE device and, in tests, one end of a socketpair are the same here. Requests
//! are read by the threads of a [pool](super::workers), handed to the [`Door`], and answered
//! through their [`Responder`], from any thread, at once or much later.
//!
//! Interrupts: a signal for a thread that waits for a reply makes the kernel send INTERRUPT,
//! which another worker may read before the worker that has read the request gets any further.
//! So a request is *in flight* from the moment it is decoded until its reply is written, and an
//! interrupt for a request that is not in flight is answered with EAGAIN: the kernel sends it
//! again if the request still waits, and drops it if it has been answered.
//!
//! **A fatal signal is always answered**, also when a copy to or from the caller's memory has not
//! come back. A request that an interrupt does not end is looked at again and again
//! ([`Session::answer_the_dying`]); once its thread cannot return to its program any more, it gets
//! its answer, and whoever is still at work for it finds that its memory is not to be touched and
//! its answer is not needed.
//!
//! Locks: the table of requests in flight, and the list of those that an interrupt did not end;
//! both are leaves: nothing is called and nothing written under them.

use super::signals;
use super::wire::{self, Forgotten, Header, Ioctl, Request};
use crate::client_log::{Caller, Kind, client_log};
use crate::client_mem::ProcessMemory;
use crate::lock_order::rank;
use crate::probe::{Verb, fault};
use crate::shortage::{self, is_shortage};
use crate::sync::Mutex;
use crate::{Errno, uapi};
use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use zerocopy::{Immutable, IntoBytes};

/// The protocol that this program speaks; the kernel speaks the older of both sides'.
pub const MAJOR: u32 = uapi::FUSE_KERNEL_VERSION;
/// 7.40 brought passthrough. Nothing newer is used, and what is older is told from INIT's flags.
pub const MINOR: u32 = 40;

/// Bytes to read a request into: the largest is an ioctl with what a retry has gathered, 32 pages.
pub const BUFFER_SIZE: usize = 32 * 4096 + 8192;

/// The bit by which the kernel names an INTERRUPT after the request that it is about.
const INTERRUPT_BIT: u64 = 1;

/// The kernel had no memory for us: a little later it may have.
fn out_of_breath(errno: &Errno) {
    shortage::note(errno);
    std::thread::sleep(Duration::from_millis(1));
}

/// What requests are handed to. Called by several threads at once.
pub trait Door: Send + Sync {
    fn request(&self, header: Header, request: Request<'_>, responder: Responder);
    /// A signal has arrived for the thread `tid`, which waits in an ioctl on the open file `fh`;
    /// [`Responder::interrupted`] already says so.
    fn interrupt(&self, fh: u64, tid: i32);
    /// The kernel no longer knows nodes that it has looked up.
    fn forget(&self, _forgotten: &Forgotten<'_>) {}
    /// The session has come to its end, and every open file with it.
    fn ended(&self) {}
}

/// A request that has been read and not been answered.
struct InFlight {
    /// If the request is an ioctl.
    waiting: Option<Waiting>,
    interrupted: bool,
}

/// The requests that have been read and not been answered.
#[derive(Default)]
struct InFlightTable {
    by_unique: HashMap<u64, InFlight>,
    /// The memory of threads that have called before: they call again and again.
    memories: HashMap<i32, Arc<ProcessMemory>>,
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

/// Who waits in an ioctl.
struct Waiting {
    /// The open file.
    fh: u64,
    tid: i32,
    memory: Arc<ProcessMemory>,
}

pub struct Session {
    fd: OwnedFd,
    /// For log lines: "fakebinder (FUSE)".
    name: String,
    in_flight: Mutex<InFlightTable, rank::InFlight>,
    /// Requests that an interrupt did not end at once, and their threads.
    held_up: Mutex<Vec<(u64, i32)>, rank::HeldUp>,
    /// How many they are.
    held_up_count: AtomicUsize,
}

impl Session {
    pub fn new(fd: OwnedFd, name: impl Into<String>) -> Arc<Session> {
        Arc::new(Session {
            fd,
            name: name.into(),
            in_flight: Mutex::default(),
            held_up: Mutex::default(),
            held_up_count: AtomicUsize::new(0),
        })
    }

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
                // ENOENT: the request was aborted while it was copied to us.
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOENT) => {}
                // The request is still there.
                Err(error) if is_shortage(error) => out_of_breath(&error),
                // Unmounted, or aborted.
                Err(Errno::ENODEV | Errno::ECONNABORTED | Errno::ENOTCONN) => return Ok(None),
                // Whatever this is, it must not be the end of every client at once.
                Err(error) if patience > 0 => {
                    patience -= 1;
                    out_of_breath(&error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Decodes a message and has it answered.
    pub fn dispatch(self: &Arc<Self>, message: &[u8], door: &dyn Door) {
        let (header, request) = match wire::decode(message) {
            Ok(decoded) => decoded,
            Err(malformed) => {
                client_log!(Kind::BadRequest, "{}: malformed request: {malformed}", self.name);
                if let Some(unique) = malformed.unique() {
                    self.write(unique, -(Errno::EINVAL as i32), &[]);
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
        let memory = self.begin(&header, waits_on);
        let responder = Responder { session: self.clone(), unique: header.unique, memory };
        door.request(header, request, responder);
    }

    /// A request is in flight from now on. For an ioctl on the open file `waits_on`: the caller's
    /// memory.
    fn begin(&self, header: &Header, waits_on: Option<u64>) -> Option<Arc<ProcessMemory>> {
        let mut in_flight = self.in_flight.lock();
        let memory = waits_on.map(|_| in_flight.memory_of(header.tid));
        let waiting = waits_on.zip(memory.clone()).map(|(fh, memory)| Waiting {
            fh,
            tid: header.tid,
            memory,
        });
        in_flight.by_unique.insert(header.unique, InFlight { waiting, interrupted: false });
        memory
    }

    /// What `fakebinderd -vv` logs of every request: not the bytes that came with it.
    fn trace(&self, unique: u64, tid: i32, request: &Request) {
        match request {
            Request::Ioctl(Ioctl { fh, cmd, .. }) => {
                log::trace!("{}: {unique:#x} of thread {tid}: ioctl {cmd:#x} on {fh}", self.name);
            }
            other => log::trace!("{}: {unique:#x} of thread {tid}: {other:?}", self.name),
        }
    }

    fn interrupt(&self, own_unique: u64, unique: u64, door: &dyn Door) {
        let waiting = {
            let mut in_flight = self.in_flight.lock();
            match in_flight.by_unique.get_mut(&unique) {
                Some(request) => {
                    request.interrupted = true;
                    request.waiting.as_ref().map(|waiting| (waiting.fh, waiting.tid))
                }
                None => {
                    drop(in_flight);
                    self.write(own_unique | INTERRUPT_BIT, -(Errno::EAGAIN as i32), &[]);
                    // Another thread has just read the request: let it go on.
                    std::thread::yield_now();
                    return;
                }
            }
        };
        let Some((fh, tid)) = waiting else { return };
        door.interrupt(fh, tid);
        if self.in_flight.lock().by_unique.contains_key(&unique) {
            self.held_up.lock().push((unique, tid));
            self.held_up_count.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn is_interrupted(&self, unique: u64) -> bool {
        self.in_flight.lock().by_unique.get(&unique).is_some_and(|request| request.interrupted)
    }

    /// Whether there are requests that an interrupt has not ended.
    pub fn is_held_up(&self) -> bool {
        self.held_up_count.load(Ordering::SeqCst) > 0
    }

    /// Answers those interrupted requests whose threads are about to die: they must not wait for
    /// a copy. EINTR, and nothing is copied out, for nobody looks at it.
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

    /// Answers a request that somebody is still at work for.
    fn answer_without(&self, unique: u64) {
        let Some(request) = self.in_flight.lock().by_unique.remove(&unique) else { return };
        // First: with the answer the thread's number may become another's.
        if let Some(waiting) = request.waiting {
            waiting.memory.give_up();
        }
        let out = uapi::fuse_ioctl_out { result: -(Errno::EINTR as i32), ..Default::default() };
        self.write(unique, 0, &[uapi::bytes_of(&out)]);
    }

    /// Sends an unsolicited message (`FUSE_NOTIFY_*`). ENOENT when the kernel knows nothing (more) of its subject.
    pub fn notify(&self, code: u32, parts: &[&[u8]]) -> Result<(), Errno> {
        self.try_write(0, code as i32, parts)
    }

    /// Wakes whoever polls the file with this handle (`fuse_poll_in.kh`).
    pub fn notify_poll(&self, handle: u64) {
        let wakeup = uapi::fuse_notify_poll_wakeup_out { kh: handle };
        if let Err(error) = self.notify(uapi::FUSE_NOTIFY_POLL, &[uapi::bytes_of(&wakeup)]) {
            log::debug!("{}: poll notification: {error}", self.name);
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
        // A notification that is not sent is lost; a reply, somebody waits for for ever.
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

    /// `FUSE_DEV_IOC_BACKING_OPEN`: lets files be opened in passthrough to `file`, by the id returned.
    /// EPERM without CAP_SYS_ADMIN or where INIT did not agree on passthrough, ENOTTY before 6.9.
    pub fn backing_open(&self, file: BorrowedFd<'_>) -> Result<i32, Errno> {
        let map = uapi::fuse_backing_map { fd: file.as_raw_fd(), ..Default::default() };
        // SAFETY: the kernel reads one `fuse_backing_map`, which lives until the call returns.
        let id = unsafe {
            libc::ioctl(self.fd.as_raw_fd(), uapi::FUSE_DEV_IOC_BACKING_OPEN as _, &raw const map)
        };
        Errno::result(id)
    }

    /// `FUSE_DEV_IOC_BACKING_CLOSE`: files that are open in passthrough stay so.
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

/// The one reply that a request gets. Dropped without one, it answers EIO, so that no client waits for ever.
pub struct Responder {
    session: Arc<Session>,
    unique: u64,
    /// The caller's memory, of an ioctl.
    memory: Option<Arc<ProcessMemory>>,
}

impl Responder {
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The memory of the calling thread, which an ioctl's argument points into; none for other
    /// requests.
    pub fn memory(&self) -> Option<Arc<ProcessMemory>> {
        self.memory.clone()
    }

    /// Whether the calling thread has got a signal since it asked.
    pub fn interrupted(&self) -> bool {
        self.session.is_interrupted(self.unique)
    }

    /// The same question, for later, when this has been given away.
    pub fn interrupted_later(&self) -> impl Fn() -> bool + use<> {
        let (session, unique) = (self.session.clone(), self.unique);
        move || session.is_interrupted(unique)
    }

    pub fn error(self, error: Errno) {
        self.finish(-(error as i32), &[]);
    }

    /// Success, with nothing to say.
    pub fn done(self) {
        self.finish(0, &[]);
    }

    pub fn value<T: IntoBytes + Immutable>(self, value: &T) {
        self.finish(0, &[uapi::bytes_of(value)]);
    }

    pub fn bytes(self, bytes: &[u8]) {
        self.finish(0, &[bytes]);
    }

    /// The second message of CUSE_INIT is the device's name; other replies have no second part.
    pub fn value_and_bytes<T: IntoBytes + Immutable>(self, value: &T, bytes: &[u8]) {
        self.finish(0, &[uapi::bytes_of(value), bytes]);
    }

    /// Ends an ioctl. `data` is copied out even when `result` is a negative error, which may be
    /// -512 (ERESTARTSYS): the kernel then restarts the ioctl or ends it with EINTR as SA_RESTART says.
    pub fn ioctl(self, result: i32, data: &[u8]) {
        let out = uapi::fuse_ioctl_out { result, ..Default::default() };
        self.value_and_bytes(&out, data);
    }

    /// Asks for the ioctl again (unrestricted only), with what lies at `input` in the caller, and
    /// room for `output`. At most 256 ranges and 128 KiB a direction.
    pub fn ioctl_again(self, input: &[uapi::fuse_ioctl_iovec], output: &[uapi::fuse_ioctl_iovec]) {
        let out = uapi::fuse_ioctl_out {
            result: 0,
            flags: uapi::FUSE_IOCTL_RETRY,
            in_iovs: input.len() as u32,
            out_iovs: output.len() as u32,
        };
        let ranges: Vec<u8> =
            input.iter().chain(output).flat_map(uapi::bytes_of).copied().collect();
        self.value_and_bytes(&out, &ranges);
    }

    fn finish(mut self, error: i32, parts: &[&[u8]]) {
        self.send(error, parts);
    }

    fn send(&mut self, error: i32, parts: &[&[u8]]) {
        let unique = std::mem::take(&mut self.unique);
        // First out of the table: once the reply is written, the kernel may use the number again.
        let waited_for = self.session.in_flight.lock().by_unique.remove(&unique).is_some();
        // Else its thread is dead, and was answered (`answer_the_dying`).
        if waited_for {
            self.session.write(unique, error, parts);
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.unique != 0 {
            client_log!(
                Kind::NotReplied,
                "{}: request {:#x} was dropped",
                self.session.name,
                self.unique
            );
            self.send(-(Errno::EIO as i32), &[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::message;
    use super::*;
    use crate::uapi::bytes_of;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::sync::mpsc;

    /// The kernel's end of a session.
    struct Kernel(OwnedFd);

    impl Kernel {
        fn send(&self, bytes: &[u8]) {
            nix::unistd::write(&self.0, bytes).unwrap();
        }

        /// Unique, error, and what follows.
        fn reply(&self) -> (u64, i32, Vec<u8>) {
            let mut buffer = [0; 4096];
            let length = nix::unistd::read(&self.0, &mut buffer).unwrap();
            let header: uapi::fuse_out_header = uapi::parse(&buffer).unwrap();
            assert_eq!(header.len as usize, length);
            (header.unique, header.error, buffer[16..length].to_vec())
        }
    }

    fn pair() -> (Kernel, Arc<Session>) {
        let (kernel, ours) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        (Kernel(kernel), Session::new(ours, "test"))
    }

    /// Parks ioctls, answers STATFS, refuses the rest; tells of interrupts.
    struct Parking {
        parked: mpsc::Sender<Responder>,
        interrupts: mpsc::Sender<(u64, i32)>,
    }

    impl Door for Parking {
        fn request(&self, _: Header, request: Request<'_>, responder: Responder) {
            match request {
                Request::Ioctl(_) => self.parked.send(responder).unwrap(),
                Request::StatFs => responder.done(),
                Request::Destroy => drop(responder),
                _ => responder.error(Errno::ENOSYS),
            }
        }
        fn interrupt(&self, fh: u64, tid: i32) {
            self.interrupts.send((fh, tid)).unwrap();
        }
    }

    struct Scene {
        kernel: Kernel,
        session: Arc<Session>,
        door: Parking,
        parked: mpsc::Receiver<Responder>,
        interrupts: mpsc::Receiver<(u64, i32)>,
    }

    impl Scene {
        fn new() -> Scene {
            let (kernel, session) = pair();
            let (park, parked) = mpsc::channel();
            let (tell, interrupts) = mpsc::channel();
            let door = Parking { parked: park, interrupts: tell };
            Scene { kernel, session, door, parked, interrupts }
        }

        /// The kernel sends; one worker takes it.
        fn request(&self, bytes: &[u8]) {
            self.kernel.send(bytes);
            let mut buffer = vec![0; BUFFER_SIZE];
            let message = self.session.receive(&mut buffer).unwrap().unwrap();
            self.session.dispatch(message, &self.door);
        }

        fn ioctl(&self, unique: u64, fh: u64, tid: u32) {
            let raw = uapi::fuse_ioctl_in { fh, ..Default::default() };
            self.request(&message(uapi::FUSE_IOCTL, unique, 1, tid, &[bytes_of(&raw)]));
        }

        fn interrupt(&self, unique: u64) {
            let raw = uapi::fuse_interrupt_in { unique };
            self.request(&message(uapi::FUSE_INTERRUPT, unique | 1, 0, 0, &[bytes_of(&raw)]));
        }
    }

    #[test]
    fn a_parked_ioctl_is_answered_by_another_thread_with_its_data() {
        let scene = Scene::new();
        scene.ioctl(10, 3, 77);
        let responder = scene.parked.recv().unwrap();
        std::thread::spawn(move || responder.ioctl(-512, &[1, 2, 3])).join().unwrap();
        let (unique, error, body) = scene.kernel.reply();
        assert_eq!((unique, error), (10, 0));
        let out: uapi::fuse_ioctl_out = uapi::parse(&body).unwrap();
        assert_eq!((out.result, &body[16..]), (-512, &[1, 2, 3][..]));
        assert!(scene.session.in_flight.lock().by_unique.is_empty());
    }

    #[test]
    fn an_interrupt_reaches_the_ioctl_that_waits() {
        let scene = Scene::new();
        scene.ioctl(10, 3, 77);
        scene.interrupt(10);
        assert_eq!(scene.interrupts.try_recv(), Ok((3, 77)));
        let responder = scene.parked.recv().unwrap();
        assert!(responder.interrupted());
        responder.ioctl(-512, &[]);
        assert_eq!(scene.kernel.reply().0, 10);
    }

    #[test]
    fn an_interrupt_ahead_of_its_request_is_sent_back() {
        let scene = Scene::new();
        scene.interrupt(10);
        assert_eq!(scene.kernel.reply(), (11, -(Errno::EAGAIN as i32), vec![]));
        assert!(scene.interrupts.try_recv().is_err());
        scene.ioctl(10, 3, 77);
        scene.interrupt(10);
        assert_eq!(scene.interrupts.try_recv(), Ok((3, 77)));
    }

    #[test]
    fn an_interrupt_after_the_reply_finds_nothing() {
        let scene = Scene::new();
        scene.ioctl(10, 3, 77);
        scene.parked.recv().unwrap().ioctl(0, &[]);
        assert_eq!(scene.kernel.reply().0, 10);
        scene.interrupt(10);
        assert_eq!(scene.kernel.reply().0, 11);
        assert!(scene.interrupts.try_recv().is_err());
    }

    #[test]
    fn an_unknown_request_is_answered_and_a_forget_is_not() {
        let scene = Scene::new();
        scene.request(&message(9999, 2, 1, 1, &[]));
        assert_eq!(scene.kernel.reply(), (2, -(Errno::ENOSYS as i32), vec![]));
        scene.request(&message(uapi::FUSE_FORGET, 4, 1, 1, &[&[0; 8]]));
        scene.request(&message(uapi::FUSE_STATFS, 6, 1, 1, &[]));
        assert_eq!(scene.kernel.reply(), (6, 0, vec![]));
    }

    #[test]
    fn a_malformed_request_is_refused_and_the_session_goes_on() {
        let scene = Scene::new();
        scene.request(&message(uapi::FUSE_IOCTL, 2, 1, 1, &[&[0; 31]]));
        assert_eq!(scene.kernel.reply(), (2, -(Errno::EINVAL as i32), vec![]));
        scene.request(&[1, 2, 3]);
        scene.request(&message(uapi::FUSE_STATFS, 4, 1, 1, &[]));
        assert_eq!(scene.kernel.reply().0, 4);
    }

    #[test]
    fn a_dropped_request_is_answered_with_an_error() {
        let scene = Scene::new();
        scene.request(&message(uapi::FUSE_DESTROY, 2, 1, 1, &[]));
        assert_eq!(scene.kernel.reply(), (2, -(Errno::EIO as i32), vec![]));
    }

    #[test]
    fn a_retry_lists_its_ranges_after_their_numbers() {
        let scene = Scene::new();
        scene.ioctl(10, 3, 77);
        let range = |base, len| uapi::fuse_ioctl_iovec { base, len };
        scene.parked.recv().unwrap().ioctl_again(&[range(1, 2), range(3, 4)], &[range(5, 6)]);
        let (_, _, body) = scene.kernel.reply();
        let out: uapi::fuse_ioctl_out = uapi::parse(&body).unwrap();
        assert_eq!((out.flags, out.in_iovs, out.out_iovs), (uapi::FUSE_IOCTL_RETRY, 2, 1));
        let last: uapi::fuse_ioctl_iovec = uapi::parse(&body[16 + 32..]).unwrap();
        assert_eq!((last.base, last.len, body.len()), (5, 6, 16 + 48));
    }

    #[test]
    fn a_notification_has_no_unique() {
        let (kernel, session) = pair();
        session.notify_poll(42);
        let (unique, code, body) = kernel.reply();
        assert_eq!((unique, code), (0, uapi::FUSE_NOTIFY_POLL as i32));
        assert_eq!(body, 42u64.to_ne_bytes());
    }

    #[test]
    fn a_session_ends_when_the_kernel_s_end_is_closed() {
        let (kernel, session) = pair();
        drop(kernel);
        assert_eq!(session.receive(&mut [0; 64]), Ok(None));
    }
}
