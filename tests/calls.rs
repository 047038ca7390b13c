//! Calls and one-way calls between clients, and how they fail.

mod common;

use common::{COOKIE, NODE, in_time, on_devices, wait_until};
use fakebinder_client::{
    Call, Command, Device, Errno, Object, Parcel, Reply, Return, Returns, Thread, uapi,
};
use nix::poll::PollFlags;
use std::io::Read;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const ECHO: u32 = 1;
const STOP: u32 = 2;

/// A server in a thread of its own.
fn serving<T: Send + 'static>(
    server: Device,
    work: impl FnOnce(&mut Thread<'_>) -> T + Send + 'static,
) -> JoinHandle<T> {
    std::thread::spawn(move || {
        let mut thread = Thread::new(&server);
        thread.queue(Command::EnterLooper);
        thread.flush().unwrap();
        work(&mut thread)
    })
}

/// Serves echoes until STOP.
fn echo(thread: &mut Thread<'_>) {
    let mut stop = false;
    while !stop {
        let served = thread.serve(&mut |_, call, contents, reply| {
            stop = call.code == STOP;
            reply.bytes(&contents.data);
        });
        served.unwrap();
    }
    thread.flush().unwrap();
}

fn stop(client: &Device, handle: u32, server: JoinHandle<()>) {
    let reply = Thread::new(client).call(&Call::to(handle).code(STOP)).unwrap();
    assert!(matches!(reply, Reply::Data(_)), "{reply:?}");
    server.join().unwrap();
}

#[test]
fn every_byte_comes_back_for_every_size() {
    on_devices(|target| {
        let pair = target.pair();
        let server = serving(pair.server, echo);
        let mut thread = Thread::new(&pair.client);
        for size in (0..70).chain([4095, 4096, 4097, 8192, 65_537, 500_000]) {
            let sent: Vec<u8> = (0..size).map(|i: usize| (i * 31 + size) as u8).collect();
            let reply = thread.call(&Call::to(pair.handle).code(ECHO).data(&sent)).unwrap();
            match reply {
                Reply::Data(contents) => assert!(contents.data == sent, "{size} bytes differ"),
                other => panic!("{size} bytes: {other:?}"),
            }
        }
        drop(thread);
        stop(&pair.client, pair.handle, server);
    });
}

/// The sender is who it is, as the receiver sees it.
#[test]
fn a_call_says_who_calls() {
    on_devices(|target| {
        let pair = target.pair();
        let server = serving(pair.server, |thread| {
            let mut seen = None;
            while seen.is_none() {
                let served = thread.serve(&mut |_, call, _, _| {
                    seen = Some((call.sender_pid, call.sender_euid));
                });
                served.unwrap();
            }
            thread.flush().unwrap();
            seen.unwrap()
        });
        Thread::new(&pair.client).call(&Call::to(pair.handle)).unwrap();
        let (pid, euid) = server.join().unwrap();
        assert_eq!(pid as u32, std::process::id());
        assert_eq!(euid, nix::unistd::geteuid().as_raw());
    });
}

