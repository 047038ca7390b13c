//! epoll(7) in all its ways, and io_uring's poll.

mod edge;

use super::message::*;
use super::poll::{ROUNDS, drain, idle, post};
use super::scene::*;
use super::uring::Uring;
use super::{Scene, group};
use edge::*;

group! { "epoll":
    it_is_woken_by_a_call,
    level_tells_until_it_is_read,
    edge_tells_each_call,
    edge_tells_once,
    edge_tells_again_when_more_comes,
    edge_tells_each_call_to_one_who_waits,
    edge_tells_each_reply,
    edge_tells_the_outcome_of_ones_own_oneway_call,
    edge_tells_an_error_of_ones_own,
    edge_tells_a_reference,
    edge_tells_a_death,
    edge_tells_a_nested_call,
    edge_tells_what_is_left_after_a_read,
    edge_before_the_first_ioctl,
    edge_of_a_file_that_is_readable_already,
    edge_shared_by_two_threads,
    edge_of_two_opens,
    one_shot_waits_to_be_armed_again,
    one_shot_is_armed_while_there_is_a_call,
    two_epolls_are_told_of_each_call,
    two_exclusive_epolls_miss_no_call,
    a_thread_behind_an_exclusive_epoll_hears_of_its_reply,
    an_epoll_in_an_epoll_tells_each_call,
    a_thread_that_exits_ends_its_epoll,
    io_uring_polls_once,
    io_uring_polls_until_it_is_taken_back,
    nobody_polls_any_more,
    mixed_polls_of_one_file,
}

const IN: u32 = libc::EPOLLIN as u32;
const EDGE: u32 = IN | libc::EPOLLET as u32;
const ONCE: u32 = IN | libc::EPOLLONESHOT as u32;
const EXCLUSIVE: u32 = IN | libc::EPOLLEXCLUSIVE as u32;

/// An epoll instance of a child.
struct Epoll(u64);

impl Epoll {
    #[track_caller]
    fn new(thread: &Thread) -> Epoll {
        Epoll(thread.syscall(libc::SYS_epoll_create1, &[0]).expect("epoll_create1") as u64)
    }

    /// An epoll instance that the thread has added its device to.
    #[track_caller]
    fn of(thread: &Thread, events: u32) -> Epoll {
        let epoll = Epoll::new(thread);
        epoll.control(thread, libc::EPOLL_CTL_ADD, thread.fd() as u64, events);
        epoll
    }

    #[track_caller]
    fn control(&self, thread: &Thread, operation: i32, fd: u64, events: u32) {
        let mut event = events.to_ne_bytes().to_vec();
        event.extend_from_slice(&fd.to_ne_bytes());
        let address = thread.put(&event);
        let arguments = [self.0, operation as u64, fd, address];
        assert_eq!(thread.syscall(libc::SYS_epoll_ctl, &arguments), Ok(0), "epoll_ctl");
    }

    fn begin_wait(&self, thread: &Thread, timeout_ms: i32) {
        let address = thread.put(&[0; 24]);
        thread.begin_syscall(libc::SYS_epoll_wait, &[self.0, address, 2, timeout_ms as u64]);
    }

    /// How many files the instance reports, without waiting.
    #[track_caller]
    fn tells(&self, thread: &Thread) -> i64 {
        self.begin_wait(thread, 0);
        thread.finish()
    }

    /// Makes the thread wait until the instance reports a file, with just EPOLLIN.
    #[track_caller]
    fn waits(&self, thread: &Thread) {
        self.begin_wait(thread, -1);
        self.told(thread);
    }

    /// Ends a wait: the instance reports one file.
    #[track_caller]
    fn told(&self, thread: &Thread) {
        assert_eq!(thread.finish(), 1);
        let events = thread.get(thread.put(&[]), 4);
        assert_eq!(events, IN.to_ne_bytes());
    }

    /// The instance reports nothing, whatever was read before.
    #[track_caller]
    fn is_silent(&self, thread: &Thread) {
        assert_eq!(self.tells(thread), 0, "there is nothing to read");
    }
}

