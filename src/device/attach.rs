//! fakebinder's own ioctls: the attach handshake.
//!
//! A client that cannot map the device (CUSE has no mmap; FUSE without passthrough has no useful
//! one) gets a descriptor of its buffer, maps that, and tells where:
//! 1. `FAKEBINDER_ATTACH` names one end of a socketpair. We take a copy of it with `pidfd_getfd`,
//!    and send a read-only descriptor of the buffer through it before the ioctl returns.
//! 2. `FAKEBINDER_MAPPED` stands for the driver's mmap, with its checks and errors.
//!
//! The same socket is the way of descriptors into the client (see [`files`](super::files)), on
//! both doors; `FAKEBINDER_SLOTS` opens it.
//!
//! No socket has a name: the open device itself is the meeting point, in any namespace.

use super::client::thread_group;
use super::files::Channel;
use super::wire::Header;
use super::{Open, warn_once};
use crate::alloc::MAX_BUFFER_SIZE;
use crate::client_mem::getfd;
use crate::{Errno, uapi};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockType, SockaddrLike, UnixAddr, getsockname,
    getsockopt, sendmsg, sockopt,
};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

impl Open {
    /// Ioctls of type 'F'. `argument` is what is copied out afterwards, on errors too.
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
            uapi::FAKEBINDER_MAPPED => {
                self.mapped(header, &uapi::parse(argument).ok_or(Errno::EINVAL)?)
            }
            uapi::FAKEBINDER_SLOTS => {
                self.check_opener(header)?;
                self.client.offer_slots(&uapi::parse(argument).ok_or(Errno::EINVAL)?)
            }
            _ => self.hub.control_ioctl(header, cmd, argument),
        }
    }

    /// EINVAL: not the opener's process, another version, or no seqpacket socket. EPERM: this
    /// machine does not let us take the socket.
    fn attach(&self, header: &Header, attach: &mut uapi::fakebinder_attach) -> Result<(), Errno> {
        let version = std::mem::replace(&mut attach.version, uapi::FAKEBINDER_ATTACH_VERSION);
        if version != uapi::FAKEBINDER_ATTACH_VERSION || attach.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        self.check_opener(header)?;
        let socket =
            getfd(self.client.pidfd.as_fd(), header.tid, attach.socket).inspect_err(|error| {
                if *error == Errno::EPERM {
                    warn_once!(
                        "process {} cannot attach: taking a descriptor from it is not permitted (it takes \
                         CAP_SYS_PTRACE, and Yama's kernel.yama.ptrace_scope below 3)",
                        self.client.pid
                    );
                }
            })?;
        if !is_seqpacket(&socket) {
            return Err(Errno::EINVAL);
        }
        attach.max_size = MAX_BUFFER_SIZE as u64;
        attach.flags = match &self.buffer {
            None => uapi::FAKEBINDER_ATTACH_NATIVE_MMAP,
            Some(buffer) => {
                let descriptor = [buffer.as_raw_fd()];
                // A client that does not read its socket only harms itself: never wait for it.
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let rights = [ControlMessage::ScmRights(&descriptor)];
                let byte = [IoSlice::new(&[0])];
                sendmsg::<UnixAddr>(socket.as_raw_fd(), &byte, &rights, flags, None)?;
                0
            }
        };
        self.client.set_channel(Channel::new(socket));
        Ok(())
    }

    /// The driver's mmap. EINVAL: not the opener's process, or no mapping of our descriptor there;
    /// EPERM: it is writable; EBUSY: there is one already.
    fn mapped(&self, header: &Header, mapped: &uapi::fakebinder_mapped) -> Result<(), Errno> {
        self.check_opener(header)?;
        let (address, length) = match self.mm.mapping_at(mapped.address) {
            Err(Errno::ESRCH) => return Err(Errno::EINVAL),
            found => found?,
        };
        let told = usize::try_from(mapped.size).unwrap_or(usize::MAX);
        self.process.alloc().mmap_handler(address, length.min(told))
    }

    /// What belongs to the opener's address space or descriptors is for its own threads only.
    fn check_opener(&self, header: &Header) -> Result<(), Errno> {
        match thread_group(header.tid)? == self.client.pid {
            true => Ok(()),
            false => Err(Errno::EINVAL),
        }
    }
}

fn is_seqpacket(socket: &OwnedFd) -> bool {
    let is_unix = getsockname::<UnixAddr>(socket.as_raw_fd())
        .is_ok_and(|address| address.family() == Some(AddressFamily::Unix));
    is_unix && getsockopt(socket, sockopt::SockType).is_ok_and(|kind| kind == SockType::SeqPacket)
}
