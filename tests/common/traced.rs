//! The system calls that a process makes, counted by strace.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Calls of the system that a process makes until it is told to stop, by name.
pub struct Traced {
    strace: Child,
    table: PathBuf,
}

impl Traced {
    pub fn is_possible() -> bool {
        Command::new("strace").arg("-V").output().is_ok()
    }

    /// Counts those of all its threads. The directory is for the table that strace writes.
    pub fn start(pid: u32, directory: &Path) -> io::Result<Traced> {
        let table = directory.join(format!("table-{pid}"));
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&table);
        command.args(["-p", &pid.to_string()]).stderr(Stdio::piped());
        let mut strace = command.spawn()?;
        // It says when it is there, for each thread.
        let mut said = BufReader::new(strace.stderr.take().expect("a pipe"));
        let mut line = String::new();
        said.read_line(&mut line)?;
        std::thread::spawn(move || io::copy(&mut said, &mut io::sink()));
        std::thread::sleep(Duration::from_millis(300));
        match strace.try_wait()? {
            None => Ok(Traced { strace, table }),
            Some(_) => Err(io::Error::other(line.trim_end().to_owned())),
        }
    }

    /// Lets it go on without; how many of each name there were.
    pub fn stop(mut self) -> io::Result<BTreeMap<String, u64>> {
        let pid = nix::unistd::Pid::from_raw(self.strace.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        self.strace.wait()?;
        let table = std::fs::read_to_string(&self.table)?;
        let rows = table.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
        });
        let rows = rows.filter(|(_, name)| name != "total");
        Ok(rows.map(|(calls, name): (u64, _)| (name, calls)).collect())
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
