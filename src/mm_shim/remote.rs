//! The mm of a client process, over its buffer file.
//!
//! Every open file of a device has a buffer file (a memfd), which the client maps for reading and
//! the daemon maps for writing. The pages of the file are the installed ones: `UFFDIO_ZEROPAGE` on
//! the daemon's mapping adds one (see `userfault`; where the kernel allows no userfaultfd, writing
//! a zero does), and punching a hole into the file takes one from everyone.
//!
//! Two differences from the kernel's mm: a client that reads a page that was never installed makes
//! one of zeros (the driver: SIGBUS), and a client's munmap is noticed only at the next look.

mod users;

pub use users::KeptMaps;

use self::users::{Users, open_maps};
use super::image::Image;
use super::maps::{FileVma, Maps};
use super::userfault::Userfault;
use super::{AddressSpace, NoVma, PageCache};
use crate::Errno;
use crate::client_log::{Kind, client_log};
use crate::client_mem::{ClientMemory, SharedSlice};
use crate::lock_order::rank;
use crate::page::{MAX_BUFFER_SIZE, PAGE_SIZE};
use crate::probe::{Verb, fault};
use crate::sync::Mutex;
use nix::fcntl::{self, FallocateFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};
use nix::sys::stat;
use nix::sys::uio;
use nix::unistd::{self, Whence};
use std::ffi::c_void;
use std::fs;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// What the client maps, and so what to look for among its mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingKind {
    /// A file of the FUSE door, by its `st_dev` and `st_ino`: the kernel lists a passthrough
    /// mapping under these.
    FuseFile {
        /// `st_dev` of the file.
        dev: u64,
        /// `st_ino` of the file.
        ino: u64,
    },
    /// A file of the FUSE door whose page cache the kernel maps; or the buffer file, handed over.
    CachedFile {
        /// `st_dev` of the file.
        dev: u64,
        /// `st_ino` of the file.
        ino: u64,
    },
    /// The buffer file itself, handed over as a descriptor.
    Memfd,
}

/// The mm of a client process.
pub struct RemoteMm {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    /// The program that the process executed when it opened the device.
    image: Image,
    /// The buffer file, for the case without userfaultfd, where the mapping does not suffice.
    memfd: Option<OwnedFd>,
    /// The daemon's mapping of the whole buffer file.
    base: NonNull<u8>,
    /// `None`: pages are added by writing to the file, and `page_table` makes that atomic.
    userfault: Option<&'static Userfault>,
    page_table: Mutex<(), rank::PageTable>,
    /// The files whose mapping is the client's: by `st_dev` and `st_ino` that of the FUSE door, and
    /// the buffer file.
    fuse_file: Option<(u64, u64)>,
    buffer_file: Option<(u64, u64)>,
    kind: MappingKind,
    cache: OnceLock<Box<dyn PageCache>>,
    /// The client has mapped the file of the FUSE door, and sees the page cache.
    is_cached: AtomicBool,
    procmap_query: bool,
    users: Mutex<Users, rank::MmUsers>,
    warned: AtomicBool,
}

/// Which features of newer kernels are used, if they are there. Tests use fewer, as on an older
/// kernel.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// userfaultfd. Without, pages are added by writing to the buffer file.
    pub userfault: bool,
    /// PROCMAP_QUERY (Linux 6.11). Without, mappings are read as text.
    pub procmap_query: bool,
}

impl Features {
    /// All of them.
    pub const ALL: Features = Features { userfault: true, procmap_query: true };
}

// SAFETY: `base` is a mapping of a file, not memory of one thread; all access to it is through raw
// pointers, to buffers that the allocator gives to one user at a time.
unsafe impl Send for RemoteMm {}
// SAFETY: as above.
unsafe impl Sync for RemoteMm {}

impl RemoteMm {
    /// The mm of the thread group `pid` with the buffer file `memfd` (from
    /// [`create_memfd`](super::create_memfd)).
    pub fn new(
        pid: i32,
        pidfd: Arc<OwnedFd>,
        memfd: OwnedFd,
        kind: MappingKind,
        kept: &Arc<KeptMaps>,
    ) -> Result<Arc<RemoteMm>, Errno> {
        Self::with_features(pid, pidfd, memfd, kind, kept, Features::ALL)
    }

