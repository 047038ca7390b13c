//! Target `alloc`: the allocator and its shrinker against a model that is too simple to be wrong.
//!
//! The model knows which ranges of a mapping are taken and what was written there. It says where a
//! best fit must lie; pages and the rest are checked by [`Alloc::check_invariants`] and by
//! [`HeapMm`], which counts everybody who comes for a page that is not there.

mod model;
mod program;

pub use program::{Aside, Meanwhile, Oneway, Program, Setting, Size, Step};

use crate::grammar::{Install, MmVerb, Pick};
use crate::trace::{panic_at_errors, trace};
use fakebinder::Errno;
use fakebinder::alloc::{Alloc, Buffer, BufferRequest, PageState};
use fakebinder::memory::{Memory, MemoryConfig, PageInstall};
use fakebinder::page::PAGE_SIZE;
use fakebinder::probe::{Injector, Probes, Rule, Verb};
use fakebinder::quota::User;
use fakebinder_sim::HeapMm;
use fakebinder_sim::MAPPING;
use model::{Client, Taken};
use program::{request, total};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// Allocators that share a budget.
const CLIENTS: usize = 2;

/// What an aside did, and for which client.
enum AsideDone {
    Allocated(usize, BufferRequest, std::result::Result<Buffer, Errno>),
    Freed(usize, Buffer),
}

/// Lets somebody act at the n-th verb of the mm, unless that would have to wait for us.
#[derive(Default)]
struct Interruption {
    countdown: AtomicU32,
    #[allow(clippy::type_complexity, reason = "a thing to do, once")]
    act: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Interruption {
    fn pass(&self) {
        let left = self.countdown.load(Ordering::Relaxed);
        if left > 0 {
            self.countdown.store(left - 1, Ordering::Relaxed);
            if left == 1 {
                let act = self.act.lock().expect("one thread").take();
                act.into_iter().for_each(|act| act());
            }
        }
    }
}

struct Machine {
    memory: Arc<Memory>,
    clients: Vec<Client>,
    interruption: Arc<Interruption>,
    /// Whether an allocation may fail for want of a page or an injected reason.
    pages_may_fail: bool,
    zap_fails: bool,
}

/// Carries out a program.
///
/// # Panics
/// When the allocator does anything that it must not.
pub fn play(program: &Program) {
    panic_at_errors();
    let mut machine = Machine::new(&program.setting);
    for step in program.steps.iter() {
        trace(|| format!("{step:?}"));
        machine.step(step);
        machine.check();
    }
    let memory = machine.memory.clone();
    drop(machine);
    assert_eq!((memory.used(), memory.count()), (0, 0), "pages are left");
}

impl Machine {
    fn new(setting: &Setting) -> Machine {
        let interruption = Arc::new(Interruption::default());
        let mut inject = Injector::default();
        for verb in [Verb::AllocPage, Verb::InsertPage, Verb::VmaLookup, Verb::MmGet, Verb::Zap] {
            let interruption = interruption.clone();
            inject = inject.with(Rule::new(verb).hook(move |_| interruption.pass()));
        }
        let mut zap_fails = false;
        for fault in setting.faults.iter() {
            let (verb, errno) = match fault.verb {
                MmVerb::AllocPage => (Verb::AllocPage, Errno::ENOMEM),
                MmVerb::InsertPage => (Verb::InsertPage, Errno::EINTR),
                MmVerb::VmaLookup => (Verb::VmaLookup, Errno::ESRCH),
                MmVerb::MmGet => (Verb::MmGet, Errno::ESRCH),
                MmVerb::Zap => (Verb::Zap, Errno::EIO),
            };
            zap_fails |= verb == Verb::Zap;
            inject = inject.with(Rule::new(verb).nth(1 + u64::from(fault.nth % 32)).fail(errno));
        }
        let limited = setting.budget < 128;
        let memory = Memory::new(MemoryConfig {
            page_budget: limited.then_some(u64::from(1 + setting.budget % 16) * PAGE_SIZE as u64),
            page_install: match setting.install {
                Install::Shared => PageInstall::Shared,
                Install::Exclusive => PageInstall::Exclusive,
            },
        });
        let probes = Probes { inject, ..Probes::default() };
        let clients = (0..CLIENTS)
            .map(|index| {
                let mm = HeapMm::new();
                let (user, probes) = (User::unlimited(), probes.clone());
                let alloc = Alloc::of_user(mm.clone(), &memory, user, probes);
                let pages = 1 + usize::from(setting.pages >> (4 * index)) % 12;
                mm.mmap(MAPPING, pages * PAGE_SIZE);
                alloc.mmap_handler(MAPPING, pages * PAGE_SIZE).expect("a first mapping");
                Client { alloc, mm, mapped: true, taken: Vec::new() }
            })
            .collect();
        let pages_may_fail = limited || !setting.faults.is_empty();
        Machine { memory, clients, interruption, pages_may_fail, zap_fails }
    }

