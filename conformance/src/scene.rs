//! A scene: processes that use a device, driven step by step by one script.
//!
//! The script is an ordinary function; a step that goes otherwise than expected panics, which
//! fails the test. Devices are opened with O_NONBLOCK unless a scene is about waiting, so that a
//! read shows what is there and nothing else.

use super::message::{Batch, Bc, Msg, lay_out};
use super::puppet::{self, Request};
use super::sys::{Arena, Catch, fork};
use fakebinder_client::Object;
use fakebinder_client::Transaction;
use fakebinder_client::{Errno, uapi};
use fakebinder_client::{Return, Returns};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::IoSliceMut;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The binder_write_read, the path to open and small arguments; then the write buffer, what its
/// commands point to, and the read buffer.
const ARGUMENT: usize = 0x100;
const PATH: usize = 0x400;
const WRITE: usize = 0x1000;
const DATA: usize = 0x2_0000;
const READ: usize = 0x40_0000;
/// Pages of a thread's own, behind whatever reads fill.
const PAGES: usize = 0x4f_0000;
const ARENA: usize = 0x50_0000;

/// How much a process maps unless told otherwise.
pub(super) const MAPPING: u64 = 128 << 10;
/// How often others are let run before a wait begins to sleep: in an emulated machine, to wake a
/// CPU up takes longer than what is waited for.
const YIELDS: usize = 100;
/// How much is read at a time unless told otherwise.
pub(super) const READ_SIZE: usize = 512;

/// An address that no process has, and one of the kernel's.
pub(super) const NOWHERE: u64 = 0x10;
pub(super) const KERNEL: u64 = 0xffff_8880_0000_0000;

/// Where a test takes place.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub(super) device: PathBuf,
    /// How long a step may take.
    pub(super) patience: Duration,
    /// Whether devices are opened without O_NONBLOCK.
    pub(super) blocking: bool,
    /// Whether processes get ready for files in transactions, where that is needed.
    pub(super) files: bool,
}

impl Scene {
    /// The same place, for processes that wait.
    pub(super) fn blocking(&self) -> Scene {
        Scene { blocking: true, ..self.clone() }
    }

    /// A process with one thread that has done nothing yet.
    pub(super) fn bare(&self) -> Process {
        self.puppet(1, 0)
    }

    /// A process that has opened and mapped the device.
    pub(super) fn process(&self) -> Process {
        self.process_with(1)
    }

    /// The same, with several threads.
    pub(super) fn process_with(&self, threads: usize) -> Process {
        let process = self.puppet(threads, 0);
        process.open();
        process.map(MAPPING);
        process
    }

    /// The context manager: waits until the last one has gone.
    pub(super) fn manager(&self) -> Process {
        self.manager_with(1, 0)
    }

    /// The context manager, with several threads and flags for its node.
    pub(super) fn manager_with(&self, threads: usize, flags: u32) -> Process {
        let process = self.process_with(threads);
        process.become_manager_with(flags);
        process
    }

