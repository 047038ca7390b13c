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
    epoll_is_woken_by_a_call,
}

/// A process whose thread has no reason to return early.
fn idle(scene: &Scene) -> Process {
    let process = scene.process();
    process.reads("NOOP");
    process
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

fn epoll_is_woken_by_a_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let epoll = manager.syscall(libc::SYS_epoll_create1, &[0]).expect("epoll_create1") as u64;
    let mut event = (libc::EPOLLIN as u32).to_ne_bytes().to_vec();
    event.extend_from_slice(&77u64.to_ne_bytes());
    let address = manager.put(&event);
    let add = [epoll, libc::EPOLL_CTL_ADD as u64, manager.fd() as u64, address];
    assert_eq!(manager.syscall(libc::SYS_epoll_ctl, &add), Ok(0));
    let address = manager.put(&[0; 12]);
    assert_eq!(manager.syscall(libc::SYS_epoll_wait, &[epoll, address, 1, 0]), Ok(0));
    manager.begin_syscall(libc::SYS_epoll_wait, &[epoll, address, 1, u64::MAX]);
    manager.asleep();
    client.write(call(0));
    assert_eq!(manager.finish(), 1);
    assert_eq!(manager.get(address + 4, 8), 77u64.to_ne_bytes());
    manager.receive();
    assert_eq!(manager.syscall(libc::SYS_epoll_wait, &[epoll, address, 1, 0]), Ok(0));
}
