//! fb-ping: a context manager and clients that send each other bytes through a binder device,
//! and check every one of them.
//!
//! The program starts itself again for each role, so that every role is a process of its own, and
//! collects the roles' reports over pipes. When one of them fails, or none reports for `--timeout`
//! seconds, it kills all of them, says why, and exits 1: it does not hang when the device does.

mod caller;
mod manager;
mod pattern;
mod report;

use clap::{Parser, ValueEnum};
use fakebinder_client::Device;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::Signal;
use report::Report;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How many failures are printed one by one.
const TOLD: usize = 5;

/// Sends checked transactions through a binder device: a context manager and clients, each a
/// process of its own. Works on fakebinder's device and on the kernel driver's /dev/binder.
/// Exit status: 0 when every byte of every transaction was right, 1 on any failure, 2 for wrong
/// flags.
#[derive(Parser, Debug)]
#[command(version)]
pub struct Args {
    /// The binder device
    #[arg(long, value_name = "PATH", default_value = "/dev/fakebinder")]
    device: PathBuf,
    /// Transactions, shared among the clients
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Bytes of each request and of each reply, besides a header of 24
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    payload: usize,
    /// Client processes that call at the same time
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// One-way transactions instead of calls with a reply
    #[arg(long)]
    oneway: bool,
    /// The result as one line of JSON
    #[arg(long)]
    json: bool,
    /// Give up when nothing has been heard for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// What the pattern of the bytes begins with
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[arg(long, hide = true)]
    role: Option<Role>,
    #[arg(long, hide = true, default_value_t = 0)]
    client: u32,
}

/// The role of a child process of fb-ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Manager,
    Client,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    // Every client gets at least one transaction.
    args.clients = args.clients.min(u32::try_from(args.count).unwrap_or(u32::MAX));
    if args.role.is_some() {
        // The parent's death must not leave a manager behind.
        let _ = set_pdeathsig(Signal::SIGKILL);
        // Started as /proc/self/exe, the process would be "exe" in ps and killall.
        let _ = set_name(c"fb-ping");
    }
    match args.role {
        Some(Role::Manager) => manager::run(&args),
        Some(Role::Client) => caller::run(&args, args.client),
        None => parent(&args),
    }
}

/// Writes a line to the parent. When the parent is gone, so is the reason to run.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

fn complain(message: &str) {
    eprintln!("fb-ping: {message}");
}

fn parent(args: &Args) -> ExitCode {
    let room = manager::BUFFER / if args.oneway { 4 } else { 2 };
    let each = args.payload.saturating_add(pattern::HEADER + 64);
    if each.saturating_mul(args.clients as usize) > room {
        complain(&format!(
            "{} clients with {} bytes each do not fit into the manager's buffer ({} bytes for \
             all): lower --payload or --clients",
            args.clients, args.payload, room
        ));
        return ExitCode::from(2);
    }
    // A fault of the device is reported once, before there are any children.
    if let Err(error) = Device::open(&args.device).and_then(|device| device.version()) {
        complain(&error.explain());
        return ExitCode::FAILURE;
    }
    let mut children = Children::new(args);
    let outcome = run(args, &mut children);
    children.kill();
    match outcome {
        Ok(report) => {
            for failure in report.told() {
                complain(failure);
            }
            println!("{}", if args.json { report.json() } else { report.line() });
            ExitCode::from(u8::from(report.failed() > 0))
        }
        Err(message) => {
            complain(&message);
            ExitCode::FAILURE
        }
    }
}

fn run<'a>(args: &'a Args, children: &mut Children<'_>) -> Result<Report<'a>, String> {
    children.start(Role::Manager, 0, args.count)?;
    children.expect_ready(1)?;
    let clients = u64::from(args.clients);
    for client in 0..args.clients {
        let extra = u64::from(u64::from(client) < args.count % clients);
        children.start(Role::Client, client, args.count / clients + extra)?;
    }
    let door = children.expect_ready(args.clients)?;
    let mut report = Report::new(args, door);
    let bar = progress(args.count);
    children.go()?;
    let start = Instant::now();
    let mut running = args.clients;
    while running > 0 {
        match children.next()? {
            Event::Times(times) => {
                bar.inc(times.len() as u64);
                report.add(&times);
            }
            Event::Failure(message) => {
                bar.inc(1);
                report.fail(message, TOLD);
            }
            Event::Done => running -= 1,
            Event::Ready(_) => {}
            Event::Stopped(message) => {
                bar.finish_and_clear();
                return Err(format!("{message}; {} transactions were done", report.done()));
            }
        }
    }
    report.finish(start.elapsed());
    bar.finish_and_clear();
    Ok(report)
}

