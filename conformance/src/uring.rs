//! io_uring's poll, by raw system calls: rings that lie in a child's shared memory.

use super::runner::Skip;
use super::scene::Thread;
use fakebinder_client::Errno;

const SETUP_NO_MMAP: u32 = 1 << 14;
const ENTER_GETEVENTS: u64 = 1;
const OP_POLL_ADD: u8 = 6;
const POLL_ADD_MULTI: u32 = 1;
const ENTRIES: u64 = 4;
const PAGE: u64 = 4096;

/// Offsets in `struct io_uring_params` of the offsets of the two rings; and therein of the
/// addresses.
const SQ_OFF: usize = 40;
const CQ_OFF: usize = 80;
const USER_ADDR: usize = 32;

/// The rings of one thread of a child.
pub(super) struct Uring<'a> {
    thread: &'a Thread,
    fd: u64,
    /// The rings, and behind them the page of submissions.
    rings: u64,
    params: Vec<u8>,
}

impl<'a> Uring<'a> {
    /// Skips the test where there is no io_uring, or one that needs memory of its own (before Linux
    /// 6.5).
    pub(super) fn new(thread: &'a Thread) -> Uring<'a> {
        let rings = thread.pages();
        let mut params = vec![0; 120];
        params[8..12].copy_from_slice(&SETUP_NO_MMAP.to_ne_bytes());
        params[SQ_OFF + USER_ADDR..][..8].copy_from_slice(&(rings + PAGE).to_ne_bytes());
        params[CQ_OFF + USER_ADDR..][..8].copy_from_slice(&rings.to_ne_bytes());
        let address = thread.put(&params);
        match thread.syscall(libc::SYS_io_uring_setup, &[ENTRIES, address]) {
            Ok(fd) => {
                let params = thread.get(address, params.len());
                Uring { thread, fd: fd as u64, rings, params }
            }
            Err(errno @ (Errno::ENOSYS | Errno::EPERM | Errno::EINVAL)) => {
                std::panic::panic_any(Skip(format!("io_uring with memory of ours: {errno}")))
            }
            Err(errno) => panic!("io_uring_setup: {errno}"),
        }
    }

    /// The field of the params at this offset: where something lies in the rings.
    fn place(&self, field: usize) -> u64 {
        let offset = &self.params[field..field + 4];
        self.rings + u64::from(u32::from_ne_bytes(offset.try_into().unwrap_or_default()))
    }

    fn word(&self, address: u64) -> u32 {
        u32::from_ne_bytes(self.thread.get(address, 4).try_into().unwrap_or_default())
    }

    /// Submits a poll of the thread's device for POLLIN, once or until it is cancelled.
    #[track_caller]
    pub(super) fn poll(&self, multishot: bool) {
        let (tail, mask) = (self.place(SQ_OFF + 4), self.place(SQ_OFF + 8));
        let number = self.word(tail);
        let slot = number & self.word(mask);
        let mut entry = vec![0; 64];
        entry[0] = OP_POLL_ADD;
        entry[4..8].copy_from_slice(&self.thread.fd().to_ne_bytes());
        entry[24..28].copy_from_slice(&(u32::from(multishot) * POLL_ADD_MULTI).to_ne_bytes());
        entry[28..32].copy_from_slice(&u32::from(libc::POLLIN as u16).to_ne_bytes());
        self.thread.put_at(self.rings + PAGE + u64::from(slot) * 64, &entry);
        let array = self.place(SQ_OFF + 24) + u64::from(slot) * 4;
        self.thread.put_at(array, &slot.to_ne_bytes());
        self.thread.put_at(tail, &(number + 1).to_ne_bytes());
        let enter = [self.fd, 1, 0, 0, 0, 0];
        assert_eq!(self.thread.syscall(libc::SYS_io_uring_enter, &enter), Ok(1));
    }

    /// Begins a wait of the thread until something is complete.
    pub(super) fn begin_wait(&self) {
        let enter = [self.fd, 0, 1, ENTER_GETEVENTS, 0, 0];
        self.thread.begin_syscall(libc::SYS_io_uring_enter, &enter);
    }

    /// Lets the kernel finish what can be finished without waiting.
    #[track_caller]
    pub(super) fn look(&self) {
        let enter = [self.fd, 0, 0, ENTER_GETEVENTS, 0, 0];
        assert_eq!(self.thread.syscall(libc::SYS_io_uring_enter, &enter), Ok(0));
    }

    /// The completed polls: the events of each, or a negative errno.
    pub(super) fn completed(&self) -> Vec<i32> {
        let (head, tail) = (self.place(CQ_OFF), self.word(self.place(CQ_OFF + 4)));
        let (mask, entries) = (self.word(self.place(CQ_OFF + 8)), self.place(CQ_OFF + 20));
        let mut results = Vec::new();
        let mut number = self.word(head);
        while number != tail {
            let entry = entries + u64::from(number & mask) * 16;
            results.push(self.word(entry + 8) as i32);
            number = number.wrapping_add(1);
        }
        self.thread.put_at(head, &number.to_ne_bytes());
        results
    }
}
