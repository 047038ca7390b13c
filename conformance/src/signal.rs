//! Signals that come while a thread waits in the driver.

use super::message::*;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::{Errno, uapi};
use fakebinder_sim::child::Catch;
use nix::sys::signal::Signal;

group! { "signal":
    a_reader_is_interrupted,
    a_reader_is_not_restarted,
    an_ignored_signal_does_not_interrupt,
    stop_and_continue_interrupt,
    the_written_part_is_done,
    an_interrupted_caller_gets_its_reply,
    an_interrupted_reader_is_not_given_work,
    a_killed_reader_is_gone,
    a_killed_caller_is_gone,
    a_killed_callers_server_goes_on,
    a_freeze_is_interrupted,
    an_interrupted_freeze_leaves_it_running,
    poll_is_interrupted,
}

fn reader(scene: &Scene) -> Process {
    let process = scene.blocking().process();
    process.set_max_threads(0);
    process
}

fn begin(thread: &Thread) {
    thread.begin_write_read(enter_looper(), READ_SIZE);
    thread.asleep();
}

fn interrupted(thread: &Thread) {
    let (io, reads) = thread.finish_write_read();
    assert_eq!((io.result, io.written, io.filled), (Err(Errno::EINTR), 4, 0));
    assert_eq!(reads.text, "EINTR");
}

fn a_reader_is_interrupted(scene: &Scene) {
    let process = reader(scene);
    process.catch(Signal::SIGUSR1, Catch::Plain);
    begin(&process);
    process.signal(Signal::SIGUSR1);
    interrupted(&process);
}

fn a_reader_is_not_restarted(scene: &Scene) {
    let process = reader(scene);
    process.catch(Signal::SIGUSR1, Catch::Restart);
    begin(&process);
    process.signal(Signal::SIGUSR1);
    interrupted(&process);
}

fn an_ignored_signal_does_not_interrupt(scene: &Scene) {
    let (manager, client) = (scene.blocking().manager(), scene.process());
    manager.catch(Signal::SIGUSR1, Catch::Ignore);
    begin(&manager);
    manager.signal(Signal::SIGUSR1);
    manager.asleep();
    client.write(call(0));
    assert_eq!(manager.finish_write_read().1.text, "NOOP TRANSACTION");
}

fn stop_and_continue_interrupt(scene: &Scene) {
    let process = reader(scene);
    begin(&process);
    process.stop();
    process.signal(Signal::SIGCONT);
    interrupted(&process);
}

fn the_written_part_is_done(scene: &Scene) {
    let (manager, client) = (scene.manager(), reader(scene));
    client.catch(Signal::SIGUSR1, Catch::Plain);
    client.begin_write_read(call(0).code(3), READ_SIZE);
    client.asleep();
    client.signal(Signal::SIGUSR1);
    let (io, _) = client.finish_write_read();
    assert_eq!((io.result, io.written, io.filled), (Err(Errno::EINTR), 68, 0));
    assert_eq!(manager.receive().code, 3);
}

fn an_interrupted_caller_gets_its_reply(scene: &Scene) {
    let (manager, client) = (scene.manager(), reader(scene));
    client.catch(Signal::SIGUSR1, Catch::Plain);
    client.begin_write_read(call(0), READ_SIZE);
    client.asleep();
    client.signal(Signal::SIGUSR1);
    assert_eq!(client.finish_write_read().1.text, "EINTR");
    manager.receive();
    manager.write(reply().code(8));
    assert_eq!(client.reads("NOOP TRANSACTION_COMPLETE REPLY").transaction().code, 8);
}

fn an_interrupted_reader_is_not_given_work(scene: &Scene) {
    let (manager, client) = (scene.blocking().manager(), scene.process());
    manager.catch(Signal::SIGUSR1, Catch::Plain);
    begin(&manager);
    manager.signal(Signal::SIGUSR1);
    interrupted(&manager);
    client.write(call(0).code(4));
    assert_eq!(manager.receive().code, 4);
}

fn a_killed_reader_is_gone(scene: &Scene) {
    let (manager, process) = (scene.manager(), reader(scene));
    begin(&process);
    scene.bury(&process, &manager);
}

fn a_killed_caller_is_gone(scene: &Scene) {
    let (manager, client) = (scene.manager(), reader(scene));
    client.begin_write_read(call(0), READ_SIZE);
    client.asleep();
    scene.bury(&client, &manager);
}

fn a_killed_callers_server_goes_on(scene: &Scene) {
    let (manager, client) = (scene.manager(), reader(scene));
    let other = scene.process();
    client.begin_write_read(call(0).code(1), READ_SIZE);
    client.asleep();
    assert_eq!(manager.receive().code, 1);
    scene.bury(&client, &manager);
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    other.write(call(0).code(2));
    assert_eq!(manager.receive().code, 2);
}

fn a_freeze_is_interrupted(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process_with(2));
    client.catch(Signal::SIGUSR1, Catch::Plain);
    client.write(call(0));
    let words = [manager.pid() as u32, 1, 10_000];
    client.threads[1].begin_ioctl_words(uapi::BINDER_FREEZE, &words);
    client.threads[1].asleep();
    client.threads[1].signal(Signal::SIGUSR1);
    assert_eq!(errno(client.threads[1].finish()), Err(Errno::EINTR));
}

fn an_interrupted_freeze_leaves_it_running(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process_with(2));
    client.catch(Signal::SIGUSR1, Catch::Plain);
    client.write(call(0));
    let words = [manager.pid() as u32, 1, 10_000];
    client.threads[1].begin_ioctl_words(uapi::BINDER_FREEZE, &words);
    client.threads[1].asleep();
    client.threads[1].signal(Signal::SIGUSR1);
    client.threads[1].finish();
    manager.receive();
    manager.write(reply());
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    client.write(call(0).code(2));
    manager.reads("NOOP TRANSACTION_COMPLETE");
    manager.receive();
}

fn poll_is_interrupted(scene: &Scene) {
    let process = reader(scene);
    process.catch(Signal::SIGUSR1, Catch::Restart);
    process.begin_poll(-1);
    process.asleep();
    process.signal(Signal::SIGUSR1);
    assert_eq!(errno(process.finish()), Err(Errno::EINTR));
}
