//! fb-signals: what signals do to a process that waits in a binder device. One line per fact,
//! without times or process ids, so that the output of two devices can be compared with diff.
//!
//! The program is the context manager. The process under test, the subject, is a child: this
//! program again, in another role.

mod subject;

use clap::{Parser, ValueEnum};
use fakebinder_client::{
    Call, Command, Device, Error, Object, Parcel, Return, Thread, Transaction,
};
use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// The subject's first call, which carries a node by which the subject can be woken.
pub const REGISTER: u32 = 1;
/// The call that the subject waits in.
pub const WAIT: u32 = 2;
/// A one-way call that wakes the subject.
const WAKE: u32 = 3;

/// A process that has to notice that it is to exit, and to run its exit handlers, gets so many
/// times the time of a process that is killed.
const EXITING: u32 = 20;
/// How long to wait for the subject to print something about a signal.
const PATIENCE: Duration = Duration::from_millis(300);

/// Prints what signals do to a process that waits in a binder device, one fact a line.
#[derive(Parser, Debug)]
#[command(version)]
pub struct Args {
    /// The binder device
    #[arg(long, value_name = "PATH", default_value = "/dev/fakebinder")]
    device: PathBuf,
    /// How fast a killed process must be gone: "gone in time"
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 50)]
    limit: u64,
    #[arg(long, hide = true)]
    role: Option<Wait>,
    #[arg(long, hide = true, default_value = "default")]
    handler: Handler,
}

/// What the subject waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// A read, as a looper.
    Read,
    /// A call that is not answered yet.
    Call,
    /// poll(2).
    Poll,
    /// epoll_wait(2).
    Epoll,
    /// A read, while another thread of the process calls exit(3).
    Exit,
}

/// What the subject does about SIGALRM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Handler {
    /// A handler.
    Plain,
    /// A handler with SA_RESTART.
    Restart,
    /// SIG_IGN.
    Ignore,
    /// The default action.
    Default,
}

/// What is done to the subject.
#[derive(Clone, Copy)]
enum Act {
    Alarm,
    StopAndContinue,
    Kill,
    /// Another thread of the process calls exit(3).
    Exit,
}

const SCENES: [(&str, Wait, Handler, Act); 13] = [
    ("read, SIGALRM without SA_RESTART", Wait::Read, Handler::Plain, Act::Alarm),
    ("read, SIGALRM with SA_RESTART", Wait::Read, Handler::Restart, Act::Alarm),
    ("read, SIGALRM ignored", Wait::Read, Handler::Ignore, Act::Alarm),
    ("read, SIGSTOP and SIGCONT", Wait::Read, Handler::Default, Act::StopAndContinue),
    ("call, SIGALRM without SA_RESTART", Wait::Call, Handler::Plain, Act::Alarm),
    ("call, SIGALRM with SA_RESTART", Wait::Call, Handler::Restart, Act::Alarm),
    ("poll, SIGALRM without SA_RESTART", Wait::Poll, Handler::Plain, Act::Alarm),
    ("poll, SIGALRM with SA_RESTART", Wait::Poll, Handler::Restart, Act::Alarm),
    ("epoll_wait, SIGALRM with SA_RESTART", Wait::Epoll, Handler::Restart, Act::Alarm),
    ("read, SIGKILL", Wait::Read, Handler::Default, Act::Kill),
    ("call, SIGKILL", Wait::Call, Handler::Default, Act::Kill),
    ("poll, SIGKILL", Wait::Poll, Handler::Default, Act::Kill),
    ("read, exit of another thread", Wait::Exit, Handler::Default, Act::Exit),
];

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.role {
        Some(wait) => subject::run(&args.device, wait, args.handler),
        None => run(&args.device, Duration::from_millis(args.limit)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = error.downcast_ref().map_or(error.to_string(), Error::explain);
            eprintln!("fb-signals: {message}");
            ExitCode::FAILURE
        }
    }
}

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

fn run(path: &Path, limit: Duration) -> AnyResult<()> {
    let mut device = Device::open(path)?;
    device.mmap(128 << 10)?;
    device.set_context_manager()?;
    let mut thread = Thread::new(&device);
    thread.queue(Command::EnterLooper);
    thread.flush()?;
    for (name, wait, handler, act) in SCENES {
        println!("{name}: {}", scene(&mut thread, wait, handler, act, limit)?);
    }
    Ok(())
}

/// The child process under test. Killed when dropped.
struct Subject {
    child: Child,
    lines: Receiver<String>,
    stdin: Option<ChildStdin>,
}

