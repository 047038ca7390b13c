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

use crate::grammar::{Command, Ioctl, Message, Object, Pick, Program, Read, Size, Step, Strength};
use crate::ledger::Ledger;
use crate::stage::trace;
use fakebinder::Errno;
use fakebinder::binder::{Context, Stats};
use fakebinder::device::options::MountOptions;
use fakebinder::device::tree::Permissions;
use fakebinder::device::{Hub, fuse};
use fakebinder::memory::{Memory, MemoryConfig};
use fakebinder::protocol::command::Command as Bc;
use fakebinder::protocol::object::{FlatObject, Object as BcObject};
use fakebinder::protocol::record::IntoBytes;
use fakebinder::protocol::record::Record;
use fakebinder::protocol::record::{HandleCookie, PtrCookie, TransactionData, WriteRead};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::*;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{ForkResult, Pid, fork};
use std::cell::RefCell;
use std::ffi::CString;
use std::io::IoSliceMut;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const CLIENTS: usize = 3;

/// Where a client's memory lies, here as there.
const REGION: usize = 0x2100_0000_0000;
const REGION_SIZE: usize = 1 << 20;

/// In a region: the path of the device, the argument of an ioctl, the read buffer, all else.
const ARGUMENT: usize = 256;
const READ_BUFFER: usize = 1024;
const SCRATCH: usize = 4096;

/// Bytes that a client maps.
const MAPPING: usize = 64 << 10;

/// Patience with what the driver has done already. It counts naps and not the time: when others
/// have the processor, we wake up as rarely as those do whom we wait for.
#[derive(Default)]
struct Patience(u32);

impl Patience {
    const NAP: Duration = Duration::from_millis(5);

    /// Naps; at first only for a moment.
    ///
    /// # Panics
    /// When it has waited 5 s and more.
    fn nap(&mut self, what_does_not_come: &str) {
        match self.0 {
            0..1000 => std::thread::yield_now(),
            1000..2000 => std::thread::sleep(Duration::from_micros(100)),
            2000..3000 => std::thread::sleep(Patience::NAP),
            3000.. => panic!("{what_does_not_come}"),
        }
        self.0 += 1;
    }
}

/// A system call that a client is to make, and how it ended: as they stand on its socket.
#[repr(C)]
#[derive(Clone, Copy)]
struct Order {
    number: libc::c_long,
    arguments: [libc::c_long; 6],
}

/// A client process: it makes the system calls that it is told to.
struct Executor {
    pid: Pid,
    socket: OwnedFd,
    region: usize,
    is_busy: bool,
}

extern "C" fn wake_up(_: libc::c_int) {}

impl Executor {
    fn start(index: usize) -> Executor {
        let region = REGION + index * (1 << 32);
        let size = NonZeroUsize::new(REGION_SIZE).expect("1 MiB");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: nothing else is replaced (MAP_FIXED_NOREPLACE).
        unsafe { mmap_anonymous(NonZeroUsize::new(region), size, protection, flags) }
            .expect("nothing else lies there");
        let flags = SockFlag::SOCK_CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .expect("a socketpair");
        // SAFETY: the child makes system calls and nothing else.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Parent { child } => Executor { pid: child, socket, region, is_busy: false },
            ForkResult::Child => obey(theirs.as_raw_fd()),
        }
    }

    fn order(&mut self, number: libc::c_long, arguments: [usize; 4]) {
        assert!(!self.is_busy, "client {} is in a system call", self.pid);
        let mut order = Order { number, arguments: [0; 6] };
        for (place, argument) in order.arguments.iter_mut().zip(arguments) {
            *place = argument as libc::c_long;
        }
        if number == libc::SYS_mmap {
            order.arguments = [0, arguments[0] as _, 1, 0x4002, arguments[1] as _, 0];
        }
        // SAFETY: an order is plain words.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const order).cast::<u8>(), size_of::<Order>())
        };
        nix::unistd::write(&self.socket, bytes).expect("the client lives");
        self.is_busy = true;
    }

    /// How the last order ended, if it has within `timeout`.
    fn ended(&mut self, timeout: Duration) -> Option<Result<usize, Errno>> {
        if !self.is_busy {
            return None;
        }
        let timeout = PollTimeout::try_from(timeout).expect("milliseconds");
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout) != Ok(1) {
            return None;
        }
        let mut result = [0; 8];
        let read = nix::unistd::read(&self.socket, &mut result);
        assert_eq!(read, Ok(8), "a client has died");
        self.is_busy = false;
        let result = i64::from_ne_bytes(result);
        Some(match result {
            -4095..0 => Err(Errno::from_raw(-result as i32)),
            result => Ok(result as usize),
        })
    }

    /// An order that does not wait for other clients.
    fn call(&mut self, number: libc::c_long, arguments: [usize; 4]) -> Result<usize, Errno> {
        self.order(number, arguments);
        let mut patience = Patience(2000);
        loop {
            if let Some(result) = self.ended(Patience::NAP) {
                return result;
            }
            patience.nap("a system call that does not wait does not end");
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= REGION_SIZE, "a message of {} bytes", bytes.len());
        // SAFETY: the region is mapped for as long as we live; no reference into it exists, and
        // its client only touches it inside of system calls that we order.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                (self.region + at) as *mut u8,
                bytes.len(),
            )
        };
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        assert!(at + bytes.len() <= REGION_SIZE);
        // SAFETY: as for `write`.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (self.region + at) as *const u8,
                bytes.as_mut_ptr(),
                bytes.len(),
            )
        };
    }
}

