//! Limits: what one client may make the driver hold. The excess is refused to that client, and
//! everybody else goes on.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::binder::Limits;
use fakebinder::memory::MemoryConfig;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{BufferObject, FdArrayObject, FlatObject, Object};
use fakebinder::protocol::record::HandleCookie;
use fakebinder::protocol::returns::Return;
use fakebinder::quota::{User, UserLimits, What};
use fakebinder::uapi;
use fakebinder_sim::{Sim, SimFile, World};
use std::sync::Arc;

/// A manager that accepts descriptors, a client that will go too far, and one that will not.
struct Crowd {
    pair: Pair,
    modest: fakebinder_sim::Sim,
}

fn crowd(limits: Limits) -> Crowd {
    let world = World::with_limits(MemoryConfig::default(), limits);
    let manager = world.open(100);
    let flags = uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS;
    let mut object = Vec::new();
    let flat = FlatObject { flags, ..Default::default() };
    Object::Binder { strong: true, flat }.encode(&mut object);
    manager.main().call(uapi::BINDER_SET_CONTEXT_MGR_EXT, &object).unwrap();
    let client = open(&world, 200);
    let modest = open(&world, 300);
    Crowd { pair: Pair { world, manager, client }, modest }
}

impl Crowd {
    /// The modest client is served, and everybody leaves.
    #[track_caller]
    fn end(self) {
        let Crowd { pair: Pair { world, manager, client }, modest } = self;
        while let Some(Return::Transaction(data)) = manager.main().drain().pop() {
            free(&manager, &data);
        }
        let calling = call_with(modest.main(), 0, &[binder(0x77)]);
        take(manager.main());
        answer(manager.main().nonblock(), b"served");
        assert_eq!(modest.data(&reply(&calling)), b"served");
        end(&world, [client, manager, modest]);
    }
}

#[test]
fn too_many_threads_are_enomem() {
    let crowd = crowd(Limits { threads: 8, ..Limits::default() });
    let client = &crowd.pair.client;
    for tid in 201..208 {
        introduce(client.thread(tid));
    }
    let version = client.thread(208).call(uapi::BINDER_VERSION, &[0; 4]);
    assert_eq!(version, Err(Errno::ENOMEM));
    assert!(client.process.poll(208, None).0.is_err());
    client.thread(205).call(uapi::BINDER_THREAD_EXIT, &[0; 4]).unwrap();
    introduce(client.thread(208));
    crowd.end();
}

#[test]
fn too_many_nodes_are_enomem() {
    let crowd = crowd(Limits { nodes: 8, ..Limits::default() });
    let Pair { manager, client, .. } = &crowd.pair;
    let objects: Vec<Object> = (1..=8).map(|ptr| binder(ptr * 16)).collect();
    let data = one_way(client.message(0, 1, b"", &objects));
    client.main().write(&[Command::Transaction(data)]);
    assert!(client.main().drain().contains(&Return::TransactionComplete));
    assert_eq!(post_with(client.main(), 0, &[binder(0x990)]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::ENOMEM));
    // A node that is known already is no further one.
    assert_eq!(post_with(client.main(), 0, &[binder(0x10)]), [Return::TransactionComplete]);
    take(manager.main());
    crowd.end();
}

/// The receiver is full: what fails is the transaction that would bring it more.
#[test]
fn too_many_references_are_enomem() {
    let crowd = crowd(Limits { refs: 8, ..Limits::default() });
    let Pair { world, manager, client } = &crowd.pair;
    let objects: Vec<Object> = (1..=8).map(|ptr| binder(ptr * 16)).collect();
    let data = one_way(client.message(0, 1, b"", &objects));
    client.main().write(&[Command::Transaction(data)]);
    assert!(client.main().drain().contains(&Return::TransactionComplete));
    let before = world.stats();
    let told = post_with(client.main(), 0, &[binder(0x10), binder(0x990)]);
    assert_eq!((told, world.stats()), (vec![Return::FailedReply], before));
    assert_eq!(error(client.main()), failed(Errno::ENOMEM));
    let received = take(manager.main());
    free(manager, &received);
    crowd.end();
}

#[test]
fn too_many_references_of_ones_own_are_not_counted() {
    let crowd = crowd(Limits { refs: 1, ..Limits::default() });
    let Pair { world, manager, client } = &crowd.pair;
    let held = offer(client, manager, 0x10);
    let before = world.stats();
    manager.main().write(&[Command::Transaction(one_way(manager.message(
        held,
        1,
        b"",
        &[handle(held), binder(0x20)],
    )))]);
    assert_eq!(world.stats().references, before.references + 1, "the client's first");
    take(client.main());
    client.main().write(&[Command::Acquire(0)]);
    assert_eq!(world.stats().references, before.references + 1, "not a second");
    manager.main().write(&[Command::Release(held)]);
    manager.main().drain();
    crowd.end();
}

