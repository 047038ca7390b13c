//! The surroundings of a program: its processes on one device, and what they see, in words that
//! mean the same on every device.

mod received;
mod words;
mod write;

use super::super::message::Batch;
use super::super::scene::{Process, Reads, Scene, Thread, in_words};
use super::program::{Act, Buffer, Member, Program, Step, Write};
use fakebinder_client::Return;
use fakebinder_client::{Errno, uapi};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use words::{file_name, kind, words};

/// The files that each process has for sending: both ends of so many pipes.
const PIPES: usize = 2;

/// One process, and what it has seen so far that later steps may refer to.
pub(super) struct Client {
    process: Process,
    pub(super) alive: bool,
    pub(super) unmapped: bool,
    pub(super) frozen: bool,
    /// The process's own files, by number.
    files: Vec<i32>,
    /// The buffer's address of every received transaction and reply.
    buffers: Vec<u64>,
    /// The buffers that are not freed yet, as indices of `buffers`.
    pub(super) held: Vec<usize>,
    pub(super) handles: BTreeSet<u32>,
    /// Nodes that want BC_INCREFS_DONE (false) or BC_ACQUIRE_DONE (true).
    pub(super) undone: VecDeque<(u64, u64, bool)>,
    /// Cookies of the deaths and freezes that were told.
    pub(super) dead: VecDeque<u64>,
    pub(super) freezes: VecDeque<u64>,
    /// For each thread, how many calls it has not answered, and how many calls of its own are open.
    pub(super) serving: Vec<usize>,
    pub(super) calling: Vec<usize>,
    mapping: u64,
}

pub(super) struct Setup {
    /// A process that sees when the driver has released another one; `last` is released after that.
    witness: Process,
    last: Process,
    scene: Scene,
    cast: Vec<Member>,
    /// Whether the first process is the context manager from the beginning.
    has_manager: bool,
    /// Which process has become the context manager last.
    manager: Option<usize>,
    pub(super) clients: Vec<Client>,
    /// For each of the kernel's names of a file, the name in the transcript.
    names: BTreeMap<String, String>,
    /// The (command, outcome and circumstances) pairs that were reached.
    pub(super) reached: BTreeSet<String>,
    step: usize,
}

impl Client {
    /// A process with its pipes, which has not opened the device.
    fn new(
        scene: &Scene,
        member: &Member,
        index: usize,
        names: &mut BTreeMap<String, String>,
    ) -> Client {
        let process = scene.bare_with(member.threads, 0);
        let mut files = Vec::new();
        for pipe in 0..PIPES {
            for fd in super::super::descriptor::pipe(&process) {
                if let Some(name) = file_name(process.pid(), fd) {
                    names.insert(name, format!("p{index}'s pipe {pipe}"));
                }
                files.push(fd);
            }
        }
        Client::around(process, files, member.mapping)
    }

    fn around(process: Process, files: Vec<i32>, mapping: u64) -> Client {
        let threads = process.threads.len();
        Client {
            process,
            alive: true,
            unmapped: false,
            frozen: false,
            files,
            buffers: Vec::new(),
            held: Vec::new(),
            handles: BTreeSet::new(),
            undone: VecDeque::new(),
            dead: VecDeque::new(),
            freezes: VecDeque::new(),
            serving: vec![0; threads],
            calling: vec![0; threads],
            mapping,
        }
    }

    /// Opens and maps the device, and becomes the context manager if it is to.
    fn enter(&self, is_manager: bool, names: &mut BTreeMap<String, String>) {
        let process = &self.process;
        process.open();
        if self.mapping > 0 {
            process.map(self.mapping);
        }
        if let Some(name) = file_name(process.pid(), process.fd()) {
            names.entry(name).or_insert_with(|| "the device".to_owned());
        }
        if is_manager {
            process.become_manager_with(uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS);
        }
    }

