//! Writing: the commands of a BINDER_WRITE_READ, one after the other (`binder_thread_write`).

use super::Process;
use super::command::Command;
use super::graph::ThreadId;
use super::send::Sender;
use super::thread::Looper;
use super::wire::{TransactionData, WriteRead};
use crate::Errno;
use crate::client_log::{Kind, user_error};
use crate::client_mem::ClientMemory;
use std::cell::Cell;
use std::sync::Arc;

/// Bytes of a write buffer that are fetched at once.
const WINDOW: usize = 512;

/// A write buffer, read through a window. The driver reads each command from where it is, even
/// beyond the end that the client named; so does this.
struct Commands<'a> {
    memory: &'a dyn ClientMemory,
    next: u64,
    end: u64,
    window: Vec<u8>,
    /// What of the window was taken.
    taken: usize,
}

impl Commands<'_> {
    /// The next `size` bytes; EFAULT.
    fn take(&mut self, size: usize) -> Result<&[u8], Errno> {
        if self.window.len() - self.taken < size {
            let named = self.end.saturating_sub(self.next).min(WINDOW as u64) as usize;
            self.fetch(named.max(size)).or_else(|_| self.fetch(size))?;
        }
        let start = self.taken;
        self.taken += size;
        self.next = self.next.wrapping_add(size as u64);
        Ok(&self.window[start..start + size])
    }

    fn fetch(&mut self, size: usize) -> Result<(), Errno> {
        self.taken = 0;
        self.window.resize(size, 0);
        self.memory.read(self.next, &mut self.window).inspect_err(|_| self.window.clear())
    }
}

/// A thread that writes commands.
pub(crate) struct Writer<'a> {
    pub process: &'a Arc<Process>,
    pub thread: ThreadId,
    pub tid: i32,
    pub uid: u32,
    pub memory: &'a dyn ClientMemory,
    /// The thread's effective uid, once it has sent something.
    pub euid: Cell<Option<u32>>,
    /// The thread's nice value, where a command has asked for it or set it.
    pub nice: Cell<Option<i32>>,
}

