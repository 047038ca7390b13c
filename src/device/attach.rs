//! fakebinder's own ioctls: the attach handshake.
//!
//! A client that cannot map its buffer by the device (CUSE has no mmap; FUSE without passthrough maps
//! a copy) gets a descriptor of the buffer, maps that, and tells the daemon where:
//! 1. `FAKEBINDER_ATTACH` names one end of a socketpair. The daemon takes a copy of that with
//!    `pidfd_getfd`, and sends a read-only descriptor of the buffer through it before the ioctl
//!    returns.
//! 2. `FAKEBINDER_MAPPED` stands for the driver's mmap, with its checks and errors.
//!
//! The same socket brings descriptors into the client (see [`files`](super::files)), on both doors,
//! once `FAKEBINDER_SLOTS` has offered numbers for them.
//!
//! Such a socket has no name: the open device itself is the meeting point, in any namespace. Only
//! where the daemon may not take the client's descriptor (no ptrace access) a socket gets a name,
//! which is random and known to this client alone; and the process that connects to it must be this
//! client.

use super::Open;
use super::client::thread_group;
use super::files::Channel;
use super::wire::Header;
use crate::client_log::{Kind, client_log};
use crate::client_mem::getfd;
use crate::page::MAX_BUFFER_SIZE;
use crate::probe::{Verb, fault};
use crate::shortage::is_shortage;
use crate::{Errno, uapi};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrLike, UnixAddr,
    bind, getsockname, getsockopt, listen, sendmsg, socket, sockopt,
};
use std::hash::{BuildHasher, RandomState};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

impl Open {
    /// Ioctls of type 'F'. `argument` is copied out afterwards, on errors too.
    pub(super) fn private_ioctl(
        &self,
        header: &Header,
        cmd: u32,
        argument: &mut [u8],
    ) -> Result<(), Errno> {
        match cmd {
            uapi::FAKEBINDER_ATTACH => {
                let mut attach = uapi::parse(argument).ok_or(Errno::EINVAL)?;
                let result = self.attach(header, &mut attach);
                argument.copy_from_slice(uapi::bytes_of(&attach));
                result
            }
            uapi::FAKEBINDER_ATTACH_NAME => {
                let mut name = uapi::parse(argument).ok_or(Errno::EINVAL)?;
                let result = self.name_socket(header, &mut name);
                argument.copy_from_slice(uapi::bytes_of(&name));
                result
            }
            uapi::FAKEBINDER_MAPPED => {
                self.mapped(header, &uapi::parse(argument).ok_or(Errno::EINVAL)?)
            }
            uapi::FAKEBINDER_SLOTS => {
                self.check_opener(header)?;
                self.client.offer_slots(&uapi::parse(argument).ok_or(Errno::EINVAL)?)
            }
            uapi::FAKEBINDER_SUPERVISE => {
                let mut told = uapi::parse(argument).ok_or(Errno::EINVAL)?;
                let result = self.supervise(header, &mut told);
                argument.copy_from_slice(uapi::bytes_of(&told));
                result
            }
            _ => self.control_ioctl(header, cmd, argument),
        }
    }

    /// EINVAL: not the opener's process, another version, or no seqpacket socket. EPERM: this
    /// machine does not let the daemon take the socket. ENOTCONN: nobody has connected to the name
    /// (the argument says all the same what the device can do); EACCES: another process has.
    fn attach(&self, header: &Header, attach: &mut uapi::fakebinder_attach) -> Result<(), Errno> {
        let version = std::mem::replace(&mut attach.version, uapi::FAKEBINDER_ATTACH_VERSION);
        if version != uapi::FAKEBINDER_ATTACH_VERSION || attach.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        self.check_opener(header)?;
        attach.max_size = MAX_BUFFER_SIZE as u64;
        attach.flags = match self.buffer {
            None => uapi::FAKEBINDER_ATTACH_NATIVE_MMAP,
            Some(_) => 0,
        };
        let socket = match attach.socket {
            -1 => self.accept()?,
            fd => take_socket(self.client.pidfd.as_fd(), header.tid, fd)?,
        };
        if let Some(buffer) = &self.buffer {
            let descriptor = [buffer.as_raw_fd()];
            // A client that does not read its socket only harms itself: never wait for it.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let rights = [ControlMessage::ScmRights(&descriptor)];
            let byte = [IoSlice::new(&[0])];
            fault(Verb::Send)?;
            sendmsg::<UnixAddr>(socket.as_raw_fd(), &byte, &rights, flags, None)?;
        }
        // A name that it had no need of in the end.
        *self.listener.lock() = None;
        self.client.set_channel(Channel::new(socket));
        Ok(())
    }

