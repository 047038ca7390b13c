//! `fakebinder why`: what a process or a thread waits for, and what that waits for.

use crate::tables::{age, context_name, kind};
use fakebinder::snapshot::deadlock::{Holder, Index};
use fakebinder::snapshot::{Process, Snapshot, Thread, Transaction, Waits};
use serde::Serialize;
use std::collections::BTreeSet;

/// The answer for one thread.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Which context.
    pub context: String,
    /// Its process.
    pub pid: i32,
    /// The thread.
    pub tid: i32,
    /// Whether it waits for a reply that will never come, as those who could give it wait, too.
    pub is_deadlocked: bool,
    /// What it waits for, then what that waits for: by how far it is away, and in a sentence.
    pub chain: Vec<Link>,
}

/// A sentence of a chain.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// 0 for the thread that was asked about.
    pub depth: usize,
    /// What is so.
    pub sentence: String,
}

/// Sentences of one chain at most: a process may have thousands of threads.
const MOST: usize = 200;

/// What the threads with this number, or of the process with it, wait for: those that wait for a
/// reply, or all if none does. None when no thread and no process has it.
pub fn why(snapshot: &Snapshot, number: i32) -> Option<Vec<Answer>> {
    let mut found = Vec::new();
    let mut is_known = false;
    for context in &snapshot.contexts {
        let index = Index::new(context);
        let deadlocked = index.deadlocked();
        for process in &context.processes {
            is_known |= process.pid == number;
            let asked = |thread: &&Thread| process.pid == number || thread.tid == number;
            let threads: Vec<&Thread> = process.threads.iter().filter(asked).collect();
            is_known |= !threads.is_empty();
            let waits = threads.iter().any(|thread| thread.waits == Waits::Reply);
            for thread in threads {
                if waits && thread.waits != Waits::Reply {
                    continue;
                }
                let mut teller = Teller { index: &index, told: BTreeSet::new(), chain: Vec::new() };
                teller.thread(0, thread.id);
                found.push(Answer {
                    context: context_name(snapshot, context),
                    pid: process.pid,
                    tid: thread.tid,
                    is_deadlocked: deadlocked.contains_key(&thread.id),
                    chain: teller.chain,
                });
            }
        }
    }
    is_known.then_some(found)
}

struct Teller<'a> {
    index: &'a Index<'a>,
    /// Threads of which the chain tells already.
    told: BTreeSet<u64>,
    chain: Vec<Link>,
}

impl Teller<'_> {
    fn say(&mut self, depth: usize, sentence: String) {
        if self.chain.len() < MOST {
            self.chain.push(Link { depth, sentence });
        }
    }

    fn thread(&mut self, depth: usize, id: u64) {
        if self.chain.len() >= MOST {
            return;
        }
        let Some(&(process, thread)) = self.index.threads.get(&id) else {
            return self.say(depth, "a thread that is gone by now".to_owned());
        };
        let name = name(process, thread);
        if !self.told.insert(id) {
            return self.say(depth, format!("{name}, of which is told above"));
        }
        match (thread.waits, self.index.awaited(thread)) {
            (Waits::Reply, Some(call)) => {
                let to = call.to_process.and_then(|id| self.index.processes.get(&id));
                let to = to.map_or("a process that has died".to_owned(), |it| process_name(it));
                self.say(
                    depth,
                    format!(
                        "{name} waits for the reply to {} to {to}, since {}",
                        transaction(call),
                        age(call.age_ms)
                    ),
                );
                self.call(depth + 1, call);
            }
            (Waits::Reply, None) => self.say(depth, format!("{name} is about to read its reply")),
            (Waits::ProcessWork, _) => {
                self.say(depth, format!("{name} waits for something to do: nobody has called it"));
            }
            (Waits::OwnWork, _) => self.say(
                depth,
                format!("{name} reads, but not what comes to its process: it has not said BC_ENTER_LOOPER, or is busy with a call"),
            ),
            (Waits::Not, _) => {
                let serves = thread.stack.iter().find(|call| !call.is_outgoing);
                let serves = serves.and_then(|call| self.index.transactions.get(&call.transaction));
                self.say(
                    depth,
                    match serves {
                        Some(call) => format!(
                            "{name} serves {} of {}:{}, queued {} ago, and does not wait in binder",
                            transaction(call),
                            call.from_pid,
                            call.from_tid,
                            age(call.age_ms)
                        ),
                        None => format!("{name} does not wait in binder: it runs, or waits for something else"),
                    },
                );
            }
        }
    }

    fn call(&mut self, depth: usize, call: &Transaction) {
        match self.index.holder(call) {
            Holder::Thread(thread) => self.thread(depth, thread),
            Holder::Other => {
                let receiver = call.to_process.and_then(|id| self.index.processes.get(&id));
                self.say(
                    depth,
                    match receiver {
                        None => "the receiver has died, and the error is on its way".to_owned(),
                        Some(process) if process.is_frozen => {
                            format!("{} is frozen", process_name(process))
                        }
                        Some(process) if process.requested_threads > 0 => format!(
                            "{} has no free thread, and was told to start one",
                            process_name(process)
                        ),
                        Some(process) => format!("{} is about to read it", process_name(process)),
                    },
                );
            }
            Holder::AnyOf(threads) => {
                let process = call.to_process.and_then(|id| self.index.processes.get(&id));
                let process = process.map(|it| process_name(it)).unwrap_or_default();
                if threads.is_empty() {
                    let sentence = format!("{process} has no thread that serves (BC_ENTER_LOOPER)");
                    return self.say(depth, sentence);
                }
                let count = threads.len();
                let threads_are = if count == 1 { "its one thread is" } else { "its threads are" };
                self.say(depth, format!("{process} has no free thread; {threads_are} busy:"));
                for thread in threads {
                    self.thread(depth + 1, thread);
                }
            }
        }
    }
}

