//! Where a program runs: its processes on one device, and what they could see, in words that
//! mean the same on every device.

use super::super::message::{self, Batch, Bc, Msg};
use super::super::scene::{Process, Reads, Received, Scene, Thread, in_words};
use super::program::{Act, Buffer, MAPPING, PROCESSES, Part, Send, Step, THREADS, Twist, Write};
use fakebinder_client::Object;
use fakebinder_client::Return;
use fakebinder_client::{Errno, uapi};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

/// The files that each process has for sending: both ends of so many pipes.
const PIPES: usize = 2;

/// One process, and what it has seen: what the next steps may refer to.
pub(super) struct Actor {
    process: Process,
    pub(super) alive: bool,
    pub(super) unmapped: bool,
    pub(super) frozen: bool,
    /// Its own files, by number.
    files: Vec<i32>,
    /// Every transaction and reply received: address of its buffer.
    buffers: Vec<u64>,
    /// Those not freed yet, as indices of the former.
    pub(super) held: Vec<usize>,
    pub(super) handles: BTreeSet<u32>,
    /// Nodes that want BC_INCREFS_DONE or BC_ACQUIRE_DONE (true).
    pub(super) undone: VecDeque<(u64, u64, bool)>,
    /// Cookies of deaths and freezes that were told.
    pub(super) dead: VecDeque<u64>,
    pub(super) frosts: VecDeque<u64>,
    /// Calls that each thread has not answered, and calls of its own.
    pub(super) serving: [usize; THREADS],
    pub(super) calling: [usize; THREADS],
}

pub(super) struct Stage {
    /// Sees when the driver has released a process; `broom` is the one to be released after it.
    witness: Process,
    broom: Process,
    scene: Scene,
    pub(super) actors: Vec<Actor>,
    /// Which file a kernel's name stands for.
    names: BTreeMap<String, String>,
    /// (command, outcome and circumstances) pairs.
    pub(super) reached: BTreeSet<String>,
    step: usize,
}

impl Actor {
    /// A process with its pipes, which has not opened the device.
    fn new(scene: &Scene, index: usize, names: &mut BTreeMap<String, String>) -> Actor {
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
        Actor::around(process, files)
    }

    fn around(process: Process, files: Vec<i32>) -> Actor {
        Actor {
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
            frosts: VecDeque::new(),
            serving: [0; THREADS],
            calling: [0; THREADS],
        }
    }

    /// Opens and maps the device; the first becomes the context manager.
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

    /// Gives back everything that a program has left it with, but not its pipes.
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

impl Stage {
    /// All processes have opened and mapped the device; the first is the context manager.
    pub(super) fn new(scene: &Scene) -> Stage {
        let mut names = BTreeMap::new();
        let actors = (0..PROCESSES).map(|index| Actor::new(scene, index, &mut names)).collect();
        let (witness, broom) = (scene.bare(), scene.bare());
        witness.open();
        let mut stage = Stage {
            scene: scene.clone(),
            witness,
            broom,
            actors,
            names,
            reached: BTreeSet::new(),
            step: 0,
        };
        stage.enter();
        stage
    }

    fn enter(&mut self) {
        for (index, actor) in self.actors.iter().enumerate() {
            actor.enter(index, &mut self.names);
        }
    }

