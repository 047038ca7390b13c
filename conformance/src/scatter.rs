//! Scatter-gather: buffers beside the data, pointers between them, arrays of descriptors.

use super::descriptor::{close, is_open, pipe, read_byte, write_byte};
use super::message::*;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::{Errno, Object, uapi};

group! { "scatter":
    a_buffer_arrives_beside_the_data,
    an_empty_buffer_is_fine,
    several_buffers_lie_one_behind_the_other,
    room_may_be_left,
    a_buffer_larger_than_the_room_is_refused,
    buffers_larger_than_the_room_are_refused,
    a_room_out_of_line_is_refused,
    a_room_that_overflows_is_refused,
    a_room_without_buffers_is_fine,
    a_buffer_without_a_room_is_refused,
    a_buffer_at_a_bad_address_is_refused,
    a_pointer_in_the_parent_is_set,
    two_pointers_in_one_parent,
    a_grandchild,
    descending_pointers_are_refused,
    overlapping_pointers_are_refused,
    a_parent_that_is_no_buffer_is_refused,
    a_parent_that_comes_later_is_refused,
    a_parent_that_is_not_there_is_refused,
    a_buffer_that_is_its_own_parent_is_refused,
    a_pointer_behind_the_parent_is_refused,
    a_parent_too_small_for_a_pointer_is_refused,
    a_parent_that_was_left_is_refused,
    a_parent_at_offset_0_is_refused,
    a_reply_may_have_buffers,
    a_oneway_call_may_have_buffers,
    an_array_of_files_arrives,
    freeing_closes_the_array,
    an_empty_array_is_fine,
    an_array_larger_than_its_parent_is_refused,
    an_array_of_a_huge_number_is_refused,
    an_array_out_of_line_is_refused,
    an_array_without_a_parent_is_refused,
    an_array_of_closed_numbers_is_refused,
    an_array_must_be_accepted,
    an_array_in_a_reply,
    an_undelivered_array_is_closed_with_its_receiver,
}

const FDS: u32 = uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS;

/// The address and the bytes of the buffer at this index.
#[track_caller]
fn buffer(thread: &Thread, got: &Received, index: usize) -> (u64, Vec<u8>) {
    match got.object(index) {
        Object::Buffer { buffer, length, .. } => {
            (buffer, thread.peek(buffer, length as usize).expect("a buffer"))
        }
        other => panic!("expected a buffer, got {other:?}"),
    }
}

fn refused(scene: &Scene, message: Msg, errno: i32) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    client.write(message);
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -errno));
    client.write(call(0).data(b"next"));
    let got = manager.receive();
    assert_eq!((got.data.as_slice(), got.at), (&b"next"[..], 0));
}

/// A message whose objects do not begin at offset 0: see [`a_parent_at_offset_0_is_refused`].
fn begin() -> Msg {
    call(0).data(b"data")
}

fn a_buffer_arrives_beside_the_data(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(begin().buffer(b"thirteen byte"));
    let got = manager.receive();
    let (address, bytes) = buffer(&manager, &got, 0);
    assert_eq!((address - got.buffer, bytes.as_slice()), (48 + 8, &b"thirteen byte"[..]));
    let flags = match got.object(0) {
        Object::Buffer { flags, parent, parent_offset, .. } => (flags, parent, parent_offset),
        other => panic!("{other:?}"),
    };
    assert_eq!(flags, (0, 0, 0));
}

fn an_empty_buffer_is_fine(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(begin().buffer(b""));
    let got = manager.receive();
    assert_eq!(buffer(&manager, &got, 0).1, b"");
}

fn several_buffers_lie_one_behind_the_other(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(begin().buffer(&[1; 9]).buffer(&[2; 16]).buffer(&[3; 1]));
    let got = manager.receive();
    let first = buffer(&manager, &got, 0);
    let places: Vec<_> = (0..3)
        .map(|index| buffer(&manager, &got, index))
        .map(|(address, bytes)| (address - first.0, bytes.len(), bytes[0]))
        .collect();
    assert_eq!(places, [(0, 9, 1), (16, 16, 2), (32, 1, 3)]);
}

fn room_may_be_left(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(begin().buffer(&[1; 9]).buffers_size(64).flags(uapi::TF_ONE_WAY));
    let got = manager.receive();
    assert_eq!(buffer(&manager, &got, 0).1, [1; 9]);
    client.write(call(0));
    assert_eq!(manager.receive().at, 48 + 8 + 64);
}

fn a_buffer_larger_than_the_room_is_refused(scene: &Scene) {
    refused(scene, begin().buffer(&[1; 9]).buffers_size(8), libc::EINVAL);
}

fn buffers_larger_than_the_room_are_refused(scene: &Scene) {
    refused(scene, begin().buffer(&[1; 9]).buffer(&[2; 8]).buffers_size(16), libc::EINVAL);
}

