//! Nodes: what their owner is told of references, and its confirmations.

use super::message::*;
use super::{Scene, group};
use fakebinder_client::uapi;

group! { "node":
    the_owner_is_told_with_its_next_read,
    the_owner_is_told_once,
    a_weak_reference_is_told_as_weak,
    a_strong_one_after_a_weak_one_is_told,
    the_last_release_is_told,
    the_node_is_gone_after_decrefs,
    release_waits_for_acquire_done,
    decrefs_waits_for_increfs_done,
    done_for_an_unknown_node_changes_nothing,
    done_with_another_cookie_changes_nothing,
    done_twice_changes_nothing,
    a_node_that_comes_and_goes_unread_is_not_told,
    a_node_can_come_back,
    a_new_reference_before_the_release_is_read,
    a_call_holds_its_node,
    a_buffer_holds_the_node_that_came_home,
    a_second_holder_keeps_the_node,
    references_are_told_to_any_thread,
    first_references_are_told_to_the_sending_thread,
    the_managers_node_is_never_told,
}

fn the_owner_is_told_with_its_next_read(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    owner.write(call(0).binder(1, 2));
    manager.receive();
    owner.reads("EAGAIN");
    manager.write(reply());
    owner.reads("NOOP INCREFS(1,2) ACQUIRE(1,2) TRANSACTION_COMPLETE REPLY");
}

fn the_owner_is_told_once(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    scene.introduce(&owner, &manager, 1, 2);
    owner.write(oneway(0).binder(1, 2).weak_binder(1, 2));
    manager.receive();
    owner.reads("NOOP TRANSACTION_COMPLETE");
}

fn a_weak_reference_is_told_as_weak(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    owner.write(oneway(0).weak_binder(1, 2));
    owner.reads("NOOP INCREFS(1,2) TRANSACTION_COMPLETE");
    owner.write(increfs_done(1, 2));
    let got = manager.receive();
    manager.write(free(got.buffer));
    owner.reads("NOOP DECREFS(1,2)");
}

fn a_strong_one_after_a_weak_one_is_told(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    owner.write(oneway(0).weak_binder(1, 2));
    owner.reads("NOOP INCREFS(1,2) TRANSACTION_COMPLETE");
    owner.write([increfs_done(1, 2), oneway(0).binder(1, 2).into()]);
    owner.reads("NOOP ACQUIRE(1,2) TRANSACTION_COMPLETE");
    drop(manager);
}

fn the_last_release_is_told(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write(increfs(handle));
    manager.write(release(handle));
    owner.reads("NOOP RELEASE(1,2)");
    manager.write(decrefs(handle));
    owner.reads("NOOP DECREFS(1,2)");
}

fn the_node_is_gone_after_decrefs(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write(release(handle));
    owner.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
    // A new node with the same identity.
    scene.introduce(&owner, &manager, 1, 3);
}

fn release_waits_for_acquire_done(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    owner.write(oneway(0).binder(1, 2));
    owner.reads("NOOP INCREFS(1,2) ACQUIRE(1,2) TRANSACTION_COMPLETE");
    owner.write(increfs_done(1, 2));
    let got = manager.receive();
    manager.write(free(got.buffer));
    owner.reads("EAGAIN");
    owner.write(acquire_done(1, 2));
    owner.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
}

fn decrefs_waits_for_increfs_done(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    owner.write(oneway(0).binder(1, 2));
    owner.reads("NOOP INCREFS(1,2) ACQUIRE(1,2) TRANSACTION_COMPLETE");
    owner.write(acquire_done(1, 2));
    let got = manager.receive();
    manager.write(free(got.buffer));
    owner.reads("NOOP RELEASE(1,2)");
    owner.write(increfs_done(1, 2));
    owner.reads("NOOP DECREFS(1,2)");
}

fn done_for_an_unknown_node_changes_nothing(scene: &Scene) {
    let process = scene.process();
    process.write([increfs_done(1, 2), acquire_done(0, 0)]);
    process.reads("EAGAIN");
}

