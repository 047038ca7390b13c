//! The process that stops those threads of clients which have seccomp filters.
//!
//! While such a thread makes system calls for the daemon its filters are suspended, and the kernel
//! lets only those suspend filters who have none (`check_ptrace_options`). The daemon has one while
//! it serves. So this process leaves it before, by fork, and does nothing else. It has no filter,
//! and of the capabilities only what stopping threads takes.
//!
//! For each thread a message comes to it: [`Subject`]'s numbers, with a descriptor of the client's
//! process and one end of a socketpair, by which the orders come and the answers go. The daemon's
//! thread that carries the job out waits at the other end until this process has released the
//! client's thread: so the daemon's counts hold here, too. With the daemon's end of the first
//! socket this process ends.

use super::{Finish, Holding, Job, Order, Subject, has_filters};
use crate::Errno;
use crate::device::taken_file::taken_descriptors;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    UnixAddr, recvmsg, sendmsg, shutdown, socketpair,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// `SCM_MAX_FD`: files in one message.
const MOST_FILES: usize = 253;
/// More than the numbers that one message has.
const MOST_BYTES: usize = 256 << 10;
/// How long an answer of this machine's own process may take. Longer than a client may.
const PATIENCE_MS: u16 = 5000;
/// What stopping a thread takes, and raising its limit of descriptors for a moment.
const KEPT: CapabilitySet =
    CapabilitySet::SYS_PTRACE.union(CapabilitySet::SYS_ADMIN).union(CapabilitySet::SYS_RESOURCE);

/// The first word of an order.
const INSTALL: i32 = 1;
const FINISH: i32 = 2;

/// The process; dropped, it ends.
#[derive(Debug)]
pub struct TracingProcess {
    /// None from the end on.
    socket: Option<OwnedFd>,
    pid: Pid,
}

impl TracingProcess {
    /// Starts the process, where it can be of use. Suspending filters takes CAP_SYS_ADMIN, which an
    /// ordinary user's daemon has not, and no filter of who has started the daemon.
    ///
    /// # Safety
    /// The calling process has no other thread.
    pub unsafe fn start() -> io::Result<Option<TracingProcess>> {
        let had = capabilities(None)?.permitted;
        let is_filtered = has_filters(&fs::read_to_string("/proc/self/status")?);
        if !super::IS_KNOWN || !had.contains(CapabilitySet::SYS_ADMIN) || is_filtered {
            return Ok(None);
        }
        let (ours, theirs) = pair()?;
        // SAFETY: as the caller says, no other thread may hold a lock that the child will want.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                Ok(Some(TracingProcess { socket: Some(ours), pid: child }))
            }
            ForkResult::Child => {
                drop(ours);
                let kept = had.intersection(KEPT);
                let inheritable = CapabilitySet::empty();
                let sets = CapabilitySets { effective: kept, permitted: kept, inheritable };
                let ready = set_capabilities(None, sets).is_ok();
                // What ends the daemon ends this process by the socket, and not sooner.
                if ready && SigSet::all().thread_block().is_ok() {
                    let _ = nix::unistd::setsid();
                    let _ = nix::sys::prctl::set_name(c"fb-tracing");
                    serve(&theirs);
                }
                std::process::exit(0);
            }
        }
    }

    /// Does in the other process what [`Job::carry_out`] does here.
    pub(super) fn carry_out(&self, job: Job) {
        let socket = match self.begin(&job) {
            Ok(socket) => socket,
            Err(errno) => {
                let _ = job.ready.send(Err(errno));
                return;
            }
        };
        let _ = job.ready.send(Ok(()));
        while let Ok(order) = job.orders.recv() {
            match order {
                Order::Install { files, answer } => {
                    let descriptors = taken_descriptors(&files);
                    let installed = descriptors.and_then(|files| install(&socket, &files));
                    let _ = answer.send(installed);
                }
                Order::Finish(finish) => {
                    let _ = send(&socket, &words_of(&finish), &[]);
                    break;
                }
            }
        }
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
        // Until the other end is closed the client's thread counts as held.
        while receive(&socket).is_ok_and(|(words, _)| !words.is_empty()) {}
    }

    /// The socket to the thread that has seized the client's.
    fn begin(&self, job: &Job) -> Result<OwnedFd, Errno> {
        let Subject { pid, tid, pidfd, .. } = &job.subject;
        let (ours, theirs) = pair()?;
        let words = [&[*pid, *tid], &*job.closing].concat();
        let socket = self.socket.as_ref().ok_or(Errno::ESRCH)?;
        send(socket, &words, &[theirs.as_raw_fd(), pidfd.as_raw_fd()])?;
        drop(theirs);
        answer(&ours).map(|_| ours)
    }
}

