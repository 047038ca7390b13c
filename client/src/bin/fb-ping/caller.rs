//! A client: makes calls, checks every byte that comes back, and reports to the parent.

use crate::manager::{PING, POST, Posts, QUERY};
use crate::pattern::{Direction, HEADER, Header};
use crate::{Args, say};
use fakebinder_client::{Call, Device, Error, Parcel, Reply, Thread, uapi};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Bytes of a client's mapping: room for the reply.
fn buffer(payload: usize) -> usize {
    (2 * (payload + HEADER)).next_power_of_two().max(128 << 10)
}

/// How many one-way calls may be under way. The manager's one-way space is half of its buffer, and
/// one sender becomes suspect of spam with a quarter of the buffer.
pub fn window(clients: u32, payload: usize) -> usize {
    let each = payload + HEADER + 64;
    (crate::manager::BUFFER / 8 / each / clients as usize).clamp(1, 40)
}

/// Latencies and failures, reported to the parent from time to time: `t NS...`, `f MESSAGE`.
struct Tally {
    line: String,
    count: usize,
    last: Instant,
}

impl Tally {
    fn success(&mut self, elapsed: Duration) {
        self.line.push(' ');
        self.line.push_str(&elapsed.as_nanos().to_string());
        self.count += 1;
        if self.count == 256 || self.last.elapsed() > Duration::from_millis(100) {
            self.flush();
        }
    }

    fn failure(&mut self, message: &str) {
        self.flush();
        say(&format!("f {message}"));
    }

    fn flush(&mut self) {
        if self.count > 0 {
            say(&format!("t{}", self.line));
        }
        self.line.clear();
        self.count = 0;
        self.last = Instant::now();
    }
}

/// Makes `args.count` calls once the parent says "go".
pub fn run(args: &Args, client: u32) -> ExitCode {
    let mut tally = Tally { line: String::new(), count: 0, last: Instant::now() };
    let result = calls(args, client, &mut tally);
    tally.flush();
    match result {
        Ok(()) => {
            say("done");
            ExitCode::SUCCESS
        }
        Err(stop) => {
            say(&format!("e {}", stop.0));
            ExitCode::FAILURE
        }
    }
}

/// Why there is no point in going on.
struct Stop(String);

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop(error.explain())
    }
}

fn calls(args: &Args, client: u32, tally: &mut Tally) -> Result<(), Stop> {
    let mut device = Device::open(&args.device)?;
    device.mmap(buffer(args.payload))?;
    let mut thread = Thread::new(&device);
    // The first call makes the reference to the manager and installs the first pages.
    posts(&mut thread, args.seed, client)?;
    say(if device.is_attached() { "ready attach" } else { "ready mmap" });
    let mut go = String::new();
    if std::io::stdin().read_line(&mut go).unwrap_or(0) == 0 {
        return Err(Stop("the parent is gone".into()));
    }
    if args.oneway {
        post(args, client, &mut thread, tally)
    } else {
        ping(args, client, &mut thread, tally)
    }
}

fn ping(args: &Args, client: u32, thread: &mut Thread<'_>, tally: &mut Tally) -> Result<(), Stop> {
    let mut parcel = Parcel::new();
    for sequence in 0..args.count {
        let header = Header { seed: args.seed, client, verdict: 0, sequence };
        header.message(Direction::Request, args.payload, parcel.data_mut());
        let start = Instant::now();
        let reply = thread.call(&Call::to(0).code(PING).parcel(&parcel))?;
        let elapsed = start.elapsed();
        match check(&header, args.payload, &reply) {
            Ok(()) => tally.success(elapsed),
            Err(what) => fail(thread, &reply, &format!("transaction {sequence}: {what}"), tally)?,
        }
    }
    Ok(())
}

