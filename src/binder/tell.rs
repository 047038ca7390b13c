//! The driver's tracepoints and reports: what whoever listens is told of ([`events`](crate::events)).

use super::Process;
use super::delivery::{Delivered, Delivery};
use super::graph::{TransactionId, Work};
use super::section::Section;
use super::send::Sender;
use crate::events::tell;
use crate::protocol::record::TransactionData;
use crate::protocol::returns::Return;
use crate::uapi::{self, fakebinder_event};

/// An event that is the doing of a thread of that process.
fn by(process: &Process, tid: i32) -> fakebinder_event {
    let context = process.context.number;
    fakebinder_event { pid: process.pid, tid, context, ..Default::default() }
}

impl Section<'_> {
    /// `binder_command`.
    pub fn tell_command(&self, number: u32) {
        let event = || fakebinder_event { number, ..by(self.process(), self.tid()) };
        tell(uapi::FAKEBINDER_EVENT_COMMAND, event);
    }
}

impl Sender<'_> {
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
