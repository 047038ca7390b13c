//! Fault injection: makes the verbs of the mm fail or take long, repeatably.
//!
//! A specification is a list of rules and perhaps a seed, separated by commas:
//!
//! ```text
//! alloc_page:nth=3, vm_insert_page:share=0.01:errno=EINTR, zap:delay=1ms:share=0.5, seed=42
//! alloc_page:pid=4711:delay=1ms
//! ```
//!
//! A rule names a verb (those of the mm, `alloc_page`, `vm_insert_page`, `vma_lookup`, `mmget`,
//! `zap`, or what the daemon asks of its own kernel: `descriptor`, `mmap`, `poll`, `read_memory`,
//! `write_memory`, `send`, `record`, `receive`, `reply`, `thread`), then the calls it is about
//! (`nth=N`: the N-th, from 1; `share=F`: that fraction of them, at random; neither: all of them;
//! `pid=N`: and only those for transactions that this process sends, which are then counted alone),
//! then what happens to them (`delay=1ms`, `errno=NAME`; with neither, the verb's usual failure).
//! Which calls the share hits depends on the seed and on the number of the call alone, not on time
//! or on which thread makes it.
//!
//! The rules in force can be replaced while the daemon runs; all who have a copy of an injector go
//! by the new ones.
#![expect(
    clippy::disallowed_types,
    reason = "a leaf without a rank, which any lock may be held over"
)]

mod text;

use crate::Errno;
use parking_lot::RwLock;
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::SplitMix64;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, thread};

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Taking a page out of the budget.
    AllocPage,
    /// Installing a page (`vm_insert_page`).
    InsertPage,
    /// Looking for the client's mapping.
    VmaLookup,
    /// Looking whether the client lives (`mmget_not_zero`).
    MmGet,
    /// Taking an installed page away.
    Zap,
    /// Whatever needs a new descriptor: pidfds, copies of a client's descriptors, buffer files,
    /// sockets, files of `/proc`.
    Descriptor,
    /// The daemon's mapping of a buffer file.
    Mmap,
    /// Looking whether a process lives.
    Poll,
    /// Copies out of a client's memory.
    ReadMemory,
    /// Copies into a client's memory.
    WriteMemory,
    /// A message to a client's socket.
    Send,
    /// Memory for a record: a thread, node, reference, link or transaction.
    Record,
    /// Reading a request from the kernel.
    Receive,
    /// Writing a reply to the kernel.
    Reply,
    /// Starting a thread.
    Thread,
}

