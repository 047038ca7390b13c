//! A client of the allocator: a child process that has mapped a buffer file, and does what it is
//! told.

use fakebinder::Errno;
use fakebinder::alloc::{Alloc, Buffer, BufferRequest};
use fakebinder::client_mem::{ClientMemory, SharedSlice};
use fakebinder::memory::Memory;
use fakebinder::mm_shim::{Features, MappingKind, RemoteMm, create_memfd};
use fakebinder::probe::Probes;
use fakebinder::quota::User;
use fakebinder_sim::child::{Child, Plan};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// What kernels have and have not.
pub const KERNELS: [Features; 4] = [
    Features { userfault: true, procmap_query: true },
    Features { userfault: true, procmap_query: false },
    Features { userfault: false, procmap_query: true },
    Features { userfault: false, procmap_query: false },
];

const PAGE: usize = 4096;

/// A synchronous request of `size` bytes of data.
pub fn request(size: usize) -> BufferRequest {
    BufferRequest {
        data_size: size as u64,
        offsets_size: 0,
        extra_buffers_size: 0,
        is_async: false,
        pid: 1,
    }
}

/// The sender's memory: plain bytes, at addresses from 0.
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    fn get(&self, addr: u64, len: usize) -> Result<&[u8], Errno> {
        let start = usize::try_from(addr).map_err(|_| Errno::EFAULT)?;
        self.0.get(start..start.wrapping_add(len)).ok_or(Errno::EFAULT)
    }
}

