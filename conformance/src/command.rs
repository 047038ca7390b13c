//! How a write buffer is read and a read buffer filled: counts, edges, errors.

use super::message::*;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::{Errno, uapi};

group! { "command":
    an_unknown_command_ends_the_write,
    a_command_of_zeros_is_unknown,
    a_command_with_another_size_is_unknown,
    attempt_acquire_is_refused,
    acquire_result_is_refused,
    a_return_is_no_command,
    a_bad_write_buffer,
    a_number_across_the_edge_of_memory,
    a_payload_across_the_edge_of_memory,
    a_transaction_across_the_edge_of_memory,
    a_command_may_end_behind_the_write_buffer,
    a_write_buffer_needs_no_alignment,
    a_write_goes_on_where_it_had_stopped,
    a_write_that_is_done_does_nothing,
    a_failed_write_reads_nothing,
    a_failed_transaction_stops_the_write,
    nothing_is_written_while_an_error_waits,
    a_write_and_a_read_in_one_go,
    a_bad_read_buffer,
    a_read_goes_on_where_it_had_stopped,
    a_read_for_less_than_a_transaction_gives_nothing,
    a_read_for_one_transaction_is_enough,
    a_call_that_cannot_be_told_fails,
    a_reply_that_cannot_be_told_is_lost,
    a_node_that_cannot_be_told_is_lost,
}

fn words(words: &[u32]) -> Bc {
    bytes(&words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>())
}

fn refused(written: u64) -> Io {
    Io { result: Err(Errno::EINVAL), written, filled: 0 }
}

fn an_unknown_command_ends_the_write(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let unknown = words(&[0x4004_63ff, 0]);
    let io = client.tries([acquire(0), oneway(0).code(1).into(), unknown, oneway(0).into()]);
    assert_eq!(io, refused(8 + 68));
    client.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(manager.receive().code, 1);
    manager.reads("EAGAIN");
}

fn a_command_of_zeros_is_unknown(scene: &Scene) {
    assert_eq!(scene.process().tries(words(&[0])), refused(0));
}

fn a_command_with_another_size_is_unknown(scene: &Scene) {
    let process = scene.process();
    let command = (uapi::BC_ENTER_LOOPER & 0xffff) | (4 << 16) | (1 << 30);
    assert_eq!(process.tries(words(&[command, 0])), refused(0));
}

fn attempt_acquire_is_refused(scene: &Scene) {
    let process = scene.process();
    assert_eq!(process.tries([enter_looper(), attempt_acquire(0, 0)]), refused(4));
}

fn acquire_result_is_refused(scene: &Scene) {
    let process = scene.process();
    assert_eq!(process.tries([enter_looper(), acquire_result(0)]), refused(4));
}

fn a_return_is_no_command(scene: &Scene) {
    let process = scene.process();
    for number in [uapi::BR_NOOP, uapi::BR_TRANSACTION_COMPLETE, uapi::BR_OK] {
        assert_eq!(process.tries(words(&[number])), refused(0));
    }
}

fn a_bad_write_buffer(scene: &Scene) {
    let process = scene.process();
    for address in [0, NOWHERE, KERNEL] {
        let mut bwr = [8, 0, address, 64, 12, NOWHERE];
        assert_eq!(process.write_read_raw(&mut bwr), Err(Errno::EFAULT));
        assert_eq!(bwr, [8, 0, address, 64, 0, NOWHERE]);
    }
}

fn at_edge(process: &Process, commands: &[u8], size: u64, expected: Result<(), Errno>) -> u64 {
    let address = process.put_at_edge(commands);
    let mut bwr = [size, 0, address, 0, 0, 0];
    assert_eq!(process.write_read_raw(&mut bwr), expected);
    bwr[1]
}

fn a_number_across_the_edge_of_memory(scene: &Scene) {
    let process = scene.process();
    let mut commands = uapi::BC_ENTER_LOOPER.to_ne_bytes().to_vec();
    commands.extend_from_slice(&[0x0c, 0x63]);
    assert_eq!(at_edge(&process, &commands, 8, Err(Errno::EFAULT)), 4);
}

