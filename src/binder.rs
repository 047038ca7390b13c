//! The driver itself. Safe code only; no descriptor, no clock and no thread of its own.
#![forbid(unsafe_code)]

use crate::{Errno, alloc::Alloc, client_mem::ClientMemory};
use std::sync::Arc;
use std::time::Duration;

/// An ioctl that a client waits in. The engine consumes it once: at once, or when another
/// client's work, a signal or a release completes it.
pub trait Reply: Send {
    /// Whether a signal for the calling thread has already been reported.
    fn interrupted(&self) -> bool;

    /// Ends the ioctl. `out` is the ioctl's argument as it is to be copied out (the device drops
    /// it for ioctls that copy nothing out); it is copied out on errors too.
    /// `Err(Errno::EINTR)`: the read was interrupted (see [`Process::interrupt`]).
    fn send(self: Box<Self>, result: Result<i32, Errno>, out: &[u8]);
}

/// One ioctl, as the device hands it to the engine.
pub struct Call {
    /// The calling thread (in the daemon's pid namespace).
    pub tid: i32,
    /// The caller's effective uid.
    pub euid: u32,
    /// The open file has O_NONBLOCK.
    pub nonblock: bool,
    pub cmd: u32,
    /// The argument as copied in: `ioc_size(cmd)` bytes when the ioctl copies in, else zeros of that length.
    pub arg: Vec<u8>,
    /// The caller's memory.
    pub memory: Arc<dyn ClientMemory>,
    pub reply: Box<dyn Reply>,
}

/// Somebody who polls a process; told once, when there may be something to read.
pub trait Poller: Send {
    fn wake(self: Box<Self>);
}

/// A descriptor on its way from one client to another. Closed when dropped.
pub trait File: Send + Sync {
    fn as_any(&self) -> &dyn std::any::Any;
}

/// The process behind an open file, as far as the engine has to reach it. Nothing here is called
/// under a lock of the engine.
pub trait Client: Send + Sync {
    /// `fget` in the calling thread: EBADF when it has no such descriptor.
    fn take_file(&self, tid: i32, fd: i32) -> Result<Arc<dyn File>, Errno>;
    /// Puts a file into the client and returns its number there. ENOTSUP: this client has no channel for descriptors.
    fn install_file(&self, file: Arc<dyn File>) -> Result<i32, Errno>;
    /// Closes a descriptor in the client (a freed buffer's descriptor array).
    fn close_file(&self, fd: i32);
    /// The nice value of a thread of this client.
    fn nice(&self, tid: i32) -> i32;
    fn set_nice(&self, tid: i32, nice: i32);
    /// The security context of a thread of this client, without a trailing NUL added; ENOENT... where there is no security module.
    fn security_context(&self, tid: i32) -> Result<Vec<u8>, Errno>;
    /// `pid` (of another client, in the daemon's namespace) as this client sees it; 0 when it does not.
    fn pid_as_seen(&self, pid: i32) -> i32;
}

/// A timer that the engine asks the device for (freezing waits for outstanding transactions).
pub trait Timers: Send + Sync {
    /// Calls `fire` after `delay`, on any thread, at most once.
    fn after(&self, delay: Duration, fire: Box<dyn FnOnce() + Send>);
}

/// The driver: its contexts and every open process.
pub struct Binder {}

/// A device name: one context manager, one object graph, one lock.
pub struct Context {}

/// One open of a device (`struct binder_proc`).
pub struct Process {}

#[allow(unused_variables, clippy::todo)]
impl Binder {
    pub fn new(timers: Arc<dyn Timers>) -> Arc<Binder> {
        todo!()
    }
    /// The context of that name, made when it is new.
    pub fn context(self: &Arc<Self>, name: &str) -> Arc<Context> {
        todo!()
    }
}

#[allow(unused_variables, clippy::todo)]
impl Context {
    /// `binder_open`. `pid` is the opener's thread group, `euid` its effective uid.
    pub fn open(self: &Arc<Self>, pid: i32, euid: u32, client: Arc<dyn Client>, alloc: Arc<Alloc>) -> Arc<Process> {
        todo!()
    }
}

#[allow(unused_variables, clippy::todo)]
impl Process {
    /// `binder_ioctl`. Consumes `call.reply`, now or later.
    pub fn ioctl(self: &Arc<Self>, call: Call) {
        todo!()
    }
    /// A signal has arrived for the thread `tid`: ends its blocked read, if it has one.
    /// To be called after `Reply::interrupted` has begun to say true.
    pub fn interrupt(self: &Arc<Self>, tid: i32) {
        todo!()
    }
    /// `binder_poll`: whether the thread has something to read; if not, `poller` is kept and woken when it may.
    /// A later poll of the same thread replaces it.
    pub fn poll(self: &Arc<Self>, tid: i32, poller: Option<Box<dyn Poller>>) -> bool {
        todo!()
    }
    /// `binder_flush`: every blocked thread returns once.
    pub fn flush(self: &Arc<Self>) {
        todo!()
    }
    /// `binder_release`. Blocked reads are ended; nothing of the process remains.
    pub fn release(self: &Arc<Self>) {
        todo!()
    }
}