fn a_room_out_of_line_is_refused(scene: &Scene) {
    refused(scene, begin().buffer(&[1; 9]).buffers_size(12), libc::EINVAL);
}

fn a_room_that_overflows_is_refused(scene: &Scene) {
    refused(scene, begin().buffer(&[1; 9]).buffers_size(u64::MAX - 7), libc::EINVAL);
}

fn a_room_without_buffers_is_fine(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(begin().buffers_size(4096));
    assert_eq!(manager.receive().data, b"data");
}

fn a_buffer_without_a_room_is_refused(scene: &Scene) {
    let mut message = begin().buffer(&[1; 9]);
    message.buffers_size = None;
    refused(scene, message, libc::EINVAL);
}

fn a_buffer_at_a_bad_address_is_refused(scene: &Scene) {
    for address in [0, NOWHERE, KERNEL] {
        let object =
            Object::Buffer { buffer: address, length: 8, flags: 0, parent: 0, parent_offset: 0 };
        // EINVAL, though a bad address of the data itself is EFAULT.
        refused(scene, begin().object(object).buffers_size(8), libc::EINVAL);
    }
}

fn pointer(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

fn a_pointer_in_the_parent_is_set(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(begin().buffer(&[0xaa; 24]).child(b"child", 0, 8));
    let got = manager.receive();
    let (child, bytes) = buffer(&manager, &got, 1);
    assert_eq!(bytes, b"child");
    let (_, parent) = buffer(&manager, &got, 0);
    assert_eq!(
        (pointer(&parent, 8), &parent[..8], &parent[16..]),
        (child, &[0xaa; 8][..], &[0xaa; 8][..])
    );
}

fn two_pointers_in_one_parent(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(begin().buffer(&[0; 24]).child(b"one", 0, 0).child(b"two", 0, 16));
    let got = manager.receive();
    let (_, parent) = buffer(&manager, &got, 0);
    assert_eq!(pointer(&parent, 0), buffer(&manager, &got, 1).0);
    assert_eq!(pointer(&parent, 16), buffer(&manager, &got, 2).0);
}

fn a_grandchild(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(
        begin().buffer(&[0; 24]).child(&[0; 16], 0, 0).child(b"grand", 1, 8).child(b"kid", 0, 8),
    );
    let got = manager.receive();
    let (_, child) = buffer(&manager, &got, 1);
    assert_eq!(pointer(&child, 8), buffer(&manager, &got, 2).0);
    let (_, parent) = buffer(&manager, &got, 0);
    assert_eq!(pointer(&parent, 8), buffer(&manager, &got, 3).0);
}

fn descending_pointers_are_refused(scene: &Scene) {
    let message = begin().buffer(&[0; 24]).child(b"one", 0, 16).child(b"two", 0, 0);
    refused(scene, message, libc::EINVAL);
}

fn overlapping_pointers_are_refused(scene: &Scene) {
    let message = begin().buffer(&[0; 24]).child(b"one", 0, 0).child(b"two", 0, 4);
    refused(scene, message, libc::EINVAL);
}

fn a_parent_that_is_no_buffer_is_refused(scene: &Scene) {
    refused(scene, begin().binder(1, 1).buffer(&[0; 24]).child(b"child", 0, 0), libc::EINVAL);
}

fn a_parent_that_comes_later_is_refused(scene: &Scene) {
    refused(scene, begin().child(b"child", 1, 0).buffer(&[0; 24]), libc::EINVAL);
}

fn a_parent_that_is_not_there_is_refused(scene: &Scene) {
    for parent in [2, 99, u64::MAX] {
        refused(scene, begin().buffer(&[0; 24]).child(b"child", parent, 0), libc::EINVAL);
    }
}

fn a_buffer_that_is_its_own_parent_is_refused(scene: &Scene) {
    refused(scene, begin().child(&[0; 24], 0, 0), libc::EINVAL);
}

fn a_pointer_behind_the_parent_is_refused(scene: &Scene) {
    for offset in [17, 24, u64::MAX - 3] {
        refused(scene, begin().buffer(&[0; 24]).child(b"child", 0, offset), libc::EINVAL);
    }
}

fn a_parent_too_small_for_a_pointer_is_refused(scene: &Scene) {
    refused(scene, begin().buffer(&[0; 7]).child(b"child", 0, 0), libc::EINVAL);
}

fn a_parent_that_was_left_is_refused(scene: &Scene) {
    let message =
        begin().buffer(&[0; 24]).child(&[0; 24], 0, 0).child(b"two", 0, 8).child(b"x", 1, 0);
    refused(scene, message, libc::EINVAL);
}

fn a_parent_at_offset_0_is_refused(scene: &Scene) {
    // The driver takes offset 0 of the last buffer to mean that there was none.
    refused(scene, call(0).buffer(&[0; 24]).child(b"child", 0, 0), libc::EINVAL);
}

fn a_reply_may_have_buffers(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0));
    manager.receive();
    manager.write(reply().data(b"data").buffer(&[7; 16]).child(b"child", 0, 0));
    let got = client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    let (_, parent) = buffer(&client, got.transaction(), 0);
    let (child, bytes) = buffer(&client, got.transaction(), 1);
    assert_eq!((pointer(&parent, 0), bytes.as_slice()), (child, &b"child"[..]));
}

