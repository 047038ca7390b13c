//! Descriptors on their way: single ones, and arrays in scatter-gather buffers.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::binder::Task;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{BufferObject, FdArrayObject, FlatObject, Object};
use fakebinder::protocol::record::{PtrCookie, TransactionData};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::{self, BINDER_BUFFER_FLAG_HAS_PARENT, FLAT_BINDER_FLAG_ACCEPTS_FDS};
use fakebinder_sim::{Sim, SimFile, SimThread, World};
use std::sync::Arc;

/// A manager that accepts descriptors, and a client that has some.
pub fn files() -> Pair {
    let world = World::default();
    let manager = world.open(100);
    let flat = FlatObject { flags: FLAT_BINDER_FLAG_ACCEPTS_FDS, ..Default::default() };
    let mut object = Vec::new();
    Object::Binder { strong: true, flat }.encode(&mut object);
    manager.main().call(uapi::BINDER_SET_CONTEXT_MGR_EXT, &object).unwrap();
    let client = open(&world, 200);
    (10..16).for_each(|fd| client.add_file(fd, SimFile(fd as u64 * 100)));
    Pair { world, manager, client }
}

fn received_fd(sim: &Sim, data: &TransactionData) -> i32 {
    match sim.objects(data)[..] {
        [Object::Fd { fd, .. }] => fd as i32,
        ref other => panic!("expected a descriptor, got {other:?}"),
    }
}

/// Data, a buffer with descriptors, an array object over it.
fn array(sim: &Sim, fds: &[u32], num_fds: u64, parent_offset: u64) -> [Object; 2] {
    let bytes: Vec<u8> = fds.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
    let parent = BufferObject {
        buffer: sim.arena.push(&bytes),
        length: bytes.len() as u64,
        ..Default::default()
    };
    let array = FdArrayObject { pad: 0, num_fds, parent: 0, parent_offset };
    [Object::Buffer(parent), Object::FdArray(array)]
}

fn post_array(thread: SimThread<'_>, objects: &[Object]) -> Vec<Return> {
    let data = one_way(thread.sim.message(0, 1, b"iface:::", objects));
    thread.write(&[Command::TransactionSg(data, 64)]);
    thread.drain()
}

/// The numbers in the first buffer of a message that was received.
fn received_array(sim: &Sim, data: &TransactionData) -> Vec<i32> {
    let Object::Buffer(parent) = sim.objects(data)[0] else { panic!("a buffer first") };
    let bytes = sim.peek(parent.buffer, parent.length as usize);
    bytes.as_chunks::<4>().0.iter().map(|fd| i32::from_ne_bytes(*fd)).collect()
}

#[test]
fn a_descriptor_becomes_one_of_the_receiver() {
    let Pair { world, manager, client } = files();
    manager.add_file(3, SimFile(1));
    let sent = Object::Fd { pad_flags: 5, fd: 10, cookie: 0x1234 };
    assert_eq!(post_with(client.main(), 0, &[sent]), [Return::TransactionComplete]);
    assert_eq!(manager.files(), 1, "installed when it is read");
    let received = take(manager.main());
    assert_eq!(manager.objects(&received), [Object::Fd { pad_flags: 5, fd: 4, cookie: 0x1234 }]);
    assert_eq!(manager.file(4), Some(SimFile(1000)));
    assert_eq!(client.file(10), Some(SimFile(1000)), "the sender keeps its own");
    free(&manager, &received);
    assert_eq!(manager.file(4), Some(SimFile(1000)), "the receiver closes it, not the buffer");
    end(&world, [client, manager]);
}

#[test]
fn a_node_that_does_not_accept_descriptors_gets_none() {
    let Pair { world, manager, client } = pair();
    client.add_file(3, SimFile(1));
    assert_eq!(post_with(client.main(), 0, &[fd(3)]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EPERM));
    // TF_ACCEPT_FDS speaks of the reply.
    let mut data = one_way(client.message(0, 1, b"", &[fd(3)]));
    data.flags |= uapi::TF_ACCEPT_FDS;
    client.main().write(&[Command::Transaction(data)]);
    assert_eq!(client.main().drain(), [Return::FailedReply]);
    end(&world, [client, manager]);
}

