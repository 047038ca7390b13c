//! Buffers: where they lie, and freeing them rightly and wrongly.

use super::message::*;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::uapi;

group! { "buffer":
    the_first_lies_at_the_start,
    the_next_lies_right_behind,
    an_empty_one_takes_8_bytes,
    sizes_are_rounded_to_8,
    offsets_lie_behind_the_data,
    buffers_lie_behind_the_offsets,
    a_freed_one_is_used_again,
    the_best_fit_is_used,
    neighbours_become_one,
    neighbours_on_both_sides_become_one,
    freeing_out_of_order,
    a_full_mapping_refuses_calls,
    a_full_mapping_takes_calls_after_a_free,
    exactly_the_whole_mapping_fits,
    freeing_twice_changes_nothing,
    freeing_in_the_middle_changes_nothing,
    freeing_elsewhere_changes_nothing,
    freeing_without_a_mapping_changes_nothing,
    freeing_anothers_changes_nothing,
    freeing_an_undelivered_call_changes_nothing,
    another_thread_may_free,
    freeing_before_the_reply,
    freeing_after_the_reply,
    freeing_the_reply,
    a_cleared_one_is_zeros,
    an_uncleared_one_is_not,
    a_failed_reply_leaves_no_buffer,
    a_dead_callers_call_keeps_its_buffer,
    many_small_ones,
}

/// Makes a call whose buffer the manager keeps, and returns what the manager has received.
fn receive(client: &Thread, manager: &Thread, message: Msg) -> Received {
    client.write(message);
    let got = manager.receive();
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    let answer = client.reads("NOOP TRANSACTION_COMPLETE REPLY");
    client.write(free(answer.transaction().buffer));
    got
}

fn sized(size: usize) -> Msg {
    call(0).data(&vec![size as u8; size])
}

fn the_first_lies_at_the_start(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let got = receive(&client, &manager, sized(100));
    assert_eq!((got.at, got.buffer), (0, manager.start()));
}

fn the_next_lies_right_behind(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let at: Vec<_> =
        [64, 8, 4096, 16].map(|size| receive(&client, &manager, sized(size)).at).into();
    assert_eq!(at, [0, 64, 72, 4168]);
}

fn an_empty_one_takes_8_bytes(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let at: Vec<_> = [0, 0, 0].map(|size| receive(&client, &manager, sized(size)).at).into();
    assert_eq!(at, [0, 8, 16]);
}

fn sizes_are_rounded_to_8(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let at: Vec<_> = [1, 7, 8, 9, 0].map(|size| receive(&client, &manager, sized(size)).at).into();
    assert_eq!(at, [0, 8, 16, 24, 40]);
}

fn offsets_lie_behind_the_data(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0).data(b"12345").binder(1, 1).binder(2, 2).data(b"1"));
    let got = manager.receive();
    assert_eq!(got.transaction.offsets - got.buffer, 64);
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    client.read();
    assert_eq!(receive(&client, &manager, sized(8)).at, 64 + 16);
}

