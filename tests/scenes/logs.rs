//! What binderfs shows in `binder_logs/`: who waits for what, in the driver's words. That the words
//! are the driver's is seen in the VM (tests/binderfs.rs).

use crate::support::*;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::HandleCookie;
use fakebinder::uapi;
use fakebinder_sim::World;

/// Everything that can wait: calls of both kinds, a held buffer, notices of a node, a death and a
/// freeze.
#[test]
fn the_state_tells_every_record_and_what_waits() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let watched = HandleCookie { handle: held, cookie: 0xd };
    manager.main().write(&[
        Command::RequestDeathNotification(watched),
        Command::RequestFreezeNotification(watched),
    ]);
    for _ in 0..2 {
        post(manager.main(), held, 7, b"five!");
    }
    let first = take(client.main());
    let waiting = call(manager.main(), held, 8, b"four");
    assert!(waiting.is_blocked());
    let state = world.binder.log_state();
    println!("{state}");
    for line in [
        "binder state:",
        "proc 100",
        "context binder",
        "    outgoing transaction ",
        "  ref ",
        "    pending async transaction ",
        "  pending transaction ",
        " delivered",
        " active",
        " node ",
        " size 5:0 offset ",
        " size 4:0 offset ",
    ] {
        assert!(state.contains(line), "{line:?} is not in\n{state}");
    }
    // What is idle is left out of the list of transactions, and another process out of one's own.
    let busy = world.binder.log_transactions();
    assert!(busy.contains("outgoing") && !busy.contains("  ref "), "{busy}");
    let own = world.binder.log_process(200).unwrap();
    assert!(own.starts_with("binder proc state:\nproc 200\n"), "{own}");
    assert_eq!(own.matches("\nproc ").count(), 1, "{own}");
    assert_eq!(world.binder.log_process(1), None);
    assert_eq!(world.binder.pids(), [100, 200]);
    assert_eq!(world.binder.pids_from(100, 1), [100]);
    assert_eq!(world.binder.pids_from(101, 9), [200]);
    assert!(world.binder.has_open(200) && !world.binder.has_open(150));
    free(&client, &first);
    drop(waiting);
    end(&world, [client, manager]);
}

#[test]
fn the_state_tells_of_nested_calls_on_both_sides() {
    let Pair { world, manager, client } = pair();
    let to_client = offer(&client, &manager, 0x10);
    let outer = call(client.main(), 0, 1, b"");
    let incoming = take(manager.main());
    let inner = call(manager.main(), to_client, 2, b"");
    let state = world.binder.log_state();
    assert_eq!(state.matches("outgoing transaction").count(), 2, "{state}");
    assert_eq!(state.matches("incoming transaction").count(), 2, "{state}");
    assert!(inner.is_blocked(), "{:?}", inner.ended().map(|_| ()));
    let _ = (incoming, outer);
    end(&world, [client, manager]);
}

#[test]
fn the_state_tells_of_dead_nodes_and_deaths() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let watched = HandleCookie { handle: held, cookie: 0xd };
    manager.main().write(&[Command::RequestDeathNotification(watched)]);
    client.release();
    let state = world.binder.log_state();
    assert!(state.contains("dead nodes:\n  node "), "{state}");
    assert!(state.contains(&format!("desc {held} dead node ")), "{state}");
    assert!(state.contains("  has dead binder\n"), "{state}");
    manager.main().drain();
    let state = world.binder.log_state();
    assert!(state.contains("  has delivered dead binder\n"), "{state}");
    manager.main().write(&[Command::ClearDeathNotification(watched)]);
    manager.main().write(&[Command::DeadBinderDone(0xd)]);
    let state = world.binder.log_state();
    assert!(state.contains("has cleared death notification\n"), "{state}");
    end(&world, [manager]);
}

