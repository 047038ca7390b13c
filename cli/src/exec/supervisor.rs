//! The supervisor: what it does about each call that a supervised thread waits in.
//!
//! No thread of the program waits for another one's call. What is known and takes no time is done
//! by the thread that is told of all calls; what asks a daemon, or waits for the program's own
//! thread, is done by a thread of its own.

use super::device::{Device, Devices, Due};
use super::filter::Call;
use super::listener::{Listener, Waiting};
use super::placing;
use super::program::Program;
use super::target;
use fakebinder::uapi;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

pub struct Supervisor {
    listener: Arc<Listener>,
    shared: Arc<Shared>,
}

struct Shared {
    devices: Devices,
    /// What was said about devices, by its errno: once for all of them.
    said: Mutex<HashSet<i32>>,
}

impl Supervisor {
    pub fn new(listener: Listener) -> Result<Supervisor, Errno> {
        let shared = Shared { devices: Devices::new()?, said: Mutex::default() };
        Ok(Supervisor { listener: Arc::new(listener), shared: Arc::new(shared) })
    }

    /// Serves the program, and all processes that come of it, to their end.
    pub fn run(self, mut program: Program) -> ExitCode {
        loop {
            let awaited = [self.listener.as_fd(), program.signals(), self.shared.devices.ended()];
            let mut polled = awaited.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
            if let Err(errno) = poll(&mut polled, PollTimeout::NONE)
                && errno != Errno::EINTR
            {
                eprintln!("fakebinder exec: poll: {errno}");
                break;
            }
            let [calls, signals, ended] =
                polled.map(|it| it.revents().unwrap_or(PollFlags::empty()));
            if ended.contains(PollFlags::POLLIN) {
                self.shared.devices.forget_ended();
            }
            if signals.contains(PollFlags::POLLIN) && program.attend_signals() {
                break;
            }
            if calls.contains(PollFlags::POLLIN) {
                match self.listener.receive() {
                    Ok(Some(waiting)) => self.shared.told_of(waiting),
                    Ok(None) => {}
                    Err(errno) => {
                        eprintln!("fakebinder exec: the kernel tells of no more calls: {errno}");
                        break;
                    }
                }
            } else if calls.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                // Nobody is left.
                break;
            }
        }
        drop(self.listener);
        program.end()
    }
}

impl Shared {
    /// A thread waits in a call.
    fn told_of(self: &Arc<Self>, waiting: Waiting) {
        let (Call::Ioctl { fd, .. } | Call::Mmap { fd, .. }) = waiting.call;
        let tid = waiting.tid;
        let Some(link) = target::link(tid, fd) else { return waiting.go_on() };
        match self.devices.known(tid, fd, &link) {
            Some(None) => waiting.go_on(),
            Some(Some(device)) => match waiting.call {
                Call::Mmap { .. } => self.map(waiting, &device, &link),
                Call::Ioctl { command: uapi::BINDER_WRITE_READ, .. } => match device.due(tid) {
                    Due::Nothing => waiting.go_on(),
                    // Before what was found out is acted on, in a thread of its own.
                    Due::Work(placements, closings) => self.apart(waiting, move |_, waiting| {
                        placing::close(&waiting, &closings);
                        for placement in placements {
                            let placed = placement.check();
                            let placed =
                                placed.and_then(|()| placing::place(&waiting, &placement.files));
                            // Where the daemon does not hear of it, it fails the transaction.
                            let _ = device.placed(placement.ticket, &placed);
                        }
                        waiting.go_on();
                    }),
                    Due::Gone => {
                        self.apart(waiting, move |shared, waiting| shared.look(waiting, link))
                    }
                },
                Call::Ioctl { .. } if !device.is_copied_for => waiting.go_on(),
                Call::Ioctl { .. } => self.apart(waiting, move |shared, waiting| {
                    shared.ioctl(waiting, &device);
                }),
            },
            None if matches!(waiting.call, Call::Mmap { .. })
                && !self.devices.may_be_device(tid, fd, &link) =>
            {
                waiting.go_on();
            }
            None => self.apart(waiting, move |shared, waiting| shared.look(waiting, link)),
        }
    }

    /// Does what may take long in a thread of its own. If there can be none, the call goes on.
    fn apart(
        self: &Arc<Self>,
        waiting: Waiting,
        work: impl FnOnce(&Arc<Shared>, Waiting) + Send + 'static,
    ) {
        let shared = self.clone();
        let thread = std::thread::Builder::new().name("call".into()).stack_size(256 << 10);
        if let Err(error) = thread.spawn(move || work(&shared, waiting)) {
            self.say(Errno::EAGAIN, format!("starting a thread: {error}"));
        }
    }