fn buffers_lie_behind_the_offsets(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0).data(b"1234").buffer(b"twelve bytes").buffer(b"x").data(b"1"));
    let got = manager.receive();
    let places: Vec<_> = (0..2)
        .map(|index| match got.object(index) {
            fakebinder_client::Object::Buffer { buffer, length, .. } => {
                (buffer - got.buffer, length)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(got.data_size, 85);
    assert_eq!(places, [(88 + 16, 12), (88 + 16 + 16, 1)]);
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    client.read();
    assert_eq!(receive(&client, &manager, sized(8)).at, 88 + 16 + 16 + 8);
}

fn a_freed_one_is_used_again(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let got: Vec<_> = (0..3).map(|_| receive(&client, &manager, sized(64))).collect();
    manager.write(free(got[1].buffer));
    assert_eq!(receive(&client, &manager, sized(64)).at, 64);
    assert_eq!(receive(&client, &manager, sized(64)).at, 192);
}

fn the_best_fit_is_used(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let got: Vec<_> =
        [512, 8, 128, 8, 256, 8].map(|size| receive(&client, &manager, sized(size))).into();
    manager.write([free(got[0].buffer), free(got[2].buffer), free(got[4].buffer)]);
    let at: Vec<_> =
        [200, 100, 300, 24, 48].map(|size| receive(&client, &manager, sized(size)).at).into();
    assert_eq!(at, [656, 520, 0, 624, 856]);
}

fn neighbours_become_one(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let got: Vec<_> = [64, 64, 64, 8].map(|size| receive(&client, &manager, sized(size))).into();
    manager.write([free(got[0].buffer), free(got[1].buffer)]);
    assert_eq!(receive(&client, &manager, sized(128)).at, 0);
}

fn neighbours_on_both_sides_become_one(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let got: Vec<_> = [64, 64, 64, 8].map(|size| receive(&client, &manager, sized(size))).into();
    manager.write([free(got[0].buffer), free(got[2].buffer), free(got[1].buffer)]);
    assert_eq!(receive(&client, &manager, sized(192)).at, 0);
}

fn freeing_out_of_order(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let got: Vec<_> =
            [4000, 8192, 24, 5000].map(|size| receive(&client, &manager, sized(size))).into();
        assert_eq!(got[3].at, 4000 + 8192 + 24);
        for index in order {
            manager.write(free(got[index].buffer));
        }
        // All of the space is one free range again.
        let all = receive(&client, &manager, sized(MAPPING as usize));
        assert_eq!(all.at, 0);
        manager.write(free(all.buffer));
    }
}

fn refused(client: &Thread, message: Msg) {
    client.write(message);
    client.reads("NOOP FAILED_REPLY");
    assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::ENOSPC));
}

fn a_full_mapping_refuses_calls(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    receive(&client, &manager, sized(MAPPING as usize - 8));
    refused(&client, sized(9));
    receive(&client, &manager, sized(8));
    refused(&client, sized(0));
}

fn a_full_mapping_takes_calls_after_a_free(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let big = receive(&client, &manager, sized(MAPPING as usize - 16));
    receive(&client, &manager, sized(16));
    refused(&client, sized(0));
    manager.write(free(big.buffer));
    receive(&client, &manager, sized(MAPPING as usize - 16));
}

fn exactly_the_whole_mapping_fits(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let got = receive(&client, &manager, sized(MAPPING as usize));
    assert_eq!(got.data.len(), MAPPING as usize);
    refused(&client, call(0));
}

fn freeing_twice_changes_nothing(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let got = receive(&client, &manager, sized(64));
    let other = receive(&client, &manager, sized(64));
    manager.write([free(got.buffer), free(got.buffer)]);
    manager.reads("EAGAIN");
    assert_eq!(receive(&client, &manager, sized(64)).at, 0);
    assert_eq!(manager.peek(other.buffer, 64), Ok(vec![64; 64]));
}

fn freeing_in_the_middle_changes_nothing(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let got = receive(&client, &manager, sized(64));
    manager.write([free(got.buffer + 8), free(got.buffer + 1), free(got.buffer + 64)]);
    assert_eq!(receive(&client, &manager, sized(64)).at, 64);
}

fn freeing_elsewhere_changes_nothing(scene: &Scene) {
    let process = scene.process();
    let start = process.start();
    process.write([
        free(0),
        free(NOWHERE),
        free(KERNEL),
        free(u64::MAX),
        free(start),
        free(start - 8),
        free(start + MAPPING),
    ]);
    process.reads("EAGAIN");
}

fn freeing_without_a_mapping_changes_nothing(scene: &Scene) {
    let process = scene.bare();
    process.open();
    process.write([free(0), free(4096)]);
    process.reads("EAGAIN");
}

fn freeing_anothers_changes_nothing(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let got = receive(&client, &manager, sized(64));
    client.write(free(got.buffer));
    assert_eq!(receive(&client, &manager, sized(64)).at, 64);
}

