//! poll(2).

use super::message::*;
use super::scene::*;
use super::{Scene, group};

group! { "poll":
    a_new_thread_is_to_read_at_once,
    nothing_is_not_readable,
    a_call_is_readable,
    a_call_is_readable_by_every_idle_thread,
    a_call_is_not_readable_by_a_thread_at_work,
    a_reply_is_readable,
    the_call_itself_is_not_readable,
    a_oneway_calls_completion_is_readable,
    an_error_is_readable,
    a_nested_call_is_readable,
    a_reference_is_readable,
    a_waiting_poll_is_woken_by_a_call,
    a_waiting_poll_is_woken_by_a_reply,
    a_waiting_poll_ends_in_time,
    a_waiting_poll_is_woken_again_and_again,
    a_waiting_select_is_woken_again_and_again,
    a_poll_for_room_to_write_finds_nothing,
}

/// How often a thing is repeated that might work once by chance.
pub(super) const ROUNDS: usize = 10;

/// A process whose thread's next read would wait.
pub(super) fn idle(scene: &Scene) -> Process {
    let process = scene.process();
    process.reads("NOOP");
    process
}

/// Reads a one-way call, frees it, and reads on until there is nothing more.
#[track_caller]
pub(super) fn drain(thread: &Thread) {
    let got = thread.receive();
    thread.write(free(got.transaction.buffer));
    thread.reads("EAGAIN");
}

/// Makes a one-way call; its sender reads the completion.
#[track_caller]
pub(super) fn post(client: &Thread) {
    client.write(oneway(0));
    client.reads("NOOP TRANSACTION_COMPLETE");
}

fn a_new_thread_is_to_read_at_once(scene: &Scene) {
    let process = scene.process();
    assert!(process.polls());
    process.reads("NOOP");
    assert!(!process.polls());
}

fn nothing_is_not_readable(scene: &Scene) {
    assert!(!idle(scene).polls());
}

fn a_call_is_readable(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    assert!(!manager.polls());
    client.write(call(0));
    assert!(manager.polls());
    manager.receive();
    assert!(!manager.polls());
}

fn a_call_is_readable_by_every_idle_thread(scene: &Scene) {
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    manager.threads[1].reads("NOOP");
    client.write(call(0));
    assert!(manager.polls());
    assert!(manager.threads[1].polls());
    manager.receive();
    assert!(!manager.threads[1].polls());
}

fn a_call_is_not_readable_by_a_thread_at_work(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let other = scene.process();
    client.write(call(0));
    manager.receive();
    other.write(call(0));
    assert!(!manager.polls());
    manager.write(reply());
    assert!(manager.polls());
}

fn a_reply_is_readable(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0));
    manager.receive();
    assert!(!client.polls());
    manager.write(reply());
    assert!(client.polls());
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    assert!(!client.polls());
}

fn the_call_itself_is_not_readable(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0).binder(1, 2));
    assert!(!client.polls());
    drop(manager);
}

fn a_oneway_calls_completion_is_readable(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(oneway(0));
    assert!(client.polls());
    drop(manager);
}

fn an_error_is_readable(scene: &Scene) {
    let process = idle(scene);
    process.write(call(99));
    assert!(process.polls());
    process.reads("NOOP FAILED_REPLY");
    assert!(!process.polls());
}

fn a_nested_call_is_readable(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process_with(2));
    let handle = scene.introduce(&client, &manager, 1, 2);
    client.threads[1].reads("NOOP");
    client.write(call(0));
    manager.receive();
    manager.write(call(handle));
    assert!(client.polls());
    assert!(!client.threads[1].polls());
}

fn a_reference_is_readable(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let handle = scene.introduce(&client, &manager, 1, 2);
    assert!(!client.polls());
    manager.write(release(handle));
    assert!(client.polls());
}

fn a_waiting_poll_is_woken_by_a_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    manager.begin_poll(-1);
    manager.asleep();
    client.write(call(0));
    assert_eq!(manager.finish(), 1);
    manager.receive();
}

fn a_waiting_poll_is_woken_by_a_reply(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0));
    manager.receive();
    client.begin_poll(-1);
    client.asleep();
    manager.write(reply());
    assert_eq!(client.finish(), 1);
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
}

fn a_waiting_poll_ends_in_time(scene: &Scene) {
    assert!(!idle(scene).polls_for(10));
}

fn a_waiting_poll_is_woken_again_and_again(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    for _ in 0..ROUNDS {
        manager.begin_poll(-1);
        manager.asleep();
        post(&client);
        assert_eq!(manager.finish(), 1);
        drain(&manager);
        assert!(!manager.polls());
    }
}

fn a_waiting_select_is_woken_again_and_again(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let (number, bit) = (manager.fd() as u64, 1u64 << manager.fd());
    assert!(number < 64);
    for _ in 0..ROUNDS {
        let mut set = bit.to_ne_bytes().to_vec();
        set.resize(128, 0);
        let address = manager.put(&set);
        manager.begin_syscall(libc::SYS_select, &[number + 1, address, 0, 0, 0]);
        manager.asleep();
        post(&client);
        assert_eq!(manager.finish(), 1);
        assert_eq!(manager.get(address, 8), bit.to_ne_bytes());
        drain(&manager);
    }
}

/// `binder_poll` reports EPOLLIN and nothing else.
fn a_poll_for_room_to_write_finds_nothing(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0));
    let mut pollfd = manager.fd().to_ne_bytes().to_vec();
    pollfd.extend_from_slice(&(libc::POLLOUT | libc::POLLRDNORM).to_ne_bytes());
    pollfd.extend_from_slice(&[0, 0]);
    let address = manager.put(&pollfd);
    assert_eq!(manager.syscall(libc::SYS_poll, &[address, 1, 0]), Ok(0));
    manager.receive();
}