fn done_with_another_cookie_changes_nothing(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    owner.write(oneway(0).binder(1, 2));
    owner.reads("NOOP INCREFS(1,2) ACQUIRE(1,2) TRANSACTION_COMPLETE");
    owner.write([increfs_done(1, 3), acquire_done(1, 3)]);
    let got = manager.receive();
    manager.write(free(got.buffer));
    owner.reads("EAGAIN");
    owner.write([increfs_done(1, 2), acquire_done(1, 2)]);
    owner.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
}

fn done_twice_changes_nothing(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    owner.write([increfs_done(1, 2), acquire_done(1, 2), acquire_done(1, 2)]);
    owner.reads("EAGAIN");
    manager.write(oneway(handle));
    owner.receive();
}

fn a_node_that_comes_and_goes_unread_is_not_told(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    owner.write(oneway(0).binder(1, 2));
    let got = manager.receive();
    manager.write(free(got.buffer));
    owner.reads("NOOP TRANSACTION_COMPLETE");
    owner.reads("EAGAIN");
}

fn a_node_can_come_back(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    for _ in 0..3 {
        let handle = scene.introduce(&owner, &manager, 1, 2);
        manager.write(release(handle));
        owner.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
    }
}

fn a_new_reference_before_the_release_is_read(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write(release(handle));
    owner.write(oneway(0).binder(1, 2));
    // By the time the owner reads, nothing has changed.
    owner.reads("NOOP TRANSACTION_COMPLETE");
    let got = manager.receive();
    manager.write(free(got.buffer));
    owner.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
}

fn a_call_holds_its_node(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write([oneway(handle).into(), increfs(handle), release(handle)]);
    let got = owner.receive();
    owner.reads("EAGAIN");
    owner.write(free(got.buffer));
    owner.reads("NOOP RELEASE(1,2)");
}

fn a_buffer_holds_the_node_that_came_home(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    let other = scene.introduce(&owner, &manager, 3, 4);
    manager.write([oneway(other).handle(handle).into(), release(handle)]);
    let got = owner.receive();
    owner.reads("EAGAIN");
    owner.write(free(got.buffer));
    owner.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
}

fn a_second_holder_keeps_the_node(scene: &Scene) {
    let manager = scene.manager();
    let (owner, third) = (scene.process(), scene.process());
    let handle = scene.introduce(&owner, &manager, 1, 2);
    let to_third = scene.introduce(&third, &manager, 3, 4);
    manager.write(oneway(to_third).handle(handle));
    let got = third.receive();
    manager.write(release(handle));
    owner.reads("EAGAIN");
    third.write(free(got.buffer));
    owner.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
}

fn references_are_told_to_any_thread(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process_with(2);
    let handle = scene.introduce(&owner, &manager, 1, 2);
    owner.threads[1].reads("NOOP");
    manager.write(release(handle));
    owner.threads[1].reads("NOOP RELEASE(1,2) DECREFS(1,2)");
    owner.reads("EAGAIN");
}

fn first_references_are_told_to_the_sending_thread(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process_with(2);
    owner.threads[1].reads("NOOP");
    owner.write(call(0).binder(1, 2));
    owner.threads[1].reads("EAGAIN");
    manager.receive();
    manager.write(reply());
    owner.reads("NOOP INCREFS(1,2) ACQUIRE(1,2) TRANSACTION_COMPLETE REPLY");
}

fn the_managers_node_is_never_told(scene: &Scene) {
    let manager = scene.manager_with(1, uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS);
    let client = scene.process();
    client.write([acquire(0), increfs(0), call(0).into()]);
    let got = manager.receive();
    manager.write([free(got.buffer), reply().into()]);
    manager.reads("NOOP TRANSACTION_COMPLETE");
    client.write([release(0), decrefs(0)]);
    manager.reads("EAGAIN");
}