    /// A process that has `threads` threads and may fork `spares` times.
    pub(super) fn puppet(&self, threads: usize, spares: usize) -> Process {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..threads + spares {
            let (a, b) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty())
                    .expect("socketpair");
            let patience = TimeVal::milliseconds(self.patience.as_millis() as i64);
            setsockopt(&a, ReceiveTimeout, &patience).expect("a socket");
            let arena = Arena::new(ARENA).expect("arena");
            arena.put(PATH, self.device.as_os_str().as_bytes());
            ours.push((a, arena));
            theirs.push(b);
        }
        let numbers: Vec<_> = theirs.iter().map(|socket| socket.as_raw_fd()).collect();
        let pid =
            fork(move || puppet::live(numbers[..threads].to_vec(), numbers[threads..].to_vec()))
                .expect("fork");
        drop(theirs);
        let files = self.files && self.door() != Door::Kernel;
        let file = Rc::new(File { blocking: self.blocking, files, ..File::default() });
        let mut handles: Vec<_> = ours
            .into_iter()
            .map(|(socket, arena)| Thread {
                channel: Rc::new(Channel {
                    socket,
                    arena,
                    pid: Cell::new(pid),
                    tid: Cell::new(0),
                    busy: Cell::new(true),
                    patience: self.patience,
                    doing: RefCell::new("starting".to_owned()),
                }),
                file: Rc::clone(&file),
            })
            .collect();
        let spares = handles.split_off(threads);
        for thread in &handles {
            thread.channel.tid.set(thread.finish() as i32);
        }
        Process { pid, threads: handles, spares: RefCell::new(spares), gone: Cell::new(false) }
    }

    /// Kills a process and waits until the driver has released it, in the eyes of a witness.
    ///
    /// The driver releases closed files in its own time, one after another. It begins with
    /// taking the process off the list that BINDER_GET_FROZEN_INFO looks at: when another file,
    /// closed after that, is off the list too, the release is done.
    #[track_caller]
    pub(super) fn bury(&self, dead: &Process, witness: &Thread) {
        dead.kill();
        self.released(dead.pid, witness);
    }

    /// Waits until no file of that process is known to the driver, and its release is done.
    #[track_caller]
    pub(super) fn released(&self, pid: Pid, witness: &Thread) {
        let gone = |pid: Pid| {
            let mut words = [pid.as_raw() as u32, 0, 0];
            witness.ioctl_words(uapi::BINDER_GET_FROZEN_INFO, &mut words) == Err(Errno::EINVAL)
        };
        witness.until("a release to begin", || gone(pid));
        let broom = self.bare();
        broom.open();
        broom.kill();
        witness.until("a release to end", || gone(broom.pid));
    }

    /// Which kind of device this is.
    pub(super) fn door(&self) -> Door {
        door(&self.device)
    }

    /// Whether the driver is this kernel's, of that version or newer, or one that is to do what
    /// the newest does. For rules whose absence nothing else would show.
    pub(super) fn driver_is_at_least(&self, major: u32, minor: u32) -> bool {
        let release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
        let running: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        self.door() != Door::Kernel || running >= (major, minor)
    }

    /// A node of `owner` becomes known to the manager: gives the manager's handle, strong and
    /// acquired. All that this leaves behind is the handle, and the node's first references.
    pub(super) fn introduce(&self, owner: &Thread, manager: &Thread, ptr: u64, cookie: u64) -> u32 {
        self.introduce_with(owner, manager, ptr, cookie, 0)
    }

    /// The same for a node with flags.
    #[track_caller]
    pub(super) fn introduce_with(
        &self,
        owner: &Thread,
        manager: &Thread,
        ptr: u64,
        cookie: u64,
        flags: u32,
    ) -> u32 {
        use super::message::*;
        owner.write(call(0).object(Object::Binder { ptr, cookie, flags }));
        let got = manager.receive();
        let handle = got.handle(0);
        manager.write([acquire(handle), free(got.transaction.buffer), reply().into()]);
        manager.reads("NOOP TRANSACTION_COMPLETE");
        let answer = owner.waits(&format!(
            "NOOP INCREFS({ptr},{cookie}) ACQUIRE({ptr},{cookie}) TRANSACTION_COMPLETE REPLY"
        ));
        owner.write([
            increfs_done(ptr, cookie),
            acquire_done(ptr, cookie),
            free(answer.transaction().buffer),
        ]);
        handle
    }
}

/// Which kind of device a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The kernel's driver.
    Kernel,
    /// A character device in userspace.
    Cuse,
    /// A file of a FUSE mount.
    Fuse,
}

