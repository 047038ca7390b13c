//! Calls and answers: synchronous, nested, one-way, failing.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{FlatObject, Object};
use fakebinder::protocol::record::Record;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::{self, TF_ONE_WAY};
use fakebinder_sim::Sim;

#[test]
fn a_call_and_its_answer() {
    let Stage { world, manager, client, waiting } = stage();
    let calling = call(client.main(), 0, 7, b"question");
    assert!(calling.is_blocked());
    let received = transaction(&waiting);
    assert_eq!((received.code, received.sender_pid, received.sender_euid), (7, 200, 1000));
    assert_eq!(manager.data(&received), b"question");

    let free = Command::FreeBuffer(received.buffer);
    manager.main().write(&[free]);
    let next = answer(manager.main(), b"answer!");
    // BR_TRANSACTION_COMPLETE of a call comes together with its answer.
    assert_eq!(news(&calling)[0], Return::TransactionComplete);
    let answered = reply(&calling);
    assert_eq!(client.data(&answered), b"answer!");
    assert_eq!(answered.sender_pid, 0);
    client.main().write(&[Command::FreeBuffer(answered.buffer)]);
    assert_eq!(news(&next), [Return::TransactionComplete]);

    end(&world, [client, manager]);
}

/// A child may go on with the open file of a process that has ended and been waited for. Its
/// number may be another's by now.
#[test]
fn a_sender_whose_process_is_no_more_has_no_pid() {
    let Stage { world, manager, client, waiting } = stage();
    client.reap();
    let calling = call(client.main(), 0, 7, b"question");
    assert!(calling.is_blocked());
    let received = transaction(&waiting);
    assert_eq!((received.code, received.sender_pid), (7, 0));
    end(&world, [client, manager]);
}

/// The client gives the manager an object, the manager calls it while it is being called.
#[test]
fn a_nested_call_lands_on_the_waiting_thread() {
    let Stage { world, manager, client, waiting } = stage();
    let object =
        Object::Binder { strong: true, flat: FlatObject { flags: 0, binder: 0x10, cookie: 0x11 } };
    let data = client.message(0, 1, b"", &[object]);
    let calling = client.main().write_and_read(&[Command::Transaction(data)]);
    // Its own object has become known to another: the owner hears of it first.
    assert!(calling.is_blocked());
    let received = transaction(&waiting);
    let [Object::Handle { strong: true, flat }] = manager.objects(&received)[..] else {
        panic!("expected a handle");
    };
    assert_eq!(flat.handle(), 1);

    let nested = call(manager.main(), 1, 2, b"nested");
    let back = news(&calling);
    assert!(matches!(back[0], Return::Increfs(node) if node.ptr == 0x10 && node.cookie == 0x11));
    assert!(matches!(back[1], Return::Acquire(_)));
    assert!(matches!(back[2], Return::TransactionComplete));
    let inner = transaction(&calling);
    assert_eq!((inner.target, inner.cookie, inner.code), (0x10, 0x11, 2));
    let outer = answer(client.main(), b"inner answer");
    assert_eq!(client_data(&manager, &reply(&nested)), b"inner answer");
    assert_eq!(news(&outer), [Return::TransactionComplete]);
    let outer = client.main().read();
    assert!(outer.is_blocked());
    answer(manager.main(), b"outer answer");
    assert_eq!(client.data(&reply(&outer)), b"outer answer");
    end(&world, [client, manager]);
}

fn client_data(sim: &Sim, data: &fakebinder::protocol::record::TransactionData) -> Vec<u8> {
    sim.data(data)
}

#[test]
fn one_way_calls_to_a_node_run_one_at_a_time_in_order() {
    let Stage { world, manager, client, waiting } = stage();
    for code in 1..=3 {
        let mut data = client.message(0, code, &[code as u8], &[]);
        data.flags = TF_ONE_WAY;
        let sent = client.main().write_and_read(&[Command::Transaction(data)]);
        assert_eq!(news(&sent), [Return::TransactionComplete]);
    }
    let first = transaction(&waiting);
    assert_eq!((first.code, first.sender_pid), (1, 0));
    let mut buffer = first.buffer;
    for code in 2..=3 {
        let blocked = manager.main().read();
        assert!(blocked.is_blocked(), "the next waits until the buffer is freed");
        blocked.interrupt();
        let next = manager.main().write_and_read(&[Command::FreeBuffer(buffer)]);
        let next = transaction(&next);
        assert_eq!(next.code, code);
        buffer = next.buffer;
    }
    end(&world, [client, manager]);
}

#[test]
fn a_dying_target_answers_with_dead_reply() {
    let Stage { world, manager, client, waiting } = stage();
    let calling = call(client.main(), 0, 1, b"");
    transaction(&waiting);
    manager.release();
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
    let again = call(client.main(), 0, 1, b"");
    assert_eq!(news(&again), [Return::DeadReply]);
    end(&world, [client]);
}

#[test]
fn a_target_without_a_mapping_fails_that_call_alone() {
    let world = fakebinder_sim::World::default();
    let manager = world.open_unmapped("binder", 100);
    manager.main().become_manager();
    let client = world.open(200);
    client.main().call(uapi::BINDER_VERSION, &[0; 4]).unwrap();
    let calling = call(client.main(), 0, 1, b"");
    assert_eq!(news(&calling), [Return::DeadReply]);
    let error = client.main().call(uapi::BINDER_GET_EXTENDED_ERROR, &[0; 12]).unwrap();
    assert_eq!(&error[8..], (-(Errno::ESRCH as i32)).to_ne_bytes());
    end(&world, [client, manager]);
}

#[test]
fn a_reply_without_a_call_fails() {
    let Stage { world, manager, client, .. } = stage();
    let failed = answer(client.main(), b"");
    assert_eq!(news(&failed), [Return::FailedReply]);
    end(&world, [client, manager]);
}

#[test]
fn a_signal_ends_a_blocked_read_with_eintr_and_keeps_what_was_written() {
    let Stage { world, manager, client, .. } = stage();
    let reading = client.main().write_and_read(&[Command::EnterLooper]);
    assert!(reading.is_blocked());
    reading.interrupt();
    let ended = reading.ended().unwrap();
    assert_eq!((ended.result, ended.restarts), (Err(Errno::EINTR), false));
    let call = fakebinder::protocol::record::WriteRead::at(&ended.out).unwrap_or_default();
    assert_eq!((call.write_consumed, call.read_consumed), (4, 0));
    end(&world, [client, manager]);
}

#[test]
fn a_new_thread_does_not_block_in_its_first_read() {
    let Stage { world, manager, client, .. } = stage();
    let reading = client.thread(201).read();
    assert_eq!(reading.returns(), [Return::Noop]);
    assert!(client.thread(201).read().is_blocked());
    end(&world, [client, manager]);
}

#[test]
fn with_o_nonblock_an_empty_read_is_eagain() {
    let Stage { world, manager, client, .. } = stage();
    let reading = client.main().nonblock().read();
    assert_eq!(reading.ended().unwrap().result, Err(Errno::EAGAIN));
    end(&world, [client, manager]);
}
