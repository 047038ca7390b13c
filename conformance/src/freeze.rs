//! Frozen processes, and freeze notifications.

mod life;
mod notice;

use super::message::*;
use super::runner::Skip;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::Object;
use fakebinder_client::{Errno, uapi};
use life::*;
use notice::*;

group! { "freeze":
    freezing_and_thawing,
    freezing_an_unknown_process_is_refused,
    a_call_finds_it_frozen,
    a_oneway_call_waits,
    a_oneway_call_to_a_frozen_process_can_be_read,
    what_came_is_told,
    what_came_is_forgotten_by_freezing_again,
    what_came_is_forgotten_by_thawing,
    a_process_with_a_call_cannot_be_frozen,
    a_process_with_a_oneway_call_unread_cannot_be_frozen,
    a_process_that_calls_cannot_be_frozen,
    a_failed_freeze_leaves_it_running,
    freezing_waits_for_the_answer,
    freezing_waits_no_longer_than_told,
    pending_calls_are_told,
    a_frozen_process_may_call,
    a_frozen_process_may_freeze_itself,
    every_open_of_the_process_is_frozen,
    a_reply_to_a_frozen_process_arrives,
    an_update_replaces_the_last,
    an_update_does_not_replace_another_code,
    an_update_does_not_replace_without_the_flag,
    an_update_does_not_replace_another_nodes,
    an_update_does_not_replace_another_senders,
    an_update_to_a_running_process_replaces_nothing,
    a_request_is_answered_with_the_state,
    a_request_for_a_frozen_process_says_so,
    freezing_is_told,
    thawing_is_told,
    a_change_waits_for_done,
    a_change_and_back_waits_for_done,
    a_change_before_the_last_is_read_replaces_it,
    clearing_a_request_is_told,
    clearing_before_done_waits,
    clearing_before_the_state_is_read_replaces_it,
    a_second_request_is_refused,
    a_request_for_an_unknown_handle_is_refused,
    clearing_without_a_request_is_refused,
    clearing_with_another_cookie_is_refused,
    done_for_an_unknown_cookie_is_refused,
    a_request_for_a_dead_process_is_not_answered,
    a_state_ends_a_read,
    a_handle_given_up_is_not_told,
    every_node_of_the_process_is_told,
    freezing_and_thawing_look_at_every_node,
    a_stopped_process_can_be_frozen,
    a_process_stopped_while_it_reads_can_be_frozen,
    a_process_stopped_at_a_call_cannot_be_frozen,
    a_process_may_be_stopped_when_it_is_thawed,
    a_frozen_process_that_executes_is_found_dead,
    a_process_that_has_executed_can_be_frozen,
    a_child_that_has_the_file_is_not_who_is_frozen,
    a_process_that_has_changed_its_user_can_be_frozen,
    any_user_may_freeze,
    a_frozen_process_that_dumps_core_is_released,
    a_process_that_dumps_core_answers_with_dead_reply,
    a_process_in_a_pid_namespace_is_frozen_from_outside,
    a_process_outside_is_frozen_from_a_pid_namespace,
    a_pid_of_a_namespace_names_nobody,
}

fn set(witness: &Thread, pid: i32, enable: u32, timeout_ms: u32) -> Result<i64, Errno> {
    witness.ioctl_words(uapi::BINDER_FREEZE, &mut [pid as u32, enable, timeout_ms])
}

#[track_caller]
fn freeze(witness: &Thread, process: &Process) {
    assert_eq!(set(witness, process.pid(), 1, 0), Ok(0));
}

#[track_caller]
fn thaw(witness: &Thread, process: &Process) {
    assert_eq!(set(witness, process.pid(), 0, 0), Ok(0));
}

/// The `sync_recv` and `async_recv` of a process.
#[track_caller]
fn info(witness: &Thread, process: &Process) -> (u32, u32) {
    let mut words = [process.pid() as u32, 7, 7];
    witness.ioctl_words(uapi::BINDER_GET_FROZEN_INFO, &mut words).expect("frozen info");
    (words[1], words[2])
}

