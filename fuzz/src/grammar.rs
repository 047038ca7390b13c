//! What clients may do, as a grammar: a [`Program`] is a list of [`Step`]s, and each is drawn from
//! the bytes of a fuzzer's input by [`Arbitrary`].
//!
//! The number before each alternative is its weight among its kind. A [`Pick`] stands for
//! something that an earlier step has returned: a handle, a buffer, a cookie, a notice to confirm.
//! So most programs are deep, whatever the bytes; a few picks are wild on purpose.
//!
//! A printed program is Rust: it can be pasted into a test (see `tests/regressions.rs`).
#![allow(
    missing_docs,
    reason = "the fields and variants of a program are named as in the protocol"
)]

use arbitrary::{Arbitrary, Result, Unstructured};
use std::fmt;
use std::ops::Deref;

/// Declares an enum of the grammar: its alternatives with their weights and fields. An input that
/// has run out reads as zeros, which is always the first alternative: the plainest one.
macro_rules! grammar {
    ($(
        $(#[$doc:meta])*
        pub enum $name:ident {
            $(
                $(#[$variant_doc:meta])*
                $weight:literal => $variant:ident $({ $($field:ident: $type:ty),* $(,)? })?
            ),* $(,)?
        }
    )*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant $({ $($field: $type),* })?),*
        }

        impl<'a> Arbitrary<'a> for $name {
            fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
                const TOTAL: u32 = 0 $(+ $weight)*;
                const { assert!(TOTAL <= 256) };
                let mut left = u32::from(u8::arbitrary(u)?) % TOTAL;
                $(
                    if left < $weight {
                        return Ok($name::$variant $({ $($field: Arbitrary::arbitrary(u)?),* })?);
                    }
                    left -= $weight;
                )*
                unreachable!("{left} is past the last weight")
            }
        }
    )*};
}
pub(crate) use grammar;

/// One of the things of a kind that earlier steps have returned, counted around; [`Pick::WILD`]
/// and above: one that nobody has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub struct Pick(pub u8);

impl Pick {
    pub const WILD: u8 = 246;

    /// The pick among `things`; nothing when it is wild or there are none.
    pub fn of<T: Copy>(self, things: &[T]) -> Option<T> {
        let index = usize::from(self.0).checked_rem(things.len())?;
        (self.0 < Self::WILD).then(|| things[index])
    }
}

/// A small number, or one at the edge of a type that it may be kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub struct Count(pub u8);

impl Count {
    pub const WILD: u8 = 208;

    pub fn number(self) -> u32 {
        const EDGES: [u32; 8] =
            [0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX];
        match self.0.checked_sub(Self::WILD) {
            Some(wild) => EDGES[usize::from(wild) % EDGES.len()],
            None => u32::from(self.0 % 4),
        }
    }
}

/// A thread of a process: the process in the low four bits, the thread in the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub struct Actor(pub u8);

impl Actor {
    pub fn process(self) -> Pick {
        Pick(self.0 & 15)
    }

    pub fn thread(self) -> usize {
        usize::from(self.0 >> 4)
    }
}

/// A short list. Printed as `list![...]`, which makes one.
#[derive(Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

#[macro_export]
macro_rules! list {
    ($($item:expr),* $(,)?) => { $crate::grammar::List(vec![$($item),*]) };
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("list!")?;
        f.debug_list().entries(&self.0).finish()
    }
}

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for List<T> {
    /// Of four lists one is empty, two have one item.
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let length = match u8::arbitrary(u)? {
            0..64 => 0,
            64..192 => 1,
            192..232 => 2,
            232..248 => 3,
            248.. => 4,
        };
        (0..length).map(|_| T::arbitrary(u)).collect::<Result<_>>().map(List)
    }
}

/// What the world is like, and what happens in it.
///
/// At the beginning processes 0, 1 and 2 have opened the device `binder` and mapped a few pages;
/// 0 is the context manager, and its first thread waits for work.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    pub setting: Setting,
    pub steps: List<Step>,
}

/// The world of a program.
#[derive(Debug, Clone, PartialEq, Arbitrary)]
pub struct Setting {
    /// Pages for all processes together: from 192 on as many as they like, else a few.
    pub budget: u8,
    /// Pages that each process maps, less one, modulo 8.
    pub pages: u8,
    pub install: Install,
    pub manager: Manager,
    pub acquaintance: Acquaintance,
    /// Verbs of the mm that fail once.
    pub faults: List<Fault>,
}

