//! Freezing: BINDER_FREEZE and BINDER_GET_FROZEN_INFO, and what callers of a frozen process read.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::{self, TF_UPDATE_TXN};
use fakebinder_sim::{Pending, Sim};

/// Anybody freezes or thaws a process, by its pid.
fn freeze(by: &Sim, pid: i32, enable: u32, timeout_ms: u32) -> Pending {
    let arg = [pid as u32, enable, timeout_ms].map(u32::to_ne_bytes).concat();
    by.main().ioctl(uapi::BINDER_FREEZE, &arg)
}

#[track_caller]
fn frozen(by: &Sim, pid: i32) {
    assert_eq!(freeze(by, pid, 1, 0).ended().unwrap().result, Ok(0));
}

#[track_caller]
fn thawed(by: &Sim, pid: i32) {
    assert_eq!(freeze(by, pid, 0, 0).ended().unwrap().result, Ok(0));
}

/// BINDER_GET_FROZEN_INFO: sync_recv and async_recv.
fn info(by: &Sim, pid: i32) -> Result<(u32, u32), Errno> {
    let arg = [pid as u32, 7, 7].map(u32::to_ne_bytes).concat();
    let out = by.main().call(uapi::BINDER_GET_FROZEN_INFO, &arg)?;
    let field = |index: usize| u32::from_ne_bytes(*out[4 * index..].first_chunk().unwrap());
    assert_eq!(field(0), pid as u32);
    Ok((field(1), field(2)))
}

#[test]
fn a_call_to_a_frozen_process_gets_frozen_reply() {
    let Pair { world, manager, client } = pair();
    frozen(&client, 100);
    assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::FrozenReply]);
    assert_eq!(error(client.main()), (uapi::BR_FROZEN_REPLY, 0));
    assert_eq!(manager.alloc.allocated_count(), 0);
    thawed(&client, 100);
    assert!(call(client.main(), 0, 1, b"").is_blocked());
    end(&world, [client, manager]);
}

/// Its objects are given back.
#[test]
fn a_call_that_gets_frozen_reply_leaves_nothing() {
    let Pair { world, manager, client } = pair();
    let before = world.stats();
    frozen(&client, 100);
    let told = news(&call_with(client.main(), 0, &[binder(0x10)]));
    assert_eq!(told, [Return::FrozenReply]);
    assert_eq!(world.stats(), before);
    end(&world, [client, manager]);
}

#[test]
fn a_one_way_call_to_a_frozen_process_is_pending() {
    let Pair { world, manager, client } = pair();
    frozen(&client, 100);
    for code in 1..=2 {
        let told = post(client.main(), 0, code, b"");
        assert_eq!(told, [Return::TransactionPendingFrozen]);
    }
    thawed(&client, 100);
    let received = take(manager.main());
    assert_eq!(received.code, 1);
    free(&manager, &received);
    assert_eq!(take(manager.main()).code, 2);
    end(&world, [client, manager]);
}

/// A client (pid 200) whose main thread waits for the manager's answer, and that is being frozen:
/// the freeze waits for a one-way call that it has not read.
fn half_frozen(pair: &Pair, by: &Sim) -> (u32, Pending, Pending) {
    let held = offer(&pair.client, &pair.manager, 0x10);
    post(pair.manager.main(), held, 0, b"");
    let calling = call(pair.client.main(), 0, 1, b"");
    take(pair.manager.main());
    let freezing = freeze(by, 200, 1, 1000);
    assert!(calling.is_blocked() && freezing.is_blocked());
    (held, calling, freezing)
}

#[test]
fn a_nested_call_into_a_process_that_is_being_frozen_gets_frozen_reply() {
    let pair = pair();
    let other = open(&pair.world, 300);
    let (held, calling, _freezing) = half_frozen(&pair, &other);
    let Pair { world, manager, client } = pair;
    assert_eq!(news(&call(manager.main(), held, 2, b"")), [Return::FrozenReply]);
    assert!(calling.is_blocked(), "though its thread waits there");
    end(&world, [client, manager, other]);
}

