//! Death notifications.

use super::message::*;
use super::scene::*;
use super::{Scene, group};

group! { "death":
    a_death_is_told,
    a_death_is_told_once,
    a_death_is_told_by_the_requests_cookie,
    a_request_after_the_death_is_told_at_once,
    a_request_after_the_end_of_one_works_again,
    a_weak_reference_is_enough,
    the_managers_death_is_told,
    each_death_ends_a_read,
    every_holder_is_told,
    one_holder_is_told_of_each_node,
    a_cleared_request_is_not_told,
    clearing_is_told,
    clearing_tells_the_looper_itself,
    clearing_after_the_death_was_told_waits_for_done,
    clearing_before_the_death_is_read,
    a_second_request_is_refused,
    clearing_with_another_cookie_changes_nothing,
    clearing_without_a_request_changes_nothing,
    clearing_twice_changes_nothing,
    requests_for_unknown_handles_change_nothing,
    done_for_an_unknown_cookie_changes_nothing,
    done_twice_changes_nothing,
    a_handle_given_up_is_not_told,
    a_thread_that_exits_is_not_dead,
    a_process_that_closes_is_dead,
    a_death_is_told_to_any_thread,
    a_thread_at_work_is_not_told,
    the_same_cookie_twice,
    a_death_is_readable,
}

/// The manager, a node's owner, and the manager's handle for the node.
fn holder(scene: &Scene) -> (Process, Process, u32) {
    let (manager, owner) = (scene.manager(), scene.process());
    let handle = scene.introduce(&owner, &manager, 1, 2);
    (manager, owner, handle)
}

fn a_death_is_told(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write(request_death(handle, 5));
    manager.reads("EAGAIN");
    owner.kill();
    manager.waits("NOOP DEAD_BINDER(5)");
}

fn a_death_is_told_once(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write(request_death(handle, 5));
    scene.bury(&owner, &manager);
    manager.reads("NOOP DEAD_BINDER(5)");
    manager.reads("EAGAIN");
    manager.write(dead_binder_done(5));
    manager.reads("EAGAIN");
}

fn a_death_is_told_by_the_requests_cookie(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write(request_death(handle, 0xfedc_ba98_7654_3210));
    owner.kill();
    manager.waits(&format!("NOOP DEAD_BINDER({})", 0xfedc_ba98_7654_3210u64));
}

fn a_request_after_the_death_is_told_at_once(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    scene.bury(&owner, &manager);
    manager.write(request_death(handle, 5));
    manager.reads("NOOP DEAD_BINDER(5)");
}

fn a_request_after_the_end_of_one_works_again(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write([request_death(handle, 5), clear_death(handle, 5), request_death(handle, 6)]);
    manager.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
    owner.kill();
    manager.waits("NOOP DEAD_BINDER(6)");
}

fn a_weak_reference_is_enough(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write([increfs(handle), release(handle), request_death(handle, 5)]);
    owner.kill();
    manager.waits("NOOP DEAD_BINDER(5)");
}

fn the_managers_death_is_told(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write([increfs(0), request_death(0, 5)]);
    manager.kill();
    client.waits("NOOP DEAD_BINDER(5)");
}

fn each_death_ends_a_read(scene: &Scene) {
    let (manager, owner) = (scene.manager(), scene.process());
    let handles = [1, 2, 3].map(|ptr| scene.introduce(&owner, &manager, ptr, 0));
    for handle in handles {
        manager.write(request_death(handle, u64::from(handle) * 10));
    }
    scene.bury(&owner, &manager);
    // One read for each, in the order of the nodes' identities.
    manager.reads("NOOP DEAD_BINDER(10)");
    manager.reads("NOOP DEAD_BINDER(20)");
    manager.reads("NOOP DEAD_BINDER(30)");
    manager.reads("EAGAIN");
}

fn every_holder_is_told(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    let third = scene.process();
    let to_third = scene.introduce(&third, &manager, 3, 4);
    manager.write(oneway(to_third).handle(handle));
    let got = third.receive();
    third.write(request_death(got.handle(0), 7));
    manager.write(request_death(handle, 5));
    scene.bury(&owner, &manager);
    manager.reads("NOOP TRANSACTION_COMPLETE");
    manager.reads("NOOP DEAD_BINDER(5)");
    third.reads("NOOP DEAD_BINDER(7)");
}

fn one_holder_is_told_of_each_node(scene: &Scene) {
    let manager = scene.manager();
    let (first, second) = (scene.process(), scene.process());
    let one = scene.introduce(&first, &manager, 1, 1);
    let two = scene.introduce(&second, &manager, 1, 1);
    manager.write([request_death(one, 1), request_death(two, 2)]);
    scene.bury(&second, &manager);
    manager.reads("NOOP DEAD_BINDER(2)");
    manager.reads("EAGAIN");
    scene.bury(&first, &manager);
    manager.reads("NOOP DEAD_BINDER(1)");
}

fn a_cleared_request_is_not_told(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write([request_death(handle, 5), clear_death(handle, 5)]);
    manager.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
    scene.bury(&owner, &manager);
    manager.reads("EAGAIN");
}

