//! Reading and writing the memory of a client process.
//!
//! The engine and the allocator only know the trait [`ClientMemory`]. Behind it there is another
//! process ([`ProcessMemory`], by `process_vm_readv` and `process_vm_writev`), or what the kernel
//! has gathered for a CUSE retry, or plain bytes in tests and fuzz targets.

use crate::Errno;
use crate::client_log::{Kind, client_log};
use crate::lock_order::{assert_nothing_held, rank};
use crate::probe::{Verb, fault};
use crate::shortage::{self, is_shortage};
use crate::sync::Mutex;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use smallvec::SmallVec;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

    /// Where the stretch begins.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the stretch has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `src`, which must be as long, into the stretch.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_from_slice(&self, src: &[u8]) {
        assert_eq!(src.len(), self.len, "a copy between stretches of different length");
        // SAFETY: the stretch is mapped writable and no reference covers it (`SharedSlice::new`),
        // so it does not overlap `src`, which is as long.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), self.start, src.len()) };
    }
}

/// The address space of a client, as for `copy_from_user` and `copy_to_user`.
///
/// Every address and length comes from the client: implementations check, and copy all or fail
/// with EFAULT (then what was copied is undefined but harmless). EPERM says that this machine
/// does not let the daemon reach the client's memory at all.
pub trait ClientMemory: Send + Sync {
    /// Copies `dst.len()` bytes from `addr` of the client.
    fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), Errno>;

    /// Copies from the client straight into a buffer that is shared with another process.
    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno>;

    /// Copies `src` to `addr` of the client.
    fn write(&self, addr: u64, src: &[u8]) -> Result<(), Errno>;

    /// Copies as [`read`](Self::read) does, and in the same go what lies at the places that
    /// [`sends_from`](Self::sends_from) was told last, as far as that can be read.
    fn read_and_ahead(&self, addr: u64, dst: &mut [u8], _ahead: &mut Ahead) -> Result<(), Errno> {
        self.read(addr, dst)
    }

    /// The client has sent what lies there: addresses and lengths in bytes, 0 for nothing.
    fn sends_from(&self, _places: [(u64, u64); 2]) {}
}

/// Makes `bytes` that many zeros, to be read over: by blocks, where `resize` goes byte by byte.
pub(crate) fn fill_with_zeros<A: smallvec::Array<Item = u8>>(
    bytes: &mut SmallVec<A>,
    length: usize,
) {
    const ZEROS: [u8; 256] = [0; 256];
    bytes.clear();
    while bytes.len() < length {
        let more = (length - bytes.len()).min(ZEROS.len());
        bytes.extend_from_slice(&ZEROS[..more]);
    }
}

/// What Yama asks of who reaches another process of the same user (`ptrace_scope`); 0 where there is
/// no Yama.
pub fn ptrace_scope() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// How many bytes of a place are read ahead at most. More is copied by itself, straight to where it
/// is to go.
const MOST_AHEAD: u64 = 1024;

/// Stretches of a client's memory that were read before they were asked for.
#[derive(Debug, Default)]
pub struct Ahead([(u64, SmallVec<[u8; 128]>); 2]);

impl Ahead {
    /// What was read of that stretch, if all of it was.
    pub fn find(&self, addr: u64, length: usize) -> Option<&[u8]> {
        self.0.iter().filter(|(_, bytes)| !bytes.is_empty()).find_map(|(start, bytes)| {
            let from = usize::try_from(addr.checked_sub(*start)?).ok()?;
            bytes.get(from..from.checked_add(length)?)
        })
    }

    /// Keeps what `length` bytes that were read fill, in the order of the stretches.
    fn keep(&mut self, mut length: usize) {
        for (_, bytes) in &mut self.0 {
            match length.checked_sub(bytes.len()) {
                Some(left) => length = left,
                None => {
                    length = 0;
                    bytes.clear();
                }
            }
        }
    }
}

/// The memory of another process, reached with `process_vm_readv` and `process_vm_writev`.
///
/// The memory is named by the thread that waits in the ioctl, not by its process: the first thread
/// of a process may have exited before the others, and a forked child may use its parent's open
/// file. It is valid while that thread waits: its number cannot mean another thread meanwhile. If
/// the ioctl is answered before a copy has come back, [`ProcessMemory::give_up`] is called, and
/// every further copy fails with ESRCH.
#[derive(Debug)]
pub struct ProcessMemory {
    tid: Pid,
    given_up: AtomicBool,
    /// Where the thread's last transaction had its data and its offsets: addresses and lengths.
    sent_from: [(AtomicU64, AtomicU64); 2],
}

