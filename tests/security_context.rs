//! `--security-context`: labels where the kernel has none, as a service manager sees them.
//!
//! Needs root and /dev/fuse; where they are missing each test says so and does nothing.

mod common;

use common::forked::Forked;
use common::{Daemon, Door, PATIENCE, alone, skip, wait_until};
use fakebinder_client::{Call, Command, Device, Errno, Reply, Return, Thread, uapi};
use std::fs;
use std::path::Path;

fn possible() -> bool {
    let possible = nix::unistd::geteuid().is_root() && Door::Fuse.is_here();
    if !possible {
        skip("it takes root and /dev/fuse");
    }
    possible
}

/// A context manager that asks for labels.
fn curious(path: &Path) -> Device {
    let mut manager = Device::open_nonblock(path).unwrap();
    manager.mmap(128 << 10).unwrap();
    manager.set_context_manager_ext(1, 2, uapi::FLAT_BINDER_FLAG_TXN_SECURITY_CTX).unwrap();
    manager
}

/// What the manager is told of a caller of this uid.
fn label_of(manager: &Device, uid: u32) -> String {
    let path = manager.path().to_owned();
    let caller = Forked::start(move || {
        nix::unistd::setuid(uid.into()).unwrap();
        let mut client = Device::open(&path).unwrap();
        client.mmap(128 << 10).unwrap();
        let reply = Thread::new(&client).call(&Call::to(0));
        i32::from(!matches!(reply, Ok(Reply::Data(_))))
    });
    let mut label = None;
    let mut thread = Thread::new(manager);
    thread.queue(Command::EnterLooper);
    wait_until(PATIENCE, || {
        if let Ok(Return::TransactionSecCtx(transaction)) = thread.next_return() {
            label = manager.security_context(&transaction).unwrap();
            thread.take(&transaction).unwrap();
            thread.reply(Default::default());
            thread.flush().unwrap();
        }
        label.is_some()
    });
    let label = label.expect("the manager is called, and told a label");
    caller.succeed();
    String::from_utf8(label).unwrap()
}

#[test]
fn the_option_gives_every_caller_a_label() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let daemon = Daemon::start_with(&["--security-context", "u:r:app:s0"], None);
    let manager = curious(&daemon.fuse());
    assert_eq!(label_of(&manager, 0), "u:r:app:s0");
    assert_eq!(label_of(&manager, 1000), "u:r:app:s0");
}

#[test]
fn the_options_file_gives_each_user_a_label() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let file = std::env::temp_dir().join(common::unique_name());
    fs::write(&file, "0 u:r:init:s0\n1000 u:r:system_server:s0\n* u:r:app:s0\n").unwrap();
    let option = format!("@{}", file.display());
    let daemon = Daemon::start_with(&["--security-context", &option], None);
    fs::remove_file(&file).unwrap();
    let manager = curious(&daemon.fuse());
    assert_eq!(label_of(&manager, 0), "u:r:init:s0");
    assert_eq!(label_of(&manager, 1000), "u:r:system_server:s0");
    assert_eq!(label_of(&manager, 2000), "u:r:app:s0");
}

/// Without the option it is as on the driver (see
/// `manager/a_security_context_is_sent_when_asked_for` of the conformance tests); where the call
/// fails, the log says what would help.
#[test]
fn without_the_option_the_log_names_it() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let daemon = Daemon::start(Door::Fuse);
    let manager = curious(&daemon.fuse());
    let caller = Forked::start({
        let path = daemon.fuse();
        move || {
            let mut client = Device::open_nonblock(&path).unwrap();
            client.mmap(128 << 10).unwrap();
            let call = Command::Transaction(Call::to(0).oneway());
            let _ = client.write_read(&[call], &mut [0; 256]);
            let error = client.extended_error().unwrap();
            match (error.command == uapi::BR_FAILED_REPLY, -error.param) {
                (false, _) => 1,
                (true, errno) if errno == Errno::EINVAL as i32 => 2,
                (true, errno) if errno == Errno::EOPNOTSUPP as i32 => 3,
                _ => 4,
            }
        }
    });
    let mut caller = caller;
    let status = caller.wait();
    drop(manager);
    match status {
        nix::sys::wait::WaitStatus::Exited(_, 1) => skip("this kernel gives labels by itself"),
        nix::sys::wait::WaitStatus::Exited(_, 2 | 3) => {
            let named = || daemon.log().contains("--security-context LABEL");
            assert!(wait_until(PATIENCE, named), "{}", daemon.log());
        }
        status => panic!("{status:?}"),
    }
}
