//! What the daemon's driver does, as it happens.

use crate::ask::{Asked, Error, failed};
use clap::Args;
use fakebinder_client::uapi::{FAKEBINDER_EVENTS_MAX, fakebinder_event, fakebinder_events};
use fakebinder_client::{Device, Errno};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long to wait when nothing has happened. The daemon has room for what happens meanwhile.
const PAUSE: Duration = Duration::from_millis(20);

/// The events of a daemon, from the making of this value on.
pub struct Events {
    device: Device,
    wanted: u32,
    batch: Box<fakebinder_events>,
    /// How many events the daemon had no room for.
    lost: u64,
}

impl Events {
    /// Begins to listen to the kinds that are `wanted`.
    pub fn listen(asked: &Asked, wanted: u32) -> Result<Events, Error> {
        let mut events = Events { device: asked.open()?, wanted, batch: Box::default(), lost: 0 };
        events.ask()?;
        Ok(events)
    }

    /// Gives `tell` what happens until the end, the earliest first, and how many events were lost so
    /// far.
    pub fn until(
        &mut self,
        end: &End,
        mut tell: impl FnMut(&[fakebinder_event], u64) -> Result<(), Box<dyn std::error::Error>>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let mut ends = false;
        loop {
            self.ask()?;
            let count = self.batch.count as usize;
            tell(&self.batch.events[..count.min(FAKEBINDER_EVENTS_MAX)], self.lost)?;
            if count < FAKEBINDER_EVENTS_MAX {
                // What has happened before the end is told of.
                if ends {
                    return Ok(());
                }
                ends = end.comes()?;
            }
        }
    }

    fn ask(&mut self) -> Result<(), Error> {
        let path = self.device.path();
        self.device.daemon_events(self.wanted, &mut self.batch).map_err(|error| {
            match error.errno() {
                Errno::EBUSY => Error::Busy(path.to_owned()),
                Errno::ENOMEM => Error::NoRoom(path.to_owned()),
                _ => failed(path, error),
            }
        })?;
        self.lost += self.batch.lost;
        Ok(())
    }
}

/// How long to listen
#[derive(Args, Debug)]
pub struct Until {
    /// End after so many seconds; without it, at Ctrl-C
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,
}

impl Until {
    /// The end, as the flag says. Errors: no number of seconds.
    pub fn end(&self) -> Result<End, Box<dyn std::error::Error>> {
        let after = self.seconds.map(Duration::try_from_secs_f64).transpose();
        Ok(End::new(after.map_err(|error| format!("--seconds: {error}"))?)?)
    }
}

/// When to stop listening: at Ctrl-C, or when the time is up.
pub struct End {
    signals: SignalFd,
    at: Option<Instant>,
}

impl End {
    /// Ctrl-C and SIGTERM do nothing but this from now on.
    fn new(after: Option<Duration>) -> nix::Result<End> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        signals.thread_block()?;
        let at = after.and_then(|after| Instant::now().checked_add(after));
        Ok(End { signals: SignalFd::new(&signals)?, at })
    }

    /// Waits a moment; returns whether it is the end.
    pub fn comes(&self) -> nix::Result<bool> {
        let left = self.at.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(true);
        }
        let pause = left.map_or(PAUSE, |left| left.min(PAUSE));
        let mut files = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO);
        Ok(poll(&mut files, timeout)? > 0)
    }
}
