//! What a client that has very much costs the others: `make bench-hog`.
//!
//! On the FUSE door of a daemon of its own, one pair of processes calls back and forth, as fb-ping
//! does, and is measured:
//!
//! 1. idle; beside a client that makes, lists, freezes and releases few nodes (references, death
//!    links) again and again; and beside one that does the same with 200,000. The two do the same
//!    work a second: what they differ in is what one client's size costs the others.
//! 2. while a client with 1,000,000 references and death links ends: the longest wait. Beside it
//!    the daemon's resident memory before, with that client and after.
//!
//! Latencies are of one machine at one time; their ratios, from one run, are what is to be
//! compared. Arguments: how many nodes in 1 and 2 (200000 1000000 without), for a quick look.
//!
//! Needs root and /dev/fuse.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Daemon, Killed};
use fakebinder_client::{Call, Command as Write, Device, Object, Parcel, Reply, Return, Thread};
use std::error::Error;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What the manager is asked: nothing, to keep a node, and to give it away.
const PING: u32 = 0;
const REGISTER: u32 = 1;
const LOOK_UP: u32 = 2;

/// Nodes in one message.
const BATCH: u64 = 1000;
/// Nodes of one open file: the daemon's limit is 262,144.
const PER_FILE: u64 = 250_000;
const MAPPING: usize = 1 << 20;
/// Of the client that is no hog.
const FEW: u64 = 200;
/// How long each row is measured.
const MEASURE: Duration = Duration::from_secs(8);

/// A read buffer in one page, which is filled at once.
#[repr(align(4096))]
struct Page([u8; 4096]);

fn open(path: &str) -> Outcome<Device> {
    let mut device = Device::open(path)?;
    device.mmap(MAPPING)?;
    Ok(device)
}

// ---------------------------------------------------------------- the pair that is measured

/// Answers calls, and gives away the last node that it was given.
fn manage(path: &str) -> Outcome<()> {
    let device = open(path)?;
    device.set_context_manager()?;
    let mut thread = Thread::new(&device);
    thread.queue(Write::EnterLooper);
    println!("ready");
    let mut known = None;
    loop {
        let mut given = None;
        thread.serve(&mut |_, _, contents, reply| match contents.code {
            REGISTER => given = contents.objects().flatten().next(),
            LOOK_UP => {
                if let Some(handle) = known {
                    reply.handle(handle);
                }
            }
            _ => {}
        })?;
        if let Some(Object::Handle { handle, .. }) = given {
            device.write(&[Write::Acquire(handle)])?;
            if let Some(before) = known.replace(handle) {
                device.write(&[Write::Release(before)])?;
            }
        }
    }
}

/// Calls from one line of its input to the next, and says what the calls took, in nanoseconds.
fn ping(path: &str) -> Outcome<()> {
    let device = open(path)?;
    let mut thread = Thread::new(&device);
    println!("ready");
    while std::io::stdin().read_line(&mut String::new())? > 0 {
        let ends = Arc::new(AtomicBool::new(false));
        let waiting = {
            let ends = ends.clone();
            std::thread::spawn(move || {
                let line = std::io::stdin().read_line(&mut String::new());
                ends.store(true, Ordering::Relaxed);
                line
            })
        };
        let mut took = Vec::with_capacity(1 << 20);
        while !ends.load(Ordering::Relaxed) {
            let start = Instant::now();
            let reply = thread.call(&Call::to(0).code(PING))?;
            took.push(start.elapsed().as_nanos() as u64);
            if !matches!(reply, Reply::Data(_)) {
                return Err(format!("{reply:?}").into());
            }
        }
        waiting.join().map_err(|_| "the reader of the input panicked")??;
        took.sort_unstable();
        let at = |permille: usize| took[(took.len() - 1) * permille / 1000];
        println!("{} {} {} {} {}", took.len(), at(500), at(990), at(999), at(1000));
    }
    Ok(())
}

// ---------------------------------------------------------------- the hog

/// Reads until it is told that what it sent is on its way, and confirms what it is told of its
/// nodes.
fn confirm(device: &Device, page: &mut Page) -> Outcome<()> {
    let mut sent = false;
    while !sent {
        let mut done = Vec::new();
        for told in device.read(&mut page.0)? {
            match told {
                Return::Increfs { ptr, cookie } => done.push(Write::IncrefsDone { ptr, cookie }),
                Return::Acquire { ptr, cookie } => done.push(Write::AcquireDone { ptr, cookie }),
                Return::TransactionComplete => sent = true,
                Return::Noop => {}
                other => return Err(format!("{other:?}").into()),
            }
        }
        device.write(&done)?;
    }
    Ok(())
}

