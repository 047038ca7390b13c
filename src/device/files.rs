//! Descriptors on their way into a client.
//!
//! A process cannot install a descriptor in another one. So a client that wants descriptors keeps
//! numbers free (`FAKEBINDER_SLOTS`) and gets the files through the socket of its attach, each to
//! be moved to the number that its transaction names. The daemon chooses the numbers before the
//! transaction is handed out, so its receiver has nothing to patch in the buffer.

use crate::probe::{Verb, fault};
use crate::{Errno, uapi};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use std::collections::BTreeSet;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The daemon's end of a client's socketpair, and the numbers that the client keeps free.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    slots: BTreeSet<i32>,
    /// The client has offered numbers. Every client that attaches has a channel, but only clients
    /// that have offered numbers look at what comes through it.
    receives: bool,
}

impl Channel {
    /// A channel to a client that has not offered numbers yet.
    pub fn new(socket: OwnedFd) -> Channel {
        Channel { socket, slots: BTreeSet::new(), receives: false }
    }

    /// Whether the client has ever offered numbers.
    pub fn receives(&self) -> bool {
        self.receives
    }

    /// Adds numbers. EINVAL: more than the argument holds, or negative ones; ENOSPC: more than
    /// [`uapi::FAKEBINDER_MAX_SLOTS`] in all.
    pub fn offer(&mut self, slots: &uapi::fakebinder_slots) -> Result<(), Errno> {
        let numbers = slots.numbers.get(..slots.count as usize).ok_or(Errno::EINVAL)?;
        if slots.reserved != 0 || numbers.iter().any(|number| *number < 0) {
            return Err(Errno::EINVAL);
        }
        if self.slots.len() + numbers.len() > uapi::FAKEBINDER_MAX_SLOTS {
            return Err(Errno::ENOSPC);
        }
        self.slots.extend(numbers);
        self.receives |= !numbers.is_empty();
        Ok(())
    }

    /// Sends files, all or none, and returns the numbers that they will have: the lowest, as the
    /// kernel would choose. EMFILE: too few numbers are free; ENOBUFS: the client does not read
    /// its socket.
    pub fn install(&mut self, files: &[RawFd]) -> Result<Vec<i32>, Errno> {
        let numbers: Vec<i32> = self.slots.iter().take(files.len()).copied().collect();
        if numbers.len() < files.len() {
            return Err(Errno::EMFILE);
        }
        self.send(uapi::FAKEBINDER_FILES_INSTALL, &numbers, files)?;
        for number in &numbers {
            self.slots.remove(number);
        }
        Ok(numbers)
    }

    /// Makes the client close descriptors. ENOBUFS: it does not read its socket, and keeps them.
    pub fn close(&self, numbers: &[i32]) -> Result<(), Errno> {
        numbers
            .chunks(uapi::FAKEBINDER_FILES_MAX)
            .try_for_each(|chunk| self.send(uapi::FAKEBINDER_FILES_CLOSE, chunk, &[]))
    }

    /// A client that does not read its socket only harms itself: never waits for it.
    fn send(&self, kind: u32, numbers: &[i32], files: &[RawFd]) -> Result<(), Errno> {
        let mut message = kind.to_ne_bytes().to_vec();
        message.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
        let rights = [ControlMessage::ScmRights(files)];
        let rights = if files.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let parts = [IoSlice::new(&message)];
        fault(Verb::Send)?;
        match sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &parts, rights, flags, None) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN) => Err(Errno::ENOBUFS),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    fn channel(slots: &[i32]) -> (Channel, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let mut channel = Channel::new(ours);
        let mut numbers = [0; 62];
        numbers[..slots.len()].copy_from_slice(slots);
        let offer = uapi::fakebinder_slots { count: slots.len() as u32, reserved: 0, numbers };
        channel.offer(&offer).unwrap();
        (channel, theirs)
    }

    #[test]
    fn files_get_the_lowest_numbers_that_were_offered() {
        let (mut channel, theirs) = channel(&[9, 7, 12]);
        let file = theirs.as_raw_fd();
        assert_eq!(channel.install(&[file, file]), Ok(vec![7, 9]));
        assert_eq!(channel.install(&[file, file]), Err(Errno::EMFILE));
        assert_eq!(channel.install(&[file]), Ok(vec![12]));
        assert!(channel.receives());
    }

    #[test]
    fn an_offer_is_checked() {
        let (mut channel, _theirs) = channel(&[]);
        let numbers = [3; 62];
        let offer = |count, reserved, numbers| uapi::fakebinder_slots { count, reserved, numbers };
        assert_eq!(channel.offer(&offer(63, 0, numbers)), Err(Errno::EINVAL));
        assert_eq!(channel.offer(&offer(1, 1, numbers)), Err(Errno::EINVAL));
        assert_eq!(channel.offer(&offer(1, 0, [-1; 62])), Err(Errno::EINVAL));
        assert!(!channel.receives());
        assert_eq!(channel.offer(&offer(62, 0, numbers)), Ok(()));
    }

    #[test]
    fn a_client_that_does_not_read_is_not_waited_for() {
        let (channel, _theirs) = channel(&[]);
        let full = (0..100_000).find_map(|_| channel.close(&[1]).err());
        assert_eq!(full, Some(Errno::ENOBUFS));
    }
}
