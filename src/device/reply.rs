//! The end of an ioctl: where its result and its argument go, from whichever thread ends it.

use super::client::Client;
use super::retry::READ_SIZE;
use super::session::{Responder, Session};
use super::workers;
use crate::binder::{self, HeldThread};
use crate::client_mem::{ClientMemory, GatheredMemory, ProcessMemory};
use crate::{Errno, uapi};
use std::sync::Arc;

/// The kernel's own number for "restart the system call, or return EINTR".
pub const ERESTARTSYS: i32 = 512;

/// Where the argument goes when the ioctl has ended.
pub enum CopyOut {
    /// Nowhere: the ioctl copies nothing out.
    Nothing,
    /// Into the reply; the kernel copies at most `size` bytes out.
    Message {
        /// What the kernel said that it will copy, in bytes.
        size: usize,
    },
    /// Into the caller's memory, by the daemon.
    Memory {
        /// The caller's memory.
        memory: Arc<ProcessMemory>,
        /// Where the argument is, in the caller.
        addr: u64,
        /// The error of the ioctl when that address is not the caller's.
        fault: Errno,
    },
    /// Into the reply, followed by what was written to the stretches of memory that `output` names.
    Gathered {
        /// What was written to the caller's memory while the ioctl ran.
        memory: Arc<GatheredMemory>,
        /// The stretches that the kernel will copy, in the order in which they follow.
        output: Vec<uapi::fuse_ioctl_iovec>,
        /// The client's own `read_size`, where a smaller one was shown to the engine.
        read_size: Option<u64>,
    },
}

/// An ioctl that a client waits in.
pub struct IoctlReply {
    responder: Responder,
    out: CopyOut,
    /// The client and the number of the waiting thread, if that can be stopped at the end of this
    /// ioctl.
    caller: Option<(Arc<Client>, i32)>,
    /// Descriptors that the caller is to close before it is back in its program.
    closing: Vec<i32>,
}

impl IoctlReply {
    /// Ends the ioctl of `responder`, with its argument going where `out` says.
    pub fn new(responder: Responder, out: CopyOut) -> IoctlReply {
        IoctlReply { responder, out, caller: None, closing: Vec::new() }
    }

    /// Allows the calling thread to be stopped at the end of this ioctl.
    pub fn can_be_held(&mut self, client: Arc<Client>, tid: i32) {
        self.caller = Some((client, tid));
    }
}

impl binder::Completion for IoctlReply {
    fn interrupted(&self) -> bool {
        self.responder.interrupted()
    }

    fn copies_out(&self) -> bool {
        matches!(self.out, CopyOut::Memory { .. })
    }

    fn send(self: Box<Self>, result: Result<i32, Errno>, argument: &[u8]) {
        self.finish(result.unwrap_or_else(|error| -(error as i32)), argument);
    }

    fn close_on_return(&mut self, numbers: Vec<i32>) {
        self.closing.extend(numbers);
    }

    fn hold_thread(&mut self) -> Option<Result<Box<dyn HeldThread>, Errno>> {
        let (client, tid) = self.caller.as_ref()?;
        if client.needs_no_stop() || matches!(self.out, CopyOut::Gathered { .. }) {
            return None;
        }
        let held = client.hold_thread(*tid, std::mem::take(&mut self.closing));
        Some(held.map(|held| Box::new(held) as Box<dyn HeldThread>))
    }

    fn restart(self: Box<Self>, argument: &[u8]) {
        self.finish(-ERESTARTSYS, argument);
        // A held thread stops when it has this answer, and is waited for.
        workers::submit();
    }
}

impl IoctlReply {
    fn finish(self, result: i32, argument: &[u8]) {
        let IoctlReply { responder, out, caller, closing } = self;
        // Dropping the held thread lets it go on.
        let _held = caller.filter(|_| !closing.is_empty()).and_then(|(client, tid)| {
            let held = client.hold_thread(tid, closing);
            let log = |errno: &Errno| {
                log::debug!("thread {tid} keeps descriptors of a freed buffer: {errno}");
            };
            held.inspect_err(log).ok()
        });
        match out {
            CopyOut::Nothing => responder.ioctl(result, &[]),
            CopyOut::Message { size } => {
                responder.ioctl(result, &argument[..argument.len().min(size)]);
            }
            CopyOut::Memory { memory, addr, fault } => match memory.write(addr, argument) {
                Ok(()) => responder.ioctl(result, &[]),
                Err(_) => responder.ioctl(-(fault as i32), &[]),
            },
            CopyOut::Gathered { memory, output, read_size } => {
                let data = gathered_output(argument, &memory, &output, read_size);
                responder.ioctl(result, &data);
            }
        }
    }
}

/// The kernel spreads the bytes over the ranges that it was given, in order. Only the last range
/// may be cut short.
fn gathered_output(
    argument: &[u8],
    memory: &GatheredMemory,
    output: &[uapi::fuse_ioctl_iovec],
    read_size: Option<u64>,
) -> Vec<u8> {
    let mut data = Vec::new();
    let mut ranges = output.iter();
    if ranges.next().is_some() {
        data.extend_from_slice(argument);
    }
    if let Some(read_size) = read_size
        && let Some(field) = data.get_mut(READ_SIZE)
    {
        field.copy_from_slice(&read_size.to_ne_bytes());
    }
    if let Some(range) = ranges.next() {
        data.extend_from_slice(&memory.written(range.base));
    }
    data
}

/// A client that polls an open file, where the kernel has asked for a notification.
pub struct PollWaiter {
    /// The session of the door that the file was opened through.
    pub session: Arc<Session>,
    /// The kernel's name for the file (`fuse_poll_in.kh`).
    pub handle: u64,
}

impl binder::Poller for PollWaiter {
    fn wake(&self) {
        self.session.notify_poll(self.handle);
    }
}