#[test]
fn a_node_of_a_client_may_accept_descriptors() {
    let Pair { world, manager, client } = pair();
    let flat = FlatObject { flags: FLAT_BINDER_FLAG_ACCEPTS_FDS, binder: 0x10, cookie: 0x11 };
    let held = offer_object(&client, &manager, Object::Binder { strong: true, flat });
    manager.add_file(9, SimFile(900));
    assert_eq!(post_with(manager.main(), held, &[fd(9)]), [Return::TransactionComplete]);
    let received = take(client.main());
    assert_eq!(client.file(received_fd(&client, &received)), Some(SimFile(900)));
    end(&world, [client, manager]);
}

#[test]
fn a_reply_with_a_descriptor_needs_tf_accept_fds_in_the_call() {
    let Pair { world, manager, client } = pair();
    manager.add_file(9, SimFile(900));
    for (flags, accepted) in [(0, false), (uapi::TF_ACCEPT_FDS, true)] {
        let mut data = client.message(0, 1, b"", &[]);
        data.flags = flags;
        let calling = client.main().write_and_read(&[Command::Transaction(data)]);
        take(manager.main());
        let done = answer_with(manager.main().nonblock(), &[fd(9)]);
        assert_eq!(news(&done), [Return::TransactionComplete]);
        if accepted {
            let answered = reply(&calling);
            assert_eq!(client.file(received_fd(&client, &answered)), Some(SimFile(900)));
        } else {
            assert_eq!(news(&calling), [Return::TransactionComplete, Return::FailedReply]);
            assert_eq!(error(client.main()), failed(Errno::EPERM));
        }
    }
    end(&world, [client, manager]);
}

#[test]
fn a_descriptor_that_the_sender_does_not_have_is_ebadf() {
    let Pair { world, manager, client } = files();
    for number in [99, u32::MAX, 1 << 31] {
        assert_eq!(post_with(client.main(), 0, &[fd(number)]), [Return::FailedReply]);
        assert_eq!(error(client.main()), failed(Errno::EBADF));
    }
    // The first one was taken already when the second was found to be missing.
    assert_eq!(post_with(client.main(), 0, &[fd(10), fd(99)]), [Return::FailedReply]);
    assert_eq!(manager.files(), 0);
    end(&world, [client, manager]);
}

#[test]
fn a_receiver_that_descriptors_cannot_reach_is_eopnotsupp() {
    let Pair { world, manager, client } = files();
    manager.refuse_files();
    assert_eq!(post_with(client.main(), 0, &[fd(10)]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EOPNOTSUPP));
    assert_eq!(post(client.main(), 0, 1, b"no descriptor"), [Return::TransactionComplete]);
    end(&world, [client, manager]);
}

#[test]
fn a_call_whose_descriptors_do_not_fit_in_the_receiver_fails() {
    let Pair { world, manager, client } = files();
    introduce(manager.main());
    manager.limit_files(1);
    let calling = call_with(client.main(), 0, &[fd(10), fd(11)]);
    let reading = manager.main().read();
    assert!(reading.is_blocked(), "the server does not hear of it");
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::FailedReply]);
    assert_eq!((manager.files(), manager.alloc.allocated_count()), (0, 0));
    let calling = call_with(client.main(), 0, &[fd(10)]);
    assert_eq!(received_fd(&manager, &transaction(&reading)), 3);
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

#[test]
fn a_one_way_call_whose_descriptors_do_not_fit_makes_way_for_the_next() {
    let Pair { world, manager, client } = files();
    introduce(manager.main());
    manager.limit_files(0);
    post_with(client.main(), 0, &[fd(10)]);
    post(client.main(), 0, 2, b"");
    let read = manager.main().nonblock().read();
    assert_eq!(transaction(&read).code, 2);
    assert_eq!(manager.alloc.allocated_count(), 1);
    end(&world, [client, manager]);
}

#[test]
fn a_reply_whose_descriptors_do_not_fit_becomes_failed_reply() {
    let Pair { world, manager, client } = pair();
    manager.add_file(9, SimFile(900));
    client.limit_files(0);
    let mut data = client.message(0, 1, b"", &[]);
    data.flags = uapi::TF_ACCEPT_FDS;
    let calling = client.main().write_and_read(&[Command::Transaction(data)]);
    take(manager.main());
    answer_with(manager.main().nonblock(), &[fd(9)]);
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::FailedReply]);
    assert_eq!(client.alloc.allocated_count(), 0);
    assert!(client.main().read().is_blocked());
    end(&world, [client, manager]);
}

