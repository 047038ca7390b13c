//! From records to a program.

use crate::differ::{Act, Buffer, Member, Part, Program, Send, Step, Write};
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::Object;
use fakebinder::protocol::record::TransactionData;
use fakebinder_client::uapi::{self, fakebinder_record};
use fakebinder_client::{Return, Returns};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a read buffer at least; what came must find room, and what may come instead.
const READ: usize = 512;

/// Makes a program of records, one after the other.
#[derive(Debug, Default)]
pub struct Converter {
    program: Program,
    /// The processes that have opened the device since, and are not gone, by their numbers.
    known: BTreeMap<u64, Known>,
    /// Processes that had the device open before: what they do cannot be repeated.
    strangers: BTreeSet<u64>,
    /// The thread whose commands are at the end of the program, and no returns of it yet.
    writing: Option<(u64, i32)>,
    calls: usize,
}

#[derive(Debug, Default)]
struct Known {
    /// The index in the program.
    index: usize,
    pid: i32,
    /// The thread's indices, by their numbers.
    threads: BTreeMap<i32, usize>,
    /// Where the latest message of each thread is: which step, and which of its commands.
    messages: BTreeMap<i32, (usize, usize)>,
    /// The buffer of each transaction and reply that it has got.
    buffers: Vec<u64>,
    files: usize,
}

impl Converter {
    /// The program of what was told, without the processes that did nothing.
    pub fn into_program(self) -> Program {
        let mut program = self.program;
        let mut acts = vec![false; program.processes.len()];
        for step in &program.steps {
            acts[step.process] |= step.act != Act::Kill;
            if let Act::Freeze { process, .. } | Act::FrozenInfo(process) = step.act {
                acts[process] = true;
            }
        }
        // What index each of those that are left has then.
        let new = |process: usize| acts[..process].iter().filter(|&&acts| acts).count();
        let mut of_process = acts.iter();
        program.processes.retain(|_| of_process.next() == Some(&true));
        program.steps.retain(|step| acts[step.process]);
        for step in &mut program.steps {
            step.process = new(step.process);
            if let Act::Freeze { process, .. } | Act::FrozenInfo(process) = &mut step.act {
                *process = new(*process);
            }
        }
        program
    }

    /// Calls, one-way calls and replies that the program sends.
    pub fn messages(&self) -> usize {
        self.calls
    }

    /// How many processes had the device open before the recording began: the program is without
    /// them.
    pub fn strangers(&self) -> usize {
        self.strangers.len()
    }

    /// Takes a record of [`uapi::FAKEBINDER_RECORD`], with its body. One that is cut short, or of an
    /// unknown kind, is left out.
    pub fn tell(&mut self, record: &fakebinder_record, body: &[u8]) {
        let _ = self.take(record, body);
    }

    /// None: the record is not what it should be, or one of a stranger.
    fn take(&mut self, record: &fakebinder_record, body: &[u8]) -> Option<()> {
        let &fakebinder_record { process, tid, pid, kind, .. } = record;
        if kind == uapi::FAKEBINDER_RECORD_OPEN {
            let index = self.program.processes.len();
            self.program.processes.push(Member { threads: 1, mapping: 0 });
            self.known.insert(process, Known { index, pid, ..Known::default() });
            return Some(());
        }
        if !self.known.contains_key(&process) {
            self.strangers.insert(process);
            return None;
        }
        match kind {
            uapi::FAKEBINDER_RECORD_CLOSE => {
                self.step(process, tid, Act::Kill)?;
                self.known.remove(&process);
            }
            uapi::FAKEBINDER_RECORD_WRITE_READ => self.writing = None,
            uapi::FAKEBINDER_RECORD_IOCTL => self.ioctl(process, tid, body)?,
            uapi::FAKEBINDER_RECORD_COMMAND => self.command(process, tid, body)?,
            uapi::FAKEBINDER_RECORD_MESSAGE => self.message(process, tid, body)?,
            uapi::FAKEBINDER_RECORD_RETURNS => self.returns(process, tid, body)?,
            _ => {}
        }
        Some(())
    }

    fn step(&mut self, process: u64, tid: i32, act: Act) -> Option<()> {
        let known = self.known.get_mut(&process)?;
        let (index, count) = (known.index, known.threads.len());
        let thread = match act {
            Act::Kill => 0,
            _ => *known.threads.entry(tid).or_insert(count),
        };
        let member = &mut self.program.processes[index];
        member.threads = member.threads.max(thread + 1);
        self.program.steps.push(Step { process: index, thread, act });
        self.writing = None;
        Some(())
    }

