//! binder_alloc: the buffers in a client's mapping, and their pages.

use crate::{Errno, client_mem::ClientMemory, mm_shim::Mm};
use std::sync::Arc;

/// What a transaction asks of [`Alloc::alloc_new_buf`]; sizes in bytes, all from a client.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub data_size: u64,
    pub offsets_size: u64,
    pub extra_buffers_size: u64,
    pub is_async: bool,
}

/// One allocated buffer, as a value: the key to it is `offset` in the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Offset of the buffer in the mapping, in bytes.
    pub offset: usize,
    /// Address of the buffer in the client (`user_data`).
    pub user_data: u64,
    pub data_size: usize,
    pub offsets_size: usize,
    pub extra_buffers_size: usize,
    pub is_async: bool,
    /// The sender took more one-way space than is good (`oneway_spam_suspect`).
    pub oneway_spam_suspect: bool,
}

/// The allocator of one binder process (`struct binder_alloc`).
pub struct Alloc {
    mm: Arc<dyn Mm>,
}

#[allow(unused_variables, clippy::todo)]
impl Alloc {
    pub fn new(mm: Arc<dyn Mm>) -> Arc<Alloc> {
        Arc::new(Alloc { mm })
    }
    /// `binder_alloc_mmap_handler`: EBUSY when there is one already.
    pub fn mmap_handler(&self, address: u64, size: usize) -> Result<(), Errno> {
        todo!()
    }
    /// `binder_alloc_new_buf`.
    pub fn alloc_new_buf(&self, request: &Request) -> Result<Buffer, Errno> {
        todo!()
    }
    /// `binder_alloc_prepare_to_free`.
    pub fn prepare_to_free(&self, user_ptr: u64) -> Result<Buffer, Errno> {
        todo!()
    }
    pub fn set_allow_user_free(&self, buffer: &Buffer, allow: bool) {
        todo!()
    }
    pub fn set_clear_on_free(&self, buffer: &Buffer) {
        todo!()
    }
    pub fn free_buf(&self, buffer: &Buffer) {
        todo!()
    }
    pub fn copy_user_to_buffer(
        &self,
        buffer: &Buffer,
        offset: usize,
        from: &dyn ClientMemory,
        addr: u64,
        len: usize,
    ) -> Result<(), Errno> {
        todo!()
    }
    pub fn copy_to_buffer(
        &self,
        buffer: &Buffer,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        todo!()
    }
    pub fn copy_from_buffer(
        &self,
        buffer: &Buffer,
        offset: usize,
        bytes: &mut [u8],
    ) -> Result<(), Errno> {
        todo!()
    }
    /// `binder_alloc_deferred_release`.
    pub fn deferred_release(&self) {
        todo!()
    }
}
