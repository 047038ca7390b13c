//! What a client writes: `BC_*`.

use crate::call::Call;
use fakebinder::protocol::command::Command as Bc;
use fakebinder::protocol::record::{HandleCookie, PtrCookie};

/// A command, with its payload.
///
/// In the write buffer a command is its 32-bit number and its payload, packed.
#[derive(Debug, Clone, Copy)]
pub enum Command<'a> {
    /// `BC_TRANSACTION`: sends a transaction.
    Transaction(Call<'a>),
    /// `BC_REPLY`: answers the transaction on top of this thread's stack.
    Reply(Call<'a>),
    /// `BC_TRANSACTION_SG`: sends a transaction that has scatter-gather buffers.
    TransactionSg(Call<'a>),
    /// `BC_REPLY_SG`: answers with scatter-gather buffers.
    ReplySg(Call<'a>),
    /// `BC_ACQUIRE_RESULT`: not supported by the driver (EINVAL).
    AcquireResult(i32),
    /// `BC_FREE_BUFFER`: gives back the buffer of a received transaction, by its address.
    FreeBuffer(u64),
    /// `BC_INCREFS`: one more weak reference to this handle.
    Increfs(u32),
    /// `BC_ACQUIRE`: one more strong reference to this handle.
    Acquire(u32),
    /// `BC_RELEASE`: one strong reference to this handle fewer.
    Release(u32),
    /// `BC_DECREFS`: one weak reference to this handle fewer.
    Decrefs(u32),
    /// `BC_INCREFS_DONE`: the answer to `BR_INCREFS`.
    IncrefsDone {
        /// The node's identity, from the return.
        ptr: u64,
        /// The node's cookie, from the return.
        cookie: u64,
    },
    /// `BC_ACQUIRE_DONE`: the answer to `BR_ACQUIRE`.
    AcquireDone {
        /// The node's identity, from the return.
        ptr: u64,
        /// The node's cookie, from the return.
        cookie: u64,
    },
    /// `BC_ATTEMPT_ACQUIRE`: not supported by the driver (EINVAL).
    AttemptAcquire {
        /// The priority.
        priority: i32,
        /// The handle.
        handle: u32,
    },
    /// `BC_REGISTER_LOOPER`: this thread was started because of `BR_SPAWN_LOOPER`.
    RegisterLooper,
    /// `BC_ENTER_LOOPER`: this thread serves from now on, by its own choice.
    EnterLooper,
    /// `BC_EXIT_LOOPER`: this thread no longer serves.
    ExitLooper,
    /// `BC_REQUEST_DEATH_NOTIFICATION`: tell me when this handle's process dies.
    RequestDeathNotification {
        /// A reference of this process.
        handle: u32,
        /// Comes back with `BR_DEAD_BINDER`.
        cookie: u64,
    },
    /// `BC_CLEAR_DEATH_NOTIFICATION`: do not tell me after all.
    ClearDeathNotification {
        /// The handle of the request.
        handle: u32,
        /// The cookie of the request.
        cookie: u64,
    },
    /// `BC_DEAD_BINDER_DONE`: the answer to `BR_DEAD_BINDER`, by its cookie.
    DeadBinderDone(u64),
    /// `BC_REQUEST_FREEZE_NOTIFICATION`: tell me when this handle's process is frozen or thawed
    /// (Linux 6.12 and later; EINVAL before).
    RequestFreezeNotification {
        /// A reference of this process.
        handle: u32,
        /// Comes back with `BR_FROZEN_BINDER`.
        cookie: u64,
    },
    /// `BC_CLEAR_FREEZE_NOTIFICATION`: do not tell me any more.
    ClearFreezeNotification {
        /// The handle of the request.
        handle: u32,
        /// The cookie of the request.
        cookie: u64,
    },
    /// `BC_FREEZE_NOTIFICATION_DONE`: the answer to `BR_FROZEN_BINDER`, by its cookie.
    FreezeNotificationDone(u64),
    /// Any bytes, number included, right or wrong (for tests).
    Raw(&'a [u8]),
}

impl<'a> Command<'a> {
    /// `BC_TRANSACTION`, or `BC_TRANSACTION_SG` for a call with buffers.
    pub fn transaction(call: &Call<'a>) -> Command<'a> {
        if call.buffers_size == 0 {
            Command::Transaction(*call)
        } else {
            Command::TransactionSg(*call)
        }
    }

    /// `BC_REPLY`, or `BC_REPLY_SG` for a reply with buffers.
    pub fn reply(call: &Call<'a>) -> Command<'a> {
        if call.buffers_size == 0 { Command::Reply(*call) } else { Command::ReplySg(*call) }
    }

    /// Appends the command to a write buffer.
    ///
    /// Data and offsets of a [`Call`] are not copied: the bytes hold their addresses, and are valid
    /// as long as the data and offsets are.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let node = |ptr, cookie| PtrCookie { ptr, cookie };
        let request = |handle, cookie| HandleCookie { handle, cookie };
        let command = match *self {
            Command::Transaction(call) => Bc::Transaction(call.record()),
            Command::Reply(call) => Bc::Reply(call.record()),
            Command::TransactionSg(call) => Bc::TransactionSg(call.record(), call.buffers_size),
            Command::ReplySg(call) => Bc::ReplySg(call.record(), call.buffers_size),
            Command::AcquireResult(result) => Bc::AcquireResult(result),
            Command::FreeBuffer(address) => Bc::FreeBuffer(address),
            Command::Increfs(handle) => Bc::Increfs(handle),
            Command::Acquire(handle) => Bc::Acquire(handle),
            Command::Release(handle) => Bc::Release(handle),
            Command::Decrefs(handle) => Bc::Decrefs(handle),
            Command::IncrefsDone { ptr, cookie } => Bc::IncrefsDone(node(ptr, cookie)),
            Command::AcquireDone { ptr, cookie } => Bc::AcquireDone(node(ptr, cookie)),
            Command::AttemptAcquire { priority, handle } => Bc::AttemptAcquire { priority, handle },
            Command::RegisterLooper => Bc::RegisterLooper,
            Command::EnterLooper => Bc::EnterLooper,
            Command::ExitLooper => Bc::ExitLooper,
            Command::RequestDeathNotification { handle, cookie } => {
                Bc::RequestDeathNotification(request(handle, cookie))
            }
            Command::ClearDeathNotification { handle, cookie } => {
                Bc::ClearDeathNotification(request(handle, cookie))
            }
            Command::DeadBinderDone(cookie) => Bc::DeadBinderDone(cookie),
            Command::RequestFreezeNotification { handle, cookie } => {
                Bc::RequestFreezeNotification(request(handle, cookie))
            }
            Command::ClearFreezeNotification { handle, cookie } => {
                Bc::ClearFreezeNotification(request(handle, cookie))
            }
            Command::FreezeNotificationDone(cookie) => Bc::FreezeNotificationDone(cookie),
            Command::Raw(bytes) => return out.extend_from_slice(bytes),
        };
        command.encode(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi;

    /// A command's number holds the size of its payload: the encoding must agree with it.
    #[test]
    fn payloads_are_as_long_as_the_number_says() {
        let call = Call::to(1).data(b"x");
        let commands = [
            Command::Transaction(call),
            Command::Reply(call),
            Command::TransactionSg(call),
            Command::ReplySg(call),
            Command::AcquireResult(-1),
            Command::FreeBuffer(1),
            Command::Increfs(1),
            Command::Acquire(1),
            Command::Release(1),
            Command::Decrefs(1),
            Command::IncrefsDone { ptr: 1, cookie: 2 },
            Command::AcquireDone { ptr: 1, cookie: 2 },
            Command::AttemptAcquire { priority: 1, handle: 2 },
            Command::RegisterLooper,
            Command::EnterLooper,
            Command::ExitLooper,
            Command::RequestDeathNotification { handle: 1, cookie: 2 },
            Command::ClearDeathNotification { handle: 1, cookie: 2 },
            Command::DeadBinderDone(1),
            Command::RequestFreezeNotification { handle: 1, cookie: 2 },
            Command::ClearFreezeNotification { handle: 1, cookie: 2 },
            Command::FreezeNotificationDone(1),
        ];
        for command in commands {
            let mut bytes = Vec::new();
            command.encode(&mut bytes);
            let number = u32::from_ne_bytes(bytes[..4].try_into().unwrap());
            assert_eq!(bytes.len() - 4, uapi::ioc_size(number), "{command:?}");
            assert_eq!(uapi::ioc_type(number), b'c');
        }
    }
}
