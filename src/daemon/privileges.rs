//! What root's daemon may do: SECURITY.md has the reason for each capability.

use nix::sys::prctl;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities,
};
use std::io;

/// What it keeps; a test compares this with the table in SECURITY.md.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_RESOURCE);

/// Gives up what root's daemon does not need: other capabilities, new privileges by programs that
/// it might start, and a core dump, in which the data of clients would be. To be called before any
/// thread is started: threads have what their starters had. An ordinary user's daemon has nothing
/// to give up, and may need fusermount3, which is set-user-ID root.
pub fn give_up() -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    let had = capabilities(None)?;
    if !had.permitted.contains(CapabilitySet::SYS_PTRACE) {
        // The kernel lets it reach programs of its own uid that have no capability which it lacks.
        return Ok(());
    }
    for capability in CapabilitySet::all().difference(KEPT).iter() {
        // Without CAP_SETPCAP it cannot be; what this process may have is limited all the same.
        let _ = remove_capability_from_bounding_set(capability);
    }
    let kept = had.permitted.intersection(KEPT);
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })?;
    Ok(())
}
