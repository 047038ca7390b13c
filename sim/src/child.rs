//! Child processes that make the system calls that they are told to, and return the results.
//!
//! Each thread of a child has a socket to the process that drives it (a [`Request`], then a result)
//! and [memory](SharedMemory) that both have at the same address, for whatever the system calls
//! point to. The driving process fills and reads that memory by itself. So a child knows nothing of
//! what it does: one place decides, step by step, what is right or wrong, and a thread that hangs
//! in the kernel hangs alone.

mod memory;
mod request;
mod serve;
#[allow(unsafe_code, reason = "processes and system calls that are wrong on purpose")]
mod sys;

pub use memory::SharedMemory;
pub use request::{Catch, Request};
pub use serve::{CarryOut, make_system_calls};
pub use sys::{borrow, fork, stay_on};

use nix::errno::Errno;
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
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// What a child is made with.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// How many threads.
    pub threads: usize,
    /// How often it may be told to fork.
    pub spares: usize,
    /// Bytes of memory that each thread shares with this process, a multiple of the page size.
    pub memory: usize,
    /// Open files, besides the standard ones. Their numbers in the child are
    /// [`Child::files`].
    pub files: &'a [BorrowedFd<'a>],
    /// How long the child may take for a result.
    pub patience: Duration,
    /// How the child carries out what it is told.
    pub carry_out: CarryOut,
}

impl Default for Plan<'_> {
    /// The default: one thread with a page of memory, which makes system calls and nothing else.
    fn default() -> Self {
        Plan {
            threads: 1,
            spares: 0,
            memory: sys::PAGE,
            files: &[],
            patience: Duration::from_secs(20),
            carry_out: make_system_calls,
        }
    }
}

/// A child process. Killed when it is dropped.
#[derive(Debug)]
pub struct Child {
    /// The child's threads; when the first one ends, the process ends.
    pub threads: Vec<Thread>,
    /// The numbers in the child of the files of its [`Plan`].
    pub files: Vec<RawFd>,
    pid: Pid,
    spares: RefCell<Vec<Thread>>,
    gone: Cell<bool>,
}

