//! The commands that a client writes (`BC_*`), each with its payload.

use super::record::{
    HandleCookie, PriorityHandle, PtrCookie, Put, Record, TransactionData, TransactionDataSg,
};
use crate::uapi::*;

/// One command of a write buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// A call.
    Transaction(TransactionData),
    /// The reply to the call that the thread serves.
    Reply(TransactionData),
    /// A call, with the total bytes of the scatter-gather buffers that its objects point to.
    TransactionSg(TransactionData, u64),
    /// The same for a reply.
    ReplySg(TransactionData, u64),
    /// Not supported, as in the driver.
    AcquireResult(i32),
    /// Address of a buffer that the client is done with.
    FreeBuffer(u64),
    /// One more weak reference to a handle.
    Increfs(u32),
    /// One more strong reference to a handle.
    Acquire(u32),
    /// One strong reference to a handle fewer.
    Release(u32),
    /// One weak reference to a handle fewer.
    Decrefs(u32),
    /// BR_INCREFS for a node has been carried out.
    IncrefsDone(PtrCookie),
    /// BR_ACQUIRE for a node has been carried out.
    AcquireDone(PtrCookie),
    /// Not supported, as in the driver.
    AttemptAcquire {
        /// Priority of the caller.
        priority: i32,
        /// The handle of the node.
        handle: u32,
    },
    /// The thread is the looper that BR_SPAWN_LOOPER asked for.
    RegisterLooper,
    /// The thread becomes a looper by its own choice.
    EnterLooper,
    /// The thread is no looper any more.
    ExitLooper,
    /// Asks to be told of the death of the node behind a handle.
    RequestDeathNotification(HandleCookie),
    /// Takes back a request for a death notification.
    ClearDeathNotification(HandleCookie),
    /// BR_DEAD_BINDER with this cookie has been read.
    DeadBinderDone(u64),
    /// Asks to be told when the process behind a handle freezes or thaws.
    RequestFreezeNotification(HandleCookie),
    /// Takes back a request for freeze notifications.
    ClearFreezeNotification(HandleCookie),
    /// BR_FROZEN_BINDER with this cookie has been read.
    FreezeNotificationDone(u64),
}

impl Command {
    /// Bytes of the payload behind a command's number; None for a number that is no command.
    /// `BC_ATTEMPT_ACQUIRE` and `BC_ACQUIRE_RESULT` are refused before their payload is read.
    pub fn payload_size(number: u32) -> Option<usize> {
        match number {
            BC_TRANSACTION
            | BC_REPLY
            | BC_TRANSACTION_SG
            | BC_REPLY_SG
            | BC_ACQUIRE_RESULT
            | BC_FREE_BUFFER
            | BC_INCREFS
            | BC_ACQUIRE
            | BC_RELEASE
            | BC_DECREFS
            | BC_INCREFS_DONE
            | BC_ACQUIRE_DONE
            | BC_ATTEMPT_ACQUIRE
            | BC_REGISTER_LOOPER
            | BC_ENTER_LOOPER
            | BC_EXIT_LOOPER
            | BC_REQUEST_DEATH_NOTIFICATION
            | BC_CLEAR_DEATH_NOTIFICATION
            | BC_DEAD_BINDER_DONE
            | BC_REQUEST_FREEZE_NOTIFICATION
            | BC_CLEAR_FREEZE_NOTIFICATION
            | BC_FREEZE_NOTIFICATION_DONE => Some(ioc_size(number)),
            _ => None,
        }
    }

