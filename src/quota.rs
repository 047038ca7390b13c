//! What one user may make the daemon hold, over all of the user's open files.
//!
//! The daemon's descriptors, mappings and memory serve all users. So whatever a client makes the
//! daemon hold is counted for the user who has opened the device ([`User`]), and no user but root
//! may have more than a share ([`UserLimits`]; by default half of what there is). More than that is
//! an error for that user alone (EMFILE or ENOMEM, BR_FAILED_REPLY in a transaction) and a line in
//! the log.
//!
//! What is held has a [`Charge`], which is kept with it and given back when it is dropped: there is
//! no list of who has to give back what, and nothing can be forgotten. Records (nodes, references
//! and their kin) are counted one by one, and their bytes come out of the same budget as the pages
//! of buffers.
//!
//! Locks: the table of users is a leaf. Counting is by atomics, and may be done under any lock.

#![allow(clippy::disallowed_types, reason = "a leaf that may be taken under any lock")]

use crate::Errno;
use crate::client_log::{Kind, client_log};
use crate::memory::Memory;
use crate::probe::{Verb, fault};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// The kinds of things that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Open files of devices.
    Opens,
    /// Descriptors of the daemon, for open files and for files on their way between clients.
    Descriptors,
    /// Pages of buffers, of 4 KiB, in the files that the user has opened.
    Pages,
    /// Threads, nodes, references, death and freeze links, transactions and buffers.
    Records,
    /// Bytes that records take of the memory budget ([`bytes`]).
    RecordBytes,
    /// Bytes of one-way calls that the user has sent and no process has read yet.
    OnewayBytes,
    /// Copies from or to the user's memory that are under way.
    StalledCopies,
}

impl What {
    /// All kinds, with the names that `--user-limit` takes.
    pub const ALL: [(&'static str, What); 7] = [
        ("opens", What::Opens),
        ("descriptors", What::Descriptors),
        ("pages", What::Pages),
        ("records", What::Records),
        ("record-bytes", What::RecordBytes),
        ("oneway-bytes", What::OnewayBytes),
        ("stalled-copies", What::StalledCopies),
    ];

    /// The error when a user wants more than the limit.
    fn errno(self) -> Errno {
        match self {
            What::Opens | What::Descriptors => Errno::EMFILE,
            What::Pages
            | What::Records
            | What::RecordBytes
            | What::OnewayBytes
            | What::StalledCopies => Errno::ENOMEM,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = What::ALL.iter().find(|(_, what)| what == self).map(|(name, _)| name);
        f.write_str(name.expect("all are named"))
    }
}

/// The most that a user other than root may have of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserLimits([usize; What::ALL.len()]);

impl Default for UserLimits {
    fn default() -> UserLimits {
        UserLimits::NONE
    }
}

impl UserLimits {
    /// No limits.
    pub const NONE: UserLimits = UserLimits([usize::MAX; What::ALL.len()]);

    /// Lets a user have `most` of `what`.
    pub fn set(&mut self, what: What, most: usize) {
        self.0[what as usize] = most;
    }

    /// The most that a user may have of `what`.
    pub fn get(&self, what: What) -> usize {
        self.0[what as usize]
    }

    /// Half of what this process may have: of `descriptors`, of `mappings`, and of `bytes` of
    /// memory for pages and records.
    pub fn half_of(descriptors: usize, mappings: usize, bytes: Option<u64>) -> UserLimits {
        /// Mappings that the daemon has without clients, with some for its threads.
        const OWN: usize = 1_024;
        /// The size of the smallest record, with its places in tables.
        const RECORD: usize = bytes::LINK;
        let bytes = bytes.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let mut limits = UserLimits::NONE;
        limits.set(What::Opens, descriptors.min(mappings.saturating_sub(OWN)) / 2);
        limits.set(What::Descriptors, descriptors / 2);
        limits.set(What::Pages, bytes / crate::page::PAGE_SIZE / 2);
        limits.set(What::Records, bytes / RECORD / 2);
        limits.set(What::RecordBytes, bytes / 2);
        limits.set(What::OnewayBytes, bytes / 2);
        limits.set(What::StalledCopies, 128);
        limits
    }
}

/// `WHAT=N`; a number may end in K, M or G.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserLimit {
    /// What is limited.
    pub what: What,
    /// The most that a user may have of that.
    pub most: usize,
}

impl FromStr for UserLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || What::ALL.map(|(name, _)| name).join(", ");
        let (name, number) = text.split_once('=').ok_or("it is WHAT=N, as in opens=1000")?;
        let named = What::ALL.iter().find(|(known, _)| *known == name);
        let &(_, what) =
            named.ok_or_else(|| format!("nothing called '{name}' is limited: {}", known()))?;
        let (digits, shift) = match number.as_bytes().last() {
            Some(b'K' | b'k') => (&number[..number.len() - 1], 10),
            Some(b'M' | b'm') => (&number[..number.len() - 1], 20),
            Some(b'G' | b'g') => (&number[..number.len() - 1], 30),
            _ => (number, 0),
        };
        let most = digits.parse::<usize>().ok().and_then(|most| most.checked_mul(1 << shift));
        let most = most.ok_or_else(|| format!("no number '{number}': as in 1000, 64K or 1M"))?;
        Ok(UserLimit { what, most })
    }
}

