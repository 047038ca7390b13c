//! References: handles, their counts, and the commands that change them.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{Sim, World};

fn references(world: &World) -> usize {
    world.stats().references
}

/// BINDER_GET_NODE_INFO_FOR_REF: strong and local weak count of the node.
fn counts(manager: &Sim, handle: u32) -> Result<(u32, u32), Errno> {
    let mut arg = handle.to_ne_bytes().to_vec();
    arg.resize(24, 0);
    let out = manager.main().call(uapi::BINDER_GET_NODE_INFO_FOR_REF, &arg)?;
    let field = |index: usize| u32::from_ne_bytes(*out[4 * index..].first_chunk().unwrap());
    assert_eq!(field(0), handle);
    Ok((field(1), field(2)))
}

#[test]
fn acquire_and_increfs_of_handle_0_make_a_reference_to_the_manager() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Acquire(0)]);
    assert_eq!(references(&world), 1);
    client.main().write(&[Command::Increfs(0), Command::Release(0)]);
    assert_eq!(references(&world), 1, "the weak one is left");
    client.main().write(&[Command::Decrefs(0)]);
    assert_eq!(references(&world), 0);
    assert_eq!(manager.main().drain(), [], "the manager keeps its own node");
    end(&world, [client, manager]);
}

#[test]
fn the_manager_may_not_acquire_handle_0() {
    let Pair { world, manager, client } = pair();
    for command in [Command::Acquire(0), Command::Increfs(0)] {
        assert_eq!(manager.main().try_write(&[command]), (Err(Errno::EINVAL), 0));
    }
    for command in [Command::Release(0), Command::Decrefs(0)] {
        assert_eq!(manager.main().try_write(&[command]), (Ok(0), 8), "nothing to take away");
    }
    end(&world, [client, manager]);
}

#[test]
fn handle_0_without_a_manager_is_no_handle() {
    let world = World::default();
    let client = open(&world, 200);
    client.main().write(&[Command::Acquire(0), Command::Increfs(0)]);
    assert_eq!(references(&world), 0);
    end(&world, [client]);
}

/// It is still counted where it was held before.
#[test]
fn handle_0_of_a_dead_manager_can_still_be_acquired_by_who_holds_it() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Acquire(0)]);
    manager.release();
    client.main().write(&[Command::Acquire(0), Command::Release(0)]);
    assert_eq!(references(&world), 1);
    client.main().write(&[Command::Release(0)]);
    assert_eq!((references(&world), world.stats().nodes), (0, 0));
    end(&world, [client]);
}

/// Handle 0 is not free: the new manager is known by the next number.
#[test]
fn a_new_manager_gets_another_handle_where_the_old_one_is_held() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Acquire(0)]);
    manager.release();
    let manager = world.open(101);
    manager.main().become_manager();
    client.main().write(&[Command::Acquire(0)]);
    assert_eq!(references(&world), 2);
    for to_manager in [0, 1] {
        let calling = call(client.main(), to_manager, to_manager, b"the new one");
        assert_eq!(take(manager.main()).code, to_manager);
        answer(manager.main().nonblock(), b"");
        reply(&calling);
    }
    client.main().write(&[Command::Release(0)]);
    assert_eq!(references(&world), 1, "handle 0 is still the old one where counts are taken away");
    end(&world, [client, manager]);
}

#[test]
fn counts_of_a_handle_that_is_none_are_ignored() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[
        Command::Acquire(5),
        Command::Increfs(5),
        Command::Release(5),
        Command::Decrefs(5),
    ]);
    assert_eq!(references(&world), 0);
    end(&world, [client, manager]);
}

#[test]
fn a_count_of_0_is_not_taken_below() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    manager.main().write(&[Command::Decrefs(held)]);
    assert_eq!(references(&world), 1, "there was no weak count");
    manager.main().write(&[Command::Increfs(held), Command::Release(held)]);
    manager.main().write(&[Command::Release(held), Command::Release(held)]);
    assert_eq!(references(&world), 1, "there was no strong count");
    manager.main().write(&[Command::Decrefs(held)]);
    assert_eq!(references(&world), 0);
    end(&world, [client, manager]);
}

#[test]
fn a_weak_handle_cannot_be_acquired() {
    let Pair { world, manager, client } = pair();
    post_with(client.main(), 0, &[weak_binder(0x10)]);
    let received = take(manager.main());
    let weak = only_handle(&manager, &received);
    manager.main().write(&[Command::Acquire(weak), Command::Increfs(weak)]);
    free(&manager, &received);
    assert_eq!(references(&world), 1);
    assert_eq!(news(&call(manager.main(), weak, 1, b"")), [Return::FailedReply]);
    manager.main().write(&[Command::Decrefs(weak)]);
    assert_eq!(references(&world), 0);
    end(&world, [client, manager]);
}