/// It ends the read in the place of the reply, so what lies behind it is for the next read.
#[test]
fn a_reply_whose_descriptors_do_not_fit_ends_the_read() {
    let Pair { world, manager, client } = pair();
    manager.add_file(9, SimFile(900));
    client.limit_files(0);
    let mut data = client.message(0, 1, b"", &[]);
    data.flags = uapi::TF_ACCEPT_FDS;
    client.main().write(&[Command::Transaction(data)]);
    take(manager.main());
    answer_with(manager.main().nonblock(), &[fd(9)]);
    // Behind the reply: the outcome of a one-way call.
    client.main().write(&[Command::Transaction(one_way(client.message(0, 2, b"", &[])))]);
    assert_eq!(news(&client.main().read()), [Return::TransactionComplete, Return::FailedReply]);
    assert_eq!(client.main().drain(), [Return::TransactionComplete]);
    end(&world, [client, manager]);
}

/// What the thread was told before the call that did not fit is not lost with it.
#[test]
fn what_comes_before_a_call_whose_descriptors_do_not_fit_is_read() {
    let Pair { world, manager, client } = pair();
    let flat = FlatObject { flags: FLAT_BINDER_FLAG_ACCEPTS_FDS, binder: 0x10, cookie: 0x11 };
    let held = offer_object(&client, &manager, Object::Binder { strong: true, flat });
    manager.add_file(9, SimFile(900));
    client.limit_files(0);
    let outer = call(client.main(), 0, 1, b"");
    take(manager.main());
    // The nested call lands on the waiting thread, behind BR_TRANSACTION_COMPLETE.
    let nested = call_with(manager.main(), held, &[fd(9)]);
    assert_eq!(news(&outer), [Return::TransactionComplete]);
    assert_eq!(news(&nested), [Return::TransactionComplete, Return::FailedReply]);
    let outer = client.main().read();
    assert!(outer.is_blocked());
    answer(manager.main().nonblock(), b"");
    reply(&outer);
    end(&world, [client, manager]);
}

/// Nothing is read, so nothing is asked for; what is read then, asks.
#[test]
fn a_call_whose_descriptors_do_not_fit_asks_for_no_thread() {
    let Pair { world, manager, client } = files();
    let limit = 1_u32.to_ne_bytes();
    manager.main().call(uapi::BINDER_SET_MAX_THREADS, &limit).unwrap();
    let waiting = manager.main().enter_looper();
    manager.limit_files(0);
    post_with(client.main(), 0, &[fd(10)]);
    assert!(waiting.is_blocked());
    post(client.main(), 0, 2, b"");
    assert!(matches!(waiting.returns()[..], [Return::SpawnLooper, Return::Transaction(_)]));
    end(&world, [client, manager]);
}

#[test]
fn node_work_before_a_call_whose_descriptors_do_not_fit_is_read() {
    let Pair { world, manager, client } = pair();
    let flat = FlatObject { flags: FLAT_BINDER_FLAG_ACCEPTS_FDS, binder: 0x10, cookie: 0x11 };
    let held = offer_object(&client, &manager, Object::Binder { strong: true, flat });
    let other = offer(&client, &manager, 0x20);
    manager.add_file(9, SimFile(900));
    client.limit_files(0);
    manager.main().write(&[Command::Release(other)]);
    post_with(manager.main(), held, &[fd(9)]);
    let own = PtrCookie { ptr: 0x20, cookie: 0x21 };
    assert_eq!(
        news(&client.main().nonblock().read()),
        [Return::Release(own), Return::Decrefs(own)]
    );
    assert_eq!(client.alloc.allocated_count(), 0);
    end(&world, [client, manager]);
}

