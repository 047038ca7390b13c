//! Clients of one context, and of one pid.

use crate::records::{again, freeze, offer_many};
use crate::support::*;
use crate::{Row, all, one};
use fakebinder::uapi;
use fakebinder_sim::{Pending, Sim, World};

pub const ROWS: &[Row] = &[
    one("open and end a client among n", |n| {
        let (world, _clients) = crowd(n);
        again(move || {
            let sim = open(&world, 7);
            sim.release();
            let _ = &_clients;
        })
    }),
    one("a one-way call between two of n clients", |n| {
        let Pair { world, manager, client } = pair();
        let others: Vec<Sim> = (0..n as i32).map(|pid| open(&world, 1_000 + pid)).collect();
        again(move || {
            post(client.main(), 0, 0, b"");
            let received = take(manager.main());
            free(&manager, &received);
            let _ = &others;
        })
    }),
    one("freeze and thaw one of n clients", |n| {
        let (_world, clients) = crowd(n);
        again(move || {
            freeze(&clients[0], clients[n / 2].pid, 1);
            freeze(&clients[0], clients[n / 2].pid, 0);
        })
    }),
    all("freeze a process with n open files", |n| {
        let world = World::default();
        let files: Vec<Sim> = (0..n).map(|_| open(&world, 100)).collect();
        Box::new(move || freeze(&files[0], 100, 1))
    }),
    one("a signal for one of n callers that wait to freeze a process", |n| {
        let mut waiting = freezers(n).1.into_iter().skip(n / 2);
        again(move || {
            let caller = waiting.next().unwrap();
            caller.interrupt();
            assert!(!caller.is_blocked());
        })
    }),
    all("n callers that wait to freeze a process give up", |n| {
        let (world, waiting) = freezers(n);
        Box::new(move || {
            assert_eq!(world.timers.fire_all(), n);
            assert!(waiting.iter().all(|caller| !caller.is_blocked()));
        })
    }),
    all("n clients end, one after the other", |n| {
        let (_world, clients) = crowd(n);
        let mut clients = Some(clients);
        Box::new(move || clients.take().into_iter().flatten().for_each(Sim::release))
    }),
    all("n clients that hold a node of a process hear of its death", |n| {
        let (owner, waiting) = watchers(n);
        let mut owner = Some(owner);
        Box::new(move || {
            owner.take().into_iter().for_each(Sim::release);
            assert!(waiting.iter().all(|(_, read)| !read.is_blocked()));
        })
    }),
    all("list the pids of n clients, some at a time", |n| {
        let (world, _clients) = crowd(n);
        Box::new(move || {
            let (mut least, mut listed) = (0, 0);
            while let Some(last) = {
                let some = world.binder.pids_from(least, 50);
                listed += some.len();
                some.last().copied()
            } {
                least = last + 1;
            }
            assert_eq!(listed, n);
        })
    }),
    one("whether a process has a device open, among n", |n| {
        let (world, clients) = crowd(n);
        again(move || assert!(world.binder.has_open(clients[n / 2].pid)))
    }),
    all("the statistics of n clients, as text", |n| {
        let (world, _clients) = crowd(n);
        Box::new(move || assert!(world.binder.log_stats().lines().count() > n))
    }),
    one("the state of one of n clients, as text", |n| {
        let (world, clients) = crowd(n);
        Box::new(move || assert!(world.binder.log_process(clients[n / 2].pid).is_some()))
    }),
];

fn crowd(n: usize) -> (World, Vec<Sim>) {
    let world = World::default();
    let clients = (0..n as i32).map(|pid| open(&world, 1_000 + pid)).collect();
    (world, clients)
}

/// n callers that wait to freeze a process that has a call to answer.
fn freezers(n: usize) -> (World, Vec<Pending>) {
    let Pair { world, manager, client } = pair();
    assert!(call(client.main(), 0, 0, b"").is_blocked());
    let arg = [manager.pid as u32, 1, 1_000].map(u32::to_ne_bytes).concat();
    let waits = |tid| {
        introduce(client.thread(1_000 + tid));
        let caller = client.thread(1_000 + tid).ioctl(uapi::BINDER_FREEZE, &arg);
        assert!(caller.is_blocked());
        caller
    };
    let waiting = (0..n as i32).map(waits).collect();
    std::mem::forget((manager, client));
    (world, waiting)
}

/// n clients that wait for the death of a process, whose node they hold.
fn watchers(n: usize) -> (Sim, Vec<(Sim, Pending)>) {
    let Pair { world, manager, client } = pair();
    let held = offer_many(&client, &manager, 1)[0];
    let watch = |pid| {
        let sim = open(&world, 1_000 + pid);
        let found = look_up(&sim, &manager, held);
        sim.main().write(&[crate::records::request_death(found)]);
        let read = sim.main().read();
        assert!(read.is_blocked());
        (sim, read)
    };
    let waiting = (0..n as i32).map(watch).collect();
    (client, waiting)
}