fn clearing_is_told(scene: &Scene) {
    let (manager, _owner, handle) = holder(scene);
    manager.write(request_death(handle, 5));
    let (_, reads) = manager.write_read(clear_death(handle, 5), READ_SIZE);
    assert_eq!(reads.text, "NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
}

fn clearing_tells_the_looper_itself(scene: &Scene) {
    let (manager, owner) = (scene.manager_with(2, 0), scene.process());
    let handle = scene.introduce(&owner, &manager, 1, 2);
    let [first, second] = [&manager.threads[0], &manager.threads[1]];
    second.reads("NOOP");
    first.write([request_death(handle, 5), clear_death(handle, 5)]);
    second.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
    first.write([enter_looper(), request_death(handle, 6), clear_death(handle, 6)]);
    second.reads("EAGAIN");
    first.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(6)");
}

fn clearing_after_the_death_was_told_waits_for_done(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write(request_death(handle, 5));
    owner.kill();
    manager.waits("NOOP DEAD_BINDER(5)");
    manager.write(clear_death(handle, 5));
    manager.reads("EAGAIN");
    manager.write(dead_binder_done(5));
    manager.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
}

fn clearing_before_the_death_is_read(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write(request_death(handle, 5));
    scene.bury(&owner, &manager);
    manager.write(clear_death(handle, 5));
    manager.reads("NOOP DEAD_BINDER(5)");
    manager.reads("EAGAIN");
    manager.write(dead_binder_done(5));
    manager.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
}

fn a_second_request_is_refused(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write([request_death(handle, 5), request_death(handle, 6), request_death(handle, 5)]);
    manager.reads("EAGAIN");
    scene.bury(&owner, &manager);
    manager.reads("NOOP DEAD_BINDER(5)");
    manager.reads("EAGAIN");
    // A second request is ignored also after the death was told.
    manager.write(request_death(handle, 7));
    manager.reads("EAGAIN");
}

fn clearing_with_another_cookie_changes_nothing(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write([request_death(handle, 5), clear_death(handle, 6)]);
    manager.reads("EAGAIN");
    owner.kill();
    manager.waits("NOOP DEAD_BINDER(5)");
}

fn clearing_without_a_request_changes_nothing(scene: &Scene) {
    let (manager, _owner, handle) = holder(scene);
    manager.write(clear_death(handle, 5));
    manager.reads("EAGAIN");
}

fn clearing_twice_changes_nothing(scene: &Scene) {
    let (manager, _owner, handle) = holder(scene);
    manager.write([request_death(handle, 5), clear_death(handle, 5), clear_death(handle, 5)]);
    manager.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
    manager.reads("EAGAIN");
}

fn requests_for_unknown_handles_change_nothing(scene: &Scene) {
    let process = scene.process();
    for handle in [0, 1, u32::MAX] {
        process.write([request_death(handle, 5), clear_death(handle, 5)]);
    }
    process.reads("EAGAIN");
}

fn done_for_an_unknown_cookie_changes_nothing(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write([dead_binder_done(5), request_death(handle, 5), dead_binder_done(5)]);
    owner.kill();
    manager.waits("NOOP DEAD_BINDER(5)");
    manager.write([dead_binder_done(6), clear_death(handle, 5)]);
    manager.reads("EAGAIN");
}

fn done_twice_changes_nothing(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write(request_death(handle, 5));
    owner.kill();
    manager.waits("NOOP DEAD_BINDER(5)");
    manager.write([dead_binder_done(5), dead_binder_done(5), clear_death(handle, 5)]);
    manager.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
    manager.reads("EAGAIN");
}

fn a_handle_given_up_is_not_told(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write([request_death(handle, 5), release(handle)]);
    scene.bury(&owner, &manager);
    manager.reads("EAGAIN");
}

fn a_thread_that_exits_is_not_dead(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write(request_death(handle, 5));
    owner.thread_exit();
    manager.reads("EAGAIN");
    manager.write(oneway(handle));
    owner.read_call();
}

fn a_process_that_closes_is_dead(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write(request_death(handle, 5));
    owner.unmap();
    owner.close();
    manager.waits("NOOP DEAD_BINDER(5)");
}

fn a_death_is_told_to_any_thread(scene: &Scene) {
    let (manager, owner) = (scene.manager_with(2, 0), scene.process());
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.threads[1].reads("NOOP");
    manager.write(request_death(handle, 5));
    owner.kill();
    manager.threads[1].waits("NOOP DEAD_BINDER(5)");
    manager.reads("EAGAIN");
}

fn a_thread_at_work_is_not_told(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    let client = scene.process();
    manager.write(request_death(handle, 5));
    client.write(call(0));
    manager.receive();
    scene.bury(&owner, &manager);
    manager.reads("EAGAIN");
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    manager.reads("NOOP DEAD_BINDER(5)");
}

fn the_same_cookie_twice(scene: &Scene) {
    let (manager, owner) = (scene.manager(), scene.process());
    let handles = [1, 2].map(|ptr| scene.introduce(&owner, &manager, ptr, 0));
    manager.write(handles.map(|handle| request_death(handle, 5)));
    scene.bury(&owner, &manager);
    manager.reads("NOOP DEAD_BINDER(5)");
    manager.reads("NOOP DEAD_BINDER(5)");
    // The first BC_DEAD_BINDER_DONE is for the death that was told first.
    manager.write([clear_death(handles[0], 5), dead_binder_done(5)]);
    manager.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
    manager.write([clear_death(handles[1], 5), dead_binder_done(5)]);
    manager.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
}

fn a_death_is_readable(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    manager.write(request_death(handle, 5));
    assert!(!manager.polls());
    owner.kill();
    assert!(manager.polls_for(10_000));
    manager.reads("NOOP DEAD_BINDER(5)");
    assert!(!manager.polls());
}
