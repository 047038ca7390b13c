//! Long work, in pieces: how much is done in one section under a context's lock, and what becomes
//! of the rest.
//!
//! One client may have a million records, and everybody in its context waits for the lock. So a
//! loop over something that a client can make as long as it likes takes [`AT_ONCE`] steps
//! ([`Graph::spend`]) and leaves a [`Rest`]; [`Context::leave`] lets go of the lock and does the
//! rest in further sections, before its caller goes on. The driver lets go of its locks in the same
//! places. Other threads may come in between: a rest names how far it has come by ids and keys,
//! never by position, and stops where they are gone.
//!
//! To let go of the lock is not enough: a thread that takes the lock again at once has it before a
//! thread that has to be woken first, and several such threads keep all others waiting. So long
//! work rests before each further section, and in each context one piece of long work at a time
//! competes for the lock (`Context::long_work`). A thread at long work serves no requests
//! meanwhile, and says so first ([`Carriers::held_up`](super::Carriers::held_up)).
//!
//! What is done in one section all the same, and why that is short:
//! - what one read is given: a page of returns at most, and [`LINES_AT_ONCE`] pieces of work;
//! - the polls of a file: eight of them.

use super::Context;
use super::graph::{Graph, NodeId, ProcessId, ThreadId, TransactionId};
use super::transaction::HeldBuffer;
use crate::protocol::returns::Return;
use crate::sync::MutexGuard;

/// The first entry of a tree behind a key, or of all.
macro_rules! behind {
    ($tree:expr, $after:expr) => {
        $tree
            .range((
                $after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded),
                std::ops::Bound::Unbounded,
            ))
            .next()
    };
}

/// Steps in one section. Each looks up some ten records, and among a million records none of them
/// may be in the processor's caches: some 50 us in all.
pub(crate) const AT_ONCE: usize = 32;

/// The same for steps that write a line of text or a return.
pub(crate) const LINES_AT_ONCE: usize = 128;

/// The bytes of a long line of the logs.
const LINE: usize = 256;

/// How long long work rests before its next section: about as long as a section takes.
const BREATH: std::time::Duration = std::time::Duration::from_micros(20);

/// Work that a section leaves for further sections.
pub(crate) enum Rest {
    /// The rest of what the objects in a freed buffer held.
    Held(HeldBuffer),
    /// The rest of the calls on the stack of a thread that is gone.
    Stack { thread: ThreadId, process: ProcessId, next: TransactionId },
    /// The rest of the work of a thread that is gone.
    Todo(ThreadId),
    /// The rest of a chain of callers: further up one may still wait.
    FailedReply { next: TransactionId, error: Return },
    /// The rest of the holders of a node whose owner has died: those below this reference.
    Deaths { node: NodeId, before: u64 },
    /// The rest of the holders that are told that a process froze or thawed.
    Frozen(super::freeze::Telling),
    /// The rest of the threads of a process that is flushed: those above this number.
    Flush { process: ProcessId, after: Option<i32> },
}

impl Graph {
    /// Whether one more step may be taken in this section; if so, counts it.
    pub fn spend(&mut self) -> bool {
        let may = self.left > 0;
        self.left -= usize::from(may);
        may
    }

    fn go_on(&mut self, rest: Rest) {
        match rest {
            Rest::Held(buffer) => self.release_held_of(buffer),
            Rest::Stack { thread, process, next } => self.unlink_stack(thread, process, next),
            Rest::Todo(thread) => self.release_leftover(thread),
            Rest::FailedReply { next, error } => self.send_failed_reply(next, error),
            Rest::Deaths { node, before } => self.tell_deaths(node, before),
            Rest::Frozen(telling) => self.tell_frozen(telling),
            Rest::Flush { process, after } => self.flush_after(process, after),
        }
    }
}

impl Context {
    /// Runs `f` on the graph under its lock. The effects are posted afterwards ([`super::outbox`]):
    /// no client's memory is touched here.
    pub(super) fn locked<R>(&self, f: impl FnOnce(&mut Graph) -> R) -> R {
        let mut graph = self.graph.lock();
        let result = f(&mut graph);
        self.leave(graph);
        result
    }

    /// Ends a section, and goes on with what it has left in sections of their own.
    pub(super) fn leave(&self, graph: MutexGuard<'_, Graph>) {
        let rest = self.end_section(graph, None);
        self.go_on(rest);
    }

    fn go_on(&self, mut left: Vec<Rest>) {
        if left.is_empty() {
            return;
        }
        let mut work = self.more_long_work();
        // The next rest stands last: a rest's own leftovers come before the rests behind it.
        left.reverse();
        while let Some(rest) = left.pop() {
            let ((), more) = work.section(|graph| graph.go_on(rest));
            left.extend(more.into_iter().rev());
        }
    }

