//! Handles: references to nodes of other processes, their numbers and their counts.

use super::message::*;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::Object;

group! { "handle":
    handles_count_from_1,
    one_node_has_one_handle,
    the_lowest_free_number_is_used,
    a_handle_goes_to_a_third_process,
    a_handle_comes_home_as_the_node,
    a_weak_node_arrives_as_a_weak_handle,
    a_weak_handle_goes_to_a_third_process,
    a_weak_handle_comes_home_as_the_weak_node,
    a_strong_handle_can_be_sent_as_weak,
    a_weak_handle_cannot_be_sent_as_strong,
    an_unknown_handle_cannot_be_sent,
    a_handle_lives_as_long_as_its_buffer,
    an_acquired_handle_outlives_its_buffer,
    an_undelivered_handle_dies_with_its_receiver,
    each_acquire_wants_a_release,
    strong_and_weak_counts_are_separate,
    a_weak_handle_cannot_be_acquired,
    a_release_too_many_changes_nothing,
    a_decrefs_too_many_changes_nothing,
    counting_an_unknown_handle_changes_nothing,
    a_dead_nodes_handle_keeps_its_number,
    a_dead_nodes_handle_can_be_sent_on,
    two_processes_number_on_their_own,
}

/// Sends a node of `owner` to the manager, which keeps the buffer.
fn send(owner: &Thread, manager: &Thread, message: Msg) -> Received {
    owner.write(message.flags(fakebinder_client::uapi::TF_ONE_WAY));
    let got = manager.receive();
    owner.read();
    got
}

fn handles_count_from_1(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    for number in 1..5 {
        assert_eq!(scene.introduce(&owner, &manager, u64::from(number) * 8, 0), number);
    }
}

fn one_node_has_one_handle(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    let got = send(&owner, &manager, call(0).binder(1, 2).weak_binder(1, 2));
    assert_eq!([got.handle(0), got.handle(1)], [handle, handle]);
}

fn the_lowest_free_number_is_used(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    for ptr in 1..=4 {
        scene.introduce(&owner, &manager, ptr, 0);
    }
    manager.write([release(2), release(3)]);
    owner.reads("NOOP RELEASE(2,0) DECREFS(2,0) RELEASE(3,0) DECREFS(3,0)");
    for (ptr, number) in [(5, 2), (6, 3), (7, 5)] {
        assert_eq!(scene.introduce(&owner, &manager, ptr, 0), number);
    }
}

fn a_handle_goes_to_a_third_process(scene: &Scene) {
    let manager = scene.manager();
    let (owner, third) = (scene.process(), scene.process());
    let unused = scene.introduce(&owner, &manager, 9, 9);
    let handle = scene.introduce(&owner, &manager, 1, 2);
    let to_third = scene.introduce(&third, &manager, 3, 4);
    assert_eq!([unused, handle, to_third], [1, 2, 3]);
    manager.write(oneway(to_third).handle(handle));
    let got = third.receive();
    assert_eq!(got.object(0), Object::Handle { handle: 1, cookie: 0, flags: 0 });
    third.write(oneway(1).code(8));
    let got = owner.receive();
    assert_eq!((got.code, got.target, got.cookie), (8, 1, 2));
}

fn a_handle_comes_home_as_the_node(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    let flags = 0x123;
    manager.write(oneway(handle).object(Object::Handle { handle, cookie: 99, flags }));
    assert_eq!(owner.receive().object(0), Object::Binder { ptr: 1, cookie: 2, flags });
}

fn a_weak_node_arrives_as_a_weak_handle(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    owner.write(oneway(0).weak_binder(1, 2));
    let got = manager.receive();
    assert_eq!(got.object(0), Object::WeakHandle { handle: 1, cookie: 0, flags: 0 });
    owner.reads("NOOP INCREFS(1,2) TRANSACTION_COMPLETE");
}

/// A handle of the manager's with a weak reference, which nothing else keeps.
fn weak(scene: &Scene, owner: &Thread, manager: &Thread, ptr: u64) -> u32 {
    let handle = scene.introduce(owner, manager, ptr, 0);
    manager.write([increfs(handle), release(handle)]);
    owner.reads(&format!("NOOP RELEASE({ptr},0)"));
    handle
}

fn a_weak_handle_goes_to_a_third_process(scene: &Scene) {
    let manager = scene.manager();
    let (owner, third) = (scene.process(), scene.process());
    let handle = weak(scene, &owner, &manager, 1);
    let to_third = scene.introduce(&third, &manager, 3, 4);
    manager.write(oneway(to_third).weak_handle(handle));
    let got = third.receive();
    assert_eq!(got.object(0), Object::WeakHandle { handle: 1, cookie: 0, flags: 0 });
}

fn a_weak_handle_comes_home_as_the_weak_node(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = weak(scene, &owner, &manager, 1);
    let strong = scene.introduce(&owner, &manager, 3, 4);
    manager.write(oneway(strong).weak_handle(handle));
    let got = owner.receive();
    assert_eq!(got.object(0), Object::WeakBinder { ptr: 1, cookie: 0, flags: 0 });
}

