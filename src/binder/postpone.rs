//! A transaction whose descriptors come to its receiver between two of the receiver's ioctls
//! ([`Installed::AtNextCall`](super::Installed)): the read that has come to it ends without it, and
//! the thread's next read begins with it.
//!
//! The driver does the same when a signal ends a read: what the thread was woken for stays on its
//! list. And it ends a read that has found nothing (BR_NOOP alone) for the sake of work that has to
//! be done at the end of an ioctl (`looper_need_return`), so programs know to call again.

use super::delivery::{Delivered, Delivery};
use super::graph::{Graph, ThreadId, Work};
use zerocopy::IntoBytes;

impl Graph {
    /// Puts a transaction back to where its thread has found it: it is what the thread reads next.
    /// If the thread is gone meanwhile, so is the transaction.
    fn put_back(&mut self, thread: ThreadId, mut delivered: Delivered) {
        let fixups = std::mem::take(&mut delivered.fixups);
        let count = fixups.len();
        let process = self.threads.get_mut(&thread).map(|record| {
            record.delivering = None;
            record.process
        });
        let place = process.and_then(|id| self.processes.get_mut(&id));
        match (self.transactions.get_mut(&delivered.id), place) {
            (Some(transaction), Some(record)) => {
                transaction.fixups = fixups;
                record.files_in_flight += count;
                self.enqueue_thread_work_first(thread, Work::Transaction(delivered.id));
            }
            // Not counted since the transaction was taken out of its list.
            _ => self.drop_fixups(None, fixups),
        }
    }
}

impl Delivery {
    /// Ends the read with the returns before the transaction.
    pub(super) fn carry_out_without_transaction(mut self: Box<Self>) {
        let process = self.read.process.clone();
        let before = self.transaction.as_ref().map_or(0, Delivered::begins_at);
        self.bytes.truncate(before);
        if let Err(errno) = self.write() {
            return self.fail(errno);
        }
        self.count_returns();
        if let Some(delivered) = self.transaction.take() {
            process.context.locked(|graph| graph.put_back(self.thread, delivered));
        }
        if self.unattended {
            process.attend_thread(self.thread);
        }
        self.read.call.read_consumed += self.bytes.len() as u64;
        self.read.reply.send(Ok(0), self.read.call.as_bytes());
    }
}