    fn ioctl(&mut self, process: u64, tid: i32, body: &[u8]) -> Option<()> {
        let (number, argument) = body.split_first_chunk()?;
        let word = |index: usize| uapi::parse::<u32>(argument.get(index * 4..)?);
        let long = |index: usize| uapi::parse::<u64>(argument.get(index..)?);
        // None: it is a stranger, or does not have the device open.
        let process_of = |pid: u32| {
            let of_pid = |known: &&Known| known.pid as u32 == pid;
            self.known.values().find(of_pid).map(|known| known.index)
        };
        let act = match u32::from_ne_bytes(*number) {
            uapi::BINDER_SET_MAX_THREADS => Act::MaxThreads(word(0)?),
            uapi::BINDER_THREAD_EXIT => Act::ThreadExit,
            uapi::BINDER_GET_EXTENDED_ERROR => Act::ExtendedError,
            uapi::BINDER_GET_NODE_DEBUG_INFO => Act::NodeDebugInfo(long(0)?),
            uapi::BINDER_GET_NODE_INFO_FOR_REF => Act::NodeInfo(word(0)?),
            uapi::BINDER_ENABLE_ONEWAY_SPAM_DETECTION => Act::SpamDetection(word(0)? != 0),
            uapi::BINDER_FREEZE => {
                Act::Freeze { process: process_of(word(0)?)?, enable: word(1)? != 0 }
            }
            uapi::BINDER_GET_FROZEN_INFO => Act::FrozenInfo(process_of(word(0)?)?),
            uapi::BINDER_SET_CONTEXT_MGR => Act::SetContextManager,
            uapi::BINDER_SET_CONTEXT_MGR_EXT => {
                Act::SetContextManagerExt { flags: word(1)?, ptr: long(8)?, cookie: long(16)? }
            }
            // The version is the same everywhere; the others are no ioctls.
            _ => return None,
        };
        self.step(process, tid, act)
    }

    fn command(&mut self, process: u64, tid: i32, body: &[u8]) -> Option<()> {
        let (number, payload) = body.split_first_chunk()?;
        let command = Command::decode(u32::from_ne_bytes(*number), payload)?;
        let write = self.write(process, &command)?;
        let is_message = matches!(write, Write::Send(_));
        if self.writing != Some((process, tid)) {
            self.step(process, tid, Act::WriteRead { write: Vec::new(), read: 0 })?;
            self.writing = Some((process, tid));
        }
        let last = self.program.steps.len() - 1;
        let Act::WriteRead { write: commands, .. } = &mut self.program.steps[last].act else {
            return None;
        };
        commands.push(write);
        if is_message {
            let place = (last, commands.len() - 1);
            self.known.get_mut(&process)?.messages.insert(tid, place);
            self.calls += 1;
        }
        Some(())
    }

    fn write(&self, process: u64, command: &Command) -> Option<Write> {
        let send = |data: &TransactionData, reply| {
            // Until its message is told: the data of one with objects is not known.
            let bytes = usize::try_from(data.data_size).unwrap_or(usize::MAX).min(MOST_DATA);
            Write::Send(Send {
                reply,
                handle: if reply { 0 } else { data.target as u32 },
                code: data.code,
                flags: data.flags,
                parts: if bytes > 0 { vec![Part::Bytes(bytes)] } else { Vec::new() },
                twist: None,
            })
        };
        Some(match *command {
            Command::Transaction(data) | Command::TransactionSg(data, _) => send(&data, false),
            Command::Reply(data) | Command::ReplySg(data, _) => send(&data, true),
            Command::FreeBuffer(address) => {
                let buffers = &self.known.get(&process)?.buffers;
                let place = buffers.iter().rposition(|&buffer| buffer == address);
                Write::Free(place.map_or(Buffer::At(-8), Buffer::Received))
            }
            Command::Increfs(handle) => Write::Increfs(handle),
            Command::Acquire(handle) => Write::Acquire(handle),
            Command::Release(handle) => Write::Release(handle),
            Command::Decrefs(handle) => Write::Decrefs(handle),
            Command::IncrefsDone(node) => Write::IncrefsDone(node.ptr, node.cookie),
            Command::AcquireDone(node) => Write::AcquireDone(node.ptr, node.cookie),
            Command::RegisterLooper => Write::RegisterLooper,
            Command::EnterLooper => Write::EnterLooper,
            Command::ExitLooper => Write::ExitLooper,
            Command::RequestDeathNotification(link) => {
                Write::RequestDeath(link.handle, link.cookie)
            }
            Command::ClearDeathNotification(link) => Write::ClearDeath(link.handle, link.cookie),
            Command::DeadBinderDone(cookie) => Write::DeadBinderDone(cookie),
            Command::RequestFreezeNotification(link) => {
                Write::RequestFreeze(link.handle, link.cookie)
            }
            Command::ClearFreezeNotification(link) => Write::ClearFreeze(link.handle, link.cookie),
            Command::FreezeNotificationDone(cookie) => Write::FreezeDone(cookie),
            Command::AttemptAcquire { .. } => Write::AttemptAcquire,
            Command::AcquireResult(_) => Write::AcquireResult,
        })
    }