    /// As a new stage, on a new device file for everyone: to the driver, new processes. To make
    /// processes costs far more than all the steps of a program.
    pub(super) fn again(mut self) -> Stage {
        for actor in self.actors.iter().filter(|actor| actor.alive) {
            actor.leave();
        }
        for actor in self.actors.iter().filter(|actor| actor.alive) {
            self.witness.until("a release to begin", || self.is_gone(actor.process.child.pid()));
        }
        self.names.retain(|_, name| name != "the device");
        self.reached.clear();
        self.step = 0;
        for index in 0..PROCESSES {
            let actor = self.actors.remove(0);
            self.actors.push(if actor.alive {
                Actor::around(actor.process, actor.files)
            } else {
                Actor::new(&self.scene, index, &mut self.names)
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
        let dead = &self.actors[index].process;
        dead.kill();
        self.witness.until("a release to begin", || self.is_gone(dead.child.pid()));
        self.broom.open();
        self.broom.close();
        self.witness.until("a release to end", || self.is_gone(self.broom.child.pid()));
    }

    /// Performs a step, and says what came of it.
    pub(super) fn perform(&mut self, step: &Step) -> String {
        self.step += 1;
        let (index, thread) = (step.process % PROCESSES, step.thread % THREADS);
        if !self.actors[index].alive {
            return "is dead".to_owned();
        }
        let handle = self.actors[index].process.threads[thread].clone();
        let text = match &step.act {
            Act::WriteRead { write, read } => return self.write_read(index, thread, write, *read),
            Act::Poll => (if handle.polls() { "readable" } else { "not readable" }).to_owned(),
            Act::MaxThreads(count) => {
                words(handle.ioctl_words(uapi::BINDER_SET_MAX_THREADS, &mut [*count]), &[])
            }
            Act::ThreadExit => {
                self.actors[index].serving[thread] = 0;
                self.actors[index].calling[thread] = 0;
                words(handle.ioctl_words(uapi::BINDER_THREAD_EXIT, &mut [0]), &[])
            }
            Act::ExtendedError => {
                let mut got = [0; 3];
                let result = handle.ioctl_words(uapi::BINDER_GET_EXTENDED_ERROR, &mut got);
                // The id counts all transactions of the system.
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
                let pid = self.actors[target].process.pid() as u32;
                let result =
                    handle.ioctl_words(uapi::BINDER_FREEZE, &mut [pid, u32::from(*enable), 0]);
                if result.is_ok() {
                    self.actors[target].frozen = *enable;
                }
                words(result, &[])
            }
            Act::FrozenInfo(process) => {
                let pid = self.actors[process % PROCESSES].process.pid() as u32;
                let mut got = [pid, 0, 0];
                let result = handle.ioctl_words(uapi::BINDER_GET_FROZEN_INFO, &mut got);
                words(result, &got[1..])
            }
            Act::SetContextManager => {
                words(handle.ioctl_words(uapi::BINDER_SET_CONTEXT_MGR, &mut [0]), &[])
            }
            Act::Unmap => {
                if std::mem::replace(&mut self.actors[index].unmapped, true) {
                    "is unmapped".to_owned()
                } else {
                    handle.unmap();
                    "done".to_owned()
                }
            }
            Act::Kill => {
                self.actors[index].alive = false;
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
        let actor = &self.actors[index];
        self.reached.insert(format!(
            "{what} -> {outcome}, serving {}, calling {}, holding {}, {}{}",
            actor.serving[thread].min(2),
            actor.calling[thread].min(1),
            actor.held.len().min(2),
            if actor.frozen { "frozen, " } else { "" },
            if index == 0 { "manager" } else { "client" },
        ));
    }

    fn write_read(&mut self, index: usize, thread: usize, write: &[Write], read: usize) -> String {
        let handle = self.actors[index].process.threads[thread].clone();
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

    /// What follows from a command that was taken.
    fn done(&mut self, index: usize, thread: usize, command: &Write) {
        let actor = &mut self.actors[index];
        match command {
            Write::Send(send) if send.reply => {
                actor.serving[thread] = actor.serving[thread].saturating_sub(1);
            }
            Write::Send(send) if send.flags & uapi::TF_ONE_WAY == 0 => actor.calling[thread] += 1,
            Write::Free(Buffer::Received(buffer)) => actor.held.retain(|held| held != buffer),
            Write::IncrefsDone(ptr, _) => {
                actor.undone.retain(|one| (one.0, one.2) != (*ptr, false))
            }
            Write::AcquireDone(ptr, _) => actor.undone.retain(|one| (one.0, one.2) != (*ptr, true)),
            Write::DeadBinderDone(cookie) => actor.dead.retain(|one| one != cookie),
            Write::FreezeDone(cookie) => actor.frosts.retain(|one| one != cookie),
            _ => {}
        }
    }

    /// Takes note of what was read, and adds it to the text.
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
            let actor = &mut self.actors[index];
            match what {
                Return::Transaction(_) | Return::TransactionSecCtx(_) | Return::Reply(_) => {
                    let Some(got) = received.next() else { continue };
                    actor.held.push(actor.buffers.len());
                    actor.buffers.push(got.transaction.buffer);
                    if matches!(what, Return::Reply(_)) {
                        actor.calling[thread] = actor.calling[thread].saturating_sub(1);
                    } else if !got.transaction.is_oneway() {
                        actor.serving[thread] += 1;
                    }
                    text.push_str(&in_words(what));
                    self.transaction(index, handle, got, text);
                    self.reach(index, thread, what.name(), "read");
                    continue;
                }
                Return::DeadReply | Return::FailedReply | Return::FrozenReply => {
                    actor.calling[thread] = actor.calling[thread].saturating_sub(1);
                }
                Return::Increfs { ptr, cookie } => actor.undone.push_back((*ptr, *cookie, false)),
                Return::Acquire { ptr, cookie } => actor.undone.push_back((*ptr, *cookie, true)),
                Return::DeadBinder(cookie) => actor.dead.push_back(*cookie),
                Return::FrozenBinder { cookie, .. } => actor.frosts.push_back(*cookie),
                _ => {}
            }
            text.push_str(&in_words(what));
            self.reach(index, thread, what.name(), "read");
        }
    }

    fn transaction(&mut self, index: usize, handle: &Thread, got: &Received, text: &mut String) {
        let t = &got.transaction;
        let sender = self.actors.iter().position(|actor| actor.process.pid() == t.sender_pid);
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
                    self.actors[index].handles.insert(handle);
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

    /// Which file a descriptor of a process stands for.
    fn file(&self, thread: &Thread, fd: i32) -> String {
        match file_name(thread.pid(), fd) {
            None => "none".to_owned(),
            Some(name) => self.names.get(&name).cloned().unwrap_or(name),
        }
    }

    fn command(&self, index: usize, command: &Write) -> Bc {
        let actor = &self.actors[index];
        match command {
            Write::Send(send) => Bc::Send(self.message(actor, send)),
            Write::Free(Buffer::Received(number)) => {
                // Not received (any more): an address that is none.
                message::free(actor.buffers.get(*number).copied().unwrap_or(8))
            }
            Write::Free(Buffer::At(offset)) => {
                message::free(actor.process.start().wrapping_add_signed(*offset))
            }
            Write::Increfs(handle) => message::increfs(*handle),
            Write::Acquire(handle) => message::acquire(*handle),
            Write::Release(handle) => message::release(*handle),
            Write::Decrefs(handle) => message::decrefs(*handle),
            Write::IncrefsDone(ptr, cookie) => message::increfs_done(*ptr, *cookie),
            Write::AcquireDone(ptr, cookie) => message::acquire_done(*ptr, *cookie),
            Write::EnterLooper => message::enter_looper(),
            Write::RegisterLooper => message::register_looper(),
            Write::ExitLooper => message::exit_looper(),
            Write::RequestDeath(handle, cookie) => message::request_death(*handle, *cookie),
            Write::ClearDeath(handle, cookie) => message::clear_death(*handle, *cookie),
            Write::DeadBinderDone(cookie) => message::dead_binder_done(*cookie),
            Write::RequestFreeze(handle, cookie) => message::request_freeze(*handle, *cookie),
            Write::ClearFreeze(handle, cookie) => message::clear_freeze(*handle, *cookie),
            Write::FreezeDone(cookie) => message::freeze_done(*cookie),
            Write::AttemptAcquire => message::attempt_acquire(0, 1),
            Write::AcquireResult => message::acquire_result(0),
            Write::Words(words) => {
                Bc::Bytes(words.iter().flat_map(|word| word.to_ne_bytes()).collect())
            }
        }
    }

    fn message(&self, actor: &Actor, send: &Send) -> Msg {
        let mut message = if send.reply { message::reply() } else { message::call(send.handle) };
        message = message.code(send.code).flags(send.flags);
        let arrays = send.parts.iter().any(|part| matches!(part, Part::FdArray { .. }));
        let file = |number: usize| actor.files[number % actor.files.len()];
        for part in &send.parts {
            message = match *part {
                Part::Bytes(count) => {
                    let salt = self.step + count;
                    let bytes: Vec<u8> = (0..count).map(|i| (i * 31 + salt) as u8).collect();
                    message.data(&bytes)
                }
                Part::Binder { ptr, cookie, flags, weak: false } => {
                    message.object(Object::Binder { ptr, cookie, flags })
                }
                Part::Binder { ptr, cookie, flags, weak: true } => {
                    message.object(Object::WeakBinder { ptr, cookie, flags })
                }
                Part::Handle { handle, weak: false } => message.handle(handle),
                Part::Handle { handle, weak: true } => message.weak_handle(handle),
                Part::Fd(number) => message.fd(number.map_or(-1, file)),
                Part::Buffer { length, parent } => {
                    let bytes: Vec<u8> = if arrays {
                        (0..length).map(|i| file(i / 4).to_ne_bytes()[i % 4]).collect()
                    } else {
                        (0..length).map(|i| (i * 17 + self.step) as u8).collect()
                    };
                    match parent {
                        None => message.buffer(&bytes),
                        Some((parent, offset)) => message.child(&bytes, parent, offset),
                    }
                }
                Part::FdArray { count, parent, offset } => message.fd_array(count, parent, offset),
            };
        }
        match send.twist {
            None => {}
            Some(Twist::DataAt(address)) => {
                message.data_at = Some(address);
            }
            Some(Twist::DataSize(size)) => message.data_size = Some(size),
            Some(Twist::OffsetsAt(address)) => message.offsets_at = Some(address),
            Some(Twist::OffsetsSize(size)) => message.offsets_size = Some(size),
            Some(Twist::Offset(offset)) => message.offsets.push(offset),
            Some(Twist::Shift(by)) => {
                if let Some(first) = message.offsets.first_mut() {
                    *first = first.wrapping_add_signed(by);
                }
            }
            Some(Twist::Reverse) => message.offsets.reverse(),
            Some(Twist::BuffersSize(size)) => message.buffers_size = Some(size),
            Some(Twist::Flip(at)) => {
                let length = message.data.len();
                if length > 0 {
                    message.data[at % length] ^= 0xff;
                }
            }
            Some(Twist::Cut(count)) => {
                let size = (message.data.len() as u64).saturating_sub(count as u64);
                message.data_size = Some(size);
            }
        }
        message
    }
}

/// The variant's name, and for transactions what kind it is.
fn kind(command: &Write) -> String {
    match command {
        Write::Send(send) => {
            let parts: BTreeSet<_> = send
                .parts
                .iter()
                .map(|part| {
                    let name = format!("{part:?}");
                    name.split(['(', ' ']).next().unwrap_or("").to_owned()
                })
                .collect();
            format!(
                "{}{parts:?}{}",
                match (send.reply, send.flags & uapi::TF_ONE_WAY != 0) {
                    (true, _) => "reply",
                    (false, true) => "oneway",
                    (false, false) => "call",
                },
                if send.twist.is_some() { " twisted" } else { "" }
            )
        }
        other => {
            let name = format!("{other:?}");
            name.split(['(', ' ']).next().unwrap_or("").to_owned()
        }
    }
}

fn words(result: Result<i64, Errno>, words: &[u32]) -> String {
    match result {
        Ok(value) => format!("{value} {words:?}"),
        Err(errno) => format!("{errno:?}"),
    }
}

/// The kernel's name of an open file: pipes have their own.
fn file_name(pid: i32, fd: i32) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// The fix-up of a buffer may write an address to any multiple of 4: there it becomes an offset.
fn without_unaligned_addresses(bytes: &[u8], start: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 4;
    while let Some(word) = bytes.get(at..at + 8).and_then(|eight| eight.first_chunk()) {
        let address = u64::from_ne_bytes(*word);
        if address >= start && address < start + MAPPING {
            bytes[at..at + 8].copy_from_slice(&(address - start).to_ne_bytes());
        }
        at += 8;
    }
    bytes
}

/// Bytes in words: addresses in the mapping as offsets, and long ones by their sum.
fn contents(bytes: &[u8], start: u64) -> String {
    let bytes = &without_unaligned_addresses(bytes, start);
    let mut text = String::new();
    for (index, eight) in bytes.chunks(8).enumerate() {
        let word = <[u8; 8]>::try_from(eight).map(u64::from_ne_bytes).unwrap_or_default();
        if word >= start && word < start + MAPPING {
            let _ = write!(text, "[+{}]", word - start);
        } else if index < 4 {
            for byte in eight {
                let _ = write!(text, "{byte:02x}");
            }
        }
    }
    if bytes.len() > 32 {
        let sum = bytes.iter().enumerate().filter(|(index, _)| {
            let word = index / 8 * 8;
            let address = bytes
                .get(word..word + 8)
                .and_then(|eight| <[u8; 8]>::try_from(eight).ok())
                .map_or(0, u64::from_ne_bytes);
            !(address >= start && address < start + MAPPING)
        });
        let sum = sum.fold(0u64, |sum, (_, &byte)| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let _ = write!(text, "...{} bytes, sum {sum:x}", bytes.len());
    }
    text
}
