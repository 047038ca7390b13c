//! What clients do and are told, byte by byte, for whoever records it (`fakebinder record`, by
//! [`uapi::FAKEBINDER_RECORD`]).
//!
//! Nobody records, mostly: then a record costs a look at one word. There is room for so many bytes
//! that were not taken yet. A recording with a hole could not be replayed, so it ends where there
//! is no room: the driver waits for nobody.
#![expect(
    clippy::disallowed_types,
    reason = "a leaf without a rank, which any lock may be held over"
)]

use crate::Errno;
use crate::uapi::{self, fakebinder_record};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes that a recording may have before they are taken.
pub const ROOM: usize = 16 << 20;

/// What the recording wants ([`uapi::FAKEBINDER_RECORD_ON`] and others), 0 when there is none.
static WANTED: AtomicU32 = AtomicU32::new(0);
static RECORDING: Mutex<Option<Recording>> = Mutex::new(None);
static LAST_RECORDER: AtomicU64 = AtomicU64::new(0);

struct Recording {
    recorder: u64,
    context: u64,
    bytes: VecDeque<u8>,
    is_full: bool,
}

/// Somebody who records a context, from the making of this value until it is dropped.
#[derive(Debug)]
pub struct Recorder {
    number: u64,
    wanted: u32,
}

impl Recorder {
    /// Begins to record. EINVAL: an unknown flag, or not [`uapi::FAKEBINDER_RECORD_ON`]; EBUSY:
    /// somebody records already.
    pub fn new(context: u64, wanted: u32) -> Result<Recorder, Errno> {
        let known = uapi::FAKEBINDER_RECORD_ON | uapi::FAKEBINDER_RECORD_DATA;
        if wanted & uapi::FAKEBINDER_RECORD_ON == 0 || wanted & !known != 0 {
            return Err(Errno::EINVAL);
        }
        let number = LAST_RECORDER.fetch_add(1, Ordering::Relaxed) + 1;
        let mut recording = RECORDING.lock();
        if recording.is_some() {
            return Err(Errno::EBUSY);
        }
        let bytes = VecDeque::new();
        *recording = Some(Recording { recorder: number, context, bytes, is_full: false });
        WANTED.store(wanted, Ordering::Relaxed);
        Ok(Recorder { number, wanted })
    }

    /// What is wanted.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Takes the earliest bytes, as many as there is room for in `bytes`; returns how many, and
    /// whether the recording ends with what is left.
    pub fn take(&self, bytes: &mut [u8]) -> (usize, bool) {
        let mut recording = RECORDING.lock();
        let Some(recording) = recording.as_mut().filter(|it| it.recorder == self.number) else {
            return (0, true);
        };
        let count = bytes.len().min(recording.bytes.len());
        for (place, byte) in bytes.iter_mut().zip(recording.bytes.drain(..count)) {
            *place = byte;
        }
        (count, recording.is_full)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        WANTED.store(0, Ordering::Relaxed);
        let gone = RECORDING.lock().take();
        drop(gone);
    }
}

/// Whether somebody records, and wants all of `flags`.
#[inline]
pub fn is_wanted(flags: u32) -> bool {
    WANTED.load(Ordering::Relaxed) & flags == flags
}

/// Records what a thread of a context did. `record` has its process and its thread; the length and
/// the time are set here.
#[cold]
pub fn note(context: u64, record: fakebinder_record, body: &[&[u8]]) {
    let mut recording = RECORDING.lock();
    let Some(recording) = recording.as_mut().filter(|it| it.context == context) else {
        return;
    };
    let length: usize = body.iter().map(|part| part.len()).sum();
    let whole = size_of::<fakebinder_record>() + length;
    if recording.is_full || recording.bytes.len() + whole > ROOM {
        recording.is_full = true;
        return;
    }
    let record = fakebinder_record { at: crate::events::now(), length: length as u32, ..record };
    recording.bytes.extend(uapi::bytes_of(&record));
    for part in body {
        recording.bytes.extend(*part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is one recording at a time, so this is one test.
    #[test]
    fn a_recording_has_all_of_its_context_until_there_is_no_room() {
        let of = |context, body: &[u8]| note(context, fakebinder_record::default(), &[body]);
        let on = uapi::FAKEBINDER_RECORD_ON;
        assert!(!is_wanted(on));
        of(7, b"before");
        let recorder = Recorder::new(7, on).unwrap();
        assert_eq!(Recorder::new(7, on).unwrap_err(), Errno::EBUSY);
        assert!(is_wanted(on) && !is_wanted(uapi::FAKEBINDER_RECORD_DATA));
        of(8, b"of another");
        of(7, b"one");
        let mut bytes = [0; 100];
        assert_eq!(recorder.take(&mut bytes[..30]), (30, false));
        assert_eq!(recorder.take(&mut bytes[30..]), (5, false), "{bytes:?}");
        let record: fakebinder_record = uapi::parse(&bytes[..32]).unwrap();
        assert!(record.length == 3 && record.at > 0 && &bytes[32..35] == b"one");
        of(7, &vec![1; ROOM - 64]);
        of(7, b"no room for it");
        of(7, b"");
        let mut all = vec![0; ROOM];
        assert_eq!(recorder.take(&mut all), (ROOM - 32, true), "nothing behind a hole");
        drop(recorder);
        assert!(!is_wanted(on));
        assert_eq!(Recorder::new(1, 0).unwrap_err(), Errno::EINVAL);
        assert_eq!(Recorder::new(1, 1 << 9 | on).unwrap_err(), Errno::EINVAL);
    }
}
