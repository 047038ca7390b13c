//! The rules by which pages come and go, one scene each: every one of them fails when its rule is
//! undone. Pages are plain memory here; hooks of the fault injector get between two steps.
//!
//! More than 500 lines: this is the list of the rules of `src/alloc.rs`, in the order of its verbs,
//! and is read beside it.

mod common;

use common::mapped::{Bytes, request};
use fakebinder::Errno;
use fakebinder::alloc::{Alloc, BufferRequest, PageState};
use fakebinder::memory::{Memory, MemoryConfig, PageInstall};
use fakebinder::probe::InstallLatency;
use fakebinder::probe::{Injector, Probes, Rule, Verb};
use fakebinder::quota::User;
use fakebinder::shrinker::Reclaimer;
use fakebinder_sim::HeapMm;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const ADDRESS: u64 = 0x7000_0000;
const MAPPING: usize = 128 << 10;
/// Long enough for a thread that can go on to do so, on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// Long enough to see that a thread cannot.
const NEVER: Duration = Duration::from_millis(100);

struct Client {
    mm: Arc<HeapMm>,
    alloc: Arc<Alloc>,
}

/// The memory of a daemon, and what its allocators are probed with.
#[derive(Clone)]
struct Machine {
    memory: Arc<Memory>,
    probes: Probes,
}

impl Machine {
    fn new(config: MemoryConfig, probes: Probes) -> Machine {
        Machine { memory: Memory::new(config), probes }
    }
}

impl Deref for Machine {
    type Target = Arc<Memory>;

    fn deref(&self) -> &Arc<Memory> {
        &self.memory
    }
}

fn client(machine: &Machine) -> Client {
    let mm = HeapMm::new();
    let (memory, probes) = (&machine.memory, machine.probes.clone());
    let alloc = Alloc::of_user(mm.clone(), memory, User::unlimited(), probes);
    mm.attach(ADDRESS, MAPPING);
    alloc.mmap_handler(ADDRESS, MAPPING).expect("the first mapping");
    Client { mm, alloc }
}

fn memory(page_install: PageInstall, inject: Injector) -> Machine {
    let config = MemoryConfig { page_install, ..MemoryConfig::default() };
    Machine::new(config, Probes { inject, ..Probes::default() })
}

fn plain() -> Machine {
    memory(PageInstall::Shared, Injector::default())
}

/// What happens at the first call of a verb, set once the scene is built.
type Then = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

fn at_first(verb: Verb) -> (Injector, Then) {
    let then = Then::default();
    let rule = Rule::new(verb).nth(1);
    (Injector::default().with(rule.hook(hook(&then))), then)
}

/// Runs `then` and lets go of it: it knows the allocator, which knows its hooks.
fn hook(then: &Then) -> impl Fn(u64) + Send + Sync + use<> {
    let then = then.clone();
    move |_| {
        let then = then.lock().expect("no panic").take();
        then.expect("the scene is built")();
    }
}

fn set(then: &Then, hook: impl FnOnce() + Send + 'static) {
    assert!(then.lock().expect("no panic").replace(Box::new(hook)).is_none());
}

/// Does `work` in another thread; what it comes to can be waited for.
fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (done, wait) = channel();
    thread::spawn(move || done.send(work()));
    wait
}

/// A client whose first `pages` pages are installed and unused.
fn client_with_unused(memory: &Machine, pages: usize) -> Client {
    let client = client(memory);
    let buffer = client.alloc.alloc_new_buf(&request(pages * PAGE)).expect("room");
    client.alloc.free_buf(&buffer);
    client
}

fn nothing_is_left(memory: &Memory, client: &Client) {
    assert_eq!(
        (memory.used(), memory.count(), client.mm.resident(), client.mm.users()),
        (0, 0, 0, 0)
    );
    assert_eq!((client.alloc.allocated_count(), client.mm.lost()), (0, 0));
}

// ---------------------------------------------------------------- mmap

#[test]
fn mmap_is_once_of_whole_pages_and_4_mib_at_most() {
    let memory = plain();
    let mm = HeapMm::new();
    let alloc = Alloc::new(mm.clone(), &memory);
    assert_eq!(alloc.alloc_new_buf(&request(8)), Err(Errno::ESRCH));
    assert_eq!((alloc.buffer_size(), alloc.is_mapped(), alloc.page_states().len()), (0, false, 0));
    assert_eq!(alloc.mmap_handler(ADDRESS, 0), Err(Errno::EINVAL));
    assert_eq!(alloc.mmap_handler(ADDRESS + 8, PAGE), Err(Errno::EINVAL));
    assert_eq!(alloc.mmap_handler(u64::MAX - 4095, 2 * PAGE), Err(Errno::EINVAL));
    mm.attach(ADDRESS, 64 << 20);
    assert_eq!(alloc.mmap_handler(ADDRESS, 64 << 20), Ok(()));
    assert_eq!((alloc.buffer_size(), alloc.free_async_space()), (4 << 20, 2 << 20));
    assert_eq!(alloc.mmap_handler(ADDRESS, PAGE), Err(Errno::EBUSY));
    assert_eq!(alloc.alloc_new_buf(&request(5 << 20)), Err(Errno::ENOSPC));
    let whole = alloc.alloc_new_buf(&request(4 << 20)).expect("all of it");
    assert_eq!((whole.user_data, whole.size()), (ADDRESS, 4 << 20));

    let small = Alloc::new(HeapMm::new(), &memory);
    assert_eq!(small.mmap_handler(ADDRESS, 100), Ok(()));
    assert_eq!(small.buffer_size(), PAGE);
}

