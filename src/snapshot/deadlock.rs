//! Which threads wait for one another, so that none will ever get its reply.

use super::{Context, Process, Thread, Transaction, Waits, Work};
use std::collections::{BTreeMap, BTreeSet};

/// Who can bring a waiting thread its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// The thread that has read the call, or is about to.
    Thread(u64),
    /// Any of these threads: the call waits for one that is free.
    AnyOf(Vec<u64>),
    /// Nobody of whom the snapshot tells: the call's receiver has died, is frozen, or has a thread
    /// coming.
    Other,
}

/// A snapshot of a context, by id.
pub struct Index<'a> {
    /// Every thread, with its process.
    pub threads: BTreeMap<u64, (&'a Process, &'a Thread)>,
    /// Every transaction.
    pub transactions: BTreeMap<u64, &'a Transaction>,
    /// Every process.
    pub processes: BTreeMap<u64, &'a Process>,
    /// Which thread has read a transaction, and not answered it.
    readers: BTreeMap<u64, u64>,
}

impl<'a> Index<'a> {
    /// Of a context.
    pub fn new(context: &'a Context) -> Index<'a> {
        let mut index = Index {
            threads: BTreeMap::new(),
            transactions: context.transactions.iter().map(|it| (it.id, it)).collect(),
            processes: context.processes.iter().map(|it| (it.id, it)).collect(),
            readers: BTreeMap::new(),
        };
        for process in &context.processes {
            for thread in &process.threads {
                index.threads.insert(thread.id, (process, thread));
                let read = thread.stack.iter().filter(|call| !call.is_outgoing);
                index.readers.extend(read.map(|call| (call.transaction, thread.id)));
            }
        }
        index
    }

    /// The call whose reply a thread waits for.
    pub fn awaited(&self, thread: &Thread) -> Option<&'a Transaction> {
        let top = thread.stack.first().filter(|_| thread.waits == Waits::Reply)?;
        self.transactions.get(&top.transaction).copied()
    }

    /// Who can answer a call.
    pub fn holder(&self, call: &Transaction) -> Holder {
        if let Some(reader) = self.readers.get(&call.id) {
            return Holder::Thread(*reader);
        }
        let Some(process) = call.to_process.and_then(|id| self.processes.get(&id)) else {
            return Holder::Other;
        };
        let is_queued = process.todo.contains(&Work::Transaction { id: call.id });
        if !is_queued || process.is_frozen || process.requested_threads > 0 {
            // What is queued for one thread that thread reads as soon as it can.
            return call.to_thread.map_or(Holder::Other, Holder::Thread);
        }
        let serving = process.threads.iter().filter(|thread| thread.is_looper);
        Holder::AnyOf(serving.map(|thread| thread.id).collect())
    }

    /// The threads that wait for one another, with the calls whose replies they wait for: only
    /// others of them, or threads that wait for them, could give one.
    pub fn deadlocked(&self) -> BTreeMap<u64, u64> {
        self.deadlocked_if(|_, _| true)
    }

    /// The same, among threads that waited for the same calls before.
    pub fn deadlocked_among(&self, before: &BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
        self.deadlocked_if(|thread, call| before.get(&thread) == Some(&call))
    }

    /// The deadlocked threads apart, where some have nothing to do with others.
    pub fn apart(&self, deadlocked: &BTreeMap<u64, u64>) -> Vec<BTreeMap<u64, u64>> {
        // Who waits for whom, both ways.
        let mut beside: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (&thread, call) in deadlocked {
            let holder = self.transactions.get(call).map(|call| self.holder(call));
            let others = match holder {
                Some(Holder::Thread(other)) => vec![other],
                Some(Holder::AnyOf(others)) => others,
                Some(Holder::Other) | None => Vec::new(),
            };
            for other in others {
                beside.entry(thread).or_default().insert(other);
                beside.entry(other).or_default().insert(thread);
            }
        }
        let mut groups = Vec::new();
        let mut left = deadlocked.clone();
        while let Some((&first, _)) = left.first_key_value() {
            let (mut group, mut next) = (BTreeMap::new(), vec![first]);
            while let Some(thread) = next.pop() {
                if let Some(call) = left.remove(&thread) {
                    group.insert(thread, call);
                    next.extend(beside.get(&thread).into_iter().flatten());
                }
            }
            groups.push(group);
        }
        groups
    }

