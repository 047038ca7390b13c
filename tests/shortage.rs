//! What the daemon runs out of, or cannot do, is never the death of a client: each operation that
//! may fail is made to fail, while two processes that live call each other.
//!
//! Needs root and /dev/fuse; where they are missing each test says so and does nothing.

mod common;

use common::forked::Forked;
use common::{Daemon, Door, alone, in_time, skip};
use fakebinder::probe::Verb;
use fakebinder_client::{Call, Command, Device, Errno, Return, Returns, uapi};
use std::path::Path;

fn possible() -> bool {
    let possible = nix::unistd::geteuid().is_root() && Door::Fuse.is_here();
    if !possible {
        skip("it takes root and /dev/fuse");
    }
    possible
}

const CALLS: usize = 200;

/// Opens the device however often that fails; only with the errors that are injected.
fn open(path: &Path, errno: Errno, faults: &mut usize) -> Device {
    loop {
        match Device::open(path) {
            Ok(mut device) => match device.mmap(1 << 20) {
                Ok(()) => return device,
                Err(error) => assert_eq!(error.errno(), errno, "mmap"),
            },
            Err(error) => assert_eq!(error.errno(), errno, "open"),
        }
        *faults += 1;
    }
}

/// A thread that goes on reading whatever it is refused.
struct Stubborn<'a> {
    device: &'a Device,
    unwritten: Vec<u8>,
    errno: Errno,
    faults: usize,
}

impl Stubborn<'_> {
    fn queue(&mut self, command: Command<'_>) {
        command.encode(&mut self.unwritten);
    }

    fn read(&mut self) -> Vec<Return> {
        let mut read = [0; 512];
        let transfer = self.device.transfer(&self.unwritten, &mut read);
        self.unwritten.drain(..transfer.write_consumed);
        if let Err(error) = transfer.result {
            assert_eq!(error.errno(), self.errno, "BINDER_WRITE_READ");
            self.faults += 1;
        }
        Returns::new(&read[..transfer.read_consumed]).collect()
    }

    /// One call to the context manager, to its end.
    fn call(&mut self, data: &[u8]) {
        // The data must be there for as long as the command is not taken.
        self.queue(Command::Transaction(Call::to(0).data(data)));
        loop {
            for read in self.read() {
                match read {
                    Return::Reply(reply) => {
                        self.queue(Command::FreeBuffer(reply.buffer));
                        return;
                    }
                    Return::FailedReply => {
                        let error = self.device.extended_error().expect("no memory is copied");
                        let told = (error.command, error.param);
                        assert_eq!(told, (uapi::BR_FAILED_REPLY, -(self.errno as i32)));
                        self.faults += 1;
                        return;
                    }
                    Return::DeadReply | Return::DeadBinder { .. } => {
                        panic!("{read:?}, and the server lives")
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A context manager that answers every call with as many bytes.
fn server(path: &Path, errno: Errno) -> Forked {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let path = path.to_owned();
    let server = Forked::start(move || {
        let device = open(&path, errno, &mut 0);
        device.set_context_manager().unwrap();
        std::io::Write::write_all(&mut &theirs, b"!").unwrap();
        let mut thread = Stubborn { device: &device, unwritten: Vec::new(), errno, faults: 0 };
        thread.queue(Command::EnterLooper);
        let answer = vec![7; 100_000];
        loop {
            for read in thread.read() {
                if let Return::Transaction(call) = read {
                    thread.queue(Command::FreeBuffer(call.buffer));
                    let size = call.data_size as usize;
                    thread.queue(Command::Reply(Call::reply().data(&answer[..size])));
                }
            }
        }
    });
    std::io::Read::read_exact(&mut ours, &mut [0]).expect("the server comes up");
    server
}

/// Calls while a fifth of an operation's runs fail; how many faults the client met.
fn faults_under(inject: &str, errno: Errno) -> usize {
    let daemon = Daemon::start_with(&["--inject", inject], None);
    let server = server(&daemon.fuse(), errno);
    let path = daemon.fuse();
    let faults = in_time(inject, move || {
        let mut faults = 0;
        let device = open(&path, errno, &mut faults);
        let mut thread = Stubborn { device: &device, unwritten: Vec::new(), errno, faults };
        thread.queue(Command::Acquire(0));
        thread.queue(Command::RequestDeathNotification { handle: 0, cookie: 1 });
        let data = vec![1; 100_000];
        for number in 0..CALLS {
            // Pages that are there already need not be made.
            if number % 5 == 0 {
                let _ = device.daemon_reclaim();
            }
            thread.call(&data[..number * 500]);
        }
        let mut opening = 0;
        for _ in 0..20 {
            open(&path, errno, &mut opening);
        }
        thread.faults + opening
    });
    drop(server);
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    faults
}

#[test]
fn no_injected_fault_makes_a_wrong_death() {
    if !possible() {
        return;
    }
    let _alone = alone();
    for (name, verb) in Verb::ALL {
        for errno in ["EMFILE", "ENOMEM"] {
            let number = if errno == "EMFILE" { Errno::EMFILE } else { Errno::ENOMEM };
            // One by which the first opens, which look whether the daemon serves, succeed.
            let seed = if verb == Verb::Descriptor { 5 } else { 1 };
            let inject = format!("{name}:share=0.2:errno={errno},seed={seed}");
            let faults = faults_under(&inject, number);
            println!("{name} {errno}: {faults} faults");
            let met = match verb {
                Verb::AllocPage
                | Verb::InsertPage
                | Verb::VmaLookup
                | Verb::MmGet
                | Verb::Descriptor
                | Verb::Mmap
                | Verb::ReadMemory
                | Verb::Record => faults > 0,
                // These are tried again, the client does not notice them, or they do not happen
                // here.
                Verb::Zap
                | Verb::WriteMemory
                | Verb::Poll
                | Verb::Send
                | Verb::Receive
                | Verb::Reply
                | Verb::Thread => faults == 0,
            };
            assert!(met, "{name} {errno}: {faults} faults");
        }
    }
}
