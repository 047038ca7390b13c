//! The objects in a transaction's data: binders, handles, descriptors and scatter-gather buffers.

use super::record::{Put, Record};
use crate::uapi::*;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct flat_binder_object`, without the type at its front.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, packed)]
pub struct FlatObject {
    /// `FLAT_BINDER_FLAG_*` and the lowest priority. A node keeps those that it was first sent
    /// with.
    pub flags: u32,
    /// The node's pointer, or the handle in the low 32 bits.
    pub binder: u64,
    /// A value for its owner's use.
    pub cookie: u64,
}

impl FlatObject {
    /// The handle, if the object is a handle.
    pub fn handle(&self) -> u32 {
        self.binder as u32
    }

    /// Decodes a `struct flat_binder_object` whatever its type says (BINDER_SET_CONTEXT_MGR_EXT).
    pub fn decode_any(bytes: &[u8]) -> FlatObject {
        bytes.get(4..).and_then(Record::at).unwrap_or_default()
    }
}

/// `struct binder_fd_object`, without the type at its front.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, packed)]
struct FdObject {
    pad_flags: u32,
    fd: u32,
    /// The rest of the union of 64 bits that the descriptor lies in.
    pad: u32,
    cookie: u64,
}

/// `struct binder_buffer_object`, without the type at its front.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, packed)]
pub struct BufferObject {
    /// `BINDER_BUFFER_FLAG_HAS_PARENT` or 0.
    pub flags: u32,
    /// Address in the sender; after translation, in the receiver.
    pub buffer: u64,
    /// Length in bytes.
    pub length: u64,
    /// Index of the parent among the objects.
    pub parent: u64,
    /// Offset in the parent's buffer of the pointer to this buffer.
    pub parent_offset: u64,
}

impl BufferObject {
    /// Whether another buffer holds a pointer to this one.
    pub fn has_parent(&self) -> bool {
        self.flags & BINDER_BUFFER_FLAG_HAS_PARENT != 0
    }
}

/// `struct binder_fd_array_object`, without the type at its front.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, packed)]
pub struct FdArrayObject {
    /// Passed through.
    pub pad: u32,
    /// How many descriptors of 32 bits the array has.
    pub num_fds: u64,
    /// Index among the objects of the buffer that the array lies in.
    pub parent: u64,
    /// Offset in that buffer at which the array begins.
    pub parent_offset: u64,
}

/// One object, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// A node, by its owner's pointer and cookie.
    Binder {
        /// Whether the reference is strong.
        strong: bool,
        /// The object as it is in the message.
        flat: FlatObject,
    },
    /// A reference to a node, by its handle.
    Handle {
        /// Whether the reference is strong.
        strong: bool,
        /// The object as it is in the message.
        flat: FlatObject,
    },
    /// A descriptor.
    Fd {
        /// Passed through, as in the driver.
        pad_flags: u32,
        /// The number of the descriptor.
        fd: u32,
        /// Passed through, for the two processes to use as they like.
        cookie: u64,
    },
    /// Descriptors that lie in a scatter-gather buffer.
    FdArray(FdArrayObject),
    /// A scatter-gather buffer.
    Buffer(BufferObject),
}

impl Object {
    /// Bytes of the largest object.
    pub const MAX_SIZE: usize = size_of::<binder_buffer_object>();

    /// Whether an object may begin at `offset` of `data_size` bytes of data: aligned to 4 bytes
    /// and with room for at least a header (`binder_get_object`).
    pub fn may_begin_at(offset: u64, data_size: u64) -> bool {
        offset <= data_size && data_size - offset >= 4 && offset.is_multiple_of(4)
    }

    /// Reads the object at `offset` of `data`; None when it is misaligned, out of bounds, of an
    /// unknown type or cut short (`binder_get_object`).
    pub fn read(data: &[u8], offset: u64) -> Option<Object> {
        if !Self::may_begin_at(offset, data.len() as u64) {
            return None;
        }
        Self::decode(&data[offset as usize..])
    }

    /// Decodes the object at the front of `bytes`; None for an unknown type or too few bytes.
    pub fn decode(bytes: &[u8]) -> Option<Object> {
        let (kind, body) = u32::take(bytes)?;
        Some(match kind {
            BINDER_TYPE_BINDER => Object::Binder { strong: true, flat: Record::at(body)? },
            BINDER_TYPE_WEAK_BINDER => Object::Binder { strong: false, flat: Record::at(body)? },
            BINDER_TYPE_HANDLE => Object::Handle { strong: true, flat: Record::at(body)? },
            BINDER_TYPE_WEAK_HANDLE => Object::Handle { strong: false, flat: Record::at(body)? },
            BINDER_TYPE_FD => {
                let FdObject { pad_flags, fd, cookie, .. } = Record::at(body)?;
                Object::Fd { pad_flags, fd, cookie }
            }
            BINDER_TYPE_FDA => Object::FdArray(Record::at(body)?),
            BINDER_TYPE_PTR => Object::Buffer(Record::at(body)?),
            _ => return None,
        })
    }

    /// The size of the object in bytes.
    pub fn size(&self) -> usize {
        match self {
            Object::Binder { .. } | Object::Handle { .. } => size_of::<flat_binder_object>(),
            Object::Fd { .. } => size_of::<binder_fd_object>(),
            Object::FdArray(_) => size_of::<binder_fd_array_object>(),
            Object::Buffer(_) => size_of::<binder_buffer_object>(),
        }
    }

    /// The type word (`BINDER_TYPE_*`).
    pub fn kind(&self) -> u32 {
        match self {
            Object::Binder { strong: true, .. } => BINDER_TYPE_BINDER,
            Object::Binder { strong: false, .. } => BINDER_TYPE_WEAK_BINDER,
            Object::Handle { strong: true, .. } => BINDER_TYPE_HANDLE,
            Object::Handle { strong: false, .. } => BINDER_TYPE_WEAK_HANDLE,
            Object::Fd { .. } => BINDER_TYPE_FD,
            Object::FdArray(_) => BINDER_TYPE_FDA,
            Object::Buffer(_) => BINDER_TYPE_PTR,
        }
    }

    /// Appends the object as it stands in a transaction's data.
    pub fn encode(&self, out: &mut impl Put) {
        out.put(self.kind());
        match *self {
            Object::Binder { flat, .. } | Object::Handle { flat, .. } => out.put(flat),
            Object::Fd { pad_flags, fd, cookie } => {
                out.put(FdObject { pad_flags, fd, pad: 0, cookie });
            }
            Object::FdArray(array) => out.put(array),
            Object::Buffer(buffer) => out.put(buffer),
        }
    }
}

// Each record with its type has the layout of the header's.
const _: () = {
    assert!(4 + size_of::<FlatObject>() == size_of::<flat_binder_object>());
    assert!(4 + size_of::<FdObject>() == size_of::<binder_fd_object>());
    assert!(4 + size_of::<BufferObject>() == size_of::<binder_buffer_object>());
    assert!(4 + size_of::<FdArrayObject>() == size_of::<binder_fd_array_object>());
};