fn it_is_woken_by_a_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let epoll = Epoll::of(&manager, IN);
    epoll.is_silent(&manager);
    epoll.begin_wait(&manager, -1);
    manager.asleep();
    client.write(call(0));
    epoll.told(&manager);
    manager.receive();
    epoll.is_silent(&manager);
}

fn level_tells_until_it_is_read(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let epoll = Epoll::of(&manager, IN);
    for _ in 0..ROUNDS {
        post(&client);
        epoll.waits(&manager);
        epoll.waits(&manager);
        drain(&manager);
        epoll.is_silent(&manager);
    }
}

fn one_shot_waits_to_be_armed_again(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let epoll = Epoll::of(&manager, ONCE);
    for _ in 0..ROUNDS {
        post(&client);
        epoll.waits(&manager);
        drain(&manager);
        post(&client);
        assert_eq!(epoll.tells(&manager), 0, "it has told once");
        drain(&manager);
        epoll.control(&manager, libc::EPOLL_CTL_MOD, manager.fd() as u64, ONCE);
        epoll.is_silent(&manager);
    }
}

fn one_shot_is_armed_while_there_is_a_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let epoll = Epoll::of(&manager, ONCE);
    for _ in 0..ROUNDS {
        post(&client);
        epoll.waits(&manager);
        epoll.control(&manager, libc::EPOLL_CTL_MOD, manager.fd() as u64, ONCE);
        epoll.waits(&manager);
        drain(&manager);
        epoll.control(&manager, libc::EPOLL_CTL_MOD, manager.fd() as u64, ONCE);
    }
}

fn two_epolls_are_told_of_each_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let epolls = [Epoll::of(&manager, EDGE), Epoll::of(&manager, EDGE), Epoll::of(&manager, IN)];
    for _ in 0..ROUNDS {
        post(&client);
        epolls.iter().for_each(|epoll| epoll.waits(&manager));
        drain(&manager);
        epolls.iter().for_each(|epoll| epoll.is_silent(&manager));
    }
}

/// Each call wakes at least one of two waiting threads, each with an epoll instance of its own, and
/// two calls at once wake both.
fn two_exclusive_epolls_miss_no_call(scene: &Scene) {
    let manager = scene.manager_with(2, 0);
    let clients = [scene.process(), scene.process()];
    manager.threads[1].reads("NOOP");
    let waiting: Vec<_> =
        manager.threads.iter().map(|thread| (thread, Epoll::of(thread, EXCLUSIVE))).collect();
    for round in 0..ROUNDS {
        let calls = 1 + round % 2;
        for (thread, epoll) in &waiting {
            epoll.begin_wait(thread, -1);
            thread.asleep();
        }
        let mut served = 0;
        clients[..calls].iter().for_each(|client| client.write(oneway(0)));
        let mut busy = [true; 2];
        manager.until("the calls to be served", || {
            for (index, (thread, epoll)) in waiting.iter().enumerate() {
                if !busy[index] || !thread.is_done() {
                    continue;
                }
                epoll.told(thread);
                busy[index] = false;
                while let Some(got) = thread.read().received.first() {
                    thread.write(free(got.transaction.buffer));
                    served += 1;
                }
            }
            served == calls
        });
        clients[..calls].iter().for_each(|client| {
            client.reads("NOOP TRANSACTION_COMPLETE");
        });
        // Threads that still wait are woken by one more call, which another thread reads.
        while busy.contains(&true) {
            clients[0].write(oneway(0));
            manager.until("a thread to wake", || {
                waiting.iter().enumerate().any(|(i, (thread, _))| busy[i] && thread.is_done())
            });
            for (index, (thread, epoll)) in waiting.iter().enumerate() {
                if busy[index] && thread.is_done() {
                    epoll.told(thread);
                    busy[index] = false;
                    drain(thread);
                }
            }
            clients[0].reads("NOOP TRANSACTION_COMPLETE");
        }
    }
}

