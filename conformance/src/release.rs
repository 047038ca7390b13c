//! Closing a device, and what becomes of everything that it held.

use super::message::*;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::uapi;

group! { "release":
    a_holders_references_go,
    a_holders_buffers_go,
    a_senders_waiting_call_stays,
    a_receivers_unread_calls_end,
    a_receivers_unread_oneway_calls_vanish,
    a_managers_place_is_free,
    a_mapping_keeps_the_process,
    a_duplicate_keeps_the_process,
    a_child_keeps_the_process,
    the_device_can_be_opened_again,
    a_thread_that_ends_stays_a_binder_thread,
    a_thread_exit_fails_what_it_was_sent,
    a_thread_exit_forgets_errors,
    many_processes_at_once,
}

fn a_holders_references_go(scene: &Scene) {
    let (manager, owner) = (scene.manager(), scene.process());
    for ptr in [1, 2] {
        scene.introduce(&owner, &manager, ptr, 0);
    }
    scene.bury(&manager, &owner);
    owner.reads("NOOP RELEASE(1,0) DECREFS(1,0) RELEASE(2,0) DECREFS(2,0)");
}

fn a_holders_buffers_go(scene: &Scene) {
    let (manager, owner) = (scene.manager(), scene.process());
    owner.write(oneway(0).binder(1, 2));
    owner.reads("NOOP INCREFS(1,2) ACQUIRE(1,2) TRANSACTION_COMPLETE");
    owner.write([increfs_done(1, 2), acquire_done(1, 2)]);
    manager.receive();
    scene.bury(&manager, &owner);
    owner.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
}

fn a_senders_waiting_call_stays(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0).code(7));
    scene.bury(&client, &manager);
    let got = manager.receive();
    assert_eq!((got.code, got.sender_pid), (7, 0));
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
}

fn a_receivers_unread_calls_end(scene: &Scene) {
    let manager = scene.manager();
    let clients: Vec<_> = (0..3).map(|_| scene.process()).collect();
    for client in &clients {
        client.write(call(0));
    }
    manager.receive();
    scene.bury(&manager, &clients[0]);
    for client in &clients {
        client.reads("NOOP TRANSACTION_COMPLETE DEAD_REPLY");
    }
}

fn a_receivers_unread_oneway_calls_vanish(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write([oneway(0).into(), oneway(0).binder(1, 2).into()]);
    client.reads("NOOP TRANSACTION_COMPLETE INCREFS(1,2) ACQUIRE(1,2) TRANSACTION_COMPLETE");
    client.write([increfs_done(1, 2), acquire_done(1, 2)]);
    scene.bury(&manager, &client);
    client.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
}

fn a_managers_place_is_free(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    scene.bury(&manager, &client);
    assert_eq!(client.ioctl_words(uapi::BINDER_SET_CONTEXT_MGR, &mut [0]), Ok(0));
}

fn a_mapping_keeps_the_process(scene: &Scene) {
    let (manager, owner) = (scene.manager(), scene.process());
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write(request_death(handle, 5));
    owner.close();
    manager.write(oneway(handle));
    manager.reads("NOOP TRANSACTION_COMPLETE");
    owner.unmap();
    manager.waits("NOOP DEAD_BINDER(5)");
}

fn a_duplicate_keeps_the_process(scene: &Scene) {
    let (manager, owner) = (scene.manager(), scene.process());
    let handle = scene.introduce(&owner, &manager, 1, 2);
    let duplicate = owner.syscall(libc::SYS_dup, &[owner.fd() as u64]).expect("dup");
    owner.syscall(libc::SYS_close, &[owner.fd() as u64]).expect("close");
    owner.adopt(duplicate as i32);
    manager.write(oneway(handle).code(5));
    assert_eq!(owner.read_call().code, 5);
}

fn a_child_keeps_the_process(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.bare_with(1, 1);
    owner.open();
    owner.map(MAPPING);
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write(request_death(handle, 5));
    let child = owner.fork();
    owner.unmap();
    owner.syscall(libc::SYS_close, &[owner.fd() as u64]).expect("close");
    manager.reads("EAGAIN");
    // The process still exists, but its mapping does not.
    manager.write(oneway(handle));
    manager.reads("NOOP DEAD_REPLY");
    child.exit();
    manager.waits("NOOP DEAD_BINDER(5)");
}

fn the_device_can_be_opened_again(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    for code in 0..3 {
        client.write(oneway(0).code(code));
        client.unmap();
        client.close();
        client.open();
        client.map(MAPPING);
        let got = manager.receive();
        assert_eq!(got.code, code);
        manager.write(free(got.buffer));
    }
}

fn a_thread_that_ends_stays_a_binder_thread(scene: &Scene) {
    // The driver does not see threads end: their calls stay. fakebinder sees it, because
    // BINDER_THREAD_EXIT with a null argument, as libbinder calls it, does not arrive on the FUSE
    // door.
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    client.write(call(0));
    let server = &manager.threads[1];
    assert_eq!(server.read_call().code, 0);
    server.exit();
    let task = format!("/proc/{}/task/{}", manager.pid(), server.tid());
    client.until("the thread to end", || !std::path::Path::new(&task).exists());
    client.reads("EAGAIN");
    manager.kill();
    client.waits("NOOP TRANSACTION_COMPLETE DEAD_REPLY");
}

fn a_thread_exit_fails_what_it_was_sent(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process_with(2));
    let handle = scene.introduce(&client, &manager, 1, 2);
    client.write(call(0));
    manager.receive();
    // A nested call for the waiting thread alone, which stays unread.
    manager.write(call(handle));
    client.thread_exit();
    manager.reads("NOOP TRANSACTION_COMPLETE DEAD_REPLY");
}

fn a_thread_exit_forgets_errors(scene: &Scene) {
    let process = scene.process();
    process.write(call(99));
    process.thread_exit();
    process.reads("NOOP");
    assert_eq!(process.extended_error(), ("OK", 0));
    process.reads("EAGAIN");
}

fn many_processes_at_once(scene: &Scene) {
    let manager = scene.manager();
    let clients: Vec<_> = (0..20).map(|_| scene.process()).collect();
    let mut handles = Vec::new();
    for client in &clients {
        let handle = scene.introduce(client, &manager, 1, 2);
        manager.write(request_death(handle, u64::from(handle)));
        handles.push(handle);
    }
    for client in &clients {
        client.kill();
    }
    let mut dead = Vec::new();
    while dead.len() < handles.len() {
        match manager.read_soon().returns[..] {
            [fakebinder_client::Return::Noop, fakebinder_client::Return::DeadBinder(cookie)] => {
                dead.push(cookie as u32)
            }
            ref other => panic!("{other:?}"),
        }
    }
    dead.sort_unstable();
    assert_eq!(dead, handles);
}
