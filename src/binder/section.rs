//! A section under a context's lock, for one calling thread.
//!
//! To take the lock costs a thread its turn, and everybody in the context waits while it is held.
//! So an ioctl enters when it first needs the graph, stays from one command to the next, and leaves
//! before anything that touches a client's memory, takes an allocator's lock or makes a system
//! call. An empty synchronous call takes five sections: two for the caller's ioctl (find the
//! target; queue the transaction and park the read), two for the server's reply, one for its next
//! read.

use super::graph::{Graph, ThreadId};
use super::{Context, Process};
use crate::Errno;
use crate::sync::MutexGuard;
use std::sync::Arc;

/// So many commands are carried out before other threads have their turn.
const COMMANDS: u32 = 16;

/// A section, as [the module](self) says. Left when dropped.
pub(crate) struct Section<'a> {
    process: &'a Arc<Process>,
    /// The calling thread's number.
    tid: i32,
    /// The calling thread's record, once it was needed.
    thread: Option<ThreadId>,
    graph: Option<MutexGuard<'a, Graph>>,
    /// Commands that were carried out since the section was entered.
    commands: u32,
}

impl<'a> Section<'a> {
    /// A section for the thread `tid`, which is in an ioctl of `process`. Not entered yet.
    pub fn new(process: &'a Arc<Process>, tid: i32) -> Section<'a> {
        Section { process, tid, thread: None, graph: None, commands: 0 }
    }

    pub fn process(&self) -> &'a Arc<Process> {
        self.process
    }

    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Whether the calling thread's record was found or made.
    pub fn has_thread(&self) -> bool {
        self.thread.is_some()
    }

    /// Enters, and returns the graph and the calling thread; the thread's record may be gone again.
    /// The first call fails as [`Process::calling_thread`] does, later ones do not fail.
    pub fn enter(&mut self) -> Result<(&mut Graph, ThreadId), Errno> {
        let thread = match self.thread {
            Some(thread) => thread,
            None => {
                let (process, tid) = (self.process, self.tid);
                let thread = process.calling_thread(self, tid)?;
                *self.thread.insert(thread)
            }
        };
        Ok((self.graph(), thread))
    }

    /// Enters, and returns the graph, with or without a record of the calling thread.
    pub fn graph(&mut self) -> &mut Graph {
        let context: &'a Context = &self.process.context;
        self.graph.get_or_insert_with(|| context.graph.lock())
    }

    /// Another command is about to be carried out.
    pub fn next_command(&mut self) {
        self.commands += 1;
        // What the last command has left for further sections comes before the next command.
        let left = self.graph.as_ref().is_some_and(|graph| !graph.rest.is_empty());
        if self.commands > COMMANDS || left {
            self.leave();
        }
    }

    /// Attends to the threads that were woken, drops the lock, and posts the effects.
    pub fn leave(&mut self) {
        self.commands = 0;
        if let Some(graph) = self.graph.take() {
            self.process.context.leave(graph);
        }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        // After a panic the graph may be half changed: nobody is to act on that.
        if !std::thread::panicking() {
            self.leave();
        }
    }
}
