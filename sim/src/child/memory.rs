//! The memory that a child and its parent share.
#![allow(unsafe_code, reason = "an anonymous mapping")]

use super::sys::PAGE;
use nix::errno::Errno;
use std::cell::Cell;
use std::ptr::NonNull;

/// Memory that a child shares with the process that drives it, at the same address in both. A page
/// that nobody may touch lies behind it.
#[derive(Debug)]
pub struct SharedMemory {
    start: NonNull<u8>,
    len: usize,
    /// The end of the last bytes that were put.
    end: Cell<usize>,
}

// SAFETY: the mapping is owned by this value alone, and no reference ever covers it.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    /// `len` bytes, a multiple of the page size, and the forbidden page. Errors: those of mmap(2).
    pub fn new(len: usize) -> nix::Result<SharedMemory> {
        assert!(len > 0 && len.is_multiple_of(PAGE));
        // SAFETY: an anonymous mapping at an address of the kernel's choice covers nothing else.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len + PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // SAFETY: the last page of the mapping that was just made.
        Errno::result(unsafe { libc::mprotect(start.byte_add(len), PAGE, libc::PROT_NONE) })?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::EFAULT)?;
        Ok(SharedMemory { start, len, end: Cell::new(0) })
    }

    /// Address of the byte at `offset`, in every process that shares the memory.
    pub fn address(&self, offset: usize) -> u64 {
        self.start.as_ptr().addr() as u64 + offset as u64
    }

    /// Bytes before the forbidden page.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes bytes at `offset`.
    ///
    /// # Panics
    /// When they do not lie inside.
    pub fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset, "the memory is too small");
        self.end.set(self.end.get().max(offset + bytes.len()));
        // SAFETY: inside the mapping, which lives as long as `self`; no reference ever covers it.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.start.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }

    /// Zeroes everything that was put from `offset` on.
    pub fn clear(&self, offset: usize) {
        let end = self.end.replace(offset);
        if end > offset {
            self.put(offset, &vec![0; end - offset]);
            self.end.set(offset);
        }
    }

    /// The bytes at `offset`.
    ///
    /// # Panics
    /// When they do not lie inside.
    pub fn get(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset <= self.len && len <= self.len - offset, "out of the memory");
        let mut bytes = vec![0; len];
        // SAFETY: as in `put`.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), bytes.as_mut_ptr(), len);
        }
        bytes
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` has made.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len + PAGE) };
    }
}