    /// Gives back everything that a program has left the process with, except its pipes.
    fn leave(&self) {
        if !self.unmapped && self.mapping > 0 {
            self.process.unmap();
        }
        self.process.close();
        let first = self.files.iter().max().map_or(3, |last| last + 1) as u64;
        let all = u64::from(u32::MAX);
        self.process.syscall(libc::SYS_close_range, &[first, all, 0]).expect("close_range");
        for thread in &self.process.threads {
            thread.clear();
        }
    }
}

impl Setup {
    /// All processes of a program have opened and mapped the device.
    pub(super) fn new(scene: &Scene, program: &Program) -> Setup {
        let mut names = BTreeMap::new();
        let cast = program.cast();
        let clients = cast.iter().enumerate();
        let clients = clients.map(|(index, member)| Client::new(scene, member, index, &mut names));
        let clients = clients.collect();
        let (witness, last) = (scene.bare(), scene.bare());
        witness.open();
        let mut setup = Setup {
            scene: scene.clone(),
            cast,
            has_manager: program.processes.is_empty(),
            manager: None,
            witness,
            last,
            clients,
            names,
            reached: BTreeSet::new(),
            step: 0,
        };
        setup.enter();
        setup
    }

    fn enter(&mut self) {
        self.manager = self.has_manager.then_some(0);
        for (index, client) in self.clients.iter().enumerate() {
            client.enter(self.has_manager && index == 0, &mut self.names);
        }
    }

    /// The setup anew: to the driver the processes are new ones, with new open files. To make
    /// processes costs far more than all the steps of a program.
    pub(super) fn again(mut self) -> Setup {
        for client in self.clients.iter().filter(|client| client.alive) {
            client.leave();
        }
        for client in self.clients.iter().filter(|client| client.alive) {
            self.witness.until("a release to begin", || self.is_gone(client.process.child.pid()));
        }
        self.names.retain(|_, name| name != "the device");
        self.reached.clear();
        self.step = 0;
        for (index, member) in self.cast.iter().enumerate() {
            let client = self.clients.remove(0);
            self.clients.push(if client.alive {
                Client::around(client.process, client.files, member.mapping)
            } else {
                Client::new(&self.scene, member, index, &mut self.names)
            });
        }
        self.enter();
        self
    }

    /// Whether the processes are those of a program.
    pub(super) fn is_for(&self, program: &Program) -> bool {
        self.cast == program.cast() && self.has_manager == program.processes.is_empty()
    }

    /// Whether the driver knows no open file of this process.
    fn is_gone(&self, pid: Pid) -> bool {
        let mut words = [pid.as_raw() as u32, 0, 0];
        self.witness.ioctl_words(uapi::BINDER_GET_FROZEN_INFO, &mut words) == Err(Errno::EINVAL)
    }

    /// Kills a process, and waits until its release is done: see [`Scene::bury`].
    fn bury(&self, index: usize) {
        let dead = &self.clients[index].process;
        dead.kill();
        self.witness.until("a release to begin", || self.is_gone(dead.child.pid()));
        self.last.open();
        self.last.close();
        self.witness.until("a release to end", || self.is_gone(self.last.child.pid()));
    }

