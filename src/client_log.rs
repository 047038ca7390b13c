//! The lines of the log that clients can cause, and the limit on them.
//!
//! What a client can do a million times a second it can also have logged a million times. So every
//! such line has a [`Kind`] and goes through [`client_log!`] or [`user_error!`]; `log::info!` and
//! its kin are called directly only for lines that the daemon alone can cause.
//!
//! Three limits, all of which a line has to pass; a test floods each kind:
//! 1. a kind of line for a user: [`PER_KIND`] in a [`WINDOW`];
//! 2. a user, over all kinds: half of what there is for all (but for root, who has the machine);
//! 3. all users together: [`TOGETHER`].
//!
//! The next line of a kind says how many were suppressed, and when none comes, a summary does.
//!
//! The user is the one whose request is being served ([`Caller`]). The lock here is a leaf, and the
//! logger behind it must not block (the daemon's hands its lines to a thread, see
//! [`log_writer`](crate::log_writer)), so a line may be written under any lock.

#![allow(clippy::disallowed_types, reason = "a leaf that may be taken under any lock")]

use log::Level;
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The length of the window in which the lines of a kind are counted.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Lines of one kind that one user may cause in a [`WINDOW`].
pub const PER_KIND: u32 = 5;

/// Lines that all users may cause, of any kind: so many at once, and so many more each second.
pub const TOGETHER: Rate = Rate { at_once: 24, per_second: 2 };

/// How many users have a record of their own. Further users share one, and so its limits.
const MOST_USERS: usize = 64;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $level:ident,)*) => {
        /// What a client can have logged.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// The level at which such a line is logged.
            pub fn level(self) -> Level {
                match self {
                    $(Kind::$name => Level::$level,)*
                }
            }
        }
    };
}

kinds! {
    // What a program does wrong (`binder_user_error`).
    /// A command that is unknown, or that no version of the driver has carried out.
    BadCommand: Warn,
    /// An ioctl that is unknown.
    BadIoctl: Warn,
    /// There is a context manager already, or only another uid may be it.
    BadManager: Warn,
    /// A transaction to an unknown handle, or with one among its objects.
    BadHandle: Warn,
    /// A call to the context manager, or to a node, of the caller's own process.
    CallToSelf: Warn,
    /// A call while the thread waits for a reply, or has one to give.
    BadCallStack: Warn,
    /// A reply that answers no call.
    BadReply: Warn,
    /// Invalid sizes, offsets or objects of a message.
    BadMessage: Warn,
    /// A node is sent, or confirmed, with another cookie than before.
    BadCookie: Warn,
    /// An invalid descriptor, or one for a receiver that takes none.
    BadFile: Warn,
    /// BC_FREE_BUFFER of an address that is no buffer, or of a buffer that may not be freed now.
    BadFree: Warn,
    /// BC_ACQUIRE and its kin on a handle that is unknown or too weak.
    BadReference: Warn,
    /// BC_INCREFS_DONE or BC_ACQUIRE_DONE that nobody waits for.
    BadNodeDone: Warn,
    /// A thread that enters or registers as a looper out of order.
    BadLooper: Warn,
    /// A command about a death notification that does not match.
    BadDeathNotification: Warn,
    /// A command about a freeze notification that does not match.
    BadFreezeNotification: Warn,

    // What happens to a program's calls.
    /// A transaction failed; its sender reads why.
    TransactionFailed: Info,
    /// Threads that wait for one another for ever.
    Deadlock: Warn,
    /// No room in the target's buffer.
    NoSpace: Warn,
    /// The target has no mapping.
    NotMapped: Warn,
    /// One sender holds much of the one-way space.
    OnewaySpam: Warn,
    /// A call to a node that asks for a security context, which the kernel does not have.
    NoSecurityContext: Warn,
    /// Descriptors for a client that cannot be given any.
    NoWayForFiles: Warn,
    /// Descriptors that could not be installed in the client.
    FilesNotInstalled: Warn,
    /// Descriptors on their way that clients do not fetch.
    FilesNotFetched: Warn,
    /// A device was added through binder-control.
    DeviceAdded: Info,

    // What the daemon meets because of a client, or of where the client runs.
    /// An open by a process outside the daemon's pid namespace.
    NotInNamespace: Warn,
    /// One file was opened twice.
    OpenedTwice: Warn,
    /// A device was opened through a bind mount of its one file, so that it cannot be mapped.
    OpenedWithoutMapping: Warn,
    /// The memory of a client cannot be reached.
    MemoryRefused: Warn,
    /// More memory than the kernel can copy for the daemon (a CUSE retry).
    GatherTooLarge: Warn,
    /// An attach that could not be served.
    AttachRefused: Warn,
    /// A user has as much of something as one user may have.
    UserLimit: Warn,
    /// The daemon has no descriptor left for what a client wants.
    OutOfDescriptors: Warn,
    /// The daemon has no memory left for what a client wants.
    OutOfMemory: Warn,
    /// A mapping of a buffer that is not allowed, or that cannot be looked at.
    BadMapping: Warn,
    /// A page could not be installed.
    PageNotInstalled: Warn,
    /// A page could not be removed, or a buffer could not be cleared.
    PageNotRemoved: Error,
    /// A buffer to be freed does not exist.
    BufferNotFound: Error,
    /// Somebody has punched a hole into a buffer file.
    HolePunched: Warn,
    /// Threads of the daemon are held up by clients.
    WorkersHeldUp: Warn,
    /// A malformed request.
    BadRequest: Error,
    /// A reply that the kernel did not take, or that nobody wrote.
    NotReplied: Error,
}