/// Bytes that records take of the memory budget: for the structures themselves, and for their
/// places in tables that grow by doubling. Measured with a million of each.
pub mod bytes {
    /// An open file, with what is kept for each of its pages.
    pub const OPEN: usize = 12 << 10;
    /// A thread.
    pub const THREAD: usize = 640;
    /// A node.
    pub const NODE: usize = 768;
    /// A reference.
    pub const REFERENCE: usize = 384;
    /// A death or a freeze link.
    pub const LINK: usize = 192;
    /// A transaction.
    pub const TRANSACTION: usize = 640;
    /// A buffer.
    pub const BUFFER: usize = 256;
}

/// Every user who makes the daemon hold something.
#[derive(Debug)]
pub struct Quotas {
    limits: UserLimits,
    memory: Arc<Memory>,
    users: Mutex<ByUid<User>>,
}

/// Something of each user, as long as anybody keeps it.
#[derive(Debug)]
pub struct ByUid<T> {
    known: HashMap<u32, Weak<T>>,
    /// At this size the table drops what nobody keeps any more.
    sweep_at: usize,
}

impl<T> Default for ByUid<T> {
    fn default() -> ByUid<T> {
        ByUid { known: HashMap::new(), sweep_at: 0 }
    }
}

impl<T> ByUid<T> {
    /// What the user of this uid has, made when there is none.
    pub fn get_or_make(&mut self, uid: u32, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(&uid).and_then(Weak::upgrade) {
            return known;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, it| it.strong_count() > 0);
            self.sweep_at = (self.known.len() * 2).max(64);
        }
        let made = make();
        self.known.insert(uid, Arc::downgrade(&made));
        made
    }

    /// What there is, in no order.
    fn all(&self) -> Vec<Arc<T>> {
        self.known.values().filter_map(Weak::upgrade).collect()
    }
}

impl Quotas {
    /// Quotas of which nothing is held yet.
    pub fn new(memory: &Arc<Memory>, limits: UserLimits) -> Quotas {
        Quotas { limits, memory: memory.clone(), users: Mutex::default() }
    }

    /// The most that a user may have of a kind. Root has no limit but what there is.
    pub fn limit(&self, uid: u32, what: What) -> usize {
        if uid == 0 { usize::MAX } else { self.limits.get(what) }
    }

    /// The user of this uid. All callers get the same one, as long as any of them keeps it.
    pub fn user(&self, uid: u32) -> Arc<User> {
        let new = || {
            Arc::new(User {
                uid,
                limits: if uid == 0 { UserLimits::NONE } else { self.limits },
                held: Default::default(),
                memory: Some(self.memory.clone()),
            })
        };
        self.users.lock().get_or_make(uid, new)
    }

