//! The notifications of freezing and thawing: BC_REQUEST_FREEZE_NOTIFICATION and its consequences.

use super::*;

/// The manager, a process, and the manager's handle for a node of the process, on a driver that has
/// freeze notifications.
pub(super) fn holder(scene: &Scene) -> (Process, Process, u32) {
    let (manager, owner) = (scene.manager(), scene.process());
    let probe = scene.process();
    probe.write(acquire(0));
    let io = probe.tries(request_freeze(0, 1));
    if io.result == Err(Errno::EINVAL) && scene.door() == Door::Kernel {
        std::panic::panic_any(Skip("not in this driver: freeze notifications".to_owned()));
    }
    assert_eq!(io.result, Ok(()));
    let handle = scene.introduce(&owner, &manager, 1, 2);
    (manager, owner, handle)
}

/// The same, after the manager was told that the process runs.
pub(super) fn watcher(scene: &Scene) -> (Process, Process, u32) {
    let (manager, owner, handle) = holder(scene);
    manager.write(request_freeze(handle, 5));
    manager.reads("NOOP FROZEN_BINDER(5,0)");
    manager.write(freeze_done(5));
    manager.reads("EAGAIN");
    (manager, owner, handle)
}

pub(super) fn refused(thread: &Thread, command: Bc) {
    let io = thread.tries([enter_looper(), command]);
    assert_eq!(io, Io { result: Err(Errno::EINVAL), written: 4, filled: 0 });
}

pub(super) fn a_request_is_answered_with_the_state(scene: &Scene) {
    watcher(scene);
}

pub(super) fn a_request_for_a_frozen_process_says_so(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    freeze(&manager, &owner);
    manager.write(request_freeze(handle, 5));
    manager.reads("NOOP FROZEN_BINDER(5,1)");
}

pub(super) fn freezing_is_told(scene: &Scene) {
    let (manager, owner, _) = watcher(scene);
    freeze(&manager, &owner);
    manager.reads("NOOP FROZEN_BINDER(5,1)");
    manager.reads("EAGAIN");
}

pub(super) fn thawing_is_told(scene: &Scene) {
    let (manager, owner, _) = watcher(scene);
    for _ in 0..2 {
        freeze(&manager, &owner);
        manager.reads("NOOP FROZEN_BINDER(5,1)");
        manager.write(freeze_done(5));
        thaw(&manager, &owner);
        manager.reads("NOOP FROZEN_BINDER(5,0)");
        manager.write(freeze_done(5));
    }
}

pub(super) fn a_change_waits_for_done(scene: &Scene) {
    let (manager, owner, _) = watcher(scene);
    freeze(&manager, &owner);
    manager.reads("NOOP FROZEN_BINDER(5,1)");
    thaw(&manager, &owner);
    manager.reads("EAGAIN");
    manager.write(freeze_done(5));
    manager.reads("NOOP FROZEN_BINDER(5,0)");
}

pub(super) fn a_change_and_back_waits_for_done(scene: &Scene) {
    let (manager, owner, _) = watcher(scene);
    freeze(&manager, &owner);
    manager.reads("NOOP FROZEN_BINDER(5,1)");
    thaw(&manager, &owner);
    freeze(&manager, &owner);
    manager.reads("EAGAIN");
    manager.write(freeze_done(5));
    manager.reads("NOOP FROZEN_BINDER(5,1)");
}

pub(super) fn a_change_before_the_last_is_read_replaces_it(scene: &Scene) {
    let (manager, owner, _) = watcher(scene);
    freeze(&manager, &owner);
    thaw(&manager, &owner);
    manager.reads("NOOP FROZEN_BINDER(5,0)");
    manager.reads("EAGAIN");
}

pub(super) fn clearing_a_request_is_told(scene: &Scene) {
    let (manager, owner, handle) = watcher(scene);
    manager.write(clear_freeze(handle, 5));
    manager.reads("NOOP CLEAR_FREEZE_NOTIFICATION_DONE(5)");
    freeze(&manager, &owner);
    manager.reads("EAGAIN");
}