    /// Performs a step, and returns its outcome.
    pub(super) fn perform(&mut self, step: &Step) -> String {
        self.step += 1;
        let index = step.process % self.clients.len();
        let thread = step.thread % self.cast[index].threads;
        if !self.clients[index].alive {
            return "is dead".to_owned();
        }
        let handle = self.clients[index].process.threads[thread].clone();
        let text = match &step.act {
            Act::WriteRead { write, read } => return self.write_read(index, thread, write, *read),
            Act::Poll => (if handle.polls() { "readable" } else { "not readable" }).to_owned(),
            Act::MaxThreads(count) => {
                words(handle.ioctl_words(uapi::BINDER_SET_MAX_THREADS, &mut [*count]), &[])
            }
            Act::ThreadExit => {
                self.clients[index].serving[thread] = 0;
                self.clients[index].calling[thread] = 0;
                words(handle.ioctl_words(uapi::BINDER_THREAD_EXIT, &mut [0]), &[])
            }
            Act::ExtendedError => {
                let mut got = [0; 3];
                let result = handle.ioctl_words(uapi::BINDER_GET_EXTENDED_ERROR, &mut got);
                // The id counts all transactions of the system, so it is left out.
                words(result, &got[1..])
            }
            Act::NodeDebugInfo(after) => {
                let mut got = [*after as u32, (*after >> 32) as u32, 0, 0, 0, 0];
                let result = handle.ioctl_words(uapi::BINDER_GET_NODE_DEBUG_INFO, &mut got);
                words(result, &got)
            }
            Act::NodeInfo(number) => {
                let mut got = [*number, 0, 0, 0, 0, 0];
                let result = handle.ioctl_words(uapi::BINDER_GET_NODE_INFO_FOR_REF, &mut got);
                words(result, &got)
            }
            Act::SpamDetection(enable) => words(
                handle.ioctl_words(
                    uapi::BINDER_ENABLE_ONEWAY_SPAM_DETECTION,
                    &mut [u32::from(*enable)],
                ),
                &[],
            ),
            Act::Freeze { process, enable } => {
                let target = process % self.clients.len();
                let pid = self.clients[target].process.pid() as u32;
                let result =
                    handle.ioctl_words(uapi::BINDER_FREEZE, &mut [pid, u32::from(*enable), 0]);
                if result.is_ok() {
                    self.clients[target].frozen = *enable;
                }
                words(result, &[])
            }
            Act::FrozenInfo(process) => {
                let pid = self.clients[process % self.clients.len()].process.pid() as u32;
                let mut got = [pid, 0, 0];
                let result = handle.ioctl_words(uapi::BINDER_GET_FROZEN_INFO, &mut got);
                words(result, &got[1..])
            }
            Act::SetContextManager => self.set_context_manager(index, || {
                handle.ioctl_words(uapi::BINDER_SET_CONTEXT_MGR, &mut [0])
            }),
            Act::SetContextManagerExt { ptr, cookie, flags } => self
                .set_context_manager(index, || {
                    handle.set_context_manager_ext(*ptr, *cookie, *flags)
                }),
            Act::Unmap => {
                if std::mem::replace(&mut self.clients[index].unmapped, true) {
                    "is unmapped".to_owned()
                } else {
                    handle.unmap();
                    "done".to_owned()
                }
            }
            Act::Kill => {
                self.clients[index].alive = false;
                self.bury(index);
                "done".to_owned()
            }
        };
        let name = format!("{:?}", step.act);
        let name = name.split(['(', ' ']).next().unwrap_or("");
        let outcome: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        self.reach(index, thread, name, &outcome);
        text
    }

    /// The manager of the program before may not be gone yet: this one's is waited for.
    fn set_context_manager(
        &mut self,
        index: usize,
        set: impl Fn() -> Result<i64, Errno>,
    ) -> String {
        let has_one = self.manager.is_some_and(|manager| self.clients[manager].alive);
        let mut result = set();
        if !has_one && result == Err(Errno::EBUSY) {
            self.witness.until("the last context manager to go", || {
                result = set();
                result != Err(Errno::EBUSY)
            });
        }
        if result.is_ok() {
            self.manager = Some(index);
        }
        words(result, &[])
    }

    fn reach(&mut self, index: usize, thread: usize, what: &str, outcome: &str) {
        let client = &self.clients[index];
        self.reached.insert(format!(
            "{what} -> {outcome}, serving {}, calling {}, holding {}, {}{}",
            client.serving[thread].min(2),
            client.calling[thread].min(1),
            client.held.len().min(2),
            if client.frozen { "frozen, " } else { "" },
            if index == 0 { "manager" } else { "client" },
        ));
    }

