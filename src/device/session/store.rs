//! Writing into the kernel's page cache of a file.

use super::Session;
use crate::lock_order::assert_nothing_held;
use crate::probe::{Verb, fault};
use crate::{Errno, uapi};
use std::mem::size_of;
use std::os::fd::AsRawFd;

impl Session {
    /// `FUSE_NOTIFY_STORE`: the page cache of the node has these bytes at `offset`, whoever has it
    /// mapped. May wait for a READ of one of the pages, which another thread has to answer.
    ///
    /// ENOENT: the kernel does not know the node any more; ENOMEM: it has no page for them; EFAULT:
    /// a page of the bytes is missing.
    pub fn store(
        &self,
        node: u64,
        offset: usize,
        from: *const u8,
        len: usize,
    ) -> Result<(), Errno> {
        assert_nothing_held();
        let told = uapi::fuse_notify_store_out {
            nodeid: node,
            offset: offset as u64,
            size: len as u32,
            padding: 0,
        };
        let header = uapi::fuse_out_header {
            len: (size_of::<uapi::fuse_out_header>() + size_of_val(&told) + len) as u32,
            error: uapi::FUSE_NOTIFY_STORE as i32,
            unique: 0,
        };
        let part =
            |start: *const u8, len| libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len };
        let parts = [
            part((&raw const header).cast(), size_of_val(&header)),
            part((&raw const told).cast(), size_of_val(&told)),
            part(from, len),
        ];
        loop {
            fault(Verb::Reply)?;
            // SAFETY: the kernel only reads, two structures that live until the call returns, and
            // memory that it may find to be missing.
            let written = unsafe {
                libc::writev(self.fd.as_raw_fd(), parts.as_ptr(), parts.len() as libc::c_int)
            };
            match Errno::result(written) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}
