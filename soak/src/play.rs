//! The calling side: what a worker does next is chance's, what must hold for each thing that it
//! does is not.

use crate::client::{Answer, Client, Message, NODE, Own, Request, THREADS};
use crate::handles::write_all;
use crate::tally::{Operation, Outcome};
use fakebinder_client::{Command, Contents, Object, Return, Thread};
use nix::poll::PollFlags;
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// Handles that a thread keeps.
const KEEPS: usize = 6;
/// The largest body.
const LARGE: u32 = 24 << 10;
/// A death that was asked for is told in this time, however busy the machine is.
const DEATH_TOLD_IN: Duration = Duration::from_secs(10);
/// A thread that did nothing for so long was stopped, or waited for somebody who was.
const STOPPED: Duration = Duration::from_secs(1);

/// A handle of another client's node, on which this thread has one strong reference.
#[derive(Debug, Clone, Copy)]
struct Peer {
    handle: u32,
    reads: bool,
}

/// A thread that makes calls of its own.
struct Player<'c> {
    client: &'c Client,
    thread: Thread<'c>,
    own: Own,
    peers: Vec<Peer>,
    /// Peers that are dead by what a call has said, and whose death has not been told yet.
    mourned: Vec<(Peer, Instant)>,
    last: Instant,
}

impl Client {
    /// Makes calls until it is killed.
    pub fn play(&self, number: u32) -> Infallible {
        let mut player = Player {
            client: self,
            thread: Thread::new(&self.device),
            own: self.own(number),
            peers: Vec::new(),
            mourned: Vec::new(),
            last: Instant::now(),
        };
        player.register();
        loop {
            player.act();
            player.mourn();
            std::thread::sleep(Duration::from_micros(player.own.chance.below(2_000)));
        }
    }
}

