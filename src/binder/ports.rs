//! What a device hands to the engine: the ioctls of its clients ([`Call`], [`Completion`]), and
//! what the engine needs of the world for each of them ([`Task`], [`File`], [`Poller`],
//! [`Timers`]).
//!
//! A [`Task`] is asked, and a [`File`] dropped, under no lock of the engine: both can take as long
//! as the client likes. [`Completion::interrupted`] and [`Timers::now`] are asked under the lock of
//! a context, and answer at once.

use super::{Copies, FewBytes};
use crate::Errno;
use crate::client_mem::ClientMemory;
use crate::quota::User;
use std::sync::Arc;
use std::time::Duration;

/// An ioctl that a client waits in. The engine ends it once: at once, or when another client's
/// work, a signal or a release completes it.
pub trait Completion: Send {
    /// Whether a signal for the calling thread has already been reported.
    fn interrupted(&self) -> bool;

    /// Ends the ioctl. `out` is the ioctl's argument as it is to be copied out, on errors too. (The
    /// device drops it for ioctls that copy nothing out.)
    fn send(self: Box<Self>, result: Result<i32, Errno>, out: &[u8]);

    /// Whether ending the ioctl touches the caller's memory.
    fn copies_out(&self) -> bool {
        false
    }

    /// The caller has freed a buffer that holds descriptors of its own, and has to close these
    /// before it is back in its program. For clients whose [`Task::close_files`] returns false.
    fn close_on_return(&mut self, _numbers: Vec<i32>) {}

    /// Makes the calling thread stop at the end of this ioctl, to be given descriptors. None: they
    /// go another way ([`Task::install_files`]). `Err`: the thread is as it was. `Ok`: the ioctl
    /// has to be ended with [`Completion::restart`].
    fn hold_thread(&mut self) -> Option<Result<Box<dyn HeldThread>, Errno>> {
        None
    }

    /// Ends the ioctl as ERESTARTSYS does: after the signal's handler it is called again or fails
    /// with EINTR, as SA_RESTART says.
    fn restart(self: Box<Self>, out: &[u8]) {
        self.send(Err(Errno::EINTR), out);
    }
}

/// A thread of a client that stops, or has stopped, between its ioctl and its program. If this is
/// dropped, the thread calls the ioctl again, and has none of the descriptors that it was given.
pub trait HeldThread: Send {
    /// Installs descriptors, all or none; returns their numbers. EMFILE: too few are free in the
    /// client; ESRCH: the thread is gone; ETIMEDOUT: it does not come to its stop.
    fn install_files(&mut self, files: Vec<Arc<dyn File>>) -> Result<Vec<i32>, Errno>;

    /// Ends the ioctl with `result` and the argument `out`; `closing` are closed before that.
    fn finish(self: Box<Self>, result: Result<i32, Errno>, out: &[u8], closing: &[i32]);
}

/// One ioctl, as the device hands it to the engine.
pub struct Call {
    /// The calling thread (in the daemon's pid namespace).
    pub tid: i32,
    /// The caller's uid as the device was told it; what counts is [`Task::identity`].
    pub uid: u32,
    /// The open file has O_NONBLOCK.
    pub nonblock: bool,
    /// The number of the ioctl, as the caller gave it.
    pub cmd: u32,
    /// The argument as copied in: `ioc_size(cmd)` bytes when the ioctl copies in, else zeros of
    /// that length.
    pub arg: FewBytes,
    /// The caller's memory.
    pub memory: Arc<dyn ClientMemory>,
    /// What ends the ioctl.
    pub reply: Box<dyn Completion>,
}

/// Those who poll an open file. They are told over and over that there may be something to read; a
/// notice too many does no harm, since each of them asks the device before it reads.
pub trait Poller: Send + Sync {
    /// Makes those who poll ask again.
    fn wake(&self);
}

/// A descriptor on its way from one client to another. Closed when dropped.
pub trait File: Send + Sync {
    /// The file as the device's own type.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// What has become of files that were to be put into a client ([`Task::install_files`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Installed {
    /// They are there, at these numbers.
    Now(Vec<i32>),
    /// They will be, once the thread calls again. So its read ends without the transaction that
    /// they belong to, and its next read asks for the same files again.
    AtNextCall,
}

/// The process behind an open file (`proc->tsk`, a `struct task_struct`), as far as the engine has
/// to reach that process. Nothing here is called under a lock of the engine.
pub trait Task: Send + Sync {
    /// The user who has opened the device, to whom records are charged; asked once.
    fn user(&self) -> Arc<User> {
        User::unlimited()
    }