#[test]
fn too_many_death_notifications_read_br_error() {
    let crowd = crowd(Limits { links: 2, ..Limits::default() });
    let Pair { world, manager, client } = &crowd.pair;
    let held: Vec<u32> = (1..=3).map(|ptr| offer(client, manager, ptr * 16)).collect();
    let request = |handle| HandleCookie { handle, cookie: handle.into() };
    for handle in &held[..2] {
        manager.main().write(&[Command::RequestDeathNotification(request(*handle))]);
    }
    let third = Command::RequestDeathNotification(request(held[2]));
    let (result, consumed) = manager.main().try_write(&[third, Command::EnterLooper]);
    assert_eq!((result, consumed), (Ok(0), 16), "what is behind it waits");
    assert_eq!(manager.main().drain(), [Return::Error]);
    assert_eq!(world.stats().deaths, 2);
    // Cleared, and the confirmation read, it is one less.
    manager.main().write(&[Command::ClearDeathNotification(request(held[0]))]);
    assert_eq!(manager.main().drain(), [Return::ClearDeathNotificationDone(held[0].into())]);
    manager.main().write(&[third]);
    assert_eq!((manager.main().drain(), world.stats().deaths), (vec![], 2));
    crowd.end();
}

#[test]
fn too_many_freeze_notifications_are_enomem() {
    let crowd = crowd(Limits { links: 2, ..Limits::default() });
    let Pair { world, manager, client } = &crowd.pair;
    let held: Vec<u32> = (1..=3).map(|ptr| offer(client, manager, ptr * 16)).collect();
    let request = |handle| {
        Command::RequestFreezeNotification(HandleCookie { handle, cookie: u64::from(handle) })
    };
    manager.main().write(&[request(held[0]), request(held[1])]);
    assert_eq!(manager.main().try_write(&[request(held[2])]), (Err(Errno::ENOMEM), 0));
    assert_eq!(world.stats().freezes, 2);
    manager.main().write(&[Command::Release(held[0]), request(held[2])]);
    assert_eq!(world.stats().freezes, 2);
    manager.main().write(&[Command::Release(held[1]), Command::Release(held[2])]);
    crowd.end();
}

/// A thread that sends on and on and never reads what became of it.
#[test]
fn too_many_returns_that_nobody_reads_are_enomem() {
    let crowd = crowd(Limits { thread_todo: 8, ..Limits::default() });
    let Pair { manager, client, .. } = &crowd.pair;
    for code in 0..8 {
        let data = one_way(client.message(0, code, b"", &[]));
        client.main().write(&[Command::Transaction(data)]);
        let received = take(manager.main());
        free(manager, &received);
    }
    let data = one_way(client.message(0, 9, b"", &[]));
    client.main().write(&[Command::Transaction(data)]);
    assert_eq!(error(client.main()), failed(Errno::ENOMEM));
    let mut told = vec![Return::TransactionComplete; 8];
    told.push(Return::FailedReply);
    assert_eq!(client.main().drain(), told);
    assert_eq!(post(client.main(), 0, 1, b""), [Return::TransactionComplete]);
    crowd.end();
}

#[test]
fn too_many_descriptors_in_a_transaction_are_einval() {
    let crowd = crowd(Limits { files_per_transaction: 4, ..Limits::default() });
    let Pair { manager, client, .. } = &crowd.pair;
    client.add_file(3, SimFile(1));
    assert_eq!(post_with(client.main(), 0, &[fd(3); 5]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EINVAL));
    // In an array as well.
    let parent = BufferObject {
        buffer: client.arena.push(&[3, 0, 0, 0].repeat(5)),
        length: 20,
        ..Default::default()
    };
    let array = FdArrayObject { num_fds: 5, ..Default::default() };
    let objects = [Object::Buffer(parent), Object::FdArray(array)];
    let data = one_way(client.message(0, 1, b"iface:::", &objects));
    client.main().write(&[Command::TransactionSg(data, 24)]);
    assert_eq!(client.main().drain(), [Return::FailedReply]);
    assert_eq!(post_with(client.main(), 0, &[fd(3); 4]), [Return::TransactionComplete]);
    take(manager.main());
    crowd.end();
}

#[test]
fn too_many_descriptors_on_their_way_are_emfile() {
    let crowd = crowd(Limits { files_in_flight: 4, ..Limits::default() });
    let Pair { manager, client, .. } = &crowd.pair;
    client.add_file(3, SimFile(1));
    assert_eq!(post_with(client.main(), 0, &[fd(3); 3]), [Return::TransactionComplete]);
    assert_eq!(post_with(client.main(), 0, &[fd(3); 2]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::EMFILE));
    assert_eq!(post_with(client.main(), 0, &[fd(3)]), [Return::TransactionComplete]);
    let received = take(manager.main());
    free(manager, &received);
    assert_eq!(post_with(client.main(), 0, &[fd(3); 3]), [Return::TransactionComplete]);
    crowd.end();
}

