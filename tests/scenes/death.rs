//! Death notifications: asking, hearing, clearing and confirming, in every order.

use crate::support::*;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::HandleCookie;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{Sim, World};

const COOKIE: u64 = 0xc0;
const DEAD: Return = Return::DeadBinder(COOKIE);
const CLEARED: Return = Return::ClearDeathNotificationDone(COOKIE);
const DONE: Command = Command::DeadBinderDone(COOKIE);

fn request(handle: u32) -> Command {
    Command::RequestDeathNotification(HandleCookie { handle, cookie: COOKIE })
}

fn clear(handle: u32) -> Command {
    Command::ClearDeathNotification(HandleCookie { handle, cookie: COOKIE })
}

/// The manager holds the owner's node and has asked for word of its death.
struct Watch {
    world: World,
    manager: Sim,
    owner: Sim,
    held: u32,
}

fn watch() -> Watch {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    manager.main().write(&[request(held)]);
    assert_eq!(manager.main().drain(), []);
    Watch { world, manager, owner: client, held }
}

#[test]
fn a_death_is_told_once() {
    let Watch { world, manager, owner, .. } = watch();
    owner.release();
    assert_eq!(manager.main().drain(), [DEAD]);
    assert_eq!(manager.main().drain(), []);
    manager.main().write(&[DONE]);
    assert_eq!(manager.main().drain(), []);
    end(&world, [manager]);
}

#[test]
fn a_death_wakes_a_thread_that_waits() {
    let Watch { world, manager, owner, .. } = watch();
    let waiting = manager.main().enter_looper();
    owner.release();
    assert_eq!(news(&waiting), [DEAD]);
    end(&world, [manager]);
}

#[test]
fn a_death_is_told_to_everybody_who_asked() {
    let Watch { world, manager, owner, held } = watch();
    let other = open(&world, 300);
    let found = look_up(&other, &manager, held);
    other.main().write(&[request(found)]);
    owner.release();
    assert_eq!(other.main().drain(), [DEAD]);
    assert_eq!(manager.main().drain(), [DEAD]);
    end(&world, [manager, other]);
}

#[test]
fn the_death_of_each_node_is_told_for_itself() {
    let Watch { world, manager, owner, .. } = watch();
    let second = offer(&owner, &manager, 0x20);
    let asked = HandleCookie { handle: second, cookie: 0xd0 };
    manager.main().write(&[Command::RequestDeathNotification(asked)]);
    owner.release();
    assert_eq!(manager.main().drain(), [DEAD, Return::DeadBinder(0xd0)]);
    end(&world, [manager]);
}

/// The word of a death is for the process: any thread gets it, and one of them only.
#[test]
fn the_manager_of_a_context_can_be_watched_too() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Increfs(0), request(0)]);
    manager.release();
    assert_eq!(client.main().drain(), [DEAD]);
    end(&world, [client]);
}

#[test]
fn whoever_asks_after_a_death_is_told_at_once() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    client.release();
    manager.main().write(&[request(held)]);
    assert_eq!(manager.main().drain(), [DEAD]);
    end(&world, [manager]);
}

#[test]
fn a_weak_handle_is_enough_to_be_told_of_a_death() {
    let Pair { world, manager, client } = pair();
    post_with(client.main(), 0, &[weak_binder(0x10)]);
    take(manager.main());
    manager.main().write(&[request(1)]);
    client.release();
    assert_eq!(manager.main().drain(), [DEAD]);
    end(&world, [manager]);
}

#[test]
fn a_second_request_for_a_death_is_ignored() {
    let Watch { world, manager, owner, held } = watch();
    let again = HandleCookie { handle: held, cookie: 0xd0 };
    manager.main().write(&[Command::RequestDeathNotification(again)]);
    assert_eq!(world.stats().deaths, 1);
    owner.release();
    assert_eq!(manager.main().drain(), [DEAD]);
    // Nor after it was told and confirmed: it is still set.
    manager.main().write(&[DONE, request(held)]);
    assert_eq!(manager.main().drain(), []);
    end(&world, [manager]);
}

