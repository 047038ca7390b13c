//! What the daemon takes and holds, over time.

use crate::daemon::Daemon;
use crate::growth::{Growth, median};
use fakebinder_client::uapi;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;

/// One look at the daemon.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Since the load began.
    pub seconds: f64,
    pub rss_kib: u64,
    /// Of these, the heap and the stacks; the rest are pages of buffers, and the program itself.
    pub anonymous_kib: u64,
    /// Entries of `/proc/PID/fd` and of `/proc/PID/task`.
    pub descriptors: u64,
    pub threads: u64,
    pub held: uapi::fakebinder_stats,
}

impl Sample {
    pub fn take(daemon: &Daemon, seconds: f64) -> Result<Sample, String> {
        let held = daemon.stats()?;
        let path = format!("/proc/{}", daemon.pid);
        let entries = |what: &str| {
            let directory = fs::read_dir(format!("{path}/{what}"));
            directory.map(|entries| entries.count() as u64)
        };
        let gone = |error| format!("{path}: {error}");
        let status = fs::read_to_string(format!("{path}/status")).map_err(gone)?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
        };
        Ok(Sample {
            seconds,
            rss_kib: kib("VmRSS:"),
            anonymous_kib: kib("RssAnon:"),
            descriptors: entries("fd").map_err(gone)?,
            threads: entries("task").map_err(gone)?,
            held,
        })
    }

    /// Everything, by name: the columns of the CSV, and the rows of the table.
    pub fn values(&self) -> [(&'static str, f64); 15] {
        let held = &self.held;
        let counts = |name, count: u64| (name, count as f64);
        [
            ("seconds", self.seconds),
            counts("rss_kib", self.rss_kib),
            counts("anonymous_kib", self.anonymous_kib),
            counts("descriptors", self.descriptors),
            counts("daemon_threads", self.threads),
            counts("processes", held.processes),
            counts("threads", held.threads),
            counts("nodes", held.nodes),
            counts("references", held.references),
            counts("transactions", held.transactions),
            counts("buffers", held.buffers),
            counts("deaths", held.deaths),
            counts("freezes", held.freezes),
            counts("pages", held.pages),
            counts("reclaimable_pages", held.reclaimable_pages),
        ]
    }

    /// Live objects of clients: what is not the clients' is 0 here.
    pub fn live(&self) -> uapi::fakebinder_stats {
        uapi::fakebinder_stats { descriptors: 0, daemon_threads: 0, ..self.held }
    }
}

/// All looks of a run.
#[derive(Default)]
pub struct Samples(pub Vec<Sample>);

/// A value at the beginning, during the load, and at the end.
#[derive(Debug, Serialize)]
pub struct Course {
    pub what: &'static str,
    /// Before the first client.
    pub start: f64,
    pub median: f64,
    pub max: f64,
    /// After the last client.
    pub end: f64,
    /// `None` for what is not judged, and in a short run.
    pub growth: Option<Growth>,
}

/// What may not grow, and by how much the level may differ at any rate: of memory, what the
/// allocator keeps for itself or not, of descriptors, those of one client more or less.
const JUDGED: [(&str, f64); 3] =
    [("rss_kib", 2048.0), ("anonymous_kib", 2048.0), ("descriptors", 8.0)];

/// In a shorter run the daemon is not warm: its memory still grows with what it comes to know.
const LONG_ENOUGH: f64 = 120.0;

impl Samples {
    fn series(&self, index: usize) -> Vec<f64> {
        self.0.iter().map(|sample| sample.values()[index].1).collect()
    }

    /// One row for each value.
    pub fn courses(&self, start: &Sample, end: &Sample) -> Vec<Course> {
        let names = start.values().map(|(name, _)| name);
        let is_judged = self.0.last().is_some_and(|last| last.seconds >= LONG_ENOUGH);
        let course = |(index, what)| {
            let series = self.series(index);
            let judged = JUDGED.iter().find(|(name, _)| is_judged && *name == what);
            Course {
                what,
                start: start.values()[index].1,
                median: median(&series),
                max: series.iter().copied().fold(0.0, f64::max),
                end: end.values()[index].1,
                growth: judged.and_then(|(_, floor)| Growth::of(&series, *floor)),
            }
        };
        names.into_iter().enumerate().skip(1).map(course).collect()
    }

    pub fn csv(&self) -> String {
        let mut text = Sample::default().values().map(|(name, _)| name).join(",");
        text.push('\n');
        for sample in &self.0 {
            let values = sample.values();
            let _ = write!(text, "{:.1}", sample.seconds);
            values[1..].iter().for_each(|(_, value)| _ = write!(text, ",{value}"));
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaks_is_told_from_what_does_not() {
        let sample = |index: u64| Sample {
            seconds: index as f64,
            rss_kib: 20_000 + 30 * index,
            anonymous_kib: 10_000 + index % 7,
            descriptors: 100 + index / 10,
            ..Sample::default()
        };
        let samples = Samples((0..300).map(sample).collect());
        let courses = samples.courses(&sample(0), &sample(0));
        let grown: Vec<_> = courses
            .iter()
            .filter(|course| course.growth.is_some_and(|growth| growth.has_grown()))
            .map(|course| course.what)
            .collect();
        assert_eq!(grown, ["rss_kib", "descriptors"]);
        assert_eq!(courses[0].max, 20_000.0 + 30.0 * 299.0);
        let short = Samples(samples.0[..100].to_vec());
        let judged = |course: &Course| course.growth.is_some();
        assert!(!short.courses(&sample(0), &sample(0)).iter().any(judged));
    }

    #[test]
    fn the_csv_has_a_name_for_each_value() {
        let text = Samples(vec![Sample { seconds: 1.5, rss_kib: 7, ..Sample::default() }]).csv();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("seconds,rss_kib,") && lines[1].starts_with("1.5,7,"),
            "{text}"
        );
        assert_eq!(lines[0].split(',').count(), lines[1].split(',').count());
    }
}
