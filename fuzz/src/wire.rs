//! Target `wire`: any bytes as messages of a FUSE or CUSE kernel, to the doors that the daemon
//! has, with real processes behind them.
//!
//! The session has one end of a socketpair, this is the kernel at the other: it counts that every
//! request is answered once, and that nothing is left when the session has ended. The clients are
//! two processes that sleep; what messages point to lies in a stretch of memory at [`SHARED`] that
//! they have in common with us. Whatever address a message names, it is in one of them.

use crate::trace::trace;
use fakebinder::binder::Stats;
use fakebinder::device::options::MountOptions;
use fakebinder::device::session::{Door, Session};
use fakebinder::device::tree::Permissions;
use fakebinder::device::wire::{Request, decode};
use fakebinder::device::{Hub, cuse, fuse};
use fakebinder::memory::{Memory, MemoryConfig};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, setsockopt, socketpair, sockopt,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Where the input lies in every client.
pub const SHARED: usize = 0x2000_0000_0000;

const SHARED_SIZE: usize = 64 << 10;

/// Bytes of `struct fuse_in_header`, and where in it what we set lies.
const HEADER: usize = 40;
const UNIQUE: usize = 8;
const PID: usize = 32;

/// Messages of one input.
const MAX_MESSAGES: usize = 64;

/// A process that does nothing.
struct Sleeper(Pid);

impl Sleeper {
    fn start() -> Sleeper {
        // SAFETY: the child calls nothing but what a signal handler may.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Parent { child } => Sleeper(child),
            ForkResult::Child => loop {
                // SAFETY: these take and give integers only. It must not outlive us, nor hold
                // our descriptors.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, Signal::SIGKILL as libc::c_ulong);
                    libc::close_range(0, libc::c_uint::MAX, 0);
                    libc::pause();
                }
            },
        }
    }

    fn is_alive(&self) -> bool {
        waitpid(self.0, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive)
    }
}

/// The machine that the daemon runs on: made once, for it takes longer than an input.
struct Machine {
    clients: [Sleeper; 2],
}

impl Machine {
    fn new() -> Machine {
        let size = NonZeroUsize::new(SHARED_SIZE).expect("64 KiB");
        let at = NonZeroUsize::new(SHARED);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: nothing else is replaced (MAP_FIXED_NOREPLACE).
        unsafe { mmap_anonymous(at, size, protection, flags) }.expect("nothing else lies there");
        Machine { clients: [Sleeper::start(), Sleeper::start()] }
    }

    /// Lays the input into the clients' memory.
    fn lay_out(&mut self, bytes: &[u8]) {
        for client in &mut self.clients {
            if !client.is_alive() {
                *client = Sleeper::start();
            }
        }
        let size = bytes.len().min(SHARED_SIZE);
        // SAFETY: `SHARED` is mapped for as long as we live, and no reference into it exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), SHARED as *mut u8, size) };
    }
}

thread_local! {
    static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
}

/// The kernel's end of a session.
struct Kernel {
    end: OwnedFd,
    /// Replies that are due, by request; and interrupts, which may be answered.
    due: HashMap<u64, usize>,
    interrupts: Vec<u64>,
    reply: Vec<u8>,
}

impl Kernel {
    fn connect() -> (Kernel, Arc<Session>) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (end, ours) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .expect("a socketpair");
        for end in [&end, &ours] {
            setsockopt(end, sockopt::SndBuf, &(1 << 20)).expect("room for replies");
        }
        let kernel =
            Kernel { end, due: HashMap::new(), interrupts: Vec::new(), reply: vec![0; 256 << 10] };
        (kernel, Session::new(ours, "fuzz"))
    }

    fn send(&mut self, session: &Arc<Session>, door: &dyn Door, message: &[u8]) {
        match decode(message) {
            Ok((header, _)) if header.unique == 0 => return,
            Ok((_, Request::Forget(_))) => {}
            Ok((header, Request::Interrupt { .. })) => self.interrupts.push(header.unique | 1),
            Ok((header, _)) => *self.due.entry(header.unique).or_default() += 1,
            Err(malformed) => {
                if let Some(unique) = malformed.unique() {
                    *self.due.entry(unique).or_default() += 1;
                }
            }
        }
        trace(|| format!("{:x?}", decode(message)));
        session.dispatch(message, door);
        self.receive();
    }

    /// Takes what replies there are.
    fn receive(&mut self) {
        loop {
            let got = recv(self.end.as_raw_fd(), &mut self.reply, MsgFlags::MSG_DONTWAIT);
            let Ok(length @ 1..) = got else { return };
            let word = |at: usize| {
                u32::from_ne_bytes(self.reply[at..at + 4].try_into().expect("four bytes"))
            };
            assert!(length >= 16 && word(0) as usize == length, "a reply of {length} bytes");
            let error = word(4) as i32;
            let unique = u64::from(word(8)) | u64::from(word(12)) << 32;
            trace(|| format!("    {unique:#x}: {error}, {length} bytes"));
            if unique == 0 {
                continue;
            }
            assert!((-4095..=0).contains(&error), "the error {error}");
            match self.due.get_mut(&unique) {
                Some(due @ 1..) => *due -= 1,
                _ => assert!(self.interrupts.contains(&unique), "{unique:#x} is answered twice"),
            }
        }
    }
}