/// A calls B, which calls A back before it answers, ten deep: each level lands on the thread
/// that waits there.
#[test]
fn calls_nest_both_ways() {
    fn serve(
        thread: &mut Thread<'_>,
        other: u32,
        data: &[u8],
        reply: &mut Parcel,
        tids: &mut Vec<i32>,
    ) {
        tids.push(nix::unistd::gettid().as_raw());
        let depth = data[0];
        let inner = if depth == 0 {
            0
        } else {
            let result = thread.call_serving(
                &Call::to(other).code(ECHO).data(&[depth - 1]),
                &mut |thread, _, contents, reply| {
                    serve(thread, other, &contents.data, reply, tids);
                },
            );
            match result.unwrap() {
                Reply::Data(contents) => contents.data[0],
                other => panic!("at depth {depth}: {other:?}"),
            }
        };
        reply.bytes(&[inner + 1]);
    }

    on_devices(|target| {
        // The server learns the client's node from the first call, and calls it back.
        let pair = target.pair();
        let handle = pair.handle;
        let server = serving(pair.server, |thread| {
            let mut tids = Vec::new();
            let mut client = None;
            let mut done = false;
            while !done {
                let served = thread.serve(&mut |thread, call, contents, reply| match call.code {
                    STOP => done = true,
                    _ => {
                        if let Some(Some(Object::Handle { handle, .. })) = contents.objects().next()
                        {
                            thread.queue(Command::Acquire(handle));
                            client = Some(handle);
                            reply.bytes(&[0]);
                        } else {
                            serve(thread, client.unwrap(), &contents.data, reply, &mut tids);
                        }
                    }
                });
                served.unwrap();
            }
            thread.flush().unwrap();
            tids.push(nix::unistd::gettid().as_raw());
            tids
        });
        let mut thread = Thread::new(&pair.client);
        let mut parcel = Parcel::new();
        parcel.binder(0x3000, 0x4000, 0);
        let reply = thread.call(&Call::to(handle).code(ECHO).parcel(&parcel)).unwrap();
        assert!(matches!(reply, Reply::Data(_)), "{reply:?}");

        let mut tids = Vec::new();
        let reply = thread
            .call_serving(
                &Call::to(handle).code(ECHO).data(&[10]),
                &mut |thread, _, contents, reply| {
                    serve(thread, handle, &contents.data, reply, &mut tids);
                },
            )
            .unwrap();
        match reply {
            Reply::Data(contents) => assert_eq!(contents.data, [11]),
            other => panic!("{other:?}"),
        }
        let reply = thread.call(&Call::to(handle).code(STOP)).unwrap();
        assert!(matches!(reply, Reply::Data(_)), "{reply:?}");
        let own = nix::unistd::gettid().as_raw();
        assert_eq!(tids, [own; 5]);
        let theirs = server.join().unwrap();
        assert_eq!(theirs.len(), 7);
        assert!(theirs.iter().all(|tid| *tid == theirs[0]), "one thread served all: {theirs:?}");
    });
}

/// One-way calls to one node come in the order of their sending, one at a time: the next is
/// handed out when the buffer of the one before is freed.
#[test]
fn one_way_calls_come_in_order_one_at_a_time() {
    const CALLS: u32 = 200;
    on_devices(|target| {
        let mut server = Device::open_nonblock(&target.path).unwrap();
        server.mmap(1 << 20).unwrap();
        let pair = target.pair_with(server, &target.path);
        let mut thread = Thread::new(&pair.client);
        for number in 0..CALLS {
            let data = number.to_ne_bytes();
            let call = Call::to(pair.handle).code(number).oneway().data(&data);
            assert_eq!(thread.call(&call).unwrap(), Reply::Sent);
        }
        let server = &pair.server;
        server.write(&[Command::EnterLooper]).unwrap();
        let mut buffer = [0; 4096];
        for number in 0..CALLS {
            let returns: Vec<_> = server.read(&mut buffer).unwrap().collect();
            let calls: Vec<_> = returns.iter().filter_map(transaction).collect();
            assert_eq!(calls.len(), 1, "{returns:?}");
            let call = calls[0];
            assert_eq!((call.code, call.is_oneway(), call.sender_pid), (number, true, 0));
            assert_eq!((call.target, call.cookie), (NODE, COOKIE));
            assert_eq!(server.contents(&call).unwrap().data, number.to_ne_bytes());
            let early = server.read(&mut [0; 256]).map(Iterator::count);
            assert_eq!(early.map_err(|error| error.errno()), Err(Errno::EAGAIN), "one at a time");
            server.write(&[Command::FreeBuffer(call.buffer)]).unwrap();
        }
    });
}

fn transaction(from: &Return) -> Option<fakebinder_client::Transaction> {
    match from {
        Return::Transaction(transaction) => Some(*transaction),
        _ => None,
    }
}

/// Who calls a process that ends before it answers hears BR_DEAD_REPLY, and so does who calls
/// it afterwards; a death notification comes once.
#[test]
fn a_dead_process_is_noticed() {
    on_devices(|target| {
        let pair = target.pair();
        let (device, handle) = pair.another();
        device.write(&[Command::RequestDeathNotification { handle, cookie: 77 }]).unwrap();
        let (client, to) = (pair.client, pair.handle);
        let waiting = std::thread::spawn(move || Thread::new(&client).call(&Call::to(to)));
        pair.server.write(&[Command::EnterLooper]).unwrap();
        let mut buffer = [0; 256];
        while !pair.server.read(&mut buffer).unwrap().any(|r| transaction(&r).is_some()) {}
        drop(pair.server);
        let reply = in_time("the caller of a dead process", move || waiting.join().unwrap());
        assert_eq!(reply.unwrap(), Reply::Dead);

        assert!(device.poll(Some(5000)).unwrap().contains(PollFlags::POLLIN));
        let returns: Vec<_> = device.read(&mut buffer).unwrap().collect();
        assert!(returns.contains(&Return::DeadBinder(77)), "{returns:?}");
        device.write(&[Command::DeadBinderDone(77)]).unwrap();
        assert_eq!(Thread::new(&device).call(&Call::to(handle)).unwrap(), Reply::Dead);
    });
}