/// Logs a line of a [`Kind`] if its limits allow.
#[macro_export]
macro_rules! client_log {
    ($kind:expr, $($message:tt)+) => {
        $crate::client_log::log($kind, format_args!($($message)+))
    };
}
pub use client_log;

/// As [`client_log!`], beginning with the caller's process and thread as the driver's lines do.
#[macro_export]
macro_rules! user_error {
    ($kind:expr, $($message:tt)+) => {
        $crate::client_log::log(
            $kind,
            format_args!("{}{}", $crate::client_log::Caller::now(), format_args!($($message)+)),
        )
    };
}
pub use user_error;

/// The caller whose request this thread is serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective uid, in the daemon's user namespace.
    pub uid: u32,
    /// Thread group; 0 while that is not known.
    pub pid: i32,
    /// Thread id in the daemon's pid namespace; 0 is the daemon itself.
    pub tid: i32,
}

thread_local! {
    static CALLER: Cell<Caller> = const { Cell::new(Caller::NOBODY) };
}

impl Caller {
    /// The daemon itself, as when a timer fires.
    const NOBODY: Caller = Caller { uid: u32::MAX, pid: 0, tid: 0 };

    /// From now on, until the guard is dropped, lines are this caller's.
    #[must_use = "the caller is the one before when this is dropped"]
    pub fn enter(self) -> Serving {
        Serving { before: CALLER.replace(self), here: std::marker::PhantomData }
    }

    /// The caller whom this thread is serving.
    pub fn now() -> Caller {
        CALLER.get()
    }
}

/// `process:thread `, as the driver's lines begin.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tid {
            0 => Ok(()),
            tid => write!(f, "{}:{tid} ", self.pid),
        }
    }
}

/// The guard that [`Caller::enter`] returns. Stays on its thread.
#[derive(Debug)]
pub struct Serving {
    before: Caller,
    here: std::marker::PhantomData<*const ()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        CALLER.set(self.before);
    }
}

/// How many lines may pass: `at_once` at the start, and more as time goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Lines that may pass at the start.
    pub at_once: u32,
    /// Further lines for each second, up to `at_once`.
    pub per_second: u32,
}

impl Rate {
    const fn half(self) -> Rate {
        Rate { at_once: self.at_once / 2, per_second: self.per_second / 2 }
    }
}

/// A bucket of tokens, filled at a [`Rate`].
#[derive(Debug, Default)]
struct Bucket {
    taken: u32,
    /// The time up to which tokens have been put back.
    counted: Duration,
}

impl Bucket {
    fn refill(&mut self, rate: Rate, now: Duration) {
        let interval = Duration::from_secs(1) / rate.per_second;
        let due = now.saturating_sub(self.counted).as_nanos() / interval.as_nanos();
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_sub(due);
        self.counted = match self.taken {
            0 => now,
            _ => self.counted + interval * due,
        };
    }

    fn has_one(&mut self, rate: Rate, now: Duration) -> bool {
        self.refill(rate, now);
        self.taken < rate.at_once
    }
}

/// One kind of line for one user.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// When the current window began.
    since: Duration,
    written: u32,
    suppressed: u64,
}