#[test]
fn death_commands_for_a_handle_that_is_none_are_ignored() {
    let Watch { world, manager, owner, held } = watch();
    manager.main().write(&[request(99), clear(99), Command::DeadBinderDone(99)]);
    let other = HandleCookie { handle: held, cookie: 0xbad };
    manager.main().write(&[Command::ClearDeathNotification(other)]);
    assert_eq!(manager.main().drain(), [], "another cookie clears nothing");
    owner.release();
    assert_eq!(manager.main().drain(), [DEAD]);
    end(&world, [manager]);
}

#[test]
fn clearing_a_death_that_was_not_asked_for_is_ignored() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    manager.main().write(&[clear(held)]);
    assert_eq!(manager.main().drain(), []);
    end(&world, [client, manager]);
}

#[test]
fn clearing_is_confirmed_and_the_death_not_told() {
    let Watch { world, manager, owner, held } = watch();
    manager.main().write(&[clear(held)]);
    assert_eq!(manager.main().drain(), [CLEARED]);
    assert_eq!(world.stats().deaths, 0);
    owner.release();
    assert_eq!(manager.main().drain(), []);
    end(&world, [manager]);
}

#[test]
fn what_was_cleared_can_be_asked_for_again() {
    let Watch { world, manager, owner, held } = watch();
    manager.main().write(&[clear(held), request(held)]);
    owner.release();
    assert_eq!(manager.main().drain(), [CLEARED, DEAD]);
    end(&world, [manager]);
}

/// A looper gets the confirmation itself; any other thread leaves it to the process.
#[test]
fn the_confirmation_of_clearing_is_for_the_looper_that_asked() {
    let Watch { world, manager, owner, held } = watch();
    let idle = manager.thread(101).enter_looper();
    manager.thread(102).write(&[Command::EnterLooper, clear(held)]);
    assert!(idle.is_blocked());
    assert_eq!(manager.thread(102).drain(), [CLEARED]);
    manager.thread(103).write(&[request(held), clear(held)]);
    assert_eq!(news(&idle), [CLEARED]);
    assert_eq!(manager.thread(103).drain(), []);
    end(&world, [manager, owner]);
}

/// Dead, and the word of it is on the list.
#[test]
fn clearing_a_death_that_is_queued_does_not_take_it_back() {
    let Watch { world, manager, owner, held } = watch();
    owner.release();
    manager.main().write(&[clear(held)]);
    assert_eq!(manager.main().drain(), [DEAD], "and the clearing is confirmed only after");
    manager.main().write(&[DONE]);
    assert_eq!(manager.main().drain(), [CLEARED]);
    assert_eq!(world.stats().deaths, 0);
    end(&world, [manager]);
}

/// Dead, read, not confirmed.
#[test]
fn clearing_a_death_that_was_delivered_waits_for_dead_binder_done() {
    let Watch { world, manager, owner, held } = watch();
    owner.release();
    assert_eq!(manager.main().drain(), [DEAD]);
    manager.main().write(&[clear(held)]);
    assert_eq!(manager.main().drain(), []);
    manager.thread(101).write(&[Command::EnterLooper, DONE]);
    assert_eq!(manager.main().drain(), [], "it is for the looper that confirmed");
    assert_eq!(manager.thread(101).drain(), [CLEARED]);
    end(&world, [manager]);
}

/// Dead, read, confirmed: nothing is under way any more.
#[test]
fn clearing_a_death_after_dead_binder_done_is_confirmed_at_once() {
    let Watch { world, manager, owner, held } = watch();
    owner.release();
    assert_eq!(manager.main().drain(), [DEAD]);
    manager.main().write(&[DONE, clear(held)]);
    assert_eq!(manager.main().drain(), [CLEARED]);
    end(&world, [manager]);
}

