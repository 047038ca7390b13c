//! The answer to a request, which may be given by any thread and at any time.

use super::Session;
use crate::client_log::{Kind, client_log};
use crate::client_mem::ProcessMemory;
use crate::{Errno, uapi};
use std::sync::Arc;
use zerocopy::{Immutable, IntoBytes};

/// The one reply that a request gets. Dropped without a reply, it answers EIO, so that no client
/// waits for ever.
pub struct Responder {
    pub(super) session: Arc<Session>,
    pub(super) unique: u64,
    /// The caller's memory, for an ioctl.
    pub(super) memory: Option<Arc<ProcessMemory>>,
}

impl Responder {
    /// The session that the request came by.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The memory of the calling thread, which an ioctl's argument points into; none for other
    /// requests.
    pub fn memory(&self) -> Option<Arc<ProcessMemory>> {
        self.memory.clone()
    }

    /// Whether the calling thread has got a signal since its request.
    pub fn interrupted(&self) -> bool {
        self.session.is_interrupted(self.unique)
    }

    /// The same question for later, when the responder has been given away.
    pub fn interrupted_later(&self) -> impl Fn() -> bool + use<> {
        let (session, unique) = (self.session.clone(), self.unique);
        move || session.is_interrupted(unique)
    }

    /// Refuses the request.
    pub fn error(self, error: Errno) {
        self.finish(-(error as i32), &[]);
    }

    /// Success, without a value.
    pub fn done(self) {
        self.finish(0, &[]);
    }

    /// Success, with a structure of the protocol.
    pub fn value<T: IntoBytes + Immutable>(self, value: &T) {
        self.finish(0, &[uapi::bytes_of(value)]);
    }

    /// Success, with these bytes.
    pub fn bytes(self, bytes: &[u8]) {
        self.finish(0, &[bytes]);
    }

    /// Success, with a structure and more bytes: CUSE_INIT's reply is followed by the device's
    /// name.
    pub fn value_and_bytes<T: IntoBytes + Immutable>(self, value: &T, bytes: &[u8]) {
        self.finish(0, &[uapi::bytes_of(value), bytes]);
    }

    /// Ends an ioctl. `data` is copied out even when `result` is a negative error. That may be -512
    /// (ERESTARTSYS): the kernel then restarts the ioctl or ends it with EINTR, as SA_RESTART says.
    pub fn ioctl(self, result: i32, data: &[u8]) {
        let out = uapi::fuse_ioctl_out { result, ..Default::default() };
        self.value_and_bytes(&out, data);
    }

    /// Asks for the ioctl again (unrestricted ones only), with what lies at `input` in the caller,
    /// and with room for `output`. At most 256 ranges, and 128 KiB in each direction.
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
        // Out of the table first: once the reply is written, the kernel may use the number again.
        let request = self.session.in_flight.lock().by_unique.remove(&unique);
        // Otherwise the request's thread was dying, and was answered (`answer_the_dying`).
        if let Some(request) = request {
            self.session.reply(request.way, unique, error, parts);
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