/// The messages of an input behind its first byte, as they come from these clients.
fn split(mut rest: &[u8], clients: [i32; 2]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    for number in 1..=MAX_MESSAGES as u64 {
        let Some((&[low, high], tail)) = rest.split_first_chunk::<2>() else { break };
        let length = usize::from(low) | usize::from(high & 3) << 8;
        let (message, tail) = tail.split_at(length.min(tail.len()));
        rest = tail;
        let mut message = message.to_vec();
        // Whoever else lives on this machine is not to be reached.
        let client = match high >> 6 {
            0 | 1 => clients[0],
            2 => clients[1],
            _ => 0,
        };
        if high & 0x20 == 0 {
            message.resize(message.len().max(HEADER), 0);
            let length = message.len() as u32;
            message[..4].copy_from_slice(&length.to_ne_bytes());
            message[UNIQUE..UNIQUE + 8].copy_from_slice(&(2 * number).to_ne_bytes());
        }
        if let Some(pid) = message.get_mut(PID..PID + 4) {
            pid.copy_from_slice(&client.to_ne_bytes());
        }
        messages.push(message);
    }
    messages
}

/// The messages of an input, for people: its clients are processes 1 and 2.
pub fn messages(bytes: &[u8]) -> Vec<String> {
    let Some((kind, rest)) = bytes.split_first() else { return Vec::new() };
    let mut lines =
        vec![if kind % 2 == 0 { "at the FUSE door" } else { "at the CUSE door" }.into()];
    lines.extend(split(rest, [1, 2]).iter().map(|message| format!("{:x?}", decode(message))));
    lines
}

/// Plays an input: its first byte says which door, then come messages, each behind two bytes
/// that say how long it is and whether its header is to be put right.
///
/// # Panics
/// When a request is answered more or less than once, or anything is left.
pub fn play(bytes: &[u8]) {
    MACHINE.with_borrow_mut(|machine| {
        let machine = machine.get_or_insert_with(Machine::new);
        machine.lay_out(bytes);
        play_on(machine, bytes);
    });
}

fn play_on(machine: &Machine, bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let memory = Memory::new(MemoryConfig::default());
    let hub = Hub::new(memory.clone()).expect("a thread for its timers");
    let device = hub.device("binder");
    let context = hub.binder().context("binder");
    let (mut kernel, session) = Kernel::connect();
    let door = match kind % 2 {
        0 => {
            let permissions = Permissions { mode: 0o666, uid: 0, gid: 0 };
            let options =
                MountOptions { passthrough: kind & 2 != 0, ..MountOptions::new(permissions) };
            fuse::door(session.clone(), &hub, vec![device], &options, 1)
        }
        _ => cuse::door(device),
    };
    let clients = [&machine.clients[0], &machine.clients[1]].map(|client| client.0.as_raw());
    for message in split(rest, clients) {
        kernel.send(&session, &*door, &message);
        if let Err(violation) = context.check_invariants() {
            panic!("{violation}");
        }
    }
    door.ended();
    drop(door);
    kernel.receive();
    kernel.due.retain(|_, due| *due > 0);
    assert!(kernel.due.is_empty(), "requests without a reply: {:x?}", kernel.due);
    assert_eq!(context.stats(), Stats::default(), "what the driver still holds");
    drop((session, context, hub));
    assert_eq!(memory.used(), 0, "pages are left");
}
