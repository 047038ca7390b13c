//! Target `device`: programs through the real FUSE door. The daemon's half runs here, where
//! coverage is counted; the clients are child processes that make the system calls.
//!
//! Programs are those of [`grammar`](crate::grammar), played more simply: one thread a process,
//! plain data, nodes and handles. What is checked is what only a kernel between the two can
//! spoil: that every byte arrives through the real mapping, that a signal ends a blocked ioctl,
//! that an ioctl which the driver has ended ends in the client too, that nothing is left when all
//! files are closed, and the driver's invariants after every step.
//!
//! It needs /dev/fuse with passthrough, and root; the mount is in a namespace of its own.

mod compose;
mod listen;
mod machine;

use crate::grammar::{Command, Ioctl, Pick, Program, Read, Step};
use crate::trace::trace;
use fakebinder::binder::Stats;
use fakebinder::protocol::record::{HandleCookie, IntoBytes, PtrCookie, WriteRead};
use fakebinder::uapi::*;
use machine::{ARGUMENT, Machine, Patience, READ_BUFFER, SCRATCH};
use nix::sys::signal::{Signal, kill};
use std::cell::RefCell;
use std::ffi::CString;
use std::time::Duration;

const CLIENTS: usize = 3;

/// Bytes that a client maps.
const MAPPING: u64 = 64 << 10;

/// A client of a program: what it knows.
#[derive(Default)]
struct Role {
    fd: Option<u64>,
    mapping: Option<u64>,
    handles: Vec<u32>,
    buffers: Vec<u64>,
    notices: Vec<(PtrCookie, bool)>,
    deaths: Vec<u64>,
    freezes: Vec<u64>,
    links: Vec<HandleCookie>,
    serving: usize,
    next_cookie: u64,
    /// It is in a BINDER_WRITE_READ that waits.
    reading: bool,
}

thread_local! {
    static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
}

/// Plays a program.
///
/// # Panics
/// When anything happens that must not.
pub fn play(program: &Program) {
    MACHINE.with_borrow_mut(|machine| {
        let machine = machine.get_or_insert_with(Machine::new);
        let mut stage =
            Stage { machine, roles: Default::default(), sent: Vec::new(), delivered: Vec::new() };
        for role in 0..CLIENTS {
            stage.open(role);
        }
        stage.ioctl(0, BINDER_SET_CONTEXT_MGR, &[0; 4]);
        for step in program.steps.iter() {
            trace(|| format!("{step:?}"));
            stage.step(step);
            stage.attend();
            stage.check();
        }
        stage.end();
    });
}

struct Stage<'m> {
    machine: &'m mut Machine,
    roles: [Role; CLIENTS],
    /// The data of every message, and whether it has arrived.
    sent: Vec<Vec<u8>>,
    delivered: Vec<bool>,
}