pub(super) fn door(device: &Path) -> Door {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Ok(metadata) = std::fs::metadata(device) else { return Door::Kernel };
    if !metadata.file_type().is_char_device() {
        return Door::Fuse;
    }
    let (major, minor) =
        (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
    let link = std::fs::canonicalize(format!("/sys/dev/char/{major}:{minor}"));
    let cuse =
        link.is_ok_and(|path| path.components().any(|part| part.as_os_str() == OsStr::new("cuse")));
    if cuse { Door::Cuse } else { Door::Kernel }
}

/// An open file of a puppet, and its mapping.
#[derive(Debug)]
struct File {
    blocking: bool,
    files: bool,
    fd: Cell<i32>,
    start: Cell<u64>,
    len: Cell<u64>,
}

impl Default for File {
    fn default() -> File {
        File {
            blocking: false,
            files: false,
            fd: Cell::new(-1),
            start: Cell::new(0),
            len: Cell::new(0),
        }
    }
}

struct Channel {
    socket: OwnedFd,
    arena: Arena,
    pid: Cell<Pid>,
    tid: Cell<i32>,
    busy: Cell<bool>,
    patience: Duration,
    doing: RefCell<String>,
}

/// A process of a scene; its first thread's methods are its own. Killed when dropped.
pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) threads: Vec<Thread>,
    spares: RefCell<Vec<Thread>>,
    gone: Cell<bool>,
}

impl Deref for Process {
    type Target = Thread;

    fn deref(&self) -> &Thread {
        &self.threads[0]
    }
}

impl Process {
    /// Ends it by SIGKILL, and waits until it is gone. The driver's release may still be on.
    pub(super) fn kill(&self) {
        if !self.gone.replace(true) {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }

    /// A child process, which has what its parent had when it was forked: its open files above
    /// all.
    #[track_caller]
    pub(super) fn fork(&self) -> Thread {
        let child = self.spares.borrow_mut().pop().expect("a spare");
        let index = self.spares.borrow().len();
        let pid = self.request(Request::Fork(index));
        assert!(pid > 0, "fork gave {pid}");
        child.channel.pid.set(Pid::from_raw(pid as i32));
        child.channel.tid.set(child.finish() as i32);
        child
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A thread of a puppet, and the open file that it works on.
#[derive(Clone)]
pub(super) struct Thread {
    channel: Rc<Channel>,
    file: Rc<File>,
}

/// What a BINDER_WRITE_READ did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Io {
    pub(super) result: Result<(), Errno>,
    /// `write_consumed` and `read_consumed`.
    pub(super) written: u64,
    pub(super) filled: u64,
}

/// What a read gave: in words, and taken apart.
#[derive(Debug, Clone)]
pub(super) struct Reads {
    pub(super) text: String,
    pub(super) returns: Vec<Return>,
    pub(super) received: Vec<Received>,
}

/// A transaction or reply with its data, copied out of the receiver's mapping.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) transaction: Transaction,
    /// Whether its buffer is there.
    pub(super) readable: bool,
    pub(super) data: Vec<u8>,
    pub(super) offsets: Vec<u64>,
    /// Where its buffer lies in the mapping.
    pub(super) at: u64,
}

impl Deref for Received {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        &self.transaction
    }
}

impl Received {
    /// The object that the offset of this index names.
    #[track_caller]
    pub(super) fn object(&self, index: usize) -> Object {
        let offset = self.offsets[index] as usize;
        Object::decode(&self.data[offset..]).expect("an object")
    }

    /// The handle at this index.
    #[track_caller]
    pub(super) fn handle(&self, index: usize) -> u32 {
        match self.object(index) {
            Object::Handle { handle, .. } | Object::WeakHandle { handle, .. } => handle,
            other => panic!("expected a handle, got {other:?}"),
        }
    }
}

impl Reads {
    /// Its transaction or reply.
    #[track_caller]
    pub(super) fn transaction(&self) -> &Received {
        let first = self.received.first();
        let first = first.unwrap_or_else(|| panic!("no transaction in {}", self.text));
        assert!(first.readable, "the buffer of {:x?} cannot be read", first.transaction);
        first
    }
}