/// Open files that own nodes, and one that has a reference and a death link to each.
struct Hog {
    _owners: Vec<Device>,
    _holder: Device,
}

impl Hog {
    fn make(path: &str, nodes: u64) -> Outcome<Hog> {
        let mut page = Page([0; 4096]);
        let holder = open(path)?;
        let mut own = Parcel::new();
        own.binder(0x10, 0, 0);
        Thread::new(&holder).call(&Call::to(0).code(REGISTER).parcel(&own))?;
        let mut owners = Vec::new();
        let mut held = 0;
        while held < nodes {
            let owner = open(path)?;
            let mut thread = Thread::new(&owner);
            let Reply::Data(found) = thread.call(&Call::to(0).code(LOOK_UP))? else {
                return Err("the manager does not know the holder".into());
            };
            let Some(Object::Handle { handle, .. }) = found.objects().flatten().next() else {
                return Err("the manager gives no handle".into());
            };
            // Before the buffer is freed that it came in.
            owner.write(&[Write::Acquire(handle)])?;
            thread.flush()?;
            let last = nodes.min(held + PER_FILE);
            while held < last {
                let end = last.min(held + BATCH);
                let mut parcel = Parcel::new();
                (held..end).for_each(|index| {
                    parcel.binder(0x10 + index * 0x10, index, 0);
                });
                owner.write(&[Write::transaction(&Call::to(handle).oneway().parcel(&parcel))])?;
                confirm(&owner, &mut page)?;
                hold(&holder, &mut page)?;
                held = end;
            }
            owners.push(owner);
        }
        Ok(Hog { _owners: owners, _holder: holder })
    }
}

/// Reads a message, and keeps the handles in it, with a death link to each.
fn hold(holder: &Device, page: &mut Page) -> Outcome<()> {
    loop {
        let told: Vec<_> = holder.read(&mut page.0)?.collect();
        let mut kept = Vec::new();
        for told in told {
            match told {
                Return::Transaction(transaction) => {
                    let contents = holder.contents(&transaction)?;
                    for object in contents.objects() {
                        let Some(Object::Handle { handle, .. }) = object else { continue };
                        kept.push(Write::Acquire(handle));
                        let cookie = handle.into();
                        kept.push(Write::RequestDeathNotification { handle, cookie });
                    }
                    kept.push(Write::FreeBuffer(transaction.buffer));
                }
                // Of the node that it was registered by.
                Return::Increfs { ptr, cookie } => kept.push(Write::IncrefsDone { ptr, cookie }),
                Return::Acquire { ptr, cookie } => kept.push(Write::AcquireDone { ptr, cookie }),
                _ => {}
            }
        }
        let got_it = kept.iter().any(|command| matches!(command, Write::FreeBuffer(_)));
        holder.write(&kept)?;
        if got_it {
            return Ok(());
        }
    }
}

/// Has so many nodes and keeps them until it is killed.
fn have(path: &str, nodes: u64) -> Outcome<()> {
    let hog = Hog::make(path, nodes)?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    drop(hog);
    Ok(())
}

/// Makes, lists, freezes, thaws and releases so many, again and again.
fn churn(path: &str, nodes: u64) -> Outcome<()> {
    let state = Path::new(path).parent().ok_or("a device lies in a mount")?;
    let state = state.join("binder_logs/state");
    println!("ready");
    loop {
        let hog = Hog::make(path, nodes)?;
        std::fs::read(&state)?;
        // It need not be idle enough to be frozen: that is not what this is about.
        let caller = open(path)?;
        let _ = caller.freeze(std::process::id(), true, 0);
        caller.freeze(std::process::id(), false, 0)?;
        drop(hog);
    }
}

// ---------------------------------------------------------------- measuring