    fn deadlocked_if(&self, may_be: impl Fn(u64, u64) -> bool) -> BTreeMap<u64, u64> {
        let mut stuck = BTreeMap::new();
        for (id, (_, thread)) in &self.threads {
            // That its call was sent the thread reads with the reply.
            let idle = thread.todo.iter().all(|work| *work == Work::Complete);
            let call = self.awaited(thread).filter(|_| idle);
            if let Some(call) = call.filter(|call| may_be(*id, call.id)) {
                stuck.insert(*id, (call.id, self.holder(call)));
            }
        }
        loop {
            let waiting: BTreeSet<u64> = stuck.keys().copied().collect();
            stuck.retain(|_, (_, holder)| match holder {
                Holder::Thread(thread) => waiting.contains(thread),
                Holder::AnyOf(any) => {
                    !any.is_empty() && any.iter().all(|thread| waiting.contains(thread))
                }
                Holder::Other => false,
            });
            if stuck.len() == waiting.len() {
                return stuck.into_iter().map(|(thread, (call, _))| (thread, call)).collect();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Call;

    fn call(id: u64, from: u64, to: u64) -> Transaction {
        Transaction { id, from_thread: Some(from), to_process: Some(to), ..Transaction::default() }
    }

    fn thread(id: u64, waits: Waits, stack: &[(u64, bool)]) -> Thread {
        let call = |&(transaction, is_outgoing): &(u64, bool)| Call { transaction, is_outgoing };
        let todo = vec![Work::Complete];
        Thread {
            id,
            is_looper: true,
            waits,
            todo,
            stack: stack.iter().map(call).collect(),
            ..Thread::default()
        }
    }

    fn process(id: u64, threads: Vec<Thread>, queued: &[u64]) -> Process {
        let todo = queued.iter().map(|&id| Work::Transaction { id }).collect();
        Process { id, threads, todo, ..Process::default() }
    }

    /// Two processes of one thread each, that have called each other.
    fn crossed(second_waits: Waits) -> Context {
        Context {
            processes: vec![
                process(1, vec![thread(11, Waits::Reply, &[(101, true)])], &[102]),
                process(2, vec![thread(21, second_waits, &[(102, true)])], &[101]),
            ],
            transactions: vec![call(101, 11, 2), call(102, 21, 1)],
            ..Context::default()
        }
    }

    #[test]
    fn calls_that_cross_without_a_free_thread_are_a_deadlock() {
        let context = crossed(Waits::Reply);
        assert_eq!(Index::new(&context).deadlocked(), BTreeMap::from([(11, 101), (21, 102)]));
    }

    #[test]
    fn whoever_runs_may_come_and_serve() {
        let context = crossed(Waits::Not);
        assert_eq!(Index::new(&context).deadlocked(), BTreeMap::new());
    }

    #[test]
    fn a_free_thread_or_one_that_comes_is_a_way_out() {
        let mut context = crossed(Waits::Reply);
        context.processes[1].threads.push(thread(22, Waits::ProcessWork, &[]));
        assert_eq!(Index::new(&context).deadlocked(), BTreeMap::new());
        let mut context = crossed(Waits::Reply);
        context.processes[0].requested_threads = 1;
        assert_eq!(Index::new(&context).deadlocked(), BTreeMap::new());
    }

    /// What a thread that waits for a reply is sent itself it reads: nested calls end.
    #[test]
    fn a_call_back_to_the_waiting_thread_is_none() {
        let mut context = crossed(Waits::Reply);
        context.processes[0].todo.clear();
        context.processes[0].threads[0].todo.push(Work::Transaction { id: 102 });
        context.transactions[1].to_thread = Some(11);
        assert_eq!(Index::new(&context).deadlocked(), BTreeMap::new());
    }

    /// Whoever waited for something else a moment ago has gone on.
    #[test]
    fn a_thread_that_goes_on_is_in_none() {
        let context = crossed(Waits::Reply);
        let index = Index::new(&context);
        assert_eq!(index.deadlocked_among(&index.deadlocked()), index.deadlocked());
        let before = BTreeMap::from([(11, 101), (21, 99)]);
        assert_eq!(index.deadlocked_among(&before), BTreeMap::new());
    }

    /// A third who waits for them does so for ever, too; a fourth who is served does not.
    #[test]
    fn whoever_waits_for_a_deadlock_is_in_it() {
        let mut context = crossed(Waits::Reply);
        context.processes.push(process(3, vec![thread(31, Waits::Reply, &[(103, true)])], &[]));
        context.processes[1].todo.push(Work::Transaction { id: 103 });
        context.processes.push(process(4, vec![thread(41, Waits::Reply, &[(104, true)])], &[]));
        context.processes.push(process(5, vec![thread(51, Waits::Not, &[(104, false)])], &[]));
        context.transactions.extend([call(103, 31, 2), call(104, 41, 5)]);
        assert_eq!(
            Index::new(&context).deadlocked(),
            BTreeMap::from([(11, 101), (21, 102), (31, 103)])
        );
    }

    #[test]
    fn deadlocks_that_have_nothing_to_do_with_each_other_are_told_apart() {
        let mut context = crossed(Waits::Reply);
        context.processes.extend([
            process(3, vec![thread(31, Waits::Reply, &[(103, true)])], &[104]),
            process(4, vec![thread(41, Waits::Reply, &[(104, true)])], &[103]),
        ]);
        context.transactions.extend([call(103, 31, 4), call(104, 41, 3)]);
        let index = Index::new(&context);
        let groups = index.apart(&index.deadlocked());
        let expected = [[(11, 101), (21, 102)], [(31, 103), (41, 104)]].map(BTreeMap::from);
        assert_eq!(groups, expected);
    }

    #[test]
    fn the_dead_and_the_frozen_end_it_otherwise() {
        let mut context = crossed(Waits::Reply);
        context.transactions[0].to_process = None;
        assert_eq!(Index::new(&context).deadlocked(), BTreeMap::new());
        let mut context = crossed(Waits::Reply);
        context.processes[0].is_frozen = true;
        assert_eq!(Index::new(&context).deadlocked(), BTreeMap::new());
    }
}
