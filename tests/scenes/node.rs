//! Nodes: what their owner is told of references to them, and when.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{FlatObject, Object};
use fakebinder::protocol::record::{PtrCookie, Record};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::SimThread;

/// BINDER_GET_NODE_DEBUG_INFO: pointer, cookie, strong, weak.
fn node_after(thread: SimThread<'_>, ptr: u64) -> (u64, u64, u32, u32) {
    let mut arg = ptr.to_ne_bytes().to_vec();
    arg.resize(24, 0);
    let out = thread.call(uapi::BINDER_GET_NODE_DEBUG_INFO, &arg).unwrap();
    let info = uapi::binder_node_debug_info::at(&out).unwrap();
    (info.ptr, info.cookie, info.has_strong_ref, info.has_weak_ref)
}

#[test]
fn the_owner_of_a_node_hears_of_its_first_reference() {
    let Pair { world, manager, client } = pair();
    let told = post_with(client.main(), 0, &[binder(0x10)]);
    let own = node(0x10);
    assert_eq!(told, [Return::Increfs(own), Return::Acquire(own), Return::TransactionComplete]);
    let received = take(manager.main());
    free(&manager, &received);
    end(&world, [client, manager]);
}

#[test]
fn the_owner_of_a_node_hears_of_a_weak_reference_as_that() {
    let Pair { world, manager, client } = pair();
    let own = node(0x10);
    let told = post_with(client.main(), 0, &[weak_binder(0x10)]);
    assert_eq!(told, [Return::Increfs(own), Return::TransactionComplete]);
    // A strong one after it.
    let told = post_with(client.main(), 0, &[binder(0x10)]);
    assert_eq!(told, [Return::Acquire(own), Return::TransactionComplete]);
    end(&world, [client, manager]);
}

#[test]
fn a_node_offered_weak_and_strong_in_one_message_is_told_as_strong() {
    let Pair { world, manager, client } = pair();
    let own = node(0x10);
    let told = post_with(client.main(), 0, &[weak_binder(0x10), binder(0x10)]);
    assert_eq!(told, [Return::Increfs(own), Return::Acquire(own), Return::TransactionComplete]);
    end(&world, [client, manager]);
}

/// It was to be told of the weak reference; the strong one comes from another of its threads.
#[test]
fn the_thread_that_makes_a_node_strong_is_told() {
    let Pair { world, manager, client } = pair();
    let own = node(0x10);
    let weak = one_way(client.message(0, 1, b"", &[weak_binder(0x10)]));
    client.main().write(&[Command::Transaction(weak)]);
    let told = post_with(client.thread(201), 0, &[binder(0x10)]);
    assert_eq!(told, [Return::Increfs(own), Return::Acquire(own), Return::TransactionComplete]);
    assert_eq!(client.main().drain(), [Return::TransactionComplete]);
    end(&world, [client, manager]);
}

#[test]
fn the_owner_of_a_node_is_told_once_however_many_references_there_are() {
    let Pair { world, manager, client } = pair();
    let other = open(&world, 300);
    let held = offer(&client, &manager, 0x10);
    look_up(&other, &manager, held);
    assert_eq!(post_with(client.main(), 0, &[binder(0x10)]), [Return::TransactionComplete]);
    assert_eq!(client.main().drain(), []);
    end(&world, [client, manager, other]);
}

#[test]
fn the_owner_of_a_node_hears_of_its_last_reference() {
    let Pair { world, manager, client } = pair();
    let other = open(&world, 300);
    let held = offer(&client, &manager, 0x10);
    let found = look_up(&other, &manager, held);
    manager.main().write(&[Command::Release(held)]);
    assert_eq!(client.main().drain(), [], "somebody else has one");
    other.main().write(&[Command::Release(found)]);
    let own = node(0x10);
    assert_eq!(client.main().drain(), [Return::Release(own), Return::Decrefs(own)]);
    assert_eq!(node_after(client.main(), 0), (0, 0, 0, 0), "the node is gone");
    end(&world, [client, manager, other]);
}

#[test]
fn a_weak_reference_that_stays_keeps_the_node() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    manager.main().write(&[Command::Increfs(held), Command::Release(held)]);
    assert_eq!(client.main().drain(), [Return::Release(node(0x10))]);
    assert_eq!(node_after(client.main(), 0), (0x10, 0x11, 0, 1));
    manager.main().write(&[Command::Decrefs(held)]);
    assert_eq!(client.main().drain(), [Return::Decrefs(node(0x10))]);
    end(&world, [client, manager]);
}

/// BR_RELEASE does not overtake the confirmation of BR_ACQUIRE.
#[test]
fn the_end_of_a_node_waits_for_increfs_done_and_acquire_done() {
    let Pair { world, manager, client } = pair();
    let own = node(0x10);
    post_with(client.main(), 0, &[binder(0x10)]);
    let received = take(manager.main());
    free(&manager, &received);
    assert_eq!(world.stats().references, 0, "the buffer held the only one");
    assert_eq!(client.main().drain(), []);
    client.main().write(&[Command::AcquireDone(own)]);
    assert_eq!(client.main().drain(), [Return::Release(own)]);
    client.main().write(&[Command::IncrefsDone(own)]);
    assert_eq!(client.main().drain(), [Return::Decrefs(own)]);
    end(&world, [client, manager]);
}

