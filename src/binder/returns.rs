//! The returns that a client reads (`BR_*`), each with its payload.

use super::wire::{PtrCookie, Put, Reader, TransactionData};
use crate::uapi::*;

/// One return in a read buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    Error(i32),
    Ok,
    Transaction(TransactionData),
    /// With the address of the sender's security context in the buffer.
    TransactionSecCtx(TransactionData, u64),
    Reply(TransactionData),
    AcquireResult(i32),
    DeadReply,
    TransactionComplete,
    Increfs(PtrCookie),
    Acquire(PtrCookie),
    Release(PtrCookie),
    Decrefs(PtrCookie),
    Noop,
    SpawnLooper,
    Finished,
    DeadBinder(u64),
    ClearDeathNotificationDone(u64),
    FailedReply,
    FrozenReply,
    OnewaySpamSuspect,
    TransactionPendingFrozen,
    FrozenBinder {
        cookie: u64,
        is_frozen: bool,
    },
    ClearFreezeNotificationDone(u64),
}

impl Return {
    /// The return's number.
    pub fn number(&self) -> u32 {
        match self {
            Return::Error(_) => BR_ERROR,
            Return::Ok => BR_OK,
            Return::Transaction(_) => BR_TRANSACTION,
            Return::TransactionSecCtx(..) => BR_TRANSACTION_SEC_CTX,
            Return::Reply(_) => BR_REPLY,
            Return::AcquireResult(_) => BR_ACQUIRE_RESULT,
            Return::DeadReply => BR_DEAD_REPLY,
            Return::TransactionComplete => BR_TRANSACTION_COMPLETE,
            Return::Increfs(_) => BR_INCREFS,
            Return::Acquire(_) => BR_ACQUIRE,
            Return::Release(_) => BR_RELEASE,
            Return::Decrefs(_) => BR_DECREFS,
            Return::Noop => BR_NOOP,
            Return::SpawnLooper => BR_SPAWN_LOOPER,
            Return::Finished => BR_FINISHED,
            Return::DeadBinder(_) => BR_DEAD_BINDER,
            Return::ClearDeathNotificationDone(_) => BR_CLEAR_DEATH_NOTIFICATION_DONE,
            Return::FailedReply => BR_FAILED_REPLY,
            Return::FrozenReply => BR_FROZEN_REPLY,
            Return::OnewaySpamSuspect => BR_ONEWAY_SPAM_SUSPECT,
            Return::TransactionPendingFrozen => BR_TRANSACTION_PENDING_FROZEN,
            Return::FrozenBinder { .. } => BR_FROZEN_BINDER,
            Return::ClearFreezeNotificationDone(_) => BR_CLEAR_FREEZE_NOTIFICATION_DONE,
        }
    }

    /// Appends number and payload, as they stand in a read buffer.
    pub fn encode(&self, out: &mut impl Put) {
        match *self {
            // What the driver puts: the number alone, although the macro speaks of an int.
            Return::Error(_) => out.put_u32(self.number()),
            Return::Transaction(data) | Return::Reply(data) => {
                out.put_u32(self.number());
                data.encode(out);
            }
            Return::TransactionSecCtx(data, context) => {
                out.put_u32(self.number());
                data.encode(out);
                out.put_u64(context);
            }
            Return::AcquireResult(value) => {
                out.put_u32(self.number());
                out.put_u32(value as u32);
            }
            Return::Increfs(node)
            | Return::Acquire(node)
            | Return::Release(node)
            | Return::Decrefs(node) => {
                out.put_u32(self.number());
                out.put_u64(node.ptr);
                out.put_u64(node.cookie);
            }
            Return::DeadBinder(cookie)
            | Return::ClearDeathNotificationDone(cookie)
            | Return::ClearFreezeNotificationDone(cookie) => {
                out.put_u32(self.number());
                out.put_u64(cookie);
            }
            Return::FrozenBinder { cookie, is_frozen } => {
                out.put_u32(self.number());
                out.put_u64(cookie);
                out.put_u32(is_frozen.into());
                out.put_u32(0);
            }
            Return::Ok
            | Return::DeadReply
            | Return::TransactionComplete
            | Return::Noop
            | Return::SpawnLooper
            | Return::Finished
            | Return::FailedReply
            | Return::FrozenReply
            | Return::OnewaySpamSuspect
            | Return::TransactionPendingFrozen => out.put_u32(self.number()),
        }
    }

    /// Takes one return from the front of `bytes` and says how many bytes it took; nothing when
    /// the number is unknown or the payload is cut short.
    pub fn decode(bytes: &[u8]) -> Option<(Return, usize)> {
        let number = u32::from_ne_bytes(*bytes.first_chunk()?);
        let payload = match number {
            BR_ERROR => 0,
            BR_TRANSACTION_PENDING_FROZEN => 0,
            number => ioc_size(number),
        };
        let mut reader = Reader(bytes.get(4..4 + payload)?);
        let b = &mut reader;
        let ptr_cookie = |b: &mut Reader<'_>| PtrCookie { ptr: b.u64(), cookie: b.u64() };
        let decoded = match number {
            BR_ERROR => Return::Error(0),
            BR_OK => Return::Ok,
            BR_TRANSACTION => Return::Transaction(TransactionData::decode(b)),
            BR_TRANSACTION_SEC_CTX => {
                Return::TransactionSecCtx(TransactionData::decode(b), b.u64())
            }
            BR_REPLY => Return::Reply(TransactionData::decode(b)),
            BR_ACQUIRE_RESULT => Return::AcquireResult(b.i32()),
            BR_DEAD_REPLY => Return::DeadReply,
            BR_TRANSACTION_COMPLETE => Return::TransactionComplete,
            BR_INCREFS => Return::Increfs(ptr_cookie(b)),
            BR_ACQUIRE => Return::Acquire(ptr_cookie(b)),
            BR_RELEASE => Return::Release(ptr_cookie(b)),
            BR_DECREFS => Return::Decrefs(ptr_cookie(b)),
            BR_NOOP => Return::Noop,
            BR_SPAWN_LOOPER => Return::SpawnLooper,
            BR_FINISHED => Return::Finished,
            BR_DEAD_BINDER => Return::DeadBinder(b.u64()),
            BR_CLEAR_DEATH_NOTIFICATION_DONE => Return::ClearDeathNotificationDone(b.u64()),
            BR_FAILED_REPLY => Return::FailedReply,
            BR_FROZEN_REPLY => Return::FrozenReply,
            BR_ONEWAY_SPAM_SUSPECT => Return::OnewaySpamSuspect,
            BR_TRANSACTION_PENDING_FROZEN => Return::TransactionPendingFrozen,
            BR_FROZEN_BINDER => Return::FrozenBinder { cookie: b.u64(), is_frozen: b.u32() != 0 },
            BR_CLEAR_FREEZE_NOTIFICATION_DONE => Return::ClearFreezeNotificationDone(b.u64()),
            _ => return None,
        };
        Some((decoded, 4 + payload))
    }
}
