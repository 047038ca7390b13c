//! Polling: who is woken, and when there is something to read.

use crate::support::*;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use std::sync::atomic::Ordering;

#[test]
fn a_poll_is_woken_by_work_for_the_process() {
    let Pair { world, manager, client } = pair();
    let (ready, wakes) = manager.main().poll();
    assert!(!ready);
    let calling = call(client.main(), 0, 4, b"");
    assert_eq!(wakes.load(Ordering::SeqCst), 1);
    assert!(manager.main().poll().0);
    assert_eq!(take(manager.main()).code, 4);
    assert!(!manager.main().poll().0, "it was read");
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

#[test]
fn a_new_thread_that_polls_may_read_at_once() {
    let Pair { world, manager, client } = pair();
    assert!(manager.thread(101).poll().0, "a new thread's first read returns");
    assert_eq!(manager.thread(101).read().returns(), [Return::Noop]);
    assert!(!manager.thread(101).poll().0);
    end(&world, [client, manager]);
}

/// Those who poll are told by file, whichever of its threads may take the work: each asks for
/// itself then.
#[test]
fn all_who_poll_are_told_when_no_thread_waits_in_a_read() {
    let Pair { world, manager, client } = pair();
    let threads = [manager.main(), manager.thread(101)];
    threads.iter().for_each(|thread| introduce(*thread));
    let [_, wakes] = threads.map(|thread| thread.poll().1);
    post(client.main(), 0, 1, b"");
    assert_eq!(wakes.load(Ordering::SeqCst), 2, "once for each of the threads");
    assert_eq!(threads.map(|thread| thread.poll().0), [true, true]);
    end(&world, [client, manager]);
}

/// An edge-triggered epoll asks when it is told, reads until there is nothing, and does not ask
/// again before it is told anew.
#[test]
fn each_arrival_is_told_without_another_poll_between() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let (ready, _) = manager.main().poll();
    assert!(!ready);
    for round in 1..=20 {
        // What the kernel asks when it has been told; what it is answered ends the poll's turn.
        post(client.main(), 0, round, b"");
        let (ready, wakes) = manager.main().poll();
        assert!(ready, "call {round}");
        let received = take(manager.main().nonblock());
        assert_eq!(received.code, round);
        free(&manager, &received);
        assert!(manager.main().nonblock().drain().is_empty());
        assert_eq!(wakes.load(Ordering::SeqCst), 0, "nothing has come since");
        post(client.main(), 0, round, b"");
        assert_eq!(wakes.load(Ordering::SeqCst), 1, "after it was read, in round {round}");
        free(&manager, &take(manager.main().nonblock()));
    }
    end(&world, [client, manager]);
}

/// Nobody says when the last poll has ended: a file that nobody asks about any more costs a few
/// notices, not one for each call. What was left out is made good with the next poll.
#[test]
fn a_file_that_nobody_polls_any_more_is_told_a_few_times() {
    const CALLS: u32 = 1000;
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let (_, wakes) = manager.main().poll();
    for code in 0..CALLS {
        post(client.main(), 0, code, b"");
        free(&manager, &take(manager.main().nonblock()));
    }
    let told = wakes.load(Ordering::SeqCst);
    assert!((2..=32).contains(&told), "{told} notices of {CALLS} calls");
    let (ready, wakes) = manager.main().poll();
    assert!(!ready);
    assert_eq!(wakes.load(Ordering::SeqCst), 1, "for others who wait");
    post(client.main(), 0, 1, b"");
    assert_eq!(wakes.load(Ordering::SeqCst), 2);
    end(&world, [client, manager]);
}

