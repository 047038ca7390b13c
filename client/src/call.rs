//! An outgoing transaction or reply.

use crate::parcel::Parcel;
use crate::uapi;
use fakebinder::protocol::record::{Put, TransactionData};

/// What `BC_TRANSACTION`, `BC_REPLY` and their scatter-gather forms send
/// (`struct binder_transaction_data`, 64 bytes, and `buffers_size`).
///
/// A reply has no target: the driver does not look at the handle.
#[derive(Debug, Clone, Copy, Default)]
pub struct Call<'a> {
    /// Target reference; 0 is the context manager.
    pub handle: u32,
    /// The driver does not look at the cookie.
    pub cookie: u64,
    /// What the target is asked to do.
    pub code: u32,
    /// `TF_*`.
    pub flags: u32,
    /// The data.
    pub data: &'a [u8],
    /// Offsets in the data at which its objects begin, in bytes, ascending.
    pub offsets: &'a [u64],
    /// Bytes for scatter-gather buffers; only the `_SG` commands send this.
    pub buffers_size: u64,
}

impl<'a> Call<'a> {
    /// A transaction to `handle`, with code 0, no flags and no data.
    pub fn to(handle: u32) -> Call<'a> {
        Call { handle, ..Call::default() }
    }

    /// A reply without data, to the transaction that this thread serves.
    pub fn reply() -> Call<'a> {
        Call::default()
    }

    /// Sets the code.
    pub fn code(self, code: u32) -> Call<'a> {
        Call { code, ..self }
    }

    /// Adds flags (`TF_*`).
    pub fn flags(self, flags: u32) -> Call<'a> {
        Call { flags: self.flags | flags, ..self }
    }

    /// Makes it a one-way transaction (`TF_ONE_WAY`): no reply will come.
    pub fn oneway(self) -> Call<'a> {
        self.flags(uapi::TF_ONE_WAY)
    }

    /// Sets data, offsets and buffers.
    pub fn parcel(self, parcel: &'a Parcel) -> Call<'a> {
        Call {
            data: parcel.data(),
            offsets: parcel.offsets(),
            buffers_size: parcel.buffers_size(),
            ..self
        }
    }

    /// Sets data without objects.
    pub fn data(self, data: &'a [u8]) -> Call<'a> {
        Call { data, ..self }
    }

    /// The call as it is sent, with the addresses of the borrowed data and offsets.
    pub(crate) fn record(&self) -> TransactionData {
        TransactionData {
            target: self.handle.into(),
            cookie: self.cookie,
            code: self.code,
            flags: self.flags,
            sender_pid: 0,
            sender_euid: 0,
            data_size: self.data.len() as u64,
            offsets_size: size_of_val(self.offsets) as u64,
            buffer: address(self.data),
            offsets: address(self.offsets),
        }
    }

    /// Appends the 64 bytes of `struct binder_transaction_data`, with the addresses of the
    /// borrowed data and offsets in it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put(self.record());
    }
}

/// The address of a slice, 0 for an empty one (whose pointer would dangle).
fn address<T>(slice: &[T]) -> u64 {
    if slice.is_empty() { 0 } else { slice.as_ptr().addr() as u64 }
}
