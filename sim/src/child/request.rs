//! Requests to a thread of a child, as they go through its socket.

use nix::sys::signal::Signal;

/// A request to a thread of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A system call: its number and its arguments. The result is the value or the negative errno.
    Call(u64, [u64; 6]),
    /// Sets what happens on a signal. The result is 0 or a negative errno.
    Catch(Signal, Catch),
    /// Makes a child process, which serves the spare socket of that index. The result is its id.
    Fork(usize),
    /// Ends the thread; when the first thread ends, the process ends. There is no result.
    Exit,
    /// A request that the child's own [`CarryOut`](super::CarryOut) knows by that number.
    Special(u64, [u64; 6]),
}

/// What a process does about a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Catch {
    /// A handler that does nothing; system calls are interrupted.
    Plain,
    /// The same handler; system calls are restarted where they can be.
    Restart,
    /// SIG_IGN.
    Ignore,
}

const WORDS: usize = 8;

/// A request as it is sent.
pub(super) type Packet = [u8; WORDS * 8];

impl Request {
    pub(super) fn encode(self) -> Packet {
        let words: [u64; WORDS] = match self {
            Request::Call(number, [a, b, c, d, e, f]) => [0, number, a, b, c, d, e, f],
            Request::Catch(signal, how) => [1, signal as u64, how as u64, 0, 0, 0, 0, 0],
            Request::Fork(spare) => [2, spare as u64, 0, 0, 0, 0, 0, 0],
            Request::Exit => [3, 0, 0, 0, 0, 0, 0, 0],
            Request::Special(number, [a, b, c, d, e, f]) => [4, number, a, b, c, d, e, f],
        };
        let mut packet = [0; WORDS * 8];
        for (bytes, word) in packet.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        packet
    }

    pub(super) fn decode(packet: &Packet) -> Option<Request> {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(packet.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let [kind, a, b, c, d, e, f, g] = words;
        Some(match kind {
            0 => Request::Call(a, [b, c, d, e, f, g]),
            1 => {
                let how = [Catch::Plain, Catch::Restart, Catch::Ignore].get(b as usize).copied()?;
                Request::Catch(Signal::try_from(a as i32).ok()?, how)
            }
            2 => Request::Fork(a as usize),
            3 => Request::Exit,
            4 => Request::Special(a, [b, c, d, e, f, g]),
            _ => return None,
        })
    }
}