/// A return as the scenes write it: the name without `BR_`, and the payload of the small ones.
pub(super) fn in_words(what: &Return) -> String {
    let mut text = what.name().trim_start_matches("BR_").to_owned();
    match what {
        Return::Increfs { ptr, cookie }
        | Return::Acquire { ptr, cookie }
        | Return::Release { ptr, cookie }
        | Return::Decrefs { ptr, cookie } => {
            let _ = write!(text, "({ptr},{cookie})");
        }
        Return::DeadBinder(cookie)
        | Return::ClearDeathNotificationDone(cookie)
        | Return::ClearFreezeNotificationDone(cookie) => {
            let _ = write!(text, "({cookie})");
        }
        Return::FrozenBinder { cookie, is_frozen } => {
            let _ = write!(text, "({cookie},{is_frozen})");
        }
        Return::Error(errno) => {
            let _ = write!(text, "({errno})");
        }
        Return::Unknown(number) => {
            let _ = write!(text, "({number:#x})");
        }
        _ => {}
    }
    text
}

impl Thread {
    pub(super) fn tid(&self) -> i32 {
        self.channel.tid.get()
    }

    pub(super) fn pid(&self) -> i32 {
        self.channel.pid.get().as_raw()
    }

    pub(super) fn fd(&self) -> i32 {
        self.file.fd.get()
    }

    /// Where its mapping begins.
    pub(super) fn start(&self) -> u64 {
        self.file.start.get()
    }

    // ------------------------------------------------------------ requests

    pub(super) fn begin(&self, request: Request) {
        assert!(!self.channel.busy.replace(true), "the thread is in a call already");
        *self.channel.doing.borrow_mut() = format!("{request:x?}");
        // A dead puppet is noticed when its answer is read.
        let _ = send(self.channel.socket.as_raw_fd(), &request.encode(), MsgFlags::MSG_NOSIGNAL);
    }

    /// The result of what the thread began, once there is one; `Err` when the process is gone.
    fn answer(&self) -> Option<Result<i64, Errno>> {
        let mut bytes = [0; 8];
        match recv(self.channel.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Err(Errno::EAGAIN) => None,
            Ok(8) => {
                self.channel.busy.set(false);
                Some(Ok(i64::from_ne_bytes(bytes)))
            }
            Ok(_) => Some(Err(Errno::ESRCH)),
            Err(errno) => Some(Err(errno)),
        }
    }

    /// Waits for the result of what the thread began.
    #[track_caller]
    pub(super) fn finish(&self) -> i64 {
        match self.answer() {
            Some(Ok(result)) => result,
            Some(Err(_)) => {
                panic!("process {} died in {}", self.pid(), self.channel.doing.borrow())
            }
            None => panic!("thread {} hangs in {}", self.tid(), self.channel.doing.borrow()),
        }
    }

