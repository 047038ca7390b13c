//! Whether the daemon still works: what a service manager's watchdog wants to know.
//!
//! [`Liveness::ask`] takes the way of a client as far as one can go without being one. It has the
//! thread of the timers call back, takes the lock of each context, and asks the kernel about each
//! mount (`statfs`), which only a worker of that mount can answer. It returns when all of them have
//! answered, and so never returns where one hangs. A CUSE device has no request that is not an
//! open, which clients would see in the daemon's reports: its workers are not asked.

use super::mounts::MountPoint;
use super::timers::Timers;
use crate::binder::{Context, Timers as _};
use nix::sys::statfs::statfs;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// A ticket that no timer of the engine's has.
const TICKET: u64 = u64::MAX - 1;

/// The threads and locks that are asked.
pub struct Liveness {
    timers: Arc<Timers>,
    contexts: Vec<Arc<Context>>,
    /// With `st_dev` of their files.
    mounts: Vec<(MountPoint, u64)>,
}

impl Liveness {
    pub(super) fn of(timers: Arc<Timers>) -> Liveness {
        Liveness { timers, contexts: Vec::new(), mounts: Vec::new() }
    }

    /// The lock of this context is to be asked, too.
    pub fn add_context(&mut self, context: Arc<Context>) {
        self.contexts.push(context);
    }

    /// The workers of this mount are to be asked, too.
    pub fn add_mount(&mut self, mount: (MountPoint, u64)) {
        self.mounts.push(mount);
    }

    /// Returns when all have answered.
    pub fn ask(&self) {
        let (tell, told) = channel();
        self.timers.after(
            TICKET,
            Duration::ZERO,
            Box::new(move || {
                let _ = tell.send(());
            }),
        );
        let _ = told.recv();
        for context in &self.contexts {
            context.sections();
        }
        for (mount, dev) in &self.mounts {
            // Where it was unmounted, or something else is mounted on it, nobody is to answer.
            if mount.topmost().is_some_and(|topmost| topmost.dev == *dev) {
                // An error is an answer: that of a mount which was closed from outside.
                let _ = statfs(mount.reached());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_up_the_timers_holds_up_the_answer() {
        let timers = Arc::new(Timers::start().unwrap());
        let (release, held) = channel::<()>();
        let hold = Box::new(move || {
            let _ = held.recv();
        });
        timers.after(1, Duration::ZERO, hold);
        let liveness = Liveness::of(timers);
        let (tell, told) = channel();
        std::thread::spawn(move || {
            liveness.ask();
            tell.send(()).unwrap();
        });
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
        drop(release);
        told.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}