impl Drop for TracingProcess {
    fn drop(&mut self) {
        self.socket = None;
        let _ = waitpid(self.pid, None);
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Has the files installed; returns their numbers.
fn install(socket: &OwnedFd, files: &[RawFd]) -> Result<Vec<i32>, Errno> {
    let mut left = files.len();
    for files in files.chunks(MOST_FILES) {
        left -= files.len();
        send(socket, &[INSTALL, left as i32], files)?;
    }
    answer(socket)
}

/// What the other process answers: an error number or 0, and then numbers.
fn answer(socket: &OwnedFd) -> Result<Vec<i32>, Errno> {
    let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    if poll(&mut sockets, PollTimeout::from(PATIENCE_MS))? == 0 {
        return Err(Errno::ETIMEDOUT);
    }
    match &receive(socket)?.0[..] {
        [0, numbers @ ..] => Ok(numbers.to_vec()),
        [errno, ..] => Err(Errno::from_raw(*errno)),
        // It is gone, or has no thread for this.
        [] => Err(Errno::EAGAIN),
    }
}

fn words_of(finish: &Finish) -> Vec<i32> {
    let (errno, value) = match finish.result {
        Ok(value) => (0, value),
        Err(errno) => (errno as i32, 0),
    };
    let mut words = vec![FINISH, errno, value, finish.closing.len() as i32];
    words.extend(&finish.closing);
    words.push(finish.argument.len() as i32);
    let padded = finish.argument.chunks(4).map(|bytes| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        i32::from_ne_bytes(word)
    });
    words.extend(padded);
    words
}

/// None: it is no such order.
fn finish_of(words: &[i32]) -> Option<Finish> {
    let [errno, value, closing, rest @ ..] = words else { return None };
    let (closing, rest) = rest.split_at_checked(usize::try_from(*closing).ok()?)?;
    let (length, rest) = rest.split_first()?;
    let mut argument: Vec<u8> = rest.iter().flat_map(|word| word.to_ne_bytes()).collect();
    argument.truncate(usize::try_from(*length).ok()?);
    let result = if *errno == 0 { Ok(*value) } else { Err(Errno::from_raw(*errno)) };
    Some(Finish { result, argument, closing: closing.to_vec() })
}

fn send(socket: &OwnedFd, words: &[i32], files: &[RawFd]) -> Result<(), Errno> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let rights = [ControlMessage::ScmRights(files)];
    let rights = if files.is_empty() { &[] } else { &rights[..] };
    let parts = [IoSlice::new(&bytes)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// A message; one without words is the end.
fn receive(socket: &OwnedFd) -> Result<(Vec<i32>, Vec<OwnedFd>), Errno> {
    let mut bytes = vec![0; MOST_BYTES];
    let mut space = nix::cmsg_space!([RawFd; MOST_FILES]);
    let (mut length, mut files) = (0, Vec::new());
    {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        length += message.bytes;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // SAFETY: the kernel has just made these descriptors for us alone.
                files.extend(numbers.into_iter().map(|it| unsafe { OwnedFd::from_raw_fd(it) }));
            }
        }
    }
    let words = bytes[..length].as_chunks::<4>().0.iter().map(|it| i32::from_ne_bytes(*it));
    Ok((words.collect(), files))
}

/// The life of the process.
fn serve(socket: &OwnedFd) {
    while let Ok((words, files)) = receive(socket) {
        let [pid, tid, closing @ ..] = &words[..] else { return };
        let Ok([orders, pidfd]) = <[OwnedFd; 2]>::try_from(files) else { return };
        let subject = Subject { pid: *pid, tid: *tid, uid: 0, pidfd: Arc::new(pidfd) };
        let closing = closing.to_vec();
        let thread = std::thread::Builder::new().name("tracer".into()).stack_size(256 << 10);
        // Where no thread can be started, the end of the socket says so.
        let _ = thread.spawn(move || hold(&subject, &closing, &orders));
    }
}

/// A thread of this process, for one thread of a client. With this thread the kernel lets that one
/// go.
fn hold(subject: &Subject, closing: &[i32], orders: &OwnedFd) {
    let seized = subject.is_filtered().and_then(|it| subject.trace(it));
    let mut tracee = match seized {
        Ok(tracee) => tracee,
        Err(errno) => {
            let _ = send(orders, &[errno as i32], &[]);
            return;
        }
    };
    let _ = send(orders, &[0], &[]);
    let mut holding = Holding::stop(&mut tracee, subject);
    let mut wanted: Vec<OwnedFd> = Vec::new();
    while let Ok((words, files)) = receive(orders) {
        match &words[..] {
            [INSTALL, left] => {
                wanted.extend(files);
                if *left == 0 {
                    let files: Vec<_> = wanted.iter().map(AsRawFd::as_raw_fd).collect();
                    let told = match holding.install(&files) {
                        Ok(numbers) => [&[0], &numbers[..]].concat(),
                        Err(errno) => vec![errno as i32],
                    };
                    wanted.clear();
                    let _ = send(orders, &told, &[]);
                }
            }
            [FINISH, rest @ ..] => {
                if let Some(finish) = finish_of(rest) {
                    holding.finish(finish);
                }
                break;
            }
            _ => break,
        }
    }
    holding.end(closing);
    tracee.release();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finish_comes_as_it_was_sent() {
        for (result, argument, closing) in [
            (Ok(0), vec![], vec![]),
            (Ok(7), vec![1, 2, 3, 4, 5], vec![9, 10]),
            (Err(Errno::EFAULT), vec![255; 48], vec![3]),
        ] {
            let sent = Finish { result, argument, closing };
            let words = words_of(&sent);
            assert_eq!(words[0], FINISH);
            assert_eq!(finish_of(&words[1..]), Some(sent));
        }
        for wrong in [&[0, 0][..], &[0, 0, 3, 1], &[0, 0, -1, 0], &[0, 0, 1, 5]] {
            assert_eq!(finish_of(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn files_and_numbers_come_in_one_message() {
        let (ours, theirs) = pair().unwrap();
        send(&ours, &[1, -2], &[ours.as_raw_fd(), theirs.as_raw_fd()]).unwrap();
        let (words, files) = receive(&theirs).unwrap();
        assert_eq!((words, files.len()), (vec![1, -2], 2));
        drop(files);
        drop(ours);
        assert_eq!(receive(&theirs).unwrap().0, Vec::<i32>::new());
    }
}
