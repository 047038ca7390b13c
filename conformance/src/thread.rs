//! A thread of a process, with what is not a call to the driver: system calls, its open file, its
//! mapping, poll.

use super::library;
use super::scene::Scene;
use fakebinder_client::{Errno, uapi};
use fakebinder_sim::child::{self, Catch, Request, result as errno};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::cell::Cell;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Offset of the binder_write_read, the path to open and small arguments; then come the write
/// buffer, what its commands point to, and the read buffer.
pub(super) const ARGUMENT: usize = 0x100;
const PATH: usize = 0x400;
pub(super) const WRITE: usize = 0x1000;
pub(super) const DATA: usize = 0x2_0000;
pub(super) const READ: usize = 0x40_0000;
/// Offset of pages for a scene's own use, behind everything that reads fill.
pub(super) const PAGES: usize = 0x4f_0000;
pub(super) const MEMORY: usize = 0x50_0000;

/// How often other processes are let run before a wait begins to sleep: in an emulated machine,
/// waking up a CPU takes longer than what is waited for.
const YIELDS: usize = 100;
/// The size of the read buffer by default.
pub(super) const READ_SIZE: usize = 512;

/// An address that no process has mapped, and one of the kernel's.
pub(super) const NOWHERE: u64 = 0x10;
pub(super) const KERNEL: u64 = 0xffff_8880_0000_0000;

/// An open file of a child, and its mapping.
#[derive(Debug)]
pub(super) struct File {
    blocking: bool,
    fd: Cell<i32>,
    start: Cell<u64>,
    len: Cell<u64>,
}

impl File {
    pub(super) fn new(blocking: bool) -> File {
        let (start, len) = (Cell::new(0), Cell::new(0));
        File { blocking, fd: Cell::new(-1), start, len }
    }
}

/// The `binder_logs` of the directory that a device is in, or that its name is a link into.
fn logs_of(device: &Path) -> Option<PathBuf> {
    let target = std::fs::read_link(device).ok();
    let device = target.filter(|target| target.is_absolute()).unwrap_or_else(|| device.into());
    let logs = device.parent()?.join("binder_logs");
    logs.join("proc").is_dir().then_some(logs)
}

/// A thread of a child, and the open file that it works on.
#[derive(Clone)]
pub(super) struct Thread {
    pub(super) child: Rc<child::Thread>,
    pub(super) file: Rc<File>,
    device: Rc<Path>,
    patience: Duration,
}

impl Thread {
    pub(super) fn new(child: child::Thread, file: Rc<File>, scene: &Scene) -> Thread {
        child.memory().put(PATH, scene.device.as_os_str().as_bytes());
        let device = Rc::from(&*scene.device);
        Thread { child: Rc::new(child), file, device, patience: scene.patience }
    }

    pub(super) fn tid(&self) -> i32 {
        self.child.tid()
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.pid().as_raw()
    }

    pub(super) fn fd(&self) -> i32 {
        self.file.fd.get()
    }

    /// The address of its mapping.
    pub(super) fn start(&self) -> u64 {
        self.file.start.get()
    }

    // ------------------------------------------------------------ requests

    pub(super) fn begin(&self, request: Request) {
        self.child.begin(request);
    }

    /// Waits for the result of what the thread began.
    #[track_caller]
    pub(super) fn finish(&self) -> i64 {
        self.child.finish()
    }

    /// Whether the thread is done with what it began.
    pub(super) fn is_done(&self) -> bool {
        self.child.is_done_within(Duration::ZERO)
    }

    #[track_caller]
    pub(super) fn request(&self, request: Request) -> i64 {
        self.child.request(request)
    }

    /// Makes a system call.
    #[track_caller]
    pub(super) fn syscall(&self, number: i64, args: &[u64]) -> Result<i64, Errno> {
        self.child.system_call(number, args)
    }

    #[track_caller]
    pub(super) fn begin_syscall(&self, number: i64, args: &[u64]) {
        self.child.begin_system_call(number, args);
    }

    /// Waits until what the thread began waits in the driver.
    #[track_caller]
    pub(super) fn asleep(&self) {
        let task = format!("/proc/{}/task/{}", self.pid(), self.tid());
        let logs = logs_of(&self.device);
        self.until("the thread to sleep", || {
            assert!(!self.is_done(), "the call did not wait: {}", self.finish());
            let stat = std::fs::read_to_string(format!("{task}/stat")).unwrap_or_default();
            let call = std::fs::read_to_string(format!("{task}/syscall"));
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
                && call.map_or(true, |call| self.waits_in(&call, logs.as_deref()))
        });
    }

    /// Whether a thread that sleeps does so for what it asked the driver for, by what
    /// `/proc/PID/syscall` says of it. One that reads through a daemon sleeps before the daemon has
    /// its request, too: the device's log tells when it has.
    fn waits_in(&self, call: &str, logs: Option<&Path>) -> bool {
        let mut words = call.split_ascii_whitespace();
        let number = words.next().and_then(|word| word.parse::<i64>().ok());
        if number == Some(libc::SYS_ioctl) {
            let wanted = format!("{:#x}", uapi::BINDER_WRITE_READ);
            return words.nth(1) != Some(&wanted) || self.is_logged_as_waiting(logs) != Some(false);
        }
        number.is_some_and(|number| number != libc::SYS_recvfrom)
    }

