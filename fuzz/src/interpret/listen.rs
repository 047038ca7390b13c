//! What comes back: clients take note of what their commands did and what they have read, and
//! compare it with what was sent.

use super::*;
use fakebinder::protocol::record::Record;

impl Stage {
    /// Gives every client what its ioctls that have ended brought.
    pub(super) fn attend(&mut self) {
        let mut reads = Vec::new();
        for role in 0..self.roles.len() {
            for thread in 0..=READER {
                let running = &mut self.roles[role].threads[thread].running;
                let Some(ended) = running.as_ref().and_then(|running| running.slot.take()) else {
                    continue;
                };
                let Some(Running { kind, .. }) = running.take() else { continue };
                trace(|| format!("    {role}.{thread} gets {:?}", ended.result));
                self.roles[role].threads[thread].last = ended.result;
                match kind {
                    Kind::WriteRead { done } => {
                        let call = WriteRead::at(&ended.out).unwrap_or_default();
                        trace(|| {
                            format!("    {role}.{thread} wrote {} bytes", call.write_consumed)
                        });
                        for (end, what) in done {
                            if end <= call.write_consumed {
                                self.done(role, thread, what);
                            }
                        }
                        if ended.result.is_ok() {
                            reads.push((role, thread, call));
                        }
                    }
                    Kind::Other(BINDER_VERSION) if ended.result.is_ok() => {
                        assert_eq!(ended.out[..4], 8_i32.to_ne_bytes(), "the protocol's version");
                    }
                    Kind::Other(_) => {}
                }
            }
        }
        // Who has freed a buffer may have been given it anew in the same step.
        for (role, thread, call) in reads {
            self.read(role, thread, &call);
        }
        self.roles.iter_mut().for_each(|role| role.hasty = false);
    }

    pub(super) fn done(&mut self, role: usize, thread: usize, what: Done) {
        let r = &mut self.roles[role];
        fn remove<T: PartialEq>(list: &mut Vec<T>, item: &T) {
            if let Some(index) = list.iter().position(|known| known == item) {
                list.remove(index);
            }
        }
        match what {
            Done::Nothing => {}
            Done::Freed(address) => {
                remove(&mut r.buffers, &address);
                r.freed.push(address);
            }
            Done::Answered => {
                r.threads[thread].serving.pop();
            }
            Done::Confirmed(node, strong) => remove(&mut r.notices, &(node, strong)),
            Done::AskedDeath(link) => {
                let node = r.process.node_behind(link.handle).map(|(ptr, _)| ptr);
                let known = r.death_links.iter().any(|known| known.handle == link.handle);
                r.death_links.push(link);
                if let Some(ptr @ 1..) = node
                    && !known
                    && r.kept.contains(&{ link.handle })
                {
                    r.death_watches.push((link.cookie, (ptr >> 16) as usize - 1));
                }
            }
            Done::ClearedDeath(link) => {
                remove(&mut r.death_links, &link);
                r.death_watches.retain(|(cookie, _)| *cookie != link.cookie);
            }
            Done::AcceptedDeath(cookie) => remove(&mut r.deaths, &cookie),
            Done::AskedFreeze(link) => r.freeze_links.push(link),
            Done::ClearedFreeze(link) => remove(&mut r.freeze_links, &link),
            Done::AcceptedFreeze(cookie) => remove(&mut r.freezes, &cookie),
            Done::Counted { handle, keeps } => {
                if keeps && r.process.node_behind(handle).is_some() {
                    r.kept.push(handle);
                }
                if !r.handles.contains(&handle) && r.process.node_behind(handle).is_some() {
                    r.handles.push(handle);
                }
            }
        }
    }

    /// A thread looks at what it has read.
    pub(super) fn read(&mut self, role: usize, thread: usize, call: &WriteRead) {
        let mut bytes = [0; READ_BUFFER];
        let consumed = (call.read_consumed as usize).min(READ_BUFFER / 2);
        let all = read_buffer(thread)..read_buffer(thread + 1);
        if call.read_size == 0 || !all.contains(&call.read_buffer) {
            return;
        }
        let r = &self.roles[role];
        r.arena.read(call.read_buffer, &mut bytes[..consumed]).expect("its own read buffer");
        let mut rest = &bytes[..consumed];
        if call.read_size == 512 {
            // Resumed: what was there before is of no interest, and its length not known here.
            rest = &[];
        }
        while !rest.is_empty() {
            let (what, size) = Return::decode(rest).expect("whole returns");
            rest = &rest[size..];
            trace(|| format!("    {role}.{thread} reads {what:x?}"));
            self.returned(role, thread, what);
        }
    }

