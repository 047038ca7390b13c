//! Who a sender is: the driver says so, not the sender. And what belongs to whom when descriptors
//! are inherited, namespaces differ, or a thread's number is used again.
//!
//! More than 500 lines: the rows of docs/semantics.md about who a sender is all lead here.

mod common;

use common::forked::Forked;
use common::{
    COOKIE, NODE, PATIENCE, Pair, Target, in_time, look_up, offer, on_devices, open, skip,
    wait_until,
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

/// What the receiver is told of a child's calls: `work` calls as often as `enough` says.
fn euids_of(target: &Target, enough: usize, work: impl FnOnce(&dyn Fn())) -> Vec<u32> {
    let Pair { server, client, handle, .. } = target.pair();
    let child = Forked::start(|| {
        work(&|| assert!(calls(&client, handle)));
        0
    });
    let witness = witness(server, enough);
    child.succeed();
    let seen = in_time("the server", move || witness.join().unwrap());
    seen.iter().map(|call| call.sender_euid).collect()
}

const ROOT: Uid = Uid::from_raw(0);
const USER: Uid = Uid::from_raw(1000);
const STRANGER: Uid = Uid::from_raw(2000);

fn become_user(uid: Uid) {
    nix::unistd::setresuid(uid, uid, uid).unwrap();
}

/// What a FUSE request names is the uid for file systems, which a file server changes to that of
/// whom it works for: it stays what it is.
#[test]
fn the_uid_for_file_systems_is_not_the_effective_one() {
    if !geteuid().is_root() {
        return skip("it takes root");
    }
    on_devices(|target| {
        let seen = euids_of(target, 3, |call| {
            call();
            nix::unistd::setfsuid(USER);
            call();
            nix::unistd::setfsuid(ROOT);
            call();
        });
        assert_eq!(seen, [0, 0, 0]);
    });
}

#[test]
fn a_uid_that_changes_between_two_calls_is_told_anew() {
    if !geteuid().is_root() {
        return skip("it takes root");
    }
    on_devices(|target| {
        let seen = euids_of(target, 5, |call| {
            call();
            nix::unistd::setresuid(USER, USER, ROOT).unwrap();
            call();
            nix::unistd::seteuid(ROOT).unwrap();
            call();
            nix::unistd::seteuid(USER).unwrap();
            call();
            nix::unistd::seteuid(ROOT).unwrap();
            become_user(STRANGER);
            call();
        });
        assert_eq!(seen, [0, 1000, 0, 1000, 2000]);
    });
}

/// The one changes and the other is put back.
#[test]
fn an_effective_uid_that_changes_behind_the_other_is_told_anew() {
    if !geteuid().is_root() {
        return skip("it takes root");
    }
    on_devices(|target| {
        let seen = euids_of(target, 2, |call| {
            call();
            nix::unistd::seteuid(USER).unwrap();
            nix::unistd::setfsuid(ROOT);
            call();
        });
        assert_eq!(seen, [0, 1000], "root that works as a user, on files as root");
        let seen = euids_of(target, 2, |call| {
            nix::unistd::setfsuid(USER);
            call();
            become_user(USER);
            call();
        });
        assert_eq!(seen, [0, 1000], "root that worked on a user's files, and is a user now");
    });
}

/// To the kernel a uid is a thread's: only libc's calls change it for a whole process.
#[test]
fn a_thread_with_a_uid_of_its_own_is_told_by_that() {
    if !geteuid().is_root() {
        return skip("it takes root");
    }
    on_devices(|target| {
        let seen = euids_of(target, 2, |call| {
            // SAFETY: no memory is involved, and no code of this process goes by its uid.
            let result = unsafe { libc::syscall(libc::SYS_setresuid, -1, 1000, -1) };
            assert_eq!(result, 0);
            call();
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_setresuid, -1, 0, -1) };
            call();
        });
        assert_eq!(seen, [1000, 0]);
    });
}

/// The effective uid decides who may become the context manager after the first one, too.
#[test]
fn a_context_manager_is_known_by_its_effective_uid() {
    if !geteuid().is_root() {
        return skip("it takes root");
    }
    on_devices(|target| {
        for uid in [ROOT, USER] {
            Forked::start(|| {
                let device = open(&target.path);
                nix::unistd::setfsuid(uid);
                common::become_manager(&device);
                0
            })
            .succeed();
        }
        let status = Forked::start(|| {
            let device = open(&target.path);
            nix::unistd::seteuid(USER).unwrap();
            nix::unistd::setfsuid(ROOT);
            let mut errno = Errno::EBUSY;
            wait_until(PATIENCE, || {
                let result = device.set_context_manager();
                errno = result.map_or_else(|error| error.errno(), |()| Errno::UnknownErrno);
                errno != Errno::EBUSY
            });
            errno as i32
        })
        .wait();
        assert!(matches!(status, WaitStatus::Exited(_, code) if code == Errno::EPERM as i32));
    });
}