    /// Every user for whom something is held, by uid.
    pub fn users(&self) -> Vec<Arc<User>> {
        let mut users = self.users.lock().all();
        users.sort_by_key(|user| user.uid);
        users
    }
}

/// One user, and how much is held for that user.
#[derive(Debug)]
pub struct User {
    uid: u32,
    limits: UserLimits,
    held: [AtomicUsize; What::ALL.len()],
    /// Where the bytes of records are charged; None in tests.
    memory: Option<Arc<Memory>>,
}

impl User {
    /// A user without limits, whose uid is unknown.
    pub fn unlimited() -> Arc<User> {
        User::with_limits(UserLimits::NONE)
    }

    /// A user with limits, whose records are charged to no memory: for tests.
    pub fn with_limits(limits: UserLimits) -> Arc<User> {
        Arc::new(User { uid: u32::MAX, limits, held: Default::default(), memory: None })
    }

    /// Who it is.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// How much is held for this user.
    pub fn held(&self, what: What) -> usize {
        self.held[what as usize].load(Ordering::Relaxed)
    }

    /// The most that this user may have; `usize::MAX` without a limit.
    pub fn limit(&self, what: What) -> usize {
        self.limits.get(what)
    }

    /// Counts `n` more. EMFILE or ENOMEM when that is more than the user may have.
    pub fn charge(&self, what: What, n: usize) -> Result<(), Errno> {
        let most = self.limits.get(what);
        let more = |held: usize| held.checked_add(n).filter(|held| *held <= most);
        let charged =
            self.held[what as usize].fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        match charged {
            Ok(_) => Ok(()),
            Err(held) => {
                client_log!(
                    Kind::UserLimit,
                    "uid {} has {held} {what} and may have {most} (--user-limit {what}=N)",
                    self.uid
                );
                Err(what.errno())
            }
        }
    }

    /// Whether `n` more are within the limit. Logs nothing if not.
    pub fn may_have(&self, what: What, n: usize) -> bool {
        self.held(what).checked_add(n).is_some_and(|held| held <= self.limits.get(what))
    }

