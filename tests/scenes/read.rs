//! The read half of BINDER_WRITE_READ: order of the returns, room, bad memory, signals.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::client_mem::ClientMemory;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::Record;
use fakebinder::protocol::record::{HandleCookie, TransactionData, WriteRead};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::TF_ONE_WAY;
use fakebinder_sim::{Pending, SimThread};

/// Reads with a buffer of `size` bytes.
fn read_with(thread: SimThread<'_>, size: u64) -> Pending {
    let read_buffer = thread.sim.arena.push(&vec![0; size as usize]);
    thread.write_read(WriteRead { read_size: size, read_buffer, ..Default::default() })
}

#[test]
fn br_noop_begins_every_read() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 0, 1, b"");
    assert!(matches!(manager.main().read().returns()[..], [Return::Noop, Return::Transaction(_)]));
    end(&world, [client, manager]);
}

/// A program that reads on into the same buffer gets no second BR_NOOP.
#[test]
fn a_read_that_goes_on_behind_what_was_consumed_has_no_br_noop() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Transaction(one_way(client.message(0, 1, b"", &[])))]);
    let read_buffer = client.arena.push(&[0; 256]);
    let call = WriteRead { read_size: 256, read_consumed: 8, read_buffer, ..Default::default() };
    let ended = client.main().write_read(call).ended().unwrap();
    assert_eq!(WriteRead::at(&ended.out).unwrap_or_default().read_consumed, 12);
    let mut bytes = [0; 12];
    client.arena.read(read_buffer, &mut bytes).unwrap();
    assert_eq!(bytes[..8], [0; 8]);
    assert_eq!(Return::decode(&bytes[8..]), Some((Return::TransactionComplete, 4)));
    end(&world, [client, manager]);
}

/// BR_SPAWN_LOOPER goes to the front of the buffer all the same.
#[test]
fn br_spawn_looper_goes_to_the_front_of_a_buffer_that_is_read_on_into() {
    let Pair { world, manager, client } = pair();
    let limit = 1_u32.to_ne_bytes();
    manager.main().call(fakebinder::uapi::BINDER_SET_MAX_THREADS, &limit).unwrap();
    manager.main().write(&[Command::EnterLooper]);
    post(client.main(), 0, 1, b"");
    let read_buffer = manager.arena.push(&[0; 256]);
    let call = WriteRead { read_size: 256, read_consumed: 8, read_buffer, ..Default::default() };
    manager.main().write_read(call);
    let mut bytes = [0; 12];
    manager.arena.read(read_buffer, &mut bytes).unwrap();
    assert_eq!(Return::decode(&bytes), Some((Return::SpawnLooper, 4)));
    assert_eq!(bytes[8..], fakebinder::uapi::BR_TRANSACTION.to_ne_bytes());
    end(&world, [client, manager]);
}

/// The second call is for another thread, or for the next read.
#[test]
fn a_transaction_ends_a_read() {
    let Pair { world, manager, client } = pair();
    for tid in [201, 202] {
        introduce(client.thread(tid));
        let data = client.message(0, tid as u32, b"", &[]);
        client.thread(tid).write(&[Command::Transaction(data)]);
    }
    assert_eq!(take(manager.main()).code, 201);
    assert_eq!(take(manager.thread(101)).code, 202);
    end(&world, [client, manager]);
}

/// Deferred: it does not wake the caller, but comes before what does.
#[test]
fn br_transaction_complete_of_a_call_comes_with_its_reply() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    assert!(calling.is_blocked());
    take(manager.main());
    answer(manager.main().nonblock(), b"");
    assert!(matches!(news(&calling)[..], [Return::TransactionComplete, Return::Reply(_)]));
    end(&world, [client, manager]);
}

#[test]
fn br_transaction_complete_of_a_one_way_call_is_read_at_once() {
    let Pair { world, manager, client } = pair();
    assert_eq!(post(client.main(), 0, 1, b""), [Return::TransactionComplete]);
    end(&world, [client, manager]);
}

/// What a thread is told of its own does not keep work of the process back for long: the next
/// read gives that.
#[test]
fn work_of_the_process_is_not_given_with_work_of_the_thread() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    post(client.main(), 0, 1, b"");
    let sent = post(manager.main(), held, 1, b"");
    assert_eq!(sent, [Return::TransactionComplete]);
    assert_eq!(take(manager.main()).code, 1);
    end(&world, [client, manager]);
}

#[test]
fn a_read_without_room_for_a_transaction_leaves_it() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    call(client.main(), 0, 1, b"");
    // 4 for BR_NOOP, and 76 for the largest return.
    for size in [4, 40, 79] {
        assert_eq!(read_with(manager.main(), size).returns(), [Return::Noop], "{size}");
    }
    let read = read_with(manager.main(), 80);
    assert!(matches!(read.returns()[..], [Return::Noop, Return::Transaction(_)]));
    end(&world, [client, manager]);
}

