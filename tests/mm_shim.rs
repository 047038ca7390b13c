//! The page verbs over real memory: a client process that maps its buffer file.
//!
//! More than 500 lines: one scene for each way in which a mapping can be, or not be, what we serve.

mod common;

use common::mapped::{ByProcessVm, Bytes, Client, KERNELS, request, resident};
use common::skip;
use fakebinder::Errno;
use fakebinder::alloc::Alloc;
use fakebinder::memory::{Memory, MemoryConfig, PageInstall};
use fakebinder::mm_shim::{AddressSpace, Features, MappingKind, NoVma, RemoteMm, create_memfd};
use nix::fcntl::{FallocateFlags, fallocate};
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;

fn memory() -> Arc<Memory> {
    Memory::new(MemoryConfig::default())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8 | 1).collect()
}

#[test]
fn what_is_copied_to_a_buffer_is_what_the_client_reads() {
    let memory = memory();
    let mut client = Client::start(1 << 20, &memory);
    let bytes = pattern(3 * PAGE + 100);
    let buffer = client.alloc.alloc_new_buf(&request(bytes.len())).expect("room");
    client
        .alloc
        .copy_user_to_buffer(&buffer, 0, &ByProcessVm(bytes.clone()), 0, bytes.len())
        .expect("a copy");
    assert_eq!(client.peek_buffer(&buffer), bytes);
    client.alloc.copy_to_buffer(&buffer, 8, &[1, 2, 3, 4]).expect("a copy");
    assert_eq!(client.peek(buffer.user_data + 8, 4), [1, 2, 3, 4]);

    client.alloc.set_clear_on_free(&buffer);
    client.alloc.free_buf(&buffer);
    assert_eq!(client.peek_buffer(&buffer), vec![0; bytes.len()]);
}

/// Installed pages count in the client's and in our memory; zapped ones are gone from both.
#[test]
fn installed_pages_are_in_the_clients_memory_and_ours_and_zapped_ones_in_neither() {
    for kernel in KERNELS {
        let memory = memory();
        let mut client = Client::start_unknown(1 << 20, &memory, kernel);
        let us = std::process::id();
        assert_eq!((client.resident(), client.rss_in(us), client.rss_in(client.pid())), (0, 0, 0));

        let buffer = client.alloc.alloc_new_buf(&request(5 * PAGE)).expect("room");
        let bytes = pattern(5 * PAGE);
        client
            .alloc
            .copy_user_to_buffer(&buffer, 0, &Bytes(bytes.clone()), 0, bytes.len())
            .expect("a copy");
        assert_eq!(client.resident(), 5);
        assert_eq!(client.rss_in(us), 5 * 4);
        assert_eq!(client.peek_buffer(&buffer), bytes);
        assert_eq!(client.rss_in(client.pid()), 5 * 4);
        assert_eq!(memory.used(), 5);

        client.alloc.free_buf(&buffer);
        assert_eq!((memory.count(), memory.reclaim_all()), (5, 5));
        assert_eq!((client.resident(), client.rss_in(us), client.rss_in(client.pid())), (0, 0, 0));
        assert_eq!((memory.used(), memory.count()), (0, 0));
    }
}

#[test]
fn a_buffer_file_has_its_size_and_mode_for_good() {
    let file = create_memfd("fakebinder-test").expect("a buffer file");
    let stat = nix::sys::stat::fstat(&file.memfd).expect("a file");
    assert_eq!((stat.st_size, stat.st_mode & 0o7777), (4 << 20, 0));
    assert_eq!(nix::unistd::ftruncate(&file.memfd, 0), Err(Errno::EPERM));
    assert_eq!(nix::unistd::ftruncate(&file.memfd, 8 << 20), Err(Errno::EPERM));
    assert_eq!(nix::unistd::write(&file.read_only, &[1]), Err(Errno::EBADF));
    assert_eq!(resident(&file.memfd), 0);
    for fd in [&file.memfd, &file.read_only] {
        let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).expect("a descriptor");
        assert_eq!(flags, libc::FD_CLOEXEC);
    }
}

