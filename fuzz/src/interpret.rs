//! Plays a [`Program`]: turns each step into calls of the engine, gives the clients what they
//! read, and checks after every step that all that must hold does.

mod aside;
mod check;
pub(crate) mod compose;
mod ioctl;
mod listen;
mod role;
mod setup;
pub mod write_buffer;

use crate::barrier::{Barrier, View};
use crate::grammar::*;
use crate::ledger::{CountedFile, Ledger, Receiver, Sent, SentObject, file_number};
use crate::trace::{panic_at_errors, trace};
use compose::node_flags;
use fakebinder::Errno;
use fakebinder::alloc::Alloc;
use fakebinder::binder::{Binder, Call, Context, Stats};
use fakebinder::client_mem::ClientMemory;
use fakebinder::memory::{Memory, MemoryConfig, PageInstall};
use fakebinder::page::PAGE_SIZE;
use fakebinder::probe::{Injector, Probes, Rule, Verb};
use fakebinder::protocol::command::Command as Bc;
use fakebinder::protocol::object::{BufferObject, FdArrayObject, FlatObject, Object as BcObject};
use fakebinder::protocol::record::{
    HandleCookie, IntoBytes, PtrCookie, Put, TransactionData, WriteRead,
};
use fakebinder::protocol::returns::Return;
use fakebinder::quota::User;
use fakebinder::uapi::*;
use fakebinder_sim::HeapMm;
use fakebinder_sim::{ARENA, Arena, MAPPING, ManualTimers, SimClient, SimReply, Slot};
use role::{COOKIE, Done, Idle, Kind, Role, Running};
use std::collections::HashSet;
use std::sync::Arc;

/// A reclaim of so many pages and more is that of somebody who also looks at the logs.
const READS_LOGS: u8 = 192;

/// Threads of a process.
const THREADS: usize = 3;

/// A thread more, which only reads what is left at the end.
const READER: usize = THREADS;

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

/// The security context of a process; some have none.
fn security_context(pid: i32) -> Option<Vec<u8>> {
    (pid % 4 != 3).then(|| format!("u:r:{pid}\0").into_bytes())
}

/// How a program went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Steps that were carried out.
    pub steps: usize,
    /// Transactions and replies that were sent.
    pub messages_sent: usize,
    /// Those of them that a receiver has read.
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
    barrier: Arc<Barrier>,
    files: Arc<()>,
    roles: Vec<Role>,
    ledger: Ledger,
    /// Zapping may fail in this program.
    zap_fails: bool,
}

/// Commands that confirm the first few notices of each kind, and free the first few buffers.
/// `strong`: of each notice about a node, whether it was BR_ACQUIRE.
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
        running.slot.set_interrupted(true);
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
                    let client = &self.roles[role].client;
                    match change {
                        FilesChange::Limit { room } => {
                            client.limit_files(Some(usize::from(*room % 4)));
                        }
                        FilesChange::Refuse => client.refuse_files(true),
                        FilesChange::Unlimited => {
                            client.refuse_files(false);
                            client.limit_files(None);
                        }
                    }
                }
            }
            Step::Nice { by, nice } => {
                if let Some(role) = self.role(by.process()) {
                    let role = &self.roles[role];
                    use fakebinder::binder::Task;
                    role.client.set_nice(role.tid(by.thread() % THREADS), i32::from(*nice));
                }
            }
        }
        self.barrier.finish();
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
}
