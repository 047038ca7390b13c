//! Waiting in BINDER_WRITE_READ.

use super::message::*;
use super::scene::*;
use super::{Scene, group};

group! { "wait":
    a_reader_is_woken_by_a_call,
    a_caller_is_woken_by_the_reply,
    a_caller_is_woken_by_a_nested_call,
    a_caller_is_woken_by_the_death_of_the_server,
    a_caller_is_woken_by_a_failure,
    a_reader_is_woken_by_a_oneway_call,
    a_reader_is_woken_by_a_death,
    a_reader_is_woken_by_a_reference,
    a_reader_is_woken_by_the_next_oneway_call,
    one_of_several_readers_is_woken,
    each_of_several_readers_gets_a_call,
    a_server_replies_and_waits_in_one_go,
    a_reader_does_not_take_a_reply_to_another,
    a_fd_set_to_nonblock_does_not_wait,
    a_ping_pong,
}

/// A manager whose device is blocking.
fn waiting_manager(scene: &Scene, threads: usize) -> Process {
    patient(scene.blocking().manager_with(threads, 0))
}

/// A process whose device is blocking.
fn waiting_process(scene: &Scene) -> Process {
    patient(scene.blocking().process())
}

/// Makes an ioctl in each thread: without one before it, a thread's first read would not wait.
fn patient(process: Process) -> Process {
    for thread in &process.threads {
        thread.set_max_threads(0);
    }
    process
}

fn begin(thread: &Thread) {
    thread.begin_write_read(enter_looper(), READ_SIZE);
    thread.asleep();
}

fn a_reader_is_woken_by_a_call(scene: &Scene) {
    let (manager, client) = (waiting_manager(scene, 1), scene.process());
    begin(&manager);
    client.write(call(0).data(b"wake up"));
    let (io, reads) = manager.finish_write_read();
    assert_eq!((io.written, reads.text.as_str()), (4, "NOOP TRANSACTION"));
    assert_eq!(reads.transaction().data, b"wake up");
}

fn a_caller_is_woken_by_the_reply(scene: &Scene) {
    let (manager, client) = (scene.manager(), waiting_process(scene));
    client.begin_write_read(call(0), READ_SIZE);
    client.asleep();
    manager.receive();
    manager.write(reply().code(5));
    let (io, reads) = client.finish_write_read();
    assert_eq!((io.written, reads.text.as_str()), (68, "NOOP TRANSACTION_COMPLETE REPLY"));
    assert_eq!(reads.transaction().code, 5);
}

fn a_caller_is_woken_by_a_nested_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), waiting_process(scene));
    let handle = scene.introduce(&client, &manager, 1, 2);
    client.begin_write_read(call(0), READ_SIZE);
    client.asleep();
    manager.receive();
    manager.write(call(handle));
    assert_eq!(client.finish_write_read().1.text, "NOOP TRANSACTION_COMPLETE TRANSACTION");
    client.begin_write_read(reply(), READ_SIZE);
    assert_eq!(client.finish_write_read().1.text, "NOOP TRANSACTION_COMPLETE");
    client.begin_write_read(Batch::default(), READ_SIZE);
    client.asleep();
    manager.reads("NOOP TRANSACTION_COMPLETE REPLY");
    manager.write(reply());
    assert_eq!(client.finish_write_read().1.text, "NOOP REPLY");
}

fn a_caller_is_woken_by_the_death_of_the_server(scene: &Scene) {
    let (manager, client) = (scene.manager(), waiting_process(scene));
    client.begin_write_read(call(0), READ_SIZE);
    client.asleep();
    manager.receive();
    manager.kill();
    assert_eq!(client.finish_write_read().1.text, "NOOP TRANSACTION_COMPLETE DEAD_REPLY");
}

fn a_caller_is_woken_by_a_failure(scene: &Scene) {
    let (manager, client) = (scene.manager(), waiting_process(scene));
    client.begin_write_read(call(0), READ_SIZE);
    client.asleep();
    manager.receive();
    manager.write(reply().handle(99));
    assert_eq!(client.finish_write_read().1.text, "NOOP TRANSACTION_COMPLETE FAILED_REPLY");
}

fn a_reader_is_woken_by_a_oneway_call(scene: &Scene) {
    let (manager, client) = (waiting_manager(scene, 1), scene.process());
    begin(&manager);
    client.write(oneway(0));
    assert_eq!(manager.finish_write_read().1.text, "NOOP TRANSACTION");
}

