//! Descriptors that a supervisor puts into a program: the process above it, which is told by the
//! kernel of each of its ioctls (`fakebinder exec`, by seccomp's user notification), and may add
//! descriptors to it while a thread waits there.
//!
//! 1. The supervisor takes a copy of the open file from the program, and gives the daemon one end
//!    of a socketpair (`FAKEBINDER_SUPERVISE`). Who has the open file may do as its process does,
//!    with the driver too; the daemon wants its uid as well.
//! 2. A thread's read comes to a transaction with descriptors: they go to the supervisor
//!    (`FAKEBINDER_PLACE`), the read ends without the transaction, which is the first thing that
//!    the thread's next read will find.
//! 3. The thread calls again. Before its ioctl begins, the supervisor puts the descriptors in their
//!    places, and says which (`FAKEBINDER_PLACED`). So they are known when the read comes here.
//!
//! A transaction that is given up meanwhile drops its files, and with them their [`Ticket`], which
//! tells the supervisor. Nothing waits for a supervisor: what it has not said when the thread calls
//! again it will not say.

use super::Open;
use super::attach::take_socket;
use super::client::thread_group;
use super::taken_file::{TakenFile, taken_descriptors};
use super::wire::Header;
use crate::binder::{self, Installed};
use crate::client_log::{Kind, client_log};
use crate::client_mem::pidfd_open;
use crate::lock_order::rank;
use crate::probe::{Verb, fault};
use crate::quota::{Charge, What};
use crate::sync::Mutex;
use crate::{Errno, uapi};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recv, sendmsg};
use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Messages of a supervisor that one look takes: more than a program's threads can have left.
const MOST_MESSAGES: usize = 4096;

/// Threads of a process that are looked at for the one that a supervisor in a pid namespace names:
/// each takes the reading of a file, and a process may have any number of them.
const MOST_THREADS: usize = 1024;

/// The supervision of an open file.
#[derive(Default)]
pub struct Supervision {
    number: OnceLock<u64>,
    supervisor: Mutex<Option<Arc<ProgramSupervisor>>, rank::Supervision>,
}

impl Supervision {
    /// A number that no other open file has, of whichever daemon.
    fn number(&self) -> u64 {
        static NEXT: OnceLock<AtomicU64> = OnceLock::new();
        let next = NEXT.get_or_init(|| AtomicU64::new(RandomState::new().hash_one(0)));
        *self.number.get_or_init(|| next.fetch_add(1, Ordering::Relaxed))
    }

    /// The supervisor, living or not.
    pub fn get(&self) -> Option<Arc<ProgramSupervisor>> {
        self.supervisor.lock().clone()
    }

    /// The supervisor, unless it is gone.
    pub fn living(&self) -> Option<Arc<ProgramSupervisor>> {
        self.get().filter(|supervisor| supervisor.lives())
    }

    /// Whether this thread is one of the supervisor's.
    pub fn is_by(&self, tid: i32) -> bool {
        self.get().is_some_and(|supervisor| thread_group(tid) == Ok(supervisor.pid))
    }
}

/// The process that puts descriptors into the processes which use an open file.
pub struct ProgramSupervisor {
    pid: i32,
    socket: OwnedFd,
    /// How many pid namespaces the supervisor is below the daemon.
    depth: usize,
    answers: Mutex<Answers, rank::Placements>,
    _held: Charge,
}

/// What the supervisor has been asked, and what it has answered, by ticket.
#[derive(Default)]
struct Answers {
    last: u32,
    by_ticket: HashMap<u32, Answer>,
}

struct Answer {
    wanted: usize,
    numbers: Result<Vec<i32>, Errno>,
}

/// The files of a transaction that a supervisor has. It is told when nobody wants them any more.
pub struct Ticket {
    number: u32,
    supervisor: Arc<ProgramSupervisor>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.supervisor.answers.lock().by_ticket.remove(&self.number).is_some() {
            let _ = self.supervisor.send(&[uapi::FAKEBINDER_PLACE_FORGET, self.number], &[]);
        }
    }
}

impl ProgramSupervisor {
    fn lives(&self) -> bool {
        let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        // Nothing but POLLHUP and POLLERR is looked for.
        poll(&mut sockets, PollTimeout::ZERO) == Ok(0)
    }

