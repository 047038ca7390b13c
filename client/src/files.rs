//! Descriptors that arrive in transactions.
//!
//! The kernel's driver installs them itself. fakebinder's daemon cannot: it sends them through the
//! socket of the attach handshake, to be moved to numbers that this process keeps free. After each
//! ioctl the library moves the files that have come by then, so that a transaction's descriptors
//! are in their places before its returns are looked at.

use crate::{Errno, sys, uapi};
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::Mode;
use nix::unistd::{close, dup3};
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

/// The receiving end of the descriptors.
#[derive(Debug)]
pub struct Files {
    socket: OwnedFd,
    slots: Mutex<Slots>,
}

/// The numbers that are kept free, each with something worthless open at it.
#[derive(Debug)]
struct Slots {
    filler: OwnedFd,
    held: BTreeMap<RawFd, OwnedFd>,
    wanted: usize,
}

/// A message of the daemon: a kind, numbers, and files for them.
struct Message {
    words: Vec<u32>,
    files: Vec<OwnedFd>,
}

impl Files {
    /// Keeps `wanted` numbers free. Errors: EMFILE, ENFILE; ENOSPC when the daemon does not accept
    /// so many.
    pub fn new(device: BorrowedFd<'_>, socket: OwnedFd, wanted: usize) -> Result<Files, Errno> {
        let filler = open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut slots = Slots { filler, held: BTreeMap::new(), wanted };
        slots.refill(device)?;
        Ok(Files { socket, slots: Mutex::new(slots) })
    }

    /// Puts the files that have come in their places. Errors: EPROTO for a malformed message; those
    /// of dup(2) when the numbers that were used up cannot be replaced.
    pub fn receive(&self, device: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut slots = self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while let Some(Message { words, files }) = self.next_message()? {
            match words.split_first() {
                Some((&uapi::FAKEBINDER_FILES_INSTALL, numbers))
                    if numbers.len() == files.len() =>
                {
                    for (number, file) in numbers.iter().zip(files) {
                        let mut place =
                            slots.held.remove(&(*number as RawFd)).ok_or(Errno::EPROTO)?;
                        dup3(file, &mut place, OFlag::O_CLOEXEC)?;
                        // From here on the number is the program's, like any descriptor of a
                        // transaction.
                        let _ = place.into_raw_fd();
                    }
                }
                Some((&uapi::FAKEBINDER_FILES_CLOSE, numbers)) if files.is_empty() => {
                    for number in numbers {
                        // EBADF is fine: the program may have closed it itself, as with the driver.
                        let _ = close(*number as RawFd);
                    }
                }
                _ => return Err(Errno::EPROTO),
            }
        }
        slots.refill(device)
    }

    /// The next message, if one is there.
    fn next_message(&self) -> Result<Option<Message>, Errno> {
        let mut bytes = [0u8; 4 * (1 + uapi::FAKEBINDER_FILES_MAX)];
        let mut space = nix::cmsg_space!([RawFd; uapi::FAKEBINDER_FILES_MAX]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let (length, files) =
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Ok(message) => {
                    let mut files = Vec::new();
                    for control in message.cmsgs()? {
                        if let ControlMessageOwned::ScmRights(numbers) = control {
                            files.extend(numbers.into_iter().map(sys::adopt));
                        }
                    }
                    (message.bytes, files)
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(errno),
            };
        if length == 0 {
            // The daemon is gone; ioctls will say so.
            return Ok(None);
        }
        let words = bytes[..length].as_chunks::<4>().0.iter();
        let words = words.map(|word| u32::from_ne_bytes(*word)).collect();
        Ok(Some(Message { words, files }))
    }
}

impl Slots {
    /// Replaces the numbers that were used up.
    fn refill(&mut self, device: BorrowedFd<'_>) -> Result<(), Errno> {
        while self.held.len() < self.wanted {
            let mut offer = uapi::fakebinder_slots::default();
            let count = (self.wanted - self.held.len()).min(offer.numbers.len());
            let mut new = Vec::with_capacity(count);
            for number in &mut offer.numbers[..count] {
                let place = self
                    .filler
                    .try_clone()
                    .map_err(|error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))?;
                *number = place.as_raw_fd();
                new.push(place);
            }
            offer.count = count as u32;
            sys::ioctl(device, uapi::FAKEBINDER_SLOTS, &mut offer)?;
            self.held.extend(new.into_iter().map(|place| (place.as_raw_fd(), place)));
        }
        Ok(())
    }
}

impl AsFd for Files {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
