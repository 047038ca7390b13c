//! Plain C programs of benches/ that go a step at a time: they say a line, and wait for one.

use super::Killed;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

/// A program that says a line, and goes on when it is told one.
pub struct Stepping {
    child: Killed,
    lines: BufReader<ChildStdout>,
}

impl Stepping {
    /// Starts it, and waits until it says that it is ready.
    pub fn start(command: &mut Command) -> io::Result<Stepping> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut started = Stepping { child: Killed(child), lines };
        match &*started.line()? {
            "ready" => Ok(started),
            other => Err(io::Error::other(format!("{command:?} said {other:?}"))),
        }
    }

    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    pub fn go_on(&mut self) -> io::Result<()> {
        self.child.0.stdin.as_mut().expect("a pipe").write_all(b"go\n")
    }
}

/// Compiles a program of benches/ into a directory.
pub fn build(source: &str, directory: &Path) -> io::Result<PathBuf> {
    let program = directory.join(source.trim_end_matches(".c"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(source);
    let built =
        Command::new("gcc").args(["-O2", "-pthread", "-o"]).arg(&program).arg(&source).status()?;
    match built.success() {
        true => Ok(program),
        false => Err(io::Error::other(format!("gcc does not build {}", source.display()))),
    }
}
