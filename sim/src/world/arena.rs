//! A client's memory.

use fakebinder::Errno;
use fakebinder::client_mem::{ClientMemory, SharedSlice};
use fakebinder::lock_order::assert_nothing_held;
use parking_lot::Mutex;
use std::ops::Range;

/// The address at which a client's arena begins; no buffer mapping lies there.
pub const ARENA: u64 = 0x10_0000;

/// A client's memory: one stretch of bytes from [`ARENA`] on. All other addresses, and what was
/// unmapped of the stretch, are EFAULT.
#[derive(Default)]
pub struct Arena {
    bytes: Mutex<Vec<u8>>,
    holes: Mutex<Vec<Range<u64>>>,
    traps: Mutex<Vec<(u64, Trap)>>,
}

/// What happens in the world while a client's memory is being copied.
type Trap = Box<dyn FnOnce() + Send>;

impl Arena {
    /// Appends bytes, 8-byte aligned, and returns their address.
    pub fn push(&self, bytes: &[u8]) -> u64 {
        let mut arena = self.bytes.lock();
        let start = arena.len().next_multiple_of(8);
        arena.resize(start, 0);
        arena.extend_from_slice(bytes);
        ARENA + start as u64
    }

    /// Forgets everything that was pushed after the first `keep` bytes.
    pub fn truncate(&self, keep: usize) {
        self.bytes.lock().truncate(keep);
    }

    /// Makes a hole of `len` bytes.
    pub fn unmap(&self, addr: u64, len: u64) {
        self.holes.lock().push(addr..addr + len);
    }

    /// Calls `happens`, once, when the byte at `addr` is about to be copied: what another client
    /// may do at that moment, since the engine copies without a lock.
    pub fn trap(&self, addr: u64, happens: impl FnOnce() + Send + 'static) {
        self.traps.lock().push((addr, Box::new(happens)));
    }

    fn spring(&self, addr: u64, size: usize) {
        let covers = |trap: &(u64, Trap)| addr <= trap.0 && trap.0 - addr < size as u64;
        let mut traps = self.traps.lock();
        let sprung: Vec<_> = traps.extract_if(.., |trap| covers(trap)).collect();
        drop(traps);
        sprung.into_iter().for_each(|(_, happens)| happens());
    }

    /// How many bytes are in use.
    pub fn len(&self) -> usize {
        self.bytes.lock().len()
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a copy does first: springs the traps, and checks the range.
    fn reach(&self, addr: u64, size: usize) -> Result<(), Errno> {
        assert_nothing_held();
        self.spring(addr, size);
        let past = addr.saturating_add(size as u64);
        match self.holes.lock().iter().any(|hole| addr < hole.end && hole.start < past) {
            true => Err(Errno::EFAULT),
            false => Ok(()),
        }
    }

    fn range(len: usize, addr: u64, size: usize) -> Result<Range<usize>, Errno> {
        let start = addr.checked_sub(ARENA).ok_or(Errno::EFAULT)?;
        let start = usize::try_from(start).map_err(|_| Errno::EFAULT)?;
        let end = start.checked_add(size).filter(|end| *end <= len).ok_or(Errno::EFAULT)?;
        Ok(start..end)
    }
}

impl ClientMemory for Arena {
    fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), Errno> {
        self.reach(addr, dst.len())?;
        let bytes = self.bytes.lock();
        dst.copy_from_slice(&bytes[Self::range(bytes.len(), addr, dst.len())?]);
        Ok(())
    }

    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno> {
        self.reach(addr, dst.len())?;
        let bytes = self.bytes.lock();
        dst.copy_from_slice(&bytes[Self::range(bytes.len(), addr, dst.len())?]);
        Ok(())
    }

    fn write(&self, addr: u64, src: &[u8]) -> Result<(), Errno> {
        self.reach(addr, src.len())?;
        let mut bytes = self.bytes.lock();
        let range = Self::range(bytes.len(), addr, src.len())?;
        bytes[range].copy_from_slice(src);
        Ok(())
    }
}
