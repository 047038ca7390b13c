//! What the integration tests share: a daemon of one's own, devices to test on, skipping.
//!
//! Environment:
//! - `FAKEBINDER_TEST_DEVICES`: comma-separated devices to run the scenes on that need no daemon
//!   of their own (the kernel's /dev/binder, say), in place of a private daemon's
//! - `FAKEBINDER_TEST_TRANSPORT`: the `--transport` of the daemons; without it the daemon's default
//! - `FAKEBINDER_NO_SKIP=1`: what cannot run here fails
//! - `FAKEBINDER_BUILT=workspace`: the programs of this workspace are built already; `1`: those of
//!   other machines and libraries, too
#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

pub mod asking;
pub mod binderfs;
pub mod bystanders;
pub mod c_program;
pub mod forked;
pub mod machine;
pub mod mapped;
pub mod never_read;
pub mod receiver;
mod registrar;
pub mod rsbinder;
mod skip;
pub mod stalled;
pub mod stepping;
pub mod traced;
pub mod unfilled;

pub use registrar::{COOKIE, GET, NODE, Pair, be_registrar, become_manager, look_up, offer, open};
pub use skip::skip;

use fakebinder_client::{Device, uapi};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Nothing that a test waits for takes so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

const DAEMON: &str = env!("CARGO_BIN_EXE_fakebinderd");

/// A door of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Cuse,
    Fuse,
    Auto,
}

impl Door {
    fn flag(self) -> &'static str {
        match self {
            Door::Cuse => "cuse",
            Door::Fuse => "fuse",
            Door::Auto => "auto",
        }
    }

    /// Whether this machine has what the door needs.
    pub fn is_here(self) -> bool {
        let needs = match self {
            Door::Cuse => "/dev/cuse",
            Door::Fuse | Door::Auto => "/dev/fuse",
        };
        Path::new(needs).exists()
    }
}

