//! The buffers of one mapping: which ranges are taken, which are free, and for whom.
//!
//! No page, no lock and no system call here: a plain value behind the buffer mutex. Every range
//! is a multiple of 8 bytes; neighbouring free ranges are always merged. All offsets are bytes
//! from the start of the mapping.

use crate::Errno;
use crate::client_log::{Kind, client_log, user_error};
use crate::page::PAGE_SIZE;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// What a transaction asks of [`Alloc::alloc_new_buf`](super::Alloc::alloc_new_buf); sizes in
/// bytes, all from a client.
#[derive(Debug, Clone, Copy)]
pub struct BufferRequest {
    /// Bytes of the data.
    pub data_size: u64,
    /// Bytes of the offsets of the objects, 8 for each.
    pub offsets_size: u64,
    /// Bytes of the scatter-gather buffers and of the security context.
    pub extra_buffers_size: u64,
    /// Whether the buffer is for a one-way call: at most half of the mapping is for these.
    pub is_async: bool,
    /// The sender's thread group, to whom the buffer is charged.
    pub pid: i32,
}

/// One allocated buffer. It is known by its `offset` in the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Offset of the buffer in the mapping, in bytes.
    pub offset: usize,
    /// Address of the buffer in the client (`user_data`).
    pub user_data: u64,
    /// Bytes of the data, as asked for.
    pub data_size: usize,
    /// Bytes of the offsets, as asked for.
    pub offsets_size: usize,
    /// Bytes of what follows the offsets, as asked for.
    pub extra_buffers_size: usize,
    /// Whether the buffer is that of a one-way call.
    pub is_async: bool,
    /// Whether the sender has taken a suspicious share of the one-way space
    /// (`oneway_spam_suspect`).
    pub oneway_spam_suspect: bool,
}

impl Buffer {
    /// Bytes that the buffer takes in the mapping (`binder_alloc_buffer_size`).
    pub fn size(&self) -> usize {
        let parts = [self.data_size, self.offsets_size, self.extra_buffers_size];
        parts.map(|part| part.next_multiple_of(8)).iter().sum::<usize>().max(8)
    }
}

/// Buffers are rounded up to, and never smaller than, the size of a pointer.
const ALIGNMENT: u64 = 8;

/// More one-way buffers than this from one process make it a spam suspect.
const ONEWAY_SPAM_BUFFERS: usize = 50;

/// A range of the mapping (`struct binder_buffer`).
///
/// - free: may be handed out; `Range::taken` is `None`
/// - allocated: belongs to a transaction
#[derive(Debug)]
pub(super) struct Node {
    pub size: usize,
    pub taken: Option<Taken>,
    /// The sender whose buffer was the last in this range. The driver charges a new buffer to its
    /// sender only after it has looked for spam, so until then the buffer counts for this pid.
    pub pid: i32,
}

#[derive(Debug)]
pub(super) struct Taken {
    data_size: usize,
    offsets_size: usize,
    extra_buffers_size: usize,
    pub is_async: bool,
    oneway_spam_suspect: bool,
    allow_user_free: bool,
    clear_on_free: bool,
}

/// What one sender holds of the one-way space.
#[derive(Debug, Default)]
pub(super) struct OnewayUse {
    pub buffers: usize,
    pub bytes: usize,
}

#[derive(Debug)]
pub(super) struct Buffers {
    vm_start: u64,
    pub(super) buffer_size: usize,
    /// Every range, free and allocated, by address.
    pub(super) ranges: BTreeMap<usize, Node>,
    /// Free ranges by (size, offset): the best fit is the first that is large enough.
    pub(super) free: BTreeSet<(usize, usize)>,
    allocated: usize,
    free_async_space: usize,
    pub(super) oneway: HashMap<i32, OnewayUse>,
    oneway_spam_detected: bool,
}

/// `sanitized_size`: each part rounded up to 8 bytes; EINVAL when the sum overflows.
pub(super) fn sanitized_size(request: &BufferRequest) -> Result<usize, Errno> {
    let part = |size: u64| size.checked_next_multiple_of(ALIGNMENT);
    let sum = part(request.data_size)
        .zip(part(request.offsets_size))
        .and_then(|(data, offsets)| data.checked_add(offsets))
        .zip(part(request.extra_buffers_size))
        .and_then(|(sum, extra)| sum.checked_add(extra))
        .ok_or(Errno::EINVAL)?;
    usize::try_from(sum.max(ALIGNMENT)).map_err(|_| Errno::EINVAL)
}

