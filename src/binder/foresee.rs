//! What a command points to, fetched together with the command.
//!
//! Most programs send again and again from the same place: a buffer of the thread's own, or the
//! block that the allocator gives out again. So the data and the offsets of a small transaction are
//! fetched from where the thread's last transaction had them, by the system call that fetches the
//! commands. Where they turn out to lie somewhere else, nothing is lost but the copy.
//!
//! What was fetched this way counts for the write part of one ioctl. The program's own thread does
//! not run meanwhile; another of its threads that writes there would race with the driver's copy,
//! too.

use crate::Errno;
use crate::client_mem::{Ahead, ClientMemory, SharedSlice};

/// A client's memory, some of which was fetched already.
pub(crate) struct Foreseen<'a> {
    memory: &'a dyn ClientMemory,
    ahead: Ahead,
}

impl<'a> Foreseen<'a> {
    pub fn new(memory: &'a dyn ClientMemory, ahead: Ahead) -> Foreseen<'a> {
        Foreseen { memory, ahead }
    }
}

impl ClientMemory for Foreseen<'_> {
    fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), Errno> {
        match self.ahead.find(addr, dst.len()) {
            Some(bytes) => dst.copy_from_slice(bytes),
            None => self.memory.read(addr, dst)?,
        }
        Ok(())
    }

    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno> {
        match self.ahead.find(addr, dst.len()) {
            Some(bytes) => dst.copy_from_slice(bytes),
            None => self.memory.read_shared(addr, dst)?,
        }
        Ok(())
    }

    fn write(&self, addr: u64, src: &[u8]) -> Result<(), Errno> {
        self.memory.write(addr, src)
    }

    fn sends_from(&self, places: [(u64, u64); 2]) {
        self.memory.sends_from(places);
    }
}
