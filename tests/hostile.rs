//! Clients that do the daemon harm, or try to: with memory that blocks or is not there, with
//! mappings and sockets that are not what they should be, with lengths that no machine has. The
//! daemon keeps serving the others, and what it spends on such a client stays bounded.
//!
//! More than 500 lines, since every scene is the same sentence about another kind of harm.

mod common;

use common::bystanders::Bystanders;
use common::unfilled::Unfilled;
use common::{Daemon, PATIENCE, Target, in_time, on_doors, open, wait_until};
use fakebinder_client::{
    Call, Command, Device, Errno, Object, Parcel, Reply, Return, Returns, Thread, uapi,
};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::ffi::c_void;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn rss_kib(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A range of an address and a length that is not all there.
fn two_pages_and_a_hole() -> u64 {
    // SAFETY: a new mapping at no address in particular, and its middle page given back.
    unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            3 * 4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(start, libc::MAP_FAILED);
        libc::munmap(start.byte_add(4096), 4096);
        start as u64
    }
}

/// `struct binder_transaction_data`, with any pointers and lengths.
fn record(handle: u32, flags: u32, sizes: (u64, u64), pointers: (u64, u64)) -> Vec<u8> {
    let mut bytes = Vec::new();
    Call::to(handle).flags(flags).encode(&mut bytes);
    for (place, value) in [(32, sizes.0), (40, sizes.1), (48, pointers.0), (56, pointers.1)] {
        bytes[place..][..8].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

fn transaction(number: u32, record: &[u8], extra: &[u8]) -> Vec<u8> {
    [&number.to_ne_bytes(), record, extra].concat()
}

/// What the daemon spends on one open file whose memory does not come.
const HELD: usize = fakebinder::binder::copies::COPIES;

/// One process with more threads that block in its own memory than the daemon has for anybody:
/// in the write buffer, in the data, in the offsets, in the read buffer.
#[test]
fn a_process_of_which_every_thread_blocks_holds_up_nobody() {
    const STUCK: usize = 300;
    on_doors(|target, daemon| {
        let (bystanders, other, handle) = Bystanders::new(target);
        bystanders.go_on();
        let before = daemon.threads();
        let mut unfilled: Vec<Unfilled> = (0..STUCK).map(|_| Unfilled::new()).collect();
        let own = target.open();
        std::thread::scope(|scope| {
            for (index, pages) in unfilled.iter().enumerate() {
                let address = pages.address();
                let (own, other) = (&own, &other);
                scope.spawn(move || {
                    let data = record(handle, uapi::TF_ONE_WAY, (64, 0), (address, 0));
                    let offsets = record(handle, uapi::TF_ONE_WAY, (64, 8), (own_bytes(), address));
                    let bytes = match index % 4 {
                        1 => transaction(uapi::BC_TRANSACTION, &data, &[]),
                        2 => transaction(uapi::BC_TRANSACTION, &offsets, &[]),
                        _ => Vec::new(),
                    };
                    let mut arg = uapi::binder_write_read {
                        write_size: if index % 4 == 0 { 4 } else { bytes.len() as u64 },
                        write_buffer: if index % 4 == 0 { address } else { bytes.as_ptr() as u64 },
                        read_size: if index % 4 == 3 { 256 } else { 0 },
                        read_buffer: address,
                        ..Default::default()
                    };
                    // What is written goes to pages that are nobody's.
                    // SAFETY: `bytes` outlives the call.
                    let _ = unsafe {
                        if index % 4 == 0 { own } else { other }.raw_write_read(&mut arg)
                    };
                });
            }
            let held = wait_until(PATIENCE, || daemon.threads() >= before + 2 * HELD - 4);
            bystanders.go_on();
            // Others come and go, too.
            drop(target.open());
            let most = daemon.threads();
            unfilled.iter_mut().for_each(Unfilled::fill);
            // Two open files are held up, and nothing else; carriers come and go.
            assert!(held && most <= before + 2 * HELD + 4, "{most} threads, {before} before");
        });
        let left = wait_until(PATIENCE, || daemon.threads() <= before);
        assert!(left, "{} threads, {before} before", daemon.threads());
        bystanders.go_on();
        bystanders.end();
    });
}

/// The address of 64 bytes that are there.
fn own_bytes() -> u64 {
    static BYTES: [u8; 64] = [0; 64];
    BYTES.as_ptr() as u64
}

/// While a call to a server is stuck in its sender's memory, the server can be called, and can go.
#[test]
fn a_server_can_leave_while_a_call_to_it_is_stuck() {
    on_doors(|target, daemon| {
        let (bystanders, other, handle) = Bystanders::new(target);
        let before = daemon.threads();
        let mut pages = Unfilled::new();
        std::thread::scope(|scope| {
            let address = pages.address();
            let stuck = scope.spawn(move || {
                let data = record(handle, uapi::TF_ONE_WAY, (4096, 0), (address, 0));
                let bytes = transaction(uapi::BC_TRANSACTION, &data, &[]);
                let mut buffer = [0; 256];
                let transfer = other.transfer(&bytes, &mut buffer);
                transfer.result.unwrap();
                Returns::new(&buffer[..transfer.read_consumed]).collect::<Vec<_>>()
            });
            std::thread::sleep(Duration::from_millis(200));
            bystanders.go_on();
            in_time("the server's end", move || bystanders.end());
            pages.fill();
            let returns = stuck.join().unwrap();
            assert_eq!(returns, [Return::Noop, Return::DeadReply]);
        });
        assert!(wait_until(PATIENCE, || daemon.threads() <= before));
    });
}

/// Data with a hole in its middle fails that transaction and nothing else, whatever it is made of.
#[test]
fn data_with_a_hole_fails_its_transaction_only() {
    on_doors(|target, _| {
        let (bystanders, other, handle) = Bystanders::new(target);
        let hole = two_pages_and_a_hole();
        let mut parcel = Parcel::new();
        parcel.u32(0);
        let sg = 64 + 3 * 4096;
        let holes = [
            record(handle, 0, (3 * 4096, 0), (hole, 0)),
            record(handle, 0, (3 * 4096, 8), (hole, own_bytes())),
            record(handle, 0, (64, 3 * 4096), (own_bytes(), hole)),
        ];
        let mut buffer = [0; 256];
        for record in &holes {
            let transfer =
                other.transfer(&transaction(uapi::BC_TRANSACTION, record, &[]), &mut buffer);
            transfer.result.unwrap();
            let returns = Returns::new(&buffer[..transfer.read_consumed]);
            assert_eq!(returns.last(), Some(Return::FailedReply));
        }
        // A scatter-gather buffer over the hole.
        parcel.object(Object::Buffer {
            buffer: hole,
            length: 3 * 4096,
            flags: 0,
            parent: 0,
            parent_offset: 0,
        });
        parcel.set_buffers_size(sg);
        let reply = Thread::new(&other).call(&Call::to(handle).parcel(&parcel)).unwrap();
        assert_eq!(reply, Reply::Failed);
        bystanders.go_on();
        bystanders.end();
    });
}

/// A client takes its mapping away under what arrives.
#[test]
fn a_client_that_unmaps_gets_no_more_and_harms_nobody() {
    on_doors(|target, _| {
        let (bystanders, ..) = Bystanders::new(target);
        let pair = target.pair();
        let common::Pair { mut server, client, handle, .. } = pair;
        let sending = std::thread::spawn(move || {
            let mut replies = Vec::new();
            let data = vec![7; 3000];
            for _ in 0..300 {
                replies.push(Thread::new(&client).call(&Call::to(handle).oneway().data(&data)));
            }
            replies
        });
        std::thread::sleep(Duration::from_millis(5));
        server.munmap();
        let replies = in_time("the sender", move || sending.join().unwrap());
        let sent = replies.iter().filter(|it| matches!(it, Ok(Reply::Sent))).count();
        assert!(replies.iter().all(Result::is_ok), "{replies:?}");
        assert!(sent < replies.len(), "the space alone ends after some");
        // Its own reads go on: the transactions are there (if one came before), their pages are
        // not.
        server.write(&[Command::EnterLooper]).unwrap();
        if sent > 0 {
            let _ = server.read(&mut [0; 256]);
        }
        bystanders.go_on();
        drop(server);
        bystanders.go_on();
        bystanders.end();
    });
}

/// A writable mapping counts as none: calls to its owner fail, and the daemon says so once.
#[test]
fn a_writable_mapping_counts_as_none() {
    on_doors(|target, daemon| {
        let (bystanders, ..) = Bystanders::new(target);
        let server = Device::open(&target.path).unwrap();
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        match server.map_with(1 << 20, writable, MapFlags::MAP_SHARED) {
            // The attach handshake refuses it, as the driver does.
            Err(error) => assert_eq!(error.errno(), Errno::EPERM),
            Ok(_mapping) => {
                let pair = target.pair_with(server, &target.path);
                for _ in 0..3 {
                    let reply = Thread::new(&pair.client).call(&Call::to(pair.handle)).unwrap();
                    assert_eq!(reply, Reply::Dead);
                }
                let said = || daemon.log().matches("mapped writable").count();
                assert!(wait_until(PATIENCE, || said() > 0), "{}", daemon.log());
                assert_eq!(said(), 1, "{}", daemon.log());
            }
        }
        bystanders.go_on();
        bystanders.end();
    });
}

/// A device whose descriptors arrive at a socket of our own, with these numbers on offer.
fn with_socket(target: &Target, slots: &[i32]) -> (Device, OwnedFd) {
    let mut device = Device::open_nonblock(&target.path).unwrap();
    device.mmap(1 << 20).unwrap();
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let mut attach = uapi::fakebinder_attach {
        version: uapi::FAKEBINDER_ATTACH_VERSION,
        socket: theirs.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: the ioctl's argument is of its type.
    unsafe { device.raw_ioctl(uapi::FAKEBINDER_ATTACH, (&raw mut attach).cast()) }.unwrap();
    offer_slots(&device, slots).unwrap();
    (device, ours)
}

fn offer_slots(device: &Device, slots: &[i32]) -> Result<(), Errno> {
    for slots in slots.chunks(62) {
        let mut offer = uapi::fakebinder_slots { count: slots.len() as u32, ..Default::default() };
        offer.numbers[..slots.len()].copy_from_slice(slots);
        // SAFETY: the ioctl's argument is of its type.
        unsafe { device.raw_ioctl(uapi::FAKEBINDER_SLOTS, (&raw mut offer).cast()) }?;
    }
    Ok(())
}

/// Who closes its socket, or never reads it, gets no descriptors; who sends to it is told.
#[test]
fn a_client_that_closes_its_socket_or_never_reads_it_harms_itself() {
    const SLOTS: usize = 4000;
    on_doors(|target, daemon| {
        let (bystanders, ..) = Bystanders::new(target);
        let numbers: Vec<i32> = (1000..1000 + SLOTS as i32).collect();
        let held = || fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
        for closes in [true, false] {
            let (device, socket) = with_socket(target, &numbers);
            let socket = (!closes).then_some(socket);
            let pair = target.pair_with(device, &target.path);
            let common::Pair { server, client, handle, .. } = pair;
            let before = held();
            let sending = std::thread::spawn(move || {
                let null = fs::File::open("/dev/null").unwrap();
                let mut parcel = Parcel::new();
                for _ in 0..10 {
                    parcel.fd(null.as_raw_fd());
                }
                let mut sent = 0;
                loop {
                    let reply = Thread::new(&client).call(&Call::to(handle).parcel(&parcel));
                    match reply.unwrap() {
                        Reply::Data(_) => sent += 1,
                        Reply::Failed => return sent,
                        other => panic!("{other:?}"),
                    }
                }
            });
            // Serves without ever looking at the socket, and offers its numbers again.
            let numbers = numbers.clone();
            let done = Arc::new(AtomicBool::new(false));
            let serving = std::thread::spawn({
                let done = done.clone();
                move || {
                    let mut thread = Thread::new(&server);
                    thread.queue(Command::EnterLooper);
                    thread.flush().unwrap();
                    while !done.load(Ordering::Relaxed) {
                        let _ = offer_slots(&server, &numbers[..62]);
                        match thread.serve(&mut |_, _, _, _| ()) {
                            Ok(_) => thread.flush().unwrap(),
                            Err(error) if error.errno() == Errno::EAGAIN => {
                                server.poll(Some(20)).unwrap();
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
            let sent = in_time("the sender", move || sending.join().unwrap());
            assert!(if closes { sent == 0 } else { sent > 0 }, "{sent} sent, closed: {closes}");
            done.store(true, Ordering::Relaxed);
            in_time("the server", move || serving.join().unwrap());
            assert!(wait_until(PATIENCE, || held() <= before), "{} now, {before} before", held());
            drop(socket);
            bystanders.go_on();
        }
        bystanders.end();
    });
}

/// Receivers that never read hold as many descriptors in flight as they are let: others can still
/// open the device and send descriptors of their own.
#[test]
fn descriptors_in_flight_do_not_use_up_the_daemon_s() {
    // The newcomers below cost this process some, too.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    on_doors(|target, daemon| {
        let (bystanders, ..) = Bystanders::new(target);
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let limit: usize = limit.split_whitespace().next().unwrap().parse().unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        let mut parcel = Parcel::new();
        for _ in 0..250 {
            parcel.fd(null.as_raw_fd());
        }
        let mut greedy = Vec::new();
        let mut sent = 0;
        // Each may have 4,096; so many that the limit is passed, if it is one that a test can
        // reach.
        for _ in 0..(limit / 4096 + 2).min(16) {
            let (device, socket) = with_socket(target, &[1000]);
            let pair = target.pair_with(device, &target.path);
            let call = Call::to(pair.handle).oneway().parcel(&parcel);
            while Thread::new(&pair.client).call(&call).unwrap() == Reply::Sent {
                sent += 250;
            }
            assert_eq!(pair.client.extended_error().unwrap().param, -(Errno::EMFILE as i32));
            greedy.push((pair.server, socket));
        }
        let held = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
        println!("{}: {sent} in flight, {held} of {limit} used", target.path.display());
        assert!(sent <= limit / 2, "{sent} of {limit}");
        // Each takes the daemon a few.
        let newcomers = (limit / 20).min(500);
        let _newcomers: Vec<Device> = (0..newcomers).map(|_| open(&target.path)).collect();
        bystanders.go_on();
        drop(greedy);
        let mut parcel = Parcel::new();
        parcel.fd(null.as_raw_fd());
        let descriptors = Call::to(bystanders.handle).parcel(&parcel);
        let arrives =
            || matches!(Thread::new(&bystanders.client).call(&descriptors), Ok(Reply::Data(_)));
        assert!(wait_until(PATIENCE, arrives), "they are let go with their receivers");
        bystanders.end();
    });
}

/// The node that the registrar has, for a device whose reads do not wait.
fn look_up_nonblock(device: &Device) -> u32 {
    device.write(&[Command::Transaction(Call::to(0).code(common::GET))]).unwrap();
    let mut buffer = [0; 256];
    loop {
        device.poll(Some(5000)).unwrap();
        for it in device.read(&mut buffer).unwrap() {
            if let Return::Reply(reply) = it {
                let contents = device.contents(&reply).unwrap();
                let Some(Some(Object::Handle { handle, .. })) = contents.objects().next() else {
                    panic!("{contents:?}");
                };
                let free = Command::FreeBuffer(reply.buffer);
                device.write(&[Command::Acquire(handle), free]).unwrap();
                return handle;
            }
        }
    }
}

/// Every length, count, offset and pointer of every ioctl, command and object, at its extremes.
#[test]
fn no_length_is_too_large_to_be_refused() {
    const EXTREMES: [u64; 12] = [
        1,
        7,
        0xfff,
        1 << 20,
        (4 << 20) + 1,
        (1 << 31) - 1,
        1 << 31,
        u32::MAX as u64,
        1 << 32,
        1 << 62,
        (1 << 63) - 1,
        u64::MAX,
    ];
    on_doors(|target, daemon| {
        // Poll may say that there is something, and it may be gone at the read: as in the driver,
        // where a node's work goes with the node.
        let mut device = Device::open_nonblock(&target.path).unwrap();
        device.mmap(1 << 20).unwrap();
        let (bystanders, handle) = Bystanders::with(target, |_| look_up_nonblock(&device));
        let (rss, threads) = (rss_kib(daemon), daemon.threads());
        let device = &device;
        let nonblock = {
            let mut device = Device::open_nonblock(&target.path).unwrap();
            device.mmap(1 << 20).unwrap();
            device
        };
        let own = own_bytes();
        let mut tried = 0;
        // What fails leaves an error to be read; without it the next command is not looked at.
        let write = |bytes: &[u8]| {
            let mut buffer = [0; 256];
            let mut arg = uapi::binder_write_read {
                write_size: bytes.len() as u64,
                write_buffer: bytes.as_ptr() as u64,
                ..Default::default()
            };
            // SAFETY: `bytes` outlives the call.
            let _ = unsafe { device.raw_write_read(&mut arg) };
            while device.poll(Some(0)).unwrap().bits() != 0 {
                if device.read(&mut buffer).is_err() {
                    break;
                }
            }
        };
        for extreme in EXTREMES {
            // BINDER_WRITE_READ itself.
            for field in 0..6 {
                let mut fields = [0u64, 0, own, 0, 0, own];
                fields[field] = extreme;
                let [
                    write_size,
                    write_consumed,
                    write_buffer,
                    read_size,
                    read_consumed,
                    read_buffer,
                ] = fields;
                // What a read of such a length writes must be nobody's memory.
                let read_buffer = if read_size > 0 { 0x10 } else { read_buffer };
                let mut arg = uapi::binder_write_read {
                    write_size,
                    write_consumed,
                    write_buffer,
                    read_size,
                    read_consumed,
                    read_buffer,
                };
                // SAFETY: nothing is mapped at 0x10, and without a size nothing is written.
                let _ = unsafe { nonblock.raw_write_read(&mut arg) };
                tried += 1;
            }
            // Sizes and pointers of a transaction, a call and a reply, with and without buffers.
            for number in
                [uapi::BC_TRANSACTION, uapi::BC_REPLY, uapi::BC_TRANSACTION_SG, uapi::BC_REPLY_SG]
            {
                for (sizes, pointers, extra) in [
                    ((extreme, 0), (own, own), 0),
                    ((0, extreme), (own, own), 0),
                    ((extreme, extreme), (own, own), extreme),
                    ((64, 8), (own, own), extreme),
                    ((8, 8), (extreme, own), 8),
                    ((8, 8), (own, extreme), 8),
                    ((64, 64), (own, own), u64::MAX - 63),
                ] {
                    let record = record(handle, uapi::TF_ONE_WAY, sizes, pointers);
                    let extra: &[u8] = match number {
                        uapi::BC_TRANSACTION_SG | uapi::BC_REPLY_SG => &extra.to_ne_bytes(),
                        _ => &[],
                    };
                    write(&transaction(number, &record, extra));
                    tried += 1;
                }
            }
            // Objects.
            let buffer = |length, parent, parent_offset, flags| Object::Buffer {
                buffer: own,
                length,
                flags,
                parent,
                parent_offset,
            };
            let array =
                |num_fds, parent, parent_offset| Object::FdArray { num_fds, parent, parent_offset };
            let good = buffer(16, 0, 0, 0);
            let child = uapi::BINDER_BUFFER_FLAG_HAS_PARENT;
            for objects in [
                vec![buffer(extreme, 0, 0, 0)],
                vec![good, buffer(8, extreme, 0, child)],
                vec![good, buffer(8, 0, extreme, child)],
                vec![good, buffer(extreme, extreme, extreme, child)],
                vec![good, array(extreme, 0, 0)],
                vec![good, array(1, extreme, 0)],
                vec![good, array(1, 0, extreme)],
                vec![good, array(extreme, extreme, extreme)],
                vec![Object::Handle { handle: extreme as u32, cookie: extreme, flags: u32::MAX }],
                vec![Object::Fd { fd: extreme as u32, cookie: extreme }],
                vec![Object::Binder { ptr: extreme, cookie: extreme, flags: u32::MAX }],
            ] {
                let mut parcel = Parcel::new();
                parcel.u32(0);
                for object in objects {
                    parcel.object(object);
                }
                for size in [64, extreme] {
                    parcel.set_buffers_size(size);
                    let mut bytes = Vec::new();
                    let call = Call::to(handle).oneway().parcel(&parcel);
                    Command::TransactionSg(call).encode(&mut bytes);
                    write(&bytes);
                    tried += 1;
                }
                parcel.offset(extreme);
                let mut bytes = Vec::new();
                let call = Call::to(handle).oneway().parcel(&parcel);
                Command::TransactionSg(call).encode(&mut bytes);
                write(&bytes);
            }
            // Commands with a number.
            let word = extreme as u32;
            for command in [
                Command::FreeBuffer(extreme),
                Command::Increfs(word),
                Command::Acquire(word),
                Command::Release(word),
                Command::Decrefs(word),
                Command::IncrefsDone { ptr: extreme, cookie: extreme },
                Command::AcquireDone { ptr: extreme, cookie: extreme },
                Command::RequestDeathNotification { handle: word, cookie: extreme },
                Command::ClearDeathNotification { handle: word, cookie: extreme },
                Command::DeadBinderDone(extreme),
                Command::RequestFreezeNotification { handle: word, cookie: extreme },
                Command::ClearFreezeNotification { handle: word, cookie: extreme },
                Command::FreezeNotificationDone(extreme),
                Command::Raw(&word.to_ne_bytes()),
            ] {
                let mut bytes = Vec::new();
                command.encode(&mut bytes);
                write(&bytes);
                tried += 1;
            }
            // The other ioctls: every word of the argument.
            for cmd in [
                uapi::BINDER_SET_MAX_THREADS,
                uapi::BINDER_VERSION,
                uapi::BINDER_GET_NODE_DEBUG_INFO,
                uapi::BINDER_GET_NODE_INFO_FOR_REF,
                uapi::BINDER_GET_FROZEN_INFO,
                uapi::BINDER_ENABLE_ONEWAY_SPAM_DETECTION,
                uapi::BINDER_SET_IDLE_TIMEOUT,
                uapi::FAKEBINDER_ATTACH,
                uapi::FAKEBINDER_ATTACH_NAME,
                uapi::FAKEBINDER_MAPPED,
                uapi::FAKEBINDER_SLOTS,
                uapi::FAKEBINDER_SUPERVISE,
                uapi::FAKEBINDER_FOR_THREAD,
            ] {
                let mut argument = [extreme; 64];
                let argument: *mut c_void = argument.as_mut_ptr().cast();
                // SAFETY: no argument is longer than 512 bytes.
                let _ = unsafe { nonblock.raw_ioctl(cmd, argument) };
                // An ioctl of any size: its number says how much.
                let sized = (cmd & !0x3fff_0000) | ((word & 0x1ff) << 16);
                // SAFETY: as above, 511 at most.
                let _ = unsafe { nonblock.raw_ioctl(sized, argument) };
                tried += 2;
            }
            // Nobody has that pid, whatever the timeout is.
            let _ = nonblock.freeze(word | 1 << 30, true, u32::MAX);
        }
        bystanders.go_on();
        let held = device.daemon_stats().unwrap();
        println!(
            "{}: {tried} extremes; RSS {rss} KiB before, {} after; threads {threads}, {}; {held:?}",
            target.path.display(),
            rss_kib(daemon),
            daemon.threads()
        );
        assert!(rss_kib(daemon) < rss + (32 << 10), "{rss} KiB before, {} after", rss_kib(daemon));
        // One that carries, and one that looks for deadlocks, may still be there.
        assert!(daemon.threads() <= threads + 2, "{threads} before, {} after", daemon.threads());
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
        bystanders.end();
    });
}