impl Subject {
    fn start(path: &Path, wait: Wait, handler: Handler) -> AnyResult<Subject> {
        let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
            value().map(|v| v.get_name().to_owned()).unwrap_or_default()
        };
        let mut child = std::process::Command::new("/proc/self/exe")
            .arg("--device")
            .arg(path)
            .args(["--role", &name(&|| wait.to_possible_value())])
            .args(["--handler", &name(&|| handler.to_possible_value())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no pipe")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        Ok(Subject { child, lines, stdin })
    }

    fn signal(&self, signal: Signal) -> AnyResult<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    fn line(&self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok()
    }

    /// Whether the process is gone within the limit.
    fn gone(&mut self, limit: Duration) -> AnyResult<String> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            if self.child.try_wait()?.is_some() {
                let elapsed = start.elapsed();
                return Ok(if elapsed <= limit {
                    "gone in time".into()
                } else {
                    format!("gone after {} ms", elapsed.as_millis())
                });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok("still there after 2 s".into())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn scene(
    thread: &mut Thread<'_>,
    wait: Wait,
    handler: Handler,
    act: Act,
    limit: Duration,
) -> AnyResult<String> {
    let mut subject = Subject::start(thread.device().path(), wait, handler)?;
    let handle = registration(thread)?;
    let held = if wait == Wait::Call { Some(held_call(thread)?) } else { None };
    // The subject says so just before it waits; then it needs a moment to begin to wait.
    subject.line(Duration::from_secs(5)).ok_or("the child process does not wait")?;
    std::thread::sleep(Duration::from_millis(100));
    match act {
        Act::Alarm => subject.signal(Signal::SIGALRM)?,
        Act::StopAndContinue => {
            subject.signal(Signal::SIGSTOP)?;
            std::thread::sleep(Duration::from_millis(50));
            subject.signal(Signal::SIGCONT)?;
        }
        Act::Kill | Act::Exit => {
            let gone = if matches!(act, Act::Kill) {
                subject.signal(Signal::SIGKILL)?;
                subject.gone(limit)?
            } else {
                // The thread that is to call exit reads until the pipe closes.
                subject.stdin = None;
                subject.gone(limit * EXITING)?
            };
            let Some(call) = held else { return Ok(gone) };
            thread.queue(Command::FreeBuffer(call.buffer));
            let returns = answer(thread)?;
            return Ok(format!("{gone}; a reply to it: {returns}"));
        }
    }
    let first = subject.line(PATIENCE).unwrap_or_else(|| "it waits on".into());
    match held {
        Some(call) => {
            thread.queue(Command::FreeBuffer(call.buffer));
            answer(thread)?;
        }
        None => {
            thread.call(&Call::to(handle).code(WAKE).oneway())?;
        }
    }
    let mut said = first;
    while let Some(line) = subject.line(PATIENCE) {
        said = format!("{said}; {line}");
    }
    thread.queue(Command::Release(handle));
    thread.flush()?;
    Ok(said)
}

/// Waits for the subject's node and takes a reference to it.
fn registration(thread: &mut Thread<'_>) -> AnyResult<u32> {
    let mut found = None;
    while found.is_none() {
        wait_for_work(thread)?;
        thread.serve(&mut |thread, call, contents, _| {
            if let (REGISTER, Some(Some(Object::Handle { handle, .. }))) =
                (call.code, contents.objects().next())
            {
                // Before the buffer is freed, which holds a reference of its own.
                thread.queue(Command::Acquire(handle));
                found = Some(handle);
            }
        })?;
    }
    // The next read would write the reply: write it before waiting for the subject.
    thread.flush()?;
    found.ok_or_else(|| "no handle came".into())
}

/// Reads the call that the subject waits in, without answering it.
fn held_call(thread: &mut Thread<'_>) -> AnyResult<Transaction> {
    loop {
        wait_for_work(thread)?;
        match thread.next_return()? {
            Return::Transaction(call) if call.code == WAIT => return Ok(call),
            _ => {}
        }
    }
}

/// Answers the held call, and gives the names of the returns that the driver has for it.
fn answer(thread: &mut Thread<'_>) -> Result<String, Error> {
    thread.reply(Parcel::new());
    let mut names = Vec::new();
    while names.is_empty() || thread.pending() > 0 {
        match thread.next_return()?.name() {
            "BR_NOOP" => {}
            name => names.push(name),
        }
    }
    Ok(names.join(" "))
}

fn wait_for_work(thread: &Thread<'_>) -> AnyResult<()> {
    if thread.pending() > 0 {
        return Ok(());
    }
    match thread.device().poll(Some(5000))? {
        flags if flags.contains(PollFlags::POLLIN) => Ok(()),
        _ => Err("the child process has not called within 5 s".into()),
    }
}