    /// Decodes a payload of [`Command::payload_size`] bytes; None for an unknown number or a
    /// payload of another length.
    pub fn decode(number: u32, payload: &[u8]) -> Option<Command> {
        if payload.len() != Self::payload_size(number)? {
            return None;
        }
        Some(match number {
            BC_TRANSACTION => Command::Transaction(Record::at(payload)?),
            BC_REPLY => Command::Reply(Record::at(payload)?),
            BC_TRANSACTION_SG => {
                let TransactionDataSg { data, buffers_size } = Record::at(payload)?;
                Command::TransactionSg(data, buffers_size)
            }
            BC_REPLY_SG => {
                let TransactionDataSg { data, buffers_size } = Record::at(payload)?;
                Command::ReplySg(data, buffers_size)
            }
            BC_ACQUIRE_RESULT => Command::AcquireResult(Record::at(payload)?),
            BC_FREE_BUFFER => Command::FreeBuffer(Record::at(payload)?),
            BC_INCREFS => Command::Increfs(Record::at(payload)?),
            BC_ACQUIRE => Command::Acquire(Record::at(payload)?),
            BC_RELEASE => Command::Release(Record::at(payload)?),
            BC_DECREFS => Command::Decrefs(Record::at(payload)?),
            BC_INCREFS_DONE => Command::IncrefsDone(Record::at(payload)?),
            BC_ACQUIRE_DONE => Command::AcquireDone(Record::at(payload)?),
            BC_ATTEMPT_ACQUIRE => {
                let PriorityHandle { priority, handle } = Record::at(payload)?;
                Command::AttemptAcquire { priority, handle }
            }
            BC_REGISTER_LOOPER => Command::RegisterLooper,
            BC_ENTER_LOOPER => Command::EnterLooper,
            BC_EXIT_LOOPER => Command::ExitLooper,
            BC_REQUEST_DEATH_NOTIFICATION => {
                Command::RequestDeathNotification(Record::at(payload)?)
            }
            BC_CLEAR_DEATH_NOTIFICATION => Command::ClearDeathNotification(Record::at(payload)?),
            BC_DEAD_BINDER_DONE => Command::DeadBinderDone(Record::at(payload)?),
            BC_REQUEST_FREEZE_NOTIFICATION => {
                Command::RequestFreezeNotification(Record::at(payload)?)
            }
            BC_CLEAR_FREEZE_NOTIFICATION => Command::ClearFreezeNotification(Record::at(payload)?),
            BC_FREEZE_NOTIFICATION_DONE => Command::FreezeNotificationDone(Record::at(payload)?),
            _ => return None,
        })
    }

    /// Takes one command, number and payload, off the front of `bytes`; None for an unknown number
    /// or a payload that is cut short.
    pub fn take(bytes: &[u8]) -> Option<(Command, &[u8])> {
        let (number, rest) = u32::take(bytes)?;
        let (payload, rest) = rest.split_at_checked(Self::payload_size(number)?)?;
        Some((Self::decode(number, payload)?, rest))
    }

    /// The command's number.
    pub fn number(&self) -> u32 {
        match self {
            Command::Transaction(_) => BC_TRANSACTION,
            Command::Reply(_) => BC_REPLY,
            Command::TransactionSg(..) => BC_TRANSACTION_SG,
            Command::ReplySg(..) => BC_REPLY_SG,
            Command::AcquireResult(_) => BC_ACQUIRE_RESULT,
            Command::FreeBuffer(_) => BC_FREE_BUFFER,
            Command::Increfs(_) => BC_INCREFS,
            Command::Acquire(_) => BC_ACQUIRE,
            Command::Release(_) => BC_RELEASE,
            Command::Decrefs(_) => BC_DECREFS,
            Command::IncrefsDone(_) => BC_INCREFS_DONE,
            Command::AcquireDone(_) => BC_ACQUIRE_DONE,
            Command::AttemptAcquire { .. } => BC_ATTEMPT_ACQUIRE,
            Command::RegisterLooper => BC_REGISTER_LOOPER,
            Command::EnterLooper => BC_ENTER_LOOPER,
            Command::ExitLooper => BC_EXIT_LOOPER,
            Command::RequestDeathNotification(_) => BC_REQUEST_DEATH_NOTIFICATION,
            Command::ClearDeathNotification(_) => BC_CLEAR_DEATH_NOTIFICATION,
            Command::DeadBinderDone(_) => BC_DEAD_BINDER_DONE,
            Command::RequestFreezeNotification(_) => BC_REQUEST_FREEZE_NOTIFICATION,
            Command::ClearFreezeNotification(_) => BC_CLEAR_FREEZE_NOTIFICATION,
            Command::FreezeNotificationDone(_) => BC_FREEZE_NOTIFICATION_DONE,
        }
    }

    /// Appends number and payload, as they stand in a write buffer.
    pub fn encode(&self, out: &mut impl Put) {
        out.put(self.number());
        match *self {
            Command::Transaction(data) | Command::Reply(data) => out.put(data),
            Command::TransactionSg(data, buffers_size) | Command::ReplySg(data, buffers_size) => {
                out.put(TransactionDataSg { data, buffers_size });
            }
            Command::AcquireResult(value) => out.put(value),
            Command::FreeBuffer(value)
            | Command::DeadBinderDone(value)
            | Command::FreezeNotificationDone(value) => out.put(value),
            Command::Increfs(handle)
            | Command::Acquire(handle)
            | Command::Release(handle)
            | Command::Decrefs(handle) => out.put(handle),
            Command::IncrefsDone(node) | Command::AcquireDone(node) => out.put(node),
            Command::AttemptAcquire { priority, handle } => {
                out.put(PriorityHandle { priority, handle });
            }
            Command::RegisterLooper | Command::EnterLooper | Command::ExitLooper => {}
            Command::RequestDeathNotification(request)
            | Command::ClearDeathNotification(request)
            | Command::RequestFreezeNotification(request)
            | Command::ClearFreezeNotification(request) => out.put(request),
        }
    }
}
