//! The ioctls of a binder device (`binder_ioctl`).

use super::freeze::FreezeWait;
use super::graph::ThreadId;
use super::outbox::{Effect, Item};
use super::read::{Answer, Parked};
use super::section::Section;
use super::thread::ExtendedError;
use super::write::{Known, Writer};
use super::{Call, Due, FewBytes, Finish, Process};
use crate::Errno;
use crate::client_log::{Caller, Kind, user_error};
use crate::protocol::object::FlatObject;
use crate::protocol::record::{Record, WriteRead};
use crate::protocol::returns::Return;
use crate::uapi::*;
use smallvec::smallvec;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A structure as the argument of an ioctl.
fn record(record: &(impl IntoBytes + Immutable)) -> FewBytes {
    FewBytes::from_slice(record.as_bytes())
}

impl Process {
    /// Serves one ioctl; consumes `call.reply`, at once or later. When this returns, the caller has
    /// its answer or its request is parked; what is due to others follows when the returned value
    /// is dropped.
    ///
    /// EINVAL: unknown ioctl, or an argument of the wrong length; ENOMEM: too many threads
    /// ([`Limits`](super::Limits)); further errors are named at each ioctl.
    pub fn ioctl(self: &Arc<Self>, call: Call) -> Due<'_> {
        let undone = self.try_ioctl(call, false);
        debug_assert!(undone.is_none(), "an ioctl may always touch its caller's memory");
        self.due()
    }

    /// The same by a thread that [must not stall](super::Carriers::must_not_stall). An ioctl that
    /// would have to touch its caller's memory is given back, and nothing was done for it.
    pub fn ioctl_without_memory(self: &Arc<Self>, call: Call) -> Result<Due<'_>, Box<Call>> {
        self.try_ioctl(call, true).map_or_else(|| Ok(self.due()), Err)
    }

    fn try_ioctl(self: &Arc<Self>, call: Call, without_memory: bool) -> Option<Box<Call>> {
        self.alloc.owner_calls();
        let _caller = Caller { uid: call.uid, pid: self.pid, tid: call.tid }.enter();
        let mut section = Section::new(self, call.tid);
        if call.cmd == BINDER_WRITE_READ {
            return self.write_read(section, call, without_memory);
        }
        self.other_ioctl(&mut section, call);
        None
    }

    fn other_ioctl(self: &Arc<Self>, section: &mut Section<'_>, call: Call) {
        let thread = match section.enter() {
            Ok((_, thread)) => thread,
            Err(errno) => {
                section.leave();
                return call.reply.send(Err(errno), &call.arg);
            }
        };
        section.leave();
        let number = call.cmd.to_ne_bytes();
        self.record(FAKEBINDER_RECORD_IOCTL, call.tid, &[&number, &call.arg]);
        if call.cmd == BINDER_FREEZE {
            return self.freeze(thread, call);
        }
        let answer = self.simple_ioctl(thread, &call);
        self.context.locked(|graph| graph.ioctl_done(thread));
        match answer {
            Ok(out) => call.reply.send(Ok(0), &out),
            Err(errno) => call.reply.send(Err(errno), &call.arg),
        }
    }

    /// BINDER_WRITE_READ: first the write part, then the read part. Consumed counts are copied
    /// back on errors and signals too.
    ///
    /// Given back undone where it would have to touch memory and was told not to: a read that finds
    /// nothing, or whose returns others can write, need not.
    fn write_read(
        self: &Arc<Self>,
        mut section: Section<'_>,
        mut call: Call,
        without_memory: bool,
    ) -> Option<Box<Call>> {
        let Ok(mut data) = WriteRead::read_from_bytes(&call.arg) else {
            call.reply.send(Err(Errno::EINVAL), &call.arg);
            return None;
        };
        let mut result = Ok(());
        let mut known = Known::default();
        if data.write_size > 0 {
            if without_memory {
                return Some(Box::new(call));
            }
            section.record_write_read(&data);
            let mut writer = Writer {
                section: &mut section,
                uid: call.uid,
                memory: &*call.memory,
                known: &mut known,
            };
            result = writer.write(&mut data);
            if result.is_err() {
                data.read_consumed = 0;
            }
            self.close_freed_files(&mut section, &mut call);
        } else if data.read_size > 0 {
            // The read will ask for the nice value; it is fetched here, outside the section.
            known.nice(self, call.tid);
        }
        if without_memory && !self.may_park(&mut section, &data) {
            section.leave();
            return Some(Box::new(call));
        }
        if result.is_ok() && data.read_size > 0 {
            result = self.begin_read(&mut section, &call, &data, &mut known);
            if result.is_ok()
                && let Ok((graph, thread)) = section.enter()
            {
                let Call { nonblock, memory, reply, .. } = call;
                let read = Parked::new(self.clone(), data, memory, nonblock, reply);
                let answer = graph.resume_read(thread, read);
                section.leave();
                match answer {
                    Some(answer) if without_memory => {
                        self.context.shared.post_item(Item::Answer(answer));
                    }
                    Some(answer) => answer.give(),
                    None => {}
                }
                return None;
            }
            if section.has_thread() {
                section.graph().wakeup_leftover(self.id);
            }
        }
        let entered = section.enter().map(|(graph, thread)| graph.ioctl_done(thread));
        section.leave();
        match entered {
            Ok(()) => call.reply.send(result.map(|()| 0), data.as_bytes()),
            // Nothing was done, since there is no thread record to do it for.
            Err(errno) => call.reply.send(Err(errno), &call.arg),
        }
        None
    }

    /// Whether a read can begin without the look at its buffer (see `begin_read`).
    fn may_park(&self, section: &mut Section<'_>, data: &WriteRead) -> bool {
        let Ok((graph, id)) = section.enter() else { return false };
        let known = graph.threads.get(&id).and_then(|thread| thread.known_read_buffer);
        data.read_size > 0 && data.read_consumed == 0 && known == Some(data.read_buffer)
    }

    /// Makes the caller close the descriptors of buffers that it has freed before it is back in its
    /// program (`binder_deferred_fd_close`).
    fn close_freed_files(&self, section: &mut Section<'_>, call: &mut Call) {
        let Ok((graph, id)) = section.enter() else { return };
        let Some(thread) = graph.threads.get_mut(&id) else { return };
        if thread.close_on_return.is_empty() {
            return;
        }
        let numbers = std::mem::take(&mut thread.close_on_return);
        section.leave();
        if !self.task.close_files(call.tid, &numbers) {
            call.reply.close_on_return(numbers);
        }
    }

    /// What a read does before it waits: a thread that waits for the process's work has the
    /// process's own priority, and a read buffer that cannot be written to is refused before
    /// anything is taken for it. An address that was good the last time is not tried again: most
    /// threads read to the same place for ever.
    fn begin_read(
        self: &Arc<Self>,
        section: &mut Section<'_>,
        call: &Call,
        data: &WriteRead,
        known: &mut Known,
    ) -> Result<(), Errno> {
        let (graph, id) = section.enter()?;
        let (is_good, available) = graph.threads.get(&id).map_or((true, false), |thread| {
            let is_good = thread.known_read_buffer == Some(data.read_buffer);
            (is_good, graph.available_for_process_work(thread))
        });
        if available {
            if !known.has_nice() {
                section.leave();
            }
            if known.nice(self, call.tid) != self.default_nice {
                section.leave();
                self.task.set_nice(call.tid, self.default_nice);
            }
        }
        if is_good || data.read_consumed != 0 {
            return Ok(());
        }
        section.leave();
        let mut noop = FewBytes::new();
        Return::Noop.encode(&mut noop);
        call.memory.write(data.read_buffer, &noop)?;
        if let Some(thread) = section.graph().threads.get_mut(&id) {
            thread.known_read_buffer = Some(data.read_buffer);
        }
        Ok(())
    }

    /// Every ioctl that neither waits nor touches the caller's memory beyond its argument.
    /// The answer is the argument as it is copied out.
    fn simple_ioctl(self: &Arc<Self>, thread: ThreadId, call: &Call) -> Result<FewBytes, Errno> {
        let word = || u32::at(&call.arg).unwrap_or_default();
        let unchanged = || call.arg.clone();
        match call.cmd {
            BINDER_SET_MAX_THREADS => {
                let max_threads = word();
                self.context.locked(|graph| {
                    if let Some(record) = graph.processes.get_mut(&self.id) {
                        record.max_threads = max_threads;
                    }
                });
                Ok(unchanged())
            }
            BINDER_SET_CONTEXT_MGR | BINDER_SET_CONTEXT_MGR_EXT => {
                let object = if call.cmd == BINDER_SET_CONTEXT_MGR_EXT {
                    FlatObject::decode_any(&call.arg)
                } else {
                    FlatObject::default()
                };
                let euid = self.task.identity(call.tid, call.uid).euid;
                self.context.locked(|graph| graph.set_context_manager(self.id, euid, &object))?;
                Ok(unchanged())
            }
            BINDER_THREAD_EXIT => {
                self.context.locked(|graph| graph.release_thread(thread));
                Ok(unchanged())
            }
            BINDER_VERSION => Ok(record(&binder_version {
                protocol_version: BINDER_CURRENT_PROTOCOL_VERSION as i32,
            })),
            BINDER_GET_NODE_INFO_FOR_REF => self.node_info_for_ref(&call.arg),
            BINDER_GET_NODE_DEBUG_INFO => {
                Ok(self.node_debug_info(u64::at(&call.arg).unwrap_or_default()))
            }
            BINDER_GET_FROZEN_INFO => self.frozen_info(word()),
            BINDER_ENABLE_ONEWAY_SPAM_DETECTION => {
                let enable = word() != 0;
                self.context.locked(|graph| {
                    if let Some(record) = graph.processes.get_mut(&self.id) {
                        record.oneway_spam_detection = enable;
                    }
                });
                Ok(unchanged())
            }
            BINDER_GET_EXTENDED_ERROR => {
                let error = self.context.locked(|graph| {
                    let thread = graph.threads.get_mut(&thread)?;
                    Some(std::mem::replace(&mut thread.extended_error, ExtendedError::NONE))
                });
                let error = error.unwrap_or(ExtendedError::NONE);
                let ExtendedError { id, command, param } = error;
                Ok(record(&binder_extended_error { id, command, param }))
            }
            _ => {
                user_error!(Kind::BadIoctl, "unknown ioctl {:#x}", call.cmd);
                Err(Errno::EINVAL)
            }
        }
    }

    /// BINDER_GET_NODE_INFO_FOR_REF. EINVAL: anything but the handle is set, or no such strong
    /// handle; EPERM: not the context manager.
    fn node_info_for_ref(&self, arg: &[u8]) -> Result<FewBytes, Errno> {
        let asked = binder_node_info_for_ref::at(arg).ok_or(Errno::EINVAL)?;
        let handle = asked.handle;
        let only_handle = binder_node_info_for_ref { handle, ..Default::default() };
        if asked.as_bytes() != only_handle.as_bytes() {
            return Err(Errno::EINVAL);
        }
        let (strong, weak) = self.context.locked(|graph| {
            if graph.manager_process() != Some(self.id) {
                return Err(Errno::EPERM);
            }
            let reference = graph.find_ref(self.id, handle, true).ok_or(Errno::EINVAL)?;
            let node = graph.nodes.get(&reference.node).ok_or(Errno::EINVAL)?;
            Ok((node.local_strong_refs + node.internal_strong_refs, node.local_weak_refs))
        })?;
        Ok(record(&binder_node_info_for_ref {
            handle,
            strong_count: strong as u32,
            weak_count: weak as u32,
            ..Default::default()
        }))
    }

    /// BINDER_GET_NODE_DEBUG_INFO: zeros when there is no node behind the given pointer.
    fn node_debug_info(&self, ptr: u64) -> FewBytes {
        let info = self.context.locked(|graph| {
            graph.next_node(self.id, ptr).map(|node| binder_node_debug_info {
                ptr: node.ptr,
                cookie: node.cookie,
                has_strong_ref: node.has_strong_ref.into(),
                has_weak_ref: node.has_weak_ref.into(),
            })
        });
        record(&info.unwrap_or_default())
    }

    /// BINDER_GET_FROZEN_INFO. EINVAL: no open file of that pid, or each is released.
    ///
    /// The driver releases files one after another, and a file is not found any more when its
    /// release begins: who sees that of two files that were closed in turn knows that the first
    /// one's release is done. Here releases go on at the same time, and each file is found until
    /// its own is done, which tells the same.
    fn frozen_info(&self, pid: u32) -> Result<FewBytes, Errno> {
        let targets = self.context.shared.processes_of(self.pid_from_client(pid as i32));
        if targets.is_empty() {
            return Err(Errno::EINVAL);
        }
        let (mut sync, mut asynchronous) = (0, 0);
        for (_, target) in targets {
            let pending = target.txns_pending();
            target.context.locked(|graph| {
                if let Some(record) = graph.processes.get(&target.id) {
                    sync |= u32::from(record.sync_recv) | (u32::from(pending) << 1);
                    asynchronous |= u32::from(record.async_recv);
                }
            });
        }
        Ok(record(&binder_frozen_status_info { pid, sync_recv: sync, async_recv: asynchronous }))
    }

    /// BINDER_FREEZE: each open file of a pid in turn; the first that fails ends it. EINVAL: no
    /// open file of that pid; EAGAIN: transactions are still pending after the timeout.
    fn freeze(self: &Arc<Self>, thread: ThreadId, call: Call) {
        let Some(asked) = binder_freeze_info::at(&call.arg) else {
            return call.reply.send(Err(Errno::EINVAL), &call.arg);
        };
        let binder_freeze_info { pid, enable, timeout_ms } = asked;
        let found = self.context.shared.processes_of(self.pid_from_client(pid as i32)).into_iter();
        let targets: VecDeque<_> =
            found.filter_map(|(is_dead, target)| (!is_dead).then_some(target)).collect();
        if targets.is_empty() {
            self.context.locked(|graph| graph.ioctl_done(thread));
            return call.reply.send(Err(Errno::EINVAL), &call.arg);
        }
        if enable == 0 {
            for target in targets {
                target.context.locked(|graph| graph.unfreeze(target.id));
            }
            self.context.locked(|graph| graph.ioctl_done(thread));
            return call.reply.send(Ok(0), &call.arg);
        }
        self.context.locked(|graph| graph.ioctl_done(thread));
        let process = self.clone();
        let answer = self.freeze_next(FreezeWait {
            ticket: self.context.shared.next_id(),
            caller: (self.id, call.tid),
            timeout_ms,
            targets,
            finish: Box::new(Finish { process, reply: call.reply, result: Ok(0), out: call.arg }),
        });
        answer.into_iter().for_each(Answer::give);
    }

    /// Freezes the remaining targets, one after the other. None: the first of them has transactions
    /// to wait for.
    fn freeze_next(&self, mut wait: FreezeWait) -> Option<Answer> {
        let shared = &self.context.shared;
        while let Some(target) = wait.targets.front().cloned() {
            let ticket = wait.ticket;
            let timeout = Duration::from_millis(wait.timeout_ms.into());
            let caller = wait.caller;
            let returned = target.context.locked(|graph| {
                let busy = graph.freeze(target.id) && wait.timeout_ms > 0;
                let Some(record) = graph.processes.get_mut(&target.id).filter(|_| busy) else {
                    return Some(wait);
                };
                // Noted before `interrupted` is asked. A signal that comes before that is seen
                // there; a later one finds the wait.
                shared.note_freeze_caller(caller, &target, ticket);
                if wait.finish.reply.interrupted() {
                    graph.freeze_abandoned(target.id);
                    wait.finish.result = Err(Errno::EINTR);
                    return Some(wait);
                }
                record.freeze_waits.insert(ticket, wait);
                None
            });
            let Some(returned) = returned else {
                let target = Arc::downgrade(&target);
                let fire = move || {
                    if let Some(target) = target.upgrade() {
                        target.end_freeze_wait(ticket, FreezeEnd::TimedOut);
                        // Not on the thread of the timers: a client's memory may hold it up.
                        target.context.shared.hand_over();
                    }
                };
                shared.timers.after(ticket, timeout, Box::new(fire));
                return None;
            };
            wait = returned;
            if wait.finish.result.is_err() {
                shared.forget_freeze_caller(caller);
                return Some(Answer::Restart(wait.finish));
            }
            wait = self.freeze_settled(wait);
            if wait.finish.result.is_err() {
                break;
            }
        }
        Some(Answer::Finish(wait.finish))
    }

    /// Ends the freeze of the first target, which has no outstanding transactions or was waited for
    /// long enough.
    fn freeze_settled(&self, mut wait: FreezeWait) -> FreezeWait {
        let Some(target) = wait.targets.pop_front() else { return wait };
        let pending = target.txns_pending();
        let settled = target.context.locked(|graph| graph.freeze_settled(target.id, pending));
        wait.finish.result = settled.map(|()| 0);
        wait
    }

    /// A wait for this process ends before its transactions are done. The answer to the waiting
    /// caller goes into the outbox.
    pub(crate) fn end_freeze_wait(self: &Arc<Self>, ticket: u64, end: FreezeEnd) {
        let wait = self.context.locked(|graph| {
            let wait = graph.processes.get_mut(&self.id)?.freeze_waits.remove(&ticket)?;
            if end == FreezeEnd::Interrupted {
                graph.freeze_abandoned(self.id);
            }
            Some(wait)
        });
        match (wait, end) {
            (None, _) => {}
            (Some(wait), FreezeEnd::Interrupted) => {
                self.context.shared.post(smallvec![Effect::Answer(Answer::Restart(wait.finish))]);
            }
            (Some(wait), FreezeEnd::TimedOut) => self.freeze_waited(wait),
        }
    }

    /// The wait for this process is over, for whatever reason: goes on with the next target.
    pub(crate) fn freeze_waited(self: &Arc<Self>, mut wait: FreezeWait) {
        let shared = &self.context.shared;
        shared.forget_freeze_caller(wait.caller);
        wait = self.freeze_settled(wait);
        let answer = if wait.targets.is_empty() || wait.finish.result.is_err() {
            Some(Answer::Finish(wait.finish))
        } else {
            wait.ticket = shared.next_id();
            self.freeze_next(wait)
        };
        shared.post(answer.into_iter().map(Effect::Answer).collect());
    }
}

/// What ended a wait early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FreezeEnd {
    TimedOut,
    Interrupted,
}
