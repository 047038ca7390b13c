//! The context manager: who may be it, and what it is when it is gone; contexts side by side.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{FlatObject, Object};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{Sim, World};

fn become_manager(sim: &Sim) -> Result<(), Errno> {
    sim.main().call(uapi::BINDER_SET_CONTEXT_MGR, &[0; 4]).map(drop)
}

fn become_manager_with(sim: &Sim, flat: FlatObject) -> Result<(), Errno> {
    let mut object = Vec::new();
    Object::Binder { strong: true, flat }.encode(&mut object);
    sim.main().call(uapi::BINDER_SET_CONTEXT_MGR_EXT, &object).map(drop)
}

#[test]
fn a_context_has_one_manager() {
    let Pair { world, manager, client } = pair();
    assert_eq!(become_manager(&client), Err(Errno::EBUSY));
    assert_eq!(become_manager(&manager), Err(Errno::EBUSY), "not even the same one twice");
    assert_eq!(become_manager_with(&client, FlatObject::default()), Err(Errno::EBUSY));
    end(&world, [client, manager]);
}

#[test]
fn a_manager_that_is_gone_can_be_followed_by_one_with_its_uid() {
    let Pair { world, manager, mut client } = pair();
    manager.release();
    client.euid = 0;
    assert_eq!(become_manager(&client), Err(Errno::EPERM), "not even root, but its own uid");
    client.euid = 1000;
    assert_eq!(become_manager(&client), Ok(()));
    end(&world, [client]);
}

/// Nobody else's uid was remembered where nobody has become manager.
#[test]
fn a_manager_that_was_refused_does_not_settle_the_uid() {
    let world = World::default();
    let mut first = open(&world, 1);
    first.euid = 5;
    let second = open(&world, 2);
    assert_eq!(become_manager(&second), Ok(()));
    assert_eq!(become_manager(&first), Err(Errno::EBUSY));
    second.release();
    assert_eq!(become_manager(&first), Err(Errno::EPERM), "uid 1000 was the first");
    end(&world, [first]);
}

/// Its node has pointer and cookie 0 unless it says otherwise.
#[test]
fn set_context_mgr_ext_keeps_pointer_cookie_and_flags() {
    let world = World::default();
    let manager = world.open(100);
    let flat =
        FlatObject { flags: uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS | 5, binder: 0xaa0, cookie: 0xbb0 };
    assert_eq!(become_manager_with(&manager, flat), Ok(()));
    let client = open(&world, 200);
    client.add_file(3, fakebinder_sim::SimFile(1));
    assert_eq!(post_with(client.main(), 0, &[fd(3)]), [Return::TransactionComplete]);
    let received = take(manager.main());
    assert_eq!((received.target, received.cookie), (0xaa0, 0xbb0));
    let out = manager.main().call(uapi::BINDER_GET_NODE_DEBUG_INFO, &[0; 24]).unwrap();
    assert_eq!(out[..8], 0xaa0_u64.to_ne_bytes());
    assert_eq!(out[16..], [1, 0, 0, 0, 1, 0, 0, 0], "it has both references from the first");
    end(&world, [client, manager]);
}

#[test]
fn a_call_reaches_whoever_is_manager_now() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Acquire(0)]);
    manager.release();
    assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::DeadReply]);
    let next = world.open(101);
    next.main().become_manager();
    let calling = call(client.main(), 0, 1, b"");
    take(next.main());
    answer(next.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, next]);
}

/// Whoever holds it: it has handle 0 wherever that is free.
#[test]
fn the_managers_node_may_be_passed_on_like_any_other() {
    let Pair { world, manager, client } = pair();
    let third = open(&world, 300);
    let held = offer(&client, &manager, 0x10);
    third.main().write(&[Command::Acquire(0)]);
    let found = look_up(&third, &manager, held);
    // The third gives the client what it knows as handle 0: it is handle 0 there too.
    let data = one_way(third.message(found, 1, b"", &[handle(0)]));
    third.main().write(&[Command::Transaction(data)]);
    let received = take(client.main());
    assert_eq!(only_handle(&client, &received), 0);
    end(&world, [client, manager, third]);
}

#[test]
fn contexts_do_not_share_managers_or_handles() {
    let Pair { world, manager, client } = pair();
    let vendor = world.open_unmapped("vndbinder", 200);
    vendor.mmap(4096).unwrap();
    introduce(vendor.main());
    assert_eq!(news(&call(vendor.main(), 0, 1, b"")), [Return::DeadReply], "no manager there");
    let vendor_manager = world.open_unmapped("vndbinder", 100);
    vendor_manager.mmap(4096).unwrap();
    vendor_manager.main().become_manager();
    let calling = call(vendor.main(), 0, 5, b"");
    assert_eq!(take(vendor_manager.main()).code, 5);
    assert_eq!(manager.main().drain(), []);
    answer(vendor_manager.main().nonblock(), b"");
    reply(&calling);
    offer(&client, &manager, 0x10);
    assert_eq!(news(&call(vendor_manager.main(), 1, 1, b"")), [Return::FailedReply]);
    assert_eq!(vendor.context.name(), "vndbinder");
    assert_eq!((vendor.context.stats().nodes, client.context.stats().nodes), (1, 2));
    end(&world, [client, manager, vendor, vendor_manager]);
}

/// The first uid is remembered in each context for itself.
#[test]
fn contexts_do_not_share_the_managers_uid() {
    let Pair { world, manager, client } = pair();
    let mut other = world.open_unmapped("hwbinder", 300);
    other.euid = 7;
    assert_eq!(become_manager(&other), Ok(()));
    end(&world, [client, manager, other]);
}
