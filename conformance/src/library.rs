//! What a client library does for the process that it is in: mapping a device that the kernel does
//! not map. The children of a scene do so, too, besides the system calls that they are told to
//! make.

use fakebinder_client::{Errno, handshake, must_attach};
use fakebinder_sim::child::{Request, borrow, make_system_calls, result};
use nix::sys::mman::{MapFlags, ProtFlags};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const MAP: u64 = 0;

/// Devices are mapped by mmap alone.
static UNAIDED: AtomicBool = AtomicBool::new(false);

/// From now on devices are mapped as by programs that know nothing of fakebinder: what the kernel
/// says stands. To be called before the first test.
pub fn map_unaided() {
    UNAIDED.store(true, Ordering::Relaxed);
}

/// Maps a device as the client library does: by the attach handshake where mmap does not work. The
/// result is the address.
pub(super) fn map_request(fd: i32, size: u64, prot: i32, flags: i32) -> Request {
    Request::Special(MAP, [fd as u64, size, prot as u64, flags as u64, 0, 0])
}

/// What a child does for a request.
pub(super) fn carry_out(request: Request) -> i64 {
    let raw =
        |result: Result<u64, Errno>| result.map_or_else(|e| -i64::from(e as i32), |n| n as i64);
    match request {
        Request::Special(MAP, [fd, size, prot, flags, ..]) => {
            raw(map(fd as i32, size, prot as i32, flags as i32))
        }
        Request::Call(number, args) if number == libc::SYS_close as u64 => {
            // A client library closes the socket of the attach handshake together with the device.
            lock(&CHANNELS).remove(&(args[0] as i32));
            make_system_calls(request)
        }
        _ => make_system_calls(request),
    }
}

/// The sockets of attach handshakes, by the device that they belong to.
static CHANNELS: Mutex<BTreeMap<i32, OwnedFd>> = Mutex::new(BTreeMap::new());

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

fn map(fd: i32, size: u64, prot: i32, flags: i32) -> Result<u64, Errno> {
    let file = descriptor(fd)?;
    let (prot, flags) = (ProtFlags::from_bits_retain(prot), MapFlags::from_bits_retain(flags));
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    if UNAIDED.load(Ordering::Relaxed) {
        return map_file(fd, size, prot, flags);
    }
    // Without passthrough the kernel would map a copy of the buffers.
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
    let call = Request::Call(libc::SYS_mmap as u64, arguments);
    result(make_system_calls(call)).map(|address| address as u64)
}

fn descriptor(fd: i32) -> Result<BorrowedFd<'static>, Errno> {
    if fd < 0 { Err(Errno::EBADF) } else { Ok(borrow(fd)) }
}
