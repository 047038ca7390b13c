//! A binder program that knows nothing of fakebinder and receives descriptors (descriptors.c), and
//! those who send them.

use super::{Killed, in_time, skip};
use fakebinder_client::{
    Call, Command as Write, Contents, Device, Errno, Parcel, Reply, Return, Thread, uapi,
};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

const STOP: u32 = 99;

/// descriptors.c, built with these flags; `None` where gcc cannot.
pub fn build(flags: &[&str]) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let name = format!("fakebinder-descriptors-{}{}", std::process::id(), flags.concat());
    let program = std::env::temp_dir().join(name);
    if program.exists() {
        return Some(program);
    }
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-Werror"]).args(flags).arg("-o").arg(&program);
    gcc.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/descriptors.c")).arg("-lpthread");
    match gcc.output() {
        Ok(output) if output.status.success() => Some(program),
        _ if flags.contains(&"-m32") => {
            skip("gcc -m32 does not work (Debian: gcc-multilib)");
            None
        }
        Ok(output) => panic!("descriptors.c: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            skip(&format!("gcc: {error}"));
            None
        }
    }
}

/// A running descriptors.c.
pub struct Program {
    pub child: Killed,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Program {
    /// Starts it, and waits until it serves or calls.
    pub fn start(program: &Path, device: &Path, arguments: &[&str]) -> Program {
        let mut command = Command::new(program);
        command.arg(device).args(arguments);
        Program::from(command)
    }

    pub fn from(mut command: Command) -> Program {
        let mut child = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut program = Program { child, lines };
        assert_eq!(program.line(), "ready");
        program
    }

    pub fn line(&mut self) -> String {
        self.lines.next().map_or(String::new(), Result::unwrap)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.0.id() as i32)
    }

    /// Waits for its end: what it says of itself. It has found nothing amiss.
    pub fn ended(mut self) -> String {
        in_time("descriptors.c", move || {
            let line = self.line();
            let status = self.child.0.wait().unwrap();
            assert!(status.success(), "{status}: {line}");
            line
        })
    }
}

/// So many descriptors of a pipe: `single` by themselves, the others in an array.
pub fn parcel(writer: &PipeWriter, single: usize, in_array: usize) -> Parcel {
    let mut parcel = Parcel::new();
    fill(&mut parcel, writer, single, in_array);
    parcel
}

pub fn fill(parcel: &mut Parcel, writer: &PipeWriter, single: usize, in_array: usize) {
    let fd = writer.as_raw_fd();
    parcel.u32(0);
    for _ in 0..single {
        parcel.fd(fd);
    }
    if in_array > 0 {
        let parent = parcel.buffer(&fd.to_ne_bytes().repeat(in_array));
        parcel.fd_array(in_array as u64, parent, 0);
    }
}

/// What was written to a pipe whose last writer this is.
pub fn written(mut reader: PipeReader, writer: PipeWriter) -> usize {
    drop(writer);
    in_time("the end of a pipe", move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert!(all.iter().all(|byte| *byte == b'x'));
        all.len()
    })
}

/// Calls the context manager, once it is there.
pub fn call(device: &Device, parcel: &Parcel) -> Reply {
    Thread::new(device).call(&Call::to(0).parcel(parcel)).unwrap()
}

pub fn stop(device: &Device) {
    let reply = Thread::new(device).call(&Call::to(0).code(STOP)).unwrap();
    assert!(matches!(reply, Reply::Data(_)), "{reply:?}");
}

#[track_caller]
pub fn assert_came(reply: &Reply, expected: u32) {
    let Reply::Data(contents) = reply else { panic!("{reply:?}") };
    assert_eq!(contents.data[..4], expected.to_ne_bytes());
}

#[track_caller]
pub fn refused(device: &Device, parcel: &Parcel, errno: Errno) {
    let reply = call(device, parcel);
    assert!(matches!(reply, Reply::Failed), "{reply:?}");
    let error = device.extended_error().unwrap();
    assert_eq!((error.command, error.param), (uapi::BR_FAILED_REPLY, -(errno as i32)));
}

/// Answers calls with descriptors until `calls` were made.
pub fn answer(device: &Device, calls: usize, mut fill: impl FnMut(&mut Parcel)) {
    let mut thread = Thread::new(device);
    thread.queue(Write::EnterLooper);
    let mut served = 0;
    while served < calls {
        let done = thread.serve(&mut |_, _, _: &Contents, reply| fill(reply));
        served += usize::from(matches!(done.unwrap(), Return::Transaction(_)));
    }
    thread.flush().unwrap();
}