#[test]
fn the_state_tells_of_freeze_notices() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let watched = HandleCookie { handle: held, cookie: 0xf };
    manager.main().write(&[Command::RequestFreezeNotification(watched)]);
    assert!(world.binder.log_state().contains("has frozen binder\n"));
    manager.main().drain();
    assert!(world.binder.log_state().contains("  has delivered freeze binder\n"));
    manager
        .main()
        .write(&[Command::FreezeNotificationDone(0xf), Command::ClearFreezeNotification(watched)]);
    assert!(world.binder.log_state().contains("has cleared freeze notification\n"));
    end(&world, [client, manager]);
}

/// What a thread has not read yet: that it is done, that it failed, what a node's owner is to be
/// told.
#[test]
fn the_state_tells_what_a_thread_has_not_read() {
    let Pair { world, manager, client } = pair();
    let oneway = one_way(client.message(0, 1, b"", &[binder(0x20)]));
    client.main().write(&[Command::Transaction(oneway)]);
    client.main().write(&[Command::Transaction(client.message(99, 1, b"", &[]))]);
    let state = world.binder.log_state();
    assert!(state.contains("    transaction complete\n"), "{state}");
    assert!(state.contains("    transaction error\n"), "{state}");
    assert!(state.contains(": u0000000000000020 c0000000000000021\n"), "{state}");
    end(&world, [client, manager]);
}

#[test]
fn the_stats_count_commands_returns_and_records() {
    let Pair { world, manager, client } = pair();
    let waiting = manager.main().enter_looper();
    let asked = call(client.main(), 0, 1, b"ask");
    let question = transaction(&waiting);
    answer(manager.main().nonblock(), b"tell");
    let told = reply(&asked);
    free(&client, &told);
    free(&manager, &question);
    let stats = world.binder.log_stats();
    println!("{stats}");
    for line in [
        "binder stats:\nBC_TRANSACTION: 1\nBC_REPLY: 1\nBC_FREE_BUFFER: 2\n",
        "BC_ENTER_LOOPER: 1\n",
        "BR_TRANSACTION: 1\nBR_REPLY: 1\n",
        "proc: active 2 total 2\n",
        "transaction: active 0 total 2\n",
        "transaction_complete: active 0 total 2\n",
        "proc 200\ncontext binder\n  threads: 1\n  requested threads: 0+0/0\n  ready threads 0\n  free async space ",
        "  nodes: 1\n",
        "  buffers: 0\n  pages: 0:1:",
        "  pending transactions: 0\n",
        "  BR_REPLY: 1\n",
    ] {
        assert!(stats.contains(line), "{line:?} is not in\n{stats}");
    }
    end(&world, [client, manager]);
}

#[test]
fn the_transaction_log_keeps_the_last_32_and_those_that_failed() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 99, 1, b"");
    let failed = world.binder.log_of_transactions(true);
    let error = uapi::BR_FAILED_REPLY;
    assert!(failed.contains(&format!(" handle 99 size 0:0 ret {error}/-22 l=0\n")), "{failed}");
    assert_eq!(world.binder.log_of_transactions(false), failed);
    for _ in 0..40 {
        post(client.main(), 0, 1, b"");
    }
    let log = world.binder.log_of_transactions(false);
    assert_eq!(log.lines().count(), 32, "{log}");
    assert!(
        log.lines().all(|line| line.contains(": async from 200:200 to 100:0 context binder node ")),
        "{log}"
    );
    assert_eq!(world.binder.log_of_transactions(true), failed, "it is not pushed out by others");
    end(&world, [client, manager]);
}

#[test]
fn nobody_there_is_little_to_tell() {
    let world = World::default();
    assert_eq!(world.binder.log_state(), "binder state:\n");
    assert_eq!(world.binder.log_transactions(), "binder transactions:\n");
    assert_eq!(world.binder.log_stats(), "binder stats:\n");
    assert_eq!(world.binder.log_of_transactions(false), "");
    assert!(world.binder.pids().is_empty());
}

/// The log outlives its transactions; it must not keep the driver.
#[test]
fn the_transaction_log_does_not_keep_the_driver() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 0, 1, b"");
    end(&world, [client, manager]);
    let binder = std::sync::Arc::downgrade(&world.binder.context("binder"));
    drop(world);
    assert!(binder.upgrade().is_none(), "something holds the context");
}
