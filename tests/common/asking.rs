//! Asking a daemon by the `fakebinder` command.

use super::{Killed, PATIENCE, program, wait_until};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `fakebinder` with these arguments.
pub fn ask(device: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("fakebinder"));
    command.args(arguments).arg("--device").arg(device);
    command
}

/// All that it has printed.
pub fn text(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// What it prints.
#[track_caller]
pub fn answer(device: &Path, arguments: &[&str]) -> String {
    let output = ask(device, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The same with `--json`.
#[track_caller]
pub fn json(device: &Path, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    serde_json::from_str(&answer(device, &arguments)).unwrap()
}

/// The rows of `procs`, once there are so many: a command's open file is released at leisure.
#[track_caller]
pub fn processes(device: &Path, count: usize) -> Vec<Value> {
    let mut rows = Vec::new();
    let as_many = || {
        rows = json(device, &["procs"]).as_array().unwrap().clone();
        rows.len() == count
    };
    assert!(wait_until(PATIENCE, as_many), "{}", answer(device, &["procs"]));
    rows
}

/// `fakebinder` with these arguments, which listens from now on.
pub fn listen(device: &Path, arguments: &[&str]) -> Killed {
    let mut command = ask(device, arguments);
    let mut child = Killed(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.ends_with("ing; Ctrl-C ends it\n"), "{line}");
    child
}

/// Ends it as Ctrl-C does; returns what it has printed.
pub fn end(mut child: Killed) -> String {
    nix::sys::signal::kill(Pid::from_raw(child.0.id() as i32), Signal::SIGINT).unwrap();
    let mut printed = String::new();
    child.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(child.0.wait().unwrap().success());
    printed
}