#[test]
fn a_reply_to_a_process_that_is_being_frozen_is_delivered() {
    let pair = pair();
    let other = open(&pair.world, 300);
    let (_, calling, freezing) = half_frozen(&pair, &other);
    let Pair { world, manager, client } = pair;
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    let received = take(client.main());
    free(&client, &received);
    assert_eq!(freezing.ended().unwrap().result, Ok(0));
    end(&world, [client, manager, other]);
}

#[test]
fn one_way_calls_that_were_there_before_a_freeze_are_handed_out() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 0, 1, b"");
    post(client.main(), 0, 2, b"");
    let freezing = freeze(&client, 100, 1, 1000);
    let first = take(manager.main());
    assert!(freezing.is_blocked());
    free(&manager, &first);
    assert_eq!(take(manager.main()).code, 2);
    assert_eq!(freezing.ended().unwrap().result, Ok(0));
    end(&world, [client, manager]);
}

#[test]
fn a_frozen_process_may_call_others() {
    let Pair { world, manager, client } = pair();
    frozen(&manager, 200);
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

#[test]
fn freezing_a_pid_that_nobody_has_is_einval() {
    let Pair { world, manager, client } = pair();
    assert_eq!(freeze(&client, 999, 1, 0).ended().unwrap().result, Err(Errno::EINVAL));
    assert_eq!(freeze(&client, 999, 0, 0).ended().unwrap().result, Err(Errno::EINVAL));
    assert_eq!(info(&client, 999), Err(Errno::EINVAL));
    end(&world, [client, manager]);
}

#[test]
fn freezing_concerns_every_open_of_a_pid_in_every_context() {
    let Pair { world, manager, client } = pair();
    let hw = world.open_unmapped("hwbinder", 100);
    hw.mmap(1 << 20).unwrap();
    hw.main().become_manager();
    let hw_client = world.open_unmapped("hwbinder", 200);
    hw_client.mmap(1 << 20).unwrap();
    introduce(hw_client.main());
    frozen(&client, 100);
    assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::FrozenReply]);
    assert_eq!(news(&call(hw_client.main(), 0, 1, b"")), [Return::FrozenReply]);
    assert_eq!(info(&hw_client, 100), Ok((1, 0)));
    thawed(&client, 100);
    assert!(call(hw_client.main(), 0, 1, b"").is_blocked());
    end(&world, [client, manager, hw, hw_client]);
}

#[test]
fn a_process_with_unanswered_calls_does_not_freeze_without_a_timeout() {
    let Pair { world, manager, client } = pair();
    introduce(client.thread(201));
    let calling = call(client.thread(201), 0, 1, b"");
    assert_eq!(freeze(&client, 100, 1, 0).ended().unwrap().result, Err(Errno::EAGAIN), "unread");
    take(manager.main());
    assert_eq!(freeze(&client, 100, 1, 0).ended().unwrap().result, Err(Errno::EAGAIN));
    assert_eq!(info(&client, 100), Ok((2, 0)), "pending");
    answer(manager.main().nonblock(), b"");
    // The reply is outstanding towards the caller, until it is read; here it was.
    reply(&calling);
    frozen(&client, 100);
    end(&world, [client, manager]);
}

#[test]
fn a_process_that_calls_somebody_itself_does_not_freeze() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    assert_eq!(freeze(&manager, 200, 1, 0).ended().unwrap().result, Err(Errno::EAGAIN));
    assert_eq!(info(&manager, 200), Ok((2, 0)));
    // Waiting does not help: it waits for what others have sent, not for this.
    let waiting = freeze(&manager, 200, 1, 1000);
    assert_eq!(waiting.ended().unwrap().result, Err(Errno::EAGAIN));
    take(manager.main());
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    frozen(&manager, 200);
    end(&world, [client, manager]);
}

