//! One thread's ring: entries go to the kernel through it, and come back with requests.
//!
//! The kernel fills an entry in the thread that has submitted it, when that thread waits: who owns
//! a ring must never be held up while the kernel has entries of it (see [the parent](super)).

use super::entry::Entry;
use crate::device::session::Session;
use crate::{Errno, uapi};
use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use rustc_hash::FxHashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// The `user_data` of the read that others wake us by; an entry's is an address in the upper part
/// of a page.
const WAKE: u64 = 1;

pub struct Ring {
    ring: IoUring<Entry128, cqueue::Entry>,
    session: Arc<Session>,
    /// What the kernel has.
    theirs: FxHashMap<u64, Box<Entry>>,
    /// Where the kernel writes what it has read of an eventfd.
    woken: Box<[u8; 8]>,
}

/// What has come back.
pub enum Completion {
    Request(Box<Entry>),
    Woken,
    /// An entry that the kernel will not fill any more.
    Gone(Errno),
}

fn setup(submissions: u32) -> io::Result<IoUring<Entry128, cqueue::Entry>> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .dontfork()
        .build(submissions)
}

impl Ring {
    /// For the calling thread, and no other.
    pub fn new(session: &Arc<Session>, submissions: u32) -> io::Result<Ring> {
        let ring = setup(submissions)?;
        let (theirs, woken) = (FxHashMap::default(), Box::default());
        Ok(Ring { ring, session: session.clone(), theirs, woken })
    }

    /// Whether there can be any.
    pub fn try_setup() -> io::Result<()> {
        setup(2).map(drop)
    }

    /// How many entries the kernel has of this ring.
    pub fn theirs(&self) -> usize {
        self.theirs.len()
    }

    fn command(&self, entry: &Entry, operation: u32, commit_id: u64) -> opcode::UringCmd80 {
        let request =
            uapi::fuse_uring_cmd_req { commit_id, qid: entry.queue.cpu, ..Default::default() };
        let mut command = [0; 80];
        command[..size_of::<uapi::fuse_uring_cmd_req>()].copy_from_slice(uapi::bytes_of(&request));
        opcode::UringCmd80::new(types::Fd(self.session.as_raw_fd()), operation).cmd(command)
    }

    fn push(&mut self, submission: &Entry128) -> io::Result<()> {
        loop {
            // SAFETY: what a submission points to (an entry's areas, the number of a wake-up) is
            // owned by this ring until its completion has been taken, or longer.
            if unsafe { self.ring.submission().push(submission) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    /// Hands new entries to the kernel. Whether it takes them is seen by what comes back.
    pub fn register(&mut self, entries: Vec<Box<Entry>>) -> io::Result<()> {
        for entry in entries {
            // The kernel looks at these while it is submitted to.
            let areas = entry.areas();
            let command = self
                .command(&entry, uapi::FUSE_IO_URING_CMD_REGISTER, 0)
                .addr(Some(areas.as_ptr() as u64));
            let submission = with_length(command.build(), areas.len() as u32);
            self.push(&submission.user_data(entry.id()))?;
            self.theirs.insert(entry.id(), entry);
            self.ring.submit()?;
        }
        Ok(())
    }

    /// The answer in `entry` goes, and the entry is for the next request, with the next wait.
    pub fn commit(&mut self, entry: Box<Entry>) -> io::Result<()> {
        let commit_id = entry.commit_id();
        let command =
            self.command(&entry, uapi::FUSE_IO_URING_CMD_COMMIT_AND_FETCH, commit_id).build();
        self.push(&command.user_data(entry.id()))?;
        self.theirs.insert(entry.id(), entry);
        Ok(())
    }

    /// The next wait also ends when somebody writes to `event`.
    pub fn watch(&mut self, event: BorrowedFd<'_>) -> io::Result<()> {
        let (at, length) = (self.woken.as_mut_ptr(), self.woken.len() as u32);
        let read = opcode::Read::new(types::Fd(event.as_raw_fd()), at, length).build();
        self.push(&read.user_data(WAKE).into())
    }

    /// Submits, and waits until there is something to take.
    pub fn wait(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel has more to give than there was room for: take it first.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                // The kernel had no memory for us: a little later it may have.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM)) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub fn take(&mut self) -> Option<Completion> {
        loop {
            let completion = self.ring.completion().next()?;
            if completion.user_data() == WAKE {
                return Some(Completion::Woken);
            }
            let Some(entry) = self.theirs.remove(&completion.user_data()) else { continue };
            return Some(match completion.result() {
                0.. => Completion::Request(entry),
                error => Completion::Gone(Errno::from_raw(-error)),
            });
        }
    }

    /// A command that the kernel refuses: then it goes on with `/dev/fuse`.
    pub fn refuse(session: &Arc<Session>) -> io::Result<()> {
        let mut ring = Ring::new(session, 2)?;
        let request = uapi::fuse_uring_cmd_req { qid: u16::MAX, ..Default::default() };
        let mut command = [0; 80];
        command[..size_of::<uapi::fuse_uring_cmd_req>()].copy_from_slice(uapi::bytes_of(&request));
        let operation = uapi::FUSE_IO_URING_CMD_REGISTER;
        let refused = opcode::UringCmd80::new(types::Fd(session.as_raw_fd()), operation);
        ring.push(&refused.cmd(command).build())?;
        ring.wait()
    }
}

/// The crate knows no `len` for this operation.
fn with_length(submission: Entry128, length: u32) -> Entry128 {
    /// Where `struct io_uring_sqe` has it.
    const LEN: usize = 24;
    let mut submission = submission;
    // SAFETY: an `Entry128` is the kernel's `struct io_uring_sqe`, 128 bytes of plain numbers, and
    // any four of them at an offset that is a multiple of four may be written.
    unsafe { (&raw mut submission).cast::<u8>().add(LEN).cast::<u32>().write(length) };
    submission
}

const _: () = assert!(size_of::<Entry128>() == 128);

impl Drop for Ring {
    fn drop(&mut self) {
        // What did not come back the kernel may still write to: its memory stays.
        self.theirs.drain().for_each(|(_, entry)| std::mem::forget(entry));
    }
}