impl ProcessMemory {
    /// The memory of the thread `tid`, which waits in an ioctl.
    pub fn new(tid: i32) -> ProcessMemory {
        ProcessMemory {
            tid: Pid::from_raw(tid),
            given_up: AtomicBool::new(false),
            sent_from: Default::default(),
        }
    }

    /// The thread waits no more: its number may soon be another thread's.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::SeqCst);
    }

    /// Whether [`ProcessMemory::give_up`] was called.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::SeqCst)
    }

    fn before_copy(&self) -> Result<(), Errno> {
        assert_nothing_held();
        match self.is_given_up() {
            true => Err(Errno::ESRCH),
            false => Ok(()),
        }
    }

    fn whole(copied: Result<usize, Errno>, wanted: usize) -> Result<(), Errno> {
        match copied {
            Ok(length) if length == wanted => Ok(()),
            // The copy stopped at the first address that the client itself could not read or write.
            Ok(_) => Err(Errno::EFAULT),
            Err(Errno::EPERM) => {
                client_log!(
                    Kind::MemoryRefused,
                    "a client's memory cannot be reached: it takes CAP_SYS_PTRACE here (or the client's uid and \
                     capabilities), and Yama's kernel.yama.ptrace_scope at 0 or that capability, below 3"
                );
                Err(Errno::EPERM)
            }
            Err(error) => Err(error),
        }
    }
}

impl ClientMemory for ProcessMemory {
    fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), Errno> {
        self.before_copy()?;
        if dst.is_empty() {
            return Ok(());
        }
        let remote = [RemoteIoVec { base: addr as usize, len: dst.len() }];
        let wanted = dst.len();
        fault(Verb::ReadMemory)?;
        Self::whole(process_vm_readv(self.tid, &mut [IoSliceMut::new(dst)], &remote), wanted)
    }

    fn read_and_ahead(&self, addr: u64, dst: &mut [u8], ahead: &mut Ahead) -> Result<(), Errno> {
        for ((start, bytes), (addr, length)) in ahead.0.iter_mut().zip(&self.sent_from) {
            *start = addr.load(Ordering::Relaxed);
            fill_with_zeros(bytes, length.load(Ordering::Relaxed) as usize);
        }
        let [(first_at, first), (second_at, second)] = &mut ahead.0;
        if first.is_empty() && second.is_empty() {
            return self.read(addr, dst);
        }
        let remote = [(addr, dst.len()), (*first_at, first.len()), (*second_at, second.len())]
            .map(|(base, len)| RemoteIoVec { base: base as usize, len });
        let wanted = dst.len();
        let mut local = [IoSliceMut::new(dst), IoSliceMut::new(first), IoSliceMut::new(second)];
        let may_copy = self.before_copy().and_then(|()| fault(Verb::ReadMemory));
        let copied = may_copy.and_then(|()| process_vm_readv(self.tid, &mut local, &remote));
        // Whatever kept the copy from being made: the zeros that it was to fill are no data.
        ahead.keep(copied.unwrap_or(0).saturating_sub(wanted));
        Self::whole(copied.map(|copied| copied.min(wanted)), wanted)
    }

    fn sends_from(&self, places: [(u64, u64); 2]) {
        for ((addr, length), place) in self.sent_from.iter().zip(places) {
            let foreseen = if place.1 <= MOST_AHEAD { place.1 } else { 0 };
            addr.store(place.0, Ordering::Relaxed);
            length.store(foreseen, Ordering::Relaxed);
        }
    }

    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno> {
        self.before_copy()?;
        if dst.is_empty() {
            return Ok(());
        }
        fault(Verb::ReadMemory)?;
        let local = libc::iovec { iov_base: dst.as_mut_ptr().cast(), iov_len: dst.len() };
        let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: dst.len() };
        // SAFETY: `dst` is mapped writable and no reference covers it (`SharedSlice::new`), and
        // what the kernel writes there from elsewhere is no business of Rust's; `remote` is only
        // looked at in the other process.
        let copied = unsafe { libc::process_vm_readv(self.tid.as_raw(), &local, 1, &remote, 1, 0) };
        Self::whole(Errno::result(copied).map(|length| length as usize), dst.len())
    }

    fn write(&self, addr: u64, src: &[u8]) -> Result<(), Errno> {
        self.before_copy()?;
        if src.is_empty() {
            return Ok(());
        }
        let remote = [RemoteIoVec { base: addr as usize, len: src.len() }];
        // Retried, because the bytes were taken out of the engine for this client and would be
        // lost.
        shortage::retry(|| {
            fault(Verb::WriteMemory)?;
            Self::whole(process_vm_writev(self.tid, &[IoSlice::new(src)], &remote), src.len())
        })
    }
}

