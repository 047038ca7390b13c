//! What clients have in common: one open of the device, a conversation for each thread, and what
//! becomes of an answer.

use crate::chance::Chance;
use crate::handles::{Handles, Notice};
use crate::message::{Direction, Header, right_reply};
use crate::tally::{Event, Operation, Outcome, Tally};
use fakebinder_client::{
    Call, Command, Contents, Device, Errno, Error, Object, Parcel, Reply, Return, Thread, uapi,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Mutex;

/// What faults are injected with: nothing else in the daemon gives it.
pub const FAULT: Errno = Errno::ENFILE;

/// The exit status of a client that met a fault after which it does not know where it is.
pub const LEFT: i32 = 4;
/// The exit status of a client that met what must not be.
pub const FAILED: i32 = 5;

/// Threads of one process that call, at most.
pub const THREADS: u32 = 16;

const SLOTS: usize = 32;
/// A node of each process that all others may know, and the first of those that come and go.
pub const NODE: u64 = 0x1000;

/// What is asked of a server: the low byte of the code. The rest is the size of the reply's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Request {
    /// A reply.
    Call = 1,
    /// One-way; those of a caller come in order.
    Post = 2,
    /// A call back to the caller's node, which comes along; `extra` is how deep that goes.
    Nest = 3,
    /// The first object, the caller's own node, back to the caller.
    Objects = 4,
    /// A descriptor for the one that comes along; each file holds its owner's number.
    Descriptor = 5,
    /// One-way, to the manager: a node for others. `extra` is 1 when its owner does not read.
    Put = 6,
    /// To the manager: nodes of others. Bit N of `extra` is set when the owner of the N-th does not
    /// read.
    Get = 7,
}

impl Request {
    pub fn of(code: u32) -> Option<Request> {
        use Request::*;
        let all = [Call, Post, Nest, Objects, Descriptor, Put, Get];
        all.into_iter().find(|request| *request as u32 == code & 0xff)
    }
}

/// What a client is told at its start.
#[derive(Debug, Clone)]
pub struct Orders {
    pub device: PathBuf,
    /// No two processes of a run have the same one.
    pub number: u32,
    /// Of the run.
    pub seed: u64,
    /// For tests: answers of this process are wrong once in a while.
    pub plant_wrong_answers: bool,
}

pub struct Client {
    pub device: Device,
    pub orders: Orders,
    pub tally: &'static Tally,
    pub handles: Handles,
    /// The last one-way call of each caller.
    pub order: Mutex<HashMap<u32, u64>>,
    /// A file with the number of this process in it.
    pub file: File,
}

/// What a thread has of its own.
pub struct Own {
    pub chance: Chance,
    pub caller: u32,
    pub sequence: u64,
    /// References to be released when the reply that names them has been written.
    pub due: Vec<u32>,
}

/// A message to be sent.
pub struct Message<'m> {
    pub operation: Operation,
    pub handle: u32,
    pub request: Request,
    pub is_oneway: bool,
    pub size: u32,
    pub reply_size: u32,
    pub extra: u32,
    pub objects: &'m [Object],
}

/// How it ended; with the reply if there was one, and it was right.
pub struct Answer {
    pub outcome: Outcome,
    pub reply: Option<(Header, Contents)>,
}

impl Client {
    /// Opens the device. A client that cannot because of a fault leaves.
    pub fn open(orders: Orders, tally: &'static Tally, mapping: usize) -> Client {
        let mut device = Device::open(&orders.device).unwrap_or_else(|e| stop(tally, &e));
        let ready = device.mmap(mapping).and_then(|()| device.accept_files(SLOTS));
        ready.unwrap_or_else(|error| stop(tally, &error));
        let file = tagged_file(orders.number).unwrap_or_else(|error| {
            complain(tally, &format!("cannot make a file to send: {error}"));
            std::process::exit(FAILED)
        });
        let order = Mutex::default();
        Client { device, orders, tally, handles: Handles::default(), order, file }
    }

    /// What the thread with this number, below [`THREADS`], has of its own.
    pub fn own(&self, thread: u32) -> Own {
        let caller = self.orders.number * THREADS + thread;
        let seed = self.orders.seed ^ u64::from(caller) << 20;
        Own { chance: Chance::new(seed), caller, sequence: 0, due: Vec::new() }
    }

    /// A failed check.
    pub fn complain(&self, text: &str) {
        complain(self.tally, &format!("process {}: {text}", self.orders.number));
    }

    /// Goes on where an operation succeeded; ends the process where it did not.
    pub fn expect<T>(&self, result: Result<T, Error>) -> T {
        result.unwrap_or_else(|error| stop(self.tally, &error))
    }

