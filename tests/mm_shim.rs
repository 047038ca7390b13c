//! The page verbs over real memory: a client process that maps its buffer file.

mod support;

use fakebinder::Errno;
use fakebinder::mm_shim::create_memfd;
use fakebinder::shrinker::{Memory, MemoryConfig};
use std::sync::Arc;
use support::{ByProcessVm, Bytes, Client, request, resident};

const PAGE: usize = 4096;
const CLIENT: [&str; 4] = ["--ignored", "--exact", "client_process", "--nocapture"];

#[test]
#[ignore = "what a client process runs"]
fn client_process() {
    support::client_main();
}

fn memory() -> Arc<Memory> {
    Memory::new(MemoryConfig::default())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8 | 1).collect()
}

#[test]
fn what_is_copied_to_a_buffer_is_what_the_client_reads() {
    let memory = memory();
    let mut client = Client::start(&CLIENT, 1 << 20, &memory);
    let bytes = pattern(3 * PAGE + 100);
    let buffer = client.alloc.alloc_new_buf(&request(bytes.len())).expect("room");
    client
        .alloc
        .copy_user_to_buffer(&buffer, 0, &ByProcessVm(bytes.clone()), 0, bytes.len())
        .expect("a copy");
    assert_eq!(client.peek_buffer(&buffer), bytes);
    client.alloc.copy_to_buffer(&buffer, 8, &[1, 2, 3, 4]).expect("a copy");
    assert_eq!(client.peek(buffer.user_data + 8, 4), [1, 2, 3, 4]);
    let mut back = [0; 4];
    client.alloc.copy_from_buffer(&buffer, 8, &mut back).expect("a copy");
    assert_eq!(back, [1, 2, 3, 4]);

    client.alloc.set_clear_on_free(&buffer);
    client.alloc.free_buf(&buffer);
    assert_eq!(client.peek_buffer(&buffer), vec![0; bytes.len()]);
}

/// Installed pages count in the client's and in our memory; zapped ones are gone from both.
#[test]
fn installed_pages_are_in_the_clients_memory_and_ours_and_zapped_ones_in_neither() {
    for userfault in [true, false] {
        let memory = memory();
        let mut client = Client::start_unknown(&CLIENT, 1 << 20, &memory, userfault);
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
}
