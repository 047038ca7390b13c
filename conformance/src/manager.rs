//! The context manager: what handle 0 means.

use super::message::*;
use super::runner::Skip;
use super::scene::*;
use super::{Scene, group};
use fakebinder_client::{Errno, uapi};

group! { "manager":
    a_second_manager_is_refused,
    the_same_manager_again_is_refused,
    a_manager_can_be_succeeded,
    a_manager_of_another_user_is_refused,
    a_call_without_a_manager_finds_it_dead,
    a_oneway_call_without_a_manager_finds_it_dead,
    handle_0_needs_no_reference,
    the_managers_node_is_0_by_default,
    the_managers_node_can_have_an_identity,
    the_manager_cannot_call_itself,
    another_open_of_the_managers_process_cannot_call_it,
    the_manager_cannot_acquire_handle_0,
    handle_0_without_a_manager_cannot_be_acquired,
    handle_0_can_be_acquired_and_released,
    handle_0_goes_from_process_to_process_as_0,
    handle_0_arrives_at_the_manager_as_its_node,
    a_handle_0_of_a_dead_manager_is_not_the_next_one,
    a_security_context_is_sent_when_asked_for,
}

fn a_second_manager_is_refused(scene: &Scene) {
    let manager = scene.manager();
    let other = scene.process();
    assert_eq!(other.ioctl_words(uapi::BINDER_SET_CONTEXT_MGR, &mut [0]), Err(Errno::EBUSY));
    assert_eq!(other.set_context_manager_ext(1, 2, 0), Err(Errno::EBUSY));
    other.write(call(0));
    manager.receive();
}

fn the_same_manager_again_is_refused(scene: &Scene) {
    let manager = scene.manager();
    assert_eq!(manager.ioctl_words(uapi::BINDER_SET_CONTEXT_MGR, &mut [0]), Err(Errno::EBUSY));
    assert_eq!(manager.set_context_manager_ext(0, 0, 0), Err(Errno::EBUSY));
}

fn a_manager_can_be_succeeded(scene: &Scene) {
    let first = scene.manager();
    first.kill();
    let second = scene.manager();
    let client = scene.process();
    client.write(call(0).code(2));
    assert_eq!(second.receive().code, 2);
}

/// Skips the test where this process is not root.
pub(super) fn needs_root() {
    if !nix::unistd::geteuid().is_root() {
        std::panic::panic_any(Skip("needs root".to_owned()));
    }
}

pub(super) fn become_user(thread: &Thread, uid: u64) {
    assert_eq!(thread.syscall(libc::SYS_setresuid, &[uid, uid, uid]), Ok(0));
}

fn a_manager_of_another_user_is_refused(scene: &Scene) {
    needs_root();
    let first = scene.manager();
    let other = scene.process();
    become_user(&other, 1000);
    let set = || other.ioctl_words(uapi::BINDER_SET_CONTEXT_MGR, &mut [0]);
    assert_eq!(set(), Err(Errno::EBUSY));
    first.kill();
    other.until("the first manager to go", || set() != Err(Errno::EBUSY));
    assert_eq!(set(), Err(Errno::EPERM));
    assert_eq!(other.set_context_manager_ext(0, 0, 0), Err(Errno::EPERM));
}

/// Waits until the device has no manager.
fn nobody(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    manager.kill();
    client.until("the manager to go", || {
        client.write(oneway(0));
        client.read().text == "NOOP DEAD_REPLY"
    });
}

fn a_call_without_a_manager_finds_it_dead(scene: &Scene) {
    nobody(scene);
    let client = scene.process();
    client.write(call(0));
    client.reads("NOOP DEAD_REPLY");
    assert_eq!(client.extended_error(), ("DEAD_REPLY", -libc::EINVAL));
}

fn a_oneway_call_without_a_manager_finds_it_dead(scene: &Scene) {
    nobody(scene);
    let client = scene.process();
    client.write(oneway(0));
    client.reads("NOOP DEAD_REPLY");
    assert_eq!(client.extended_error(), ("DEAD_REPLY", -libc::EINVAL));
}

fn handle_0_needs_no_reference(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0).code(9));
    assert_eq!(manager.receive().code, 9);
}

fn the_managers_node_is_0_by_default(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write(call(0));
    let got = manager.receive();
    assert_eq!((got.target, got.cookie), (0, 0));
}

fn the_managers_node_can_have_an_identity(scene: &Scene) {
    let manager = scene.process();
    manager.until("the last context manager to go", || {
        manager.set_context_manager_ext(0x1234, 0x5678, 0) == Ok(0)
    });
    let client = scene.process();
    client.write(call(0));
    let got = manager.receive();
    assert_eq!((got.target, got.cookie), (0x1234, 0x5678));
}

