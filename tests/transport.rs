//! How requests come to the FUSE door: through io_uring, or by reading /dev/fuse.
//!
//! Every other test of the door runs by either: `FAKEBINDER_TEST_TRANSPORT=read` or `=uring`.

mod common;

use common::{Daemon, Door, PATIENCE, Target, alone, in_time, role, role_device, skip, wait_until};
use fakebinder_client::{Call, Command as Write, Device, Reply, Return, Thread};
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PARAMETERS: &str = "/sys/module/fuse/parameters";
const OVER_IO_URING: &str = "requests come through io_uring";

fn possible() -> bool {
    let root = nix::unistd::geteuid().is_root() && Door::Fuse.is_here();
    if !root {
        skip("it takes root and /dev/fuse");
    }
    root
}

fn kernel_has_it() -> bool {
    let has_it = Path::new(PARAMETERS).join("enable_uring").exists();
    if !has_it {
        skip("this kernel has no FUSE over io_uring (Linux 6.14)");
    }
    has_it
}

/// A daemon of that transport, whatever the environment says.
fn daemon_of(transport: &str) -> Daemon {
    Daemon::start_with(&["--transport", transport], None)
}

/// Runs the daemon in a mount namespace of its own, in which the kernel seems to have no FUSE over
/// io_uring, for a second at most.
fn run_without(transport: &str) -> Output {
    let name = common::unique_name();
    let mount = std::env::temp_dir().join(&name);
    fs::create_dir_all(&mount).unwrap();
    let script = format!(
        "mount -t tmpfs none {PARAMETERS} && exec timeout --preserve-status 2 \"$0\" --door fuse \
         --no-link --name {name} --mount {} --transport {transport}",
        mount.display()
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(env!("CARGO_BIN_EXE_fakebinderd"))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    fs::remove_dir(&mount).unwrap();
    output
}

#[test]
fn the_daemon_says_which_transport_it_took() {
    if !possible() || !kernel_has_it() {
        return;
    }
    let _alone = alone();
    let daemon = daemon_of("uring");
    // The log has a thread of its own.
    let says = |daemon: &Daemon, what| wait_until(PATIENCE, || daemon.log().contains(what));
    assert!(says(&daemon, OVER_IO_URING), "{}", daemon.log());
    daemon.stop();
    let daemon = daemon_of("read");
    assert!(says(&daemon, "requests are read from /dev/fuse"), "{}", daemon.log());
    assert!(!daemon.log().contains(OVER_IO_URING), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn without_io_uring_auto_reads_and_uring_fails_and_both_say_why() {
    if !possible() || !kernel_has_it() {
        return;
    }
    let _alone = alone();
    let why = "this kernel has no FUSE over io_uring (Linux 6.14, CONFIG_FUSE_IO_URING)";
    let auto = run_without("auto");
    let said = String::from_utf8_lossy(&auto.stderr);
    assert!(auto.status.success(), "{auto:?}");
    assert!(said.contains(&format!("requests are read from /dev/fuse: {why}")), "{said}");
    let uring = run_without("uring");
    let said = String::from_utf8_lossy(&uring.stderr);
    assert_eq!(uring.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("--transport uring: {why}")), "{said}");
}

#[test]
fn a_killed_daemon_s_clients_get_an_error_and_its_rings_go() {
    if !possible() || !kernel_has_it() {
        return;
    }
    let _alone = alone();
    for transport in ["uring", "read"] {
        let daemon = daemon_of(transport);
        let device = common::open(&daemon.fuse());
        let mount = daemon.mount.clone();
        let blocked = std::thread::spawn(move || {
            device.write(&[Write::EnterLooper]).unwrap();
            device.read(&mut [0; 256]).is_err()
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        daemon.kill();
        assert!(in_time("a read of a killed daemon", move || blocked.join().unwrap()));
        nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir(&mount).unwrap();
    }
}

/// Threads of one process.
const READERS: usize = 5000;

/// Not a test: a process all of whose threads wait in reads.
#[test]
#[ignore = "a role in other tests"]
fn blocked_threads() {
    let Some(device) = role_device() else { return };
    let started = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            let builder = std::thread::Builder::new().stack_size(64 << 10);
            let wait = || {
                device.write(&[Write::EnterLooper]).unwrap();
                if started.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1 == READERS {
                    println!("waits");
                }
                let _ = device.read(&mut [0; 256]);
            };
            builder.spawn_scoped(scope, wait).unwrap();
        }
    });
}

fn resident_kib(daemon: &Daemon) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Each holds an entry: there is always another for the next request, and what a blocked reader
/// takes of the daemon is little more than that.
#[test]
fn five_thousand_blocked_readers_leave_entries_for_others_and_little_memory_is_taken() {
    if !possible() || !kernel_has_it() {
        return;
    }
    let _alone = alone();
    let daemon = daemon_of("uring");
    let target = Target::private(daemon.fuse(), daemon);
    let daemon = target.daemon.as_ref().unwrap();
    let pair = target.pair();
    let (client, handle) = (pair.client, pair.handle);
    let server = std::thread::spawn(move || {
        let mut thread = Thread::new(&pair.server);
        thread.queue(Write::EnterLooper);
        loop {
            let served = thread.serve(&mut |_, _, _, reply| {
                reply.bytes(b"there");
            });
            if matches!(served.unwrap(), Return::Transaction(call) if call.code == 9) {
                return thread.flush().unwrap();
            }
        }
    });
    let before = resident_kib(daemon);
    let mut readers = common::Killed(role("blocked_threads", &target.path).spawn().unwrap());
    readers.wait_for("waits");
    let call = move |client: &Device, code| {
        let reply = Thread::new(client).call(&Call::to(handle).code(code)).unwrap();
        assert!(matches!(&reply, Reply::Data(data) if data.data == b"there"), "{reply:?}");
    };
    in_time("a call beside readers that wait", move || {
        (0..10).for_each(|code| call(&client, code));
    });
    server.join().unwrap();
    let each = (resident_kib(daemon) - before) / READERS;
    println!("{each} KiB of the daemon for each of {READERS} blocked readers");
    assert!(each <= 16, "{each} KiB for each blocked reader");
    readers.0.kill().unwrap();
    assert!(wait_until(PATIENCE, || readers.0.try_wait().unwrap().is_some()));
}
