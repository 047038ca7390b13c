//! Descriptors in transactions: single ones and arrays, both ways, refused, cut off, and many.
//!
//! How many a process has is counted in `/proc/PID/fd`: none may be left over anywhere.

mod common;

use common::forked::Forked;
use common::{
    Daemon, Door, PATIENCE, Pair, Target, alone, in_time, look_up, offer, on_devices, open, skip,
    wait_until,
};
use fakebinder_client::{
    Call, Command, Contents, Device, Errno, Object, Parcel, Reply, Return, Thread, uapi,
};
use std::fs;
use std::io::{PipeReader, PipeWriter, Read, pipe};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const STOP: u32 = 99;

/// How many descriptors a process has.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Data with an array of descriptors.
fn array(parcel: &mut Parcel, fds: &[i32]) {
    // A buffer at offset 0 can't be a parent, in the driver.
    parcel.u32(0);
    let bytes: Vec<u8> = fds.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
    let parent = parcel.buffer(&bytes);
    parcel.fd_array(fds.len() as u64, parent, 0);
}

/// The descriptors in what was received: of arrays, and single ones.
fn received(device: &Device, contents: &Contents) -> (Vec<i32>, Vec<i32>) {
    let (mut arrays, mut singles, mut parent) = (Vec::new(), Vec::new(), None);
    for object in contents.objects().flatten() {
        match object {
            Object::Fd { fd, .. } => singles.push(fd as i32),
            Object::Buffer { buffer, .. } => parent = Some(buffer),
            Object::FdArray { num_fds, parent_offset, .. } => {
                for index in 0..num_fds {
                    let mut fd = [0; 4];
                    let address = parent.unwrap() + parent_offset + 4 * index;
                    device.mapping().unwrap().read(address, &mut fd).unwrap();
                    arrays.push(i32::from_ne_bytes(fd));
                }
            }
            other => panic!("{other:?}"),
        }
    }
    (arrays, singles)
}

/// What a descriptor stands for; another thread may have been given the number of a closed one.
fn inode(fd: i32) -> Option<u64> {
    fs::metadata(format!("/proc/self/fd/{fd}")).ok().map(|file| file.ino())
}

fn write_mark(fd: i32, mark: u8) {
    // SAFETY: one byte is there.
    assert_eq!(unsafe { libc::write(fd, [mark].as_ptr().cast(), 1) }, 1, "descriptor {fd}");
}

/// Whether nobody can write to the pipe any more.
fn is_at_end(mut reader: PipeReader) -> bool {
    in_time("the end of a pipe", move || {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).is_ok()
    })
}

fn pair_with_files(target: &Target, client: &Path, slots: usize) -> Pair {
    let mut server = target.open();
    server.accept_files(slots).unwrap();
    let mut pair = target.pair_with(server, client);
    pair.client.accept_files(slots).unwrap();
    pair
}

/// Three in an array and one by itself, in the call and in the reply: each is the same open file
/// on the other side. The array's are closed with the buffer, the other one is the receiver's.
fn there_and_back(pair: Pair) {
    let (mut reader, writer) = pipe().unwrap();
    let (mut back, answer) = pipe().unwrap();
    let (question, reply) = (inode(writer.as_raw_fd()), inode(answer.as_raw_fd()));
    let Pair { server, client, handle, .. } = pair;
    let server = std::thread::spawn(move || {
        let mut thread = Thread::new(&server);
        thread.queue(Command::EnterLooper);
        let mut came = None;
        while came.is_none() {
            let served = thread.serve(&mut |_, _, contents, reply| {
                let (arrays, singles) = received(&server, contents);
                for (mark, fd) in arrays.iter().chain(&singles).enumerate() {
                    write_mark(*fd, b'a' + mark as u8);
                }
                array(reply, &[answer.as_raw_fd(); 3]);
                reply.fd(answer.as_raw_fd());
                came = Some((arrays, singles));
            });
            served.unwrap();
        }
        let (arrays, singles) = came.unwrap();
        let is_there = |fd: &i32| inode(*fd) == question;
        assert!(arrays.iter().chain(&singles).all(is_there), "before BC_FREE_BUFFER");
        thread.flush().unwrap();
        // The driver closes them when the ioctl returns to its program; so does the library.
        assert!(!arrays.iter().any(is_there), "after BC_FREE_BUFFER");
        assert!(singles.iter().all(is_there));
        singles.into_iter().for_each(|fd| nix::unistd::close(fd).unwrap());
    });
    let mut parcel = Parcel::new();
    array(&mut parcel, &[writer.as_raw_fd(); 3]);
    parcel.fd(writer.as_raw_fd());
    let mut thread = Thread::new(&client);
    let call = Call::to(handle).flags(uapi::TF_ACCEPT_FDS).parcel(&parcel);
    let Reply::Data(contents) = thread.call(&call).unwrap() else { panic!("no reply") };
    let (arrays, singles) = received(&client, &contents);
    assert_eq!((arrays.len(), singles.len()), (3, 1));
    for (mark, fd) in arrays.iter().chain(&singles).enumerate() {
        write_mark(*fd, b'A' + mark as u8);
    }
    thread.flush().unwrap();
    assert!(!arrays.iter().any(|fd| inode(*fd) == reply), "after BC_FREE_BUFFER");
    singles.into_iter().for_each(|fd| nix::unistd::close(fd).unwrap());
    server.join().unwrap();
    drop(writer);
    let mut marks = String::new();
    reader.read_to_string(&mut marks).unwrap();
    back.read_to_string(&mut marks).unwrap();
    assert_eq!(marks, "abcdABCD");
}