    fn client(&self, pick: Pick) -> usize {
        usize::from(pick.0) % CLIENTS
    }

    /// Arms the interruption; what the aside came to is found in the returned cell. Ranges are
    /// taken and given back at the beginning of a call, before any verb: so the aside comes after.
    fn arm(&self, meanwhile: &Meanwhile) -> Arc<Mutex<Option<AsideDone>>> {
        let result = Arc::new(Mutex::new(None));
        let Meanwhile::Do { nth, what } = meanwhile else { return result };
        let cell = result.clone();
        let tell = move |done| *cell.lock().expect("one thread") = Some(done);
        let act: Box<dyn FnOnce() + Send> = match what {
            Aside::AllocateToo { client, size } => {
                let client = self.client(*client);
                let alloc = self.clients[client].alloc.clone();
                let request = request(size, false, client);
                Box::new(move || {
                    if !alloc.is_busy() {
                        let got = alloc.alloc_new_buf(&request);
                        tell(AsideDone::Allocated(client, request, got));
                    }
                })
            }
            Aside::FreeToo { client, buffer } => {
                let client = self.client(*client);
                let alloc = self.clients[client].alloc.clone();
                let Some(index) = self.clients[client].pick(*buffer) else { return result };
                let buffer = self.clients[client].taken[index].buffer;
                Box::new(move || {
                    if !alloc.is_busy() {
                        alloc.free_buf(&buffer);
                        tell(AsideDone::Freed(client, buffer));
                    }
                })
            }
            Aside::ReclaimToo { pages } => {
                let (memory, pages) = (self.memory.clone(), usize::from(*pages));
                Box::new(move || {
                    memory.scan(pages);
                })
            }
            Aside::UnmapToo { client } => {
                let mm = self.clients[self.client(*client)].mm.clone();
                Box::new(move || mm.munmap())
            }
        };
        *self.interruption.act.lock().expect("one thread") = Some(act);
        self.interruption.countdown.store(1 + u32::from(*nth % 8), Ordering::Relaxed);
        result
    }

    /// The step is over; what came of its aside, if there was one.
    fn land(&mut self, aside: &Mutex<Option<AsideDone>>) {
        self.interruption.countdown.store(0, Ordering::Relaxed);
        *self.interruption.act.lock().expect("one thread") = None;
        match aside.lock().expect("one thread").take() {
            None => {}
            Some(AsideDone::Allocated(client, request, got)) => {
                trace(|| format!("    meanwhile client {client} gets {got:?}"));
                self.allocated(client, &request, got);
            }
            Some(AsideDone::Freed(client, buffer)) => {
                trace(|| format!("    meanwhile client {client} frees {:#x}", buffer.offset));
                self.clients[client].taken.retain(|taken| taken.buffer.offset != buffer.offset);
            }
        }
    }