impl Stage<'_> {
    fn open(&mut self, role: usize) {
        let client = &self.machine.clients[role];
        let path = CString::new(self.machine.path.to_string_lossy().as_bytes()).expect("no NUL");
        client.write(0, path.as_bytes_with_nul());
        let at = libc::AT_FDCWD as u64;
        let flags = libc::O_RDWR | libc::O_CLOEXEC;
        let fd = client.call(libc::SYS_openat, &[at, client.address(0), flags as u64, 0]);
        let fd = fd.expect("the device opens");
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let mapping = [0, MAPPING, libc::PROT_READ as u64, flags as u64, fd, 0];
        let mapping = client.call(libc::SYS_mmap, &mapping).expect("and can be mapped");
        let handles = vec![0];
        self.roles[role] = Role {
            fd: Some(fd),
            mapping: Some(mapping),
            handles,
            next_cookie: 1,
            ..Role::default()
        };
    }

    fn close(&mut self, role: usize) {
        self.leave_read(role);
        let role_ = std::mem::take(&mut self.roles[role]);
        let client = &self.machine.clients[role];
        if let Some(mapping) = role_.mapping {
            client.call(libc::SYS_munmap, &[mapping, MAPPING]).expect("its mapping");
        }
        if let Some(fd) = role_.fd {
            client.call(libc::SYS_close, &[fd]).expect("its descriptor");
        }
    }

    /// Ends a read that waits, by a signal.
    fn leave_read(&mut self, role: usize) {
        let mut patience = Patience::with_naps();
        while self.roles[role].reading {
            // Sent again until it is heard: the client may not have been in the kernel yet.
            kill(self.machine.clients[role].pid(), Signal::SIGUSR1).expect("the client lives");
            self.finish_read(role, Patience::NAP);
            if self.roles[role].reading {
                patience.nap("a signal does not end a blocked ioctl");
            }
        }
    }

    fn ioctl(&mut self, role: usize, cmd: u32, argument: &[u8]) {
        self.leave_read(role);
        let Some(fd) = self.roles[role].fd else { return };
        let client = &self.machine.clients[role];
        client.write(ARGUMENT, argument);
        let result = client.call(libc::SYS_ioctl, &[fd, cmd.into(), client.address(ARGUMENT)]);
        trace(|| format!("    {role} gets {result:?}"));
    }

    /// The role of a step, open.
    fn role(&mut self, pick: u8) -> usize {
        let role = usize::from(pick) % CLIENTS;
        if self.roles[role].fd.is_none() {
            self.open(role);
        }
        role
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::WriteRead { by, commands, read, .. } => {
                let role = self.role(by.0 & 15);
                let waits = matches!(read, Read::Waits);
                let reads = !matches!(read, Read::Nothing | Read::Unmapped);
                self.write_read(role, commands, reads, waits);
            }
            Step::Behave { by, .. } => {
                let role = self.role(by.0 & 15);
                let commands = self.courtesies(role);
                self.write_read(role, &commands, true, false);
            }
            Step::Call { by, ioctl } => {
                let role = self.role(by.0 & 15);
                let pid = |pick: &Pick| {
                    let client = &self.machine.clients[usize::from(pick.0) % CLIENTS];
                    client.pid().as_raw() as u32
                };
                let words = |words: &[u32]| -> Vec<u8> {
                    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
                };
                let (cmd, argument) = match ioctl {
                    Ioctl::SetMaxThreads { threads } => {
                        (BINDER_SET_MAX_THREADS, words(&[threads.number()]))
                    }
                    Ioctl::ThreadExit => (BINDER_THREAD_EXIT, words(&[0])),
                    Ioctl::SetContextManager { .. } | Ioctl::SetContextManagerPlain => {
                        (BINDER_SET_CONTEXT_MGR, words(&[0]))
                    }
                    Ioctl::GetNodeDebugInfo { .. } => (BINDER_GET_NODE_DEBUG_INFO, vec![0; 24]),
                    Ioctl::GetNodeInfoForRef { handle, .. } => {
                        let handle = handle.of(&self.roles[role].handles).unwrap_or(77);
                        (BINDER_GET_NODE_INFO_FOR_REF, words(&[handle, 0, 0, 0, 0, 0]))
                    }
                    Ioctl::Freeze { process, timeout } => {
                        (BINDER_FREEZE, words(&[pid(process), 1, (*timeout).into()]))
                    }
                    Ioctl::Thaw { process } => (BINDER_FREEZE, words(&[pid(process), 0, 0])),
                    Ioctl::GetFrozenInfo { process } => {
                        (BINDER_GET_FROZEN_INFO, words(&[pid(process), 0, 0]))
                    }
                    Ioctl::EnableOnewaySpamDetection { enable } => {
                        (BINDER_ENABLE_ONEWAY_SPAM_DETECTION, words(&[(*enable).into()]))
                    }
                    Ioctl::GetExtendedError => (BINDER_GET_EXTENDED_ERROR, words(&[0; 3])),
                    Ioctl::Version | Ioctl::SetIdleTimeout | Ioctl::SetIdlePriority => {
                        (BINDER_VERSION, words(&[0]))
                    }
                    // Of any other size the kernel copies what it says, from and to the scratch.
                    Ioctl::Other { number, .. } => (*number & !0x3fff_0000, words(&[0])),
                };
                if *ioctl == Ioctl::ThreadExit {
                    self.roles[role].serving = 0;
                }
                self.ioctl(role, cmd, &argument);
            }
            Step::Poll { by, .. } => {
                let role = self.role(by.0 & 15);
                self.leave_read(role);
                let fd = self.roles[role].fd.expect("open");
                let client = &self.machine.clients[role];
                let pollfd = libc::pollfd { fd: fd as i32, events: libc::POLLIN, revents: 0 };
                let mut bytes = pollfd.fd.to_ne_bytes().to_vec();
                bytes.extend(pollfd.events.to_ne_bytes());
                bytes.extend(pollfd.revents.to_ne_bytes());
                client.write(ARGUMENT, &bytes);
                let at = client.address(ARGUMENT);
                let ready = client.call(libc::SYS_poll, &[at, 1, 0]);
                trace(|| format!("    {role} polls: {ready:?}"));
            }
            Step::Signal { to } => self.leave_read(usize::from(to.0 & 15) % CLIENTS),
            Step::Flush { process } => {
                let role = self.role(process.0);
                self.leave_read(role);
                let fd = self.roles[role].fd.expect("open");
                let client = &self.machine.clients[role];
                let copy = client.call(libc::SYS_dup, &[fd]).expect("a copy");
                client.call(libc::SYS_close, &[copy]).expect("its descriptor");
            }
            Step::Open { device, .. } => {
                self.role(device.0);
            }
            Step::OpenAgain { process, .. } | Step::Close { process } | Step::Die { process } => {
                let role = usize::from(process.0) % CLIENTS;
                self.close(role);
            }
            Step::Unmap { process } => {
                let role = self.role(process.0);
                self.leave_read(role);
                if let Some(mapping) = self.roles[role].mapping.take() {
                    let client = &self.machine.clients[role];
                    client.call(libc::SYS_munmap, &[mapping, MAPPING]).expect("its mapping");
                }
            }
            Step::Reclaim { pages } => {
                self.machine.memory.scan(usize::from(*pages));
            }
            Step::TimePasses | Step::Files { .. } | Step::Nice { .. } => {}
        }
    }

    fn write_read(&mut self, role: usize, commands: &[Command], reads: bool, waits: bool) {
        self.leave_read(role);
        let mut scratch = SCRATCH;
        let mut bytes = Vec::new();
        for command in commands {
            if let Some(command) = self.command(role, command, &mut scratch) {
                command.encode(&mut bytes);
            }
        }
        let Some(fd) = self.roles[role].fd else { return };
        let client = &self.machine.clients[role];
        client.write(scratch, &bytes);
        let call = WriteRead {
            write_size: bytes.len() as u64,
            write_buffer: client.address(scratch),
            read_size: if reads { 256 } else { 0 },
            read_buffer: client.address(READ_BUFFER),
            ..WriteRead::default()
        };
        client.write(ARGUMENT, call.as_bytes());
        let cmd = BINDER_WRITE_READ.into();
        client.begin(libc::SYS_ioctl, &[fd, cmd, client.address(ARGUMENT)]);
        self.roles[role].reading = true;
        if !waits {
            // Files without O_NONBLOCK: what would wait is ended by a signal.
            self.attend_to(role);
            self.leave_read(role);
        }
    }

    /// Waits for those whose reads the driver has ended.
    fn attend(&mut self) {
        (0..CLIENTS).for_each(|role| self.attend_to(role));
    }

    /// Waits until a client's read has ended, or is parked.
    fn attend_to(&mut self, role: usize) {
        let mut patience = Patience::default();
        let pid = self.machine.clients[role].pid().as_raw();
        while self.roles[role].reading {
            let is_parked = self.machine.context.is_parked(pid);
            self.finish_read(role, Duration::ZERO);
            if is_parked {
                break;
            }
            patience.nap("an ioctl that has ended does not return");
        }
    }

    /// The driver may still be at work for a client that reads: then it is not asked.
    fn check(&self) {
        let settled = (0..CLIENTS).all(|role| {
            let pid = self.machine.clients[role].pid().as_raw();
            !self.roles[role].reading || self.machine.context.is_parked(pid)
        });
        if settled && let Err(violation) = self.machine.context.check_invariants() {
            panic!("{violation}");
        }
    }

    /// Everybody leaves, and nothing is left.
    fn end(mut self) {
        trace(|| "everybody leaves".to_owned());
        for role in 0..CLIENTS {
            self.close(role);
        }
        let mut patience = Patience::default();
        // RELEASE comes some time after the close.
        loop {
            let (left, pages) = (self.machine.context.stats(), self.machine.memory.used());
            if left == Stats::default() && pages == 0 {
                return;
            }
            patience.nap(&format!("left: {left:?}, {pages} pages"));
        }
    }
}
