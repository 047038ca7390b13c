//! How work waits for a place and is carried from the outbox, model-checked: the code of
//! `binder::copies` and `binder::outbox`, run through every interleaving of its locks and atomics
//! with at most [`PREEMPTIONS`] preemptions.
//!
//! `make models`.
#![cfg(loom)]

use fakebinder::binder::Carriers;
use fakebinder::binder::copies::{Allowance, Copies, Subject, Turn, Work};
use fakebinder::binder::outbox::Outbox;
use loom::model::Builder;
use loom::thread;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// How often a thread may be interrupted where it could have gone on.
const PREEMPTIONS: usize = 3;

const RECEIVER: Subject = Subject::Process(1);

/// Keeps what is to be carried until the scene has somebody carry it.
#[derive(Default)]
struct Later(Mutex<Vec<Work>>);

impl Carriers for Later {
    fn carry(&self, work: Work) {
        self.0.lock().unwrap().push(work);
    }

    fn watch(&self) {}

    fn held_up(&self) {}
}

impl Later {
    fn carry_all(&self) {
        loop {
            let Some(work) = self.0.lock().unwrap().pop() else { return };
            work();
        }
    }
}

fn check(scene: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(scene);
}

/// What became of the work of a scene.
#[derive(Default)]
struct Ends {
    begun: AtomicUsize,
    given_up: AtomicUsize,
}

impl Ends {
    fn sum(&self) -> usize {
        self.begun.load(SeqCst) + self.given_up.load(SeqCst)
    }
}

/// Touches a client's memory, at once or when its turn comes.
fn touch(copies: &Arc<Copies>, subject: Subject, ends: &Arc<Ends>) {
    match copies.enter() {
        Some(_place) => _ = ends.begun.fetch_add(1, SeqCst),
        None => {
            let ends = ends.clone();
            copies.wait(subject, move |turn| {
                let end = match &turn {
                    Turn::Begin(_) => &ends.begun,
                    Turn::GivenUp => &ends.given_up,
                };
                end.fetch_add(1, SeqCst);
            });
        }
    }
}

/// Two clients of a process with one place: whoever finds none gets it when it is given back.
#[test]
fn nobody_waits_for_a_place_that_is_free() {
    check(|| {
        let later = Arc::new(Later::default());
        let process = Allowance::new(1, None);
        let ends = Arc::new(Ends::default());
        let clients = [(); 2].map(|()| Copies::new(1, process.clone(), later.clone()));
        let threads = clients.clone().map(|client| {
            let ends = ends.clone();
            thread::spawn(move || touch(&client, Subject::Other, &ends))
        });
        for thread in threads {
            thread.join().unwrap();
        }
        later.carry_all();
        assert_eq!(ends.begun.load(SeqCst), 2, "some work still waits for a place");
        assert!(clients.iter().all(|client| client.waiting() == 0));
        assert!(clients[0].enter().is_some(), "a place was lost");
    });
}

/// Two senders have something for a receiver that is held up in its own memory. It is released
/// while they deliver: each delivery has one end, whether its turn had come or not.
#[test]
fn each_delivery_to_a_receiver_that_stalls_ends_once() {
    check(|| {
        let later = Arc::new(Later::default());
        let receiver = Copies::new(1, Allowance::new(usize::MAX, None), later.clone());
        let ends = Arc::new(Ends::default());
        let outbox = Arc::new(Outbox::new());
        let stalled = receiver.enter().unwrap();
        let senders = [(); 2].map(|()| {
            let (outbox, receiver, ends) = (outbox.clone(), receiver.clone(), ends.clone());
            thread::spawn(move || {
                outbox.post(());
                while outbox.take().is_some() {
                    touch(&receiver, RECEIVER, &ends);
                }
            })
        });
        receiver.give_up(RECEIVER);
        drop(stalled);
        for sender in senders {
            sender.join().unwrap();
        }
        later.carry_all();
        assert_eq!(ends.sum(), 2, "a delivery has no end, or two");
        assert!(outbox.take().is_none() && outbox.progress().is_none());
        assert!(receiver.enter().is_some(), "a place was lost");
    });
}

/// A signal comes for an ioctl that waits for a place, or does not wait any more.
#[test]
fn an_ioctl_that_waits_begins_or_is_interrupted() {
    check(|| {
        let later = Arc::new(Later::default());
        let copies = Copies::new(1, Allowance::new(1, None), later.clone());
        let ends = Arc::new(Ends::default());
        let place = copies.enter().unwrap();
        let caller = {
            let (copies, ends) = (copies.clone(), ends.clone());
            thread::spawn(move || touch(&copies, Subject::Ioctl(7), &ends))
        };
        let signal = {
            let copies = copies.clone();
            thread::spawn(move || copies.give_up(Subject::Ioctl(7)))
        };
        drop(place);
        caller.join().unwrap();
        let gave_up = signal.join().unwrap();
        later.carry_all();
        assert_eq!(ends.sum(), 1);
        assert_eq!(ends.given_up.load(SeqCst) == 1, gave_up);
    });
}
