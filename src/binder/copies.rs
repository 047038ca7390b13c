//! Copies to and from a client's memory, and the cap on copies that stall.
//!
//! A client's memory may lie behind a userfaultfd, or on a file system of its own: then a copy
//! takes as long as the client likes, and holds the thread that makes it. So a thread takes a
//! [`Place`] before it touches a client's memory. An open file has a few places ([`COPIES`]); all
//! files of a process, and all processes of a user, share a larger number ([`Allowance`]). Work
//! that finds no place waits in the open file's own queue, without a thread, until a place is given
//! back. However many threads a client has, and whatever its memory does, it holds no more of the
//! daemon's threads than it has places.
//!
//! Locks: a client's `state`, then an allowance's `starved`; nothing is called under either.

use crate::lock_order::rank;
use crate::sync::modelled::Mutex;
use crate::sync::modelled::atomic::{AtomicUsize, Ordering::SeqCst, fence};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Copies of one open file that may be under way at a time: as many as a session has workers on a
/// large machine, so that a client whose memory does not stall never waits for a place.
pub const COPIES: usize = 4;

/// Something that a thread is to do.
pub type Work = Box<dyn FnOnce() + Send>;

/// Threads beside those that serve requests.
pub trait Carriers: Send + Sync {
    /// Has `work` done soon, by a thread that it may hold up.
    fn carry(&self, work: Work);

    /// Something was put into the outbox. If it still lies there after some milliseconds, because
    /// the thread that put it there is held up, a carrier is to carry it out
    /// ([`super::Binder::carry_out`]).
    fn watch(&self);

    /// The calling thread will not be back soon: another thread is to serve in its place until
    /// then. Called with no lock held, any number of times.
    fn held_up(&self);

    /// Whether requests that nobody else can take wait for the calling thread: then it must do
    /// nothing that a client's memory may hold up, and has others do that.
    fn must_not_stall(&self) -> bool {
        false
    }
}

/// Does the work at once, on the calling thread: for a driver whose clients' memory never stalls.
#[derive(Debug, Clone, Copy)]
pub struct AtOnce;

impl Carriers for AtOnce {
    fn carry(&self, work: Work) {
        work();
    }

    fn watch(&self) {}

    fn held_up(&self) {}
}

/// What a waiting piece of work is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// An ioctl of this thread that has not begun.
    Ioctl(i32),
    /// Returns for a thread of this process (its id, unique among all open files).
    Process(u64),
    /// Anything else: work that is never given up.
    Other,
}

/// What becomes of a piece of work that has waited.
pub enum Turn {
    /// The work has a place now.
    Begin(Place),
    /// The work is not wanted any more: its thread got a signal, or its process is gone.
    GivenUp,
}

type Waiting = Box<dyn FnOnce(Turn) + Send>;

/// Copies of several clients together: of all that a process has open, or of all processes of a
/// user.
pub struct Allowance {
    most: usize,
    taken: AtomicUsize,
    /// Clients whose waiting work lacks a place of this allowance.
    starved: Mutex<VecDeque<Arc<Copies>>, rank::Starved>,
    starving: AtomicUsize,
    /// A place that is taken here is taken from the parent too.
    parent: Option<Arc<Allowance>>,
}

impl Allowance {
    /// At most `most` copies on their way, and no more than `parent` has.
    pub fn new(most: usize, parent: Option<Arc<Allowance>>) -> Arc<Allowance> {
        Arc::new(Allowance {
            most,
            taken: AtomicUsize::new(0),
            starved: Mutex::new(VecDeque::new()),
            starving: AtomicUsize::new(0),
            parent,
        })
    }

    /// This allowance, its parent, and so on.
    fn all(&self) -> impl Iterator<Item = &Allowance> {
        std::iter::successors(Some(self), |allowance| allowance.parent.as_deref())
    }

    /// Takes a place from this allowance and all above it. `Err`: the allowance that has none left.
    fn take(&self) -> Result<(), &Allowance> {
        for (depth, allowance) in self.all().enumerate() {
            let more = |taken| (taken < allowance.most).then_some(taken + 1);
            if allowance.taken.fetch_update(SeqCst, SeqCst, more).is_err() {
                self.all().take(depth).for_each(Allowance::give_one_back);
                return Err(allowance);
            }
        }
        Ok(())
    }

    fn give_one_back(&self) {
        self.taken.fetch_sub(1, SeqCst);
    }

    fn give_back(&self) {
        self.all().for_each(Allowance::give_one_back);
        // Pairs with the fence in `starve`: either this thread sees the client that starves, or
        // that client's thread sees the place that was given back.
        fence(SeqCst);
    }

    fn has_room(&self) -> bool {
        self.taken.load(SeqCst) < self.most
    }

    fn starve(&self, client: &Arc<Copies>) {
        self.starved.lock().push_back(client.clone());
        self.starving.fetch_add(1, SeqCst);
        fence(SeqCst);
    }

    fn is_wanted(&self) -> bool {
        self.all().any(|allowance| allowance.starving.load(SeqCst) > 0)
    }

