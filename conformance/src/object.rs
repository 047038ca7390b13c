//! Objects and offsets of a transaction: what is accepted at all.

use super::message::*;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::{Object, uapi};

group! { "object":
    bytes_around_objects_arrive_as_they_are,
    offsets_arrive_as_they_are,
    an_offset_out_of_line_is_refused,
    an_offset_behind_the_data_is_refused,
    an_offset_far_behind_the_data_is_refused,
    an_object_that_ends_behind_the_data_is_refused,
    an_object_without_a_whole_header_is_refused,
    descending_offsets_are_refused,
    overlapping_objects_are_refused,
    the_same_offset_twice_is_refused,
    touching_objects_are_accepted,
    an_object_of_no_type_is_refused,
    an_object_of_an_unknown_type_is_refused,
    offsets_of_odd_length_are_refused,
    offsets_at_a_bad_address_are_refused,
    data_at_a_bad_address_is_refused,
    data_across_the_edge_of_memory_is_refused,
    an_object_across_the_edge_of_memory_is_refused,
    data_in_the_kernel_is_refused,
    no_data_at_a_bad_address_is_fine,
    data_that_overflows_is_refused,
    data_larger_than_the_space_is_refused,
    offsets_larger_than_the_space_are_refused,
    data_needs_no_alignment,
    a_failed_call_leaves_no_handle,
    a_failed_call_leaves_no_node,
    a_failed_call_leaves_no_buffer,
    a_cookie_must_not_change,
    flags_travel_with_a_node,
    a_binder_at_0_is_a_node_too,
    many_objects_in_one_call,
}

fn refused(scene: &Scene, message: Msg, errno: i32) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(acquire(0));
    client.write(message.clone());
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -errno));
    manager.reads("EAGAIN");
    // Refused as a one-way call, too.
    client.write(message.flags(uapi::TF_ONE_WAY));
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -errno));
    // The device goes on working.
    client.write(call(0).data(b"next"));
    let got = manager.receive();
    assert_eq!((got.data.as_slice(), got.at), (&b"next"[..], 0));
}

fn bytes_around_objects_arrive_as_they_are(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).data(b"head").binder(1, 1).data(b"midd").binder(2, 2).data(b"tail!"));
    let got = manager.receive();
    assert_eq!(got.data.len(), 4 + 24 + 4 + 24 + 5);
    assert_eq!(
        (&got.data[..4], &got.data[28..32], &got.data[56..]),
        (&b"head"[..], &b"midd"[..], &b"tail!"[..])
    );
}

fn offsets_arrive_as_they_are(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).data(b"abcde").binder(1, 1).binder(2, 2).data(b"x"));
    let got = manager.receive();
    assert_eq!(got.offsets, [8, 32]);
    assert_eq!(got.data_size, 57);
    assert_eq!(got.transaction.offsets, got.buffer + 64);
}

fn an_offset_out_of_line_is_refused(scene: &Scene) {
    let mut message = call(0).data(&[0; 2]);
    message.data.extend(call(0).binder(1, 1).data);
    refused(scene, message.offset(2), libc::EINVAL);
}

fn an_offset_behind_the_data_is_refused(scene: &Scene) {
    refused(scene, call(0).data(&[0; 24]).offset(24), libc::EINVAL);
}

fn an_offset_far_behind_the_data_is_refused(scene: &Scene) {
    refused(scene, call(0).data(&[0; 24]).offset(28), libc::EFAULT);
}

fn an_object_that_ends_behind_the_data_is_refused(scene: &Scene) {
    let mut message = call(0).binder(1, 1);
    message.data.pop();
    refused(scene, message, libc::EINVAL);
}

fn an_object_without_a_whole_header_is_refused(scene: &Scene) {
    refused(scene, call(0).data(&[0x85, 0x2a, 0x62]).offset(0), libc::EINVAL);
}

fn descending_offsets_are_refused(scene: &Scene) {
    let mut message = call(0).binder(1, 1).binder(2, 2);
    message.offsets.reverse();
    refused(scene, message, libc::EFAULT);
}

fn overlapping_objects_are_refused(scene: &Scene) {
    refused(scene, call(0).binder(1, 1).data(&[0; 24]).offset(20), libc::EFAULT);
}

fn the_same_offset_twice_is_refused(scene: &Scene) {
    refused(scene, call(0).binder(1, 1).offset(0), libc::EFAULT);
}

fn touching_objects_are_accepted(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).binder(1, 1).binder(2, 2).binder(3, 3));
    let got = manager.receive();
    assert_eq!([got.handle(0), got.handle(1), got.handle(2)], [1, 2, 3]);
}

fn an_object_of_no_type_is_refused(scene: &Scene) {
    refused(scene, call(0).data(&[0; 40]).offset(0), libc::EINVAL);
}