    /// Gives the supervisor files for a thread's process or, once the thread has called again,
    /// returns where they are. EPERM: the supervisor has not placed them, or is gone; ENOBUFS: it
    /// does not read its socket; EMFILE: the process has too few free numbers; others as the
    /// supervisor says.
    pub fn place(
        self: &Arc<Self>,
        tid: i32,
        files: &[Arc<dyn binder::File>],
    ) -> Result<Installed, Errno> {
        let first = files.first().and_then(|file| file.as_any().downcast_ref::<TakenFile>());
        let first = first.ok_or(Errno::EBADF)?;
        if let Some(ticket) = first.ticket() {
            // Another supervisor has tickets of its own, by the same numbers.
            return match Arc::ptr_eq(&ticket.supervisor, self) {
                true => self.placed(ticket.number).map(Installed::Now),
                false => Err(Errno::EPERM),
            };
        }
        let descriptors = taken_descriptors(files)?;
        let thread = self.name_of(tid)?;
        let number = {
            let mut answers = self.answers.lock();
            answers.last = answers.last.wrapping_add(1);
            let number = answers.last;
            let answer = Answer { wanted: files.len(), numbers: Ok(Vec::new()) };
            answers.by_ticket.insert(number, answer);
            number
        };
        let ticket = Arc::new(Ticket { number, supervisor: self.clone() });
        let mut left = descriptors.len();
        for files in descriptors.chunks(uapi::FAKEBINDER_FILES_MAX) {
            left -= files.len();
            let words = [uapi::FAKEBINDER_PLACE, number, thread as u32, left as u32];
            // On an error the ticket is dropped, so the supervisor forgets what it has got.
            self.send(&words, files)?;
        }
        first.set_ticket(ticket);
        Ok(Installed::AtNextCall)
    }

    /// What the supervisor has answered.
    fn placed(&self, ticket: u32) -> Result<Vec<i32>, Errno> {
        let mut answers = self.answers.lock();
        self.read_answers(&mut answers);
        let answer = answers.by_ticket.remove(&ticket).ok_or(Errno::EPERM)?;
        let numbers = answer.numbers?;
        if numbers.len() < answer.wanted {
            let _ = self.send(&[uapi::FAKEBINDER_PLACE_FORGET, ticket], &[]);
            return Err(Errno::EPERM);
        }
        Ok(numbers)
    }

    fn read_answers(&self, answers: &mut Answers) {
        let mut bytes = [0; 4 * (3 + uapi::FAKEBINDER_FILES_MAX)];
        for _ in 0..MOST_MESSAGES {
            let read = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
            // 0: the supervisor is gone.
            let Some(length) = read.ok().filter(|length| *length > 0) else { return };
            let words = bytes[..length].as_chunks::<4>().0.iter();
            let words: Vec<u32> = words.map(|word| u32::from_ne_bytes(*word)).collect();
            let [uapi::FAKEBINDER_PLACED, ticket, errno, numbers @ ..] = &words[..] else {
                continue;
            };
            let Some(answer) = answers.by_ticket.get_mut(ticket) else { continue };
            if *errno != 0 {
                // Any number may stand there.
                answer.numbers = Err(match Errno::from_raw(*errno as i32) {
                    Errno::UnknownErrno => Errno::EPERM,
                    errno => errno,
                });
            } else if let Ok(known) = &mut answer.numbers
                && numbers.len() <= answer.wanted - known.len()
            {
                known.extend(numbers.iter().map(|number| *number as i32));
            } else {
                answer.numbers = Err(Errno::EPERM);
            }
        }
    }

    /// Has descriptors closed in the process of a thread. ENOBUFS: the supervisor does not read its
    /// socket, and they stay open.
    pub fn close(&self, tid: i32, numbers: &[i32]) -> Result<(), Errno> {
        let thread = self.name_of(tid)?;
        numbers.chunks(uapi::FAKEBINDER_FILES_MAX).try_for_each(|chunk| {
            let mut words = vec![uapi::FAKEBINDER_PLACE_CLOSE, thread as u32];
            words.extend(chunk.iter().map(|number| *number as u32));
            self.send(&words, &[])
        })
    }

    fn send(&self, words: &[u32], files: &[RawFd]) -> Result<(), Errno> {
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let rights = [ControlMessage::ScmRights(files)];
        let rights = if files.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        fault(Verb::Send)?;
        let parts = [IoSlice::new(&message)];
        match sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &parts, rights, flags, None) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN) => Err(Errno::ENOBUFS),
            Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => Err(Errno::EPERM),
            Err(errno) => Err(errno),
        }
    }

    /// The number by which the supervisor knows a thread.
    fn name_of(&self, tid: i32) -> Result<i32, Errno> {
        name_at(self.depth, tid)
    }

    /// The thread of the process `pid` that the supervisor knows by that number. ESRCH: there is
    /// none, or it is not among the first [`MOST_THREADS`].
    fn named(&self, pid: i32, name: i32) -> Result<i32, Errno> {
        if self.depth == 0 {
            return Ok(name);
        }
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_err(super::client::errno)?;
        let threads = threads.filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok());
        let mut threads = threads.take(MOST_THREADS);
        threads.find(|tid| self.name_of(*tid) == Ok(name)).ok_or(Errno::ESRCH)
    }
}