/// Another thread waits before this one for the same file, and cannot take work that is this one's.
fn a_thread_behind_an_exclusive_epoll_hears_of_its_reply(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process_with(3);
    let waiting: Vec<_> = client
        .threads
        .iter()
        .map(|thread| {
            thread.reads("NOOP");
            (thread, Epoll::of(thread, EXCLUSIVE))
        })
        .collect();
    for (thread, epoll) in &waiting[..2] {
        epoll.begin_wait(thread, -1);
        thread.asleep();
    }
    let (last, epoll) = &waiting[2];
    for _ in 0..ROUNDS {
        last.write(call(0));
        epoll.begin_wait(last, -1);
        last.asleep();
        let got = manager.receive();
        manager.write([free(got.transaction.buffer), reply().into()]);
        manager.reads("NOOP TRANSACTION_COMPLETE");
        epoll.told(last);
        let answer = last.waits("NOOP TRANSACTION_COMPLETE REPLY");
        last.write(free(answer.transaction().buffer));
    }
    assert!(waiting[..2].iter().all(|(thread, _)| !thread.is_done()), "nothing came for them");
}

fn an_epoll_in_an_epoll_tells_each_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    for events in [IN, EDGE] {
        let inner = Epoll::of(&manager, events);
        let outer = Epoll::new(&manager);
        outer.control(&manager, libc::EPOLL_CTL_ADD, inner.0, events);
        for _ in 0..ROUNDS {
            outer.begin_wait(&manager, -1);
            manager.asleep();
            post(&client);
            outer.told(&manager);
            inner.waits(&manager);
            drain(&manager);
            inner.is_silent(&manager);
            outer.is_silent(&manager);
        }
    }
}

/// The thread's number then belongs to a new thread, which finds something to read at once.
fn a_thread_that_exits_ends_its_epoll(scene: &Scene) {
    let process = idle(scene);
    let epoll = Epoll::of(&process, EDGE);
    epoll.is_silent(&process);
    process.thread_exit();
    epoll.waits(&process);
    process.reads("NOOP");
}

fn io_uring_polls_once(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let uring = Uring::new(&manager);
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            uring.poll(false);
            uring.look();
            assert!(uring.completed().is_empty());
            uring.begin_wait();
            manager.asleep();
            post(&client);
        } else {
            post(&client);
            uring.poll(false);
            uring.begin_wait();
        }
        assert_eq!(manager.finish(), 0);
        assert_eq!(uring.completed(), [i32::from(libc::POLLIN)]);
        drain(&manager);
    }
}

fn io_uring_polls_until_it_is_taken_back(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let uring = Uring::new(&manager);
    uring.poll(true);
    for _ in 0..ROUNDS {
        uring.look();
        assert!(uring.completed().is_empty());
        uring.begin_wait();
        manager.asleep();
        post(&client);
        assert_eq!(manager.finish(), 0);
        assert_eq!(uring.completed(), [i32::from(libc::POLLIN)]);
        drain(&manager);
    }
}

/// The epoll instance was closed: calls go on, and another poll begins like the first one.
fn nobody_polls_any_more(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    for _ in 0..2 {
        let epoll = Epoll::of(&manager, EDGE);
        epoll.is_silent(&manager);
        assert_eq!(manager.syscall(libc::SYS_close, &[epoll.0]), Ok(0));
        for _ in 0..20 {
            post(&client);
            drain(&manager);
        }
    }
    let epoll = Epoll::of(&manager, EDGE);
    for _ in 0..ROUNDS {
        post(&client);
        epoll.waits(&manager);
        drain(&manager);
    }
}

/// A thread waits in poll(2), another one in an edge-triggered epoll: both hear of each call.
fn mixed_polls_of_one_file(scene: &Scene) {
    let manager = scene.manager_with(2, 0);
    let client = scene.process();
    let (polls, waits) = (&manager.threads[0], &manager.threads[1]);
    waits.reads("NOOP");
    let epoll = Epoll::of(waits, EDGE);
    for _ in 0..ROUNDS {
        polls.begin_poll(-1);
        epoll.begin_wait(waits, -1);
        polls.asleep();
        waits.asleep();
        post(&client);
        assert_eq!(polls.finish(), 1);
        epoll.told(waits);
        drain(polls);
        assert!(!polls.polls());
        epoll.is_silent(waits);
    }
}
