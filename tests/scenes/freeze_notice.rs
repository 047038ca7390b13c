//! Freeze notifications: BR_FROZEN_BINDER, its acknowledgement, and clearing, in every order.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::HandleCookie;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{Sim, World};

const COOKIE: u64 = 0xf0;
const FROZEN: Return = Return::FrozenBinder { cookie: COOKIE, is_frozen: true };
const THAWED: Return = Return::FrozenBinder { cookie: COOKIE, is_frozen: false };
const CLEARED: Return = Return::ClearFreezeNotificationDone(COOKIE);
const DONE: Command = Command::FreezeNotificationDone(COOKIE);

fn request(handle: u32) -> Command {
    Command::RequestFreezeNotification(HandleCookie { handle, cookie: COOKIE })
}

fn clear(handle: u32) -> Command {
    Command::ClearFreezeNotification(HandleCookie { handle, cookie: COOKIE })
}

/// The manager holds a node of the owner (pid 200) and has asked for its freezing; what it was
/// told first, it has acknowledged.
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
    assert_eq!(manager.main().drain(), [THAWED], "the state is told at once");
    manager.main().write(&[DONE]);
    assert_eq!(manager.main().drain(), []);
    Watch { world, manager, owner: client, held }
}

impl Watch {
    /// BINDER_FREEZE of the owner, by the manager.
    #[track_caller]
    fn freeze(&self, enable: bool) {
        let arg = [200, u32::from(enable), 0].map(u32::to_ne_bytes).concat();
        assert!(self.manager.main().call(uapi::BINDER_FREEZE, &arg).is_ok());
    }

    fn told(&self) -> Vec<Return> {
        self.manager.main().drain()
    }

    fn say(&self, commands: &[Command]) {
        self.manager.main().write(commands);
    }

    #[track_caller]
    fn end(self) {
        end(&self.world, [self.manager, self.owner]);
    }
}

#[test]
fn a_freeze_and_a_thaw_are_told() {
    let watch = watch();
    watch.freeze(true);
    assert_eq!(watch.told(), [FROZEN]);
    watch.say(&[DONE]);
    watch.freeze(false);
    assert_eq!(watch.told(), [THAWED]);
    watch.say(&[DONE]);
    assert_eq!(watch.told(), []);
    watch.end();
}

#[test]
fn whoever_asks_about_a_frozen_process_hears_that_it_is() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let watch = Watch { world, manager, owner: client, held };
    watch.freeze(true);
    watch.say(&[request(held)]);
    assert_eq!(watch.told(), [FROZEN]);
    watch.end();
}

#[test]
fn a_freeze_wakes_a_thread_that_waits() {
    let watch = watch();
    let waiting = watch.manager.thread(101).enter_looper();
    watch.freeze(true);
    assert_eq!(news(&waiting), [FROZEN]);
    watch.end();
}

#[test]
fn br_frozen_binder_ends_a_read() {
    let watch = watch();
    let second = offer(&watch.owner, &watch.manager, 0x20);
    let other = HandleCookie { handle: second, cookie: 0xf1 };
    watch.say(&[Command::RequestFreezeNotification(other)]);
    watch.freeze(true);
    let read = watch.manager.main().read();
    assert_eq!(news(&read), [Return::FrozenBinder { cookie: 0xf1, is_frozen: true }]);
    assert_eq!(news(&watch.manager.main().read()), [FROZEN]);
    watch.end();
}

/// Not sent yet: there is only one word on the list, and it says what is true when it is read.
#[test]
fn changes_before_the_notice_is_read_are_told_as_the_last() {
    let watch = watch();
    watch.freeze(true);
    watch.freeze(false);
    assert_eq!(watch.told(), [THAWED]);
    watch.say(&[DONE]);
    assert_eq!(watch.told(), []);
    watch.end();
}

/// Sent, not acknowledged: the change is told after the acknowledgement.
#[test]
fn a_change_after_the_notice_was_read_waits_for_its_acknowledgement() {
    let watch = watch();
    watch.freeze(true);
    assert_eq!(watch.told(), [FROZEN]);
    watch.freeze(false);
    assert_eq!(watch.told(), []);
    watch.say(&[DONE]);
    assert_eq!(watch.told(), [THAWED]);
    watch.say(&[DONE]);
    assert_eq!(watch.told(), []);
    watch.end();
}

