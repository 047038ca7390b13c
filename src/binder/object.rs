//! The objects in a transaction's data: binders, handles, descriptors and scatter-gather buffers.

use super::wire::{Put, Reader};
use crate::uapi::*;

/// `FLAT_BINDER_FLAG_*` and the lowest priority, as a node keeps them from its first appearance.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct FlatObject {
    pub flags: u32,
    /// The node's pointer, or the handle in the low 32 bits.
    pub binder: u64,
    pub cookie: u64,
}

impl FlatObject {
    pub fn handle(&self) -> u32 {
        self.binder as u32
    }

    /// Decodes a `struct flat_binder_object` whatever its type says (BINDER_SET_CONTEXT_MGR_EXT).
    pub fn decode_any(bytes: &[u8]) -> FlatObject {
        let mut b = Reader(bytes);
        let _type = b.u32();
        FlatObject { flags: b.u32(), binder: b.u64(), cookie: b.u64() }
    }
}

/// `struct binder_buffer_object`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BufferObject {
    pub flags: u32,
    /// Address in the sender; after translation in the receiver.
    pub buffer: u64,
    /// Bytes.
    pub length: u64,
    /// Index of the parent among the objects.
    pub parent: u64,
    /// Where in the parent's buffer the pointer to this one lies.
    pub parent_offset: u64,
}

impl BufferObject {
    pub fn has_parent(&self) -> bool {
        self.flags & BINDER_BUFFER_FLAG_HAS_PARENT != 0
    }
}

/// `struct binder_fd_array_object`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct FdArrayObject {
    /// Passes through.
    pub pad: u32,
    pub num_fds: u64,
    pub parent: u64,
    pub parent_offset: u64,
}

/// One object, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    Binder {
        strong: bool,
        flat: FlatObject,
    },
    Handle {
        strong: bool,
        flat: FlatObject,
    },
    /// A descriptor; `cookie` passes through.
    Fd {
        pad_flags: u32,
        fd: u32,
        cookie: u64,
    },
    FdArray(FdArrayObject),
    Buffer(BufferObject),
}

impl Object {
    /// Bytes of the largest object.
    pub const MAX_SIZE: usize = size_of::<binder_buffer_object>();

    /// Bytes of an object of that type; nothing for an unknown type.
    fn size_of_type(kind: u32) -> Option<usize> {
        Some(match kind {
            BINDER_TYPE_BINDER
            | BINDER_TYPE_WEAK_BINDER
            | BINDER_TYPE_HANDLE
            | BINDER_TYPE_WEAK_HANDLE => size_of::<flat_binder_object>(),
            BINDER_TYPE_FD => size_of::<binder_fd_object>(),
            BINDER_TYPE_PTR => size_of::<binder_buffer_object>(),
            BINDER_TYPE_FDA => size_of::<binder_fd_array_object>(),
            _ => return None,
        })
    }

    /// Whether an object may begin at `offset` of `data_size` bytes of data: aligned to 4 bytes
    /// and with room for at least a header (`binder_get_object`).
    pub fn may_begin_at(offset: u64, data_size: u64) -> bool {
        offset <= data_size && data_size - offset >= 4 && offset.is_multiple_of(4)
    }

    /// Reads the object at `offset` of `data`; nothing when it is misaligned, out of bounds, of an
    /// unknown type or cut short (`binder_get_object`).
    pub fn read(data: &[u8], offset: u64) -> Option<Object> {
        if !Self::may_begin_at(offset, data.len() as u64) {
            return None;
        }
        Self::decode(&data[offset as usize..])
    }

    /// Decodes the object at the front of `bytes`; nothing for an unknown type or too few bytes.
    pub fn decode(bytes: &[u8]) -> Option<Object> {
        let mut reader = Reader(bytes);
        let b = &mut reader;
        let kind = b.u32();
        if bytes.len() < Self::size_of_type(kind)? {
            return None;
        }
        let first = b.u32();
        let flat =
            |b: &mut Reader<'_>| FlatObject { flags: first, binder: b.u64(), cookie: b.u64() };
        Some(match kind {
            BINDER_TYPE_BINDER => Object::Binder { strong: true, flat: flat(b) },
            BINDER_TYPE_WEAK_BINDER => Object::Binder { strong: false, flat: flat(b) },
            BINDER_TYPE_HANDLE => Object::Handle { strong: true, flat: flat(b) },
            BINDER_TYPE_WEAK_HANDLE => Object::Handle { strong: false, flat: flat(b) },
            BINDER_TYPE_FD => {
                let fd = b.u64() as u32;
                Object::Fd { pad_flags: first, fd, cookie: b.u64() }
            }
            BINDER_TYPE_FDA => Object::FdArray(FdArrayObject {
                pad: first,
                num_fds: b.u64(),
                parent: b.u64(),
                parent_offset: b.u64(),
            }),
            _ => Object::Buffer(BufferObject {
                flags: first,
                buffer: b.u64(),
                length: b.u64(),
                parent: b.u64(),
                parent_offset: b.u64(),
            }),
        })
    }

    /// Bytes of this object.
    pub fn size(&self) -> usize {
        match self {
            Object::Binder { .. } | Object::Handle { .. } => size_of::<flat_binder_object>(),
            Object::Fd { .. } => size_of::<binder_fd_object>(),
            Object::FdArray(_) => size_of::<binder_fd_array_object>(),
            Object::Buffer(_) => size_of::<binder_buffer_object>(),
        }
    }

    /// Appends the object as it stands in a transaction's data.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Object::Binder { strong, flat } | Object::Handle { strong, flat } => {
                out.put_u32(match (self, strong) {
                    (Object::Binder { .. }, true) => BINDER_TYPE_BINDER,
                    (Object::Binder { .. }, false) => BINDER_TYPE_WEAK_BINDER,
                    (_, true) => BINDER_TYPE_HANDLE,
                    (_, false) => BINDER_TYPE_WEAK_HANDLE,
                });
                out.put_u32(flat.flags);
                out.put_u64(flat.binder);
                out.put_u64(flat.cookie);
            }
            Object::Fd { pad_flags, fd, cookie } => {
                out.put_u32(BINDER_TYPE_FD);
                out.put_u32(pad_flags);
                out.put_u64(fd.into());
                out.put_u64(cookie);
            }
            Object::FdArray(array) => {
                out.put_u32(BINDER_TYPE_FDA);
                out.put_u32(array.pad);
                out.put_u64(array.num_fds);
                out.put_u64(array.parent);
                out.put_u64(array.parent_offset);
            }
            Object::Buffer(buffer) => {
                out.put_u32(BINDER_TYPE_PTR);
                out.put_u32(buffer.flags);
                out.put_u64(buffer.buffer);
                out.put_u64(buffer.length);
                out.put_u64(buffer.parent);
                out.put_u64(buffer.parent_offset);
            }
        }
    }
}
