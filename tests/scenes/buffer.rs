//! Buffers: their layout, their space, and who may free them.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{BufferObject, Object};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::{self, TF_CLEAR_BUF};
use fakebinder_sim::MAPPING;

#[test]
fn data_offsets_and_scatter_gather_are_each_rounded_up_to_8_bytes() {
    let Pair { world, manager, client } = pair();
    let address = client.arena.push(b"scattered");
    let buffer = Object::Buffer(BufferObject { buffer: address, length: 9, ..Default::default() });
    let data = one_way(client.message(0, 1, b"123", &[buffer]));
    client.main().write(&[Command::TransactionSg(data, 16)]);
    let got = take(manager.main());
    assert_eq!((got.buffer, got.data_size), (MAPPING, 48));
    assert_eq!((got.offsets, got.offsets_size), (MAPPING + 48, 8));
    let [Object::Buffer(received)] = manager.objects(&got)[..] else { panic!("a buffer") };
    assert_eq!((received.buffer, received.length), (MAPPING + 56, 9));
    assert_eq!(manager.peek(MAPPING + 56, 9), b"scattered");
    // 3 bytes of data take 8, and so do 0 bytes.
    free(&manager, &got);
    for (size, next) in [(3, 8), (0, 16), (9, 32), (8, 40)] {
        client.main().write(&[Command::Transaction(client.message(0, 1, &vec![1; size], &[]))]);
        let thread = manager.thread(next);
        let received = take(thread);
        assert_eq!(received.data_size, size as u64);
        assert_eq!(
            manager.alloc.allocated_buffers().last().unwrap().offset + next_size(size),
            next as usize
        );
        answer(thread.nonblock(), b"");
        client.main().drain();
    }
    end(&world, [client, manager]);
}

fn next_size(size: usize) -> usize {
    size.next_multiple_of(8).max(8)
}

/// The smallest hole that is large enough.
#[test]
fn a_buffer_is_taken_from_the_best_fit_and_freed_neighbours_merge() {
    let Pair { world, manager, client } = pair();
    let mut threads = 101..;
    let mut send = |size: usize| {
        let caller = client.thread(1000 + size as i32);
        introduce(caller);
        caller.write(&[Command::Transaction(client.message(0, 1, &vec![0; size], &[]))]);
        let received = take(manager.thread(threads.next().unwrap()));
        received.buffer - MAPPING
    };
    let [large, wall, small, _end] = [256, 8, 64, 16].map(&mut send);
    for offset in [large, small] {
        manager.main().write(&[Command::FreeBuffer(MAPPING + offset)]);
    }
    assert_eq!(send(56), small, "64 bytes fit better than 256");
    assert_eq!(send(120), large);
    assert_eq!(send(128), large + 120, "what was left of it");
    manager.main().write(&[Command::FreeBuffer(MAPPING + large)]);
    manager.main().write(&[Command::FreeBuffer(MAPPING + large + 120)]);
    manager.main().write(&[Command::FreeBuffer(MAPPING + wall)]);
    assert_eq!(send(264), large, "three neighbours");
    end(&world, [client, manager]);
}

#[test]
fn a_full_buffer_fails_that_call_with_enospc_alone() {
    let Pair { world, manager, client } = pair();
    let half = vec![0; 64 << 10];
    call(client.main(), 0, 1, &half);
    let other = client.thread(201);
    introduce(other);
    assert_eq!(news(&call(other, 0, 1, &[0; (64 << 10) + 1])), [Return::FailedReply]);
    assert_eq!(error(other), failed(Errno::ENOSPC));
    let fits = call(other, 0, 2, &half);
    assert!(fits.is_blocked());
    let third = client.thread(202);
    introduce(third);
    assert_eq!(news(&call(third, 0, 1, b"")), [Return::FailedReply], "not a byte is left");
    let received = take(manager.main());
    free(&manager, &received);
    assert!(call(third, 0, 3, b"").is_blocked());
    end(&world, [client, manager]);
}

#[test]
fn a_reply_for_which_the_caller_has_no_room_fails_the_call() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    let done = answer(manager.main().nonblock(), &vec![0; 129 << 10]);
    assert_eq!(news(&done), [Return::TransactionComplete]);
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::ENOSPC));
    end(&world, [client, manager]);
}

#[test]
fn sizes_that_overflow_are_einval() {
    let Pair { world, manager, client } = pair();
    let huge = u64::MAX - 3;
    for (data_size, offsets_size, extra) in
        [(huge, 0, 0), (0, huge, 0), (0, 0, huge), (1 << 63, 1 << 63, 0), (1 << 63, 8, 1 << 63)]
    {
        let data = client.message(0, 1, b"", &[]);
        let data =
            fakebinder::protocol::record::TransactionData { data_size, offsets_size, ..data };
        let sent = client.main().write_and_read(&[Command::TransactionSg(data, extra)]);
        assert_eq!(news(&sent), [Return::FailedReply]);
        assert_eq!(error(client.main()), failed(Errno::EINVAL), "{data_size} {offsets_size}");
    }
    end(&world, [client, manager]);
}