#[test]
fn a_mapping_is_found_in_the_client_and_only_a_read_only_one_of_our_file() {
    for kernel in KERNELS {
        let mut client = Client::start_unknown(1 << 20, &memory(), kernel);
        assert_eq!(client.mm.pid(), client.pid() as i32);
        assert_eq!(client.mm.find_mapping(), Ok((client.address, 1 << 20)));
        assert_eq!(client.mm.mapping_at(client.address), Ok((client.address, 1 << 20)));
        assert_eq!(client.mm.mapping_at(client.address + PAGE as u64), Err(Errno::ESRCH));
        assert_eq!(client.mm.mapping_at(client.address - PAGE as u64), Err(Errno::ESRCH));
        client.map_writable();
        assert_eq!(client.mm.find_mapping(), Err(Errno::EPERM));
        assert_eq!(client.mm.mapping_at(client.address), Err(Errno::EPERM));
        client.remap(PAGE as u64);
        assert_eq!(client.mm.find_mapping(), Err(Errno::ESRCH));
        assert_eq!(client.mm.mapping_at(client.address), Err(Errno::ESRCH));
        client.map_impostor();
        assert_eq!(client.mm.find_mapping(), Err(Errno::ESRCH));
        client.kill();
        assert_eq!(client.mm.find_mapping(), Err(Errno::ESRCH));
        assert_eq!(client.mm.mapping_at(client.address), Err(Errno::ESRCH));
    }
}

/// It was searched in vain; then it maps its buffer, in a free place or in another mapping's.
#[test]
fn a_mapping_that_comes_after_a_search_in_vain_is_found() {
    for kernel in KERNELS {
        let found =
            |client: &Client| client.alloc.alloc_new_buf(&request(8)).map(|it| it.user_data);
        let mut client = Client::start_unknown(1 << 20, &memory(), kernel);
        client.munmap();
        assert_eq!(found(&client), Err(Errno::ESRCH));
        client.remap(0);
        assert_eq!(found(&client), Ok(client.address));

        let mut client = Client::start_unknown(1 << 20, &memory(), kernel);
        client.map_impostor();
        assert_eq!(found(&client), Err(Errno::ESRCH));
        client.remap(0);
        assert_eq!(found(&client), Err(Errno::ESRCH), "as much as before is mapped");
        client.alloc.owner_calls();
        assert_eq!(found(&client), Ok(client.address));
    }
}

/// A file of the FUSE door is known by numbers, here those of another buffer file.
#[test]
fn a_mapping_of_another_file_is_not_ours() {
    let client = Client::start_unknown(1 << 20, &memory(), Features::ALL);
    let stat = nix::sys::stat::fstat(&client.memfd).expect("a file");
    let mm = |dev, ino| {
        let pid = client.pid() as i32;
        // SAFETY: takes no pointer; the descriptor is new and ours.
        let pidfd =
            unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32) };
        let memfd = client.memfd.try_clone().expect("another descriptor");
        RemoteMm::new(
            pid,
            Arc::new(pidfd),
            memfd,
            MappingKind::FuseFile { dev, ino },
            &Arc::default(),
        )
        .expect("an mm")
    };
    assert_eq!(mm(stat.st_dev, stat.st_ino).find_mapping(), Ok((client.address, 1 << 20)));
    // Made after the client, which therefore cannot have inherited it.
    let other = create_memfd("fakebinder-other").expect("a buffer file");
    let other = nix::sys::stat::fstat(&other.memfd).expect("a file").st_ino;
    assert_eq!(mm(stat.st_dev, other).find_mapping(), Err(Errno::ESRCH));
    assert_eq!(mm(stat.st_dev + 1, stat.st_ino).find_mapping(), Err(Errno::ESRCH));
    let alloc = Alloc::new(mm(stat.st_dev, stat.st_ino), &memory());
    assert_eq!(alloc.alloc_new_buf(&request(8)).map(|buffer| buffer.user_data), Ok(client.address));
}

