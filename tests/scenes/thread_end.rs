//! Threads that end without BINDER_THREAD_EXIT: what somebody waits for does not get lost with
//! them, and their records do not pile up.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::binder::Limits;
use fakebinder::memory::MemoryConfig;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::WriteRead;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{Pending, Sim, SimThread, World};

/// Whether the device tells of a thread's end, or has to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Device {
    Tells,
    IsAsked,
}

/// The scene on either kind of device.
fn on_both(scene: impl Fn(Device, Pair)) {
    for device in [Device::Tells, Device::IsAsked] {
        let pair = pair();
        if device == Device::IsAsked {
            pair.manager.cannot_watch_threads();
            pair.client.cannot_watch_threads();
        }
        scene(device, pair);
    }
}

/// A thread ends, and enough time goes by for that to be noticed.
fn end_thread(world: &World, sim: &Sim, tid: i32) {
    sim.end_thread(tid);
    world.timers.fire_all();
}

/// A new thread's first read, into a buffer in which a transaction has no room.
fn cramped(thread: SimThread<'_>) -> Pending {
    introduce(thread);
    let read_buffer = thread.sim.arena.push(&[0; 64]);
    thread.write_read(WriteRead { read_size: 64, read_buffer, ..Default::default() })
}

#[test]
fn a_call_that_its_thread_leaves_unanswered_gets_dead_reply() {
    on_both(|device, Pair { world, manager, client }| {
        let calling = call(client.main(), 0, 1, b"");
        let received = take(manager.thread(101));
        assert_eq!(world.timers.fire_all(), usize::from(device == Device::IsAsked));
        assert!(calling.is_blocked(), "its thread lives");
        end_thread(&world, &manager, 101);
        assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
        // The buffer is the process's, as after BINDER_THREAD_EXIT.
        assert_eq!(manager.alloc.allocated_count(), 1);
        free(&manager, &received);
        assert_eq!((manager.watched_threads(), world.timers.waiting()), (0, 0));
        end(&world, [client, manager]);
    });
}

/// The first thread of a process may end before the others, which go on.
#[test]
fn a_call_that_the_first_thread_leaves_gets_dead_reply_and_the_others_go_on() {
    on_both(|_, Pair { world, manager, client }| {
        let calling = call(client.main(), 0, 1, b"");
        take(manager.main());
        end_thread(&world, &manager, manager.pid);
        assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
        let calling = call(client.main(), 0, 2, b"");
        assert_eq!(take(manager.thread(101)).code, 2);
        answer(manager.thread(101).nonblock(), b"alone");
        assert_eq!(client.data(&reply(&calling)), b"alone");
        end(&world, [client, manager]);
    });
}

/// The call stands on the thread's own list, and there are no others to take it.
#[test]
fn a_call_that_its_thread_leaves_unread_gets_dead_reply() {
    on_both(|_, Pair { world, manager, client }| {
        let reading = cramped(manager.thread(101));
        let calling = call(client.main(), 0, 1, b"");
        assert_eq!(reading.returns(), [Return::Noop], "no room for a transaction");
        assert!(calling.is_blocked());
        end_thread(&world, &manager, 101);
        assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
        end(&world, [client, manager]);
    });
}

/// A server's thread has called on when it ends: the caller hears of it when the end of the chain
/// answers, as after BINDER_THREAD_EXIT.
#[test]
fn a_thread_that_ends_in_the_middle_of_a_chain_is_missed_when_the_answer_comes() {
    on_both(|_, Pair { world, manager, client }| {
        let third = open(&world, 300);
        let held = offer(&third, &manager, 0x30);
        let outer = call(client.main(), 0, 1, b"");
        introduce(manager.thread(101));
        take(manager.thread(101));
        let inner = call(manager.thread(101), held, 2, b"");
        inner.interrupt();
        take(third.main());
        end_thread(&world, &manager, 101);
        assert!(outer.is_blocked());
        assert_eq!(news(&answer(third.main().nonblock(), b"")), [Return::TransactionComplete]);
        assert_eq!(news(&outer), [Return::TransactionComplete, Return::DeadReply]);
        end(&world, [client, manager, third]);
    });
}

/// A caller got a signal, and its thread ended: a callback, which would be its to answer, goes to
/// any thread of its process.
#[test]
fn a_callback_does_not_wait_for_a_caller_that_is_gone() {
    on_both(|device, Pair { world, manager, client }| {
        let held = offer(&client, &manager, 0x20);
        let outer = call(client.thread(201), 0, 1, b"");
        take(manager.main());
        outer.interrupt();
        end_thread(&world, &client, 201);
        let back = call(manager.main(), held, 2, b"");
        if device == Device::IsAsked {
            // It was not noticed: nobody waited for that thread when it ended. Now somebody does.
            world.timers.fire_all();
        }
        let told = match device {
            Device::Tells => {
                introduce(client.thread(202));
                take(client.thread(202));
                answer(client.thread(202).nonblock(), b"for it");
                manager.data(&reply(&back))
            }
            Device::IsAsked => {
                assert_eq!(news(&back), [Return::TransactionComplete, Return::DeadReply]);
                b"for it".to_vec()
            }
        };
        assert_eq!(told, b"for it");
        let done = answer(manager.main().nonblock(), b"to nobody");
        assert_eq!(news(&done), [Return::TransactionComplete]);
        end(&world, [client, manager]);
    });
}

