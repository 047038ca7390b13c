//! Plays a [`Program`]: turns each step into calls of the engine, gives the clients what they
//! read, and checks after every step that all that must hold does.

use crate::grammar::*;
use crate::ledger::{Identity, Ledger, Receiver, Sent, SentObject};
use crate::stage::{Actress, Answer, Gate, Idle, Paper, Slot, View, panic_at_errors, trace};
use fakebinder::Errno;
use fakebinder::alloc::{Alloc, PageState};
use fakebinder::binder::command::Command as Bc;
use fakebinder::binder::object::{BufferObject, FdArrayObject, FlatObject, Object as BcObject};
use fakebinder::binder::returns::Return;
use fakebinder::binder::wire::{HandleCookie, PtrCookie, Put, TransactionData, WriteRead};
use fakebinder::binder::{Binder, Call, Context, Process, Stats};
use fakebinder::client_mem::ClientMemory;
use fakebinder::mm_shim::{HeapMm, Injector, PAGE_SIZE, Rule, Verb};
use fakebinder::shrinker::{Memory, MemoryConfig, PageInstall};
use fakebinder::sim::{ARENA, Arena, MAPPING, ManualTimers};
use fakebinder::uapi::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Threads of a process.
const THREADS: usize = 3;

/// A thread more, which only reads what is left at the end.
const ATTENDANT: usize = THREADS;

/// Bytes of each thread's read buffer, at the beginning of an arena.
const READ_BUFFER: usize = 2048;

/// Where in an arena the rest begins: write buffers and messages, for one call at a time.
const SCRATCH: usize = (THREADS + 1) * READ_BUFFER;

/// Opens of devices in one program.
const MAX_OPENS: usize = 12;

const COOKIE: u64 = 0x5eed_0000_0000;

const FIRST_PID: i32 = 100;

/// A thread of a client.
struct Thread {
    /// The ioctl that it is in.
    running: Option<Running>,
    /// How the last one ended.
    last: Result<i32, Errno>,
    /// Calls that it serves, by their numbers in the ledger, the last on top.
    serving: Vec<usize>,
}

impl Default for Thread {
    fn default() -> Thread {
        Thread { running: None, last: Ok(0), serving: Vec::new() }
    }
}

struct Running {
    slot: Arc<Slot>,
    kind: Kind,
}

/// What is to be done when an ioctl ends.
enum Kind {
    WriteRead { done: Vec<(u64, Done)> },
    Other(u32),
}

/// What a client remembers of a command, once it was carried out.
#[derive(Clone, Copy)]
enum Done {
    Nothing,
    Freed(u64),
    Answered,
    Confirmed(PtrCookie, bool),
    AskedDeath(HandleCookie),
    ClearedDeath(HandleCookie),
    AcceptedDeath(u64),
    AskedFreeze(HandleCookie),
    ClearedFreeze(HandleCookie),
    AcceptedFreeze(u64),
    Acquired(u32),
}

/// One open file.
struct Role {
    /// Its place on the stage.
    index: usize,
    pid: i32,
    process: Arc<Process>,
    actress: Arc<Actress>,
    alloc: Arc<Alloc>,
    mm: Arc<HeapMm>,
    arena: Arc<Arena>,
    view: Arc<View>,
    threads: [Thread; THREADS + 1],
    open: bool,
    handles: Vec<u32>,
    /// Handles that it has ever let go of, perhaps too often.
    dropped: Vec<u32>,
    buffers: Vec<u64>,
    freed: Vec<u64>,
    notices: Vec<(PtrCookie, bool)>,
    death_links: Vec<HandleCookie>,
    /// What it asked to be told of, with the role that owns the node.
    death_watches: Vec<(u64, usize)>,
    deaths: Vec<u64>,
    freeze_links: Vec<HandleCookie>,
    freezes: Vec<u64>,
    next_cookie: u64,
    /// Handles that it has counted itself.
    kept: Vec<u32>,
    /// It may have been told things that it could not read.
    is_lossy: bool,
    /// It has freed or released something in this step, perhaps what it received in it.
    hasty: bool,
}

impl Role {
    fn tid(&self, thread: usize) -> i32 {
        self.pid * 10 + thread as i32
    }

    /// Its `n`-th node; four are enough.
    fn node(&self, n: u8) -> Identity {
        let ptr = self.nodes().start + 8 * u64::from(n % 4);
        (ptr, ptr ^ COOKIE)
    }

    fn nodes(&self) -> std::ops::Range<u64> {
        let start = (self.index as u64 + 1) << 16;
        start..start + (1 << 16)
    }

    fn euid(&self) -> u32 {
        // The second process is somebody else.
        1000 + u32::from(self.index == 1)
    }
}

/// How a program went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub steps: usize,
    pub messages_sent: usize,
    pub messages_delivered: usize,
}

/// Plays a program.
///
/// # Panics
/// When anything happens that must not.
pub fn play(program: &Program) -> Summary {
    panic_at_errors();
    let mut stage = Stage::new(&program.setting);
    stage.check();
    for step in program.steps.iter() {
        trace(|| format!("{step:?}"));
        stage.step(step);
        stage.check();
    }
    let summary = Summary {
        steps: program.steps.len(),
        messages_sent: stage.ledger.sent.len(),
        messages_delivered: stage.ledger.sent.iter().filter(|sent| sent.delivered).count(),
    };
    stage.end();
    summary
}

struct Stage {
    binder: Arc<Binder>,
    contexts: [Arc<Context>; 2],
    memory: Arc<Memory>,
    timers: Arc<ManualTimers>,
    gate: Arc<Gate>,
    papers: Arc<()>,
    roles: Vec<Role>,
    ledger: Ledger,
    /// Zapping may fail in this program.
    zap_fails: bool,
}

impl Stage {
    fn new(setting: &Setting) -> Stage {
        let gate = Arc::new(Gate::default());
        let mut inject = Injector::default();
        if setting.install == Install::Shared {
            // The other rule holds the mm's lock here.
            let passing = gate.clone();
            inject = inject.with(Rule::new(Verb::AllocPage).hook(move |_| passing.pass()));
        }
        let mut zap_fails = false;
        for fault in setting.faults.iter() {
            let (verb, errno) = match fault.verb {
                MmVerb::AllocPage => (Verb::AllocPage, Errno::ENOMEM),
                MmVerb::InsertPage => (Verb::InsertPage, Errno::ENOMEM),
                MmVerb::VmaLookup => (Verb::VmaLookup, Errno::ESRCH),
                MmVerb::MmGet => (Verb::MmGet, Errno::ESRCH),
                MmVerb::Zap => (Verb::Zap, Errno::EIO),
            };
            zap_fails |= verb == Verb::Zap;
            inject = inject.with(Rule::new(verb).nth(1 + u64::from(fault.nth % 16)).fail(errno));
        }
        let pages = u64::from(setting.budget);
        let memory = Memory::new(MemoryConfig {
            page_budget: (pages < 192).then_some((1 + pages % 12) * PAGE_SIZE as u64),
            page_install: match setting.install {
                Install::Shared => PageInstall::Shared,
                Install::Exclusive => PageInstall::Exclusive,
            },
            inject,
            ..MemoryConfig::default()
        });
        let timers = Arc::new(ManualTimers::default());
        let binder = Binder::new(timers.clone());
        let contexts = [binder.context("binder"), binder.context("hwbinder")];
        let mut stage = Stage {
            binder,
            contexts,
            memory,
            timers,
            gate,
            papers: Arc::new(()),
            roles: Vec::with_capacity(4),
            ledger: Ledger::default(),
            zap_fails,
        };
        for index in 0..3 {
            stage.open(0, FIRST_PID + index, setting.pages);
        }
        match setting.manager {
            Manager::Plain => stage.become_manager(None),
            Manager::TakesFiles => stage.become_manager(Some(NodeFlags(0x40))),
            Manager::WantsSecurityContext => stage.become_manager(Some(NodeFlags(0x80))),
            Manager::Absent => {}
        }
        stage.write_read(0, 0, &[Command::EnterLooper], &Read::Nothing, &Trouble::NoTrouble);
        if setting.acquaintance == Acquaintance::Acquainted && setting.manager != Manager::Absent {
            stage.acquaint();
        }
        stage.write_read(0, 0, &[], &Read::Waits, &Trouble::NoTrouble);
        stage.attend();
        stage
    }

