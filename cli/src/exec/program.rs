//! The program: how it starts, what signals it gets, and how it ends.

use super::Error;
use super::filter::Filter;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    recvmsg, sendmsg, socketpair,
};
use nix::unistd::{Pid, getpid, getppid};
use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The supervised program.
pub struct Program {
    pid: Pid,
    signals: SignalFd,
    /// As waitpid(2) gives it, once it has ended.
    status: Option<i32>,
}

/// What a signal's sender is (`si_code`), if it is a process.
const SENT_BY_PROCESS: [i32; 3] = [libc::SI_USER, libc::SI_QUEUE, libc::SI_TKILL];

impl Program {
    /// Starts a program under the filter. The descriptor is the filter's.
    pub fn start(words: &[OsString]) -> Result<(Program, OwnedFd), Error> {
        let [name, arguments @ ..] = words else {
            return Err(Error::Supervisor(Errno::EINVAL));
        };
        let of_supervisor = Error::Supervisor;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(of_supervisor)?;
        // What the program inherits is what this process was given.
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))
            .map_err(of_supervisor)?;
        let wait = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler is installed.
        let about_children = unsafe { sigaction(Signal::SIGCHLD, &wait) }.map_err(of_supervisor)?;
        let signals =
            SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                .map_err(of_supervisor)?;

        let filter = Filter::new();
        let parent = getpid();
        let mut command = Command::new(name);
        command.args(arguments);
        let prepare = move || {
            // SAFETY: what was there before, and is no handler of this program.
            unsafe { sigaction(Signal::SIGCHLD, &about_children) }?;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(Errno::ESRCH.into());
            }
            let installed = filter.install().or_else(|errno| match errno {
                // Without CAP_SYS_ADMIN: no program that this one executes may gain privileges.
                Errno::EACCES => {
                    prctl::set_no_new_privs()?;
                    filter.install()
                }
                errno => Err(errno),
            });
            let sent = match &installed {
                Ok(listener) => hand_over(theirs.as_fd(), 0, &[listener.as_raw_fd()]),
                Err(errno) => hand_over(theirs.as_fd(), *errno as u8, &[]),
            };
            sent.and(installed.map(drop)).map_err(Into::into)
        };
        // SAFETY: this process has one thread, so its child may do whatever it may.
        unsafe { command.pre_exec(prepare) };
        let started = command.spawn();
        let listener = take_over(ours.as_fd());
        let child = started.map_err(|error| match listener {
            Some(Err(errno)) => refusal(errno),
            _ => Error::Program { program: name.clone(), error },
        })?;
        let listener = listener.unwrap_or(Err(Errno::EPROTO)).map_err(refusal)?;
        raise_limit();
        let pid = Pid::from_raw(child.id() as i32);
        Ok((Program { pid, signals, status: None }, listener))
    }

    pub fn signals(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    /// Passes signals on, and takes notice of the program's end. True: this process is to end, and
    /// not to wait for what the program has left behind.
    pub fn attend_signals(&mut self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = signal.ssi_signo as i32;
            if number == libc::SIGCHLD {
                self.attend_end();
            } else if number == libc::SIGCONT || SENT_BY_PROCESS.contains(&signal.ssi_code) {
                if self.status.is_none() {
                    // SAFETY: takes numbers; the program was not waited for, so this is its pid.
                    unsafe { libc::kill(self.pid.as_raw(), number) };
                } else if [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT]
                    .contains(&number)
                {
                    return true;
                }
            }
            // What the terminal sends, it sends to the program as well.
        }
        false
    }

    fn attend_end(&mut self) {
        while self.status.is_none() {
            let mut status = 0;
            // SAFETY: the kernel writes one `c_int`.
            let found = unsafe {
                libc::waitpid(self.pid.as_raw(), &mut status, libc::WNOHANG | libc::WUNTRACED)
            };
            if found != self.pid.as_raw() {
                return;
            }
            if !libc::WIFSTOPPED(status) {
                self.status = Some(status);
            } else if [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU]
                .contains(&libc::WSTOPSIG(status))
            {
                // By the terminal: whoever has started this process is to see it stopped.
                // SAFETY: takes numbers.
                unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
            }
        }
    }

    /// Waits for the program's end, and ends as it did.
    pub fn end(mut self) -> ExitCode {
        while self.status.is_none() {
            let mut status = 0;
            // SAFETY: the kernel writes one `c_int`.
            let found = unsafe { libc::waitpid(self.pid.as_raw(), &mut status, 0) };
            match Errno::result(found) {
                Ok(_) => self.status = Some(status),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        let status = self.status.unwrap_or(0);
        if libc::WIFSIGNALED(status) {
            return die_of(libc::WTERMSIG(status));
        }
        ExitCode::from(libc::WEXITSTATUS(status) as u8)
    }
}

/// Why the filter could not be installed.
fn refusal(errno: Errno) -> Error {
    match errno {
        Errno::EBUSY => Error::Supervised,
        Errno::EINVAL | Errno::ENOSYS => Error::NoNotification,
        Errno::EPERM | Errno::EACCES => Error::Refused(errno),
        errno => Error::Supervisor(errno),
    }
}

/// Sends an errno, or 0 and a descriptor.
fn hand_over(socket: BorrowedFd<'_>, errno: u8, files: &[RawFd]) -> Result<(), Errno> {
    let rights = [ControlMessage::ScmRights(files)];
    let rights = if files.is_empty() { &[] } else { &rights[..] };
    let byte = [errno];
    let parts = [IoSlice::new(&byte)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &parts, rights, MsgFlags::empty(), None).map(drop)
}

/// What was handed over; none if nothing was.
fn take_over(socket: BorrowedFd<'_>) -> Option<Result<OwnedFd, Errno>> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
    if message.bytes == 0 {
        return None;
    }
    let mut files = Vec::new();
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has just installed these for this process.
            files.extend(numbers.into_iter().map(|it| unsafe { OwnedFd::from_raw_fd(it) }));
        }
    }
    match (byte[0], files.pop()) {
        (0, Some(listener)) => Some(Ok(listener)),
        (errno, _) => Some(Err(Errno::from_raw(errno.into()))),
    }
}

/// Ends this process by a signal, without a core dump of its own.
fn die_of(signal: i32) -> ExitCode {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads the limit; the other calls take numbers, and no handler is
    // installed.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::signal(signal, libc::SIG_DFL);
        libc::kill(libc::getpid(), signal);
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    ExitCode::from(128 + signal as u8)
}

/// Files on their way are this process's for a moment.
fn raise_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
