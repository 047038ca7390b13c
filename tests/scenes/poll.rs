//! Polling: who is woken, and when there is something to read.

use crate::support::*;
use fakebinder::binder::command::Command;
use fakebinder::binder::returns::Return;
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

/// Every polling thread without a call of its own is woken: which of them polls for binder's
/// sake is not known.
#[test]
fn all_polling_threads_are_woken_when_none_waits_in_a_read() {
    let Pair { world, manager, client } = pair();
    let threads = [manager.main(), manager.thread(101)];
    threads.iter().for_each(|thread| introduce(*thread));
    let polls = threads.map(|thread| thread.poll().1);
    post(client.main(), 0, 1, b"");
    assert_eq!(polls.map(|wakes| wakes.load(Ordering::SeqCst)), [1, 1]);
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