    fn name_socket(
        &self,
        header: &Header,
        told: &mut uapi::fakebinder_attach_name,
    ) -> Result<(), Errno> {
        let version = std::mem::replace(&mut told.version, uapi::FAKEBINDER_ATTACH_VERSION);
        if version != uapi::FAKEBINDER_ATTACH_VERSION {
            return Err(Errno::EINVAL);
        }
        self.check_opener(header)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        fault(Verb::Descriptor)?;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let random = RandomState::new();
        let name = format!("fakebinder-{:016x}{:016x}", random.hash_one(0), random.hash_one(1));
        bind(listener.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        listen(&listener, Backlog::new(1)?)?;
        told.length = name.len() as u32;
        told.name.fill(0);
        told.name[..name.len()].copy_from_slice(name.as_bytes());
        *self.listener.lock() = Some(listener.into());
        Ok(())
    }

    /// Accepts the connection that the client has made by now, since its socket could not be taken.
    fn accept(&self) -> Result<OwnedFd, Errno> {
        let listener = self.listener.lock().take().ok_or(Errno::ENOTCONN)?;
        client_log!(
            Kind::AttachRefused,
            "process {} cannot attach in the usual way: taking a descriptor from it is not permitted (it takes \
             CAP_SYS_PTRACE, and Yama's kernel.yama.ptrace_scope below 3)",
            self.client.pid
        );
        // Neither a connection nor an error is waited for: the listener does not block.
        fault(Verb::Descriptor)?;
        let (socket, _) = listener.accept().map_err(|error| {
            let errno = error.raw_os_error().map(Errno::from_raw);
            errno.filter(|errno| is_shortage(*errno)).unwrap_or(Errno::ENOTCONN)
        })?;
        match getsockopt(&socket, sockopt::PeerCredentials)?.pid() == self.client.pid {
            true => Ok(socket.into()),
            false => Err(Errno::EACCES),
        }
    }

    /// Stands for the driver's mmap. EINVAL: not the opener's process, or no mapping of the buffer
    /// there; EPERM: the mapping is writable; EBUSY: there is one already; EACCES: the daemon may
    /// not look.
    fn mapped(&self, header: &Header, mapped: &uapi::fakebinder_mapped) -> Result<(), Errno> {
        self.check_opener(header)?;
        let (address, length) = match self.mm.mapping_at(mapped.address) {
            Err(Errno::ESRCH) => return Err(Errno::EINVAL),
            Err(Errno::EACCES) => {
                client_log!(
                    Kind::AttachRefused,
                    "process {} cannot attach: looking at its mappings is not permitted (it takes CAP_SYS_PTRACE)",
                    self.client.pid
                );
                return Err(Errno::EACCES);
            }
            found => found?,
        };
        let told = usize::try_from(mapped.size).unwrap_or(usize::MAX);
        self.process.alloc().mmap_handler(address, length.min(told))
    }

    /// The opener's address space and descriptors are for its own threads only. EINVAL: another
    /// process.
    fn check_opener(&self, header: &Header) -> Result<(), Errno> {
        match thread_group(header.tid)? == self.client.pid {
            true => Ok(()),
            false => Err(Errno::EINVAL),
        }
    }
}

/// A copy of the socket of a thread. EPERM: the daemon may not take that; EINVAL: it is no seqpacket
/// socket.
pub(super) fn take_socket(pidfd: BorrowedFd<'_>, tid: i32, fd: i32) -> Result<OwnedFd, Errno> {
    let socket = getfd(pidfd, tid, fd)?;
    if is_seqpacket(&socket) { Ok(socket) } else { Err(Errno::EINVAL) }
}

fn is_seqpacket(socket: &OwnedFd) -> bool {
    let is_unix = getsockname::<UnixAddr>(socket.as_raw_fd())
        .is_ok_and(|address| address.family() == Some(AddressFamily::Unix));
    is_unix && getsockopt(socket, sockopt::SockType).is_ok_and(|kind| kind == SockType::SeqPacket)
}