/// What the kernel has copied from a client, and room for what it is to copy back (see
/// `device::retry`). Every other address is a fault.
#[derive(Debug, Default)]
pub struct GatheredMemory {
    input: Vec<(u64, Vec<u8>)>,
    output: Mutex<Vec<Output>, rank::Gathered>,
}

#[derive(Debug)]
struct Output {
    start: u64,
    bytes: Vec<u8>,
    /// How many of the bytes have been written.
    written: usize,
}

impl GatheredMemory {
    /// `bytes` are what the stretches of `input` in the client hold, one after the other; `output`
    /// are the stretches that may be written. None when `bytes` has another length than `input`.
    pub fn new(
        input: impl Iterator<Item = (u64, usize)>,
        mut bytes: &[u8],
        output: impl Iterator<Item = (u64, usize)>,
    ) -> Option<GatheredMemory> {
        let mut stretches = Vec::new();
        for (start, length) in input {
            let (stretch, rest) = bytes.split_at_checked(length)?;
            stretches.push((start, stretch.to_vec()));
            bytes = rest;
        }
        let output = output
            .map(|(start, length)| Output { start, bytes: vec![0; length], written: 0 })
            .collect();
        bytes.is_empty().then_some(GatheredMemory { input: stretches, output: Mutex::new(output) })
    }

    /// What has been written to the stretch that starts at `start`.
    pub fn written(&self, start: u64) -> Vec<u8> {
        let output = self.output.lock();
        output
            .iter()
            .find(|it| it.start == start)
            .map(|it| it.bytes[..it.written].to_vec())
            .unwrap_or_default()
    }

    fn find(&self, addr: u64, length: usize) -> Result<&[u8], Errno> {
        if length == 0 {
            return Ok(&[]);
        }
        self.input
            .iter()
            .find_map(|(start, bytes)| {
                let from = usize::try_from(addr.checked_sub(*start)?).ok()?;
                bytes.get(from..from.checked_add(length)?)
            })
            .ok_or(Errno::EFAULT)
    }
}

impl ClientMemory for GatheredMemory {
    fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), Errno> {
        dst.copy_from_slice(self.find(addr, dst.len())?);
        Ok(())
    }

    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno> {
        let bytes = self.find(addr, dst.len())?;
        // SAFETY: `dst` is mapped writable and no reference covers it (`SharedSlice::new`), so it
        // does not overlap `bytes`, which are as long.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), dst.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn write(&self, addr: u64, src: &[u8]) -> Result<(), Errno> {
        if src.is_empty() {
            return Ok(());
        }
        let mut output = self.output.lock();
        output
            .iter_mut()
            .find_map(|it| {
                let from = usize::try_from(addr.checked_sub(it.start)?).ok()?;
                let to = from.checked_add(src.len())?;
                it.bytes.get_mut(from..to)?.copy_from_slice(src);
                it.written = it.written.max(to);
                Some(())
            })
            .ok_or(Errno::EFAULT)
    }
}

/// The process `pid`, which must be the number of a thread group, for as long as the descriptor
/// lives.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    pidfd_open_with(pid, PidfdFlags::empty())
}

/// One thread (Linux 6.9; EINVAL before).
pub fn pidfd_open_thread(tid: i32) -> Result<OwnedFd, Errno> {
    const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);
    pidfd_open_with(tid, PIDFD_THREAD)
}

fn pidfd_open_with(id: i32, flags: PidfdFlags) -> Result<OwnedFd, Errno> {
    fault(Verb::Descriptor)?;
    rustix::process::pidfd_open(task(id)?, flags).map_err(errno)
}

