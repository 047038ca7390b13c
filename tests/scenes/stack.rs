//! The transaction stack: who may call and answer, and what happens when somebody in it dies.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::WriteRead;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{Pending, Sim, World};

/// Three processes that can call each other in a row: client -> manager -> third -> client.
struct Ring {
    world: World,
    manager: Sim,
    client: Sim,
    third: Sim,
    /// The manager's handle of a node of the third process.
    to_third: u32,
    /// The third's handle of a node of the client.
    to_client: u32,
}

fn ring() -> Ring {
    let Pair { world, manager, client } = pair();
    let third = open(&world, 300);
    let to_third = offer(&third, &manager, 0x30);
    let held = offer(&client, &manager, 0x20);
    let to_client = look_up(&third, &manager, held);
    Ring { world, manager, client, third, to_third, to_client }
}

impl Ring {
    /// The client calls the manager, which calls the third, which has read the call.
    fn two_calls(&self) -> (Pending, Pending) {
        let outer = call(self.client.main(), 0, 1, b"");
        take(self.manager.main());
        let inner = call(self.manager.main(), self.to_third, 2, b"");
        take(self.third.main());
        (outer, inner)
    }
}

#[test]
fn a_chain_of_calls_comes_back_to_the_thread_that_began_it() {
    let ring = ring();
    let (outer, inner) = ring.two_calls();
    let Ring { world, manager, client, third, to_client, .. } = ring;
    let idle = client.thread(201).enter_looper();
    let back = call(third.main(), to_client, 3, b"round");
    assert!(idle.is_blocked(), "the waiting thread is preferred to one that is free");
    let received = transaction(&outer);
    assert_eq!((received.code, received.target), (3, 0x20));
    let outer = answer(client.main(), b"and");
    assert_eq!(news(&outer), [Return::TransactionComplete]);
    let outer = client.main().read();
    assert_eq!(third.data(&reply(&back)), b"and");
    answer(third.main().nonblock(), b"round");
    assert_eq!(manager.data(&reply(&inner)), b"round");
    answer(manager.main().nonblock(), b"home");
    assert_eq!(client.data(&reply(&outer)), b"home");
    end(&world, [client, manager, third]);
}

/// One-way calls are not part of a stack: they land anywhere.
#[test]
fn a_one_way_call_within_a_call_does_not_land_on_the_waiting_thread() {
    let Ring { world, manager, client, third, to_client, to_third } = ring();
    let outer = call(client.main(), 0, 1, b"");
    take(manager.main());
    call(manager.main(), to_third, 2, b"");
    take(third.main());
    post(third.main(), to_client, 3, b"");
    assert!(outer.is_blocked());
    introduce(client.thread(201));
    assert_eq!(take(client.thread(201)).code, 3);
    end(&world, [client, manager, third]);
}

#[test]
fn a_reply_without_a_call_fails_with_eproto() {
    let Pair { world, manager, client } = pair();
    assert_eq!(news(&answer(client.main(), b"")), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EPROTO));
    end(&world, [client, manager]);
}

#[test]
fn a_reply_to_a_one_way_call_fails_with_eproto() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 0, 1, b"");
    take(manager.main());
    assert_eq!(news(&answer(manager.main(), b"")), [Return::FailedReply]);
    assert_eq!(error(manager.main()), failed(Errno::EPROTO));
    assert_eq!(client.main().drain(), []);
    end(&world, [client, manager]);
}

#[test]
fn a_second_reply_fails_with_eproto() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    let data = manager.message(0, 0, b"", &[]);
    manager.main().write(&[Command::Reply(data), Command::Reply(data)]);
    assert_eq!(manager.main().drain(), [Return::TransactionComplete, Return::FailedReply]);
    assert_eq!(error(manager.main()), failed(Errno::EPROTO));
    reply(&calling);
    end(&world, [client, manager]);
}

/// The thread has called somebody itself: that call has to be answered first.
#[test]
fn a_reply_with_an_own_call_open_fails_with_eproto() {
    let ring = ring();
    let (outer, inner) = ring.two_calls();
    let Ring { world, manager, client, third, .. } = ring;
    inner.interrupt();
    let data = manager.message(0, 0, b"", &[]);
    manager.main().write(&[Command::Reply(data)]);
    assert_eq!(
        manager.main().drain(),
        [Return::TransactionComplete, Return::FailedReply],
        "what it reads first is left from its call"
    );
    assert_eq!(error(manager.main()), failed(Errno::EPROTO));
    // Neither call is harmed.
    answer(third.main().nonblock(), b"inner");
    assert_eq!(manager.data(&reply(&manager.main().nonblock().read())), b"inner");
    answer(manager.main().nonblock(), b"outer");
    assert_eq!(client.data(&reply(&outer)), b"outer");
    end(&world, [client, manager, third]);
}

#[test]
fn a_reply_from_another_thread_fails_with_eproto() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    assert_eq!(news(&answer(manager.thread(101), b"")), [Return::FailedReply]);
    assert!(calling.is_blocked());
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