    /// As [`RemoteMm::new`] on a kernel that has no more than these features.
    pub fn with_features(
        pid: i32,
        pidfd: Arc<OwnedFd>,
        memfd: OwnedFd,
        kind: MappingKind,
        kept: &Arc<KeptMaps>,
        features: Features,
    ) -> Result<Arc<RemoteMm>, Errno> {
        let userfault = if features.userfault { Userfault::get() } else { None };
        let fuse_file = match kind {
            MappingKind::FuseFile { dev, ino } | MappingKind::CachedFile { dev, ino } => {
                Some((dev, ino))
            }
            MappingKind::Memfd => None,
        };
        let buffer_file = match kind {
            MappingKind::FuseFile { .. } => None,
            #[allow(clippy::unnecessary_cast, reason = "in a 32-bit process they are narrower")]
            MappingKind::CachedFile { .. } | MappingKind::Memfd => {
                Some(stat::fstat(&memfd).map(|stat| (stat.st_dev as u64, stat.st_ino as u64))?)
            }
        };
        let size = NonZeroUsize::new(MAX_BUFFER_SIZE).expect("4 MiB");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        fault(Verb::Mmap)?;
        // SAFETY: at an address of the kernel's choice, so nothing that exists is replaced.
        let base = unsafe { mman::mmap(None, size, protection, flags, &memfd, 0) }?.cast();
        let mm = RemoteMm {
            pid,
            pidfd,
            image: Image::of(pid),
            // One descriptor less for each open file.
            memfd: userfault.is_none().then_some(memfd),
            base,
            userfault,
            page_table: Mutex::new(()),
            fuse_file,
            buffer_file,
            kind,
            cache: OnceLock::new(),
            is_cached: AtomicBool::new(false),
            procmap_query: features.procmap_query,
            users: Mutex::new(Users::none(kept.clone())),
            warned: AtomicBool::new(false),
        };
        if let Some(userfault) = userfault {
            userfault.register(base.as_ptr(), MAX_BUFFER_SIZE)?;
        }
        Ok(Arc::new(mm))
    }

    /// The address of `len` bytes of the daemon's mapping. EFAULT: they are not within it.
    fn at(&self, offset: usize, len: usize) -> Result<*mut u8, Errno> {
        if offset > MAX_BUFFER_SIZE || len > MAX_BUFFER_SIZE - offset {
            return Err(Errno::EFAULT);
        }
        Ok(self.base.as_ptr().wrapping_add(offset))
    }

    fn punch(&self, offset: usize, len: usize) -> Result<(), Errno> {
        let Some(memfd) = &self.memfd else {
            let start = NonNull::new(self.at(offset, len)?).ok_or(Errno::EFAULT)?;
            // SAFETY: within the daemon's mapping of a file, into which there is no reference.
            return unsafe { mman::madvise(start.cast(), len, MmapAdvise::MADV_REMOVE) };
        };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fcntl::fallocate(memfd, flags, offset as libc::off_t, len as libc::off_t)
    }

    /// Whether the process has not exited, according to its pidfd.
    fn alive(&self) -> bool {
        let mut poll = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let polled = fault(Verb::Poll).and_then(|()| nix::poll::poll(&mut poll, PollTimeout::ZERO));
        // An error that keeps the daemon from knowing does not mean that the process has exited.
        polled != Ok(1)
    }

    /// The mappings of the client as they are now. ESRCH: it has exited.
    fn open_maps(&self) -> Result<Maps, Errno> {
        let maps = open_maps(self.pid, self.image, self.procmap_query)?;
        // Only now it is certain that the mappings are those of this process.
        if self.alive() { Ok(maps) } else { Err(Errno::ESRCH) }
    }

    /// From now on what the client is to see goes into this page cache, too, if that is what the
    /// client has mapped.
    pub fn set_cache(&self, cache: Box<dyn PageCache>) {
        let _ = self.cache.set(cache);
    }

