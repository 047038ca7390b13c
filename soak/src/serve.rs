//! The answering side: of workers, and of the manager, who knows everybody.

use crate::client::{Client, Message, NODE, Own, Request};
use crate::handles::write_all;
use crate::message::{Direction, Header, verdict};
use crate::tally::{Operation, Outcome};
use fakebinder_client::{
    Command, Contents, Errno, Object, Parcel, Return, Thread, Transaction, uapi,
};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

/// The most nodes that the manager keeps for others.
const KNOWN: usize = 48;
/// Handles in one answer of the manager.
const HANDLES: usize = 3;

/// A node that was registered.
#[derive(Debug, Clone, Copy)]
struct Entry {
    handle: u32,
    reads: bool,
    death: Option<u64>,
}

/// What the manager knows. Nobody else has anything in it.
#[derive(Default)]
pub struct Directory(Mutex<Vec<Entry>>);

impl Client {
    /// Serves one call, and fills the reply.
    pub fn serve(
        &self,
        thread: &mut Thread<'_>,
        own: &mut Own,
        transaction: &Transaction,
        contents: &Contents,
        reply: &mut Parcel,
    ) {
        let read = Header::read(Direction::Request, self.orders.seed, &contents.data);
        let request = read.unwrap_or(Header {
            caller: 0,
            verdict: verdict(&read),
            extra: 0,
            size: 0,
            sequence: 0,
            seed: self.orders.seed,
        });
        let mut answer = (0, Vec::new());
        match (read, Request::of(transaction.code)) {
            (Ok(_), Some(asked)) => {
                let objects: Vec<_> = contents.objects().collect();
                answer =
                    self.answer(thread, own, asked, &request, &objects).unwrap_or_else(|text| {
                        self.complain(&text);
                        answer
                    });
            }
            (Err(at), _) => {
                let length = contents.data.len();
                self.complain(&format!("byte {at} of {length} of a request is wrong"));
            }
            (Ok(_), None) => self.complain(&format!("nobody sends the code {}", transaction.code)),
        }
        if transaction.is_oneway() {
            return;
        }
        let (extra, objects) = answer;
        let size = transaction.code >> 8;
        let header = Header { extra, size, ..request };
        header.write(Direction::Reply, reply.data_mut());
        if self.orders.plant_wrong_answers && own.chance.one_in(8) {
            reply.data_mut()[4] ^= 0x10;
        }
        objects.into_iter().for_each(|object| _ = reply.object(object));
    }

    /// What a request asks for: the reply's `extra`, and its objects.
    fn answer(
        &self,
        thread: &mut Thread<'_>,
        own: &mut Own,
        asked: Request,
        request: &Header,
        objects: &[Option<Object>],
    ) -> Result<(u32, Vec<Object>), String> {
        match (asked, objects) {
            (Request::Call, []) => Ok((0, Vec::new())),
            (Request::Post, []) => self.in_order(request),
            (Request::Nest, [Some(Object::Handle { handle, .. })]) => {
                let nested = match request.extra {
                    0 => Outcome::Done,
                    depth => self.nest(thread, own, *handle, depth - 1),
                };
                Ok((u32::from(nested != Outcome::Done), Vec::new()))
            }
            (Request::Objects, [Some(Object::Handle { handle, .. }), Some(other)]) => {
                if let Object::Binder { ptr, cookie, .. } = *other
                    && (ptr < NODE || cookie != ptr + 1)
                {
                    return Err(format!("node {ptr:#x} with cookie {cookie:#x} is not ours"));
                }
                // The buffer that holds the reference is freed before the reply is looked at.
                self.expect(write_all(&self.device, &[Command::Acquire(*handle)]));
                own.due.push(*handle);
                Ok((0, vec![Object::Handle { handle: *handle, cookie: 0, flags: 0 }]))
            }
            (Request::Descriptor, [Some(Object::Fd { fd, .. })]) => {
                self.is_file_of(*fd, request.caller / crate::client::THREADS)?;
                Ok((self.orders.number, vec![self.descriptor()]))
            }
            (Request::Put | Request::Get, _) => Err(format!("{asked:?} came to no manager")),
            _ => Err(format!("{asked:?} came with {objects:?}")),
        }
    }

    /// One-way calls of a caller come in the order in which they were sent.
    fn in_order(&self, request: &Header) -> Result<(u32, Vec<Object>), String> {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        match order.insert(request.caller, request.sequence) {
            Some(last) if last >= request.sequence => Err(format!(
                "one-way call {} of caller {} came after its {last}",
                request.sequence, request.caller
            )),
            _ => Ok((0, Vec::new())),
        }
    }