#[test]
fn a_second_call_while_one_is_open_fails_with_eproto() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    calling.interrupt();
    let again = call(client.main(), 0, 2, b"");
    assert_eq!(news(&again), [Return::TransactionComplete, Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EPROTO));
    assert_eq!(take(manager.main()).code, 1);
    answer(manager.main().nonblock(), b"still answered");
    let calling = client.main().read();
    assert_eq!(client.data(&reply(&calling)), b"still answered");
    end(&world, [client, manager]);
}

#[test]
fn a_one_way_call_while_a_call_is_open_goes_out() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    calling.interrupt();
    assert_eq!(
        post(client.main(), 0, 2, b""),
        [Return::TransactionComplete, Return::TransactionComplete],
        "the call's own, then the one-way call's"
    );
    assert_eq!(take(manager.main()).code, 1);
    end(&world, [client, manager]);
}

/// A thread must read what was handed to it before it calls somebody.
#[test]
fn a_call_with_a_transaction_unread_fails_with_eproto() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let buffer = manager.arena.push(&[0; 64]);
    let cramped = WriteRead { read_size: 64, read_buffer: buffer, ..Default::default() };
    let reading = manager.main().write_read(cramped);
    let calling = call(client.main(), 0, 1, b"");
    assert_eq!(reading.returns(), [Return::Noop], "no room for it");
    manager.main().write(&[Command::Transaction(manager.message(held, 2, b"", &[]))]);
    assert_eq!(error(manager.main()), failed(Errno::EPROTO));
    let read = manager.main().read();
    assert_eq!(transaction(&read).code, 1);
    assert_eq!(manager.main().drain(), [Return::FailedReply]);
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

#[test]
fn a_one_way_call_with_a_transaction_unread_goes_out() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let buffer = manager.arena.push(&[0; 64]);
    let cramped = WriteRead { read_size: 64, read_buffer: buffer, ..Default::default() };
    manager.main().write_read(cramped);
    let calling = call(client.main(), 0, 1, b"");
    let data = one_way(manager.message(held, 2, b"", &[]));
    manager.main().write(&[Command::Transaction(data)]);
    assert_eq!(take(manager.main()).code, 1);
    assert_eq!(manager.main().drain(), [Return::TransactionComplete]);
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

#[test]
fn a_call_to_ones_own_node_fails() {
    let Pair { world, manager, client } = pair();
    let third = open(&world, 300);
    let held = offer(&client, &manager, 0x10);
    // Its own node comes back as the node, so there is no handle to call it by; and the manager
    // cannot call itself.
    let found = look_up(&third, &manager, held);
    assert_eq!(found, 1);
    assert_eq!(news(&call(manager.main(), 0, 1, b"")), [Return::FailedReply]);
    assert_eq!(error(manager.main()), failed(Errno::EINVAL));
    end(&world, [client, manager, third]);
}

#[test]
fn a_call_to_a_handle_that_is_none_fails() {
    let Pair { world, manager, client } = pair();
    assert_eq!(news(&call(client.main(), 1, 1, b"")), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

#[test]
fn a_call_to_a_weak_handle_fails() {
    let Pair { world, manager, client } = pair();
    post_with(client.main(), 0, &[weak_binder(0x10)]);
    let received = take(manager.main());
    let weak = only_handle(&manager, &received);
    assert_eq!(news(&call(manager.main(), weak, 1, b"")), [Return::FailedReply]);
    assert_eq!(error(manager.main()), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

#[test]
fn a_call_without_a_context_manager_gets_dead_reply() {
    let world = World::default();
    let client = open(&world, 200);
    assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::DeadReply]);
    assert_eq!(error(client.main()), (uapi::BR_DEAD_REPLY, -(Errno::EINVAL as i32)));
    end(&world, [client]);
}

#[test]
fn a_caller_that_dies_before_its_call_is_read_leaves_the_call() {
    let Pair { world, manager, client } = pair();
    call(client.main(), 0, 8, b"last words");
    client.release();
    let received = take(manager.main());
    assert_eq!((received.code, received.sender_pid, received.sender_euid), (8, 0, 1000));
    assert_eq!(manager.data(&received), b"last words");
    // The answer has nowhere to go, which its sender does not see.
    let done = answer(manager.main().nonblock(), b"");
    assert_eq!(news(&done), [Return::TransactionComplete]);
    assert_eq!(error(manager.main()), (uapi::BR_OK, 0));
    end(&world, [manager]);
}

#[test]
fn a_caller_whose_thread_exits_is_not_answered() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    client.main().call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert!(!calling.is_blocked());
    assert_eq!(news(&answer(manager.main().nonblock(), b"")), [Return::TransactionComplete]);
    assert_eq!(client.main().drain(), []);
    end(&world, [client, manager]);
}

#[test]
fn a_caller_that_dies_with_its_reply_unread_leaves_nothing() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    calling.interrupt();
    let received = take(manager.main());
    free(&manager, &received);
    client.add_file(5, fakebinder_sim::SimFile(1));
    answer_with(manager.main().nonblock(), &[binder(0x99)]);
    assert_eq!(world.stats().transactions, 1);
    client.release();
    assert_eq!(world.stats().transactions, 0);
    assert_eq!(manager.main().drain(), [], "it has not confirmed yet that it keeps its node");
    let lost = node(0x99);
    manager.main().write(&[Command::IncrefsDone(lost), Command::AcquireDone(lost)]);
    assert_eq!(manager.main().drain(), [Return::Release(lost), Return::Decrefs(lost)]);
    end(&world, [manager]);
}