/// What never arrives is not on its way any more.
#[test]
fn descriptors_that_were_dropped_are_not_counted_as_on_their_way() {
    let crowd = crowd(Limits { files_in_flight: 4, ..Limits::default() });
    let Pair { manager, client, .. } = &crowd.pair;
    client.add_file(3, SimFile(1));
    for _ in 0..3 {
        let calling = call_with(client.thread(201), 0, &[fd(3); 4]);
        drop(calling);
        manager.limit_files(0);
        assert_eq!(manager.main().drain(), []);
        client.thread(201).drain();
    }
    crowd.end();
}

#[test]
fn the_limits_are_generous_unless_told_otherwise() {
    let limits = Limits::default();
    assert!(limits.threads >= 10_000 && limits.nodes >= 100_000 && limits.refs >= 100_000);
    assert!(limits.links >= limits.refs, "one for every reference");
    assert!(limits.files_per_transaction <= limits.files_in_flight);
}

/// A user whose records are limited.
fn user(what: What, most: usize) -> Arc<User> {
    let mut limits = UserLimits::NONE;
    limits.set(what, most);
    User::with_limits(limits)
}

fn open_for(world: &World, user: &Arc<User>, pid: i32) -> Sim {
    let sim = world.open_for(user.clone(), "binder", pid);
    sim.mmap(128 << 10).unwrap();
    introduce(sim.main());
    sim
}

#[test]
fn records_are_counted_over_all_files_of_a_user_and_given_back() {
    let crowd = crowd(Limits::default());
    let world = &crowd.pair.world;
    let user = user(What::Records, 40);
    let (first, second) = (open_for(world, &user, 400), open_for(world, &user, 500));
    let offers = |sim: &Sim, ptr: u64| post_with(sim.main(), 0, &[binder(ptr)]);
    let sent = |returns: Vec<Return>| returns.contains(&Return::TransactionComplete);
    let made = (1..100).take_while(|n| sent(offers(&first, n * 16)));
    let made = made.count();
    assert!((10..40).contains(&made), "{made} nodes");
    assert_eq!(error(first.main()), failed(Errno::ENOMEM));
    assert_eq!(offers(&second, 16), [Return::FailedReply]);
    assert_eq!(error(second.main()), failed(Errno::ENOMEM));
    assert!(user.held(What::Records) > 35);
    // Threads are records, too.
    let asks = |tid| second.thread(tid).call(uapi::BINDER_VERSION, &[0; 4]);
    assert!((501..506).any(|tid| asks(tid) == Err(Errno::ENOMEM)));
    first.process.release();
    let free_all = || {
        while let Some(Return::Transaction(data)) = crowd.pair.manager.main().drain().pop() {
            free(&crowd.pair.manager, &data);
        }
    };
    // What others still hold of a user is the user's.
    free_all();
    assert!(sent(offers(&second, 16)));
    second.process.release();
    free_all();
    crowd.end();
    assert_eq!(user.held(What::Records), 0);
}

#[test]
fn one_way_bytes_that_nobody_has_read_are_counted_for_their_sender() {
    let crowd = crowd(Limits::default());
    let Pair { world, manager, .. } = &crowd.pair;
    let user = user(What::OnewayBytes, 1000);
    let client = open_for(world, &user, 400);
    assert_eq!(post(client.main(), 0, 1, &[0; 600]), [Return::TransactionComplete]);
    assert_eq!(user.held(What::OnewayBytes), 600);
    assert_eq!(post(client.main(), 0, 1, &[0; 600]), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::ENOMEM));
    // The calls of others, and those that somebody waits for, are not concerned.
    assert_eq!(post(crowd.modest.main(), 0, 1, &[0; 600]), [Return::TransactionComplete]);
    for _ in 0..2 {
        free(manager, &take(manager.main()));
    }
    assert_eq!(user.held(What::OnewayBytes), 0);
    assert_eq!(post(client.main(), 0, 1, &[0; 600]), [Return::TransactionComplete]);
    client.process.release();
    crowd.end();
    assert_eq!((user.held(What::OnewayBytes), user.held(What::Records)), (0, 0));
}

#[test]
fn pages_are_counted_for_the_user_whose_buffer_they_are_in() {
    let crowd = crowd(Limits::default());
    let user = user(What::Pages, 4);
    let server = open_for(&crowd.pair.world, &user, 400);
    let request = |data_size| fakebinder::alloc::BufferRequest {
        data_size,
        offsets_size: 0,
        extra_buffers_size: 0,
        is_async: false,
        pid: 1,
    };
    let buffer = server.alloc.alloc_new_buf(&request(3 * 4096)).unwrap();
    assert_eq!(user.held(What::Pages), 3);
    assert_eq!(server.alloc.alloc_new_buf(&request(2 * 4096)), Err(Errno::ENOMEM));
    server.alloc.free_buf(&buffer);
    // Pages that are not in use make room.
    let other = open_for(&crowd.pair.world, &user, 500);
    let buffer = other.alloc.alloc_new_buf(&request(4 * 4096)).unwrap();
    assert_eq!(user.held(What::Pages), 4);
    other.alloc.free_buf(&buffer);
    server.process.release();
    other.process.release();
    drop((server, other));
    crowd.end();
    assert_eq!(user.held(What::Pages), 0);
}
