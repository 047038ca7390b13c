//! How often the text of a client's mappings is read.

use super::super::create_memfd;
use super::super::maps::tests::{Mapped, lines_read};
use super::*;
use crate::alloc::{Alloc, BufferRequest};
use crate::memory::{Memory, MemoryConfig};
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::process::{Command, Stdio};

/// Whether this process has its own maps open; only this test keeps them open for longer.
fn maps_open() -> bool {
    let ours = format!("/proc/{}/maps", std::process::id());
    let links = std::fs::read_dir("/proc/self/fd").expect("our descriptors").flatten();
    links.filter_map(|link| std::fs::read_link(link.path()).ok()).any(|path| path.ends_with(&ours))
}

fn pidfd_of(pid: u32) -> Arc<OwnedFd> {
    // SAFETY: takes no pointer; the descriptor is new and ours.
    Arc::new(unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32) })
}

/// A client on a kernel where looking for a mapping means reading the text.
struct ReadAsText {
    mm: Arc<RemoteMm>,
    alloc: Arc<Alloc>,
    file: OwnedFd,
}

impl ReadAsText {
    fn new(pid: u32) -> ReadAsText {
        let file = create_memfd("fakebinder-test").expect("a buffer file");
        let stat = stat::fstat(&file.memfd).expect("a file");
        let kind = MappingKind::FuseFile { dev: stat.st_dev, ino: stat.st_ino };
        let mm = mm_of(pid, file.memfd, kind);
        let alloc = Alloc::new(mm.clone(), &Memory::new(MemoryConfig::default()));
        ReadAsText { mm, alloc, file: file.read_only }
    }

    fn allocate(&self, pages: usize) -> Result<u64, Errno> {
        let request = BufferRequest {
            data_size: (pages * PAGE_SIZE) as u64,
            offsets_size: 0,
            extra_buffers_size: 0,
            is_async: false,
            pid: 1,
        };
        self.alloc.alloc_new_buf(&request).map(|buffer| buffer.user_data)
    }
}

fn mm_of(pid: u32, memfd: OwnedFd, kind: MappingKind) -> Arc<RemoteMm> {
    let features = Features { procmap_query: false, ..Features::ALL };
    RemoteMm::with_features(pid as i32, pidfd_of(pid), memfd, kind, &Arc::default(), features)
        .expect("an mm")
}

/// This process as such a client: it has mapped 1 MiB, and `others` files besides.
struct Ourselves {
    client: ReadAsText,
    address: u64,
    _others: Mapped,
}

const MAPPED: usize = 1 << 20;

impl Ourselves {
    fn new(others: usize) -> Ourselves {
        let others = Mapped::new(others);
        let client = ReadAsText::new(std::process::id());
        let size = NonZeroUsize::new(MAPPED).expect("1 MiB");
        let (protection, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
        // SAFETY: at a place of the kernel's choice.
        let start = unsafe { mman::mmap(None, size, protection, flags, &client.file, 0) };
        let address = start.expect("a mapping").as_ptr() as u64;
        Ourselves { client, address, _others: others }
    }
}

impl Drop for Ourselves {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference into it was made.
        unsafe { libc::munmap(self.address as *mut c_void, MAPPED) };
    }
}

/// The search reads the text once, and so does each buffer whose pages have to be installed:
/// not each page, and not each mapping.
#[test]
fn a_buffer_costs_one_reading_of_the_mappings_however_many_pages_it_has() {
    for others in [500, 2000] {
        let ours = Ourselves::new(others);
        let (client, address) = (&ours.client, ours.address);
        // Other tests map something meanwhile; the buffer is listed before or after those mappings.
        let most = others + 1000;
        let (found, lines) = lines_read(|| client.mm.find_mapping());
        assert_eq!(found, Ok((address, MAPPED)));
        assert!(lines < most, "{lines} lines for a search, {others} mappings");
        let (first, lines) = lines_read(|| client.allocate(100));
        assert_eq!(first, Ok(address));
        assert!((1..2 * most).contains(&lines), "{lines} lines, {others} mappings");
        let (second, lines) = lines_read(|| client.allocate(100));
        assert!(second.is_ok());
        assert!((1..most).contains(&lines), "{lines} lines, {others} mappings");
        // The buffer's pages are installed: nothing is looked for.
        client.alloc.free_buf(&client.alloc.allocated_buffers()[0]);
        assert_eq!(lines_read(|| client.allocate(100)), (Ok(address), 0));
    }
}

/// A client that has not mapped its buffer, and is called all the time.
#[test]
fn a_client_that_was_searched_in_vain_is_not_searched_again_until_it_calls() {
    let mut child =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat");
    // Once the child has copied something, it maps nothing more.
    let (input, output) = (child.stdin.as_mut(), child.stdout.as_mut());
    input.expect("a pipe").write_all(&[7]).expect("it reads");
    output.expect("a pipe").read_exact(&mut [0]).expect("it writes");
    let client = ReadAsText::new(child.id());
    let (failed, lines) = lines_read(|| client.allocate(1));
    assert_eq!(failed, Err(Errno::ESRCH));
    assert!(lines > 0);
    for _ in 0..10 {
        assert_eq!(lines_read(|| client.allocate(1)), (Err(Errno::ESRCH), 0));
    }
    client.alloc.owner_calls();
    assert_eq!(lines_read(|| client.allocate(1)), (Err(Errno::ESRCH), lines));
    assert_eq!(lines_read(|| client.allocate(1)), (Err(Errno::ESRCH), 0));
    child.kill().expect("it runs");
    child.wait().expect("it has ended");
}

/// A client that was handed a file says itself where it maps it.
#[test]
fn a_client_that_was_handed_its_file_is_not_searched_at_all() {
    let file = create_memfd("fakebinder-test").expect("a buffer file");
    let mm = mm_of(std::process::id(), file.memfd, MappingKind::Memfd);
    assert_eq!(lines_read(|| mm.find_mapping()), (Err(Errno::ESRCH), 0));
}

/// The client is this process.
#[test]
fn a_client_too_many_has_its_maps_open_only_while_they_are_used() {
    let pid = std::process::id() as i32;
    let pidfd = pidfd_of(std::process::id());
    let kept = Arc::new(KeptMaps::at_most(1));
    let new = || {
        let file = create_memfd("fakebinder-test").expect("a buffer file");
        RemoteMm::new(pid, pidfd.clone(), file.memfd, MappingKind::Memfd, &kept).expect("an mm")
    };
    let use_twice = |mm: &RemoteMm| {
        assert!(mm.mmget_not_zero() && mm.mmget_not_zero());
        mm.mmput();
        let maps = mm.users.lock().maps.is_some();
        mm.mmput();
        (maps, mm.users.lock().maps.is_some())
    };
    let (last, too_many) = (new(), new());
    assert_eq!(use_twice(&last), (true, true));
    assert_eq!(use_twice(&last), (true, true));
    assert_eq!(use_twice(&too_many), (true, false));
    assert!(maps_open());
    // The place of the last one is free for the next.
    drop(last);
    assert_eq!(use_twice(&too_many), (true, true));
}
