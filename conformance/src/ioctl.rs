//! The ioctls beside BINDER_WRITE_READ.

use super::message::*;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::{Errno, uapi};

group! { "ioctl":
    version_is_8,
    version_to_a_bad_pointer,
    version_of_another_size_is_unknown,
    unknown_number_is_refused,
    unknown_type_is_refused,
    number_0_is_refused,
    set_idle_timeout_is_refused,
    set_idle_priority_is_refused,
    write_read_of_nothing_does_nothing,
    write_read_from_a_bad_pointer,
    write_read_across_the_edge_of_memory,
    set_max_threads_from_a_bad_pointer,
    set_context_manager_ignores_its_argument,
    set_context_manager_ext_from_a_bad_pointer,
    thread_exit_ignores_its_argument,
    thread_exit_can_be_repeated,
    spam_detection_takes_any_number,
    spam_detection_from_a_bad_pointer,
    freeze_from_a_bad_pointer,
    frozen_info_from_a_bad_pointer,
    extended_error_begins_as_ok,
    extended_error_to_a_bad_pointer_is_lost,
    extended_error_is_cleared_by_reading,
    extended_error_is_cleared_by_the_next_transaction,
    extended_error_is_of_the_thread,
    extended_error_has_the_transactions_id,
    node_debug_info_of_no_node,
    node_debug_info_goes_up,
    node_debug_info_shows_references,
    node_debug_info_from_a_bad_pointer,
    node_info_is_for_the_manager_only,
    node_info_wants_zeros,
    node_info_of_an_unknown_handle,
    node_info_of_a_weak_handle,
    node_info_counts,
    node_info_from_a_bad_pointer,
}

/// A process whose thread has made its first ioctl.
fn process(scene: &Scene) -> Process {
    let process = scene.process();
    process.reads("NOOP");
    process
}

fn version_is_8(scene: &Scene) {
    let mut words = [0];
    assert_eq!(process(scene).ioctl_words(uapi::BINDER_VERSION, &mut words), Ok(0));
    assert_eq!(words, [8]);
}

fn version_to_a_bad_pointer(scene: &Scene) {
    assert_eq!(process(scene).ioctl_at(uapi::BINDER_VERSION, NOWHERE), Err(Errno::EINVAL));
}

/// An ioctl of type 'b' that reads and writes `size` bytes.
const fn number(nr: u32, size: u32) -> u32 {
    (3 << 30) | (size << 16) | ((b'b' as u32) << 8) | nr
}

fn version_of_another_size_is_unknown(scene: &Scene) {
    let process = process(scene);
    assert_eq!(number(9, 4), uapi::BINDER_VERSION);
    assert_eq!(process.ioctl(number(9, 8), &mut [0; 8]), Err(Errno::EINVAL));
}

fn unknown_number_is_refused(scene: &Scene) {
    let process = process(scene);
    for nr in [2, 4, 10, 18, 255] {
        assert_eq!(process.ioctl(number(nr, 4), &mut [0; 4]), Err(Errno::EINVAL), "nr {nr}");
    }
}

fn unknown_type_is_refused(scene: &Scene) {
    let command = (uapi::BINDER_VERSION & !0xff00) | (u32::from(b'z') << 8);
    assert_eq!(process(scene).ioctl(command, &mut [0; 4]), Err(Errno::EINVAL));
}

fn number_0_is_refused(scene: &Scene) {
    assert_eq!(process(scene).ioctl_at(0, 0), Err(Errno::EINVAL));
}

fn set_idle_timeout_is_refused(scene: &Scene) {
    let got = process(scene).ioctl(uapi::BINDER_SET_IDLE_TIMEOUT, &mut [0; 8]);
    assert_eq!(got, Err(Errno::EINVAL));
}

fn set_idle_priority_is_refused(scene: &Scene) {
    let got = process(scene).ioctl(uapi::BINDER_SET_IDLE_PRIORITY, &mut [0; 4]);
    assert_eq!(got, Err(Errno::EINVAL));
}

fn write_read_of_nothing_does_nothing(scene: &Scene) {
    let mut bwr = [0, 5, NOWHERE, 0, 6, NOWHERE];
    assert_eq!(process(scene).write_read_raw(&mut bwr), Ok(()));
    assert_eq!(bwr, [0, 5, NOWHERE, 0, 6, NOWHERE]);
}

fn write_read_from_a_bad_pointer(scene: &Scene) {
    let process = process(scene);
    for address in [0, NOWHERE, KERNEL] {
        assert_eq!(process.ioctl_at(uapi::BINDER_WRITE_READ, address), Err(Errno::EFAULT));
    }
}

