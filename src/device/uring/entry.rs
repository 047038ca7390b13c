//! An entry: two areas of memory in which the kernel puts a request, and we the answer.
//!
//! An entry is either *ours*, and then it is a [`Entry`] that somebody owns, or *the kernel's*, and
//! then a [`Ring`](super::ring::Ring) keeps it and touches nothing of it until it comes back.
//! Nothing else in the daemon touches this memory, and no client can.

use super::Way;
use super::queue::Queue;
use crate::device::session::ReplyWay;
use crate::{Errno, uapi};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::mem::size_of;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;
use uapi::{fuse_in_header, fuse_out_header, fuse_uring_ent_in_out, fuse_uring_req_header};

/// The kernel's pages for one request. An ioctl carries at most 16 KiB less one byte, and what is
/// before it.
pub const MAX_PAGES: u16 = 8;
/// At least what INIT agreed on, `max(max_write, max_pages * 4096, 8192)`.
const PAYLOAD: usize = MAX_PAGES as usize * 4096;
/// The payload begins in the page of the header: a small request touches one page.
const HEADER: usize = 512;
/// From one entry to the next: whole pages, so that each takes memory by itself.
const STRIDE: usize = PAYLOAD + 4096;

/// Memory for several entries. What no request has come to takes none.
struct Chunk {
    base: NonNull<c_void>,
    length: NonZeroUsize,
}

// SAFETY: it is memory, which belongs to no thread; each entry in it has one owner.
unsafe impl Send for Chunk {}
// SAFETY: as above; a shared chunk is only asked where it lies.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn new(entries: usize) -> Result<Chunk, Errno> {
        let length = NonZeroUsize::new(entries * STRIDE).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: the kernel chooses a place where nothing else is.
        let base = unsafe { mmap_anonymous(None, length, protection, flags)? };
        // SAFETY: this is the mapping that was just made; a huge page would be many entries' at once.
        let _ = unsafe { madvise(base, length.get(), MmapAdvise::MADV_NOHUGEPAGE) };
        Ok(Chunk { base, length })
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: the last entry in this mapping is gone, and nobody else knows where it lies.
        let _ = unsafe { munmap(self.base, self.length.get()) };
    }
}

/// See [the module](self). Boxed, so that it moves cheaply between its owners.
pub struct Entry {
    pub(super) queue: Arc<Queue>,
    chunk: Arc<Chunk>,
    index: usize,
}

impl Entry {
    /// So many new entries, which the kernel does not know yet.
    pub fn several(queue: &Arc<Queue>, count: usize) -> Result<Vec<Box<Entry>>, Errno> {
        let chunk = Arc::new(Chunk::new(count)?);
        let new = |index| Box::new(Entry { queue: queue.clone(), chunk: chunk.clone(), index });
        Ok((0..count).map(new).collect())
    }

    fn base(&self) -> *mut u8 {
        self.chunk.base.as_ptr().cast::<u8>().wrapping_add(self.index * STRIDE)
    }

    /// A number that no other entry has at the same time.
    pub fn id(&self) -> u64 {
        self.base() as u64
    }

    /// The two areas, as the kernel is told of them.
    pub fn areas(&self) -> [libc::iovec; 2] {
        let (base, payload) = (self.base(), self.base().wrapping_add(HEADER));
        [
            libc::iovec { iov_base: base.cast(), iov_len: size_of::<fuse_uring_req_header>() },
            libc::iovec { iov_base: payload.cast(), iov_len: PAYLOAD },
        ]
    }

    fn area(&self) -> &[u8] {
        // SAFETY: `index` lies in the chunk, which lives as long as this; while there is an owner to
        // borrow from, the kernel does not write here.
        unsafe { std::slice::from_raw_parts(self.base(), HEADER + PAYLOAD) }
    }

    fn area_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `area`, and `&mut self` is the only borrow of this entry.
        unsafe { std::slice::from_raw_parts_mut(self.base(), HEADER + PAYLOAD) }
    }

    fn header(&self) -> fuse_uring_req_header {
        uapi::parse(self.area()).unwrap_or_else(zerocopy::FromZeros::new_zeroed)
    }

    /// The name by which the kernel finds what is committed.
    pub fn commit_id(&self) -> u64 {
        self.header().ring_ent_in_out.commit_id
    }

    /// Puts the request into `buffer` as a read of `/dev/fuse` would have given it. EINVAL: its
    /// lengths do not agree.
    pub fn request<'a>(&self, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], Errno> {
        let header = self.header();
        let raw: fuse_in_header = uapi::parse(&header.in_out).ok_or(Errno::EINVAL)?;
        let payload = header.ring_ent_in_out.payload_sz as usize;
        let fixed = size_of::<fuse_in_header>();
        let operation = (raw.len as usize).checked_sub(fixed + payload).ok_or(Errno::EINVAL)?;
        let parts = (header.op_in.get(..operation), self.area()[HEADER..].get(..payload));
        let (Some(operation), Some(payload)) = parts else { return Err(Errno::EINVAL) };
        buffer.clear();
        buffer.extend_from_slice(&header.in_out[..fixed]);
        buffer.extend_from_slice(operation);
        buffer.extend_from_slice(payload);
        Ok(buffer)
    }

    /// Whether the request can be served without being held up: it is a read of returns that writes
    /// no commands (one that finds some is left to others half-way), or asks for the version.
    pub fn is_light(&self) -> bool {
        let header = self.header();
        let opcode = uapi::parse::<fuse_in_header>(&header.in_out).map(|it| it.opcode);
        let Some(ioctl) = uapi::parse::<uapi::fuse_ioctl_in>(&header.op_in) else { return false };
        let size = header.ring_ent_in_out.payload_sz as usize;
        let argument = self.area()[HEADER..].get(..size);
        opcode == Some(uapi::FUSE_IOCTL)
            && match ioctl.cmd {
                uapi::BINDER_VERSION => true,
                uapi::BINDER_WRITE_READ => argument
                    .and_then(uapi::parse::<uapi::binder_write_read>)
                    .is_some_and(|call| call.write_size == 0),
                _ => false,
            }
    }

    /// Puts the answer where the request was. One that is too long becomes EIO.
    pub fn put(&mut self, unique: u64, mut error: i32, mut parts: &[&[u8]]) {
        let mut length: usize = parts.iter().map(|part| part.len()).sum();
        if length > PAYLOAD {
            (error, parts, length) = (-(Errno::EIO as i32), &[], 0);
        }
        let commit_id = self.commit_id();
        let out = fuse_out_header {
            len: (size_of::<fuse_out_header>() + length) as u32,
            error,
            unique: if unique == 0 { commit_id } else { unique },
        };
        let place =
            fuse_uring_ent_in_out { commit_id, payload_sz: length as u32, ..Default::default() };
        let area = self.area_mut();
        area[..size_of::<fuse_out_header>()].copy_from_slice(uapi::bytes_of(&out));
        let at = std::mem::offset_of!(fuse_uring_req_header, ring_ent_in_out);
        area[at..][..size_of::<fuse_uring_ent_in_out>()].copy_from_slice(uapi::bytes_of(&place));
        let mut rest = &mut area[HEADER..];
        for part in parts {
            let (here, after) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = after;
        }
    }
}

impl ReplyWay for Entry {
    fn reply(mut self: Box<Self>, unique: u64, error: i32, parts: &[&[u8]]) {
        self.put(unique, error, parts);
        Way::answered(self);
    }
}
