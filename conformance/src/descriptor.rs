//! File descriptors in transactions.

use super::message::*;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::{Errno, Object, uapi};

group! { "descriptor":
    a_file_arrives_with_a_number_of_the_receivers,
    it_is_close_on_exec,
    the_sender_keeps_its_own,
    it_gets_the_lowest_free_number,
    several_in_one_call,
    the_same_file_twice_gets_two_numbers,
    a_node_must_accept_files,
    a_node_with_the_flag_accepts_files,
    the_flag_of_the_call_is_not_enough,
    a_reply_may_have_files_when_the_call_said_so,
    a_reply_may_have_no_files_otherwise,
    a_closed_number_is_refused,
    a_number_that_never_was_is_refused,
    a_oneway_call_may_have_files,
    freeing_the_buffer_leaves_it_open,
    an_undelivered_file_is_closed_with_its_receiver,
    a_file_of_a_failed_call_is_closed,
    a_delivered_file_outlives_its_sender,
    a_call_fails_when_the_receiver_has_no_number_left,
    a_oneway_call_is_dropped_when_the_receiver_has_no_number_left,
    a_reply_fails_when_the_caller_has_no_number_left,
    a_device_can_be_sent,
}

const FDS: u32 = uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS;

/// Makes a pipe in a child; returns the numbers of its ends.
pub(super) fn pipe(thread: &Thread) -> [i32; 2] {
    let address = thread.put(&[0; 8]);
    thread.syscall(libc::SYS_pipe2, &[address, libc::O_NONBLOCK as u64]).expect("pipe2");
    let bytes = thread.get(address, 8);
    [0, 4].map(|at| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

pub(super) fn close(thread: &Thread, fd: i32) {
    thread.syscall(libc::SYS_close, &[fd as u64]).expect("close");
}

pub(super) fn write_byte(thread: &Thread, fd: i32, byte: u8) -> Result<i64, Errno> {
    let address = thread.put(&[byte]);
    thread.syscall(libc::SYS_write, &[fd as u64, address, 1])
}

/// Reads one byte: EAGAIN when the pipe is empty, `None` at its end.
pub(super) fn read_byte(thread: &Thread, fd: i32) -> Result<Option<u8>, Errno> {
    let address = thread.put(&[0]);
    let count = thread.syscall(libc::SYS_read, &[fd as u64, address, 1])?;
    Ok((count == 1).then(|| thread.get(address, 1)[0]))
}

pub(super) fn is_open(thread: &Thread, fd: i32) -> bool {
    thread.syscall(libc::SYS_fcntl, &[fd as u64, libc::F_GETFD as u64]).is_ok()
}

/// The descriptor's number in the object at this index.
#[track_caller]
pub(super) fn number(got: &Received, index: usize) -> i32 {
    match got.object(index) {
        Object::Fd { fd, .. } => fd as i32,
        other => panic!("expected a descriptor, got {other:?}"),
    }
}

fn a_file_arrives_with_a_number_of_the_receivers(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    // The manager's numbers then differ from the client's.
    let _ = pipe(&manager);
    let [read, write] = pipe(&client);
    client.write(call(0).data(b"data").object(Object::Fd { fd: write as u32, cookie: 99 }));
    let got = manager.receive();
    let fd = number(&got, 0);
    assert_ne!(fd, write);
    assert_eq!(got.object(0), Object::Fd { fd: fd as u32, cookie: 99 });
    write_byte(&manager, fd, 77).expect("write");
    assert_eq!(read_byte(&client, read), Ok(Some(77)));
}

fn it_is_close_on_exec(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, _] = pipe(&client);
    client.write(call(0).fd(read));
    let fd = number(&manager.receive(), 0);
    let flags = manager.syscall(libc::SYS_fcntl, &[fd as u64, libc::F_GETFD as u64]);
    assert_eq!(flags, Ok(i64::from(libc::FD_CLOEXEC)));
}

fn the_sender_keeps_its_own(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, write] = pipe(&client);
    client.write(call(0).fd(write));
    let fd = number(&manager.receive(), 0);
    close(&manager, fd);
    write_byte(&client, write, 1).expect("write");
    assert_eq!(read_byte(&client, read), Ok(Some(1)));
}

fn it_gets_the_lowest_free_number(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [hole, _] = pipe(&manager);
    close(&manager, hole);
    let [read, _] = pipe(&client);
    client.write(call(0).fd(read));
    assert_eq!(number(&manager.receive(), 0), hole);
}

fn several_in_one_call(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let pipes: Vec<_> = (0..3).map(|_| pipe(&client)).collect();
    let mut message = call(0);
    for [_, write] in &pipes {
        message = message.fd(*write);
    }
    client.write(message);
    let got = manager.receive();
    for (index, [read, _]) in pipes.iter().enumerate() {
        write_byte(&manager, number(&got, index), index as u8).expect("write");
        assert_eq!(read_byte(&client, *read), Ok(Some(index as u8)));
    }
}

fn the_same_file_twice_gets_two_numbers(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, _] = pipe(&client);
    client.write(call(0).fd(read).fd(read));
    let got = manager.receive();
    assert_ne!(number(&got, 0), number(&got, 1));
}

fn refused(client: &Thread, message: Msg, errno: i32) {
    client.write(message);
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -errno));
}

fn a_node_must_accept_files(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let [read, _] = pipe(&client);
    refused(&client, call(0).fd(read), libc::EPERM);
    refused(&client, oneway(0).fd(read), libc::EPERM);
    drop(manager);
}

