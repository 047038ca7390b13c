//! Writing: the commands of a BINDER_WRITE_READ, one after the other (`binder_thread_write`).

use super::foresee::Foreseen;
use super::graph::{Graph, ProcessId, ThreadId};
use super::section::Section;
use super::send::Sender;
use super::thread::Looper;
use super::{Identity, Process};
use crate::Errno;
use crate::alloc::Buffer;
use crate::client_log::{Kind, user_error};
use crate::client_mem::{Ahead, ClientMemory, fill_with_zeros};
use crate::protocol::command::Command;
use crate::protocol::record::{TransactionData, WriteRead};
use smallvec::SmallVec;

/// Bytes of a write buffer that are fetched at once.
const WINDOW: usize = 512;

/// A write buffer, read through a window. The driver reads a whole command even where it crosses
/// the end that the client named, and so does this.
struct Commands<'a> {
    memory: &'a dyn ClientMemory,
    next: u64,
    end: u64,
    window: SmallVec<[u8; WINDOW]>,
    /// How many bytes of the window were taken.
    taken: usize,
}

impl<'a> Commands<'a> {
    /// The commands that `call` names; nothing is fetched yet.
    fn new(memory: &'a dyn ClientMemory, call: &WriteRead) -> Commands<'a> {
        Commands {
            memory,
            next: call.write_buffer.wrapping_add(call.write_consumed),
            end: call.write_buffer.wrapping_add(call.write_size),
            window: SmallVec::new(),
            taken: 0,
        }
    }

    /// Whether the next `size` bytes were fetched already.
    fn has(&self, size: usize) -> bool {
        self.window.len() - self.taken >= size
    }

    /// How much of the buffer is fetched at once.
    fn ahead(&self) -> usize {
        self.end.saturating_sub(self.next).min(WINDOW as u64) as usize
    }

    /// The next `size` bytes. EFAULT: they cannot be read.
    fn take(&mut self, size: usize) -> Result<&[u8], Errno> {
        if !self.has(size) {
            self.fetch(self.ahead().max(size)).or_else(|_| self.fetch(size))?;
        }
        let start = self.taken;
        self.taken += size;
        self.next = self.next.wrapping_add(size as u64);
        Ok(&self.window[start..start + size])
    }

    /// The first fetch, which brings what the commands may point to as well.
    fn begin(&mut self) -> Ahead {
        let mut ahead = Ahead::default();
        let length = self.ahead();
        fill_with_zeros(&mut self.window, length);
        // Bytes that cannot be fetched are an error when their turn comes.
        if self.memory.read_and_ahead(self.next, &mut self.window, &mut ahead).is_err() {
            self.window.clear();
        }
        ahead
    }

    fn fetch(&mut self, size: usize) -> Result<(), Errno> {
        self.taken = 0;
        fill_with_zeros(&mut self.window, size);
        self.memory.read(self.next, &mut self.window).inspect_err(|_| self.window.clear())
    }
}

/// What is known of a calling thread for the length of its ioctl, during which its program does not
/// run.
#[derive(Default)]
pub(crate) struct Known {
    nice: Option<i32>,
    identity: Option<Identity>,
}

impl Known {
    pub fn has_nice(&self) -> bool {
        self.nice.is_some()
    }

    /// The thread's nice value. The first question is a system call.
    pub fn nice(&mut self, process: &Process, tid: i32) -> i32 {
        *self.nice.get_or_insert_with(|| process.task.nice(tid))
    }

    /// Gives the thread a nice value, unless it has that already. A system call.
    pub fn set_nice(&mut self, process: &Process, tid: i32, nice: i32) {
        if self.nice(process, tid) != nice {
            process.task.set_nice(tid, nice);
            self.nice = Some(nice);
        }
    }

    /// The thread's identity. The first question is a system call.
    pub fn identity(&mut self, process: &Process, tid: i32, uid: u32) -> Identity {
        *self.identity.get_or_insert_with(|| process.task.identity(tid, uid))
    }
}

/// A thread's ioctl in its write part.
pub(crate) struct Writer<'s, 'a> {
    pub section: &'s mut Section<'a>,
    pub uid: u32,
    pub memory: &'s dyn ClientMemory,
    pub known: &'s mut Known,
}

/// The allocator's permission to free a buffer, taken before the section was entered.
struct Prepared {
    address: u64,
    buffer: Result<Buffer, Errno>,
}

impl Writer<'_, '_> {
    /// Carries out commands until the buffer ends, one fails, or the thread has an error to read.
    /// `call.write_consumed` counts the bytes of those that were done. EFAULT: a command cannot be
    /// read from the client's memory; EINVAL: an unknown or refused command; ESRCH, ENOMEM: the
    /// calling thread has no record ([`Process::calling_thread`]).
    pub fn write(&mut self, call: &mut WriteRead) -> Result<(), Errno> {
        let mut commands = Commands::new(self.memory, call);
        if commands.next >= commands.end {
            return Ok(());
        }
        let foreseen = Foreseen::new(self.memory, commands.begin());
        let mut prepared = self.prepare(&commands);
        let mut writer = Writer {
            section: &mut *self.section,
            uid: self.uid,
            memory: &foreseen,
            known: &mut *self.known,
        };
        let result = writer.carry_out_all(call, &mut commands, &mut prepared);
        if let Some(Prepared { buffer: Ok(buffer), .. }) = prepared {
            self.section.leave();
            self.section.process().alloc.set_allow_user_free(&buffer, true);
        }
        result
    }

