//! Installers, freers, a shrinker at full speed, and clients that unmap or die, on real memory.
//!
//! `FAKEBINDER_STRESS_SECONDS` (5 if not set) says for how long. Every byte of every live buffer is
//! compared, as we and as the client see it.

mod common;

use common::mapped::{ByProcessVm, Client, request};
use fakebinder::Errno;
use fakebinder::alloc::{Alloc, Buffer};
use fakebinder::memory::{Memory, MemoryConfig, PageInstall};
use fakebinder::probe::{Injector, Probes};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;

fn seconds() -> Duration {
    let seconds = std::env::var("FAKEBINDER_STRESS_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

/// Small repeatable random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// What the buffer number `tag` holds.
fn contents(tag: u64, len: usize) -> Vec<u8> {
    let mut random = Random(tag);
    (0..len).map(|_| random.below(256) as u8).collect()
}

/// What the process `pid` has at `address`.
fn client_reads(pid: u32, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: address as *mut _, iov_len: len };
    // SAFETY: one vector each; the local one is ours, as long as we say.
    let copied = unsafe { libc::process_vm_readv(pid as i32, &local, 1, &remote, 1, 0) };
    assert_eq!(copied, len as isize, "{}", std::io::Error::last_os_error());
    bytes
}

struct Live {
    tag: u64,
    buffer: Buffer,
}

impl Live {
    fn check(&self, client: u32) {
        let expected = contents(self.tag, self.buffer.data_size);
        let seen = client_reads(client, self.buffer.user_data, expected.len());
        assert!(
            seen == expected,
            "the client sees another buffer {} at {:#x}",
            self.tag,
            self.buffer.offset
        );
    }
}

/// Allocates, fills, compares and frees until told to stop; returns how many buffers that were.
fn install_and_free(alloc: &Alloc, client: u32, number: u64, stop: &AtomicBool) -> usize {
    let mut random = Random(number);
    let mut live: Vec<Live> = Vec::new();
    let mut allocated = 0;
    while !stop.load(Ordering::Relaxed) {
        // Mostly smaller than a page, so that neighbours share one.
        let size =
            if random.below(8) == 0 { random.below(10 * PAGE) } else { 8 + random.below(2000) };
        match alloc.alloc_new_buf(&request(size)) {
            Ok(buffer) => {
                allocated += 1;
                let tag = number << 40 | allocated as u64;
                let bytes = ByProcessVm(contents(tag, size));
                alloc
                    .copy_user_to_buffer(&buffer, 0, &bytes, 0, size)
                    .expect("an installed buffer");
                live.push(Live { tag, buffer });
            }
            // The freers are behind.
            Err(Errno::ENOSPC | Errno::ENOMEM) => {}
            Err(errno) => panic!("{errno}"),
        }
        while live.len() > random.below(12) {
            let gone = live.swap_remove(random.below(live.len()));
            gone.check(client);
            alloc.free_buf(&gone.buffer);
        }
    }
    for gone in live {
        gone.check(client);
        alloc.free_buf(&gone.buffer);
    }
    allocated
}

/// Allocates from a client that goes away in the middle: nothing but ESRCH may come of it.
fn use_until_gone(memory: &Arc<Memory>, probes: &Probes, stop: &AtomicBool) -> usize {
    let mut rounds = 0;
    let mut random = Random(99);
    while !stop.load(Ordering::Relaxed) {
        let mut client = Client::start_probed(1 << 20, memory, probes.clone());
        let alloc = client.alloc.clone();
        let gone = Arc::new(AtomicBool::new(false));
        let user = {
            let (gone, memory) = (gone.clone(), memory.clone());
            thread::spawn(move || {
                let mut buffers = Vec::new();
                loop {
                    match alloc.alloc_new_buf(&request(3 * PAGE)) {
                        Ok(buffer) => buffers.push(buffer),
                        Err(Errno::ESRCH) => break,
                        Err(Errno::ENOSPC | Errno::ENOMEM) => {
                            buffers.drain(..).for_each(|buffer| alloc.free_buf(&buffer));
                            if gone.load(Ordering::SeqCst) {
                                memory.reclaim_all();
                            }
                        }
                        Err(errno) => panic!("{errno}"),
                    }
                }
                buffers.iter().for_each(|buffer| alloc.free_buf(buffer));
            })
        };
        thread::sleep(Duration::from_micros(random.below(3000) as u64));
        match rounds % 4 {
            0 => client.munmap(),
            1 => client.map_impostor(),
            2 => client.kill(),
            _ => {
                client.kill_without_waiting();
                client.alloc.deferred_release();
            }
        }
        gone.store(true, Ordering::SeqCst);
        user.join().expect("the user of a client that goes away");
        client.alloc.deferred_release();
        assert_eq!(client.resident(), 0, "a client that is gone leaves no page");
        rounds += 1;
    }
    rounds
}

/// But for pipes: the shim has none, and ThreadSanitizer opens some to name functions.
fn open_descriptors() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").expect("our descriptors");
    let targets = files.flatten().flat_map(|file| std::fs::read_link(file.path()));
    targets.filter(|target| !target.to_string_lossy().starts_with("pipe:")).count()
}

