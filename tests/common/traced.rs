//! The system calls that a process makes, written down by strace and counted.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Calls of the system that a process makes until it is told to stop, by name.
pub struct Traced {
    strace: Child,
    log: PathBuf,
}

impl Traced {
    pub fn is_possible() -> bool {
        Command::new("strace").arg("-V").output().is_ok()
    }

    /// Counts those of all its threads. The directory is for the log that strace writes.
    pub fn start(pid: u32, directory: &Path) -> io::Result<Traced> {
        let log = directory.join(format!("strace-{pid}"));
        let mut command = Command::new("strace");
        // With the paths of open files, and as little else as can be.
        command.args(["-f", "-y", "-s", "0", "-e", "verbose=none", "-o"]).arg(&log);
        command.args(["-p", &pid.to_string()]).stderr(Stdio::piped());
        let mut strace = command.spawn()?;
        // It says when it is there, for each thread.
        let mut said = BufReader::new(strace.stderr.take().expect("a pipe"));
        let mut line = String::new();
        said.read_line(&mut line)?;
        std::thread::spawn(move || io::copy(&mut said, &mut io::sink()));
        std::thread::sleep(Duration::from_millis(300));
        match strace.try_wait()? {
            None => Ok(Traced { strace, log }),
            Some(_) => Err(io::Error::other(line.trim_end().to_owned())),
        }
    }

    /// Lets it go on without; how many of each name there were. Reads of /proc, by which the daemon
    /// now and then looks at who its clients are, are told from the others: "read /proc".
    pub fn stop(mut self) -> io::Result<BTreeMap<String, u64>> {
        let pid = nix::unistd::Pid::from_raw(self.strace.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        self.strace.wait()?;
        let mut calls = BTreeMap::new();
        for name in std::fs::read_to_string(&self.log)?.lines().filter_map(name_of) {
            *calls.entry(name).or_default() += 1;
        }
        Ok(calls)
    }
}

/// The name in a line of strace's log: "PID NAME(ARGUMENTS". Not of what ends a call that another
/// line began ("PID <... NAME resumed>"), nor of signals.
fn name_of(line: &str) -> Option<String> {
    let (name, arguments) = line.split_once(' ')?.1.trim_start().split_once('(')?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return None;
    }
    let of_proc = name == "read" && arguments.split(',').next()?.contains("</proc");
    Some(if of_proc { "read /proc".to_owned() } else { name.to_owned() })
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
