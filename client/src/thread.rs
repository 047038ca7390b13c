//! Calls, replies and served calls of one thread.

use crate::Errno;
use crate::call::Call;
use crate::command::Command;
use crate::device::Device;
use crate::error::Result;
use crate::parcel::Parcel;
use crate::returns::{Return, Returns};
use crate::transaction::{Contents, Transaction};
use std::collections::VecDeque;

/// The size that libbinder reads with. How much fits into a read decides what the driver puts
/// there.
const READ_SIZE: usize = 256;

/// The conversation of the calling thread with the driver, at the level of calls.
///
/// It does what every binder client must: it collects commands until the next read, repeats a read
/// that a signal interrupted, acknowledges `BR_INCREFS` and `BR_ACQUIRE`, frees the buffers of
/// messages that it has handed out as [`Contents`], and serves calls that come back while it waits
/// for a reply. It leaves everything else alone. The driver tells threads apart by the calling
/// thread: use a `Thread` only in the thread that made it.
#[derive(Debug)]
pub struct Thread<'d> {
    device: &'d Device,
    write: Vec<u8>,
    /// Replies whose addresses are in `write`.
    replies: Vec<Parcel>,
    read: Vec<u8>,
    pending: VecDeque<Return>,
    /// Replies that were sent, and whose BR_TRANSACTION_COMPLETE has not been read yet: it must not
    /// be taken for that of a later one-way call.
    unconfirmed_replies: usize,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The reply; with `TF_STATUS_CODE` in its flags, the data is an errno-like i32.
    Data(Contents),
    /// A one-way call is on its way.
    Sent,
    /// The same, and the driver suspects this process of sending too much
    /// (`BR_ONEWAY_SPAM_SUSPECT`).
    SentSpamSuspect,
    /// A one-way call waits for its frozen target (`BR_TRANSACTION_PENDING_FROZEN`).
    SentToFrozen,
    /// `BR_DEAD_REPLY`: the target is gone.
    Dead,
    /// `BR_FAILED_REPLY`: see [`Device::extended_error`].
    Failed,
    /// `BR_FROZEN_REPLY`: the target is frozen.
    Frozen,
}