    /// Processes 1 and 2 tell the manager of a node each, the manager tells 1 of 2's.
    fn acquaint(&mut self) {
        let node = Object::Node { index: 0, strong: Strength::Strong, flags: NodeFlags(0x40) };
        let handle = Object::Handle { handle: Pick(2), strong: Strength::Strong };
        for (by, to, object) in [(1, 0, node.clone()), (2, 0, node), (0, 1, handle)] {
            let message = Message {
                flags: Flags(0xc0),
                code: 0,
                size: Size::Bytes { count: 8 },
                objects: List(vec![object]),
                twist: Twist::Honest,
            };
            let send = [Command::Transaction { to: Pick(to), message }];
            self.write_read(by, 2, &send, &Read::DoesNotWait, &Trouble::NoTrouble);
            self.attend();
            let receiver = usize::from(to);
            self.write_read(receiver, 1, &[], &Read::DoesNotWait, &Trouble::NoTrouble);
            self.attend();
            let thanks = self.courtesies(receiver, 1);
            self.write_read(receiver, 1, &thanks, &Read::Nothing, &Trouble::NoTrouble);
            self.attend();
        }
    }

    fn open(&mut self, context: usize, pid: i32, pages: u8) {
        if self.roles.len() >= MAX_OPENS {
            return;
        }
        let index = self.roles.len();
        let security_context = (pid % 4 != 3).then(|| format!("u:r:{pid}\0").into_bytes());
        let actress = Arc::new(Actress::new(self.gate.clone(), security_context));
        for number in 0..2 {
            let number = (index as u32) << 8 | number;
            actress.add_file(Arc::new(Paper { number, alive: self.papers.clone() }));
        }
        let mm = HeapMm::new();
        let alloc = Alloc::new(mm.clone(), &self.memory);
        mm.mmap(MAPPING, (1 + usize::from(pages % 8)) * PAGE_SIZE);
        let arena = Arc::new(Arena::default());
        arena.push(&[0; SCRATCH]);
        let process = self.contexts[context].open(pid, pid * 10, actress.clone(), alloc.clone());
        let view = View::new(arena.clone(), self.gate.clone(), View::ALWAYS);
        self.roles.push(Role {
            index,
            pid,
            process,
            actress,
            alloc,
            mm,
            arena,
            view,
            threads: Default::default(),
            open: true,
            handles: vec![0],
            dropped: Vec::new(),
            buffers: Vec::new(),
            freed: Vec::new(),
            notices: Vec::new(),
            death_links: Vec::new(),
            death_watches: Vec::new(),
            deaths: Vec::new(),
            freeze_links: Vec::new(),
            freezes: Vec::new(),
            next_cookie: 1,
            kept: Vec::new(),
            is_lossy: false,
            hasty: false,
        });
    }

    fn become_manager(&mut self, flags: Option<NodeFlags>) {
        let (cmd, arg) = match flags {
            None => (BINDER_SET_CONTEXT_MGR, vec![0; 4]),
            Some(flags) => (BINDER_SET_CONTEXT_MGR_EXT, self.node_argument(0, flags)),
        };
        self.call(0, 0, cmd, arg);
    }

    fn node_argument(&self, role: usize, flags: NodeFlags) -> Vec<u8> {
        let (binder, cookie) = self.roles[role].node(0);
        let flat = FlatObject { flags: node_flags(flags), binder, cookie };
        let mut arg = Vec::new();
        BcObject::Binder { strong: true, flat }.encode(&mut arg);
        arg
    }

    /// An open file; the pick counts those that are open.
    fn role(&self, pick: Pick) -> Option<usize> {
        let open = self.roles.iter().filter(|role| role.open).count();
        let nth = usize::from(pick.0).checked_rem(open)?;
        self.roles.iter().filter(|role| role.open).nth(nth).map(|role| role.index)
    }

    /// A thread that is in its program. Where all of a process are blocked, one gets a signal.
    fn actor(&mut self, actor: Actor) -> Option<(usize, usize)> {
        let role = self.role(actor.process())?;
        let threads = &self.roles[role].threads;
        let first = actor.thread() % THREADS;
        let free = (0..THREADS)
            .map(|step| (first + step) % THREADS)
            .find(|thread| threads[*thread].running.is_none());
        if let Some(free) = free {
            return Some((role, free));
        }
        self.signal(role, first);
        self.attend();
        self.roles[role].threads[first].running.is_none().then_some((role, first))
    }

    /// A thread that is in its program and has a call to answer, from the named actor on.
    fn server(&self, actor: Actor) -> Option<(usize, usize)> {
        let first = self.role(actor.process())?;
        let roles = self.roles[first..].iter().chain(&self.roles[..first]);
        let mut threads = roles
            .filter(|role| role.open)
            .flat_map(|role| (0..THREADS).map(move |thread| (role, thread)));
        let (role, thread) = threads.find(|(role, thread)| {
            let thread = &role.threads[*thread];
            thread.running.is_none() && !thread.serving.is_empty()
        })?;
        Some((role.index, thread))
    }

