//! A program: what several processes do to a device, step by step, as data.
//!
//! Operands that only a run can know are named, not given: a buffer by when it was received, a
//! file by who made it. So a program means the same on every device, and after steps were taken
//! out of it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How many processes a program has; the first is the context manager.
pub(super) const PROCESSES: usize = 4;
/// How many threads each of them has.
pub(super) const THREADS: usize = 2;
/// What each of them maps.
pub(super) const MAPPING: u64 = 32 << 10;

/// A whole program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The steps, one system call each (a kill waits until the driver is done with it).
    pub steps: Vec<Step>,
}

/// What one thread does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Which process.
    pub process: usize,
    /// Which of its threads.
    pub thread: usize,
    /// What it does.
    pub act: Act,
}

/// What a thread can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Act {
    /// BINDER_WRITE_READ, not waiting; `read` is the size of the read buffer.
    WriteRead {
        /// What is written.
        write: Vec<Write>,
        /// How much is read.
        read: usize,
    },
    /// poll(2), not waiting.
    Poll,
    /// BINDER_SET_MAX_THREADS
    MaxThreads(u32),
    /// BINDER_THREAD_EXIT
    ThreadExit,
    /// BINDER_GET_EXTENDED_ERROR
    ExtendedError,
    /// BINDER_GET_NODE_DEBUG_INFO
    NodeDebugInfo(u64),
    /// BINDER_GET_NODE_INFO_FOR_REF
    NodeInfo(u32),
    /// BINDER_ENABLE_ONEWAY_SPAM_DETECTION
    SpamDetection(bool),
    /// BINDER_FREEZE of another process, not waiting
    Freeze {
        /// Which process.
        process: usize,
        /// Or thaw.
        enable: bool,
    },
    /// BINDER_GET_FROZEN_INFO of another process
    FrozenInfo(usize),
    /// BINDER_SET_CONTEXT_MGR
    SetContextManager,
    /// munmap(2) of the mapping
    Unmap,
    /// SIGKILL to the process
    Kill,
}

/// What can be written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Write {
    /// BC_TRANSACTION, BC_REPLY, and with buffers their `_SG` forms.
    Send(Send),
    /// BC_FREE_BUFFER
    Free(Buffer),
    /// BC_INCREFS
    Increfs(u32),
    /// BC_ACQUIRE
    Acquire(u32),
    /// BC_RELEASE
    Release(u32),
    /// BC_DECREFS
    Decrefs(u32),
    /// BC_INCREFS_DONE
    IncrefsDone(u64, u64),
    /// BC_ACQUIRE_DONE
    AcquireDone(u64, u64),
    /// BC_ENTER_LOOPER
    EnterLooper,
    /// BC_REGISTER_LOOPER
    RegisterLooper,
    /// BC_EXIT_LOOPER
    ExitLooper,
    /// BC_REQUEST_DEATH_NOTIFICATION
    RequestDeath(u32, u64),
    /// BC_CLEAR_DEATH_NOTIFICATION
    ClearDeath(u32, u64),
    /// BC_DEAD_BINDER_DONE
    DeadBinderDone(u64),
    /// BC_REQUEST_FREEZE_NOTIFICATION
    RequestFreeze(u32, u64),
    /// BC_CLEAR_FREEZE_NOTIFICATION
    ClearFreeze(u32, u64),
    /// BC_FREEZE_NOTIFICATION_DONE
    FreezeDone(u64),
    /// BC_ATTEMPT_ACQUIRE
    AttemptAcquire,
    /// BC_ACQUIRE_RESULT
    AcquireResult,
    /// Any words.
    Words(Vec<u32>),
}

/// A buffer to be freed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Buffer {
    /// That of the transaction or reply that this process received as its n-th.
    Received(usize),
    /// So many bytes behind the start of the mapping.
    At(i64),
}

/// A transaction or reply.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Send {
    /// Or a transaction.
    pub reply: bool,
    /// Its target.
    pub handle: u32,
    /// Its code.
    pub code: u32,
    /// Its flags.
    pub flags: u32,
    /// What is in it.
    pub parts: Vec<Part>,
    /// What is wrong with it.
    pub twist: Option<Twist>,
}

