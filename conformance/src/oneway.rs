//! One-way calls: in order, one at a time, in half of the space.

use super::message::*;
use super::runner::Skip;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::uapi;

group! { "oneway":
    it_is_complete_at_once,
    it_has_no_sender_pid,
    it_is_served_while_the_sender_calls,
    the_next_one_waits_for_the_buffer,
    they_come_in_order,
    another_node_does_not_wait,
    a_call_does_not_wait,
    it_does_not_go_to_the_thread_that_waits_for_a_reply,
    the_senders_may_be_many,
    it_survives_its_sender,
    it_may_take_half_of_the_space,
    its_space_comes_back,
    waiting_ones_take_space_too,
    a_call_may_take_the_rest,
    an_undelivered_one_cannot_be_freed,
    a_failed_one_does_not_block_the_next,
    spam_is_suspected_by_size,
    spam_is_suspected_by_number,
    the_call_itself_is_not_counted_as_spam,
    spam_is_told_only_to_who_asked,
    spam_is_told_once,
    spam_is_told_again_after_the_space_came_back,
    spam_is_counted_by_sender,
}

fn it_is_complete_at_once(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(oneway(0));
    client.reads("NOOP TRANSACTION_COMPLETE");
    client.reads("EAGAIN");
    manager.receive();
}

fn it_has_no_sender_pid(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(oneway(0));
    let got = manager.receive();
    assert_eq!((got.sender_pid, got.flags), (0, uapi::TF_ONE_WAY));
    assert_eq!(got.sender_euid, nix::unistd::geteuid().as_raw());
}

fn it_is_served_while_the_sender_calls(scene: &Scene) {
    let manager = scene.manager_with(2, 0);
    let client = scene.process();
    client.write([call(0).code(1).into(), oneway(0).code(2).into()]);
    assert_eq!(manager.receive().code, 1);
    assert_eq!(manager.threads[1].receive().code, 2);
    client.reads("NOOP TRANSACTION_COMPLETE TRANSACTION_COMPLETE");
}

fn the_next_one_waits_for_the_buffer(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write([oneway(0).code(1).into(), oneway(0).code(2).into()]);
    let first = manager.receive();
    manager.reads("EAGAIN");
    let (_, reads) = manager.write_read(free(first.buffer), READ_SIZE);
    assert_eq!(reads.text, "NOOP TRANSACTION");
    assert_eq!(reads.transaction().code, 2);
}

fn they_come_in_order(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process_with(2);
    for code in 0..6 {
        client.threads[code % 2].write(oneway(0).code(code as u32));
    }
    for code in 0..6 {
        let got = manager.receive();
        assert_eq!(got.code, code);
        manager.write(free(got.buffer));
    }
    manager.reads("EAGAIN");
}

fn another_node_does_not_wait(scene: &Scene) {
    let manager = scene.manager();
    let owner = scene.process();
    let one = scene.introduce(&owner, &manager, 1, 1);
    let two = scene.introduce(&owner, &manager, 2, 2);
    manager.write([oneway(one).into(), oneway(one).into(), oneway(two).into()]);
    assert_eq!(owner.receive().target, 1);
    assert_eq!(owner.receive().target, 2);
    owner.reads("EAGAIN");
}

fn a_call_does_not_wait(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write([oneway(0).code(1).into(), oneway(0).code(2).into(), call(0).code(3).into()]);
    assert_eq!(manager.receive().code, 1);
    assert_eq!(manager.receive().code, 3);
}

fn it_does_not_go_to_the_thread_that_waits_for_a_reply(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process_with(2);
    let handle = scene.introduce(&client, &manager, 1, 2);
    client.write(call(0));
    manager.receive();
    manager.write(oneway(handle));
    client.reads("EAGAIN");
    client.threads[1].set_max_threads(0);
    client.threads[1].receive();
}

fn the_senders_may_be_many(scene: &Scene) {
    let manager = scene.manager();
    let senders: Vec<_> = (0..3).map(|_| scene.process()).collect();
    for (code, sender) in senders.iter().enumerate() {
        sender.write(oneway(0).code(code as u32));
    }
    for code in 0..3 {
        let got = manager.receive();
        assert_eq!(got.code, code);
        manager.write(free(got.buffer));
    }
}

fn it_survives_its_sender(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write([oneway(0).code(1).into(), oneway(0).code(2).data(b"last words").into()]);
    scene.bury(&client, &manager);
    let first = manager.receive();
    manager.write(free(first.buffer));
    assert_eq!(manager.receive().data, b"last words");
}

fn failed(client: &Thread, errno: i32) {
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -errno));
}

fn it_may_take_half_of_the_space(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let half = vec![1; MAPPING as usize / 2];
    client.write(oneway(0).data(&half).data(&[1]));
    failed(&client, libc::ENOSPC);
    client.write(oneway(0).data(&half));
    client.reads("NOOP TRANSACTION_COMPLETE");
    client.write(oneway(0));
    failed(&client, libc::ENOSPC);
    assert!(manager.receive().data == half);
}

fn its_space_comes_back(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let half = vec![1; MAPPING as usize / 2];
    for _ in 0..3 {
        client.write(oneway(0).data(&half));
        client.reads("NOOP TRANSACTION_COMPLETE");
        let got = manager.receive();
        manager.write(free(got.buffer));
    }
}