#[test]
fn single_descriptors_and_arrays_travel_both_ways() {
    on_devices(|target| {
        let before = descriptors(std::process::id());
        there_and_back(pair_with_files(target, &target.path, 8));
        let after = wait_until(PATIENCE, || descriptors(std::process::id()) == before);
        assert!(after, "{} descriptors, {before} before", descriptors(std::process::id()));
    });
}

#[test]
fn descriptors_cross_from_door_to_door() {
    if !Door::Fuse.is_here() || !Door::Cuse.is_here() {
        return skip("it takes both /dev/fuse and /dev/cuse (the VM of tests/vm has them)");
    }
    let _alone = alone();
    let daemon = Daemon::start(Door::Auto);
    let (fuse, cuse) = (daemon.fuse(), daemon.cuse());
    let target = Target::private(fuse.clone(), daemon);
    there_and_back(pair_with_files(&target, &cuse, 8));
    let target = Target { path: cuse, daemon: target.daemon };
    there_and_back(pair_with_files(&target, &fuse, 8));
}

/// A node without FLAT_BINDER_FLAG_ACCEPTS_FDS gets none, nor does a caller without
/// TF_ACCEPT_FDS: EPERM for the sender.
#[test]
fn who_does_not_want_descriptors_gets_none() {
    on_devices(|target| {
        let _registrar = target.registrar();
        let (mut server, mut client) = (target.open(), target.open());
        server.accept_files(4).unwrap();
        client.accept_files(4).unwrap();
        offer(&server, 0);
        let handle = look_up(&client);
        let (reader, writer) = pipe().unwrap();
        let (mut single, mut several) = (Parcel::new(), Parcel::new());
        single.fd(writer.as_raw_fd());
        array(&mut several, &[writer.as_raw_fd(); 2]);
        let mut thread = Thread::new(&client);
        for parcel in [&single, &several] {
            let call = Call::to(handle).flags(uapi::TF_ACCEPT_FDS).parcel(parcel);
            for call in [call, call.oneway()] {
                assert_eq!(thread.call(&call).unwrap(), Reply::Failed);
                assert_eq!(client.extended_error().unwrap().param, -(Errno::EPERM as i32));
            }
        }
        let file = writer.as_raw_fd();
        let server = std::thread::spawn(move || {
            let mut thread = Thread::new(&server);
            thread.queue(Command::EnterLooper);
            while !matches!(
                thread.serve(&mut |_, _, _, reply| _ = reply.fd(file)).unwrap(),
                Return::Transaction(_)
            ) {}
            thread.flush().unwrap();
        });
        assert_eq!(thread.call(&Call::to(handle)).unwrap(), Reply::Failed);
        assert_eq!(client.extended_error().unwrap().param, -(Errno::EPERM as i32));
        server.join().unwrap();
        drop(writer);
        assert!(is_at_end(reader));
    });
}

/// A receiver that has no way to get them, and may not be stopped: EOPNOTSUPP, and the daemon says
/// so once.
#[test]
fn a_receiver_without_a_channel_is_said_once() {
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let _alone = alone();
    let daemon = Daemon::start_with(&["--never-trace"], None);
    let target = Target::private(daemon.fuse(), daemon);
    let play = |target: &Target| {
        let Some(daemon) = &target.daemon else { return };
        let mut said = 0;
        for _ in 0..2 {
            let pair = target.pair();
            let (reader, writer) = pipe().unwrap();
            let (mut single, mut several) = (Parcel::new(), Parcel::new());
            single.fd(writer.as_raw_fd());
            array(&mut several, &[writer.as_raw_fd(); 2]);
            let mut thread = Thread::new(&pair.client);
            for parcel in [&single, &several, &single] {
                let call = Call::to(pair.handle).oneway().parcel(parcel);
                assert_eq!(thread.call(&call).unwrap(), Reply::Failed);
                let error = pair.client.extended_error().unwrap();
                assert_eq!(error.command, uapi::BR_FAILED_REPLY);
                assert_eq!(error.param, -(Errno::EOPNOTSUPP as i32));
            }
            said += 1;
            let lines = || daemon.log().matches("no way to receive them").count();
            assert!(wait_until(PATIENCE, || lines() >= said), "{}", daemon.log());
            assert_eq!(lines(), said, "{}", daemon.log());
            drop((pair, writer));
            assert!(is_at_end(reader));
        }
    };
    play(&target);
}