/// Without a context manager, handle 0 is dead; an unknown handle fails. The extended error
/// says why.
#[test]
fn calls_to_nobody_fail() {
    on_devices(|target| {
        let device = target.open();
        let mut thread = Thread::new(&device);
        assert_eq!(thread.call(&Call::to(0)).unwrap(), Reply::Dead);
        assert_eq!(thread.call(&Call::to(12_345)).unwrap(), Reply::Failed);
        let error = device.extended_error().unwrap();
        assert_eq!((error.command, error.param), (uapi::BR_FAILED_REPLY, -(Errno::EINVAL as i32)));
        assert_eq!(device.extended_error().unwrap().command, uapi::BR_OK);
    });
}

/// A receiver without a mapping counts as dead, and one without room fails the call: the caller
/// hears of it, and nothing else happens.
#[test]
fn a_receiver_without_room_fails_the_call_only() {
    on_devices(|target| {
        let unmapped = Device::open(&target.path).unwrap();
        let pair = target.pair_with(unmapped, &target.path);
        let mut thread = Thread::new(&pair.client);
        assert_eq!(thread.call(&Call::to(pair.handle)).unwrap(), Reply::Dead);
        drop(pair);

        let mut small = Device::open(&target.path).unwrap();
        small.mmap(8192).unwrap();
        let pair = target.pair_with(small, &target.path);
        let mut thread = Thread::new(&pair.client);
        let to = Call::to(pair.handle);
        assert_eq!(thread.call(&to.data(&[1; 9000])).unwrap(), Reply::Failed);
        let error = pair.client.extended_error().unwrap();
        assert_eq!(error.param, -(Errno::ENOSPC as i32));
        assert_eq!(thread.call(&to.oneway().data(&[1; 2000])).unwrap(), Reply::Sent);
    });
}

/// A bad pointer in the write buffer, in the data or in the read buffer is EFAULT or a failed
/// call, with what was done before it counted; the device works on.
#[test]
fn bad_pointers_hurt_nobody() {
    on_devices(|target| {
        let pair = target.pair();
        let server = serving(pair.server, echo);
        let device = &pair.client;
        let mut arg =
            uapi::binder_write_read { write_size: 64, write_buffer: 0x10, ..Default::default() };
        // SAFETY: nothing is mapped at 0x10, and there is no read buffer.
        let result = unsafe { device.raw_write_read(&mut arg) };
        assert_eq!(result, Err(Errno::EFAULT));
        assert_eq!(arg.write_consumed, 0);

        let mut bytes = Vec::new();
        Command::EnterLooper.encode(&mut bytes);
        let entered = bytes.len();
        Command::Raw(&0xdead_beef_u32.to_ne_bytes()).encode(&mut bytes);
        let transfer = device.transfer(&bytes, &mut []);
        assert_eq!(transfer.result.map_err(|e| e.errno()), Err(Errno::EINVAL));
        assert_eq!(transfer.write_consumed, entered);

        let mut bytes = Vec::new();
        Command::Transaction(Call::to(pair.handle).code(ECHO).data(&[0; 16])).encode(&mut bytes);
        let pointer = bytes.len() - 16;
        bytes[pointer..pointer + 8].copy_from_slice(&0x10u64.to_ne_bytes());
        let mut buffer = [0; 256];
        let transfer = device.transfer(&bytes, &mut buffer);
        transfer.result.unwrap();
        let returns: Vec<_> = Returns::new(&buffer[..transfer.read_consumed]).collect();
        assert_eq!(returns, [Return::Noop, Return::FailedReply]);

        // SAFETY: nothing is mapped at 0x10.
        let result = unsafe { device.raw_ioctl(uapi::BINDER_WRITE_READ, 0x10 as *mut _) };
        assert_eq!(result, Err(Errno::EFAULT));
        stop(device, pair.handle, server);
    });
}

