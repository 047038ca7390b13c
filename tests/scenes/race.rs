//! Races: what others do at the moments when the engine holds no lock, because it copies.

use crate::support::*;
use fakebinder::alloc::BufferRequest;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::IntoBytes;
use fakebinder::protocol::record::{HandleCookie, TransactionData, WriteRead};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{MAPPING, Pending, Sim, SimThread, World};
use std::sync::Barrier;

/// A message whose copying sets something off.
fn trapped(sim: &Sim, handle: u32, happens: impl FnOnce() + Send + 'static) -> TransactionData {
    let data = sim.message(handle, 1, b"while this is copied", &[binder(0x90)]);
    sim.arena.trap(data.buffer, happens);
    data
}

/// A read whose delivery sets something off.
fn trapped_read(thread: SimThread<'_>, happens: impl FnOnce() + Send + 'static) -> Pending {
    let read_buffer = thread.sim.arena.push(&[0; 256]);
    // Behind BR_NOOP, with which the buffer is tried first.
    thread.sim.arena.trap(read_buffer + 20, happens);
    thread.write_read(WriteRead { read_size: 256, read_buffer, ..Default::default() })
}

fn thread_exit(thread: SimThread<'_>) -> impl FnOnce() + Send + use<> {
    thread.ioctl_later(uapi::BINDER_THREAD_EXIT, &[0; 4])
}

fn release(sim: &Sim) -> impl FnOnce() + Send + use<> {
    let process = sim.process.clone();
    move || drop(process.release())
}

#[test]
fn a_target_that_dies_while_a_call_is_copied_is_dead() {
    for flags in [0, uapi::TF_ONE_WAY] {
        let Pair { world, manager, client } = pair();
        let mut data = trapped(&client, 0, release(&manager));
        data.flags = flags;
        client.main().write(&[Command::Transaction(data)]);
        assert_eq!(error(client.main()), (uapi::BR_DEAD_REPLY, 0));
        assert_eq!(client.main().drain(), [Return::DeadReply]);
        end(&world, [client, manager]);
    }
}

#[test]
fn a_target_that_is_frozen_while_a_call_is_copied_is_frozen() {
    for (flags, told) in
        [(0, Return::FrozenReply), (uapi::TF_ONE_WAY, Return::TransactionPendingFrozen)]
    {
        let Pair { world, manager, client } = pair();
        let by = open(&world, 300);
        let arg = [100_u32, 1, 0].map(u32::to_ne_bytes).concat();
        let mut data = trapped(&client, 0, by.main().ioctl_later(uapi::BINDER_FREEZE, &arg));
        data.flags = flags;
        client.main().write(&[Command::Transaction(data)]);
        assert!(client.main().drain().contains(&told));
        end(&world, [client, manager, by]);
    }
}

/// The handle goes, the node it stood for stays for the call.
#[test]
fn a_handle_that_goes_while_a_call_is_copied_was_good_enough() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    let mut commands = Vec::new();
    Command::Release(held).encode(&mut commands);
    let write = WriteRead {
        write_size: commands.len() as u64,
        write_buffer: manager.arena.push(&commands),
        ..Default::default()
    };
    let let_go = manager.thread(101).ioctl_later(uapi::BINDER_WRITE_READ, write.as_bytes());
    let data = one_way(trapped(&manager, held, let_go));
    manager.main().write(&[Command::Transaction(data)]);
    assert_eq!(world.stats().references, 1, "only what the message brings");
    let received = take(client.main());
    assert_eq!(received.target, 0x10);
    free(&client, &received);
    let own = node(0x10);
    assert_eq!(client.main().drain(), [Return::Release(own), Return::Decrefs(own)]);
    end(&world, [client, manager]);
}

#[test]
fn a_sender_that_is_released_while_its_call_is_copied_leaves_nothing() {
    for flags in [0, uapi::TF_ONE_WAY] {
        let Pair { world, manager, client } = pair();
        let mut data = trapped(&client, 0, release(&client));
        data.flags = flags;
        let (result, _) = client.main().try_write(&[Command::Transaction(data)]);
        assert_eq!(result, Ok(0));
        assert_eq!(manager.main().drain(), []);
        assert_eq!(manager.alloc.allocated_count(), 0);
        end(&world, [client, manager]);
    }
}

#[test]
fn a_caller_that_dies_while_its_answer_is_copied_is_not_answered() {
    for whole_process in [true, false] {
        let Pair { world, manager, client } = pair();
        let calling = call(client.main(), 0, 1, b"");
        take(manager.main());
        let data = match whole_process {
            true => trapped(&manager, 0, release(&client)),
            false => trapped(&manager, 0, thread_exit(client.main())),
        };
        manager.main().write(&[Command::Reply(data)]);
        assert!(!calling.is_blocked());
        assert!(manager.main().drain().contains(&Return::TransactionComplete));
        assert_eq!((client.alloc.allocated_count(), world.stats().references), (0, 0));
        end(&world, [client, manager]);
    }
}

