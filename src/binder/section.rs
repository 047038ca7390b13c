//! A section under a context's lock, for one calling thread.
//!
//! Each entry into the lock costs a turn, and while it is held everybody in the context waits. So
//! an ioctl enters when it first needs the graph, stays from one command to the next, and leaves
//! before anything that touches a client's memory, takes an allocator's lock or asks the system.
//! An empty synchronous call takes five sections: two for the caller's ioctl (find the target;
//! queue the transaction and park the read), two for the server's reply, one for its next read.

use super::graph::{Graph, ThreadId};
use super::{Context, Process};
use crate::Errno;
use crate::sync::MutexGuard;
use std::sync::Arc;

/// So many commands are carried out before others have their turn.
const COMMANDS: u32 = 16;

/// See [the module](self). Left when dropped.
pub(crate) struct Section<'a> {
    process: &'a Arc<Process>,
    /// The calling thread's number.
    tid: i32,
    /// Its record, once it was needed.
    thread: Option<ThreadId>,
    graph: Option<MutexGuard<'a, Graph>>,
    /// Commands that were carried out since it was entered.
    commands: u32,
}

impl<'a> Section<'a> {
    /// For the thread `tid`, which is in an ioctl of `process`. Not entered yet.
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

    /// The graph, and the calling thread in it: its record may be gone again. The first call fails
    /// as [`Process::calling_thread`] does, the others do not.
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

    /// The graph, whoever calls.
    pub fn graph(&mut self) -> &mut Graph {
        let context: &'a Context = &self.process.context;
        self.graph.get_or_insert_with(|| context.graph.lock())
    }

    /// Another command is about to be carried out.
    pub fn next_command(&mut self) {
        self.commands += 1;
        // What the last one has left for further sections comes before the next one.
        let left = self.graph.as_ref().is_some_and(|graph| !graph.rest.is_empty());
        if self.commands > COMMANDS || left {
            self.leave();
        }
    }

    /// Attends to who was woken, drops the lock, and posts what is left to be done.
    pub fn leave(&mut self) {
        self.commands = 0;
        if let Some(graph) = self.graph.take() {
            self.process.context.leave(graph);
        }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        // What a fault of ours has left half done is not for others.
        if !std::thread::panicking() {
            self.leave();
        }
    }
}
