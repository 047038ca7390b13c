//! Threads of one process: those that call, wait or poll.

use crate::records::{again, make_room};
use crate::support::*;
use crate::{Row, all, one};
use fakebinder::uapi;
use fakebinder_sim::{Pending, Sim, World};

pub const ROWS: &[Row] = &[
    one("an ioctl of a thread among n", |n| {
        let (_, sim) = threads(n);
        let tid = sim.pid + n as i32 / 2;
        again(move || introduce(sim.thread(tid)))
    }),
    one("a new thread among n, and its end", |n| {
        let (_, sim) = threads(n);
        let tid = sim.pid + n as i32 + 100;
        again(move || {
            introduce(sim.thread(tid));
            sim.thread(tid).call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
        })
    }),
    one("a call to a process of which n threads wait", |n| {
        let Pair { manager, client, .. } = pair();
        let mut waiting = wait(&manager, n);
        // The latest to wait is the first to be woken.
        let server = manager.pid + n as i32;
        again(move || {
            let asking = call(client.main(), 0, 0, b"");
            let received = transaction(&waiting.pop().unwrap());
            answer(manager.thread(server), b"");
            waiting.push(manager.thread(server).read());
            free(&manager, &received);
            free(&client, &reply(&asking));
        })
    }),
    one("a signal for one of n threads that wait", |n| {
        let (_, sim) = threads(n);
        let mut waiting = wait(&sim, n).into_iter();
        again(move || {
            let read = waiting.next().unwrap();
            read.interrupt();
            assert!(!read.is_blocked());
        })
    }),
    all("a signal for each of n threads that wait, the first first", |n| {
        let (_, sim) = threads(n);
        let waiting = wait(&sim, n);
        Box::new(move || waiting.iter().for_each(Pending::interrupt))
    }),
    all("a flush of n threads that wait", |n| {
        let (_, sim) = threads(n);
        let waiting = wait(&sim, n);
        Box::new(move || {
            sim.process.flush();
            assert!(waiting.iter().all(|read| !read.is_blocked()));
        })
    }),
    one("a notice to n threads that poll", |n| {
        let Pair { manager, client, .. } = pair();
        for tid in 1..=n as i32 {
            manager.thread(manager.pid + tid).poll();
        }
        again(move || {
            post(client.main(), 0, 0, b"");
            let received = take(manager.main());
            free(&manager, &received);
        })
    }),
    all("n threads come, with new ids, and go", |n| {
        let (_, sim) = threads(1);
        Box::new(move || {
            for tid in 0..n as i32 {
                introduce(sim.thread(10_000 + tid));
                sim.thread(10_000 + tid).call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
            }
        })
    }),
    all("n threads call for the first time", |n| {
        let (_, sim) = threads(1);
        Box::new(move || (0..n as i32).for_each(|tid| introduce(sim.thread(10_000 + tid))))
    }),
];

/// A process of which n threads have called.
pub fn threads(n: usize) -> (World, Sim) {
    let world = World::default();
    let sim = open(&world, 100);
    (1..=n as i32).for_each(|tid| introduce(sim.thread(sim.pid + tid)));
    make_room(&sim);
    (world, sim)
}

/// n threads that wait in a read, the last of them the latest.
pub fn wait(sim: &Sim, n: usize) -> Vec<Pending> {
    let waits = |tid| {
        let read = sim.thread(sim.pid + tid).enter_looper();
        assert!(read.is_blocked());
        read
    };
    let waiting = (1..=n as i32).map(waits).collect();
    make_room(sim);
    waiting
}