/// The pages that `buffer` touches and that lie wholly within `free`: those that become unused when
/// `buffer` becomes part of the free range `free`, or used when it is cut from that. A page shared
/// with a neighbour in use is none of them.
pub(super) fn pages_of(buffer: Range<usize>, free: Range<usize>) -> Range<usize> {
    let start = (buffer.start / PAGE_SIZE).max(free.start.div_ceil(PAGE_SIZE));
    let end = buffer.end.div_ceil(PAGE_SIZE).min(free.end / PAGE_SIZE);
    start..end.max(start)
}

impl Buffers {
    pub(super) fn new(vm_start: u64, buffer_size: usize) -> Self {
        Self {
            vm_start,
            buffer_size,
            ranges: BTreeMap::from([(0, Node { size: buffer_size, taken: None, pid: 0 })]),
            free: BTreeSet::from([(buffer_size, 0)]),
            allocated: 0,
            free_async_space: buffer_size / 2,
            oneway: HashMap::new(),
            oneway_spam_detected: false,
        }
    }

    pub(super) fn allocated(&self) -> usize {
        self.allocated
    }

    pub(super) fn free_async_space(&self) -> usize {
        self.free_async_space
    }

    /// Takes `size` bytes (from [`sanitized_size`]) out of the smallest free range that has them.
    /// Returns the buffer and the pages that were unused until now. ENOSPC: no such range, or
    /// one-way calls have had their half.
    pub(super) fn take(
        &mut self,
        size: usize,
        request: &BufferRequest,
    ) -> Result<(Buffer, Range<usize>), Errno> {
        if request.is_async && self.free_async_space < size {
            user_error!(
                Kind::NoSpace,
                "no space left for a one-way call of {size} bytes: of {} bytes that one-way calls \
                 may take, {} are free",
                self.buffer_size / 2,
                self.free_async_space
            );
            return Err(Errno::ENOSPC);
        }
        let Some(&(free_size, offset)) = self.free.range((size, 0)..).next() else {
            self.debug_no_space(size);
            return Err(Errno::ENOSPC);
        };

        self.free.remove(&(free_size, offset));
        if free_size != size {
            self.ranges.insert(offset + size, Node { size: free_size - size, taken: None, pid: 0 });
            self.free.insert((free_size - size, offset + size));
        }
        let last_user = self.ranges[&offset].pid;
        let oneway_spam_suspect = request.is_async && {
            self.free_async_space -= size;
            self.low_async_space(request.pid, (last_user == request.pid).then_some(size))
        };
        if request.is_async {
            let used = self.oneway.entry(request.pid).or_default();
            used.buffers += 1;
            used.bytes += size;
        }
        self.allocated += 1;
        let node = Node {
            size,
            pid: request.pid,
            taken: Some(Taken {
                data_size: request.data_size as usize,
                offsets_size: request.offsets_size as usize,
                extra_buffers_size: request.extra_buffers_size as usize,
                is_async: request.is_async,
                oneway_spam_suspect,
                allow_user_free: false,
                clear_on_free: false,
            }),
        };
        let buffer = self.describe(offset, &node);
        self.ranges.insert(offset, node);
        let pages = pages_of(offset..offset + size, offset..offset + free_size);
        Ok((buffer.expect("just taken"), pages))
    }

    /// `debug_low_async_space_locked`: whether this allocation makes `pid` a spam suspect.
    /// `counted` is the size of the new buffer, where the driver counts that buffer too.
    fn low_async_space(&mut self, pid: i32, counted: Option<usize>) -> bool {
        if self.free_async_space >= self.buffer_size / 10 {
            self.oneway_spam_detected = false;
            return false;
        }
        let used = self.oneway.get(&pid);
        let buffers = used.map_or(0, |u| u.buffers) + usize::from(counted.is_some());
        let bytes = used.map_or(0, |u| u.bytes) + counted.unwrap_or(0);
        let spam = buffers > ONEWAY_SPAM_BUFFERS || bytes > self.buffer_size / 4;
        if spam {
            client_log!(
                Kind::OnewaySpam,
                "pid {pid} spamming oneway? {buffers} buffers allocated for a total size of {bytes}"
            );
        }
        spam && !std::mem::replace(&mut self.oneway_spam_detected, true)
    }