    /// Compares what an allocation came to with the model, and notes it.
    fn allocated(
        &mut self,
        index: usize,
        request: &BufferRequest,
        got: std::result::Result<Buffer, Errno>,
    ) {
        let client = &mut self.clients[index];
        let oneway_left = client.oneway_left();
        let expected = match total(request) {
            _ if client.size() == 0 => Err(Errno::ESRCH),
            None => Err(Errno::EINVAL),
            Some(size) if request.is_async && oneway_left < size => Err(Errno::ENOSPC),
            Some(size) => client.best_fit(size).ok_or(Errno::ENOSPC),
        };
        match (got, expected) {
            (Ok(buffer), Ok(offset)) => {
                assert_eq!(buffer.offset, offset, "client {index}: not the best fit");
                let size = total(request).expect("else it would have failed");
                assert_eq!(buffer.size(), size, "client {index}: the size of {buffer:?}");
                assert_eq!(buffer.user_data, MAPPING + offset as u64, "client {index}");
                assert_eq!(
                    (buffer.data_size as u64, buffer.is_async),
                    (request.data_size, request.is_async),
                    "client {index}: {buffer:?}"
                );
                let content = vec![None; size];
                let taken = Taken { buffer, size, allowed: false, clear: false, content };
                client.taken.push(taken);
            }
            (Err(got), Err(expected)) => {
                let closed = got == Errno::ESRCH && !client.mapped;
                assert!(got == expected || closed, "client {index}: {got}, not {expected}");
            }
            (Err(errno), Ok(_)) => {
                let may_fail = self.pages_may_fail || !client.mapped;
                assert!(may_fail, "client {index}: {errno}, and there was room");
            }
            (Ok(buffer), Err(errno)) => panic!("client {index}: got {buffer:?}, not {errno}"),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Allocate { client, size, oneway, trouble } => {
                let index = self.client(*client);
                let request = request(size, *oneway == Oneway::OneWay, index);
                if let Meanwhile::Do { what: Aside::UnmapToo { client }, .. } = trouble {
                    let client = self.client(*client);
                    self.clients[client].mapped = false;
                }
                let aside = self.arm(trouble);
                let got = self.clients[index].alloc.alloc_new_buf(&request);
                trace(|| format!("    client {index} gets {got:?}"));
                self.settle(index, &request, got, &aside);
            }
            Step::Free { client, buffer } => {
                let client = self.client(*client);
                if let Some(index) = self.clients[client].pick(*buffer) {
                    self.free(client, index);
                }
            }
            Step::UserFree { client, buffer, allowed } => {
                let index = self.client(*client);
                let client = &mut self.clients[index];
                let Some(picked) = client.pick(*buffer) else { return };
                let taken = &mut client.taken[picked];
                if *allowed {
                    client.alloc.set_allow_user_free(&taken.buffer, true);
                    taken.allowed = true;
                }
                let address = taken.buffer.user_data;
                assert_eq!(client.alloc.prepare_to_free(address + 4), Err(Errno::ENOENT));
                let got = client.alloc.prepare_to_free(address);
                if taken.allowed {
                    assert_eq!(got.map(|b| b.offset), Ok(taken.buffer.offset), "client {index}");
                    let again = client.alloc.prepare_to_free(address);
                    assert_eq!(again, Err(Errno::EPERM), "client {index}: a second time");
                    self.free(index, picked);
                } else {
                    assert_eq!(got, Err(Errno::EPERM), "client {index}: not the user's to free");
                }
            }
            Step::Write { client, buffer, at, length } => {
                let client = self.client(*client);
                let client = &mut self.clients[client];
                let Some(picked) = client.pick(*buffer) else { return };
                let taken = &mut client.taken[picked];
                let at = (usize::from(*at) * taken.size / 256) & !3;
                let length = usize::from(*length).min(taken.size - at);
                let bytes: Vec<u8> =
                    (0..length).map(|i| (i ^ taken.buffer.offset ^ at) as u8).collect();
                client
                    .alloc
                    .copy_to_buffer(&taken.buffer, at, &bytes)
                    .expect("its pages are there");
                for (place, byte) in taken.content[at..].iter_mut().zip(bytes) {
                    *place = Some(byte);
                }
            }
            Step::Clear { client, buffer } => {
                let client = self.client(*client);
                let client = &mut self.clients[client];
                if let Some(picked) = client.pick(*buffer) {
                    client.alloc.set_clear_on_free(&client.taken[picked].buffer);
                    client.taken[picked].clear = true;
                }
            }
            Step::Reclaim { pages, trouble } => {
                if let Meanwhile::Do { what: Aside::UnmapToo { client }, .. } = trouble {
                    let client = self.client(*client);
                    self.clients[client].mapped = false;
                }
                let aside = self.arm(trouble);
                let before = self.memory.count();
                let reclaimed = self.memory.scan(usize::from(*pages));
                trace(|| format!("    {reclaimed} of {before} pages reclaimed"));
                let alone = matches!(trouble, Meanwhile::Nothing);
                assert!(
                    !alone || reclaimed == before.min(usize::from(*pages)),
                    "{reclaimed} pages of {before} were reclaimed, asked for {pages}"
                );
                self.land(&aside);
            }
            Step::Unmap { client } => {
                let client = self.client(*client);
                self.clients[client].mm.munmap();
                self.clients[client].mapped = false;
            }
            Step::Exit { client } => {
                let client = self.client(*client);
                self.clients[client].mm.exit();
                self.clients[client].mapped = false;
            }
            Step::Release { client } => {
                let client = self.client(*client);
                let client = &mut self.clients[client];
                client.alloc.deferred_release();
                client.mapped = false;
                client.taken.clear();
                assert_eq!(client.mm.resident(), 0, "pages are left after a release");
            }
            Step::OutOfBounds { client, buffer, offset, length } => {
                let client = self.client(*client);
                let client = &mut self.clients[client];
                let Some(picked) = client.pick(*buffer) else { return };
                let taken = &mut client.taken[picked];
                // Mostly near its end: numbers at random would hardly ever be.
                let reach = taken.size + 8;
                let (offset, length) = (usize::from(*offset) % reach, usize::from(*length) % reach);
                let inside = offset + length <= taken.size && offset.is_multiple_of(4);
                let got = client.alloc.copy_to_buffer(&taken.buffer, offset, &vec![0; length]);
                assert_eq!(got.is_ok(), inside, "{offset} + {length} of {}", taken.size);
                if inside {
                    taken.content[offset..offset + length].fill(Some(0));
                }
            }
        }
    }