/// Skips the test on drivers that tell nothing special of a one-way call to a frozen process.
fn needs_pending(scene: &Scene) {
    if !scene.driver_is_at_least(6, 3) {
        std::panic::panic_any(Skip("not in this driver: BR_TRANSACTION_PENDING_FROZEN".into()));
    }
}

fn freezing_and_thawing(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    for _ in 0..2 {
        freeze(&client, &manager);
        freeze(&client, &manager);
        assert_eq!(info(&client, &manager), (0, 0));
        thaw(&client, &manager);
        thaw(&client, &manager);
    }
    client.write(call(0));
    manager.receive();
}

fn freezing_an_unknown_process_is_refused(scene: &Scene) {
    let process = scene.process();
    // The first process of a system has no binder device open.
    for pid in [0, 1, -1, i32::MAX] {
        assert_eq!(set(&process, pid, 1, 0), Err(Errno::EINVAL));
        assert_eq!(set(&process, pid, 0, 0), Err(Errno::EINVAL));
        let mut words = [pid as u32, 0, 0];
        let got = process.ioctl_words(uapi::BINDER_GET_FROZEN_INFO, &mut words);
        assert_eq!(got, Err(Errno::EINVAL));
    }
}

fn a_call_finds_it_frozen(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    freeze(&client, &manager);
    client.write(call(0));
    client.reads("NOOP FROZEN_REPLY");
    assert_eq!(client.extended_error(), ("FROZEN_REPLY", 0));
    manager.reads("EAGAIN");
    thaw(&client, &manager);
    manager.reads("EAGAIN");
    client.write(call(0).code(2));
    let got = manager.receive();
    assert_eq!((got.code, got.at), (2, 0));
}

fn a_oneway_call_waits(scene: &Scene) {
    needs_pending(scene);
    let (manager, client) = (scene.manager(), scene.process());
    freeze(&client, &manager);
    client.write([oneway(0).code(1).into(), oneway(0).code(2).into()]);
    client.reads("NOOP TRANSACTION_PENDING_FROZEN TRANSACTION_PENDING_FROZEN");
    assert_eq!(client.extended_error(), ("OK", 0));
    thaw(&client, &manager);
    for code in [1, 2] {
        let got = manager.receive();
        assert_eq!(got.code, code);
        manager.write(free(got.buffer));
    }
}

fn a_oneway_call_to_a_frozen_process_can_be_read(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    freeze(&client, &manager);
    client.write(oneway(0).code(1));
    assert_eq!(manager.receive().code, 1);
}

fn what_came_is_told(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    freeze(&client, &manager);
    client.write(call(0));
    client.reads("NOOP FROZEN_REPLY");
    assert_eq!(info(&client, &manager), (1, 0));
    client.write(oneway(0));
    client.read();
    // The one-way call is still unread: a transaction is pending.
    assert_eq!(info(&client, &manager), (3, 1));
    let got = manager.receive();
    manager.write(free(got.buffer));
    assert_eq!(info(&client, &manager), (1, 1));
}

fn what_came_is_forgotten_by_freezing_again(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    freeze(&client, &manager);
    client.write(call(0));
    client.reads("NOOP FROZEN_REPLY");
    freeze(&client, &manager);
    assert_eq!(info(&client, &manager), (0, 0));
}

fn what_came_is_forgotten_by_thawing(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    freeze(&client, &manager);
    client.write(call(0));
    client.reads("NOOP FROZEN_REPLY");
    thaw(&client, &manager);
    assert_eq!(info(&client, &manager), (0, 0));
}

fn a_process_with_a_call_cannot_be_frozen(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0));
    assert_eq!(set(&client, manager.pid(), 1, 0), Err(Errno::EAGAIN));
    manager.receive();
    assert_eq!(set(&client, manager.pid(), 1, 0), Err(Errno::EAGAIN));
    manager.write(reply());
    assert_eq!(set(&client, manager.pid(), 1, 0), Ok(0));
}