    /// A descriptor that is not known: looks what it is, and serves the call.
    fn look(self: &Arc<Self>, waiting: Waiting, link: PathBuf) {
        let (Call::Ioctl { fd, .. } | Call::Mmap { fd, .. }) = waiting.call;
        let tid = waiting.tid;
        let found = target::copy(tid, fd).and_then(|copy| {
            if waiting.is_there() { self.devices.find(copy.as_fd()) } else { Err(Errno::ESRCH) }
        });
        let device = match found {
            Ok(device) => Some(device),
            Err(Errno::ESRCH) => return waiting.go_on(),
            // Any other file.
            Err(Errno::EINVAL | Errno::ENOTTY | Errno::EBADF) => None,
            Err(errno) => {
                self.refused(&link, errno);
                None
            }
        };
        let is_device = device.is_some();
        self.devices.remember(tid, fd, link, device);
        match is_device {
            true => self.told_of(waiting),
            false => waiting.go_on(),
        }
    }

    fn refused(&self, link: &Path, errno: Errno) {
        let path = link.display();
        let message = match errno {
            Errno::EPERM => format!(
                "{path}: descriptors will not arrive: the daemon or this supervisor may not take a descriptor from the \
                 other's process (EPERM: other users, Yama's kernel.yama.ptrace_scope, or a container's seccomp filter)"
            ),
            Errno::EBUSY => {
                format!(
                    "{path}: descriptors will not arrive here: another supervisor places them (EBUSY)"
                )
            }
            errno => format!("{path}: descriptors will not arrive: {errno}"),
        };
        self.say(errno, message);
    }

    /// The checks of the driver's mmap, which the kernel does not make for FUSE.
    fn map(&self, waiting: Waiting, device: &Device, link: &Path) {
        let Call::Mmap { length, protection, .. } = waiting.call else { return waiting.go_on() };
        if !device.is_mappable {
            // The preload library does not take the kernel's answer for the last word.
            let preloaded = std::env::var("LD_PRELOAD").unwrap_or_default();
            if !preloaded.contains("libfakebinder_preload") {
                let message = format!(
                    "{}: this file cannot be mapped by a program that knows nothing of fakebinder; open the device in \
                     the daemon's FUSE mount, by its directory, or load the preload library",
                    link.display()
                );
                self.say(Errno::ENODEV, message);
            }
            // For a character device this is the kernel's own answer. The other is a bind mount of
            // a file on the FUSE door, which the kernel would map, and nothing would be there.
            return waiting.end(Err(Errno::ENODEV));
        }
        if target::thread_group(waiting.tid).is_ok_and(|process| process != device.opener) {
            return waiting.end(Err(Errno::EINVAL));
        }
        if protection & libc::PROT_WRITE != 0 {
            return waiting.end(Err(Errno::EPERM));
        }
        // The kernel itself refuses to map nothing.
        if length > 0 && device.set_mapped() {
            return waiting.end(Err(Errno::EBUSY));
        }
        waiting.go_on();
    }

    /// An ioctl whose argument the kernel copies for FUSE: if it cannot, the driver's answer is
    /// another than the kernel's.
    fn ioctl(&self, waiting: Waiting, device: &Device) {
        let Call::Ioctl { fd, command, argument } = waiting.call else { return waiting.go_on() };
        if !target::is_bad_address(waiting.tid, argument, uapi::ioc_size(command)) {
            return waiting.go_on();
        }
        let do_it = || {
            let copy: OwnedFd = target::copy(waiting.tid, fd)?;
            if !waiting.is_there() {
                return Err(Errno::ESRCH);
            }
            device.do_for(copy.as_fd(), waiting.tid, command)
        };
        match command {
            // The driver ignores the argument.
            uapi::BINDER_SET_CONTEXT_MGR | uapi::BINDER_THREAD_EXIT => match do_it() {
                // It could not be done: the kernel's answer stands.
                Err(Errno::ESRCH | Errno::EINVAL | Errno::ENOTTY) => waiting.go_on(),
                done => waiting.end(done.map(|()| 0)),
            },
            // The driver clears the thread's error before it finds the pointer to be bad.
            uapi::BINDER_GET_EXTENDED_ERROR => {
                let _ = do_it();
                waiting.end(Err(Errno::EFAULT));
            }
            _ => waiting.end(Err(Errno::EINVAL)),
        }
    }

    /// Says what an errno is about, once: the program may open devices without end.
    fn say(&self, errno: Errno, message: String) {
        if self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(errno as i32) {
            eprintln!("fakebinder exec: {message}");
        }
    }
}