    /// If the first command frees a buffer, and mostly it does, takes the permission now: that
    /// takes the allocator's lock, for which the section would otherwise be left.
    fn prepare(&self, commands: &Commands<'_>) -> Option<Prepared> {
        let (number, payload) = commands.window.split_first_chunk()?;
        let number = u32::from_ne_bytes(*number);
        let size = Command::payload_size(number)?;
        match Command::decode(number, payload.get(..size)?)? {
            Command::FreeBuffer(address) => {
                let buffer = self.section.process().alloc.prepare_to_free(address);
                Some(Prepared { address, buffer })
            }
            _ => None,
        }
    }

    fn carry_out_all(
        &mut self,
        call: &mut WriteRead,
        commands: &mut Commands<'_>,
        prepared: &mut Option<Prepared>,
    ) -> Result<(), Errno> {
        while commands.next < commands.end && !self.has_return_error()? {
            self.section.next_command();
            let number =
                u32::from_ne_bytes(*self.take(commands, 4)?.first_chunk().ok_or(Errno::EFAULT)?);
            let size = Command::payload_size(number).ok_or_else(|| {
                user_error!(Kind::BadCommand, "unknown command {number:#x}");
                Errno::EINVAL
            })?;
            self.section.process().count_command(number);
            self.section.tell_command(number);
            if number == crate::uapi::BC_ATTEMPT_ACQUIRE || number == crate::uapi::BC_ACQUIRE_RESULT
            {
                user_error!(Kind::BadCommand, "command {number:#x} is not supported");
                return Err(Errno::EINVAL);
            }
            let payload = self.take(commands, size)?;
            let command = Command::decode(number, payload).ok_or(Errno::EINVAL)?;
            self.section.record_command(number, payload);
            self.carry_out(command, prepared.take())?;
            call.write_consumed = commands.next.wrapping_sub(call.write_buffer);
        }
        Ok(())
    }

    /// The next bytes of the buffer; the section is left before they are fetched.
    fn take<'c>(&mut self, commands: &'c mut Commands<'_>, size: usize) -> Result<&'c [u8], Errno> {
        if !commands.has(size) {
            self.section.leave();
        }
        commands.take(size)
    }

    fn has_return_error(&mut self) -> Result<bool, Errno> {
        let (graph, thread) = self.section.enter()?;
        Ok(graph.threads.get(&thread).is_none_or(|thread| thread.return_error.is_some()))
    }

    fn carry_out(&mut self, command: Command, prepared: Option<Prepared>) -> Result<(), Errno> {
        let process = self.section.process().id;
        match command {
            Command::Transaction(data) => self.send(&data, false, 0),
            Command::Reply(data) => self.send(&data, true, 0),
            Command::TransactionSg(data, size) => self.send(&data, false, size),
            Command::ReplySg(data, size) => self.send(&data, true, size),
            Command::FreeBuffer(address) => self.free_buffer(address, prepared),
            Command::AttemptAcquire { .. }
            | Command::AcquireResult(_)
            | Command::Increfs(_)
            | Command::Acquire(_)
            | Command::Release(_)
            | Command::Decrefs(_)
            | Command::IncrefsDone(_)
            | Command::AcquireDone(_)
            | Command::RegisterLooper
            | Command::EnterLooper
            | Command::ExitLooper
            | Command::RequestDeathNotification(_)
            | Command::ClearDeathNotification(_)
            | Command::DeadBinderDone(_)
            | Command::RequestFreezeNotification(_)
            | Command::ClearFreezeNotification(_)
            | Command::FreezeNotificationDone(_) => {
                let (graph, thread) = self.section.enter()?;
                return graph.carry_out(process, thread, command);
            }
        }
        Ok(())
    }

    fn send(&mut self, data: &TransactionData, is_reply: bool, extra: u64) {
        let Ok((_, thread)) = self.section.enter() else {
            return;
        };
        let sender = Sender {
            process: self.section.process(),
            thread,
            tid: self.section.tid(),
            uid: self.uid,
            memory: self.memory,
        };
        sender.send(self.section, self.known, data, is_reply, extra);
    }

