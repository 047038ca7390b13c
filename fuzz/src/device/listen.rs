//! What clients read.

use super::Stage;
use super::machine::{ARGUMENT, READ_BUFFER};
use crate::trace::trace;
use fakebinder::protocol::object::Object as BcObject;
use fakebinder::protocol::record::{Record, TransactionData, WriteRead};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::TF_ONE_WAY;
use std::time::Duration;

impl Stage<'_> {
    /// Waits for a client's read to end, so long, and looks at what came.
    pub(super) fn finish_read(&mut self, role: usize, timeout: Duration) {
        let client = &self.machine.clients[role];
        let Some(result) = client.ended(timeout) else { return };
        self.roles[role].reading = false;
        trace(|| format!("    {role} gets {result:?}"));
        if result.is_err() {
            return;
        }
        let call = WriteRead::at(&client.read(ARGUMENT, WriteRead::SIZE)).unwrap_or_default();
        assert!(call.read_consumed <= 256, "{call:?}");
        let bytes = client.read(READ_BUFFER, call.read_consumed as usize);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (what, size) = Return::decode(rest).expect("whole returns");
            rest = &rest[size..];
            trace(|| format!("    {role} reads {what:x?}"));
            self.returned(role, what);
        }
    }

    fn returned(&mut self, role: usize, what: Return) {
        let r = &mut self.roles[role];
        match what {
            Return::Increfs(node) => r.notices.push((node, false)),
            Return::Acquire(node) => r.notices.push((node, true)),
            Return::DeadBinder(cookie) => r.deaths.push(cookie),
            Return::FrozenBinder { cookie, .. } => r.freezes.push(cookie),
            Return::Transaction(data)
            | Return::TransactionSecCtx(data, _)
            | Return::Reply(data) => {
                r.buffers.push(data.buffer);
                let reply = matches!(what, Return::Reply(_));
                r.serving += usize::from(!reply && data.flags & TF_ONE_WAY == 0);
                if r.mapping.is_some() {
                    self.look_at(role, &data);
                }
            }
            _ => {}
        }
    }

    /// Compares what has arrived in a client's mapping with what was sent.
    fn look_at(&mut self, role: usize, data: &TransactionData) {
        let client = &self.machine.clients[role];
        let bytes = client.peek(data.buffer, data.data_size);
        let number = u32::from_ne_bytes(*bytes.first_chunk().expect("four bytes")) as usize;
        let sent = self.sent.get(number).expect("nobody has sent this");
        assert_eq!(bytes[..sent.len()], sent[..], "message {number}");
        assert!(!self.delivered[number], "message {number} is delivered twice");
        self.delivered[number] = true;
        let offsets = client.peek(data.offsets, data.offsets_size);
        for offset in offsets.as_chunks::<8>().0 {
            if let Some(BcObject::Handle { flat, .. }) =
                BcObject::read(&bytes, u64::from_ne_bytes(*offset))
                && !self.roles[role].handles.contains(&flat.handle())
            {
                self.roles[role].handles.push(flat.handle());
            }
        }
    }
}