fn write_read_across_the_edge_of_memory(scene: &Scene) {
    let process = process(scene);
    let address = process.put_at_edge(&[0; 40]);
    assert_eq!(process.ioctl_at(uapi::BINDER_WRITE_READ, address), Err(Errno::EFAULT));
}

fn set_max_threads_from_a_bad_pointer(scene: &Scene) {
    let got = process(scene).ioctl_at(uapi::BINDER_SET_MAX_THREADS, NOWHERE);
    assert_eq!(got, Err(Errno::EINVAL));
}

fn set_context_manager_ignores_its_argument(scene: &Scene) {
    let process = process(scene);
    process.until("the last context manager to go", || {
        match process.ioctl_at(uapi::BINDER_SET_CONTEXT_MGR, NOWHERE) {
            Err(Errno::EBUSY) => false,
            other => {
                assert_eq!(other, Ok(0));
                true
            }
        }
    });
}

fn set_context_manager_ext_from_a_bad_pointer(scene: &Scene) {
    let got = process(scene).ioctl_at(uapi::BINDER_SET_CONTEXT_MGR_EXT, NOWHERE);
    assert_eq!(got, Err(Errno::EINVAL));
}

fn thread_exit_ignores_its_argument(scene: &Scene) {
    assert_eq!(process(scene).ioctl_at(uapi::BINDER_THREAD_EXIT, NOWHERE), Ok(0));
}

fn thread_exit_can_be_repeated(scene: &Scene) {
    let process = process(scene);
    process.thread_exit();
    process.thread_exit();
    // To the driver the thread is new: its first read does not wait.
    process.reads("NOOP");
}

fn spam_detection_takes_any_number(scene: &Scene) {
    let process = process(scene);
    for enable in [0, 1, 2, u32::MAX] {
        let command = uapi::BINDER_ENABLE_ONEWAY_SPAM_DETECTION;
        assert_eq!(process.ioctl_words(command, &mut [enable]), Ok(0));
    }
}

fn spam_detection_from_a_bad_pointer(scene: &Scene) {
    let got = process(scene).ioctl_at(uapi::BINDER_ENABLE_ONEWAY_SPAM_DETECTION, NOWHERE);
    assert_eq!(got, Err(Errno::EFAULT));
}

fn freeze_from_a_bad_pointer(scene: &Scene) {
    assert_eq!(process(scene).ioctl_at(uapi::BINDER_FREEZE, NOWHERE), Err(Errno::EFAULT));
}

fn frozen_info_from_a_bad_pointer(scene: &Scene) {
    assert_eq!(process(scene).ioctl_at(uapi::BINDER_GET_FROZEN_INFO, NOWHERE), Err(Errno::EFAULT));
}

fn extended_error_begins_as_ok(scene: &Scene) {
    let mut words = [7; 3];
    let got = process(scene).ioctl_words(uapi::BINDER_GET_EXTENDED_ERROR, &mut words);
    assert_eq!(got, Ok(0));
    assert_eq!(words, [0, uapi::BR_OK, 0]);
}

fn extended_error_to_a_bad_pointer_is_lost(scene: &Scene) {
    let process = process(scene);
    process.write(call(99));
    process.reads("NOOP FAILED_REPLY");
    let got = process.ioctl_at(uapi::BINDER_GET_EXTENDED_ERROR, NOWHERE);
    assert_eq!(got, Err(Errno::EFAULT));
    assert_eq!(process.extended_error(), ("OK", 0));
}