    /// Sends a message and waits for its end, serving what comes back meanwhile.
    pub fn exchange(
        &self,
        thread: &mut Thread<'_>,
        own: &mut Own,
        message: &Message<'_>,
    ) -> Answer {
        own.sequence += 1;
        let request = Header {
            caller: own.caller,
            verdict: 0,
            extra: message.extra,
            size: message.size,
            sequence: own.sequence,
            seed: self.orders.seed,
        };
        let mut parcel = Parcel::new();
        request.write(Direction::Request, parcel.data_mut());
        message.objects.iter().for_each(|object| _ = parcel.object(*object));
        let mut call = Call::to(message.handle)
            .code(message.request as u32 | message.reply_size << 8)
            .flags(uapi::TF_ACCEPT_FDS)
            .parcel(&parcel);
        if message.is_oneway {
            call = call.oneway();
        }
        let ended = thread.call_serving(&call, &mut |thread, transaction, contents, reply| {
            self.serve(thread, own, transaction, contents, reply);
        });
        own.release_due(thread);
        let mut answer = Answer { outcome: Outcome::Done, reply: None };
        match self.expect(ended) {
            Reply::Data(contents) => {
                match right_reply(&request, message.reply_size, &contents.data) {
                    Ok(header) => answer.reply = Some((header, contents)),
                    Err(wrong) => {
                        self.complain(&format!("{}: {wrong}", message.operation.name()));
                        answer.outcome = Outcome::Wrong;
                    }
                }
            }
            Reply::Sent => {}
            Reply::SentSpamSuspect => self.tally.happened(Event::Spam),
            Reply::SentToFrozen => self.tally.happened(Event::PendingFrozen),
            Reply::Dead => answer.outcome = Outcome::Dead,
            Reply::Frozen => answer.outcome = Outcome::Frozen,
            Reply::Failed => answer.outcome = self.failed(message.operation),
        }
        answer
    }

    /// Why the last message of this thread failed.
    fn failed(&self, operation: Operation) -> Outcome {
        let error = self.expect(self.device.extended_error());
        if error.command == uapi::BR_OK {
            return Outcome::NotRead;
        }
        match Errno::from_raw(-error.param) {
            FAULT => {
                self.tally.happened(Event::FaultsMet);
                Outcome::Fault
            }
            Errno::ENOMEM | Errno::EMFILE => Outcome::NoMemory,
            Errno::ENOSPC => Outcome::NoRoom,
            other => {
                let text = format!("{} failed with {other:?}: {error:?}", operation.name());
                self.complain(&text);
                Outcome::Wrong
            }
        }
    }

    /// What the manager or a worker reads that is no call.
    pub fn take_note(&self, thread: &mut Thread<'_>, read: &Return, dead: impl FnOnce(u64)) {
        match *read {
            Return::DeadBinder(cookie) => {
                self.tally.happened(Event::DeathsTold);
                match self.handles.told(cookie) {
                    Notice::First => {}
                    Notice::Again => self.complain(&format!("death {cookie} was told twice")),
                    Notice::NeverAskedFor => {
                        self.complain(&format!("death {cookie} was told, and not asked for"));
                    }
                }
                thread.queue(Command::DeadBinderDone(cookie));
                dead(cookie);
            }
            Return::FrozenBinder { cookie, is_frozen } => {
                let event = if is_frozen == 0 { Event::ThawsTold } else { Event::FreezesTold };
                self.tally.happened(event);
                if !self.handles.has_asked(cookie) {
                    self.complain(&format!("freeze {cookie} was told, and not asked for"));
                }
                thread.queue(Command::FreezeNotificationDone(cookie));
            }
            Return::Unknown(number) => self.complain(&format!("read {number:#x}: no return")),
            Return::Truncated => self.complain("a return was cut short"),
            _ => {}
        }
    }

    /// This process's file, to be sent.
    pub fn descriptor(&self) -> Object {
        Object::Fd { fd: self.file.as_raw_fd() as u32, cookie: 0 }
    }

    /// Whether a descriptor that came is the file of that process. It is closed.
    pub fn is_file_of(&self, fd: u32, number: u32) -> Result<(), String> {
        let read = std::fs::read(format!("/proc/self/fd/{fd}"));
        let closed = nix::unistd::close(fd as i32);
        match (read, closed) {
            (Ok(bytes), Ok(())) if bytes == number.to_ne_bytes() => Ok(()),
            (read, closed) => Err(format!(
                "descriptor {fd} is not the file of process {number}: {read:?}, closed: {closed:?}"
            )),
        }
    }
}

impl Own {
    pub fn release_due(&mut self, thread: &mut Thread<'_>) {
        self.due.drain(..).for_each(|handle| thread.queue(Command::Release(handle)));
    }
}

/// Says that a check failed. The line is written at once, so that lines of many processes do not
/// mix.
pub fn complain(tally: &Tally, text: &str) {
    tally.happened(Event::FailedChecks);
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Ends this process because of an error of the device.
fn stop(tally: &Tally, error: &Error) -> ! {
    if matches!(error.errno(), FAULT | Errno::ENOMEM | Errno::EMFILE) {
        if error.errno() == FAULT {
            tally.happened(Event::FaultsMet);
        }
        tally.happened(Event::Left);
        std::process::exit(LEFT)
    }
    complain(tally, &error.explain());
    std::process::exit(FAILED)
}

fn tagged_file(number: u32) -> std::io::Result<File> {
    let mut file = File::from(memfd_create(c"fb-stress", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&number.to_ne_bytes())?;
    Ok(file)
}