fn a_process_with_a_oneway_call_unread_cannot_be_frozen(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(oneway(0));
    assert_eq!(set(&client, manager.pid(), 1, 0), Err(Errno::EAGAIN));
    manager.receive();
    // The transaction was read; its buffer need not be freed.
    assert_eq!(set(&client, manager.pid(), 1, 0), Ok(0));
}

fn a_process_that_calls_cannot_be_frozen(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0));
    assert_eq!(set(&manager, client.pid(), 1, 0), Err(Errno::EAGAIN));
    manager.receive();
    manager.write(reply());
    // The reply is a transaction of its own until it is read.
    assert_eq!(set(&manager, client.pid(), 1, 0), Err(Errno::EAGAIN));
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    assert_eq!(set(&manager, client.pid(), 1, 0), Ok(0));
}

fn a_failed_freeze_leaves_it_running(scene: &Scene) {
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    let other = scene.process();
    client.write(call(0));
    assert_eq!(set(&client, manager.pid(), 1, 0), Err(Errno::EAGAIN));
    other.write(call(0).code(2));
    other.reads("EAGAIN");
    manager.receive();
    assert_eq!(manager.threads[1].receive().code, 2);
}

fn freezing_waits_for_the_answer(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process_with(2));
    client.write(call(0));
    manager.receive();
    let words = [manager.pid() as u32, 1, 10_000];
    client.threads[1].begin_ioctl_words(uapi::BINDER_FREEZE, &words);
    client.threads[1].asleep();
    // The process counts as frozen while the call waits. (A device in userspace may only be about
    // to freeze it.)
    let mut sent = 0;
    client.until("it to count as frozen", || {
        client.write(oneway(0));
        sent += 1;
        info(&client, &manager).1 == 1
    });
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    // The one-way calls must be read, too.
    for _ in 0..sent {
        let got = manager.receive();
        manager.write(free(got.buffer));
    }
    assert_eq!(client.threads[1].finish(), 0);
    assert_eq!(info(&client, &manager), (0, 1));
}

fn freezing_waits_no_longer_than_told(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process_with(2));
    client.write(call(0));
    assert_eq!(set(&client.threads[1], manager.pid(), 1, 20), Err(Errno::EAGAIN));
    manager.receive();
}

fn pending_calls_are_told(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    assert_eq!(info(&client, &manager), (0, 0));
    client.write(call(0));
    assert_eq!(info(&client, &manager), (2, 0));
    assert_eq!(info(&client, &client), (2, 0));
    manager.receive();
    manager.write(reply());
    assert_eq!(info(&client, &manager), (0, 0));
    assert_eq!(info(&client, &client), (2, 0));
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    assert_eq!(info(&client, &client), (0, 0));
}

fn a_frozen_process_may_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    freeze(&manager, &client);
    client.write(call(0));
    manager.receive();
    manager.write(reply());
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
}

fn a_frozen_process_may_freeze_itself(scene: &Scene) {
    let process = scene.process();
    freeze(&process, &process);
    thaw(&process, &process);
}

fn every_open_of_the_process_is_frozen(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let again = client.open_again();
    again.map(MAPPING);
    let one = scene.introduce(&client, &manager, 1, 1);
    let two = scene.introduce(&again, &manager, 1, 1);
    freeze(&manager, &client);
    for handle in [one, two] {
        manager.write(call(handle));
        manager.reads("NOOP FROZEN_REPLY");
    }
}

fn a_reply_to_a_frozen_process_arrives(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    freeze(&manager, &client);
    client.write(call(0));
    manager.receive();
    manager.write(reply().code(9));
    assert_eq!(client.reads("NOOP TRANSACTION_COMPLETE REPLY").transaction().code, 9);
}