    pub(super) fn returned(&mut self, role: usize, thread: usize, what: Return) {
        let strangers = self.ledger.has_strangers;
        let r = &mut self.roles[role];
        match what {
            Return::Increfs(node) => r.notices.push((node, false)),
            Return::Acquire(node) => r.notices.push((node, true)),
            Return::DeadBinder(cookie) => {
                assert!(
                    strangers || cookie < r.next_cookie,
                    "a death that nobody asked for: {cookie}"
                );
                r.deaths.push(cookie);
                r.death_watches.retain(|(watched, _)| *watched != cookie);
            }
            Return::FrozenBinder { cookie, .. } => {
                assert!(
                    strangers || cookie < r.next_cookie,
                    "a freeze that nobody asked for: {cookie}"
                );
                r.freezes.push(cookie);
            }
            Return::Transaction(data) | Return::TransactionSecCtx(data, _) => {
                if let Return::TransactionSecCtx(data, context) = what {
                    self.check_security_context(role, &data, context);
                }
                let number = self.receive(role, &data, false);
                if data.flags & TF_ONE_WAY == 0 {
                    self.roles[role].threads[thread].serving.push(number);
                }
            }
            Return::Reply(data) => {
                let number = self.receive(role, &data, true);
                self.check_answer(role, thread, number);
            }
            Return::Error
            | Return::Ok
            | Return::AcquireResult(_)
            | Return::DeadReply
            | Return::TransactionComplete
            | Return::Release(_)
            | Return::Decrefs(_)
            | Return::Noop
            | Return::SpawnLooper
            | Return::Finished
            | Return::ClearDeathNotificationDone(_)
            | Return::FailedReply
            | Return::FrozenReply
            | Return::OnewaySpamSuspect
            | Return::TransactionPendingFrozen
            | Return::ClearFreezeNotificationDone(_) => {}
        }
        if let Return::Increfs(node)
        | Return::Acquire(node)
        | Return::Release(node)
        | Return::Decrefs(node) = what
        {
            let r = &self.roles[role];
            if self.ledger.has_strangers {
                return;
            }
            let own = r.nodes().contains(&node.ptr) && node.cookie | 1 == (node.ptr ^ COOKIE) | 1;
            assert!(own || node == PtrCookie::default(), "{role} hears of {node:x?}");
        }
    }

    /// A message has come; returns its number.
    pub(super) fn receive(&mut self, role: usize, data: &TransactionData, reply: bool) -> usize {
        let r = &mut self.roles[role];
        let end = data.buffer.wrapping_add(data.data_size);
        let mapping = MAPPING..=MAPPING + r.alloc.buffer_size() as u64;
        assert!(mapping.contains(&data.buffer) && mapping.contains(&end), "{data:x?}");
        let strangers = self.ledger.has_strangers;
        assert!(
            strangers || !r.buffers.contains(&data.buffer),
            "a buffer is given twice: {data:x?}"
        );
        r.buffers.push(data.buffer);
        let receiver = Receiver {
            process: &r.process,
            mm: &r.mm,
            client: &r.client,
            nodes: r.nodes(),
            dropped: &r.dropped,
            // Objects of who is gone are nobody's.
            hasty: r.hasty || !r.open,
        };
        let received = self.ledger.receive(data, reply, &receiver);
        for handle in received.handles {
            if !r.handles.contains(&handle) {
                r.handles.push(handle);
            }
        }
        received.number
    }

    pub(super) fn check_security_context(&self, role: usize, data: &TransactionData, address: u64) {
        if self.ledger.has_strangers || self.roles[role].hasty || data.flags & TF_UPDATE_TXN != 0 {
            return;
        }
        let sent = &self.ledger.sent[(data.code >> 2) as usize];
        let expected = security_context(self.roles[sent.by.0].pid);
        let expected = expected.expect("who has none cannot send to such a node");
        let mut context = vec![0; expected.len()];
        if self.roles[role].mm.peek(address, &mut context).is_ok() {
            assert_eq!(context, expected, "the sender's security context");
        }
    }

    /// A reply goes to the thread whose call its sender served, and each call has one at most.
    pub(super) fn check_answer(&mut self, role: usize, thread: usize, reply: usize) {
        if self.ledger.has_strangers {
            return;
        }
        let Some(by) = self.ledger.sent.get(reply).map(|reply| reply.by) else { return };
        let call = self.ledger.sent.iter_mut().rev().find(|call| {
            !call.is_reply
                && call.flags & TF_ONE_WAY == 0
                && !call.answered
                && call.by == (role, thread)
        });
        let Some(call) = call else {
            panic!("{role}.{thread} gets a reply of {by:?} and has called nobody");
        };
        call.answered = true;
    }
}