impl Writer<'_> {
    /// Carries out commands until the buffer ends, one fails, or the thread has an error to read.
    /// `call.write_consumed` counts those that were done. EFAULT: a command lies outside of the
    /// client's memory; EINVAL: unknown or refused.
    pub fn write(&self, call: &mut WriteRead) -> Result<(), Errno> {
        let mut commands = Commands {
            memory: self.memory,
            next: call.write_buffer.wrapping_add(call.write_consumed),
            end: call.write_buffer.wrapping_add(call.write_size),
            window: Vec::new(),
            taken: 0,
        };
        while commands.next < commands.end && !self.has_return_error() {
            let number = u32::from_ne_bytes(*commands.take(4)?.first_chunk().ok_or(Errno::EFAULT)?);
            let size = Command::payload_size(number).ok_or_else(|| {
                user_error!(Kind::BadCommand, "unknown command {number:#x}");
                Errno::EINVAL
            })?;
            self.process.count_command(number);
            if number == crate::uapi::BC_ATTEMPT_ACQUIRE || number == crate::uapi::BC_ACQUIRE_RESULT
            {
                user_error!(Kind::BadCommand, "command {number:#x} is not supported");
                return Err(Errno::EINVAL);
            }
            let command = Command::decode(number, commands.take(size)?).ok_or(Errno::EINVAL)?;
            self.carry_out(command)?;
            call.write_consumed = commands.next.wrapping_sub(call.write_buffer);
        }
        Ok(())
    }

    fn has_return_error(&self) -> bool {
        self.process.context.locked(|graph| {
            graph.threads.get(&self.thread).is_none_or(|thread| thread.return_error.is_some())
        })
    }

    fn carry_out(&self, command: Command) -> Result<(), Errno> {
        let context = &self.process.context;
        let process = self.process.id;
        match command {
            Command::Transaction(data) => self.send(&data, false, 0),
            Command::Reply(data) => self.send(&data, true, 0),
            Command::TransactionSg(data, size) => self.send(&data, false, size),
            Command::ReplySg(data, size) => self.send(&data, true, size),
            Command::AttemptAcquire { .. } | Command::AcquireResult(_) => {
                return Err(Errno::EINVAL);
            }
            Command::FreeBuffer(address) => self.free_buffer(address),
            Command::Increfs(handle) => self.count_handle(handle, true, false)?,
            Command::Acquire(handle) => self.count_handle(handle, true, true)?,
            Command::Release(handle) => self.count_handle(handle, false, true)?,
            Command::Decrefs(handle) => self.count_handle(handle, false, false)?,
            Command::IncrefsDone(node) => {
                context.locked(|graph| graph.node_done(process, node.ptr, node.cookie, false));
            }
            Command::AcquireDone(node) => {
                context.locked(|graph| graph.node_done(process, node.ptr, node.cookie, true));
            }
            Command::RegisterLooper => self.register_looper(),
            Command::EnterLooper => self.enter_looper(),
            Command::ExitLooper => self.set_looper(Looper::EXITED),
            Command::RequestDeathNotification(request) => {
                context.locked(|graph| graph.request_death(process, self.thread, request));
            }
            Command::ClearDeathNotification(request) => {
                context.locked(|graph| graph.clear_death(process, self.thread, request));
            }
            Command::DeadBinderDone(cookie) => {
                context.locked(|graph| graph.dead_binder_done(process, self.thread, cookie));
            }
            Command::RequestFreezeNotification(request) => {
                return context.locked(|graph| graph.request_freeze(process, request));
            }
            Command::ClearFreezeNotification(request) => {
                return context.locked(|graph| graph.clear_freeze(process, request));
            }
            Command::FreezeNotificationDone(cookie) => {
                return context.locked(|graph| graph.freeze_done(process, cookie));
            }
        }
        Ok(())
    }

    fn send(&self, data: &TransactionData, is_reply: bool, extra: u64) {
        let euid = self.euid.get().unwrap_or_else(|| self.process.client.euid(self.tid, self.uid));
        self.euid.set(Some(euid));
        let sender = Sender {
            process: self.process,
            thread: self.thread,
            tid: self.tid,
            euid,
            memory: self.memory,
        };
        self.nice.set(Some(sender.send(data, is_reply, extra)));
    }

    /// An address that is no buffer, or one that the client may not free now, is ignored.
    fn free_buffer(&self, address: u64) {
        match self.process.alloc.prepare_to_free(address) {
            Ok(buffer) => self.process.context.locked(|graph| {
                graph.free_buffer(self.process.id, buffer.offset, Some(self.thread));
            }),
            Err(Errno::EPERM) => user_error!(
                Kind::BadFree,
                "BC_FREE_BUFFER u{address:016x} matched a buffer that was not returned yet"
            ),
            Err(_) => user_error!(Kind::BadFree, "BC_FREE_BUFFER u{address:016x} no match"),
        }
    }

    /// BC_INCREFS, BC_ACQUIRE, BC_RELEASE, BC_DECREFS. EINVAL only for a context manager that
    /// wants a reference to itself; a handle that is none is ignored.
    fn count_handle(&self, handle: u32, increment: bool, strong: bool) -> Result<(), Errno> {
        self.process.context.locked(|graph| {
            let process = self.process.id;
            if increment
                && handle == 0
                && let Some(manager) = graph.manager
            {
                if graph.manager_process() == Some(process) {
                    user_error!(Kind::BadReference, "context manager tried to acquire desc 0");
                    return Err(Errno::EINVAL);
                }
                if graph.inc_ref_for_node(process, manager, strong, None).is_ok() {
                    return Ok(());
                }
            }
            if graph.update_ref_for_handle(process, handle, increment, strong).is_err() {
                user_error!(Kind::BadReference, "refcount change on invalid ref {handle}");
            }
            Ok(())
        })
    }

    fn set_looper(&self, looper: Looper) {
        self.process.context.locked(|graph| {
            if let Some(thread) = graph.threads.get_mut(&self.thread) {
                thread.looper |= looper;
            }
        });
    }

    fn register_looper(&self) {
        self.process.context.locked(|graph| {
            let Some(thread) = graph.threads.get_mut(&self.thread) else {
                return;
            };
            let Some(process) = graph.processes.get_mut(&self.process.id) else {
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
        });
    }

    fn enter_looper(&self) {
        self.process.context.locked(|graph| {
            let Some(thread) = graph.threads.get_mut(&self.thread) else {
                return;
            };
            if thread.looper.contains(Looper::REGISTERED) {
                user_error!(Kind::BadLooper, "BC_ENTER_LOOPER called after BC_REGISTER_LOOPER");
                thread.looper |= Looper::INVALID;
            }
            thread.looper |= Looper::ENTERED;
        });
    }
}