/// A name that no other test uses, in this run or another at the same time.
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("fbtest-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// fakebinderd with a name and a mount of its own. Dropped, it is stopped, and whatever it left
/// behind is a failure (and removed).
pub struct Daemon {
    child: Child,
    pub name: String,
    pub mount: PathBuf,
    log: PathBuf,
    stopped: bool,
}

impl Daemon {
    /// Starts it with one door, and waits until it serves.
    pub fn start(door: Door) -> Daemon {
        Daemon::start_as(&unique_name(), door)
    }

    pub fn start_as(name: &str, door: Door) -> Daemon {
        let mut daemon = Daemon::spawn(name, door);
        daemon.wait_until_ready(door);
        daemon
    }

    /// Starts it on the FUSE door with further arguments, inside a control group if one is named.
    pub fn start_with(arguments: &[&str], group: Option<&Path>) -> Daemon {
        let mut daemon = Daemon::spawn_with(&unique_name(), Door::Fuse, arguments, group);
        daemon.wait_until_ready(Door::Fuse);
        daemon
    }

    /// Starts it with a door and further arguments, by a program that becomes the daemon (as
    /// `taskset -c 0` does) if one is given. What the daemon said where it serves nothing.
    pub fn try_start(door: Door, launcher: &[&str], arguments: &[&str]) -> Result<Daemon, String> {
        let mut command = Command::new(launcher.first().copied().unwrap_or(DAEMON));
        if !launcher.is_empty() {
            command.args(&launcher[1..]).arg(DAEMON);
        }
        let mut daemon = Daemon::spawn_by(command, &unique_name(), door, arguments);
        if daemon.serves_in_time(door) {
            return Ok(daemon);
        }
        let log = daemon.log();
        daemon.abandon();
        Err(log)
    }

    /// Starts it and waits for nothing.
    pub fn spawn(name: &str, door: Door) -> Daemon {
        Daemon::spawn_with(name, door, &[], None)
    }

    fn spawn_with(name: &str, door: Door, arguments: &[&str], group: Option<&Path>) -> Daemon {
        let command = match group {
            None => Command::new(DAEMON),
            Some(group) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""]);
                shell.arg(group).arg(DAEMON);
                shell
            }
        };
        Daemon::spawn_by(command, name, door, arguments)
    }

    fn spawn_by(mut command: Command, name: &str, door: Door, arguments: &[&str]) -> Daemon {
        let mount = std::env::temp_dir().join(name);
        let log = std::env::temp_dir().join(format!("{name}.{}.log", unique_name()));
        fs::create_dir_all(&mount).or_else(stale_mount).expect("a directory to mount on");
        let child = command
            .args(["--name", name, "--door", door.flag(), "--foreground", "--mount"])
            .arg(&mount)
            .args(transport().filter(|_| !arguments.contains(&"--transport")))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("a log file"))
            .spawn()
            .expect("fakebinderd is built");
        Daemon { child, name: name.to_owned(), mount, log, stopped: false }
    }

    fn wait_until_ready(&mut self, door: Door) {
        let served = self.serves_in_time(door);
        assert!(served, "{} is not served:\n{}", self.name, self.log());
    }

    /// Waits until every device of the door is served, or it has ended.
    fn serves_in_time(&mut self, door: Door) -> bool {
        let mut devices = Vec::new();
        if door != Door::Cuse {
            devices.push(self.fuse());
        }
        if door != Door::Fuse && Door::Cuse.is_here() {
            devices.push(self.cuse());
        }
        devices.iter().all(|device| {
            let serves = || Device::open(device).and_then(|device| device.version()).is_ok();
            wait_until(PATIENCE, || serves() || self.exited().is_some()) && serves()
        })
    }

    /// The device on the FUSE door.
    pub fn fuse(&self) -> PathBuf {
        self.mount.join(&self.name)
    }

    /// The device on the CUSE door.
    pub fn cuse(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether and how it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is a child of ours")
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs").count()
    }

    /// `kill -9`. What it leaves behind stays.
    pub fn kill(mut self) {
        self.child.kill().expect("it is a child of ours");
        self.child.wait().expect("it is a child of ours");
        self.forget();
    }

    /// The same, and removes what is left: for one that does not do what it should.
    pub fn abandon(self) {
        self.clean_up();
        let mount = self.mount.clone();
        self.kill();
        let _ = fs::remove_dir(mount);
    }

    /// For one that has ended by itself, whose name and mount are another's.
    pub fn forget(mut self) {
        self.stopped = true;
        let _ = fs::remove_file(&self.log);
    }

    /// Ends it as a user would, and checks that nothing is left.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stopped = true;
        let pid = nix::unistd::Pid::from_raw(self.pid() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let ended = wait_until(PATIENCE, || self.exited().is_some());
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let left = self.left_behind();
        self.clean_up();
        let log = self.log();
        let _ = fs::remove_file(&self.log);
        if !std::thread::panicking() {
            assert!(ended, "fakebinderd does not end on SIGTERM:\n{log}");
            assert!(left.is_empty(), "fakebinderd left {left:?} behind:\n{log}");
            let status = self.exited();
            assert!(status.is_some_and(|s| s.success()), "fakebinderd ended: {status:?}:\n{log}");
            // A thread of its own that panics takes only its request with it.
            assert!(!log.contains("panicked at"), "fakebinderd panicked:\n{log}");
        } else {
            let _ = writeln!(std::io::stderr(), "the daemon's log:\n{log}");
        }
    }

    /// Mounts, nodes and links that a daemon of this name made.
    pub fn left_behind(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mount = self.mount.to_string_lossy().into_owned();
        let is_ours = |line: &&str| line.split(' ').nth(4) == Some(&*mount);
        let mut left: Vec<String> = mounts.lines().filter(is_ours).map(str::to_owned).collect();
        if self.cuse().symlink_metadata().is_ok() {
            left.push(self.cuse().display().to_string());
        }
        left
    }

    fn clean_up(&self) {
        let _ = nix::mount::umount2(&self.mount, nix::mount::MntFlags::MNT_DETACH);
        if self.cuse().is_symlink() {
            let _ = fs::remove_file(self.cuse());
        }
        let _ = fs::remove_dir(&self.mount);
    }
}

/// The flag that says by which transport the tests are run, if the environment says so.
fn transport() -> impl Iterator<Item = String> {
    let transport = std::env::var("FAKEBINDER_TEST_TRANSPORT").ok();
    transport.into_iter().flat_map(|transport| ["--transport".into(), transport])
}

/// What a killed daemon left mounted answers ENOTCONN: it is a directory all the same.
fn stale_mount(error: std::io::Error) -> std::io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENOTCONN | libc::EEXIST) => Ok(()),
        _ => Err(error),
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.stopped {
            self.end();
        }
    }
}

/// A device that a scene runs on.
pub struct Target {
    pub path: PathBuf,
    /// The private daemon behind it, if it is one.
    pub daemon: Option<Daemon>,
}

impl Target {
    /// A device of a daemon of one's own.
    pub fn private(path: PathBuf, daemon: Daemon) -> Target {
        Target { path, daemon: Some(daemon) }
    }

    /// A fresh open, mapped.
    pub fn open(&self) -> Device {
        open(&self.path)
    }

    /// A server and a client that knows it. (Handle 0 will not do for that: the driver lets no
    /// process call the context manager that it is itself.)
    pub fn pair(&self) -> Pair {
        self.pair_with(self.open(), &self.path)
    }

    /// The same with a server of one's own, and a client on any device file of the context.
    pub fn pair_with(&self, server: Device, client: &Path) -> Pair {
        let registrar = self.registrar();
        offer(&server, uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS);
        let client = open(client);
        let handle = look_up(&client);
        Pair { server, client, handle, path: self.path.clone(), _registrar: registrar }
    }