#[test]
fn a_mapping_that_nobody_told_of_is_found_when_it_is_needed() {
    let mm = HeapMm::with_mapping(ADDRESS, MAPPING);
    let alloc = Alloc::new(mm.clone(), &plain());
    assert!(!alloc.is_mapped());
    assert_eq!(alloc.alloc_new_buf(&request(8)).map(|b| b.user_data), Ok(ADDRESS));
    assert_eq!(alloc.buffer_size(), MAPPING);
}

/// The driver looks for a mapping before it looks at the sizes.
#[test]
fn no_mapping_is_esrch_whatever_is_asked() {
    let huge = BufferRequest { data_size: u64::MAX, ..request(0) };
    assert_eq!(Alloc::new(HeapMm::new(), &plain()).alloc_new_buf(&huge), Err(Errno::ESRCH));
    let client = client(&plain());
    for sizes in [
        (u64::MAX, 0, 0),
        (u64::MAX - 7, 8, 0),
        (0, u64::MAX, 0),
        (8, 8, u64::MAX),
        (8, 8, u64::MAX - 7),
    ] {
        let (data_size, offsets_size, extra_buffers_size) = sizes;
        let request = BufferRequest { data_size, offsets_size, extra_buffers_size, ..request(0) };
        assert_eq!(client.alloc.alloc_new_buf(&request), Err(Errno::EINVAL), "{sizes:?}");
    }
}

// ---------------------------------------------------------------- install

#[test]
fn a_client_that_is_gone_is_esrch_and_costs_no_page() {
    let memory = plain();
    let client = client(&memory);
    client.mm.exit();
    assert_eq!(client.alloc.alloc_new_buf(&request(PAGE)), Err(Errno::ESRCH));
    nothing_is_left(&memory, &client);
}

#[test]
fn errors_of_the_verbs_fail_their_transaction_alone() {
    for page_install in [PageInstall::Shared, PageInstall::Exclusive] {
        for (specification, expected) in [
            ("alloc_page:nth=2", Errno::ENOMEM),
            ("mmget:nth=2:errno=ESRCH", Errno::ESRCH),
            ("mmget:nth=2", Errno::EMFILE),
            ("vma_lookup:nth=2:errno=ESRCH", Errno::ESRCH),
            ("vma_lookup:nth=2", Errno::EMFILE),
            ("vm_insert_page:nth=2:errno=ENOMEM", Errno::ENOMEM),
            // Passed on as they are, and not made ENOMEM.
            ("vm_insert_page:nth=2:errno=EINTR", Errno::EINTR),
            ("vm_insert_page:nth=2:errno=EFAULT", Errno::EFAULT),
            ("vm_insert_page:nth=2:errno=EINVAL", Errno::EINVAL),
        ] {
            let memory = memory(page_install, specification.parse().expect("a specification"));
            let client = client(&memory);
            let failed = client.alloc.alloc_new_buf(&request(3 * PAGE));
            assert_eq!(failed, Err(expected), "{page_install} {specification}");
            assert_eq!(client.alloc.allocated_count(), 0);
            assert_eq!(client.alloc.pages().active, 0);
            assert_eq!(memory.used(), client.mm.resident(), "{page_install} {specification}");
            let buffer =
                client.alloc.alloc_new_buf(&request(3 * PAGE)).expect("the next one succeeds");
            assert_eq!(client.alloc.pages().active, 3);
            client.alloc.free_buf(&buffer);
            memory.reclaim_all();
            nothing_is_left(&memory, &client);
        }
    }
}

/// Allocating the page is outside the mm's lock and outside the buffer mutex.
#[test]
fn an_installer_that_waits_for_its_page_holds_up_nobody() {
    for (page_install, may_go_on) in [(PageInstall::Shared, true), (PageInstall::Exclusive, false)]
    {
        let (inject, then) = at_first(Verb::AllocPage);
        let memory = memory(page_install, inject);
        let client = client(&memory);
        let (alloc, others) = (client.alloc.clone(), Arc::new(Mutex::new(None)));
        let other = others.clone();
        set(&then, move || {
            let alloc = alloc.clone();
            let neighbour = beside(move || alloc.alloc_new_buf(&request(100)));
            let wait = if may_go_on { SOON } else { NEVER };
            assert_eq!(neighbour.recv_timeout(wait).is_ok(), may_go_on, "{page_install}");
            *other.lock().expect("no panic") = Some(neighbour);
        });
        client.alloc.alloc_new_buf(&request(100)).expect("room");
        if !may_go_on {
            let neighbour = others.lock().expect("no panic").take().expect("it has begun");
            assert!(neighbour.recv_timeout(SOON).expect("it goes on").is_ok());
        }
        assert_eq!((memory.used(), client.mm.resident()), (1, 1));
    }
}

