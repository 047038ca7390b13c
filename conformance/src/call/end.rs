//! Calls that end because a process dies or a thread exits.

use super::*;

pub(super) fn a_reply_to_a_dead_caller_is_complete(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write([acquire(0), call(0).binder(1, 2).into()]);
    let got = manager.receive();
    manager.write([acquire(got.handle(0)), request_death(got.handle(0), 9)]);
    scene.bury(&client, &manager);
    // The manager serves a call, and reads of deaths only afterwards.
    manager.reads("EAGAIN");
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    manager.reads("NOOP DEAD_BINDER(9)");
}

pub(super) fn a_call_to_a_dead_process_finds_it_dead(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write(request_death(handle, 3));
    owner.kill();
    manager.waits("NOOP DEAD_BINDER(3)");
    for message in [call(handle), oneway(handle)] {
        manager.write(message);
        manager.reads("NOOP DEAD_REPLY");
        assert_eq!(manager.extended_error(), ("DEAD_REPLY", -libc::EINVAL));
    }
}

pub(super) fn a_call_to_a_process_that_dies_ends(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    manager.kill();
    client.waits("NOOP TRANSACTION_COMPLETE DEAD_REPLY");
    client.reads("EAGAIN");
}

pub(super) fn an_undelivered_call_to_a_process_that_dies_ends(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.kill();
    client.waits("NOOP TRANSACTION_COMPLETE DEAD_REPLY");
}

pub(super) fn a_call_to_a_thread_that_exits_ends(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    manager.thread_exit();
    client.reads("NOOP TRANSACTION_COMPLETE DEAD_REPLY");
    manager.write(reply());
    manager.reads("NOOP FAILED_REPLY");
}

pub(super) fn a_nested_call_ends_with_its_caller(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let handle = scene.introduce(&client, &manager, 1, 2);
    client.write(call(0));
    manager.receive();
    manager.write(call(handle));
    client.reads("NOOP TRANSACTION_COMPLETE TRANSACTION");
    scene.bury(&manager, &client);
    // The outer call lies below the inner one: it ends once the inner one is answered.
    client.reads("EAGAIN");
    client.write(reply());
    client.reads("NOOP TRANSACTION_COMPLETE DEAD_REPLY");
}

pub(super) fn a_call_from_a_thread_that_exits_is_forgotten(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).code(1));
    client.thread_exit();
    // The call is delivered all the same.
    assert_eq!(manager.receive().code, 1);
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    client.reads("NOOP");
    client.reads("EAGAIN");
    client.write(call(0).code(2));
    assert_eq!(manager.receive().code, 2);
}
