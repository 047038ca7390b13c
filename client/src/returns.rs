//! What a client reads: `BR_*`.

use crate::transaction::Transaction;
use fakebinder::protocol::record::{PtrCookie, Record};
use fakebinder::protocol::returns::Return as Br;

/// A return, with its payload.
///
/// In the read buffer a return is its 32-bit number and its payload, packed. A fresh read
/// begins with `Noop` (or `SpawnLooper` in its place).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// `BR_ERROR`: the driver could not do what was asked, and gives no reason.
    Error,
    /// `BR_OK`.
    Ok,
    /// `BR_TRANSACTION_SEC_CTX`: a call to a node that asks for the caller's security context.
    TransactionSecCtx(Transaction),
    /// `BR_TRANSACTION`: a call to a node of this process.
    Transaction(Transaction),
    /// `BR_REPLY`: the reply to this thread's transaction.
    Reply(Transaction),
    /// `BR_ACQUIRE_RESULT`: not used by the driver.
    AcquireResult(i32),
    /// `BR_DEAD_REPLY`: the target is gone.
    DeadReply,
    /// `BR_TRANSACTION_COMPLETE`: the last message that this thread sent is on its way.
    TransactionComplete,
    /// `BR_INCREFS`: other processes have a weak reference to this node now.
    Increfs {
        /// Identity of the node.
        ptr: u64,
        /// Cookie of the node.
        cookie: u64,
    },
    /// `BR_ACQUIRE`: other processes have a strong reference to this node now.
    Acquire {
        /// Identity of the node.
        ptr: u64,
        /// Cookie of the node.
        cookie: u64,
    },
    /// `BR_RELEASE`: no other process has a strong reference any more.
    Release {
        /// Identity of the node.
        ptr: u64,
        /// Cookie of the node.
        cookie: u64,
    },
    /// `BR_DECREFS`: no other process has a weak reference any more.
    Decrefs {
        /// Identity of the node.
        ptr: u64,
        /// Cookie of the node.
        cookie: u64,
    },
    /// `BR_NOOP`.
    Noop,
    /// `BR_SPAWN_LOOPER`: the process should start one more serving thread.
    SpawnLooper,
    /// `BR_FINISHED`: not used by the driver.
    Finished,
    /// `BR_DEAD_BINDER`: the process of a node has died; with the request's cookie.
    DeadBinder(u64),
    /// `BR_CLEAR_DEATH_NOTIFICATION_DONE`: the request's cookie.
    ClearDeathNotificationDone(u64),
    /// `BR_FAILED_REPLY`: the transaction could not be delivered
    /// ([`Device::extended_error`](crate::Device::extended_error) may say why).
    FailedReply,
    /// `BR_FROZEN_REPLY`: the target's process is frozen.
    FrozenReply,
    /// `BR_ONEWAY_SPAM_SUSPECT`: sent, but this process takes too much of the target's space.
    OnewaySpamSuspect,
    /// `BR_TRANSACTION_PENDING_FROZEN`: sent, one-way, to a frozen process.
    TransactionPendingFrozen,
    /// `BR_FROZEN_BINDER`: the process of a node was frozen or thawed.
    FrozenBinder {
        /// The request's cookie.
        cookie: u64,
        /// 1 when the process is frozen now, 0 when it runs.
        is_frozen: u32,
    },
    /// `BR_CLEAR_FREEZE_NOTIFICATION_DONE`: the request's cookie.
    ClearFreezeNotificationDone(u64),
    /// A return that this library does not know; its payload was skipped by the length that is in
    /// its number.
    Unknown(u32),
    /// The buffer ended inside a return: the driver never does that.
    Truncated,
}

impl Return {
    /// The return's name in `<linux/android/binder.h>`.
    pub fn name(&self) -> &'static str {
        match self {
            Return::Error => "BR_ERROR",
            Return::Ok => "BR_OK",
            Return::TransactionSecCtx(_) => "BR_TRANSACTION_SEC_CTX",
            Return::Transaction(_) => "BR_TRANSACTION",
            Return::Reply(_) => "BR_REPLY",
            Return::AcquireResult(_) => "BR_ACQUIRE_RESULT",
            Return::DeadReply => "BR_DEAD_REPLY",
            Return::TransactionComplete => "BR_TRANSACTION_COMPLETE",
            Return::Increfs { .. } => "BR_INCREFS",
            Return::Acquire { .. } => "BR_ACQUIRE",
            Return::Release { .. } => "BR_RELEASE",
            Return::Decrefs { .. } => "BR_DECREFS",
            Return::Noop => "BR_NOOP",
            Return::SpawnLooper => "BR_SPAWN_LOOPER",
            Return::Finished => "BR_FINISHED",
            Return::DeadBinder(_) => "BR_DEAD_BINDER",
            Return::ClearDeathNotificationDone(_) => "BR_CLEAR_DEATH_NOTIFICATION_DONE",
            Return::FailedReply => "BR_FAILED_REPLY",
            Return::FrozenReply => "BR_FROZEN_REPLY",
            Return::OnewaySpamSuspect => "BR_ONEWAY_SPAM_SUSPECT",
            Return::TransactionPendingFrozen => "BR_TRANSACTION_PENDING_FROZEN",
            Return::FrozenBinder { .. } => "BR_FROZEN_BINDER",
            Return::ClearFreezeNotificationDone(_) => "BR_CLEAR_FREEZE_NOTIFICATION_DONE",
            Return::Unknown(_) => "unknown",
            Return::Truncated => "truncated",
        }
    }
}