/// The number of a thread or a process. ESRCH for 0, by which a system call would mean its caller.
fn task(id: i32) -> Result<rustix::process::Pid, Errno> {
    rustix::process::Pid::from_raw(id).ok_or(Errno::ESRCH)
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Whether the process still exists: it has not ended, or was not waited for.
pub fn pidfd_exists(pidfd: BorrowedFd<'_>) -> bool {
    assert_nothing_held();
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no signal is sent (0), and none is described.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), 0, none, 0) };
    // EPERM means that the process exists, too.
    Errno::result(sent) != Err(Errno::ESRCH)
}

/// A copy of the descriptor `fd` of a process. EBADF when it has none of that number; EPERM when
/// this process may not look into it (ptrace access: CAP_SYS_PTRACE, Yama).
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd, Errno> {
    fault(Verb::Descriptor)?;
    // Clients give any number; rustix asserts that a descriptor is not negative.
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    rustix::process::pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).map_err(errno)
}

/// A copy of the descriptor `fd` of the thread `tid` of the process `pidfd`. Threads nearly always
/// share their descriptors. Where one does not, or the first thread has exited, Linux 6.9 and later
/// find the right one.
pub fn getfd(pidfd: BorrowedFd<'_>, tid: i32, fd: i32) -> Result<OwnedFd, Errno> {
    assert_nothing_held();
    use std::os::fd::AsFd;
    static THREADS_HAVE_PIDFDS: AtomicBool = AtomicBool::new(true);
    if THREADS_HAVE_PIDFDS.load(Ordering::Relaxed) {
        match pidfd_open_thread(tid) {
            Ok(thread) => return pidfd_getfd(thread.as_fd(), fd),
            Err(Errno::EINVAL) => THREADS_HAVE_PIDFDS.store(false, Ordering::Relaxed),
            // The process's descriptors may not be the thread's: the error stands.
            Err(errno) if is_shortage(errno) => return Err(errno),
            Err(_) => {}
        }
    }
    pidfd_getfd(pidfd, fd)
}

/// The nice value of a thread. ESRCH when there is no such thread.
pub fn getpriority(tid: i32) -> Result<i32, Errno> {
    assert_nothing_held();
    rustix::process::getpriority_process(Some(task(tid)?)).map_err(errno)
}

