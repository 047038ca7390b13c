//! Binder's protocol, from and to bytes: what programs write to a device and read from it.
//!
//! Nothing here does input or output, and nothing depends on which side speaks. The driver, the
//! client library, the CUSE door's gathering of a client's memory, tests and fuzz targets all use
//! this one codec.
//!
//! - [`command`]: what a client writes (`BC_*`)
//! - [`returns`]: what a client reads (`BR_*`)
//! - [`names`]: what those are called
//! - [`object`]: what lies in a transaction's data
//! - [`record`]: the structures that these and the ioctls are made of
//!
//! Byte order is the machine's. Nothing is aligned: the driver copies a record from and to any
//! address. Every length is checked before anything is read; a record that is cut short is `None`.
#![forbid(unsafe_code)]

pub mod command;
pub mod names;
pub mod object;
pub mod record;
pub mod returns;