    /// Whether what the thread began is done.
    pub(super) fn is_done(&self) -> bool {
        let mut files = [PollFd::new(self.channel.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut files, PollTimeout::ZERO) == Ok(1)
    }

    #[track_caller]
    pub(super) fn request(&self, request: Request) -> i64 {
        self.begin(request);
        self.finish()
    }

    /// A system call.
    #[track_caller]
    pub(super) fn syscall(&self, number: i64, args: &[u64]) -> Result<i64, Errno> {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        errno(self.request(Request::Call(number as u64, all)))
    }

    /// Waits until what the thread began has put it to sleep in the kernel.
    #[track_caller]
    pub(super) fn asleep(&self) {
        let status = format!("/proc/{}/task/{}/stat", self.pid(), self.tid());
        self.until("the thread to sleep", || {
            assert!(!self.is_done(), "the call did not wait: {}", self.finish());
            let stat = std::fs::read_to_string(&status).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
                && std::fs::read_to_string(format!(
                    "/proc/{}/task/{}/syscall",
                    self.pid(),
                    self.tid()
                ))
                .map_or(true, |call| {
                    !call.starts_with(&format!("{} ", libc::SYS_recvfrom)) && call != "running\n"
                })
        });
    }

    /// Waits for a condition.
    #[track_caller]
    pub(super) fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let began = Instant::now();
        let mut pause = Duration::from_micros(50);
        let mut tries = 0;
        while !condition() {
            assert!(began.elapsed() < self.channel.patience, "waited in vain for {what}");
            // Most of it is done by a thread that only needs this CPU.
            tries += 1;
            if tries < YIELDS {
                std::thread::yield_now();
                continue;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }

    /// Ends the thread (its process, if it is the first).
    pub(super) fn exit(&self) {
        self.begin(Request::Exit);
    }

    #[track_caller]
    pub(super) fn catch(&self, signal: Signal, how: Catch) {
        assert_eq!(self.request(Request::Catch(signal, how)), 0);
    }

    /// Sends a signal to this thread.
    pub(super) fn signal(&self, signal: Signal) {
        let (pid, tid) = (self.pid(), self.tid());
        // nix has no tgkill: the puppet that gets the signal is the only one of its group.
        let _ = (pid, kill(Pid::from_raw(tid), signal));
    }

    // ------------------------------------------------------------ the file

    /// Opens the device, O_NONBLOCK unless the scene is one of waiting.
    #[track_caller]
    pub(super) fn open(&self) {
        let nonblock = if self.file.blocking { 0 } else { libc::O_NONBLOCK };
        let fd = self.open_with(libc::O_RDWR | libc::O_CLOEXEC | nonblock).expect("open");
        self.file.fd.set(fd);
    }

    #[track_caller]
    pub(super) fn open_with(&self, flags: i32) -> Result<i32, Errno> {
        let path = self.channel.arena.address(PATH);
        self.syscall(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, flags as u64, 0])
            .map(|fd| fd as i32)
    }

    /// Works on this descriptor from now on.
    pub(super) fn adopt(&self, fd: i32) {
        self.file.fd.set(fd);
    }

    /// Another open of the device by the same thread: a process of its own, to the driver.
    #[track_caller]
    pub(super) fn open_again(&self) -> Thread {
        let again = Thread { channel: Rc::clone(&self.channel), file: Rc::default() };
        again.open();
        again
    }

    /// The same thread at work on the file of another one (of its process, or a parent's).
    pub(super) fn with_file_of(&self, other: &Thread) -> Thread {
        Thread { channel: Rc::clone(&self.channel), file: Rc::clone(&other.file) }
    }

    #[track_caller]
    pub(super) fn map(&self, size: u64) {
        self.map_with(size, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .expect("mmap");
        if self.file.files {
            let accept = Request::AcceptFiles { fd: self.fd(), slots: 8 };
            assert_eq!(self.request(accept), 0, "getting ready for files");
        }
    }

    /// Maps the device; the last mapping that worked is the one that reads look into.
    #[track_caller]
    pub(super) fn map_with(&self, size: u64, prot: i32, flags: i32) -> Result<u64, Errno> {
        let address =
            errno(self.request(Request::Map { fd: self.fd(), size, prot, flags }))? as u64;
        self.file.start.set(address);
        self.file.len.set(size);
        Ok(address)
    }

    #[track_caller]
    pub(super) fn unmap(&self) {
        self.syscall(libc::SYS_munmap, &[self.start(), self.file.len.get()]).expect("munmap");
    }

    /// Forgets what was written: the arena is zero again from the write buffer on.
    pub(super) fn clear(&self) {
        self.channel.arena.clear(WRITE);
    }

    /// Closes the device.
    #[track_caller]
    pub(super) fn close(&self) {
        self.syscall(libc::SYS_close, &[self.fd() as u64]).expect("close");
    }

    #[track_caller]
    pub(super) fn set_nonblock(&self, nonblock: bool) {
        let flags = libc::O_RDWR | if nonblock { libc::O_NONBLOCK } else { 0 };
        self.syscall(libc::SYS_fcntl, &[self.fd() as u64, libc::F_SETFL as u64, flags as u64])
            .expect("fcntl");
    }

    /// Whether poll(2) finds the device readable, at once.
    #[track_caller]
    pub(super) fn polls(&self) -> bool {
        self.polls_for(0)
    }

    #[track_caller]
    pub(super) fn polls_for(&self, timeout_ms: i32) -> bool {
        self.begin_poll(timeout_ms);
        let ready = self.finish();
        assert!(ready >= 0, "poll gave {ready}");
        let revents = self.channel.arena.get(ARGUMENT + 6, 2);
        assert!(ready == 0 || revents == [libc::POLLIN as u8, 0], "poll gave {revents:?}");
        ready == 1
    }

    pub(super) fn begin_poll(&self, timeout_ms: i32) {
        let mut pollfd = self.fd().to_ne_bytes().to_vec();
        pollfd.extend_from_slice(&libc::POLLIN.to_ne_bytes());
        pollfd.extend_from_slice(&[0, 0]);
        self.channel.arena.put(ARGUMENT, &pollfd);
        let address = self.channel.arena.address(ARGUMENT);
        self.begin(Request::Call(libc::SYS_poll as u64, [address, 1, timeout_ms as u64, 0, 0, 0]));
    }

    // ------------------------------------------------------------ ioctls

    /// An ioctl with any argument.
    #[track_caller]
    pub(super) fn ioctl_at(&self, command: u32, address: u64) -> Result<i64, Errno> {
        self.syscall(libc::SYS_ioctl, &[self.fd() as u64, u64::from(command), address])
    }

    /// An ioctl with these bytes as its argument, which it may change.
    #[track_caller]
    pub(super) fn ioctl(&self, command: u32, argument: &mut [u8]) -> Result<i64, Errno> {
        self.channel.arena.put(ARGUMENT, argument);
        let result = self.ioctl_at(command, self.channel.arena.address(ARGUMENT));
        argument.copy_from_slice(&self.channel.arena.get(ARGUMENT, argument.len()));
        result
    }

    /// An ioctl whose argument is these 32-bit words, which it may change.
    #[track_caller]
    pub(super) fn ioctl_words(&self, command: u32, words: &mut [u32]) -> Result<i64, Errno> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let result = self.ioctl(command, &mut bytes);
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        result
    }

    /// Puts bytes where arguments lie; gives their address in the puppet.
    pub(super) fn put(&self, bytes: &[u8]) -> u64 {
        self.channel.arena.put(ARGUMENT, bytes);
        self.channel.arena.address(ARGUMENT)
    }

    /// Puts bytes right before the page that nobody may touch; gives their address.
    pub(super) fn put_at_edge(&self, bytes: &[u8]) -> u64 {
        let at = self.channel.arena.len() - bytes.len();
        self.channel.arena.put(at, bytes);
        self.channel.arena.address(at)
    }

    /// Puts bytes at an address of the arena.
    pub(super) fn put_at(&self, address: u64, bytes: &[u8]) {
        self.channel.arena.put((address - self.channel.arena.address(0)) as usize, bytes);
    }

    /// Pages of the arena for whatever a scene wants them, 16 of them.
    pub(super) fn pages(&self) -> u64 {
        self.channel.arena.address(PAGES)
    }

    /// Bytes of the arena, as the puppet left them.
    pub(super) fn get(&self, address: u64, len: usize) -> Vec<u8> {
        self.channel.arena.get((address - self.channel.arena.address(0)) as usize, len)
    }

    /// Makes this process the context manager, as soon as the last one is gone.
    #[track_caller]
    pub(super) fn become_manager_with(&self, flags: u32) {
        self.until("the last context manager to go", || {
            let result = if flags == 0 {
                self.ioctl_words(uapi::BINDER_SET_CONTEXT_MGR, &mut [0])
            } else {
                self.set_context_manager_ext(0, 0, flags)
            };
            match result {
                Ok(_) => true,
                Err(Errno::EBUSY) => false,
                Err(errno) => panic!("BINDER_SET_CONTEXT_MGR: {errno}"),
            }
        });
    }

    #[track_caller]
    pub(super) fn set_context_manager_ext(
        &self,
        ptr: u64,
        cookie: u64,
        flags: u32,
    ) -> Result<i64, Errno> {
        let mut object = Vec::new();
        Object::Binder { ptr, cookie, flags }.encode(&mut object);
        self.ioctl(uapi::BINDER_SET_CONTEXT_MGR_EXT, &mut object)
    }

    /// `BINDER_GET_EXTENDED_ERROR`: command (by its name) and param.
    #[track_caller]
    pub(super) fn extended_error(&self) -> (&'static str, i32) {
        let mut words = [0; 3];
        self.ioctl_words(uapi::BINDER_GET_EXTENDED_ERROR, &mut words).expect("extended error");
        let bytes = words[1].to_ne_bytes();
        let name = Returns::new(&bytes).next().map_or("none", |what| what.name());
        (name.trim_start_matches("BR_"), words[2] as i32)
    }

    #[track_caller]
    pub(super) fn thread_exit(&self) {
        self.ioctl_words(uapi::BINDER_THREAD_EXIT, &mut [0]).expect("BINDER_THREAD_EXIT");
    }

    #[track_caller]
    pub(super) fn set_max_threads(&self, threads: u32) {
        self.ioctl_words(uapi::BINDER_SET_MAX_THREADS, &mut [threads]).expect("max threads");
    }

    // ------------------------------------------------------------ BINDER_WRITE_READ

    /// `BINDER_WRITE_READ` with this structure, in any state; it is updated.
    #[track_caller]
    pub(super) fn write_read_raw(&self, bwr: &mut [u64; 6]) -> Result<(), Errno> {
        let mut bytes: Vec<u8> = bwr.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let result = self.ioctl(uapi::BINDER_WRITE_READ, &mut bytes).map(drop);
        for (word, bytes) in bwr.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        }
        result
    }

