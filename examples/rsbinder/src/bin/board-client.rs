//! The client: goes through what binder has, one kind of call after the other, and says what
//! happened. It ends the service. Exit status 1 at the first thing that is not as it should be.

use board::{BnSubscriber, DEVICE, IBoard, ISubscriber, NAME, PATIENCE};
use clap::{Parser, Subcommand};
use rsbinder::{
    BinderResult, DeathRecipient, Interface, ParcelFileDescriptor, Strong, WIBinder, hub,
};
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// How many notes are posted.
const NOTES: usize = 1_000;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(about = "Calls the service in every way that binder has, and says what happened")]
struct Options {
    /// The binder device
    #[arg(long, value_name = "PATH", default_value = DEVICE)]
    device: String,
    /// How many calls the clients make in all, when the service's threads are kept busy
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    calls: usize,
    /// How many clients make them, at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..))]
    clients: u8,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What further processes of this program do.
#[derive(Subcommand)]
#[command(hide = true)]
enum Part {
    /// Subscribes, says so, and waits to be killed
    Subscribe,
    /// Makes calls, and says how many failed
    Call { count: usize },
}

/// Another process of this program; killed when it is dropped.
struct Helper(Child);

impl Helper {
    fn start(device: &str, part: &[&str]) -> Outcome<Helper> {
        let mut program = Command::new(std::env::current_exe()?);
        program.args(["--device", device]).args(part).stdout(Stdio::piped());
        Ok(Helper(program.spawn()?))
    }

    /// The next thing that it says.
    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().ok_or("it is piped")?).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tells this program what the service tells it.
struct Listener {
    asked_by: Mutex<Sender<ThreadId>>,
    notes: Mutex<Sender<String>>,
}

impl Interface for Listener {}

impl ISubscriber for Listener {
    fn name(&self) -> BinderResult<String> {
        let _ = self.asked_by.lock().unwrap().send(std::thread::current().id());
        Ok(format!("client {}", std::process::id()))
    }

