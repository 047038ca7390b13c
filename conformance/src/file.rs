//! Opening, mapping, reading, writing and closing a device.

use super::message::*;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::{Errno, uapi};
use libc::{MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE};

group! { "file":
    open_gives_a_close_on_exec_descriptor,
    open_read_only_is_enough,
    read_is_refused,
    write_is_refused,
    the_first_read_of_a_thread_does_not_wait,
    mmap_a_second_time_is_busy,
    mmap_after_munmap_is_busy,
    mmap_writable_is_refused,
    mmap_shared_is_allowed,
    mmap_of_no_bytes_is_refused,
    mmap_by_another_process_is_refused,
    mmap_is_used_up_to_4_mib,
    mmap_of_one_page_holds_one_page,
    mapping_cannot_be_made_writable,
    mapping_is_not_inherited,
    a_page_without_a_buffer_is_not_there,
    call_before_mmap_finds_the_target_dead,
    call_after_munmap_finds_the_target_dead,
    call_after_munmap_of_a_used_page_finds_the_target_dead,
    reply_after_munmap_finds_the_caller_dead,
    two_opens_are_two_processes,
    a_forked_child_is_a_thread_of_its_parents_process,
    closing_a_duplicate_wakes_each_waiting_thread,
    closing_a_duplicate_lets_the_next_read_return,
}

const PRIVATE: i32 = MAP_PRIVATE | MAP_NORESERVE;

fn open_gives_a_close_on_exec_descriptor(scene: &Scene) {
    let process = scene.process();
    let flags = process.syscall(libc::SYS_fcntl, &[process.fd() as u64, libc::F_GETFD as u64]);
    assert_eq!(flags, Ok(i64::from(libc::FD_CLOEXEC)));
}

fn open_read_only_is_enough(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.bare();
    let fd = client.open_with(libc::O_RDONLY | libc::O_NONBLOCK).expect("open");
    assert!(fd >= 0);
    client.adopt(fd);
    client.map(MAPPING);
    client.write(call(0).data(b"read only"));
    assert_eq!(manager.receive().data, b"read only");
}

fn read_is_refused(scene: &Scene) {
    let process = scene.process();
    let memory = process.put(&[0; 8]);
    let got = process.syscall(libc::SYS_read, &[process.fd() as u64, memory, 8]);
    assert_eq!(got, Err(Errno::EINVAL));
}

fn write_is_refused(scene: &Scene) {
    let process = scene.process();
    let memory = process.put(&[0; 8]);
    let got = process.syscall(libc::SYS_write, &[process.fd() as u64, memory, 8]);
    assert_eq!(got, Err(Errno::EINVAL));
}

fn the_first_read_of_a_thread_does_not_wait(scene: &Scene) {
    let process = scene.process_with(2);
    let patient = scene.blocking().process_with(2);
    for thread in process.threads.iter().chain(&patient.threads) {
        thread.reads("NOOP");
    }
    process.reads("EAGAIN");
    process.threads[1].reads("EAGAIN");
}

fn mmap_a_second_time_is_busy(scene: &Scene) {
    let process = scene.process();
    assert_eq!(process.map_with(MAPPING, PROT_READ, PRIVATE), Err(Errno::EBUSY));
}

fn mmap_after_munmap_is_busy(scene: &Scene) {
    let process = scene.process();
    process.unmap();
    assert_eq!(process.map_with(MAPPING, PROT_READ, PRIVATE), Err(Errno::EBUSY));
}

fn mmap_writable_is_refused(scene: &Scene) {
    let process = scene.bare();
    process.open();
    for (prot, flags) in [
        (PROT_READ | PROT_WRITE, MAP_PRIVATE),
        (PROT_READ | PROT_WRITE, MAP_SHARED),
        (PROT_WRITE, MAP_PRIVATE),
    ] {
        assert_eq!(process.map_with(MAPPING, prot, flags), Err(Errno::EPERM));
    }
    process.map(MAPPING);
}

fn mmap_shared_is_allowed(scene: &Scene) {
    let manager = scene.bare();
    manager.open();
    manager.map_with(MAPPING, PROT_READ, MAP_SHARED).expect("mmap");
    manager.become_manager_with(0);
    let client = scene.process();
    client.write(call(0).data(b"shared"));
    assert_eq!(manager.receive().data, b"shared");
}

fn mmap_of_no_bytes_is_refused(scene: &Scene) {
    let process = scene.bare();
    process.open();
    let args = [0, 0, PROT_READ as u64, PRIVATE as u64, process.fd() as u64, 0];
    assert_eq!(process.syscall(libc::SYS_mmap, &args), Err(Errno::EINVAL));
    process.map(MAPPING);
}

fn mmap_by_another_process_is_refused(scene: &Scene) {
    let process = scene.bare_with(1, 1);
    process.open();
    let child = process.fork().with_file_of(&process);
    assert_eq!(child.map_with(MAPPING, PROT_READ, PRIVATE), Err(Errno::EINVAL));
    process.map(MAPPING);
}

fn mmap_is_used_up_to_4_mib(scene: &Scene) {
    let manager = scene.bare();
    manager.open();
    manager.map(8 << 20);
    manager.become_manager_with(0);
    let client = scene.process();
    client.write(call(0).data_at(NOWHERE, (4 << 20) + 8));
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::ENOSPC));
    client.write(call(0).data_at(NOWHERE, 4 << 20));
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EFAULT));
}

fn mmap_of_one_page_holds_one_page(scene: &Scene) {
    let manager = scene.bare();
    manager.open();
    // The kernel rounds lengths up to whole pages.
    manager.map(1);
    manager.become_manager_with(0);
    let client = scene.process();
    client.write(call(0).data(&[1; 4097]));
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::ENOSPC));
    client.write(call(0).data(&[7; 4096]));
    assert_eq!(manager.receive().data, [7; 4096]);
}

