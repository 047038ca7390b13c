//! The structures that commands, returns and ioctls are made of, and the functions that read and
//! write them. The compiler checks that they have no bytes without meaning (padding).

use crate::uapi;
pub use zerocopy::IntoBytes;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// A structure of the protocol as it travels.
pub trait Record: FromBytes + IntoBytes + Immutable + Copy {
    /// The record at the front of `bytes`, and what follows it; None when there are too few bytes.
    fn take(bytes: &[u8]) -> Option<(Self, &[u8])> {
        Self::read_from_prefix(bytes).ok()
    }

    /// The record at the front of `bytes`, whatever follows it; None when there are too few bytes.
    fn at(bytes: &[u8]) -> Option<Self> {
        Self::take(bytes).map(|(record, _)| record)
    }
}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Record for T {}

/// Something that bytes can be appended to.
pub trait Put {
    /// Appends bytes.
    fn put_bytes(&mut self, bytes: &[u8]);

    /// Appends a record.
    fn put<T: Record>(&mut self, record: T) {
        self.put_bytes(record.as_bytes());
    }

    /// Appends four bytes.
    fn put_u32(&mut self, value: u32) {
        self.put(value);
    }

    /// Appends eight bytes.
    fn put_u64(&mut self, value: u64) {
        self.put(value);
    }
}

impl Put for Vec<u8> {
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// `struct binder_transaction_data`, both ways: what a sender asks for and what a receiver is told.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TransactionData {
    /// From a sender: the handle (low 32 bits). To a receiver: the node's pointer.
    pub target: u64,
    /// To a receiver: the node's cookie.
    pub cookie: u64,
    /// The operation that is asked for: the two programs' own business.
    pub code: u32,
    /// `TF_*`.
    pub flags: u32,
    /// To a receiver: the sender's pid as the receiver sees it; 0 where no sender waits.
    pub sender_pid: i32,
    /// To a receiver: the sender's effective uid as the receiver sees it.
    pub sender_euid: u32,
    /// Bytes of data.
    pub data_size: u64,
    /// Bytes of offsets, eight for each object.
    pub offsets_size: u64,
    /// Address of the data in the sender, or in the receiver's buffer.
    pub buffer: u64,
    /// Address of the offsets.
    pub offsets: u64,
}

impl TransactionData {
    /// Bytes of the record.
    pub const SIZE: usize = size_of::<Self>();

    /// Where `sender_pid` lies in the record.
    pub const SENDER_PID: usize = std::mem::offset_of!(Self, sender_pid);

    /// The handle that a sender sends to.
    pub fn handle(&self) -> u32 {
        self.target as u32
    }
}

/// `struct binder_transaction_data_sg`: a transaction with scatter-gather buffers.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TransactionDataSg {
    /// The part that every transaction has.
    pub data: TransactionData,
    /// Bytes in all of the buffers that its objects point to.
    pub buffers_size: u64,
}

/// `struct binder_transaction_data_secctx`: a transaction for a node that wants a security context.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TransactionDataSecCtx {
    /// The part that every transaction has.
    pub data: TransactionData,
    /// Address of the sender's security context in the receiver's buffer.
    pub secctx: u64,
}

/// `struct binder_ptr_cookie`: a node, as its owner knows it.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PtrCookie {
    /// The pointer that names the node in its process.
    pub ptr: u64,
    /// A value for the owner's use.
    pub cookie: u64,
}

/// `struct binder_handle_cookie` (packed): a reference, and the cookie that its holder gives a
/// request.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, packed)]
pub struct HandleCookie {
    /// A handle of the process that asks.
    pub handle: u32,
    /// Comes back in the notice.
    pub cookie: u64,
}

/// `struct binder_pri_desc`: the payload of the two commands that no driver supports.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PriorityHandle {
    /// Priority of the caller.
    pub priority: i32,
    /// The handle of the node.
    pub handle: u32,
}

/// `struct binder_frozen_state_info`.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FrozenState {
    /// The cookie of the request.
    pub cookie: u64,
    /// 1 when the process is frozen now, 0 when it runs.
    pub is_frozen: u32,
    /// 0.
    pub reserved: u32,
}

/// `struct binder_write_read`.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct WriteRead {
    /// Bytes of commands.
    pub write_size: u64,
    /// How many bytes of commands were carried out.
    pub write_consumed: u64,
    /// Address of the commands.
    pub write_buffer: u64,
    /// Room for returns, in bytes.
    pub read_size: u64,
    /// How many bytes of returns were written.
    pub read_consumed: u64,
    /// Address of the returns.
    pub read_buffer: u64,
}

impl WriteRead {
    /// Bytes of the record.
    pub const SIZE: usize = size_of::<Self>();
}

// These records have the layout of the header's.
const _: () = {
    assert!(size_of::<TransactionData>() == size_of::<uapi::binder_transaction_data>());
    assert!(size_of::<TransactionDataSg>() == size_of::<uapi::binder_transaction_data_sg>());
    assert!(
        size_of::<TransactionDataSecCtx>() == size_of::<uapi::binder_transaction_data_secctx>()
    );
    assert!(size_of::<PtrCookie>() == size_of::<uapi::binder_ptr_cookie>());
    assert!(size_of::<HandleCookie>() == size_of::<uapi::binder_handle_cookie>());
    assert!(size_of::<PriorityHandle>() == size_of::<uapi::binder_pri_desc>());
    assert!(size_of::<FrozenState>() == size_of::<uapi::binder_frozen_state_info>());
    assert!(size_of::<WriteRead>() == size_of::<uapi::binder_write_read>());
    assert!(
        TransactionData::SENDER_PID
            == std::mem::offset_of!(uapi::binder_transaction_data, sender_pid)
    );
};

/// Rounds up to a multiple of 8 bytes, as the parts of a buffer are (`ALIGN(x, sizeof(void *))`);
/// saturates.
pub fn align8(value: u64) -> u64 {
    value.checked_add(7).map_or(!7, |v| v & !7)
}
