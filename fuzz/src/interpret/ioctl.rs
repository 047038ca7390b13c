//! The ioctls that clients make.

use super::*;

impl Stage {
    pub(super) fn ioctl(&self, role: usize, ioctl: &Ioctl) -> (u32, Vec<u8>) {
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
    pub(super) fn call(&mut self, role: usize, thread: usize, cmd: u32, arg: Vec<u8>) {
        let view = self.roles[role].view.clone();
        self.begin(role, thread, cmd, arg, view, false, Kind::Other(cmd));
    }

    #[allow(clippy::too_many_arguments, reason = "an ioctl is made of them")]
    pub(super) fn begin(
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
            reply: Box::new(SimReply(slot)),
        });
    }

    pub(super) fn write_read(
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
                view = View::new(view.arena.clone(), self.barrier.clone(), u32::from(after % 12));
            }
            Trouble::Meanwhile { after, aside } => {
                if let Some(act) = self.aside(role, thread, aside) {
                    self.barrier.arm(1 + u32::from(after % 10), act);
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
}
