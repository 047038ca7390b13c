//! Who a sender is: the driver says so, not the sender. And what belongs to whom when descriptors
//! are inherited, namespaces differ, or a thread's number is used again.

mod common;

use common::forked::Forked;
use common::{
    COOKIE, NODE, PATIENCE, Pair, in_time, look_up, offer, on_devices, open, skip, wait_until,
};
use fakebinder_client::{Call, Command, Device, Errno, Reply, Return, Thread, Transaction, uapi};
use nix::sched::{CloneFlags, unshare};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, Uid, geteuid, getpid, gettid};
use std::io::{Read, Write};
use std::thread::JoinHandle;

/// Serves calls until `enough` of them came, and gives what it saw of each.
fn witness(server: Device, enough: usize) -> JoinHandle<Vec<Transaction>> {
    std::thread::spawn(move || {
        let mut thread = Thread::new(&server);
        thread.queue(Command::EnterLooper);
        let mut seen = Vec::new();
        while seen.len() < enough {
            thread.serve(&mut |_, call, _, _| seen.push(*call)).unwrap();
        }
        thread.flush().unwrap();
        seen
    })
}

fn calls(device: &Device, handle: u32) -> bool {
    let reply = Thread::new(device).call(&Call::to(handle));
    matches!(reply, Ok(Reply::Data(_)))
}

/// The one call that a child makes, as its receiver sees it.
fn seen_of(pair: Pair, work: impl FnOnce(&Device, u32) -> bool) -> Transaction {
    let Pair { server, client, handle, .. } = pair;
    let child = Forked::start(|| i32::from(!work(&client, handle)));
    let witness = witness(server, 1);
    child.succeed();
    in_time("the server", move || witness.join().unwrap())[0]
}

/// What the sender writes into the fields that say who it is does not matter.
#[test]
fn a_sender_cannot_say_that_it_is_somebody_else() {
    on_devices(|target| {
        let mut pair = target.pair();
        let spare = pair.another().0;
        let witness = witness(std::mem::replace(&mut pair.server, spare), 2);
        let mut bytes = Vec::new();
        Command::Transaction(Call::to(pair.handle)).encode(&mut bytes);
        // After the number: target, cookie, code, flags, sender_pid, sender_euid.
        let sender_pid = 4 + 8 + 8 + 4 + 4;
        bytes[sender_pid..][..4].copy_from_slice(&1i32.to_ne_bytes());
        bytes[sender_pid + 4..][..4].copy_from_slice(&4321u32.to_ne_bytes());
        // And a one-way call: no pid, but the euid.
        let mut oneway = bytes.clone();
        oneway[4 + 8 + 8 + 4..][..4].copy_from_slice(&uapi::TF_ONE_WAY.to_ne_bytes());
        let mut buffer = [0; 256];
        for bytes in [bytes, oneway] {
            pair.client.transfer(&bytes, &mut buffer).result.unwrap();
        }
        let seen = in_time("the server", move || witness.join().unwrap());
        let euid = geteuid().as_raw();
        assert_eq!((seen[0].sender_pid, seen[0].sender_euid), (getpid().as_raw(), euid));
        assert_eq!((seen[1].sender_pid, seen[1].sender_euid), (0, euid));
        assert!(seen[1].is_oneway());
    });
}

/// Two opens by one process are two processes: what one holds means nothing to the other, and
/// either can call the other.
#[test]
fn two_opens_are_two_processes() {
    on_devices(|target| {
        let mut pair = target.pair();
        let second = open(&target.path);
        let mut thread = Thread::new(&second);
        assert_eq!(thread.call(&Call::to(pair.handle)).unwrap(), Reply::Failed);
        drop(thread);
        let (third, handle) = pair.another();
        let witness = witness(std::mem::replace(&mut pair.server, second), 2);
        assert!(calls(&pair.client, pair.handle) && calls(&third, handle));
        let seen = in_time("the server", move || witness.join().unwrap());
        assert!(seen.iter().all(|call| call.sender_pid == getpid().as_raw()));
        assert!(seen.iter().all(|call| (call.target, call.cookie) == (NODE, COOKIE)));
    });
}