/// A descriptor in a call and one in its reply arrive as descriptors of the same open files.
#[test]
fn descriptors_travel_both_ways() {
    on_devices(|target| {
        let mut server = target.open();
        server.accept_files(4).unwrap();
        let pair = target.pair_with(server, &target.path);
        let mut client = pair.client;
        client.accept_files(4).unwrap();
        let server = serving(pair.server, |thread| {
            let mut wrote = false;
            while !wrote {
                let served = thread.serve(&mut |_, _, contents, reply| {
                    let Some(Some(Object::Fd { fd, .. })) = contents.objects().next() else {
                        panic!("{contents:?}");
                    };
                    let path = format!("/proc/self/fd/{fd}");
                    std::fs::write(path, b"into the pipe").unwrap();
                    let file = std::fs::File::open("/proc/self/comm").unwrap();
                    reply.fd(file.into_raw_fd());
                    wrote = true;
                });
                served.unwrap();
            }
            thread.flush().unwrap();
        });
        let (mut end, start) = std::io::pipe().unwrap();
        let mut parcel = Parcel::new();
        parcel.fd(start.as_raw_fd());
        let call = Call::to(pair.handle).flags(uapi::TF_ACCEPT_FDS).parcel(&parcel);
        let reply = Thread::new(&client).call(&call).unwrap();
        server.join().unwrap();
        let Reply::Data(contents) = reply else { panic!("{reply:?}") };
        let Some(Some(Object::Fd { fd, .. })) = contents.objects().next() else {
            panic!("{contents:?}");
        };
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        assert!(link.ends_with("comm"), "{}", link.display());
        let mut bytes = [0; 13];
        end.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"into the pipe");
    });
}

/// Many clients of one server at once: each gets its own replies.
#[test]
fn many_clients_get_their_own_replies() {
    on_devices(|target| {
        let mut pair = target.pair();
        let failed = Arc::new(AtomicBool::new(false));
        let others: Vec<_> = (0..8).map(|_| pair.another()).collect();
        let server = serving(std::mem::replace(&mut pair.server, target.open()), echo);
        let clients: Vec<_> = (0..8u32)
            .zip(others)
            .map(|(client, (device, handle))| {
                let failed = failed.clone();
                std::thread::spawn(move || {
                    let mut thread = Thread::new(&device);
                    for number in 0..200u32 {
                        let data = [client.to_ne_bytes(), number.to_ne_bytes()].concat();
                        let reply = thread.call(&Call::to(handle).code(ECHO).data(&data)).unwrap();
                        let right = matches!(&reply, Reply::Data(c) if c.data == data);
                        if !right {
                            eprintln!(
                                "{}: call {number} of client {client}: {reply:?}",
                                device.path().display()
                            );
                        }
                        failed.fetch_or(!right, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        assert!(!failed.load(Ordering::Relaxed));
        stop(&pair.client, pair.handle, server);
    });
}

/// Only one context manager at a time, who may not call himself; the next can follow when the
/// first has gone.
#[test]
fn there_is_one_context_manager() {
    on_devices(|target| {
        let first = target.open();
        common::become_manager(&first);
        let mut thread = Thread::new(&first);
        assert_eq!(thread.call(&Call::to(0)).unwrap(), Reply::Failed, "it calls itself");
        let second = target.open();
        let refused = second.set_context_manager().unwrap_err();
        assert_eq!(refused.errno(), Errno::EBUSY);
        drop(first);
        assert!(wait_until(common::PATIENCE, || second.set_context_manager().is_ok()));
    });
}

/// A device maps once, never writable.
#[test]
fn a_device_maps_once_and_read_only() {
    use nix::sys::mman::{MapFlags, ProtFlags};
    on_devices(|target| {
        let device = Device::open(&target.path).unwrap();
        let native = std::fs::metadata(&target.path).unwrap().file_type().is_file();
        let (read, private) = (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE);
        if !native {
            // A regular file's mmap is the kernel's own affair (see the doors in the README).
            let refused = device.map_with(1 << 20, read | ProtFlags::PROT_WRITE, private);
            assert_eq!(refused.map(drop).map_err(|e| e.errno()), Err(Errno::EPERM));
            let _first = device.map_with(1 << 20, read, private).unwrap();
            let refused = device.map_with(1 << 20, read, private);
            assert_eq!(refused.map(drop).map_err(|e| e.errno()), Err(Errno::EBUSY));
        }
    });
}