fn a_strong_handle_can_be_sent_as_weak(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write(oneway(handle).weak_handle(handle));
    let got = owner.receive();
    assert_eq!(got.object(0), Object::WeakBinder { ptr: 1, cookie: 2, flags: 0 });
}

fn a_weak_handle_cannot_be_sent_as_strong(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = weak(scene, &owner, &manager, 1);
    let strong = scene.introduce(&owner, &manager, 3, 4);
    manager.write(oneway(strong).handle(handle));
    manager.reads("NOOP FAILED_REPLY");
    assert_eq!(manager.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
}

fn an_unknown_handle_cannot_be_sent(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    for message in [call(0).handle(0), call(0).handle(1), call(0).weak_handle(1)] {
        client.write(message);
        client.reads("NOOP FAILED_REPLY");
        assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
    }
    drop(manager);
}

fn a_handle_lives_as_long_as_its_buffer(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let got = send(&owner, &manager, call(0).binder(1, 2));
    manager.write(oneway(got.handle(0)).code(1));
    assert_eq!(owner.receive().code, 1);
    manager.reads("NOOP TRANSACTION_COMPLETE");
    manager.write(free(got.buffer));
    manager.write(oneway(got.handle(0)));
    manager.reads("NOOP FAILED_REPLY");
}

fn an_acquired_handle_outlives_its_buffer(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let got = send(&owner, &manager, call(0).binder(1, 2));
    manager.write([acquire(got.handle(0)), free(got.buffer)]);
    manager.write(oneway(got.handle(0)));
    manager.reads("NOOP TRANSACTION_COMPLETE");
}

fn an_undelivered_handle_dies_with_its_receiver(scene: &Scene) {
    let manager = scene.manager();
    let (owner, third) = (scene.process(), scene.process());
    let handle = scene.introduce(&owner, &manager, 1, 2);
    let to_third = scene.introduce(&third, &manager, 3, 4);
    manager.write([oneway(to_third).handle(handle).into(), release(handle)]);
    owner.reads("EAGAIN");
    third.kill();
    owner.waits("NOOP RELEASE(1,2) DECREFS(1,2)");
}

fn each_acquire_wants_a_release(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write([acquire(handle), acquire(handle)]);
    for _ in 0..2 {
        manager.write(release(handle));
        owner.reads("EAGAIN");
    }
    manager.write(release(handle));
    owner.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
}

fn strong_and_weak_counts_are_separate(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write([increfs(handle), increfs(handle)]);
    manager.write(release(handle));
    owner.reads("NOOP RELEASE(1,2)");
    manager.write(decrefs(handle));
    owner.reads("EAGAIN");
    manager.write(decrefs(handle));
    owner.reads("NOOP DECREFS(1,2)");
}

fn a_weak_handle_cannot_be_acquired(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = weak(scene, &owner, &manager, 1);
    manager.write(acquire(handle));
    owner.reads("EAGAIN");
    manager.write(call(handle));
    manager.reads("NOOP FAILED_REPLY");
}

fn a_release_too_many_changes_nothing(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write([increfs(handle), release(handle), release(handle), release(handle)]);
    owner.reads("NOOP RELEASE(1,2)");
    owner.reads("EAGAIN");
    manager.write(decrefs(handle));
    owner.reads("NOOP DECREFS(1,2)");
}

fn a_decrefs_too_many_changes_nothing(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write([decrefs(handle), decrefs(handle)]);
    owner.reads("EAGAIN");
    manager.write(oneway(handle));
    manager.reads("NOOP TRANSACTION_COMPLETE");
}

fn counting_an_unknown_handle_changes_nothing(scene: &Scene) {
    let process = scene.process();
    for handle in [1, 5, u32::MAX] {
        process.write([increfs(handle), acquire(handle), release(handle), decrefs(handle)]);
    }
    process.reads("EAGAIN");
}

fn a_dead_nodes_handle_keeps_its_number(scene: &Scene) {
    let manager = scene.manager();
    let (first, second) = (scene.process(), scene.process());
    let handle = scene.introduce(&first, &manager, 1, 2);
    scene.bury(&first, &manager);
    assert_ne!(scene.introduce(&second, &manager, 1, 2), handle);
    manager.write(release(handle));
    assert_eq!(scene.introduce(&second, &manager, 5, 6), handle);
}

fn a_dead_nodes_handle_can_be_sent_on(scene: &Scene) {
    let manager = scene.manager();
    let (owner, third) = (scene.process(), scene.process());
    let handle = scene.introduce(&owner, &manager, 1, 2);
    let to_third = scene.introduce(&third, &manager, 3, 4);
    scene.bury(&owner, &manager);
    manager.write(oneway(to_third).handle(handle));
    let got = third.receive();
    third.write(call(got.handle(0)));
    third.reads("NOOP DEAD_REPLY");
}

fn two_processes_number_on_their_own(scene: &Scene) {
    let manager = scene.manager();
    let (owner, third) = (scene.process(), scene.process());
    let to_third = scene.introduce(&third, &manager, 3, 4);
    let handle = scene.introduce(&owner, &manager, 1, 2);
    assert_eq!([to_third, handle], [1, 2]);
    manager.write(oneway(to_third).handle(handle));
    assert_eq!(third.receive().handle(0), 1);
}