#[test]
fn an_array_of_descriptors_arrives_in_its_buffer() {
    let Pair { world, manager, client } = files();
    let objects = array(&client, &[7, 10, 11, 12, 8], 3, 4);
    assert_eq!(post_array(client.main(), &objects), [Return::TransactionComplete]);
    let received = take(manager.main());
    assert_eq!(received_array(&manager, &received), [7, 3, 4, 5, 8], "numbers around it pass");
    assert_eq!(manager.file(4), Some(SimFile(1100)));
    end(&world, [client, manager]);
}

#[test]
fn an_array_of_descriptors_is_closed_with_its_buffer() {
    let Pair { world, manager, client } = files();
    introduce(manager.main());
    let mut objects = array(&client, &[10, 11], 2, 0).to_vec();
    objects.push(fd(12));
    assert_eq!(post_array(client.main(), &objects), [Return::TransactionComplete]);
    let received = take(manager.main());
    assert_eq!(manager.files(), 3);
    let reading = manager.main().write_and_read(&[Command::FreeBuffer(received.buffer)]);
    assert_eq!(manager.files(), 1, "the single one stays");
    assert_eq!(reading.returns(), [Return::Noop], "the thread goes back to close them");
    assert!(manager.main().read().is_blocked());
    end(&world, [client, manager]);
}

/// What the receiver does to its own buffer does not decide what is closed.
#[test]
fn an_array_that_was_not_delivered_closes_nothing() {
    let Pair { world, manager, client } = files();
    (3..6).for_each(|fd| manager.add_file(fd, SimFile(1)));
    manager.limit_files(1);
    let objects = array(&client, &[10, 11], 2, 0);
    assert_eq!(post_array(client.main(), &objects), [Return::TransactionComplete]);
    assert_eq!(manager.main().drain(), []);
    assert_eq!(manager.files(), 3);
    end(&world, [client, manager]);
}

#[test]
fn an_empty_array_of_descriptors_is_fine() {
    let Pair { world, manager, client } = files();
    let objects = array(&client, &[77], 0, 999);
    assert_eq!(post_array(client.main(), &objects), [Return::TransactionComplete]);
    let received = take(manager.main());
    assert_eq!((received_array(&manager, &received), manager.files()), (vec![77], 0));
    end(&world, [client, manager]);
}

#[test]
fn an_array_that_does_not_fit_in_its_parent_is_einval() {
    let Pair { world, manager, client } = files();
    for (num_fds, offset) in
        [(3, 0), (1, 8), (2, 4), (1, u64::MAX - 3), (u64::MAX / 4, 0), (1 << 62, 0), (u64::MAX, 0)]
    {
        let objects = array(&client, &[10, 11], num_fds, offset);
        assert_eq!(post_array(client.main(), &objects), [Return::FailedReply]);
        assert_eq!(error(client.main()), failed(Errno::EINVAL), "{num_fds} at {offset}");
    }
    end(&world, [client, manager]);
}

