//! Takes the place of `tracee.rs` on architectures other than x86-64, where the daemon does not
//! know how to stop a thread.

use crate::Errno;
use crate::client_mem::ProcessMemory;
use std::convert::Infallible;
use std::time::Duration;

pub const IS_KNOWN: bool = false;

/// There is no value of this type.
pub struct Tracee(Infallible);

impl Tracee {
    /// Always EOPNOTSUPP.
    pub fn seize(_tid: i32, _suspend_seccomp: bool) -> Result<Tracee, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    pub fn interrupt(&self) -> Result<(), Errno> {
        match self.0 {}
    }

    pub fn memory(&self) -> &ProcessMemory {
        match self.0 {}
    }

    pub fn stop(&mut self, _cmd: u32, _patience: Duration) -> Result<(), Errno> {
        match self.0 {}
    }

    pub fn argument(&self) -> Result<u64, Errno> {
        match self.0 {}
    }

    pub fn set_result(&mut self, _result: i64) {
        match self.0 {}
    }

    pub fn system_call(&mut self, _number: i64, _arguments: [u64; 6]) -> Result<u64, Errno> {
        match self.0 {}
    }

    pub fn release(&mut self) -> bool {
        match self.0 {}
    }
}
