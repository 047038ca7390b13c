//! The result of the run.

use crate::Args;
use serde_json::json;
use std::time::Duration;

/// Latencies and failures of all clients.
pub struct Report<'a> {
    args: &'a Args,
    mapped_by: String,
    nanoseconds: Vec<u64>,
    failed: u64,
    told: Vec<String>,
    elapsed: Duration,
}

impl<'a> Report<'a> {
    pub fn new(args: &'a Args, mapped_by: String) -> Report<'a> {
        let nanoseconds = Vec::new();
        let elapsed = Duration::ZERO;
        Report { args, mapped_by, nanoseconds, failed: 0, told: Vec::new(), elapsed }
    }

    pub fn add(&mut self, nanoseconds: &[u64]) {
        self.nanoseconds.extend_from_slice(nanoseconds);
    }

    /// Counts a failure, and keeps the first few of them to be printed.
    pub fn fail(&mut self, message: String, keep: usize) {
        self.failed += 1;
        if self.told.len() < keep {
            self.told.push(format!("{}: {message}", self.args.device.display()));
        }
    }

    pub fn finish(&mut self, elapsed: Duration) {
        self.nanoseconds.sort_unstable();
        self.elapsed = elapsed;
    }

    pub fn told(&self) -> &[String] {
        &self.told
    }

    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// How many transactions have succeeded so far.
    pub fn done(&self) -> u64 {
        self.nanoseconds.len() as u64
    }

    /// The latency, in microseconds, that a `share` of the transactions did not exceed.
    fn quantile(&self, share: f64) -> f64 {
        let last = self.nanoseconds.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        self.nanoseconds.get(index).map_or(0.0, |&ns| ns as f64 / 1000.0)
    }

    fn per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.args.count as f64 / seconds } else { 0.0 }
    }

    /// The result as a line that scripts may rely on.
    pub fn line(&self) -> String {
        format!(
            "fb-ping: {}: {} transactions, {} failed, median {:.0} us, p99 {:.0} us, {:.0}/s",
            self.args.device.display(),
            self.args.count,
            self.failed,
            self.quantile(0.5),
            self.quantile(0.99),
            self.per_second()
        )
    }

    /// The result in more detail, for programs.
    pub fn json(&self) -> String {
        json!({
            "device": self.args.device.display().to_string(),
            "mapped_by": self.mapped_by,
            "transactions": self.args.count,
            "failed": self.failed,
            "clients": self.args.clients,
            "payload_bytes": self.args.payload,
            "oneway": self.args.oneway,
            "min_us": self.quantile(0.0),
            "median_us": self.quantile(0.5),
            "p99_us": self.quantile(0.99),
            "max_us": self.quantile(1.0),
            "per_second": self.per_second(),
            "elapsed_s": self.elapsed.as_secs_f64(),
        })
        .to_string()
    }
}