/// The soft RLIMIT_NICE of a thread's process: 20 minus the lowest nice value that it may take.
pub fn nice_limit(tid: i32) -> Result<i32, Errno> {
    assert_nothing_held();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit`, and reads no new limit.
    let result = unsafe { libc::prlimit(tid, libc::RLIMIT_NICE, std::ptr::null(), &mut limit) };
    Errno::result(result)?;
    Ok(limit.rlim_cur.min(40) as i32)
}

/// The effective capabilities of a thread, a bit each. ESRCH when there is no such thread.
pub fn effective_capabilities(tid: i32) -> Result<u64, Errno> {
    assert_nothing_held();
    let sets = rustix::thread::capabilities(Some(task(tid)?)).map_err(errno)?;
    Ok(sets.effective.bits())
}

/// Sets the nice value of a thread. ESRCH: no such thread; EACCES, EPERM: this process may not.
pub fn setpriority(tid: i32, nice: i32) -> Result<(), Errno> {
    assert_nothing_held();
    rustix::process::setpriority_process(Some(task(tid)?), nice).map_err(errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn own() -> ProcessMemory {
        ProcessMemory::new(nix::unistd::gettid().as_raw())
    }

    #[test]
    fn all_is_copied_or_it_is_a_fault() {
        let page = 4096;
        // SAFETY: a new mapping at no address in particular.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                2 * page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: the second half of it, which nothing else refers to.
        unsafe { libc::munmap(start.byte_add(page), page) };
        let start = start as u64;

        own().write(start + 4090, b"abcdef").unwrap();
        let mut six = [0; 6];
        own().read(start + 4090, &mut six).unwrap();
        assert_eq!(&six, b"abcdef");
        assert_eq!(own().write(start + 4091, b"abcdef"), Err(Errno::EFAULT));
        assert_eq!(own().read(start + 4091, &mut six), Err(Errno::EFAULT));
        assert_eq!(own().read(start + page as u64, &mut six), Err(Errno::EFAULT));
        assert_eq!(own().read(u64::MAX - 2, &mut six), Err(Errno::EFAULT));
        assert_eq!(own().read(1 << 63, &mut []), Ok(()));

        own().write(start + 4090, b"abcdef").unwrap();
        let mut shared = [0u8; 6];
        // SAFETY: `shared` is not touched while the slice lives.
        let slice = unsafe { SharedSlice::new(shared.as_mut_ptr(), 6) };
        own().read_shared(start + 4090, slice).unwrap();
        assert_eq!(&shared, b"abcdef");
        // SAFETY: as above; the first slice is not used any more.
        let slice = unsafe { SharedSlice::new(shared.as_mut_ptr(), 6) };
        assert_eq!(own().read_shared(start + 4091, slice), Err(Errno::EFAULT));
        // SAFETY: the first half, which nothing refers to any more.
        unsafe { libc::munmap(start as *mut libc::c_void, page) };
    }

    #[test]
    fn what_was_sent_last_is_read_ahead_as_far_as_it_can_be() {
        let (commands, data, offsets) = ([1u8; 16], [2u8; 40], [3u8; 8]);
        let at = |bytes: &[u8]| (bytes.as_ptr() as u64, bytes.len() as u64);
        let memory = own();
        let read = |from: &[u8]| {
            let (mut got, mut ahead) = ([0; 16], Ahead::default());
            let result = memory.read_and_ahead(at(from).0, &mut got, &mut ahead);
            (result.map(|()| got), ahead)
        };
        let (got, ahead) = read(&commands);
        assert_eq!(got, Ok(commands));
        assert_eq!(ahead.find(at(&data).0, 1), None, "nothing is known yet");

        memory.sends_from([at(&data), at(&offsets)]);
        let (got, ahead) = read(&commands);
        assert_eq!(got, Ok(commands));
        assert_eq!(ahead.find(at(&data).0, 40), Some(&data[..]));
        assert_eq!(ahead.find(at(&data).0 + 8, 32), Some(&data[8..]));
        assert_eq!(ahead.find(at(&offsets).0, 8), Some(&offsets[..]));
        assert_eq!(ahead.find(at(&data).0, 41), None, "one byte was not read");
        assert_eq!(ahead.find(at(&data).0 - 1, 2), None);

        // What cannot be read, and what comes behind it, is not there; the commands are.
        memory.sends_from([(8, 40), at(&offsets)]);
        let (got, ahead) = read(&commands);
        assert_eq!(got, Ok(commands));
        assert_eq!(ahead.find(8, 40), None);
        assert_eq!(ahead.find(at(&offsets).0, 8), None);

        memory.sends_from([(at(&data).0, MOST_AHEAD + 1), at(&offsets)]);
        let (_, ahead) = read(&commands);
        assert_eq!(ahead.find(at(&data).0, 1), None, "much is copied by itself");
        assert_eq!(ahead.find(at(&offsets).0, 8), Some(&offsets[..]));

        let (mut got, mut ahead) = ([0; 16], Ahead::default());
        assert_eq!(memory.read_and_ahead(8, &mut got, &mut ahead), Err(Errno::EFAULT));
        assert_eq!(ahead.find(at(&offsets).0, 8), None);

        memory.give_up();
        let (got, ahead) = read(&commands);
        assert_eq!(got, Err(Errno::ESRCH));
        assert_eq!(ahead.find(at(&offsets).0, 8), None, "no copy was made");
    }

    #[test]
    fn a_descriptor_is_taken_from_the_thread_that_has_it() {
        let pidfd = pidfd_open(nix::unistd::getpid().as_raw()).unwrap();
        let tid = nix::unistd::gettid().as_raw();
        let copy = getfd(pidfd.as_fd(), tid, pidfd.as_raw_fd()).unwrap();
        assert_ne!(copy.as_raw_fd(), pidfd.as_raw_fd());
        assert_eq!(getfd(pidfd.as_fd(), tid, 1 << 20).unwrap_err(), Errno::EBADF);
        assert_eq!(getfd(pidfd.as_fd(), tid, -1).unwrap_err(), Errno::EBADF);
    }

    #[test]
    fn the_nice_value_of_a_thread_is_its_own() {
        std::thread::spawn(|| {
            let tid = nix::unistd::gettid().as_raw();
            let before = getpriority(tid).unwrap();
            setpriority(tid, before + 1).unwrap();
            assert_eq!(getpriority(tid), Ok(before + 1));
        })
        .join()
        .unwrap();
        assert_eq!(getpriority(i32::MAX), Err(Errno::ESRCH));
    }
}