    /// What the message says that the thread has sent last.
    fn message(&mut self, process: u64, tid: i32, body: &[u8]) -> Option<()> {
        let known = self.known.get_mut(&process)?;
        let (step, command) = known.messages.remove(&tid)?;
        let (count, mut rest) = body.split_first_chunk()?;
        let mut objects = Vec::new();
        for _ in 0..u32::from_ne_bytes(*count) {
            let (offset, length) =
                (uapi::parse::<u64>(rest)?, uapi::parse::<u64>(rest.get(8..)?)? as usize);
            objects.push((offset as usize, Object::decode(rest.get(16..)?.get(..length)?)?));
            rest = &rest[16 + length..];
        }
        let Act::WriteRead { write, .. } = &mut self.program.steps.get_mut(step)?.act else {
            return None;
        };
        let Write::Send(send) = write.get_mut(command)? else { return None };
        let size = send.parts.iter().map(|part| match part {
            Part::Bytes(count) => *count,
            _ => 0,
        });
        let size = size.sum();
        send.parts = parts(size, &objects, rest, &mut known.files);
        Some(())
    }

    fn returns(&mut self, process: u64, tid: i32, body: &[u8]) -> Option<()> {
        let size = uapi::parse::<u64>(body.get(8..)?)?;
        let bytes = body.get(16..)?;
        let known = self.known.get_mut(&process)?;
        let member = &mut self.program.processes[known.index];
        member.mapping = member.mapping.max(size);
        for one in Returns::new(bytes) {
            if let Return::Transaction(got) | Return::TransactionSecCtx(got) | Return::Reply(got) =
                one
            {
                known.buffers.push(got.buffer);
            }
        }
        let read = READ.max(bytes.len().next_multiple_of(8) + READ / 2);
        if self.writing == Some((process, tid)) {
            self.writing = None;
            if let Some(Step { act: Act::WriteRead { read: size, .. }, .. }) =
                self.program.steps.last_mut()
            {
                *size = read;
            }
            return Some(());
        }
        self.step(process, tid, Act::WriteRead { write: Vec::new(), read })
    }
}

/// More data than any mapping has room for.
const MOST_DATA: usize = 4 << 20;

/// The pieces of a message: its objects, and the bytes between them, as they were if `data` has
/// them.
fn parts(size: usize, objects: &[(usize, Object)], data: &[u8], files: &mut usize) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut done = 0;
    let fill = |parts: &mut Vec<Part>, from: usize, to: usize| {
        let Some(count) = to.checked_sub(from).filter(|&count| count > 0) else { return };
        parts.push(match data.get(from..to) {
            Some(bytes) => Part::Data(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
            None => Part::Bytes(count),
        });
    };
    for (offset, object) in objects {
        fill(&mut parts, done, *offset);
        done = offset + object.size();
        parts.push(match *object {
            Object::Binder { strong, flat } => Part::Binder {
                ptr: flat.binder,
                cookie: flat.cookie,
                flags: flat.flags,
                weak: !strong,
            },
            Object::Handle { strong, flat } => {
                Part::Handle { handle: flat.handle(), weak: !strong }
            }
            Object::Fd { .. } => {
                *files += 1;
                Part::Fd(Some(*files - 1))
            }
            Object::Buffer(buffer) => Part::Buffer {
                length: (buffer.length as usize).min(MOST_DATA),
                parent: buffer.has_parent().then_some((buffer.parent, buffer.parent_offset)),
            },
            Object::FdArray(array) => Part::FdArray {
                count: array.num_fds,
                parent: array.parent,
                offset: array.parent_offset,
            },
        });
    }
    fill(&mut parts, done, size);
    parts
}
