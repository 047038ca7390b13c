//! What the driver does, event by event, for whoever has asked (`fakebinder trace` and `fakebinder
//! reports`, by [`uapi::FAKEBINDER_EVENTS`]).
//!
//! Nobody asks, mostly: then an event costs a look at one word. A listener has room for a fixed
//! number of events, and those that find no room are counted and lost: the driver waits for nobody.
#![expect(
    clippy::disallowed_types,
    reason = "a leaf without a rank, which any lock may be held over"
)]

use crate::Errno;
use crate::uapi::{self, fakebinder_event};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Listeners at a time. Each makes every event dearer for all clients.
const LISTENERS: usize = 4;
/// Events that a listener has room for.
const ROOM: usize = 1 << 17;

/// The bytes that a listener takes.
pub const LISTENER_BYTES: usize = ROOM * size_of::<fakebinder_event>();

static WANTED: AtomicU32 = AtomicU32::new(0);
static QUEUES: Mutex<Vec<Queue>> = Mutex::new(Vec::new());
static LAST_LISTENER: AtomicU64 = AtomicU64::new(0);

/// What a listener has not taken yet.
struct Queue {
    listener: u64,
    wanted: u32,
    events: VecDeque<fakebinder_event>,
    lost: u64,
}

/// Somebody who wants events, from the making of this value until it is dropped.
#[derive(Debug)]
pub struct Listener {
    number: u64,
    wanted: u32,
}

impl Listener {
    /// Begins to listen. EINVAL: an unknown kind is wanted, or none; EBUSY: enough listen already.
    pub fn new(wanted: u32) -> Result<Listener, Errno> {
        if wanted == 0 || wanted & !uapi::FAKEBINDER_EVENTS_ALL != 0 {
            return Err(Errno::EINVAL);
        }
        let number = LAST_LISTENER.fetch_add(1, Ordering::Relaxed) + 1;
        // The room is made before the lock is taken, under which all clients wait.
        let events = VecDeque::with_capacity(ROOM);
        let mut queues = QUEUES.lock();
        if queues.len() >= LISTENERS {
            return Err(Errno::EBUSY);
        }
        queues.push(Queue { listener: number, wanted, events, lost: 0 });
        note_wanted(&queues);
        Ok(Listener { number, wanted })
    }

    /// The kinds of events that are wanted.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Takes the earliest events, as many as there is room for in `events`; returns how many, and
    /// how many were lost since the last time.
    pub fn take(&self, events: &mut [fakebinder_event]) -> (usize, u64) {
        let mut queues = QUEUES.lock();
        let Some(queue) = queues.iter_mut().find(|queue| queue.listener == self.number) else {
            return (0, 0);
        };
        let count = events.len().min(queue.events.len());
        for (place, event) in events.iter_mut().zip(queue.events.drain(..count)) {
            *place = event;
        }
        (count, std::mem::take(&mut queue.lost))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut queues = QUEUES.lock();
        let place = queues.iter().position(|queue| queue.listener == self.number);
        let gone = place.map(|place| queues.swap_remove(place));
        note_wanted(&queues);
        drop((queues, gone));
    }
}

fn note_wanted(queues: &[Queue]) {
    let wanted = queues.iter().fold(0, |wanted, queue| wanted | queue.wanted);
    WANTED.store(wanted, Ordering::Relaxed);
}

/// Tells of an event of that kind; `event` is made where somebody wants to know. Its kind and its
/// time are set here.
#[inline]
pub fn tell(kind: u32, event: impl FnOnce() -> fakebinder_event) {
    if WANTED.load(Ordering::Relaxed) & kind != 0 {
        queue(kind, event());
    }
}

/// Tells of a page of a mapping, by its number.
pub fn tell_page(kind: u32, pid: i32, page: usize) {
    tell(kind, || fakebinder_event { pid, size: page as u64, ..Default::default() });
}

#[cold]
fn queue(kind: u32, event: fakebinder_event) {
    let mut queues = QUEUES.lock();
    // Under the lock: times do not go back within a queue.
    let event = fakebinder_event { at: now(), kind, ..event };
    for queue in queues.iter_mut().filter(|queue| queue.wanted & kind != 0) {
        if queue.events.len() < ROOM {
            queue.events.push_back(event);
        } else {
            queue.lost += 1;
        }
    }
}

/// Nanoseconds of CLOCK_BOOTTIME.
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The listeners of a process share what there is room for, so this is one test.
    #[test]
    fn a_listener_gets_what_it_wants_in_order_and_counts_what_is_lost() {
        let event = |number| fakebinder_event { number, ..Default::default() };
        let told = |number| tell(uapi::FAKEBINDER_EVENT_COMMAND, || event(number));
        told(1);
        let listener = Listener::new(uapi::FAKEBINDER_EVENT_COMMAND).unwrap();
        let other = Listener::new(uapi::FAKEBINDER_EVENT_PAGES).unwrap();
        for number in 0..ROOM as u32 + 5 {
            told(number);
        }
        let mut some = [fakebinder_event::default(); 7];
        assert_eq!(other.take(&mut some), (0, 0));
        assert_eq!(listener.take(&mut some), (7, 5));
        assert!(some.iter().map(|event| event.number).eq(0..7));
        assert!(some.is_sorted_by_key(|event| event.at) && some[0].at > 0);
        told(99);
        let mut all = vec![fakebinder_event::default(); 2 * ROOM];
        assert_eq!(listener.take(&mut all), (ROOM - 6, 0));
        assert_eq!(all[ROOM - 7].number, 99);
        drop(listener);
        tell(uapi::FAKEBINDER_EVENT_COMMAND, || unreachable!("nobody wants it"));
        let more: Vec<_> = (1..LISTENERS).map(|_| Listener::new(1).unwrap()).collect();
        assert_eq!(Listener::new(1).unwrap_err(), Errno::EBUSY);
        drop((more, other));
        assert_eq!(Listener::new(0).unwrap_err(), Errno::EINVAL);
        assert_eq!(Listener::new(1 << 31).unwrap_err(), Errno::EINVAL);
    }
}
