//! The kernel's copy of a buffer: what a program maps that has opened a file of the FUSE door where
//! there is no passthrough.
//!
//! The kernel maps such a file from its page cache, and asks for a page that it does not have there
//! with a READ request. The daemon's own copy, the buffer file, is the one that counts; what it
//! writes there it stores in the page cache as well ([`Session::store`]), before the program is
//! told of it. Whole pages, so that a program which looks at what it was told of finds them there,
//! and no READ has to come. A page that is zapped is taken out of the page cache a little later, by
//! a thread of its own: the kernel waits for the page's lock, which a READ may hold, and whoever
//! zaps holds locks itself.
//!
//! The two cannot come apart: a page is read, stored and thrown away under the kernel's lock of that
//! page, and each time what it gets is what the buffer file holds at that moment. A page that the
//! kernel does not have, and where no buffer is, is none: SIGBUS, as on the driver.
//!
//! Only one open file can have the page cache of a file. Two that share one (a bind mount of the
//! file itself) have no mapping.

use super::Open;
use super::session::Session;
use crate::lock_order::rank;
use crate::mm_shim::{AddressSpace, PageCache};
use crate::page::{MAX_BUFFER_SIZE, PAGE_SIZE};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::{Errno, uapi};
use nix::sys::uio::pread;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The most that the kernel asks for at once, in bytes: the pages of one request.
const MOST: usize = 32 * PAGE_SIZE;

/// The page cache of a file of a mount.
pub struct CachedFile {
    /// The session of the mount.
    pub session: Arc<Session>,
    /// The file's node.
    pub node: u64,
    /// The zapped pages of all files of the mount.
    pub zapped: Arc<Zapped>,
}

impl PageCache for CachedFile {
    fn store(&self, offset: usize, from: *const u8, len: usize) -> Result<(), Errno> {
        self.session.store(self.node, offset, from, len)
    }

    fn zapped(&self, page: usize) {
        self.zapped.push(self.node, page);
    }
}

/// Pages that are to be taken out of the page caches of a mount's files.
#[derive(Default)]
pub struct Zapped {
    queue: Mutex<Queue, rank::Zapped>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Nodes, and indices of their pages.
    pages: BTreeSet<(u64, usize)>,
    started: bool,
    ended: bool,
}

impl Queue {
    /// Takes the first page, and those that follow it: node, first page and their number.
    fn take(&mut self) -> Option<(u64, usize, usize)> {
        let (node, first) = self.pages.pop_first()?;
        let mut count = 1;
        while self.pages.remove(&(node, first + count)) {
            count += 1;
        }
        Some((node, first, count))
    }
}

impl Zapped {
    fn push(&self, node: u64, page: usize) {
        self.queue.lock().pages.insert((node, page));
        self.wake.notify_one();
    }

    /// Starts the thread, the first time.
    pub fn start(self: &Arc<Self>, session: &Arc<Session>) -> Result<(), Errno> {
        if std::mem::replace(&mut self.queue.lock().started, true) {
            return Ok(());
        }
        let (zapped, session) = (self.clone(), session.clone());
        let thread = std::thread::Builder::new().name("zapped pages".into());
        let started = thread.spawn(move || zapped.run(&session));
        started.map(drop).map_err(|_| Errno::EAGAIN).inspect_err(|_| {
            self.queue.lock().started = false;
        })
    }

    fn run(&self, session: &Session) {
        let mut queue = self.queue.lock();
        while !queue.ended {
            let Some((node, first, count)) = queue.take() else {
                self.wake.wait(&mut queue);
                continue;
            };
            MutexGuard::unlocked(&mut queue, || {
                let inval = uapi::fuse_notify_inval_inode_out {
                    ino: node,
                    off: (first * PAGE_SIZE) as i64,
                    len: (count * PAGE_SIZE) as i64,
                };
                // The kernel may not know the node any more.
                let _ = session.notify(uapi::FUSE_NOTIFY_INVAL_INODE, &[uapi::bytes_of(&inval)]);
            });
        }
    }

    pub fn end(&self) {
        self.queue.lock().ended = true;
        self.wake.notify_one();
    }
}

impl Open {
    /// What the kernel's page cache is to hold, for a page fault. EIO: there is no page, and who
    /// touches it gets SIGBUS. EINVAL: the file has no mapping, or these are no pages.
    pub(super) fn read_pages(&self, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let (start, size) = (offset as usize, size as usize);
        let is_pages = start.is_multiple_of(PAGE_SIZE) && size.is_multiple_of(PAGE_SIZE);
        let is_within = size <= MOST && start <= MAX_BUFFER_SIZE - size;
        let buffer = self.buffer.as_ref().filter(|_| self.is_mappable && is_pages && is_within);
        let buffer = buffer.ok_or(Errno::EINVAL)?;
        let mut pages = start / PAGE_SIZE..(start + size) / PAGE_SIZE;
        if !pages.any(|page| self.mm.get_user_pages_remote(page)) {
            return Err(Errno::EIO);
        }
        // A page that is not there, or not any more, is read as zeros.
        let mut bytes = vec![0; size];
        pread(buffer, &mut bytes, start as libc::off_t)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_taken_together() {
        let mut queue = Queue::default();
        queue.pages.extend([(1, 7), (1, 3), (1, 4), (2, 5), (1, 5)]);
        let taken: Vec<_> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(taken, [(1, 3, 3), (1, 7, 1), (2, 5, 1)]);
    }
}