/// There and back again while it was not acknowledged: told once more, though nothing changed.
#[test]
fn a_change_there_and_back_is_told_once_more() {
    let watch = watch();
    watch.freeze(true);
    assert_eq!(watch.told(), [FROZEN]);
    watch.freeze(false);
    watch.freeze(true);
    watch.say(&[DONE]);
    assert_eq!(watch.told(), [FROZEN]);
    watch.end();
}

#[test]
fn freezing_a_frozen_process_is_told_again_only_when_acknowledged() {
    let watch = watch();
    watch.freeze(true);
    assert_eq!(watch.told(), [FROZEN]);
    watch.freeze(true);
    watch.say(&[DONE]);
    assert_eq!(watch.told(), [], "no change while it waited");
    watch.freeze(true);
    assert_eq!(watch.told(), [FROZEN], "nothing was under way");
    watch.end();
}

/// A freeze that fails is no freeze.
#[test]
fn a_freeze_that_fails_is_not_told() {
    let watch = watch();
    introduce(watch.manager.thread(101));
    let calling = call(watch.manager.thread(101), watch.held, 1, b"");
    let arg = [200_u32, 1, 0].map(u32::to_ne_bytes).concat();
    let refused = watch.manager.main().call(uapi::BINDER_FREEZE, &arg);
    assert_eq!(refused, Err(Errno::EAGAIN));
    assert_eq!(watch.told(), []);
    assert!(calling.is_blocked());
    watch.end();
}

#[test]
fn a_request_without_a_handle_or_a_second_one_is_einval() {
    let watch = watch();
    for command in [request(99), request(watch.held)] {
        let both = [Command::EnterLooper, command];
        assert_eq!(watch.manager.main().try_write(&both), (Err(Errno::EINVAL), 4));
    }
    assert_eq!(watch.world.stats().freezes, 1);
    watch.end();
}

#[test]
fn a_weak_handle_is_enough_to_be_told_of_a_freeze() {
    let Pair { world, manager, client } = pair();
    post_with(client.main(), 0, &[weak_binder(0x10)]);
    take(manager.main());
    manager.main().write(&[request(1)]);
    assert_eq!(manager.main().drain(), [THAWED]);
    end(&world, [client, manager]);
}

#[test]
fn clearing_what_is_not_there_is_einval() {
    let Watch { world, manager, owner, held } = watch();
    let second = offer(&owner, &manager, 0x20);
    let other = HandleCookie { handle: held, cookie: 0xbad };
    for command in [clear(99), clear(second), Command::ClearFreezeNotification(other)] {
        assert_eq!(manager.main().try_write(&[command]), (Err(Errno::EINVAL), 0));
    }
    assert_eq!(world.stats().freezes, 1);
    end(&world, [manager, owner]);
}

#[test]
fn acknowledging_what_was_not_sent_is_einval() {
    let watch = watch();
    assert_eq!(watch.manager.main().try_write(&[DONE]), (Err(Errno::EINVAL), 0));
    watch.freeze(true);
    assert_eq!(watch.manager.main().try_write(&[DONE]), (Err(Errno::EINVAL), 0), "not read yet");
    watch.end();
}

#[test]
fn clearing_is_confirmed_and_nothing_told_afterwards() {
    let watch = watch();
    watch.say(&[clear(watch.held)]);
    assert_eq!(watch.told(), [CLEARED]);
    assert_eq!(watch.world.stats().freezes, 0);
    watch.freeze(true);
    assert_eq!(watch.told(), []);
    watch.say(&[request(watch.held)]);
    assert_eq!(watch.told(), [FROZEN], "and may be asked for again");
    watch.end();
}

/// Queued, not read: the notice turns into the confirmation.
#[test]
fn clearing_takes_back_a_notice_that_was_not_read() {
    let watch = watch();
    watch.freeze(true);
    watch.say(&[clear(watch.held)]);
    assert_eq!(watch.told(), [CLEARED]);
    watch.end();
}