    fn signal(&mut self, role: usize, thread: usize) {
        let role = &self.roles[role];
        let Some(running) = &role.threads[thread].running else {
            role.process.interrupt(role.tid(thread));
            return;
        };
        running.slot.interrupted.store(true, Ordering::Relaxed);
        role.process.interrupt(role.tid(thread));
        assert!(running.slot.has_ended(), "a signal does not end a blocked ioctl");
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::WriteRead { by, commands, read, trouble } => {
                let replies = commands.iter().any(|c| matches!(c, Command::Reply { .. }));
                let server = if replies { self.server(*by) } else { None };
                if let Some((role, thread)) = server.or_else(|| self.actor(*by)) {
                    self.write_read(role, thread, commands, read, trouble);
                }
            }
            Step::Behave { by, trouble } => {
                if let Some((role, thread)) = self.actor(*by) {
                    let commands = self.courtesies(role, thread);
                    self.write_read(role, thread, &commands, &Read::DoesNotWait, trouble);
                }
            }
            Step::Call { by, ioctl } => {
                if let Some((role, thread)) = self.actor(*by) {
                    let (cmd, arg) = self.ioctl(role, ioctl);
                    self.call(role, thread, cmd, arg);
                    if *ioctl == Ioctl::ThreadExit {
                        self.roles[role].threads[thread].serving.clear();
                    }
                }
            }
            Step::Poll { by, stays } => {
                if let Some((role, thread)) = self.actor(*by) {
                    let role = &self.roles[role];
                    let poller = stays.then(|| Box::new(Idle) as Box<_>);
                    let ready = role.process.poll(role.tid(thread), poller);
                    trace(|| format!("    {}.{thread} polls: {ready:?}", role.index));
                }
            }
            Step::Signal { to } => {
                if let Some(role) = self.role(to.process()) {
                    self.signal(role, to.thread() % THREADS);
                }
            }
            Step::Flush { process } => {
                if let Some(role) = self.role(*process) {
                    let role = &self.roles[role];
                    role.process.flush();
                    for running in role.threads.iter().filter_map(|t| t.running.as_ref()) {
                        assert!(
                            running.slot.has_ended() || matches!(running.kind, Kind::Other(_)),
                            "a flush does not wake a blocked thread"
                        );
                    }
                }
            }
            Step::Open { device, pages } => {
                let context = usize::from(device.0 >= Pick::WILD);
                self.open(context, FIRST_PID + self.roles.len() as i32, *pages);
            }
            Step::OpenAgain { process, pages } => {
                if let Some(role) = self.role(*process) {
                    self.open(0, self.roles[role].pid, *pages);
                }
            }
            Step::Close { process } => {
                if let Some(role) = self.role(*process) {
                    self.roles[role].open = false;
                    self.roles[role].process.release();
                }
            }
            Step::Unmap { process } => {
                if let Some(role) = self.role(*process) {
                    self.roles[role].mm.munmap();
                }
            }
            Step::Die { process } => {
                if let Some(role) = self.role(*process) {
                    self.roles[role].mm.exit();
                }
            }
            Step::Reclaim { pages } => {
                let reclaimed = self.memory.scan(usize::from(*pages));
                trace(|| format!("    {reclaimed} pages reclaimed"));
            }
            Step::TimePasses => {
                self.timers.fire_all();
            }
            Step::Files { process, change } => {
                if let Some(role) = self.role(*process) {
                    let actress = &self.roles[role].actress;
                    match change {
                        FilesChange::Limit { room } => {
                            actress.room.store(u32::from(*room % 4), Ordering::Relaxed);
                        }
                        FilesChange::Refuse => actress.refuses_files.store(true, Ordering::Relaxed),
                        FilesChange::Unlimited => {
                            actress.refuses_files.store(false, Ordering::Relaxed);
                            actress.room.store(u32::MAX, Ordering::Relaxed);
                        }
                    }
                }
            }
            Step::Nice { by, nice } => {
                if let Some(role) = self.role(by.process()) {
                    let role = &self.roles[role];
                    use fakebinder::binder::Client;
                    role.actress.set_nice(role.tid(by.thread() % THREADS), i32::from(*nice));
                }
            }
        }
        self.gate.finish();
        self.attend();
    }

    /// What libbinder does unasked.
    fn courtesies(&self, role: usize, thread: usize) -> Vec<Command> {
        let role = &self.roles[role];
        let every = |count: usize| (0..count.min(6) as u8).map(Pick);
        let mut commands = Vec::new();
        for (index, (_, strong)) in role.notices.iter().enumerate().take(6) {
            let notice = Pick(index as u8);
            commands.push(match strong {
                true => Command::AcquireDone { notice },
                false => Command::IncrefsDone { notice },
            });
        }
        commands.extend(every(role.deaths.len()).map(|notice| Command::DeadBinderDone { notice }));
        commands.extend(every(role.freezes.len()).map(|notice| Command::FreezeDone { notice }));
        commands.extend(every(role.buffers.len()).map(|buffer| Command::FreeBuffer { buffer }));
        if !role.threads[thread].serving.is_empty() {
            let message = Message {
                flags: Flags(0),
                code: 0,
                size: Size::Bytes { count: 24 },
                objects: List(Vec::new()),
                twist: Twist::Honest,
            };
            commands.push(Command::Reply { message });
        }
        commands
    }

    fn ioctl(&self, role: usize, ioctl: &Ioctl) -> (u32, Vec<u8>) {
        let role = &self.roles[role];
        let pid_of = |pick: Pick| match self.role(pick) {
            Some(role) if pick.0 < Pick::WILD => self.roles[role].pid,
            _ => 7777,
        };
        let words = |words: &[u32]| {
            let mut arg = Vec::with_capacity(4 * words.len());
            words.iter().for_each(|word| arg.put_u32(*word));
            arg
        };
        match ioctl {
            Ioctl::Version => (BINDER_VERSION, words(&[0])),
            Ioctl::SetMaxThreads { threads } => {
                (BINDER_SET_MAX_THREADS, words(&[u32::from(threads % 4)]))
            }
            Ioctl::ThreadExit => (BINDER_THREAD_EXIT, words(&[0])),
            Ioctl::SetContextManager { node } => {
                (BINDER_SET_CONTEXT_MGR_EXT, self.node_argument(role.index, *node))
            }
            Ioctl::SetContextManagerPlain => (BINDER_SET_CONTEXT_MGR, words(&[0])),
            Ioctl::GetNodeDebugInfo { after } => {
                let mut arg = Vec::new();
                arg.put_u64(if after.0 < Pick::WILD { role.node(after.0).0 } else { 0 });
                arg.resize(24, 0);
                (BINDER_GET_NODE_DEBUG_INFO, arg)
            }
            Ioctl::GetNodeInfoForRef { handle, reserved } => {
                let handle = handle.of(&role.handles).unwrap_or(77);
                (BINDER_GET_NODE_INFO_FOR_REF, words(&[handle, (*reserved).into(), 0, 0, 0, 0]))
            }
            Ioctl::Freeze { process, timeout } => {
                (BINDER_FREEZE, words(&[pid_of(*process) as u32, 1, 10 * u32::from(*timeout)]))
            }
            Ioctl::Thaw { process } => (BINDER_FREEZE, words(&[pid_of(*process) as u32, 0, 0])),
            Ioctl::GetFrozenInfo { process } => {
                (BINDER_GET_FROZEN_INFO, words(&[pid_of(*process) as u32, 0, 0]))
            }
            Ioctl::EnableOnewaySpamDetection { enable } => {
                (BINDER_ENABLE_ONEWAY_SPAM_DETECTION, words(&[(*enable).into()]))
            }
            Ioctl::GetExtendedError => (BINDER_GET_EXTENDED_ERROR, words(&[0, 0, 0])),
            Ioctl::SetIdleTimeout => (BINDER_SET_IDLE_TIMEOUT, words(&[1, 0])),
            Ioctl::SetIdlePriority => (BINDER_SET_IDLE_PRIORITY, words(&[1])),
            Ioctl::Other { number, size } => {
                let known = *number == BINDER_WRITE_READ || *number == BINDER_FREEZE;
                let number = if *size == 3 { BINDER_WRITE_READ } else { *number };
                (if known { BINDER_VERSION } else { number }, vec![0; usize::from(*size)])
            }
        }
    }

    /// Any ioctl but BINDER_WRITE_READ.
    fn call(&mut self, role: usize, thread: usize, cmd: u32, arg: Vec<u8>) {
        let view = self.roles[role].view.clone();
        self.begin(role, thread, cmd, arg, view, false, Kind::Other(cmd));
    }

    #[allow(clippy::too_many_arguments, reason = "an ioctl is made of them")]
    fn begin(
        &mut self,
        role: usize,
        thread: usize,
        cmd: u32,
        arg: Vec<u8>,
        view: Arc<View>,
        nonblock: bool,
        kind: Kind,
    ) {
        let slot = Arc::new(Slot::default());
        let role = &mut self.roles[role];
        role.threads[thread].running = Some(Running { slot: slot.clone(), kind });
        role.process.ioctl(Call {
            tid: role.tid(thread),
            euid: role.euid(),
            nonblock,
            cmd,
            arg,
            memory: view,
            reply: Box::new(Answer(slot)),
        });
    }

    fn write_read(
        &mut self,
        role: usize,
        thread: usize,
        commands: &[Command],
        read: &Read,
        trouble: &Trouble,
    ) {
        let raced = matches!(trouble, Trouble::Meanwhile { .. });
        self.roles[role].is_lossy |= matches!(trouble, Trouble::Unreachable { .. })
            || matches!(read, Read::Resumed { .. } | Read::Unmapped);
        self.roles[role].arena.truncate(SCRATCH);
        let mut bytes = Vec::with_capacity(128);
        let mut done = Vec::with_capacity(commands.len());
        self.roles[role].hasty |= raced;
        for command in commands {
            let (command, then) = self.command(role, thread, command, raced);
            match command {
                Ok(command) => command.encode(&mut bytes),
                Err(number) => bytes.put_u32(number),
            }
            self.roles[role].hasty |=
                matches!(command, Ok(Bc::Release(_) | Bc::Decrefs(_) | Bc::FreeBuffer(_)));
            done.push((bytes.len() as u64, then));
        }
        let mut view = self.roles[role].view.clone();
        let mut call = WriteRead { write_size: bytes.len() as u64, ..WriteRead::default() };
        call.write_buffer = view.arena.push(&bytes);
        match trouble {
            Trouble::NoTrouble => {}
            Trouble::Unreachable { after } => {
                view = View::new(view.arena.clone(), self.gate.clone(), u32::from(after % 12));
            }
            Trouble::Meanwhile { after, aside } => {
                if let Some(act) = self.aside(role, thread, aside) {
                    self.gate.arm(1 + u32::from(after % 10), act);
                }
            }
            Trouble::Skip { commands } => {
                let skipped = usize::from(*commands).checked_rem(done.len()).unwrap_or(0);
                if let Some((end, _)) = done.get(skipped) {
                    call.write_consumed = *end;
                    done.drain(..=skipped);
                }
            }
            Trouble::CutShort { bytes } => {
                call.write_size = call.write_size.saturating_sub(u64::from(*bytes));
            }
        }
        call.read_buffer = ARENA + (thread * READ_BUFFER) as u64;
        let mut nonblock = false;
        match read {
            Read::Nothing => {}
            Read::Waits => call.read_size = 256,
            Read::DoesNotWait => (call.read_size, nonblock) = (256, true),
            Read::Short { size } => (call.read_size, nonblock) = ((*size).into(), true),
            Read::Resumed { consumed } => {
                (call.read_size, call.read_consumed) = (512, (*consumed).into());
            }
            Read::Unmapped => (call.read_size, call.read_buffer) = (256, 0x10),
        }
        let kind = Kind::WriteRead { done };
        self.begin(role, thread, BINDER_WRITE_READ, call.encode(), view, nonblock, kind);
        // Who waits in the read has all commands behind it.
        let mut all = Vec::new();
        if let Some(Running { slot, kind: Kind::WriteRead { done } }) =
            &mut self.roles[role].threads[thread].running
            && !slot.has_ended()
        {
            all.append(done);
        }
        all.into_iter().for_each(|(_, what)| self.done(role, thread, what));
    }

    /// A command of the grammar as the driver knows it (or the number of one that it does not),
    /// and what is known when it is done.
    fn command(
        &mut self,
        role: usize,
        thread: usize,
        command: &Command,
        raced: bool,
    ) -> (Result<Bc, u32>, Done) {
        const NOBODY: HandleCookie = HandleCookie { handle: 77, cookie: 77 };
        let r = &mut self.roles[role];
        let handle = |pick: &Pick| pick.of(&r.handles).unwrap_or(u32::from(pick.0));
        let (command, then) = match command {
            Command::Transaction { to, message } => {
                let mut to = handle(to);
                if to == 0 && role == 0 && r.handles.len() > 1 {
                    // The first context manager cannot mean itself.
                    to = r.handles[1];
                }
                let (data, room) = self.message(role, thread, message, Some(to), raced);
                let command = match room {
                    None => Bc::Transaction(data),
                    Some(room) => Bc::TransactionSg(data, room),
                };
                (command, Done::Nothing)
            }
            Command::Reply { message } => {
                let (data, room) = self.message(role, thread, message, None, raced);
                let command = match room {
                    None => Bc::Reply(data),
                    Some(room) => Bc::ReplySg(data, room),
                };
                (command, Done::Answered)
            }
            Command::FreeBuffer { buffer } => {
                let address = buffer.of(&r.buffers).unwrap_or_else(|| match buffer.0 % 4 {
                    // One that is free, or free again; one that begins elsewhere; nowhere.
                    0 => r.freed.last().copied().unwrap_or(MAPPING),
                    1 => r.buffers.first().map_or(MAPPING, |buffer| buffer + 8),
                    2 => MAPPING - 8,
                    _ => u64::MAX,
                });
                (Bc::FreeBuffer(address), Done::Freed(address))
            }
            Command::Increfs { handle: h } => (Bc::Increfs(handle(h)), Done::Acquired(handle(h))),
            Command::Acquire { handle: h } => (Bc::Acquire(handle(h)), Done::Acquired(handle(h))),
            Command::Release { handle: h } | Command::Decrefs { handle: h } => {
                let handle = handle(h);
                r.dropped.push(handle);
                let strong = matches!(command, Command::Release { .. });
                (if strong { Bc::Release(handle) } else { Bc::Decrefs(handle) }, Done::Nothing)
            }
            Command::IncrefsDone { notice } => {
                let node = notice.of(&r.notices).map_or(PtrCookie { ptr: 8, cookie: 8 }, |n| n.0);
                (Bc::IncrefsDone(node), Done::Confirmed(node, false))
            }
            Command::AcquireDone { notice } => {
                let node = notice.of(&r.notices).map_or(PtrCookie { ptr: 8, cookie: 8 }, |n| n.0);
                (Bc::AcquireDone(node), Done::Confirmed(node, true))
            }
            Command::EnterLooper => (Bc::EnterLooper, Done::Nothing),
            Command::RegisterLooper => (Bc::RegisterLooper, Done::Nothing),
            Command::ExitLooper => (Bc::ExitLooper, Done::Nothing),
            Command::RequestDeath { handle: h } => {
                let request = HandleCookie { handle: handle(h), cookie: r.next_cookie };
                r.next_cookie += 1;
                (Bc::RequestDeathNotification(request), Done::AskedDeath(request))
            }
            Command::ClearDeath { link } => {
                let link = link.of(&r.death_links).unwrap_or(NOBODY);
                (Bc::ClearDeathNotification(link), Done::ClearedDeath(link))
            }
            Command::DeadBinderDone { notice } => {
                let cookie = notice.of(&r.deaths).unwrap_or(77);
                (Bc::DeadBinderDone(cookie), Done::AcceptedDeath(cookie))
            }
            Command::RequestFreeze { handle: h } => {
                let request = HandleCookie { handle: handle(h), cookie: r.next_cookie };
                r.next_cookie += 1;
                (Bc::RequestFreezeNotification(request), Done::AskedFreeze(request))
            }
            Command::ClearFreeze { link } => {
                let link = link.of(&r.freeze_links).unwrap_or(NOBODY);
                (Bc::ClearFreezeNotification(link), Done::ClearedFreeze(link))
            }
            Command::FreezeDone { notice } => {
                let cookie = notice.of(&r.freezes).unwrap_or(77);
                (Bc::FreezeNotificationDone(cookie), Done::AcceptedFreeze(cookie))
            }
            Command::AttemptAcquire => {
                (Bc::AttemptAcquire { priority: 0, handle: 0 }, Done::Nothing)
            }
            Command::AcquireResult => (Bc::AcquireResult(0), Done::Nothing),
            Command::Unknown { number } => {
                let known = Bc::payload_size(*number).is_some();
                return (Err(if known { 0 } else { *number }), Done::Nothing);
            }
        };
        (Ok(command), then)
    }

    /// Puts a message into the sender's memory, and into the ledger. With scatter-gather buffers
    /// it also says how many bytes they take.
    fn message(
        &mut self,
        role: usize,
        thread: usize,
        message: &Message,
        to: Option<u32>,
        raced: bool,
    ) -> (TransactionData, Option<u64>) {
        let number = self.ledger.sent.len();
        let r = &self.roles[role];
        let flags = transaction_flags(message.flags);
        let mut count = match message.size {
            Size::Bytes { count } => usize::from(count),
            Size::Chunks { count } => 16 * usize::from(count),
            Size::BigChunks { count } => 128 * usize::from(count),
        };
        if flags & TF_UPDATE_TXN != 0 {
            count = count.max(4);
        }
        let mut data = Vec::with_capacity(count + 64);
        Ledger::fill(number, count, &mut data);
        let mut offsets: Vec<u64> = Vec::new();
        let mut objects = Vec::new();
        let mut buffers: Vec<(usize, u64)> = Vec::new();
        let mut room = 0;
        let mut honest = true;
        for object in message.objects.iter() {
            data.resize(data.len().next_multiple_of(8), 0);
            let offset = data.len();
            let index = offsets.len();
            let parent = |parent: &Parent| match *parent {
                Parent::NoParent => None,
                Parent::Last { at } => {
                    buffers.last().map(|last| (last.0, last.1, 8 * u64::from(at)))
                }
                Parent::Nth { index, at } => {
                    let address = buffers.iter().find(|buffer| buffer.0 == usize::from(index % 8));
                    Some((usize::from(index % 8), address.map_or(0, |b| b.1), u64::from(at)))
                }
            };
            let meaning = match object {
                Object::Node { index, strong, flags } => {
                    let (binder, mut cookie) = r.node(*index);
                    if message.twist == Twist::OtherCookie {
                        cookie ^= 1;
                    }
                    let strong = *strong == Strength::Strong;
                    let flat = FlatObject { flags: node_flags(*flags), binder, cookie };
                    BcObject::Binder { strong, flat }.encode(&mut data);
                    SentObject::Node { identity: (binder, cookie), strong }
                }
                Object::Handle { handle, strong } => {
                    let handle = handle.of(&r.handles).unwrap_or(u32::from(handle.0));
                    let strong = *strong == Strength::Strong;
                    let flat = FlatObject { flags: 0, binder: handle.into(), cookie: 0 };
                    BcObject::Handle { strong, flat }.encode(&mut data);
                    let identity = r.process.node_behind(handle).filter(|_| !raced);
                    SentObject::Handle { identity, strong }
                }
                Object::File { fd } => {
                    let fd = fd.of(&r.actress.fds()).unwrap_or(99);
                    let object = BcObject::Fd { pad_flags: 0, fd: fd as u32, cookie: 3 };
                    object.encode(&mut data);
                    SentObject::File { number: r.actress.paper(fd) }
                }
                Object::Buffer { length, parent: within } => {
                    let length = u64::from(*length);
                    let seed = (number * 7 + index * 101) as u8;
                    let bytes: Vec<u8> =
                        (0..length as u8).map(|index| seed.wrapping_add(index)).collect();
                    let mut buffer =
                        BufferObject { buffer: r.arena.push(&bytes), length, ..Default::default() };
                    if let Some((parent, _, at)) = parent(within) {
                        buffer.flags = BINDER_BUFFER_FLAG_HAS_PARENT;
                        (buffer.parent, buffer.parent_offset) = (parent as u64, at);
                    }
                    if message.twist == Twist::BuffersElsewhere {
                        buffer.buffer = 0x40;
                    }
                    room += length.next_multiple_of(8);
                    buffers.push((index, buffer.buffer));
                    BcObject::Buffer(buffer).encode(&mut data);
                    SentObject::Buffer { bytes }
                }
                Object::FileArray { files, parent: within } => {
                    let (parent, address, at) = parent(within).unwrap_or((9, 0, 0));
                    let fds = r.actress.fds();
                    let mut numbers = Vec::new();
                    for index in 0..u64::from(files % 4) {
                        let fd = *fds.get(index as usize % fds.len().max(1)).unwrap_or(&99);
                        let place = address.wrapping_add(at + 4 * index);
                        // Into a buffer that is there; else the message is not honest.
                        let _ = r.arena.write(place, &fd.to_ne_bytes());
                        numbers.push(r.actress.paper(fd));
                    }
                    let array = FdArrayObject {
                        pad: 0,
                        num_fds: numbers.len() as u64,
                        parent: parent as u64,
                        parent_offset: at,
                    };
                    BcObject::FdArray(array).encode(&mut data);
                    SentObject::FileArray { parent, at, files: numbers }
                }
                Object::UnknownType { kind } => {
                    data.put_u32(*kind);
                    data.resize(data.len() + 20, 0);
                    honest = false;
                    SentObject::Unknown
                }
            };
            offsets.push(offset as u64);
            objects.push((offset, data.len() - offset, meaning));
        }
        let with_room = room > 0 || message.code & 0x80 != 0;
        let mut transaction = TransactionData {
            target: to.unwrap_or(0).into(),
            code: Ledger::code(number, message.code, flags),
            flags,
            data_size: data.len() as u64,
            offsets_size: 8 * offsets.len() as u64,
            ..TransactionData::default()
        };
        honest &= matches!(message.twist, Twist::Honest);
        match message.twist {
            Twist::Honest | Twist::OtherCookie | Twist::BuffersElsewhere => {}
            Twist::OffsetsMisaligned => offsets.iter_mut().for_each(|offset| *offset += 2),
            Twist::OffsetsOutOfOrder => offsets.reverse(),
            Twist::OffsetOutOfBounds { by } => {
                offsets.iter_mut().for_each(|offset| *offset += 4 * u64::from(by));
            }
            Twist::OffsetsSizeOdd => transaction.offsets_size += 4,
            Twist::TooLittleRoom { by } => room = room.saturating_sub(8 * u64::from(by)),
            Twist::OddRoom => room += 4,
            Twist::HugeData => transaction.data_size = u64::MAX - 5,
            Twist::HugeOffsets => transaction.offsets_size = 1 << 40,
            Twist::HugeRoom => room = u64::MAX - 9,
            Twist::ShortData { by } => {
                transaction.data_size = transaction.data_size.saturating_sub(by.into());
            }
            Twist::DataElsewhere | Twist::OffsetsElsewhere => {}
        }
        transaction.buffer = r.arena.push(&data);
        let mut bytes = Vec::with_capacity(8 * offsets.len());
        offsets.iter().for_each(|offset| bytes.put_u64(*offset));
        transaction.offsets = r.arena.push(&bytes);
        match message.twist {
            Twist::DataElsewhere => transaction.buffer = 0x20,
            Twist::OffsetsElsewhere => transaction.offsets = 0x30,
            _ => {}
        }
        let target = to.filter(|to| *to != 0 && !raced);
        self.ledger.sent.push(Sent {
            by: (role, thread),
            pid: r.pid,
            euid: r.euid(),
            code: transaction.code,
            flags,
            is_reply: to.is_none(),
            data,
            objects,
            target: target.and_then(|handle| r.process.node_behind(handle)),
            honest,
            delivered: false,
            answered: false,
        });
        let odd = matches!(message.twist, Twist::OddRoom | Twist::HugeRoom);
        (transaction, (with_room || odd).then_some(room))
    }

    /// Something small that somebody else does while the driver is at work.
    fn aside(
        &mut self,
        role: usize,
        thread: usize,
        aside: &Aside,
    ) -> Option<Box<dyn FnOnce() + Send>> {
        let process_of = |pick: &Pick| {
            let role = self.role(*pick)?;
            Some(self.roles[role].process.clone())
        };
        Some(match aside {
            Aside::ReleaseProcess { process } => {
                let role = self.role(*process)?;
                self.roles[role].open = false;
                let process = self.roles[role].process.clone();
                Box::new(move || process.release())
            }
            Aside::ExitThread { thread: actor } => {
                self.aside_call((role, thread), *actor, BINDER_THREAD_EXIT, vec![0; 4])?
            }
            Aside::Interrupt { thread: actor } => {
                let role = self.role(actor.process())?;
                let role = &self.roles[role];
                let running = role.threads[actor.thread() % THREADS].running.as_ref();
                let slot = running.map(|running| running.slot.clone());
                let (process, tid) = (role.process.clone(), role.tid(actor.thread() % THREADS));
                Box::new(move || {
                    if let Some(slot) = slot {
                        slot.interrupted.store(true, Ordering::Relaxed);
                    }
                    process.interrupt(tid);
                })
            }
            Aside::FlushProcess { process } => {
                let process = process_of(process)?;
                Box::new(move || process.flush())
            }
            Aside::FreezeProcess { process } => {
                let (cmd, arg) =
                    self.ioctl(role, &Ioctl::Freeze { process: *process, timeout: false });
                self.aside_call((role, thread), Actor(process.0.wrapping_add(1)), cmd, arg)?
            }
            Aside::ThawProcess { process } => {
                let (cmd, arg) = self.ioctl(role, &Ioctl::Thaw { process: *process });
                self.aside_call((role, thread), Actor(process.0.wrapping_add(1)), cmd, arg)?
            }
            Aside::UnmapBuffer { process } => {
                let role = self.role(*process)?;
                let mm = self.roles[role].mm.clone();
                Box::new(move || mm.munmap())
            }
            Aside::ReclaimAll => {
                let memory = self.memory.clone();
                Box::new(move || {
                    memory.reclaim_all();
                })
            }
            Aside::FireTimers => {
                let timers = self.timers.clone();
                Box::new(move || {
                    timers.fire_all();
                })
            }
            Aside::Do { by, command } => {
                let (other, other_thread) = self.bystander((role, thread), *by)?;
                let (command, then) = self.command(other, other_thread, command, true);
                self.roles[other].hasty = true;
                let mut bytes = Vec::new();
                command.ok()?.encode(&mut bytes);
                let done = vec![(bytes.len() as u64, then)];
                let write_buffer = self.roles[other].arena.push(&bytes);
                let write_size = bytes.len() as u64;
                let call = WriteRead { write_size, write_buffer, ..WriteRead::default() };
                let kind = Kind::WriteRead { done };
                self.aside_ioctl(other, other_thread, BINDER_WRITE_READ, call.encode(), kind)
            }
            Aside::ReadNow { by } => {
                let (other, other_thread) = self.bystander((role, thread), *by)?;
                let read_buffer = ARENA + (other_thread * READ_BUFFER) as u64;
                let call = WriteRead { read_size: 256, read_buffer, ..WriteRead::default() };
                let kind = Kind::WriteRead { done: Vec::new() };
                self.aside_ioctl(other, other_thread, BINDER_WRITE_READ, call.encode(), kind)
            }
        })
    }

    /// A thread that is in its program and is not the one that acts.
    fn bystander(&self, acts: (usize, usize), actor: Actor) -> Option<(usize, usize)> {
        let role = self.role(actor.process())?;
        let thread = actor.thread() % THREADS;
        let idle = self.roles[role].threads[thread].running.is_none();
        // What a process has in its arena for one call at a time is the acting one's.
        (idle && (role, thread) != acts).then_some((role, thread))
    }

    fn aside_call(
        &mut self,
        acts: (usize, usize),
        actor: Actor,
        cmd: u32,
        arg: Vec<u8>,
    ) -> Option<Box<dyn FnOnce() + Send>> {
        let (role, thread) = self.bystander(acts, actor)?;
        Some(self.aside_ioctl(role, thread, cmd, arg, Kind::Other(cmd)))
    }

    /// An ioctl to be made later, or never: a bystander that is not asked is told so.
    fn aside_ioctl(
        &mut self,
        role: usize,
        thread: usize,
        cmd: u32,
        arg: Vec<u8>,
        kind: Kind,
    ) -> Box<dyn FnOnce() + Send> {
        let slot = Arc::new(Slot::default());
        let role = &mut self.roles[role];
        role.threads[thread].running = Some(Running { slot: slot.clone(), kind });
        let call = Call {
            tid: role.tid(thread),
            euid: role.euid(),
            nonblock: true,
            cmd,
            arg,
            memory: role.view.clone(),
            reply: Box::new(Answer(slot)),
        };
        let process = role.process.clone();
        Box::new(move || process.ioctl(call))
    }

    /// Gives every client what its ioctls that have ended brought.
    fn attend(&mut self) {
        let mut reads = Vec::new();
        for role in 0..self.roles.len() {
            for thread in 0..=ATTENDANT {
                let running = &mut self.roles[role].threads[thread].running;
                let Some(ended) = running.as_ref().and_then(|running| running.slot.take()) else {
                    continue;
                };
                let Some(Running { kind, .. }) = running.take() else { continue };
                trace(|| format!("    {role}.{thread} gets {:?}", ended.result));
                self.roles[role].threads[thread].last = ended.result;
                match kind {
                    Kind::WriteRead { done } => {
                        let call = WriteRead::decode(&ended.out);
                        trace(|| {
                            format!("    {role}.{thread} wrote {} bytes", call.write_consumed)
                        });
                        for (end, what) in done {
                            if end <= call.write_consumed {
                                self.done(role, thread, what);
                            }
                        }
                        if ended.result.is_ok() {
                            reads.push((role, thread, call));
                        }
                    }
                    Kind::Other(BINDER_VERSION) if ended.result.is_ok() => {
                        assert_eq!(ended.out[..4], 8_i32.to_ne_bytes(), "the protocol's version");
                    }
                    Kind::Other(_) => {}
                }
            }
        }
        // Who has freed a buffer may have been given it anew in the same step.
        for (role, thread, call) in reads {
            self.read(role, thread, &call);
        }
        self.roles.iter_mut().for_each(|role| role.hasty = false);
    }

    fn done(&mut self, role: usize, thread: usize, what: Done) {
        let r = &mut self.roles[role];
        fn remove<T: PartialEq>(list: &mut Vec<T>, item: &T) {
            if let Some(index) = list.iter().position(|known| known == item) {
                list.remove(index);
            }
        }
        match what {
            Done::Nothing => {}
            Done::Freed(address) => {
                remove(&mut r.buffers, &address);
                r.freed.push(address);
            }
            Done::Answered => {
                r.threads[thread].serving.pop();
            }
            Done::Confirmed(node, strong) => remove(&mut r.notices, &(node, strong)),
            Done::AskedDeath(link) => {
                let node = r.process.node_behind(link.handle).map(|(ptr, _)| ptr);
                let known = r.death_links.iter().any(|known| known.handle == link.handle);
                r.death_links.push(link);
                if let Some(ptr @ 1..) = node
                    && !known
                    && r.kept.contains(&link.handle)
                {
                    r.death_watches.push((link.cookie, (ptr >> 16) as usize - 1));
                }
            }
            Done::ClearedDeath(link) => {
                remove(&mut r.death_links, &link);
                r.death_watches.retain(|(cookie, _)| *cookie != link.cookie);
            }
            Done::AcceptedDeath(cookie) => remove(&mut r.deaths, &cookie),
            Done::AskedFreeze(link) => r.freeze_links.push(link),
            Done::ClearedFreeze(link) => remove(&mut r.freeze_links, &link),
            Done::AcceptedFreeze(cookie) => remove(&mut r.freezes, &cookie),
            Done::Acquired(handle) => {
                if r.process.node_behind(handle).is_some() {
                    r.kept.push(handle);
                }
                if !r.handles.contains(&handle) && r.process.node_behind(handle).is_some() {
                    r.handles.push(handle);
                }
            }
        }
    }

    /// A thread looks at what it has read.
    fn read(&mut self, role: usize, thread: usize, call: &WriteRead) {
        let mut bytes = [0; READ_BUFFER];
        let consumed = (call.read_consumed as usize).min(READ_BUFFER);
        let start = ARENA + (thread * READ_BUFFER) as u64;
        if call.read_size == 0 || call.read_buffer != start {
            return;
        }
        let r = &self.roles[role];
        r.arena.read(start, &mut bytes[..consumed]).expect("its own read buffer");
        let mut rest = &bytes[..consumed];
        if call.read_size == 512 {
            // Resumed: what was there before is of no interest, and its length not known here.
            rest = &[];
        }
        while !rest.is_empty() {
            let (what, size) = Return::decode(rest).expect("whole returns");
            rest = &rest[size..];
            trace(|| format!("    {role}.{thread} reads {what:x?}"));
            self.returned(role, thread, what);
        }
    }

    fn returned(&mut self, role: usize, thread: usize, what: Return) {
        let strangers = self.ledger.has_strangers;
        let r = &mut self.roles[role];
        match what {
            Return::Increfs(node) => r.notices.push((node, false)),
            Return::Acquire(node) => r.notices.push((node, true)),
            Return::DeadBinder(cookie) => {
                assert!(
                    strangers || cookie < r.next_cookie,
                    "a death that nobody asked for: {cookie}"
                );
                r.deaths.push(cookie);
                r.death_watches.retain(|(watched, _)| *watched != cookie);
            }
            Return::FrozenBinder { cookie, .. } => {
                assert!(
                    strangers || cookie < r.next_cookie,
                    "a freeze that nobody asked for: {cookie}"
                );
                r.freezes.push(cookie);
            }
            Return::Transaction(data) | Return::TransactionSecCtx(data, _) => {
                if let Return::TransactionSecCtx(data, context) = what {
                    self.check_security_context(role, &data, context);
                }
                let number = self.receive(role, &data, false);
                if data.flags & TF_ONE_WAY == 0 {
                    self.roles[role].threads[thread].serving.push(number);
                }
            }
            Return::Reply(data) => {
                let number = self.receive(role, &data, true);
                self.check_answer(role, thread, number);
            }
            Return::Error(_)
            | Return::Ok
            | Return::AcquireResult(_)
            | Return::DeadReply
            | Return::TransactionComplete
            | Return::Release(_)
            | Return::Decrefs(_)
            | Return::Noop
            | Return::SpawnLooper
            | Return::Finished
            | Return::ClearDeathNotificationDone(_)
            | Return::FailedReply
            | Return::FrozenReply
            | Return::OnewaySpamSuspect
            | Return::TransactionPendingFrozen
            | Return::ClearFreezeNotificationDone(_) => {}
        }
        if let Return::Increfs(node)
        | Return::Acquire(node)
        | Return::Release(node)
        | Return::Decrefs(node) = what
        {
            let r = &self.roles[role];
            if self.ledger.has_strangers {
                return;
            }
            let own = r.nodes().contains(&node.ptr) && node.cookie | 1 == (node.ptr ^ COOKIE) | 1;
            assert!(own || node == PtrCookie::default(), "{role} hears of {node:x?}");
        }
    }

    /// A message has come; returns its number.
    fn receive(&mut self, role: usize, data: &TransactionData, reply: bool) -> usize {
        let r = &mut self.roles[role];
        let end = data.buffer.wrapping_add(data.data_size);
        let mapping = MAPPING..=MAPPING + r.alloc.buffer_size() as u64;
        assert!(mapping.contains(&data.buffer) && mapping.contains(&end), "{data:x?}");
        let strangers = self.ledger.has_strangers;
        assert!(
            strangers || !r.buffers.contains(&data.buffer),
            "a buffer is given twice: {data:x?}"
        );
        r.buffers.push(data.buffer);
        let receiver = Receiver {
            process: &r.process,
            mm: &r.mm,
            actress: &r.actress,
            pid: r.pid,
            nodes: r.nodes(),
            dropped: &r.dropped,
            // Objects of who is gone are nobody's.
            hasty: r.hasty || !r.open,
        };
        let received = self.ledger.receive(data, reply, &receiver);
        for handle in received.handles {
            if !r.handles.contains(&handle) {
                r.handles.push(handle);
            }
        }
        received.number
    }

    fn check_security_context(&self, role: usize, data: &TransactionData, address: u64) {
        if self.ledger.has_strangers || self.roles[role].hasty || data.flags & TF_UPDATE_TXN != 0 {
            return;
        }
        let sent = &self.ledger.sent[(data.code >> 2) as usize];
        let expected = self.roles[sent.by.0].actress.security_context.clone();
        let expected = expected.expect("who has none cannot send to such a node");
        let mut context = vec![0; expected.len()];
        if self.roles[role].mm.peek(address, &mut context).is_ok() {
            assert_eq!(context, expected, "the sender's security context");
        }
    }

    /// A reply goes to the thread whose call its sender served, and each call has one at most.
    fn check_answer(&mut self, role: usize, thread: usize, reply: usize) {
        if self.ledger.has_strangers {
            return;
        }
        let Some(by) = self.ledger.sent.get(reply).map(|reply| reply.by) else { return };
        let call = self.ledger.sent.iter_mut().rev().find(|call| {
            !call.is_reply
                && call.flags & TF_ONE_WAY == 0
                && !call.answered
                && call.by == (role, thread)
        });
        let Some(call) = call else {
            panic!("{role}.{thread} gets a reply of {by:?} and has called nobody");
        };
        call.answered = true;
    }

    /// All that must hold between two steps.
    fn check(&self) {
        for context in &self.contexts {
            if let Err(violation) = context.check_invariants() {
                panic!("{violation}");
            }
        }
        let (mut used, mut lru) = (0, 0);
        for role in &self.roles {
            assert_eq!(role.mm.lost(), 0, "{}: a page that should be there is not", role.pid);
            assert_eq!(role.mm.users(), 0, "{}: a use of the mm was not put", role.pid);
            let (mut installed, mut on_lru) = (0, 0);
            for state in role.alloc.page_states() {
                installed += usize::from(state != PageState::Free);
                on_lru += usize::from(state == PageState::Lru);
            }
            let resident = role.mm.resident();
            assert!(
                resident == installed || (self.zap_fails && resident > installed),
                "{}: {resident} pages are resident, {installed} installed",
                role.pid
            );
            used += resident;
            lru += on_lru;
        }
        assert_eq!(self.memory.used(), used, "pages in use, by the budget and by the clients");
        assert_eq!(self.memory.count(), lru, "pages on the LRU, by the list and by their owners");
    }

    /// Whoever has asked to be told of a death, and lost nothing on the way, is told.
    fn hear_of_deaths(&mut self) {
        for role in 0..self.roles.len() {
            let missing = |stage: &Stage| {
                let watches = &stage.roles[role].death_watches;
                watches.iter().find(|watch| !stage.roles[watch.1].open).copied()
            };
            let r = &self.roles[role];
            if !r.open || r.is_lossy || !r.dropped.is_empty() || missing(self).is_none() {
                continue;
            }
            for _ in 0..64 {
                let courtesies = self.courtesies(role, ATTENDANT);
                let trouble = Trouble::NoTrouble;
                self.write_read(role, ATTENDANT, &courtesies, &Read::DoesNotWait, &trouble);
                self.attend();
                if self.roles[role].threads[ATTENDANT].last == Err(Errno::EAGAIN) {
                    break;
                }
            }
            let missed = missing(self);
            assert!(missed.is_none(), "{}: was not told of the death {missed:?}", role);
        }
    }

    /// Everybody leaves, and nothing must be left.
    fn end(mut self) {
        trace(|| "everybody leaves".to_owned());
        self.hear_of_deaths();
        for role in 0..self.roles.len() {
            if self.roles[role].open {
                self.roles[role].open = false;
                self.roles[role].process.release();
                self.attend();
            }
        }
        self.timers.fire_all();
        self.attend();
        for role in &self.roles {
            let blocked = role.threads.iter().filter(|thread| thread.running.is_some()).count();
            assert_eq!(blocked, 0, "{}: threads are still blocked after the release", role.pid);
        }
        assert_eq!(self.binder.stats(), Stats::default(), "what the driver still holds");
        for role in self.roles.drain(..) {
            let process = Arc::downgrade(&role.process);
            let alloc = role.alloc.clone();
            drop(role);
            assert!(process.upgrade().is_none(), "somebody still holds a released process");
            assert_eq!(alloc.allocated_count(), 0, "buffers are left");
        }
        assert_eq!(self.memory.used(), 0, "pages are left");
        assert_eq!(self.memory.count(), 0, "pages are left on the LRU");
        assert_eq!(self.timers.waiting(), 0, "timers are left");
        assert_eq!(Arc::strong_count(&self.papers), 1, "files are left");
    }
}

