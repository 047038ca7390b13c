//! The data of an outgoing transaction.

use crate::object::Object;
use crate::uapi;
use fakebinder::protocol::record::Put;

/// Bytes and objects to be sent, with the offsets array and the scatter-gather buffers.
///
/// Objects are aligned to 4 bytes, as the driver demands, by zeros before them. The parcel owns the
/// buffers, so that the addresses in their objects stay valid as long as it lives.
#[derive(Debug, Default)]
pub struct Parcel {
    data: Vec<u8>,
    offsets: Vec<u64>,
    buffers: Vec<Box<[u8]>>,
    buffers_size: u64,
}

impl Parcel {
    /// An empty parcel.
    pub fn new() -> Parcel {
        Parcel::default()
    }

    /// Empties the parcel, keeping the allocations.
    pub fn clear(&mut self) {
        self.data.clear();
        self.offsets.clear();
        self.buffers.clear();
        self.buffers_size = 0;
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Parcel {
        self.data.extend_from_slice(bytes);
        self
    }

    /// Appends four bytes, native-endian.
    pub fn u32(&mut self, value: u32) -> &mut Parcel {
        self.data.put_u32(value);
        self
    }

    /// Appends four bytes, native-endian.
    pub fn i32(&mut self, value: i32) -> &mut Parcel {
        self.data.put::<i32>(value);
        self
    }

    /// Appends eight bytes, native-endian.
    pub fn u64(&mut self, value: u64) -> &mut Parcel {
        self.data.put_u64(value);
        self
    }

    /// Appends an object and its offset; returns its index in the offsets array.
    pub fn object(&mut self, object: Object) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(4), 0);
        self.offsets.push(self.data.len() as u64);
        object.encode(&mut self.data);
        self.offsets.len() as u64 - 1
    }

    /// Appends a node of this process (strong). Returns its index.
    pub fn binder(&mut self, ptr: u64, cookie: u64, flags: u32) -> u64 {
        self.object(Object::Binder { ptr, cookie, flags })
    }

    /// Appends a node of this process (weak). Returns its index.
    pub fn weak_binder(&mut self, ptr: u64, cookie: u64, flags: u32) -> u64 {
        self.object(Object::WeakBinder { ptr, cookie, flags })
    }

    /// Appends a strong reference to a node of another process. Returns its index.
    pub fn handle(&mut self, handle: u32) -> u64 {
        self.object(Object::Handle { handle, cookie: 0, flags: 0 })
    }

    /// Appends a weak reference to a node of another process. Returns its index.
    pub fn weak_handle(&mut self, handle: u32) -> u64 {
        self.object(Object::WeakHandle { handle, cookie: 0, flags: 0 })
    }

    /// Appends a descriptor of this process; it stays open here. Returns its index.
    pub fn fd(&mut self, fd: i32) -> u64 {
        self.object(Object::Fd { fd: fd as u32, cookie: 0 })
    }

    /// Appends a scatter-gather buffer with a copy of `bytes`. Returns its index, which a child
    /// buffer or a descriptor array names as its parent.
    pub fn buffer(&mut self, bytes: &[u8]) -> u64 {
        let buffer = self.keep(bytes);
        let length = bytes.len() as u64;
        self.object(Object::Buffer { buffer, length, flags: 0, parent: 0, parent_offset: 0 })
    }

    /// Appends a scatter-gather buffer whose address the driver writes into the parent buffer
    /// (an index), `parent_offset` bytes from its start. Returns its index.
    pub fn buffer_in(&mut self, bytes: &[u8], parent: u64, parent_offset: u64) -> u64 {
        let buffer = self.keep(bytes);
        let length = bytes.len() as u64;
        let flags = uapi::BINDER_BUFFER_FLAG_HAS_PARENT;
        self.object(Object::Buffer { buffer, length, flags, parent, parent_offset })
    }

    /// Appends an array of `num_fds` descriptors that lies in the parent buffer (an index),
    /// `parent_offset` bytes from its start, as 32-bit numbers. Returns its index.
    pub fn fd_array(&mut self, num_fds: u64, parent: u64, parent_offset: u64) -> u64 {
        self.object(Object::FdArray { num_fds, parent, parent_offset })
    }

    /// Appends an entry to the offsets array without an object, valid or not (for tests).
    pub fn offset(&mut self, offset: u64) -> &mut Parcel {
        self.offsets.push(offset);
        self
    }

    /// Sets the total size of the buffers that the transaction states, in bytes. Appending a buffer
    /// adds its length, rounded up to 8.
    pub fn set_buffers_size(&mut self, bytes: u64) -> &mut Parcel {
        self.buffers_size = bytes;
        self
    }

    /// The data so far.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The data so far, to be changed in place.
    pub fn data_mut(&mut self) -> &mut Vec<u8> {
        &mut self.data
    }

    /// The offsets array so far.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// Bytes that the scatter-gather buffers take at the receiver.
    pub fn buffers_size(&self) -> u64 {
        self.buffers_size
    }

    fn keep(&mut self, bytes: &[u8]) -> u64 {
        let kept: Box<[u8]> = bytes.into();
        let address = kept.as_ptr().addr() as u64;
        self.buffers.push(kept);
        self.buffers_size += (bytes.len() as u64).next_multiple_of(8);
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_aligned_and_its_offset_recorded() {
        let mut parcel = Parcel::new();
        parcel.bytes(b"abc");
        assert_eq!(parcel.handle(7), 0);
        assert_eq!(parcel.offsets(), [4]);
        assert_eq!(parcel.data().len(), 28);
        let object = Object::decode(&parcel.data()[4..]);
        assert_eq!(object, Some(Object::Handle { handle: 7, cookie: 0, flags: 0 }));
    }

    #[test]
    fn buffers_count_in_multiples_of_eight() {
        let mut parcel = Parcel::new();
        let parent = parcel.buffer(&[0; 13]);
        parcel.buffer_in(&[0; 8], parent, 0);
        assert_eq!(parcel.buffers_size(), 24);
        parcel.clear();
        assert_eq!(parcel.buffers_size(), 0);
    }
}
