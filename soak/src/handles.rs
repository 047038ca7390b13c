//! The references of a process, which its threads share: who counts them, and what has been asked
//! for about them.
//!
//! The driver keeps at most one death and one freeze notification for a reference. So there is one
//! record for each here, and commands about references are written under its lock.

use fakebinder_client::{Command, Device, Errno, Result};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Writes commands, all of which the driver takes: it leaves some where an error waits to be read,
/// and threads read theirs before they write again.
pub fn write_all(device: &Device, commands: &[Command<'_>]) -> Result<()> {
    let mut bytes = Vec::new();
    commands.iter().for_each(|command| command.encode(&mut bytes));
    let transfer = device.transfer(&bytes, &mut []);
    transfer.result?;
    assert_eq!(transfer.write_consumed, bytes.len(), "bytes that the driver took of {commands:?}");
    Ok(())
}

#[derive(Default)]
struct Known {
    /// How many strong references each handle has that this program knows of.
    counts: HashMap<u32, usize>,
    /// The cookies of the notifications that have been asked for, by handle.
    deaths: HashMap<u32, u64>,
    freezes: HashMap<u32, u64>,
    told: HashSet<u64>,
    last_cookie: u64,
}

#[derive(Default)]
pub struct Handles(Mutex<Known>);

/// What a notice of a death is to this process.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    First,
    Again,
    NeverAskedFor,
}

impl Handles {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more strong reference. To be called while the buffer that brought it is not freed.
    pub fn keep(&self, device: &Device, handle: u32) -> Result<()> {
        let mut known = self.lock();
        write_all(device, &[Command::Acquire(handle)])?;
        *known.counts.entry(handle).or_default() += 1;
        Ok(())
    }

    /// One fewer; with the last go the notifications.
    pub fn let_go(&self, device: &Device, handle: u32) -> Result<()> {
        let mut known = self.lock();
        let mut commands = Vec::new();
        let left = known.counts.get_mut(&handle).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            known.counts.remove(&handle);
            let cookie = known.deaths.remove(&handle);
            commands
                .extend(cookie.map(|cookie| Command::ClearDeathNotification { handle, cookie }));
            let cookie = known.freezes.remove(&handle);
            commands
                .extend(cookie.map(|cookie| Command::ClearFreezeNotification { handle, cookie }));
        }
        commands.push(Command::Release(handle));
        write_all(device, &commands)
    }

    /// Asks to be told of the death of a handle's process, unless that has been asked for. Gives
    /// the cookie of a new request.
    pub fn watch_death(&self, device: &Device, handle: u32) -> Result<Option<u64>> {
        let mut known = self.lock();
        if known.deaths.contains_key(&handle) || !known.counts.contains_key(&handle) {
            return Ok(None);
        }
        known.last_cookie += 1;
        let cookie = known.last_cookie;
        write_all(device, &[Command::RequestDeathNotification { handle, cookie }])?;
        known.deaths.insert(handle, cookie);
        Ok(Some(cookie))
    }

    /// The driver had no room for that request (BR_ERROR).
    pub fn was_refused(&self, refused: u64) {
        self.lock().deaths.retain(|_, cookie| *cookie != refused);
    }

    /// Takes that back.
    pub fn forget_death(&self, device: &Device, handle: u32) -> Result<()> {
        let mut known = self.lock();
        let Some(cookie) = known.deaths.remove(&handle) else { return Ok(()) };
        write_all(device, &[Command::ClearDeathNotification { handle, cookie }])
    }

    /// Asks to be told when a handle's process is frozen or thawed, or takes that back.
    pub fn toggle_freeze(&self, device: &Device, handle: u32) -> Result<()> {
        let mut known = self.lock();
        if let Some(cookie) = known.freezes.remove(&handle) {
            return write_all(device, &[Command::ClearFreezeNotification { handle, cookie }]);
        }
        known.last_cookie += 1;
        let cookie = known.last_cookie;
        match write_all(device, &[Command::RequestFreezeNotification { handle, cookie }]) {
            // It is dead.
            Err(error) if error.errno() == Errno::EINVAL => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                known.freezes.insert(handle, cookie);
                Ok(())
            }
        }
    }

    /// Takes note of a death.
    pub fn told(&self, cookie: u64) -> Notice {
        let mut known = self.lock();
        match (known.last_cookie >= cookie, known.told.insert(cookie)) {
            (false, _) => Notice::NeverAskedFor,
            (true, true) => Notice::First,
            (true, false) => Notice::Again,
        }
    }

    /// Whether a cookie is one of this process's.
    pub fn has_asked(&self, cookie: u64) -> bool {
        (1..=self.lock().last_cookie).contains(&cookie)
    }

    /// Whether a notice of this handle's death has been asked for and has not come.
    pub fn awaits_death(&self, handle: u32) -> bool {
        let known = self.lock();
        known.deaths.get(&handle).is_some_and(|cookie| !known.told.contains(cookie))
    }
}