    /// Puts commands into the arena: the write buffer's address and size.
    pub(super) fn lay_out(&self, batch: &Batch) -> (u64, u64) {
        let commands = lay_out(batch, &self.channel.arena, DATA);
        assert!(commands.len() <= DATA - WRITE);
        self.channel.arena.put(WRITE, &commands);
        (self.channel.arena.address(WRITE), commands.len() as u64)
    }

    /// Begins a BINDER_WRITE_READ, which may wait.
    pub(super) fn begin_write_read(&self, batch: impl Into<Batch>, read_size: usize) {
        let (write, size) = self.lay_out(&batch.into());
        let read = self.channel.arena.address(READ);
        let words = [size, 0, write, read_size as u64, 0, read];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.channel.arena.put(ARGUMENT, &bytes);
        let argument = self.channel.arena.address(ARGUMENT);
        let command = u64::from(uapi::BINDER_WRITE_READ);
        self.begin(Request::Call(
            libc::SYS_ioctl as u64,
            [self.fd() as u64, command, argument, 0, 0, 0],
        ));
    }

    #[track_caller]
    pub(super) fn finish_write_read(&self) -> (Io, Reads) {
        let (io, filled) = self.finish_write_read_bytes();
        (io.clone(), self.take_apart(&io, &filled))
    }