#[test]
fn a_read_gives_as_much_as_there_is_room_for() {
    let Pair { world, manager, client } = pair();
    let burst: Vec<Command> = (0..30)
        .map(|code| Command::Transaction(one_way(client.message(0, code, b"", &[]))))
        .collect();
    client.main().write(&burst);
    let read = read_with(client.main(), 100);
    // At each there must be 76 bytes left: at 4, 8, ... 24 of 100.
    assert_eq!(news(&read), [Return::TransactionComplete; 6]);
    assert_eq!(client.main().drain(), [Return::TransactionComplete; 24]);
    end(&world, [client, manager]);
}

/// Unsigned, as the driver computes what is left.
#[test]
fn a_read_buffer_too_small_for_br_noop_is_no_limit() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 0, 1, b"");
    let read_buffer = manager.arena.push(&[0; 256]);
    let call = WriteRead { read_size: 1, read_buffer, ..Default::default() };
    let ended = manager.main().write_read(call).ended().unwrap();
    assert_eq!(WriteRead::at(&ended.out).unwrap_or_default().read_consumed, 4 + 4 + 64);
    end(&world, [client, manager]);
}

#[test]
fn a_read_buffer_outside_of_memory_is_efault_and_takes_nothing() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let calling = call(client.main(), 0, 1, b"");
    let call = WriteRead { read_size: 256, read_buffer: 8, ..Default::default() };
    let ended = manager.main().write_read(call).ended().unwrap();
    assert_eq!(ended.result, Err(Errno::EFAULT));
    assert_eq!(WriteRead::at(&ended.out).unwrap_or_default().read_consumed, 0);
    assert!(calling.is_blocked());
    assert_eq!(take(manager.main()).code, 1);
    end(&world, [client, manager]);
}

/// Before it would wait, not only when there is something to write.
#[test]
fn a_read_buffer_outside_of_memory_is_efault_at_once() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let call = WriteRead { read_size: 256, read_buffer: 8, ..Default::default() };
    let reading = manager.main().write_read(call);
    assert_eq!(reading.ended().unwrap().result, Err(Errno::EFAULT));
    end(&world, [client, manager]);
}

/// The server could read BR_NOOP, but not the transaction behind it.
#[test]
fn a_call_that_cannot_be_written_to_its_server_fails() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let read_buffer = manager.arena.push(&[0; 256]);
    manager.arena.unmap(read_buffer + 40, 8);
    let calling = call(client.main(), 0, 1, b"");
    let call = WriteRead { read_size: 256, read_buffer, ..Default::default() };
    let ended = manager.main().write_read(call).ended().unwrap();
    assert_eq!(ended.result, Err(Errno::EFAULT));
    assert_eq!(WriteRead::at(&ended.out).unwrap_or_default().read_consumed, 0);
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::FailedReply]);
    assert!(manager.main().read().is_blocked(), "the server has no call to answer");
    end(&world, [client, manager]);
}

#[test]
fn a_one_way_call_that_cannot_be_written_to_its_server_is_lost() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let read_buffer = manager.arena.push(&[0; 256]);
    manager.arena.unmap(read_buffer + 40, 8);
    post(client.main(), 0, 1, b"");
    let call = WriteRead { read_size: 256, read_buffer, ..Default::default() };
    assert_eq!(manager.main().write_read(call).ended().unwrap().result, Err(Errno::EFAULT));
    assert_eq!(world.stats().transactions, 0);
    assert_eq!(manager.alloc.allocated_count(), 1, "nobody may free its buffer: as in the driver");
    end(&world, [client, manager]);
}

/// The buffer was good when the read began.
#[test]
fn a_read_buffer_that_goes_while_the_read_waits_is_efault() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let read_buffer = manager.arena.push(&[0; 256]);
    let waiting =
        manager.main().write_read(WriteRead { read_size: 256, read_buffer, ..Default::default() });
    assert!(waiting.is_blocked());
    manager.arena.unmap(read_buffer, 256);
    let calling = call(client.main(), 0, 1, b"");
    assert_eq!(waiting.ended().unwrap().result, Err(Errno::EFAULT));
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::FailedReply]);
    let again =
        manager.main().write_read(WriteRead { read_size: 256, read_buffer, ..Default::default() });
    assert_eq!(again.ended().unwrap().result, Err(Errno::EFAULT), "and it is not good now");
    end(&world, [client, manager]);
}

#[test]
fn a_signal_ends_a_blocked_read_and_the_call_goes_on() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    calling.interrupt();
    let ended = calling.ended().unwrap();
    let out = WriteRead::at(&ended.out).unwrap_or_default();
    assert_eq!((ended.result, ended.restarts), (Err(Errno::EINTR), false));
    assert_eq!((out.write_consumed, out.read_consumed), (68, 0));
    take(manager.main());
    answer(manager.main().nonblock(), b"late");
    // The same ioctl again: nothing is sent twice, for the write part is consumed.
    let again = client.main().write_read(out);
    assert_eq!(client.data(&reply(&again)), b"late");
    end(&world, [client, manager]);
}

#[test]
fn a_signal_after_the_end_of_a_read_changes_nothing() {
    let Stage { world, manager, client, waiting } = stage();
    post(client.main(), 0, 1, b"");
    waiting.interrupt();
    assert_eq!(transaction(&waiting).code, 1);
    end(&world, [client, manager]);
}