fn freeing_an_undelivered_call_changes_nothing(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0).data(b"not yet"));
    manager.write(free(manager.start()));
    assert_eq!(manager.receive().data, b"not yet");
    manager.write([free(manager.start()), reply().into()]);
    client.reads("NOOP TRANSACTION_COMPLETE REPLY");
}

fn another_thread_may_free(scene: &Scene) {
    let (manager, client) = (scene.manager_with(2, 0), scene.process());
    let got = receive(&client, &manager, sized(64));
    manager.threads[1].write(free(got.buffer));
    assert_eq!(receive(&client, &manager, sized(64)).at, 0);
}

fn freeing_before_the_reply(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0).code(1));
    let got = manager.receive();
    manager.write([free(got.buffer), reply().code(2).into()]);
    assert_eq!(client.reads("NOOP TRANSACTION_COMPLETE REPLY").transaction().code, 2);
}

fn freeing_after_the_reply(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    client.write(call(0).code(1));
    let got = manager.receive();
    manager.write([reply().code(2).into(), free(got.buffer)]);
    manager.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(client.reads("NOOP TRANSACTION_COMPLETE REPLY").transaction().code, 2);
    assert_eq!(receive(&client, &manager, sized(8)).at, 0);
}

fn freeing_the_reply(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    for _ in 0..2 {
        client.write(call(0));
        let got = manager.receive();
        manager.write([free(got.buffer), reply().data(b"answer").into()]);
        manager.reads("NOOP TRANSACTION_COMPLETE");
        let answer = client.reads("NOOP TRANSACTION_COMPLETE REPLY");
        assert_eq!(answer.transaction().at, 0);
        client.write(free(answer.transaction().buffer));
    }
}

fn a_cleared_one_is_zeros(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    receive(&client, &manager, sized(8));
    let got = receive(&client, &manager, sized(5000).flags(uapi::TF_CLEAR_BUF));
    assert_eq!(manager.peek(got.buffer, 5000), Ok(got.data));
    manager.write(free(got.transaction.buffer));
    assert_eq!(manager.peek(got.transaction.buffer, 5000), Ok(vec![0; 5000]));
    assert_eq!(manager.peek(manager.start(), 8), Ok(vec![8; 8]));
}

fn an_uncleared_one_is_not(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    receive(&client, &manager, sized(8));
    let got = receive(&client, &manager, sized(100));
    manager.write(free(got.buffer));
    assert_eq!(manager.peek(got.buffer, 100), Ok(got.data));
}

fn a_failed_reply_leaves_no_buffer(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    for _ in 0..3 {
        client.write(call(0));
        let got = manager.receive();
        let bad = reply().data(&vec![0; MAPPING as usize - 64]).handle(99);
        manager.write([free(got.buffer), bad.into()]);
        manager.reads("NOOP TRANSACTION_COMPLETE");
        client.reads("NOOP TRANSACTION_COMPLETE FAILED_REPLY");
        assert_eq!(client.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
    }
}

fn a_dead_callers_call_keeps_its_buffer(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let other = scene.process();
    client.write(call(0).data(b"orphan"));
    let got = manager.receive();
    scene.bury(&client, &manager);
    assert_eq!(manager.peek(got.buffer, 6), Ok(b"orphan".to_vec()));
    manager.write(reply());
    manager.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(receive(&other, &manager, sized(8)).at, 8);
    manager.write(free(got.buffer));
    assert_eq!(receive(&other, &manager, sized(8)).at, 0);
}

fn many_small_ones(scene: &Scene) {
    let (manager, client) = (scene.manager(), scene.process());
    let got: Vec<_> = (0..40).map(|_| receive(&client, &manager, sized(40))).collect();
    for (index, one) in got.iter().enumerate() {
        assert_eq!(one.at, index as u64 * 40);
    }
    let frees: Vec<_> = got.iter().step_by(2).map(|one| free(one.buffer)).collect();
    manager.write(frees);
    let frees: Vec<_> = got.iter().skip(1).step_by(2).map(|one| free(one.buffer)).collect();
    manager.write(frees);
    assert_eq!(receive(&client, &manager, sized(4000)).at, 0);
}
