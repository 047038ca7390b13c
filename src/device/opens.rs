//! The open files of a session, and the requests about them.

use super::Open;
use super::reply::PollWaiter;
use super::session::Responder;
use super::wire::{Header, Request};
use crate::binder;
use crate::binder::copies::Subject;
use crate::lock_order::rank;
use crate::sync::RwLock;
use crate::{Errno, uapi};
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The open files of a session, and the requests about them, which are the same on both doors.
#[derive(Default)]
pub struct Opens {
    last: AtomicU64,
    by_handle: RwLock<FxHashMap<u64, Arc<Open>>, rank::Opens>,
}

impl Opens {
    /// Adds an open file, and returns the handle that the kernel knows it by: never 0, never used
    /// again.
    pub fn add(&self, open: Arc<Open>) -> u64 {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.by_handle.write().insert(handle, open);
        handle
    }

    /// The open file of this handle, until it is removed.
    pub fn get(&self, handle: u64) -> Option<Arc<Open>> {
        self.by_handle.read().get(&handle).cloned()
    }

    /// The last reference to the file is gone, or the kernel never came to know of the file: it is
    /// not found any more. The caller answers first, and then calls `binder_release`.
    pub fn remove(&self, handle: u64) -> Option<Arc<Open>> {
        self.by_handle.write().remove(&handle)
    }

    /// The session has ended, and with it every file.
    pub fn release_all(&self) {
        let all = std::mem::take(&mut *self.by_handle.write());
        for open in all.into_values() {
            let _caller = open.client.caller().enter();
            open.process.release();
        }
    }

    /// A signal has arrived for the thread `tid`, which is in an ioctl on this file.
    pub fn interrupt(&self, handle: u64, tid: i32) {
        if let Some(open) = self.get(handle)
            && !open.process.copies().give_up(Subject::Ioctl(tid))
        {
            open.process.interrupt(tid);
        }
    }

    /// Answers a request about an open file; returns the responder of any other. `remove` is the
    /// door's function for RELEASE, which calls [`Opens::remove`].
    pub fn request(
        &self,
        header: &Header,
        request: &Request<'_>,
        responder: Responder,
        remove: impl FnOnce(u64) -> Option<Arc<Open>>,
    ) -> Option<Responder> {
        match *request {
            Request::Ioctl(ref ioctl) => match self.get(ioctl.fh) {
                Some(open) => open.request_ioctl(header, ioctl, responder),
                None => responder.error(Errno::EBADF),
            },
            Request::Poll { fh, handle, notify, events } => match self.get(fh) {
                Some(open) => {
                    let waiter = notify.then(|| {
                        let session = responder.session().clone();
                        Arc::new(PollWaiter { session, handle }) as Arc<dyn binder::Poller>
                    });
                    // `binder_poll` returns POLLERR when it has no memory for the thread.
                    let (ready, due) = open.process.poll(header.tid, waiter);
                    let revents = match ready {
                        Ok(true) => libc::POLLIN as u32 & events,
                        Ok(false) => 0,
                        Err(_) => libc::POLLERR as u32,
                    };
                    responder.value(&uapi::fuse_poll_out { revents, padding: 0 });
                    drop(due);
                }
                None => responder.error(Errno::EBADF),
            },
            Request::Flush { fh } => {
                let open = self.get(fh);
                // A supervisor closes copies of the file, which are none of the process's.
                let flushed = open.as_ref().filter(|it| !it.client.supervision.is_by(header.tid));
                let due = flushed.map(|open| open.process.flush());
                responder.done();
                drop(due);
            }
            Request::Release { fh } => {
                let open = remove(fh);
                let due = open.as_ref().map(|open| open.process.release());
                responder.done();
                drop(due);
            }
            // A page fault.
            Request::Read { fh, offset, size, for_cache: true } => {
                let pages = self.get(fh).ok_or(Errno::EBADF);
                match pages.and_then(|open| open.read_pages(offset, size)) {
                    Ok(bytes) => responder.bytes(&bytes),
                    Err(errno) => responder.error(errno),
                }
            }
            // The driver has neither operation.
            Request::Read { .. } | Request::Write => responder.error(Errno::EINVAL),
            Request::Init { .. }
            | Request::CuseInit { .. }
            | Request::Lookup { .. }
            | Request::Forget(_)
            | Request::GetAttr
            | Request::SetAttr(_)
            | Request::ReadLink
            | Request::Symlink { .. }
            | Request::Mknod { .. }
            | Request::Unlink { .. }
            | Request::Rename { .. }
            | Request::Open { .. }
            | Request::StatFs
            | Request::OpenDir
            | Request::ReadDir { .. }
            | Request::ReleaseDir
            | Request::Interrupt { .. }
            | Request::Destroy
            | Request::Other { .. } => return Some(responder),
        }
        None
    }
}