fn node_flags(flags: NodeFlags) -> u32 {
    let mut bits = u32::from(flags.0 & 0x1f);
    if flags.0 & 0x40 != 0 {
        bits |= FLAT_BINDER_FLAG_ACCEPTS_FDS;
    }
    if flags.0 & 0x80 != 0 {
        bits |= FLAT_BINDER_FLAG_TXN_SECURITY_CTX;
    }
    bits
}

/// `TF_*`.
pub fn transaction_flags(flags: Flags) -> u32 {
    let mut bits = 0;
    for (bit, flag) in
        [TF_ACCEPT_FDS, TF_CLEAR_BUF, TF_UPDATE_TXN, TF_ROOT_OBJECT].iter().enumerate()
    {
        if flags.0 & (1 << bit) != 0 {
            bits |= flag;
        }
    }
    if flags.0 & 0xc0 == 0xc0 {
        bits |= TF_ONE_WAY;
    }
    bits
}

/// A scene with something of everything for `writer` (process 1, thread 0) to get hold of: it
/// serves a call of the manager's, waits for nobody, has handles, buffers, links and notices.
fn scene() -> Program {
    let plain = |objects| Message {
        flags: Flags(1),
        code: 0,
        size: Size::Bytes { count: 32 },
        objects,
        twist: Twist::Honest,
    };
    let node = |index| Object::Node { index, strong: Strength::Strong, flags: NodeFlags(0x40) };
    let transaction = |to, objects| Command::Transaction { to: Pick(to), message: plain(objects) };
    let write = |by, commands| Step::WriteRead {
        by: Actor(by),
        commands: List(commands),
        read: Read::DoesNotWait,
        trouble: Trouble::NoTrouble,
    };
    let behave = |by| Step::Behave { by: Actor(by), trouble: Trouble::NoTrouble };
    Program {
        setting: Setting {
            budget: 255,
            pages: 3,
            install: Install::Shared,
            manager: Manager::TakesFiles,
            acquaintance: Acquaintance::Strangers,
            faults: List(Vec::new()),
        },
        steps: List(vec![
            // The manager gets a node of 1 and one of 2, and passes 2's on to 1.
            write(0x11, vec![transaction(0, List(vec![node(0), node(1)]))]),
            behave(0x00),
            behave(0x11),
            write(0x12, vec![transaction(0, List(vec![node(0)]))]),
            behave(0x10),
            behave(0x12),
            write(0x01, vec![Command::EnterLooper]),
            write(
                0x20,
                vec![transaction(
                    1,
                    List(vec![Object::Handle { handle: Pick(3), strong: Strength::Strong }]),
                )],
            ),
            write(0x01, vec![]),
            write(
                0x01,
                vec![
                    Command::RequestDeath { handle: Pick(1) },
                    Command::RequestFreeze { handle: Pick(1) },
                    Command::Acquire { handle: Pick(0) },
                ],
            ),
        ]),
    }
}