    #[track_caller]
    fn finish_write_read_bytes(&self) -> (Io, Vec<u8>) {
        let result = errno(self.finish()).map(drop);
        let word = |index: usize| {
            let bytes = self.channel.arena.get(ARGUMENT + index * 8, 8);
            u64::from_ne_bytes(bytes.try_into().unwrap_or_default())
        };
        let io = Io { result, written: word(1), filled: word(4) };
        let filled = self.channel.arena.get(READ, (io.filled as usize).min(ARENA - READ));
        (io, filled)
    }

    /// Reads once, and leaves what was read as it is.
    #[track_caller]
    pub(super) fn read_bytes(&self) -> (Io, Vec<u8>) {
        self.begin_write_read(Batch::default(), READ_SIZE);
        self.finish_write_read_bytes()
    }

    /// Writes and reads, in one ioctl.
    #[track_caller]
    pub(super) fn write_read(&self, batch: impl Into<Batch>, read_size: usize) -> (Io, Reads) {
        self.begin_write_read(batch, read_size);
        self.finish_write_read()
    }

    /// Writes commands, all of which must be taken.
    #[track_caller]
    pub(super) fn write(&self, batch: impl Into<Batch>) {
        let batch = batch.into();
        let (_, size) = self.lay_out(&batch);
        let io = self.tries(batch);
        assert_eq!(io, Io { result: Ok(()), written: size, filled: 0 });
    }

