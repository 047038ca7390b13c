//! What can be done to an installer of pages from outside, and seen of it: faults and delays
//! (`--inject`), and how long senders wait (`--install-latency`).

mod inject;
mod latency;

pub use inject::{Injector, Rule, Verb, inject_into_the_daemon};
pub use latency::InstallLatency;

pub(crate) use inject::{OnBehalf, fault};