#[derive(Debug)]
struct User {
    bucket: Bucket,
    kinds: Box<[Seen]>,
}

impl Default for User {
    fn default() -> User {
        let kinds = vec![Seen::default(); Kind::ALL.len()].into_boxed_slice();
        User { bucket: Bucket::default(), kinds }
    }
}

impl User {
    fn suppressed(&self) -> u64 {
        self.kinds.iter().map(|seen| seen.suppressed).sum()
    }

    /// Whether a new record would say the same.
    fn is_idle(&mut self, now: Duration) -> bool {
        self.bucket.refill(TOGETHER.half(), now);
        let over = |seen: &Seen| seen.suppressed == 0 && now >= seen.since + WINDOW;
        self.bucket.taken == 0 && self.kinds.iter().all(over)
    }
}

/// Decides which lines pass. Times count from some moment in the past.
#[derive(Debug, Default)]
pub struct Limiter {
    users: HashMap<u32, User>,
    /// The users for whom there is no room in `users`.
    others: User,
    all: Bucket,
    /// When to tell of suppressed lines that no line has told of yet.
    tell_at: Option<Duration>,
}

impl Limiter {
    /// Whether a line passes; if so, how many of its kind were suppressed before it.
    pub fn admit(&mut self, kind: Kind, uid: u32, now: Duration) -> Option<u64> {
        let all_have = self.all.has_one(TOGETHER, now);
        let rate = if uid == 0 { TOGETHER } else { TOGETHER.half() };
        let user = self.user(uid, now);
        let user_has = user.bucket.has_one(rate, now);
        let seen = &mut user.kinds[kind as usize];
        if now >= seen.since + WINDOW {
            (seen.since, seen.written) = (now, 0);
        }
        if !all_have || !user_has || seen.written >= PER_KIND {
            seen.suppressed += 1;
            self.tell_at.get_or_insert(now + WINDOW);
            return None;
        }
        seen.written += 1;
        let suppressed = std::mem::take(&mut seen.suppressed);
        user.bucket.taken += 1;
        self.all.taken += 1;
        Some(suppressed)
    }

    fn user(&mut self, uid: u32, now: Duration) -> &mut User {
        if !self.users.contains_key(&uid) && self.users.len() >= MOST_USERS {
            self.users.retain(|_, user| !user.is_idle(now));
            if self.users.len() >= MOST_USERS {
                return &mut self.others;
            }
        }
        self.users.entry(uid).or_default()
    }

    /// How many users have a record of their own.
    pub fn users(&self) -> usize {
        self.users.len()
    }

    /// One line about what was suppressed, if it is to be told by now; and after what time to ask
    /// again, if there is a reason to.
    pub fn summary(&mut self, now: Duration) -> (Option<String>, Option<Duration>) {
        match self.tell_at {
            None => return (None, None),
            Some(at) if now < at => return (None, Some(at - now)),
            Some(_) => self.tell_at = None,
        }
        let mut users: Vec<(Option<u32>, &mut User)> =
            self.users.iter_mut().map(|(uid, user)| (Some(*uid), user)).collect();
        users.push((None, &mut self.others));
        users.retain(|(_, user)| user.suppressed() > 0);
        users.sort_by_key(|(_, user)| std::cmp::Reverse(user.suppressed()));
        let lines: u64 = users.iter().map(|(_, user)| user.suppressed()).sum();
        if lines == 0 {
            return (None, None);
        }
        const NAMED: usize = 3;
        let mut line = format!("{lines} lines were suppressed:");
        for (uid, user) in users.iter().take(NAMED) {
            let most = Kind::ALL.iter().max_by_key(|kind| user.kinds[**kind as usize].suppressed);
            let _ = match uid {
                Some(u32::MAX) | None => write!(line, " {} of others", user.suppressed()),
                Some(uid) => write!(line, " {} of uid {uid}", user.suppressed()),
            };
            let _ = write!(line, ", most of them {:?};", most.expect("there are kinds"));
        }
        match users.len().saturating_sub(NAMED) {
            0 => drop(line.pop()),
            more => _ = write!(line, " {more} more users"),
        }
        for (_, user) in users {
            user.kinds.iter_mut().for_each(|seen| seen.suppressed = 0);
        }
        (Some(line), None)
    }
}

static LIMITER: OnceLock<Mutex<Limiter>> = OnceLock::new();

