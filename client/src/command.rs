//! What a client writes: `BC_*`.

use crate::call::Call;
use crate::uapi;
use crate::wire::{put_i32, put_u32, put_u64};

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
    /// `BC_RELEASE`: one strong reference to this handle less.
    Release(u32),
    /// `BC_DECREFS`: one weak reference to this handle less.
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
        /// Priority.
        priority: i32,
        /// Handle.
        handle: u32,
    },
    /// `BC_REGISTER_LOOPER`: this thread was started because of `BR_SPAWN_LOOPER`.
    RegisterLooper,
    /// `BC_ENTER_LOOPER`: this thread serves from now on, by its own decision.
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
    /// Data and offsets of a [`Call`] are not copied: the bytes hold their addresses, and are
    /// good for as long as what they point to.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Command::Transaction(call) => {
                put_u32(out, uapi::BC_TRANSACTION);
                call.encode(out);
            }
            Command::Reply(call) => {
                put_u32(out, uapi::BC_REPLY);
                call.encode(out);
            }
            Command::TransactionSg(call) => {
                put_u32(out, uapi::BC_TRANSACTION_SG);
                call.encode(out);
                put_u64(out, call.buffers_size);
            }
            Command::ReplySg(call) => {
                put_u32(out, uapi::BC_REPLY_SG);
                call.encode(out);
                put_u64(out, call.buffers_size);
            }
            Command::AcquireResult(result) => {
                put_u32(out, uapi::BC_ACQUIRE_RESULT);
                put_i32(out, result);
            }
            Command::FreeBuffer(address) => with_u64(out, uapi::BC_FREE_BUFFER, address),
            Command::Increfs(handle) => with_u32(out, uapi::BC_INCREFS, handle),
            Command::Acquire(handle) => with_u32(out, uapi::BC_ACQUIRE, handle),
            Command::Release(handle) => with_u32(out, uapi::BC_RELEASE, handle),
            Command::Decrefs(handle) => with_u32(out, uapi::BC_DECREFS, handle),
            Command::IncrefsDone { ptr, cookie } => {
                with_u64(out, uapi::BC_INCREFS_DONE, ptr);
                put_u64(out, cookie);
            }
            Command::AcquireDone { ptr, cookie } => {
                with_u64(out, uapi::BC_ACQUIRE_DONE, ptr);
                put_u64(out, cookie);
            }
            Command::AttemptAcquire { priority, handle } => {
                put_u32(out, uapi::BC_ATTEMPT_ACQUIRE);
                put_i32(out, priority);
                put_u32(out, handle);
            }
            Command::RegisterLooper => put_u32(out, uapi::BC_REGISTER_LOOPER),
            Command::EnterLooper => put_u32(out, uapi::BC_ENTER_LOOPER),
            Command::ExitLooper => put_u32(out, uapi::BC_EXIT_LOOPER),
            Command::RequestDeathNotification { handle, cookie } => {
                with_handle_cookie(out, uapi::BC_REQUEST_DEATH_NOTIFICATION, handle, cookie);
            }
            Command::ClearDeathNotification { handle, cookie } => {
                with_handle_cookie(out, uapi::BC_CLEAR_DEATH_NOTIFICATION, handle, cookie);
            }
            Command::DeadBinderDone(cookie) => with_u64(out, uapi::BC_DEAD_BINDER_DONE, cookie),
            Command::RequestFreezeNotification { handle, cookie } => {
                with_handle_cookie(out, uapi::BC_REQUEST_FREEZE_NOTIFICATION, handle, cookie);
            }
            Command::ClearFreezeNotification { handle, cookie } => {
                with_handle_cookie(out, uapi::BC_CLEAR_FREEZE_NOTIFICATION, handle, cookie);
            }
            Command::FreezeNotificationDone(cookie) => {
                with_u64(out, uapi::BC_FREEZE_NOTIFICATION_DONE, cookie);
            }
            Command::Raw(bytes) => out.extend_from_slice(bytes),
        }
    }
}

fn with_u32(out: &mut Vec<u8>, number: u32, value: u32) {
    put_u32(out, number);
    put_u32(out, value);
}

fn with_u64(out: &mut Vec<u8>, number: u32, value: u64) {
    put_u32(out, number);
    put_u64(out, value);
}

fn with_handle_cookie(out: &mut Vec<u8>, number: u32, handle: u32, cookie: u64) {
    with_u32(out, number, handle);
    put_u64(out, cookie);
}

#[cfg(test)]
mod tests {
    use super::*;

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
