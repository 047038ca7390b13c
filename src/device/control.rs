//! fakebinder's own ioctls for the administrator: what the daemon holds, and reclaim on demand.

use super::wire::Header;
use super::{Hub, Open};
use crate::events::{LISTENER_BYTES, Listener};
use crate::memory::Memory;
use crate::probe::{self, Injector};
use crate::quota::What;
use crate::recorder::{self, Recorder};
use crate::snapshot::{self, Held, Snapshot, User};
use crate::{Errno, uapi};
use std::collections::HashMap;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

impl Open {
    /// `FAKEBINDER_STATS`, `FAKEBINDER_RECLAIM`, `FAKEBINDER_SNAPSHOT`, `FAKEBINDER_EVENTS`,
    /// `FAKEBINDER_RECORD` and `FAKEBINDER_INJECT`; `argument` is copied out. EPERM: the caller is
    /// neither root nor the user who runs the daemon; EINVAL: another ioctl, or a bad argument;
    /// ENODATA: there is no snapshot to go on with; ENOMEM: the budget is too small for one, for
    /// events or for a recording; EBUSY: enough listen to events, or somebody else records.
    pub(super) fn control_ioctl(
        &self,
        header: &Header,
        cmd: u32,
        argument: &mut [u8],
    ) -> Result<(), Errno> {
        match cmd {
            uapi::FAKEBINDER_STATS
            | uapi::FAKEBINDER_RECLAIM
            | uapi::FAKEBINDER_SNAPSHOT
            | uapi::FAKEBINDER_EVENTS
            | uapi::FAKEBINDER_RECORD
            | uapi::FAKEBINDER_INJECT
                if header.uid != 0 && header.uid != nix::unistd::geteuid().as_raw() =>
            {
                Err(Errno::EPERM)
            }
            uapi::FAKEBINDER_STATS => {
                argument.copy_from_slice(uapi::bytes_of(&self.hub.stats()));
                Ok(())
            }
            uapi::FAKEBINDER_RECLAIM => {
                let pages = self.hub.memory.reclaim_all() as u64;
                argument.copy_from_slice(&pages.to_ne_bytes());
                Ok(())
            }
            uapi::FAKEBINDER_SNAPSHOT => answer(argument, |asked| self.copy_snapshot(asked)),
            uapi::FAKEBINDER_EVENTS => answer(argument, |asked| self.copy_events(asked)),
            uapi::FAKEBINDER_RECORD => answer(argument, |asked| self.copy_recording(asked)),
            uapi::FAKEBINDER_INJECT => {
                answer(argument, |asked| inject(&self.hub.probes.inject, asked))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn copy_events(&self, asked: &mut uapi::fakebinder_events) -> Result<(), Errno> {
        let mut listener = self.listener_of_events.lock();
        let before = listener.take_if(|before| before.by.wanted() != asked.wanted);
        if asked.wanted != 0 && listener.is_none() {
            // The one before makes room.
            drop(before);
            let by = Listener::new(asked.wanted)?;
            *listener = Some(Arc::new(Charged::new(by, &self.hub.memory, LISTENER_BYTES)?));
        }
        (asked.count, asked.lost) = (0, 0);
        if let Some(of_file) = listener.clone() {
            drop(listener);
            let (count, lost) = of_file.by.take(&mut asked.events);
            (asked.count, asked.lost) = (count as u32, lost);
        }
        Ok(())
    }

    fn copy_recording(&self, asked: &mut uapi::fakebinder_recording) -> Result<(), Errno> {
        let mut recorder = self.recorder.lock();
        let before = recorder.take_if(|before| before.by.wanted() != asked.wanted);
        if asked.wanted != 0 && recorder.is_none() {
            // The one before makes room.
            drop(before);
            let by = Recorder::new(self.process.context_number(), asked.wanted)?;
            *recorder = Some(Arc::new(Charged::new(by, &self.hub.memory, recorder::ROOM)?));
        }
        (asked.count, asked.full) = (0, 0);
        if let Some(of_file) = recorder.clone() {
            drop(recorder);
            let (count, full) = of_file.by.take(&mut asked.bytes);
            (asked.count, asked.full) = (count as u32, full.into());
        }
        Ok(())
    }

    fn copy_snapshot(&self, asked: &mut uapi::fakebinder_snapshot) -> Result<(), Errno> {
        if asked.flags & !uapi::FAKEBINDER_SNAPSHOT_OBJECTS != 0 || asked.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        let snapshot = match asked.offset {
            0 => {
                let objects = asked.flags & uapi::FAKEBINDER_SNAPSHOT_OBJECTS != 0;
                // The one before makes room.
                *self.snapshot.lock() = None;
                let snapshot = Arc::new(SnapshotText::take(&self.hub, objects)?);
                *self.snapshot.lock() = Some(snapshot.clone());
                snapshot
            }
            _ => self.snapshot.lock().clone().ok_or(Errno::ENODATA)?,
        };
        let text = &snapshot.text;
        let rest = usize::try_from(asked.offset).ok().and_then(|offset| text.get(offset..));
        let rest = rest.ok_or(Errno::EINVAL)?;
        let part = &rest[..rest.len().min(asked.text.len())];
        asked.text[..part.len()].copy_from_slice(part);
        asked.length = text.len() as u64;
        if part.len() == rest.len() {
            *self.snapshot.lock() = None;
        }
        Ok(())
    }
}

/// Answers an ioctl whose argument is read and written: nothing is written where it fails.
fn answer<T: FromBytes + IntoBytes + Immutable>(
    argument: &mut [u8],
    fill: impl FnOnce(&mut T) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut asked = uapi::parse(argument).ok_or(Errno::EINVAL)?;
    fill(&mut asked)?;
    argument.copy_from_slice(uapi::bytes_of(&asked));
    Ok(())
}

/// Replaces the rules in force, if that is asked for, and tells them.
fn inject(injector: &Injector, asked: &mut uapi::fakebinder_inject) -> Result<(), Errno> {
    let text = asked.text.get(..asked.length as usize).ok_or(Errno::EINVAL)?;
    let replaced = match asked.state {
        0 => Ok(()),
        1 => {
            let rules = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
            rules.parse().map(|rules: Injector| {
                log::info!("faults are injected as told: {rules:?}");
                injector.replace_by(&rules);
            })
        }
        _ => return Err(Errno::EINVAL),
    };
    let (state, told) = match replaced {
        Ok(()) => {
            let line = |told: probe::Told| format!("{} {} {}\n", told.seen, told.hit, told.rule);
            (0, injector.told().into_iter().map(line).collect())
        }
        Err(reason) => (Errno::EINVAL as u32, reason),
    };
    let count = told.len().min(asked.text.len());
    asked.text[..count].copy_from_slice(&told.as_bytes()[..count]);
    (asked.state, asked.length) = (state, count as u32);
    Ok(())
}

/// A snapshot as text, until it has been copied. It comes out of the budget of memory: a client may
/// have a million nodes, and the daemon a small control group.
pub(super) struct SnapshotText {
    text: Vec<u8>,
    memory: Arc<Memory>,
    charged: usize,
}

impl SnapshotText {
    /// Of a record of the driver's: as the snapshot has it, and as text.
    const BYTES: usize = 512;

    /// ENOMEM: the budget is too small for it.
    fn take(hub: &Hub, objects: bool) -> Result<SnapshotText, Errno> {
        let held = hub.binder.stats();
        let mut records = held.processes + held.threads + held.transactions;
        if objects {
            records += held.nodes + held.references + held.buffers;
        }
        let charged = records * Self::BYTES;
        hub.memory.charge_bytes(charged)?;
        let mut taken = SnapshotText { text: Vec::new(), memory: hub.memory.clone(), charged };
        taken.text = serde_json::to_vec(&hub.snapshot(objects)).map_err(|_| Errno::EIO)?;
        Ok(taken)
    }
}

impl Drop for SnapshotText {
    fn drop(&mut self) {
        self.memory.uncharge_bytes(self.charged);
    }
}

/// Who listens to events, or records, by an open file. What waits to be taken comes out of the
/// budget of memory.
pub(super) struct Charged<T> {
    by: T,
    memory: Arc<Memory>,
    bytes: usize,
}

impl<T> Charged<T> {
    /// ENOMEM: the budget is too small.
    fn new(by: T, memory: &Arc<Memory>, bytes: usize) -> Result<Charged<T>, Errno> {
        memory.charge_bytes(bytes)?;
        Ok(Charged { by, memory: memory.clone(), bytes })
    }
}

impl<T> Drop for Charged<T> {
    fn drop(&mut self) {
        self.memory.uncharge_bytes(self.bytes);
    }
}

/// How many entries a directory has.
fn entries(path: &str) -> u64 {
    std::fs::read_dir(path).map_or(0, |entries| entries.count() as u64)
}

/// The daemon's descriptors, less the one that reads their directory.
fn descriptors() -> u64 {
    entries("/proc/self/fd").saturating_sub(1)
}

fn daemon_threads() -> u64 {
    entries("/proc/self/task")
}

impl Hub {
    /// What the daemon holds.
    pub fn stats(&self) -> uapi::fakebinder_stats {
        let held = self.binder.stats();
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
            descriptors: descriptors(),
            daemon_threads: daemon_threads(),
        }
    }

    /// What the daemon holds, record by record; with every node, reference and buffer if `objects`.
    pub fn snapshot(&self, objects: bool) -> Snapshot {
        let mut contexts = self.binder.snapshot(objects);
        let mut names = HashMap::new();
        for process in contexts.iter_mut().flat_map(|context| &mut context.processes) {
            let name = names.entry(process.pid).or_insert_with(|| name_of(process.pid));
            process.name.clone_from(name);
        }
        Snapshot {
            version: snapshot::VERSION,
            daemon: snapshot::Daemon {
                pid: std::process::id(),
                now_ms: self.binder.now().as_millis() as u64,
                pages: self.memory.used() as u64,
                reclaimable_pages: self.memory.count() as u64,
                budget_bytes: self.memory.limit(),
                descriptors: descriptors(),
                threads: daemon_threads(),
            },
            contexts,
            users: self.clients.quotas().users().iter().map(|user| held_by(user)).collect(),
        }
    }
}

/// What a program calls itself; empty when it is gone.
fn name_of(pid: i32) -> String {
    let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(name.trim_ascii_end()).into_owned()
}

fn held_by(user: &crate::quota::User) -> User {
    let held = What::ALL.map(|(name, what)| Held {
        what: name.to_owned(),
        held: user.held(what) as u64,
        most: Some(user.limit(what) as u64).filter(|most| *most != usize::MAX as u64),
    });
    User { uid: user.uid(), held: held.into() }
}
