//! Calls and replies: which thread gets them, and when.

mod end;

use super::manager::{become_user, needs_root};
use super::message::*;
use super::scene::*;
use super::{Scene, group};
use end::*;
use fakebinder_client::uapi;

group! { "call":
    a_call_arrives_as_it_was_sent,
    an_empty_call_has_a_buffer,
    a_large_call_arrives_whole,
    a_reply_arrives_as_it_was_sent,
    a_reply_keeps_code_and_flags,
    the_caller_hears_nothing_until_the_reply,
    the_replier_hears_at_once,
    the_sender_is_told_by_pid_and_uid,
    the_senders_uid_is_that_of_the_call,
    a_reply_has_no_sender_pid,
    a_reply_without_a_call_fails,
    a_reply_to_a_oneway_call_fails,
    a_reply_by_another_thread_fails,
    a_second_reply_fails,
    a_call_to_an_unknown_handle_fails,
    a_call_to_a_weak_handle_fails,
    a_call_to_ones_own_node_is_not_possible,
    a_second_call_without_a_reply_fails,
    a_reply_while_calling_fails,
    a_thread_at_work_gets_no_other_call,
    calls_are_served_in_order,
    two_threads_serve_two_calls,
    a_nested_call_comes_back_to_the_waiting_thread,
    a_nested_call_does_not_go_to_another_thread,
    nested_calls_end_in_reverse_order,
    a_chain_of_three_processes,
    a_call_from_a_oneway_call_is_a_new_one,
    a_reply_with_a_bad_object_fails_the_caller,
    a_reply_that_does_not_fit_fails_the_caller,
    a_reply_to_a_dead_caller_is_complete,
    a_call_to_a_dead_process_finds_it_dead,
    a_call_to_a_process_that_dies_ends,
    an_undelivered_call_to_a_process_that_dies_ends,
    a_call_to_a_thread_that_exits_ends,
    a_nested_call_ends_with_its_caller,
    a_call_from_a_thread_that_exits_is_forgotten,
    the_servers_nice_value_follows_the_caller,
    the_servers_nice_value_stops_at_the_nodes,
    a_oneway_call_does_not_raise_the_nice_value,
}

fn a_call_arrives_as_it_was_sent(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).code(0xc0de).flags(uapi::TF_ACCEPT_FDS | 0x100).data(b"hello"));
    let got = manager.receive();
    assert_eq!((got.code, got.flags), (0xc0de, uapi::TF_ACCEPT_FDS | 0x100));
    assert_eq!((got.data.as_slice(), got.offsets.len()), (&b"hello"[..], 0));
    assert_eq!(got.transaction.offsets, got.buffer + 8);
}

fn an_empty_call_has_a_buffer(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    let got = manager.receive();
    assert_eq!((got.data_size, got.offsets_size, got.at), (0, 0, 0));
    assert_eq!(got.transaction.offsets, got.buffer);
}

fn a_large_call_arrives_whole(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let data: Vec<u8> = (0..100_001u32).map(|i| (i * 7 + i / 251) as u8).collect();
    client.write(call(0).data(&data));
    assert!(manager.receive().data == data);
}

fn a_reply_arrives_as_it_was_sent(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    manager.write(reply().data(b"and back"));
    let got = client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    let got = got.transaction();
    assert_eq!(got.data, b"and back");
    assert_eq!((got.target, got.cookie), (0, 0));
}

fn a_reply_keeps_code_and_flags(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).code(1));
    manager.receive();
    manager.write(reply().code(77).flags(uapi::TF_STATUS_CODE).data(&(-5i32).to_ne_bytes()));
    let got = client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    let got = got.transaction();
    assert_eq!((got.code, got.flags), (77, uapi::TF_STATUS_CODE));
}

fn the_caller_hears_nothing_until_the_reply(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    client.reads("EAGAIN");
    manager.receive();
    client.reads("EAGAIN");
    manager.write(reply());
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    client.reads("EAGAIN");
}

fn the_replier_hears_at_once(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    manager.reads("EAGAIN");
}

fn the_sender_is_told_by_pid_and_uid(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process_with(2);
    client.threads[1].write(call(0));
    let got = manager.receive();
    assert_eq!(got.sender_pid, client.pid());
    assert_eq!(got.sender_euid, nix::unistd::geteuid().as_raw());
}

fn the_senders_uid_is_that_of_the_call(scene: &Scene) {
    needs_root();
    let manager = scene.manager();
    let client = scene.process();
    become_user(&client, 1234);
    client.write(call(0));
    assert_eq!(manager.receive().sender_euid, 1234);
}

fn a_reply_has_no_sender_pid(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    manager.write(reply());
    let got = client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    assert_eq!(got.transaction().sender_pid, 0);
    assert_eq!(got.transaction().sender_euid, nix::unistd::geteuid().as_raw());
}

fn a_reply_without_a_call_fails(scene: &Scene) {
    let process = scene.process();
    process.write(reply());
    process.reads("NOOP FAILED_REPLY");
    assert_eq!(process.extended_error(), ("FAILED_REPLY", -libc::EPROTO));
}