/// The mm is locked for reading while a page is inserted.
#[test]
fn installers_insert_side_by_side() {
    for (page_install, may_go_on) in [(PageInstall::Shared, true), (PageInstall::Exclusive, false)]
    {
        let (inject, then) = at_first(Verb::InsertPage);
        let memory = memory(page_install, inject);
        let client = client(&memory);
        let alloc = client.alloc.clone();
        set(&then, move || {
            let alloc = alloc.clone();
            let neighbour = beside(move || alloc.alloc_new_buf(&request(PAGE)));
            let wait = if may_go_on { SOON } else { NEVER };
            assert_eq!(neighbour.recv_timeout(wait).is_ok(), may_go_on, "{page_install}");
        });
        client.alloc.alloc_new_buf(&request(PAGE)).expect("room");
    }
}

/// The mapping is looked for anew for every page, under the lock.
#[test]
fn the_mapping_is_looked_up_for_every_page() {
    let lookups = Arc::new(AtomicUsize::new(0));
    let count = lookups.clone();
    let rule = Rule::new(Verb::VmaLookup).hook(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let client = client(&memory(PageInstall::Shared, Injector::default().with(rule)));
    client.alloc.alloc_new_buf(&request(5 * PAGE)).expect("room");
    assert_eq!(lookups.load(Ordering::SeqCst), 5);
    // And no more once they are there.
    let installed = client.alloc.alloc_new_buf(&request(8)).expect("room");
    client.alloc.free_buf(&installed);
    client.alloc.alloc_new_buf(&request(8)).expect("room");
    assert_eq!(lookups.load(Ordering::SeqCst), 6);
}

/// `munmap` between the page and its insertion.
#[test]
fn a_mapping_that_goes_while_the_page_is_allocated_is_esrch() {
    for page_install in [PageInstall::Shared, PageInstall::Exclusive] {
        let (inject, then) = at_first(Verb::AllocPage);
        let memory = memory(page_install, inject);
        let client = client(&memory);
        let mm = client.mm.clone();
        set(&then, move || mm.munmap());
        assert_eq!(client.alloc.alloc_new_buf(&request(PAGE)), Err(Errno::ESRCH));
        nothing_is_left(&memory, &client);
        assert!(!client.alloc.is_mapped());
        assert_eq!(client.alloc.mmap_handler(ADDRESS, MAPPING), Err(Errno::EBUSY));
        assert_eq!(client.alloc.alloc_new_buf(&request(PAGE)), Err(Errno::ESRCH));
    }
}

/// The mapping is closed, but still found: `mapped` counts as well.
#[test]
fn a_closed_mapping_takes_no_more_pages() {
    let (inject, then) = at_first(Verb::AllocPage);
    let memory = memory(PageInstall::Shared, inject);
    let client = client(&memory);
    let alloc = client.alloc.clone();
    set(&then, move || alloc.vma_close());
    assert_eq!(client.alloc.alloc_new_buf(&request(PAGE)), Err(Errno::ESRCH));
    nothing_is_left(&memory, &client);
}

#[test]
fn the_loser_of_a_race_for_a_page_uses_the_winners() {
    let (inject, then) = at_first(Verb::InsertPage);
    let memory = memory(PageInstall::Shared, inject);
    let client = client(&memory);
    let alloc = client.alloc.clone();
    // Side by side on one page: the second buffer begins where the first one ends.
    set(&then, move || {
        let buffer = alloc.alloc_new_buf(&request(100)).expect("the winner");
        alloc.copy_to_buffer(&buffer, 0, &[7; 100]).expect("a live buffer");
    });
    let buffer = client.alloc.alloc_new_buf(&request(100)).expect("the loser has a page too");
    client.alloc.copy_to_buffer(&buffer, 0, &[9; 100]).expect("a live buffer");
    assert_eq!((memory.used(), client.mm.resident(), client.alloc.pages().active), (1, 1, 1));
    let mut both = [0; 204];
    client.mm.peek(ADDRESS, &mut both).expect("mapped");
    assert_eq!((both[..100].to_vec(), both[104..].to_vec()), (vec![9; 100], vec![7; 100]));
}

#[test]
fn a_race_without_a_winner_is_esrch() {
    let rule = Rule::new(Verb::InsertPage).nth(1).fail(Errno::EBUSY);
    let memory = memory(PageInstall::Shared, Injector::default().with(rule));
    let client = client(&memory);
    assert_eq!(client.alloc.alloc_new_buf(&request(PAGE)), Err(Errno::ESRCH));
    nothing_is_left(&memory, &client);
}

/// Without a page that somebody else has made, EBUSY is an error like any other.
#[test]
fn busy_without_a_page_is_passed_on_when_there_can_be_no_race() {
    let rule = Rule::new(Verb::InsertPage).nth(1).fail(Errno::EBUSY);
    let memory = memory(PageInstall::Exclusive, Injector::default().with(rule));
    let client = client(&memory);
    assert_eq!(client.alloc.alloc_new_buf(&request(PAGE)), Err(Errno::EBUSY));
    nothing_is_left(&memory, &client);
}

/// The winner's page counts only while the mapping is there.
#[test]
fn a_winner_in_a_closed_mapping_is_esrch() {
    let (inject, then) = at_first(Verb::InsertPage);
    let memory = memory(PageInstall::Shared, inject);
    let client = client(&memory);
    let alloc = client.alloc.clone();
    set(&then, move || {
        alloc.alloc_new_buf(&request(100)).expect("the winner");
        alloc.vma_close();
    });
    assert_eq!(client.alloc.alloc_new_buf(&request(100)), Err(Errno::ESRCH));
    assert_eq!((memory.used(), client.alloc.allocated_count()), (1, 1));
}

/// Counted per sender, whether the pages came or not, and only where one was missing.
#[test]
fn waiting_for_pages_is_counted_by_sender() {
    let latency: Arc<InstallLatency> = Arc::default();
    let inject = "alloc_page:pid=2:delay=20ms:errno=ENOMEM".parse().expect("a specification");
    let install_latency = Some(latency.clone());
    let probes = Probes { inject, install_latency };
    let client = client(&Machine::new(MemoryConfig::default(), probes));
    let send = |pid| client.alloc.alloc_new_buf(&BufferRequest { pid, ..request(PAGE) });
    for _ in 0..2 {
        let buffer = send(1).expect("only the other sender gets no page");
        client.alloc.free_buf(&buffer);
    }
    let taken = send(1).expect("its page is there");
    assert_eq!(send(2), Err(Errno::ENOMEM));
    client.alloc.free_buf(&taken);
    let text = latency.to_string();
    let numbers = |line: &str| line.split(' ').map(|n| n.parse().expect("a number")).collect();
    let lines: Vec<Vec<u64>> = text.lines().map(numbers).collect();
    let [one, two] = &lines[..] else { panic!("{text}") };
    assert_eq!((one[0], one[2], two[0], two[2]), (1, 1, 2, 1), "{text}");
    assert!(one[1] < two[1] && (20_000_000..1_000_000_000).contains(&two[1]), "{text}");
}

#[test]
fn the_slot_is_set_after_the_page_is_inserted() {
    for page_install in [PageInstall::Shared, PageInstall::Exclusive] {
        let (inject, then) = at_first(Verb::InsertPage);
        let memory = memory(page_install, inject);
        let client = client(&memory);
        let alloc = client.alloc.clone();
        set(&then, move || assert_eq!(alloc.page_states()[0], PageState::Free));
        client.alloc.alloc_new_buf(&request(PAGE)).expect("room");
        assert_eq!(client.alloc.page_states()[0], PageState::Active);
    }
}

/// For whoever acts in the middle of a call, in its own thread.
#[test]
fn an_allocator_is_busy_while_a_call_of_its_own_would_wait() {
    for (page_install, verb, busy) in [
        (PageInstall::Shared, Verb::AllocPage, false),
        (PageInstall::Shared, Verb::InsertPage, false),
        (PageInstall::Shared, Verb::Zap, true),
        (PageInstall::Exclusive, Verb::AllocPage, true),
    ] {
        let (inject, then) = at_first(verb);
        let memory = memory(page_install, inject);
        let client = client(&memory);
        let alloc = client.alloc.clone();
        set(&then, move || assert_eq!(alloc.is_busy(), busy, "{page_install} {verb:?}"));
        let buffer = client.alloc.alloc_new_buf(&request(PAGE)).expect("room");
        client.alloc.free_buf(&buffer);
        assert_eq!(memory.reclaim_all(), 1);
        assert!(!client.alloc.is_busy());
    }
}

// ---------------------------------------------------------------- the shrinker

/// Whoever could see the slot clear has to wait until the page is gone.
#[test]
fn the_shrinker_zaps_under_the_buffer_mutex_and_not_under_the_lru_lock() {
    let (inject, then) = at_first(Verb::Zap);
    let memory = memory(PageInstall::Shared, inject);
    let client = client_with_unused(&memory, 1);
    let (alloc, lru) = (client.alloc.clone(), memory.clone());
    set(&then, move || {
        let (alloc, lru) = (alloc.clone(), lru.clone());
        assert!(beside(move || alloc.allocated_count()).recv_timeout(NEVER).is_err());
        // Isolated already.
        assert_eq!(beside(move || lru.count()).recv_timeout(SOON), Ok(0));
    });
    assert_eq!(memory.scan(1), 1);
    nothing_is_left(&memory, &client);
    assert_eq!(client.alloc.page_states()[0], PageState::Free);
}

/// The mm is locked for reading while the shrinker zaps: installers go on, release does not.
#[test]
fn the_shrinker_holds_the_mm_for_reading() {
    let (inject, then) = at_first(Verb::Zap);
    let memory = memory(PageInstall::Shared, inject);
    let client = client_with_unused(&memory, 1);
    let alloc = client.alloc.clone();
    let mmap = Arc::new(Mutex::new(None));
    let kept = mmap.clone();
    set(&then, move || {
        let alloc = alloc.clone();
        let wait = beside(move || alloc.mmap_handler(ADDRESS, PAGE));
        assert!(wait.recv_timeout(NEVER).is_err());
        *kept.lock().expect("no panic") = Some(wait);
    });
    assert_eq!(memory.scan(1), 1);
    let wait = mmap.lock().expect("no panic").take().expect("it has begun");
    assert_eq!(wait.recv_timeout(SOON), Ok(Err(Errno::EBUSY)));
}

#[test]
fn the_shrinker_skips_a_client_whose_buffer_mutex_is_busy_and_nobody_else() {
    let (inject, then) = at_first(Verb::Zap);
    let memory = memory(PageInstall::Shared, inject);
    let busy = client_with_unused(&memory, 3);
    let other = client_with_unused(&memory, 2);
    let (lru, reclaimed) = (memory.clone(), Arc::new(AtomicUsize::new(0)));
    let count = reclaimed.clone();
    // The first page is being zapped, so its owner's mutex is held.
    set(&then, move || count.store(lru.reclaim_all(), Ordering::SeqCst));
    assert_eq!(memory.scan(1), 1);
    assert_eq!(reclaimed.load(Ordering::SeqCst), 2);
    assert_eq!((busy.alloc.pages().lru, other.alloc.pages().lru), (2, 0));
    assert_eq!(memory.reclaim_all(), 2);
    nothing_is_left(&memory, &busy);
}

#[test]
fn the_shrinker_skips_a_client_whose_mm_is_busy_and_nobody_else() {
    let seen = Arc::new(AtomicUsize::new(usize::MAX));
    let hold = Then::default();
    let rule = Rule::new(Verb::AllocPage).nth(6).hook(hook(&hold));
    let memory = self::memory(PageInstall::Exclusive, Injector::default().with(rule));
    let busy = client_with_unused(&memory, 3);
    let other = client_with_unused(&memory, 2);
    let (lru, count) = (memory.clone(), seen.clone());
    set(&hold, move || count.store(lru.reclaim_all(), Ordering::SeqCst));
    busy.alloc.alloc_new_buf(&request(4 * PAGE)).expect("room");
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    assert_eq!((busy.alloc.pages().active, other.alloc.pages().lru), (4, 0));
}

#[test]
fn the_oldest_pages_go_first_and_no_more_than_asked_for() {
    let memory = plain();
    let first = client_with_unused(&memory, 2);
    let second = client_with_unused(&memory, 2);
    assert_eq!(memory.count(), 4);
    assert_eq!(memory.scan(0), 0);
    assert_eq!(memory.scan(3), 3);
    assert_eq!((first.alloc.pages().lru, second.alloc.pages().lru), (0, 1));
    assert_eq!((memory.scan(100), memory.scan(100), memory.count()), (1, 0, 0));
}

/// Everybody else lets go of an allocator while the shrinker is at its first page. Its release
/// takes the LRU lock, so it has to wait for the end of the walk.
#[test]
fn an_allocator_that_the_shrinker_is_the_last_to_use_is_released_after_the_walk() {
    let (inject, then) = at_first(Verb::Zap);
    let memory = memory(PageInstall::Shared, inject);
    let Client { mm, alloc } = client_with_unused(&memory, 3);
    let last = Mutex::new(Some(alloc));
    set(&then, move || drop(last.lock().expect("no panic").take()));
    let lru = memory.clone();
    let walk = beside(move || lru.reclaim_all());
    assert_eq!(walk.recv_timeout(SOON), Ok(3));
    assert_eq!((memory.used(), memory.count(), mm.resident()), (0, 0, 0));
}

/// The shrinker is an installer here, who has its own mm locked under the old rule: it waits for no
/// other mm's lock.
#[test]
fn an_installer_that_is_the_last_to_use_another_allocator_releases_it() {
    let (inject, then) = at_first(Verb::Zap);
    let page_budget = Some(3 * PAGE as u64);
    let page_install = PageInstall::Exclusive;
    let config = MemoryConfig { page_budget, page_install };
    let memory = Machine::new(config, Probes { inject, ..Probes::default() });
    let Client { mm, alloc } = client_with_unused(&memory, 3);
    let last = Mutex::new(Some(alloc));
    set(&then, move || drop(last.lock().expect("no panic").take()));
    let other = client(&memory);
    other.alloc.alloc_new_buf(&request(PAGE)).expect("a page of the other's");
    assert_eq!((memory.used(), memory.count(), mm.resident()), (1, 0, 0));
}

/// A page that cannot be zapped stays where it is, is paid for once, and is used again.
#[test]
fn a_failed_zap_loses_no_page() {
    let memory = memory(PageInstall::Shared, "zap:nth=1".parse().expect("a specification"));
    let client = client_with_unused(&memory, 1);
    memory.scan(1);
    assert_eq!((memory.used(), client.mm.resident(), memory.count()), (1, 1, 0));
    let buffer = client.alloc.alloc_new_buf(&request(PAGE)).expect("the page is found");
    assert_eq!((memory.used(), client.alloc.pages().active), (1, 1));
    client.alloc.free_buf(&buffer);
    assert_eq!(memory.scan(1), 1);
    nothing_is_left(&memory, &client);
}

#[test]
fn after_munmap_pages_are_reclaimed_and_others_go_on() {
    let memory = plain();
    let gone = client_with_unused(&memory, 3);
    let other = client_with_unused(&memory, 1);
    gone.mm.munmap();
    assert_eq!(gone.alloc.alloc_new_buf(&request(4 * PAGE)), Err(Errno::ESRCH));
    other.alloc.alloc_new_buf(&request(4 * PAGE)).expect("another client");
    assert_eq!(memory.reclaim_all(), 3);
    nothing_is_left_of(&gone);
}

fn nothing_is_left_of(client: &Client) {
    assert_eq!((client.mm.resident(), client.alloc.pages().lru, client.mm.lost()), (0, 0, 0));
}

// ---------------------------------------------------------------- the budget

#[test]
fn a_used_up_budget_reclaims_and_then_fails_one_transaction() {
    let budget = Some(4 * PAGE as u64 + 100);
    let config = MemoryConfig { page_budget: budget, ..MemoryConfig::default() };
    let memory = Machine::new(config, Probes::default());
    let (one, two) = (client(&memory), client(&memory));
    let first = one.alloc.alloc_new_buf(&request(3 * PAGE)).expect("within the budget");
    assert_eq!(two.alloc.alloc_new_buf(&request(2 * PAGE)), Err(Errno::ENOMEM));
    assert_eq!(two.alloc.allocated_count(), 0);
    let second = two.alloc.alloc_new_buf(&request(PAGE)).expect("the last page");
    assert_eq!(memory.used(), 4);
    assert_eq!(two.alloc.alloc_new_buf(&request(PAGE)), Err(Errno::ENOMEM));

    // What one client has given up, another gets.
    one.alloc.free_buf(&first);
    let third = two.alloc.alloc_new_buf(&request(3 * PAGE)).expect("reclaimed");
    assert_eq!((memory.used(), one.mm.resident(), two.mm.resident()), (4, 0, 4));
    two.alloc.free_buf(&second);
    two.alloc.free_buf(&third);
    two.alloc.deferred_release();
    assert_eq!((memory.used(), memory.count()), (0, 0));
}

// ---------------------------------------------------------------- buffers

#[test]
fn a_buffer_is_freed_once_and_by_nobody_before_it_is_handed_out() {
    let client = client(&plain());
    let buffer = client.alloc.alloc_new_buf(&request(100)).expect("room");
    assert_eq!(client.alloc.prepare_to_free(buffer.user_data), Err(Errno::EPERM));
    client.alloc.set_allow_user_free(&buffer, true);
    assert_eq!(client.alloc.prepare_to_free(buffer.user_data + 8), Err(Errno::ENOENT));
    assert_eq!(client.alloc.prepare_to_free(0), Err(Errno::ENOENT));
    assert_eq!(client.alloc.prepare_to_free(buffer.user_data), Ok(buffer));
    assert_eq!(client.alloc.prepare_to_free(buffer.user_data), Err(Errno::EPERM));
    client.alloc.free_buf(&buffer);
    assert_eq!(client.alloc.prepare_to_free(buffer.user_data), Err(Errno::ENOENT));
    assert_eq!(Alloc::new(HeapMm::new(), &plain()).prepare_to_free(0), Err(Errno::ENOENT));
}

#[test]
fn copies_stay_within_their_buffer() {
    let client = client(&plain());
    let buffer = client.alloc.alloc_new_buf(&request(100)).expect("room");
    assert_eq!(buffer.size(), 104);
    let from = Bytes((0..200).collect());
    let copy = |offset, len| client.alloc.copy_user_to_buffer(&buffer, offset, &from, 0, len);
    assert_eq!(copy(0, 104), Ok(()));
    assert_eq!(copy(100, 4), Ok(()));
    assert_eq!(copy(104, 0), Ok(()));
    for (offset, len) in
        [(0, 105), (104, 1), (108, 0), (2, 4), (usize::MAX - 3, 8), (0, usize::MAX)]
    {
        assert_eq!(copy(offset, len), Err(Errno::EFAULT), "{offset} {len}");
    }
    // The sender's memory ends before.
    assert_eq!(client.alloc.copy_user_to_buffer(&buffer, 0, &from, 190, 20), Err(Errno::EFAULT));
    for offset in [2, 100, 104, usize::MAX - 3] {
        assert_eq!(client.alloc.copy_to_buffer(&buffer, offset, &[0; 8]), Err(Errno::EINVAL));
    }
    assert_eq!(client.alloc.copy_to_buffer(&buffer, 96, &[0; 8]), Ok(()));
}

#[test]
fn a_copy_over_several_pages_has_every_byte_in_its_place() {
    let client = client(&plain());
    client.alloc.alloc_new_buf(&request(1000)).expect("room");
    let bytes: Vec<u8> = (0..3 * PAGE).map(|i| (i % 251) as u8).collect();
    let buffer = client.alloc.alloc_new_buf(&request(bytes.len())).expect("room");
    client
        .alloc
        .copy_user_to_buffer(&buffer, 0, &Bytes(bytes.clone()), 0, bytes.len())
        .expect("a copy");
    let mut seen = vec![0; bytes.len()];
    client.mm.peek(buffer.user_data, &mut seen).expect("mapped");
    assert!(seen == bytes);
    assert_eq!(client.mm.peek(ADDRESS + MAPPING as u64 - 4, &mut [0; 8]), Err(Errno::EFAULT));
    assert_eq!(client.mm.peek(ADDRESS + MAPPING as u64 - 8, &mut [0; 8]), Ok(()));
    assert_eq!(client.mm.peek(ADDRESS - 8, &mut [0; 8]), Err(Errno::EFAULT));
}

/// As the driver: a buffer is charged to its sender after the search for spam, so that the buffer
/// in question counts only where its record was the same sender's before.
#[test]
fn a_sender_of_too_many_oneway_buffers_is_a_suspect_once() {
    let memory = plain();
    let client = client(&memory);
    let oneway = |pid, size| {
        let request = BufferRequest { is_async: true, pid, ..request(size) };
        client.alloc.alloc_new_buf(&request).map(|buffer| (buffer.oneway_spam_suspect, buffer))
    };
    // 64 KiB for one-way calls; below 13,107 bytes the search begins.
    let large = MAPPING / 2 - 13_104 - 8;
    let (suspect, filler) = oneway(7, large).expect("room");
    assert!(!suspect, "one buffer of more than a quarter, but enough space is left");
    for number in 1..=51 {
        assert!(!oneway(1, 8).expect("room").0, "buffer {number}");
    }
    assert!(oneway(1, 8).expect("room").0, "51 buffers before this one");
    assert!(!oneway(1, 8).expect("room").0, "said once");
    assert!(!oneway(2, 8).expect("room").0, "somebody else");

    // Recovered, and spammed again.
    client.alloc.free_buf(&filler);
    let (suspect, one) = oneway(1, 8).expect("room");
    assert!(!suspect);
    client.alloc.free_buf(&one);
    oneway(7, large).expect("room");
    assert!(oneway(1, 8).expect("room").0);
    assert_eq!(oneway(1, 20_000).map(|_| ()), Err(Errno::ENOSPC));
    client.alloc.alloc_new_buf(&request(20_000)).expect("for synchronous calls there is room");
}

#[test]
fn a_sender_of_too_much_is_a_suspect_too() {
    let client = client(&plain());
    let oneway = |size| {
        let request = BufferRequest { is_async: true, ..request(size) };
        client.alloc.alloc_new_buf(&request).expect("room").oneway_spam_suspect
    };
    assert!(!oneway(MAPPING / 4));
    assert!(!oneway(MAPPING / 4 - 13_000), "just a quarter before it");
    assert!(oneway(8), "more than a quarter before it");
}

/// What a sender has had freed does not count.
#[test]
fn a_sender_whose_buffers_are_freed_in_time_is_no_suspect() {
    let client = client(&plain());
    let oneway = |pid, size| {
        let request = BufferRequest { is_async: true, pid, ..request(size) };
        client.alloc.alloc_new_buf(&request).expect("room")
    };
    for _ in 0..60 {
        let small = oneway(1, 1000);
        client.alloc.free_buf(&small);
    }
    oneway(1, 8);
    let large = oneway(1, 20_000);
    client.alloc.free_buf(&large);
    oneway(1, 30_000);
    oneway(2, 25_000);
    assert!(client.alloc.free_async_space() < MAPPING / 10);
    let last = oneway(1, 8);
    assert!(!last.oneway_spam_suspect, "30,016 bytes in two buffers");
    client.alloc.free_buf(&last);
    // Counted with this one, whose record in the driver was this sender's before.
    assert!(oneway(1, 3000).oneway_spam_suspect, "33,008 bytes in three buffers");
}

// ---------------------------------------------------------------- release

#[test]
fn release_takes_everything_and_can_be_repeated() {
    let memory = plain();
    let client = client_with_unused(&memory, 4);
    let live = client.alloc.alloc_new_buf(&request(100)).expect("room");
    client.alloc.set_clear_on_free(&live);
    client.alloc.deferred_release();
    assert_eq!((memory.used(), memory.count(), client.mm.resident()), (0, 0, 0));
    client.alloc.free_buf(&live);
    client.alloc.set_clear_on_free(&live);
    client.alloc.set_allow_user_free(&live, true);
    client.alloc.deferred_release();
    assert_eq!(client.alloc.alloc_new_buf(&request(8)), Err(Errno::ESRCH));
    assert_eq!(client.alloc.mmap_handler(ADDRESS, MAPPING), Err(Errno::EBUSY));
    assert_eq!(client.alloc.prepare_to_free(live.user_data), Err(Errno::ENOENT));
    assert_eq!(client.alloc.allocated_buffers(), []);
    assert_eq!(memory.scan(10), 0);
}

#[test]
fn an_allocator_that_is_dropped_is_released() {
    let memory = plain();
    let client = client_with_unused(&memory, 4);
    client.alloc.alloc_new_buf(&request(100)).expect("room");
    let mm = client.mm.clone();
    drop(client);
    assert_eq!((memory.used(), memory.count(), mm.resident()), (0, 0, 0));
}

/// At every step of an install.
#[test]
fn a_release_in_the_middle_of_an_install_leaves_no_page() {
    for page_install in [PageInstall::Shared, PageInstall::Exclusive] {
        for verb in [Verb::MmGet, Verb::AllocPage, Verb::VmaLookup, Verb::InsertPage] {
            let (inject, then) = at_first(verb);
            let memory = memory(page_install, inject);
            let client = client(&memory);
            let (alloc, released) = (client.alloc.clone(), Arc::new(Mutex::new(None)));
            let release = released.clone();
            set(&then, move || {
                let alloc = alloc.clone();
                let wait = beside(move || alloc.deferred_release());
                // Where the installer holds the mm, the release waits for it.
                let _ = wait
                    .recv_timeout(NEVER)
                    .map_err(|_| *release.lock().expect("no panic") = Some(wait));
            });
            if let Ok(buffer) = client.alloc.alloc_new_buf(&request(2 * PAGE)) {
                client.alloc.free_buf(&buffer);
            }
            if let Some(wait) = released.lock().expect("no panic").take() {
                wait.recv_timeout(SOON).expect("released");
            }
            assert_eq!(
                (memory.used(), memory.count(), client.mm.resident()),
                (0, 0, 0),
                "{page_install} {verb:?}"
            );
        }
    }
}

// ---------------------------------------------------------------- the reclaim thread

#[test]
fn the_reclaim_thread_reclaims_when_it_is_asked_and_sleeps_otherwise() {
    let memory = plain();
    let client = client_with_unused(&memory, 5);
    let users = Arc::strong_count(&memory);
    let reclaimer = Reclaimer::start(&memory).expect("a thread");
    thread::sleep(NEVER);
    assert_eq!((reclaimer.rounds(), memory.count()), (0, 5));
    reclaimer.kick();
    let start = Instant::now();
    while reclaimer.rounds() == 0 && start.elapsed() < SOON {
        thread::sleep(Duration::from_millis(1));
    }
    nothing_is_left(&memory, &client);
    thread::sleep(NEVER);
    assert_eq!(reclaimer.rounds(), 1);
    // Signals are for other threads.
    assert_eq!(blocked_signals("shrinker"), [true]);
    drop(reclaimer);
    assert_eq!(Arc::strong_count(&memory), users, "the thread is gone");
}

/// Whether each thread of that name blocks SIGUSR2.
fn blocked_signals(name: &str) -> Vec<bool> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("our threads").flatten();
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let named = status.filter(|status| status.lines().next() == Some(&format!("Name:\t{name}")));
    named
        .map(|status| {
            let mask =
                status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("a mask");
            let mask = u64::from_str_radix(mask.trim(), 16).expect("a number");
            mask & 1 << (libc::SIGUSR2 - 1) != 0
        })
        .collect()
}