    /// The page cache, if that is what the client sees.
    fn seen_cache(&self) -> Option<&dyn PageCache> {
        self.cache.get().filter(|_| self.is_cached.load(Ordering::Acquire)).map(|cache| &**cache)
    }

    fn is_ours(&self, vma: &FileVma) -> bool {
        let file = Some((vma.dev, vma.ino));
        file == self.fuse_file || file == self.buffer_file
    }

    fn is_of_fuse(&self, vma: &FileVma) -> bool {
        Some((vma.dev, vma.ino)) == self.fuse_file
    }

    /// Address and length of a mapping of the buffer file. EPERM: the client may write to it, which
    /// the driver does not allow.
    fn usable(&self, vma: &FileVma) -> Result<(u64, usize), Errno> {
        if vma.writable {
            self.warn_once("has its buffer mapped writable, which counts as not mapped");
            return Err(Errno::EPERM);
        }
        Ok((vma.start, (vma.end - vma.start) as usize))
    }

    /// The mapping of the beginning of the buffer that the client says it has at `address`: address
    /// and length in bytes. ESRCH: there is none. EPERM: it is writable.
    pub fn mapping_at(&self, address: u64) -> Result<(u64, usize), Errno> {
        let maps = self.open_maps()?;
        let vma = maps.next_file(address).map_err(|_| Errno::ESRCH)?;
        if vma.start != address || vma.offset != 0 || !self.is_ours(&vma) {
            return Err(Errno::ESRCH);
        }
        self.is_cached.fetch_or(self.is_of_fuse(&vma), Ordering::Release);
        self.usable(&vma)
    }

    fn warn_once(&self, what: &str) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            client_log!(Kind::BadMapping, "{} {what}", self.pid);
        }
    }

    /// The client's mappings, to be asked between `mmget_not_zero` and `mmput`.
    fn maps(&self) -> Result<Arc<Maps>, Errno> {
        self.users.lock().maps.clone().unwrap_or(Err(Errno::ESRCH))
    }
}

impl Drop for RemoteMm {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, of this size, and no pointer into the mapping outlives this
        // value.
        let _ = unsafe { mman::munmap(self.base.cast::<c_void>(), MAX_BUFFER_SIZE) };
    }
}

impl AddressSpace for RemoteMm {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn find_mapping(&self) -> Result<(u64, usize), Errno> {
        // A client that is given the buffer file tells where it has mapped it.
        if self.kind == MappingKind::Memfd {
            return Err(Errno::ESRCH);
        }
        let mut found = Err(Errno::ESRCH);
        let searched = self.open_maps()?.find_file(|vma| {
            if self.is_of_fuse(vma) && vma.offset == 0 {
                found = self.usable(vma);
            }
            found.is_ok()
        });
        self.is_cached.fetch_or(found.is_ok(), Ordering::Release);
        match searched {
            Ok(_) | Err(Errno::ENOENT) => found,
            Err(errno) => Err(errno),
        }
    }

