//! What the daemon tells a service manager: that it serves, and, for the watchdog, that it works.
//!
//! Needs root and /dev/fuse; where they are missing each test says so and does nothing.

mod common;

use common::{Door, PATIENCE, skip, unique_name};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const READY: &str = "READY=1";
const ALIVE: &str = "WATCHDOG=1";
/// The time after which the service manager of these tests gives a daemon up.
const LIMIT: Duration = Duration::from_millis(400);

/// A service manager with one service.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    mount: PathBuf,
    daemon: Child,
}

impl Manager {
    /// Starts a daemon as the shell command `start` says, in which "$@" is the daemon's. None: it is
    /// not possible here.
    fn start(start: &str, flags: &[&str]) -> Option<Manager> {
        if !nix::unistd::geteuid().is_root() || !Door::Fuse.is_here() {
            skip("it takes root and /dev/fuse");
            return None;
        }
        let name = unique_name();
        let path = std::env::temp_dir().join(format!("{name}.socket"));
        let mount = std::env::temp_dir().join(format!("{name}-fs"));
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut daemon = Command::new("sh");
        daemon.args(["-c", start, "sh", env!("CARGO_BIN_EXE_fakebinderd")]);
        daemon.args(["--door", "fuse", "--no-link", "--name", &name, "--mount"]).arg(&mount);
        daemon.args(flags).env("NOTIFY_SOCKET", &path);
        daemon.env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        let daemon = daemon.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        Some(Manager { socket, path, mount, daemon })
    }

    /// What it is told next, within that time.
    fn told(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut bytes = [0; 64];
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    }

    /// Waits for "ready", whatever is said before.
    fn wait_until_ready(&self) {
        let told = std::iter::from_fn(|| self.told(PATIENCE)).find(|told| told == READY);
        assert!(told.is_some(), "the daemon does not get ready");
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.daemon.id() as i32), signal)
            .unwrap();
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.signal(nix::sys::signal::SIGTERM);
        let ended = self.daemon.wait();
        let _ = fs::remove_file(&self.path);
        let _ = nix::mount::umount2(&self.mount, nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.mount);
        if !std::thread::panicking() {
            assert!(ended.unwrap().success());
        }
    }
}

fn with_a_watchdog(pid: &str) -> String {
    format!("WATCHDOG_USEC={} WATCHDOG_PID={pid} exec \"$@\"", LIMIT.as_micros())
}

#[test]
fn a_daemon_that_works_says_so_twice_in_the_time_that_it_has() {
    let Some(manager) = Manager::start(&with_a_watchdog("$$"), &[]) else { return };
    manager.wait_until_ready();
    let began = Instant::now();
    const TIMES: u32 = 5;
    for _ in 0..TIMES {
        assert_eq!(manager.told(PATIENCE).as_deref(), Some(ALIVE));
    }
    // The first may have come at once.
    let least = LIMIT / 2 * (TIMES - 1);
    assert!(began.elapsed() >= least - LIMIT / 4, "{:?} is too often", began.elapsed());
}

#[test]
fn who_is_not_asked_by_the_watchdog_says_that_it_is_ready_and_no_more() {
    let microseconds = LIMIT.as_micros();
    let others = with_a_watchdog("1");
    let wrong = format!("WATCHDOG_USEC={microseconds}us exec \"$@\"");
    for start in ["exec \"$@\"", &others, &wrong] {
        let Some(manager) = Manager::start(start, &[]) else { return };
        assert_eq!(manager.told(PATIENCE).as_deref(), Some(READY), "{start}");
        assert_eq!(manager.told(3 * LIMIT), None, "{start}");
    }
}

/// None of the mount's workers reads a request. The first reading is that of INIT; each worker hangs
/// at its own first one, by a rule of its own: one that hangs is not counted by the rules after it.
#[test]
fn a_daemon_whose_workers_hang_does_not_say_that_it_works() {
    let hang = ["receive:nth=2:delay=600s"; 8];
    let flags = ["--transport", "read", "--inject", &hang.join(",")];
    let Some(manager) = Manager::start(&with_a_watchdog("$$"), &flags) else { return };
    manager.wait_until_ready();
    assert_eq!(manager.told(5 * LIMIT), None);
}