fn an_object_of_an_unknown_type_is_refused(scene: &Scene) {
    let mut message = call(0).binder(1, 1);
    message.data[3] ^= 1;
    refused(scene, message, libc::EINVAL);
}

fn offsets_of_odd_length_are_refused(scene: &Scene) {
    let mut message = call(0).binder(1, 1);
    message.offsets_size = Some(4);
    refused(scene, message, libc::EINVAL);
}

fn offsets_at_a_bad_address_are_refused(scene: &Scene) {
    refused(scene, call(0).data(&[0; 24]).offsets_at(NOWHERE, 8), libc::EFAULT);
}

fn data_at_a_bad_address_is_refused(scene: &Scene) {
    refused(scene, call(0).data_at(NOWHERE, 8), libc::EFAULT);
}

fn data_across_the_edge_of_memory_is_refused(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let address = client.put_at_edge(&[1; 16]);
    client.write(call(0).data_at(address, 17));
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EFAULT));
    client.write(call(0).data_at(address, 16));
    assert_eq!(manager.receive().data, [1; 16]);
}

fn an_object_across_the_edge_of_memory_is_refused(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let object = call(0).binder(1, 1).data;
    let address = client.put_at_edge(&object[..20]);
    client.write(call(0).offset(0).data_at(address, 24));
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
    manager.reads("EAGAIN");
}

fn data_in_the_kernel_is_refused(scene: &Scene) {
    refused(scene, call(0).data_at(KERNEL, 8), libc::EFAULT);
}

fn no_data_at_a_bad_address_is_fine(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).data_at(NOWHERE, 0).offsets_at(NOWHERE, 0));
    manager.receive();
}

fn data_that_overflows_is_refused(scene: &Scene) {
    refused(scene, call(0).data_at(NOWHERE, u64::MAX - 6), libc::EINVAL);
}

fn data_larger_than_the_space_is_refused(scene: &Scene) {
    refused(scene, call(0).data_at(NOWHERE, u64::MAX / 2), libc::ENOSPC);
}

fn offsets_larger_than_the_space_are_refused(scene: &Scene) {
    refused(scene, call(0).offsets_at(NOWHERE, MAPPING + 8), libc::ENOSPC);
}

fn data_needs_no_alignment(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let object = call(0).binder(1, 1).data;
    let mut moved = vec![0; 3];
    moved.extend_from_slice(&object);
    moved.push(0);
    let address = client.put_at_edge(&moved) + 3;
    assert_ne!(address % 4, 0);
    client.write(call(0).offset(0).data_at(address, 24));
    assert_eq!(manager.receive().handle(0), 1);
}

fn a_failed_call_leaves_no_handle(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).binder(1, 1).binder(2, 2).handle(99));
    client.read();
    client.write(call(0).binder(3, 3));
    // The first handle is free again.
    assert_eq!(manager.receive().handle(0), 1);
}

fn a_failed_call_leaves_no_node(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).binder(1, 1).handle(99));
    client.reads("NOOP FAILED_REPLY");
    client.reads("EAGAIN");
    // The node is gone: a new one of the same identity may have another cookie.
    client.write(call(0).binder(1, 7));
    manager.receive();
}

fn a_failed_call_leaves_no_buffer(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    for _ in 0..3 {
        client.write(call(0).data(&vec![0; MAPPING as usize - 64]).handle(99));
        client.reads("NOOP FAILED_REPLY");
        assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
    }
    client.write(call(0));
    assert_eq!(manager.receive().at, 0);
}

fn a_cookie_must_not_change(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    scene.introduce(&client, &manager, 1, 2);
    client.write(call(0).binder(1, 3));
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
    client.write(call(0).binder(1, 2));
    manager.receive();
}

fn flags_travel_with_a_node(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let flags = uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS | 0x4000_0013;
    client.write(call(0).object(Object::Binder { ptr: 1, cookie: 2, flags }));
    let got = manager.receive();
    assert_eq!(got.object(0), Object::Handle { handle: 1, cookie: 0, flags });
}

fn a_binder_at_0_is_a_node_too(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let handle = scene.introduce(&client, &manager, 0, 0);
    manager.write(oneway(handle));
    let got = client.receive();
    assert_eq!((got.target, got.cookie), (0, 0));
}

fn many_objects_in_one_call(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let mut message = call(0);
    for ptr in 1..=200 {
        message = message.binder(ptr, ptr * 2);
    }
    client.write(message);
    let got = manager.receive();
    for index in 0..200 {
        assert_eq!(got.handle(index), index as u32 + 1);
    }
    manager.write([free(got.buffer), reply().into()]);
    let mut told = 0;
    let mut done = false;
    while !done {
        let reads = client.read_soon();
        told += reads.text.matches("ACQUIRE(").count();
        done = reads.text.ends_with("REPLY");
    }
    // The handles were gone before the first references to the nodes were told.
    assert_eq!(told, 0);
}