/// The next install finds out, fails alone, and the shrinker still has the client's pages.
#[test]
fn after_munmap_or_an_impostor_the_next_install_fails_and_pages_are_still_reclaimed() {
    let changes: [fn(&mut Client); 4] =
        [Client::munmap, Client::map_impostor, Client::map_writable, |client| {
            client.remap(PAGE as u64)
        }];
    for (change, kernel) in changes.iter().flat_map(|it| KERNELS.map(|kernel| (it, kernel))) {
        let memory = memory();
        let mut client = Client::start_unknown(1 << 20, &memory, kernel);
        let other = Client::start(1 << 20, &memory);
        let unused = client.alloc.alloc_new_buf(&request(2 * PAGE)).expect("room");
        client.alloc.free_buf(&unused);
        change(&mut client);
        assert_eq!(client.alloc.alloc_new_buf(&request(3 * PAGE)), Err(Errno::ESRCH));
        assert_eq!(client.alloc.alloc_new_buf(&request(8)), Err(Errno::ESRCH));
        assert_eq!(client.alloc.mmap_handler(client.address, client.size), Err(Errno::EBUSY));
        other.alloc.alloc_new_buf(&request(3 * PAGE)).expect("another client");
        assert_eq!((client.resident(), memory.reclaim_all(), client.resident()), (2, 2, 0));
        assert_eq!((memory.used(), memory.count()), (3, 0));
    }
}

#[test]
fn a_client_that_dies_leaves_no_page_and_no_descriptor() {
    let memory = memory();
    let mut client = Client::start(1 << 20, &memory);
    let live = client.alloc.alloc_new_buf(&request(2 * PAGE)).expect("room");
    client.kill();
    assert_eq!(client.alloc.alloc_new_buf(&request(3 * PAGE)), Err(Errno::ESRCH));
    assert!(!client.mm.mmget_not_zero());
    client.alloc.free_buf(&live);
    assert_eq!(memory.reclaim_all(), 2);
    let again = client.alloc.alloc_new_buf(&request(PAGE));
    assert_eq!(again, Err(Errno::ESRCH));
    client.alloc.deferred_release();
    assert_eq!((client.resident(), memory.used(), memory.count()), (0, 0, 0));
}

/// The mappings of process 1, for a thread that is nobody: it may see none. A client that attached
/// has told us its address; one of the FUSE door has not.
#[test]
fn a_client_whose_mappings_cannot_be_seen_is_believed_where_it_told_its_address() {
    const NOBODY: libc::c_long = 65534;
    let lookup = |kind| {
        // SAFETY: takes no pointer; the descriptor is new and ours.
        let pidfd =
            unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, 1, 0) as i32) };
        let file = create_memfd("fakebinder-test").expect("a buffer file");
        let mm =
            RemoteMm::new(1, Arc::new(pidfd), file.memfd, kind, &Arc::default()).expect("an mm");
        let stranger = thread::spawn(move || {
            if nix::unistd::geteuid().is_root() {
                // SAFETY: takes no pointer; the system call, unlike libc's function, is about this
                // thread alone.
                let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
                assert_eq!(result, 0);
            }
            let unseen = match kind {
                MappingKind::Memfd => Errno::ESRCH,
                MappingKind::FuseFile { .. } | MappingKind::CachedFile { .. } => Errno::EACCES,
            };
            assert_eq!(mm.find_mapping(), Err(unseen));
            assert!(mm.mmget_not_zero());
            let found = mm.vma_lookup(0x1000, 0);
            mm.mmput();
            found
        });
        stranger.join().expect("no panic")
    };
    assert_eq!(lookup(MappingKind::Memfd), Ok(0..1));
    for kind in
        [MappingKind::FuseFile { dev: 1, ino: 1 }, MappingKind::CachedFile { dev: 1, ino: 1 }]
    {
        assert_eq!(lookup(kind), Err(NoVma::Unknown(Errno::EACCES)));
    }
}

#[test]
fn an_mm_that_is_dropped_is_not_mapped_here_any_more() {
    let client = Client::start(1 << 20, &memory());
    let ino = nix::sys::stat::fstat(&client.memfd).expect("a file").st_ino.to_string();
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("our mappings");
        maps.lines().any(|line| line.split_ascii_whitespace().nth(4) == Some(&ino))
    };
    assert!(mapped());
    drop(client);
    assert!(!mapped());
}

