//! Objects in a message: nodes and handles on their way, and offsets that are wrong.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{FlatObject, Object};
use fakebinder::protocol::record::{Put, TransactionData};
use fakebinder::protocol::returns::Return;
use fakebinder_sim::{Sim, SimThread};

/// Sends data with offsets of one's own; what the sender's extended error says.
#[track_caller]
fn refused(thread: SimThread<'_>, data: &[u8], offsets: &[u64]) -> (u32, i32) {
    let mut bytes = Vec::new();
    offsets.iter().for_each(|offset| bytes.put_u64(*offset));
    let message = TransactionData {
        data_size: data.len() as u64,
        offsets_size: bytes.len() as u64,
        buffer: thread.sim.arena.push(data),
        offsets: thread.sim.arena.push(&bytes),
        ..one_way(TransactionData::default())
    };
    refused_message(thread, message)
}

#[track_caller]
fn refused_message(thread: SimThread<'_>, message: TransactionData) -> (u32, i32) {
    thread.write(&[Command::Transaction(message)]);
    assert_eq!(thread.drain(), [Return::FailedReply]);
    error(thread)
}

fn encoded(objects: &[Object]) -> Vec<u8> {
    let mut bytes = Vec::new();
    objects.iter().for_each(|object| object.encode(&mut bytes));
    bytes
}

fn only_object(sim: &Sim, data: &TransactionData) -> Object {
    let [object] = sim.objects(data)[..] else { panic!("one object") };
    object
}

#[test]
fn a_node_becomes_a_handle_of_the_receiver() {
    let Pair { world, manager, client } = pair();
    let flags = 0x1234_0000;
    let sent = Object::Binder { strong: true, flat: FlatObject { flags, ..flat(0x10) } };
    post_with(client.main(), 0, &[sent]);
    let received = take(manager.main());
    assert_eq!(
        only_object(&manager, &received),
        Object::Handle { strong: true, flat: FlatObject { flags, binder: 1, cookie: 0 } }
    );
    end(&world, [client, manager]);
}

#[test]
fn a_weak_node_becomes_a_weak_handle() {
    let Pair { world, manager, client } = pair();
    post_with(client.main(), 0, &[weak_binder(0x10)]);
    let received = take(manager.main());
    assert_eq!(only_object(&manager, &received), weak_handle(1));
    end(&world, [client, manager]);
}

#[test]
fn a_handle_becomes_a_handle_of_the_receiver() {
    let Pair { world, manager, client } = pair();
    let third = open(&world, 300);
    for ptr in [0x10, 0x20, 0x30] {
        offer(&client, &manager, ptr);
    }
    let found = look_up(&third, &manager, 3);
    assert_eq!(found, 1);
    let calling = call(third.main(), found, 5, b"");
    assert_eq!(take(client.main()).target, 0x30);
    assert!(calling.is_blocked());
    end(&world, [client, manager, third]);
}

#[test]
fn a_weak_handle_is_passed_on_as_weak() {
    let Pair { world, manager, client } = pair();
    let third = open(&world, 300);
    let held = offer(&client, &manager, 0x10);
    let calling = call(third.main(), 0, 0, b"");
    take(manager.main());
    answer_with(manager.main().nonblock(), &[weak_handle(held)]);
    let answered = reply(&calling);
    assert_eq!(only_object(&third, &answered), weak_handle(1));
    assert_eq!(news(&call(third.main(), 1, 0, b"")), [Return::FailedReply]);
    end(&world, [client, manager, third]);
}

#[test]
fn a_handle_sent_to_its_owner_becomes_the_node_again() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    for (sent, strong) in [(handle(held), true), (weak_handle(held), false)] {
        let calling = call(client.main(), 0, 0, b"");
        let question = take(manager.main());
        free(&manager, &question);
        answer_with(manager.main().nonblock(), &[sent]);
        let answered = reply(&calling);
        assert_eq!(only_object(&client, &answered), Object::Binder { strong, flat: flat(0x10) });
        free(&client, &answered);
    }
    assert_eq!(client.main().drain(), []);
    end(&world, [client, manager]);
}

/// A node that comes home in a buffer is held by it.
#[test]
fn a_node_that_comes_home_is_kept_until_its_buffer_is_freed() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let calling = call(client.main(), 0, 0, b"");
    take(manager.main());
    answer_with(manager.main().nonblock(), &[handle(held)]);
    let answered = reply(&calling);
    manager.main().write(&[Command::Release(held)]);
    assert_eq!(client.main().drain(), []);
    free(&client, &answered);
    let own = node(0x10);
    assert_eq!(client.main().drain(), [Return::Release(own), Return::Decrefs(own)]);
    end(&world, [client, manager]);
}

