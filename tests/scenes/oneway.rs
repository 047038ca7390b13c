//! One-way calls: in order, one at a time to a node, in half of the space, and not too many.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{Sim, SimThread};

const HALF: usize = 64 << 10;

#[test]
fn one_way_calls_to_a_node_run_one_at_a_time_in_order() {
    let Pair { world, manager, client } = pair();
    for code in 1..=3 {
        assert_eq!(post(client.main(), 0, code, b""), [Return::TransactionComplete]);
    }
    for code in 1..=3 {
        let received = take(manager.main());
        assert_eq!((received.code, received.sender_pid, received.sender_euid), (code, 0, 1000));
        assert_eq!(manager.main().drain(), [], "the next waits until the buffer is freed");
        free(&manager, &received);
    }
    end(&world, [client, manager]);
}

/// Whoever sends them, and whichever thread would be free.
#[test]
fn one_way_calls_of_different_senders_to_a_node_are_in_one_line() {
    let Pair { world, manager, client } = pair();
    let other = open(&world, 300);
    post(client.main(), 0, 1, b"");
    post(other.main(), 0, 2, b"");
    let received = take(manager.main());
    let free_thread = manager.thread(101).enter_looper();
    assert!(free_thread.is_blocked());
    free(&manager, &received);
    assert_eq!(transaction(&free_thread).code, 2);
    end(&world, [client, other, manager]);
}

#[test]
fn one_way_calls_to_different_nodes_do_not_wait_for_each_other() {
    let Pair { world, manager, client } = pair();
    let held = [0x10, 0x20].map(|ptr| offer(&client, &manager, ptr));
    for handle in held {
        post(manager.main(), handle, handle, b"");
    }
    assert_eq!(take(client.main()).target, 0x10);
    assert_eq!(take(client.main()).target, 0x20);
    end(&world, [client, manager]);
}

#[test]
fn a_call_overtakes_one_way_calls_that_wait_in_line() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 0, 1, b"");
    post(client.main(), 0, 2, b"");
    let calling = call(client.main(), 0, 3, b"");
    assert_eq!(take(manager.main()).code, 1);
    assert_eq!(take(manager.main()).code, 3);
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

/// What waits in line dies with its target, silently.
#[test]
fn a_target_that_dies_takes_its_one_way_calls_along() {
    let Pair { world, manager, client } = pair();
    client.add_file(3, fakebinder_sim::SimFile(1));
    (1..=3).for_each(|code| assert_eq!(post(client.main(), 0, code, b"").len(), 1));
    manager.release();
    assert_eq!(client.main().drain(), []);
    assert_eq!(world.stats().transactions, 0);
    assert_eq!(post(client.main(), 0, 4, b""), [Return::DeadReply]);
    end(&world, [client]);
}

#[test]
fn one_way_calls_go_on_after_a_thread_exits_with_one() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 0, 1, b"");
    post(client.main(), 0, 2, b"");
    let received = take(manager.thread(101));
    manager.thread(101).call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    free(&manager, &received);
    assert_eq!(take(manager.main()).code, 2);
    end(&world, [client, manager]);
}

#[test]
fn one_way_calls_may_take_half_of_the_space() {
    let Pair { world, manager, client } = pair();
    assert_eq!(post(client.main(), 0, 1, &vec![0; HALF - 4096]), [Return::TransactionComplete]);
    assert_eq!(post(client.main(), 0, 1, &[0; 4097]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::ENOSPC));
    assert_eq!(post(client.main(), 0, 1, &[0; 4096]), [Return::TransactionComplete]);
    assert_eq!(manager.alloc.free_async_space(), 0);
    assert_eq!(post(client.main(), 0, 1, b""), [Return::FailedReply]);
    assert!(call(client.main(), 0, 1, &vec![0; HALF]).is_blocked(), "the other half is there");
    let received = take(manager.main());
    free(&manager, &received);
    assert_eq!(manager.alloc.free_async_space(), HALF - 4096);
    end(&world, [client, manager]);
}

#[test]
fn a_failed_one_way_call_gives_its_space_back() {
    let Pair { world, manager, client } = pair();
    let free_space = manager.alloc.free_async_space();
    assert_eq!(post_with(client.main(), 0, &[handle(9)]), [Return::FailedReply]);
    assert_eq!(manager.alloc.free_async_space(), free_space);
    assert_eq!(post(client.main(), 0, 5, b""), [Return::TransactionComplete]);
    assert_eq!(take(manager.main()).code, 5, "and is not waited for");
    end(&world, [client, manager]);
}

