//! One thread that calls things later. It sleeps until the next of them is due.

use crate::binder;
use parking_lot::{Condvar, Mutex};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the engine's timers are made of; see [`binder::Timers`].
pub struct Timers {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    due: BinaryHeap<Entry>,
    added: u64,
    closed: bool,
}

struct Entry {
    at: Instant,
    /// Two of the same instant are called in the order in which they came.
    order: u64,
    fire: Box<dyn FnOnce() + Send>,
}

impl Timers {
    /// Starts the thread; it ends when the last handle is dropped.
    pub fn start() -> std::io::Result<TimersHandle> {
        let timers = Arc::new(Timers { queue: Mutex::default(), changed: Condvar::new() });
        let thread = timers.clone();
        std::thread::Builder::new().name("timers".into()).spawn(move || thread.run())?;
        Ok(TimersHandle { timers })
    }

    fn run(&self) {
        let mut queue = self.queue.lock();
        while !queue.closed {
            match queue.due.peek().map(|entry| entry.at) {
                None => self.changed.wait(&mut queue),
                Some(at) if at > Instant::now() => {
                    self.changed.wait_until(&mut queue, at);
                }
                Some(_) => {
                    if let Some(entry) = queue.due.pop() {
                        parking_lot::MutexGuard::unlocked(&mut queue, entry.fire);
                    }
                }
            }
        }
    }
}

/// Keeps the thread of the [`Timers`] alive.
pub struct TimersHandle {
    timers: Arc<Timers>,
}

impl Drop for TimersHandle {
    fn drop(&mut self) {
        self.timers.queue.lock().closed = true;
        self.timers.changed.notify_one();
    }
}

impl binder::Timers for TimersHandle {
    fn after(&self, delay: Duration, fire: Box<dyn FnOnce() + Send>) {
        // A delay beyond what the clock can tell is never due.
        let Some(at) = Instant::now().checked_add(delay) else { return };
        let mut queue = self.timers.queue.lock();
        queue.added += 1;
        let order = queue.added;
        let first = queue.due.peek().is_none_or(|next| at < next.at);
        queue.due.push(Entry { at, order, fire });
        drop(queue);
        if first {
            self.timers.changed.notify_one();
        }
    }
}

impl Ord for Entry {
    /// The heap's greatest is the one that is due first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binder::Timers as _;
    use std::sync::mpsc;

    #[test]
    fn the_one_due_first_fires_first_and_a_timer_may_set_another() {
        let timers = Arc::new(Timers::start().unwrap());
        let (tell, told) = mpsc::channel();
        let start = Instant::now();
        let late = tell.clone();
        let ms = Duration::from_millis;
        timers.after(ms(60), Box::new(move || late.send("late").unwrap()));
        let (soon, next, again) = (tell.clone(), tell, timers.clone());
        let chained = move || {
            soon.send("soon").unwrap();
            again.after(ms(5), Box::new(move || next.send("next").unwrap()));
        };
        timers.after(ms(10), Box::new(chained));
        let order: Vec<_> = told.iter().take(3).collect();
        assert_eq!(order, ["soon", "next", "late"]);
        assert!(start.elapsed() >= ms(60));
    }

    #[test]
    fn what_is_not_due_when_the_thread_ends_is_dropped() {
        let (tell, told) = mpsc::channel::<()>();
        let timers = Timers::start().unwrap();
        timers.after(Duration::from_secs(3600), Box::new(move || drop(tell)));
        timers.after(Duration::MAX, Box::new(|| unreachable!()));
        drop(timers);
        assert!(
            told.recv_timeout(Duration::from_secs(20))
                .is_err_and(|error| { error == mpsc::RecvTimeoutError::Disconnected })
        );
    }
}