/// As the kernel's: whoever uses an mm already may use it once more.
#[test]
fn an_mm_in_use_can_be_used_again_though_its_client_is_gone() {
    // A look that reads text answers for the whole mapping.
    for (kernel, seen) in KERNELS.into_iter().zip([7..8, 0..256, 7..8, 0..256]) {
        let mut client = Client::start_unknown(1 << 20, &memory(), kernel);
        assert!(client.mm.mmget_not_zero());
        let address = client.address + 7 * PAGE as u64;
        let found = client.mm.vma_lookup(address, 7);
        assert!(found == Ok(seen) || found == Ok(0..256), "{kernel:?}: {found:?}");
        assert_eq!(client.mm.vma_lookup(address, 8), Err(NoVma::Closed));
        client.kill();
        assert!(client.mm.mmget_not_zero());
        assert!(client.mm.vma_lookup(address, 7).is_err());
        client.mm.mmput();
        client.mm.mmput();
        assert!(!client.mm.mmget_not_zero());
    }
}

/// A client that reads an empty page makes one of zeros. It is then the winner of that race, and
/// its page is paid for from the first install on.
#[test]
fn a_page_that_the_client_made_by_reading_is_used_and_paid_for() {
    let ways = [PageInstall::Shared, PageInstall::Exclusive];
    for (page_install, kernel) in ways.into_iter().flat_map(|it| KERNELS.map(|kernel| (it, kernel)))
    {
        let memory = Memory::new(MemoryConfig { page_install, ..MemoryConfig::default() });
        let mut client = Client::start_unknown(1 << 20, &memory, kernel);
        assert_eq!(client.peek(client.address, 8), [0; 8]);
        assert_eq!((client.resident(), memory.used()), (1, 0));
        let bytes = pattern(2 * PAGE);
        let buffer = client.alloc.alloc_new_buf(&request(bytes.len())).expect("room");
        client
            .alloc
            .copy_user_to_buffer(&buffer, 0, &ByProcessVm(bytes.clone()), 0, bytes.len())
            .expect("a copy");
        assert_eq!(client.peek_buffer(&buffer), bytes);
        assert_eq!((client.resident(), memory.used()), (2, 2));
        client.alloc.free_buf(&buffer);
        assert_eq!((memory.reclaim_all(), memory.used(), client.resident()), (2, 0, 0));
    }
}

/// A file to swap to; gone with this.
struct Swap(std::ffi::CString);

