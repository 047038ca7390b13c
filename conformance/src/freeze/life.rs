//! Freezing beside what else is done to processes: they are stopped, execute another program, change
//! their user, dump core, and live in pid namespaces of their own.

use super::*;
use crate::manager::{become_user, needs_root};
use crate::thread::PAGES;
use nix::sys::signal::Signal;

/// Freezes the manager, which a call then finds frozen, and thaws it.
#[track_caller]
fn freeze_for_a_call(client: &Thread, manager: &Process) {
    freeze(client, manager);
    client.write(call(0));
    client.reads("NOOP FROZEN_REPLY");
    thaw(client, manager);
}

/// Has a process execute `sleep`, with its device still open.
#[track_caller]
fn execute(process: &Process) {
    assert_eq!(
        process.syscall(libc::SYS_fcntl, &[process.fd() as u64, libc::F_SETFD as u64, 0]),
        Ok(0)
    );
    let memory = process.threads[0].child.memory();
    let place = |offset: usize| memory.address(PAGES + offset);
    memory.put(PAGES, b"/bin/sleep\0");
    memory.put(PAGES + 16, b"1000\0");
    for (offset, word) in [(32, place(0)), (40, place(16)), (48, 0), (56, 0)] {
        memory.put(PAGES + offset, &word.to_ne_bytes());
    }
    process.begin_syscall(libc::SYS_execve, &[place(0), place(32), place(56)]);
    let name = format!("/proc/{}/comm", process.pid());
    process.until("the other program", || {
        std::fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n")
    });
}

pub(super) fn a_stopped_process_can_be_frozen(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    manager.stop();
    freeze_for_a_call(&client, &manager);
    client.write(call(0).code(3));
    manager.signal(Signal::SIGCONT);
    assert_eq!(manager.receive().code, 3);
}

pub(super) fn a_process_stopped_while_it_reads_can_be_frozen(scene: &Scene) {
    let (manager, client) = (scene.blocking().manager(), scene.process());
    manager.begin_write_read(Batch::default(), READ_SIZE);
    manager.asleep();
    manager.stop();
    freeze_for_a_call(&client, &manager);
    manager.signal(Signal::SIGCONT);
    assert_eq!(manager.finish_write_read().1.text, "EINTR");
}

pub(super) fn a_process_stopped_at_a_call_cannot_be_frozen(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0));
    manager.receive();
    manager.stop();
    assert_eq!(set(&client, manager.pid(), 1, 0), Err(Errno::EAGAIN));
    assert_eq!(set(&client, manager.pid(), 1, 20), Err(Errno::EAGAIN));
    manager.signal(Signal::SIGCONT);
    manager.write(reply());
    freeze(&client, &manager);
}

pub(super) fn a_process_may_be_stopped_when_it_is_thawed(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    freeze(&client, &manager);
    manager.stop();
    thaw(&client, &manager);
    client.write(call(0).code(6));
    manager.signal(Signal::SIGCONT);
    assert_eq!(manager.receive().code, 6);
}

/// The other program has no mapping for a call's buffer: that comes before the freeze.
pub(super) fn a_frozen_process_that_executes_is_found_dead(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    freeze(&client, &manager);
    execute(&manager);
    client.write(call(0));
    client.reads("NOOP DEAD_REPLY");
    assert_eq!(info(&client, &manager), (0, 0));
    thaw(&client, &manager);
}

pub(super) fn a_process_that_has_executed_can_be_frozen(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    execute(&manager);
    freeze(&client, &manager);
    client.write(call(0));
    client.reads("NOOP DEAD_REPLY");
    thaw(&client, &manager);
}

pub(super) fn a_child_that_has_the_file_is_not_who_is_frozen(scene: &Scene) {
    let parent = scene.bare_with(1, 1);
    parent.open();
    let client = scene.process();
    let child = parent.fork();
    assert_eq!(set(&client, child.pid(), 1, 0), Err(Errno::EINVAL));
    freeze(&client, &parent);
}

pub(super) fn a_process_that_has_changed_its_user_can_be_frozen(scene: &Scene) {
    needs_root();
    let (manager, client) = (scene.manager(), scene.process());
    become_user(&manager, 1000);
    freeze_for_a_call(&client, &manager);
}

pub(super) fn any_user_may_freeze(scene: &Scene) {
    needs_root();
    let (manager, client) = (scene.manager(), scene.process());
    become_user(&client, 1000);
    freeze_for_a_call(&client, &manager);
}

pub(super) fn a_frozen_process_that_dumps_core_is_released(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let _directory = dumps_core(&manager);
    client.write(acquire(0));
    client.write(request_death(0, 5));
    freeze(&client, &manager);
    manager.signal(Signal::SIGABRT);
    client.waits("NOOP DEAD_BINDER(5)");
}

pub(super) fn a_process_that_dumps_core_answers_with_dead_reply(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let _directory = dumps_core(&manager);
    client.write(call(0));
    manager.receive();
    manager.signal(Signal::SIGABRT);
    client.waits("NOOP TRANSACTION_COMPLETE DEAD_REPLY");
}

/// Has a process dump core when it gets a signal that says so, into the directory returned.
fn dumps_core(process: &Process) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let memory = process.threads[0].child.memory();
    let mut path = directory.path().as_os_str().as_encoded_bytes().to_vec();
    path.push(0);
    memory.put(PAGES, &path);
    assert_eq!(process.syscall(libc::SYS_chdir, &[memory.address(PAGES)]), Ok(0));
    let limit: [u64; 2] = [64 << 20; 2];
    memory.put(PAGES, limit.map(u64::to_ne_bytes).as_flattened());
    let arguments = [0, u64::from(libc::RLIMIT_CORE), memory.address(PAGES), 0];
    assert_eq!(process.syscall(libc::SYS_prlimit64, &arguments), Ok(0));
    directory
}

/// A process, and a child of its in a pid namespace of its own, which has opened the device itself.
fn in_a_namespace(scene: &Scene) -> (Process, Thread) {
    needs_root();
    let outer = scene.bare_with(1, 1);
    let made = outer.syscall(libc::SYS_unshare, &[libc::CLONE_NEWPID as u64]);
    assert_eq!(made, Ok(0));
    let inner = outer.fork();
    inner.open();
    inner.map(MAPPING);
    (outer, inner)
}

pub(super) fn a_process_in_a_pid_namespace_is_frozen_from_outside(scene: &Scene) {
    let manager = scene.manager();
    let (_outer, inner) = in_a_namespace(scene);
    let handle = scene.introduce(&inner, &manager, 1, 1);
    assert_eq!(set(&manager, inner.pid(), 1, 0), Ok(0));
    manager.write(call(handle));
    manager.reads("NOOP FROZEN_REPLY");
    assert_eq!(set(&manager, inner.pid(), 0, 0), Ok(0));
}

/// The driver goes by the numbers of the first pid namespace, wherever the caller lives.
pub(super) fn a_process_outside_is_frozen_from_a_pid_namespace(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let (_outer, inner) = in_a_namespace(scene);
    assert_eq!(set(&inner, manager.pid(), 1, 0), Ok(0));
    client.write(call(0));
    client.reads("NOOP FROZEN_REPLY");
}

pub(super) fn a_pid_of_a_namespace_names_nobody(scene: &Scene) {
    let _manager = scene.manager();
    let (_outer, inner) = in_a_namespace(scene);
    // The first process of a namespace has the number 1 there.
    assert_eq!(set(&inner, 1, 1, 0), Err(Errno::EINVAL));
    assert_eq!(set(&inner, inner.pid(), 1, 0), Ok(0));
}