impl ClientMemory for Bytes {
    fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), Errno> {
        dst.copy_from_slice(self.get(addr, dst.len())?);
        Ok(())
    }
    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno> {
        let from = self.get(addr, dst.len())?;
        // SAFETY: `dst` is writable for its length, and nothing of ours overlaps it.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), dst.as_mut_ptr(), from.len()) };
        Ok(())
    }
    fn write(&self, _addr: u64, _src: &[u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
}

/// Our own memory, read as another process's is: by `process_vm_readv`.
pub struct ByProcessVm(pub Vec<u8>);

impl ClientMemory for ByProcessVm {
    fn read(&self, _addr: u64, _dst: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno> {
        let local = libc::iovec { iov_base: dst.as_mut_ptr().cast(), iov_len: dst.len() };
        let from = &self.0[addr as usize..addr as usize + dst.len()];
        let remote = libc::iovec { iov_base: from.as_ptr() as *mut _, iov_len: from.len() };
        // SAFETY: one vector each, of memory that is ours and stays.
        let copied =
            unsafe { libc::process_vm_readv(std::process::id() as i32, &local, 1, &remote, 1, 0) };
        if copied == from.len() as isize { Ok(()) } else { Err(Errno::EFAULT) }
    }
    fn write(&self, _addr: u64, _src: &[u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
}

/// A client process.
pub struct Client {
    child: Mutex<Child>,
    pid: Pid,
    pub address: u64,
    pub size: usize,
    /// Our number of its buffer file, for [`resident`].
    pub memfd: OwnedFd,
    pub mm: Arc<RemoteMm>,
    pub alloc: Arc<Alloc>,
}

impl Client {
    /// A client with `size` bytes mapped, whose allocator knows it.
    pub fn start(size: usize, memory: &Arc<Memory>) -> Client {
        Self::start_probed(size, memory, Probes::default())
    }

    /// The same, with an allocator that is probed.
    pub fn start_probed(size: usize, memory: &Arc<Memory>, probes: Probes) -> Client {
        let client = Self::start_with(size, memory, Features::ALL, probes);
        client.alloc.mmap_handler(client.address, client.size).expect("the first mapping");
        client
    }

    /// A client that has mapped its buffer and told nobody, on a kernel that has these features.
    pub fn start_unknown(size: usize, memory: &Arc<Memory>, features: Features) -> Client {
        Self::start_with(size, memory, features, Probes::default())
    }

    fn start_with(size: usize, memory: &Arc<Memory>, features: Features, probes: Probes) -> Client {
        let file = create_memfd("fakebinder-test").expect("a buffer file");
        let plan = Plan { files: &[file.read_only.as_fd()], ..Plan::default() };
        let child = Child::start(&plan).expect("a client process");
        let pid = child.pid();
        // SAFETY: takes no pointer; the descriptor is new and ours.
        let pidfd = unsafe {
            OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) as i32)
        };
        let memfd = file.memfd.try_clone().expect("another descriptor");
        // As a file of the FUSE door is known, which its client maps without a word.
        let stat = nix::sys::stat::fstat(&memfd).expect("a file");
        let kind = MappingKind::FuseFile { dev: stat.st_dev, ino: stat.st_ino };
        let pidfd = Arc::new(pidfd);
        let kept = Arc::default();
        let mm = RemoteMm::with_features(pid.as_raw(), pidfd, file.memfd, kind, &kept, features)
            .expect("an mm");
        let alloc = Alloc::of_user(mm.clone(), memory, User::unlimited(), probes);
        let mut client =
            Client { child: Mutex::new(child), pid, address: 0, size, memfd, mm, alloc };
        client.address = client.map(0, libc::PROT_READ, Some(0));
        client
    }

    /// It makes a system call.
    fn call(&self, number: i64, args: &[u64]) -> u64 {
        let child = self.child.lock().expect("no panic");
        child.threads[0].system_call(number, args).expect("a system call of the client") as u64
    }

    /// It maps its buffer file from an offset on, or memory without a file: over what is at `at`,
    /// or where the kernel likes.
    fn map(&self, at: u64, protection: i32, offset: Option<u64>) -> u64 {
        let file = self.child.lock().expect("no panic").files[0];
        let (kind, file) = offset.map_or((libc::MAP_ANONYMOUS, -1), |_| (0, file));
        let place = if at == 0 { 0 } else { libc::MAP_FIXED };
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | kind | place;
        let (protection, flags, file) = (protection as u64, flags as u64, file as u64);
        let offset = offset.unwrap_or(0);
        self.call(libc::SYS_mmap, &[at, self.size as u64, protection, flags, file, offset])
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// What the client reads in its mapping.
    pub fn peek(&mut self, address: u64, len: usize) -> Vec<u8> {
        let child = self.child.get_mut().expect("no panic");
        child.peek(address, len).expect("the client's memory")
    }

    /// What it reads in one of its buffers.
    pub fn peek_buffer(&mut self, buffer: &Buffer) -> Vec<u8> {
        self.peek(buffer.user_data, buffer.data_size)
    }

    pub fn munmap(&mut self) {
        self.call(libc::SYS_munmap, &[self.address, self.size as u64]);
    }

    /// Unmaps its buffer and maps other memory at the same address.
    pub fn map_impostor(&mut self) {
        self.map(self.address, libc::PROT_READ, None);
    }

    /// Maps its buffer file over the old mapping, from `offset` of the file.
    pub fn remap(&mut self, offset: u64) {
        self.map(self.address, libc::PROT_READ, Some(offset));
    }

    /// Maps a writable private copy instead.
    pub fn map_writable(&mut self) {
        self.map(self.address, libc::PROT_READ | libc::PROT_WRITE, Some(0));
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.get_mut().expect("no panic").kill();
    }

    pub fn kill_without_waiting(&mut self) {
        let _ = nix::sys::signal::kill(self.pid, Signal::SIGKILL);
    }

    /// Pages of its buffer file that exist.
    pub fn resident(&self) -> usize {
        resident(&self.memfd)
    }

    /// Kilobytes of the file's mapping that the process `pid` has in memory (`/proc/PID/smaps`).
    pub fn rss_in(&self, pid: u32) -> usize {
        let ino = nix::sys::stat::fstat(&self.memfd).expect("a file").st_ino.to_string();
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("a process");
        let mut ours = false;
        let mut rss = 0;
        for line in smaps.lines() {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            if fields[0].contains('-') && !fields[0].ends_with(':') {
                ours = fields.get(4) == Some(&ino.as_str()) && line.contains("memfd:");
            } else if ours && fields[0] == "Rss:" {
                rss += fields[1].parse::<usize>().expect("a number");
            }
        }
        rss
    }
}

/// Pages of a file that exist, by its block count (a page of a memfd is 8 blocks).
pub fn resident(file: &OwnedFd) -> usize {
    nix::sys::stat::fstat(file).expect("a file").st_blocks as usize / 8
}

/// Where a buffer's pages are, as indices.
pub fn pages(buffer: &Buffer) -> std::ops::Range<usize> {
    buffer.offset / PAGE..(buffer.offset + buffer.size()).div_ceil(PAGE)
}