    /// `fget` in the calling thread: EBADF when it has no such descriptor.
    fn take_file(&self, tid: i32, fd: i32) -> Result<Arc<dyn File>, Errno>;

    /// Whether [`Task::install_files`] or [`Completion::hold_thread`] has a way into this client.
    fn accepts_files(&self) -> bool;

    /// Puts files into the client, all or none. `tid` is the thread that reads of them.
    fn install_files(&self, tid: i32, files: Vec<Arc<dyn File>>) -> Result<Installed, Errno>;

    /// Closes descriptors in the client (a freed buffer's descriptor arrays), for the thread `tid`
    /// that has freed the buffer. False: only that thread itself can do it
    /// ([`Completion::close_on_return`]).
    fn close_files(&self, tid: i32, fds: &[i32]) -> bool;

    /// The cap on copies to and from this client's memory, for this open file.
    fn copies(&self) -> Arc<Copies> {
        Copies::unlimited()
    }

    /// The nice value of a thread of this client.
    fn nice(&self, tid: i32) -> i32;

    /// Sets the nice value of a thread of this client, as far as the client itself might
    /// (RLIMIT_NICE).
    fn set_nice(&self, tid: i32, nice: i32);

    /// The security context that this client had when it opened the device, with its trailing
    /// NUL. EOPNOTSUPP where there is no security module.
    fn security_context(&self) -> Result<Vec<u8>, Errno>;

    /// The identity of a thread that is in an ioctl and calls as `uid`.
    fn identity(&self, _tid: i32, uid: u32) -> Identity {
        Identity { euid: uid, is_opener: false }
    }

    /// A uid of the daemon's user namespace as the thread `tid`, which waits in a read, names it;
    /// (uid_t)-1 where it has no name.
    fn uid_as_seen(&self, _tid: i32, uid: u32) -> u32 {
        uid
    }

    /// Whether this client's pid is still its own: once the process has ended and was waited for,
    /// another one may get the number, while a child goes on with the open file.
    fn has_pid(&self) -> bool {
        true
    }

    /// `pid` (of another client, in the daemon's namespace) as this client sees it; 0 when this
    /// client cannot see it.
    fn pid_as_seen(&self, pid: i32) -> i32;

    /// A pid as this client names it, in the daemon's namespace: the inverse of
    /// [`Task::pid_as_seen`]. -1 when no process has that pid.
    fn pid_named(&self, pid: i32) -> i32 {
        pid
    }

    /// What tells a thread that is in an ioctl from others of the same number; none when the device
    /// does not know.
    fn thread_birth(&self, _tid: i32) -> Option<Birth> {
        None
    }

    /// Whether that thread has ended.
    fn thread_is_gone(&self, _tid: i32, _birth: Option<Birth>) -> bool {
        false
    }

    /// Calls `ended`, once and on any thread, when that thread has ended.
    fn watch_thread(
        &self,
        _tid: i32,
        _birth: Option<Birth>,
        _ended: Box<dyn FnOnce() + Send>,
    ) -> Watching {
        Watching::Untold
    }
}

/// The identity of a calling thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The thread's effective uid, in the daemon's user namespace.
    pub euid: u32,
    /// The thread belongs to the process that has opened the device, which therefore has its pid as
    /// long as the thread waits. False also where that is not certain.
    pub is_opener: bool,
}

/// What tells a thread from another one that had, or will have, its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth(pub u64);

/// Whether the device will tell that a thread has ended.
pub enum Watching {
    /// The thread has ended already.
    Gone,
    /// The device will tell, unless this value is dropped before. If both happen at the same time,
    /// it may tell all the same.
    Told(Box<dyn Send>),
    /// The device will not tell: [`Task::thread_is_gone`] has to be asked.
    Untold,
}

/// A timer that the engine asks the device for (freezing waits for outstanding transactions).
pub trait Timers: Send + Sync {
    /// Calls `fire` after `delay`, on any thread, at most once. `ticket` names the timer, and no
    /// other.
    fn after(&self, ticket: u64, delay: Duration, fire: Box<dyn FnOnce() + Send>);

    /// Forgets a timer that has not fired.
    fn cancel(&self, ticket: u64);

    /// Calls `look` a second or so later, on any thread: it tells somebody something, and changes
    /// nothing. Where there is nobody to tell, it is dropped.
    fn look_later(&self, _look: Box<dyn FnOnce() + Send>) {}

    /// The time since some moment in the past, for the logs: how long a transaction has been on its
    /// way.
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}