#[test]
fn handles_are_the_smallest_that_are_free() {
    let Pair { world, manager, client } = pair();
    let held: Vec<u32> = (1..=4).map(|ptr| offer(&client, &manager, ptr * 16)).collect();
    assert_eq!(held, [1, 2, 3, 4]);
    manager.main().write(&[Command::Release(2), Command::Release(4), Command::Release(3)]);
    client.main().drain();
    let again: Vec<u32> = (5..=8).map(|ptr| offer(&client, &manager, ptr * 16)).collect();
    assert_eq!(again, [2, 3, 4, 5]);
    end(&world, [client, manager]);
}

#[test]
fn a_handle_that_is_given_back_between_others_is_the_next() {
    let Pair { world, manager, client } = pair();
    for ptr in [0x10, 0x20, 0x30, 0x40] {
        offer(&client, &manager, ptr);
    }
    manager.main().write(&[Command::Release(3), Command::Release(1)]);
    client.main().drain();
    assert_eq!([0x50, 0x60, 0x70].map(|ptr| offer(&client, &manager, ptr)), [1, 3, 5]);
    end(&world, [client, manager]);
}

#[test]
fn a_node_has_one_handle_in_a_process() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    post_with(client.main(), 0, &[binder(0x10)]);
    let received = take(manager.main());
    assert_eq!(only_handle(&manager, &received), held);
    manager.main().write(&[Command::Release(held)]);
    assert_eq!(references(&world), 1, "the buffer has a count of its own");
    free(&manager, &received);
    assert_eq!(references(&world), 0);
    end(&world, [client, manager]);
}

/// A buffer holds what came in it, until it is freed.
#[test]
fn a_freed_buffer_gives_its_references_back() {
    let Pair { world, manager, client } = pair();
    post_with(client.main(), 0, &[binder(0x10), weak_binder(0x20), binder(0x10)]);
    let received = take(manager.main());
    assert_eq!(references(&world), 2);
    free(&manager, &received);
    assert_eq!(references(&world), 0);
    end(&world, [client, manager]);
}

/// The receiver took the handle's counts away before it frees the buffer.
#[test]
fn a_buffer_whose_handle_is_gone_can_still_be_freed() {
    let Pair { world, manager, client } = pair();
    post_with(client.main(), 0, &[binder(0x10)]);
    let received = take(manager.main());
    let stolen = only_handle(&manager, &received);
    manager.main().write(&[Command::Release(stolen)]);
    assert_eq!(references(&world), 0);
    free(&manager, &received);
    assert_eq!(manager.alloc.allocated_count(), 0);
    end(&world, [client, manager]);
}

#[test]
fn node_info_for_ref_counts_the_nodes_references() {
    let Pair { world, manager, client } = pair();
    let other = open(&world, 300);
    let held = offer(&client, &manager, 0x10);
    assert_eq!(counts(&manager, held), Ok((1, 0)));
    look_up(&other, &manager, held);
    assert_eq!(counts(&manager, held), Ok((2, 0)));
    // A call that is under way counts too; so does what the owner has not confirmed.
    post(manager.main(), held, 1, b"");
    assert_eq!(counts(&manager, held), Ok((3, 0)));
    post_with(client.main(), 0, &[binder(0x20)]);
    let received = take(manager.main());
    assert_eq!(counts(&manager, only_handle(&manager, &received)), Ok((2, 1)));
    end(&world, [client, manager, other]);
}

#[test]
fn node_info_for_ref_is_for_the_manager_only() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Acquire(0)]);
    assert_eq!(counts(&client, 0), Err(Errno::EPERM));
    manager.release();
    assert_eq!(counts(&client, 0), Err(Errno::EPERM), "nor for anybody when there is none");
    end(&world, [client]);
}

#[test]
fn node_info_for_ref_wants_a_strong_handle_and_nothing_else() {
    let Pair { world, manager, client } = pair();
    assert_eq!(counts(&manager, 1), Err(Errno::EINVAL));
    post_with(client.main(), 0, &[weak_binder(0x10)]);
    let received = take(manager.main());
    assert_eq!(counts(&manager, 1), Err(Errno::EINVAL), "weak");
    manager.main().write(&[Command::Increfs(1), Command::FreeBuffer(received.buffer)]);
    offer(&client, &manager, 0x20);
    for field in 1..6 {
        let mut arg = [0; 24];
        arg[0] = 2;
        arg[4 * field] = 1;
        let answer = manager.main().call(uapi::BINDER_GET_NODE_INFO_FOR_REF, &arg);
        assert_eq!(answer, Err(Errno::EINVAL), "field {field}");
        // Said before it is asked who asks.
        let answer = client.main().call(uapi::BINDER_GET_NODE_INFO_FOR_REF, &arg);
        assert_eq!(answer, Err(Errno::EINVAL));
    }
    end(&world, [client, manager]);
}