impl Child {
    /// Starts a child, whose threads wait for requests.
    ///
    /// The child is killed when the thread that has called this ends. Errors: those of
    /// socketpair(2), mmap(2) and fork(2).
    ///
    /// # Panics
    /// When the child does not answer.
    pub fn start(plan: &Plan<'_>) -> nix::Result<Child> {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..plan.threads + plan.spares {
            let (a, b) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
            setsockopt(
                &a,
                ReceiveTimeout,
                &TimeVal::milliseconds(plan.patience.as_millis() as i64),
            )?;
            ours.push(Thread::new(a, SharedMemory::new(plan.memory)?));
            theirs.push(b);
        }
        let mut keep: Vec<RawFd> = theirs.iter().map(|socket| socket.as_raw_fd()).collect();
        keep.extend(plan.files.iter().map(|file| file.as_raw_fd()));
        let pid = fork(|| serve::live(&keep, plan.threads, plan.spares, plan.carry_out))?;
        drop(theirs);
        let files = sys::places(&keep).split_off(plan.threads + plan.spares);
        ours.iter().for_each(|thread| thread.pid.set(pid));
        let spares = ours.split_off(plan.threads);
        let (spares, gone) = (RefCell::new(spares), Cell::new(false));
        let child = Child { threads: ours, files, pid, spares, gone };
        for thread in &child.threads {
            thread.tid.set(thread.finish() as i32);
        }
        Ok(child)
    }

    /// The child's process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Ends the child by SIGKILL, and waits until it is gone.
    pub fn kill(&self) {
        if !self.gone.replace(true) {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }

    /// Makes one of the child's threads fork: the new process has what its parent has at this
    /// moment, above all its open files.
    ///
    /// # Panics
    /// When there is no spare left, or the fork fails.
    #[track_caller]
    pub fn fork(&self, by: &Thread) -> Thread {
        let grandchild = self.spares.borrow_mut().pop().expect("a spare");
        let index = self.spares.borrow().len();
        let pid = by.request(Request::Fork(index));
        assert!(pid > 0, "fork gave {pid}");
        grandchild.pid.set(Pid::from_raw(pid as i32));
        grandchild.tid.set(grandchild.finish() as i32);
        grandchild
    }

    /// Copies bytes out of the child's memory. Errors: EFAULT where it has none, ESRCH when it is
    /// gone.
    pub fn peek(&self, address: u64, len: usize) -> Result<Vec<u8>, Errno> {
        peek(self.pid, address, len)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A thread of a child.
#[derive(Debug)]
pub struct Thread {
    socket: OwnedFd,
    memory: SharedMemory,
    pid: Cell<Pid>,
    tid: Cell<i32>,
    busy: Cell<bool>,
    /// The last request to the thread.
    doing: Cell<Option<Request>>,
}

impl Thread {
    fn new(socket: OwnedFd, memory: SharedMemory) -> Thread {
        let pid = Cell::new(Pid::from_raw(0));
        let (tid, busy, doing) = (Cell::new(0), Cell::new(true), Cell::new(None));
        Thread { socket, memory, pid, tid, busy, doing }
    }

    /// The process id of the thread's process.
    pub fn pid(&self) -> Pid {
        self.pid.get()
    }

    /// The thread's id.
    pub fn tid(&self) -> i32 {
        self.tid.get()
    }

    /// The memory that the thread shares with this process.
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// Tells the thread to do something, which may take time.
    ///
    /// # Panics
    /// When the thread is still busy.
    #[track_caller]
    pub fn begin(&self, request: Request) {
        assert!(!self.busy.replace(true), "the thread is in a call already");
        self.doing.set(Some(request));
        // A dead child is noticed when its result is read.
        let _ = send(self.socket.as_raw_fd(), &request.encode(), MsgFlags::MSG_NOSIGNAL);
    }

    /// Waits for the result of what the thread began.
    ///
    /// # Panics
    /// When the child dies, or when the [patience](Plan::patience) is over.
    #[track_caller]
    pub fn finish(&self) -> i64 {
        let mut bytes = [0; 8];
        let doing = || self.doing.get().map_or("its start".to_owned(), |what| format!("{what:x?}"));
        match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(8) => {
                self.busy.set(false);
                i64::from_ne_bytes(bytes)
            }
            Err(Errno::EAGAIN) => panic!("thread {} hangs in {}", self.tid(), doing()),
            _ => panic!("process {} died in {}", self.pid(), doing()),
        }
    }

    /// Whether what the thread began is done, or is done within that time.
    pub fn is_done_within(&self, timeout: Duration) -> bool {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut files = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut files, timeout) == Ok(1)
    }

    /// Whether the thread has a request whose result nobody has taken.
    pub fn is_busy(&self) -> bool {
        self.busy.get()
    }

    /// Tells the thread to do something, and waits for the result.
    #[track_caller]
    pub fn request(&self, request: Request) -> i64 {
        self.begin(request);
        self.finish()
    }

    /// Begins a system call.
    #[track_caller]
    pub fn begin_system_call(&self, number: i64, args: &[u64]) {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        self.begin(Request::Call(number as u64, all));
    }

    /// Makes a system call, and waits for its result.
    #[track_caller]
    pub fn system_call(&self, number: i64, args: &[u64]) -> Result<i64, Errno> {
        self.begin_system_call(number, args);
        result(self.finish())
    }

    /// Copies bytes out of the thread's process. Errors: EFAULT where it has none, ESRCH when it is
    /// gone.
    pub fn peek(&self, address: u64, len: usize) -> Result<Vec<u8>, Errno> {
        peek(self.pid(), address, len)
    }
}

fn peek(pid: Pid, address: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; len];
    if len > 0 {
        let remote = [RemoteIoVec { base: address as usize, len }];
        let copied = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote)?;
        if copied < len {
            return Err(Errno::EFAULT);
        }
    }
    Ok(bytes)
}

/// The raw result of a system call: a value, or a negative errno.
pub fn result(raw: i64) -> Result<i64, Errno> {
    if raw < 0 { Err(Errno::from_raw(-raw as i32)) } else { Ok(raw) }
}
