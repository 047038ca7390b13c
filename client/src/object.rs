//! Binder objects in the data of a transaction.

use fakebinder::protocol::object::{self as protocol, BufferObject, FdArrayObject, FlatObject};

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
        /// A value for the owner's use, the same each time that the node is sent.
        cookie: u64,
        /// `FLAT_BINDER_FLAG_*`.
        flags: u32,
    },
    /// The same, sent as a weak reference (`BINDER_TYPE_WEAK_BINDER`).
    WeakBinder {
        /// Identity of the node in its process.
        ptr: u64,
        /// A value for the owner's use.
        cookie: u64,
        /// `FLAT_BINDER_FLAG_*`.
        flags: u32,
    },
    /// A reference of this process to a node of another (`BINDER_TYPE_HANDLE`).
    Handle {
        /// The reference; 0 is the context manager.
        handle: u32,
        /// Not used by the driver; 0 in received objects.
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
        /// The descriptor's number, in the process whose view this is.
        fd: u32,
        /// Not used by the driver, but passed on.
        cookie: u64,
    },
    /// A scatter-gather buffer (`BINDER_TYPE_PTR`).
    Buffer {
        /// Address of the buffer's bytes, in the process whose view this is.
        buffer: u64,
        /// Length in bytes.
        length: u64,
        /// `BINDER_BUFFER_FLAG_HAS_PARENT` or 0.
        flags: u32,
        /// Index (in the offsets array) of the buffer that holds a pointer to this one.
        parent: u64,
        /// Offset in the parent at which that pointer lies, in bytes.
        parent_offset: u64,
    },
    /// An array of descriptors inside a scatter-gather buffer (`BINDER_TYPE_FDA`).
    FdArray {
        /// How many 32-bit descriptors the array has.
        num_fds: u64,
        /// Index (in the offsets array) of the buffer that the array lies in.
        parent: u64,
        /// Offset in the parent at which the array begins, in bytes; a multiple of 4.
        parent_offset: u64,
    },
}

impl Object {
    /// The object's type word (`BINDER_TYPE_*`).
    pub fn kind(&self) -> u32 {
        self.record().kind()
    }

    /// Length of the object in the data: 24 bytes, 40 for a buffer, 32 for a descriptor array.
    pub fn size(&self) -> usize {
        self.record().size()
    }

    /// Appends the object's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.record().encode(out);
    }

    /// The object at the beginning of `bytes`; `None` for an unknown type or too few bytes.
    pub fn decode(bytes: &[u8]) -> Option<Object> {
        protocol::Object::decode(bytes).map(Object::from)
    }

    /// The object as it is encoded.
    fn record(&self) -> protocol::Object {
        let flat = |flags, binder, cookie| FlatObject { flags, binder, cookie };
        match *self {
            Object::Binder { ptr, cookie, flags } => {
                protocol::Object::Binder { strong: true, flat: flat(flags, ptr, cookie) }
            }
            Object::WeakBinder { ptr, cookie, flags } => {
                protocol::Object::Binder { strong: false, flat: flat(flags, ptr, cookie) }
            }
            Object::Handle { handle, cookie, flags } => {
                protocol::Object::Handle { strong: true, flat: flat(flags, handle.into(), cookie) }
            }
            Object::WeakHandle { handle, cookie, flags } => {
                protocol::Object::Handle { strong: false, flat: flat(flags, handle.into(), cookie) }
            }
            Object::Fd { fd, cookie } => protocol::Object::Fd { pad_flags: 0, fd, cookie },
            Object::Buffer { buffer, length, flags, parent, parent_offset } => {
                let buffer = BufferObject { flags, buffer, length, parent, parent_offset };
                protocol::Object::Buffer(buffer)
            }
            Object::FdArray { num_fds, parent, parent_offset } => {
                let array = FdArrayObject { pad: 0, num_fds, parent, parent_offset };
                protocol::Object::FdArray(array)
            }
        }
    }
}

impl From<protocol::Object> for Object {
    fn from(object: protocol::Object) -> Object {
        match object {
            protocol::Object::Binder { strong, flat } => {
                let FlatObject { flags, binder: ptr, cookie } = flat;
                match strong {
                    true => Object::Binder { ptr, cookie, flags },
                    false => Object::WeakBinder { ptr, cookie, flags },
                }
            }
            protocol::Object::Handle { strong, flat } => {
                let (handle, FlatObject { flags, cookie, .. }) = (flat.handle(), flat);
                match strong {
                    true => Object::Handle { handle, cookie, flags },
                    false => Object::WeakHandle { handle, cookie, flags },
                }
            }
            protocol::Object::Fd { fd, cookie, .. } => Object::Fd { fd, cookie },
            protocol::Object::Buffer(buffer) => {
                let BufferObject { flags, buffer, length, parent, parent_offset } = buffer;
                Object::Buffer { buffer, length, flags, parent, parent_offset }
            }
            protocol::Object::FdArray(FdArrayObject { num_fds, parent, parent_offset, .. }) => {
                Object::FdArray { num_fds, parent, parent_offset }
            }
        }
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
