//! Clients whose memory does not come, and everybody else: callers, those who wait for a notice of
//! a death, whoever kills such a client. Nobody waits for a stranger's memory, and a fatal signal
//! is always obeyed.

mod common;

use common::bystanders::Bystanders;
use common::forked::Forked;
use common::never_read::NeverRead;
use common::stalled::{
    COPIES_OF_A_PROCESS, Kind, Stalled, all_wait, pipe_ends, server_whose_buffers_go,
    threads_on_a_file_that_is_never_read,
};
use common::unfilled::Unfilled;
use common::{PATIENCE, in_time, on_doors, open, skip, wait_until};
use fakebinder::binder::copies::COPIES;
use fakebinder_client::{Call, Command, Device, Reply, Return, Thread, uapi};
use nix::sys::wait::WaitStatus;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// What a caller exits with.
const DEAD: i32 = 3;
const FAILED: i32 = 4;

/// How soon a process is gone after SIGKILL: a hundred milliseconds, or what
/// `FAKEBINDER_KILL_LIMIT_MS` says, for the machine's other work many times that.
fn kill_limit() -> Duration {
    let milliseconds = std::env::var("FAKEBINDER_KILL_LIMIT_MS").ok();
    let milliseconds = milliseconds.and_then(|limit| limit.parse().ok()).unwrap_or(100);
    Duration::from_millis(milliseconds) * 20
}

/// A caller of the context manager; exits with what became of the call.
fn caller(path: &Path) -> Forked {
    let path = path.to_owned();
    Forked::start(move || {
        let device = open(&path);
        match Thread::new(&device).call(&Call::to(0).data(&[1; 64])) {
            Ok(Reply::Dead) => DEAD,
            Ok(Reply::Failed) => FAILED,
            other => {
                common::forked::complain(&format!("{other:?}"));
                5
            }
        }
    })
}

#[track_caller]
fn dies_at_once(process: &mut Forked) {
    let began = Instant::now();
    process.kill();
    process.wait();
    assert!(began.elapsed() < kill_limit(), "it took {:?}", began.elapsed());
}

/// A server's read buffers do not come: its callers can be killed, others go on, and when the
/// server is killed its other callers hear of it, whatever its memory does.
#[test]
fn callers_of_a_server_whose_memory_stalls_can_be_killed_and_hear_of_its_death() {
    const THREADS: usize = 12;
    on_doors(|target, daemon| {
        let path = &*target.path;
        let before = daemon.threads();
        let mut manager = server_whose_buffers_go(path, THREADS, |device| {
            device.set_context_manager().unwrap();
        });
        let mut callers: Vec<Forked> = (0..THREADS).map(|_| caller(path)).collect();
        std::thread::sleep(Duration::from_millis(300));
        for caller in &mut callers {
            let log = daemon.log();
            assert_eq!(caller.ended(), None, "a call to memory that stalls has an answer\n{log}");
        }
        // Bounded: the server's places, and as many workers as serve the others.
        let most = daemon.threads();
        assert!(most <= before + 2 * COPIES + 4, "{most} threads, {before} before");
        let (killed, left) = callers.split_at_mut(THREADS / 2);
        killed.iter_mut().for_each(dies_at_once);
        assert_eq!(Device::open(path).unwrap().version().unwrap(), 8);
        dies_at_once(&mut manager);
        for caller in left {
            // BR_FAILED_REPLY, as on the driver, where the copy was told of the death first.
            let status = caller.wait();
            assert!(
                matches!(status, WaitStatus::Exited(_, DEAD | FAILED)),
                "a caller of a killed server: {status:?}"
            );
        }
        let less = wait_until(PATIENCE, || daemon.threads() <= before + 2);
        assert!(less, "{} threads, {before} before", daemon.threads());
    });
}

/// Who waits for notice of a death gets it, though others that wait for the same have memory that
/// stalls.
#[test]
fn a_notice_of_death_does_not_queue_behind_memory_that_stalls() {
    on_doors(|target, _| {
        let path = &*target.path;
        let (mut ready, mut tell) = nix::unistd::pipe().map(pipe_ends).unwrap();
        let server_path = path.to_owned();
        let mut server = Forked::start(move || {
            let device = open(&server_path);
            device.set_context_manager().unwrap();
            tell.write_all(b"r").unwrap();
            let mut thread = Thread::new(&device);
            thread.queue(Command::EnterLooper);
            loop {
                thread.serve(&mut |_, _, _, _| ()).unwrap();
            }
        });
        ready.read_exact(&mut [0]).unwrap();
        // The first ones take their memory away before the server dies.
        let start = |stalls| {
            let path = path.to_owned();
            Forked::start(move || mourn(&path, stalls))
        };
        let mut stalled: Vec<Forked> = (0..6).map(|_| start(true)).collect();
        for mourner in &stalled {
            assert!(wait_until(PATIENCE, || all_wait(mourner, 1)), "it does not wait");
        }
        std::thread::sleep(Duration::from_millis(400));
        let honest: Vec<Forked> = (0..2).map(|_| start(false)).collect();
        for mourner in &honest {
            assert!(wait_until(PATIENCE, || all_wait(mourner, 1)), "it does not wait");
        }
        dies_at_once(&mut server);
        honest.into_iter().for_each(Forked::succeed);
        for mourner in &mut stalled {
            assert_eq!(mourner.ended(), None, "its memory has not come");
            dies_at_once(mourner);
        }
    });
}