/// The life of a client.
fn obey(socket: i32) -> ! {
    let mut order = Order { number: 0, arguments: [0; 6] };
    // SAFETY: plain system calls on plain memory; what the orders do with the client's own memory
    // is between the kernel and the regions that we share.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, Signal::SIGKILL as libc::c_ulong);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = wake_up as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
        loop {
            let size = size_of::<Order>();
            let got = libc::read(socket, (&raw mut order).cast(), size);
            if got == -1 {
                continue;
            }
            if got != size as isize {
                libc::_exit(0);
            }
            let [a, b, c, d, e, f] = order.arguments;
            let mut result = libc::syscall(order.number, a, b, c, d, e, f);
            if result == -1 {
                result = -libc::c_long::from(*libc::__errno_location());
            }
            while libc::write(socket, (&raw const result).cast(), 8) == -1 {}
        }
    }
}

/// A client of a program: what it knows.
#[derive(Default)]
struct Role {
    fd: Option<usize>,
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

/// The daemon and its clients: made once.
struct Machine {
    context: Arc<Context>,
    memory: Arc<Memory>,
    clients: Vec<Executor>,
    path: PathBuf,
}

impl Machine {
    fn new() -> Machine {
        unshare(CloneFlags::CLONE_NEWNS).expect("root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("root");
        let directory =
            std::env::temp_dir().join(format!("fakebinder-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory to mount on");
        let clients = (0..CLIENTS).map(Executor::start).collect();
        let memory = Memory::new(MemoryConfig::default());
        let hub = Hub::new(memory.clone()).expect("a thread for its timers");
        let permissions = Permissions { mode: 0o666, uid: 0, gid: 0 };
        let device = hub.device("binder");
        let options = MountOptions::new(permissions);
        fuse::open(&directory, &hub, vec![device], &options, Box::new(|| {}))
            .expect("a FUSE mount");
        let context = hub.binder().context("binder");
        Machine { context, memory, clients, path: directory.join("binder") }
    }
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
        let client = &mut self.machine.clients[role];
        let path = CString::new(self.machine.path.to_string_lossy().as_bytes()).expect("no NUL");
        client.write(0, path.as_bytes_with_nul());
        let at = libc::AT_FDCWD as usize;
        let flags = libc::O_RDWR | libc::O_CLOEXEC;
        let fd = client.call(libc::SYS_openat, [at, client.region, flags as usize, 0]);
        let fd = fd.expect("the device opens");
        let mapping = client.call(libc::SYS_mmap, [MAPPING, fd, 0, 0]).expect("and can be mapped");
        let handles = vec![0];
        self.roles[role] = Role {
            fd: Some(fd),
            mapping: Some(mapping as u64),
            handles,
            next_cookie: 1,
            ..Role::default()
        };
    }

    fn close(&mut self, role: usize) {
        self.leave_read(role);
        let role_ = std::mem::take(&mut self.roles[role]);
        let client = &mut self.machine.clients[role];
        if let Some(mapping) = role_.mapping {
            client.call(libc::SYS_munmap, [mapping as usize, MAPPING, 0, 0]).expect("its mapping");
        }
        if let Some(fd) = role_.fd {
            client.call(libc::SYS_close, [fd, 0, 0, 0]).expect("its descriptor");
        }
    }

    /// Ends a read that waits, by a signal.
    fn leave_read(&mut self, role: usize) {
        let mut patience = Patience(2000);
        while self.roles[role].reading {
            // Sent again until it is heard: the client may not have been in the kernel yet.
            kill(self.machine.clients[role].pid, Signal::SIGUSR1).expect("the client lives");
            self.finish_read(role, Patience::NAP);
            if self.roles[role].reading {
                patience.nap("a signal does not end a blocked ioctl");
            }
        }
    }

    fn ioctl(&mut self, role: usize, cmd: u32, argument: &[u8]) {
        self.leave_read(role);
        let Some(fd) = self.roles[role].fd else { return };
        let client = &mut self.machine.clients[role];
        client.write(ARGUMENT, argument);
        let result = client.call(libc::SYS_ioctl, [fd, cmd as usize, client.region + ARGUMENT, 0]);
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
                    client.pid.as_raw() as u32
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
                let client = &mut self.machine.clients[role];
                let pollfd = libc::pollfd { fd: fd as i32, events: libc::POLLIN, revents: 0 };
                let mut bytes = pollfd.fd.to_ne_bytes().to_vec();
                bytes.extend(pollfd.events.to_ne_bytes());
                bytes.extend(pollfd.revents.to_ne_bytes());
                client.write(ARGUMENT, &bytes);
                let at = client.region + ARGUMENT;
                let ready = client.call(libc::SYS_poll, [at, 1, 0, 0]);
                trace(|| format!("    {role} polls: {ready:?}"));
            }
            Step::Signal { to } => self.leave_read(usize::from(to.0 & 15) % CLIENTS),
            Step::Flush { process } => {
                let role = self.role(process.0);
                self.leave_read(role);
                let fd = self.roles[role].fd.expect("open");
                let client = &mut self.machine.clients[role];
                let copy = client.call(libc::SYS_dup, [fd, 0, 0, 0]).expect("a copy");
                client.call(libc::SYS_close, [copy, 0, 0, 0]).expect("its descriptor");
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
                    let client = &mut self.machine.clients[role];
                    let at = mapping as usize;
                    client.call(libc::SYS_munmap, [at, MAPPING, 0, 0]).expect("its mapping");
                }
            }
            Step::Reclaim { pages } => {
                self.machine.memory.scan(usize::from(*pages));
            }
            Step::TimePasses | Step::Files { .. } | Step::Nice { .. } => {}
        }
    }

    fn courtesies(&self, role: usize) -> Vec<Command> {
        let role = &self.roles[role];
        let strong = role.notices.iter().map(|(_, strong)| *strong);
        let mut commands = crate::interpret::confirmations(
            strong,
            role.deaths.len(),
            role.freezes.len(),
            role.buffers.len(),
        );
        if role.serving > 0 {
            commands.push(Command::Reply {
                message: Message {
                    flags: crate::grammar::Flags(0),
                    code: 0,
                    size: Size::Bytes { count: 24 },
                    objects: crate::grammar::List(Vec::new()),
                    twist: crate::grammar::Twist::Honest,
                },
            });
        }
        commands
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
        let client = &mut self.machine.clients[role];
        client.write(scratch, &bytes);
        let call = WriteRead {
            write_size: bytes.len() as u64,
            write_buffer: (client.region + scratch) as u64,
            read_size: if reads { 256 } else { 0 },
            read_buffer: (client.region + READ_BUFFER) as u64,
            ..WriteRead::default()
        };
        client.write(ARGUMENT, call.as_bytes());
        let cmd = BINDER_WRITE_READ as usize;
        client.order(libc::SYS_ioctl, [fd, cmd, client.region + ARGUMENT, 0]);
        self.roles[role].reading = true;
        if !waits {
            // Files without O_NONBLOCK: what would wait is ended by a signal.
            self.attend_to(role);
            self.leave_read(role);
        }
    }

    fn command(&mut self, role: usize, command: &Command, scratch: &mut usize) -> Option<Bc> {
        let r = &self.roles[role];
        let handle = |pick: &Pick| pick.of(&r.handles).unwrap_or(u32::from(pick.0));
        Some(match command {
            Command::Transaction { to, message } => {
                let mut to = handle(to);
                if to == 0 && role == 0 {
                    to = *r.handles.get(1)?;
                }
                Bc::Transaction(self.message(role, message, to, scratch))
            }
            Command::Reply { message } => {
                self.roles[role].serving = self.roles[role].serving.saturating_sub(1);
                Bc::Reply(self.message(role, message, 0, scratch))
            }
            Command::FreeBuffer { buffer } => {
                let address = buffer.of(&r.buffers)?;
                self.roles[role].buffers.retain(|known| *known != address);
                Bc::FreeBuffer(address)
            }
            Command::Increfs { handle: h } => Bc::Increfs(handle(h)),
            Command::Acquire { handle: h } => Bc::Acquire(handle(h)),
            Command::Release { handle: h } => Bc::Release(handle(h)),
            Command::Decrefs { handle: h } => Bc::Decrefs(handle(h)),
            Command::IncrefsDone { notice } => {
                let (node, strong) = notice.of(&r.notices)?;
                self.roles[role].notices.retain(|known| *known != (node, strong));
                Bc::IncrefsDone(node)
            }
            Command::AcquireDone { notice } => {
                let (node, strong) = notice.of(&r.notices)?;
                self.roles[role].notices.retain(|known| *known != (node, strong));
                Bc::AcquireDone(node)
            }
            Command::EnterLooper => Bc::EnterLooper,
            Command::RegisterLooper => Bc::RegisterLooper,
            Command::ExitLooper => Bc::ExitLooper,
            Command::RequestDeath { handle: h } | Command::RequestFreeze { handle: h } => {
                let request = HandleCookie { handle: handle(h), cookie: r.next_cookie };
                self.roles[role].next_cookie += 1;
                self.roles[role].links.push(request);
                match command {
                    Command::RequestDeath { .. } => Bc::RequestDeathNotification(request),
                    _ => Bc::RequestFreezeNotification(request),
                }
            }
            Command::ClearDeath { link } => Bc::ClearDeathNotification(link.of(&r.links)?),
            Command::ClearFreeze { link } => Bc::ClearFreezeNotification(link.of(&r.links)?),
            Command::DeadBinderDone { notice } => {
                let cookie = notice.of(&r.deaths)?;
                self.roles[role].deaths.retain(|known| *known != cookie);
                Bc::DeadBinderDone(cookie)
            }
            Command::FreezeDone { notice } => {
                let cookie = notice.of(&r.freezes)?;
                self.roles[role].freezes.retain(|known| *known != cookie);
                Bc::FreezeNotificationDone(cookie)
            }
            Command::AttemptAcquire => Bc::AttemptAcquire { priority: 0, handle: 0 },
            Command::AcquireResult => Bc::AcquireResult(0),
            Command::Unknown { .. } | Command::Flood { .. } => return None,
        })
    }

    fn message(
        &mut self,
        role: usize,
        message: &Message,
        to: u32,
        scratch: &mut usize,
    ) -> TransactionData {
        let number = self.sent.len();
        let r = &self.roles[role];
        let count = match message.size {
            Size::Bytes { count } => usize::from(count),
            Size::Chunks { count } => 16 * usize::from(count),
            Size::BigChunks { count } => 128 * usize::from(count),
        };
        let mut data = Vec::new();
        Ledger::fill(number, count.max(4), &mut data);
        self.sent.push(data.clone());
        self.delivered.push(false);
        let mut offsets = Vec::new();
        for object in message.objects.iter() {
            data.resize(data.len().next_multiple_of(8), 0);
            let offset = data.len() as u64;
            match object {
                Object::Node { index, strong, .. } => {
                    let binder = (role as u64 + 1) << 16 | u64::from(index % 4) << 3;
                    let flat = FlatObject { flags: 0, binder, cookie: !binder };
                    let strong = *strong == Strength::Strong;
                    BcObject::Binder { strong, flat }.encode(&mut data);
                }
                Object::Handle { handle, strong } => {
                    let handle = handle.of(&r.handles).unwrap_or(99);
                    let flat = FlatObject { flags: 0, binder: handle.into(), cookie: 0 };
                    let strong = *strong == Strength::Strong;
                    BcObject::Handle { strong, flat }.encode(&mut data);
                }
                Object::File { .. }
                | Object::Buffer { .. }
                | Object::FileArray { .. }
                | Object::UnknownType { .. } => continue,
            }
            offsets.extend(offset.to_ne_bytes());
        }
        let client = &self.machine.clients[role];
        let mut put = |bytes: &[u8]| {
            let at = *scratch;
            client.write(at, bytes);
            *scratch = (at + bytes.len()).next_multiple_of(8);
            (client.region + at) as u64
        };
        TransactionData {
            target: to.into(),
            code: message.code.into(),
            flags: crate::interpret::compose::transaction_flags(message.flags),
            data_size: data.len() as u64,
            offsets_size: offsets.len() as u64,
            buffer: put(&data),
            offsets: put(&offsets),
            ..TransactionData::default()
        }
    }

    /// Waits for a client's read to end, so long, and looks at what came.
    fn finish_read(&mut self, role: usize, timeout: Duration) {
        let client = &mut self.machine.clients[role];
        let Some(result) = client.ended(timeout) else { return };
        self.roles[role].reading = false;
        trace(|| format!("    {role} gets {result:?}"));
        if result.is_err() {
            return;
        }
        let mut record = [0; WriteRead::SIZE];
        client.read(ARGUMENT, &mut record);
        let call = WriteRead::at(&record).unwrap_or_default();
        assert!(call.read_consumed <= 256, "{call:?}");
        let mut bytes = vec![0; call.read_consumed as usize];
        client.read(READ_BUFFER, &mut bytes);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (what, size) = Return::decode(rest).expect("whole returns");
            rest = &rest[size..];
            trace(|| format!("    {role} reads {what:x?}"));
            self.returned(role, what);
        }
    }

    fn returned(&mut self, role: usize, what: Return) {
        let r = &mut self.roles[role];
        match what {
            Return::Increfs(node) => r.notices.push((node, false)),
            Return::Acquire(node) => r.notices.push((node, true)),
            Return::DeadBinder(cookie) => r.deaths.push(cookie),
            Return::FrozenBinder { cookie, .. } => r.freezes.push(cookie),
            Return::Transaction(data)
            | Return::TransactionSecCtx(data, _)
            | Return::Reply(data) => {
                r.buffers.push(data.buffer);
                let reply = matches!(what, Return::Reply(_));
                r.serving += usize::from(!reply && data.flags & TF_ONE_WAY == 0);
                if r.mapping.is_some() {
                    self.look_at(role, &data);
                }
            }
            _ => {}
        }
    }

    /// Compares what has arrived in a client's mapping with what was sent.
    fn look_at(&mut self, role: usize, data: &TransactionData) {
        let mut bytes = vec![0; data.data_size as usize];
        let pid = self.machine.clients[role].pid;
        let remote = [RemoteIoVec { base: data.buffer as usize, len: bytes.len() }];
        let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote);
        assert_eq!(read, Ok(data.data_size as usize), "the client's mapping");
        let number = u32::from_ne_bytes(*bytes.first_chunk().expect("four bytes")) as usize;
        let sent = self.sent.get(number).expect("nobody has sent this");
        assert_eq!(bytes[..sent.len()], sent[..], "message {number}");
        assert!(!self.delivered[number], "message {number} is delivered twice");
        self.delivered[number] = true;
        let mut offsets = vec![0; data.offsets_size as usize];
        let remote = [RemoteIoVec { base: data.offsets as usize, len: offsets.len() }];
        if !offsets.is_empty() {
            let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut offsets)], &remote);
            assert_eq!(read, Ok(data.offsets_size as usize), "the client's mapping");
        }
        for offset in offsets.as_chunks::<8>().0 {
            if let Some(BcObject::Handle { flat, .. }) =
                BcObject::read(&bytes, u64::from_ne_bytes(*offset))
                && !self.roles[role].handles.contains(&flat.handle())
            {
                self.roles[role].handles.push(flat.handle());
            }
        }
    }

    /// Waits for those whose reads the driver has ended.
    fn attend(&mut self) {
        (0..CLIENTS).for_each(|role| self.attend_to(role));
    }

    /// Waits until a client's read has ended, or is parked.
    fn attend_to(&mut self, role: usize) {
        let mut patience = Patience::default();
        let pid = self.machine.clients[role].pid.as_raw();
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
            let pid = self.machine.clients[role].pid.as_raw();
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