    fn write_read(&mut self, index: usize, thread: usize, write: &[Write], read: usize) -> String {
        let handle = self.clients[index].process.threads[thread].clone();
        let batch = Batch(write.iter().map(|command| self.command(index, command)).collect());
        let sizes: Vec<_> =
            batch.0.iter().map(|one| handle.lay_out(&Batch(vec![one.clone()])).1).collect();
        let (io, reads) = handle.write_read(batch, read);
        let mut text = match io.result {
            Ok(()) => "ok".to_owned(),
            Err(errno) => format!("{errno:?}"),
        };
        let _ = write!(text, ", written {}, filled {}", io.written, io.filled);
        let mut left = io.written;
        for (command, size) in write.iter().zip(sizes) {
            let done = left >= size;
            left = left.saturating_sub(size);
            if done {
                self.done(index, thread, command);
            }
            let outcome = match (done, io.result) {
                (true, _) => "done",
                (false, Ok(())) => "not done",
                (false, Err(Errno::EINVAL)) => "EINVAL",
                (false, Err(Errno::EFAULT)) => "EFAULT",
                (false, Err(_)) => "other",
            };
            self.reach(index, thread, &kind(command), outcome);
            if !done {
                break;
            }
        }
        self.read(index, thread, &handle, &reads, &mut text);
        text
    }

    /// Notes what follows from a command that was taken.
    fn done(&mut self, index: usize, thread: usize, command: &Write) {
        let client = &mut self.clients[index];
        match command {
            Write::Send(send) if send.reply => {
                client.serving[thread] = client.serving[thread].saturating_sub(1);
            }
            Write::Send(send) if send.flags & uapi::TF_ONE_WAY == 0 => client.calling[thread] += 1,
            Write::Free(Buffer::Received(buffer)) => client.held.retain(|held| held != buffer),
            Write::IncrefsDone(ptr, _) => {
                client.undone.retain(|one| (one.0, one.2) != (*ptr, false))
            }
            Write::AcquireDone(ptr, _) => {
                client.undone.retain(|one| (one.0, one.2) != (*ptr, true))
            }
            Write::DeadBinderDone(cookie) => client.dead.retain(|one| one != cookie),
            Write::FreezeDone(cookie) => client.freezes.retain(|one| one != cookie),
            _ => {}
        }
    }

    /// Notes what was read, and adds it to the text.
    fn read(
        &mut self,
        index: usize,
        thread: usize,
        handle: &Thread,
        reads: &Reads,
        text: &mut String,
    ) {
        let mut received = reads.received.iter();
        for what in &reads.returns {
            text.push_str("; ");
            let client = &mut self.clients[index];
            match what {
                Return::Transaction(_) | Return::TransactionSecCtx(_) | Return::Reply(_) => {
                    let Some(got) = received.next() else { continue };
                    client.held.push(client.buffers.len());
                    client.buffers.push(got.transaction.buffer);
                    if matches!(what, Return::Reply(_)) {
                        client.calling[thread] = client.calling[thread].saturating_sub(1);
                    } else if !got.transaction.is_oneway() {
                        client.serving[thread] += 1;
                    }
                    text.push_str(&in_words(what));
                    self.transaction(index, handle, got, text);
                    self.reach(index, thread, what.name(), "read");
                    continue;
                }
                Return::DeadReply | Return::FailedReply | Return::FrozenReply => {
                    client.calling[thread] = client.calling[thread].saturating_sub(1);
                }
                Return::Increfs { ptr, cookie } => client.undone.push_back((*ptr, *cookie, false)),
                Return::Acquire { ptr, cookie } => client.undone.push_back((*ptr, *cookie, true)),
                Return::DeadBinder(cookie) => client.dead.push_back(*cookie),
                Return::FrozenBinder { cookie, .. } => client.freezes.push_back(*cookie),
                _ => {}
            }
            text.push_str(&in_words(what));
            self.reach(index, thread, what.name(), "read");
        }
    }
}