/// Nothing of the receiver's own is believed: a handle it has is not the sender's.
#[test]
fn a_handle_that_the_sender_does_not_have_is_einval() {
    let Pair { world, manager, client } = pair();
    offer(&client, &manager, 0x10);
    assert_eq!(post_with(client.main(), 0, &[handle(1)]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    assert_eq!(post_with(client.main(), 0, &[weak_handle(1)]), [Return::FailedReply]);
    end(&world, [client, manager]);
}

#[test]
fn a_weak_handle_sent_as_strong_is_einval() {
    let Pair { world, manager, client } = pair();
    post_with(client.main(), 0, &[weak_binder(0x10)]);
    let received = take(manager.main());
    manager.main().write(&[Command::Increfs(1), Command::FreeBuffer(received.buffer)]);
    let held = offer(&client, &manager, 0x20);
    assert_eq!(post_with(manager.main(), held, &[handle(1)]), [Return::FailedReply]);
    assert_eq!(error(manager.main()), failed(Errno::EINVAL));
    assert_eq!(post_with(manager.main(), held, &[weak_handle(1)]), [Return::TransactionComplete]);
    end(&world, [client, manager]);
}

/// The first objects were translated when the last turned out to be bad.
#[test]
fn a_failed_translation_undoes_what_it_had_done() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let before = world.stats();
    client.add_file(3, fakebinder_sim::SimFile(1));
    let told =
        post_with(client.main(), 0, &[binder(0x20), binder(0x10), weak_binder(0x30), handle(99)]);
    assert_eq!(told, [Return::FailedReply]);
    assert_eq!(world.stats(), before);
    // Towards the owner of a node as well.
    let told = post_with(manager.main(), held, &[handle(held), weak_handle(held), handle(99)]);
    assert_eq!(told, [Return::FailedReply]);
    assert_eq!(world.stats(), before);
    manager.main().write(&[Command::Release(held)]);
    let own = node(0x10);
    assert_eq!(client.main().drain(), [Return::Release(own), Return::Decrefs(own)]);
    end(&world, [client, manager]);
}

#[test]
fn offsets_that_are_not_multiples_of_4_are_einval() {
    let Pair { world, manager, client } = pair();
    let data = [&[0; 2][..], &encoded(&[binder(0x10)]), &[0; 6]].concat();
    assert_eq!(refused(client.main(), &data, &[2]), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

#[test]
fn objects_need_be_aligned_to_4_bytes_only() {
    let Pair { world, manager, client } = pair();
    let data = [&[0; 4][..], &encoded(&[binder(0x10)])].concat();
    let message = TransactionData {
        data_size: 28,
        offsets_size: 8,
        buffer: client.arena.push(&data),
        offsets: client.arena.push(&4_u64.to_ne_bytes()),
        ..one_way(TransactionData::default())
    };
    client.main().write(&[Command::Transaction(message)]);
    let received = take(manager.main());
    assert_eq!(only_object(&manager, &received), handle(1));
    end(&world, [client, manager]);
}

/// Behind an object, or in its middle: the driver says EFAULT, for it is the copying that notices.
#[test]
fn offsets_that_do_not_ascend_are_efault() {
    let Pair { world, manager, client } = pair();
    let data = encoded(&[binder(0x10), binder(0x20), binder(0x30)]);
    for offsets in [&[24, 0][..], &[0, 0], &[0, 12], &[24, 48, 24]] {
        assert_eq!(refused(client.main(), &data, offsets), failed(Errno::EFAULT), "{offsets:?}");
    }
    assert_eq!(world.stats().nodes, 1);
    end(&world, [client, manager]);
}

#[test]
fn offsets_beyond_the_data_are_efault() {
    let Pair { world, manager, client } = pair();
    let data = encoded(&[binder(0x10)]);
    for offset in [25, 28, 1 << 32, u64::MAX, u64::MAX - 3] {
        assert_eq!(refused(client.main(), &data, &[offset]), failed(Errno::EFAULT), "{offset}");
    }
    end(&world, [client, manager]);
}

#[test]
fn objects_cut_short_by_the_end_of_the_data_are_einval() {
    let Pair { world, manager, client } = pair();
    let data = [&[0; 24][..], &encoded(&[binder(0x10)])].concat();
    for (size, offset) in [(24, 24), (26, 24), (28, 24), (44, 24), (47, 24)] {
        assert_eq!(refused(client.main(), &data[..size], &[offset]), failed(Errno::EINVAL));
    }
    end(&world, [client, manager]);
}

#[test]
fn an_object_of_unknown_type_is_einval() {
    let Pair { world, manager, client } = pair();
    for kind in [0_u32, 1, 0xffff_ffff, fakebinder::uapi::BINDER_TYPE_BINDER + 1] {
        let mut data = encoded(&[binder(0x10)]);
        data[..4].copy_from_slice(&kind.to_ne_bytes());
        assert_eq!(refused(client.main(), &data, &[0]), failed(Errno::EINVAL), "{kind:#x}");
    }
    end(&world, [client, manager]);
}

#[test]
fn a_size_of_offsets_that_is_no_multiple_of_8_is_einval() {
    let Pair { world, manager, client } = pair();
    let message = one_way(client.message(0, 1, b"", &[binder(0x10)]));
    for offsets_size in [1, 4, 7] {
        let message = TransactionData { offsets_size, ..message };
        assert_eq!(refused_message(client.main(), message), failed(Errno::EINVAL));
    }
    end(&world, [client, manager]);
}

#[test]
fn offsets_outside_of_memory_are_efault() {
    let Pair { world, manager, client } = pair();
    let message = one_way(client.message(0, 1, b"", &[binder(0x10)]));
    let message = TransactionData { offsets: 1, ..message };
    assert_eq!(refused_message(client.main(), message), failed(Errno::EFAULT));
    // Before anything is said about their size.
    let message = TransactionData { offsets_size: 9, ..message };
    assert_eq!(refused_message(client.main(), message), failed(Errno::EFAULT));
    end(&world, [client, manager]);
}

/// Piece by piece, the driver copies what lies between objects, then looks at an object.
#[test]
fn a_hole_between_objects_is_efault_and_one_in_an_object_einval() {
    let Pair { world, manager, client } = pair();
    let objects = [binder(0x10), binder(0x20)];
    // The second object ends at 56, but is looked at as the largest kind: up to 72.
    for (hole, errno) in
        [(4, Errno::EFAULT), (12, Errno::EINVAL), (60, Errno::EINVAL), (72, Errno::EFAULT)]
    {
        let data = [&[7; 8][..], &encoded(&objects), &[7; 24]].concat();
        let mut offsets = Vec::new();
        [8, 32].iter().for_each(|offset| offsets.put_u64(*offset));
        let message = TransactionData {
            data_size: 80,
            offsets_size: 16,
            buffer: client.arena.push(&data),
            offsets: client.arena.push(&offsets),
            ..one_way(TransactionData::default())
        };
        client.arena.unmap(message.buffer + hole, 1);
        assert_eq!(refused_message(client.main(), message), failed(errno), "hole at {hole}");
    }
    assert_eq!(world.stats().nodes, 1);
    end(&world, [client, manager]);
}

/// What comes first decides: here a bad handle, though memory ends behind it.
#[test]
fn a_bad_object_before_a_hole_is_what_fails() {
    let Pair { world, manager, client } = pair();
    let data = [&encoded(&[handle(99)])[..], &[7; 64]].concat();
    let message = TransactionData {
        data_size: data.len() as u64,
        offsets_size: 8,
        buffer: client.arena.push(&data),
        offsets: client.arena.push(&[0; 8]),
        ..one_way(TransactionData::default())
    };
    client.arena.unmap(message.buffer + 70, 1);
    assert_eq!(refused_message(client.main(), message), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

#[test]
fn data_around_objects_is_passed_on_unchanged() {
    let Pair { world, manager, client } = pair();
    let data = [&b"before.."[..], &encoded(&[binder(0x10)]), b"after"].concat();
    let message = TransactionData {
        data_size: data.len() as u64,
        offsets_size: 8,
        buffer: client.arena.push(&data),
        offsets: client.arena.push(&8_u64.to_ne_bytes()),
        ..one_way(TransactionData::default())
    };
    client.main().write(&[Command::Transaction(message)]);
    let received = take(manager.main());
    let got = manager.data(&received);
    assert_eq!((&got[..8], &got[32..]), (&b"before.."[..], &b"after"[..]));
    assert_eq!(manager.peek(received.offsets, 8), 8_u64.to_ne_bytes());
    end(&world, [client, manager]);
}

/// A reply carries objects like a call.
#[test]
fn a_reply_may_carry_nodes() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    let told = answer_with(manager.main().nonblock(), &[binder(0x50)]);
    let own = node(0x50);
    assert_eq!(
        news(&told),
        [Return::Increfs(own), Return::Acquire(own), Return::TransactionComplete]
    );
    let answered = reply(&calling);
    assert_eq!(only_object(&client, &answered), handle(1));
    end(&world, [client, manager]);
}