fn stress(time: Duration, page_install: PageInstall, inject: &str, page_budget: Option<u64>) {
    let inject: Injector = inject.parse().expect("a specification");
    let memory = Memory::new(MemoryConfig { page_install, page_budget });
    let probes = Probes { inject, ..Probes::default() };
    // The userfaultfd is there from the first client on.
    let start = |size| Client::start_probed(size, &memory, probes.clone());
    drop(start(1 << 20));
    let descriptors = open_descriptors();

    let clients: Vec<Client> = (0..2).map(|_| start(512 << 10)).collect();
    let (stop, reclaimed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut buffers, mut rounds) = (0, 0);
    thread::scope(|scope| {
        let installers: Vec<_> = (0..6)
            .map(|number| {
                let (client, stop) = (&clients[number % 2], &stop);
                scope.spawn(move || {
                    install_and_free(&client.alloc, client.pid(), number as u64, stop)
                })
            })
            .collect();
        let shrinker = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                reclaimed.fetch_add(memory.scan(64), Ordering::Relaxed);
            }
        });
        let leavers = scope.spawn(|| use_until_gone(&memory, &probes, &stop));
        let end = Instant::now() + time;
        while Instant::now() < end && !installers.iter().any(|thread| thread.is_finished()) {
            thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        buffers = installers.into_iter().map(|thread| thread.join().expect("an installer")).sum();
        rounds = leavers.join().expect("the clients that go away");
        shrinker.join().expect("the shrinker");
    });
    let reclaimed = reclaimed.load(Ordering::Relaxed);
    println!(
        "{page_install}: {buffers} buffers, {reclaimed} pages reclaimed, {rounds} clients gone"
    );
    assert!(buffers > 0 && reclaimed > 0 && rounds > 0);

    for client in &clients {
        assert_eq!(client.alloc.allocated_count(), 0);
        assert_eq!(client.alloc.pages().active, 0);
    }
    memory.reclaim_all();
    assert_eq!((memory.used(), memory.count()), (0, 0));
    assert!(clients.iter().all(|client| client.resident() == 0));
    drop(clients);
    assert_eq!(open_descriptors(), descriptors);
}

/// One test, so that descriptors can be counted.
#[test]
fn live_buffers_keep_their_bytes_whatever_others_do() {
    stress(seconds() * 3 / 5, PageInstall::Shared, "", None);
    stress(seconds() / 5, PageInstall::Exclusive, "", None);
    let faults =
        "alloc_page:share=0.01,vm_insert_page:delay=50us:share=0.05,zap:delay=100us:share=0.02";
    stress(seconds() / 5, PageInstall::Shared, faults, Some(96 * PAGE as u64));
}