fn mapping_cannot_be_made_writable(scene: &Scene) {
    let process = scene.process();
    let args = [process.start(), MAPPING, (PROT_READ | PROT_WRITE) as u64];
    assert_eq!(process.syscall(libc::SYS_mprotect, &args), Err(Errno::EACCES));
    let args = [process.start(), MAPPING, PROT_NONE as u64];
    assert_eq!(process.syscall(libc::SYS_mprotect, &args), Ok(0));
}

fn mapping_is_not_inherited(scene: &Scene) {
    let manager = scene.bare_with(1, 1);
    manager.open();
    manager.map(MAPPING);
    manager.become_manager_with(0);
    let client = scene.process();
    client.write(call(0).data(b"here"));
    let got = manager.receive();
    let child = manager.fork();
    assert_eq!(manager.peek(got.buffer, 4), Ok(b"here".to_vec()));
    assert_eq!(child.peek(got.buffer, 4), Err(Errno::EFAULT));
}

fn a_page_without_a_buffer_is_not_there(scene: &Scene) {
    let manager = scene.manager();
    assert_eq!(manager.peek(manager.start(), 8), Err(Errno::EFAULT));
    let client = scene.process();
    client.write(call(0).data(b"one page"));
    assert_eq!(manager.receive().at, 0);
    assert_eq!(manager.peek(manager.start() + 4096, 8), Err(Errno::EFAULT));
}

fn call_before_mmap_finds_the_target_dead(scene: &Scene) {
    let manager = scene.bare();
    manager.open();
    manager.become_manager_with(0);
    let client = scene.process();
    client.write(call(0));
    client.reads("NOOP DEAD_REPLY");
    assert_eq!(client.extended_error(), ("DEAD_REPLY", -libc::ESRCH));
    manager.map(MAPPING);
    client.write(call(0).code(1));
    assert_eq!(manager.receive().code, 1);
}

fn call_after_munmap_finds_the_target_dead(scene: &Scene) {
    let manager = scene.manager();
    manager.unmap();
    let client = scene.process();
    client.write(call(0));
    client.reads("NOOP DEAD_REPLY");
    assert_eq!(client.extended_error(), ("DEAD_REPLY", -libc::ESRCH));
}

fn call_after_munmap_of_a_used_page_finds_the_target_dead(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(oneway(0));
    client.reads("NOOP TRANSACTION_COMPLETE");
    manager.receive();
    manager.unmap();
    client.write(call(0));
    client.reads("NOOP DEAD_REPLY");
    assert_eq!(client.extended_error(), ("DEAD_REPLY", -libc::ESRCH));
}

fn reply_after_munmap_finds_the_caller_dead(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    client.unmap();
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    client.reads("NOOP TRANSACTION_COMPLETE DEAD_REPLY");
    assert_eq!(client.extended_error(), ("DEAD_REPLY", -libc::ESRCH));
}

fn two_opens_are_two_processes(scene: &Scene) {
    let manager = scene.manager();
    let first = scene.process();
    let second = first.open_again();
    second.map(MAPPING);
    let one = scene.introduce(&first, &manager, 5, 6);
    let two = scene.introduce(&second, &manager, 5, 7);
    assert_ne!(one, two);
    manager.write(oneway(two).code(2));
    manager.reads("NOOP TRANSACTION_COMPLETE");
    first.reads("EAGAIN");
    assert_eq!(second.receive().cookie, 7);
}

fn a_forked_child_is_a_thread_of_its_parents_process(scene: &Scene) {
    let manager = scene.manager();
    let parent = scene.bare_with(1, 1);
    parent.open();
    parent.map(MAPPING);
    let child = parent.fork().with_file_of(&parent);
    child.write(call(0).code(3).data(b"from the child"));
    let got = manager.receive();
    assert_eq!(got.data, b"from the child");
    assert_eq!(got.sender_pid, parent.pid());
    manager.write(reply().data(b"to the child"));
    parent.reads("NOOP");
    parent.reads("EAGAIN");
    // The reply lies in the mapping, which the child does not have.
    let (io, bytes) = child.read_bytes();
    assert_eq!(io.result, Ok(()));
    assert_eq!(bytes.len(), 4 + 4 + 4 + 64);
    assert_eq!(bytes[8..12], uapi::BR_REPLY.to_ne_bytes());
}

fn closing_a_duplicate_wakes_each_waiting_thread(scene: &Scene) {
    let process = scene.blocking().process_with(3);
    for thread in &process.threads[1..] {
        thread.reads("NOOP");
        thread.begin_write_read(enter_looper(), READ_SIZE);
        thread.asleep();
    }
    let duplicate = process.syscall(libc::SYS_dup, &[process.fd() as u64]).expect("dup");
    process.syscall(libc::SYS_close, &[duplicate as u64]).expect("close");
    for thread in &process.threads[1..] {
        assert_eq!(thread.finish_write_read().1.text, "NOOP");
        thread.begin_write_read(Batch::default(), READ_SIZE);
        thread.asleep();
    }
}

fn closing_a_duplicate_lets_the_next_read_return(scene: &Scene) {
    let process = scene.process();
    process.reads("NOOP");
    process.reads("EAGAIN");
    let duplicate = process.syscall(libc::SYS_dup, &[process.fd() as u64]).expect("dup");
    process.syscall(libc::SYS_close, &[duplicate as u64]).expect("close");
    process.until("the flush", || process.read().text == "NOOP");
    process.reads("EAGAIN");
}
