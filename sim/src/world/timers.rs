//! The clock of a world.

use super::client::Fire;
use fakebinder::binder::Timers;
use fakebinder::lock_order::assert_nothing_held;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;

/// Timers that fire when a test says so.
#[derive(Default)]
pub struct ManualTimers {
    waiting: Mutex<BTreeMap<u64, (Duration, Fire)>>,
}

impl ManualTimers {
    /// Fires every waiting timer, in the order of their delays; returns how many there were.
    pub fn fire_all(&self) -> usize {
        let mut due: Vec<_> = std::mem::take(&mut *self.waiting.lock()).into_values().collect();
        due.sort_by_key(|(delay, _)| *delay);
        let count = due.len();
        due.into_iter().for_each(|(_, fire)| fire());
        count
    }

    /// How many timers wait.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }
}

impl Timers for ManualTimers {
    fn after(&self, ticket: u64, delay: Duration, fire: Fire) {
        assert_nothing_held();
        self.waiting.lock().insert(ticket, (delay, fire));
    }

    fn cancel(&self, ticket: u64) {
        assert_nothing_held();
        self.waiting.lock().remove(&ticket);
    }
}