fn a_reply_to_a_oneway_call_fails(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(oneway(0));
    manager.receive();
    manager.write(reply());
    manager.reads("NOOP FAILED_REPLY");
    assert_eq!(manager.extended_error(), ("FAILED_REPLY", -libc::EPROTO));
}

fn a_reply_by_another_thread_fails(scene: &Scene) {
    let manager = scene.manager_with(2, 0);
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    manager.threads[1].write(reply());
    manager.threads[1].reads("NOOP FAILED_REPLY");
    assert_eq!(manager.threads[1].extended_error(), ("FAILED_REPLY", -libc::EPROTO));
    client.reads("EAGAIN");
    manager.write(reply());
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
}

fn a_second_reply_fails(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    manager.write([reply().into(), reply().into()]);
    manager.reads("NOOP TRANSACTION_COMPLETE FAILED_REPLY");
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
}

fn a_call_to_an_unknown_handle_fails(scene: &Scene) {
    let process = scene.process();
    for message in [call(1), call(u32::MAX), oneway(1)] {
        process.write(message);
        process.reads("NOOP FAILED_REPLY");
        assert_eq!(process.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
    }
}

fn a_call_to_a_weak_handle_fails(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write([increfs(handle), release(handle)]);
    manager.write(call(handle));
    manager.reads("NOOP FAILED_REPLY");
    assert_eq!(manager.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
}

fn a_call_to_ones_own_node_is_not_possible(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let handle = scene.introduce(&owner, &manager, 1, 2);
    // The owner gets its reference back as the node itself, whichever message brings it.
    manager.write(oneway(handle).handle(handle));
    let got = owner.receive();
    assert_eq!(got.object(0), fakebinder_client::Object::Binder { ptr: 1, cookie: 2, flags: 0 });
    owner.write(call(1));
    owner.reads("NOOP FAILED_REPLY");
}

fn a_second_call_without_a_reply_fails(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).code(1));
    client.write(call(0).code(2));
    client.reads("NOOP TRANSACTION_COMPLETE FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EPROTO));
    assert_eq!(manager.receive().code, 1);
    manager.write(reply());
    client.reads("NOOP REPLY");
}

fn a_reply_while_calling_fails(scene: &Scene) {
    let manager = scene.manager();
    let (a, b) = (scene.process(), scene.process());
    let handle = scene.introduce(&b, &manager, 1, 2);
    a.write(call(0));
    manager.receive();
    manager.write(call(handle));
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE FAILED_REPLY");
    assert_eq!(manager.extended_error(), ("FAILED_REPLY", -libc::EPROTO));
    b.receive();
    b.write(reply());
    manager.reads("NOOP REPLY");
    manager.write(reply());
    a.reads("NOOP TRANSACTION_COMPLETE REPLY");
}

fn a_thread_at_work_gets_no_other_call(scene: &Scene) {
    let manager = scene.manager();
    let (a, b) = (scene.process(), scene.process());
    a.write(call(0).code(1));
    b.write(call(0).code(2));
    assert_eq!(manager.receive().code, 1);
    manager.reads("EAGAIN");
    manager.write(reply());
    // A read that begins with work of the thread itself ends with that.
    manager.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(manager.reads("NOOP TRANSACTION").transaction().code, 2);
}

fn calls_are_served_in_order(scene: &Scene) {
    let manager = scene.manager();
    let clients: Vec<_> = (0..4).map(|_| scene.process()).collect();
    for (code, client) in clients.iter().enumerate() {
        client.write(call(0).code(code as u32));
    }
    for code in 0..4 {
        let got = manager.receive();
        assert_eq!(got.code, code);
        manager.write([free(got.buffer), reply().into()]);
        manager.reads("NOOP TRANSACTION_COMPLETE");
    }
}

fn two_threads_serve_two_calls(scene: &Scene) {
    let manager = scene.manager_with(2, 0);
    let (a, b) = (scene.process(), scene.process());
    a.write(call(0).code(1));
    b.write(call(0).code(2));
    assert_eq!(manager.receive().code, 1);
    assert_eq!(manager.threads[1].receive().code, 2);
    manager.threads[1].write(reply().code(22));
    manager.write(reply().code(11));
    assert_eq!(a.reads("NOOP TRANSACTION_COMPLETE REPLY").transaction().code, 11);
    assert_eq!(b.reads("NOOP TRANSACTION_COMPLETE REPLY").transaction().code, 22);
}

fn a_nested_call_comes_back_to_the_waiting_thread(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let handle = scene.introduce(&client, &manager, 1, 2);
    client.write(call(0).code(1));
    manager.receive();
    manager.write(call(handle).code(2));
    let nested = client.reads("NOOP TRANSACTION_COMPLETE TRANSACTION");
    let nested = nested.transaction();
    assert_eq!((nested.code, nested.target, nested.cookie), (2, 1, 2));
    assert_eq!(nested.sender_pid, manager.pid());
    client.write(reply().code(3));
    client.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(manager.reads("NOOP TRANSACTION_COMPLETE REPLY").transaction().code, 3);
    manager.write(reply().code(4));
    assert_eq!(client.reads("NOOP REPLY").transaction().code, 4);
}

fn a_nested_call_does_not_go_to_another_thread(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process_with(2);
    let handle = scene.introduce(&client, &manager, 1, 2);
    client.write(call(0));
    manager.receive();
    manager.write(call(handle).code(2));
    client.threads[1].reads("NOOP");
    client.threads[1].reads("EAGAIN");
    client.reads("NOOP TRANSACTION_COMPLETE TRANSACTION");
}

fn nested_calls_end_in_reverse_order(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let handle = scene.introduce(&client, &manager, 1, 2);
    const DEPTH: u32 = 5;
    for code in 0..DEPTH {
        client.write(call(0).code(code));
        assert_eq!(manager.read_soon().transaction().code, code);
        manager.write(call(handle).code(code));
        assert_eq!(client.read_soon().transaction().code, code);
    }
    for code in (0..DEPTH).rev() {
        client.write(reply().code(code));
        client.reads("NOOP TRANSACTION_COMPLETE");
        assert_eq!(manager.read_soon().transaction().code, code);
        manager.write(reply().code(code));
        manager.reads("NOOP TRANSACTION_COMPLETE");
        assert_eq!(client.reads("NOOP REPLY").transaction().code, code);
    }
}

fn a_chain_of_three_processes(scene: &Scene) {
    let manager = scene.manager();
    let (first, last) = (scene.process_with(2), scene.process());
    let to_first = scene.introduce(&first, &manager, 1, 1);
    let to_last = scene.introduce(&last, &manager, 2, 2);
    // The last process gets a handle for the first one's node.
    manager.write(oneway(to_last).handle(to_first));
    manager.reads("NOOP TRANSACTION_COMPLETE");
    let back = last.receive().handle(0);
    first.write(call(0).code(1));
    manager.receive();
    manager.write(call(to_last).code(2));
    last.receive();
    last.write(call(back).code(3));
    // Back to the thread that began the chain.
    first.threads[1].reads("NOOP");
    let got = first.reads("NOOP TRANSACTION_COMPLETE TRANSACTION");
    assert_eq!((got.transaction().code, got.transaction().sender_pid), (3, last.pid()));
    for process in [&first, &last, &manager] {
        process.write(reply());
        process.read();
    }
    assert_eq!(first.read_soon().text, "NOOP REPLY");
}

fn a_call_from_a_oneway_call_is_a_new_one(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process_with(2);
    let handle = scene.introduce(&client, &manager, 1, 2);
    client.write(oneway(0));
    client.reads("NOOP TRANSACTION_COMPLETE");
    manager.receive();
    manager.write(call(handle).code(5));
    // Any thread may serve this call.
    client.threads[1].set_max_threads(0);
    assert_eq!(client.threads[1].receive().code, 5);
}

fn a_reply_with_a_bad_object_fails_the_caller(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    manager.write(reply().handle(99));
    manager.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(manager.extended_error(), ("OK", 0));
    client.reads("NOOP TRANSACTION_COMPLETE FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
    // The failed reply has ended the call.
    manager.write(reply());
    manager.reads("NOOP FAILED_REPLY");
}

fn a_reply_that_does_not_fit_fails_the_caller(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    manager.write(reply().data_at(NOWHERE, MAPPING + 1));
    manager.reads("NOOP TRANSACTION_COMPLETE");
    client.reads("NOOP TRANSACTION_COMPLETE FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::ENOSPC));
}

fn nice(thread: &Thread) -> i64 {
    // The system call gives 20 - nice.
    20 - thread.syscall(libc::SYS_getpriority, &[0, 0]).expect("getpriority")
}

fn set_nice(thread: &Thread, nice: i64) {
    thread.syscall(libc::SYS_setpriority, &[0, 0, nice as u64]).expect("setpriority");
}

fn the_servers_nice_value_follows_the_caller(scene: &Scene) {
    needs_root();
    let manager = scene.manager_with(1, 10);
    let client = scene.process();
    set_nice(&client, 4);
    client.write(call(0));
    assert_eq!(nice(&manager), 0);
    manager.receive();
    assert_eq!(nice(&manager), 4);
    manager.write(reply());
    assert_eq!(nice(&manager), 0);
}

fn the_servers_nice_value_stops_at_the_nodes(scene: &Scene) {
    needs_root();
    let manager = scene.manager_with(1, 10);
    let client = scene.process();
    set_nice(&client, 15);
    client.write(call(0));
    manager.receive();
    assert_eq!(nice(&manager), 10);
    manager.write(reply());
    assert_eq!(nice(&manager), 0);
}

fn a_oneway_call_does_not_raise_the_nice_value(scene: &Scene) {
    needs_root();
    let manager = scene.manager_with(1, 10);
    let client = scene.process();
    set_nice(&client, 4);
    client.write(oneway(0));
    manager.receive();
    assert_eq!(nice(&manager), 0);
    // A thread that waits for the process's work has the nice value of its opener.
    set_nice(&manager, 7);
    manager.reads("EAGAIN");
    assert_eq!(nice(&manager), 0);
}
