//! A program: what several processes do to a device, step by step, as data.
//!
//! Operands that only a run can know are named instead: a buffer by when it was received, a file by
//! which process made it. So a program means the same on every device, and after steps were taken
//! out of it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How many processes a random program has; the first is the context manager.
pub(super) const PROCESSES: usize = 4;
/// How many threads each of them has.
pub(super) const THREADS: usize = 2;
/// How many bytes each of them maps.
pub(super) const MAPPING: u64 = 32 << 10;

/// A whole program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The processes. None: those of random programs, four that have mapped 32 KiB, with two threads
    /// each, of which the first is the context manager.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Member>,
    /// The steps, one system call each (a kill waits until the driver is done with it).
    pub steps: Vec<Step>,
}

/// A process of a program: it has opened the device, and done nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// How many threads it has.
    pub threads: usize,
    /// How many bytes it maps; 0: it maps none.
    pub mapping: u64,
}

impl Program {
    /// The processes.
    pub(super) fn cast(&self) -> Vec<Member> {
        match self.processes.is_empty() {
            true => vec![Member { threads: THREADS, mapping: MAPPING }; PROCESSES],
            false => self.processes.clone(),
        }
    }
}

/// A step of one thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The index of the process.
    pub process: usize,
    /// The index of the process's thread.
    pub thread: usize,
    /// What the thread does.
    pub act: Act,
}

/// What a thread can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Act {
    /// BINDER_WRITE_READ, not waiting; `read` is the size of the read buffer.
    WriteRead {
        /// The commands that are written.
        write: Vec<Write>,
        /// The size of the read buffer.
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
        /// The index of the process.
        process: usize,
        /// Whether to freeze it; else to thaw it.
        enable: bool,
    },
    /// BINDER_GET_FROZEN_INFO of another process
    FrozenInfo(usize),
    /// BINDER_SET_CONTEXT_MGR
    SetContextManager,
    /// BINDER_SET_CONTEXT_MGR_EXT
    SetContextManagerExt {
        /// The node's identity.
        ptr: u64,
        /// The node's cookie.
        cookie: u64,
        /// The node's flags.
        flags: u32,
    },
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
    /// Any 32-bit words.
    Words(Vec<u32>),
}

/// A buffer to be freed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Buffer {
    /// The buffer of the n-th transaction or reply that this process has received.
    Received(usize),
    /// The address so many bytes behind the start of the mapping.
    At(i64),
}

/// A transaction or reply.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Send {
    /// Whether it is a reply.
    pub reply: bool,
    /// The target's handle.
    pub handle: u32,
    /// The code.
    pub code: u32,
    /// The flags.
    pub flags: u32,
    /// The pieces of its data.
    pub parts: Vec<Part>,
    /// What is made wrong about it.
    pub twist: Option<Twist>,
}

/// A piece of a transaction's data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Part {
    /// So many bytes.
    Bytes(usize),
    /// These bytes, in hexadecimal digits.
    Data(String),
    /// A node of the sender.
    Binder {
        /// The node's identity.
        ptr: u64,
        /// The node's cookie.
        cookie: u64,
        /// The flags.
        flags: u32,
        /// Whether it is sent as a weak reference.
        weak: bool,
    },
    /// A handle of the sender.
    Handle {
        /// The handle's number.
        handle: u32,
        /// Whether it is sent as a weak reference.
        weak: bool,
    },
    /// One of the sender's own files, by its number; `None`: an invalid descriptor.
    Fd(Option<usize>),
    /// A scatter-gather buffer.
    Buffer {
        /// The length in bytes.
        length: usize,
        /// The parent's index, and the offset in the parent.
        parent: Option<(u64, u64)>,
    },
    /// An array of descriptors; its parent buffer is filled with the sender's files.
    FdArray {
        /// The number of descriptors.
        count: u64,
        /// The parent's index.
        parent: u64,
        /// The offset in the parent.
        offset: u64,
    },
}

/// What is made wrong about a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Twist {
    /// Another address of the data.
    DataAt(u64),
    /// Another size of the data.
    DataSize(u64),
    /// Another address of the offsets.
    OffsetsAt(u64),
    /// Another size of the offsets.
    OffsetsSize(u64),
    /// A further offset.
    Offset(u64),
    /// The first offset is changed by so much.
    Shift(i64),
    /// The offsets are in reverse order.
    Reverse,
    /// Another size of the buffers.
    BuffersSize(u64),
    /// The byte at that offset in the data is inverted.
    Flip(usize),
    /// The data has so many bytes fewer.
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
                        Part::Data(digits) => write!(f, " {} bytes as given", digits.len() / 2)?,
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