    fn end_section(
        &self,
        mut graph: MutexGuard<'_, Graph>,
        turn: Option<MutexGuard<'_, ()>>,
    ) -> Vec<Rest> {
        graph.sections += 1;
        graph.settle();
        graph.left = AT_ONCE;
        let effects = std::mem::take(&mut graph.effects);
        let rest = std::mem::take(&mut graph.rest);
        count::section_ends();
        drop((graph, turn));
        if !effects.is_empty() {
            self.shared.post(effects);
        }
        rest
    }

    /// Looks at the graph under its lock.
    pub(super) fn with_graph<R>(&self, f: impl FnOnce(&Graph) -> R) -> R {
        let graph = self.graph.lock();
        let result = f(&graph);
        count::section_ends();
        result
    }

    /// Goes through a long table, a piece in each section: `piece` gets the key at which the last
    /// one stopped, and returns its own, or none at the end.
    pub(super) fn in_pieces<K>(&self, mut piece: impl FnMut(&Graph, Option<K>) -> Option<K>) {
        let mut work = self.long_work();
        let mut at = None;
        loop {
            at = work.look(|graph| piece(graph, at.take()));
            if at.is_none() {
                return;
            }
        }
    }

    /// The same for a table that is written as lines of text. Room for the lines of a piece is made
    /// before the lock is taken: a text that grows may have to be copied as a whole, and may be
    /// many megabytes long.
    pub(super) fn in_pieces_of_text<K>(
        &self,
        text: &mut String,
        mut piece: impl FnMut(&Graph, &mut String, Option<K>) -> Option<K>,
    ) {
        let mut work = self.long_work();
        let mut at = None;
        loop {
            text.reserve(LINES_AT_ONCE * LINE);
            at = work.look(|graph| piece(graph, text, at.take()));
            if at.is_none() {
                return;
            }
        }
    }

    /// Begins long work.
    pub(super) fn long_work(&self) -> LongWork<'_> {
        LongWork { context: self, rests: false }
    }

    /// Goes on with long work that has had a section already.
    fn more_long_work(&self) -> LongWork<'_> {
        LongWork { context: self, rests: true }
    }
}

/// Work that is done in several sections, one after the other.
pub(super) struct LongWork<'a> {
    context: &'a Context,
    /// Whether the next section has to be rested for.
    rests: bool,
}

impl<'a> LongWork<'a> {
    /// Changes the graph in a section, and does the work that this leaves in further sections.
    pub fn locked<R>(&mut self, f: impl FnOnce(&mut Graph) -> R) -> R {
        let (result, rest) = self.section(f);
        self.context.go_on(rest);
        result
    }

    fn section<R>(&mut self, f: impl FnOnce(&mut Graph) -> R) -> (R, Vec<Rest>) {
        let turn = self.turn();
        let mut graph = self.context.graph.lock();
        let result = f(&mut graph);
        self.rests = graph.left == 0;
        (result, self.context.end_section(graph, Some(turn)))
    }

    /// Looks at the graph in a section.
    fn look<R>(&mut self, f: impl FnOnce(&Graph) -> R) -> R {
        let turn = self.turn();
        let result = self.context.with_graph(f);
        drop(turn);
        self.rests = true;
        result
    }

    /// Waits for the next section's turn. Threads that wait for the lock have it before that, and
    /// threads that wait for this processor get it. (`sched_yield` would do worse than nothing: the
    /// scheduler puts a thread that yields often off for so long that others wait for the lock that
    /// it takes next. To hand the lock to a thread that has to be woken first would be bad, too:
    /// all would wait for that thread's processor.)
    fn turn(&self) -> MutexGuard<'a, ()> {
        let context = self.context;
        let carriers = &context.shared.carriers;
        if self.rests {
            carriers.held_up();
            std::thread::sleep(BREATH);
        }
        let turns = &context.long_work;
        turns.try_lock().unwrap_or_else(|| {
            carriers.held_up();
            turns.lock()
        })
    }
}

pub(crate) use behind;
pub(crate) use count::handled;

/// How many records the longest section handles: an instrument of debug builds.
#[cfg(debug_assertions)]
mod count {
    use std::cell::Cell;

    thread_local! {
        static HANDLED: Cell<usize> = const { Cell::new(0) };
        static MOST: Cell<usize> = const { Cell::new(0) };
    }

    /// Counts one: a record is looked up or passed, or a line is written about it.
    pub(crate) fn handled() {
        HANDLED.set(HANDLED.get() + 1);
    }

    pub(super) fn section_ends() {
        MOST.set(MOST.get().max(HANDLED.take()));
    }

    impl super::Context {
        /// How many records were handled in the longest section of any context on this thread,
        /// since this was last asked.
        pub fn longest_section() -> usize {
            MOST.take()
        }
    }
}

#[cfg(not(debug_assertions))]
mod count {
    #[inline(always)]
    pub(crate) fn handled() {}

    #[inline(always)]
    pub(super) fn section_ends() {}
}
