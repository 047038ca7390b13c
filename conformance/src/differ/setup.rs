//! The surroundings of a program: its processes on one device, and what they see, in words that
//! mean the same on every device.

mod words;
mod write;

use super::super::message::Batch;
use super::super::scene::{Process, Reads, Received, Scene, Thread, in_words};
use super::program::{Act, Buffer, MAPPING, PROCESSES, Step, THREADS, Write};
use fakebinder_client::Object;
use fakebinder_client::Return;
use fakebinder_client::{Errno, uapi};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use words::{contents, file_name, kind, words};

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
    pub(super) serving: [usize; THREADS],
    pub(super) calling: [usize; THREADS],
}

pub(super) struct Setup {
    /// A process that sees when the driver has released another one; `last` is released after that.
    witness: Process,
    last: Process,
    scene: Scene,
    pub(super) clients: Vec<Client>,
    /// For each of the kernel's names of a file, the name in the transcript.
    names: BTreeMap<String, String>,
    /// The (command, outcome and circumstances) pairs that were reached.
    pub(super) reached: BTreeSet<String>,
    step: usize,
}

impl Client {
    /// A process with its pipes, which has not opened the device.
    fn new(scene: &Scene, index: usize, names: &mut BTreeMap<String, String>) -> Client {
        let process = scene.bare_with(THREADS, 0);
        let mut files = Vec::new();
        for pipe in 0..PIPES {
            for fd in super::super::descriptor::pipe(&process) {
                if let Some(name) = file_name(process.pid(), fd) {
                    names.insert(name, format!("p{index}'s pipe {pipe}"));
                }
                files.push(fd);
            }
        }
        Client::around(process, files)
    }

    fn around(process: Process, files: Vec<i32>) -> Client {
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
            serving: [0; THREADS],
            calling: [0; THREADS],
        }
    }

    /// Opens and maps the device; the first process becomes the context manager.
    fn enter(&self, index: usize, names: &mut BTreeMap<String, String>) {
        let process = &self.process;
        process.open();
        process.map(MAPPING);
        if let Some(name) = file_name(process.pid(), process.fd()) {
            names.entry(name).or_insert_with(|| "the device".to_owned());
        }
        if index == 0 {
            process.become_manager_with(uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS);
        }
    }

    /// Gives back everything that a program has left the process with, except its pipes.
    fn leave(&self) {
        if !self.unmapped {
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
    /// All processes have opened and mapped the device; the first is the context manager.
    pub(super) fn new(scene: &Scene) -> Setup {
        let mut names = BTreeMap::new();
        let clients = (0..PROCESSES).map(|index| Client::new(scene, index, &mut names)).collect();
        let (witness, last) = (scene.bare(), scene.bare());
        witness.open();
        let mut setup = Setup {
            scene: scene.clone(),
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
        for (index, client) in self.clients.iter().enumerate() {
            client.enter(index, &mut self.names);
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
        for index in 0..PROCESSES {
            let client = self.clients.remove(0);
            self.clients.push(if client.alive {
                Client::around(client.process, client.files)
            } else {
                Client::new(&self.scene, index, &mut self.names)
            });
        }
        self.enter();
        self
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
        let (index, thread) = (step.process % PROCESSES, step.thread % THREADS);
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
                let target = process % PROCESSES;
                let pid = self.clients[target].process.pid() as u32;
                let result =
                    handle.ioctl_words(uapi::BINDER_FREEZE, &mut [pid, u32::from(*enable), 0]);
                if result.is_ok() {
                    self.clients[target].frozen = *enable;
                }
                words(result, &[])
            }
            Act::FrozenInfo(process) => {
                let pid = self.clients[process % PROCESSES].process.pid() as u32;
                let mut got = [pid, 0, 0];
                let result = handle.ioctl_words(uapi::BINDER_GET_FROZEN_INFO, &mut got);
                words(result, &got[1..])
            }
            Act::SetContextManager => {
                words(handle.ioctl_words(uapi::BINDER_SET_CONTEXT_MGR, &mut [0]), &[])
            }
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

    fn transaction(&mut self, index: usize, handle: &Thread, got: &Received, text: &mut String) {
        let t = &got.transaction;
        let sender = self.clients.iter().position(|client| client.process.pid() == t.sender_pid);
        let sender = match (sender, t.sender_pid) {
            (Some(index), _) => format!("p{index}"),
            (None, 0) => "nobody".to_owned(),
            (None, pid) => format!("pid {pid}"),
        };
        let _ = write!(
            text,
            "(node {},{} code {} flags {:#x} from {sender} uid {} at {} size {} offsets {:?} at +{}",
            t.target,
            t.cookie,
            t.code,
            t.flags,
            t.sender_euid,
            got.at,
            t.data_size,
            got.offsets,
            t.offsets.wrapping_sub(t.buffer),
        );
        if !got.readable {
            text.push_str(", unreadable)");
            return;
        }
        let start = handle.start();
        let mut plain = got.data.clone();
        let mut buffers = BTreeMap::new();
        for (number, &offset) in got.offsets.iter().enumerate() {
            let object = got.data.get(offset as usize..).and_then(Object::decode);
            let Some(object) = object else {
                text.push_str(", no object");
                continue;
            };
            let end = (offset as usize + object.size()).min(plain.len());
            plain[offset as usize..end].fill(0);
            match object {
                Object::Handle { handle, .. } | Object::WeakHandle { handle, .. } => {
                    self.clients[index].handles.insert(handle);
                    let _ = write!(text, ", {object:?}");
                }
                Object::Fd { fd, cookie } => {
                    let _ = write!(text, ", Fd {} {cookie}", self.file(handle, fd as i32));
                }
                Object::Buffer { buffer, length, flags, parent, parent_offset } => {
                    let at = buffer.wrapping_sub(start);
                    let _ =
                        write!(text, ", Buffer at {at} {length} {flags} {parent}+{parent_offset}");
                    match handle.peek(buffer, (length as usize).min(1 << 20)) {
                        Ok(bytes) => {
                            buffers.insert(number as u64, bytes);
                        }
                        Err(errno) => {
                            let _ = write!(text, " {errno:?}");
                        }
                    }
                }
                Object::FdArray { num_fds, parent, parent_offset } => {
                    let _ = write!(text, ", FdArray {num_fds} {parent}+{parent_offset} =");
                    for number in 0..num_fds.min(64) as usize {
                        let at = parent_offset as usize + number * 4;
                        if let Some(four) = buffers
                            .get_mut(&parent)
                            .and_then(|bytes: &mut Vec<u8>| bytes.get_mut(at..at + 4))
                        {
                            let fd = i32::from_ne_bytes([four[0], four[1], four[2], four[3]]);
                            four.fill(0);
                            let _ = write!(text, " {}", self.file(handle, fd));
                        }
                    }
                }
                other => {
                    let _ = write!(text, ", {other:?}");
                }
            }
        }
        for (number, bytes) in buffers {
            let _ = write!(text, ", buffer {number} = {}", contents(&bytes, start));
        }
        let _ = write!(text, ", data {})", contents(&plain, start));
    }

    /// The transcript's name for the file behind a descriptor of a process.
    fn file(&self, thread: &Thread, fd: i32) -> String {
        match file_name(thread.pid(), fd) {
            None => "none".to_owned(),
            Some(name) => self.names.get(&name).cloned().unwrap_or(name),
        }
    }
}