    /// A context manager that keeps the node which it is [offered](offer) last, for whoever
    /// [asks](look_up).
    pub fn registrar(&self) -> Killed {
        let mut registrar =
            Killed(role("common::registrar::registrar", &self.path).spawn().unwrap());
        registrar.wait_for("ready");
        registrar
    }

    /// Whether fakebinder's daemon is behind it, and not the kernel's driver.
    pub fn is_fakebinder(&self) -> bool {
        Device::open(&self.path).unwrap().daemon_stats().is_ok()
    }
}

/// Plays a scene on a daemon of its own, on each door that is here.
pub fn on_doors(scene: impl Fn(&Target, &Daemon)) {
    let _alone = alone();
    let here: Vec<_> = [Door::Fuse, Door::Cuse].into_iter().filter(|door| door.is_here()).collect();
    if here.is_empty() {
        skip("neither /dev/fuse nor /dev/cuse is here");
    }
    for door in here {
        let daemon = Daemon::start(door);
        let path = if door == Door::Cuse { daemon.cuse() } else { daemon.fuse() };
        let target = Target::private(path, daemon);
        scene(&target, target.daemon.as_ref().unwrap());
    }
}

/// A child that does not outlive the test.
pub struct Killed(pub Child);

impl Killed {
    /// Reads what it prints up to a line that ends so.
    pub fn wait_for(&mut self, end: &str) {
        let stdout = self.0.stdout.take().expect("its output is piped, and read once");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.ends_with(end)), "the process says {end}");
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One scene at a time: another one's fork would give this one's devices a flush, when the child
/// closes its copies, and a flush makes poll and read return once, as in the driver. A shared
/// device also has but one context manager.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a scene on every device that is to be tested: those of the environment, or else those
/// of a private daemon on each door of this machine.
pub fn on_devices(scene: impl Fn(&Target)) {
    let _alone = alone();
    if let Ok(devices) = std::env::var("FAKEBINDER_TEST_DEVICES") {
        for path in devices.split(',').filter(|path| !path.is_empty()) {
            scene(&Target { path: path.into(), daemon: None });
        }
        return;
    }
    for door in [Door::Fuse, Door::Cuse].into_iter().filter(|door| door.is_here()) {
        let daemon = Daemon::start(door);
        let path = if door == Door::Cuse { daemon.cuse() } else { daemon.fuse() };
        scene(&Target::private(path, daemon));
    }
    if !Door::Fuse.is_here() && !Door::Cuse.is_here() {
        skip("neither /dev/fuse nor /dev/cuse is here");
    }
}

/// Looks every few milliseconds; whether it came true in time.
pub fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs something that must not hang, in a thread of its own.
pub fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    within(PATIENCE, what, work)
}

/// The same for what may take longer.
pub fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(work());
    });
    match receiver.recv_timeout(limit) {
        Ok(value) => value,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("{what} hangs"),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it sends before it ends"),
        },
    }
}

/// A library of the workspace, built.
pub fn library(name: &str) -> PathBuf {
    program(name)
}

/// Whether what is not of this workspace is built already, too.
pub fn all_is_built() -> bool {
    std::env::var_os("FAKEBINDER_BUILT").is_some_and(|built| built == "1")
}

/// A client program of the workspace, built.
pub fn program(name: &str) -> PathBuf {
    static BUILT: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    let directory = Path::new(DAEMON).parent().expect("a program lies in a directory");
    let package = match name {
        "fb-conformance" | "fb-differ" => "fakebinder-conformance",
        "libfakebinder_preload.so" => "fakebinder-preload",
        "fakebinder" => "fakebinder-cli",
        "fb-stress" => "fakebinder-soak",
        _ => "fakebinder-client",
    };
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !built.contains(&package) && std::env::var_os("FAKEBINDER_BUILT").is_none() {
        // Cargo builds the programs of the package under test only, and these are another's.
        let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
        cargo.args(["build", "--quiet", "-p", package]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if directory.file_name() == Some(OsStr::new("release")) {
            cargo.arg("--release");
        }
        assert!(cargo.status().expect("cargo is here").success(), "the client programs build");
        built.push(package);
    }
    directory.join(name)
}

/// This test program again, as another process: runs only the ignored test `role`, with
/// `FAKEBINDER_ROLE_DEVICE` set to the device.
pub fn role(role: &str, device: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("it runs"));
    command.args(["--ignored", "--exact", role, "--nocapture", "--test-threads=1"]);
    command.env("FAKEBINDER_ROLE_DEVICE", device);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// In a role: the device; `None` when somebody runs the ignored tests by hand.
pub fn role_device() -> Option<Device> {
    let path = std::env::var_os("FAKEBINDER_ROLE_DEVICE")?;
    // A test that fails must not leave a blocked process behind.
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let mut device = Device::open(path).expect("the device can be opened");
    device.mmap(128 << 10).expect("the device can be mapped");
    Some(device)
}
