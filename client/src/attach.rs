//! The attach handshake: how a device that cannot be mapped gives its client a buffer.
//!
//! Character devices in userspace (CUSE) have no mmap. So this process makes a socketpair and names
//! one end of it in an ioctl. The daemon sends a read-only descriptor of the buffer through the
//! socket; this process maps the buffer and says where.

use crate::mapping::Mapping;
use crate::sys::{self, Region};
use crate::{Errno, uapi};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect as connect_socket, getsockopt, recvmsg, socket, socketpair,
};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The result of the handshake.
#[derive(Debug)]
pub struct Attached {
    /// The mapping. A child does not inherit it, as in the driver.
    pub mapping: Mapping,
    /// This process's end of the socketpair: the daemon sees it close when the device is dropped.
    pub channel: OwnedFd,
}

/// What the kernel's mmap of a file gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelMapping {
    /// What mmap says: the file does not lie on fakebinder's FUSE door.
    Right,
    /// A mapping of a binder device that nobody has checked: on the FUSE door the kernel makes
    /// mappings without asking the daemon.
    Unchecked,
    /// The same, in a process that is not the opener of the device.
    Strange,
    /// A mapping of a copy of the buffers, or, of a bind mount of the file itself, a useless one: the
    /// file lies on the FUSE door, and the kernel has no passthrough for it.
    Copied,
}

/// What the kernel's mmap of this file would give.
pub fn kernel_mapping(device: BorrowedFd<'_>) -> KernelMapping {
    let mut question = uapi::fakebinder_attach {
        version: uapi::FAKEBINDER_ATTACH_VERSION,
        socket: -1,
        ..Default::default()
    };
    if sys::is_fuse(device) != Ok(true) {
        return KernelMapping::Right;
    }
    let native = |flags: u32| flags & uapi::FAKEBINDER_ATTACH_NATIVE_MMAP != 0;
    match sys::ioctl(device, uapi::FAKEBINDER_ATTACH, &mut question) {
        Err(Errno::ENOTCONN) if native(question.flags) => KernelMapping::Unchecked,
        Err(Errno::ENOTCONN) => KernelMapping::Copied,
        Err(Errno::EINVAL) if is_fakebinder(device) => KernelMapping::Strange,
        _ => KernelMapping::Right,
    }
}

/// Whether the kernel would map a copy of the buffers at best: a file on fakebinder's FUSE door,
/// where the kernel has no passthrough.
pub fn must_attach(device: BorrowedFd<'_>) -> bool {
    kernel_mapping(device) == KernelMapping::Copied
}

/// Whether the kernel copies the arguments of this file's ioctls by itself, because it lies on
/// fakebinder's FUSE door: then the kernel refuses pointers that the daemon would never look at.
pub fn kernel_copies_arguments(device: BorrowedFd<'_>) -> bool {
    sys::is_fuse(device) == Ok(true) && is_fakebinder(device)
}

/// The whole handshake. Errors are those of the driver's mmap, or `ENODEV` when the device knows no
/// handshake: then it is not fakebinder's and cannot be mapped, or it can and must be mapped.
pub fn handshake(
    device: BorrowedFd<'_>,
    size: usize,
    prot: ProtFlags,
    flags: MapFlags,
) -> Result<Attached, Errno> {
    if prot.contains(ProtFlags::PROT_WRITE) {
        return Err(Errno::EPERM);
    }
    let (ours, flags_of_device) = connect(device)?;
    if flags_of_device & uapi::FAKEBINDER_ATTACH_NATIVE_MMAP != 0 {
        return Err(Errno::ENODEV);
    }
    let buffer = receive_descriptor(ours.as_fd())?;
    let region = Region::map(buffer.as_fd(), size, prot, flags)?;
    // VM_DONTCOPY, as in the driver.
    region.do_not_inherit()?;
    let mut mapped =
        uapi::fakebinder_mapped { address: region.address(), size: region.len() as u64 };
    sys::ioctl(device, uapi::FAKEBINDER_MAPPED, &mut mapped)?;
    Ok(Attached { mapping: Mapping::new(region), channel: ours })
}

