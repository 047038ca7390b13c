//! Delivery of descriptors to a client that cannot receive them by itself: its thread is stopped
//! between its ioctl and its program, and installs them ([`HeldThread`]).
//!
//! The ioctl is ended first, as one that is to be called again. So whatever fails after that, the
//! thread reads on by itself in a new ioctl, and nothing has to be undone in the thread. The
//! returns before the transaction are written, and the argument counts them. When the descriptors
//! have arrived, the ioctl gets its result after all.

use super::delivery::{Delivered, Delivery};
use super::graph::{Graph, ThreadId, Work};
use super::thread::ExtendedError;
use super::{Completion, HeldThread};
use crate::Errno;
use crate::protocol::returns::Return;
use crate::shortage;
use zerocopy::IntoBytes;

/// The reply of an ioctl that has been ended already.
struct Ended;

impl Completion for Ended {
    fn interrupted(&self) -> bool {
        false
    }

    fn send(self: Box<Self>, _result: Result<i32, Errno>, _out: &[u8]) {}
}

impl Graph {
    /// A receiver has room for descriptors, but they could not be installed. Tells why, to the
    /// sender that waits for a reply, and, where the transaction is a reply, to its receiver. (The
    /// driver has no such failure.)
    pub(super) fn tell_refusal(&mut self, delivered: &Delivered, receiver: ThreadId, errno: Errno) {
        if matches!(errno, Errno::ESRCH | Errno::EMFILE) {
            return self.tell_shortage(delivered.id, errno);
        }
        let (command, param) = (Return::FailedReply.number(), -(errno as i32));
        let error = ExtendedError { id: delivered.id.0 as u32, command, param };
        self.set_error_of_sender(delivered.id, error);
        if delivered.is_reply
            && let Some(thread) = self.threads.get_mut(&receiver)
        {
            thread.extended_error = error;
        }
    }

    /// Fails a transaction whose receiver's ioctl has been ended, to be called again. Where it was
    /// a reply, that new ioctl reads BR_FAILED_REPLY.
    pub(super) fn files_undelivered_in_stop(&mut self, mut delivery: Box<Delivery>, errno: Errno) {
        let Some(delivered) = self.take_undelivered(&mut delivery, errno) else { return };
        let id = delivery.thread;
        if delivered.is_reply
            && let Some(thread) = self.threads.get_mut(&id)
            && thread.reply_error.replace(Return::FailedReply).is_none()
        {
            self.enqueue_thread_work(id, Work::ReplyError);
        }
    }
}

impl Delivery {
    /// Carries out a delivery with descriptors; `held` is the receiving thread.
    pub(super) fn carry_out_in_stop(mut self: Box<Self>, mut held: Box<dyn HeldThread>) {
        let process = self.read.process.clone();
        if let Err(errno) = self.end_ioctl() {
            return self.fail(errno);
        }
        let fixups = self.transaction.iter().flat_map(|it| &it.fixups);
        let files = fixups.map(|fixup| fixup.file.clone()).collect();
        let numbers = match held.install_files(files) {
            Ok(numbers) => numbers,
            Err(errno) => {
                self.log_refusal(errno);
                process.context.locked(|graph| graph.files_undelivered_in_stop(self, errno));
                // Dropped only now, since the thread then reads on.
                return drop(held);
            }
        };
        let arrays = match self.write_numbers(&numbers) {
            Ok(arrays) => arrays,
            Err(errno) => {
                process.context.locked(|graph| graph.files_undelivered_in_stop(self, errno));
                return drop(held);
            }
        };
        self.finish_record();
        if let Err(errno) = self.write() {
            shortage::note(&errno);
            process.context.locked(|graph| graph.transaction_undelivered(&self, errno));
            self.read.call.read_consumed = self.read.start;
            return held.finish(Err(errno), self.read.call.as_bytes(), &numbers);
        }
        self.count_returns();
        self.settle(arrays);
        held.finish(Ok(0), self.read.call.as_bytes(), &[]);
    }

    /// Ends the ioctl as one that is called again, with the returns before the transaction.
    fn end_ioctl(&mut self) -> Result<(), Errno> {
        let mut call = self.read.call;
        let before = self.transaction.as_ref().map_or(0, |it| it.begins_at());
        // BR_NOOP alone need not be written: the next read writes it again.
        if before > 4 || (before > 0 && call.read_consumed > 0) {
            let address = call.read_buffer.wrapping_add(call.read_consumed);
            self.read.memory.write(address, &self.bytes[..before])?;
            call.read_consumed += before as u64;
        }
        let reply = std::mem::replace(&mut self.read.reply, Box::new(Ended));
        reply.restart(call.as_bytes());
        Ok(())
    }
}