#[test]
fn policies_have_names() {
    for (name, policy) in [("exclusive", PageInstall::Exclusive), ("shared", PageInstall::Shared)] {
        assert_eq!((name.parse(), policy.to_string()), (Ok(policy), name.to_string()));
    }
    assert!("other".parse::<PageInstall>().is_err());
    assert_eq!(PageInstall::default(), PageInstall::Shared);
}

/// A mapping full of one-way buffers, with their sender a spam suspect, costs what an empty one
/// does: a search in a tree, never a walk over the buffers.
#[test]
fn a_full_mapping_is_hardly_slower_than_an_empty_one() {
    let mm = HeapMm::new();
    mm.attach(ADDRESS, 4 << 20);
    let alloc = Alloc::new(mm, &plain());
    alloc.mmap_handler(ADDRESS, 4 << 20).expect("the first mapping");
    let oneway = BufferRequest { is_async: true, ..request(8) };
    let cost = || {
        let once = || {
            let start = Instant::now();
            for _ in 0..1000 {
                let buffer = alloc.alloc_new_buf(&oneway).expect("room");
                alloc.free_buf(&buffer);
            }
            start.elapsed()
        };
        (0..10).map(|_| once()).min().expect("ten times")
    };
    let empty = cost();
    for _ in 0..250_000 {
        alloc.alloc_new_buf(&oneway).expect("room");
    }
    let full = cost();
    println!("1,000 times allocate and free: {empty:?} empty, {full:?} beside 250,000 buffers");
    assert!(full < empty * 50, "{empty:?} empty, {full:?} full");
}