/// More than the receiver has room for: that transaction fails, and the next one comes.
#[test]
fn without_room_a_transaction_fails_and_the_next_one_comes() {
    on_devices(|target| {
        if target.daemon.is_none() {
            return;
        }
        let pair = pair_with_files(target, &target.path, 2);
        let (reader, writer) = pipe().unwrap();
        let mut parcel = Parcel::new();
        array(&mut parcel, &[writer.as_raw_fd(); 3]);
        let mut thread = Thread::new(&pair.client);
        let oneway = Call::to(pair.handle).oneway();
        assert_eq!(thread.call(&oneway.parcel(&parcel)).unwrap(), Reply::Sent);
        assert_eq!(thread.call(&oneway.code(5)).unwrap(), Reply::Sent);
        let Pair { server, client, handle, .. } = pair;
        let server = std::thread::spawn(move || {
            let mut thread = Thread::new(&server);
            thread.queue(Command::EnterLooper);
            let mut codes = Vec::new();
            while codes.last() != Some(&STOP) {
                thread.serve(&mut |_, call, _, _| codes.push(call.code)).unwrap();
            }
            thread.flush().unwrap();
            codes
        });
        let mut thread = Thread::new(&client);
        assert_eq!(thread.call(&Call::to(handle).parcel(&parcel)).unwrap(), Reply::Failed);
        parcel.clear();
        array(&mut parcel, &[writer.as_raw_fd(); 2]);
        let reply = thread.call(&Call::to(handle).code(6).parcel(&parcel)).unwrap();
        assert!(matches!(reply, Reply::Data(_)), "{reply:?}");
        thread.call(&Call::to(handle).code(STOP)).unwrap();
        assert_eq!(server.join().unwrap(), [5, 6, STOP]);
        drop(writer);
        assert!(is_at_end(reader));
    });
}

/// A receiver that is killed with descriptors on their way, read and not read: they are closed.
#[test]
fn a_receiver_that_dies_takes_its_descriptors_along() {
    on_devices(|target| {
        let _registrar = target.registrar();
        // Once it has been called, the daemon has opened all that it wants of it.
        let bystander = target.open();
        Thread::new(&bystander).call(&Call::to(0).code(common::GET)).unwrap();
        let before = target.daemon.as_ref().map(|daemon| descriptors(daemon.pid()));
        let (reader, writer) = pipe().unwrap();
        let path = target.path.clone();
        let receiver = Forked::start(|| {
            let mut server = open(&path);
            server.accept_files(8).unwrap();
            offer(&server, uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS);
            // One is read, and its buffer never freed: the others wait behind it.
            server.write(&[Command::EnterLooper]).unwrap();
            loop {
                let _ = server.read(&mut [0; 256]);
            }
        });
        let client = open(&target.path);
        let handle = look_up(&client);
        let mut parcel = Parcel::new();
        array(&mut parcel, &[writer.as_raw_fd(); 3]);
        parcel.fd(writer.as_raw_fd());
        for _ in 0..20 {
            let call = Call::to(handle).oneway().parcel(&parcel);
            assert_eq!(Thread::new(&client).call(&call).unwrap(), Reply::Sent);
        }
        receiver.kill();
        drop(receiver);
        drop(writer);
        assert!(is_at_end(reader));
        drop(client);
        if let (Some(daemon), Some(before)) = (&target.daemon, before) {
            let same = wait_until(PATIENCE, || descriptors(daemon.pid()) == before);
            assert!(same, "{} descriptors, {before} before", descriptors(daemon.pid()));
        }
    });
}

