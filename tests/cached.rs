//! Where the kernel has no passthrough: programs that know nothing of fakebinder map the kernel's
//! page cache of the device's file, where the daemon stores what it writes into their buffers.

mod common;

use common::receiver::{Program, assert_came, build, call, parcel, stop, written};
use common::{
    Daemon, Door, Killed, PATIENCE, Target, alone, become_manager, in_time, look_up, offer, open,
    program, role, skip, unique_name, wait_until,
};
use fakebinder_client::{Call, Command as Write, Device, Error, Reply, Return, Thread};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap};
use std::ffi::c_void;
use std::fs;
use std::io::pipe;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: usize = 1 << 20;
const STOP: u32 = 99;

fn without_passthrough(scene: impl FnOnce(&Target)) {
    let _alone = alone();
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    let daemon = Daemon::start_with(&["--no-passthrough"], None);
    let target = Target::private(daemon.fuse(), daemon);
    scene(&target);
}

/// A device that is mapped by mmap alone.
struct Unaided {
    device: Device,
    start: NonNull<c_void>,
}

// SAFETY: the mapping is only ever read, byte by byte, and stays to the end.
unsafe impl Sync for Unaided {}

impl Unaided {
    fn open(target: &Target) -> Unaided {
        let device = Device::open(&target.path).unwrap();
        let size = NonZeroUsize::new(SIZE).unwrap();
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: at an address of the kernel's choice, so nothing that exists is replaced.
        let start = unsafe { mmap(None, size, ProtFlags::PROT_READ, flags, device.as_fd(), 0) };
        Unaided { device, start: start.unwrap() }
    }

    /// What lies at an address of the mapping.
    fn peek(&self, address: u64, len: usize) -> Vec<u8> {
        let offset = address as usize - self.start.as_ptr().addr();
        assert!(offset + len <= SIZE);
        let mut bytes = vec![0; len];
        // SAFETY: within the mapping, into which there is no reference.
        unsafe {
            let from = self.start.as_ptr().cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len);
        }
        bytes
    }

    /// Has the kernel throw the pages away that are not in use at the moment.
    fn evict(&self) {
        // SAFETY: the mapping is of a file, and shows what the file has.
        unsafe { madvise(self.start, SIZE, MmapAdvise::MADV_DONTNEED) }.unwrap();
        posix_fadvise(self.device.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }

    /// Kilobytes of the mapping that are in memory.
    fn resident(&self) -> usize {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let begin = format!("{:x}-", self.start.as_ptr().addr());
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&begin));
        let line = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

/// Bytes that no other message has.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let word = |at: u64| (seed ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_ne_bytes();
    let mut bytes: Vec<u8> = seed.to_ne_bytes().to_vec();
    bytes.extend((0..len as u64).flat_map(word));
    bytes.truncate(8 + len);
    bytes
}

/// Answers calls with the sum of their bytes, and looks at each byte in its own mapping.
fn serve(server: &Unaided) {
    let mut buffer = [0; 256];
    server.device.write(&[Write::EnterLooper]).unwrap();
    loop {
        let returns: Vec<Return> = server.device.read(&mut buffer).unwrap().collect();
        for told in returns {
            let Return::Transaction(call) = told else { continue };
            let bytes = server.peek(call.buffer, call.data_size as usize);
            let seed = u64::from_ne_bytes(*bytes.first_chunk().unwrap());
            assert_eq!(bytes, pattern(seed, bytes.len() - 8), "message {seed:#x}");
            let answer: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
            let answer = answer.to_ne_bytes();
            let mut commands = vec![Write::FreeBuffer(call.buffer)];
            if !call.is_oneway() {
                commands.push(Write::Reply(Call::reply().data(&answer)));
            }
            server.device.write(&commands).unwrap();
            if call.code == STOP {
                return;
            }
        }
    }
}