/// Target `write_buffer`: `bytes` are what a client writes, twice, while others do what they do.
///
/// The write buffer lies at [`WRITE_BUFFER`]; its own bytes are the messages that it can send.
///
/// # Panics
/// When anything happens that must not.
pub fn play_raw(bytes: &[u8]) {
    panic_at_errors();
    let scene = scene();
    let mut stage = Stage::new(&scene.setting);
    for step in scene.steps.iter() {
        stage.step(step);
    }
    stage.check();
    stage.ledger.has_strangers = true;
    for _ in 0..2 {
        let role = &mut stage.roles[1];
        role.arena.truncate(SCRATCH);
        let call = WriteRead {
            write_size: bytes.len() as u64,
            write_buffer: role.arena.push(bytes),
            read_size: 256,
            read_buffer: ARENA,
            ..WriteRead::default()
        };
        debug_assert_eq!(call.write_buffer, WRITE_BUFFER);
        let view = role.view.clone();
        let kind = Kind::WriteRead { done: Vec::new() };
        stage.begin(1, 0, BINDER_WRITE_READ, call.encode(), view, true, kind);
        stage.attend();
        stage.check();
        for by in [0x00, 0x10, 0x02] {
            stage.step(&Step::Behave { by: Actor(by), trouble: Trouble::NoTrouble });
            stage.check();
        }
    }
    stage.end();
}

/// Where the write buffer of [`play_raw`] lies in its client.
pub const WRITE_BUFFER: u64 = ARENA + SCRATCH as u64;