#[test]
fn a_signal_for_a_thread_that_does_not_wait_is_not_remembered() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    manager.process.interrupt(100);
    manager.process.interrupt(4711);
    let reading = manager.main().read();
    assert!(reading.is_blocked());
    end(&world, [client, manager]);
}

/// The work that the interrupted thread did not take goes to another one that waits.
#[test]
fn a_signal_does_not_take_work_along() {
    let Pair { world, manager, client } = pair();
    let first = manager.thread(101).enter_looper();
    let second = manager.thread(102).enter_looper();
    second.interrupt();
    post(client.main(), 0, 1, b"");
    assert_eq!(transaction(&first).code, 1);
    end(&world, [client, manager]);
}

#[test]
fn a_pending_signal_ends_a_read_that_would_wait() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let reading = manager.main().signalled().read();
    assert_eq!(reading.ended().unwrap().result, Err(Errno::EINTR));
    // What is there is given all the same.
    post(client.main(), 0, 1, b"");
    assert_eq!(transaction(&manager.main().signalled().read()).code, 1);
    end(&world, [client, manager]);
}

#[test]
fn a_read_that_goes_on_may_give_nothing() {
    let Pair { world, manager, client } = pair();
    manager.process.flush();
    let read_buffer = manager.arena.push(&[0; 256]);
    let call = WriteRead { read_size: 256, read_consumed: 8, read_buffer, ..Default::default() };
    let ended = manager.main().write_read(call).ended().unwrap();
    assert_eq!(
        (ended.result, WriteRead::at(&ended.out).unwrap_or_default().read_consumed),
        (Ok(0), 8)
    );
    end(&world, [client, manager]);
}

#[test]
fn br_dead_binder_ends_a_read() {
    let Pair { world, manager, client } = pair();
    let held = [0x10, 0x20].map(|ptr| offer(&client, &manager, ptr));
    for handle in held {
        let request = HandleCookie { handle, cookie: handle.into() };
        manager.main().write(&[Command::RequestDeathNotification(request)]);
    }
    client.release();
    assert_eq!(news(&manager.main().read()).len(), 1);
    assert_eq!(news(&manager.main().read()).len(), 1);
    end(&world, [manager]);
}

#[test]
fn br_clear_death_notification_done_does_not_end_a_read() {
    let Pair { world, manager, client } = pair();
    let held = [0x10, 0x20].map(|ptr| offer(&client, &manager, ptr));
    for handle in held {
        let request = HandleCookie { handle, cookie: handle.into() };
        manager.main().write(&[
            Command::RequestDeathNotification(request),
            Command::ClearDeathNotification(request),
        ]);
    }
    assert_eq!(
        news(&manager.main().read()),
        held.map(|handle| Return::ClearDeathNotificationDone(handle.into()))
    );
    end(&world, [client, manager]);
}

/// A thread whose id is taken over while it reads: there is one read to a thread.
#[test]
fn a_second_read_of_a_thread_ends_the_first() {
    let Stage { world, manager, client, waiting } = stage();
    let second = manager.main().read();
    assert_eq!(waiting.ended().unwrap().result, Err(Errno::EINTR));
    post(client.main(), 0, 1, b"");
    assert_eq!(transaction(&second).code, 1);
    end(&world, [client, manager]);
}

/// The same with any other ioctl, which could else make work for a read that cannot take it.
#[test]
fn another_ioctl_of_a_thread_ends_its_read() {
    let Stage { world, manager, client, waiting } = stage();
    manager.main().call(fakebinder::uapi::BINDER_VERSION, &[0; 4]).unwrap();
    assert_eq!(waiting.ended().unwrap().result, Err(Errno::EINTR));
    post(client.main(), 0, 1, b"");
    assert_eq!(transaction(&manager.main().read()).code, 1);
    end(&world, [client, manager]);
}

/// A buffer that lies in two pages, of which the second is not there: what fits before it was
/// read, what does not fit is lost, and what comes after that waits for the next read.
#[test]
fn only_the_return_that_meets_a_hole_is_lost() {
    let Pair { world, manager, client } = pair();
    for code in 1..=3 {
        let data = client.message(0, code, b"", &[]);
        let data = TransactionData { flags: TF_ONE_WAY, ..data };
        client.main().write(&[Command::Transaction(data)]);
    }
    let next_page = (client.arena.push(&[]) + 8).next_multiple_of(4096);
    client.arena.push(&vec![0; (next_page - client.arena.push(&[])) as usize + 256]);
    client.arena.unmap(next_page, 256);
    let call = WriteRead { read_size: 256, read_buffer: next_page - 8, ..Default::default() };
    let ended = client.main().write_read(call).ended().unwrap();
    assert_eq!(ended.result, Err(Errno::EFAULT));
    assert_eq!(WriteRead::at(&ended.out).unwrap_or_default().read_consumed, 0);
    assert_eq!(client.main().read().returns(), [Return::Noop, Return::TransactionComplete]);
    assert!(client.main().read().is_blocked());
    end(&world, [client, manager]);
}
