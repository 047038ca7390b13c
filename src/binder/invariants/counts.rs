//! What holds of nodes, transactions and links: their counts are the number of records that hold
//! them.

use super::Checked;
use crate::alloc::invariants::rule;
use crate::binder::death::DeathWork;
use crate::binder::freeze::FreezeWork;
use crate::binder::graph::{Graph, NodeId, Place, Queue, TransactionId, Work};
use crate::binder::node::Node;
use crate::binder::process::ProcessInner;
use crate::binder::transaction::{HeldRef, Transaction};

impl Graph {
    /// A node's counts are the number of its holders.
    pub(super) fn check_node(&self, id: NodeId, node: &Node) -> Checked {
        let name = || node.name(id);
        rule!(node.tmp_refs == 0, "{}: a temporary reference is left", name());
        let mut strong_refs = 0;
        for (ref_id, holder) in &node.refs {
            let reference = self.processes.get(holder).and_then(|record| {
                let handle = record.handles.get(&id)?;
                record.refs.get(handle).filter(|reference| reference.id == *ref_id)
            });
            rule!(reference.is_some(), "{}: {holder:?} does not refer to it", name());
            strong_refs += u64::from(reference.is_some_and(|reference| reference.strong > 0));
        }
        rule!(
            node.internal_strong_refs == strong_refs,
            "{}: {strong_refs} strong references, not {}",
            name(),
            node.internal_strong_refs
        );
        if let Some(place) = node.work {
            rule!(
                self.stands_in(place, Work::Node(id)),
                "{}: its notice is not in {place:?}",
                name()
            );
        }
        let Some(owner) = node.process else {
            rule!(!node.refs.is_empty(), "{}: dead, and nobody refers to it", name());
            rule!(node.async_todo.is_empty(), "{}: dead, with calls that wait for it", name());
            return Ok(());
        };
        let Some(record) = self.processes.get(&owner) else {
            rule!(false, "{}: its owner is gone", name());
            return Ok(());
        };
        rule!(
            record.nodes.get(&node.ptr) == Some(&id),
            "{}: its owner does not know of it",
            name()
        );
        self.check_local_refs(id, node, record)?;
        self.check_oneway(id, node, record)
    }

    /// What keeps a node on its owner's side: transactions to it, objects in the owner's buffers,
    /// notices that the owner has not confirmed, and its being the context manager's.
    ///
    /// Not checked while the owner is being released, which takes several sections: it stops being
    /// the context manager before its nodes go.
    fn check_local_refs(&self, id: NodeId, node: &Node, record: &ProcessInner) -> Checked {
        if record.is_dead {
            return Ok(());
        }
        let manager = u64::from(self.manager == Some(id));
        let mut strong = manager + u64::from(node.pending_strong_ref);
        let mut weak = manager + u64::from(node.pending_weak_ref);
        for buffer in record.buffers.values() {
            strong += u64::from(buffer.target_node == Some(id));
            for held in &buffer.held {
                match *held {
                    HeldRef::Node { ptr, strong: true } if ptr == node.ptr => strong += 1,
                    HeldRef::Node { ptr, strong: false } if ptr == node.ptr => weak += 1,
                    HeldRef::Node { .. } | HeldRef::Handle { .. } => {}
                }
            }
        }
        rule!(
            node.local_strong_refs == strong,
            "{}: {strong} strong users of its owner's, not {}",
            node.name(id),
            node.local_strong_refs
        );
        rule!(
            node.local_weak_refs == weak,
            "{}: {weak} weak users of its owner's, not {}",
            node.name(id),
            node.local_weak_refs
        );
        let kept = !node.refs.is_empty() || strong + weak > 0;
        rule!(
            kept || node.work.is_some()
                || node.notice_lost
                || !(node.has_strong_ref || node.has_weak_ref),
            "{}: nothing keeps it, and its owner was not told",
            node.name(id)
        );
        Ok(())
    }

    /// The owner has one one-way call to a node at a time. The others wait, and only while there is
    /// one.
    fn check_oneway(&self, id: NodeId, node: &Node, record: &ProcessInner) -> Checked {
        let of_node = record.buffers.values();
        let of_node = of_node.filter(|b| b.buffer.is_async && b.target_node == Some(id)).count();
        let handed_out = of_node.checked_sub(node.async_todo.len());
        rule!(
            handed_out == Some(usize::from(node.has_async_transaction)),
            "{}: {of_node} one-way buffers, {} of them waiting; one handed out: {}",
            node.name(id),
            node.async_todo.len(),
            node.has_async_transaction
        );
        for waiting in node.async_todo.iter() {
            let transaction = self.transactions.get(&waiting);
            rule!(
                transaction.is_some_and(|t| t.is_oneway() && t.target_node == Some(id)),
                "{}: transaction {} in its queue is not one of its own",
                node.name(id),
                waiting.0
            );
        }
        Ok(())
    }