/// The `nth` call of a verb fails.
#[derive(Debug, Clone, PartialEq, Arbitrary)]
pub struct Fault {
    pub verb: MmVerb,
    pub nth: u8,
}

grammar! {
    /// The rule by which pages are installed.
    pub enum Install {
        3 => Shared,
        1 => Exclusive,
    }

    /// How process 0 becomes the context manager.
    pub enum Manager {
        4 => Plain,
        /// BINDER_SET_CONTEXT_MGR_EXT, with a node that takes descriptors.
        4 => TakesFiles,
        2 => WantsSecurityContext,
        1 => Absent,
    }

    /// Whether the context manager has a handle to a node of process 1, and one to a node of 2,
    /// and has told 1 of 2's.
    pub enum Acquaintance {
        1 => Strangers,
        1 => Acquainted,
    }

    pub enum MmVerb {
        4 => AllocPage,
        2 => InsertPage,
        2 => VmaLookup,
        1 => MmGet,
        1 => Zap,
    }

    /// Something that one client does, or that happens to it.
    pub enum Step {
        /// BINDER_WRITE_READ. A reply is sent by a thread that has one to give, if there is any.
        120 => WriteRead { by: Actor, commands: List<Command>, read: Read, trouble: Trouble },
        /// What libbinder does unasked: confirms notices, frees what it was sent, answers.
        24 => Behave { by: Actor, trouble: Trouble },
        /// Any other ioctl.
        30 => Call { by: Actor, ioctl: Ioctl },
        8 => Poll { by: Actor, stays: bool },
        6 => Signal { to: Actor },
        4 => Flush { process: Pick },
        /// A new process opens the device, or, with a wild pick, `hwbinder`.
        6 => Open { device: Pick, pages: u8 },
        /// A process opens the device again.
        3 => OpenAgain { process: Pick, pages: u8 },
        4 => Close { process: Pick },
        2 => Unmap { process: Pick },
        /// The process is gone, but its file is still open.
        2 => Die { process: Pick },
        /// From 192 pages on `binder_logs` are read, too.
        6 => Reclaim { pages: u8 },
        /// Every timer that runs fires.
        4 => TimePasses,
        3 => Files { process: Pick, change: FilesChange },
        2 => Nice { by: Actor, nice: i8 },
    }

    /// How many more descriptors a process takes.
    pub enum FilesChange {
        2 => Limit { room: u8 },
        1 => Refuse,
        1 => Unlimited,
    }

    /// The read part of a BINDER_WRITE_READ.
    pub enum Read {
        5 => Nothing,
        12 => Waits,
        8 => DoesNotWait,
        /// A buffer of so many bytes.
        2 => Short { size: u8 },
        /// In a buffer of which so many words lie before the end of a page, if the thread's does.
        2 => AcrossPages { before: u8 },
        /// `read_consumed` is not 0 at the call.
        1 => Resumed { consumed: u8 },
        1 => Unmapped,
    }

    /// What goes wrong outside of the driver, or happens while it is at work without its lock.
    pub enum Trouble {
        28 => NoTrouble,
        /// From the n-th time on, the caller's memory cannot be reached.
        4 => Unreachable { after: u8 },
        /// Before the n-th time that the driver reaches out, somebody else does something.
        6 => Meanwhile { after: u8, aside: Aside },
        /// `write_consumed` says that so many commands are done already.
        1 => Skip { commands: u8 },
        /// The write buffer's size is not what it holds.
        1 => CutShort { bytes: u8 },
    }

    /// A small step that happens in the middle of another.
    pub enum Aside {
        4 => ReleaseProcess { process: Pick },
        3 => ExitThread { thread: Actor },
        2 => Interrupt { thread: Actor },
        1 => FlushProcess { process: Pick },
        2 => FreezeProcess { process: Pick },
        1 => ThawProcess { process: Pick },
        2 => UnmapBuffer { process: Pick },
        3 => ReclaimAll,
        3 => FireTimers,
        8 => Do { by: Actor, command: Command },
        2 => ReadNow { by: Actor },
    }

    /// Every ioctl but BINDER_WRITE_READ.
    pub enum Ioctl {
        3 => Version,
        3 => SetMaxThreads { threads: Count },
        3 => ThreadExit,
        2 => SetContextManager { node: NodeFlags },
        1 => SetContextManagerPlain,
        3 => GetNodeDebugInfo { after: Pick },
        3 => GetNodeInfoForRef { handle: Pick, reserved: bool },
        4 => Freeze { process: Pick, timeout: bool },
        4 => Thaw { process: Pick },
        3 => GetFrozenInfo { process: Pick },
        2 => EnableOnewaySpamDetection { enable: bool },
        4 => GetExtendedError,
        1 => SetIdleTimeout,
        1 => SetIdlePriority,
        /// A number that is none, or an argument of another length.
        1 => Other { number: u32, size: u8 },
    }

    /// Every command (`BC_*`).
    pub enum Command {
        24 => Transaction { to: Pick, message: Message },
        /// The same again and again, `count` modulo 64 times.
        1 => Flood { to: Pick, count: u8, message: Message },
        16 => Reply { message: Message },
        16 => FreeBuffer { buffer: Pick },
        4 => Increfs { handle: Pick },
        6 => Acquire { handle: Pick },
        5 => Release { handle: Pick },
        4 => Decrefs { handle: Pick },
        6 => IncrefsDone { notice: Pick },
        6 => AcquireDone { notice: Pick },
        4 => EnterLooper,
        3 => RegisterLooper,
        2 => ExitLooper,
        8 => RequestDeath { handle: Pick },
        5 => ClearDeath { link: Pick },
        5 => DeadBinderDone { notice: Pick },
        8 => RequestFreeze { handle: Pick },
        5 => ClearFreeze { link: Pick },
        5 => FreezeDone { notice: Pick },
        1 => AttemptAcquire,
        1 => AcquireResult,
        1 => Unknown { number: u32 },
    }

    /// An object in a message.
    pub enum Object {
        /// A node of the sender's own.
        8 => Node { index: u8, strong: Strength, flags: NodeFlags },
        8 => Handle { handle: Pick, strong: Strength },
        4 => File { fd: Pick },
        5 => Buffer { length: u8, parent: Parent },
        3 => FileArray { files: u8, parent: Parent },
        1 => UnknownType { kind: u32 },
    }

    pub enum Strength {
        3 => Strong,
        1 => Weak,
    }

    /// Which scatter-gather buffer an object's pointer or descriptors lie in.
    pub enum Parent {
        3 => NoParent,
        /// The last one, `at` modulo 16 times 8 bytes from its beginning.
        4 => Last { at: u8 },
        1 => Nth { index: u8, at: u8 },
    }

    pub enum Size {
        12 => Bytes { count: u8 },
        /// In units of 16 bytes: up to a page.
        4 => Chunks { count: u8 },
        /// In units of 128 bytes: up to all of most mappings.
        1 => BigChunks { count: u8 },
    }

    /// How a message is not what it should be.
    pub enum Twist {
        150 => Honest,
        1 => OffsetsMisaligned,
        1 => OffsetsOutOfOrder,
        1 => OffsetOutOfBounds { by: u8 },
        1 => OffsetsSizeOdd,
        1 => DataElsewhere,
        1 => OffsetsElsewhere,
        1 => BuffersElsewhere,
        /// Less room for scatter-gather buffers than they need.
        1 => TooLittleRoom { by: u8 },
        1 => OddRoom,
        1 => HugeData,
        1 => HugeOffsets,
        1 => HugeRoom,
        /// A node's cookie is not the one it was first offered with.
        1 => OtherCookie,
        1 => ShortData { by: u8 },
    }
}

/// `FLAT_BINDER_FLAG_*` of a node: its lowest priority in the low bits, then whether it takes
/// descriptors and whether it wants security contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub struct NodeFlags(pub u8);

/// A transaction's flags: bit by bit TF_ACCEPT_FDS, TF_CLEAR_BUF, TF_UPDATE_TXN and
/// TF_ROOT_OBJECT; the two highest together TF_ONE_WAY, for a quarter of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub struct Flags(pub u8);

/// What a transaction or a reply says.
#[derive(Debug, Clone, PartialEq, Arbitrary)]
pub struct Message {
    pub flags: Flags,
    pub code: u8,
    pub size: Size,
    pub objects: List<Object>,
    pub twist: Twist,
}
