//! A puppet: a process that does the system calls it is told to, and tells what they gave.
//!
//! Each of its threads has a socket to the process that drives it (a request, then a result) and
//! an [`Arena`](super::sys::Arena) for whatever the system calls point to, which the driving
//! process fills and reads by itself. So a puppet knows nothing of binder: what is right or
//! wrong is decided in one place, step by step, and a thread that hangs in the driver hangs
//! alone.

use super::sys::{self, Catch};
use fakebinder_client::{Errno, Files, connect, handshake, must_attach};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a puppet's thread is asked to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request {
    /// A system call: number and arguments.
    Call(u64, [u64; 6]),
    /// Maps a device as the client library does, by the attach handshake where mmap is missing.
    /// Gives the address.
    Map { fd: i32, size: u64, prot: i32, flags: i32 },
    /// Gets ready for files in transactions, as the client library does where a device needs it.
    AcceptFiles { fd: i32, slots: usize },
    /// What to do about a signal.
    Catch(Signal, Catch),
    /// Makes a child process, which serves the spare socket of that index.
    Fork(usize),
    /// Ends the thread; the first one ends the process.
    Exit,
}

const WORDS: usize = 8;
pub(super) type Packet = [u8; WORDS * 8];

impl Request {
    pub(super) fn encode(self) -> Packet {
        let words: [u64; WORDS] = match self {
            Request::Call(number, [a, b, c, d, e, f]) => [0, number, a, b, c, d, e, f],
            Request::Map { fd, size, prot, flags } => {
                [1, fd as u64, size, prot as u64, flags as u64, 0, 0, 0]
            }
            Request::Catch(signal, how) => [2, signal as u64, how as u64, 0, 0, 0, 0, 0],
            Request::Fork(spare) => [3, spare as u64, 0, 0, 0, 0, 0, 0],
            Request::Exit => [4, 0, 0, 0, 0, 0, 0, 0],
            Request::AcceptFiles { fd, slots } => [5, fd as u64, slots as u64, 0, 0, 0, 0, 0],
        };
        let mut packet = [0; WORDS * 8];
        for (bytes, word) in packet.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        packet
    }

    fn decode(packet: &Packet) -> Option<Request> {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(packet.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().ok()?);
        }
        let [kind, a, b, c, d, e, f, g] = words;
        Some(match kind {
            0 => Request::Call(a, [b, c, d, e, f, g]),
            1 => Request::Map { fd: a as i32, size: b, prot: c as i32, flags: d as i32 },
            2 => {
                let how = [Catch::Plain, Catch::Restart, Catch::Ignore].get(b as usize).copied()?;
                Request::Catch(Signal::try_from(a as i32).ok()?, how)
            }
            3 => Request::Fork(a as usize),
            4 => Request::Exit,
            5 => Request::AcceptFiles { fd: a as i32, slots: b as usize },
            _ => return None,
        })
    }
}

/// The life of a new puppet process: serves the first socket in its first thread and one more
/// thread for each further socket. `spares` wait for [`Request::Fork`].
pub(super) fn live(sockets: Vec<RawFd>, spares: Vec<RawFd>) -> i32 {
    let packed = sys::pack(&[sockets.as_slice(), spares.as_slice()].concat());
    let (sockets, spares) = packed.split_at(sockets.len());
    let (sockets, spares) = (sockets.to_vec(), spares.to_vec());
    sys::begin_at_nice_0();
    // The puppet must not outlive whoever drives it, whatever it is blocked in.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let mut sockets = sockets.into_iter().map(sys::adopt);
    let Some(first) = sockets.next() else { return 2 };
    for socket in sockets {
        let spares = spares.clone();
        std::thread::spawn(move || serve(&socket, &spares));
    }
    serve(&first, &spares);
    0
}