    /// An address that is no buffer, or one that the client may not free now, is ignored.
    fn free_buffer(&mut self, address: u64, prepared: Option<Prepared>) {
        let process = self.section.process();
        let buffer = match prepared {
            Some(prepared) if prepared.address == address => prepared.buffer,
            Some(_) | None => {
                self.section.leave();
                process.alloc.prepare_to_free(address)
            }
        };
        match (buffer, self.section.enter()) {
            (Ok(buffer), Ok((graph, thread))) => {
                graph.free_buffer(process.id, buffer.offset, Some(thread));
            }
            (Err(Errno::EPERM), _) => user_error!(
                Kind::BadFree,
                "BC_FREE_BUFFER u{address:016x} matched a buffer that was not returned yet"
            ),
            _ => user_error!(Kind::BadFree, "BC_FREE_BUFFER u{address:016x} no match"),
        }
    }
}

impl Graph {
    /// The commands that need nothing but the graph. The errors are those of each command.
    fn carry_out(
        &mut self,
        process: ProcessId,
        thread: ThreadId,
        command: Command,
    ) -> Result<(), Errno> {
        match command {
            Command::Increfs(handle) => self.count_handle(process, handle, true, false)?,
            Command::Acquire(handle) => self.count_handle(process, handle, true, true)?,
            Command::Release(handle) => self.count_handle(process, handle, false, true)?,
            Command::Decrefs(handle) => self.count_handle(process, handle, false, false)?,
            Command::IncrefsDone(node) => self.node_done(process, node.ptr, node.cookie, false),
            Command::AcquireDone(node) => self.node_done(process, node.ptr, node.cookie, true),
            Command::RegisterLooper => self.register_looper(process, thread),
            Command::EnterLooper => self.enter_looper(thread),
            Command::ExitLooper => {
                if let Some(thread) = self.threads.get_mut(&thread) {
                    thread.looper |= Looper::EXITED;
                }
            }
            Command::RequestDeathNotification(request) => {
                self.request_death(process, thread, request);
            }
            Command::ClearDeathNotification(request) => self.clear_death(process, thread, request),
            Command::DeadBinderDone(cookie) => self.dead_binder_done(process, thread, cookie),
            Command::RequestFreezeNotification(request) => self.request_freeze(process, request)?,
            Command::ClearFreezeNotification(request) => self.clear_freeze(process, request)?,
            Command::FreezeNotificationDone(cookie) => self.freeze_done(process, cookie)?,
            // Refused, or carried out by the writer.
            Command::AttemptAcquire { .. }
            | Command::AcquireResult(_)
            | Command::Transaction(_)
            | Command::Reply(_)
            | Command::TransactionSg(..)
            | Command::ReplySg(..)
            | Command::FreeBuffer(_) => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// BC_INCREFS, BC_ACQUIRE, BC_RELEASE, BC_DECREFS. EINVAL only for a context manager that wants
    /// a reference to itself; an unknown handle is ignored.
    fn count_handle(
        &mut self,
        process: ProcessId,
        handle: u32,
        increment: bool,
        strong: bool,
    ) -> Result<(), Errno> {
        if increment
            && handle == 0
            && let Some(manager) = self.manager
        {
            if self.manager_process() == Some(process) {
                user_error!(Kind::BadReference, "context manager tried to acquire desc 0");
                return Err(Errno::EINVAL);
            }
            if self.inc_ref_for_node(process, manager, strong, None).is_ok() {
                return Ok(());
            }
        }
        if self.update_ref_for_handle(process, handle, increment, strong).is_err() {
            user_error!(Kind::BadReference, "refcount change on invalid ref {handle}");
        }
        Ok(())
    }

    fn register_looper(&mut self, process: ProcessId, thread: ThreadId) {
        let Some(thread) = self.threads.get_mut(&thread) else {
            return;
        };
        let Some(process) = self.processes.get_mut(&process) else {
            return;
        };
        if thread.looper.contains(Looper::ENTERED) {
            user_error!(Kind::BadLooper, "BC_REGISTER_LOOPER called after BC_ENTER_LOOPER");
            thread.looper |= Looper::INVALID;
        } else if process.requested_threads == 0 {
            user_error!(Kind::BadLooper, "BC_REGISTER_LOOPER called without request");
            thread.looper |= Looper::INVALID;
        } else {
            process.requested_threads -= 1;
            process.requested_threads_started += 1;
        }
        thread.looper |= Looper::REGISTERED;
    }

    fn enter_looper(&mut self, thread: ThreadId) {
        let Some(thread) = self.threads.get_mut(&thread) else {
            return;
        };
        if thread.looper.contains(Looper::REGISTERED) {
            user_error!(Kind::BadLooper, "BC_ENTER_LOOPER called after BC_REGISTER_LOOPER");
            thread.looper |= Looper::INVALID;
        }
        thread.looper |= Looper::ENTERED;
    }
}
