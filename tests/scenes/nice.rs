//! Priorities: the nice value under which a call is served (`t->priority`, `saved_priority`).

use crate::support::*;
use fakebinder::protocol::object::{FlatObject, Object};
use fakebinder::protocol::returns::Return;

const NICE_NODE: u32 = 10;

/// The client's node, which asks for a nice value of at least [`NICE_NODE`]; the manager's handle.
fn offer_nice_node(Pair { manager, client, .. }: &Pair) -> u32 {
    let flat = FlatObject { flags: NICE_NODE, binder: 0x10, cookie: 0x11 };
    offer_object(client, manager, Object::Binder { strong: true, flat })
}

#[test]
fn a_call_is_served_at_the_callers_nice_value() {
    let Pair { world, manager, client } = pair();
    client.set_nice(200, -5);
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    assert_eq!(manager.nice(100), -5);
    answer(manager.main().nonblock(), b"");
    assert_eq!(manager.nice(100), 0, "and the server's own comes back with the reply");
    reply(&calling);
    end(&world, [client, manager]);
}

/// A node's least priority is a floor: a nicer caller is served at that.
#[test]
fn a_call_is_served_at_least_at_the_nodes_priority() {
    let pair = pair();
    let held = offer_nice_node(&pair);
    let Pair { world, manager, client } = pair;
    manager.set_nice(100, 15);
    call(manager.main(), held, 1, b"");
    take(client.main());
    assert_eq!(client.nice(200), 10);
    answer(client.main().nonblock(), b"");
    assert_eq!(client.nice(200), 0);
    end(&world, [client, manager]);
}

#[test]
fn a_caller_of_higher_priority_than_the_node_asks_for_has_its_own() {
    let pair = pair();
    let held = offer_nice_node(&pair);
    let Pair { world, manager, client } = pair;
    manager.set_nice(100, 3);
    call(manager.main(), held, 1, b"");
    take(client.main());
    assert_eq!(client.nice(200), 3);
    end(&world, [client, manager]);
}

/// One-way calls do not lend their sender's priority.
#[test]
fn a_one_way_call_is_served_at_the_servers_own_nice_value() {
    let Pair { world, manager, client } = pair();
    client.set_nice(200, -5);
    post(client.main(), 0, 1, b"");
    take(manager.main());
    assert_eq!(manager.nice(100), 0);
    end(&world, [client, manager]);
}

#[test]
fn a_one_way_call_lifts_a_server_that_is_nicer_than_the_node_asks() {
    let pair = pair();
    let held = offer_nice_node(&pair);
    let Pair { world, manager, client } = pair;
    client.thread(201).read();
    let server = client.thread(201);
    // Not through a read that waits for the process, which would set it back.
    let reading = server.read();
    client.set_nice(201, 15);
    post(manager.main(), held, 1, b"");
    transaction(&reading);
    assert_eq!(client.nice(201), 10);
    end(&world, [client, manager]);
}

#[test]
fn a_thread_that_waits_for_the_process_has_the_openers_nice_value() {
    let Pair { world, manager, client } = pair();
    introduce(manager.thread(101));
    manager.set_nice(101, 7);
    assert!(manager.thread(101).read().is_blocked());
    assert_eq!(manager.nice(101), 0);
    end(&world, [client, manager]);
}

/// Whatever the server made of its nice value meanwhile.
#[test]
fn a_reply_sets_the_nice_value_that_the_server_had_before_the_call() {
    let Pair { world, manager, client } = pair();
    let reading = manager.thread(101).enter_looper();
    manager.set_nice(101, 4);
    call(client.main(), 0, 1, b"");
    transaction(&reading);
    assert_eq!(manager.nice(101), 0, "the caller's");
    manager.set_nice(101, 9);
    let data = manager.message(0, 0, b"", &[]);
    manager.thread(101).write(&[fakebinder::protocol::command::Command::Reply(data)]);
    assert_eq!(manager.nice(101), 4);
    end(&world, [client, manager]);
}

#[test]
fn a_reply_to_a_dead_caller_restores_the_nice_value_too() {
    let Pair { world, manager, client } = pair();
    client.set_nice(200, -5);
    call(client.main(), 0, 1, b"");
    take(manager.main());
    client.release();
    assert_eq!(manager.nice(100), -5);
    let data = manager.message(0, 0, b"", &[]);
    manager.main().write(&[fakebinder::protocol::command::Command::Reply(data)]);
    assert_eq!(manager.nice(100), 0);
    assert_eq!(manager.main().drain(), [Return::TransactionComplete]);
    end(&world, [manager]);
}
