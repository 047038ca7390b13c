//! The returns that a client reads (`BR_*`), each with its payload.

use super::record::{FrozenState, PtrCookie, Put, Record, TransactionData, TransactionDataSecCtx};
use crate::uapi::*;

/// One return in a read buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// An error. The kernel's header gives it a payload; the driver writes none.
    Error,
    /// Never sent, though the header has it.
    Ok,
    /// A call to serve.
    Transaction(TransactionData),
    /// A call, with the address of the sender's security context in the buffer.
    TransactionSecCtx(TransactionData, u64),
    /// The reply to a call.
    Reply(TransactionData),
    /// Never sent, though the header has it.
    AcquireResult(i32),
    /// The target of the transaction is dead, or its thread has ended without a reply.
    DeadReply,
    /// The transaction has been queued.
    TransactionComplete,
    /// Somebody has a first weak reference to a node.
    Increfs(PtrCookie),
    /// Somebody has a first strong reference to a node.
    Acquire(PtrCookie),
    /// Nobody has a strong reference to a node any more.
    Release(PtrCookie),
    /// Nobody has a weak reference to a node any more.
    Decrefs(PtrCookie),
    /// No meaning: every read begins with it.
    Noop,
    /// The process should start another thread that serves calls.
    SpawnLooper,
    /// Never sent, though the header has it.
    Finished,
    /// The node that the death notification with this cookie is about is dead.
    DeadBinder(u64),
    /// The death notification with this cookie is cleared.
    ClearDeathNotificationDone(u64),
    /// The transaction failed: BINDER_GET_EXTENDED_ERROR says why.
    FailedReply,
    /// The target is frozen, and synchronous calls to it fail.
    FrozenReply,
    /// The one-way call has been queued; its sender holds a suspicious share of the space.
    OnewaySpamSuspect,
    /// The one-way call has been queued at a target that is frozen.
    TransactionPendingFrozen,
    /// A process has frozen or thawed.
    FrozenBinder {
        /// The cookie of the freeze notification.
        cookie: u64,
        /// Whether the process is frozen now.
        is_frozen: bool,
    },
    /// The freeze notification with this cookie is cleared.
    ClearFreezeNotificationDone(u64),
}

impl Return {
    /// The return's number.
    pub fn number(&self) -> u32 {
        match self {
            Return::Error => BR_ERROR,
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

    /// Bytes of the payload behind a return's number, known or not: the number has its size in it.
    pub fn payload_size(number: u32) -> usize {
        match number {
            // The driver writes the number alone, although the macro speaks of an int.
            BR_ERROR => 0,
            number => ioc_size(number),
        }
    }

    /// Appends number and payload, as they stand in a read buffer.
    pub fn encode(&self, out: &mut impl Put) {
        out.put(self.number());
        match *self {
            Return::Transaction(data) | Return::Reply(data) => out.put(data),
            Return::TransactionSecCtx(data, secctx) => {
                out.put(TransactionDataSecCtx { data, secctx });
            }
            Return::AcquireResult(value) => out.put(value),
            Return::Increfs(node)
            | Return::Acquire(node)
            | Return::Release(node)
            | Return::Decrefs(node) => out.put(node),
            Return::DeadBinder(cookie)
            | Return::ClearDeathNotificationDone(cookie)
            | Return::ClearFreezeNotificationDone(cookie) => out.put(cookie),
            Return::FrozenBinder { cookie, is_frozen } => {
                out.put(FrozenState { cookie, is_frozen: is_frozen.into(), reserved: 0 });
            }
            Return::Error
            | Return::Ok
            | Return::DeadReply
            | Return::TransactionComplete
            | Return::Noop
            | Return::SpawnLooper
            | Return::Finished
            | Return::FailedReply
            | Return::FrozenReply
            | Return::OnewaySpamSuspect
            | Return::TransactionPendingFrozen => {}
        }
    }

    /// Takes one return from the front of `bytes`, and says how many bytes it took; None when the
    /// number is unknown or the payload is cut short.
    pub fn decode(bytes: &[u8]) -> Option<(Return, usize)> {
        let (number, rest) = u32::take(bytes)?;
        let payload = rest.get(..Self::payload_size(number))?;
        let decoded = match number {
            BR_ERROR => Return::Error,
            BR_OK => Return::Ok,
            BR_TRANSACTION => Return::Transaction(Record::at(payload)?),
            BR_TRANSACTION_SEC_CTX => {
                let TransactionDataSecCtx { data, secctx } = Record::at(payload)?;
                Return::TransactionSecCtx(data, secctx)
            }
            BR_REPLY => Return::Reply(Record::at(payload)?),
            BR_ACQUIRE_RESULT => Return::AcquireResult(Record::at(payload)?),
            BR_DEAD_REPLY => Return::DeadReply,
            BR_TRANSACTION_COMPLETE => Return::TransactionComplete,
            BR_INCREFS => Return::Increfs(Record::at(payload)?),
            BR_ACQUIRE => Return::Acquire(Record::at(payload)?),
            BR_RELEASE => Return::Release(Record::at(payload)?),
            BR_DECREFS => Return::Decrefs(Record::at(payload)?),
            BR_NOOP => Return::Noop,
            BR_SPAWN_LOOPER => Return::SpawnLooper,
            BR_FINISHED => Return::Finished,
            BR_DEAD_BINDER => Return::DeadBinder(Record::at(payload)?),
            BR_CLEAR_DEATH_NOTIFICATION_DONE => {
                Return::ClearDeathNotificationDone(Record::at(payload)?)
            }
            BR_FAILED_REPLY => Return::FailedReply,
            BR_FROZEN_REPLY => Return::FrozenReply,
            BR_ONEWAY_SPAM_SUSPECT => Return::OnewaySpamSuspect,
            BR_TRANSACTION_PENDING_FROZEN => Return::TransactionPendingFrozen,
            BR_FROZEN_BINDER => {
                let FrozenState { cookie, is_frozen, .. } = Record::at(payload)?;
                Return::FrozenBinder { cookie, is_frozen: is_frozen != 0 }
            }
            BR_CLEAR_FREEZE_NOTIFICATION_DONE => {
                Return::ClearFreezeNotificationDone(Record::at(payload)?)
            }
            _ => return None,
        };
        Some((decoded, 4 + payload.len()))
    }
}
