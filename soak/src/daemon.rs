//! The daemon under load: one that is started for the run, or one that runs already.

use crate::client::FAULT;
use crate::hoarder::LIMITS;
use fakebinder_client::{Device, uapi};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Within that time it serves, and ends.
const PATIENCE: Duration = Duration::from_secs(20);
/// Far less than the mappings of all clients together, so that pages are reclaimed all the time.
const PAGE_BUDGET: &str = "6M";

/// Few enough that most calls succeed, and of every kind that a client can be told of. What a client
/// is told has an errno that nothing else in the daemon gives.
pub fn usual_faults(seed: u64) -> String {
    let told = [
        ("alloc_page", 0.0005),
        ("vm_insert_page", 0.0005),
        ("vma_lookup", 0.0005),
        ("mmget", 0.0005),
        ("record", 0.0002),
        ("descriptor", 0.0005),
        ("read_memory", 0.000_05),
        ("send", 0.001),
    ];
    let mut rules: Vec<String> = told
        .iter()
        .map(|(verb, share)| format!("{verb}:share={share}:errno={}", FAULT as i32))
        .collect();
    // What the daemon mends itself, and what only takes long.
    for rule in ["zap:share=0.001", "receive:share=0.001", "reply:share=0.001"] {
        rules.push(rule.to_owned());
    }
    for verb in ["alloc_page", "zap", "read_memory"] {
        rules.push(format!("{verb}:share=0.001:delay=1ms"));
    }
    rules.push(format!("seed={seed}"));
    rules.join(",")
}

pub struct Daemon {
    pub device: PathBuf,
    pub pid: i32,
    /// Looks at what it holds. It is a client, too: the one that stays.
    pub watch: Device,
    own: Option<Own>,
}

/// A daemon that was started here.
struct Own {
    child: Child,
    mount: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts a daemon with files in `home`.
    pub fn start(program: &Path, inject: &str, home: &Path) -> Result<Daemon, String> {
        let (mount, log) = (home.join("mount"), home.join("daemon.log"));
        let failed = |error: io::Error| format!("{}: {error}", home.display());
        fs::create_dir(&mount).map_err(failed)?;
        let mut command = Command::new(program);
        command.args(["--name", "soak", "--door", "fuse", "--no-link", "--mode", "0666"]);
        command.args(["--page-budget", PAGE_BUDGET, "--inject", inject]).arg("--mount").arg(&mount);
        command.args(LIMITS.iter().flat_map(|limit| ["--user-limit", limit]));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(&log).map_err(failed)?);
        // Ctrl-C at the terminal is not for it.
        command.process_group(0);
        let child = command.spawn().map_err(|error| {
            format!(
                "{}: {error}; build it, or name the daemon's program with --daemon PATH",
                program.display()
            )
        })?;
        let pid = child.id() as i32;
        let mut own = Own { child, mount, log };
        let device = own.mount.join("soak");
        match own.wait_until_it_serves(&device) {
            Ok(watch) => Ok(Daemon { device, pid, watch, own: Some(own) }),
            Err(reason) => {
                own.end();
                Err(format!("{} serves nothing: {reason}\n{}", program.display(), own.log_end()))
            }
        }
    }

    /// A daemon that runs already.
    pub fn of(device: &Path) -> Result<Daemon, String> {
        let explained = |error: fakebinder_client::Error| error.explain();
        let watch = Device::open(device).map_err(explained)?;
        let text = watch.daemon_snapshot(false).map_err(explained)?;
        let snapshot: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|error| format!("{}: what the daemon holds: {error}", device.display()))?;
        let pid = snapshot["daemon"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| format!("{}: the daemon tells no pid", device.display()))?;
        Ok(Daemon { device: device.to_owned(), pid, watch, own: None })
    }

    pub fn stats(&self) -> Result<uapi::fakebinder_stats, String> {
        self.watch.daemon_stats().map_err(|error| error.explain())
    }

    /// Whether quotas are known to be small, so that hoarders have something to reach.
    pub fn has_quotas(&self) -> bool {
        self.own.is_some()
    }

    /// The end of the log of a daemon that was started here.
    pub fn log_end(&self) -> Option<String> {
        self.own.as_ref().map(Own::log_end)
    }

    /// Ends a daemon that was started here. What it did wrong at its end, if anything.
    pub fn stop(self) -> Vec<String> {
        let Daemon { watch, own, .. } = self;
        drop(watch);
        own.map_or_else(Vec::new, |mut own| own.end())
    }
}

impl Own {
    fn wait_until_it_serves(&mut self, device: &Path) -> Result<Device, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Faults may be met here already: as often as it takes.
            let opened = Device::open(device).and_then(|watch| watch.daemon_stats().map(|_| watch));
            let error = match opened {
                Ok(watch) => return Ok(watch),
                Err(error) => error,
            };
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it ended: {status}"));
            }
            if Instant::now() > deadline {
                return Err(error.explain());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(None) => {
                    wrong.push(format!("the daemon does not end within {PATIENCE:?} of SIGTERM"));
                    let _ = self.child.kill();
                    break self.child.wait().ok();
                }
                ended => break ended.ok().flatten(),
            }
        };
        if !status.is_some_and(|status| status.success()) {
            wrong.push(format!("the daemon ended with {status:?}"));
        }
        if is_mounted(&self.mount) {
            wrong.push(format!("{} is still mounted", self.mount.display()));
            let _ = umount2(&self.mount, MntFlags::MNT_DETACH);
        }
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
            wrong.push(format!("the daemon panicked: {line}"));
        }
        wrong
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}