#[test]
fn data_outside_of_memory_is_efault() {
    let Pair { world, manager, client } = pair();
    let mut data = client.message(0, 1, b"12345678", &[]);
    client.arena.unmap(data.buffer + 4, 1);
    let sent = client.main().write_and_read(&[Command::Transaction(data)]);
    assert_eq!(news(&sent), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EFAULT));
    data.buffer = u64::MAX - 3;
    let sent = client.main().write_and_read(&[Command::Transaction(data)]);
    assert_eq!(
        (news(&sent), error(client.main())),
        (vec![Return::FailedReply], failed(Errno::EFAULT))
    );
    assert_eq!(manager.alloc.allocated_count(), 0);
    end(&world, [client, manager]);
}

/// Of no bytes at all, it does not matter where they are.
#[test]
fn empty_data_may_lie_anywhere() {
    let Pair { world, manager, client } = pair();
    let mut data = one_way(client.message(0, 1, b"", &[]));
    (data.buffer, data.offsets) = (u64::MAX, 1);
    client.main().write(&[Command::Transaction(data)]);
    assert_eq!(client.main().drain(), [Return::TransactionComplete]);
    end(&world, [client, manager]);
}

#[test]
fn freeing_what_is_no_buffer_is_ignored() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"0123456789abcdef");
    let received = take(manager.main());
    for address in [0, MAPPING - 8, MAPPING + 8, MAPPING + (1 << 20), u64::MAX] {
        manager.main().write(&[Command::FreeBuffer(address)]);
    }
    assert_eq!(manager.alloc.allocated_count(), 1);
    free(&manager, &received);
    assert_eq!(manager.alloc.allocated_count(), 0);
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

#[test]
fn freeing_a_buffer_twice_is_ignored() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 0, 1, b"one");
    let received = take(manager.main());
    free(&manager, &received);
    free(&manager, &received);
    post(client.main(), 0, 2, b"two");
    let again = take(manager.main());
    assert_eq!(again.buffer, received.buffer);
    assert_eq!(manager.data(&again), b"two");
    end(&world, [client, manager]);
}

#[test]
fn freeing_a_buffer_that_was_not_handed_out_is_ignored() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"unread");
    manager.main().write(&[Command::FreeBuffer(MAPPING)]);
    assert_eq!(manager.alloc.allocated_count(), 1);
    assert_eq!(manager.data(&take(manager.main())), b"unread");
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

#[test]
fn freeing_without_a_mapping_is_ignored() {
    let world = fakebinder_sim::World::default();
    let sim = world.open_unmapped("binder", 1);
    sim.main().write(&[Command::FreeBuffer(0)]);
    end(&world, [sim]);
}

#[test]
fn tf_clear_buf_zeroes_the_buffer_when_it_is_freed() {
    let Pair { world, manager, client } = pair();
    for (flags, left) in [(0, b"secret"), (TF_CLEAR_BUF, b"\0\0\0\0\0\0")] {
        let mut data = one_way(client.message(0, 1, b"secret", &[]));
        data.flags |= flags;
        client.main().write(&[Command::Transaction(data)]);
        let received = take(manager.main());
        assert_eq!(manager.data(&received), b"secret");
        free(&manager, &received);
        assert_eq!(manager.peek(MAPPING, 6), left);
    }
    end(&world, [client, manager]);
}

#[test]
fn tf_clear_buf_holds_for_replies_and_failed_calls() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    let mut data = manager.message(0, 0, b"secret", &[]);
    data.flags |= TF_CLEAR_BUF;
    manager.main().write(&[Command::Reply(data)]);
    let answered = reply(&calling);
    assert_eq!((answered.flags, client.data(&answered)), (TF_CLEAR_BUF, b"secret".to_vec()));
    free(&client, &answered);
    assert_eq!(client.peek(answered.buffer, 6), [0; 6]);

    // The data is in the buffer when the object after it turns out to be bad.
    let mut data = one_way(client.message(0, 1, b"secret__", &[handle(99)]));
    data.flags |= TF_CLEAR_BUF;
    client.main().write(&[Command::Transaction(data)]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    assert_eq!(manager.peek(MAPPING + 8, 8), [0; 8]);
    end(&world, [client, manager]);
}

/// What the sender says of itself in the record is not what the receiver reads.
#[test]
fn code_and_flags_are_passed_on() {
    let Pair { world, manager, client } = pair();
    let mut data = client.message(0, 0x5f43_4f44, b"", &[]);
    data.flags = uapi::TF_ACCEPT_FDS | 0x8000_0000;
    data.cookie = 99;
    client.main().write(&[Command::Transaction(data)]);
    let received = take(manager.main());
    assert_eq!((received.code, received.flags), (data.code, data.flags));
    assert_eq!((received.target, received.cookie), (0, 0), "the manager's node");
    let mut data = manager.message(0, 0xaa, b"", &[]);
    data.flags = uapi::TF_STATUS_CODE;
    manager.main().write(&[Command::Reply(data)]);
    let Some(Return::Reply(answered)) = client.main().drain().pop() else { panic!("a reply") };
    assert_eq!((answered.code, answered.flags), (0xaa, uapi::TF_STATUS_CODE));
    assert_eq!((answered.target, answered.cookie), (0, 0));
    end(&world, [client, manager]);
}