    /// Counts `n` more that exist already, whatever the limit.
    pub fn charge_existing(&self, what: What, n: usize) {
        self.held[what as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Gives back what [`User::charge`] took.
    pub fn uncharge(&self, what: What, n: usize) {
        let before = self.held[what as usize].fetch_sub(n, Ordering::Relaxed);
        debug_assert!(before >= n, "{n} {what} given back, {before} held");
    }

    /// Charges `n` until the guard is dropped.
    pub fn hold(self: &Arc<Self>, what: What, n: usize) -> Result<Charge, Errno> {
        self.charge(what, n)?;
        Ok(Charge { user: self.clone(), what, n, bytes: 0 })
    }

    /// Charges a record of so many bytes. ENOMEM also when the memory budget is used up.
    pub fn hold_record(self: &Arc<Self>, bytes: usize) -> Result<Charge, Errno> {
        fault(Verb::Record)?;
        let held = self.hold(What::Records, 1)?;
        self.with_bytes(held, bytes)
    }

    /// Charges an open file, with its record.
    pub fn hold_open(self: &Arc<Self>) -> Result<Charge, Errno> {
        let held = self.hold(What::Opens, 1)?;
        self.with_bytes(held, bytes::OPEN)
    }

    fn with_bytes(&self, mut held: Charge, bytes: usize) -> Result<Charge, Errno> {
        self.charge(What::RecordBytes, bytes)?;
        if let Some(memory) = &self.memory {
            memory.charge_bytes(bytes).inspect_err(|_| self.uncharge(What::RecordBytes, bytes))?;
        }
        held.bytes = bytes;
        Ok(held)
    }
}

/// Something that is charged to a user until this value is dropped.
#[derive(Debug)]
#[must_use = "dropped, it is given back"]
pub struct Charge {
    user: Arc<User>,
    what: What,
    n: usize,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.user.uncharge(self.what, self.n);
        self.user.uncharge(What::RecordBytes, self.bytes);
        if let Some(memory) = &self.user.memory {
            memory.uncharge_bytes(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryConfig;

    fn quotas(what: What, most: usize, budget: Option<u64>) -> Quotas {
        let memory = Memory::new(MemoryConfig { page_budget: budget, ..Default::default() });
        let mut limits = UserLimits::NONE;
        limits.set(what, most);
        Quotas::new(&memory, limits)
    }

    #[test]
    fn a_user_has_as_much_as_the_limit_says_and_what_was_given_back_again() {
        let quotas = quotas(What::Opens, 2, None);
        let user = quotas.user(1000);
        let first = user.hold(What::Opens, 1).expect("one");
        let _second = quotas.user(1000).hold(What::Opens, 1).expect("two, over all of its files");
        assert_eq!(user.hold(What::Opens, 1).expect_err("three"), Errno::EMFILE);
        drop(first);
        assert!(user.hold(What::Opens, 2).is_err());
        assert!(user.hold(What::Opens, 1).is_ok());
        // Other users have their own quota, and root has no limit.
        assert!(quotas.user(1001).hold(What::Opens, 2).is_ok());
        assert!(quotas.user(0).hold(What::Opens, 1_000).is_ok());
    }

    #[test]
    fn every_kind_has_an_error_and_a_name_that_is_understood() {
        for (name, what) in What::ALL {
            let quotas = quotas(what, 3, None);
            let errno = quotas.user(7).hold(what, 4).expect_err("too many");
            assert!(matches!(errno, Errno::EMFILE | Errno::ENOMEM));
            assert_eq!(format!("{name}=3").parse(), Ok(UserLimit { what, most: 3 }));
            assert_eq!(what.to_string(), name);
        }
        assert_eq!("pages=2K".parse(), Ok(UserLimit { what: What::Pages, most: 2048 }));
        for nonsense in ["opens", "opens=", "opens=-1", "files=3", "pages=3X", "pages=K", "="] {
            assert!(nonsense.parse::<UserLimit>().is_err(), "{nonsense}");
        }
    }

    #[test]
    fn records_and_pages_draw_on_one_budget() {
        let quotas = quotas(What::Opens, 1, Some(64 << 10));
        let (user, root) = (quotas.user(1000), quotas.user(0));
        let records: Vec<Charge> = std::iter::from_fn(|| user.hold_record(1 << 10).ok()).collect();
        assert_eq!(records.len(), 64);
        assert_eq!(root.hold_record(1 << 10).expect_err("all is used up"), Errno::ENOMEM);
        assert_eq!(quotas.memory.charge(), Err(Errno::ENOMEM));
        drop(records);
        assert_eq!(user.held(What::Records), 0);
        assert_eq!(quotas.memory.charge(), Ok(()));
        assert_eq!(std::iter::from_fn(|| root.hold_record(1 << 10).ok()).take(99).count(), 99);
        let kept: Vec<Charge> = std::iter::from_fn(|| root.hold_record(1 << 10).ok()).collect();
        assert_eq!(kept.len(), 60, "a page is gone");
    }

    #[test]
    fn half_is_for_the_others() {
        let limits = UserLimits::half_of(1 << 20, 65_530, Some(1 << 30));
        assert_eq!(limits.get(What::Opens), (65_530 - 1_024) / 2);
        assert_eq!(limits.get(What::Descriptors), 1 << 19);
        assert_eq!(limits.get(What::Pages), (1 << 18) / 2);
        assert_eq!(limits.get(What::OnewayBytes), 1 << 29);
        let few = UserLimits::half_of(64, 65_530, None);
        assert_eq!((few.get(What::Opens), few.get(What::Pages)), (32, usize::MAX / 4096 / 2));
    }

    #[test]
    fn users_who_hold_nothing_are_forgotten() {
        let quotas = quotas(What::Opens, 1, None);
        let held = quotas.user(1_000_000).hold(What::Opens, 1).expect("one");
        (0..10_000).for_each(|uid| drop(quotas.user(uid)));
        assert!(quotas.users.lock().known.len() <= 128);
        assert!(quotas.user(1_000_000).hold(What::Opens, 1).is_err());
        drop(held);
    }
}