fn waiting_ones_take_space_too(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let quarter = vec![1; MAPPING as usize / 4];
    client.write([oneway(0).data(&quarter).into(), oneway(0).data(&quarter).into()]);
    client.write(oneway(0));
    client.reads("NOOP TRANSACTION_COMPLETE TRANSACTION_COMPLETE FAILED_REPLY");
    manager.receive();
}

fn a_call_may_take_the_rest(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    let half = vec![1; MAPPING as usize / 2];
    client.write([oneway(0).data(&half).into(), call(0).data(&half).into()]);
    manager.receive();
    assert!(manager.receive().data == half);
}

fn an_undelivered_one_cannot_be_freed(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write([oneway(0).code(1).into(), oneway(0).code(2).data(b"still here").into()]);
    let first = manager.receive();
    // The second buffer lies right behind the first.
    manager.write([free(first.buffer + 8), free(first.buffer)]);
    let second = manager.receive();
    assert_eq!((second.buffer, second.data.as_slice()), (first.buffer + 8, &b"still here"[..]));
}

fn a_failed_one_does_not_block_the_next(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(oneway(0).handle(99));
    failed(&client, libc::EINVAL);
    client.write(oneway(0).code(1));
    client.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(manager.receive().code, 1);
}

fn detect(thread: &Thread) {
    let command = uapi::BINDER_ENABLE_ONEWAY_SPAM_DETECTION;
    thread.ioctl_words(command, &mut [1]).expect("spam detection");
}

/// More than a quarter of the mapping; with [`REST`] less than a tenth is left of the half that
/// one-way calls may take.
const MUCH: usize = MAPPING as usize * 30 / 100;
const REST: usize = MAPPING as usize * 12 / 100;

fn spam_is_suspected_by_size(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    detect(&client);
    client.write(oneway(0).data(&vec![0; MUCH]));
    client.reads("NOOP TRANSACTION_COMPLETE");
    client.write(oneway(0).data(&vec![0; REST]));
    client.reads("NOOP ONEWAY_SPAM_SUSPECT");
    manager.receive();
}

fn spam_is_suspected_by_number(scene: &Scene) {
    let manager = scene.manager();
    let (client, others) = (scene.process(), [scene.process(), scene.process()]);
    detect(&client);
    // Other processes take the space, no more than a quarter each; this one sends many small calls.
    for other in &others {
        other.write(oneway(0).data(&vec![0; (MUCH + REST) / 2]));
    }
    // Since Linux 6.8 the new call itself does not count.
    let count = if scene.driver_is_at_least(6, 8) { 51 } else { 50 };
    for _ in 0..count {
        client.write(oneway(0));
        client.reads("NOOP TRANSACTION_COMPLETE");
    }
    client.write(oneway(0));
    client.reads("NOOP ONEWAY_SPAM_SUSPECT");
    manager.receive();
}

fn the_call_itself_is_not_counted_as_spam(scene: &Scene) {
    if !scene.driver_is_at_least(6, 8) {
        std::panic::panic_any(Skip("not in this driver: the call itself counts".to_owned()));
    }
    let (manager, client) = (scene.manager(), scene.process());
    detect(&client);
    client.write(oneway(0).data(&vec![0; MUCH + REST]));
    client.reads("NOOP TRANSACTION_COMPLETE");
    client.write(oneway(0));
    client.reads("NOOP ONEWAY_SPAM_SUSPECT");
    manager.receive();
}

fn spam_is_told_only_to_who_asked(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    detect(&manager);
    client.write([oneway(0).data(&vec![0; MUCH]).into(), oneway(0).data(&vec![0; REST]).into()]);
    client.reads("NOOP TRANSACTION_COMPLETE TRANSACTION_COMPLETE");
}

fn spam_is_told_once(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    detect(&client);
    client.write([oneway(0).data(&vec![0; MUCH]).into(), oneway(0).data(&vec![0; REST]).into()]);
    client.reads("NOOP TRANSACTION_COMPLETE ONEWAY_SPAM_SUSPECT");
    client.write(oneway(0));
    client.reads("NOOP TRANSACTION_COMPLETE");
    manager.receive();
}

fn spam_is_told_again_after_the_space_came_back(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    detect(&client);
    for _ in 0..2 {
        client
            .write([oneway(0).data(&vec![0; MUCH]).into(), oneway(0).data(&vec![0; REST]).into()]);
        client.reads("NOOP TRANSACTION_COMPLETE ONEWAY_SPAM_SUSPECT");
        for _ in 0..2 {
            let got = manager.receive();
            manager.write(free(got.buffer));
        }
        // This call finds enough space.
        client.write(oneway(0));
        client.reads("NOOP TRANSACTION_COMPLETE");
        let got = manager.receive();
        manager.write(free(got.buffer));
    }
}

fn spam_is_counted_by_sender(scene: &Scene) {
    let manager = scene.manager();
    let (client, other) = (scene.process(), scene.process());
    detect(&client);
    detect(&other);
    let half = vec![0; (MUCH + REST) / 2];
    other.write(oneway(0).data(&half));
    client.write(oneway(0).data(&half));
    client.reads("NOOP TRANSACTION_COMPLETE");
    client.write(oneway(0));
    client.reads("NOOP TRANSACTION_COMPLETE");
    manager.receive();
}