    /// After an allocation that somebody acted in: its range was taken first, and, where its
    /// pages could not be had, given back last.
    fn settle(
        &mut self,
        index: usize,
        request: &BufferRequest,
        got: std::result::Result<Buffer, Errno>,
        aside: &Mutex<Option<AsideDone>>,
    ) {
        let count = self.clients[index].taken.len();
        if got.is_err() && aside.lock().expect("one thread").is_some() {
            // It had its range while the aside happened.
            let size = total(request).unwrap_or(0);
            if let Some(offset) = self.clients[index].best_fit(size) {
                let buffer = Buffer {
                    offset,
                    user_data: MAPPING + offset as u64,
                    data_size: size,
                    offsets_size: 0,
                    extra_buffers_size: 0,
                    is_async: request.is_async,
                    oneway_spam_suspect: false,
                };
                let unfinished =
                    Taken { buffer, size, allowed: false, clear: false, content: Vec::new() };
                self.clients[index].taken.push(unfinished);
                self.land(aside);
                // A buffer that the aside freed may have stood before it.
                let taken = &mut self.clients[index].taken;
                let unfinished = taken.iter().position(|taken| taken.buffer.offset == offset);
                taken.remove(unfinished.expect("nobody else frees it"));
                assert!(self.pages_may_fail || !self.clients[index].mapped, "{got:?}");
                return;
            }
        }
        self.allocated(index, request, got);
        debug_assert!(self.clients[index].taken.len() <= count + 1);
        self.land(aside);
    }

    fn free(&mut self, client: usize, index: usize) {
        let client = &mut self.clients[client];
        let taken = client.taken.remove(index);
        client.alloc.free_buf(&taken.buffer);
        if taken.clear && client.mapped {
            let mut bytes = vec![1; taken.size];
            client.mm.peek(taken.buffer.user_data, &mut bytes).expect("in the mapping");
            assert!(bytes.iter().all(|byte| *byte == 0), "a cleared buffer is not clear");
        }
    }

    /// All that must hold between two steps.
    fn check(&self) {
        let (mut used, mut lru) = (0, 0);
        for (index, client) in self.clients.iter().enumerate() {
            if let Err(violation) = client.alloc.check_invariants() {
                panic!("client {index}: {violation}");
            }
            assert_eq!(client.mm.lost(), 0, "client {index}: a page that should be there is not");
            assert_eq!(client.mm.users(), 0, "client {index}: a use of the mm was not put");
            assert_eq!(client.alloc.allocated_count(), client.taken.len(), "client {index}");
            let (mut installed, mut on_lru) = (0, 0);
            for state in client.alloc.page_states() {
                installed += usize::from(state != PageState::Free);
                on_lru += usize::from(state == PageState::Lru);
            }
            let resident = client.mm.resident();
            assert!(
                resident == installed || (self.zap_fails && resident > installed),
                "client {index}: {resident} pages are resident, {installed} installed"
            );
            (used, lru) = (used + resident, lru + on_lru);
            for taken in &client.taken {
                let mut bytes = vec![0; taken.size];
                let read = client.mm.read(taken.buffer.offset, &mut bytes);
                assert_eq!(read, Ok(()), "client {index}: {:?}", taken.buffer);
                let mut expected = taken.content.iter().zip(&bytes);
                assert!(
                    expected.all(|(expected, byte)| expected.is_none_or(|e| e == *byte)),
                    "client {index}: {:?} holds what nobody wrote",
                    taken.buffer
                );
            }
        }
        assert_eq!(self.memory.used(), used, "pages in use, by the budget and by the clients");
        assert_eq!(self.memory.count(), lru, "pages on the LRU, by the list and by their owners");
    }
}
