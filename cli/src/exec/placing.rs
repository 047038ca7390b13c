//! Putting descriptors into a process while one of its threads waits, and closing them there.
//!
//! The kernel adds a descriptor to a process for its supervisor, at the lowest free number, and
//! replaces one; it removes none. So what is to be closed is replaced by a placeholder, a file that
//! is nobody's. Its number is the next that is given out, as if it were free.

use super::listener::Waiting;
use super::target::{self, PLACEHOLDER};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

/// The file at the numbers that count as free; none as long as nothing was closed.
static CLOSED: OnceLock<OwnedFd> = OnceLock::new();

fn placeholder() -> Result<&'static OwnedFd, Errno> {
    if CLOSED.get().is_none() {
        let _ = CLOSED.set(memfd_create(PLACEHOLDER, MFdFlags::MFD_CLOEXEC)?);
    }
    CLOSED.get().ok_or(Errno::EMFILE)
}

/// Places files, all or none, and returns their numbers: the lowest that are free. EMFILE: too few
/// are free; ENOENT: the thread is gone.
pub fn place(waiting: &Waiting, files: &[OwnedFd]) -> Result<Vec<i32>, Errno> {
    let places = free(waiting.tid, files.len())?;
    let mut numbers = Vec::with_capacity(files.len());
    for (file, place) in files.iter().zip(places) {
        match waiting.add(file.as_fd(), place) {
            Ok(number) => numbers.push(number),
            Err(errno) => {
                close(waiting, &numbers);
                return Err(errno);
            }
        }
    }
    Ok(numbers)
}

/// So many free places in the process of a thread, the lowest first: each a placeholder's number,
/// or none for the next number that is not in use. EMFILE: there are not so many.
fn free(tid: i32, count: usize) -> Result<Vec<Option<i32>>, Errno> {
    let used = target::numbers(tid, CLOSED.get().is_some()).unwrap_or_default();
    let limit = target::limit(tid).unwrap_or(u64::MAX);
    let limit = i32::try_from(limit).unwrap_or(i32::MAX);
    let place = |number: i32| match used.get(&number) {
        None => Some(None),
        Some(true) => Some(Some(number)),
        Some(false) => None,
    };
    let places: Vec<_> = (0..limit).filter_map(place).take(count).collect();
    if places.len() == count { Ok(places) } else { Err(Errno::EMFILE) }
}

/// Closes descriptors as far as that can be done. Numbers that are not open are passed over.
pub fn close(waiting: &Waiting, numbers: &[i32]) {
    let Ok(placeholder) = placeholder() else { return };
    for number in numbers {
        if target::link(waiting.tid, *number).is_some() {
            let _ = waiting.add(placeholder.as_fd(), Some(*number));
        }
    }
}