    /// Whether the device's log says that the thread waits for work; none where there is no log.
    fn is_logged_as_waiting(&self, logs: Option<&Path>) -> Option<bool> {
        /// `BINDER_LOOPER_STATE_WAITING`.
        const WAITING: u32 = 0x10;
        let log = std::fs::read_to_string(logs?.join(format!("proc/{}", self.pid()))).ok()?;
        let thread = format!("thread {}: l ", self.tid());
        Some(log.lines().any(|line| {
            let state = line.trim_start().strip_prefix(&thread);
            let state = state.and_then(|rest| rest.split(' ').next());
            state.and_then(|state| u32::from_str_radix(state, 16).ok()).unwrap_or(0) & WAITING != 0
        }))
    }

    /// Waits until a condition holds.
    #[track_caller]
    pub(super) fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let began = Instant::now();
        let mut pause = Duration::from_micros(50);
        let mut tries = 0;
        while !condition() {
            assert!(began.elapsed() < self.patience, "waited in vain for {what}");
            // Mostly the condition depends on a thread that only needs this CPU.
            tries += 1;
            if tries < YIELDS {
                std::thread::yield_now();
                continue;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }

    /// Ends the thread, and its process if it is the first thread.
    pub(super) fn exit(&self) {
        self.begin(Request::Exit);
    }

    #[track_caller]
    pub(super) fn catch(&self, signal: Signal, how: Catch) {
        assert_eq!(self.request(Request::Catch(signal, how)), 0);
    }

    /// Sends a signal to this thread.
    pub(super) fn signal(&self, signal: Signal) {
        // nix has no tgkill; kill with a thread's id reaches the child that the thread belongs to.
        let _ = kill(Pid::from_raw(self.tid()), signal);
    }

    /// Stops the thread's process, and waits until it has stopped.
    #[track_caller]
    pub(super) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let status = format!("/proc/{}/stat", self.pid());
        self.until("the process to stop", || {
            std::fs::read_to_string(&status).is_ok_and(|stat| stat.contains(") T "))
        });
    }

    // ------------------------------------------------------------ the file

    /// Opens the device, with O_NONBLOCK unless the scene is about waiting.
    #[track_caller]
    pub(super) fn open(&self) {
        let nonblock = if self.file.blocking { 0 } else { libc::O_NONBLOCK };
        let fd = self.open_with(libc::O_RDWR | libc::O_CLOEXEC | nonblock).expect("open");
        self.file.fd.set(fd);
    }

    #[track_caller]
    pub(super) fn open_with(&self, flags: i32) -> Result<i32, Errno> {
        let path = self.child.memory().address(PATH);
        self.syscall(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, flags as u64, 0])
            .map(|fd| fd as i32)
    }

    /// Makes the thread work on this descriptor from now on.
    pub(super) fn adopt(&self, fd: i32) {
        self.file.fd.set(fd);
    }

    /// Opens the device once more, by the same thread: to the driver, a process of its own.
    #[track_caller]
    pub(super) fn open_again(&self) -> Thread {
        let again = Thread { file: Rc::new(File::new(false)), ..self.clone() };
        again.open();
        again
    }

    /// The same thread, working on another one's file (of its process, or of a parent).
    pub(super) fn with_file_of(&self, other: &Thread) -> Thread {
        Thread { file: Rc::clone(&other.file), ..self.clone() }
    }

    #[track_caller]
    pub(super) fn map(&self, size: u64) {
        self.map_with(size, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .expect("mmap");
    }

    /// Maps the device. Reads look into the last mapping that worked.
    #[track_caller]
    pub(super) fn map_with(&self, size: u64, prot: i32, flags: i32) -> Result<u64, Errno> {
        let address =
            errno(self.request(library::map_request(self.fd(), size, prot, flags)))? as u64;
        self.file.start.set(address);
        self.file.len.set(size);
        Ok(address)
    }

    #[track_caller]
    pub(super) fn unmap(&self) {
        self.syscall(libc::SYS_munmap, &[self.start(), self.file.len.get()]).expect("munmap");
    }

    /// Forgets what was written: zeroes the shared memory from the write buffer on.
    pub(super) fn clear(&self) {
        self.child.memory().clear(WRITE);
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

    /// Whether poll(2) finds the device readable, without waiting.
    #[track_caller]
    pub(super) fn polls(&self) -> bool {
        self.polls_for(0)
    }

    #[track_caller]
    pub(super) fn polls_for(&self, timeout_ms: i32) -> bool {
        self.begin_poll(timeout_ms);
        let ready = self.finish();
        assert!(ready >= 0, "poll gave {ready}");
        let revents = self.child.memory().get(ARGUMENT + 6, 2);
        assert!(ready == 0 || revents == [libc::POLLIN as u8, 0], "poll gave {revents:?}");
        ready == 1
    }

    pub(super) fn begin_poll(&self, timeout_ms: i32) {
        let mut pollfd = self.fd().to_ne_bytes().to_vec();
        pollfd.extend_from_slice(&libc::POLLIN.to_ne_bytes());
        pollfd.extend_from_slice(&[0, 0]);
        self.child.memory().put(ARGUMENT, &pollfd);
        let address = self.child.memory().address(ARGUMENT);
        self.begin_syscall(libc::SYS_poll, &[address, 1, timeout_ms as u64]);
    }
}
