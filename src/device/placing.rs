//! Descriptors that are put into a process which knows nothing of that, and closed there, by system
//! calls of one of its threads, which is stopped ([`Tracee`]).
//!
//! The files come through a socketpair: the thread makes one, the daemon takes one end with
//! `pidfd_getfd`, and the thread reads an SCM_RIGHTS message from the other. The kernel gives the
//! files the lowest free numbers, in order, so no number of the socket may lie among them: the
//! socket first moves to a higher number. Where the process has reached its RLIMIT_NOFILE, the
//! limit is raised while the socket is made, and is as before when the files come, so that they
//! alone count. To raise it past the hard limit takes CAP_SYS_RESOURCE; without that, the process
//! must have one free number more than there are files.
//!
//! The messages and the numbers lie in a page that the thread maps for them: neither its stack nor
//! any memory that its other threads may use is touched.

use super::tracee::Tracee;
use crate::Errno;
use crate::client_mem::{ClientMemory, getfd};
use crate::probe::{Verb, fault};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use std::collections::BTreeSet;
use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

/// `SCM_MAX_FD`: files in one message.
const MOST_AT_ONCE: usize = 253;
/// The size of the page that the thread maps, and the offsets in it.
const PAGE: u64 = 4096;
const PAIR: u64 = 0;
const MESSAGE: u64 = 64;
const RANGE: u64 = 192;
const BYTE: u64 = 256;
const CONTROL: u64 = 512;

/// A process, and its stopped thread, which makes the system calls.
pub struct Place<'a> {
    pub tracee: &'a mut Tracee,
    pub tid: i32,
    /// A descriptor of the process.
    pub pidfd: BorrowedFd<'a>,
}

/// The soft and the hard limit.
type Limit = libc::rlimit;