/// `unshare -Ur` as that user: who is root inside is the user outside, and nobody else has a name.
fn enter_user_namespace(uid: Uid) {
    become_user(uid);
    unshare(CloneFlags::CLONE_NEWUSER).unwrap();
    // A process that has changed its ids may not write its own maps otherwise.
    nix::sys::prctl::set_dumpable(true).unwrap();
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
}

fn user_namespaces_are_here() -> bool {
    let mut child = Forked::start(|| {
        become_user(USER);
        i32::from(unshare(CloneFlags::CLONE_NEWUSER).is_err())
    });
    matches!(child.wait(), WaitStatus::Exited(_, 0))
}

/// A server in a child of its own tells the euids of its callers. `begin` comes before the first
/// call, `between` before the second.
struct Inside {
    _registrar: common::Killed,
    server: Forked,
    told: std::io::PipeReader,
    path: std::path::PathBuf,
}

impl Inside {
    fn start(target: &Target, calls: usize, begin: impl FnOnce(), between: impl Fn()) -> Inside {
        let registrar = target.registrar();
        let (told, tell) = std::io::pipe().unwrap();
        let server = Forked::start(|| {
            let device = open(&target.path);
            offer(&device, 0);
            begin();
            let mut thread = Thread::new(&device);
            thread.queue(Command::EnterLooper);
            let (mut served, mut waited) = (0, false);
            while served < calls {
                thread
                    .serve(&mut |_, call, _, _| {
                        (&tell).write_all(&call.sender_euid.to_ne_bytes()).unwrap();
                        served += 1;
                    })
                    .unwrap();
                thread.flush().unwrap();
                if served == 1 && !std::mem::replace(&mut waited, true) {
                    between();
                }
            }
            0
        });
        Inside { _registrar: registrar, server, told, path: target.path.clone() }
    }

    /// What the server is told of a caller that becomes this user.
    fn told_of(&mut self, uid: Uid) -> u32 {
        Forked::start(|| {
            let device = open(&self.path);
            let handle = look_up(&device);
            become_user(uid);
            i32::from(!calls(&device, handle))
        })
        .succeed();
        let mut euid = [0; 4];
        self.told.read_exact(&mut euid).unwrap();
        u32::from_ne_bytes(euid)
    }
}

#[test]
fn a_receiver_in_a_user_namespace_sees_the_names_that_uids_have_there() {
    if !geteuid().is_root() || !user_namespaces_are_here() {
        return skip("it takes root, and user namespaces for users");
    }
    on_devices(|target| {
        let mut inside = Inside::start(target, 4, || enter_user_namespace(USER), || {});
        let told = [ROOT, USER, STRANGER, ROOT].map(|uid| inside.told_of(uid));
        assert_eq!(told, [u32::MAX, 0, u32::MAX, u32::MAX]);
        inside.server.succeed();
    });
}

#[test]
fn a_receiver_that_enters_a_user_namespace_sees_other_names_from_then_on() {
    if !geteuid().is_root() || !user_namespaces_are_here() {
        return skip("it takes root, and user namespaces for users");
    }
    on_devices(|target| {
        let between = || {
            enter_user_namespace(USER);
            // The daemon looks again after that long.
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        let mut inside = Inside::start(target, 3, || {}, between);
        let told = [ROOT, ROOT, USER].map(|uid| inside.told_of(uid));
        assert_eq!(told, [0, u32::MAX, 0]);
        inside.server.succeed();
    });
}

/// Before the map is written nobody has a name.
#[test]
fn a_receiver_in_a_user_namespace_without_a_map_sees_nobody() {
    if !geteuid().is_root() || !user_namespaces_are_here() {
        return skip("it takes root, and user namespaces for users");
    }
    on_devices(|target| {
        let begin = || {
            become_user(USER);
            unshare(CloneFlags::CLONE_NEWUSER).unwrap();
        };
        let mut inside = Inside::start(target, 2, begin, || {});
        assert_eq!([ROOT, USER].map(|uid| inside.told_of(uid)), [u32::MAX; 2]);
        inside.server.succeed();
    });
}

/// The other way round: root of a user namespace is the user that it is outside.
#[test]
fn a_sender_in_a_user_namespace_is_who_it_is_outside() {
    if !geteuid().is_root() || !user_namespaces_are_here() {
        return skip("it takes root, and user namespaces for users");
    }
    on_devices(|target| {
        let seen = euids_of(target, 1, |call| {
            enter_user_namespace(USER);
            assert!(geteuid().is_root());
            call();
        });
        assert_eq!(seen, [1000]);
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
