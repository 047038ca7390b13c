//! Clients that wait: poll, O_NONBLOCK, signals, and very many of them.

mod common;

use common::{
    Daemon, Door, Killed, PATIENCE, Target, alone, on_devices, role, role_device, skip, wait_until,
};
use fakebinder_client::{Call, Command, Device, Errno, Reply, Return, Thread};
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::time::{Duration, Instant};

#[test]
fn a_nonblocking_read_with_nothing_to_give_is_eagain() {
    on_devices(|target| {
        let mut device = Device::open_nonblock(&target.path).unwrap();
        device.mmap(128 << 10).unwrap();
        let read = |device: &Device| {
            let mut buffer = [0; 256];
            let returns = device.read(&mut buffer).map_err(|error| error.errno());
            returns.map(Iterator::collect::<Vec<_>>)
        };
        assert_eq!(read(&device), Ok(vec![Return::Noop]), "a thread's first ioctl does not wait");
        assert_eq!(read(&device), Err(Errno::EAGAIN));
        device.write(&[Command::EnterLooper]).unwrap();
        assert_eq!(read(&device), Err(Errno::EAGAIN));
        let pair = target.pair_with(device, &target.path);
        let device = &pair.server;
        let call = Call::to(pair.handle).oneway();
        assert_eq!(Thread::new(&pair.client).call(&call).unwrap(), Reply::Sent);
        assert!(device.poll(Some(5000)).unwrap().contains(PollFlags::POLLIN));
        let returns = read(device).unwrap();
        assert!(matches!(returns[..], [Return::Noop, Return::Transaction(_)]), "{returns:?}");
    });
}

