//! What was done, counted in memory that all processes of a run share: a client that is killed
//! takes none of it along.

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$what:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$what])* $variant),* }

        impl $name {
            pub const ALL: &'static [($name, &'static str)] = &[$(($name::$variant, $text)),*];
        }
    };
}

names! {
    /// Operations of honest clients, each of which ends in one [`Outcome`].
    Operation {
        Call = "calls",
        OneWay = "one-way calls",
        Nested = "nested calls",
        Objects = "calls with a node and a handle",
        Descriptor = "calls with a descriptor",
        LookUp = "look-ups at the manager",
        Registration = "registrations at the manager",
        Unread = "one-way calls to clients that do not read",
        Waiting = "calls to clients that do not read",
        ShortThread = "calls of a thread that ends",
    }
}

names! {
    /// How an operation ended. All but the last are as they should be.
    Outcome {
        Done = "done",
        Dead = "dead",
        Frozen = "frozen",
        /// ENOSPC: the receiver's mapping is full.
        NoRoom = "no room",
        /// The errno that faults are injected with.
        Fault = "fault",
        /// ENOMEM, EMFILE: the budget, or a quota.
        NoMemory = "no memory",
        /// BR_FAILED_REPLY without a reason (BINDER_GET_EXTENDED_ERROR): the receiver could not be
        /// given it, since it was killed at that moment. The driver tells no more, either.
        NotRead = "not read",
        /// A nested call ended in one of these ways.
        Further = "further on",
        Wrong = "FAILED CHECK",
    }
}

names! {
    /// What else happened.
    Event {
        Births = "clients started",
        Kills = "clients killed",
        Left = "clients that left because of a fault",
        Stops = "clients stopped and continued",
        Freezes = "freezes",
        FreezesRefused = "freezes refused (busy, or gone)",
        PendingFrozen = "one-way calls that waited for a frozen client",
        DeathsTold = "deaths told",
        FreezesTold = "told that a process is frozen",
        /// Also what a process is at the moment in which somebody asks to be told.
        ThawsTold = "told that a process runs",
        Spam = "spam suspected",
        Reclaims = "reclaims asked for",
        PagesReclaimed = "pages reclaimed on request",
        FaultsMet = "injected faults met by clients",
        QuotaOpens = "quota reached: opens",
        QuotaRecords = "quota reached: records or one-way bytes",
        QuotaPages = "quota reached: pages",
        FailedChecks = "failed checks",
    }
}

impl Operation {
    pub fn name(self) -> &'static str {
        Operation::ALL[self as usize].1
    }
}

const OUTCOMES: usize = Outcome::ALL.len();
const OPERATIONS: usize = Operation::ALL.len();

/// The counts.
#[repr(C)]
pub struct Tally {
    operations: [[AtomicU64; OUTCOMES]; OPERATIONS],
    events: [AtomicU64; Event::ALL.len()],
}

impl Tally {
    /// The counts in a file, which is made as long as they are. They stay mapped.
    pub fn shared(path: &Path) -> io::Result<&'static Tally> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(size_of::<Tally>() as u64)?;
        let size = NonZeroUsize::new(size_of::<Tally>()).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at no address in particular.
        let place = unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED, &file, 0) }?;
        // SAFETY: it is large enough, aligned to a page, and never unmapped; any bytes are a Tally,
        // and all processes change them by atomic operations alone.
        Ok(unsafe { place.cast::<Tally>().as_ref() })
    }

    pub fn count(&self, operation: Operation, outcome: Outcome) {
        self.operations[operation as usize][outcome as usize].fetch_add(1, Relaxed);
    }

    pub fn happened(&self, event: Event) {
        self.add(event, 1);
    }

    pub fn add(&self, event: Event, number: u64) {
        self.events[event as usize].fetch_add(number, Relaxed);
    }

    pub fn of(&self, operation: Operation, outcome: Outcome) -> u64 {
        self.operations[operation as usize][outcome as usize].load(Relaxed)
    }

    pub fn events(&self, event: Event) -> u64 {
        self.events[event as usize].load(Relaxed)
    }

    /// Operations of every kind that ended so.
    pub fn all(&self, outcome: Outcome) -> u64 {
        Operation::ALL.iter().map(|&(operation, _)| self.of(operation, outcome)).sum()
    }
}