/// Messages of all sizes from three senders to three threads, while pages are reclaimed by the
/// daemon and thrown away by the kernel: each byte is there when its transaction is.
#[test]
fn a_program_reads_what_was_sent() {
    const THREADS: u64 = 3;
    const MESSAGES: u64 = 600;
    without_passthrough(|target| {
        let server = Unaided::open(target);
        let registrar = target.registrar();
        offer(&server.device, 0);
        let client = target.open();
        let handle = look_up(&client);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let servers: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| serve(&server))).collect();
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    server.evict();
                    server.device.daemon_reclaim().unwrap();
                }
            });
            let senders: Vec<_> = (0..THREADS)
                .map(|sender| {
                    scope.spawn(move || {
                        let client = target.open();
                        let handle = look_up(&client);
                        let mut thread = Thread::new(&client);
                        for number in 0..MESSAGES {
                            let seed = sender << 32 | number;
                            let len = [1, 40, 300, 4096, 5000, 20_000][number as usize % 6];
                            let bytes = pattern(seed, len + number as usize);
                            let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
                            match thread.call(&Call::to(handle).data(&bytes)).unwrap() {
                                Reply::Data(answer) => assert_eq!(answer.data, sum.to_ne_bytes()),
                                other => panic!("{other:?}"),
                            }
                        }
                    })
                })
                .collect();
            let sent = senders.into_iter().map(|sender| sender.join()).collect::<Vec<_>>();
            over.store(true, Ordering::Relaxed);
            for _ in servers {
                let last = pattern(1, 1);
                Thread::new(&client).call(&Call::to(handle).code(STOP).data(&last)).unwrap();
            }
            assert!(sent.iter().all(Result::is_ok));
        });
        drop(registrar);
        // What the daemon has reclaimed is not kept by the kernel.
        server.device.daemon_reclaim().unwrap();
        assert!(wait_until(PATIENCE, || server.resident() == 0), "{} kB", server.resident());
    });
}

/// The daemon is gone.
fn ended<T>(_: Error) -> T {
    std::process::exit(0)
}

/// Not a test: a server that has the kernel read the pages of one buffer again and again, beside
/// which others come.
#[test]
#[ignore = "a role in other tests"]
fn page_reader() {
    let Some(path) = std::env::var_os("FAKEBINDER_ROLE_DEVICE") else { return };
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    let server = Unaided::open(&Target { path: path.into(), daemon: None });
    become_manager(&server.device);
    server.device.write(&[Write::EnterLooper]).unwrap();
    println!("ready");
    let server = &server;
    std::thread::scope(|scope| {
        let mut kept = false;
        let mut buffer = [0; 256];
        loop {
            let returns = server.device.read(&mut buffer).unwrap_or_else(ended);
            for told in returns.collect::<Vec<Return>>() {
                let Return::Transaction(call) = told else { continue };
                if std::mem::replace(&mut kept, true) {
                    let commands = [
                        Write::FreeBuffer(call.buffer),
                        Write::Reply(Call::reply().data(b"8 bytes!")),
                    ];
                    server.device.write(&commands).unwrap_or_else(ended);
                    continue;
                }
                server.device.write(&[Write::Reply(Call::reply())]).unwrap_or_else(ended);
                for _ in 0..2 {
                    scope.spawn(move || {
                        loop {
                            server.evict();
                            server.peek(call.buffer, call.data_size as usize);
                        }
                    });
                }
            }
        }
    });
}

/// Whatever the kernel waits for at that moment.
#[test]
fn a_killed_daemon_ends() {
    let _alone = alone();
    if !Door::Fuse.is_here() {
        return skip("/dev/fuse is not here");
    }
    for round in 0..20 {
        let daemon = Daemon::start_with(&["--no-passthrough"], None);
        let path = daemon.fuse();
        let mut reader = Killed(role("page_reader", &path).spawn().unwrap());
        reader.wait_for("ready");
        let calling: Vec<_> = (0..2)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || {
                    let client = open(&path);
                    let mut thread = Thread::new(&client);
                    while thread.call(&Call::to(0).data(b"a little")).is_ok() {}
                })
            })
            .collect();
        std::thread::sleep(std::time::Duration::from_millis(100 + round));
        in_time("a daemon that was killed", move || daemon.kill());
        for thread in calling {
            in_time("a caller", move || thread.join().unwrap());
        }
    }
    // It clears away what the last one has left.
    Daemon::start(Door::Fuse).stop();
}