    /// Writes commands, wrong ones too.
    #[track_caller]
    pub(super) fn tries(&self, batch: impl Into<Batch>) -> Io {
        self.write_read(batch, 0).0
    }

    /// Reads once: "EAGAIN" when there is nothing.
    #[track_caller]
    pub(super) fn read(&self) -> Reads {
        self.write_read(Batch::default(), READ_SIZE).1
    }

    /// Reads once, and expects just this.
    #[track_caller]
    pub(super) fn reads(&self, expected: &str) -> Reads {
        let reads = self.read();
        assert_eq!(reads.text, expected);
        reads
    }

    /// Waits for something to read (the driver releases processes in its own time), and expects
    /// just this.
    #[track_caller]
    pub(super) fn waits(&self, expected: &str) -> Reads {
        let reads = self.read_soon();
        assert_eq!(reads.text, expected);
        reads
    }

    /// Waits for something to read.
    #[track_caller]
    pub(super) fn read_soon(&self) -> Reads {
        let mut reads = self.read();
        self.until("something to read", || {
            if reads.text == "EAGAIN" || reads.text == "NOOP" {
                reads = self.read();
            }
            reads.text != "EAGAIN" && reads.text != "NOOP"
        });
        reads
    }

    /// Reads a transaction, and nothing but that.
    #[track_caller]
    pub(super) fn receive(&self) -> Received {
        let reads = self.waits("NOOP TRANSACTION");
        reads.transaction().clone()
    }

    /// Copies bytes out of the puppet: EFAULT where it has none.
    pub(super) fn peek(&self, address: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len];
        if len > 0 {
            let remote = [RemoteIoVec { base: address as usize, len }];
            let mut local = [IoSliceMut::new(&mut bytes)];
            let copied = process_vm_readv(self.channel.pid.get(), &mut local, &remote)?;
            bytes.truncate(copied);
            if copied < len {
                return Err(Errno::EFAULT);
            }
        }
        Ok(bytes)
    }

    #[track_caller]
    fn take_apart(&self, io: &Io, filled: &[u8]) -> Reads {
        let returns: Vec<_> = Returns::new(filled).collect();
        let mut received = Vec::new();
        let mut words: Vec<String> = returns.iter().map(in_words).collect();
        for what in &returns {
            if let Return::Transaction(transaction)
            | Return::TransactionSecCtx(transaction)
            | Return::Reply(transaction) = what
            {
                let data = self.peek(transaction.buffer, transaction.data_size as usize);
                let offsets = self.peek(transaction.offsets, transaction.offsets_size as usize);
                let readable = data.is_ok() && offsets.is_ok();
                let (data, offsets) = (data.unwrap_or_default(), offsets.unwrap_or_default());
                received.push(Received {
                    transaction: *transaction,
                    readable,
                    data,
                    offsets: offsets
                        .chunks_exact(8)
                        .map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap_or_default()))
                        .collect(),
                    at: transaction.buffer.wrapping_sub(self.start()),
                });
            }
        }
        if let Err(errno) = io.result {
            words.push(format!("{errno:?}"));
        }
        Reads { text: words.join(" "), returns, received }
    }
}

/// The raw result of a system call.
pub(super) fn errno(result: i64) -> Result<i64, Errno> {
    if result < 0 { Err(Errno::from_raw(-result as i32)) } else { Ok(result) }
}

/// A message as the only command.
impl From<&Msg> for Batch {
    fn from(message: &Msg) -> Batch {
        Batch(vec![Bc::Send(message.clone())])
    }
}

impl Thread {
    /// Reads a call with whatever comes before it.
    #[track_caller]
    pub(super) fn read_call(&self) -> Received {
        self.read_soon().transaction().clone()
    }

    pub(super) fn begin_ioctl_words(&self, command: u32, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let address = self.put(&bytes);
        self.begin_syscall(libc::SYS_ioctl, &[self.fd() as u64, u64::from(command), address]);
    }

    pub(super) fn begin_syscall(&self, number: i64, args: &[u64]) {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        self.begin(Request::Call(number as u64, all));
    }
}