fn extended_error_is_cleared_by_reading(scene: &Scene) {
    let process = process(scene);
    process.write(call(99));
    process.reads("NOOP FAILED_REPLY");
    assert_eq!(process.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
    assert_eq!(process.extended_error(), ("OK", 0));
}

fn extended_error_is_cleared_by_the_next_transaction(scene: &Scene) {
    let manager = scene.manager();
    let client = process(scene);
    client.write(call(99));
    client.reads("NOOP FAILED_REPLY");
    client.write(oneway(0));
    client.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(client.extended_error(), ("OK", 0));
    manager.receive();
}

fn extended_error_is_of_the_thread(scene: &Scene) {
    let process = scene.process_with(2);
    process.write(call(99));
    process.reads("NOOP FAILED_REPLY");
    assert_eq!(process.threads[1].extended_error(), ("OK", 0));
    assert_eq!(process.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
}

fn extended_error_has_the_transactions_id(scene: &Scene) {
    let process = process(scene);
    let mut last = 0;
    for _ in 0..2 {
        process.write(call(99));
        process.reads("NOOP FAILED_REPLY");
        let mut words = [0; 3];
        process.ioctl_words(uapi::BINDER_GET_EXTENDED_ERROR, &mut words).expect("ioctl");
        assert!(words[0] > last, "{} after {last}", words[0]);
        last = words[0];
    }
}

fn node_debug_info(thread: &Thread, after: u64) -> (u64, u64, u32, u32) {
    let mut bytes = [0xff; 24];
    bytes[..8].copy_from_slice(&after.to_ne_bytes());
    thread.ioctl(uapi::BINDER_GET_NODE_DEBUG_INFO, &mut bytes).expect("node debug info");
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    (word(0), word(8), word(16) as u32, (word(16) >> 32) as u32)
}

fn node_debug_info_of_no_node(scene: &Scene) {
    assert_eq!(node_debug_info(&process(scene), 0), (0, 0, 0, 0));
}

fn node_debug_info_goes_up(scene: &Scene) {
    let manager = scene.manager();
    let owner = process(scene);
    for ptr in [30, 10, 20] {
        scene.introduce(&owner, &manager, ptr, ptr + 1);
    }
    let mut seen = Vec::new();
    let mut ptr = 0;
    loop {
        let info = node_debug_info(&owner, ptr);
        seen.push((info.0, info.1));
        ptr = info.0;
        if ptr == 0 {
            break;
        }
    }
    assert_eq!(seen, [(10, 11), (20, 21), (30, 31), (0, 0)]);
    assert_eq!(node_debug_info(&owner, 15).0, 20);
    assert_eq!(node_debug_info(&owner, u64::MAX).0, 0);
}

fn node_debug_info_shows_references(scene: &Scene) {
    let manager = scene.manager();
    let owner = process(scene);
    let strong = scene.introduce(&owner, &manager, 1, 2);
    assert_eq!(node_debug_info(&owner, 0), (1, 2, 1, 1));
    manager.write([increfs(strong), release(strong)]);
    owner.reads("NOOP RELEASE(1,2)");
    assert_eq!(node_debug_info(&owner, 0), (1, 2, 0, 1));
    manager.write(decrefs(strong));
    owner.reads("NOOP DECREFS(1,2)");
    assert_eq!(node_debug_info(&owner, 0), (0, 0, 0, 0));
}

fn node_debug_info_from_a_bad_pointer(scene: &Scene) {
    let got = process(scene).ioctl_at(uapi::BINDER_GET_NODE_DEBUG_INFO, NOWHERE);
    assert_eq!(got, Err(Errno::EFAULT));
}

const NODE_INFO: u32 = uapi::BINDER_GET_NODE_INFO_FOR_REF;

fn node_info_is_for_the_manager_only(scene: &Scene) {
    let manager = scene.manager();
    let client = process(scene);
    client.write(acquire(0));
    assert_eq!(client.ioctl_words(NODE_INFO, &mut [0; 6]), Err(Errno::EPERM));
    drop(manager);
}

fn node_info_wants_zeros(scene: &Scene) {
    let manager = scene.manager();
    let client = process(scene);
    for thread in [&*manager, &*client] {
        for index in 1..6 {
            let mut words = [0; 6];
            words[index] = 1;
            assert_eq!(thread.ioctl_words(NODE_INFO, &mut words), Err(Errno::EINVAL));
        }
    }
}

fn node_info_of_an_unknown_handle(scene: &Scene) {
    let manager = scene.manager();
    for handle in [0, 1, 99] {
        let mut words = [handle, 0, 0, 0, 0, 0];
        assert_eq!(manager.ioctl_words(NODE_INFO, &mut words), Err(Errno::EINVAL));
    }
}

fn node_info_of_a_weak_handle(scene: &Scene) {
    let manager = scene.manager();
    let owner = process(scene);
    let handle = scene.introduce(&owner, &manager, 1, 2);
    manager.write([increfs(handle), release(handle)]);
    let mut words = [handle, 0, 0, 0, 0, 0];
    assert_eq!(manager.ioctl_words(NODE_INFO, &mut words), Err(Errno::EINVAL));
}

fn node_info_counts(scene: &Scene) {
    let manager = scene.manager();
    let owner = process(scene);
    let handle = scene.introduce(&owner, &manager, 1, 2);
    let counts = || {
        let mut words = [handle, 0, 0, 0, 0, 0];
        manager.ioctl_words(NODE_INFO, &mut words).expect("node info");
        (words[1], words[2])
    };
    assert_eq!(counts(), (1, 0));
    // Further references of the same process do not count; a call under way does.
    manager.write([acquire(handle), acquire(handle), increfs(handle)]);
    assert_eq!(counts(), (1, 0));
    manager.write(oneway(handle));
    assert_eq!(counts(), (2, 0));
    let got = owner.receive();
    assert_eq!(counts(), (2, 0));
    owner.write(free(got.buffer));
    assert_eq!(counts(), (1, 0));
}

fn node_info_from_a_bad_pointer(scene: &Scene) {
    assert_eq!(process(scene).ioctl_at(NODE_INFO, NOWHERE), Err(Errno::EFAULT));
}