/// An inherited descriptor is still the opener's: its handles work in a child, whose calls come
/// from the opener, with the child's euid; the child can't map it.
#[test]
fn a_child_with_an_inherited_device_speaks_as_the_opener() {
    const CHILD: u32 = 12_345;
    on_devices(|target| {
        let seen = seen_of(target.pair(), |device, handle| {
            nix::unistd::setresuid(Uid::from_raw(CHILD), Uid::from_raw(CHILD), Uid::from_raw(0))
                .unwrap();
            // The reply is empty: its buffer lies in the opener's memory, not in this process's.
            calls(device, handle)
        });
        assert_eq!((seen.sender_pid, seen.sender_euid), (getpid().as_raw(), CHILD));
    });
}

#[test]
fn a_child_cannot_map_an_inherited_device() {
    on_devices(|target| {
        let device = Device::open(&target.path).unwrap();
        let map = |device: &Device| {
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
            device.map_with(64 << 10, ProtFlags::PROT_READ, flags).map_err(|error| error.errno())
        };
        let child = Forked::start(|| match map(&device) {
            Err(Errno::EINVAL) => 0,
            Ok(mapping) => {
                std::mem::forget(mapping);
                1
            }
            Err(_) => 2,
        });
        let mut child = child;
        let status = child.wait();
        // On the FUSE door the kernel maps without asking; that mapping counts for nothing.
        let unasked = target.is_fakebinder() && !open(&target.path).is_attached();
        assert_eq!(status, WaitStatus::Exited(child.pid(), unasked.into()));
        let pair = target.pair_with(device, &target.path);
        assert_eq!(Thread::new(&pair.client).call(&Call::to(pair.handle)).unwrap(), Reply::Dead);
    });
}

/// The opener has died and its number is free for others: a child that goes on with the
/// descriptor is nobody.
#[test]
fn who_sends_for_a_dead_opener_has_no_pid() {
    on_devices(|target| {
        let pair = target.pair();
        let path = target.path.clone();
        let opener = Forked::start(|| {
            let device = open(&path);
            let handle = look_up(&device);
            let opener = getpid();
            // SAFETY: one thread, which is all that the child needs.
            match unsafe { nix::unistd::fork() }.unwrap() {
                nix::unistd::ForkResult::Parent { .. } => 0,
                nix::unistd::ForkResult::Child => {
                    common::forked::guarded(|| {
                        let gone = || nix::sys::signal::kill(opener, None).is_err();
                        assert!(wait_until(PATIENCE, gone), "the opener is reaped");
                        // There will be no reply: its buffer would lie in the opener's memory.
                        let _ = Thread::new(&device).call(&Call::to(handle));
                    });
                    common::forked::exit(0)
                }
            }
        });
        let witness = witness(pair.server, 1);
        opener.succeed();
        let seen = in_time("the server", move || witness.join().unwrap())[0];
        assert_eq!(seen.sender_pid, 0, "the pid of a process that is no more");
    });
}

#[test]
fn a_sender_in_an_inner_pid_namespace_has_the_pid_that_the_receiver_sees() {
    on_devices(|target| {
        let pair = target.pair();
        let path = target.path.clone();
        let (mut told, tell) = std::io::pipe().unwrap();
        let outer = Forked::start(|| {
            unshare(CloneFlags::CLONE_NEWPID).unwrap();
            let mut inner = Forked::start(|| {
                assert_eq!(getpid(), Pid::from_raw(1));
                let device = open(&path);
                i32::from(!calls(&device, look_up(&device)))
            });
            (&tell).write_all(&inner.pid().as_raw().to_ne_bytes()).unwrap();
            match inner.wait() {
                WaitStatus::Exited(_, status) => status,
                _ => 9,
            }
        });
        let witness = witness(pair.server, 1);
        outer.succeed();
        let mut pid = [0; 4];
        told.read_exact(&mut pid).unwrap();
        let seen = in_time("the server", move || witness.join().unwrap())[0];
        assert_eq!(seen.sender_pid, i32::from_ne_bytes(pid));
    });
}

