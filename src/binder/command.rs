//! The commands that a client writes (`BC_*`), each with its payload.

use super::wire::{HandleCookie, PtrCookie, Put, Reader, TransactionData};
use crate::uapi::*;

/// One command of a write buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Transaction(TransactionData),
    Reply(TransactionData),
    /// With the bytes of scatter-gather buffers that the objects need in all.
    TransactionSg(TransactionData, u64),
    ReplySg(TransactionData, u64),
    /// Not supported, as in the driver.
    AcquireResult(i32),
    /// Address of a buffer that the client has done with.
    FreeBuffer(u64),
    Increfs(u32),
    Acquire(u32),
    Release(u32),
    Decrefs(u32),
    IncrefsDone(PtrCookie),
    AcquireDone(PtrCookie),
    /// Not supported, as in the driver.
    AttemptAcquire {
        priority: i32,
        handle: u32,
    },
    RegisterLooper,
    EnterLooper,
    ExitLooper,
    RequestDeathNotification(HandleCookie),
    ClearDeathNotification(HandleCookie),
    DeadBinderDone(u64),
    RequestFreezeNotification(HandleCookie),
    ClearFreezeNotification(HandleCookie),
    FreezeNotificationDone(u64),
}

impl Command {
    /// Bytes of the payload behind a command's number, or nothing for a number that is no command.
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

    /// Decodes a payload of [`Command::payload_size`] bytes; nothing for an unknown number or
    /// a payload of another length.
    pub fn decode(number: u32, payload: &[u8]) -> Option<Command> {
        if payload.len() != Self::payload_size(number)? {
            return None;
        }
        let mut bytes = Reader(payload);
        let b = &mut bytes;
        let handle_cookie = |b: &mut Reader<'_>| HandleCookie { handle: b.u32(), cookie: b.u64() };
        let ptr_cookie = |b: &mut Reader<'_>| PtrCookie { ptr: b.u64(), cookie: b.u64() };
        Some(match number {
            BC_TRANSACTION => Command::Transaction(TransactionData::decode(b)),
            BC_REPLY => Command::Reply(TransactionData::decode(b)),
            BC_TRANSACTION_SG => Command::TransactionSg(TransactionData::decode(b), b.u64()),
            BC_REPLY_SG => Command::ReplySg(TransactionData::decode(b), b.u64()),
            BC_ACQUIRE_RESULT => Command::AcquireResult(b.i32()),
            BC_FREE_BUFFER => Command::FreeBuffer(b.u64()),
            BC_INCREFS => Command::Increfs(b.u32()),
            BC_ACQUIRE => Command::Acquire(b.u32()),
            BC_RELEASE => Command::Release(b.u32()),
            BC_DECREFS => Command::Decrefs(b.u32()),
            BC_INCREFS_DONE => Command::IncrefsDone(ptr_cookie(b)),
            BC_ACQUIRE_DONE => Command::AcquireDone(ptr_cookie(b)),
            BC_ATTEMPT_ACQUIRE => Command::AttemptAcquire { priority: b.i32(), handle: b.u32() },
            BC_REGISTER_LOOPER => Command::RegisterLooper,
            BC_ENTER_LOOPER => Command::EnterLooper,
            BC_EXIT_LOOPER => Command::ExitLooper,
            BC_REQUEST_DEATH_NOTIFICATION => Command::RequestDeathNotification(handle_cookie(b)),
            BC_CLEAR_DEATH_NOTIFICATION => Command::ClearDeathNotification(handle_cookie(b)),
            BC_DEAD_BINDER_DONE => Command::DeadBinderDone(b.u64()),
            BC_REQUEST_FREEZE_NOTIFICATION => Command::RequestFreezeNotification(handle_cookie(b)),
            BC_CLEAR_FREEZE_NOTIFICATION => Command::ClearFreezeNotification(handle_cookie(b)),
            BC_FREEZE_NOTIFICATION_DONE => Command::FreezeNotificationDone(b.u64()),
            _ => return None,
        })
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
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.number());
        match *self {
            Command::Transaction(data) | Command::Reply(data) => data.encode(out),
            Command::TransactionSg(data, size) | Command::ReplySg(data, size) => {
                data.encode(out);
                out.put_u64(size);
            }
            Command::AcquireResult(value) => out.put_u32(value as u32),
            Command::FreeBuffer(value)
            | Command::DeadBinderDone(value)
            | Command::FreezeNotificationDone(value) => out.put_u64(value),
            Command::Increfs(handle)
            | Command::Acquire(handle)
            | Command::Release(handle)
            | Command::Decrefs(handle) => out.put_u32(handle),
            Command::IncrefsDone(node) | Command::AcquireDone(node) => {
                out.put_u64(node.ptr);
                out.put_u64(node.cookie);
            }
            Command::AttemptAcquire { priority, handle } => {
                out.put_u32(priority as u32);
                out.put_u32(handle);
            }
            Command::RegisterLooper | Command::EnterLooper | Command::ExitLooper => {}
            Command::RequestDeathNotification(request)
            | Command::ClearDeathNotification(request)
            | Command::RequestFreezeNotification(request)
            | Command::ClearFreezeNotification(request) => {
                out.put_u32(request.handle);
                out.put_u64(request.cookie);
            }
        }
    }
}
