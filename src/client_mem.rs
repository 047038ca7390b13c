//! Reading and writing the memory of a client process.
//!
//! The engine and the allocator only know the trait [`ClientMemory`]; behind it stands another
//! process ([`ProcessMemory`], by `process_vm_readv` and `process_vm_writev`), what the kernel
//! has gathered for a CUSE retry, or plain bytes in tests and fuzz targets.

use crate::Errno;

/// A stretch of memory that other processes may change while it is written to: a piece of a
/// client's buffer as the daemon has it mapped. It is a destination for copies, never read.
#[derive(Clone, Copy)]
pub struct SharedSlice<'a> {
    start: *mut u8,
    len: usize,
    lifetime: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> SharedSlice<'a> {
    /// # Safety
    /// `start..start + len` must be mapped writable for `'a`, and no Rust reference may cover it.
    pub unsafe fn new(start: *mut u8, len: usize) -> Self {
        Self { start, len, lifetime: std::marker::PhantomData }
    }

    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The address space of a client, as `copy_from_user` and `copy_to_user` see it.
///
/// Every address and length comes from the client: implementations check, and copy all or fail
/// with EFAULT (then what was copied is undefined but harmless). EPERM says that this machine
/// does not let the daemon reach the client's memory at all.
pub trait ClientMemory: Send + Sync {
    /// Copies `dst.len()` bytes from `addr` of the client.
    fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), Errno>;

    /// Copies from several places of the client at once.
    fn read_vectored(&self, parts: &mut [(u64, &mut [u8])]) -> Result<(), Errno> {
        parts.iter_mut().try_for_each(|(addr, dst)| self.read(*addr, dst))
    }

    /// Copies from the client straight into a buffer that is shared with another process.
    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno>;

    /// Copies `src` to `addr` of the client.
    fn write(&self, addr: u64, src: &[u8]) -> Result<(), Errno>;
}
