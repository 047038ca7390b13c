//! fakebinder's own ioctls for the administrator: what the daemon holds, and reclaim on demand.

use super::Hub;
use super::wire::Header;
use crate::{Errno, uapi};

impl Hub {
    /// `FAKEBINDER_STATS` and `FAKEBINDER_RECLAIM`; `argument` is copied out. EPERM: the caller is
    /// neither root nor the user who runs the daemon; EINVAL: another ioctl.
    pub(super) fn control_ioctl(
        &self,
        header: &Header,
        cmd: u32,
        argument: &mut [u8],
    ) -> Result<(), Errno> {
        match cmd {
            uapi::FAKEBINDER_STATS | uapi::FAKEBINDER_RECLAIM
                if header.uid != 0 && header.uid != nix::unistd::geteuid().as_raw() =>
            {
                Err(Errno::EPERM)
            }
            uapi::FAKEBINDER_STATS => {
                argument.copy_from_slice(uapi::bytes_of(&self.stats()));
                Ok(())
            }
            uapi::FAKEBINDER_RECLAIM => {
                let pages = self.memory.reclaim_all() as u64;
                argument.copy_from_slice(&pages.to_ne_bytes());
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// What the daemon holds.
    pub fn stats(&self) -> uapi::fakebinder_stats {
        let held = self.binder.stats();
        let entries =
            |path: &str| std::fs::read_dir(path).map_or(0, |entries| entries.count() as u64);
        uapi::fakebinder_stats {
            processes: held.processes as u64,
            threads: held.threads as u64,
            nodes: held.nodes as u64,
            references: held.references as u64,
            transactions: held.transactions as u64,
            buffers: held.buffers as u64,
            deaths: held.deaths as u64,
            freezes: held.freezes as u64,
            pages: self.memory.used() as u64,
            reclaimable_pages: self.memory.count() as u64,
            // Minus the descriptor that reads the directory.
            descriptors: entries("/proc/self/fd").saturating_sub(1),
            daemon_threads: entries("/proc/self/task"),
        }
    }
}
