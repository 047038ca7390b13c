//! An outgoing transaction or reply.

use crate::parcel::Parcel;
use crate::uapi;
use crate::wire::{put_i32, put_u32, put_u64};

/// What is sent with `BC_TRANSACTION`, `BC_REPLY` and their scatter-gather forms
/// (`struct binder_transaction_data`, 64 bytes, and `buffers_size`).
///
/// A reply has no target; the driver does not look at it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Call<'a> {
    /// Target reference; 0 is the context manager.
    pub handle: u32,
    /// The driver does not look at it.
    pub cookie: u64,
    /// What the target is asked to do.
    pub code: u32,
    /// `TF_*`.
    pub flags: u32,
    /// The data.
    pub data: &'a [u8],
    /// Where in the data its objects begin, in bytes, ascending.
    pub offsets: &'a [u64],
    /// Bytes for scatter-gather buffers; sent by the `_SG` commands only.
    pub buffers_size: u64,
}

impl<'a> Call<'a> {
    /// A transaction to `handle`, with code 0, no flags and no data.
    pub fn to(handle: u32) -> Call<'a> {
        Call { handle, ..Call::default() }
    }

    /// A reply with no data, to the transaction that this thread works on.
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

    /// Appends the 64 bytes of `struct binder_transaction_data`, with the addresses of the
    /// borrowed data and offsets in it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, u64::from(self.handle));
        put_u64(out, self.cookie);
        put_u32(out, self.code);
        put_u32(out, self.flags);
        put_i32(out, 0);
        put_u32(out, 0);
        put_u64(out, self.data.len() as u64);
        put_u64(out, size_of_val(self.offsets) as u64);
        put_u64(out, address(self.data));
        put_u64(out, address(self.offsets));
    }
}

/// The address of a slice, 0 for an empty one (whose pointer would dangle).
fn address<T>(slice: &[T]) -> u64 {
    if slice.is_empty() { 0 } else { slice.as_ptr().addr() as u64 }
}
