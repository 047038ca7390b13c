//! An open file: open, mmap, flush, release, O_NONBLOCK.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::memory::MemoryConfig;
use fakebinder::page::MAX_BUFFER_SIZE;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::Object;
use fakebinder::protocol::record::HandleCookie;
use fakebinder::protocol::record::Record;
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{MAPPING, Sim, World};

#[test]
fn two_opens_by_one_process_are_two_processes() {
    let Pair { world, manager, client } = pair();
    let again = open(&world, 200);
    assert_eq!(world.stats().processes, 3);
    client.main().write(&[Command::Acquire(0)]);
    assert_eq!(world.stats().references, 1);

    // The same node under two handles, each in its own table, each told of its death.
    let ping = offer(&again, &manager, 0x10);
    let found = look_up(&client, &manager, ping);
    let calling = call(client.main(), found, 3, b"to my other open");
    let received = take(again.main());
    assert_eq!((received.target, received.sender_pid), (0x10, 200));
    assert!(calling.is_blocked());
    answer(again.main().nonblock(), b"fine");
    assert_eq!(client.data(&reply(&calling)), b"fine");
    end(&world, [client, again, manager]);
}

#[test]
fn a_second_mapping_is_ebusy() {
    let world = World::default();
    let sim = world.open(1);
    assert_eq!(sim.mmap(4096), Err(Errno::EBUSY));
    sim.mm.munmap();
    assert_eq!(sim.mmap(4096), Err(Errno::EBUSY), "even when the first is gone");
    end(&world, [sim]);
}

#[test]
fn a_mapping_is_used_up_to_4_mib() {
    let world = World::default();
    let sim = world.open_unmapped("binder", 1);
    sim.mmap(64 << 20).unwrap();
    assert_eq!((sim.alloc.buffer_size(), MAX_BUFFER_SIZE), (4 << 20, 4 << 20));
    assert_eq!(sim.alloc.free_async_space(), 2 << 20);
    end(&world, [sim]);
}

#[test]
fn a_target_that_unmapped_its_buffer_is_as_good_as_dead() {
    let Pair { world, manager, client } = pair();
    manager.mm.munmap();
    assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::DeadReply]);
    assert_eq!(error(client.main()), (uapi::BR_DEAD_REPLY, -(Errno::ESRCH as i32)));
    end(&world, [client, manager]);
}

/// The FUSE door is not told of an mmap. The client was searched in vain, but has mapped something
/// since, so it is searched once more.
#[test]
fn a_mapping_made_after_a_failed_call_is_found_by_the_next_one() {
    let world = World::default();
    let target = world.open_unmapped("binder", 100);
    target.main().become_manager();
    let client = open(&world, 200);
    for _ in 0..2 {
        assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::DeadReply]);
        assert_eq!(error(client.main()), (uapi::BR_DEAD_REPLY, -(Errno::ESRCH as i32)));
    }
    target.mm.mmap(MAPPING, 128 << 10);
    assert!(call(client.main(), 0, 1, b"").is_blocked());
    end(&world, [client, target]);
}

/// Unless it was something else that went, and its amount of memory stayed the same: then its next
/// ioctl or poll says that it may have more to show.
#[test]
fn a_mapping_that_took_the_place_of_another_is_found_after_the_target_s_next_ioctl_or_poll() {
    let ioctl = |target: &Sim| target.main().write(&[]);
    let poll = |target: &Sim| assert_eq!(target.process.poll(target.pid, None).0, Ok(false));
    for comes_back in [ioctl, poll] {
        let world = World::default();
        let target = world.open_unmapped("binder", 100);
        target.main().become_manager();
        target.mm.mmap_elsewhere(128 << 10);
        let client = open(&world, 200);
        let dead = || assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::DeadReply]);
        dead();
        target.mm.mmap_elsewhere(0);
        target.mm.mmap(MAPPING, 128 << 10);
        dead();
        comes_back(&target);
        assert!(call(client.main(), 0, 1, b"").is_blocked());
        end(&world, [client, target]);
    }
}

#[test]
fn a_target_whose_process_is_gone_is_dead_before_its_file_is_closed() {
    let Pair { world, manager, client } = pair();
    manager.mm.exit();
    assert_eq!(news(&call(client.main(), 0, 1, b"")), [Return::DeadReply]);
    assert_eq!(error(client.main()), (uapi::BR_DEAD_REPLY, -(Errno::ESRCH as i32)));
    end(&world, [client, manager]);
}

#[test]
fn a_target_without_memory_fails_only_that_transaction() {
    let world = World::new(MemoryConfig { page_budget: Some(4096), ..Default::default() });
    let manager = world.open(100);
    manager.main().become_manager();
    let client = open(&world, 200);
    let large = call(client.main(), 0, 1, &[7; 3 * 4096]);
    assert_eq!(news(&large), [Return::FailedReply]);
    assert_eq!(error(client.main()), failed(Errno::ENOMEM));
    let calling = call(client.main(), 0, 1, b"one page is there");
    assert_eq!(manager.data(&take(manager.main())), b"one page is there");
    answer(manager.main().nonblock(), b"");
    assert_eq!(calling.ended().map(|ended| ended.result), Some(Ok(0)));
    end(&world, [client, manager]);
}