fn a_payload_across_the_edge_of_memory(scene: &Scene) {
    let process = scene.process();
    for number in [
        uapi::BC_INCREFS,
        uapi::BC_ACQUIRE,
        uapi::BC_RELEASE,
        uapi::BC_DECREFS,
        uapi::BC_FREE_BUFFER,
        uapi::BC_INCREFS_DONE,
        uapi::BC_ACQUIRE_DONE,
        uapi::BC_REQUEST_DEATH_NOTIFICATION,
        uapi::BC_CLEAR_DEATH_NOTIFICATION,
        uapi::BC_DEAD_BINDER_DONE,
    ] {
        let mut commands = uapi::BC_ENTER_LOOPER.to_ne_bytes().to_vec();
        commands.extend_from_slice(&number.to_ne_bytes());
        assert_eq!(at_edge(&process, &commands, 100, Err(Errno::EFAULT)), 4, "{number:#x}");
        commands.extend_from_slice(&[0; 3]);
        assert_eq!(at_edge(&process, &commands, 100, Err(Errno::EFAULT)), 4, "{number:#x}");
    }
    process.reads("EAGAIN");
}

fn a_transaction_across_the_edge_of_memory(scene: &Scene) {
    let manager = scene.manager();
    let process = scene.process();
    for number in [uapi::BC_TRANSACTION, uapi::BC_REPLY, uapi::BC_TRANSACTION_SG, uapi::BC_REPLY_SG]
    {
        let mut commands = number.to_ne_bytes().to_vec();
        commands.extend_from_slice(&[0; 60]);
        assert_eq!(at_edge(&process, &commands, 200, Err(Errno::EFAULT)), 0, "{number:#x}");
    }
    process.reads("EAGAIN");
    manager.reads("EAGAIN");
}

fn a_command_may_end_behind_the_write_buffer(scene: &Scene) {
    // The driver looks at the size of the write buffer only between commands.
    let manager = scene.manager();
    let client = scene.process();
    let (address, size) = client.lay_out(&oneway(0).code(4).into());
    let mut bwr = [1, 0, address, 0, 0, 0];
    assert_eq!(client.write_read_raw(&mut bwr), Ok(()));
    assert_eq!(bwr[1], size);
    client.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(manager.receive().code, 4);
}

fn a_write_buffer_needs_no_alignment(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let (address, size) = client.lay_out(&oneway(0).code(4).into());
    let commands = client.get(address, size as usize);
    let mut moved = vec![0; 3];
    moved.extend_from_slice(&commands);
    assert_eq!(at_edge_at(&client, &moved, 3), size);
    client.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(manager.receive().code, 4);
}

fn at_edge_at(process: &Process, commands: &[u8], skip: u64) -> u64 {
    let mut padded = commands.to_vec();
    padded.resize(commands.len().next_multiple_of(8), 0);
    let address = process.put_at_edge(&padded) + skip;
    let mut bwr = [commands.len() as u64 - skip, 0, address, 0, 0, 0];
    assert_eq!(process.write_read_raw(&mut bwr), Ok(()));
    bwr[1]
}

fn a_write_goes_on_where_it_had_stopped(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let both = [oneway(0).code(1).into(), oneway(0).code(2).into()];
    let (address, size) = client.lay_out(&both.into());
    let mut bwr = [size, size / 2, address, 0, 0, 0];
    assert_eq!(client.write_read_raw(&mut bwr), Ok(()));
    assert_eq!(bwr[1], size);
    client.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(manager.receive().code, 2);
}

fn a_write_that_is_done_does_nothing(scene: &Scene) {
    let client = scene.process();
    for consumed in [8, 9, 4096] {
        let mut bwr = [8, consumed, NOWHERE, 0, 0, 0];
        assert_eq!(client.write_read_raw(&mut bwr), Ok(()));
        assert_eq!(bwr[1], consumed);
    }
}

fn a_failed_write_reads_nothing(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(oneway(0));
    let (io, reads) = client.write_read(words(&[0]), READ_SIZE);
    assert_eq!(io, refused(0));
    assert_eq!(reads.text, "EINVAL");
    client.reads("NOOP TRANSACTION_COMPLETE");
    manager.receive();
}

fn a_failed_transaction_stops_the_write(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let io = client.tries([call(99).into(), oneway(0).into(), oneway(0).into()]);
    assert_eq!(io, Io { result: Ok(()), written: 68, filled: 0 });
    client.reads("NOOP FAILED_REPLY");
    manager.reads("EAGAIN");
}