/// As with passthrough, a thread of theirs is stopped for them, and their numbers are in the copy.
#[test]
fn programs_receive_descriptors() {
    if !cfg!(target_arch = "x86_64") {
        return skip("it takes an x86-64 to stop threads");
    }
    for flags in [&["-static"][..], &[]] {
        let Some(program) = build(flags) else { return };
        without_passthrough(|target| {
            let (reader, writer) = pipe().unwrap();
            let receiver = Program::start(&program, &target.path, &["serve", "watch"]);
            let device = target.open();
            for index in 1..=10 {
                assert_came(&call(&device, &parcel(&writer, 5, 5)), 10 * index);
            }
            stop(&device);
            assert_eq!(receiver.ended(), "done 100 failed 0");
            assert_eq!(written(reader, writer), 100);
        });
    }
}

/// The conformance tests, by processes that know no other way than mmap.
#[test]
fn a_device_is_as_on_the_driver() {
    without_passthrough(|target| {
        let mut command = Command::new(program("fb-conformance"));
        command.args(["--unaided", "--device"]).arg(&target.path);
        for group in ["file", "buffer", "object", "scatter", "oneway", "call", "freeze", "release"]
        {
            command.args(["--filter", &format!("{group}/*")]);
        }
        let done = in_time("fb-conformance", move || command.output().unwrap());
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{said}");
        // What differs elsewhere on the FUSE door.
        for test in
            ["file/a_page_without_a_buffer_is_not_there", "release/a_mapping_keeps_the_process"]
        {
            let name = format!(" - {test}");
            let passed = said.lines().any(|it| it.starts_with("ok ") && it.ends_with(&name));
            assert!(passed, "{test}:\n{said}");
        }
    });
}

/// In a user namespace, without any privilege outside, the kernel gives no passthrough: a static
/// program calls another one there.
#[test]
fn static_programs_call_each_other_without_root() {
    const SCRIPT: &str = r#"
        mount -t tmpfs tmpfs /run
        "$1" --door fuse --name binder --mount /run/binderfs --no-link --foreground 2>/run/log &
        daemon=$!
        for n in $(seq 200); do [ -e /run/binderfs/binder ] && break; sleep 0.05; done
        grep -q 'passthrough needs CAP_SYS_ADMIN' /run/log || "$2" /run/binderfs/binder
        "$2" /run/binderfs/binder serve &
        server=$!
        for n in $(seq 200); do
            "$2" /run/binderfs/binder && break
            sleep 0.05
        done
        wait $server && kill $daemon && wait $daemon && grep -q 'passthrough needs CAP_SYS_ADMIN' /run/log
    "#;
    if !Command::new("unshare").args(["-Urm", "true"]).status().is_ok_and(|it| it.success()) {
        return skip("unshare -Urm is not possible here");
    }
    let raw_ping = std::env::temp_dir().join(unique_name());
    let flags =
        ["-static", "-nostdlib", "-ffreestanding", "-O2", "-fno-stack-protector", "-no-pie"];
    let mut gcc = Command::new("gcc");
    gcc.args(flags).arg("-o").arg(&raw_ping);
    gcc.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/raw_ping.c"));
    match gcc.status() {
        Ok(status) => assert!(status.success(), "raw_ping.c builds"),
        Err(error) => return skip(&format!("gcc: {error}")),
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["-Urm", "sh", "-c", SCRIPT, "sh", env!("CARGO_BIN_EXE_fakebinderd")]);
    unshare.arg(&raw_ping);
    let done = in_time("the namespace", move || unshare.output().unwrap());
    assert!(done.status.success(), "{done:?}");
    fs::remove_file(raw_ping).unwrap();
}