impl Verb {
    /// All verbs, with the names that `--inject` takes.
    pub const ALL: [(&'static str, Verb); 15] = [
        ("alloc_page", Verb::AllocPage),
        ("vm_insert_page", Verb::InsertPage),
        ("vma_lookup", Verb::VmaLookup),
        ("mmget", Verb::MmGet),
        ("zap", Verb::Zap),
        ("descriptor", Verb::Descriptor),
        ("mmap", Verb::Mmap),
        ("poll", Verb::Poll),
        ("read_memory", Verb::ReadMemory),
        ("write_memory", Verb::WriteMemory),
        ("send", Verb::Send),
        ("record", Verb::Record),
        ("receive", Verb::Receive),
        ("reply", Verb::Reply),
        ("thread", Verb::Thread),
    ];

    /// The verb's error when the rule names none.
    fn usual_errno(self) -> Errno {
        match self {
            Verb::AllocPage | Verb::InsertPage | Verb::Mmap | Verb::Poll | Verb::Record => {
                Errno::ENOMEM
            }
            Verb::ReadMemory | Verb::WriteMemory | Verb::Receive | Verb::Reply => Errno::ENOMEM,
            // The first two open `/proc/PID/maps`. (ESRCH, if asked for, says that the client is
            // gone.)
            Verb::VmaLookup | Verb::MmGet | Verb::Descriptor => Errno::EMFILE,
            Verb::Send => Errno::ENOBUFS,
            Verb::Thread => Errno::EAGAIN,
            Verb::Zap => Errno::EIO,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Calls {
    All,
    Nth(u64),
    Share(f64),
}

type Hook = Arc<dyn Fn(u64) + Send + Sync>;

/// One rule: which calls of one verb it hits, and what it does to them.
#[derive(Clone)]
pub struct Rule {
    verb: Verb,
    calls: Calls,
    /// Only calls for this sender.
    pid: Option<i32>,
    delay: Duration,
    errno: Option<Errno>,
    hook: Option<Hook>,
    /// As it was written.
    text: String,
    seen: Arc<AtomicU64>,
    hit: Arc<AtomicU64>,
}

/// A rule in force, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The rule.
    pub rule: String,
    /// How many calls it was about.
    pub seen: u64,
    /// How many of them it has hit.
    pub hit: u64,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("verb", &self.verb)
            .field("calls", &self.calls)
            .field("pid", &self.pid)
            .field("delay", &self.delay)
            .field("errno", &self.errno)
            .finish_non_exhaustive()
    }
}

impl Rule {
    /// A rule for every call of `verb`, which does nothing yet.
    pub fn new(verb: Verb) -> Self {
        Self {
            verb,
            calls: Calls::All,
            pid: None,
            delay: Duration::ZERO,
            errno: None,
            hook: None,
            text: String::new(),
            seen: Arc::default(),
            hit: Arc::default(),
        }
    }

    /// Only the `n`-th call, counted from 1.
    pub fn nth(self, n: u64) -> Self {
        Self { calls: Calls::Nth(n), ..self }
    }

    /// Only this fraction of the calls.
    pub fn share(self, share: f64) -> Self {
        Self { calls: Calls::Share(share), ..self }
    }

    /// Only calls for transactions that this process sends.
    pub fn pid(self, pid: i32) -> Self {
        Self { pid: Some(pid), ..self }
    }

    /// The calls fail with `errno`.
    pub fn fail(self, errno: Errno) -> Self {
        Self { errno: Some(errno), ..self }
    }

    /// The calls take that much longer.
    pub fn delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// Runs `hook`, with the number of the call, before delay and failure: a test's way to get
    /// between two steps of the allocator.
    pub fn hook(self, hook: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self { hook: Some(Arc::new(hook)), ..self }
    }

    /// What it is called when it is told of.
    fn told_as(self, text: &str) -> Self {
        Self { text: text.to_owned(), ..self }
    }

    /// Whether the rule hits this call, which is the `n`-th.
    fn hits(&self, n: u64, seed: u64) -> bool {
        match self.calls {
            Calls::All => true,
            Calls::Nth(nth) => n == nth,
            Calls::Share(share) => (random(seed, n) as f64) < share * (u64::MAX as f64),
        }
    }
}

/// What [`inject_into_the_daemon`] was told.
static DAEMON: OnceLock<Injector> = OnceLock::new();

/// From now on the calls that this process makes for itself (`descriptor` and the verbs behind it)
/// fail as the injector says. To be called once. The verbs of an mm have an injector of their own.
pub fn inject_into_the_daemon(injector: Injector) {
    let _ = DAEMON.set(injector);
}

/// Called before this process does something for itself.
pub(crate) fn fault(verb: Verb) -> Result<(), Errno> {
    match DAEMON.get() {
        Some(injector) => injector.at(verb),
        None => Ok(()),
    }
}

/// The `n`-th number, from 0, of the sequence of a seed. It is computed without those before it,
/// since calls that many threads count come in any order.
fn random(seed: u64, n: u64) -> u64 {
    /// What SplitMix64 adds to its state for each number.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let state = seed.wrapping_add(n.wrapping_sub(1).wrapping_mul(STEP));
    SplitMix64::seed_from_u64(state).next_u64()
}

thread_local! {
    /// The sender that this thread carries out verbs for, as `current` tells the kernel; 0: none.
    static SENDER: Cell<i32> = const { Cell::new(0) };
}

/// Until this is dropped, the calling thread carries out verbs for a sender.
pub(crate) struct OnBehalf(());

impl OnBehalf {
    pub(crate) fn of(pid: i32) -> OnBehalf {
        SENDER.set(pid);
        OnBehalf(())
    }
}

impl Drop for OnBehalf {
    fn drop(&mut self) {
        SENDER.set(0);
    }
}

#[derive(Debug, Default, Clone)]
struct Rules {
    seed: u64,
    rules: Vec<Rule>,
}

#[derive(Debug, Default)]
struct InForce {
    /// Whether there are any.
    any: AtomicBool,
    rules: RwLock<Arc<Rules>>,
}

/// The rules in force, which all copies of it share. The default has none, and costs a look at one
/// word.
#[derive(Debug, Default, Clone)]
pub struct Injector(Arc<InForce>);

impl Injector {
    fn of(rules: Rules) -> Self {
        let any = AtomicBool::new(!rules.rules.is_empty());
        Self(Arc::new(InForce { any, rules: RwLock::new(Arc::new(rules)) }))
    }

    /// No rules; chances are drawn from this seed.
    pub fn seeded(seed: u64) -> Self {
        Self::of(Rules { seed, rules: Vec::new() })
    }

    /// An injector of its own with the same rules, and this one.
    pub fn with(self, rule: Rule) -> Self {
        let mut rules = self.rules().as_ref().clone();
        rules.rules.push(rule);
        Self::of(rules)
    }

    fn rules(&self) -> Arc<Rules> {
        self.0.rules.read().clone()
    }

    /// Has this injector, and all copies of it, go by the rules of another one.
    pub fn replace_by(&self, other: &Injector) {
        let rules = other.rules();
        let any = !rules.rules.is_empty();
        *self.0.rules.write() = rules;
        self.0.any.store(any, Ordering::Release);
    }

    /// The rules in force, and what came of them.
    pub fn told(&self) -> Vec<Told> {
        let told = |rule: &Rule| Told {
            rule: rule.text.clone(),
            seen: rule.seen.load(Ordering::Relaxed),
            hit: rule.hit.load(Ordering::Relaxed),
        };
        self.rules().rules.iter().map(told).collect()
    }

    /// Called before a verb is carried out: waits, fails, or does neither. The first rule that
    /// fails wins.
    #[inline]
    pub(crate) fn at(&self, verb: Verb) -> Result<(), Errno> {
        match self.0.any.load(Ordering::Acquire) {
            true => self.rules().at(verb),
            false => Ok(()),
        }
    }
}

impl Rules {
    #[cold]
    fn at(&self, verb: Verb) -> Result<(), Errno> {
        let mut result = Ok(());
        let about =
            |rule: &Rule| rule.verb == verb && rule.pid.is_none_or(|pid| pid == SENDER.get());
        for (number, rule) in self.rules.iter().enumerate().filter(|(_, rule)| about(rule)) {
            let n = rule.seen.fetch_add(1, Ordering::Relaxed) + 1;
            if !rule.hits(n, random(self.seed, number as u64)) {
                continue;
            }
            rule.hit.fetch_add(1, Ordering::Relaxed);
            if let Some(hook) = &rule.hook {
                crate::lock_order::as_another_thread(|| hook(n));
            }
            if !rule.delay.is_zero() {
                thread::sleep(rule.delay);
            }
            result = result.and(rule.errno.map_or(Ok(()), Err));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(specification: &str, verb: Verb, calls: usize) -> Vec<usize> {
        let injector: Injector = specification.parse().expect("a specification");
        (1..=calls).filter(|_| injector.at(verb).is_err()).collect()
    }

    const GOLDEN: [usize; 8] = [5, 8, 14, 15, 17, 21, 25, 28];

    #[test]
    fn the_nth_call_fails_alone() {
        assert_eq!(failures("alloc_page:nth=3", Verb::AllocPage, 10), [3]);
        assert!(failures("alloc_page:nth=3", Verb::Zap, 10).is_empty());
    }

    #[test]
    fn a_share_is_repeatable_and_depends_on_the_seed() {
        let one = failures("zap:share=0.25,seed=1", Verb::Zap, 4000);
        assert_eq!(one, failures("seed=1,zap:share=0.25", Verb::Zap, 4000));
        let other = failures("zap:share=0.25,seed=2", Verb::Zap, 4000);
        assert_ne!(one, other);
        let built = Injector::seeded(2).with(Rule::new(Verb::Zap).share(0.25).fail(Errno::EIO));
        let failed: Vec<usize> = (1..=4000).filter(|_| built.at(Verb::Zap).is_err()).collect();
        assert_eq!(failed, other, "the same rule, not from text");
        // The numbers of a seed never change: somebody may have written down the seed of a failure.
        assert_eq!(one[..8], GOLDEN);
        assert!((800..1200).contains(&one.len()), "{} of 4000", one.len());
        assert!(failures("zap:share=0", Verb::Zap, 100).is_empty());
        assert_eq!(failures("zap:share=1", Verb::Zap, 100).len(), 100);
    }

    #[test]
    fn a_rule_for_one_sender_counts_and_fails_only_what_is_done_for_it() {
        let injector: Injector = "zap:pid=7:nth=2".parse().expect("a specification");
        let at = |pid| {
            let _sender = OnBehalf::of(pid);
            injector.at(Verb::Zap).is_err()
        };
        assert_eq!([7, 8, 7, 7].map(at), [false, false, true, false]);
        let always: Injector = "zap:pid=7".parse().expect("a specification");
        drop(OnBehalf::of(7));
        assert_eq!(always.at(Verb::Zap), Ok(()), "for nobody");
    }

    #[test]
    fn rules_are_replaced_for_all_who_have_a_copy() {
        let injector = Injector::default();
        let copy = injector.clone();
        assert_eq!(copy.at(Verb::Zap), Ok(()));
        injector.replace_by(&"zap:nth=2:errno=EIO, mmap".parse().expect("a specification"));
        let fails = [Verb::Zap, Verb::Zap, Verb::Mmap].map(|verb| copy.at(verb));
        assert_eq!(fails, [Ok(()), Err(Errno::EIO), Err(Errno::ENOMEM)]);
        let told = |rule: &str, seen, hit| Told { rule: rule.to_owned(), seen, hit };
        assert_eq!(injector.told(), [told("zap:nth=2:errno=EIO", 2, 1), told("mmap", 1, 1)]);
        copy.replace_by(&Injector::default());
        assert_eq!(injector.at(Verb::Mmap), Ok(()));
        assert!(injector.told().is_empty());
    }

    #[test]
    fn errors_are_the_ones_asked_for() {
        let errno = |spec: &str, verb| spec.parse::<Injector>().expect("a specification").at(verb);
        assert_eq!(errno("vm_insert_page:errno=EINTR", Verb::InsertPage), Err(Errno::EINTR));
        assert_eq!(errno("vm_insert_page:errno=17", Verb::InsertPage), Err(Errno::EEXIST));
        assert_eq!(errno("alloc_page", Verb::AllocPage), Err(Errno::ENOMEM));
        assert_eq!(errno("vm_insert_page", Verb::InsertPage), Err(Errno::ENOMEM));
        assert_eq!(errno("vma_lookup", Verb::VmaLookup), Err(Errno::EMFILE));
        assert_eq!(errno("mmget", Verb::MmGet), Err(Errno::EMFILE));
        assert_eq!(errno("mmget:errno=ESRCH", Verb::MmGet), Err(Errno::ESRCH));
        assert_eq!(errno("zap", Verb::Zap), Err(Errno::EIO));
        assert_eq!(errno("zap:delay=1us", Verb::Zap), Ok(()));
        assert_eq!(errno("zap:nth=1:errno=EIO,zap:errno=EINVAL", Verb::Zap), Err(Errno::EIO));
    }

    #[test]
    fn a_delay_takes_that_long() {
        for (specification, least) in
            [("zap:delay=30ms", 30), ("zap:delay=31000us", 31), ("zap:delay=1s", 1000)]
        {
            let injector: Injector = specification.parse().expect("a specification");
            let start = std::time::Instant::now();
            assert_eq!(injector.at(Verb::Zap), Ok(()));
            assert!(start.elapsed() >= Duration::from_millis(least), "{specification}");
            assert!(start.elapsed() < Duration::from_millis(4 * least + 500), "{specification}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (specification, reason) in [
            ("page", "nothing called 'page'"),
            ("zap:nth=0", "no call number '0'"),
            ("zap:pid=0", "no process '0'"),
            ("zap:pid=-1", "no process '-1'"),
            ("zap:share=1.5", "no share '1.5'"),
            ("zap:share=-1", "no share '-1'"),
            ("zap:errno=EWHAT", "no error 'EWHAT'"),
            ("zap:errno=100000", "no error '100000'"),
            ("zap:delay=3", "no delay '3'"),
            ("zap:delay=ms", "no delay 'ms'"),
            ("zap:often=1", "no 'often'"),
            ("zap:nth", "not KEY=VALUE"),
            ("seed=x", "no seed 'x'"),
        ] {
            let error = specification.parse::<Injector>().expect_err(specification);
            assert!(error.contains(reason), "{specification}: {error}");
        }
        assert!("".parse::<Injector>().is_ok());
    }
}
