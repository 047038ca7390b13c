//! Scatter-gather: buffers outside of the data, and the pointers between them.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{BufferObject, Object};
use fakebinder::protocol::record::TransactionData;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::BINDER_BUFFER_FLAG_HAS_PARENT;
use fakebinder_sim::{Sim, SimThread};

/// A buffer without a parent.
fn buffer(sim: &Sim, bytes: &[u8]) -> Object {
    Object::Buffer(BufferObject {
        buffer: sim.arena.push(bytes),
        length: bytes.len() as u64,
        ..Default::default()
    })
}

/// A buffer whose pointer lies in that of an earlier object.
fn child(sim: &Sim, bytes: &[u8], parent: u64, parent_offset: u64) -> Object {
    Object::Buffer(BufferObject {
        flags: BINDER_BUFFER_FLAG_HAS_PARENT,
        buffer: sim.arena.push(bytes),
        length: bytes.len() as u64,
        parent,
        parent_offset,
    })
}

/// Data before the objects, for the first of them may not lie at offset 0 if it is a parent.
const TOKEN: &[u8] = b"iface:::";

fn message(sim: &Sim, objects: &[Object]) -> TransactionData {
    one_way(sim.message(0, 1, TOKEN, objects))
}

#[track_caller]
fn refused(thread: SimThread<'_>, objects: &[Object], extra: u64) -> (u32, i32) {
    let message = message(thread.sim, objects);
    thread.write(&[Command::TransactionSg(message, extra)]);
    assert_eq!(thread.drain(), [Return::FailedReply]);
    error(thread)
}

/// The buffers that came, as the receiver sees them.
fn buffers(sim: &Sim, data: &TransactionData) -> Vec<(BufferObject, Vec<u8>)> {
    let objects = sim.objects(data).into_iter();
    objects
        .filter_map(|object| match object {
            Object::Buffer(buffer) => {
                Some((buffer, sim.peek(buffer.buffer, buffer.length as usize)))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn scatter_gather_buffers_arrive_behind_the_offsets() {
    let Pair { world, manager, client } = pair();
    let objects = [buffer(&client, b"first"), buffer(&client, b"second one")];
    client.main().write(&[Command::TransactionSg(message(&client, &objects), 24)]);
    let received = take(manager.main());
    let got = buffers(&manager, &received);
    assert_eq!((&got[0].1[..], &got[1].1[..]), (&b"first"[..], &b"second one"[..]));
    assert_eq!({ got[0].0.buffer }, received.offsets + 16);
    assert_eq!({ got[1].0.buffer }, got[0].0.buffer + 8);
    end(&world, [client, manager]);
}

#[test]
fn a_pointer_in_a_parent_is_fixed_up() {
    let Pair { world, manager, client } = pair();
    let objects = [buffer(&client, b"01234567PPPPPPPPtail"), child(&client, b"child", 0, 8)];
    client.main().write(&[Command::TransactionSg(message(&client, &objects), 32)]);
    let received = take(manager.main());
    let got = buffers(&manager, &received);
    let pointer = got[1].0.buffer.to_ne_bytes();
    assert_eq!(got[0].1, [&b"01234567"[..], &pointer, b"tail"].concat());
    assert_eq!(got[1].1, b"child");
    end(&world, [client, manager]);
}

/// A struct with three pointers, one of them to a struct with a pointer: A (B, C (D), E).
#[test]
fn pointers_of_a_tree_are_fixed_up_on_every_level() {
    let Pair { world, manager, client } = pair();
    let objects = [
        buffer(&client, &[0; 40]),
        child(&client, b"B", 0, 0),
        child(&client, &[0; 16], 0, 16),
        child(&client, b"D", 2, 8),
        child(&client, b"E", 0, 32),
    ];
    client.main().write(&[Command::TransactionSg(message(&client, &objects), 80)]);
    let received = take(manager.main());
    let got = buffers(&manager, &received);
    let pointer = |bytes: &[u8], at: usize| u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
    for (parent, at, pointee) in [(0, 0, 1), (0, 16, 2), (2, 8, 3), (0, 32, 4)] {
        assert_eq!(pointer(&got[parent].1, at), { got[pointee].0.buffer }, "to {pointee}");
    }
    assert_eq!((pointer(&got[0].1, 8), pointer(&got[0].1, 24)), (0, 0));
    end(&world, [client, manager]);
}

#[test]
fn a_reply_may_carry_scatter_gather_buffers() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    let data = manager.message(0, 0, TOKEN, &[buffer(&manager, b"answer")]);
    manager.main().write(&[Command::ReplySg(data, 8)]);
    let answered = reply(&calling);
    assert_eq!(buffers(&client, &answered)[0].1, b"answer");
    end(&world, [client, manager]);
}

#[test]
fn scatter_gather_sizes_that_are_no_multiple_of_8_are_einval() {
    let Pair { world, manager, client } = pair();
    for extra in [1, 4, 12] {
        let error = refused(client.main(), &[buffer(&client, b"x")], extra);
        assert_eq!(error, failed(Errno::EINVAL));
    }
    end(&world, [client, manager]);
}

#[test]
fn a_buffer_larger_than_what_was_asked_for_is_einval() {
    let Pair { world, manager, client } = pair();
    assert_eq!(refused(client.main(), &[buffer(&client, &[0; 9])], 8), failed(Errno::EINVAL));
    let two = [buffer(&client, b"1"), buffer(&client, b"2")];
    assert_eq!(refused(client.main(), &two, 8), failed(Errno::EINVAL));
    let huge = Object::Buffer(BufferObject { length: u64::MAX, ..Default::default() });
    assert_eq!(refused(client.main(), &[huge], 64), failed(Errno::EINVAL));
    // Without the scatter-gather form of the command there is no room at all.
    client.main().write(&[Command::Transaction(message(&client, &[buffer(&client, b"1")]))]);
    assert_eq!(client.main().drain(), [Return::FailedReply]);
    end(&world, [client, manager]);
}

#[test]
fn an_empty_buffer_needs_no_room() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Transaction(message(&client, &[buffer(&client, b"")]))]);
    assert_eq!(client.main().drain(), [Return::TransactionComplete]);
    end(&world, [client, manager]);
}

