//! A client for tests: another process that has mapped a buffer file, and does what it is told.
//!
//! The process is the running program again, told by [`CLIENT`] to call [`client_main`].
#![allow(dead_code, reason = "no test uses all of it")]

#[path = "../common/skip.rs"]
pub mod skip;

use fakebinder::Errno;
use fakebinder::alloc::{Alloc, Buffer, Request};
use fakebinder::client_mem::{ClientMemory, SharedSlice};
use fakebinder::memory::Memory;
use fakebinder::mm_shim::{ClientMm, Features, MappingKind, create_memfd};
use fakebinder::probe::Probes;
use fakebinder::quota::User;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Set in the environment of a client process.
pub const CLIENT: &str = "FAKEBINDER_TEST_CLIENT";

/// What kernels have and have not.
pub const KERNELS: [Features; 4] = [
    Features { userfault: true, procmap_query: true },
    Features { userfault: true, procmap_query: false },
    Features { userfault: false, procmap_query: true },
    Features { userfault: false, procmap_query: false },
];

const SOCKET: i32 = 3;
const FILE: i32 = 4;
const PAGE: usize = 4096;

/// A synchronous request of `size` bytes of data.
pub fn request(size: usize) -> Request {
    Request {
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

#[repr(u8)]
enum Op {
    Peek,
    Munmap,
    Impostor,
    Remap,
    Writable,
}

/// A client process.
pub struct Client {
    child: Child,
    socket: UnixStream,
    pub address: u64,
    pub size: usize,
    /// Our number of its buffer file, for [`resident`].
    pub memfd: OwnedFd,
    pub mm: Arc<ClientMm>,
    pub alloc: Arc<Alloc>,
}

impl Client {
    /// A client with `size` bytes mapped, whose allocator knows it. `arguments` make the running
    /// program call [`client_main`].
    pub fn start(arguments: &[&str], size: usize, memory: &Arc<Memory>) -> Client {
        Self::start_probed(arguments, size, memory, Probes::default())
    }

    /// The same, with an allocator that is probed.
    pub fn start_probed(
        arguments: &[&str],
        size: usize,
        memory: &Arc<Memory>,
        probes: Probes,
    ) -> Client {
        let client = Self::start_with(arguments, size, memory, Features::ALL, probes);
        client.alloc.mmap_handler(client.address, client.size).expect("the first mapping");
        client
    }

    /// A client that has mapped its buffer and told nobody, on a kernel that has these features.
    pub fn start_unknown(
        arguments: &[&str],
        size: usize,
        memory: &Arc<Memory>,
        features: Features,
    ) -> Client {
        Self::start_with(arguments, size, memory, features, Probes::default())
    }

    fn start_with(
        arguments: &[&str],
        size: usize,
        memory: &Arc<Memory>,
        features: Features,
        probes: Probes,
    ) -> Client {
        let file = create_memfd("fakebinder-test").expect("a buffer file");
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let (socket, read_only) = (theirs.as_raw_fd(), file.read_only.as_raw_fd());
        let mut command = Command::new(std::env::current_exe().expect("our own program"));
        command
            .args(arguments)
            .env(CLIENT, size.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // SAFETY: nothing but async-signal-safe system calls. The numbers are moved out of the
        // way first, since either may be the other's place.
        unsafe {
            command.pre_exec(move || {
                let (socket, file) = (
                    libc::fcntl(socket, libc::F_DUPFD, 10),
                    libc::fcntl(read_only, libc::F_DUPFD, 10),
                );
                (libc::dup2(socket, SOCKET) == SOCKET && libc::dup2(file, FILE) == FILE)
                    .then_some(())
                    .ok_or_else(std::io::Error::last_os_error)?;
                libc::close(socket);
                libc::close(file);
                Ok(())
            });
        }
        let child = command.spawn().expect("a client process");
        let pid = child.id() as i32;
        // SAFETY: takes no pointer; the descriptor is new and ours.
        let pidfd =
            unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32) };
        let memfd = file.memfd.try_clone().expect("another descriptor");
        // As a file of the FUSE door is known, which its client maps without a word.
        let stat = nix::sys::stat::fstat(&memfd).expect("a file");
        let kind = MappingKind::FuseFile { dev: stat.st_dev, ino: stat.st_ino };
        let mm = ClientMm::with_features(
            pid,
            Arc::new(pidfd),
            file.memfd,
            kind,
            &Arc::default(),
            features,
        )
        .expect("an mm");
        let alloc = Alloc::of_user(mm.clone(), memory, User::unlimited(), probes);
        let mut client = Client { child, socket: ours, address: 0, size, memfd, mm, alloc };
        client.address = client.answer();
        client
    }

    fn answer(&mut self) -> u64 {
        let mut word = [0; 8];
        self.socket.read_exact(&mut word).expect("an answer of the client");
        u64::from_ne_bytes(word)
    }

    fn ask(&mut self, op: Op, offset: u64, len: u64) {
        let words = [op as u64, offset, len].map(u64::to_ne_bytes).concat();
        self.socket.write_all(&words).expect("the client listens");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the client reads in its mapping.
    pub fn peek(&mut self, address: u64, len: usize) -> Vec<u8> {
        self.ask(Op::Peek, address - self.address, len as u64);
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes).expect("an answer of the client");
        bytes
    }

    /// What it reads in one of its buffers.
    pub fn peek_buffer(&mut self, buffer: &Buffer) -> Vec<u8> {
        self.peek(buffer.user_data, buffer.data_size)
    }

    pub fn munmap(&mut self) {
        self.ask(Op::Munmap, 0, self.size as u64);
        self.answer();
    }

    /// Unmaps its buffer and maps other memory at the same address.
    pub fn map_impostor(&mut self) {
        self.ask(Op::Impostor, 0, self.size as u64);
        self.answer();
    }

    /// Maps its buffer file over the old mapping, from `offset` of the file.
    pub fn remap(&mut self, offset: u64) {
        self.ask(Op::Remap, offset, self.size as u64);
        self.answer();
    }

    /// Maps a writable private copy instead.
    pub fn map_writable(&mut self) {
        self.ask(Op::Writable, 0, self.size as u64);
        self.answer();
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn kill_without_waiting(&mut self) {
        let _ = self.child.kill();
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

impl Drop for Client {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Pages of a file that exist, by its block count (a page of a memfd is 8 blocks).
pub fn resident(file: &OwnedFd) -> usize {
    nix::sys::stat::fstat(file).expect("a file").st_blocks as usize / 8
}

/// What a client process does. Returns in other processes.
pub fn client_main() {
    let Ok(size) = std::env::var(CLIENT) else {
        return;
    };
    let size: usize = size.parse().expect("a size");
    // SAFETY: our parent has put them there for us.
    let mut socket = unsafe { UnixStream::from_raw_fd(SOCKET) };
    let map = |at: usize, flags: i32, protection: i32, fd: i32, offset: u64| {
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | flags;
        // SAFETY: at a place of the kernel's choice, or over the one that it has chosen before.
        let address =
            unsafe { libc::mmap(at as *mut _, size, protection, flags, fd, offset as i64) };
        assert_ne!(address, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        address as usize
    };
    let address = map(0, 0, libc::PROT_READ, FILE, 0);
    let mut word = (address as u64).to_ne_bytes();
    loop {
        if socket.write_all(&word).is_err() {
            std::process::exit(0);
        }
        let mut words = [0u8; 24];
        loop {
            if socket.read_exact(&mut words).is_err() {
                std::process::exit(0);
            }
            let word =
                |at: usize| u64::from_ne_bytes(words[at..at + 8].try_into().expect("8 bytes"));
            let (op, offset, len) = (word(0), word(8), word(16) as usize);
            if op == Op::Peek as u64 {
                let mut bytes = vec![0u8; len];
                // SAFETY: the parent asks for bytes of the mapping only; they may change while we
                // copy them, so through a raw pointer.
                unsafe {
                    std::ptr::copy(
                        (address + offset as usize) as *const u8,
                        bytes.as_mut_ptr(),
                        len,
                    )
                };
                if socket.write_all(&bytes).is_err() {
                    std::process::exit(0);
                }
                continue;
            } else if op == Op::Munmap as u64 {
                // SAFETY: nobody here has a reference into it.
                unsafe { libc::munmap(address as *mut _, len) };
            } else if op == Op::Impostor as u64 {
                map(address, libc::MAP_FIXED | libc::MAP_ANONYMOUS, libc::PROT_READ, -1, 0);
            } else if op == Op::Remap as u64 {
                map(address, libc::MAP_FIXED, libc::PROT_READ, FILE, offset);
            } else if op == Op::Writable as u64 {
                map(address, libc::MAP_FIXED, libc::PROT_READ | libc::PROT_WRITE, FILE, 0);
            }
            break;
        }
        word = [0; 8];
    }
}

/// Where a buffer's pages are, as indices.
pub fn pages(buffer: &Buffer) -> std::ops::Range<usize> {
    buffer.offset / PAGE..(buffer.offset + buffer.size()).div_ceil(PAGE)
}
