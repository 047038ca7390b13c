//! Identity: who a client is comes from the device, never from what the client writes.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::TransactionData;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;

/// A sender that claims to be somebody else in its record.
fn forged(data: TransactionData) -> TransactionData {
    TransactionData { sender_pid: 1, sender_euid: 0, ..data }
}

#[test]
fn sender_pid_and_euid_of_a_call_come_from_the_device() {
    let Pair { world, manager, client } = pair();
    let data = forged(client.message(0, 1, b"", &[]));
    client.thread(201).write(&[Command::Transaction(data)]);
    let received = take(manager.main());
    assert_eq!((received.sender_pid, received.sender_euid), (200, 1000), "the process, any thread");
    end(&world, [client, manager]);
}

#[test]
fn sender_pid_of_a_one_way_call_is_0_and_euid_comes_from_the_device() {
    let Pair { world, manager, client } = pair();
    let data = forged(one_way(client.message(0, 1, b"", &[])));
    client.main().write(&[Command::Transaction(data)]);
    let received = take(manager.main());
    assert_eq!((received.sender_pid, received.sender_euid), (0, 1000));
    end(&world, [client, manager]);
}

#[test]
fn sender_pid_of_a_reply_is_0_and_euid_comes_from_the_device() {
    let Pair { world, mut manager, client } = pair();
    manager.euid = 1042;
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    let data = forged(manager.message(0, 0, b"", &[]));
    manager.main().write(&[Command::Reply(data)]);
    let answered = reply(&calling);
    assert_eq!((answered.sender_pid, answered.sender_euid), (0, 1042));
    end(&world, [client, manager]);
}

/// A program that changes its uid is known by what it was when it called.
#[test]
fn sender_euid_is_that_of_the_moment_of_the_call() {
    let Pair { world, manager, mut client } = pair();
    client.main().write(&[Command::Transaction(client.message(0, 1, b"", &[]))]);
    client.euid = 0;
    assert_eq!(take(manager.main()).sender_euid, 1000);
    end(&world, [client, manager]);
}

#[test]
fn two_opens_by_one_process_do_not_share_handles() {
    let Pair { world, manager, client } = pair();
    let again = open(&world, 200);
    let held = offer(&client, &manager, 0x10);
    let third = open(&world, 300);
    look_up(&third, &manager, held);
    assert_eq!(look_up(&again, &manager, held), 1, "a handle even to a node of its own process");
    assert_eq!(news(&call(client.main(), 1, 1, b"")), [Return::FailedReply]);
    end(&world, [client, again, third, manager]);
}

#[test]
fn two_opens_by_one_process_do_not_share_buffers() {
    let Pair { world, manager, client } = pair();
    let again = open(&world, 100);
    let calling = call(client.main(), 0, 1, b"mine");
    let received = take(manager.main());
    free(&again, &received);
    assert_eq!(manager.data(&received), b"mine");
    assert_eq!(manager.alloc.allocated_count(), 1);
    assert!(calling.is_blocked());
    end(&world, [client, manager, again]);
}

/// The manager's process may not call it, through whichever file.
#[test]
fn a_call_to_the_manager_from_another_open_of_its_process_is_einval() {
    let Pair { world, manager, client } = pair();
    let again = open(&world, 100);
    assert_eq!(news(&call(again.main(), 0, 1, b"")), [Return::FailedReply]);
    assert_eq!(error(again.main()), failed(Errno::EINVAL));
    // Holding it is not calling it.
    again.main().write(&[Command::Acquire(0)]);
    assert_eq!(world.stats().references, 1);
    end(&world, [client, manager, again]);
}

#[test]
fn a_thread_id_used_again_has_no_looper_state() {
    let Pair { world, manager, client } = pair();
    let limit = 1_u32.to_ne_bytes();
    manager.main().call(uapi::BINDER_SET_MAX_THREADS, &limit).unwrap();
    manager.main().write(&[Command::EnterLooper]);
    manager.main().call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    post(client.main(), 0, 1, b"");
    assert_eq!(manager.main().read().returns()[0], Return::Noop, "no looper, no BR_SPAWN_LOOPER");
    end(&world, [client, manager]);
}

#[test]
fn a_thread_id_used_again_has_no_calls_open() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    manager.main().call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
    manager.main().write(&[Command::Reply(manager.message(0, 0, b"", &[]))]);
    assert_eq!(manager.main().drain(), [Return::FailedReply]);
    assert_eq!(error(manager.main()), failed(Errno::EPROTO));
    end(&world, [client, manager]);
}

#[test]
fn the_same_thread_id_in_two_processes_is_two_threads() {
    let Pair { world, manager, client } = pair();
    let waiting = manager.thread(200).enter_looper();
    let calling = call(client.thread(200), 0, 1, b"");
    assert_eq!(transaction(&waiting).code, 1);
    client.process.interrupt(200);
    assert!(!calling.is_blocked());
    answer(manager.thread(200).nonblock(), b"");
    reply(&client.thread(200).read());
    end(&world, [client, manager]);
}