    fn posted(&self, note: &str) -> BinderResult<()> {
        let _ = self.notes.lock().unwrap().send(note.to_owned());
        Ok(())
    }
}

/// Tells this program of a death.
struct Obituary(Mutex<Sender<()>>);

impl DeathRecipient for Obituary {
    fn binder_died(&self, _who: &WIBinder) {
        let _ = self.0.lock().unwrap().send(());
    }
}

struct Subscription {
    /// Which thread was asked for its name.
    asked: Receiver<ThreadId>,
    notes: Receiver<String>,
}

fn subscribe(service: &Strong<dyn IBoard>) -> Outcome<Subscription> {
    let (asked_by, asked) = channel();
    let (told, notes) = channel();
    let listener = Listener { asked_by: Mutex::new(asked_by), notes: Mutex::new(told) };
    service.subscribe(&BnSubscriber::new_binder(listener))?;
    Ok(Subscription { asked, notes })
}

fn check(good: bool, what: impl Into<String>) -> Outcome {
    if good { Ok(()) } else { Err(what.into().into()) }
}

fn wait_until(mut done: impl FnMut() -> Outcome<bool>) -> Outcome<bool> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

fn tell(kind: &str, what: &str) {
    println!("{kind:<12} {what}");
}

fn registration(service: &Strong<dyn IBoard>) -> Outcome {
    let names = hub::list_services(hub::DUMP_FLAG_PRIORITY_ALL);
    check(names.iter().any(|name| name == NAME), format!("the hub lists {names:?}"))?;
    tell("registered", &format!("the hub lists {}", names.join(", ")));
    let answer = service.greet("binder")?;
    check(answer == "hello, binder", format!("the service answers {answer:?}"))?;
    tell("call", &format!("the service answers: {answer}"));
    Ok(())
}

fn call_back(service: &Strong<dyn IBoard>) -> Outcome<Subscription> {
    let subscription = subscribe(service)?;
    let thread = subscription.asked.recv_timeout(PATIENCE)?;
    check(thread == std::thread::current().id(), "another thread than the waiting one was called")?;
    tell("call back", "before it answered, the service called the thread that waited for it");
    Ok(subscription)
}

fn one_way(service: &Strong<dyn IBoard>, subscription: &Subscription) -> Outcome {
    let began = Instant::now();
    for number in 0..NOTES {
        service.post(&format!("note {number}"))?;
    }
    let sent = began.elapsed();
    for number in 0..NOTES {
        let note = subscription.notes.recv_timeout(PATIENCE)?;
        check(note == format!("note {number}"), format!("note {number} is {note:?}"))?;
    }
    let up = service.notes()?;
    check(up == NOTES as i32, format!("{up} notes are up, of {NOTES}"))?;
    let milliseconds = sent.as_millis();
    tell("one-way", &format!("{NOTES} notes sent in {milliseconds} ms, waiting for none"));
    tell("callbacks", &format!("told of {NOTES} notes, in order"));
    Ok(())
}

fn descriptors(service: &Strong<dyn IBoard>) -> Outcome {
    let (there, mut text) = ParcelFileDescriptor::pipe()?;
    text.write_all(b"by way of a pipe")?;
    drop(text);
    let mut back = service.capitals(&there)?;
    let mut read = String::new();
    back.read_to_string(&mut read)?;
    check(read == "BY WAY OF A PIPE", format!("what comes back is {read:?}"))?;
    tell("descriptors", &format!("a pipe there, another one back: {read}"));
    Ok(())
}

/// The service learns that a subscriber has been killed.
fn death_of_a_client(service: &Strong<dyn IBoard>, device: &str) -> Outcome {
    let before = service.subscribers()?;
    let mut helper = Helper::start(device, &["subscribe"])?;
    let line = helper.line()?;
    check(line == "subscribed", format!("the other subscriber says {line:?}"))?;
    let with = service.subscribers()?;
    check(with.len() == before.len() + 1, format!("{with:?} are subscribed"))?;
    drop(helper);
    let gone = wait_until(|| Ok(service.subscribers()? == before))?;
    check(gone, "the service does not notice that a subscriber is dead")?;
    tell("death", "a subscriber was killed, and the service was told");
    Ok(())
}

/// Many clients at once, processes of their own.
fn load(device: &str, calls: usize, clients: usize) -> Outcome {
    let began = Instant::now();
    let shares = (0..clients).map(|client| calls / clients + usize::from(client < calls % clients));
    let helpers: Vec<_> = shares
        .map(|share| Helper::start(device, &["call", &share.to_string()]))
        .collect::<Outcome<_>>()?;
    let mut done = 0;
    let mut failed = 0;
    for mut helper in helpers {
        let line = helper.line()?;
        let (right, wrong) = line.split_once(' ').ok_or("a client ended before it was done")?;
        done += right.parse::<usize>()?;
        failed += wrong.parse::<usize>()?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let said = format!("{calls} calls by {clients} clients, {failed} failed, {seconds:.1} s");
    check(done == calls && failed == 0, format!("{said}; {done} right"))?;
    tell("load", &said);
    Ok(())
}

fn call(service: &Strong<dyn IBoard>, count: usize) -> (usize, usize) {
    let own = std::process::id() as usize;
    let right = (0..count).filter(|number| {
        let data = vec![(own + number) as u8; number % 300];
        service.echo(&data).is_ok_and(|answer| answer == data)
    });
    let right = right.count();
    (right, count - right)
}

fn dump(service: &Strong<dyn IBoard>, calls: usize) -> Outcome {
    let (mut read_end, write_end) = ParcelFileDescriptor::pipe()?;
    let binder = service.as_binder();
    binder.as_proxy().ok_or("the service is in another process")?.dump(write_end, &[])?;
    let mut said = String::new();
    read_end.read_to_string(&mut said)?;
    check(said.contains(&format!("echoes: {calls} by ")), format!("the dump says {said:?}"))?;
    tell("dump", &said.lines().collect::<Vec<_>>().join("; "));
    Ok(())
}

/// This client, and the hub, learn that the service has ended.
fn death_of_the_service(service: &Strong<dyn IBoard>) -> Outcome {
    let (told, death) = channel();
    let obituary = Arc::new(Obituary(Mutex::new(told)));
    service.link_to_death_arc(&obituary)?;
    service.leave()?;
    death.recv_timeout(PATIENCE)?;
    let forgotten = wait_until(|| Ok(hub::check_service(NAME).is_none()))?;
    check(forgotten, "the hub still lists the service")?;
    check(service.as_binder().ping_binder().is_err(), "the dead service answers")?;
    tell("death", "the service has ended; this client was told, and so was the hub");
    Ok(())
}

/// An error says at what.
fn step<T>(name: &str, outcome: Outcome<T>) -> Outcome<T> {
    outcome.map_err(|error| format!("{name}: {error}").into())
}

fn run(options: &Options) -> Outcome {
    let device = &options.device;
    board::start(device)?;
    let service: Strong<dyn IBoard> = hub::wait_for_interface(NAME)?;
    match options.part {
        None => {
            step("registration", registration(&service))?;
            let subscription = step("a call back", call_back(&service))?;
            step("one-way calls", one_way(&service, &subscription))?;
            step("descriptors", descriptors(&service))?;
            step("a client's death", death_of_a_client(&service, device))?;
            step("load", load(device, options.calls, options.clients.into()))?;
            step("dump", dump(&service, options.calls))?;
            step("the service's death", death_of_the_service(&service))?;
        }
        Some(Part::Subscribe) => {
            let _subscription = subscribe(&service)?;
            println!("subscribed");
            loop {
                std::thread::park();
            }
        }
        Some(Part::Call { count }) => {
            let (right, wrong) = call(&service, count);
            println!("{right} {wrong}");
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("board-client: {error}");
            ExitCode::FAILURE
        }
    }
}