fn the_manager_cannot_call_itself(scene: &Scene) {
    let manager = scene.manager();
    for message in [call(0), oneway(0)] {
        manager.write(message);
        manager.reads("NOOP FAILED_REPLY");
        assert_eq!(manager.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
    }
}

fn another_open_of_the_managers_process_cannot_call_it(scene: &Scene) {
    let manager = scene.manager();
    let other = manager.open_again();
    other.map(MAPPING);
    other.write(call(0));
    other.reads("NOOP FAILED_REPLY");
    assert_eq!(other.extended_error(), ("FAILED_REPLY", -libc::EINVAL));
}

fn the_manager_cannot_acquire_handle_0(scene: &Scene) {
    let manager = scene.manager();
    for command in [acquire(0), increfs(0)] {
        let io = manager.tries([enter_looper(), command]);
        assert_eq!(io, Io { result: Err(Errno::EINVAL), written: 4, filled: 0 });
    }
    manager.write([release(0), decrefs(0)]);
}

fn handle_0_without_a_manager_cannot_be_acquired(scene: &Scene) {
    nobody(scene);
    let client = scene.process();
    client.write([acquire(0), increfs(0), release(0), decrefs(0)]);
    client.reads("EAGAIN");
    // There is no reference, and so no death to be told of.
    client.write(request_death(0, 1));
    client.reads("EAGAIN");
}

fn handle_0_can_be_acquired_and_released(scene: &Scene) {
    let manager = scene.manager();
    let client = scene.process();
    client.write([acquire(0), increfs(0), release(0), decrefs(0)]);
    client.reads("EAGAIN");
    manager.reads("EAGAIN");
    client.write(call(0));
    manager.receive();
}

fn handle_0_goes_from_process_to_process_as_0(scene: &Scene) {
    let manager = scene.manager();
    let (a, b) = (scene.process(), scene.process());
    let to_a = scene.introduce(&a, &manager, 1, 1);
    // b gets a handle for a's node from the manager.
    b.write(call(0));
    manager.receive();
    manager.write(reply().handle(to_a));
    let got = b.waits("NOOP TRANSACTION_COMPLETE REPLY");
    let at_b = got.transaction().handle(0);
    assert_eq!(at_b, 1);
    b.write([acquire(0), oneway(at_b).handle(0).into()]);
    assert_eq!(a.receive().handle(0), 0);
}

fn handle_0_arrives_at_the_manager_as_its_node(scene: &Scene) {
    let manager = scene.process();
    manager.until("the last context manager to go", || {
        manager.set_context_manager_ext(0x77, 0x88, 0) == Ok(0)
    });
    let client = scene.process();
    client.write([acquire(0), call(0).handle(0).into()]);
    let got = manager.receive();
    let expected = fakebinder_client::Object::Binder { ptr: 0x77, cookie: 0x88, flags: 0 };
    assert_eq!(got.object(0), expected);
}

fn a_handle_0_of_a_dead_manager_is_not_the_next_one(scene: &Scene) {
    let first = scene.manager();
    let client = scene.process();
    client.write([acquire(0), request_death(0, 5)]);
    first.kill();
    client.waits("NOOP DEAD_BINDER(5)");
    let second = scene.manager();
    // Calls go to the present manager; the old reference stays with the dead node.
    client.write(oneway(0).code(2));
    client.reads("NOOP TRANSACTION_COMPLETE");
    assert_eq!(second.receive().code, 2);
    client.write(clear_death(0, 5));
    client.reads("EAGAIN");
    client.write(dead_binder_done(5));
    client.reads("NOOP CLEAR_DEATH_NOTIFICATION_DONE(5)");
}

/// The label that this kernel's security module has for a process, or the error of a call to a node
/// that asks for it.
fn own_security_context() -> Result<Vec<u8>, i32> {
    let file_systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let module = |name| file_systems.lines().any(|line| line.split('\t').nth(1) == Some(name));
    if module("selinuxfs") || module("smackfs") {
        let own = std::fs::read("/proc/self/attr/current").expect("the module's own word");
        return Ok(own.into_iter().take_while(|byte| !matches!(byte, 0 | b'\n')).collect());
    }
    // AppArmor gives credentials no number by which the driver could ask for a context.
    match std::fs::read("/proc/self/attr/apparmor/current") {
        Ok(_) => Err(-libc::EINVAL),
        Err(_) => Err(-libc::EOPNOTSUPP),
    }
}

fn a_security_context_is_sent_when_asked_for(scene: &Scene) {
    let manager = scene.manager_with(1, uapi::FLAT_BINDER_FLAG_TXN_SECURITY_CTX);
    let client = scene.process();
    client.write(call(0).data(b"who am I"));
    let reads = client.read();
    match own_security_context() {
        Ok(own) => {
            assert_eq!(reads.text, "EAGAIN");
            let got = manager.waits("NOOP TRANSACTION_SEC_CTX");
            let got = got.transaction();
            assert_eq!(got.data, b"who am I");
            assert!(got.secctx >= got.buffer + 8 && got.secctx.is_multiple_of(8));
            let told = manager.peek(got.secctx, own.len() + 1).expect("a context");
            assert_eq!(told, [&own[..], b"\0"].concat());
        }
        Err(errno) => {
            assert_eq!(reads.text, "NOOP FAILED_REPLY");
            assert_eq!(client.extended_error(), ("FAILED_REPLY", errno));
        }
    }
}
