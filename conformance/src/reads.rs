//! What processes read: in words, and decoded.

use fakebinder_client::{Errno, Object, Return, Transaction};
use std::fmt::Write as _;
use std::ops::Deref;

/// The result of a BINDER_WRITE_READ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Io {
    pub(super) result: Result<(), Errno>,
    /// `write_consumed` and `read_consumed`.
    pub(super) written: u64,
    pub(super) filled: u64,
}

/// What was read: in words, and decoded.
#[derive(Debug, Clone)]
pub(super) struct Reads {
    pub(super) text: String,
    pub(super) returns: Vec<Return>,
    pub(super) received: Vec<Received>,
}

/// A transaction or reply with its data, copied out of the receiver's mapping.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) transaction: Transaction,
    /// Whether the receiver could read the buffer.
    pub(super) readable: bool,
    pub(super) data: Vec<u8>,
    pub(super) offsets: Vec<u64>,
    /// Offset of the buffer in the mapping.
    pub(super) at: u64,
}

impl Deref for Received {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        &self.transaction
    }
}

impl Received {
    /// The object at the offset of this index.
    #[track_caller]
    pub(super) fn object(&self, index: usize) -> Object {
        let offset = self.offsets[index] as usize;
        Object::decode(&self.data[offset..]).expect("an object")
    }

    /// The handle at this index.
    #[track_caller]
    pub(super) fn handle(&self, index: usize) -> u32 {
        match self.object(index) {
            Object::Handle { handle, .. } | Object::WeakHandle { handle, .. } => handle,
            other => panic!("expected a handle, got {other:?}"),
        }
    }
}

impl Reads {
    /// The transaction or reply that was read.
    #[track_caller]
    pub(super) fn transaction(&self) -> &Received {
        let first = self.received.first();
        let first = first.unwrap_or_else(|| panic!("no transaction in {}", self.text));
        assert!(first.readable, "the buffer of {:x?} cannot be read", first.transaction);
        first
    }
}

/// A return as scenes write it: the name without `BR_`, and the payload of the small ones.
pub(super) fn in_words(what: &Return) -> String {
    let mut text = what.name().trim_start_matches("BR_").to_owned();
    match what {
        Return::Increfs { ptr, cookie }
        | Return::Acquire { ptr, cookie }
        | Return::Release { ptr, cookie }
        | Return::Decrefs { ptr, cookie } => {
            let _ = write!(text, "({ptr},{cookie})");
        }
        Return::DeadBinder(cookie)
        | Return::ClearDeathNotificationDone(cookie)
        | Return::ClearFreezeNotificationDone(cookie) => {
            let _ = write!(text, "({cookie})");
        }
        Return::FrozenBinder { cookie, is_frozen } => {
            let _ = write!(text, "({cookie},{is_frozen})");
        }
        Return::Unknown(number) => {
            let _ = write!(text, "({number:#x})");
        }
        _ => {}
    }
    text
}
