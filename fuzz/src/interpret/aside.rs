//! What somebody else does while the driver is at work for a client, outside of its lock.

use super::*;
use fakebinder::protocol::record::IntoBytes;

impl Stage {
    /// Something small that somebody else does while the driver is at work.
    pub(super) fn aside(
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
                Box::new(move || drop(process.release()))
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
                        slot.set_interrupted(true);
                    }
                    process.interrupt(tid);
                })
            }
            Aside::FlushProcess { process } => {
                let process = process_of(process)?;
                Box::new(move || drop(process.flush()))
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
                self.aside_ioctl(
                    other,
                    other_thread,
                    BINDER_WRITE_READ,
                    call.as_bytes().to_vec(),
                    kind,
                )
            }
            Aside::ReadNow { by } => {
                let (other, other_thread) = self.bystander((role, thread), *by)?;
                let read_buffer = read_buffer(other_thread);
                let call = WriteRead { read_size: 256, read_buffer, ..WriteRead::default() };
                let kind = Kind::WriteRead { done: Vec::new() };
                self.aside_ioctl(
                    other,
                    other_thread,
                    BINDER_WRITE_READ,
                    call.as_bytes().to_vec(),
                    kind,
                )
            }
        })
    }

    /// A thread that is in its program and is not the one that acts.
    pub(super) fn bystander(&self, acts: (usize, usize), actor: Actor) -> Option<(usize, usize)> {
        let role = self.role(actor.process())?;
        let thread = actor.thread() % THREADS;
        let idle = self.roles[role].threads[thread].running.is_none();
        // What a process has in its arena for one call at a time is the acting one's.
        (idle && (role, thread) != acts).then_some((role, thread))
    }

    pub(super) fn aside_call(
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
    pub(super) fn aside_ioctl(
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
            uid: role.euid(),
            nonblock: true,
            cmd,
            arg: arg.into(),
            memory: role.view.clone(),
            reply: Box::new(SimReply(slot)),
        };
        let process = role.process.clone();
        Box::new(move || drop(process.ioctl(call)))
    }
}