/// Takes returns off a read buffer.
#[derive(Debug, Clone)]
pub struct Returns<'a>(&'a [u8]);

impl<'a> Returns<'a> {
    /// The returns in the bytes that the driver filled (`read_consumed` of them).
    pub fn new(bytes: &'a [u8]) -> Returns<'a> {
        Returns(bytes)
    }
}

impl Iterator for Returns<'_> {
    type Item = Return;

    fn next(&mut self) -> Option<Return> {
        let bytes = std::mem::take(&mut self.0);
        let Some((number, rest)) = u32::take(bytes) else {
            return (!bytes.is_empty()).then_some(Return::Truncated);
        };
        if let Some((decoded, size)) = Br::decode(bytes) {
            self.0 = &bytes[size..];
            return Some(decoded.into());
        }
        // Not cut short, so the number is an unknown one.
        let Some(rest) = rest.get(Br::payload_size(number)..) else {
            return Some(Return::Truncated);
        };
        self.0 = rest;
        Some(Return::Unknown(number))
    }
}

impl From<Br> for Return {
    fn from(decoded: Br) -> Return {
        match decoded {
            Br::Error => Return::Error,
            Br::Ok => Return::Ok,
            Br::Transaction(data) => Return::Transaction(Transaction::new(data, 0)),
            Br::TransactionSecCtx(data, secctx) => {
                Return::TransactionSecCtx(Transaction::new(data, secctx))
            }
            Br::Reply(data) => Return::Reply(Transaction::new(data, 0)),
            Br::AcquireResult(result) => Return::AcquireResult(result),
            Br::DeadReply => Return::DeadReply,
            Br::TransactionComplete => Return::TransactionComplete,
            Br::Increfs(PtrCookie { ptr, cookie }) => Return::Increfs { ptr, cookie },
            Br::Acquire(PtrCookie { ptr, cookie }) => Return::Acquire { ptr, cookie },
            Br::Release(PtrCookie { ptr, cookie }) => Return::Release { ptr, cookie },
            Br::Decrefs(PtrCookie { ptr, cookie }) => Return::Decrefs { ptr, cookie },
            Br::Noop => Return::Noop,
            Br::SpawnLooper => Return::SpawnLooper,
            Br::Finished => Return::Finished,
            Br::DeadBinder(cookie) => Return::DeadBinder(cookie),
            Br::ClearDeathNotificationDone(cookie) => Return::ClearDeathNotificationDone(cookie),
            Br::FailedReply => Return::FailedReply,
            Br::FrozenReply => Return::FrozenReply,
            Br::OnewaySpamSuspect => Return::OnewaySpamSuspect,
            Br::TransactionPendingFrozen => Return::TransactionPendingFrozen,
            Br::FrozenBinder { cookie, is_frozen } => {
                Return::FrozenBinder { cookie, is_frozen: is_frozen.into() }
            }
            Br::ClearFreezeNotificationDone(cookie) => Return::ClearFreezeNotificationDone(cookie),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi;

    #[test]
    fn a_read_buffer_is_taken_apart() {
        let mut bytes = Vec::new();
        for number in [uapi::BR_NOOP, uapi::BR_TRANSACTION_COMPLETE, uapi::BR_FROZEN_BINDER] {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        for word in [7u32, 0, 1, 0] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        let expected = [
            Return::Noop,
            Return::TransactionComplete,
            Return::FrozenBinder { cookie: 7, is_frozen: 1 },
        ];
        assert_eq!(Returns::new(&bytes).collect::<Vec<_>>(), expected);
        bytes.pop();
        assert_eq!(Returns::new(&bytes).last(), Some(Return::Truncated));
    }

    #[test]
    fn an_unknown_return_is_skipped_by_its_length() {
        let unknown = 0x8008_72ffu32;
        let mut bytes = unknown.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&uapi::BR_OK.to_ne_bytes());
        let returns: Vec<_> = Returns::new(&bytes).collect();
        assert_eq!(returns, [Return::Unknown(unknown), Return::Ok]);
    }
}