    /// The driver adds up all buffers here. The sums are kept up to date instead, so that a full
    /// mapping costs no more time than an empty one.
    fn debug_no_space(&self, size: usize) {
        let largest_free = self.free.last().map_or(0, |&(size, _)| size);
        user_error!(
            Kind::NoSpace,
            "no space left for {size} bytes, no address space (allocated buffers: {}, free: {}, \
             largest free: {largest_free} bytes)",
            self.allocated,
            self.free.len(),
        );
    }

    /// Frees a buffer and merges its range with free neighbours. Returns the pages that no buffer
    /// uses any more; `None` when no such buffer is allocated.
    pub(super) fn give_back(&mut self, offset: usize) -> Option<Range<usize>> {
        let node = self.ranges.get_mut(&offset)?;
        let taken = node.taken.take()?;
        let (size, pid) = (node.size, node.pid);
        self.allocated -= 1;
        if taken.is_async {
            self.free_async_space += size;
            let used = self.oneway.get_mut(&pid).expect("every one-way buffer is counted");
            used.buffers -= 1;
            used.bytes -= size;
            if used.buffers == 0 {
                self.oneway.remove(&pid);
            }
        }

        let mut free = offset..offset + size;
        if let Some(next) = self.ranges.get(&free.end).filter(|next| next.taken.is_none()) {
            let next_size = next.size;
            self.free.remove(&(next_size, free.end));
            self.ranges.remove(&free.end);
            free.end += next_size;
        }
        let previous = self.ranges.range(..offset).next_back();
        if let Some((&start, previous)) = previous.filter(|(_, node)| node.taken.is_none()) {
            self.free.remove(&(previous.size, start));
            self.ranges.remove(&offset);
            free.start = start;
        }
        self.ranges.get_mut(&free.start).expect("the first of the merged ranges stays").size =
            free.len();
        self.free.insert((free.len(), free.start));
        Some(pages_of(offset..offset + size, free))
    }

    fn describe(&self, offset: usize, node: &Node) -> Option<Buffer> {
        let taken = node.taken.as_ref()?;
        Some(Buffer {
            offset,
            user_data: self.vm_start + offset as u64,
            data_size: taken.data_size,
            offsets_size: taken.offsets_size,
            extra_buffers_size: taken.extra_buffers_size,
            is_async: taken.is_async,
            oneway_spam_suspect: taken.oneway_spam_suspect,
        })
    }

    fn taken_mut(&mut self, offset: usize) -> Option<&mut Taken> {
        self.ranges.get_mut(&offset)?.taken.as_mut()
    }

    /// `binder_alloc_prepare_to_free_locked`.
    pub(super) fn prepare_to_free(&mut self, user_ptr: u64) -> Result<Buffer, Errno> {
        let offset = user_ptr.checked_sub(self.vm_start).ok_or(Errno::ENOENT)?;
        let offset = usize::try_from(offset).map_err(|_| Errno::ENOENT)?;
        let taken = self.taken_mut(offset).ok_or(Errno::ENOENT)?;
        if !taken.allow_user_free {
            return Err(Errno::EPERM);
        }
        taken.allow_user_free = false;
        self.describe(offset, &self.ranges[&offset]).ok_or(Errno::ENOENT)
    }

    pub(super) fn set_allow_user_free(&mut self, offset: usize, allow: bool) {
        if let Some(taken) = self.taken_mut(offset) {
            taken.allow_user_free = allow;
        }
    }

    pub(super) fn set_clear_on_free(&mut self, offset: usize) {
        if let Some(taken) = self.taken_mut(offset) {
            taken.clear_on_free = true;
        }
    }

    /// Whether the buffer is to be zeroed before it is freed; true only the first time it is asked.
    pub(super) fn take_clear_on_free(&mut self, offset: usize) -> bool {
        self.taken_mut(offset).is_some_and(|taken| std::mem::take(&mut taken.clear_on_free))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Buffer> + '_ {
        self.ranges.iter().filter_map(|(&offset, node)| self.describe(offset, node))
    }
}