fn a_reader_is_woken_by_a_death(scene: &Scene) {
    let (manager, owner) = (waiting_manager(scene, 1), scene.process());
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write(request_death(handle, 5));
    begin(&manager);
    owner.kill();
    assert_eq!(manager.finish_write_read().1.text, "NOOP DEAD_BINDER(5)");
}

fn a_reader_is_woken_by_a_reference(scene: &Scene) {
    let (manager, owner) = (scene.manager(), waiting_process(scene));
    let handle = scene.introduce(&owner, &manager, 1, 2);
    begin(&owner);
    manager.write(release(handle));
    assert_eq!(owner.finish_write_read().1.text, "NOOP RELEASE(1,2) DECREFS(1,2)");
}

fn a_reader_is_woken_by_the_next_oneway_call(scene: &Scene) {
    let (manager, client) = (waiting_manager(scene, 2), scene.process());
    client.write([oneway(0).code(1).into(), oneway(0).code(2).into()]);
    let first = manager.receive();
    begin(&manager.threads[1]);
    manager.write(free(first.buffer));
    let (_, reads) = manager.threads[1].finish_write_read();
    assert_eq!((reads.text.as_str(), reads.transaction().code), ("NOOP TRANSACTION", 2));
}

fn one_of_several_readers_is_woken(scene: &Scene) {
    let (manager, client) = (waiting_manager(scene, 3), scene.process());
    manager.threads.iter().for_each(begin);
    client.write(call(0));
    manager.until("a reader to wake up", || manager.threads.iter().any(Thread::is_done));
    let done: Vec<_> = manager.threads.iter().filter(|thread| thread.is_done()).collect();
    assert_eq!(done.len(), 1);
    assert_eq!(done[0].finish_write_read().1.text, "NOOP TRANSACTION");
    for thread in manager.threads.iter().filter(|thread| thread.tid() != done[0].tid()) {
        thread.asleep();
    }
}

fn each_of_several_readers_gets_a_call(scene: &Scene) {
    let (manager, client) = (waiting_manager(scene, 3), scene.process_with(3));
    manager.threads.iter().for_each(begin);
    for (code, thread) in client.threads.iter().enumerate() {
        thread.write(call(0).code(code as u32));
    }
    let mut codes: Vec<_> = manager
        .threads
        .iter()
        .map(|thread| thread.finish_write_read().1.transaction().code)
        .collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 1, 2]);
}

fn a_server_replies_and_waits_in_one_go(scene: &Scene) {
    let (manager, client) = (waiting_manager(scene, 1), scene.process());
    begin(&manager);
    client.write(call(0));
    let (_, reads) = manager.finish_write_read();
    let buffer = reads.transaction().buffer;
    // The completion of the reply can be read at once.
    manager.begin_write_read([free(buffer), reply().into()], READ_SIZE);
    assert_eq!(manager.finish_write_read().1.text, "NOOP TRANSACTION_COMPLETE");
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
}

fn a_reader_does_not_take_a_reply_to_another(scene: &Scene) {
    let (manager, client) = (scene.manager(), patient(scene.blocking().process_with(2)));
    begin(&client.threads[1]);
    client.begin_write_read(call(0), READ_SIZE);
    client.asleep();
    manager.receive();
    manager.write(reply());
    assert_eq!(client.finish_write_read().1.text, "NOOP TRANSACTION_COMPLETE REPLY");
    client.threads[1].asleep();
}

fn a_fd_set_to_nonblock_does_not_wait(scene: &Scene) {
    let process = waiting_process(scene);
    process.set_nonblock(true);
    process.begin_write_read(Batch::default(), READ_SIZE);
    assert_eq!(process.finish_write_read().1.text, "EAGAIN");
}

fn a_ping_pong(scene: &Scene) {
    let (manager, client) = (waiting_manager(scene, 1), waiting_process(scene));
    manager.begin_write_read(enter_looper(), READ_SIZE);
    for code in 0..20 {
        client.begin_write_read(call(0).code(code).data(&[code as u8; 100]), READ_SIZE);
        let mut call = manager.finish_write_read().1;
        while call.received.is_empty() {
            manager.begin_write_read(Batch::default(), READ_SIZE);
            call = manager.finish_write_read().1;
        }
        let call = call.transaction();
        assert_eq!(call.code, code);
        manager.begin_write_read(
            [free(call.buffer), reply().code(code + 1).data(&call.data).into()],
            READ_SIZE,
        );
        let (_, reads) = client.finish_write_read();
        assert_eq!(reads.text, "NOOP TRANSACTION_COMPLETE REPLY");
        let answer = reads.transaction();
        assert_eq!((answer.code, answer.data.len()), (code + 1, 100));
        client.write(free(answer.buffer));
    }
}
