//! Binder objects in the data of a transaction.

use crate::uapi;
use crate::wire::{Fields, put_u32, put_u64};

/// An object as it lies in a transaction's data, at an offset that the offsets array names.
///
/// The same type writes an outgoing object and reads a received one: the driver turns a
/// `Binder` into a `Handle` on the way (or back, at the owner), gives `Fd` a number that is
/// valid at the receiver, and lets the pointers of `Buffer` point into the receiver's mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// A node of the sender (`BINDER_TYPE_BINDER`): `ptr` is its identity, `cookie` travels with
    /// it. `flags`: `FLAT_BINDER_FLAG_*` and, in the lowest byte, the node's minimum priority.
    Binder {
        /// Identity of the node in its process; 0 is the null binder.
        ptr: u64,
        /// A value of the owner's, the same each time that the node is sent.
        cookie: u64,
        /// `FLAT_BINDER_FLAG_*`.
        flags: u32,
    },
    /// The same, sent as a weak reference (`BINDER_TYPE_WEAK_BINDER`).
    WeakBinder {
        /// Identity of the node in its process.
        ptr: u64,
        /// A value of the owner's.
        cookie: u64,
        /// `FLAT_BINDER_FLAG_*`.
        flags: u32,
    },
    /// A reference of this process to a node of another (`BINDER_TYPE_HANDLE`).
    Handle {
        /// The reference; 0 is the context manager.
        handle: u32,
        /// Not used by the driver; 0 in what is received.
        cookie: u64,
        /// `FLAT_BINDER_FLAG_*`.
        flags: u32,
    },
    /// The same, sent as a weak reference (`BINDER_TYPE_WEAK_HANDLE`).
    WeakHandle {
        /// The reference.
        handle: u32,
        /// Not used by the driver.
        cookie: u64,
        /// `FLAT_BINDER_FLAG_*`.
        flags: u32,
    },
    /// A file descriptor (`BINDER_TYPE_FD`).
    Fd {
        /// Its number, in the process whose view this is.
        fd: u32,
        /// Not used by the driver, but carried.
        cookie: u64,
    },
    /// A scatter-gather buffer (`BINDER_TYPE_PTR`).
    Buffer {
        /// Address of its bytes, in the process whose view this is.
        buffer: u64,
        /// Length in bytes.
        length: u64,
        /// `BINDER_BUFFER_FLAG_HAS_PARENT` or 0.
        flags: u32,
        /// Index (in the offsets array) of the buffer that holds a pointer to this one.
        parent: u64,
        /// Where in the parent that pointer lies, in bytes.
        parent_offset: u64,
    },
    /// An array of descriptors inside a scatter-gather buffer (`BINDER_TYPE_FDA`).
    FdArray {
        /// How many 32-bit descriptors the array has.
        num_fds: u64,
        /// Index (in the offsets array) of the buffer that the array lies in.
        parent: u64,
        /// Where in the parent the array begins, in bytes; a multiple of 4.
        parent_offset: u64,
    },
}

impl Object {
    /// The object's type word (`BINDER_TYPE_*`).
    pub fn kind(&self) -> u32 {
        match self {
            Object::Binder { .. } => uapi::BINDER_TYPE_BINDER,
            Object::WeakBinder { .. } => uapi::BINDER_TYPE_WEAK_BINDER,
            Object::Handle { .. } => uapi::BINDER_TYPE_HANDLE,
            Object::WeakHandle { .. } => uapi::BINDER_TYPE_WEAK_HANDLE,
            Object::Fd { .. } => uapi::BINDER_TYPE_FD,
            Object::Buffer { .. } => uapi::BINDER_TYPE_PTR,
            Object::FdArray { .. } => uapi::BINDER_TYPE_FDA,
        }
    }

    /// Length of the object in the data: 24 bytes, 40 for a buffer, 32 for a descriptor array.
    pub fn size(&self) -> usize {
        match self {
            Object::Buffer { .. } => 40,
            Object::FdArray { .. } => 32,
            _ => 24,
        }
    }

    /// Appends the object's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u32(out, self.kind());
        match *self {
            Object::Binder { ptr, cookie, flags } | Object::WeakBinder { ptr, cookie, flags } => {
                put_u32(out, flags);
                put_u64(out, ptr);
                put_u64(out, cookie);
            }
            Object::Handle { handle, cookie, flags }
            | Object::WeakHandle { handle, cookie, flags } => {
                put_u32(out, flags);
                put_u64(out, u64::from(handle));
                put_u64(out, cookie);
            }
            Object::Fd { fd, cookie } => {
                put_u32(out, 0);
                put_u64(out, u64::from(fd));
                put_u64(out, cookie);
            }
            Object::Buffer { buffer, length, flags, parent, parent_offset } => {
                put_u32(out, flags);
                put_u64(out, buffer);
                put_u64(out, length);
                put_u64(out, parent);
                put_u64(out, parent_offset);
            }
            Object::FdArray { num_fds, parent, parent_offset } => {
                put_u32(out, 0);
                put_u64(out, num_fds);
                put_u64(out, parent);
                put_u64(out, parent_offset);
            }
        }
    }

    /// The object at the beginning of `bytes`; `None` for an unknown type or too few bytes.
    pub fn decode(bytes: &[u8]) -> Option<Object> {
        let mut fields = Fields(bytes);
        let kind = fields.u32()?;
        let flags = fields.u32()?;
        let value = fields.u64()?;
        let second = fields.u64()?;
        // The union of a pointer and a 32-bit handle or descriptor: its first four bytes.
        let handle = u32::from_ne_bytes(bytes[8..12].try_into().ok()?);
        Some(match kind {
            uapi::BINDER_TYPE_BINDER => Object::Binder { ptr: value, cookie: second, flags },
            uapi::BINDER_TYPE_WEAK_BINDER => {
                Object::WeakBinder { ptr: value, cookie: second, flags }
            }
            uapi::BINDER_TYPE_HANDLE => Object::Handle { handle, cookie: second, flags },
            uapi::BINDER_TYPE_WEAK_HANDLE => Object::WeakHandle { handle, cookie: second, flags },
            uapi::BINDER_TYPE_FD => Object::Fd { fd: handle, cookie: second },
            uapi::BINDER_TYPE_PTR => Object::Buffer {
                buffer: value,
                length: second,
                flags,
                parent: fields.u64()?,
                parent_offset: fields.u64()?,
            },
            uapi::BINDER_TYPE_FDA => {
                Object::FdArray { num_fds: value, parent: second, parent_offset: fields.u64()? }
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Object;

    #[test]
    fn every_object_reads_back_as_written() {
        let objects = [
            Object::Binder { ptr: 1 << 40, cookie: 2, flags: 0x100 },
            Object::WeakBinder { ptr: 3, cookie: 4, flags: 0 },
            Object::Handle { handle: 5, cookie: 6, flags: 7 },
            Object::WeakHandle { handle: u32::MAX, cookie: 0, flags: 0 },
            Object::Fd { fd: 8, cookie: 9 },
            Object::Buffer { buffer: 10, length: 11, flags: 1, parent: 12, parent_offset: 13 },
            Object::FdArray { num_fds: 14, parent: 15, parent_offset: 16 },
        ];
        for object in objects {
            let mut bytes = Vec::new();
            object.encode(&mut bytes);
            assert_eq!(bytes.len(), object.size());
            assert_eq!(Object::decode(&bytes), Some(object));
            bytes.pop();
            assert_eq!(Object::decode(&bytes), None);
        }
        assert_eq!(Object::decode(&[0; 40]), None);
    }
}