/// Its tables are gone when the objects of the answer are translated: that is no fault of the
/// answer's.
#[test]
fn a_server_that_is_released_while_its_answer_is_copied_answers_with_dead_reply() {
    for own in [true, false] {
        let Pair { world, manager, client } = pair();
        let held = offer(&client, &manager, 0x10);
        let calling = call(client.main(), 0, 1, b"");
        take(manager.main());
        let object = if own { binder(0x90) } else { handle(held) };
        let data = manager.message(0, 1, b"while this is copied", &[object]);
        manager.arena.trap(data.buffer, release(&manager));
        let _ = manager.main().try_write(&[Command::Reply(data)]);
        assert_eq!(news(&calling).last(), Some(&Return::DeadReply), "own: {own}");
        end(&world, [client, manager]);
    }
}

/// The server is gone when its transaction has just been written to it.
#[test]
fn a_server_that_dies_while_a_call_is_written_to_it_answers_with_dead_reply() {
    for whole_process in [true, false] {
        let Pair { world, manager, client } = pair();
        introduce(manager.main());
        let reading = match whole_process {
            true => trapped_read(manager.main(), release(&manager)),
            false => trapped_read(manager.main(), thread_exit(manager.main())),
        };
        assert!(reading.is_blocked());
        let calling = call(client.main(), 0, 1, b"");
        assert_eq!(news(&calling), [Return::TransactionComplete, Return::DeadReply]);
        end(&world, [client, manager]);
    }
}

#[test]
fn a_server_that_dies_while_a_one_way_call_is_written_to_it_leaves_nothing() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    trapped_read(manager.main(), release(&manager));
    assert_eq!(post(client.main(), 0, 1, b""), [Return::TransactionComplete]);
    assert_eq!(world.stats().transactions, 0);
    end(&world, [client, manager]);
}

/// It has the call, but nobody to answer to.
#[test]
fn a_caller_that_dies_while_its_call_is_written_leaves_the_call() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    let reading = trapped_read(manager.main(), release(&client));
    let data = client.message(0, 6, b"", &[]);
    client.main().write(&[Command::Transaction(data)]);
    assert_eq!(transaction(&reading).code, 6);
    let done = answer(manager.main().nonblock(), b"");
    assert_eq!(news(&done), [Return::TransactionComplete]);
    end(&world, [client, manager]);
}

#[test]
fn a_caller_that_dies_while_its_answer_is_written_to_it_leaves_nothing() {
    let Pair { world, manager, client } = pair();
    client.main().write(&[Command::Transaction(client.message(0, 1, b"", &[]))]);
    take(manager.main());
    trapped_read(client.main(), release(&client));
    let done = answer(manager.main().nonblock(), b"");
    assert_eq!(news(&done), [Return::TransactionComplete]);
    end(&world, [client, manager]);
}

/// On the FUSE door the daemon looks for a client's mapping when the first transaction comes. Of
/// two that come first, none may find the client without one.
#[test]
fn two_first_transactions_both_find_the_mapping() {
    for _ in 0..300 {
        let world = World::default();
        let client = world.open_unmapped("binder", 100);
        client.mm.mmap(MAPPING, 4 << 20);
        let start = Barrier::new(2);
        let send = || {
            start.wait();
            client.alloc.alloc_new_buf(&BufferRequest {
                data_size: 8,
                offsets_size: 0,
                extra_buffers_size: 0,
                is_async: false,
                pid: 200,
            })
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(send);
            let results = [send(), other.join().unwrap()];
            assert!(results.iter().all(Result::is_ok), "{results:?}");
        });
    }
}

#[test]
fn a_pid_that_is_not_found_any_more_is_released_to_the_end() {
    const NODES: u32 = 300;
    let Pair { world, manager, client } = pair();
    let nodes: Vec<_> = (1..=NODES).map(|index| binder(u64::from(index) * 16)).collect();
    post_with(client.main(), 0, &nodes);
    take(manager.main());
    let request = |handle: u32| {
        Command::RequestDeathNotification(HandleCookie { handle, cookie: handle.into() })
    };
    manager.main().write(&(1..=NODES).map(request).collect::<Vec<_>>());
    manager.main().drain();
    let info = [200_u32, 0, 0].map(u32::to_ne_bytes).concat();
    let frozen_info = || manager.main().call(uapi::BINDER_GET_FROZEN_INFO, &info);
    assert!(frozen_info().is_ok());
    std::thread::scope(|scope| {
        scope.spawn(release(&client));
        while frozen_info().is_ok() {}
        let told = manager.main().drain();
        let dead = told.iter().filter(|told| matches!(told, Return::DeadBinder(_))).count();
        assert_eq!(dead, NODES as usize);
    });
    end(&world, [client, manager]);
}