impl Place<'_> {
    /// Installs files, all or none, close-on-exec, and returns their numbers: the lowest that are
    /// free. EMFILE: too few are free; other errors are those of the system calls.
    pub fn install(&mut self, files: &[RawFd]) -> Result<Vec<i32>, Errno> {
        const PROTECTION: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        const KIND: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let mapping = [0, PAGE, PROTECTION, KIND, u64::MAX, 0];
        let page = self.tracee.system_call(libc::SYS_mmap, mapping)?;
        let installed = self.through_socket(page, files);
        let _ = self.tracee.system_call(libc::SYS_munmap, [page, PAGE, 0, 0, 0, 0]);
        installed
    }

    /// Closes descriptors. Numbers that are not open are passed over.
    pub fn close(&mut self, numbers: &[i32]) {
        for number in numbers {
            let _ = self.close_one(*number as u64);
        }
    }

    fn close_one(&mut self, number: u64) -> Result<u64, Errno> {
        self.tracee.system_call(libc::SYS_close, [number, 0, 0, 0, 0, 0])
    }

    fn through_socket(&mut self, page: u64, files: &[RawFd]) -> Result<Vec<i32>, Errno> {
        // With so many descriptors open, enough numbers for the files are free below this one.
        let mut above = (self.descriptors()? + files.len()) as u64;
        let raised = self.raise_limit(above + 3);
        // If the limit is lower than that, the socket takes the last free number, and the files
        // have one fewer.
        let limit = self.limit(None).map_or(u64::MAX, |limit| limit.rlim_cur);
        let last = if limit < above + 3 { self.last_free_below(limit) } else { Ok(above) };
        let sockets = last.and_then(|last| {
            above = above.min(last);
            self.sockets(page, above)
        });
        if let Some((raised, before)) = raised {
            self.restore_limit(raised, before);
        }
        let (ours, theirs) = sockets?;
        let mut installed = Vec::new();
        let result = files
            .chunks(MOST_AT_ONCE)
            .try_for_each(|files| self.receive(page, theirs, &ours, files, &mut installed));
        let _ = self.close_one(theirs);
        match result {
            Ok(()) => Ok(installed),
            Err(errno) => {
                self.close(&installed);
                Err(errno)
            }
        }
    }

    /// The daemon's end of a socketpair, and the number of the process's end, which is at least
    /// `above`.
    fn sockets(&mut self, page: u64, above: u64) -> Result<(OwnedFd, u64), Errno> {
        let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64;
        let pair = [libc::AF_UNIX as u64, kind, 0, page + PAIR, 0, 0];
        self.tracee.system_call(libc::SYS_socketpair, pair)?;
        let mut numbers = [0; 8];
        let read = self.tracee.memory().read(page + PAIR, &mut numbers);
        let [low, high] = [0, 4].map(|at| {
            let number = numbers[at..].first_chunk().copied().unwrap_or_default();
            u64::from(u32::from_ne_bytes(number))
        });
        read?;
        let ours = getfd(self.pidfd, self.tid, high as i32);
        // Closed first, since the next call may want this number.
        let _ = self.close_one(high);
        let duplicate = libc::F_DUPFD_CLOEXEC as u64;
        let theirs = self.tracee.system_call(libc::SYS_fcntl, [low, duplicate, above, 0, 0, 0]);
        let _ = self.close_one(low);
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => Ok((ours, theirs)),
            (Err(errno), Ok(theirs)) => {
                let _ = self.close_one(theirs);
                Err(errno)
            }
            // EINVAL: the number is above the process's limit.
            (_, Err(Errno::EINVAL)) => Err(Errno::EMFILE),
            (_, Err(errno)) => Err(errno),
        }
    }

    /// Receives files, and adds their numbers to `installed`; some of them even if this fails.
    fn receive(
        &mut self,
        page: u64,
        theirs: u64,
        ours: &OwnedFd,
        files: &[RawFd],
        installed: &mut Vec<i32>,
    ) -> Result<(), Errno> {
        const HEADER: usize = size_of::<libc::cmsghdr>();
        let room = HEADER + files.len() * 4;
        let words =
            |words: &[u64]| words.iter().flat_map(|it| it.to_ne_bytes()).collect::<Vec<_>>();
        // `struct msghdr` and `struct iovec` of 64-bit programs; no address.
        let message = [0, 0, page + RANGE, 1, page + CONTROL, room as u64, 0];
        let memory = self.tracee.memory();
        memory.write(page + RANGE, &words(&[page + BYTE, 1]))?;
        memory.write(page + MESSAGE, &words(&message))?;
        fault(Verb::Send)?;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let rights = [ControlMessage::ScmRights(files)];
        sendmsg::<UnixAddr>(ours.as_raw_fd(), &[IoSlice::new(&[0])], &rights, flags, None)?;
        let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
        let receive = [theirs, page + MESSAGE, flags, 0, 0, 0];
        self.tracee.system_call(libc::SYS_recvmsg, receive)?;
        let mut control = vec![0; room];
        self.tracee.memory().read(page + CONTROL, &mut control)?;
        let length = control.first_chunk().map_or(0, |length| usize::from_ne_bytes(*length));
        let numbers = control.get(HEADER..length.min(room)).unwrap_or_default();
        let numbers = numbers.as_chunks::<4>().0.iter().map(|it| i32::from_ne_bytes(*it));
        let before = installed.len();
        installed.extend(numbers.filter(|number| *number >= 0));
        match installed.len() - before == files.len() {
            true => Ok(()),
            false => Err(Errno::EMFILE),
        }
    }

    /// How many descriptors the process has open.
    fn descriptors(&self) -> Result<usize, Errno> {
        let path = format!("/proc/{}/fd", self.tid);
        // Since Linux 6.2 this is the size of the directory.
        match fs::metadata(&path).map_err(super::client::errno)?.size() {
            0 => Ok(fs::read_dir(path).map_err(super::client::errno)?.count()),
            size => Ok(size as usize),
        }
    }

    /// Raises the limit of the process to `wanted` numbers for a moment. Returns the limit now, and
    /// the one before. None: the limit is high enough, or the daemon may not raise it.
    fn raise_limit(&self, wanted: u64) -> Option<(Limit, Limit)> {
        let before = self.limit(None)?;
        if before.rlim_cur >= wanted {
            return None;
        }
        let higher = Limit { rlim_cur: wanted, rlim_max: before.rlim_max.max(wanted) };
        // Past the hard limit, raising takes CAP_SYS_RESOURCE.
        let hard = Limit { rlim_cur: before.rlim_max.min(wanted), ..before };
        let raised = [higher, hard].into_iter().find(|new| self.limit(Some(new)).is_some())?;
        Some((raised, before))
    }

    /// The highest free number below `limit`. EMFILE: none is free.
    fn last_free_below(&self, limit: u64) -> Result<u64, Errno> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.tid));
        let entries = entries.map_err(super::client::errno)?;
        let numbers = entries.filter_map(|it| it.ok()?.file_name().to_str()?.parse::<u64>().ok());
        let used: BTreeSet<u64> = numbers.collect();
        (0..limit).rev().find(|number| !used.contains(number)).ok_or(Errno::EMFILE)
    }

    /// Sets the limit back, unless the process has changed it meanwhile.
    fn restore_limit(&self, raised: Limit, before: Limit) {
        let now = self.limit(None);
        if now.is_some_and(|now| (now.rlim_cur, now.rlim_max) == (raised.rlim_cur, raised.rlim_max))
        {
            let _ = self.limit(Some(&before));
        }
    }

    /// The limit of the process; changes it to `new`, if given.
    fn limit(&self, new: Option<&Limit>) -> Option<Limit> {
        let mut before = Limit { rlim_cur: 0, rlim_max: 0 };
        let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the kernel reads the new limit, if there is one, and writes the old one.
        let result = unsafe { libc::prlimit(self.tid, libc::RLIMIT_NOFILE, new, &mut before) };
        (result == 0).then_some(before)
    }
}