fn nothing_is_written_while_an_error_waits(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(99));
    let io = client.tries([oneway(0).into(), words(&[0])]);
    assert_eq!(io, Io { result: Ok(()), written: 0, filled: 0 });
    let (io, reads) = client.write_read([oneway(0).into()], READ_SIZE);
    assert_eq!((io.written, reads.text.as_str()), (0, "NOOP FAILED_REPLY"));
    client.write(oneway(0).code(3));
    assert_eq!(manager.receive().code, 3);
}

fn a_write_and_a_read_in_one_go(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let (io, reads) = client.write_read(oneway(0), READ_SIZE);
    assert_eq!(io, Io { result: Ok(()), written: 68, filled: 8 });
    assert_eq!(reads.text, "NOOP TRANSACTION_COMPLETE");
    manager.receive();
}

fn a_bad_read_buffer(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(oneway(0));
    for address in [0, NOWHERE, KERNEL] {
        let mut bwr = [0, 0, 0, 256, 0, address];
        assert_eq!(client.write_read_raw(&mut bwr), Err(Errno::EFAULT));
        assert_eq!(bwr[4], 0);
    }
    client.reads("NOOP TRANSACTION_COMPLETE");
    manager.receive();
}

fn a_read_goes_on_where_it_had_stopped(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(oneway(0));
    let address = client.put_at_edge(&[0xee; 512]);
    let mut bwr = [0, 0, 0, 512, 8, address];
    assert_eq!(client.write_read_raw(&mut bwr), Ok(()));
    assert_eq!(bwr[4], 12);
    let bytes = client.get(address, 16);
    assert_eq!(bytes[..8], [0xee; 8]);
    assert_eq!(bytes[8..12], uapi::BR_TRANSACTION_COMPLETE.to_ne_bytes());
    assert_eq!(bytes[12..], [0xee; 4]);
    manager.receive();
}

fn a_read_for_less_than_a_transaction_gives_nothing(scene: &Scene) {
    // A read needs room for the longest return: 4 bytes, and 72 for one with a security context.
    let manager = scene.manager();
    let client = scene.process();
    client.write(oneway(0));
    for size in [4, 40, 79] {
        let (io, reads) = client.write_read(Batch::default(), size);
        assert_eq!((io.result, io.filled, reads.text.as_str()), (Ok(()), 4, "NOOP"));
    }
    client.reads("NOOP TRANSACTION_COMPLETE");
    manager.receive();
}

fn a_read_for_one_transaction_is_enough(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write([oneway(0).into(), oneway(0).into()]);
    let (io, reads) = client.write_read(Batch::default(), 80);
    assert_eq!((io.filled, reads.text.as_str()), (8, "NOOP TRANSACTION_COMPLETE"));
    let (io, reads) = client.write_read(Batch::default(), 80);
    assert_eq!((io.filled, reads.text.as_str()), (8, "NOOP TRANSACTION_COMPLETE"));
    let (io, reads) = manager.write_read(Batch::default(), 80);
    assert_eq!((io.filled, reads.text.as_str()), (72, "NOOP TRANSACTION"));
}

fn unreadable(thread: &Thread, room: usize) {
    let address = thread.put_at_edge(&vec![0; room]);
    let mut bwr = [0, 0, 0, 512, 0, address];
    assert_eq!(thread.write_read_raw(&mut bwr), Err(Errno::EFAULT));
    assert_eq!(bwr[4], 0);
}

fn a_call_that_cannot_be_told_fails(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    for room in [4, 8, 40] {
        client.write(call(0));
        unreadable(&manager, room);
        client.reads("NOOP TRANSACTION_COMPLETE FAILED_REPLY");
        manager.reads("EAGAIN");
    }
}

fn a_reply_that_cannot_be_told_is_lost(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    manager.receive();
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    // Room for BR_NOOP and BR_TRANSACTION_COMPLETE alone.
    unreadable(&client, 8);
    client.reads("EAGAIN");
    client.write(call(0).code(2));
    assert_eq!(manager.receive().code, 2);
}

fn a_node_that_cannot_be_told_is_lost(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    owner.write(call(0).binder(1, 2));
    let got = manager.receive();
    manager.write(reply());
    unreadable(&owner, 8);
    // BR_INCREFS and BR_ACQUIRE were in the read that failed.
    owner.reads("NOOP TRANSACTION_COMPLETE REPLY");
    manager.write(free(got.buffer));
    owner.reads("EAGAIN");
    owner.write([increfs_done(1, 2), acquire_done(1, 2)]);
    owner.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
}
