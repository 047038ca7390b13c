//! The service: registers a board of notes, and serves it until it is asked to leave.

use board::{BnBoard, DEVICE, IBoard, ISubscriber, NAME};
use clap::Parser;
use rsbinder::{
    BinderResult, DeathRecipient, Interface, ParcelFileDescriptor, ProcessState, Status,
    StatusCode, Strong, WIBinder, hub,
};
use std::collections::HashSet;
use std::error::Error;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

#[derive(Parser)]
#[command(about = "Registers a board of notes, and serves it until it is asked to leave")]
struct Options {
    /// The binder device
    #[arg(long, value_name = "PATH", default_value = DEVICE)]
    device: String,
}

struct Subscriber {
    name: String,
    object: Strong<dyn ISubscriber>,
}

/// Whoever calls out with this lock held may find the death of a subscriber on the same thread.
#[derive(Default)]
struct Subscribers(Mutex<Vec<Subscriber>>);

impl DeathRecipient for Subscribers {
    fn binder_died(&self, who: &WIBinder) {
        let mut here = self.0.lock().unwrap();
        let gone: Vec<_> = here.extract_if(.., |it| *who == it.object.as_binder()).collect();
        drop(here);
        gone.iter().for_each(|subscriber| println!("{} has died", subscriber.name));
    }
}

#[derive(Default)]
struct Board {
    notes: AtomicI32,
    subscribers: Arc<Subscribers>,
    echoes: AtomicU64,
    /// Those of this process that have answered `echo`.
    threads: Mutex<HashSet<ThreadId>>,
}

impl Interface for Board {
    fn dump(&self, writer: &mut dyn Write, _arguments: &[String]) -> rsbinder::Result<()> {
        let names = self.subscribers().unwrap_or_default();
        let threads = self.threads.lock().unwrap().len();
        writeln!(writer, "notes: {}", self.notes.load(Relaxed))?;
        writeln!(writer, "subscribers: {}", names.join(", "))?;
        writeln!(writer, "echoes: {} by {threads} threads", self.echoes.load(Relaxed))?;
        Ok(())
    }
}

impl IBoard for Board {
    fn greet(&self, name: &str) -> BinderResult<String> {
        Ok(format!("hello, {name}"))
    }

    fn post(&self, note: &str) -> BinderResult<()> {
        self.notes.fetch_add(1, Relaxed);
        let here = self.subscribers.0.lock().unwrap();
        let objects: Vec<_> = here.iter().map(|subscriber| subscriber.object.clone()).collect();
        drop(here);
        for object in objects {
            // One that is dead is told nothing more; that it is comes as a death notification.
            let _ = object.posted(note);
        }
        Ok(())
    }

    fn notes(&self) -> BinderResult<i32> {
        Ok(self.notes.load(Relaxed))
    }

    fn subscribe(&self, object: &Strong<dyn ISubscriber>) -> BinderResult<()> {
        // A call back, to who waits for the answer to this one.
        let name = object.name()?;
        object.link_to_death_arc(&self.subscribers)?;
        self.subscribers.0.lock().unwrap().push(Subscriber { name, object: object.clone() });
        Ok(())
    }

    fn subscribers(&self) -> BinderResult<Vec<String>> {
        let here = self.subscribers.0.lock().unwrap();
        Ok(here.iter().map(|subscriber| subscriber.name.clone()).collect())
    }

    fn capitals(&self, file: &ParcelFileDescriptor) -> BinderResult<ParcelFileDescriptor> {
        let failed = |error: std::io::Error| Status::from(StatusCode::from(error));
        let mut text = String::new();
        let mut file = file;
        file.read_to_string(&mut text).map_err(failed)?;
        let (read_end, mut write_end) = ParcelFileDescriptor::pipe()?;
        // The pipe holds what this example sends: nobody has to read yet.
        write_end.write_all(text.to_uppercase().as_bytes()).map_err(failed)?;
        Ok(read_end)
    }

    fn echo(&self, data: &[u8]) -> BinderResult<Vec<u8>> {
        self.echoes.fetch_add(1, Relaxed);
        self.threads.lock().unwrap().insert(std::thread::current().id());
        Ok(data.to_vec())
    }

    fn leave(&self) -> BinderResult<()> {
        println!("leaving");
        std::process::exit(0)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    board::start(&options.device)?;
    hub::add_service(NAME, BnBoard::new_binder(Board::default()))?;
    println!("ready");
    ProcessState::join_thread_pool()?;
    Ok(())
}