#[test]
fn a_flush_wakes_every_blocked_thread_once() {
    let Pair { world, manager, client } = pair();
    let threads = [101, 102, 103].map(|tid| manager.thread(tid));
    let parked = threads.map(|thread| thread.enter_looper());
    let caller = call(client.main(), 0, 1, b"");
    let server = parked.iter().position(|read| !read.is_blocked()).unwrap();
    manager.process.flush();
    client.process.flush();
    for (index, read) in parked.iter().enumerate() {
        assert!(!read.is_blocked());
        if index != server {
            assert_eq!(read.returns(), [Return::Noop]);
        }
    }
    // A caller too: what it reads early is that its call was sent.
    assert_eq!(news(&caller), [Return::TransactionComplete]);
    let idle = (server + 1) % 3;
    assert!(threads[idle].read().is_blocked(), "once");
    end(&world, [client, manager]);
}

#[test]
fn a_flush_is_remembered_by_a_thread_that_is_not_blocked() {
    let Pair { world, manager, client } = pair();
    introduce(manager.main());
    manager.process.flush();
    assert_eq!(manager.main().read().returns(), [Return::Noop]);
    assert!(manager.main().read().is_blocked());
    manager.process.flush();
    introduce(manager.main());
    assert!(manager.main().read().is_blocked(), "any ioctl will do");
    end(&world, [client, manager]);
}

/// Everything that a process may hold, at once.
#[test]
fn a_release_leaves_nothing_behind() {
    let Pair { world, manager, client } = pair();
    let third = open(&world, 300);
    let object = offer(&client, &manager, 0x10);
    let found = look_up(&third, &manager, object);
    let watch = |handle| HandleCookie { handle, cookie: 5 };
    third.main().write(&[
        Command::RequestDeathNotification(watch(found)),
        Command::RequestFreezeNotification(watch(found)),
    ]);
    client.add_file(7, fakebinder_sim::SimFile(1));
    // A call that nobody takes, one-way calls in line, a buffer that nobody frees.
    let calling = call(third.main(), found, 1, b"");
    let in_line = client.main();
    for code in 0..3 {
        assert_eq!(post(in_line, 0, code, b""), [Return::TransactionComplete]);
    }
    take(manager.main());
    client.release();
    assert_eq!(
        news(&calling),
        [Return::TransactionComplete, Return::DeadReply],
        "the caller hears that its call was sent and that nobody will answer"
    );
    let told = third.main().drain();
    assert!(told.contains(&Return::DeadBinder(5)), "{told:?}");
    end(&world, [third, manager]);
}

#[test]
fn a_release_ends_blocked_reads() {
    let Stage { world, manager, client, waiting } = stage();
    let calling = client.main().write_and_read(&[Command::EnterLooper]);
    client.process.release();
    assert_eq!(calling.ended().unwrap().result, Err(Errno::EBADF));
    manager.process.release();
    assert_eq!(waiting.ended().unwrap().result, Err(Errno::EBADF));
    assert_eq!(client.main().call(uapi::BINDER_VERSION, &[0; 4]), Err(Errno::ESRCH));
    end(&world, []);
}

#[test]
fn with_o_nonblock_a_read_with_work_gives_it() {
    let Pair { world, manager, client } = pair();
    let calling = call(client.main(), 0, 9, b"");
    assert_eq!(take(manager.main().nonblock()).code, 9);
    answer(manager.main().nonblock(), b"");
    reply(&calling);
    end(&world, [client, manager]);
}

/// The write part of the same ioctl is done and counted all the same.
#[test]
fn with_o_nonblock_eagain_keeps_what_was_written() {
    let Pair { world, manager, client } = pair();
    let reading = client.main().nonblock().write_and_read(&[Command::EnterLooper]);
    let ended = reading.ended().unwrap();
    let out = fakebinder::protocol::record::WriteRead::at(&ended.out).unwrap_or_default();
    assert_eq!((ended.result, out.write_consumed, out.read_consumed), (Err(Errno::EAGAIN), 4, 0));
    end(&world, [client, manager]);
}

#[test]
fn with_o_nonblock_a_new_threads_first_read_is_empty() {
    let Pair { world, manager, client } = pair();
    assert_eq!(client.thread(201).nonblock().read().returns(), [Return::Noop]);
    let again = client.thread(201).nonblock().read();
    assert_eq!(again.ended().unwrap().result, Err(Errno::EAGAIN));
    end(&world, [client, manager]);
}

/// The same node keeps its handle in each process for as long as it is held there.
#[test]
fn a_dead_process_keeps_its_place_in_the_tables_of_others_until_they_let_go() {
    let Pair { world, manager, client } = pair();
    let held = offer(&client, &manager, 0x10);
    client.release();
    assert_eq!(world.stats().nodes, 2, "the manager's own and the dead client's");
    assert_eq!(news(&call(manager.main(), held, 1, b"")), [Return::DeadReply]);
    assert_eq!(error(manager.main()), (uapi::BR_DEAD_REPLY, -(Errno::EINVAL as i32)));
    manager.main().write(&[Command::Release(held)]);
    assert_eq!(world.stats().nodes, 1);
    end(&world, [manager]);
}

#[test]
fn an_object_of_a_dead_process_may_still_be_passed_on() {
    let Pair { world, manager, client } = pair();
    let third = open(&world, 300);
    let held = offer(&client, &manager, 0x10);
    client.release();
    let found = look_up(&third, &manager, held);
    assert_eq!(news(&call(third.main(), found, 1, b"")), [Return::DeadReply]);
    let asking = call(third.main(), 0, 1, b"");
    let question = take(manager.main());
    free(&manager, &question);
    answer_with(manager.main().nonblock(), &[handle(held)]);
    let answered = reply(&asking);
    assert!(matches!(third.objects(&answered)[..], [Object::Handle { strong: true, .. }]));
    end(&world, [third, manager]);
}