impl Player<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        self.own.chance.below(limit)
    }

    fn act(&mut self) {
        let chance = self.below(100);
        let peer = self.own.chance.some(&self.peers);
        match (chance, peer) {
            (0..6, _) | (_, None) => self.look_up(),
            (6..8, _) => self.register(),
            (8..10, Some(peer)) => self.let_go(peer),
            (10..13, Some(peer)) => self.watch_death(peer),
            (13, Some(peer)) => {
                self.done(self.client.handles.forget_death(&self.client.device, peer.handle));
            }
            (14..17, Some(peer)) => {
                self.done(self.client.handles.toggle_freeze(&self.client.device, peer.handle));
            }
            (17, Some(peer)) if peer.reads => self.short_thread(peer),
            (18, Some(peer)) if !peer.reads && self.below(20) == 0 => {
                self.plain(peer, Operation::Waiting, Request::Call);
            }
            (_, Some(peer)) if !peer.reads => {
                if self.below(4) == 0 {
                    self.plain(peer, Operation::Unread, Request::Post);
                }
            }
            (18..28, Some(peer)) => {
                let depth = self.below(4) as u32;
                let outcome = self.client.nest(&mut self.thread, &mut self.own, peer.handle, depth);
                self.ended(peer, outcome);
            }
            (28..40, Some(peer)) => self.objects(peer),
            (40..46, Some(peer)) => self.descriptor(peer),
            (46..66, Some(peer)) => self.plain(peer, Operation::OneWay, Request::Post),
            (66..70, _) => {
                let manager = Peer { handle: 0, reads: true };
                self.plain(manager, Operation::Call, Request::Call);
            }
            (_, Some(peer)) => self.plain(peer, Operation::Call, Request::Call),
        }
    }

    fn done<T>(&self, result: fakebinder_client::Result<T>) -> T {
        self.client.expect(result)
    }

    fn exchange(&mut self, message: &Message<'_>) -> Answer {
        self.client.exchange(&mut self.thread, &mut self.own, message)
    }

    /// A message without objects.
    fn plain(&mut self, peer: Peer, operation: Operation, request: Request) {
        let is_oneway = request == Request::Post;
        let size = self.own.chance.size(LARGE);
        let reply_size = if is_oneway { 0 } else { self.own.chance.size(LARGE) };
        let handle = peer.handle;
        let message = Message {
            operation,
            handle,
            request,
            is_oneway,
            size,
            reply_size,
            extra: 0,
            objects: &[],
        };
        let outcome = self.exchange(&message).outcome;
        self.count(peer, operation, outcome);
    }

    /// Small, with objects, to be answered.
    fn with_objects(
        &mut self,
        handle: u32,
        operation: Operation,
        request: Request,
        objects: &[Object],
    ) -> Answer {
        let (size, reply_size) = (self.own.chance.size(1_000), self.own.chance.size(1_000));
        let extra = 0;
        self.exchange(&Message {
            operation,
            handle,
            request,
            is_oneway: false,
            size,
            reply_size,
            extra,
            objects,
        })
    }

    fn count(&mut self, peer: Peer, operation: Operation, outcome: Outcome) {
        self.client.tally.count(operation, outcome);
        self.ended(peer, outcome);
    }

    /// A failed check on what came back.
    fn wrong(&self, operation: Operation, contents: &Contents) -> Outcome {
        let came: Vec<_> = contents.objects().collect();
        self.client.complain(&format!("{}: the reply has {came:?}", operation.name()));
        Outcome::Wrong
    }

    /// The own node that goes out comes back as what it was, whoever has had it.
    fn objects(&mut self, peer: Peer) {
        let ptr = if self.below(2) == 0 { NODE } else { NODE + 8 * self.below(200) };
        let other = self.own.chance.some(&self.peers).map_or(peer.handle, |other| other.handle);
        let objects =
            [self.client.node(ptr), Object::Handle { handle: other, cookie: 0, flags: 0 }];
        let operation = Operation::Objects;
        let answer = self.with_objects(peer.handle, operation, Request::Objects, &objects);
        let mut outcome = answer.outcome;
        if let Some((_, contents)) = answer.reply {
            let came: Vec<_> = contents.objects().collect();
            let is_right = matches!(came[..],
                [Some(Object::Binder { ptr: came, cookie, .. })] if came == ptr && cookie == ptr + 1);
            if !is_right {
                outcome = self.wrong(operation, &contents);
            }
        }
        self.count(peer, operation, outcome);
    }

    fn descriptor(&mut self, peer: Peer) {
        let operation = Operation::Descriptor;
        let file = self.client.descriptor();
        let answer = self.with_objects(peer.handle, operation, Request::Descriptor, &[file]);
        let mut outcome = answer.outcome;
        if let Some((header, contents)) = answer.reply {
            let came: Vec<_> = contents.objects().collect();
            match came[..] {
                [Some(Object::Fd { fd, .. })] => {
                    if let Err(text) = self.client.is_file_of(fd, header.extra) {
                        self.client.complain(&text);
                        outcome = Outcome::Wrong;
                    }
                }
                _ => outcome = self.wrong(operation, &contents),
            }
        }
        self.count(peer, operation, outcome);
    }

    /// Tells the manager of this client.
    fn register(&mut self) {
        let message = Message {
            operation: Operation::Registration,
            handle: 0,
            request: Request::Put,
            is_oneway: true,
            size: 16,
            reply_size: 0,
            extra: 0,
            objects: &[self.client.node(NODE)],
        };
        let outcome = self.exchange(&message).outcome;
        self.client.tally.count(Operation::Registration, outcome);
    }

    fn look_up(&mut self) {
        let operation = Operation::LookUp;
        let answer = self.with_objects(0, operation, Request::Get, &[]);
        let mut outcome = answer.outcome;
        if let Some((header, contents)) = answer.reply {
            for (index, object) in contents.objects().enumerate() {
                match object {
                    Some(Object::Handle { handle, .. }) => {
                        self.keep(Peer { handle, reads: header.extra & 1 << index == 0 });
                    }
                    // This client's own.
                    Some(Object::Binder { ptr: NODE, .. }) => {}
                    _ => outcome = self.wrong(operation, &contents),
                }
            }
        }
        self.client.tally.count(operation, outcome);
        if self.peers.is_empty() {
            // Nobody is there yet, or the manager is gone.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn keep(&mut self, peer: Peer) {
        let is_new = |known: &Peer| known.handle != peer.handle;
        if !self.peers.iter().all(is_new) || !self.mourned.iter().all(|(known, _)| is_new(known)) {
            return;
        }
        self.done(self.client.handles.keep(&self.client.device, peer.handle));
        self.peers.push(peer);
        if self.peers.len() > KEEPS {
            let index = self.below(self.peers.len() as u64) as usize;
            self.let_go(self.peers[index]);
        }
    }

    fn let_go(&mut self, peer: Peer) {
        self.peers.retain(|known| known.handle != peer.handle);
        self.done(self.client.handles.let_go(&self.client.device, peer.handle));
    }

    fn watch_death(&mut self, peer: Peer) {
        let client = self.client;
        let asked = client.handles.watch_death(&client.device, peer.handle);
        let Some(cookie) = client.expect(asked) else { return };
        // BR_ERROR, if it comes, comes at once. A thread that waits for nothing of its own may also
        // read what any thread of the process could.
        if !client.expect(client.device.poll(Some(0))).contains(PollFlags::POLLIN) {
            return;
        }
        let own = &mut self.own;
        loop {
            let read = self.thread.serve(&mut |thread, transaction, contents, reply| {
                client.serve(thread, own, transaction, contents, reply);
            });
            let read = client.expect(read);
            own.release_due(&mut self.thread);
            client.take_note(&mut self.thread, &read, |_| {});
            if read == Return::Error {
                client.handles.was_refused(cookie);
            }
            if self.thread.pending() == 0 {
                break;
            }
        }
        // What is queued now, a reply perhaps, is written with the next call: an error of it would keep
        // the driver from taking the commands that are written without a read.
    }

    /// What follows from how a call ended.
    fn ended(&mut self, peer: Peer, outcome: Outcome) {
        if outcome != Outcome::Dead || peer.handle == 0 {
            return;
        }
        self.peers.retain(|known| known.handle != peer.handle);
        if self.client.handles.awaits_death(peer.handle) {
            self.mourned.push((peer, Instant::now()));
        } else {
            self.done(self.client.handles.let_go(&self.client.device, peer.handle));
        }
    }

    /// Whoever is dead for a call is dead for those who have asked to be told.
    fn mourn(&mut self) {
        let now = Instant::now();
        if now - self.last > STOPPED {
            self.mourned.iter_mut().for_each(|(_, since)| *since = now);
        }
        self.last = now;
        let client = self.client;
        self.mourned.retain(|(peer, since)| {
            let waits = client.handles.awaits_death(peer.handle);
            if waits && now - *since < DEATH_TOLD_IN {
                return true;
            }
            if waits {
                client.complain(&format!(
                    "a call to handle {} was answered with BR_DEAD_REPLY {DEATH_TOLD_IN:?} ago, and its death \
                     was not told",
                    peer.handle
                ));
            }
            client.expect(client.handles.let_go(&client.device, peer.handle));
            false
        });
    }

    /// A thread that leaves without a word, or with one.
    fn short_thread(&mut self, peer: Peer) {
        let number = 8 + self.below(u64::from(THREADS) - 8) as u32;
        let (size, says) = (self.own.chance.size(500), self.below(2) == 0);
        let client = self.client;
        // Not only the caller's number tells its calls apart: a number is used again.
        let sequence = self.own.sequence << 32;
        let outcome = std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let mut own = client.own(number);
                own.sequence = sequence;
                let mut thread = Thread::new(&client.device);
                let operation = Operation::ShortThread;
                let outcome = client.exchange(
                    &mut thread,
                    &mut own,
                    &Message {
                        operation,
                        handle: peer.handle,
                        request: Request::Call,
                        is_oneway: false,
                        size,
                        reply_size: size,
                        extra: 0,
                        objects: &[],
                    },
                );
                // The buffer of the reply is freed with the next write.
                client.expect(thread.flush());
                if says {
                    client.expect(client.device.thread_exit());
                }
                outcome.outcome
            });
            thread.join().unwrap_or(Outcome::Wrong)
        });
        self.count(peer, Operation::ShortThread, outcome);
    }
}

impl Client {
    /// A client that registers a node, and never reads what comes.
    pub fn idle(&self) -> ! {
        let mut own = self.own(0);
        let mut thread = Thread::new(&self.device);
        let message = Message {
            operation: Operation::Registration,
            handle: 0,
            request: Request::Put,
            is_oneway: true,
            size: 16,
            reply_size: 0,
            extra: 1,
            objects: &[self.node(NODE)],
        };
        loop {
            let outcome = self.exchange(&mut thread, &mut own, &message).outcome;
            self.tally.count(Operation::Registration, outcome);
            if outcome == Outcome::Done {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // To a looper calls would be given; this thread is none.
        self.expect(write_all(&self.device, &[Command::EnterLooper]));
        loop {
            nix::unistd::pause();
        }
    }
}