/// Answers requests until there are no more. The first message out is the thread's id.
fn serve(socket: &OwnedFd, spares: &[RawFd]) {
    let mut answer = i64::from(nix::unistd::gettid().as_raw());
    loop {
        if send(socket.as_raw_fd(), &answer.to_ne_bytes(), MsgFlags::MSG_NOSIGNAL).is_err() {
            return;
        }
        let mut packet = [0; WORDS * 8];
        let length = loop {
            match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        if length != Ok(packet.len()) {
            return;
        }
        answer = match Request::decode(&packet) {
            None => -i64::from(libc::EBADMSG),
            Some(Request::Exit) => return,
            Some(Request::Call(number, args)) => {
                if number == libc::SYS_close as u64 {
                    // A client library closes what it keeps beside the device together with it.
                    lock(&CHANNELS).remove(&(args[0] as i32));
                    lock(&FILES).remove(&(args[0] as i32));
                }
                let result = sys::syscall(number, args);
                if number == libc::SYS_ioctl as u64 {
                    take_files(args[0] as i32);
                }
                result
            }
            Some(Request::AcceptFiles { fd, slots }) => {
                accept_files(fd, slots).map_or_else(|e| -i64::from(e as i32), |()| 0)
            }
            Some(Request::Map { fd, size, prot, flags }) => {
                map(fd, size, prot, flags).map_or_else(|e| -i64::from(e as i32), |a| a as i64)
            }
            Some(Request::Catch(signal, how)) => {
                sys::catch(signal, how).map_or_else(|e| -i64::from(e as i32), |()| 0)
            }
            Some(Request::Fork(spare)) => {
                let fork = sys::fork(|| {
                    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                    serve(&sys::adopt(spares[spare]), &[]);
                    0
                });
                fork.map_or_else(|e| -i64::from(e as i32), |pid| i64::from(pid.as_raw()))
            }
        };
    }
}

/// The sockets of attach handshakes, by the device that they belong to.
static CHANNELS: Mutex<BTreeMap<i32, OwnedFd>> = Mutex::new(BTreeMap::new());
/// Where files of transactions come in, by the device that they belong to.
static FILES: Mutex<BTreeMap<i32, Files>> = Mutex::new(BTreeMap::new());

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What [`Device::accept_files`](fakebinder_client::Device::accept_files) does.
fn accept_files(fd: i32, slots: usize) -> Result<(), Errno> {
    let device = borrow(fd)?;
    let channel = lock(&CHANNELS).remove(&fd);
    let socket = match channel {
        Some(socket) => socket,
        None if fstatfs(device)?.filesystem_type() != FUSE_SUPER_MAGIC => return Ok(()),
        None => connect(device)?.0,
    };
    lock(&FILES).insert(fd, Files::new(device, socket, slots)?);
    Ok(())
}

/// Puts files that came with transactions in their places.
fn take_files(fd: i32) {
    if let (Some(files), Ok(device)) = (lock(&FILES).get(&fd), borrow(fd)) {
        let _ = files.receive(device);
    }
}

fn map(fd: i32, size: u64, prot: i32, flags: i32) -> Result<u64, Errno> {
    let file = borrow(fd)?;
    let (prot, flags) = (ProtFlags::from_bits_retain(prot), MapFlags::from_bits_retain(flags));
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    // For want of passthrough the kernel's mapping would be of no use.
    let mapped = match must_attach(file) {
        true => Err(Errno::ENODEV),
        false => map_file(fd, size, prot, flags),
    };
    if mapped != Err(Errno::ENODEV) {
        return mapped;
    }
    let attached = handshake(file, size, prot, flags)?;
    lock(&CHANNELS).insert(fd, attached.channel);
    let address = attached.mapping.address();
    // The mapping stays until its address is unmapped.
    std::mem::forget(attached.mapping);
    Ok(address)
}

fn map_file(fd: i32, size: usize, prot: ProtFlags, flags: MapFlags) -> Result<u64, Errno> {
    let flags = flags - MapFlags::MAP_FIXED;
    let arguments = [0, size as u64, prot.bits() as u64, flags.bits() as u64, fd as u64, 0];
    match sys::syscall(libc::SYS_mmap as u64, arguments) {
        result @ ..0 => Err(Errno::from_raw(-result as i32)),
        address => Ok(address as u64),
    }
}

fn borrow(fd: i32) -> Result<BorrowedFd<'static>, Errno> {
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    Ok(sys::borrow(fd))
}
