//! Descriptors that come to their receiver between two of its ioctls: the read that finds their
//! transaction ends without it.

use crate::support::*;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::Object;
use fakebinder::protocol::record::TransactionData;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{Sim, SimFile};
use std::sync::atomic::Ordering;

/// A manager whose descriptors come so, and a client that has some.
fn files() -> Pair {
    let pair = crate::fd::files();
    pair.manager.postpone_files();
    pair
}

fn file_of(sim: &Sim, data: &TransactionData) -> Option<SimFile> {
    match sim.objects(data)[..] {
        [Object::Fd { fd, .. }] => sim.file(fd as i32),
        ref other => panic!("expected a descriptor, got {other:?}"),
    }
}

#[test]
fn a_read_ends_without_the_transaction_and_the_next_begins_with_it() {
    let Pair { world, manager, client } = files();
    let reading = manager.main().enter_looper();
    assert_eq!(post_with(client.main(), 0, &[fd(10)]), [Return::TransactionComplete]);
    assert_eq!(reading.returns(), [Return::Noop]);
    assert_eq!(manager.files(), 0);
    // What comes meanwhile is behind it.
    post(client.main(), 0, 7, b"");
    let received = take(manager.main());
    assert_eq!(file_of(&manager, &received), Some(SimFile(1000)));
    free(&manager, &received);
    assert_eq!(take(manager.main()).code, 7);
    end(&world, [client, manager]);
}

#[test]
fn a_reply_comes_in_the_next_read() {
    let Pair { world, manager, client } = pair();
    manager.add_file(9, SimFile(900));
    client.postpone_files();
    let mut data = client.message(0, 1, b"", &[]);
    data.flags = uapi::TF_ACCEPT_FDS;
    let calling = client.main().write_and_read(&[Command::Transaction(data)]);
    take(manager.main());
    let answered = answer_with(manager.main().nonblock(), &[fd(9)]);
    assert_eq!(news(&answered), [Return::TransactionComplete]);
    assert_eq!(news(&calling), [Return::TransactionComplete]);
    let received = reply(&client.main().read());
    assert_eq!(file_of(&client, &received), Some(SimFile(900)));
    end(&world, [client, manager]);
}

/// A thread that was to have a call, and does not come back for it.
#[test]
fn a_thread_that_exits_instead_fails_the_call() {
    let Pair { world, manager, client } = files();
    let reading = manager.main().enter_looper();
    let calling = call_with(client.main(), 0, &[fd(10)]);
    assert_eq!(reading.returns(), [Return::Noop]);
    manager.main().call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
    assert_eq!((manager.files(), manager.alloc.allocated_count()), (0, 1), "the buffer is left");
    end(&world, [client, manager]);
}

#[test]
fn a_receiver_that_is_closed_instead_fails_the_call() {
    let Pair { world, manager, client } = files();
    let reading = manager.main().enter_looper();
    let calling = call_with(client.main(), 0, &[fd(10)]);
    assert_eq!(reading.returns(), [Return::Noop]);
    manager.release();
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
    end(&world, [client]);
}

/// As with work that a thread was woken for when a signal came: it reads of it while it waits for
/// an answer of its own.
#[test]
fn a_thread_that_calls_first_is_called_meanwhile() {
    let Pair { world, manager, client } = files();
    let held = offer(&client, &manager, 0x10);
    let reading = manager.main().enter_looper();
    let calling = call_with(client.main(), 0, &[fd(10)]);
    assert_eq!(reading.returns(), [Return::Noop]);
    let nested = call(manager.main(), held, 3, b"");
    let received = transaction(&nested);
    assert_eq!(file_of(&manager, &received), Some(SimFile(1000)));
    assert!(calling.is_blocked());
    end(&world, [client, manager]);
}

#[test]
fn those_who_poll_are_told_again() {
    let Pair { world, manager, client } = files();
    introduce(manager.main());
    assert!(!manager.main().poll().0);
    post_with(client.main(), 0, &[fd(10)]);
    assert!(manager.main().poll().0);
    let (_, wakes) = manager.main().poll();
    assert_eq!(manager.main().nonblock().read().returns(), [Return::Noop]);
    assert_eq!(wakes.load(Ordering::SeqCst), 1, "an edge-triggered epoll asks once it is told");
    assert!(manager.main().poll().0);
    assert_eq!(file_of(&manager, &take(manager.main())), Some(SimFile(1000)));
    end(&world, [client, manager]);
}