#[test]
fn a_process_with_an_unread_one_way_call_does_not_freeze() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 0, 1, b"");
    post(client.main(), 0, 2, b"");
    assert_eq!(freeze(&client, 100, 1, 0).ended().unwrap().result, Err(Errno::EAGAIN));
    let received = take(manager.main());
    assert_eq!(freeze(&client, 100, 1, 0).ended().unwrap().result, Err(Errno::EAGAIN), "one waits");
    free(&manager, &received);
    take(manager.main());
    frozen(&client, 100);
    end(&world, [client, manager]);
}

#[test]
fn a_freeze_waits_for_the_last_outstanding_transaction() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    take(manager.main());
    let other = open(&world, 300);
    let waiting = freeze(&other, 100, 1, 1000);
    assert!(waiting.is_blocked());
    assert_eq!(world.timers.waiting(), 1);
    // Frozen already for those who come now.
    assert_eq!(news(&call(other.thread(301), 0, 1, b"")), [Return::FrozenReply]);
    answer(manager.main().nonblock(), b"");
    assert_eq!(waiting.ended().unwrap().result, Ok(0));
    assert_eq!(world.timers.waiting(), 0);
    reply(&calling);
    assert_eq!(info(&other, 100), Ok((1, 0)));
    end(&world, [client, manager, other]);
}

#[test]
fn a_freeze_that_waited_in_vain_is_eagain_and_thaws() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 1, b"");
    let other = open(&world, 300);
    let waiting = freeze(&other, 100, 1, 20);
    assert_eq!(world.timers.fire_all(), 1);
    assert_eq!(waiting.ended().unwrap().result, Err(Errno::EAGAIN));
    let again = call(other.main(), 0, 2, b"");
    assert!(again.is_blocked(), "not frozen");
    assert_eq!(take(manager.main()).code, 1);
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager, other]);
}

#[test]
fn a_signal_ends_a_waiting_freeze_and_thaws() {
    let Pair { world, manager, client } = pair();
    call(client.main(), 0, 1, b"");
    let other = open(&world, 300);
    let waiting = freeze(&other, 100, 1, 1000);
    waiting.interrupt();
    let ended = waiting.ended().unwrap();
    assert_eq!((ended.result, ended.restarts), (Err(Errno::EINTR), true));
    assert_eq!(world.timers.waiting(), 0);
    assert!(call(other.main(), 0, 2, b"").is_blocked(), "not frozen");
    // A late timer would find nobody.
    assert_eq!(world.timers.fire_all(), 0);
    end(&world, [client, manager, other]);
}

#[test]
fn a_pending_signal_ends_a_freeze_that_would_wait() {
    let Pair { world, manager, client } = pair();
    call(client.main(), 0, 1, b"");
    let other = open(&world, 300);
    let arg = [100, 1, 1000].map(u32::to_ne_bytes).concat();
    let ended = other.main().signalled().ioctl(uapi::BINDER_FREEZE, &arg).ended().unwrap();
    assert_eq!((ended.result, ended.restarts), (Err(Errno::EINTR), true));
    assert_eq!(world.timers.waiting(), 0);
    assert!(call(other.main(), 0, 2, b"").is_blocked(), "not frozen");
    end(&world, [client, manager, other]);
}

#[test]
fn a_target_that_dies_ends_a_waiting_freeze() {
    let Pair { world, manager, client } = pair();
    call(client.main(), 0, 1, b"");
    let other = open(&world, 300);
    let waiting = freeze(&other, 100, 1, 1000);
    manager.release();
    assert_eq!(waiting.ended().unwrap().result, Ok(0));
    assert_eq!(world.timers.waiting(), 0);
    end(&world, [client, other]);
}

#[test]
fn a_thread_that_exits_with_the_last_call_ends_a_waiting_freeze() {
    let Pair { world, manager, client } = pair();
    call(client.main(), 0, 1, b"");
    take(manager.main());
    let other = open(&world, 300);
    let waiting = freeze(&other, 100, 1, 1000);
    manager.main().call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    assert_eq!(waiting.ended().unwrap().result, Ok(0));
    assert_eq!(info(&other, 100), Ok((0, 0)));
    end(&world, [client, manager, other]);
}

