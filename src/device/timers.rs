//! One thread that calls functions later. It sleeps until the next of them is due.

use crate::binder;
use crate::lock_order::rank;
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Fire = Box<dyn FnOnce() + Send>;

/// The thread, and what it waits for; see [`binder::Timers`]. The thread ends when this is dropped;
/// what is not due by then is never called.
pub struct Timers {
    shared: Arc<Shared>,
    began: Instant,
}

struct Shared {
    queue: Mutex<Queue, rank::Timers>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// The timers by the time when they are due, and by their tickets.
    due: BTreeMap<(Instant, u64), Fire>,
    by_ticket: HashMap<u64, Instant>,
    closed: bool,
}

impl Timers {
    /// Starts the one thread that waits for all timers. Fails when it cannot be started.
    pub fn start() -> std::io::Result<Timers> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new() });
        let thread = shared.clone();
        std::thread::Builder::new().name("timers".into()).spawn(move || thread.run())?;
        Ok(Timers { shared, began: Instant::now() })
    }
}

impl Shared {
    fn run(&self) {
        let mut queue = self.queue.lock();
        while !queue.closed {
            let Some((&(at, ticket), _)) = queue.due.first_key_value() else {
                self.changed.wait(&mut queue);
                continue;
            };
            if at > Instant::now() {
                self.changed.wait_until(&mut queue, at);
                continue;
            }
            queue.by_ticket.remove(&ticket);
            if let Some((_, fire)) = queue.due.pop_first() {
                MutexGuard::unlocked(&mut queue, fire);
            }
        }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

/// The ticket of [`binder::Timers::look_later`]. The engine's do not grow so far.
const LOOK: u64 = u64::MAX;

impl binder::Timers for Timers {
    fn look_later(&self, look: Fire) {
        self.after(LOOK, Duration::from_secs(1), look);
    }

    fn after(&self, ticket: u64, delay: Duration, fire: Fire) {
        // A delay beyond what the clock can tell is never due.
        let Some(at) = Instant::now().checked_add(delay) else { return };
        let mut queue = self.shared.queue.lock();
        let first = queue.due.first_key_value().is_none_or(|(&(next, _), _)| at < next);
        queue.due.insert((at, ticket), fire);
        queue.by_ticket.insert(ticket, at);
        drop(queue);
        if first {
            self.shared.changed.notify_one();
        }
    }

    fn cancel(&self, ticket: u64) {
        let mut queue = self.shared.queue.lock();
        let fire = queue.by_ticket.remove(&ticket).and_then(|at| queue.due.remove(&(at, ticket)));
        drop(queue);
        // Dropped outside the lock: what the timer holds may take the lock as it goes.
        drop(fire);
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

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
        let ms = Duration::from_millis;
        let (late, never) = (tell.clone(), tell.clone());
        timers.after(1, ms(60), Box::new(move || late.send("late").unwrap()));
        timers.after(2, ms(30), Box::new(move || never.send("cancelled").unwrap()));
        timers.cancel(2);
        timers.cancel(9);
        let (soon, next, again) = (tell.clone(), tell, timers.clone());
        let chained = move || {
            soon.send("soon").unwrap();
            again.after(4, ms(5), Box::new(move || next.send("next").unwrap()));
        };
        timers.after(3, ms(10), Box::new(chained));
        let order: Vec<_> = told.iter().collect();
        assert_eq!(order, ["soon", "next", "late"]);
        assert!(start.elapsed() >= ms(60));
        let queue = timers.shared.queue.lock();
        assert!(queue.due.is_empty() && queue.by_ticket.is_empty());
    }

    #[test]
    fn what_is_not_due_when_the_thread_ends_is_dropped() {
        let (tell, told) = mpsc::channel::<()>();
        let timers = Timers::start().unwrap();
        timers.after(1, Duration::from_secs(3600), Box::new(move || drop(tell)));
        timers.after(2, Duration::MAX, Box::new(|| unreachable!()));
        drop(timers);
        let result = told.recv_timeout(Duration::from_secs(20));
        assert_eq!(result, Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
