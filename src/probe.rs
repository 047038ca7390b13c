//! Deliberate faults and delays (`--inject`), and how long senders wait for pages
//! (`--install-latency`).
//!
//! [`Probes`] are handed to an allocator when it is made. Its mm calls them before each verb, and
//! the allocator tells them for which sender it installs pages; the default does nothing. What the
//! daemon asks the kernel for itself fails as [`inject_into_the_daemon`] was told.

#![forbid(unsafe_code)]

mod inject;
mod latency;

pub use inject::{Injector, Rule, Told, Verb, inject_into_the_daemon};
pub use latency::InstallLatency;

pub(crate) use inject::fault;

use crate::Errno;
use std::sync::Arc;

/// The probes of one allocator.
#[derive(Debug, Default, Clone)]
pub struct Probes {
    /// What is made to fail or to take long.
    pub inject: Injector,
    /// Where to note how long senders wait for pages to be installed, if anywhere.
    pub install_latency: Option<Arc<InstallLatency>>,
}

impl Probes {
    /// Called before a verb is carried out: waits, fails, or does neither.
    pub(crate) fn at(&self, verb: Verb) -> Result<(), Errno> {
        self.inject.at(verb)
    }

    /// Until the result is dropped, the calling thread installs the pages of a buffer for this
    /// sender (a thread group).
    pub(crate) fn installing(&self, pid: i32) -> Installing<'_> {
        Installing {
            _sender: inject::OnBehalf::of(pid),
            _clock: self.install_latency.as_ref().map(|latency| latency.clock(pid)),
        }
    }
}

/// The guard that [`Probes::installing`] returns.
pub(crate) struct Installing<'probes> {
    _sender: inject::OnBehalf,
    _clock: Option<latency::Clock<'probes>>,
}
