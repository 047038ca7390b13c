//! How long senders wait for the pages of their transactions: `--install-latency`.

use crate::lock_order::rank;
use crate::sync::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// For each sender, how many of its transactions waited how long for pages to be installed.
/// Transactions whose pages were all there are not counted.
#[derive(Debug, Default)]
pub struct InstallLatency(Mutex<BTreeMap<(i32, u64), u64>, rank::Latency>);

impl InstallLatency {
    /// Counts the time until the clock is dropped, whether all pages came or not.
    pub(crate) fn clock(&self, pid: i32) -> Clock<'_> {
        Clock { latency: self, pid, start: Instant::now() }
    }
}

/// One line each: the sender's thread group, a time in nanoseconds, how many waited so long.
impl fmt::Display for InstallLatency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.lock();
        counts.iter().try_for_each(|((pid, time), count)| writeln!(f, "{pid} {time} {count}"))
    }
}

pub(crate) struct Clock<'latency> {
    latency: &'latency InstallLatency,
    pid: i32,
    start: Instant,
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        let time = rounded_up(self.start.elapsed());
        *self.latency.0.lock().entry((self.pid, time)).or_default() += 1;
    }
}

/// The time in nanoseconds, rounded up to a number of 5 significant bits: a sender has some hundred
/// different times at most, however many transactions it sends.
fn rounded_up(time: Duration) -> u64 {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX >> 1);
    let unit = 1 << (u64::BITS - nanoseconds.leading_zeros()).saturating_sub(5);
    nanoseconds.next_multiple_of(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up_by_less_than_a_sixteenth() {
        for (time, expected) in [(0, 0), (1, 1), (31, 31), (32, 32), (33, 34), (1000, 1024)] {
            assert_eq!(rounded_up(Duration::from_nanos(time)), expected, "{time}");
        }
        assert_eq!(rounded_up(Duration::MAX), 1 << 63);
        for time in (0..60).flat_map(|bit| [1 << bit, (1 << bit) + 1, (1 << bit) * 19 / 11]) {
            let rounded = rounded_up(Duration::from_nanos(time));
            assert!((time..=time + time / 16).contains(&rounded), "{time} {rounded}");
        }
    }
}