fn update(code: u32) -> Msg {
    oneway(0).flags(uapi::TF_UPDATE_TXN).code(code)
}

/// Sends these messages, after one of code 99, to a frozen manager; returns the codes that it
/// reads.
fn updates(scene: &Scene, senders: usize, frozen: bool, messages: &[(usize, Msg)]) -> Vec<u32> {
    let manager = scene.manager();
    let senders: Vec<_> = (0..senders).map(|_| scene.process()).collect();
    if frozen {
        freeze(&senders[0], &manager);
    }
    senders[0].write(oneway(0).code(99));
    for (sender, message) in messages {
        senders[*sender].write(message);
    }
    if frozen {
        thaw(&senders[0], &manager);
    }
    let mut codes = Vec::new();
    loop {
        let reads = manager.read();
        if reads.text == "EAGAIN" {
            return codes;
        }
        let got = reads.transaction();
        codes.push(got.code * 100 + got.data.first().copied().map_or(0, u32::from));
        manager.write(free(got.buffer));
    }
}

fn an_update_replaces_the_last(scene: &Scene) {
    let codes = updates(
        scene,
        1,
        true,
        &[
            (0, update(1).data(&[1])),
            (0, oneway(0).code(3)),
            (0, update(1).data(&[2])),
            (0, update(1).data(&[3])),
        ],
    );
    assert_eq!(codes, [9900, 300, 103]);
}

fn an_update_does_not_replace_another_code(scene: &Scene) {
    let codes =
        updates(scene, 1, true, &[(0, update(1)), (0, update(2)), (0, update(1).data(&[5]))]);
    assert_eq!(codes, [9900, 200, 105]);
}

fn an_update_does_not_replace_without_the_flag(scene: &Scene) {
    let codes =
        updates(scene, 1, true, &[(0, oneway(0).code(1)), (0, update(1)), (0, oneway(0).code(1))]);
    assert_eq!(codes, [9900, 100, 100, 100]);
}

fn an_update_does_not_replace_another_nodes(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let handles = [1, 2].map(|ptr| scene.introduce(&client, &manager, ptr, 0));
    freeze(&manager, &client);
    for handle in handles {
        manager.write([oneway(handle).into(), Msg { handle, ..update(7) }.into()]);
    }
    thaw(&manager, &client);
    let mut targets = Vec::new();
    for _ in 0..4 {
        let got = client.receive();
        targets.push((got.target, got.code));
        client.write(free(got.buffer));
    }
    assert_eq!(targets, [(1, 0), (2, 0), (1, 7), (2, 7)]);
}

fn an_update_does_not_replace_another_senders(scene: &Scene) {
    let codes =
        updates(scene, 2, true, &[(0, update(1)), (1, update(1)), (0, update(1).data(&[5]))]);
    assert_eq!(codes, [9900, 100, 105]);
}

fn an_update_to_a_running_process_replaces_nothing(scene: &Scene) {
    let codes = updates(scene, 1, false, &[(0, update(1)), (0, update(1))]);
    assert_eq!(codes, [9900, 100, 100]);
}

/// To look at a node holds it. Letting go of a node that nothing else holds queues it for its
/// owner, who finds nothing to read.
fn freezing_and_thawing_look_at_every_node(scene: &Scene) {
    let (manager, owner, witness) = (scene.manager(), scene.process(), scene.process());
    owner.write(oneway(0).object(Object::Binder { ptr: 3, cookie: 30, flags: 0 }));
    owner.reads("NOOP INCREFS(3,30) ACQUIRE(3,30) TRANSACTION_COMPLETE");
    owner.write(increfs_done(3, 30));
    scene.bury(&manager, &witness);
    owner.reads("EAGAIN");
    assert!(!owner.polls());
    freeze(&witness, &owner);
    assert!(owner.polls());
    owner.reads("EAGAIN");
    assert!(!owner.polls());
    thaw(&witness, &owner);
    assert!(owner.polls());
    owner.reads("EAGAIN");
}