#[test]
fn poll_and_epoll_say_when_there_is_work() {
    on_devices(|target| {
        let pair = target.pair();
        let server = &pair.server;
        server.write(&[Command::EnterLooper]).unwrap();
        assert_eq!(server.poll(Some(50)).unwrap(), PollFlags::empty());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll.add(server, EpollEvent::new(EpollFlags::EPOLLIN, 5)).unwrap();
        let mut events = [EpollEvent::empty()];
        assert_eq!(epoll.wait(&mut events, 50u8).unwrap(), 0);

        // It is there before anybody waits, and it comes while somebody waits.
        for wait_first in [false, true] {
            let (client, handle) = pair.another();
            let call = std::thread::spawn(move || {
                if wait_first {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Thread::new(&client).call(&Call::to(handle).data(b"x")).unwrap()
            });
            if !wait_first {
                assert!(server.poll(Some(5000)).unwrap().contains(PollFlags::POLLIN));
            }
            assert_eq!(epoll.wait(&mut events, 5000u16).unwrap(), 1);
            assert_eq!(events[0].data(), 5);
            let mut thread = Thread::new(server);
            loop {
                let served = thread.serve(&mut |_, _, contents, reply| {
                    reply.bytes(&contents.data);
                });
                if matches!(served.unwrap(), Return::Transaction(_)) {
                    break;
                }
            }
            thread.flush().unwrap();
            assert!(matches!(call.join().unwrap(), Reply::Data(c) if c.data == b"x"));
            // What is left for this thread is the confirmation of its reply.
            server.read(&mut [0; 256]).unwrap();
            assert_eq!(server.poll(Some(50)).unwrap(), PollFlags::empty());
        }
    });
}

/// Not a test: a process that waits in a read until it is killed.
#[test]
#[ignore = "a role in other tests"]
fn blocked_reader() {
    let Some(device) = role_device() else { return };
    device.write(&[Command::EnterLooper]).unwrap();
    println!("waits");
    let mut buffer = [0; 256];
    loop {
        if let Err(error) = device.read(&mut buffer)
            && error.errno() != Errno::EINTR
        {
            println!("{error}");
            return;
        }
    }
}

/// Starts a process that waits in a read.
fn start_blocked(target: &Target) -> Killed {
    let mut child = Killed(role("blocked_reader", &target.path).spawn().unwrap());
    child.wait_for("waits");
    child
}

/// How fast a killed process is to be gone: 50 ms. An emulated machine is given more.
fn limit() -> Duration {
    let milliseconds = std::env::var("FAKEBINDER_KILL_LIMIT_MS");
    Duration::from_millis(milliseconds.map_or(50, |ms| ms.parse().expect("milliseconds")))
}

/// A kill that the device held up would never end, or with the daemon's next request. One in
/// nine may be held up by what else the machine does.
#[test]
fn a_killed_client_is_gone_within_50_ms() {
    on_devices(|target| {
        let mut times: Vec<_> = (0..9)
            .map(|_| {
                let mut child = start_blocked(target);
                std::thread::sleep(Duration::from_millis(50));
                let start = Instant::now();
                child.0.kill().unwrap();
                child.0.wait().unwrap();
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        assert!(times[7] < limit(), "on {}: {times:?}", target.path.display());
    });
}

/// No thread of the daemon waits for a client: a thousand blocked ones cost it no thread more
/// than one does, and it serves others meanwhile.
#[test]
fn a_thousand_blocked_clients_cost_no_thread() {
    const CLIENTS: usize = 1000;
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let _alone = alone();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 16).max(soft), hard).unwrap();
    let daemon = Daemon::start(Door::Fuse);
    let path = daemon.fuse();
    let target = Target::private(path, daemon);
    let daemon = target.daemon.as_ref().unwrap();

    let mut clients = vec![start_blocked(&target)];
    std::thread::sleep(Duration::from_millis(100));
    let threads_for_one = daemon.threads();
    // All are started before any is waited for.
    let mut starting: Vec<_> = (1..CLIENTS)
        .map(|_| role("blocked_reader", &target.path).spawn().map(Killed).unwrap())
        .collect();
    starting.iter_mut().for_each(|client| client.wait_for("waits"));
    clients.append(&mut starting);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(daemon.threads(), threads_for_one, "threads with {CLIENTS} blocked clients");

    let pair = target.pair();
    let (device, handle) = (pair.client, pair.handle);
    let server = std::thread::spawn(move || {
        let mut thread = Thread::new(&pair.server);
        thread.queue(Command::EnterLooper);
        loop {
            let served = thread.serve(&mut |_, _, contents, reply| {
                reply.bytes(&contents.data);
            });
            if matches!(served.unwrap(), Return::Transaction(call) if call.code == 9) {
                return thread.flush().unwrap();
            }
        }
    });
    let mut thread = Thread::new(&device);
    for code in 0..10 {
        let reply = thread.call(&Call::to(handle).code(code).data(b"still there")).unwrap();
        assert!(matches!(&reply, Reply::Data(c) if c.data == b"still there"), "{reply:?}");
    }
    server.join().unwrap();
    let alive = clients.iter_mut().filter_map(|c| c.0.try_wait().unwrap()).count();
    assert_eq!(alive, 0, "clients that ended before their time");
    let start = Instant::now();
    clients.iter_mut().for_each(|client| client.0.kill().unwrap());
    assert!(wait_until(PATIENCE, || {
        clients.iter_mut().all(|client| client.0.try_wait().unwrap().is_some())
    }));
    let elapsed = start.elapsed();
    println!("{CLIENTS} killed clients were gone after {elapsed:?}");
}

/// The facts that fb-signals prints, as they were printed on the kernel's driver (7.3).
#[test]
fn signals_do_what_they_do_on_the_driver() {
    const EXPECTED: &str = include_str!("expected/signals.txt");
    on_devices(|target| {
        let output = std::process::Command::new(common::program("fb-signals"))
            .arg("--device")
            .arg(&target.path)
            .args(["--limit", &limit().as_millis().to_string()])
            .output()
            .unwrap();
        let facts = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (fact, expected) in facts.lines().zip(EXPECTED.lines()) {
            assert_eq!(fact, expected, "on {}", target.path.display());
        }
        assert_eq!(facts.lines().count(), EXPECTED.lines().count());
    });
}
