//! Edge-triggered polls: what wakes them, and what does not.

use super::*;

pub(super) fn edge_tells_each_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let epoll = Epoll::of(&manager, EDGE);
    for _ in 0..ROUNDS {
        post(&client);
        epoll.waits(&manager);
        drain(&manager);
        epoll.is_silent(&manager);
    }
}

pub(super) fn edge_tells_once(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let epoll = Epoll::of(&manager, EDGE);
    client.write(call(0));
    epoll.waits(&manager);
    assert_eq!(epoll.tells(&manager), 0, "nothing has come since");
    manager.receive();
}

pub(super) fn edge_tells_again_when_more_comes(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let epoll = Epoll::of(&manager, EDGE);
    let clients: Vec<_> = (0..5).map(|_| scene.process()).collect();
    for client in &clients {
        client.write(call(0));
        epoll.waits(&manager);
    }
    for _ in &clients {
        let got = manager.receive();
        manager.write([free(got.transaction.buffer), reply().into()]);
        manager.reads("NOOP TRANSACTION_COMPLETE");
    }
    drop(client);
}

pub(super) fn edge_tells_each_call_to_one_who_waits(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let epoll = Epoll::of(&manager, EDGE);
    for _ in 0..ROUNDS {
        epoll.begin_wait(&manager, -1);
        manager.asleep();
        client.write(call(0));
        epoll.told(&manager);
        let got = manager.receive();
        manager.write([free(got.transaction.buffer), reply().into()]);
        manager.reads("NOOP TRANSACTION_COMPLETE");
        manager.reads("EAGAIN");
        let answer = client.waits("NOOP TRANSACTION_COMPLETE REPLY");
        client.write(free(answer.transaction().buffer));
    }
}

pub(super) fn edge_tells_each_reply(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.reads("NOOP");
    let epoll = Epoll::of(&client, EDGE);
    for _ in 0..ROUNDS {
        client.write(call(0));
        epoll.is_silent(&client);
        epoll.begin_wait(&client, -1);
        client.asleep();
        let got = manager.receive();
        manager.write([free(got.transaction.buffer), reply().into()]);
        manager.reads("NOOP TRANSACTION_COMPLETE");
        epoll.told(&client);
        let answer = client.waits("NOOP TRANSACTION_COMPLETE REPLY");
        client.write(free(answer.transaction().buffer));
        client.reads("EAGAIN");
        epoll.is_silent(&client);
    }
}

pub(super) fn edge_tells_the_outcome_of_ones_own_oneway_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.reads("NOOP");
    let epoll = Epoll::of(&client, EDGE);
    for _ in 0..ROUNDS {
        client.write(oneway(0));
        epoll.waits(&client);
        client.reads("NOOP TRANSACTION_COMPLETE");
        client.reads("EAGAIN");
        epoll.is_silent(&client);
    }
    drop(manager);
}

pub(super) fn edge_tells_an_error_of_ones_own(scene: &Scene) {
    let process = idle(scene);
    let epoll = Epoll::of(&process, EDGE);
    for _ in 0..ROUNDS {
        process.write(call(99));
        epoll.waits(&process);
        process.reads("NOOP FAILED_REPLY");
        epoll.is_silent(&process);
    }
}

pub(super) fn edge_tells_a_reference(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let handle = scene.introduce(&client, &manager, 1, 2);
    client.reads("EAGAIN");
    let epoll = Epoll::of(&client, EDGE);
    epoll.is_silent(&client);
    manager.write(release(handle));
    epoll.waits(&client);
    client.reads("NOOP RELEASE(1,2) DECREFS(1,2)");
    epoll.is_silent(&client);
}