fn process_name(process: &Process) -> String {
    format!("{} ({})", process.name, process.pid)
}

fn name(process: &Process, thread: &Thread) -> String {
    format!("thread {} of {}", thread.tid, process_name(process))
}

fn transaction(it: &Transaction) -> String {
    format!("{} {} (code {})", kind(it), it.id, it.code)
}

/// As text.
pub fn text(answers: &[Answer]) -> String {
    let mut text = String::new();
    for answer in answers {
        for link in &answer.chain {
            text += &format!("{}{}\n", "  ".repeat(link.depth), link.sentence);
        }
        if answer.is_deadlocked {
            text += "DEADLOCK: they wait for one another, and none will get its reply until one of them dies\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use fakebinder::snapshot::{Call, Context, Work};

    fn process(id: u64, pid: i32, name: &str, thread: Thread) -> Process {
        Process { id, pid, name: name.to_owned(), threads: vec![thread], ..Process::default() }
    }

    fn caller(id: u64, tid: i32, call: u64) -> Thread {
        let stack = vec![Call { transaction: call, is_outgoing: true }];
        Thread { id, tid, is_looper: true, waits: Waits::Reply, stack, ..Thread::default() }
    }

    fn call(id: u64, from: u64, to: u64) -> Transaction {
        let age_ms = 1500;
        Transaction {
            id,
            from_thread: Some(from),
            to_process: Some(to),
            code: 1,
            age_ms,
            ..Transaction::default()
        }
    }

    fn crossed() -> Snapshot {
        let mut one = process(1, 10, "one", caller(11, 10, 101));
        one.todo.push(Work::Transaction { id: 102 });
        let mut two = process(2, 20, "two", caller(21, 20, 102));
        two.todo.push(Work::Transaction { id: 101 });
        let context = Context {
            name: "binder".to_owned(),
            processes: vec![one, two],
            transactions: vec![call(101, 11, 2), call(102, 21, 1)],
            ..Context::default()
        };
        Snapshot { contexts: vec![context], ..Snapshot::default() }
    }

    #[test]
    fn a_deadlock_is_told_once_around() {
        let answers = why(&crossed(), 10).unwrap();
        let expected = "\
thread 10 of one (10) waits for the reply to call 101 (code 1) to two (20), since 1.5 s
  two (20) has no free thread; its one thread is busy:
    thread 20 of two (20) waits for the reply to call 102 (code 1) to one (10), since 1.5 s
      one (10) has no free thread; its one thread is busy:
        thread 10 of one (10), of which is told above
DEADLOCK: they wait for one another, and none will get its reply until one of them dies
";
        assert_eq!(text(&answers), expected);
    }

    #[test]
    fn whoever_serves_is_named() {
        let mut snapshot = crossed();
        let two = &mut snapshot.contexts[0].processes[1];
        two.todo.clear();
        two.threads[0].waits = Waits::Not;
        two.threads[0].stack = vec![Call { transaction: 101, is_outgoing: false }];
        let answers = why(&snapshot, 10).unwrap();
        assert!(!answers[0].is_deadlocked);
        let last = &answers[0].chain[1].sentence;
        assert!(last.starts_with("thread 20 of two (20) serves call 101"), "{last}");
    }

    #[test]
    fn a_number_that_nobody_has_is_no_answer() {
        assert_eq!(why(&crossed(), 30), None);
        assert_eq!(why(&crossed(), 20).unwrap().len(), 1);
    }
}