/// A progress bar on a terminal, nothing elsewhere.
fn progress(count: u64) -> ProgressBar {
    let bar = ProgressBar::new(count);
    let style = "{bar:30} {pos}/{len} transactions, {per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

/// A report of a child.
enum Event {
    /// Ready to serve or to call; with the way in which it mapped the device.
    Ready(String),
    /// Latencies of successful calls, in nanoseconds.
    Times(Vec<u64>),
    /// A failed call.
    Failure(String),
    /// A client has made all of its calls.
    Done,
    /// A child cannot go on.
    Stopped(String),
}

/// The processes of this run, and their reports. Killed when dropped.
struct Children<'a> {
    args: &'a Args,
    running: Vec<Child>,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl<'a> Children<'a> {
    fn new(args: &'a Args) -> Children<'a> {
        let (sender, events) = channel();
        Children { args, running: Vec::new(), sender, events }
    }

    /// Starts this program again in a role.
    fn start(&mut self, role: Role, client: u32, count: u64) -> Result<(), String> {
        let args = self.args;
        let role_name = if role == Role::Manager { "manager" } else { "client" };
        let mut command = Command::new("/proc/self/exe");
        command.arg("--device").arg(&args.device).args(["--role", role_name]);
        for (flag, value) in [
            ("--client", u64::from(client)),
            ("--count", count),
            ("--payload", args.payload as u64),
            ("--clients", u64::from(args.clients)),
            ("--seed", args.seed),
        ] {
            command.arg(flag).arg(value.to_string());
        }
        if args.oneway {
            command.arg("--oneway");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child =
            command.spawn().map_err(|e| format!("cannot start the {role_name}: {e}"))?;
        let lines = BufReader::new(child.stdout.take().ok_or("no pipe from a child")?).lines();
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            let mut done = false;
            for line in lines.map_while(Result::ok) {
                let event = Event::parse(&line);
                done |= matches!(event, Event::Done | Event::Stopped(_));
                if sender.send(event).is_err() {
                    return;
                }
            }
            if !done {
                let message = format!("the {role_name} process died");
                let _ = sender.send(Event::Stopped(message));
            }
        });
        self.running.push(child);
        Ok(())
    }

    /// The next report of any child.
    fn next(&self) -> Result<Event, String> {
        match self.events.recv_timeout(Duration::from_secs(self.args.timeout)) {
            Ok(event) => Ok(event),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(format!(
                "{}: no answer for {} s; is the daemon alive? (--timeout waits longer)",
                self.args.device.display(),
                self.args.timeout
            )),
        }
    }

    fn expect_ready(&self, mut count: u32) -> Result<String, String> {
        let mut door = String::new();
        while count > 0 {
            match self.next()? {
                Event::Ready(by) => {
                    door = by;
                    count -= 1;
                }
                Event::Stopped(message) | Event::Failure(message) => return Err(message),
                Event::Times(_) | Event::Done => {}
            }
        }
        Ok(door)
    }

    /// Lets the clients begin.
    fn go(&mut self) -> Result<(), String> {
        for child in &mut self.running {
            if let Some(stdin) = &mut child.stdin {
                // A child that is gone has reported why, or its closed pipe will.
                let _ = stdin.write_all(b"go\n");
            }
        }
        Ok(())
    }

    /// Kills the processes that still run. One that the kernel does not let go is left behind.
    fn kill(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            self.running.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            if self.running.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        complain(&format!("{} processes do not die: the device holds them", self.running.len()));
    }
}

impl Drop for Children<'_> {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
        }
    }
}

impl Event {
    fn parse(line: &str) -> Event {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "ready" => Event::Ready(rest.into()),
            "t" => Event::Times(rest.split(' ').filter_map(|ns| ns.parse().ok()).collect()),
            "f" => Event::Failure(rest.into()),
            "done" => Event::Done,
            "e" => Event::Stopped(rest.into()),
            _ => Event::Stopped(format!("a child said: {line}")),
        }
    }
}