/// This program again, as a client.
struct Client {
    child: Killed,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn start(arguments: &[&str]) -> Outcome<Client> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Killed(command.spawn()?);
        let input = child.0.stdin.take().ok_or("its input is piped")?;
        let output = BufReader::new(child.0.stdout.take().ok_or("its output is piped")?);
        let mut client = Client { child, input, output };
        let said = client.line()?;
        (said == "ready").then_some(client).ok_or_else(|| format!("{arguments:?}: {said}").into())
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn tell(&mut self) -> Outcome<()> {
        writeln!(self.input)?;
        Ok(())
    }
}

/// In microseconds.
struct Row {
    calls: u64,
    median: f64,
    p99: f64,
    p999: f64,
    longest: f64,
}

impl Row {
    /// Of the calls that the pair makes while `work` goes on.
    fn measure(pair: &mut Client, work: impl FnOnce() -> Outcome<()>) -> Outcome<Row> {
        pair.tell()?;
        work()?;
        pair.tell()?;
        let line = pair.line()?;
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [calls, rest @ ..] = &numbers[..] else { return Err(line.into()) };
        let &[median, p99, p999, longest] = rest else { return Err(line.into()) };
        let [median, p99, p999, longest] = [median, p99, p999, longest].map(|ns| ns as f64 / 1e3);
        Ok(Row { calls: *calls, median, p99, p999, longest })
    }

    fn print(&self, name: &str, idle: &Row) {
        println!(
            "{name:<34}{:>9}{:>9.1}{:>9.1}{:>9.1}{:>8.1} x{:>10.1}",
            self.calls,
            self.median,
            self.p99,
            self.p999,
            self.p999 / idle.p999,
            self.longest
        );
    }
}

fn wait(time: Duration) -> impl FnOnce() -> Outcome<()> {
    move || {
        std::thread::sleep(time);
        Ok(())
    }
}

/// VmRSS of a process, in MiB.
fn resident(pid: u32) -> Outcome<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.and_then(|it| it.split_whitespace().next()).ok_or("no VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}

/// Waits until the daemon has no nodes but the manager's and the one that the manager knows.
fn released(device: &Device) -> Outcome<()> {
    while device.daemon_stats()?.nodes > 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn compare(many: u64, more: u64) -> Outcome<()> {
    let daemon = Daemon::start_with(&[], None);
    let device = daemon.fuse().display().to_string();
    let manager = Client::start(&["manage", &device])?;
    let mut pair = Client::start(&["ping", &device])?;
    Row::measure(&mut pair, wait(Duration::from_secs(1)))?;

    println!(
        "{:<34}{:>9}{:>9}{:>9}{:>9}{:>10}{:>10}",
        "us", "calls", "p50", "p99", "p99.9", "", "longest"
    );
    let idle = Row::measure(&mut pair, wait(MEASURE))?;
    idle.print("idle", &idle);
    for nodes in [FEW, many] {
        let hog = Client::start(&["churn", &device, &nodes.to_string()])?;
        let row = Row::measure(&mut pair, wait(MEASURE))?;
        row.print(&format!("beside a client of {nodes} nodes"), &idle);
        drop(hog);
        released(&Device::open(&device)?)?;
    }

    let before = resident(daemon.pid())?;
    let mut hog = Client::start(&["have", &device, &more.to_string()])?;
    let during = resident(daemon.pid())?;
    let watch = Device::open(&device)?;
    let mut took = Duration::ZERO;
    let ending = Row::measure(&mut pair, || {
        let start = Instant::now();
        hog.child.0.kill()?;
        hog.child.0.wait()?;
        released(&watch)?;
        took = start.elapsed();
        Ok(())
    })?;
    ending.print(&format!("while {more} references end"), &idle);
    println!("that took {} ms", took.as_millis());
    std::thread::sleep(Duration::from_secs(2));
    let after = resident(daemon.pid())?;
    println!("resident: {before:.0} MiB before, {during:.0} with them, {after:.0} after");
    drop((pair, manager));
    daemon.stop();
    Ok(())
}

fn main() -> Outcome<()> {
    // Cargo passes --bench.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["manage", path] => return manage(path),
        ["ping", path] => return ping(path),
        ["have", path, nodes] => return have(path, nodes.parse()?),
        ["churn", path, nodes] => return churn(path, nodes.parse()?),
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return Err("fakebinderd's FUSE door takes root and /dev/fuse".into());
    }
    let number = |index: usize, default| arguments.get(index).map_or(Ok(default), |it| it.parse());
    compare(number(0, 200_000)?, number(1, 1_000_000)?)
}