pub(super) fn clearing_before_done_waits(scene: &Scene) {
    let (manager, owner, handle) = watcher(scene);
    freeze(&manager, &owner);
    manager.reads("NOOP FROZEN_BINDER(5,1)");
    manager.write(clear_freeze(handle, 5));
    manager.reads("EAGAIN");
    manager.write(freeze_done(5));
    manager.reads("NOOP CLEAR_FREEZE_NOTIFICATION_DONE(5)");
}

pub(super) fn clearing_before_the_state_is_read_replaces_it(scene: &Scene) {
    let (manager, _owner, handle) = holder(scene);
    manager.write([request_freeze(handle, 5), clear_freeze(handle, 5)]);
    manager.reads("NOOP CLEAR_FREEZE_NOTIFICATION_DONE(5)");
    manager.reads("EAGAIN");
}

pub(super) fn a_second_request_is_refused(scene: &Scene) {
    let (manager, _owner, handle) = watcher(scene);
    refused(&manager, request_freeze(handle, 6));
    refused(&manager, request_freeze(handle, 5));
}

pub(super) fn a_request_for_an_unknown_handle_is_refused(scene: &Scene) {
    let (manager, _owner, handle) = holder(scene);
    refused(&manager, request_freeze(handle + 1, 5));
    refused(&manager, clear_freeze(handle + 1, 5));
}

pub(super) fn clearing_without_a_request_is_refused(scene: &Scene) {
    let (manager, _owner, handle) = holder(scene);
    refused(&manager, clear_freeze(handle, 5));
}

pub(super) fn clearing_with_another_cookie_is_refused(scene: &Scene) {
    let (manager, _owner, handle) = watcher(scene);
    refused(&manager, clear_freeze(handle, 6));
    manager.write(clear_freeze(handle, 5));
    refused(&manager, clear_freeze(handle, 5));
}

pub(super) fn done_for_an_unknown_cookie_is_refused(scene: &Scene) {
    let (manager, _owner, _) = watcher(scene);
    refused(&manager, freeze_done(5));
    refused(&manager, freeze_done(6));
}

pub(super) fn a_request_for_a_dead_process_is_not_answered(scene: &Scene) {
    let (manager, owner, handle) = holder(scene);
    scene.bury(&owner, &manager);
    manager.write(request_freeze(handle, 5));
    manager.reads("EAGAIN");
    manager.write(clear_freeze(handle, 5));
    manager.reads("NOOP CLEAR_FREEZE_NOTIFICATION_DONE(5)");
}

pub(super) fn a_state_ends_a_read(scene: &Scene) {
    let (manager, owner, first) = holder(scene);
    let second = scene.introduce(&owner, &manager, 3, 4);
    manager.write([request_freeze(first, 5), request_freeze(second, 6)]);
    manager.reads("NOOP FROZEN_BINDER(5,0)");
    manager.reads("NOOP FROZEN_BINDER(6,0)");
    manager.reads("EAGAIN");
}

pub(super) fn a_handle_given_up_is_not_told(scene: &Scene) {
    let (manager, owner, handle) = watcher(scene);
    manager.write(release(handle));
    freeze(&manager, &owner);
    manager.reads("EAGAIN");
}

pub(super) fn every_node_of_the_process_is_told(scene: &Scene) {
    let (manager, owner, first) = holder(scene);
    let second = scene.introduce(&owner, &manager, 3, 4);
    manager.write([request_freeze(second, 6), request_freeze(first, 5)]);
    manager.read();
    manager.read();
    manager.write([freeze_done(5), freeze_done(6)]);
    freeze(&manager, &owner);
    manager.reads("NOOP FROZEN_BINDER(5,1)");
    manager.reads("NOOP FROZEN_BINDER(6,1)");
}
