//! BINDER_GET_EXTENDED_ERROR: what is remembered of a thread's last failure, and for whom.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::SimThread;

const NONE: (u32, i32) = (uapi::BR_OK, 0);

fn id(thread: SimThread<'_>) -> u32 {
    extended_error(thread).id
}

#[test]
fn an_extended_error_is_there_once() {
    let Pair { world, manager, client } = pair();
    assert_eq!(error(client.main()), NONE);
    news(&call(client.main(), 9, 1, b""));
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    assert_eq!(error(client.main()), NONE);
    assert_eq!(id(client.main()), 0);
    end(&world, [client, manager]);
}

#[test]
fn an_extended_error_names_the_transaction_that_failed() {
    let Pair { world, manager, client } = pair();
    news(&call(client.main(), 9, 1, b""));
    let first = id(client.main());
    news(&call(client.main(), 9, 1, b""));
    assert!(first > 0 && id(client.main()) > first);
    end(&world, [client, manager]);
}

#[test]
fn a_new_transaction_takes_the_last_error_away() {
    let Pair { world, manager, client } = pair();
    news(&call(client.main(), 9, 1, b""));
    post(client.main(), 0, 1, b"");
    let error = extended_error(client.main());
    assert!(error.id > 0, "the id is that of the transaction that went well");
    assert_eq!((error.command, error.param), NONE);
    end(&world, [client, manager]);
}

#[test]
fn an_extended_error_belongs_to_its_thread() {
    let Pair { world, manager, client } = pair();
    news(&call(client.main(), 9, 1, b""));
    introduce(client.thread(201));
    assert_eq!(error(client.thread(201)), NONE);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    end(&world, [client, manager]);
}

/// A reply that fails is the caller's failure; the server only hears that it is done.
#[test]
fn a_failed_reply_is_the_callers_error() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    let done = answer_with(manager.main().nonblock(), &[handle(42)]);
    assert_eq!(news(&done), [Return::TransactionComplete]);
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    assert_eq!(error(manager.main()), NONE);
    end(&world, [client, manager]);
}

/// The caller fails to send something while it waits for a reply that then fails.
#[test]
fn a_failed_reply_does_not_replace_an_error_that_the_caller_has() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Transaction(client.message(0, 1, b"", &[]))]);
    take(manager.main());
    // A one-way call may be made meanwhile, and fails.
    let data = one_way(client.message(77, 1, b"", &[]));
    client.main().write(&[Command::Transaction(data)]);
    let too_large = vec![0; 256 << 10];
    answer(manager.main().nonblock(), &too_large);
    assert_eq!(
        client.main().drain(),
        [Return::TransactionComplete, Return::FailedReply, Return::FailedReply]
    );
    assert_eq!(error(client.main()), failed(Errno::EINVAL), "not ENOSPC");
    end(&world, [client, manager]);
}

/// Dead and frozen targets are no errno.
#[test]
fn br_dead_reply_of_a_dying_target_has_no_errno() {
    let Stage { world, manager, client, waiting } = stage();
    let calling = call(client.main(), 0, 1, b"");
    transaction(&waiting);
    manager.release();
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
    assert_eq!(error(client.main()), NONE, "the call itself went well");
    assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::DeadReply]);
    assert_eq!(error(client.main()), (uapi::BR_DEAD_REPLY, -(Errno::EINVAL as i32)));
    end(&world, [client]);
}