#[test]
fn dead_binder_done_twice_or_too_early_is_ignored() {
    let Watch { world, manager, owner, held } = watch();
    manager.main().write(&[DONE]);
    owner.release();
    manager.main().write(&[DONE]);
    assert_eq!(manager.main().drain(), [DEAD]);
    manager.main().write(&[clear(held), DONE, DONE]);
    assert_eq!(manager.main().drain(), [CLEARED]);
    end(&world, [manager]);
}

/// Two notices with the same cookie: the one that was delivered first is confirmed first.
#[test]
fn dead_binder_done_confirms_the_oldest_of_that_cookie() {
    let Watch { world, manager, owner, held } = watch();
    let second = offer(&owner, &manager, 0x20);
    manager.main().write(&[request(second)]);
    owner.release();
    assert_eq!(manager.main().drain(), [DEAD, DEAD]);
    manager.main().write(&[clear(held), DONE]);
    assert_eq!(manager.main().drain(), [CLEARED]);
    manager.main().write(&[DONE]);
    assert_eq!(manager.main().drain(), []);
    end(&world, [manager]);
}

/// The handle goes, and its notification with it, whatever its state.
#[test]
fn a_reference_that_goes_takes_its_death_notification_along() {
    let Watch { world, manager, owner, held } = watch();
    manager.main().write(&[Command::Release(held)]);
    assert_eq!(world.stats().deaths, 0, "not told yet");
    drop(owner.main().drain());
    let held = offer(&owner, &manager, 0x20);
    manager.main().write(&[request(held)]);
    let second = offer(&owner, &manager, 0x30);
    manager.main().write(&[request(second)]);
    owner.release();
    assert_eq!(news(&manager.main().read()), [DEAD]);
    manager.main().write(&[Command::Release(held)]);
    assert_eq!(world.stats().deaths, 1, "delivered");
    manager.main().write(&[Command::Release(second)]);
    assert_eq!(world.stats().deaths, 0, "queued");
    assert_eq!(manager.main().drain(), []);
    manager.main().write(&[DONE]);
    end(&world, [manager]);
}

/// A cleared notification is nobody's any more, but its confirmation is still read.
#[test]
fn a_reference_that_goes_leaves_the_confirmation_of_a_clearing() {
    let Watch { world, manager, owner, held } = watch();
    manager.main().write(&[clear(held), Command::Release(held)]);
    assert_eq!(manager.main().drain(), [CLEARED]);
    end(&world, [manager, owner]);
}

#[test]
fn a_holder_that_dies_leaves_no_death_notification_in_any_state() {
    for state in 0..5 {
        let Watch { world, manager, owner, held } = watch();
        match state {
            0 => owner.release(),
            1 => {
                owner.release();
                manager.main().drain();
            }
            2 => {
                owner.release();
                manager.main().write(&[clear(held)]);
            }
            3 => {
                owner.release();
                manager.main().drain();
                manager.main().write(&[clear(held)]);
            }
            _ => {
                manager.main().write(&[clear(held)]);
                owner.release();
            }
        }
        end(&world, [manager]);
    }
}

/// The confirmation stood on the list of a thread that exits.
#[test]
fn a_looper_that_exits_takes_its_confirmation_along() {
    let Watch { world, manager, owner, held } = watch();
    manager.thread(101).write(&[Command::EnterLooper, clear(held)]);
    assert_eq!(world.stats().deaths, 1);
    manager.thread(101).call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert_eq!(world.stats().deaths, 0);
    end(&world, [manager, owner]);
}

/// First nobody can call any more, then everybody is told.
#[test]
fn a_death_is_told_after_the_last_call_has_failed() {
    let Watch { world, manager, owner, held } = watch();
    let calling = call(manager.main(), held, 1, b"");
    take(owner.main());
    owner.release();
    assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
    assert_eq!(manager.main().drain(), [DEAD]);
    end(&world, [manager]);
}