/// The number of a thread so many pid namespaces below the daemon's.
fn name_at(depth: usize, tid: i32) -> Result<i32, Errno> {
    match depth {
        0 => Ok(tid),
        depth => names(tid)?.get(depth).copied().ok_or(Errno::ESRCH),
    }
}

/// The numbers of a thread, from the daemon's pid namespace inwards.
fn names(tid: i32) -> Result<Vec<i32>, Errno> {
    let status = fs::read_to_string(format!("/proc/{tid}/status"));
    let status = status.map_err(super::client::errno)?;
    Ok(super::client::numbers(&status, "NSpid:").ok_or(Errno::EIO)?.collect())
}

impl Open {
    /// EINVAL: another version, or no seqpacket socket. EPERM: the caller has another uid than the
    /// opener, or the daemon may not take the socket. EBUSY: another process supervises this file.
    /// EMFILE: too many descriptors.
    pub(super) fn supervise(
        &self,
        header: &Header,
        told: &mut uapi::fakebinder_supervise,
    ) -> Result<(), Errno> {
        let version = std::mem::replace(&mut told.version, uapi::FAKEBINDER_SUPERVISE_VERSION);
        if version != uapi::FAKEBINDER_SUPERVISE_VERSION {
            return Err(Errno::EINVAL);
        }
        if header.uid != 0 && header.uid != self.client.uid {
            return Err(Errno::EPERM);
        }
        let supervision = &self.client.supervision;
        let pid = thread_group(header.tid)?;
        let depth = names(header.tid)?.len().saturating_sub(1);
        told.open = supervision.number();
        told.opener = name_at(depth, self.client.pid)?;
        told.flags = if self.is_mappable { uapi::FAKEBINDER_SUPERVISE_MAPS } else { 0 };
        if told.socket == -1 {
            return Ok(());
        }
        if supervision.living().is_some_and(|other| other.pid != pid) {
            return Err(Errno::EBUSY);
        }
        let _held = self.client.user.hold(What::Descriptors, 1)?;
        let pidfd = pidfd_open(pid)?;
        let taken = take_socket(pidfd.as_fd(), header.tid, told.socket);
        let socket = taken.inspect_err(|error| {
            if *error == Errno::EPERM {
                client_log!(
                    Kind::AttachRefused,
                    "process {pid} cannot supervise process {}: taking a descriptor from it is not permitted (it \
                     takes CAP_SYS_PTRACE, and Yama's kernel.yama.ptrace_scope below 3)",
                    self.client.pid
                );
            }
        })?;
        let answers = Mutex::default();
        let supervisor = Arc::new(ProgramSupervisor { pid, socket, depth, answers, _held });
        let before = supervision.supervisor.lock().replace(supervisor);
        drop(before);
        Ok(())
    }

    /// What an ioctl of the supervisor's is to be taken for: the thread that it is about, and the
    /// ioctl that this thread has made. EPERM: the caller is not the supervisor; ESRCH: no thread
    /// of the opener's; EINVAL: another ioctl than those that are done for threads.
    pub(super) fn in_place_of(
        &self,
        header: &Header,
        argument: &[u8],
    ) -> Result<(i32, u32), Errno> {
        let asked: uapi::fakebinder_for_thread = uapi::parse(argument).ok_or(Errno::EINVAL)?;
        let supervisor = self.client.supervision.get().ok_or(Errno::EPERM)?;
        if thread_group(header.tid)? != supervisor.pid {
            return Err(Errno::EPERM);
        }
        let tid = supervisor.named(self.client.pid, asked.tid)?;
        if thread_group(tid)? != self.client.pid {
            return Err(Errno::ESRCH);
        }
        match asked.command {
            uapi::BINDER_SET_CONTEXT_MGR
            | uapi::BINDER_THREAD_EXIT
            | uapi::BINDER_GET_EXTENDED_ERROR => Ok((tid, asked.command)),
            _ => Err(Errno::EINVAL),
        }
    }
}