/// What answers a caller that is gone takes no room.
#[test]
fn an_answer_to_a_caller_that_is_gone_is_not_kept() {
    let Pair { world, manager, client } = pair();
    introduce(client.thread(201));
    let calling = call(client.thread(201), 0, 1, b"");
    take(manager.main());
    calling.interrupt();
    client.end_thread(201);
    let done = answer(manager.main().nonblock(), b"to nobody");
    assert_eq!(news(&done), [Return::TransactionComplete]);
    assert_eq!(client.alloc.allocated_count(), 0);
    end(&world, [client, manager]);
}

#[test]
fn a_thread_that_says_that_it_exits_is_not_watched_any_more() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.thread(101));
    assert_eq!(manager.watched_threads(), 1);
    manager.thread(101).call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert_eq!(manager.watched_threads(), 0);
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
    manager.end_thread(101);
    end(&world, [client, manager]);
}

/// A descriptor of the daemon for each is too much for threads that nobody waits for.
#[test]
fn a_thread_that_only_calls_is_not_watched() {
    let Pair { world, manager, client } = pair();
    for code in 0..3 {
        let calling = call(client.main(), 0, code, b"");
        free(&manager, &take(manager.main()));
        answer(manager.main().nonblock(), b"");
        free(&client, &reply(&calling));
        assert_eq!(post(client.main(), 0, code, b""), [Return::TransactionComplete]);
        free(&manager, &take(manager.main()));
    }
    assert_eq!((client.watched_threads(), manager.watched_threads()), (0, 1));
    end(&world, [client, manager]);
}

/// Nobody is asked when nobody waits.
#[test]
fn a_thread_is_asked_after_only_while_somebody_waits() {
    let Pair { world, manager, client } = pair();
    manager.cannot_watch_threads();
    for code in 0..2 {
        let calling = call(client.main(), 0, code, b"");
        take(manager.main());
        for _ in 0..3 {
            assert_eq!(world.timers.fire_all(), 1);
        }
        answer(manager.main().nonblock(), b"");
        reply(&calling);
        assert_eq!(world.timers.fire_all(), 1, "one question was on its way");
        assert_eq!(world.timers.waiting(), 0);
    }
    end(&world, [client, manager]);
}

/// Neither the errors nor the calls of a thread come to the next one that has its number.
#[test]
fn a_thread_id_used_again_without_a_word_starts_fresh() {
    let Pair { world, manager, client } = pair();
    let thread = client.thread(201);
    thread.write(&[Command::Transaction(client.message(99, 1, b"", &[]))]);
    client.end_thread(201);
    assert_eq!(error(thread), (uapi::BR_OK, 0));
    assert_eq!(thread.drain(), []);
    // A call that the first one has open would make that of the next one fail with EPROTO.
    thread.write(&[Command::Transaction(client.message(0, 1, b"", &[]))]);
    client.end_thread(201);
    let first_read = call(thread, 0, 2, b"");
    assert_eq!(news(&first_read), [Return::TransactionComplete], "a new thread's does not wait");
    let calling = thread.read();
    assert_eq!(take(manager.main()).code, 1);
    assert_eq!(take(manager.thread(101)).code, 2);
    answer(manager.thread(101).nonblock(), b"to the second");
    assert_eq!(client.data(&reply(&calling)), b"to the second");
    end(&world, [client, manager]);
}

/// The new thread is faster than the news of the old one's end.
#[test]
fn a_thread_id_used_again_at_once_keeps_its_read() {
    let Pair { world, manager, client } = pair();
    let first = call(client.main(), 0, 1, b"");
    take(manager.thread(101));
    let news_of_it = manager.end_thread_unheard(101);
    manager.thread(101).nonblock().read();
    let reading = manager.thread(101).read();
    news_of_it();
    assert_eq!(news(&first), [Return::TransactionComplete, Return::DeadReply]);
    assert_eq!(reading.returns(), [Return::Noop], "to the driver it is a new thread");
    let reading = manager.thread(101).read();
    let second = call(client.main(), 0, 2, b"");
    assert_eq!(transaction(&reading).code, 2);
    answer(manager.thread(101).nonblock(), b"still here");
    assert_eq!(client.data(&reply(&second)), b"still here");
    end(&world, [client, manager]);
}

#[test]
fn threads_in_turn_leave_no_pile_of_records() {
    let Pair { world, manager, client } = pair();
    for tid in 1_000..101_000 {
        introduce(client.thread(tid));
        client.end_thread(tid);
    }
    assert!(world.stats().threads < 200, "{} threads", world.stats().threads);
    end(&world, [client, manager]);
}

/// Those that are gone make room for new ones; those that live do not.
#[test]
fn a_full_process_forgets_the_threads_that_are_gone() {
    for device in [Device::Tells, Device::IsAsked] {
        let limits = Limits { threads: 8, ..Limits::default() };
        let world = World::with_limits(MemoryConfig::default(), limits);
        let client = open(&world, 200);
        if device == Device::IsAsked {
            client.cannot_watch_threads();
        }
        for tid in 201..208 {
            introduce(client.thread(tid));
        }
        let one_more = |tid| client.thread(tid).call(uapi::BINDER_VERSION, &[0; 4]).map(drop);
        assert_eq!(one_more(208), Err(Errno::ENOMEM));
        client.end_thread(203);
        assert_eq!(one_more(208), Ok(()));
        assert_eq!(one_more(209), Err(Errno::ENOMEM));
        for tid in 201..=208 {
            client.end_thread(tid);
        }
        for tid in 301..308 {
            assert_eq!(one_more(tid), Ok(()), "{tid}");
        }
        end(&world, [client]);
    }
}
