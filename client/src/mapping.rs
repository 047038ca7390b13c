//! The memory that incoming transactions lie in.

use crate::sys::Region;

/// The mapping of a device: read-only memory that the driver puts transactions into. Unmapped
/// when dropped.
///
/// On the kernel's driver, a read where no buffer lies gives SIGBUS; on fakebinder, zeros. So read
/// only what a received [`Transaction`](crate::Transaction) names.
#[derive(Debug)]
pub struct Mapping {
    region: Region,
}

impl Mapping {
    pub(crate) fn new(region: Region) -> Mapping {
        Mapping { region }
    }

    /// The start of the mapping; the caller has to unmap it.
    pub fn into_raw(self) -> *mut std::ffi::c_void {
        self.region.into_raw()
    }

    /// The address of the mapping.
    pub fn address(&self) -> u64 {
        self.region.address()
    }

    /// Length in bytes, as asked for (the driver uses at most the first 4 MiB).
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Always false: mmap refuses a mapping of no bytes (EINVAL).
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Copies bytes from an address of this process; `None` when they do not all lie in the
    /// mapping.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Option<()> {
        let offset = address.checked_sub(self.address())?;
        self.region.read(usize::try_from(offset).ok()?, out)
    }
}
