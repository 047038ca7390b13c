//! What a device is: open, mmap, ioctl, poll, flush, release, interrupt, handed to the engine.

pub mod session;
pub mod wire;
pub mod workers;