/// Where threads wait by exclusive epolls, a notice wakes the first of them. One that has nothing
/// to read passes it on to the thread that has, but not for ever: that one may be busy elsewhere.
#[test]
fn a_notice_is_passed_on_by_a_thread_that_it_was_not_for() {
    let Pair { world, manager, client } = pair();
    let threads = [client.main(), client.thread(201)];
    threads.iter().for_each(|thread| introduce(*thread));
    let calling = threads[1].try_write(&[Command::Transaction(client.message(0, 1, b"", &[]))]);
    assert_eq!(calling.0, Ok(0));
    threads.iter().for_each(|thread| assert!(!thread.poll().0));
    take(manager.main());
    answer(manager.main().nonblock(), b"");
    let mut passed = 0;
    for _ in 0..100 {
        let (ready, wakes) = threads[0].poll();
        assert!(!ready);
        passed += usize::from(wakes.load(Ordering::SeqCst) > 0);
    }
    assert!((1..=8).contains(&passed), "it was passed on {passed} times");
    assert!(threads[1].poll().0);
    let (_, wakes) = threads[0].poll();
    assert_eq!(wakes.load(Ordering::SeqCst), 0, "whom it was for knows");
    threads[1].drain();
    end(&world, [client, manager]);
}

/// Several threads may share what they wait with: the one that began to poll need not be the one
/// that waits, and may be gone.
#[test]
fn work_is_told_though_the_thread_that_polled_has_gone_and_another_is_busy() {
    let Pair { world, manager, client } = pair();
    manager.thread(101).poll();
    introduce(manager.main());
    manager.main().poll();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    manager.thread(101).call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    let (ready, wakes) = manager.main().poll();
    assert!(!ready, "it serves a call");
    post(client.thread(201), 0, 2, b"");
    assert_eq!(wakes.load(Ordering::SeqCst), 1);
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

#[test]
fn a_thread_that_waits_in_a_read_is_preferred_to_those_that_poll() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let (_, wakes) = manager.main().poll();
    let waiting = manager.thread(101).enter_looper();
    post(client.main(), 0, 1, b"");
    assert_eq!(wakes.load(Ordering::SeqCst), 0);
    assert_eq!(transaction(&waiting).code, 1);
    end(&world, [client, manager]);
}

#[test]
fn a_thread_that_waits_for_a_reply_is_not_woken_for_the_process() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    manager.main().write(&[Command::Transaction(manager.message(held, 1, b"", &[]))]);
    let (ready, wakes) = manager.main().poll();
    assert!(!ready, "BR_TRANSACTION_COMPLETE of a call comes with its reply");
    post(client.main(), 0, 1, b"");
    assert_eq!(wakes.load(Ordering::SeqCst), 0);
    take(client.main());
    answer(client.main().nonblock(), b"");
    assert_eq!(wakes.load(Ordering::SeqCst), 1, "but for its reply");
    assert!(manager.main().poll().0);
    end(&world, [client, manager]);
}

/// What a polling thread queues for itself would not wake anybody else.
#[test]
fn a_polling_thread_is_woken_for_the_outcome_of_its_own_call() {
    let Pair { world, manager, client } = pair();
    let (_, wakes) = client.main().poll();
    let data = one_way(client.message(0, 1, b"", &[]));
    client.main().write(&[Command::Transaction(data)]);
    assert_eq!(wakes.load(Ordering::SeqCst), 1);
    assert!(client.main().poll().0);
    assert_eq!(client.main().drain(), [Return::TransactionComplete]);
    end(&world, [client, manager]);
}

#[test]
fn a_poll_ends_when_its_thread_exits() {
    let Pair { world, manager, client } = pair();
    let (_, wakes) = client.main().poll();
    client.main().call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert_eq!(wakes.load(Ordering::SeqCst), 1);
    let (_, wakes) = client.main().poll();
    introduce(client.main());
    let (_, again) = client.main().poll();
    client.release();
    assert_eq!([wakes, again].map(|wakes| wakes.load(Ordering::SeqCst)), [0, 1]);
    end(&world, [manager]);
}

#[test]
fn a_flush_is_no_news_for_a_poll() {
    let Pair { world, manager, client } = pair();
    let (_, wakes) = client.main().poll();
    client.process.flush();
    assert_eq!(wakes.load(Ordering::SeqCst), 0);
    end(&world, [client, manager]);
}
