//! Ioctls that may not have ended yet.

use super::arena::Arena;
use fakebinder::Errno;
use fakebinder::binder::{Completion, Process};
use fakebinder::client_mem::ClientMemory;
use fakebinder::lock_order::assert_nothing_held;
use fakebinder::protocol::record::{Record, WriteRead};
use fakebinder::protocol::returns::Return;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How an ioctl ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The result of the ioctl.
    pub result: Result<i32, Errno>,
    /// The argument as it was copied out.
    pub out: Vec<u8>,
    /// Whether it ended as with ERESTARTSYS.
    pub restarts: bool,
}

/// An ioctl: running, or ended.
#[derive(Debug, Default)]
pub struct Slot {
    ended: Mutex<Option<Ended>>,
    has_ended: AtomicBool,
    interrupted: AtomicBool,
}

impl Slot {
    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        // Most have not ended, and are asked often.
        self.has_ended().then(|| self.ended.lock().clone()).flatten()
    }

    /// The same, once: afterwards it is gone.
    pub fn take(&self) -> Option<Ended> {
        self.has_ended().then(|| self.ended.lock().take()).flatten()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Sets whether a signal is pending for the thread.
    pub fn set_interrupted(&self, interrupted: bool) {
        self.interrupted.store(interrupted, Ordering::SeqCst);
    }
}

/// The driver's end of a [`Slot`].
#[derive(Debug)]
pub struct SimReply(pub Arc<Slot>);

impl SimReply {
    fn end(&self, ended: Ended) {
        assert_nothing_held();
        *self.0.ended.lock() = Some(ended);
        assert!(!self.0.has_ended.swap(true, Ordering::SeqCst), "an ioctl ended twice");
    }
}

impl Completion for SimReply {
    fn interrupted(&self) -> bool {
        self.0.interrupted.load(Ordering::SeqCst)
    }

    fn send(self: Box<Self>, result: Result<i32, Errno>, out: &[u8]) {
        self.end(Ended { result, out: out.to_vec(), restarts: false });
    }

    fn restart(self: Box<Self>, out: &[u8]) {
        self.end(Ended { result: Err(Errno::EINTR), out: out.to_vec(), restarts: true });
    }
}

/// An ioctl that may not have ended yet.
pub struct Pending {
    pub(super) slot: Arc<Slot>,
    pub(super) process: Arc<Process>,
    pub(super) arena: Arc<Arena>,
    pub(super) tid: i32,
}

impl Pending {
    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.slot.ended()
    }

    /// Whether it has not ended.
    pub fn is_blocked(&self) -> bool {
        !self.slot.has_ended()
    }

    /// A signal arrives for the thread.
    pub fn interrupt(&self) {
        self.slot.set_interrupted(true);
        self.process.interrupt(self.tid);
    }

    /// The returns that a successful BINDER_WRITE_READ has read.
    #[track_caller]
    pub fn returns(&self) -> Vec<Return> {
        let ended = self.ended().expect("the read is still blocked");
        assert_eq!(ended.result, Ok(0), "the read failed");
        self.read_so_far(&ended)
    }

    /// The returns in the read buffer of an ended BINDER_WRITE_READ, as far as it was consumed.
    pub fn read_so_far(&self, ended: &Ended) -> Vec<Return> {
        let call = WriteRead::at(&ended.out).unwrap_or_default();
        let mut bytes = vec![0; call.read_consumed as usize];
        self.arena.read(call.read_buffer, &mut bytes).expect("the read buffer");
        let mut rest = &bytes[..];
        let mut returns = Vec::new();
        while !rest.is_empty() {
            let (decoded, size) = Return::decode(rest).expect("only whole returns");
            returns.push(decoded);
            rest = &rest[size..];
        }
        returns
    }
}