/// The other way round: who is outside has no number inside; who is inside, too, has one.
#[test]
fn a_receiver_in_an_inner_pid_namespace_sees_no_pid_from_outside() {
    on_devices(|target| {
        // The registrar passes the inner server's node on.
        let _registrar = target.registrar();
        let path = target.path.clone();
        let outer = Forked::start(|| {
            unshare(CloneFlags::CLONE_NEWPID).unwrap();
            let mut inner = Forked::start(|| {
                let server = open(&path);
                offer(&server, 0);
                let sibling = Forked::start(|| {
                    let device = open(&path);
                    i32::from(!calls(&device, look_up(&device)))
                });
                let sibling_pid = sibling.pid().as_raw();
                let mut thread = Thread::new(&server);
                thread.queue(Command::EnterLooper);
                let mut pids = Vec::new();
                while pids.len() < 2 {
                    thread.serve(&mut |_, call, _, _| pids.push(call.sender_pid)).unwrap();
                }
                thread.flush().unwrap();
                sibling.succeed();
                pids.sort_unstable();
                if pids == [0, sibling_pid] { 0 } else { 1 }
            });
            match inner.wait() {
                WaitStatus::Exited(_, status) => status,
                _ => 9,
            }
        });
        let device = open(&target.path);
        let handle = look_up(&device);
        assert!(calls(&device, handle));
        outer.succeed();
    });
}

/// A client with another effective uid than its opener's at the time of the open, or than its real
/// one: it counts what it is when it sends.
#[test]
fn the_effective_uid_is_that_of_the_moment() {
    const USER: u32 = 23_456;
    if !geteuid().is_root() {
        return skip("it takes root");
    }
    on_devices(|target| {
        let seen = seen_of(target.pair(), |device, handle| {
            let root = Uid::from_raw(0);
            nix::unistd::setresuid(root, Uid::from_raw(USER), root).unwrap();
            calls(device, handle)
        });
        assert_eq!(seen.sender_euid, USER);
    });
}

/// A thread has left without a word, in the middle of a call that it serves; a new one that gets
/// its number is, to the driver, that thread. (fakebinder sees that it is not: thread_end.rs.)
#[test]
fn a_thread_number_that_is_used_again_is_the_same_thread_to_the_driver() {
    on_devices(|target| {
        if target.is_fakebinder() {
            return;
        }
        let pair = target.pair();
        let (client, handle) = (pair.client, pair.handle);
        let waiting =
            std::thread::spawn(move || Thread::new(&client).call(&Call::to(handle)).unwrap());
        let server = &pair.server;
        let tid = std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                server.write(&[Command::EnterLooper]).unwrap();
                let mut buffer = [0; 256];
                loop {
                    let mut returns = server.read(&mut buffer).unwrap();
                    if returns.any(|it| matches!(it, Return::Transaction(_))) {
                        return gettid();
                    }
                }
            });
            first.join().unwrap()
        });
        let reply = || {
            let parcel = Call::reply().data(b"by another");
            server.write(&[Command::Reply(parcel)]).unwrap();
        };
        let replied = (0..2000).any(|_| {
            if std::fs::write("/proc/sys/kernel/ns_last_pid", (tid.as_raw() - 1).to_string())
                .is_err()
            {
                return false;
            }
            let again = || {
                let same = gettid() == tid;
                if same {
                    reply();
                }
                same
            };
            std::thread::scope(|scope| scope.spawn(again).join().unwrap())
        });
        if !replied {
            drop(pair.server);
            in_time("the caller", move || waiting.join().unwrap());
            return skip("no thread got the number again");
        }
        let answer = in_time("the caller", move || waiting.join().unwrap());
        assert!(matches!(&answer, Reply::Data(c) if c.data == b"by another"), "{answer:?}");
    });
}
