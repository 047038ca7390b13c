//! The driver's tracepoints and reports: what whoever listens is told of ([`events`](crate::events)).

use super::Process;
use super::delivery::{Delivered, Delivery};
use super::graph::{TransactionId, Work};
use super::section::Section;
use super::send::Sender;
use crate::events::tell;
use crate::protocol::object::Object;
use crate::protocol::record::{IntoBytes, TransactionData, WriteRead};
use crate::protocol::returns::Return;
use crate::recorder;
use crate::uapi::{self, fakebinder_event, fakebinder_record};

/// An event that is the doing of a thread of that process.
fn by(process: &Process, tid: i32) -> fakebinder_event {
    let context = process.context.number;
    fakebinder_event { pid: process.pid, tid, context, ..Default::default() }
}

impl Process {
    /// Records that the device was opened, that the file is closed, or what a thread of it does, if
    /// somebody wants to know.
    pub fn record(&self, kind: u32, tid: i32, body: &[&[u8]]) {
        if recorder::is_wanted(uapi::FAKEBINDER_RECORD_ON) {
            let process = self.id.0;
            let record =
                fakebinder_record { process, kind, pid: self.pid, tid, ..Default::default() };
            recorder::note(self.context.number, record, body);
        }
    }
}

impl Section<'_> {
    pub fn record_write_read(&self, call: &WriteRead) {
        self.process().record(uapi::FAKEBINDER_RECORD_WRITE_READ, self.tid(), &[call.as_bytes()]);
    }

    pub fn record_command(&self, number: u32, payload: &[u8]) {
        let number = number.to_ne_bytes();
        self.process().record(uapi::FAKEBINDER_RECORD_COMMAND, self.tid(), &[&number, payload]);
    }

    /// `binder_command`.
    pub fn tell_command(&self, number: u32) {
        let event = || fakebinder_event { number, ..by(self.process(), self.tid()) };
        tell(uapi::FAKEBINDER_EVENT_COMMAND, event);
    }
}

impl Sender<'_> {
    /// Records what a message says: its objects as far as they are known, each with its offset, as
    /// the sender wrote it.
    pub fn record_message(
        &self,
        data: &TransactionData,
        objects: impl ExactSizeIterator<Item = (u64, Object)>,
    ) {
        if !recorder::is_wanted(uapi::FAKEBINDER_RECORD_ON) {
            return;
        }
        let mut body = (objects.len() as u32).to_ne_bytes().to_vec();
        for (offset, object) in objects {
            let mut encoded = Vec::with_capacity(Object::MAX_SIZE);
            object.encode(&mut encoded);
            body.extend(offset.to_ne_bytes());
            body.extend((encoded.len() as u64).to_ne_bytes());
            body.extend(encoded);
        }
        let mut bytes = Vec::new();
        if recorder::is_wanted(uapi::FAKEBINDER_RECORD_DATA) {
            bytes.resize(usize::try_from(data.data_size).unwrap_or(0).min(recorder::ROOM), 0);
            if self.memory.read(data.buffer, &mut bytes).is_err() {
                bytes.clear();
            }
        }
        self.process.record(uapi::FAKEBINDER_RECORD_MESSAGE, self.tid, &[&body, &bytes]);
    }

    fn event(&self, id: TransactionId, to: (i32, i32), data: &TransactionData) -> fakebinder_event {
        fakebinder_event {
            number: data.code,
            to_pid: to.0,
            to_tid: to.1,
            flags: data.flags,
            id: id.0,
            size: data.data_size,
            ..by(self.process, self.tid)
        }
    }

    /// `binder_transaction`: a call, or the reply to `call`.
    pub fn tell_sent(
        &self,
        id: TransactionId,
        call: Option<TransactionId>,
        to: (i32, i32),
        data: &TransactionData,
    ) {
        let reply_to = call.map_or(0, |call| call.0);
        let event = || fakebinder_event { reply_to, ..self.event(id, to, data) };
        tell(uapi::FAKEBINDER_EVENT_TRANSACTION, event);
    }

    /// `binder_netlink_report`: what the sender reads of a call, or of a reply, `in_reply_to`.
    pub fn report(
        &self,
        id: TransactionId,
        in_reply_to: Option<TransactionId>,
        to: (i32, i32),
        data: &TransactionData,
        error: Return,
    ) {
        let reply_to = in_reply_to.map_or(0, |call| call.0);
        let error = error.number();
        let event = || fakebinder_event { error, reply_to, ..self.event(id, to, data) };
        tell(uapi::FAKEBINDER_EVENT_REPORT, event);
    }

    /// The same for a transaction that is queued: some are reported, too.
    pub fn report_complete(
        &self,
        id: TransactionId,
        to: (i32, i32),
        data: &TransactionData,
        complete: &Work,
    ) {
        match complete {
            Work::TransactionPending => {
                self.report(id, None, to, data, Return::TransactionPendingFrozen);
            }
            Work::TransactionOnewaySpamSuspect => {
                self.report(id, None, to, data, Return::OnewaySpamSuspect);
            }
            _ => {}
        }
    }
}

impl Delivery {
    pub fn record_returns(&self) {
        let process = &self.read.process;
        if recorder::is_wanted(uapi::FAKEBINDER_RECORD_ON) {
            let (start, size) = process.alloc.place().unwrap_or_default();
            let (start, size) = (start.to_ne_bytes(), (size as u64).to_ne_bytes());
            let body: [&[u8]; 3] = [&start, &size, &self.bytes];
            process.record(uapi::FAKEBINDER_RECORD_RETURNS, self.tid, &body);
        }
    }

    /// `binder_return`.
    pub fn tell_return(&self, number: u32) {
        let event = || fakebinder_event { number, ..by(&self.read.process, self.tid) };
        tell(uapi::FAKEBINDER_EVENT_RETURN, event);
    }

    /// `binder_transaction_received`, unless the transaction comes with a later read.
    pub fn tell_received(&self) {
        let comes = |delivered: &&Delivered| delivered.begins_at() < self.bytes.len();
        if let Some(delivered) = self.transaction.as_ref().filter(comes) {
            let id = delivered.id.0;
            let event = || fakebinder_event { id, ..by(&self.read.process, self.tid) };
            tell(uapi::FAKEBINDER_EVENT_RECEIVED, event);
        }
    }
}