/// The rest of the opens is frozen after the first has settled; one that fails ends it.
#[test]
fn a_freeze_of_two_opens_waits_for_each() {
    let Pair { world, manager, client } = pair();
    let hw = world.open_unmapped("hwbinder", 100);
    hw.mmap(1 << 20).unwrap();
    hw.main().become_manager();
    let hw_client = world.open_unmapped("hwbinder", 200);
    hw_client.mmap(1 << 20).unwrap();
    introduce(hw_client.main());
    let calls = [call(client.main(), 0, 1, b""), call(hw_client.main(), 0, 1, b"")];
    take(manager.main());
    take(hw.main());
    let other = open(&world, 300);
    let waiting = freeze(&other, 100, 1, 1000);
    answer(hw.main().nonblock(), b"");
    assert!(waiting.is_blocked(), "the other open has a call to answer");
    answer(manager.main().nonblock(), b"");
    assert_eq!(waiting.ended().unwrap().result, Ok(0));
    for calling in &calls {
        reply(calling);
    }
    thawed(&other, 100);
    // This time the second does not settle.
    let open_call = call(client.main(), 0, 1, b"");
    take(manager.main());
    let waiting = freeze(&other, 100, 1, 1000);
    world.timers.fire_all();
    assert_eq!(waiting.ended().unwrap().result, Err(Errno::EAGAIN));
    assert!(open_call.is_blocked());
    assert_eq!(
        news(&call(hw_client.main(), 0, 2, b"")),
        [Return::FrozenReply],
        "the first, the latest open, stays frozen"
    );
    end(&world, [client, manager, hw, hw_client, other]);
}

#[test]
fn two_freezes_may_wait_for_one_process() {
    let Pair { world, manager, client } = pair();
    call(client.main(), 0, 1, b"");
    take(manager.main());
    let other = open(&world, 300);
    let another = open(&world, 400);
    let waits = [freeze(&other, 100, 1, 1000), freeze(&another, 100, 1, 1000)];
    answer(manager.main().nonblock(), b"");
    for waiting in waits {
        assert_eq!(waiting.ended().unwrap().result, Ok(0));
    }
    assert_eq!(world.timers.waiting(), 0);
    end(&world, [client, manager, other, another]);
}

#[test]
fn a_process_may_freeze_itself() {
    let Pair { world, manager, client } = pair();
    frozen(&manager, 100);
    assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::FrozenReply]);
    thawed(&manager, 100);
    end(&world, [client, manager]);
}

#[test]
fn frozen_info_tells_what_came_while_frozen() {
    let Pair { world, manager, client } = pair();
    assert_eq!(info(&client, 100), Ok((0, 0)));
    frozen(&client, 100);
    assert_eq!(info(&client, 100), Ok((0, 0)));
    post(client.main(), 0, 1, b"");
    assert_eq!(info(&client, 100), Ok((2, 1)), "the one-way call is pending too");
    call(client.main(), 0, 1, b"");
    assert_eq!(info(&client, 100), Ok((3, 1)));
    thawed(&client, 100);
    assert_eq!(info(&client, 100), Ok((2, 0)), "thawing clears it");
    take(manager.main());
    assert_eq!(info(&client, 100), Ok((0, 0)));
    end(&world, [client, manager]);
}

#[test]
fn frozen_info_is_cleared_by_freezing_anew() {
    let Pair { world, manager, client } = pair();
    frozen(&client, 100);
    call(client.main(), 0, 1, b"");
    assert_eq!(info(&client, 100), Ok((1, 0)));
    frozen(&client, 100);
    assert_eq!(info(&client, 100), Ok((0, 0)));
    end(&world, [client, manager]);
}

#[test]
fn frozen_info_adds_up_the_opens_of_a_pid() {
    let Pair { world, manager, client } = pair();
    let again = open(&world, 100);
    frozen(&client, 100);
    call(client.main(), 0, 1, b"");
    assert_eq!(info(&again, 100), Ok((1, 0)));
    end(&world, [client, manager, again]);
}