/// Serves a call: gets its code and data, and fills the parcel that goes back.
type Serve<'s, 'd> = dyn FnMut(&mut Thread<'d>, &Transaction, &Contents, &mut Parcel) + 's;

impl<'d> Thread<'d> {
    /// The calling thread, on this device.
    pub fn new(device: &'d Device) -> Thread<'d> {
        Thread {
            device,
            write: Vec::new(),
            replies: Vec::new(),
            read: vec![0; READ_SIZE],
            pending: VecDeque::new(),
            unconfirmed_replies: 0,
        }
    }

    /// The device.
    pub fn device(&self) -> &'d Device {
        self.device
    }

    /// Queues a command for the next read to write. (A call's data is borrowed only until the call
    /// ends, so a call goes by [`call`](Thread::call).)
    pub fn queue(&mut self, command: Command<'static>) {
        command.encode(&mut self.write);
    }

    /// Writes what is queued, without reading.
    pub fn flush(&mut self) -> Result<()> {
        while !self.write.is_empty() {
            let transfer = self.device.transfer(&self.write, &mut []);
            self.written(transfer.write_consumed);
            transfer.result?;
            if transfer.write_consumed == 0 {
                break;
            }
        }
        Ok(())
    }

    /// How many returns of the last read are left over. poll does not report these.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The next return; reads (and waits) when none is left over.
    pub fn next_return(&mut self) -> Result<Return> {
        self.next().map(|(next, _)| next)
    }

    /// The next return, and whether it is the confirmation of a reply.
    fn next(&mut self) -> Result<(Return, bool)> {
        loop {
            if let Some(next) = self.pending.pop_front() {
                let of_reply = next == Return::TransactionComplete && self.unconfirmed_replies > 0;
                self.unconfirmed_replies -= usize::from(of_reply);
                return Ok((next, of_reply));
            }
            let transfer = self.device.transfer(&self.write, &mut self.read);
            self.written(transfer.write_consumed);
            self.pending.extend(Returns::new(&self.read[..transfer.read_consumed]));
            match transfer.result {
                Err(error) if error.errno() == Errno::EINTR => {}
                other => other?,
            }
        }
    }

    /// Makes a call and waits for its end. Calls that come back meanwhile make it fail: use
    /// [`call_serving`](Thread::call_serving) where they are possible.
    pub fn call(&mut self, call: &Call<'_>) -> Result<Reply> {
        self.call_serving(call, &mut |_, _, _, reply| {
            reply.i32(-libc::ENOSYS);
        })
    }

    /// Makes a call and waits for its end, serving calls that come back meanwhile.
    pub fn call_serving(&mut self, call: &Call<'_>, serve: &mut Serve<'_, 'd>) -> Result<Reply> {
        let oneway = call.flags & crate::uapi::TF_ONE_WAY != 0;
        Command::transaction(call).encode(&mut self.write);
        loop {
            let next = self.next();
            if next.is_err() {
                // The call's data is borrowed: its command must not outlive this function.
                self.written(self.write.len());
            }
            let (next, of_reply) = next?;
            match next {
                Return::Reply(transaction) => {
                    return self.take(&transaction).map(Reply::Data);
                }
                Return::TransactionComplete if oneway && !of_reply => return Ok(Reply::Sent),
                Return::OnewaySpamSuspect if oneway => return Ok(Reply::SentSpamSuspect),
                Return::TransactionPendingFrozen => return Ok(Reply::SentToFrozen),
                Return::DeadReply => return Ok(Reply::Dead),
                Return::FailedReply => return Ok(Reply::Failed),
                Return::FrozenReply => return Ok(Reply::Frozen),
                other => self.handle(&other, serve)?,
            }
        }
    }

    /// Reads one return and does what it asks for: serves a call (and queues the freeing of its
    /// buffer and, unless the call is one-way, the reply), or acknowledges a reference. Returns the
    /// return, for what else the caller wants to do about it. The queue is written with the next
    /// read.
    pub fn serve(&mut self, serve: &mut Serve<'_, 'd>) -> Result<Return> {
        let next = self.next_return()?;
        self.handle(&next, serve)?;
        Ok(next)
    }

    /// Copies a received transaction's contents and queues the freeing of its buffer.
    pub fn take(&mut self, transaction: &Transaction) -> Result<Contents> {
        let contents = self.device.contents(transaction)?;
        self.queue(Command::FreeBuffer(transaction.buffer));
        Ok(contents)
    }

    /// Queues a reply to the transaction that this thread serves.
    pub fn reply(&mut self, parcel: Parcel) {
        Command::reply(&Call::reply().parcel(&parcel)).encode(&mut self.write);
        self.replies.push(parcel);
        self.unconfirmed_replies += 1;
    }

    fn handle(&mut self, next: &Return, serve: &mut Serve<'_, 'd>) -> Result<()> {
        match *next {
            Return::Transaction(transaction) | Return::TransactionSecCtx(transaction) => {
                let contents = self.device.contents(&transaction)?;
                let mut parcel = Parcel::new();
                serve(self, &transaction, &contents, &mut parcel);
                self.queue(Command::FreeBuffer(transaction.buffer));
                if !transaction.is_oneway() {
                    self.reply(parcel);
                }
            }
            Return::Increfs { ptr, cookie } => self.queue(Command::IncrefsDone { ptr, cookie }),
            Return::Acquire { ptr, cookie } => self.queue(Command::AcquireDone { ptr, cookie }),
            _ => {}
        }
        Ok(())
    }

    /// Forgets commands that the driver has taken, and the replies once no command is left.
    fn written(&mut self, bytes: usize) {
        self.write.drain(..bytes);
        if self.write.is_empty() {
            self.replies.clear();
        }
    }
}
