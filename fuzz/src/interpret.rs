//! Plays a [`Program`]: turns each step into calls of the engine, gives the clients what they
//! read, and checks after every step that all that must hold does.

mod aside;
pub(crate) mod compose;
mod listen;
mod role;
pub mod write_buffer;

use crate::grammar::*;
use crate::ledger::{Ledger, Receiver, Sent, SentObject};
use crate::stage::{Actress, Answer, Gate, Idle, Paper, Slot, View, panic_at_errors, trace};
use compose::node_flags;
use fakebinder::Errno;
use fakebinder::alloc::Alloc;
use fakebinder::binder::{Binder, Call, Context, Stats};
use fakebinder::client_mem::ClientMemory;
use fakebinder::memory::{Memory, MemoryConfig, PageInstall};
use fakebinder::mm_shim::HeapMm;
use fakebinder::page::PAGE_SIZE;
use fakebinder::probe::{Injector, Probes, Rule, Verb};
use fakebinder::protocol::command::Command as Bc;
use fakebinder::protocol::object::{BufferObject, FdArrayObject, FlatObject, Object as BcObject};
use fakebinder::protocol::record::IntoBytes;
use fakebinder::protocol::record::{HandleCookie, PtrCookie, Put, TransactionData, WriteRead};
use fakebinder::protocol::returns::Return;
use fakebinder::quota::User;
use fakebinder::sim::{ARENA, Arena, MAPPING, ManualTimers};
use fakebinder::uapi::*;
use role::{COOKIE, Done, Kind, Role, Running};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A reclaim of so many pages and more is that of somebody who also looks at the logs.
const READS_LOGS: u8 = 192;

/// Threads of a process.
const THREADS: usize = 3;

/// A thread more, which only reads what is left at the end.
const ATTENDANT: usize = THREADS;

/// Bytes of each thread's read buffer, at the beginning of an arena.
const READ_BUFFER: usize = 2048;

/// Where in an arena the rest begins: write buffers and messages, for one call at a time.
const SCRATCH: usize = FIRST_READ_BUFFER + (THREADS + 1) * READ_BUFFER;

/// Where the first of them lies: so that every other one has a page's end in its middle.
const FIRST_READ_BUFFER: usize = READ_BUFFER / 2;

/// Where a thread's read buffer lies.
fn read_buffer(thread: usize) -> u64 {
    ARENA + (FIRST_READ_BUFFER + thread * READ_BUFFER) as u64
}

/// Opens of devices in one program.
const MAX_OPENS: usize = 12;

const FIRST_PID: i32 = 100;

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
    probes: Probes,
    timers: Arc<ManualTimers>,
    gate: Arc<Gate>,
    papers: Arc<()>,
    roles: Vec<Role>,
    ledger: Ledger,
    /// Zapping may fail in this program.
    zap_fails: bool,
}

/// Commands that confirm the first few notices of each kind, and free the first few buffers. `strong`: of each
/// notice about a node, whether it was BR_ACQUIRE.
pub(crate) fn confirmations(
    strong: impl Iterator<Item = bool>,
    deaths: usize,
    freezes: usize,
    buffers: usize,
) -> Vec<Command> {
    const MOST: usize = 6;
    let every = |count: usize| (0..count.min(MOST) as u8).map(Pick);
    let mut commands = Vec::new();
    for (index, strong) in strong.enumerate().take(MOST) {
        let notice = Pick(index as u8);
        commands.push(match strong {
            true => Command::AcquireDone { notice },
            false => Command::IncrefsDone { notice },
        });
    }
    commands.extend(every(deaths).map(|notice| Command::DeadBinderDone { notice }));
    commands.extend(every(freezes).map(|notice| Command::FreezeDone { notice }));
    commands.extend(every(buffers).map(|buffer| Command::FreeBuffer { buffer }));
    commands
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
        });
        let probes = Probes { inject, ..Probes::default() };
        let timers = Arc::new(ManualTimers::default());
        let binder = Binder::new(timers.clone());
        let contexts = [binder.context("binder"), binder.context("hwbinder")];
        let mut stage = Stage {
            binder,
            contexts,
            memory,
            probes,
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
        let (user, probes) = (User::unlimited(), self.probes.clone());
        let alloc = Alloc::of_user(mm.clone(), &self.memory, user, probes);
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
                    let poller = stays.then(|| Arc::new(Idle) as Arc<_>);
                    let (ready, _) = role.process.poll(role.tid(thread), poller);
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
                if *pages >= READS_LOGS {
                    self.read_logs();
                }
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
        let strong = role.notices.iter().map(|(_, strong)| *strong);
        let mut commands =
            confirmations(strong, role.deaths.len(), role.freezes.len(), role.buffers.len());
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
                (BINDER_SET_MAX_THREADS, words(&[threads.number()]))
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
            uid: role.euid(),
            nonblock,
            cmd,
            arg: arg.into(),
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
            if let Command::Flood { to, count, message } = command {
                for _ in 0..count % 64 {
                    let transaction = Command::Transaction { to: *to, message: message.clone() };
                    let (command, _) = self.command(role, thread, &transaction, raced);
                    command.into_iter().for_each(|command| command.encode(&mut bytes));
                    done.push((bytes.len() as u64, Done::Nothing));
                }
                continue;
            }
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
        call.read_buffer = read_buffer(thread);
        let mut nonblock = false;
        match read {
            Read::Nothing => {}
            Read::Waits => call.read_size = 256,
            Read::DoesNotWait => (call.read_size, nonblock) = (256, true),
            Read::AcrossPages { before } => {
                call.read_size = 256;
                call.read_buffer += (READ_BUFFER / 2) as u64 - 4 * u64::from(before % 64);
            }
            Read::Short { size } => (call.read_size, nonblock) = ((*size).into(), true),
            Read::Resumed { consumed } => {
                (call.read_size, call.read_consumed) = (512, (*consumed).into());
            }
            Read::Unmapped => (call.read_size, call.read_buffer) = (256, 0x10),
        }
        let kind = Kind::WriteRead { done };
        self.begin(role, thread, BINDER_WRITE_READ, call.as_bytes().to_vec(), view, nonblock, kind);
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

    /// Somebody reads `binder_logs`: every process is in its state, and nothing changes.
    fn read_logs(&self) {
        let state = self.binder.log_state();
        let lines: HashSet<&str> = state.lines().collect();
        for pid in self.binder.pids() {
            assert!(lines.contains(&*format!("proc {pid}")), "{pid} is not in\n{state}");
            let own = self.binder.log_process(pid).expect("it has a file open");
            assert!(
                own.lines()
                    .skip(1)
                    .all(|line| line.starts_with("binder proc") || lines.contains(line)),
                "{own}"
            );
        }
        let (busy, stats) = (self.binder.log_transactions(), self.binder.log_stats());
        assert!(
            busy.len() <= state.len() + 16 && stats.starts_with("binder stats:\n"),
            "{busy}{stats}"
        );
        for failed in [false, true] {
            let lines = self.binder.log_of_transactions(failed).lines().count();
            assert!(lines <= 32, "{lines} transactions are logged");
        }
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
            let pages = role.alloc.pages();
            let installed = pages.active + pages.lru;
            let resident = role.mm.resident();
            assert!(
                resident == installed || (self.zap_fails && resident > installed),
                "{}: {resident} pages are resident, {installed} installed",
                role.pid
            );
            used += resident;
            lru += pages.lru;
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