fn detect_spam(sim: &Sim, enable: u32) {
    let enable = enable.to_ne_bytes();
    sim.main().call(uapi::BINDER_ENABLE_ONEWAY_SPAM_DETECTION, &enable).unwrap();
}

/// Sends until a sender is suspected; what it read last, and after how many calls.
fn spam(thread: SimThread<'_>, size: usize, calls: usize) -> (Option<usize>, usize) {
    let data = vec![0; size];
    let told: Vec<Return> =
        (0..calls).flat_map(|code| post(thread, 0, code as u32, &data)).collect();
    let first = told.iter().position(|told| *told == Return::OnewaySpamSuspect);
    (first, told.iter().filter(|told| **told == Return::OnewaySpamSuspect).count())
}

/// Below a tenth of the space, a sender with more than a quarter of it is suspected, once.
#[test]
fn a_sender_that_takes_the_one_way_space_is_a_spam_suspect_once() {
    let Pair { world, manager, client } = pair();
    detect_spam(&client, 1);
    // 128 KiB in all: after 13 calls of 4 KiB less than a tenth (13,107 bytes) is free of the half.
    let (first, count) = spam(client.main(), 4096, 16);
    assert_eq!((first, count), (Some(12), 1));
    end(&world, [client, manager]);
}

#[test]
fn a_sender_with_many_small_one_way_calls_is_a_spam_suspect() {
    let Pair { world, manager, client } = pair();
    let other = open(&world, 300);
    detect_spam(&client, 1);
    // Somebody else takes the space; this one only sends many.
    assert_eq!(post(other.main(), 0, 1, &vec![0; HALF - 13_000]), [Return::TransactionComplete]);
    let (first, count) = spam(client.main(), 8, 60);
    // The driver charges a buffer to its sender after it has looked for spam, so 51 lie there.
    assert_eq!((first, count), (Some(51), 1));
    end(&world, [client, other, manager]);
}

#[test]
fn a_modest_sender_is_no_spam_suspect_when_others_took_the_space() {
    let Pair { world, manager, client } = pair();
    let other = open(&world, 300);
    detect_spam(&client, 1);
    post(other.main(), 0, 1, &vec![0; HALF - 13_000]);
    assert_eq!(spam(client.main(), 8, 20), (None, 0));
    end(&world, [client, other, manager]);
}

/// It is the sender who asks to be told.
#[test]
fn without_spam_detection_a_suspect_reads_br_transaction_complete() {
    let Pair { world, manager, client } = pair();
    detect_spam(&manager, 1);
    assert_eq!(spam(client.main(), 4096, 16), (None, 0));
    end(&world, [client, manager]);
}

#[test]
fn spam_detection_can_be_turned_off_again() {
    let Pair { world, manager, client } = pair();
    detect_spam(&client, 7);
    detect_spam(&client, 0);
    assert_eq!(spam(client.main(), 4096, 16), (None, 0));
    end(&world, [client, manager]);
}

/// Once there is room again, the next time is a new time.
#[test]
fn a_sender_may_be_suspected_of_spam_again_after_there_was_room() {
    let Pair { world, manager, client } = pair();
    detect_spam(&client, 1);
    assert_eq!(spam(client.main(), 4096, 16).1, 1);
    for _ in 0..16 {
        let received = take(manager.main());
        free(&manager, &received);
    }
    assert_eq!(spam(client.main(), 4096, 16).1, 1);
    end(&world, [client, manager]);
}

#[test]
fn calls_are_no_one_way_spam() {
    let Pair { world, manager, client } = pair();
    detect_spam(&client, 1);
    let calls: Vec<_> = (201..=270)
        .map(|tid| {
            introduce(client.thread(tid));
            let calling = call(client.thread(tid), 0, 1, &[0; 1800]);
            take(manager.thread(tid));
            calling
        })
        .collect();
    for (tid, calling) in (201..=270).zip(calls) {
        answer(manager.thread(tid).nonblock(), b"");
        assert_eq!(news(&calling)[0], Return::TransactionComplete);
    }
    end(&world, [client, manager]);
}
