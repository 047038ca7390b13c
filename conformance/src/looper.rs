//! Loopers: threads that serve, and when the driver asks for one more.

use super::message::*;
use super::scene::*;
use super::{Scene, group};

group! { "looper":
    one_more_is_asked_for_with_work,
    it_takes_the_place_of_noop,
    it_is_asked_for_once,
    it_is_asked_for_again_when_it_has_come,
    no_more_than_the_limit,
    a_raised_limit_counts,
    none_is_asked_for_without_a_limit,
    a_limit_may_be_any_number,
    a_limit_that_is_lowered_counts,
    only_a_looper_is_asked,
    a_registered_thread_is_asked_too,
    none_is_asked_for_while_one_waits,
    registering_unasked_does_not_count,
    entering_after_registering_does_not_hurt,
    registering_after_entering_does_not_count,
    a_thread_that_has_left_is_asked_all_the_same,
    an_exited_thread_still_counts,
    commands_for_loopers_may_be_repeated,
}

/// Gives the manager's process one call to read.
fn work(client: &Thread) {
    client.write(oneway(0));
    client.reads("NOOP TRANSACTION_COMPLETE");
}

/// Reads one call, and frees it.
fn serve(thread: &Thread, expected: &str) {
    let got = thread.reads(expected);
    thread.write(free(got.transaction().buffer));
}

fn one_more_is_asked_for_with_work(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    manager.set_max_threads(1);
    manager.write(enter_looper());
    // A read that finds nothing fails before the driver would ask for a thread.
    manager.reads("EAGAIN");
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
}

fn it_takes_the_place_of_noop(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    manager.set_max_threads(1);
    manager.write([enter_looper(), call(99).into()]);
    let reads = manager.reads("SPAWN_LOOPER FAILED_REPLY");
    assert_eq!(reads.returns.len(), 2);
    drop(client);
}

fn it_is_asked_for_once(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    manager.set_max_threads(5);
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
    work(&client);
    serve(&manager, "NOOP TRANSACTION");
}

fn it_is_asked_for_again_when_it_has_come(scene: &Scene) {
    let (manager, client) = (scene.manager_with(3, 0), scene.process());
    manager.set_max_threads(2);
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
    manager.threads[1].write(register_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
    manager.threads[2].write(register_looper());
    work(&client);
    serve(&manager, "NOOP TRANSACTION");
}

fn no_more_than_the_limit(scene: &Scene) {
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    manager.set_max_threads(1);
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
    manager.threads[1].write(register_looper());
    for _ in 0..3 {
        work(&client);
        serve(&manager, "NOOP TRANSACTION");
    }
}

fn a_raised_limit_counts(scene: &Scene) {
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    manager.set_max_threads(1);
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
    manager.threads[1].write(register_looper());
    manager.set_max_threads(2);
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
}

fn none_is_asked_for_without_a_limit(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "NOOP TRANSACTION");
}

/// The limit is unsigned, though the driver counts with signed numbers.
fn a_limit_may_be_any_number(scene: &Scene) {
    for limit in [0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_fffe, 0xffff_ffff] {
        let (manager, client) = (scene.manager_with(2, 0), scene.process());
        manager.set_max_threads(limit);
        manager.write(enter_looper());
        work(&client);
        serve(&manager, "SPAWN_LOOPER TRANSACTION");
        manager.threads[1].write(register_looper());
        work(&client);
        serve(&manager, "SPAWN_LOOPER TRANSACTION");
        client.write(call(0));
        let got = manager.reads("NOOP TRANSACTION");
        manager.write([free(got.transaction().buffer), reply().into()]);
        client.waits("NOOP TRANSACTION_COMPLETE REPLY");
    }
}

fn a_limit_that_is_lowered_counts(scene: &Scene) {
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    manager.set_max_threads(u32::MAX);
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
    manager.threads[1].write(register_looper());
    manager.set_max_threads(0);
    work(&client);
    serve(&manager, "NOOP TRANSACTION");
}

fn only_a_looper_is_asked(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    manager.set_max_threads(5);
    work(&client);
    serve(&manager, "NOOP TRANSACTION");
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
}

fn a_registered_thread_is_asked_too(scene: &Scene) {
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    manager.set_max_threads(5);
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
    manager.threads[1].write(register_looper());
    work(&client);
    serve(&manager.threads[1], "SPAWN_LOOPER TRANSACTION");
}

fn none_is_asked_for_while_one_waits(scene: &Scene) {
    let (manager, client) = (scene.blocking().manager_with(2, 0), scene.process());
    manager.set_max_threads(5);
    manager.threads[1].reads("NOOP");
    manager.threads[1].begin_write_read(Batch::default(), READ_SIZE);
    manager.threads[1].asleep();
    manager.write(enter_looper());
    // Work for this thread alone: the other one goes on waiting.
    manager.write(call(99));
    manager.reads("NOOP FAILED_REPLY");
    work(&client);
    assert_eq!(manager.threads[1].finish_write_read().1.text, "NOOP TRANSACTION");
    manager.write(call(99));
    manager.reads("SPAWN_LOOPER FAILED_REPLY");
}

fn registering_unasked_does_not_count(scene: &Scene) {
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    manager.set_max_threads(1);
    manager.threads[1].write(register_looper());
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
}

fn entering_after_registering_does_not_hurt(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    manager.set_max_threads(1);
    manager.write([register_looper(), enter_looper()]);
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
}

fn registering_after_entering_does_not_count(scene: &Scene) {
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    manager.set_max_threads(2);
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
    // A looper was asked for, but not this thread.
    manager.write(register_looper());
    work(&client);
    serve(&manager, "NOOP TRANSACTION");
    manager.threads[1].write(register_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
}

fn a_thread_that_has_left_is_asked_all_the_same(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    manager.set_max_threads(1);
    manager.write([enter_looper(), exit_looper()]);
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
}

fn an_exited_thread_still_counts(scene: &Scene) {
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    manager.set_max_threads(1);
    manager.write(enter_looper());
    work(&client);
    serve(&manager, "SPAWN_LOOPER TRANSACTION");
    manager.threads[1].write(register_looper());
    manager.threads[1].thread_exit();
    work(&client);
    serve(&manager, "NOOP TRANSACTION");
}

fn commands_for_loopers_may_be_repeated(scene: &Scene) {
    let process = scene.process();
    process.write([enter_looper(), enter_looper(), exit_looper(), exit_looper()]);
    process.write([register_looper(), register_looper(), enter_looper()]);
    process.reads("EAGAIN");
}
