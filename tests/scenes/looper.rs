//! Threads: loopers and their misuse, BR_SPAWN_LOOPER, BINDER_THREAD_EXIT.

use crate::support::*;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::{HandleCookie, WriteRead};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{Pending, Sim, SimThread};

fn set_max_threads(sim: &Sim, max: u32) {
    sim.main().call(uapi::BINDER_SET_MAX_THREADS, &max.to_ne_bytes()).unwrap();
}

fn asks_for_a_thread(read: &Pending) -> bool {
    read.returns()[0] == Return::SpawnLooper
}

/// The thread takes a one-way call.
fn serve(thread: SimThread<'_>, client: &Sim) -> Pending {
    post(client.main(), 0, 1, b"");
    let read = thread.nonblock().read();
    let received = transaction(&read);
    thread.write(&[Command::FreeBuffer(received.buffer)]);
    read
}

#[test]
fn br_spawn_looper_is_asked_once_until_a_thread_registers() {
    let Pair { world, manager, client } = pair();
    set_max_threads(&manager, 2);
    manager.main().write(&[Command::EnterLooper]);
    assert!(asks_for_a_thread(&serve(manager.main(), &client)));
    assert!(!asks_for_a_thread(&serve(manager.main(), &client)), "it was asked already");
    manager.thread(101).write(&[Command::RegisterLooper]);
    assert!(asks_for_a_thread(&serve(manager.main(), &client)), "a second one");
    manager.thread(102).write(&[Command::RegisterLooper]);
    assert!(!asks_for_a_thread(&serve(manager.main(), &client)), "two have started");
    end(&world, [client, manager]);
}

#[test]
fn a_registered_looper_asks_for_threads_too() {
    let Pair { world, manager, client } = pair();
    set_max_threads(&manager, 2);
    manager.main().write(&[Command::EnterLooper]);
    assert!(asks_for_a_thread(&serve(manager.main(), &client)));
    assert!(!asks_for_a_thread(&serve(manager.thread(101), &client)), "not registered yet");
    manager.thread(101).write(&[Command::RegisterLooper]);
    assert!(asks_for_a_thread(&serve(manager.thread(101), &client)));
    end(&world, [client, manager]);
}

/// The thread that was woken has no room for it.
#[test]
fn a_notice_that_a_woken_thread_leaves_goes_to_the_next_that_waits() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let request = HandleCookie { handle: held, cookie: 7 };
    manager.main().write(&[Command::RequestDeathNotification(request)]);
    let next = manager.thread(101).enter_looper();
    introduce(manager.thread(102));
    let read_buffer = manager.arena.push(&[0; 64]);
    let call = WriteRead { read_size: 64, read_buffer, ..Default::default() };
    let cramped = manager.thread(102).write_read(call);
    assert!(cramped.is_blocked());
    client.release();
    assert_eq!(cramped.returns(), [Return::Noop]);
    assert_eq!(news(&next), [Return::DeadBinder(7)]);
    end(&world, [manager]);
}

#[test]
fn br_spawn_looper_takes_the_place_of_br_noop() {
    let Pair { world, manager, client } = pair();
    set_max_threads(&manager, 1);
    manager.main().write(&[Command::EnterLooper]);
    let read = serve(manager.main(), &client);
    let returns = read.returns();
    assert!(matches!(returns[..], [Return::SpawnLooper, Return::Transaction(_)]));
    end(&world, [client, manager]);
}

#[test]
fn br_spawn_looper_is_for_loopers_only() {
    let Pair { world, manager, client } = pair();
    set_max_threads(&manager, 1);
    introduce(manager.main());
    assert!(!asks_for_a_thread(&serve(manager.main(), &client)));
    manager.main().write(&[Command::EnterLooper]);
    assert!(asks_for_a_thread(&serve(manager.main(), &client)));
    end(&world, [client, manager]);
}

#[test]
fn br_spawn_looper_is_not_asked_while_another_thread_waits() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    set_max_threads(&manager, 1);
    let idle = manager.thread(101).enter_looper();
    manager.main().write(&[Command::EnterLooper]);
    let send = || {
        let data = one_way(manager.message(held, 1, b"", &[]));
        manager.main().write_and_read(&[Command::Transaction(data)]).returns()
    };
    assert_eq!(send(), [Return::Noop, Return::TransactionComplete]);
    idle.interrupt();
    assert_eq!(send(), [Return::SpawnLooper, Return::TransactionComplete]);
    end(&world, [client, manager]);
}

#[test]
fn br_spawn_looper_is_not_asked_without_a_limit() {
    let Pair { world, manager, client } = pair();
    manager.main().write(&[Command::EnterLooper]);
    assert!(!asks_for_a_thread(&serve(manager.main(), &client)), "max threads is 0 at first");
    end(&world, [client, manager]);
}

/// The request was not read, so it was not made.
#[test]
fn br_spawn_looper_that_cannot_be_written_is_asked_again() {
    let Pair { world, manager, client } = pair();
    set_max_threads(&manager, 1);
    manager.main().write(&[Command::EnterLooper]);
    let read_buffer = manager.arena.push(&[0; 256]);
    manager.arena.unmap(read_buffer + 40, 8);
    post(client.main(), 0, 1, b"");
    let call = WriteRead { read_size: 256, read_buffer, ..Default::default() };
    assert!(manager.main().write_read(call).ended().unwrap().result.is_err());
    manager.process.flush();
    assert!(asks_for_a_thread(&manager.main().read()));
    end(&world, [client, manager]);
}