impl Swap {
    /// 2 MiB of it, formatted as mkswap does.
    fn on() -> std::io::Result<Swap> {
        let path = std::env::temp_dir().join(format!("fakebinder-swap-{}", std::process::id()));
        let pages = 512;
        let mut content = vec![0; pages * PAGE];
        content[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
        content[1028..1032].copy_from_slice(&(pages as u32 - 1).to_ne_bytes());
        content[PAGE - 10..PAGE].copy_from_slice(b"SWAPSPACE2");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let swap = Swap(CString::new(path.into_os_string().into_encoded_bytes())?);
        file.write_all(&content)?;
        file.sync_all()?;
        // SAFETY: the path ends with a NUL and outlives the call.
        match unsafe { libc::swapon(swap.0.as_ptr(), 0) } {
            0 => Ok(swap),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // SAFETY: the path ends with a NUL and outlives both calls.
        unsafe {
            libc::swapoff(self.0.as_ptr());
            libc::unlink(self.0.as_ptr());
        }
    }
}

/// A control group whose memory can be reclaimed; gone with this.
struct Group {
    path: PathBuf,
    pid: u32,
}

impl Group {
    /// How a group of either kind is told to give up all memory that it can.
    const RECLAIM: [(&str, &str); 2] = [("memory.reclaim", "64M"), ("memory.force_empty", "0")];

    fn of(pid: u32) -> std::io::Result<Group> {
        let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"];
        let root = hierarchies.into_iter().map(Path::new).find(|root| {
            let controllers = fs::read_to_string(root.join("cgroup.controllers"));
            controllers.is_ok_and(|all| all.contains("memory"))
                || root.join("memory.usage_in_bytes").exists()
        });
        let root = root.ok_or(std::io::ErrorKind::NotFound)?;
        // Where there is one hierarchy, a group has what the one above it passes on.
        let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
        let group = Group { path: root.join(format!("fakebinder-{pid}")), pid };
        fs::create_dir(&group.path)?;
        fs::write(group.path.join("cgroup.procs"), pid.to_string())?;
        Ok(group)
    }

    fn reclaim(&self) {
        for (file, amount) in Self::RECLAIM {
            // It says EAGAIN when there was less.
            let _ = OpenOptions::new()
                .write(true)
                .open(self.path.join(file))
                .and_then(|mut it| it.write_all(amount.as_bytes()));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.path.with_file_name("cgroup.procs"), self.pid.to_string());
        let _ = fs::remove_dir(&self.path);
    }
}

/// Whether a page of a file of ours is in memory.
fn in_memory(memfd: &OwnedFd) -> bool {
    let ino = nix::sys::stat::fstat(memfd).expect("a file").st_ino.to_string();
    let maps = fs::read_to_string("/proc/self/maps").expect("our mappings");
    let line = maps.lines().find(|line| line.split_ascii_whitespace().nth(4) == Some(&ino));
    let start = line.and_then(|line| line.split('-').next()).expect("it is mapped");
    let page = usize::from_str_radix(start, 16).expect("an address") as *mut libc::c_void;
    let mut resident = 0u8;
    // SAFETY: one byte is written for one page.
    assert_eq!(unsafe { libc::mincore(page, PAGE, &mut resident) }, 0);
    resident & 1 == 1
}

/// It exists, though it is not in memory: the installer that comes second uses it as it is.
#[test]
fn a_page_that_was_swapped_out_is_still_the_winners() {
    let _swap = match Swap::on() {
        Ok(swap) => swap,
        Err(error) => return skip(&format!("there is no swapping here: {error}")),
    };
    for kernel in KERNELS {
        let memory = memory();
        let mut client = Client::start_unknown(1 << 20, &memory, kernel);
        let group = match Group::of(client.pid()) {
            Ok(group) => group,
            Err(error) => return skip(&format!("no memory control group: {error}")),
        };
        // The winner is the client, so that the page is its group's.
        assert_eq!(client.peek(client.address, 8), [0; 8]);
        client.mm.write(0, &[7; 100]).expect("a page");
        let start = Instant::now();
        while in_memory(&client.memfd) && start.elapsed() < Duration::from_secs(5) {
            group.reclaim();
        }
        if in_memory(&client.memfd) {
            return skip("the kernel does not swap the page out");
        }
        assert!(client.mm.get_user_pages_remote(0) && !client.mm.get_user_pages_remote(1));
        assert_eq!(client.mm.vm_insert_page(0), Err(Errno::EBUSY), "{kernel:?}");
        assert_eq!(client.alloc.alloc_new_buf(&request(100)).map(|it| it.offset), Ok(0));
        let bytes = client.peek(client.address, 100);
        assert_eq!((bytes, memory.used()), (vec![7; 100], 1), "{kernel:?}");
    }
}

#[test]
fn verbs_have_the_errors_of_the_kernel() {
    for kernel in KERNELS {
        let client = Client::start_unknown(1 << 20, &memory(), kernel);
        let mm = &client.mm;
        assert!(!mm.get_user_pages_remote(3));
        assert_eq!(mm.vm_insert_page(3), Ok(()));
        assert_eq!(mm.vm_insert_page(3), Err(Errno::EBUSY));
        assert!(mm.get_user_pages_remote(3) && !mm.get_user_pages_remote(2));
        assert!(mm.zap_page(3).is_ok() && !mm.get_user_pages_remote(3));
        assert_eq!(mm.vm_insert_page(3), Ok(()));
        assert_eq!(mm.vm_insert_page(1024), Err(Errno::EFAULT));
        assert!(!mm.get_user_pages_remote(1024));
        assert_eq!(client.resident(), 1);
        mm.exit_mmap();
        assert_eq!(client.resident(), 0);
        assert_eq!(mm.write((4 << 20) - 4, &[1; 8]), Err(Errno::EFAULT));
        assert_eq!(mm.write(usize::MAX, &[1; 8]), Err(Errno::EFAULT));
        assert_eq!(mm.clear(4 << 20, 1), Err(Errno::EFAULT));
        assert_eq!(mm.clear(4 << 20, 0), Ok(()));
    }
}

/// A privileged client can punch holes into its own buffer. That costs it its data, a system call
/// EFAULT, and a store of ours a moment: nobody waits for ever.
#[test]
fn a_hole_under_a_live_buffer_stops_nobody() {
    let memory = memory();
    let mut client = Client::start(1 << 20, &memory);
    let buffer = client.alloc.alloc_new_buf(&request(2 * PAGE)).expect("room");
    let file = client.memfd.try_clone().expect("another descriptor");
    let punch = || {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, flags, 0, 2 * PAGE as i64).expect("our own file");
    };
    punch();
    let bytes = pattern(2 * PAGE);
    let copied =
        client.alloc.copy_user_to_buffer(&buffer, 0, &ByProcessVm(bytes.clone()), 0, bytes.len());
    assert_eq!(copied, Err(Errno::EFAULT));
    punch();
    client.alloc.copy_to_buffer(&buffer, 0, &bytes).expect("a store");
    assert!(client.peek_buffer(&buffer) == bytes);
    client.alloc.set_clear_on_free(&buffer);
    punch();
    client.alloc.free_buf(&buffer);
    assert_eq!((memory.reclaim_all(), memory.used(), client.resident()), (2, 0, 0));
}

#[test]
fn a_budget_is_shared_by_all_clients_and_reclaims_real_memory() {
    let budget = Some(8 * PAGE as u64);
    let memory = Memory::new(MemoryConfig { page_budget: budget, ..MemoryConfig::default() });
    let clients: Vec<Client> = (0..3).map(|_| Client::start(1 << 20, &memory)).collect();
    for round in 0..30 {
        let client = &clients[round % 3];
        let buffer = client
            .alloc
            .alloc_new_buf(&request((1 + round % 8) * PAGE))
            .expect("reclaimed from the others");
        assert!(clients.iter().map(Client::resident).sum::<usize>() <= 8);
        client.alloc.free_buf(&buffer);
    }
    assert_eq!(clients[0].alloc.alloc_new_buf(&request(9 * PAGE)), Err(Errno::ENOMEM));
    clients[1].alloc.alloc_new_buf(&request(8 * PAGE)).expect("that failed alone");
}

#[test]
fn maps_stay_open_between_installs_and_go_with_their_client() {
    let memory = memory();
    let open = || {
        let links = std::fs::read_dir("/proc/self/fd").expect("our descriptors").flatten();
        links.filter(|l| std::fs::read_link(l.path()).is_ok_and(|p| p.ends_with("maps"))).count()
    };
    let clients: Vec<Client> = (0..8).map(|_| Client::start(1 << 20, &memory)).collect();
    for client in &clients {
        client.alloc.alloc_new_buf(&request(PAGE)).expect("room");
    }
    assert!(open() >= 8);
    let pids: Vec<u32> = clients.iter().map(Client::pid).collect();
    drop(clients);
    let start = Instant::now();
    let left = || {
        let links = std::fs::read_dir("/proc/self/fd").expect("our descriptors").flatten();
        let paths: Vec<_> = links.filter_map(|l| std::fs::read_link(l.path()).ok()).collect();
        pids.iter()
            .filter(|pid| {
                paths.iter().any(|p| *p == std::path::Path::new(&format!("/proc/{pid}/maps")))
            })
            .count()
    };
    while left() > 0 && start.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(left(), 0);
}

/// For `strace -f -c`: 1,000 small transactions whose pages are there, one system call each.
#[test]
#[ignore = "to be run under strace"]
fn a_thousand_small_transactions() {
    let client = Client::start(1 << 20, &memory());
    let bytes = ByProcessVm(pattern(200));
    for _ in 0..1000 {
        let buffer = client.alloc.alloc_new_buf(&request(200)).expect("room");
        client.alloc.copy_user_to_buffer(&buffer, 0, &bytes, 0, 200).expect("a copy");
        client.alloc.copy_to_buffer(&buffer, 8, &[0; 8]).expect("a copy");
        client.alloc.free_buf(&buffer);
    }
}
