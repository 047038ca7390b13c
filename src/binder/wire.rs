//! The records of binder's protocol that are not commands or returns themselves, and the two
//! small tools that read and write them. Byte order is the machine's, alignment none: the driver
//! copies these records from and to any address.

use crate::uapi;
use smallvec::SmallVec;

/// Takes integers from the front of a byte slice. A slice that is too short gives zeros and
/// marks the reader as having run out; decoders check the length first.
pub struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    pub fn u32(&mut self) -> u32 {
        self.take().map_or(0, u32::from_ne_bytes)
    }

    pub fn i32(&mut self) -> i32 {
        self.take().map_or(0, i32::from_ne_bytes)
    }

    pub fn u64(&mut self) -> u64 {
        self.take().map_or(0, u64::from_ne_bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }
}

/// Appends integers to a byte vector.
pub trait Put {
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
}

/// Bytes that are mostly few, and then lie where the value itself lies: the argument of an ioctl,
/// the returns of a read.
pub type FewBytes = SmallVec<[u8; 128]>;

impl Put for FewBytes {
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_ne_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_ne_bytes());
    }
}

impl Put for Vec<u8> {
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_ne_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_ne_bytes());
    }
}

/// `struct binder_transaction_data`, both ways: what a sender asks for, what a receiver is told.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct TransactionData {
    /// From a sender the handle (low 32 bits); to a receiver the node's pointer.
    pub target: u64,
    pub cookie: u64,
    pub code: u32,
    pub flags: u32,
    pub sender_pid: i32,
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
    pub const SIZE: usize = size_of::<uapi::binder_transaction_data>();

    /// Where `sender_pid` lies in the record.
    pub const SENDER_PID: usize = std::mem::offset_of!(uapi::binder_transaction_data, sender_pid);

    pub fn decode(bytes: &mut Reader<'_>) -> Self {
        Self {
            target: bytes.u64(),
            cookie: bytes.u64(),
            code: bytes.u32(),
            flags: bytes.u32(),
            sender_pid: bytes.i32(),
            sender_euid: bytes.u32(),
            data_size: bytes.u64(),
            offsets_size: bytes.u64(),
            buffer: bytes.u64(),
            offsets: bytes.u64(),
        }
    }

    pub fn encode(&self, out: &mut impl Put) {
        out.put_u64(self.target);
        out.put_u64(self.cookie);
        out.put_u32(self.code);
        out.put_u32(self.flags);
        out.put_u32(self.sender_pid as u32);
        out.put_u32(self.sender_euid);
        out.put_u64(self.data_size);
        out.put_u64(self.offsets_size);
        out.put_u64(self.buffer);
        out.put_u64(self.offsets);
    }

    /// The handle that a sender addresses.
    pub fn handle(&self) -> u32 {
        self.target as u32
    }
}

/// `struct binder_ptr_cookie`: a node, as its owner knows it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PtrCookie {
    pub ptr: u64,
    pub cookie: u64,
}

/// `struct binder_handle_cookie` (packed): a reference and what its holder calls the request.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct HandleCookie {
    pub handle: u32,
    pub cookie: u64,
}

/// `struct binder_write_read`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct WriteRead {
    pub write_size: u64,
    pub write_consumed: u64,
    pub write_buffer: u64,
    pub read_size: u64,
    pub read_consumed: u64,
    pub read_buffer: u64,
}

impl WriteRead {
    pub const SIZE: usize = size_of::<uapi::binder_write_read>();

    pub fn decode(bytes: &[u8]) -> Self {
        let mut bytes = Reader(bytes);
        Self {
            write_size: bytes.u64(),
            write_consumed: bytes.u64(),
            write_buffer: bytes.u64(),
            read_size: bytes.u64(),
            read_consumed: bytes.u64(),
            read_buffer: bytes.u64(),
        }
    }

    pub fn encode(&self) -> FewBytes {
        let mut out = FewBytes::new();
        for field in [
            self.write_size,
            self.write_consumed,
            self.write_buffer,
            self.read_size,
            self.read_consumed,
            self.read_buffer,
        ] {
            out.put_u64(field);
        }
        out
    }
}

/// Rounds up to the 8 bytes that buffers are made of (`ALIGN(x, sizeof(void *))`); saturates.
pub fn align8(value: u64) -> u64 {
    value.checked_add(7).map_or(!7, |v| v & !7)
}