fn update(sim: &Sim, code: u32, data: &[u8]) -> Command {
    let mut data = one_way(sim.message(0, code, data, &[]));
    data.flags |= TF_UPDATE_TXN;
    Command::Transaction(data)
}

/// The buffers of the manager, in their order, by their lengths.
fn lengths(manager: &Sim) -> Vec<usize> {
    manager.alloc.allocated_buffers().iter().map(|buffer| buffer.data_size).collect()
}

#[test]
fn tf_update_txn_replaces_the_pending_call_of_the_same_kind() {
    let Pair { world, manager, client } = pair();
    // The first is with the process itself, and so cannot be replaced.
    post(client.main(), 0, 1, b"");
    take(manager.main());
    frozen(&client, 100);
    client.main().write(&[update(&client, 7, b"old"), update(&client, 8, b"other")]);
    client.main().write(&[update(&client, 7, b"newest")]);
    assert_eq!(client.main().drain(), [Return::TransactionPendingFrozen; 3]);
    assert_eq!(lengths(&manager), [0, 5, 6], "the old one's buffer is free again");
    assert_eq!(world.stats().transactions, 2);
    thawed(&client, 100);
    manager.main().write(&[Command::FreeBuffer(fakebinder_sim::MAPPING)]);
    let first = take(manager.main());
    assert_eq!((first.code, manager.data(&first)), (8, b"other".to_vec()));
    free(&manager, &first);
    let second = take(manager.main());
    assert_eq!((second.code, manager.data(&second)), (7, b"newest".to_vec()), "at the end");
    free(&manager, &second);
    frozen(&client, 100);
    end(&world, [client, manager]);
}

#[test]
fn tf_update_txn_replaces_only_its_own_like() {
    let Pair { world, manager, client } = pair();
    let other = open(&world, 300);
    post(client.main(), 0, 1, b"");
    take(manager.main());
    frozen(&client, 100);
    client.main().write(&[update(&client, 7, b"first")]);
    // Another code, no such flag, one flag more, another sender.
    client.main().write(&[update(&client, 9, b"code")]);
    post(client.main(), 0, 7, b"no flag");
    let mut flagged = one_way(client.message(0, 7, b"flags", &[]));
    flagged.flags |= TF_UPDATE_TXN | uapi::TF_ACCEPT_FDS;
    client.main().write(&[Command::Transaction(flagged)]);
    other.main().write(&[update(&other, 7, b"sender")]);
    assert_eq!(world.stats().transactions, 5);
    end(&world, [client, other, manager]);
}

#[test]
fn tf_update_txn_replaces_nothing_in_a_process_that_is_not_frozen() {
    let Pair { world, manager, client } = pair();
    for _ in 0..3 {
        client.main().write(&[update(&client, 7, b"each counts")]);
    }
    assert_eq!(world.stats().transactions, 3);
    assert_eq!(client.main().drain(), [Return::TransactionComplete; 3]);
    end(&world, [client, manager]);
}

/// What the replaced call brought is given back.
#[test]
fn tf_update_txn_lets_go_of_what_the_replaced_call_held() {
    let Pair { world, manager, client } = pair();
    post(client.main(), 0, 1, b"");
    take(manager.main());
    frozen(&client, 100);
    let mut old = one_way(client.message(0, 7, b"", &[binder(0x10)]));
    old.flags |= TF_UPDATE_TXN;
    client.main().write(&[Command::Transaction(old)]);
    assert_eq!(world.stats().references, 1);
    let own = node(0x10);
    client.main().drain();
    client.main().write(&[Command::IncrefsDone(own), Command::AcquireDone(own)]);
    client.main().write(&[update(&client, 7, b"")]);
    assert_eq!(world.stats().references, 0);
    assert!(client.main().drain().contains(&Return::Release(own)));
    end(&world, [client, manager]);
}

#[test]
fn a_frozen_process_that_dies_answers_with_dead_reply() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Acquire(0)]);
    frozen(&client, 100);
    post(client.main(), 0, 1, b"");
    manager.release();
    assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::DeadReply]);
    assert_eq!(world.stats().transactions, 0);
    end(&world, [client]);
}
