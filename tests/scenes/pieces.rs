//! However much one client has, no section of the lock that all others wait for handles more than a
//! fixed number of records. Counted, not timed, and only in builds that count (debug builds).
#![cfg(debug_assertions)]

use crate::support::*;
use fakebinder::binder::{Context, Stats};
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::{HandleCookie, TransactionData, WriteRead};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{Pending, Sim, World};

/// No section may handle more. (A step of those that are taken at once looks up some ten records.)
const MOST: usize = 3000;

/// What was done, and how much was handled in the longest of its sections.
#[derive(Default)]
struct Sections(Vec<(&'static str, usize)>);

impl Sections {
    fn of<R>(&mut self, what: &'static str, work: impl FnOnce() -> R) -> R {
        Context::longest_section();
        let result = work();
        self.0.push((what, Context::longest_section()));
        result
    }
}

/// With four times as many records the longest sections are the same.
#[track_caller]
fn the_same(few: usize, work: impl Fn(usize) -> Sections) {
    let (some, many) = (work(few), work(4 * few));
    for ((what, some), (_, many)) in some.0.into_iter().zip(many.0) {
        println!("{what}: {some}, {many}");
        // Where a piece begins may differ by a step.
        assert!(many <= some + some / 8 + 16, "{what}: {some} with {few}, {many} with four times");
        assert!(many <= MOST, "{what}: {many} in one section");
    }
}

fn open_wide(world: &World, pid: i32) -> Sim {
    let sim = world.open_unmapped("binder", pid);
    sim.mmap(4 << 20).unwrap();
    introduce(sim.main());
    sim
}

/// A manager and a client with large mappings.
fn wide_pair() -> Pair {
    let world = World::default();
    let manager = open_wide(&world, 100);
    manager.main().become_manager();
    let client = open_wide(&world, 200);
    Pair { world, manager, client }
}

fn list(world: &World) -> usize {
    let own: usize = world.binder.pids().into_iter().map(|pid| own_log(world, pid)).sum();
    own + world.binder.log_state().len()
        + world.binder.log_transactions().len()
        + world.binder.log_stats().len()
}

fn own_log(world: &World, pid: i32) -> usize {
    world.binder.log_process(pid).map_or(0, |log| log.len())
}

fn freeze(by: &Sim, pid: i32, enable: u32) {
    let arg = [pid as u32, enable, 0].map(u32::to_ne_bytes).concat();
    by.main().call(uapi::BINDER_FREEZE, &arg).unwrap();
}

fn ptr(index: usize) -> u64 {
    0x10 + 0x10 * index as u64
}

/// One message with that many nodes of the client, and what the manager has got.
fn send_nodes(manager: &Sim, client: &Sim, count: usize) -> TransactionData {
    let objects: Vec<_> = (0..count).map(|index| binder(ptr(index))).collect();
    post_with(client.main(), 0, &objects);
    client.main().drain();
    take(manager.main())
}

/// The manager has a strong handle to that many nodes, and the owner has confirmed them. What the
/// handles came in is not freed yet.
fn own_nodes(manager: &Sim, client: &Sim, count: usize) -> (TransactionData, Vec<u32>) {
    let received = send_nodes(manager, client, count);
    let nodes = (0..count).map(|index| node(ptr(index)));
    let done: Vec<_> =
        nodes.flat_map(|node| [Command::IncrefsDone(node), Command::AcquireDone(node)]).collect();
    client.main().write(&done);
    // The manager's own node is handle 0.
    let handles: Vec<u32> = (1..=count as u32).collect();
    let acquire: Vec<_> = handles.iter().map(|handle| Command::Acquire(*handle)).collect();
    manager.main().write(&acquire);
    (received, handles)
}

fn each(handles: &[u32], command: impl Fn(HandleCookie) -> Command) -> Vec<Command> {
    handles.iter().map(|&handle| command(HandleCookie { handle, cookie: handle.into() })).collect()
}

/// Everybody leaves.
fn leave(sections: &mut Sections, world: &World, everybody: impl IntoIterator<Item = Sim>) {
    sections.of("everybody is released", || everybody.into_iter().for_each(Sim::release));
    assert_eq!(world.stats(), Stats::default(), "something was left behind");
}

#[test]
fn nodes_references_and_links_are_made_listed_frozen_and_released_in_pieces() {
    the_same(5000, |count| {
        let mut sections = Sections::default();
        let Pair { world, manager, client } = wide_pair();
        let (message, handles) =
            sections.of("nodes are offered", || own_nodes(&manager, &client, count));
        sections.of("what brought them is freed", || free(&manager, &message));
        sections.of("links are made", || {
            manager.main().write(&each(&handles, Command::RequestDeathNotification));
            manager.main().write(&each(&handles, Command::RequestFreezeNotification));
            manager.main().drain();
        });
        let done = each(&handles, |it| Command::FreezeNotificationDone(it.cookie));
        sections.of("notices are acknowledged", || manager.main().write(&done));
        sections.of("all is listed", || assert!(list(&world) > 200 * count));
        sections.of("the owner is frozen", || freeze(&manager, 200, 1));
        sections.of("it is thawed", || freeze(&manager, 200, 0));
        sections.of("all is listed with notices", || list(&world));
        sections.of("the owner is released", || client.release());
        sections.of("all is listed with dead nodes", || list(&world));
        sections.of("deaths are read", || {
            let told = manager.main().drain();
            let dead = told.iter().filter(|told| matches!(told, Return::DeadBinder(_))).count();
            assert_eq!(dead, count);
        });
        let done = each(&handles[..count / 2], |it| Command::DeadBinderDone(it.cookie));
        sections.of("deaths are acknowledged", || manager.main().write(&done));
        leave(&mut sections, &world, [manager]);
        sections
    });
}

/// A million handles may be free below the last one: they are not gone through when that is freed.
#[test]
fn handles_are_freed_in_pieces() {
    the_same(5000, |count| {
        let mut sections = Sections::default();
        let Pair { world, manager, client } = wide_pair();
        let (message, handles) = own_nodes(&manager, &client, count);
        free(&manager, &message);
        let release: Vec<_> = handles.iter().map(|handle| Command::Release(*handle)).collect();
        sections.of("handles are freed", || manager.main().write(&release));
        // Many notices, and a page that has room for many.
        sections.of("the owner reads it", || {
            client.arena.push(&[0; 4096]);
            let read_buffer = client.arena.push(&[0; 8192]).next_multiple_of(4096);
            let (read_size, write_size) = (4096, 0);
            let call = WriteRead { read_size, read_buffer, write_size, ..Default::default() };
            let read = client.main().write_read(call);
            assert!(read.returns().len() > 200);
        });
        leave(&mut sections, &world, [client, manager]);
        sections
    });
}

/// Work that comes to nothing does not keep a read under the lock.
#[test]
fn what_has_nothing_to_tell_is_read_in_pieces() {
    the_same(5000, |count| {
        let mut sections = Sections::default();
        let Pair { world, manager, client } = wide_pair();
        let (message, handles) = own_nodes(&manager, &client, count);
        free(&manager, &message);
        let weak: Vec<_> = handles.iter().map(|handle| Command::Increfs(*handle)).collect();
        manager.main().write(&weak);
        let release: Vec<_> = handles.iter().map(|handle| Command::Release(*handle)).collect();
        manager.main().write(&release);
        // The owner would be told, but before it reads, the nodes are wanted again.
        let objects: Vec<_> = (0..count).map(|index| binder(ptr(index))).collect();
        let again = one_way(client.message(0, 0, b"", &objects));
        client.main().write(&[Command::Transaction(again)]);
        let told = sections.of("nothing is told", || client.main().drain());
        assert_eq!(told, [Return::TransactionComplete]);
        leave(&mut sections, &world, [client, manager]);
        sections
    });
}

#[test]
fn one_way_calls_and_their_buffers_are_queued_listed_and_released_in_pieces() {
    the_same(5000, |count| {
        let mut sections = Sections::default();
        let Pair { world, manager, client } = wide_pair();
        let send = |code: usize| {
            let mut data = one_way(client.message(0, code as u32, b"", &[]));
            data.flags |= uapi::TF_UPDATE_TXN;
            client.main().write(&[Command::Transaction(data)]);
            client.main().drain();
        };
        // The first is with the manager, and the others wait for it.
        send(0);
        let first = take(manager.main());
        freeze(&client, 100, 1);
        sections.of("calls are queued", || (0..count).for_each(send));
        sections.of("one is replaced", || send(count - 1));
        assert_eq!(world.stats().transactions, count);
        freeze(&client, 100, 0);
        sections.of("all is listed", || list(&world));
        sections.of("some are read", || {
            free(&manager, &first);
            for _ in 0..count / 4 {
                let data = take(manager.main());
                free(&manager, &data);
            }
        });
        sections.of("the receiver is released", || manager.release());
        leave(&mut sections, &world, [client]);
        sections
    });
}

/// Two threads call each other, one inside the other's call.
struct Chain {
    world: World,
    manager: Sim,
    client: Sim,
    third: Sim,
    to_third: u32,
    calls: Vec<Pending>,
}

fn chain(depth: usize) -> Chain {
    let Pair { world, manager, client } = wide_pair();
    let third = open(&world, 300);
    let to_third = offer(&third, &manager, 0x30);
    let to_client = offer(&client, &manager, 0x20);
    // Each comes to the thread that waits for the answer to its last one.
    let mut calls = vec![call(client.main(), 0, 1, b"")];
    take(manager.main());
    for _ in 0..depth / 2 {
        calls.push(call(manager.main(), to_client, 2, b""));
        calls.push(call(client.main(), 0, 1, b""));
    }
    Chain { world, manager, client, third, to_third, calls }
}

#[test]
fn nested_calls_are_made_listed_and_released_in_pieces() {
    the_same(2000, |depth| {
        let mut sections = Sections::default();
        let chain = sections.of("calls are nested", || chain(depth));
        let Chain { world, manager, client, third, to_third, calls } = chain;
        let asked = sections.of("another is called", || call(manager.main(), to_third, 3, b""));
        sections.of("all is listed", || list(&world));
        sections.of("the callee is released", || third.release());
        assert_eq!(news(&asked), [Return::TransactionComplete, Return::DeadReply]);
        sections.of("one of the two is released", || manager.release());
        assert!(calls.last().unwrap().ended().is_some(), "the one on top is answered");
        leave(&mut sections, &world, [client]);
        sections
    });
}

/// The threads end one by one, and only then the files.
#[test]
fn threads_leave_nested_calls_in_pieces() {
    the_same(2000, |depth| {
        let mut sections = Sections::default();
        let Chain { world, manager, client, third, calls, .. } = chain(depth);
        let exit = |sim: &Sim| sim.main().call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
        sections.of("one leaves", || exit(&manager));
        sections.of("the other leaves", || exit(&client));
        assert_eq!(world.stats().transactions, 0, "nobody is left to be answered");
        drop(calls);
        leave(&mut sections, &world, [third, manager, client]);
        sections
    });
}

/// One node that very many have links to.
#[test]
fn the_holders_of_a_node_are_told_in_pieces() {
    the_same(300, |count| {
        let mut sections = Sections::default();
        let Pair { world, manager, client } = pair();
        let held = offer(&client, &manager, 0x20);
        let holders: Vec<Sim> = (0..count).map(|index| open(&world, 1000 + index as i32)).collect();
        for holder in &holders {
            let handle = look_up(holder, &manager, held);
            let link = HandleCookie { handle, cookie: 7 };
            holder.main().write(&[
                Command::RequestDeathNotification(link),
                Command::RequestFreezeNotification(link),
            ]);
            holder.main().drain();
            holder.main().write(&[Command::FreezeNotificationDone(7)]);
        }
        sections.of("all is listed", || list(&world));
        sections.of("the owner is frozen", || freeze(&manager, 200, 1));
        for holder in &holders {
            let told = Return::FrozenBinder { cookie: 7, is_frozen: true };
            assert_eq!(holder.main().drain(), [told]);
        }
        sections.of("the owner is released", || client.release());
        for holder in &holders {
            assert_eq!(holder.main().drain(), [Return::DeadBinder(7)]);
        }
        sections.of("all is listed with a dead node", || list(&world));
        leave(&mut sections, &world, holders.into_iter().chain([manager]));
        sections
    });
}

#[test]
fn threads_are_flushed_listed_and_released_in_pieces() {
    the_same(1000, |count| {
        let mut sections = Sections::default();
        let Pair { world, manager, client } = pair();
        let threads = 1000..1000 + count as i32;
        let reads: Vec<_> = threads
            .map(|tid| {
                introduce(client.thread(tid));
                client.thread(tid).read()
            })
            .collect();
        sections.of("all is listed", || list(&world));
        sections.of("they are frozen", || freeze(&manager, 200, 1));
        sections.of("they are flushed", || drop(client.process.flush()));
        assert!(reads.iter().all(|read| read.ended().is_some()));
        sections.of("they are released", || client.release());
        leave(&mut sections, &world, [manager]);
        sections
    });
}