fn now() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    // At least [`WINDOW`]: later than the end of a window that began at 0.
    START.get_or_init(Instant::now).elapsed() + WINDOW
}

/// Logs a line if its limits allow; called by [`client_log!`] and [`user_error!`].
pub fn log(kind: Kind, message: fmt::Arguments<'_>) {
    let level = kind.level();
    if !log::log_enabled!(level) {
        return;
    }
    let admitted = LIMITER.get_or_init(Mutex::default).lock().admit(kind, Caller::now().uid, now());
    match admitted {
        None => {}
        Some(0) => log::log!(level, "{message}"),
        Some(more) => log::log!(level, "{message} ({more} lines like this were suppressed)"),
    }
}

/// Logs what was suppressed and not yet told; returns after what time to call this again. None: not
/// before another line was logged.
pub fn log_summary() -> Option<Duration> {
    let (line, again) = LIMITER.get_or_init(Mutex::default).lock().summary(now());
    if let Some(line) = line {
        log::warn!("{line}");
    }
    again
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_kind_is_written_again_in_the_next_window_and_says_what_was_missed() {
        let mut limiter = Limiter::default();
        let start = WINDOW;
        let passed: Vec<_> =
            (0..20).filter_map(|_| limiter.admit(Kind::BadFree, 1000, start)).collect();
        assert_eq!(passed, [0; PER_KIND as usize]);
        assert_eq!(limiter.admit(Kind::BadFree, 1000, start + WINDOW - SECOND), None);
        assert_eq!(limiter.admit(Kind::BadFree, 1000, start + WINDOW), Some(16));
        assert_eq!(limiter.admit(Kind::BadFree, 1000, start + WINDOW), Some(0));
    }

    #[test]
    fn one_user_leaves_half_to_the_others() {
        let mut limiter = Limiter::default();
        let mut count = |uid| {
            let kinds = Kind::ALL.iter().cycle().take(10_000);
            kinds.filter(|kind| limiter.admit(**kind, uid, WINDOW).is_some()).count() as u32
        };
        assert_eq!(count(1000), TOGETHER.at_once / 2);
        assert_eq!(count(1001), TOGETHER.at_once / 2);
        assert_eq!(count(1002), 0);
        let mut alone = Limiter::default();
        let root = Kind::ALL.iter().filter(|kind| alone.admit(**kind, 0, WINDOW).is_some());
        assert_eq!(root.count() as u32, TOGETHER.at_once);
    }

    #[test]
    fn what_is_suppressed_at_last_is_told_once() {
        let mut limiter = Limiter::default();
        assert_eq!(limiter.summary(WINDOW), (None, None));
        for _ in 0..PER_KIND + 7 {
            limiter.admit(Kind::NoSpace, 1000, WINDOW);
        }
        assert_eq!(limiter.summary(WINDOW + SECOND), (None, Some(WINDOW - SECOND)));
        let (line, again) = limiter.summary(WINDOW * 2);
        let told = "7 lines were suppressed: 7 of uid 1000, most of them NoSpace";
        assert_eq!((line.as_deref(), again), (Some(told), None));
        assert_eq!(limiter.summary(WINDOW * 3), (None, None));
    }

    #[test]
    fn users_without_number_cost_a_bounded_table() {
        let mut limiter = Limiter::default();
        for uid in 0..100_000 {
            limiter.admit(Kind::BadHandle, uid, WINDOW);
        }
        assert_eq!(limiter.users(), MOST_USERS);
        let (line, _) = limiter.summary(WINDOW * 2);
        assert!(line.is_some_and(|line| line.ends_with(" more users") && line.len() < 300));
        // An hour later the idle records are dropped, and a new user gets one.
        assert_eq!(limiter.admit(Kind::BadHandle, 7_000_000, SECOND * 3600), Some(0));
        assert_eq!(limiter.users(), 1);
    }

    #[test]
    fn a_line_belongs_to_the_caller_who_is_served() {
        assert_eq!(Caller::now().to_string(), "");
        let outer = Caller { uid: 1, pid: 20, tid: 21 }.enter();
        {
            let _inner = Caller { uid: 2, pid: 30, tid: 31 }.enter();
            assert_eq!(Caller::now().uid, 2);
        }
        assert_eq!(Caller::now().to_string(), "20:21 ");
        drop(outer);
        assert_eq!(Caller::now(), Caller::NOBODY);
    }
}