/// 10,000 descriptors, a half of them in arrays, from one process to another and as many back.
#[test]
fn ten_thousand_descriptors_leave_none_behind() {
    const CALLS: usize = 100;
    const SINGLES: usize = 25;
    on_devices(|target| {
        let _registrar = target.registrar();
        let mut server = target.open();
        server.accept_files(2 * SINGLES).unwrap();
        offer(&server, uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS);
        let (reader, writer) = pipe().unwrap();
        let path = target.path.clone();
        let fill = |parcel: &mut Parcel, writer: &PipeWriter| {
            array(parcel, &[writer.as_raw_fd(); SINGLES]);
            for _ in 0..SINGLES {
                parcel.fd(writer.as_raw_fd());
            }
        };
        let close = |device: &Device, contents: &Contents| {
            let (arrays, singles) = received(device, contents);
            assert_eq!((arrays.len(), singles.len()), (SINGLES, SINGLES));
            singles.into_iter().for_each(|fd| nix::unistd::close(fd).unwrap());
        };
        let daemon = || target.daemon.as_ref().map(|daemon| descriptors(daemon.pid()));
        let sender = Forked::start(|| {
            let mut client = open(&path);
            client.accept_files(2 * SINGLES).unwrap();
            let handle = look_up(&client);
            let mut thread = Thread::new(&client);
            let before = descriptors(std::process::id());
            for _ in 0..CALLS {
                let mut parcel = Parcel::new();
                fill(&mut parcel, &writer);
                let call = Call::to(handle).flags(uapi::TF_ACCEPT_FDS).parcel(&parcel);
                let Reply::Data(contents) = thread.call(&call).unwrap() else { return 2 };
                close(&client, &contents);
                thread.flush().unwrap();
            }
            let after = descriptors(std::process::id());
            if thread.call(&Call::to(handle).code(STOP)).is_err() {
                return 3;
            }
            i32::from(before != after)
        });
        let before = (descriptors(std::process::id()), daemon());
        let during = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let served = scope.spawn(|| {
                let mut thread = Thread::new(&server);
                thread.queue(Command::EnterLooper);
                let (mut stop, mut calls) = (false, 0);
                while !stop {
                    let served = thread.serve(&mut |_, call, contents, reply| {
                        stop = call.code == STOP;
                        if !stop {
                            close(&server, contents);
                            fill(reply, &writer);
                            calls += 1;
                        }
                    });
                    served.unwrap();
                    if let Some(held) = daemon() {
                        during.fetch_max(held, std::sync::atomic::Ordering::Relaxed);
                    }
                }
                thread.flush().unwrap();
                calls
            });
            assert_eq!(served.join().unwrap(), CALLS);
        });
        sender.succeed();
        let after = || (descriptors(std::process::id()), daemon());
        // The daemon may keep one for a client that has received something (its maps), and one for
        // a thread that has served a call: the registrar's.
        let same = wait_until(PATIENCE, || {
            let after = after();
            after.0 == before.0 && after.1 <= before.1.map(|held| held + 2)
        });
        assert!(same, "{:?} now, {before:?} before", after());
        println!(
            "{}: {} descriptors passed; this process {} before and after, the daemon {:?}, {} at most",
            target.path.display(),
            CALLS * SINGLES * 4,
            before.0,
            after().1,
            during.into_inner(),
        );
        drop(writer);
        assert!(is_at_end(reader));
    });
}

/// An array that is too long, or lies outside of its buffer, brings nothing along.
#[test]
fn an_array_that_is_wrong_takes_no_descriptor() {
    on_devices(|target| {
        let pair = pair_with_files(target, &target.path, 4);
        let (reader, writer) = pipe().unwrap();
        let file = writer.as_raw_fd();
        let mut thread = Thread::new(&pair.client);
        for (num_fds, offset) in
            [(3, 0), (1, 8), (2, 2), (u64::MAX, 0), (1 << 62, 4), (1, u64::MAX)]
        {
            let mut parcel = Parcel::new();
            parcel.u32(0);
            parcel.fd(file);
            let parent = parcel.buffer(&[file.to_ne_bytes(); 2].concat());
            parcel.fd_array(num_fds, parent, offset);
            let call = Call::to(pair.handle).oneway().parcel(&parcel);
            assert_eq!(thread.call(&call).unwrap(), Reply::Failed, "{num_fds} at {offset}");
            let error = pair.client.extended_error().unwrap();
            assert_eq!(error.param, -(Errno::EINVAL as i32), "{num_fds} at {offset}");
        }
        // One that is none, among good ones.
        let mut parcel = Parcel::new();
        let closed = fs::File::open("/dev/null").unwrap().into_raw_fd();
        nix::unistd::close(closed).unwrap();
        array(&mut parcel, &[file, closed]);
        let call = Call::to(pair.handle).oneway().parcel(&parcel);
        assert_eq!(thread.call(&call).unwrap(), Reply::Failed);
        assert_eq!(pair.client.extended_error().unwrap().param, -(Errno::EBADF as i32));
        drop(writer);
        assert!(is_at_end(reader));
    });
}
