//! The write half of BINDER_WRITE_READ: what becomes of the commands before, at and after one that
//! fails.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::client_mem::ClientMemory;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::Record;
use fakebinder::protocol::record::{HandleCookie, WriteRead};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use fakebinder_sim::{ARENA, SimThread};

/// Writes raw bytes; the result, and how many of them were consumed.
fn write_bytes(thread: SimThread<'_>, bytes: &[u8]) -> (Result<i32, Errno>, u64) {
    let address = thread.sim.arena.push(bytes);
    write_at(thread, address, bytes.len() as u64)
}

fn write_at(thread: SimThread<'_>, address: u64, size: u64) -> (Result<i32, Errno>, u64) {
    let call = WriteRead { write_buffer: address, write_size: size, ..Default::default() };
    let ended = thread.write_read(call).ended().unwrap();
    (ended.result, WriteRead::at(&ended.out).unwrap_or_default().write_consumed)
}

fn bytes_of(commands: &[Command]) -> Vec<u8> {
    let mut bytes = Vec::new();
    commands.iter().for_each(|command| command.encode(&mut bytes));
    bytes
}

#[test]
fn commands_before_an_unknown_one_are_done_and_counted() {
    let Pair { world, manager, client } = pair();
    let mut bytes = bytes_of(&[Command::Acquire(0)]);
    bytes.extend_from_slice(&0xdead_beef_u32.to_ne_bytes());
    bytes.extend(bytes_of(&[Command::Acquire(0)]));
    assert_eq!(write_bytes(client.main(), &bytes), (Err(Errno::EINVAL), 8));
    assert_eq!(world.stats().references, 1);
    client.main().write(&[Command::Release(0)]);
    assert_eq!(world.stats().references, 0, "it was acquired once");
    end(&world, [client, manager]);
}

/// A number that is one of binder's returns is no command either.
#[test]
fn a_return_is_no_command() {
    let Pair { world, manager, client } = pair();
    let bytes = uapi::BR_NOOP.to_ne_bytes();
    assert_eq!(write_bytes(client.main(), &bytes), (Err(Errno::EINVAL), 0));
    end(&world, [client, manager]);
}

#[test]
fn attempt_acquire_and_acquire_result_are_einval() {
    let Pair { world, manager, client } = pair();
    for command in [Command::AttemptAcquire { priority: 0, handle: 0 }, Command::AcquireResult(1)] {
        let (result, consumed) = client.main().try_write(&[Command::EnterLooper, command]);
        assert_eq!((result, consumed), (Err(Errno::EINVAL), 4));
    }
    // Refused before their payload is looked at.
    let address = client.arena.push(&uapi::BC_ATTEMPT_ACQUIRE.to_ne_bytes());
    client.arena.unmap(address + 4, 64);
    assert_eq!(write_at(client.main(), address, 12), (Err(Errno::EINVAL), 0));
    end(&world, [client, manager]);
}

#[test]
fn a_write_buffer_outside_of_memory_is_efault() {
    let Pair { world, manager, client } = pair();
    assert_eq!(write_at(client.main(), 0, 4), (Err(Errno::EFAULT), 0));
    assert_eq!(write_at(client.main(), u64::MAX - 64, 8), (Err(Errno::EFAULT), 0));
    end(&world, [client, manager]);
}

/// Of each command in turn, only its number can be read.
#[test]
fn a_command_without_its_payload_is_efault_and_not_counted() {
    let Pair { world, manager, client } = pair();
    let request = HandleCookie::default();
    let data = client.message(0, 1, b"", &[]);
    let truncated = [
        Command::Transaction(data),
        Command::Reply(data),
        Command::TransactionSg(data, 0),
        Command::ReplySg(data, 0),
        Command::FreeBuffer(0),
        Command::Increfs(0),
        Command::Acquire(0),
        Command::Release(0),
        Command::Decrefs(0),
        Command::IncrefsDone(node(1)),
        Command::AcquireDone(node(1)),
        Command::RequestDeathNotification(request),
        Command::ClearDeathNotification(request),
        Command::DeadBinderDone(0),
        Command::RequestFreezeNotification(request),
        Command::ClearFreezeNotification(request),
        Command::FreezeNotificationDone(0),
    ];
    for command in truncated {
        let bytes = bytes_of(&[Command::EnterLooper, command]);
        let address = client.arena.push(&bytes);
        let last = address + bytes.len() as u64 - 1;
        client.arena.unmap(last, 1);
        let (result, consumed) = write_at(client.main(), address, bytes.len() as u64);
        assert_eq!((result, consumed), (Err(Errno::EFAULT), 4), "{command:?}");
    }
    assert_eq!((client.main().drain(), world.stats().references), (vec![], 0));
    end(&world, [client, manager]);
}

/// The size says when to stop looking for commands, not how long the last one may be.
#[test]
fn a_command_that_goes_on_behind_the_named_size_is_carried_out() {
    let Pair { world, manager, client } = pair();
    let bytes = bytes_of(&[Command::Acquire(0)]);
    let address = client.arena.push(&bytes);
    assert_eq!(write_at(client.main(), address, 1), (Ok(0), 8));
    assert_eq!(world.stats().references, 1);
    end(&world, [client, manager]);
}

