//! Writes the log on a thread of its own, so that no other thread ever waits for it.
//!
//! Standard error may be a pipe that nobody reads, or a file on a busy disk, and lines are written
//! under any lock. So a line goes into a queue of bounded size, and lines that do not fit are
//! counted and reported.

#![allow(clippy::disallowed_types, reason = "a leaf that may be taken under any lock")]

use crate::client_log;
use nix::sys::signal::{SigSet, SigmaskHow};
use parking_lot::{Condvar, Mutex};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{mem, thread};

/// Bytes that may wait to be written.
const QUEUE: usize = 1 << 20;

/// How long the end of the program waits for lines that are still to be written.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Lines that found no room.
    lost: u64,
    /// The thread is writing what it has taken out of the queue.
    writing: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when there is something to write.
    filled: Condvar,
    /// Signalled when everything was written.
    emptied: Condvar,
}

/// The writer of the logger. It never waits.
#[derive(Debug)]
pub struct LogWriter(Arc<Shared>);

/// When dropped, waits until everything is written, but not for ever.
#[derive(Debug)]
pub struct Drain(Arc<Shared>);

/// A writer that hands what it gets to `out`, on a thread of its own.
pub fn start(out: impl Write + Send + 'static) -> io::Result<(LogWriter, Drain)> {
    let shared = Arc::<Shared>::default();
    let theirs = shared.clone();
    // The thread must not take a signal that other threads wait for, so it starts with all blocked.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let started = thread::Builder::new().name("log".into()).spawn(move || theirs.write_to(out));
    before.thread_set_mask()?;
    started?;
    Ok((LogWriter(shared.clone()), Drain(shared)))
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.queue.lock();
        if queue.bytes.len() + line.len() > QUEUE {
            queue.lost += 1;
        } else {
            queue.bytes.extend_from_slice(line);
            self.0.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drain {
    /// Waits until what has been logged so far is written, but not for ever.
    pub fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut queue = self.0.queue.lock();
        while queue.writing || !queue.bytes.is_empty() {
            if self.0.emptied.wait_until(&mut queue, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.wait();
    }
}

impl Shared {
    fn write_to(&self, mut out: impl Write) {
        // When the client log has a summary of suppressed lines to write.
        let mut summary = None;
        loop {
            let mut queue = self.queue.lock();
            queue.writing = false;
            while queue.bytes.is_empty() {
                self.emptied.notify_all();
                match summary {
                    None => self.filled.wait(&mut queue),
                    Some(at) => {
                        if self.filled.wait_until(&mut queue, at).timed_out() {
                            break;
                        }
                    }
                }
            }
            let (bytes, lost) = (mem::take(&mut queue.bytes), mem::take(&mut queue.lost));
            queue.writing = true;
            drop(queue);
            // Where the log cannot be written, that cannot be reported either.
            let _ = out.write_all(&bytes);
            if lost > 0 {
                let _ = writeln!(out, "{lost} lines of the log were lost: they came too fast");
            }
            let _ = out.flush();
            summary = client_log::log_summary().map(|after| Instant::now() + after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Accepts bytes once it is allowed to.
    struct Gate {
        open: mpsc::Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.open.recv();
            self.taken.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_log_that_is_not_read_and_what_was_lost_is_told() {
        let (open_gate, open) = mpsc::channel();
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let gate = Gate { open, taken: taken.clone() };
        let (mut writer, drain) = start(gate).expect("a thread");
        let line = [b'x'; 1024];
        let lines = 3 * QUEUE / line.len();
        for _ in 0..lines {
            writer.write_all(&line).expect("never fails");
        }
        assert!(writer.0.queue.lock().bytes.len() <= QUEUE);
        drop(open_gate);
        drop(drain);
        let taken = taken.lock();
        let told = String::from_utf8_lossy(&taken);
        assert!(told.contains("lines of the log were lost"), "{} bytes", taken.len());
        assert!(taken.len() <= 2 * QUEUE + 100);
    }

    #[test]
    fn the_end_does_not_wait_for_ever() {
        let (_never, open) = mpsc::channel();
        let (mut writer, drain) = start(Gate { open, taken: Arc::default() }).expect("a thread");
        writer.write_all(b"stuck\n").expect("never fails");
        let start = Instant::now();
        drop(drain);
        assert!(start.elapsed() >= PATIENCE);
    }
}