/// A piece of a transaction's data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Part {
    /// So many bytes.
    Bytes(usize),
    /// A node of the sender.
    Binder {
        /// Its identity.
        ptr: u64,
        /// Its cookie.
        cookie: u64,
        /// Its flags.
        flags: u32,
        /// As a weak reference.
        weak: bool,
    },
    /// A reference of the sender.
    Handle {
        /// Its number.
        handle: u32,
        /// As a weak reference.
        weak: bool,
    },
    /// One of the sender's own files, or no file.
    Fd(Option<usize>),
    /// A scatter-gather buffer.
    Buffer {
        /// Its length.
        length: usize,
        /// Parent and offset therein.
        parent: Option<(u64, u64)>,
    },
    /// An array of descriptors: the parent buffer is made of the sender's files.
    FdArray {
        /// How many.
        count: u64,
        /// The parent's index.
        parent: u64,
        /// Where in the parent.
        offset: u64,
    },
}

/// What is made wrong in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Twist {
    /// The data's address.
    DataAt(u64),
    /// The data's size.
    DataSize(u64),
    /// The offsets' address.
    OffsetsAt(u64),
    /// The offsets' size.
    OffsetsSize(u64),
    /// One more offset.
    Offset(u64),
    /// The first offset, changed by so much.
    Shift(i64),
    /// The offsets, in reverse order.
    Reverse,
    /// The size of the buffers.
    BuffersSize(u64),
    /// A byte of the data, inverted.
    Flip(usize),
    /// So many bytes less of data.
    Cut(usize),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.process)?;
        match &self.act {
            Act::Kill => return f.write_str(" is killed"),
            Act::Unmap => return f.write_str(" unmaps"),
            _ => write!(f, ".{} ", self.thread)?,
        }
        match &self.act {
            Act::WriteRead { write, read } => {
                for (index, command) in write.iter().enumerate() {
                    write!(f, "{}{command}", if index > 0 { "; " } else { "writes " })?;
                }
                match (write.is_empty(), *read) {
                    (_, 0) => Ok(()),
                    (true, size) => write!(f, "reads {size}"),
                    (false, size) => write!(f, ", and reads {size}"),
                }
            }
            Act::Freeze { process, enable: true } => write!(f, "freezes p{process}"),
            Act::Freeze { process, enable: false } => write!(f, "thaws p{process}"),
            Act::FrozenInfo(process) => write!(f, "gets frozen info of p{process}"),
            other => write!(f, "does {other:?}"),
        }
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Write::Send(send) => {
                let flags = send.flags & !fakebinder_client::uapi::TF_ONE_WAY;
                match (send.reply, send.flags & fakebinder_client::uapi::TF_ONE_WAY != 0) {
                    (true, _) => write!(f, "reply")?,
                    (false, true) => write!(f, "oneway to {}", send.handle)?,
                    (false, false) => write!(f, "call to {}", send.handle)?,
                }
                write!(f, " code {}", send.code)?;
                if flags != 0 {
                    write!(f, " flags {flags:#x}")?;
                }
                for part in &send.parts {
                    match part {
                        Part::Bytes(count) => write!(f, " {count} bytes")?,
                        Part::Binder { ptr, cookie, flags, weak } => write!(
                            f,
                            " {}binder({ptr},{cookie},{flags:#x})",
                            if *weak { "weak " } else { "" }
                        )?,
                        Part::Handle { handle, weak } => {
                            write!(f, " {}handle({handle})", if *weak { "weak " } else { "" })?;
                        }
                        Part::Fd(Some(file)) => write!(f, " file({file})")?,
                        Part::Fd(None) => write!(f, " file(none)")?,
                        Part::Buffer { length, parent: None } => write!(f, " buffer({length})")?,
                        Part::Buffer { length, parent: Some((parent, offset)) } => {
                            write!(f, " buffer({length} at {parent}+{offset})")?;
                        }
                        Part::FdArray { count, parent, offset } => {
                            write!(f, " files({count} at {parent}+{offset})")?;
                        }
                    }
                }
                if let Some(twist) = send.twist {
                    write!(f, " but {twist:x?}")?;
                }
                Ok(())
            }
            Write::Free(Buffer::Received(index)) => write!(f, "free #{index}"),
            Write::Free(Buffer::At(offset)) => write!(f, "free at {offset}"),
            Write::Words(words) => write!(f, "words {words:x?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.steps.iter().enumerate() {
            writeln!(f, "{index:4}  {step}")?;
        }
        Ok(())
    }
}