/// Not EFAULT, as for the data: the driver takes the bytes that were not copied for an error.
#[test]
fn a_buffer_outside_of_memory_is_einval() {
    let Pair { world, manager, client } = pair();
    let bad = Object::Buffer(BufferObject { buffer: 16, length: 8, ..Default::default() });
    assert_eq!(refused(client.main(), &[bad], 8), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

#[test]
fn a_parent_must_come_before_its_child() {
    let Pair { world, manager, client } = pair();
    for parent in [1, 2, u64::MAX] {
        let objects = [buffer(&client, &[0; 16]), child(&client, b"c", parent, 0)];
        assert_eq!(refused(client.main(), &objects, 64), failed(Errno::EINVAL), "{parent}");
    }
    end(&world, [client, manager]);
}

#[test]
fn a_parent_must_be_a_buffer() {
    let Pair { world, manager, client } = pair();
    let objects = [binder(0x10), buffer(&client, &[0; 16]), child(&client, b"c", 0, 0)];
    assert_eq!(refused(client.main(), &objects, 64), failed(Errno::EINVAL));
    assert_eq!(world.stats().nodes, 1);
    end(&world, [client, manager]);
}

#[test]
fn a_pointer_must_lie_within_its_parent() {
    let Pair { world, manager, client } = pair();
    for (length, offset) in [(7, 0), (16, 9), (16, u64::MAX - 3)] {
        let objects = [buffer(&client, &vec![0; length]), child(&client, b"c", 0, offset)];
        assert_eq!(refused(client.main(), &objects, 64), failed(Errno::EINVAL), "{offset}");
    }
    end(&world, [client, manager]);
}

#[test]
fn a_pointer_must_be_aligned_to_4_bytes() {
    let Pair { world, manager, client } = pair();
    let objects = [buffer(&client, &[0; 16]), child(&client, b"c", 0, 2)];
    assert_eq!(refused(client.main(), &objects, 64), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

/// Pointers within a parent go upwards and do not overlap.
#[test]
fn pointers_into_a_parent_must_ascend() {
    let Pair { world, manager, client } = pair();
    for (first, second) in [(16, 0), (8, 8), (8, 12)] {
        let objects = [
            buffer(&client, &[0; 32]),
            child(&client, b"1", 0, first),
            child(&client, b"2", 0, second),
        ];
        assert_eq!(refused(client.main(), &objects, 64), failed(Errno::EINVAL));
    }
    end(&world, [client, manager]);
}

/// Only the last buffer, and those that it lies in.
#[test]
fn a_pointer_into_a_buffer_that_was_left_is_einval() {
    let Pair { world, manager, client } = pair();
    let objects = [
        buffer(&client, &[0; 32]),
        child(&client, &[0; 16], 0, 0),
        child(&client, b"C", 0, 8),
        child(&client, b"D", 1, 0),
    ];
    assert_eq!(refused(client.main(), &objects, 96), failed(Errno::EINVAL));
    let objects = [buffer(&client, &[0; 16]), buffer(&client, b"B"), child(&client, b"C", 0, 0)];
    assert_eq!(refused(client.main(), &objects, 96), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

/// The driver takes offset 0 for "no buffer yet".
#[test]
fn a_buffer_at_offset_0_is_no_parent() {
    let Pair { world, manager, client } = pair();
    let objects = [buffer(&client, &[0; 16]), child(&client, b"c", 0, 0)];
    let data = one_way(client.message(0, 1, b"", &objects));
    client.main().write(&[Command::TransactionSg(data, 64)]);
    assert_eq!(client.main().drain(), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

/// A parent that is named without the flag is none.
#[test]
fn a_parent_without_its_flag_is_ignored() {
    let Pair { world, manager, client } = pair();
    let address = client.arena.push(b"free");
    let orphan = Object::Buffer(BufferObject {
        buffer: address,
        length: 4,
        parent: 77,
        parent_offset: 99,
        ..Default::default()
    });
    client.main().write(&[Command::TransactionSg(message(&client, &[orphan]), 8)]);
    let received = take(manager.main());
    let got = &buffers(&manager, &received)[0];
    assert_eq!((got.0.parent, got.0.parent_offset, &got.1[..]), (77, 99, &b"free"[..]));
    end(&world, [client, manager]);
}
