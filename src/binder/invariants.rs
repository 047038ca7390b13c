//! What holds of a context whenever no thread is inside an ioctl, a poll, a flush or a release of
//! it.
//!
//! Fuzz targets and tests ask after every step ([`Context::check_invariants`]), so that a fault
//! shows where it is made and not where it is met. The rules say what each count and each link of
//! of the object graph stands for; a change of the engine that breaks a rule either has found a new
//! one, to be written down here, or has a bug.
//!
//! Not meant for a busy daemon: while a thread builds or delivers a transaction, it rightly holds
//! temporary references and buffers that no record knows of yet.

mod counts;

use super::graph::{
    Graph, NodeId, Place, ProcessId, Queue, ThreadId, TransactionId, Work, WorkList,
};
use super::node::Node;
use super::process::ProcessInner;
use super::thread::{Looper, Thread};
use super::{Context, Process};
use crate::alloc::invariants::{Violation, rule};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

type Checked = Result<(), Violation>;

impl Context {
    /// Checks every rule about the object graph, the allocators of its processes, and both
    /// together. To be called while no other thread is in this context.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        let processes: Vec<Arc<Process>> = self.with_graph(|graph| {
            graph.check()?;
            Ok::<_, Violation>(graph.processes.values().map(|p| p.process.clone()).collect())
        })?;
        for process in processes {
            process.alloc.check_invariants()?;
            let allocated = process.alloc.allocated_buffers();
            self.with_graph(|graph| {
                // A process that is being released gives its buffers back one by one.
                let living = graph.processes.get(&process.id).filter(|record| !record.is_dead);
                let Some(record) = living else { return Ok(()) };
                rule!(
                    allocated.len() == record.buffers.len(),
                    "{record:?} knows of {} buffers, its allocator of {}",
                    record.buffers.len(),
                    allocated.len()
                );
                for buffer in &allocated {
                    let known = record.buffers.get(&buffer.offset);
                    rule!(
                        known.is_some_and(|known| known.buffer == *buffer),
                        "{record:?}: nobody owns the buffer at offset {:#x}",
                        buffer.offset
                    );
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Context {
    /// Whether a thread with this id waits in a read, in any process.
    pub fn is_parked(&self, tid: i32) -> bool {
        self.with_graph(|graph| {
            graph.threads.values().any(|thread| thread.tid == tid && thread.parked.is_some())
        })
    }
}

impl Process {
    /// Pointer and cookie of the node behind a handle of this process.
    pub fn node_behind(&self, handle: u32) -> Option<(u64, u64)> {
        self.context.with_graph(|graph| {
            let node = graph.processes.get(&self.id)?.refs.get(&handle)?.node;
            graph.nodes.get(&node).map(|node| (node.ptr, node.cookie))
        })
    }
}

impl Process {
    /// Whether somebody has a strong reference to the node behind a handle of this process: then a
    /// further one is not refused.
    pub fn is_strong(&self, handle: u32) -> bool {
        self.context.with_graph(|graph| {
            let reference =
                graph.processes.get(&self.id).and_then(|record| record.refs.get(&handle));
            let node = reference.and_then(|reference| graph.nodes.get(&reference.node));
            node.is_some_and(|node| node.internal_strong_refs > 0)
        })
    }
}

impl fmt::Debug for ProcessInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} (pid {})", self.process.id.0, self.process.pid)
    }
}

impl Node {
    fn name(&self, id: NodeId) -> String {
        format!("node {} (u{:x} of {:?})", id.0, self.ptr, self.process)
    }
}

impl Graph {
    fn check(&self) -> Checked {
        // While a process is being released, each of the release's sections leaves something
        // undone.
        if self.processes.values().any(|record| record.is_dead) {
            return Ok(());
        }
        rule!(self.woken.is_empty(), "threads are woken and not attended to");
        rule!(self.effects.is_empty(), "effects are left that nobody carries out");
        rule!(self.rest.is_empty(), "work is left that nobody goes on with");
        rule!(self.leftovers.is_empty(), "threads have left something that nobody releases");
        for (&id, record) in &self.processes {
            self.check_process(id, record)?;
        }
        let by_pid: BTreeSet<_> =
            (&self.processes).into_iter().map(|(id, it)| (it.process.pid, *id)).collect();
        rule!(self.by_pid == by_pid, "the processes are not found by their pids");
        for (&id, thread) in &self.threads {
            self.check_thread(id, thread)?;
        }
        for (&id, node) in &self.nodes {
            self.check_node(id, node)?;
        }
        for (&id, transaction) in &self.transactions {
            self.check_transaction(id, transaction)?;
        }
        self.check_links()?;
        if let Some(manager) = self.manager {
            let owner = self.nodes.get(&manager).and_then(|node| node.process);
            rule!(owner.is_some(), "the context manager's node has no living owner");
        }
        Ok(())
    }

    fn check_process(&self, id: ProcessId, record: &ProcessInner) -> Checked {
        for (tid, thread_id) in &record.threads {
            let thread = self.threads.get(thread_id);
            rule!(
                thread.is_some_and(|thread| thread.process == id && thread.tid == *tid),
                "{record:?}: its thread {tid} is not its own"
            );
        }
        for (ptr, node_id) in &record.nodes {
            let node = self.nodes.get(node_id);
            rule!(
                node.is_some_and(|node| node.process == Some(id) && node.ptr == *ptr),
                "{record:?}: its node u{ptr:x} is not its own"
            );
        }
        self.check_references(record)?;
        self.check_buffers(id, record)?;
        self.check_waiting(id, record)?;

        let polls = |id: &ThreadId| {
            self.threads.get(id).is_some_and(|thread| thread.looper.contains(Looper::POLL))
        };
        let (pollers, known) = (record.threads.values().filter(|id| polls(id)), &record.polls);
        rule!(
            known.threads.iter().all(polls) && pollers.count() == known.threads.len(),
            "{record:?}: its polling threads are not {:?}",
            known.threads
        );

        let (mut outstanding, mut files) = (0, 0);
        for transaction in self.transactions.values().filter(|t| t.to_process == Some(id)) {
            outstanding += 1;
            files += transaction.fixups.len();
        }
        rule!(
            record.outstanding_txns == outstanding,
            "{record:?}: {outstanding} transactions are outstanding, not {}",
            record.outstanding_txns
        );
        rule!(
            record.files_in_flight == files,
            "{record:?}: {files} files are in flight, not {}",
            record.files_in_flight
        );
        rule!(
            record.freeze_waits.is_empty() || !record.is_frozen || outstanding > 0,
            "{record:?}: it is frozen and nothing is outstanding, and still somebody waits"
        );
        for (list, cookies) in [
            (&record.delivered_death, &record.death_cookies),
            (&record.delivered_freeze, &record.freeze_cookies),
        ] {
            let expected = list.iter().filter_map(|(sequence, work)| match work {
                Work::Death(id) => Some((self.deaths.get(&id)?.cookie, sequence)),
                Work::Freeze(id) => Some((self.freezes.get(&id)?.cookie, sequence)),
                _ => None,
            });
            rule!(
                expected.collect::<BTreeSet<_>>() == *cookies,
                "{record:?}: its delivered notices {list:?} are not found by {cookies:?}"
            );
        }
        for (queue, list) in [
            (Queue::Process(id), &record.todo),
            (Queue::DeliveredDeath(id), &record.delivered_death),
            (Queue::DeliveredFreeze(id), &record.delivered_freeze),
        ] {
            self.check_counts(list)?;
            for (sequence, work) in list.iter() {
                self.check_work(Place { queue, sequence }, work)?;
            }
        }
        Ok(())
    }

    fn check_counts(&self, list: &WorkList) -> Checked {
        let transactions = list.iter().filter(|(_, it)| matches!(it, Work::Transaction(_))).count();
        let complete = [
            Work::TransactionComplete,
            Work::TransactionPending,
            Work::TransactionOnewaySpamSuspect,
        ];
        let completes = list.iter().filter(|(_, work)| complete.contains(work)).count();
        rule!(
            (list.transactions(), list.completes()) == (transactions, completes),
            "{list:?} has {transactions} transactions and {completes} that say that one was sent"
        );
        Ok(())
    }

    /// Handles and references are two views of one table, and every number below the next one is
    /// either in use or known to be free.
    fn check_references(&self, record: &ProcessInner) -> Checked {
        rule!(
            record.handles.len() == record.refs.len(),
            "{record:?}: {} references, {} handles",
            record.refs.len(),
            record.handles.len()
        );
        for (handle, reference) in &record.refs {
            rule!(
                record.handles.get(&reference.node) == Some(handle),
                "{record:?}: handle {handle} is not its node's"
            );
            rule!(
                reference.strong + reference.weak > 0,
                "{record:?}: nothing keeps handle {handle}"
            );
            let node = self.nodes.get(&reference.node);
            rule!(
                node.is_some_and(|n| n.refs.get(&reference.id) == Some(&record.process.id)),
                "{record:?}: the node behind handle {handle} does not know of it"
            );
        }
        let free = record.free_handles.iter().filter(|handle| **handle < record.next_handle);
        rule!(
            free.count() + record.refs.len() == record.next_handle as usize
                && record.free_handles.iter().all(|handle| !record.refs.contains_key(handle)),
            "{record:?}: {} references and {} free handles below {}",
            record.refs.len(),
            record.free_handles.len(),
            record.next_handle
        );
        Ok(())
    }

    fn check_buffers(&self, id: ProcessId, record: &ProcessInner) -> Checked {
        for (&offset, buffer) in &record.buffers {
            rule!(buffer.buffer.offset == offset, "{record:?}: buffer {offset:#x} lies elsewhere");
            if let Some(transaction) = buffer.transaction {
                let transaction = self.transactions.get(&transaction);
                rule!(
                    transaction
                        .is_some_and(|t| t.buffer == Some(offset) && t.to_process == Some(id)),
                    "{record:?}: buffer {offset:#x} carries a transaction that has none"
                );
            }
            if let Some(node) = buffer.target_node {
                let node = self.nodes.get(&node);
                rule!(
                    node.is_some_and(|node| node.process == Some(id)),
                    "{record:?}: buffer {offset:#x} was sent to a node that is not its own"
                );
            }
        }
        Ok(())
    }

    /// The threads that wait for a process's work are exactly the parked ones that may take it.
    fn check_waiting(&self, id: ProcessId, record: &ProcessInner) -> Checked {
        for (turn, waiting) in &record.waiting_threads {
            let thread = self.threads.get(waiting);
            rule!(
                thread.is_some_and(|t| t.process == id && t.parked.is_some()),
                "{record:?}: thread {waiting:?} waits for work and is not parked"
            );
            rule!(
                thread.is_some_and(|t| t.turn == Some(*turn)),
                "{record:?}: thread {waiting:?} waits in a turn that is not its own"
            );
        }
        Ok(())
    }

    fn check_thread(&self, id: ThreadId, thread: &Thread) -> Checked {
        let tid = thread.tid;
        let record = self.processes.get(&thread.process);
        rule!(
            record.is_some_and(|record| record.threads.get(&tid) == Some(&id)),
            "thread {tid}: its process does not know of it"
        );
        let available = self.available_for_process_work(thread);
        let has_work = self.has_work(thread, available);
        let waits = |turn| record.is_some_and(|it| it.waiting_threads.get(&turn) == Some(&id));
        rule!(thread.turn.is_none_or(waits), "thread {tid} has a turn, and nobody knows of it");
        if let Some(parked) = &thread.parked {
            rule!(!has_work, "thread {tid} is parked though there is work for it");
            rule!(!parked.reply.interrupted(), "thread {tid} is parked though it has a signal");
            rule!(
                !available || thread.turn.is_some_and(waits),
                "thread {tid} is parked and will not hear of its process's work"
            );
        }
        // A flush makes the next read return, though there is nothing to read.
        rule!(
            !has_work
                || thread.looper_need_return
                || record.is_none_or(|record| !record.polls.still_in_vain(thread)),
            "thread {tid} polls and was not told of work for it"
        );
        let (mut return_errors, mut reply_errors) = (0, 0);
        self.check_counts(&thread.todo)?;
        for (sequence, work) in thread.todo.iter() {
            return_errors += usize::from(work == Work::ReturnError);
            reply_errors += usize::from(work == Work::ReplyError);
            self.check_work(Place { queue: Queue::Thread(id), sequence }, work)?;
        }
        rule!(
            return_errors == usize::from(thread.return_error.is_some()),
            "thread {tid}: {return_errors} notices of the error {:?}",
            thread.return_error
        );
        rule!(
            reply_errors == usize::from(thread.reply_error.is_some()),
            "thread {tid}: {reply_errors} notices of the reply error {:?}",
            thread.reply_error
        );
        self.check_stack(id, thread)
    }

    /// From the top down, a thread's stack consists of calls that it waits for and calls that it
    /// serves.
    fn check_stack(&self, id: ThreadId, thread: &Thread) -> Checked {
        let tid = thread.tid;
        let mut next = thread.transaction_stack;
        for _ in 0..=self.transactions.len() {
            let Some(top) = next else { return Ok(()) };
            let Some(transaction) = self.transactions.get(&top) else {
                rule!(false, "thread {tid}: transaction {} on its stack is gone", top.0);
                return Ok(());
            };
            rule!(
                !transaction.is_reply && !transaction.is_oneway(),
                "thread {tid}: transaction {} on its stack is no call",
                top.0
            );
            next = if transaction.to_thread == Some(id) {
                transaction.to_parent
            } else {
                rule!(
                    transaction.from == Some(id),
                    "thread {tid}: it neither sent nor serves transaction {} on its stack",
                    top.0
                );
                transaction.from_parent
            };
        }
        rule!(false, "thread {tid}: its stack has no end");
        Ok(())
    }

    fn is_on_stack(&self, thread: ThreadId, id: TransactionId) -> bool {
        let mut next = self.threads.get(&thread).and_then(|t| t.transaction_stack);
        while let Some(top) = next {
            if top == id {
                return true;
            }
            next = self.transactions.get(&top).and_then(|transaction| {
                let serves = transaction.to_thread == Some(thread);
                if serves { transaction.to_parent } else { transaction.from_parent }
            });
        }
        false
    }

    /// Work that has a record stands where the record says.
    fn check_work(&self, place: Place, work: Work) -> Checked {
        let known = match work {
            Work::Transaction(id) => {
                self.transactions.get(&id).is_some_and(|transaction| match place.queue {
                    Queue::Thread(thread) => transaction.to_thread.is_none_or(|to| to == thread),
                    Queue::Process(process) => transaction.to_process == Some(process),
                    Queue::DeliveredDeath(_) | Queue::DeliveredFreeze(_) => false,
                })
            }
            Work::Node(id) => self.nodes.get(&id).is_some_and(|node| node.work == Some(place)),
            Work::Death(id) => self.deaths.get(&id).is_some_and(|death| death.place == Some(place)),
            Work::Freeze(id) => {
                self.freezes.get(&id).is_some_and(|freeze| freeze.place == Some(place))
            }
            Work::ReturnError
            | Work::ReplyError
            | Work::TransactionComplete
            | Work::TransactionPending
            | Work::TransactionOnewaySpamSuspect => matches!(place.queue, Queue::Thread(_)),
        };
        rule!(known, "{work:?} stands in {place:?}, and does not know it");
        Ok(())
    }

    fn stands_in(&self, place: Place, work: Work) -> bool {
        let list = match place.queue {
            Queue::Thread(id) => self.threads.get(&id).map(|t| &t.todo),
            Queue::Process(id) => self.processes.get(&id).map(|p| &p.todo),
            Queue::DeliveredDeath(id) => self.processes.get(&id).map(|p| &p.delivered_death),
            Queue::DeliveredFreeze(id) => self.processes.get(&id).map(|p| &p.delivered_freeze),
        };
        list.is_some_and(|list| list.get(place.sequence) == Some(work))
    }
}