/// The one in the middle dies: the caller hears of it, and the answer from the end of the chain
/// finds nobody.
#[test]
fn a_server_that_dies_in_a_nested_call_answers_with_dead_reply() {
    let ring = ring();
    let (outer, _) = ring.two_calls();
    let Ring { world, manager, client, third, .. } = ring;
    manager.release();
    // Its thread had called on: the caller waits until the end of the chain answers.
    assert!(outer.is_blocked());
    assert_eq!(news(&answer(third.main().nonblock(), b"")), [Return::TransactionComplete]);
    assert_eq!(news(&outer), [Return::TransactionComplete, Return::DeadReply]);
    end(&world, [client, third]);
}

#[test]
fn a_server_thread_that_exits_in_a_nested_call_answers_when_the_chain_does() {
    let ring = ring();
    let (outer, _) = ring.two_calls();
    let Ring { world, manager, client, third, .. } = ring;
    manager.main().call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert!(outer.is_blocked());
    third.release();
    assert_eq!(news(&outer), [Return::TransactionComplete, Return::DeadReply]);
    end(&world, [client, manager]);
}

#[test]
fn the_end_of_a_chain_dies_and_the_middle_goes_on() {
    let ring = ring();
    let (outer, inner) = ring.two_calls();
    let Ring { world, manager, client, third, .. } = ring;
    third.release();
    assert_eq!(news(&inner), [Return::TransactionComplete, Return::DeadReply]);
    assert!(outer.is_blocked());
    answer(manager.main().nonblock(), b"without it");
    assert_eq!(client.data(&reply(&outer)), b"without it");
    end(&world, [client, manager]);
}

/// The client waits for the manager, is called back, and dies before it answers that.
#[test]
fn a_caller_that_dies_in_a_callback_answers_it_with_dead_reply() {
    let ring = ring();
    let (_outer, inner) = ring.two_calls();
    let Ring { world, manager, client, third, to_client, .. } = ring;
    let back = call(third.main(), to_client, 3, b"");
    client.release();
    assert_eq!(news(&back), [Return::TransactionComplete, Return::DeadReply]);
    answer(third.main().nonblock(), b"sorry");
    assert_eq!(manager.data(&reply(&inner)), b"sorry");
    assert_eq!(news(&answer(manager.main().nonblock(), b"")), [Return::TransactionComplete]);
    end(&world, [manager, third]);
}

/// The callback lies unread on the thread that waits for the outer call.
#[test]
fn a_caller_that_dies_with_a_callback_unread_answers_it_with_dead_reply() {
    let ring = ring();
    let (outer, _inner) = ring.two_calls();
    let Ring { world, manager, client, third, to_client, .. } = ring;
    outer.interrupt();
    let back = call(third.main(), to_client, 3, b"");
    assert!(back.is_blocked());
    client.release();
    assert_eq!(news(&back), [Return::TransactionComplete, Return::DeadReply]);
    end(&world, [manager, third]);
}

#[test]
fn a_target_that_dies_with_calls_unread_answers_all_of_them() {
    let Pair { world, manager, client } = pair();
    let callers = [201, 202, 203].map(|tid| client.thread(tid));
    callers.iter().for_each(|thread| introduce(*thread));
    let calls = callers.map(|thread| call(thread, 0, 1, b""));
    manager.release();
    for calling in &calls {
        assert_eq!(news(calling), [Return::TransactionComplete, Return::DeadReply]);
    }
    end(&world, [client]);
}

/// The client answers later than it hears of the failure.
#[test]
fn a_buffer_freed_before_the_answer_does_not_harm_the_call() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"free me");
    let received = take(manager.main());
    free(&manager, &received);
    assert_eq!(manager.alloc.allocated_count(), 0);
    answer(manager.main().nonblock(), b"done");
    assert_eq!(client.data(&reply(&calling)), b"done");
    end(&world, [client, manager]);
}

/// Two calls in turn from within a call, and neither outcome read.
#[test]
fn a_second_failed_reply_that_is_not_read_is_dropped() {
    let Ring { world, manager, client, third, to_third, .. } = ring();
    let fourth = open(&world, 400);
    let to_fourth = offer(&fourth, &manager, 0x40);
    let outer = call(client.main(), 0, 1, b"");
    take(manager.main());
    manager.main().write(&[Command::Transaction(manager.message(to_third, 2, b"", &[]))]);
    third.release();
    manager.main().write(&[Command::Transaction(manager.message(to_fourth, 3, b"", &[]))]);
    fourth.release();
    assert_eq!(
        manager.main().drain(),
        [Return::TransactionComplete, Return::DeadReply, Return::TransactionComplete]
    );
    answer(manager.main().nonblock(), b"still here");
    assert_eq!(client.data(&reply(&outer)), b"still here");
    end(&world, [client, manager]);
}