    /// The first number of `/proc/PID/statm`.
    fn total_vm(&self) -> Option<u64> {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid)).ok()?;
        statm.split_ascii_whitespace().next()?.parse().ok()
    }

    fn mmget_not_zero(&self) -> bool {
        let mut users = self.users.lock();
        // As in the kernel: whether the process lives need not be asked while the mm is in use.
        if users.count == 0 {
            users.open(|| open_maps(self.pid, self.image, self.procmap_query));
            // Asked after the open: if the process lives now, the opened mappings are its own.
            if !self.alive() {
                users.idle();
                return false;
            }
        }
        users.count += 1;
        true
    }

    fn mmput(&self) {
        let mut users = self.users.lock();
        users.count -= 1;
        if users.count == 0 {
            users.idle();
        }
    }

    fn vma_lookup(&self, address: u64, index: usize) -> Result<Range<usize>, NoVma> {
        let page = index..index + 1;
        let looked = self.maps().and_then(|maps| Ok((maps.next_file(address)?, maps.is_text())));
        let (vma, text) = match looked {
            Ok(looked) => looked,
            Err(Errno::ENOENT) => return Err(NoVma::Closed),
            Err(Errno::EACCES | Errno::EPERM) if self.kind == MappingKind::Memfd => {
                // The client has told its address, and has to be believed.
                self.warn_once("does not let us see its mappings");
                return Ok(page);
            }
            Err(errno) => return Err(NoVma::Unknown(errno)),
        };
        let offset = (index * PAGE_SIZE) as u64;
        let here = vma.start <= address && vma.offset + (address - vma.start) == offset;
        if !self.is_ours(&vma) || !here || self.usable(&vma).is_err() {
            return Err(NoVma::Closed);
        }
        if !text {
            return Ok(page);
        }
        // A look whose cost grows with the client's mappings is made for all pages at once.
        let first = vma.offset as usize / PAGE_SIZE;
        Ok(first..first + (vma.end - vma.start) as usize / PAGE_SIZE)
    }

    fn vm_insert_page(&self, index: usize) -> Result<(), Errno> {
        let offset = index * PAGE_SIZE;
        let address = self.at(offset, PAGE_SIZE)?;
        if let Some(userfault) = self.userfault {
            return match userfault.zeropage(address as u64) {
                Err(Errno::EEXIST) => Err(Errno::EBUSY),
                other => other,
            };
        }
        let _page_table = self.page_table.lock();
        if self.get_user_pages_remote(index) {
            return Err(Errno::EBUSY);
        }
        // Not fallocate: lseek takes the pages that it makes for holes until they are written to.
        let memfd = self.memfd.as_ref().ok_or(Errno::EBADF)?;
        uio::pwrite(memfd, &[0], offset as libc::off_t).map(drop)
    }

    /// Not mincore, which says whether a page is in memory: a page that was swapped out exists,
    /// too.
    fn get_user_pages_remote(&self, index: usize) -> bool {
        let offset = index * PAGE_SIZE;
        if let Some(memfd) = &self.memfd {
            let offset = offset as libc::off_t;
            return unistd::lseek(memfd, offset, Whence::SeekData) == Ok(offset);
        }
        let Some(start) = self.at(offset, PAGE_SIZE).ok().and_then(NonNull::new) else {
            return false;
        };
        // A fault of the kernel's own makes no page where userfaultfd waits for missing ones:
        // EFAULT.
        // SAFETY: the page is within the daemon's mapping, and nothing in it changes.
        unsafe { mman::madvise(start.cast(), PAGE_SIZE, MmapAdvise::MADV_POPULATE_READ) }.is_ok()
    }

    fn zap_page(&self, index: usize) -> Result<(), Errno> {
        self.punch(index * PAGE_SIZE, PAGE_SIZE)?;
        if let Some(cache) = self.seen_cache() {
            cache.zapped(index);
        }
        Ok(())
    }

    fn exit_mmap(&self) {
        if let Err(errno) = self.punch(0, MAX_BUFFER_SIZE) {
            client_log!(
                Kind::PageNotRemoved,
                "{}: cannot empty the buffer file: {errno}",
                self.pid
            );
        }
    }

    fn copy_from_client(
        &self,
        offset: usize,
        from: &dyn ClientMemory,
        addr: u64,
        len: usize,
    ) -> Result<(), Errno> {
        let start = self.at(offset, len)?;
        // SAFETY: within the daemon's mapping, which is writable and lives as long as `self`;
        // nowhere is there a reference into it.
        from.read_shared(addr, unsafe { SharedSlice::new(start, len) })
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        let start = self.at(offset, bytes.len())?;
        // SAFETY: `start` has room for as many bytes, in memory that no reference covers.
        unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Whole pages: the kernel then need not ask for the rest of them. All of them are installed,
    /// since a buffer lies in them.
    fn publish(&self, offset: usize, len: usize) -> Result<(), Errno> {
        let Some(cache) = self.seen_cache() else { return Ok(()) };
        let start = offset / PAGE_SIZE * PAGE_SIZE;
        let len = (offset + len).next_multiple_of(PAGE_SIZE) - start;
        cache.store(start, self.at(start, len)?, len)
    }

    fn clear(&self, offset: usize, len: usize) -> Result<(), Errno> {
        let start = self.at(offset, len)?;
        // SAFETY: `start` has room for as many bytes, in memory that no reference covers.
        unsafe { start.write_bytes(0, len) };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
