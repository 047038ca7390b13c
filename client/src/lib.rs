//! A driver-level client of binder devices: the kernel's `/dev/binder` and fakebinder's
//! `/dev/fakebinder` alike.
//!
//! The library writes what a program wants to write to the driver, and gives back what the driver
//! returned: nothing is retried, cached, freed or answered behind the caller's back, and there are
//! no threads. Only [`Thread`] has a loop in it, for programs that want to call and serve without
//! watching every return.
//!
//! - [`Device`]: one open of a device, with a wrapper for each ioctl, its mapping, and poll
//! - [`Command`]: what can be written (`BC_*`), and how it looks in the write buffer
//! - [`Return`]: what can be read (`BR_*`); [`Transaction`] is the payload of the important ones
//! - [`Parcel`] and [`Object`]: the data of an outgoing transaction, with its objects and offsets
//! - [`Call`]: an outgoing transaction or reply: target, code, flags, parcel
//! - [`Mapping`]: the memory that incoming transactions lie in
//! - [`Thread`]: calls, replies and served calls of one thread
//! - [`connect`], [`handshake`], [`Files`]: the attach handshake and what comes through its socket,
//!   for programs that open devices by themselves
//! - [`Error`]: an errno, the operation and the device
//!
//! ```no_run
//! use fakebinder_client::{Call, Device, Parcel, Reply, Thread};
//!
//! # fn main() -> Result<(), fakebinder_client::Error> {
//! let mut device = Device::open("/dev/fakebinder")?;
//! device.mmap(1 << 20)?;
//! let mut parcel = Parcel::new();
//! parcel.u32(42);
//! // Handle 0 is the context manager.
//! match Thread::new(&device).call(&Call::to(0).code(1).parcel(&parcel))? {
//!     Reply::Data(bytes) => println!("{} bytes came back", bytes.data.len()),
//!     other => println!("no reply: {other:?}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Hostile input for tests: [`Command::Raw`] writes any bytes, [`Device::raw_write_read`] takes a
//! `binder_write_read` as it is, and [`Device::raw_ioctl`] any number and pointer.
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub use fakebinder::uapi;
pub use nix::errno::Errno;

mod attach;
mod call;
mod command;
mod device;
mod error;
mod files;
mod mapping;
mod object;
mod parcel;
mod returns;
#[allow(unsafe_code, reason = "the one place that talks to the kernel and to mapped memory")]
mod sys;
mod thread;
mod transaction;

pub use attach::{
    Attached, KernelMapping, attach, connect, handshake, kernel_copies_arguments, kernel_mapping,
    must_attach,
};
pub use call::Call;
pub use command::Command;
pub use device::{Device, Transfer};
pub use error::{Error, Result};
pub use files::Files;
pub use mapping::Mapping;
pub use object::Object;
pub use parcel::Parcel;
pub use returns::{Return, Returns};
pub use thread::{Reply, Thread};
pub use transaction::{Contents, Transaction};