/// What `write_consumed` counts is skipped: how a restarted call goes on where it was.
#[test]
fn a_write_begins_behind_what_was_consumed() {
    let Pair { world, manager, client } = pair();
    let bytes = bytes_of(&[Command::Acquire(0), Command::Increfs(0)]);
    let call = WriteRead {
        write_buffer: client.arena.push(&bytes),
        write_size: bytes.len() as u64,
        write_consumed: 8,
        ..Default::default()
    };
    client.main().write_read(call);
    // Only the weak reference was taken.
    client.main().write(&[Command::Release(0)]);
    assert_eq!(world.stats().references, 1);
    client.main().write(&[Command::Decrefs(0)]);
    assert_eq!(world.stats().references, 0);
    for consumed in [bytes.len() as u64, 1 << 40] {
        let nothing = WriteRead { write_consumed: consumed, ..call };
        let ended = client.main().write_read(nothing).ended().unwrap();
        assert_eq!(WriteRead::at(&ended.out).unwrap_or_default().write_consumed, consumed);
    }
    assert_eq!(world.stats().references, 0);
    end(&world, [client, manager]);
}

/// The commands behind a call that failed wait until the thread has read why.
#[test]
fn commands_after_a_failed_call_are_held_back() {
    let Pair { world, manager, client } = pair();
    let failing = Command::Transaction(client.message(9, 1, b"", &[]));
    let (result, consumed) = client.main().try_write(&[failing, Command::Acquire(0)]);
    assert_eq!((result, consumed), (Ok(0), 68));
    assert_eq!(world.stats().references, 0);
    let (_, consumed) = client.main().try_write(&[Command::Acquire(0)]);
    assert_eq!(consumed, 0, "not before it was read");
    assert_eq!(client.main().drain(), [Return::FailedReply]);
    let (_, consumed) = client.main().try_write(&[Command::Acquire(0)]);
    assert_eq!((consumed, world.stats().references), (8, 1));
    end(&world, [client, manager]);
}

/// Nothing is read when the write part failed.
#[test]
fn a_failed_write_reads_nothing() {
    let Pair { world, manager, client } = pair();
    post(manager.main(), 0, 0, b"");
    let read_buffer = client.arena.push(&[0xee; 256]);
    let ended = client
        .main()
        .write_read(WriteRead {
            write_size: 4,
            write_buffer: 0,
            read_size: 256,
            read_consumed: 12,
            read_buffer,
            ..Default::default()
        })
        .ended()
        .unwrap();
    assert_eq!(ended.result, Err(Errno::EFAULT));
    assert_eq!(WriteRead::at(&ended.out).unwrap_or_default().read_consumed, 0);
    let mut first = [0; 4];
    client.arena.read(read_buffer, &mut first).unwrap();
    assert_eq!(first, [0xee; 4]);
    end(&world, [client, manager]);
}

#[test]
fn an_empty_write_read_does_nothing() {
    let Pair { world, manager, client } = pair();
    let call = WriteRead { write_consumed: 3, read_consumed: 5, ..Default::default() };
    let ended = client.main().write_read(call).ended().unwrap();
    assert_eq!((ended.result, WriteRead::at(&ended.out).unwrap_or_default()), (Ok(0), call));
    end(&world, [client, manager]);
}

/// More commands than are fetched at once, of every length.
#[test]
fn a_long_write_is_carried_out_to_its_end() {
    let Pair { world, manager, client } = pair();
    let mut commands = Vec::new();
    for code in 0..40 {
        commands.push(Command::Acquire(0));
        commands.push(Command::Transaction(one_way(client.message(0, code, b"", &[]))));
        commands.push(Command::EnterLooper);
    }
    let size = bytes_of(&commands).len() as u64;
    assert_eq!(client.main().try_write(&commands), (Ok(0), size));
    assert_eq!(client.main().drain(), [Return::TransactionComplete; 40]);
    for code in 0..40 {
        let received = take(manager.main());
        assert_eq!(received.code, code);
        free(&manager, &received);
    }
    end(&world, [client, manager]);
}

/// A write buffer may end right at the end of memory.
#[test]
fn a_write_may_end_where_memory_ends() {
    let Pair { world, manager, client } = pair();
    let bytes = bytes_of(&[Command::Acquire(0), Command::Increfs(0)]);
    let address = client.arena.push(&bytes);
    assert_eq!(address + bytes.len() as u64, ARENA + client.arena.len() as u64);
    assert_eq!(write_at(client.main(), address, bytes.len() as u64), (Ok(0), 16));
    end(&world, [client, manager]);
}

#[test]
fn a_write_read_of_another_size_is_einval() {
    let Pair { world, manager, client } = pair();
    let ended = client.main().ioctl(uapi::BINDER_WRITE_READ, &[0; 40]).ended().unwrap();
    assert_eq!(ended.result, Err(Errno::EINVAL));
    end(&world, [client, manager]);
}