/// Checks a reply; the error says what is wrong with it.
fn check(sent: &Header, payload: usize, reply: &Reply) -> Result<(), String> {
    let Reply::Data(contents) = reply else {
        return Err(format!("no reply: {reply:?}"));
    };
    if contents.flags & uapi::TF_STATUS_CODE != 0 {
        return Err("a status code for a reply".into());
    }
    if contents.data.len() != HEADER + payload {
        return Err(format!("{} bytes came back for {}", contents.data.len(), HEADER + payload));
    }
    let Some(got) = Header::of(&contents.data) else {
        return Err("no header came back".into());
    };
    if got.verdict != 0 {
        return Err(format!("the manager found byte {} wrong", got.verdict - 1));
    }
    if got != *sent {
        return Err(format!("the reply to another request came back: {got:?}"));
    }
    match got.first_wrong(Direction::Reply, &contents.data) {
        Some(position) => Err(format!("byte {position} of the reply is wrong")),
        None => Ok(()),
    }
}

/// Counts a failure. One that will not go away ends the run.
fn fail(thread: &mut Thread<'_>, reply: &Reply, what: &str, tally: &mut Tally) -> Result<(), Stop> {
    match reply {
        Reply::Dead => Err(Stop(format!(
            "{}: {what}; the context manager is gone",
            thread.device().path().display()
        ))),
        Reply::Failed => {
            let error = thread.device().extended_error()?;
            tally.failure(&format!("{what} (extended error: {})", error.param));
            Ok(())
        }
        _ => {
            tally.failure(what);
            Ok(())
        }
    }
}

fn post(args: &Args, client: u32, thread: &mut Thread<'_>, tally: &mut Tally) -> Result<(), Stop> {
    let mut parcel = Parcel::new();
    let window = window(args.clients, args.payload) as u64;
    let mut sent = 0;
    for sequence in 0..args.count {
        let header = Header { seed: args.seed, client, verdict: 0, sequence };
        header.message(Direction::Request, args.payload, parcel.data_mut());
        let start = Instant::now();
        let reply = thread.call(&Call::to(0).code(POST).oneway().parcel(&parcel))?;
        match reply {
            Reply::Sent => {
                sent += 1;
                tally.success(start.elapsed());
            }
            _ => fail(thread, &reply, &format!("one-way {sequence}: {reply:?}"), tally)?,
        }
        if sent % window == 0 || sequence + 1 == args.count {
            let arrived = wait_for(sent, args, client, thread)?;
            if sequence + 1 == args.count {
                for (count, what) in [
                    (sent - arrived.arrived.min(sent), "never arrived"),
                    (arrived.wrong, "arrived with a wrong byte"),
                    (arrived.disordered, "arrived out of order"),
                ] {
                    for _ in 0..count {
                        tally.failure(what);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Waits until `sent` one-way calls have arrived, or none has arrived for two seconds.
fn wait_for(sent: u64, args: &Args, client: u32, thread: &mut Thread<'_>) -> Result<Posts, Stop> {
    let mut last = (0, Instant::now());
    loop {
        let posts = posts(thread, args.seed, client)?;
        if posts.arrived > last.0 {
            last = (posts.arrived, Instant::now());
        }
        if posts.arrived >= sent || last.1.elapsed() > Duration::from_secs(2) {
            return Ok(posts);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn posts(thread: &mut Thread<'_>, seed: u64, client: u32) -> Result<Posts, Stop> {
    let mut parcel = Parcel::new();
    let header = Header { seed, client, verdict: 0, sequence: 0 };
    header.message(Direction::Request, 0, parcel.data_mut());
    let reply = thread.call(&Call::to(0).code(QUERY).parcel(&parcel))?;
    let device = thread.device().path().display();
    let Reply::Data(contents) = reply else {
        return Err(Stop(format!("{device}: the context manager does not answer: {reply:?}")));
    };
    let word = |index: usize| {
        let bytes = contents.data.get(index * 8..index * 8 + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    match (word(0), word(1), word(2)) {
        (Some(arrived), Some(wrong), Some(disordered)) => {
            Ok(Posts { arrived, wrong, disordered, next: 0 })
        }
        _ => Err(Stop(format!("{device}: the context manager's answer makes no sense"))),
    }
}