/// Attaches an open device that [`Device`](crate::Device) does not own, as
/// [`Device::mmap`](crate::Device::mmap) does with its own: for programs that wrap mmap.
///
/// Errors: EPERM for a writable mapping; EBUSY when this open file was mapped before; EINVAL for
/// size 0 or in another process than the opener; ENODEV when the device is not fakebinder's, or
/// when it can be mapped.
pub fn attach(
    device: BorrowedFd<'_>,
    size: usize,
    prot: ProtFlags,
    flags: MapFlags,
) -> Result<Mapping, Errno> {
    handshake(device, size, prot, flags).map(|attached| attached.mapping)
}

/// Connects to the daemon behind a device, and gives its flags. `ENODEV` when the device knows no
/// handshake: then it is not fakebinder's. `EPERM` when the daemon may not reach this process, nor
/// this process a socket of the daemon's.
pub fn connect(device: BorrowedFd<'_>) -> Result<(OwnedFd, u32), Errno> {
    match connect_by_socketpair(device) {
        // EINVAL comes from other drivers, which do not know the ioctl, and from fakebinder in
        // another process.
        Err(Errno::EINVAL) if is_fakebinder(device) => Err(Errno::EINVAL),
        Err(Errno::EINVAL | Errno::ENOTTY) => Err(Errno::ENODEV),
        Err(Errno::EPERM) => connect_by_name(device).map_err(|_| Errno::EPERM),
        connected => connected,
    }
}

fn connect_by_socketpair(device: BorrowedFd<'_>) -> Result<(OwnedFd, u32), Errno> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    Ok((ours, ask(device, theirs.as_raw_fd())?))
}

/// Asks for the handshake through that socket, and gives the device's flags.
fn ask(device: BorrowedFd<'_>, socket: i32) -> Result<u32, Errno> {
    let version = uapi::FAKEBINDER_ATTACH_VERSION;
    let mut request = uapi::fakebinder_attach { version, socket, ..Default::default() };
    sys::ioctl(device, uapi::FAKEBINDER_ATTACH, &mut request)?;
    Ok(request.flags)
}

/// The way where the daemon may not take a descriptor from this process: through a socket of the
/// daemon's. Its other end is the daemon, which this process lets trace it: where Yama's
/// `ptrace_scope` is 1, an ordinary user's daemon may then do what it could not.
fn connect_by_name(device: BorrowedFd<'_>) -> Result<(OwnedFd, u32), Errno> {
    let version = uapi::FAKEBINDER_ATTACH_VERSION;
    let mut told = uapi::fakebinder_attach_name { version, ..Default::default() };
    sys::ioctl(device, uapi::FAKEBINDER_ATTACH_NAME, &mut told)?;
    let name = told.name.get(..told.length as usize).ok_or(Errno::EPROTO)?;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect_socket(socket.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
    let daemon = getsockopt(&socket, PeerCredentials)?.pid();
    if sys::let_trace(daemon).is_ok()
        && let Ok(connected) = connect_by_socketpair(device)
    {
        return Ok(connected);
    }
    let flags = ask(device, -1)?;
    Ok((socket, flags))
}

/// Whether the device knows an ioctl that only fakebinder has.
fn is_fakebinder(device: BorrowedFd<'_>) -> bool {
    let mut stats = uapi::fakebinder_stats::default();
    matches!(sys::ioctl(device, uapi::FAKEBINDER_STATS, &mut stats), Ok(_) | Err(Errno::EPERM))
}

/// The one descriptor of a one-byte message. EPROTO for anything else.
fn receive_descriptor(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut byte = [0u8; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 4]);
    // The message was sent before the ioctl returned: to wait for it would only hide a fault.
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            received.extend(numbers.into_iter().map(sys::adopt));
        }
    }
    match received.len() {
        1 => received.pop().ok_or(Errno::EPROTO),
        _ => Err(Errno::EPROTO),
    }
}