/// Waits for the context manager's death. With memory that stalls it never hears of it.
fn mourn(path: &Path, stalls: bool) -> i32 {
    let device = open(path);
    let mut thread = Thread::new(&device);
    thread.queue(Command::Acquire(0));
    thread.queue(Command::RequestDeathNotification { handle: 0, cookie: 7 });
    thread.queue(Command::EnterLooper);
    thread.flush().unwrap();
    if !stalls {
        let mut buffer = [0; 256];
        loop {
            let returns: Vec<Return> = device.read(&mut buffer).unwrap().collect();
            if returns.contains(&Return::DeadBinder(7)) {
                return 0;
            }
        }
    }
    let page = Unfilled::new();
    page.provide();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            page.take_away();
        });
        loop {
            let mut arg = uapi::binder_write_read {
                read_size: 256,
                read_buffer: page.address(),
                ..Default::default()
            };
            // SAFETY: the page outlives the call.
            let _ = unsafe { device.raw_write_read(&mut arg) };
        }
    })
}

/// Memory on a file system whose server never answers, in every place that an ioctl looks at, by
/// hundreds of threads: they hold a few of the daemon's threads, and die when they are killed.
#[test]
fn three_hundred_threads_on_a_file_that_is_never_read_stop_nobody() {
    const THREADS: usize = 300;
    on_doors(|target, daemon| {
        let path = &*target.path;
        let mount = daemon.mount.with_extension("never");
        let Some(file) = NeverRead::mount(&mount) else {
            return skip("no FUSE file system can be mounted here");
        };
        let before = daemon.threads();
        let mut hostile = threads_on_a_file_that_is_never_read(path, &file, THREADS);
        assert!(wait_until(PATIENCE, || all_wait(&hostile, THREADS)), "its threads do not wait");
        let served = || Device::open(path).and_then(|device| device.version()).is_ok();
        assert!(served());
        let most = daemon.threads();
        assert!(most <= before + COPIES + 4, "{most} threads, {before} before");
        dies_at_once(&mut hostile);
        assert!(served());
        drop(file);
        let less = wait_until(PATIENCE, || daemon.threads() <= before + 2);
        assert!(less, "{} threads, {before} before", daemon.threads());
    });
}

/// Whatever hundreds of threads stall in, a pair that has nothing to do with them goes on call by
/// call, and they hold a few of the daemon's threads. How fast the pair goes on is measured by
/// `make bench-stall`.
#[test]
fn a_pair_goes_on_beside_three_hundred_stalled_threads_of_each_kind() {
    const THREADS: usize = 300;
    const CALLS: u32 = 200;
    on_doors(|target, daemon| {
        for kind in Kind::ALL {
            let before = daemon.threads();
            let (bystanders, stalled) =
                Bystanders::with(target, |_| Stalled::start(kind, &target.path, daemon, THREADS));
            let Some(mut stalled) = stalled else {
                skip("no FUSE file system can be mounted here");
                continue;
            };
            let bystanders = in_time("a pair's call", move || {
                let mut thread = Thread::new(&bystanders.client);
                for number in 0..CALLS {
                    let data = number.to_ne_bytes();
                    let reply = thread.call(&Call::to(bystanders.handle).data(&data));
                    assert!(matches!(&reply, Ok(Reply::Data(c)) if c.data == data), "{reply:?}");
                }
                drop(thread);
                bystanders
            });
            assert!(stalled.is_stalled(daemon), "{kind:?}: the pair had nobody beside it");
            // As many as are held; those that were started for the rush leave again.
            let few = || daemon.threads() <= before + COPIES_OF_A_PROCESS + 4;
            let settled = wait_until(PATIENCE, few) && stalled.is_stalled(daemon);
            assert!(settled, "{kind:?}: {} threads, {before} before", daemon.threads());
            stalled.processes().for_each(dies_at_once);
            bystanders.end();
            drop(stalled);
            let less = wait_until(PATIENCE, || daemon.threads() <= before + 2);
            assert!(less, "{kind:?}: {} threads, {before} before", daemon.threads());
        }
    });
}
