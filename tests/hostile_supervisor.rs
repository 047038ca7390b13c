//! Supervisors of a program (`fakebinder exec`) that answer wrongly, or not at all: the transaction
//! that it is about fails, and the daemon goes on.

mod common;

use common::bystanders::Bystanders;
use common::{PATIENCE, Pair, Target, on_doors, wait_until};
use fakebinder_client::{
    Call, Command, Device, Errno, Parcel, Reply, Return, Thread, Transaction, uapi,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::channel;

const PLACED: u32 = uapi::FAKEBINDER_PLACED;

/// Makes this process the supervisor of a device of its own.
fn supervise(device: &Device) -> OwnedFd {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let mut told = uapi::fakebinder_supervise {
        version: uapi::FAKEBINDER_SUPERVISE_VERSION,
        socket: theirs.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: the ioctl's argument is of its type.
    unsafe { device.raw_ioctl(uapi::FAKEBINDER_SUPERVISE, (&raw mut told).cast()) }.unwrap();
    ours
}

fn say(socket: &OwnedFd, words: &[u32]) -> Result<usize, Errno> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    send(socket.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT)
}

/// A server that receives descriptors in this way, and a client.
fn pair(target: &Target) -> Pair {
    let mut device = Device::open_nonblock(&target.path).unwrap();
    device.mmap(1 << 20).unwrap();
    target.pair_with(device, &target.path)
}

/// Calls with a descriptor.
fn call(pair: &Pair) -> Reply {
    let null = File::open("/dev/null").unwrap();
    let mut parcel = Parcel::new();
    parcel.fd(null.as_raw_fd());
    Thread::new(&pair.client).call(&Call::to(pair.handle).parcel(&parcel)).unwrap()
}

/// The same, and how that failed.
fn refusal(pair: &Pair) -> Errno {
    let reply = call(pair);
    assert!(matches!(reply, Reply::Failed), "{reply:?}");
    Errno::from_raw(-pair.client.extended_error().unwrap().param)
}

/// What the thread reads: a transaction, if there is one.
fn read(server: &Device) -> Option<Transaction> {
    let mut buffer = [0; 256];
    let read = match server.read(&mut buffer) {
        Ok(returns) => returns,
        Err(error) if error.errno() == Errno::EAGAIN => return None,
        Err(error) => panic!("{error}"),
    };
    read.into_iter().find_map(|it| match it {
        Return::Transaction(transaction) => Some(transaction),
        _ => None,
    })
}

/// Reads until the supervisor is given files; the ticket.
fn ticket(server: &Device, socket: &OwnedFd) -> u32 {
    let mut told = [0; 16];
    let came = wait_until(PATIENCE, || {
        assert!(read(server).is_none(), "it was told of before the files were placed");
        recv(socket.as_raw_fd(), &mut told, MsgFlags::MSG_DONTWAIT) == Ok(16)
    });
    assert!(came, "no files came");
    let words = told.as_chunks::<4>().0;
    assert_eq!(u32::from_ne_bytes(words[0]), uapi::FAKEBINDER_PLACE);
    u32::from_ne_bytes(words[1])
}

#[test]
fn a_wrong_answer_fails_the_transaction() {
    type Answer = dyn Fn(&OwnedFd, u32);
    let answers: [(Errno, &Answer); 9] = [
        (Errno::EPERM, &|_, _| ()),
        (Errno::EMFILE, &|socket, ticket| {
            say(socket, &[PLACED, ticket, Errno::EMFILE as u32]).unwrap();
        }),
        (Errno::EPERM, &|socket, ticket| _ = say(socket, &[PLACED, ticket, 9999]).unwrap()),
        (Errno::EPERM, &|socket, ticket| _ = say(socket, &[PLACED, ticket, u32::MAX]).unwrap()),
        (Errno::EPERM, &|socket, ticket| _ = say(socket, &[PLACED, ticket, 0, 5, 6]).unwrap()),
        (Errno::EPERM, &|socket, ticket| _ = say(socket, &[PLACED, !ticket, 0, 5]).unwrap()),
        (Errno::EPERM, &|socket, ticket| _ = say(socket, &[PLACED, ticket]).unwrap()),
        (Errno::EPERM, &|socket, _| {
            send(socket.as_raw_fd(), &[1, 2, 3], MsgFlags::MSG_DONTWAIT).unwrap();
        }),
        // As much as there is room for.
        (Errno::EPERM, &|socket, _| {
            setsockopt(socket, sockopt::SndBuf, &(4 << 20)).unwrap();
            while say(socket, &[PLACED; 300]).is_ok() {}
        }),
    ];
    on_doors(|target, _| {
        let (bystanders, ..) = Bystanders::new(target);
        let pair = pair(target);
        pair.server.write(&[Command::EnterLooper]).unwrap();
        for (index, (expected, answer)) in answers.iter().enumerate() {
            let socket = supervise(&pair.server);
            std::thread::scope(|scope| {
                let calling = scope.spawn(|| refusal(&pair));
                answer(&socket, ticket(&pair.server, &socket));
                assert!(read(&pair.server).is_none(), "answer {index}");
                assert_eq!(calling.join().unwrap(), *expected, "answer {index}");
            });
        }
        bystanders.go_on();
        bystanders.end();
    });
}

/// Each supervisor's tickets have numbers from 1 on.
#[test]
fn the_answer_of_another_supervisor_does_not_count() {
    on_doors(|target, _| {
        let pair = pair(target);
        let first = supervise(&pair.server);
        let (tell, told) = channel();
        let (go_on, may_go_on) = channel::<()>();
        std::thread::scope(|scope| {
            let pair = &pair;
            let calling = scope.spawn(|| refusal(pair));
            let reading = scope.spawn(move || {
                pair.server.write(&[Command::EnterLooper]).unwrap();
                tell.send(ticket(&pair.server, &first)).unwrap();
                may_go_on.recv().unwrap();
                read(&pair.server)
            });
            let ticket_of_first = told.recv().unwrap();
            let second = supervise(&pair.server);
            let calling_second = scope.spawn(|| call(pair));
            pair.server.write(&[Command::EnterLooper]).unwrap();
            assert_eq!(ticket(&pair.server, &second), ticket_of_first);
            say(&second, &[PLACED, ticket_of_first, 0, 1]).unwrap();
            go_on.send(()).unwrap();
            assert!(reading.join().unwrap().is_none());
            assert_eq!(calling.join().unwrap(), Errno::EPERM);
            // The answer was there for the transaction that it is about.
            let transaction = read(&pair.server).expect("the transaction");
            let answer = [Command::FreeBuffer(transaction.buffer), Command::Reply(Call::reply())];
            pair.server.write(&answer).unwrap();
            let reply = calling_second.join().unwrap();
            assert!(matches!(reply, Reply::Data(_)), "{reply:?}");
        });
    });
}