pub(super) fn edge_tells_a_death(scene: &Scene) {
    let manager = scene.manager();
    let owners: Vec<_> = (0..3).map(|_| scene.process()).collect();
    for (index, owner) in owners.iter().enumerate() {
        let handle = scene.introduce(owner, &manager, 1, 2);
        manager.write(request_death(handle, index as u64));
    }
    let epoll = Epoll::of(&manager, EDGE);
    epoll.is_silent(&manager);
    for (cookie, owner) in owners.iter().enumerate() {
        owner.kill();
        epoll.waits(&manager);
        manager.reads(&format!("NOOP DEAD_BINDER({cookie})"));
        manager.write(dead_binder_done(cookie as u64));
        manager.reads("EAGAIN");
    }
}

pub(super) fn edge_tells_a_nested_call(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let handle = scene.introduce(&client, &manager, 1, 2);
    client.reads("EAGAIN");
    let epoll = Epoll::of(&client, EDGE);
    client.write(call(0));
    manager.receive();
    epoll.is_silent(&client);
    manager.write(call(handle));
    epoll.waits(&client);
    client.reads("NOOP TRANSACTION_COMPLETE TRANSACTION");
    epoll.is_silent(&client);
    client.write(reply());
    epoll.waits(&client);
    client.reads("NOOP TRANSACTION_COMPLETE");
    manager.reads("NOOP TRANSACTION_COMPLETE REPLY");
    manager.write(reply());
    epoll.waits(&client);
    client.reads("NOOP REPLY");
    epoll.is_silent(&client);
}

/// A thread that does not read until nothing is left hears of the rest, if it may take that.
pub(super) fn edge_tells_what_is_left_after_a_read(scene: &Scene) {
    let manager = scene.manager();
    let clients: Vec<_> = (0..3).map(|_| scene.process()).collect();
    clients.iter().for_each(|client| client.write(oneway(0)));
    let epoll = Epoll::of(&manager, EDGE);
    epoll.waits(&manager);
    for left in (0..clients.len()).rev() {
        let got = manager.receive();
        manager.write(free(got.transaction.buffer));
        match left {
            0 => epoll.is_silent(&manager),
            _ => epoll.waits(&manager),
        }
    }
}

pub(super) fn edge_before_the_first_ioctl(scene: &Scene) {
    let manager = scene.manager_with(2, 0);
    let client = scene.process();
    let late = &manager.threads[1];
    let epoll = Epoll::of(late, EDGE);
    epoll.waits(late);
    late.reads("NOOP");
    epoll.is_silent(late);
    for _ in 0..ROUNDS {
        post(&client);
        epoll.waits(late);
        drain(late);
        epoll.is_silent(late);
    }
}

pub(super) fn edge_of_a_file_that_is_readable_already(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    post(&client);
    let epoll = Epoll::of(&manager, EDGE);
    for _ in 0..ROUNDS {
        epoll.waits(&manager);
        drain(&manager);
        epoll.is_silent(&manager);
        post(&client);
    }
}

/// One thread has added the file to the epoll instance, other threads wait.
pub(super) fn edge_shared_by_two_threads(scene: &Scene) {
    let manager = scene.manager_with(3, 0);
    let client = scene.process();
    let epoll = Epoll::of(&manager, EDGE);
    manager.threads.iter().skip(1).for_each(|thread| {
        thread.reads("NOOP");
    });
    for round in 0..ROUNDS {
        let thread = &manager.threads[1 + round % 2];
        epoll.begin_wait(thread, -1);
        thread.asleep();
        post(&client);
        epoll.told(thread);
        drain(thread);
        epoll.is_silent(thread);
    }
}

pub(super) fn edge_of_two_opens(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let second = manager.open_again();
    second.reads("NOOP");
    let epoll = Epoll::of(&manager, EDGE);
    epoll.control(&second, libc::EPOLL_CTL_ADD, second.fd() as u64, EDGE);
    for _ in 0..ROUNDS {
        post(&client);
        epoll.waits(&manager);
        drain(&manager);
        second.write(call(99));
        epoll.waits(&second);
        second.reads("NOOP FAILED_REPLY");
        epoll.is_silent(&manager);
    }
}