#[test]
fn a_confirmation_that_nobody_waits_for_is_ignored() {
    let Pair { world, manager, client } = pair();
    let own = node(0x10);
    let held = offer(&client, &manager, 0x10);
    client.main().write(&[
        // Confirmed already; another cookie; no such node.
        Command::IncrefsDone(own),
        Command::AcquireDone(own),
        Command::IncrefsDone(PtrCookie { cookie: 1, ..own }),
        Command::AcquireDone(PtrCookie { cookie: 1, ..own }),
        Command::IncrefsDone(node(0x99)),
        Command::AcquireDone(node(0x99)),
    ]);
    assert_eq!(node_after(client.main(), 0), (0x10, 0x11, 1, 1));
    manager.main().write(&[Command::Release(held)]);
    assert_eq!(client.main().drain(), [Return::Release(own), Return::Decrefs(own)]);
    end(&world, [client, manager]);
}

#[test]
fn a_confirmation_with_another_cookie_does_not_count() {
    let Pair { world, manager, client } = pair();
    let own = node(0x10);
    post_with(client.main(), 0, &[binder(0x10)]);
    let received = take(manager.main());
    free(&manager, &received);
    let wrong = PtrCookie { cookie: 0, ..own };
    client.main().write(&[Command::IncrefsDone(wrong), Command::AcquireDone(wrong)]);
    assert_eq!(client.main().drain(), []);
    client.main().write(&[Command::IncrefsDone(own), Command::AcquireDone(own)]);
    assert_eq!(client.main().drain(), [Return::Release(own), Return::Decrefs(own)]);
    end(&world, [client, manager]);
}

/// The handle is gone before the owner has read that there is one.
#[test]
fn a_node_whose_references_are_gone_unread_is_no_news() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Transaction(one_way(client.message(
        0,
        1,
        b"",
        &[binder(0x10)],
    )))]);
    let received = take(manager.main());
    free(&manager, &received);
    assert_eq!(client.main().drain(), [Return::TransactionComplete]);
    assert_eq!(world.stats().nodes, 1, "only the manager's");
    end(&world, [client, manager]);
}

/// While a call is on its way to it, a node stays, whatever becomes of the caller's handle.
#[test]
fn a_call_keeps_its_node() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let data = one_way(manager.message(held, 7, b"", &[]));
    manager.main().write(&[Command::Transaction(data), Command::Release(held)]);
    assert_eq!(world.stats().references, 0);
    let received = take(client.main());
    assert_eq!((received.code, received.target), (7, 0x10));
    assert_eq!(client.main().drain(), []);
    free(&client, &received);
    let own = node(0x10);
    assert_eq!(client.main().drain(), [Return::Release(own), Return::Decrefs(own)]);
    end(&world, [client, manager]);
}

/// The flags of a node are those it came with first.
#[test]
fn a_node_keeps_the_flags_of_its_first_appearance() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let flags = uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS;
    let again = Object::Binder { strong: true, flat: FlatObject { flags, ..flat(0x10) } };
    assert_eq!(post_with(client.main(), 0, &[again]), [Return::TransactionComplete]);
    let received = take(manager.main());
    let [Object::Handle { flat, .. }] = manager.objects(&received)[..] else { panic!() };
    assert_eq!((flat.flags, flat.cookie), (flags, 0), "the object's flags are passed on");
    manager.add_file(3, fakebinder_sim::SimFile(1));
    assert_eq!(post_with(manager.main(), held, &[fd(3)]), [Return::FailedReply]);
    assert_eq!(error(manager.main()), failed(Errno::EPERM));
    end(&world, [client, manager]);
}

#[test]
fn a_node_with_another_cookie_is_einval() {
    let Pair { world, manager, client } = pair();
    offer(&client, &manager, 0x10);
    let wrong = Object::Binder { strong: true, flat: FlatObject { cookie: 0xbad, ..flat(0x10) } };
    assert_eq!(post_with(client.main(), 0, &[wrong]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    assert_eq!(node_after(client.main(), 0), (0x10, 0x11, 1, 1));
    end(&world, [client, manager]);
}

#[test]
fn node_debug_info_walks_the_nodes_upwards() {
    let Pair { world, manager, client } = pair();
    for ptr in [0x30, 0x10] {
        offer(&client, &manager, ptr);
    }
    post_with(client.main(), 0, &[weak_binder(0x20)]);
    assert_eq!(node_after(client.main(), 0), (0x10, 0x11, 1, 1));
    assert_eq!(node_after(client.main(), 0x10), (0x20, 0x21, 0, 1));
    assert_eq!(node_after(client.main(), 0x2f), (0x30, 0x31, 1, 1));
    assert_eq!(node_after(client.main(), 0x30), (0, 0, 0, 0));
    assert_eq!(node_after(client.main(), u64::MAX), (0, 0, 0, 0));
    end(&world, [client, manager]);
}

/// Its pointer is 0, which is greater than no pointer.
#[test]
fn node_debug_info_does_not_show_a_node_with_pointer_0() {
    let Pair { world, manager, client } = pair();
    assert_eq!(node_after(manager.main(), 0), (0, 0, 0, 0));
    end(&world, [client, manager]);
}

#[test]
fn what_a_dead_owner_was_to_be_told_is_dropped() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    manager.main().write(&[Command::Release(held)]);
    client.release();
    assert_eq!(world.stats().nodes, 1);
    end(&world, [manager]);
}

/// Its last references go after it.
#[test]
fn a_dead_node_goes_with_its_last_reference() {
    let Pair { world, manager, client } = pair();
    let other = open(&world, 300);
    let held = offer(&client, &manager, 0x10);
    let found = look_up(&other, &manager, held);
    client.release();
    other.main().write(&[Command::Increfs(found), Command::Release(found)]);
    manager.release();
    assert_eq!((world.stats().nodes, world.stats().references), (1, 1));
    other.main().write(&[Command::Decrefs(found)]);
    assert_eq!(world.stats().nodes, 0);
    end(&world, [other]);
}