    /// Lets the clients that starve for these allowances try again, as long as there are places.
    fn feed(&self) {
        for allowance in self.all() {
            while allowance.starving.load(SeqCst) > 0 && allowance.has_room() {
                let Some(client) = allowance.starved.lock().pop_front() else {
                    break;
                };
                allowance.starving.fetch_sub(1, SeqCst);
                client.state.lock().starved = false;
                client.start_waiting();
            }
        }
    }
}

/// Work that waits for a place: in the order of its coming, and to be found by what it is about.
#[derive(Default)]
struct Queue {
    works: BTreeMap<u64, (Subject, Waiting)>,
    subjects: BTreeSet<(Subject, u64)>,
    last: u64,
}

impl Queue {
    fn push(&mut self, subject: Subject, work: Waiting) {
        self.last += 1;
        self.works.insert(self.last, (subject, work));
        self.subjects.insert((subject, self.last));
    }

    /// Takes the oldest work.
    fn pop(&mut self) -> Option<Waiting> {
        let (number, (subject, work)) = self.works.pop_first()?;
        self.subjects.remove(&(subject, number));
        Some(work)
    }

    /// Takes all work about a subject, oldest first.
    fn take(&mut self, subject: Subject) -> Vec<Waiting> {
        let about = self.subjects.range((subject, 0)..=(subject, u64::MAX));
        let numbers: Vec<_> = about.map(|(_, number)| *number).collect();
        let mut taken = Vec::with_capacity(numbers.len());
        for number in numbers {
            self.subjects.remove(&(subject, number));
            taken.extend(self.works.remove(&number).map(|(_, work)| work));
        }
        taken
    }
}

#[derive(Default)]
struct State {
    taken: usize,
    waiting: Queue,
    /// The client stands in the `starved` list of an allowance.
    starved: bool,
}

/// The copies of one client: an open file.
pub struct Copies {
    most: usize,
    allowance: Arc<Allowance>,
    carriers: Arc<dyn Carriers>,
    state: Mutex<State, rank::Copies>,
}

/// The right to touch a client's memory. Given back when dropped.
pub struct Place(Arc<Copies>);

impl Copies {
    /// A client that may have `most` copies on their way, and no more than its allowance has.
    pub fn new(most: usize, allowance: Arc<Allowance>, carriers: Arc<dyn Carriers>) -> Arc<Copies> {
        Arc::new(Copies { most, allowance, carriers, state: Mutex::new(State::default()) })
    }

    /// A client whose memory never stalls.
    pub fn unlimited() -> Arc<Copies> {
        Copies::new(usize::MAX, Allowance::new(usize::MAX, None), Arc::new(AtOnce))
    }

    /// A place, if there is one.
    pub fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.state.lock();
        if state.taken >= self.most || self.allowance.take().is_err() {
            return None;
        }
        state.taken += 1;
        Some(Place(self.clone()))
    }

    /// Keeps `work` until there is a place, or until it is given up.
    pub fn wait(self: &Arc<Self>, subject: Subject, work: impl FnOnce(Turn) + Send + 'static) {
        self.state.lock().waiting.push(subject, Box::new(work));
        self.start_waiting();
        self.allowance.feed();
    }

    /// Has `work` done by another thread, when there is a place.
    pub fn hand_over(self: &Arc<Self>, work: impl FnOnce() + Send + 'static) {
        let turn = |turn| {
            // Also when the turn is given up: this work has to be done.
            work();
            drop(turn);
        };
        match self.enter() {
            Some(place) => self.carriers.carry(Box::new(move || turn(Turn::Begin(place)))),
            None => self.wait(Subject::Other, turn),
        }
    }

    /// Gives up the work about `subject` that still waits; returns whether there was any.
    pub fn give_up(&self, subject: Subject) -> bool {
        let given_up = self.state.lock().waiting.take(subject);
        let some = !given_up.is_empty();
        given_up.into_iter().for_each(|work| work(Turn::GivenUp));
        some
    }

    /// How many pieces of work wait; for tests.
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.works.len()
    }

    /// Begins waiting work, as far as there are places. Every caller calls [`Allowance::feed`]
    /// next: a place may have been given back before this client stood in the list of those that
    /// starve.
    fn start_waiting(self: &Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            if state.waiting.works.is_empty() || state.taken >= self.most {
                return;
            }
            match self.allowance.take() {
                Ok(()) => {
                    let Some(work) = state.waiting.pop() else {
                        return self.allowance.give_back();
                    };
                    state.taken += 1;
                    let place = Place(self.clone());
                    drop(state);
                    self.carriers.carry(Box::new(move || work(Turn::Begin(place))));
                }
                Err(lacking) => {
                    if !std::mem::replace(&mut state.starved, true) {
                        lacking.starve(self);
                    }
                    return;
                }
            }
        }
    }

    fn leave(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.taken -= 1;
        self.allowance.give_back();
        let waits = !state.waiting.works.is_empty();
        drop(state);
        // Other clients that starve for the place given back come before this client's own work.
        if self.allowance.is_wanted() {
            self.allowance.feed();
        }
        if waits {
            self.start_waiting();
            self.allowance.feed();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave();
    }
}