#[test]
fn an_array_must_be_aligned_to_4_bytes_on_both_sides() {
    let Pair { world, manager, client } = files();
    let objects = array(&client, &[10, 11], 1, 2);
    assert_eq!(post_array(client.main(), &objects), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    let [Object::Buffer(parent), fds] = array(&client, &[10, 11], 1, 0) else { panic!() };
    let odd = Object::Buffer(BufferObject { buffer: parent.buffer + 1, length: 4, ..parent });
    assert_eq!(post_array(client.main(), &[odd, fds]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    // Aligned where it comes from, not where it goes to.
    let odd = Object::Buffer(BufferObject { buffer: parent.buffer + 2, length: 6, ..parent });
    let fds = Object::FdArray(FdArrayObject { num_fds: 1, parent_offset: 2, ..Default::default() });
    assert_eq!(post_array(client.main(), &[odd, fds]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

#[test]
fn an_array_needs_a_buffer_before_it_as_its_parent() {
    let Pair { world, manager, client } = files();
    let [parent, fds] = array(&client, &[10], 1, 0);
    for objects in [&[fds][..], &[fds, parent], &[fd(10), fds, parent]] {
        assert_eq!(post_array(client.main(), objects), [Return::FailedReply]);
        assert_eq!(error(client.main()), failed(Errno::EINVAL));
    }
    end(&world, [client, manager]);
}

/// An array is a fix-up like a pointer: within one parent, upwards.
#[test]
fn arrays_and_pointers_in_a_parent_must_ascend() {
    let Pair { world, manager, client } = files();
    let [parent, first] = array(&client, &[10, 11, 12, 13], 2, 0);
    let fds = |num_fds, parent_offset| {
        Object::FdArray(FdArrayObject { num_fds, parent_offset, ..Default::default() })
    };
    let child = |parent_offset| {
        Object::Buffer(BufferObject {
            flags: BINDER_BUFFER_FLAG_HAS_PARENT,
            buffer: client.arena.push(b"child"),
            length: 5,
            parent: 0,
            parent_offset,
        })
    };
    for (second, fits) in
        [(fds(2, 8), true), (fds(1, 4), false), (child(8), true), (child(4), false)]
    {
        let told = post_array(client.main(), &[parent, first, second]);
        assert_eq!(told == [Return::TransactionComplete], fits, "{second:?}: {told:?}");
    }
    assert_eq!(post_array(client.main(), &[parent, child(0), fds(2, 8)]).len(), 1);
    end(&world, [client, manager]);
}

/// What was fixed up in one buffer says nothing about the next.
#[test]
fn a_new_buffer_is_fixed_up_from_its_start() {
    let Pair { world, manager, client } = files();
    let [parent, fds] = array(&client, &[10, 11], 2, 0);
    let child = |bytes: &[u8], flags, parent| {
        Object::Buffer(BufferObject {
            flags,
            buffer: client.arena.push(bytes),
            length: bytes.len() as u64,
            parent,
            parent_offset: 0,
        })
    };
    let second = child(&[0; 8], 0, 0);
    let objects = [parent, fds, second, child(b"child", BINDER_BUFFER_FLAG_HAS_PARENT, 2)];
    assert_eq!(post_array(client.main(), &objects), [Return::TransactionComplete]);
    let received = take(manager.main());
    assert_eq!(received_array(&manager, &received), [3, 4]);
    end(&world, [client, manager]);
}

#[test]
fn an_array_with_a_descriptor_that_is_none_fails_whole() {
    let Pair { world, manager, client } = files();
    let objects = array(&client, &[10, 99], 2, 0);
    assert_eq!(post_array(client.main(), &objects), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EBADF));
    assert_eq!(manager.files(), 0);
    end(&world, [client, manager]);
}

#[test]
fn an_array_for_a_node_that_does_not_accept_descriptors_is_eperm() {
    let Pair { world, manager, client } = pair();
    client.add_file(10, SimFile(1));
    let objects = array(&client, &[10], 1, 0);
    assert_eq!(post_array(client.main(), &objects), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EPERM));
    end(&world, [client, manager]);
}

#[test]
fn an_array_outside_of_memory_is_einval() {
    let Pair { world, manager, client } = files();
    let [Object::Buffer(parent), fds] = array(&client, &[10, 11], 2, 0) else { panic!() };
    client.arena.unmap(parent.buffer + 4, 4);
    assert_eq!(post_array(client.main(), &[Object::Buffer(parent), fds]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

/// Descriptors that nobody reads are let go of with the process that they were for.
#[test]
fn descriptors_on_their_way_to_a_dead_process_are_let_go() {
    let Pair { world, manager, client } = files();
    let file = client.client.take_file(200, 10).unwrap();
    let before = Arc::strong_count(&file);
    post_with(client.main(), 0, &[fd(10)]);
    post_array(client.main(), &array(&client, &[10, 11], 2, 0));
    assert_eq!(Arc::strong_count(&file), before + 2);
    manager.release();
    assert_eq!(Arc::strong_count(&file), before);
    assert_eq!(world.stats().transactions, 0);
    end(&world, [client]);
}

#[test]
fn descriptors_of_a_failed_call_are_let_go() {
    let Pair { world, manager, client } = files();
    let file = client.client.take_file(200, 10).unwrap();
    let before = Arc::strong_count(&file);
    assert_eq!(post_with(client.main(), 0, &[fd(10), handle(9)]), [Return::FailedReply]);
    let mut objects = array(&client, &[10, 11], 2, 0).to_vec();
    objects.push(handle(9));
    assert_eq!(post_array(client.main(), &objects), [Return::FailedReply]);
    assert_eq!(Arc::strong_count(&file), before);
    end(&world, [client, manager]);
}