fn a_node_with_the_flag_accepts_files(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let handle = scene.introduce_with(&client, &manager, 1, 2, FDS);
    let other = scene.introduce(&client, &manager, 3, 4);
    let [read, _] = pipe(&manager);
    refused(&manager, call(other).fd(read), libc::EPERM);
    manager.write(oneway(handle).fd(read));
    assert!(is_open(&client, number(&client.receive(), 0)));
}

fn the_flag_of_the_call_is_not_enough(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let [read, _] = pipe(&client);
    refused(&client, call(0).flags(uapi::TF_ACCEPT_FDS).fd(read), libc::EPERM);
    drop(manager);
}

fn a_reply_may_have_files_when_the_call_said_so(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let [read, write] = pipe(&manager);
    client.write(call(0).flags(uapi::TF_ACCEPT_FDS));
    manager.receive();
    manager.write(reply().fd(write));
    let got = client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    write_byte(&client, number(got.transaction(), 0), 5).expect("write");
    assert_eq!(read_byte(&manager, read), Ok(Some(5)));
}

fn a_reply_may_have_no_files_otherwise(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, _] = pipe(&manager);
    client.write(call(0));
    manager.receive();
    manager.write(reply().fd(read));
    client.reads("NOOP TRANSACTION_COMPLETE FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EPERM));
}

fn a_closed_number_is_refused(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, _] = pipe(&client);
    close(&client, read);
    refused(&client, call(0).fd(read), libc::EBADF);
    drop(manager);
}

fn a_number_that_never_was_is_refused(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    for fd in [-1, i32::MAX, 100_000] {
        refused(&client, call(0).fd(fd), libc::EBADF);
    }
    drop(manager);
}

fn a_oneway_call_may_have_files(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, _] = pipe(&client);
    client.write([oneway(0).fd(read).into(), oneway(0).fd(read).into()]);
    for _ in 0..2 {
        let got = manager.receive();
        assert!(is_open(&manager, number(&got, 0)));
        manager.write(free(got.buffer));
    }
}

fn freeing_the_buffer_leaves_it_open(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, _] = pipe(&client);
    client.write(call(0).fd(read));
    let got = manager.receive();
    manager.write(free(got.buffer));
    assert!(is_open(&manager, number(&got, 0)));
}

/// Waits until no process has the other end of a pipe.
fn until_closed(thread: &Thread, read: i32) {
    thread.until("the file to be closed", || read_byte(thread, read) == Ok(None));
}

fn an_undelivered_file_is_closed_with_its_receiver(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, write] = pipe(&client);
    client.write([oneway(0).fd(write).into(), oneway(0).fd(write).into()]);
    close(&client, write);
    assert_eq!(read_byte(&client, read), Err(Errno::EAGAIN));
    manager.kill();
    until_closed(&client, read);
}

fn a_file_of_a_failed_call_is_closed(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, write] = pipe(&client);
    refused(&client, call(0).fd(write).handle(99), libc::EINVAL);
    close(&client, write);
    until_closed(&client, read);
    drop(manager);
}

fn a_delivered_file_outlives_its_sender(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, write] = pipe(&client);
    write_byte(&client, write, 9).expect("write");
    client.write(oneway(0).fd(read));
    scene.bury(&client, &manager);
    let fd = number(&manager.receive(), 0);
    assert_eq!(read_byte(&manager, fd), Ok(Some(9)));
}

/// Uses up all descriptor numbers of a process.
fn fill(thread: &Thread) {
    let free = thread.syscall(libc::SYS_dup, &[0]).expect("dup");
    close(thread, free as i32);
    let mut limit = (free as u64).to_ne_bytes().to_vec();
    limit.extend_from_slice(&(free as u64).to_ne_bytes());
    let address = thread.put(&limit);
    thread
        .syscall(libc::SYS_prlimit64, &[0, libc::RLIMIT_NOFILE as u64, address, 0])
        .expect("prlimit");
    assert_eq!(thread.syscall(libc::SYS_dup, &[0]), Err(Errno::EMFILE));
}

fn a_call_fails_when_the_receiver_has_no_number_left(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    fill(&manager);
    let [read, _] = pipe(&client);
    client.write(call(0).fd(read));
    client.reads("EAGAIN");
    manager.set_max_threads(0);
    manager.reads("EAGAIN");
    client.reads("NOOP TRANSACTION_COMPLETE FAILED_REPLY");
    // The transaction's buffer is free again.
    client.write(call(0));
    assert_eq!(manager.receive().at, 0);
}

fn a_oneway_call_is_dropped_when_the_receiver_has_no_number_left(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    fill(&manager);
    let [read, _] = pipe(&client);
    client.write([oneway(0).fd(read).into(), oneway(0).code(2).into()]);
    client.reads("NOOP TRANSACTION_COMPLETE TRANSACTION_COMPLETE");
    manager.set_max_threads(0);
    assert_eq!(manager.receive().code, 2);
}

fn a_reply_fails_when_the_caller_has_no_number_left(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    fill(&client);
    let [read, _] = pipe(&manager);
    client.write(call(0).flags(uapi::TF_ACCEPT_FDS));
    manager.receive();
    manager.write(reply().fd(read));
    manager.reads("NOOP TRANSACTION_COMPLETE");
    client.reads("NOOP TRANSACTION_COMPLETE FAILED_REPLY");
}

fn a_device_can_be_sent(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    client.write(call(0).fd(client.fd()));
    let fd = number(&manager.receive(), 0);
    manager.write(reply());
    client.read();
    // To the driver, the file still is the sender's process.
    let sent = manager.with_file_of(&client);
    let own = manager.fd();
    sent.adopt(fd);
    assert_eq!(sent.ioctl_words(uapi::BINDER_VERSION, &mut [0]), Ok(0));
    manager.adopt(own);
}