fn a_oneway_call_may_have_buffers(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(oneway(0).data(b"data").buffer(b"oneway"));
    let got = manager.receive();
    assert_eq!(buffer(&manager, &got, 0).1, b"oneway");
}

fn array(fds: &[i32]) -> Vec<u8> {
    fds.iter().flat_map(|fd| fd.to_ne_bytes()).collect()
}

fn numbers(bytes: &[u8]) -> Vec<i32> {
    bytes
        .chunks_exact(4)
        .map(|four| i32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
        .collect()
}

fn an_array_of_files_arrives(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let (one, two) = (pipe(&client), pipe(&client));
    client.write(begin().buffer(&array(&[-5, one[1], two[1], -6])).fd_array(2, 0, 4));
    let got = manager.receive();
    assert_eq!(got.object(1), Object::FdArray { num_fds: 2, parent: 0, parent_offset: 4 });
    let fds = numbers(&buffer(&manager, &got, 0).1);
    assert_eq!((fds[0], fds[3]), (-5, -6));
    write_byte(&manager, fds[1], 1).expect("write");
    write_byte(&manager, fds[2], 2).expect("write");
    assert_eq!(read_byte(&client, one[0]), Ok(Some(1)));
    assert_eq!(read_byte(&client, two[0]), Ok(Some(2)));
}

fn freeing_closes_the_array(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, write] = pipe(&client);
    client.write(begin().buffer(&array(&[write, read])).fd_array(2, 0, 0));
    let got = manager.receive();
    let fds = numbers(&buffer(&manager, &got, 0).1);
    assert!(fds.iter().all(|&fd| is_open(&manager, fd)));
    manager.write(free(got.buffer));
    assert!(!fds.iter().any(|&fd| is_open(&manager, fd)));
}

fn an_empty_array_is_fine(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    client.write(begin().buffer(&[0; 8]).fd_array(0, 0, 0));
    manager.receive();
}

fn an_array_larger_than_its_parent_is_refused(scene: &Scene) {
    refused(scene, begin().buffer(&[0; 8]).fd_array(3, 0, 0), libc::EINVAL);
    refused(scene, begin().buffer(&[0; 8]).fd_array(2, 0, 4), libc::EINVAL);
}

fn an_array_of_a_huge_number_is_refused(scene: &Scene) {
    for count in [u64::MAX, u64::MAX / 4, 1 << 62, 1 << 40] {
        refused(scene, begin().buffer(&[0; 8]).fd_array(count, 0, 0), libc::EINVAL);
    }
}

fn an_array_out_of_line_is_refused(scene: &Scene) {
    refused(scene, begin().buffer(&[0; 16]).fd_array(1, 0, 2), libc::EINVAL);
}

fn an_array_without_a_parent_is_refused(scene: &Scene) {
    refused(scene, begin().fd_array(1, 0, 0), libc::EINVAL);
    refused(scene, begin().binder(1, 1).fd_array(1, 0, 0), libc::EINVAL);
    refused(scene, begin().buffer(&[0; 8]).fd_array(1, 1, 0), libc::EINVAL);
}

fn an_array_of_closed_numbers_is_refused(scene: &Scene) {
    refused(scene, begin().buffer(&array(&[0, 777])).fd_array(2, 0, 0), libc::EBADF);
}

fn an_array_must_be_accepted(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(begin().buffer(&array(&[0])).fd_array(1, 0, 0));
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EPERM));
    drop(manager);
}

fn an_array_in_a_reply(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let [read, write] = pipe(&manager);
    client.write(call(0).flags(uapi::TF_ACCEPT_FDS));
    manager.receive();
    manager.write(reply().data(b"data").buffer(&array(&[write])).fd_array(1, 0, 0));
    let got = client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    let fds = numbers(&buffer(&client, got.transaction(), 0).1);
    write_byte(&client, fds[0], 3).expect("write");
    assert_eq!(read_byte(&manager, read), Ok(Some(3)));
    client.write(free(got.transaction().buffer));
    assert!(!is_open(&client, fds[0]));
}

fn an_undelivered_array_is_closed_with_its_receiver(scene: &Scene) {
    let (manager, client) = (scene.manager_with(1, FDS), scene.process());
    let [read, write] = pipe(&client);
    client.write(begin().buffer(&array(&[write])).fd_array(1, 0, 0).flags(uapi::TF_ONE_WAY));
    close(&client, write);
    assert_eq!(read_byte(&client, read), Err(Errno::EAGAIN));
    manager.kill();
    client.until("the file to be closed", || read_byte(&client, read) == Ok(None));
}
