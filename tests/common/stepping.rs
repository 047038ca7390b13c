//! Plain C programs of benches/ that go a step at a time: they say a line, and wait for one.

use super::wait_until;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// What they are told to do takes less, on the slowest of machines.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that says a line, and goes on when it is told one.
pub struct Stepping {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Stepping {
    /// Starts it, and waits until it says that it is ready.
    pub fn start(command: &mut Command) -> io::Result<Stepping> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut started = Stepping { child, lines };
        started.wait_until_ready()?;
        Ok(started)
    }

    pub fn wait_until_ready(&mut self) -> io::Result<()> {
        match &*self.line()? {
            "ready" => Ok(()),
            other => Err(io::Error::other(format!("it said {other:?}"))),
        }
    }

    /// The next line that it says. An error in its own words when it has ended.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.lines.buffer().is_empty() {
            let mut ready = [PollFd::new(self.lines.get_ref().as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::try_from(PATIENCE).expect("not too long"))? == 0 {
                return Err(io::Error::other(format!("a program says nothing for {PATIENCE:?}")));
            }
        }
        if self.lines.read_line(&mut line)? > 0 {
            return Ok(line.trim_end().to_owned());
        }
        let status = self.child.wait()?;
        let mut words = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut words)?;
        }
        Err(io::Error::other(format!("a program ended ({status}): {}", words.trim_end())))
    }

    /// How it is known to the system.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }

    /// Tells it a line.
    pub fn tell(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.child.stdin.as_mut().expect("a pipe"), "{line}")
    }

    pub fn go_on(&mut self) -> io::Result<()> {
        self.tell("go")
    }
}

/// One that is in the middle of a request ends when the daemon has answered that, which a test or a
/// benchmark that fails must not wait for.
impl Drop for Stepping {
    fn drop(&mut self) {
        let child = &mut self.child;
        let _ = child.kill();
        wait_until(Duration::from_secs(3), || !matches!(child.try_wait(), Ok(None)));
    }
}

/// Compiles a program of benches/ into a directory.
pub fn build(source: &str, directory: &Path) -> io::Result<PathBuf> {
    let program = directory.join(source.trim_end_matches(".c"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(source);
    let built = Command::new("gcc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(&program)
        .arg(&source)
        .status()?;
    match built.success() {
        true => Ok(program),
        false => Err(io::Error::other(format!("gcc does not build {}", source.display()))),
    }
}