/// Read, not acknowledged.
#[test]
fn clearing_a_notice_that_was_read_waits_for_its_acknowledgement() {
    let watch = watch();
    watch.freeze(true);
    assert_eq!(watch.told(), [FROZEN]);
    watch.say(&[clear(watch.held)]);
    assert_eq!(watch.told(), []);
    watch.freeze(false);
    assert_eq!(watch.told(), [], "it is cleared: no change is told any more");
    watch.say(&[DONE]);
    assert_eq!(watch.told(), [CLEARED]);
    assert_eq!(watch.world.stats().freezes, 0);
    watch.end();
}

/// Read, not acknowledged, changed since: the confirmation takes the place of the change.
#[test]
fn clearing_a_notice_that_is_to_be_sent_again_confirms_instead() {
    let watch = watch();
    watch.freeze(true);
    assert_eq!(watch.told(), [FROZEN]);
    watch.freeze(false);
    watch.say(&[clear(watch.held), DONE]);
    assert_eq!(watch.told(), [CLEARED]);
    watch.end();
}

/// The first notice of all is under way when it is cleared.
#[test]
fn clearing_right_after_asking_tells_nothing_but_the_confirmation() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    manager.main().write(&[request(held), clear(held)]);
    assert_eq!(manager.main().drain(), [CLEARED]);
    end(&world, [client, manager]);
}

#[test]
fn asking_again_while_the_clearing_is_confirmed_makes_a_second_notification() {
    let watch = watch();
    watch.freeze(true);
    assert_eq!(watch.told(), [FROZEN]);
    watch.say(&[clear(watch.held), request(watch.held)]);
    assert_eq!(watch.world.stats().freezes, 2);
    assert_eq!(watch.told(), [FROZEN], "of the new one");
    watch.say(&[DONE]);
    assert_eq!(watch.told(), [CLEARED], "the oldest of that cookie is acknowledged first");
    watch.say(&[DONE]);
    assert_eq!(watch.told(), []);
    watch.end();
}

#[test]
fn a_reference_that_goes_takes_its_freeze_notification_along() {
    for state in 0..3 {
        let watch = watch();
        if state > 0 {
            watch.freeze(true);
        }
        if state > 1 {
            assert_eq!(watch.told(), [FROZEN]);
        }
        watch.say(&[Command::Release(watch.held)]);
        assert_eq!((watch.told(), watch.world.stats().freezes), (vec![], 0), "state {state}");
        assert_eq!(watch.manager.main().try_write(&[DONE]), (Err(Errno::EINVAL), 0));
        watch.end();
    }
}

#[test]
fn a_holder_that_dies_leaves_no_freeze_notification_in_any_state() {
    for state in 0..4 {
        let watch = watch();
        match state {
            0 => watch.say(&[clear(watch.held)]),
            1 => watch.freeze(true),
            2 => {
                watch.freeze(true);
                watch.told();
            }
            _ => {
                watch.freeze(true);
                watch.told();
                watch.say(&[clear(watch.held)]);
            }
        }
        end(&watch.world, [watch.manager, watch.owner]);
    }
}

#[test]
fn a_freeze_notification_of_a_dead_node_tells_nothing() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    client.release();
    manager.main().write(&[request(held)]);
    assert_eq!(manager.main().drain(), []);
    manager.main().write(&[clear(held)]);
    assert_eq!(manager.main().drain(), [CLEARED]);
    end(&world, [manager]);
}

#[test]
fn a_freeze_is_told_to_every_holder_and_for_every_node() {
    let watch = watch();
    let other = open(&watch.world, 300);
    let found = look_up(&other, &watch.manager, watch.held);
    other.main().write(&[request(found)]);
    assert_eq!(other.main().drain(), [THAWED]);
    other.main().write(&[DONE]);
    watch.freeze(true);
    assert_eq!((watch.told(), other.main().drain()), (vec![FROZEN], vec![FROZEN]));
    end(&watch.world, [watch.manager, watch.owner, other]);
}