/// The thread that was asked for never comes: nothing else is asked for.
#[test]
fn a_registered_looper_without_a_request_is_not_counted() {
    let Pair { world, manager, client } = pair();
    set_max_threads(&manager, 1);
    manager.thread(101).write(&[Command::RegisterLooper]);
    manager.main().write(&[Command::EnterLooper]);
    assert!(
        asks_for_a_thread(&serve(manager.main(), &client)),
        "thread 101 came unasked and is not one of those that started"
    );
    end(&world, [client, manager]);
}

#[test]
fn an_entered_looper_that_registers_is_not_counted() {
    let Pair { world, manager, client } = pair();
    set_max_threads(&manager, 1);
    manager.main().write(&[Command::EnterLooper]);
    assert!(asks_for_a_thread(&serve(manager.main(), &client)));
    manager.main().write(&[Command::RegisterLooper]);
    assert!(!asks_for_a_thread(&serve(manager.main(), &client)), "the request still stands");
    manager.thread(101).write(&[Command::RegisterLooper]);
    assert!(!asks_for_a_thread(&serve(manager.main(), &client)), "the limit is reached");
    end(&world, [client, manager]);
}

/// Misuse marks the looper as invalid, and that is all: it goes on as a looper.
#[test]
fn a_misused_looper_still_serves() {
    let Pair { world, manager, client } = pair();
    let confused = manager.thread(101);
    confused.write(&[Command::RegisterLooper, Command::EnterLooper, Command::RegisterLooper]);
    confused.write(&[Command::ExitLooper]);
    let waiting = confused.read();
    let calling = call(client.main(), 0, 5, b"");
    assert_eq!(transaction(&waiting).code, 5);
    answer(confused.nonblock(), b"served");
    assert_eq!(client.data(&reply(&calling)), b"served");
    end(&world, [client, manager]);
}

#[test]
fn a_thread_that_is_no_looper_may_take_work() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let waiting = manager.main().read();
    let calling = call(client.main(), 0, 5, b"");
    assert_eq!(transaction(&waiting).code, 5);
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

/// The thread whose caches are warm: the last that went to sleep.
#[test]
fn the_thread_that_waited_least_is_woken_first() {
    let Pair { world, manager, client } = pair();
    let first = manager.thread(101).enter_looper();
    let second = manager.thread(102).enter_looper();
    post(client.main(), 0, 1, b"");
    assert!(first.is_blocked() && !second.is_blocked());
    let calling = call(client.main(), 0, 2, b"");
    assert_eq!(transaction(&first).code, 2);
    assert!(calling.is_blocked());
    end(&world, [client, manager]);
}

/// A thread that is interrupted with work on the process's list hands it to the next.
#[test]
fn work_that_a_reader_leaves_goes_to_the_next_that_waits() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    for code in 1..=2 {
        let caller = client.thread(200 + code);
        introduce(caller);
        caller.write(&[Command::Transaction(client.message(0, code as u32, b"", &[]))]);
    }
    let waiting = manager.thread(101).enter_looper();
    assert_eq!(transaction(&waiting).code, 1);
    let next = manager.thread(102).enter_looper();
    assert_eq!(transaction(&next).code, 2);
    end(&world, [client, manager]);
}

#[test]
fn a_thread_that_exits_starts_anew() {
    let Pair { world, manager, client } = pair();
    let thread = client.thread(201);
    introduce(thread);
    assert!(thread.write_and_read(&[Command::EnterLooper]).is_blocked());
    assert_eq!(world.stats().threads, 3);
    thread.call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert_eq!(world.stats().threads, 2);
    assert_eq!(thread.read().returns(), [Return::Noop], "a new thread does not wait");
    set_max_threads(&client, 1);
    client.process.flush();
    assert_eq!(thread.read().returns(), [Return::Noop], "and is no looper");
    end(&world, [client, manager]);
}

/// Errors that wait for a thread do not come to the next thread of the same id.
#[test]
fn a_thread_id_used_again_starts_fresh() {
    let Pair { world, manager, client } = pair();
    let thread = client.thread(201);
    thread.write(&[Command::Transaction(client.message(99, 1, b"", &[]))]);
    thread.call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert_eq!(error(thread), (uapi::BR_OK, 0));
    assert_eq!(thread.drain(), []);
    end(&world, [client, manager]);
}

#[test]
fn a_blocked_read_ends_when_its_thread_exits() {
    let Stage { world, manager, client, waiting } = stage();
    manager.main().call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert!(!waiting.is_blocked());
    let calling = call(client.main(), 0, 1, b"");
    assert!(calling.is_blocked(), "nobody is there who could be woken");
    assert_eq!(take(manager.thread(101)).code, 1);
    end(&world, [client, manager]);
}

/// The call stands on the exiting thread's list, not yet read.
#[test]
fn a_call_that_a_thread_exits_with_unread_gets_dead_reply() {
    let Pair { world, manager, client } = pair();
    let thread = manager.thread(101);
    introduce(thread);
    let buffer = manager.arena.push(&[0; 64]);
    let reading =
        thread.write_read(WriteRead { read_size: 64, read_buffer: buffer, ..Default::default() });
    let calling = call(client.main(), 0, 1, b"");
    assert_eq!(reading.returns(), [Return::Noop], "no room for a transaction");
    assert!(calling.is_blocked());
    thread.call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
    end(&world, [client, manager]);
}

#[test]
fn a_call_that_a_thread_exits_with_unanswered_gets_dead_reply() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    let received = take(manager.main());
    manager.main().call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
    // The buffer is the process's, and still there to be freed.
    assert_eq!(manager.alloc.allocated_count(), 1);
    free(&manager, &received);
    assert_eq!(manager.alloc.allocated_count(), 0);
    end(&world, [client, manager]);
}