    /// A transaction stands in exactly one place: queued, or on the stack of the thread that serves
    /// it, or, if its receiver is gone, on the stack of the thread that waits for it.
    pub(super) fn check_transaction(
        &self,
        id: TransactionId,
        transaction: &Transaction,
    ) -> Checked {
        if let Some((process, offset)) = transaction.to_process.zip(transaction.buffer) {
            let buffer = self.processes.get(&process).and_then(|p| p.buffers.get(&offset));
            rule!(
                buffer.is_some_and(|buffer| buffer.transaction == Some(id)),
                "transaction {}: its buffer does not know of it",
                id.0
            );
        }
        let is_this = |(_, work): &(u64, Work)| *work == Work::Transaction(id);
        let mut queued = 0;
        if let Some(record) = transaction.to_process.and_then(|p| self.processes.get(&p)) {
            queued += record.todo.iter().filter(is_this).count();
            for thread in record.threads.values().filter_map(|thread| self.threads.get(thread)) {
                queued += thread.todo.iter().filter(is_this).count();
            }
        }
        if let Some(node) = transaction.target_node.and_then(|node| self.nodes.get(&node)) {
            queued += node.async_todo.iter().filter(|waiting| *waiting == id).count();
        }
        let served = transaction.to_thread.is_some_and(|thread| self.is_on_stack(thread, id));
        rule!(
            queued + usize::from(served) <= 1,
            "transaction {}: queued {queued} times, and served: {served}",
            id.0
        );
        let awaited = transaction.from.is_some_and(|thread| self.is_on_stack(thread, id));
        rule!(
            awaited == transaction.from.is_some(),
            "transaction {}: its sender does not wait for it",
            id.0
        );
        // The server left in the middle of a call of its own: the reply to that call will find this
        // transaction (`send_failed_reply`).
        let followed = || self.transactions.values().any(|t| t.from_parent == Some(id));
        rule!(
            queued == 1 || served || followed(),
            "transaction {}: nobody will ever look at it again",
            id.0
        );
        Ok(())
    }

    /// Death and freeze links belong to a reference, or to a notice that is still to be read.
    pub(super) fn check_links(&self) -> Checked {
        for (id, death) in &self.deaths {
            let Some(record) = self.processes.get(&death.holder) else {
                rule!(false, "death link {}: its holder is gone", id.0);
                return Ok(());
            };
            if let Some(place) = death.place {
                rule!(
                    self.stands_in(place, Work::Death(*id)),
                    "death link {}: its notice is not in {place:?}",
                    id.0
                );
            }
            let referred = record.refs.values().filter(|r| r.death == Some(*id)).count();
            let expected = usize::from(death.work == DeathWork::DeadBinder);
            rule!(
                referred == expected && (referred == 1 || death.place.is_some()),
                "death link {} of {record:?}: {referred} references have it, {:?}",
                id.0,
                death.work
            );
        }
        for (id, freeze) in &self.freezes {
            let Some(record) = self.processes.get(&freeze.holder) else {
                rule!(false, "freeze link {}: its holder is gone", id.0);
                return Ok(());
            };
            if let Some(place) = freeze.place {
                rule!(
                    self.stands_in(place, Work::Freeze(*id)),
                    "freeze link {}: its notice is not in {place:?}",
                    id.0
                );
            }
            let delivered = matches!(freeze.place, Some(Place { queue, .. }) if queue == Queue::DeliveredFreeze(freeze.holder));
            rule!(
                freeze.sent == delivered,
                "freeze link {}: sent: {}, waits to be acknowledged: {delivered}",
                id.0,
                freeze.sent
            );
            let referred = record.refs.values().filter(|r| r.freeze == Some(*id)).count();
            let expected = usize::from(freeze.work == FreezeWork::FrozenBinder);
            rule!(
                referred == expected && (referred == 1 || freeze.place.is_some()),
                "freeze link {} of {record:?}: {referred} references have it, {:?}",
                id.0,
                freeze.work
            );
        }
        for record in self.processes.values() {
            let deaths = self.deaths.values().filter(|d| d.holder == record.process.id).count();
            let freezes = self.freezes.values().filter(|f| f.holder == record.process.id).count();
            rule!(
                (record.deaths, record.freezes) == (deaths, freezes),
                "{record:?}: counts {} death and {} freeze links, not {deaths} and {freezes}",
                record.deaths,
                record.freezes
            );
        }
        Ok(())
    }
}