    /// A call with which a node of this process goes, to be called back.
    pub fn nest(&self, thread: &mut Thread<'_>, own: &mut Own, handle: u32, depth: u32) -> Outcome {
        let message = Message {
            operation: Operation::Nested,
            handle,
            request: Request::Nest,
            is_oneway: false,
            size: own.chance.size(2_000),
            reply_size: own.chance.size(2_000),
            extra: depth,
            objects: &[self.node(NODE)],
        };
        let answer = self.exchange(thread, own, &message);
        let outcome = match answer.reply {
            Some((header, _)) if header.extra != 0 => Outcome::Further,
            _ => answer.outcome,
        };
        self.tally.count(Operation::Nested, outcome);
        outcome
    }

    /// A node of this process, to be sent.
    pub fn node(&self, ptr: u64) -> Object {
        Object::Binder { ptr, cookie: ptr + 1, flags: uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS }
    }

    /// A looper: serves until it is killed.
    pub fn work(&self, number: u32) -> Infallible {
        let mut own = self.own(number);
        let mut thread = Thread::new(&self.device);
        thread.queue(Command::EnterLooper);
        loop {
            let read = thread.serve(&mut |thread, transaction, contents, reply| {
                self.serve(thread, &mut own, transaction, contents, reply);
            });
            own.release_due(&mut thread);
            self.take_note(&mut thread, &self.expect(read), |_| {});
        }
    }

    // ------------------------------------------------------------ the manager

    /// Becomes the manager, when the last one is gone, and lives on threads that serve.
    pub fn manage(&self) -> ! {
        loop {
            match self.device.set_context_manager_ext(0, 0, uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS) {
                Err(error) if error.errno() == Errno::EBUSY => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                other => break self.expect(other),
            }
        }
        let directory = Directory::default();
        std::thread::scope(|scope| {
            for number in 0..3 {
                let directory = &directory;
                scope.spawn(move || self.keep_directory(number, directory));
            }
        });
        unreachable!("a thread that serves never ends")
    }

    fn keep_directory(&self, number: u32, directory: &Directory) {
        let mut own = self.own(number);
        let mut thread = Thread::new(&self.device);
        thread.queue(Command::EnterLooper);
        loop {
            let read = thread.serve(&mut |thread, transaction, contents, reply| {
                let asked = Request::of(transaction.code);
                let read = Header::read(Direction::Request, self.orders.seed, &contents.data);
                match (asked, read) {
                    (Some(Request::Put), Ok(request)) => {
                        self.register(directory, &request, contents)
                    }
                    (Some(Request::Get), Ok(request)) => {
                        let (extra, handles) = self.look_up(directory, &mut own);
                        let header = Header { extra, size: transaction.code >> 8, ..request };
                        header.write(Direction::Reply, reply.data_mut());
                        handles.into_iter().for_each(|handle| _ = reply.handle(handle));
                    }
                    _ => self.serve(thread, &mut own, transaction, contents, reply),
                }
            });
            own.release_due(&mut thread);
            let read: Return = self.expect(read);
            self.take_note(&mut thread, &read, |cookie| self.bury(directory, cookie));
        }
    }

    fn register(&self, directory: &Directory, request: &Header, contents: &Contents) {
        let Some(Some(Object::Handle { handle, .. })) = contents.objects().next() else {
            return self.complain("a registration came without a node");
        };
        let mut entries = directory.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.iter().any(|entry| entry.handle == handle) {
            return;
        }
        if entries.len() >= KNOWN {
            let oldest = entries.remove(0);
            self.expect(self.handles.let_go(&self.device, oldest.handle));
        }
        self.expect(self.handles.keep(&self.device, handle));
        // Where the driver has no room for it (BR_ERROR, at the next read), the entry stays until it
        // is the oldest.
        let death = self.expect(self.handles.watch_death(&self.device, handle));
        entries.push(Entry { handle, reads: request.extra == 0, death });
    }

    /// Some handles, each with a reference that is released after the reply, and which of them do
    /// not read.
    fn look_up(&self, directory: &Directory, own: &mut Own) -> (u32, Vec<u32>) {
        let entries = directory.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut idle, mut handles) = (0, Vec::new());
        for index in 0..HANDLES {
            let Some(entry) = own.chance.some(&entries) else { break };
            self.expect(write_all(&self.device, &[Command::Acquire(entry.handle)]));
            own.due.push(entry.handle);
            handles.push(entry.handle);
            idle |= u32::from(!entry.reads) << index;
        }
        (idle, handles)
    }

    fn bury(&self, directory: &Directory, cookie: u64) {
        let mut entries = directory.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = entries.iter().position(|entry| entry.death == Some(cookie)) {
            let entry = entries.remove(index);
            self.expect(self.handles.let_go(&self.device, entry.handle));
        }
    }
}
