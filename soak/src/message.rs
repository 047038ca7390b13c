//! The bytes of honest messages: a header, and a body that follows from it.

use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::SplitMix64;

/// Length of the header in bytes. The body follows, then whatever objects there are.
pub const HEADER: usize = 32;
/// Where the seed lies in it.
const SEED: usize = 24;

/// The two messages of a call have different bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Request,
    Reply,
}

/// What a message begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The thread that calls: no two threads of a run have the same number.
    pub caller: u32,
    /// 0 in a request; in a reply what was wrong with the request: see [`verdict`].
    pub verdict: u32,
    /// What the operation needs besides: see `serve.rs`.
    pub extra: u32,
    /// Length of the body in bytes.
    pub size: u32,
    /// Grows with each message of a caller; a reply has that of its request.
    pub sequence: u64,
    /// The seed of the run.
    pub seed: u64,
}

impl Header {
    /// Appends the header and the body.
    pub fn write(&self, direction: Direction, out: &mut Vec<u8>) {
        for half in [self.caller, self.verdict, self.extra, self.size] {
            out.extend_from_slice(&half.to_ne_bytes());
        }
        out.extend_from_slice(&self.sequence.to_ne_bytes());
        out.extend_from_slice(&self.seed.to_ne_bytes());
        let mut stream = self.stream(direction);
        let size = self.size as usize;
        for _ in 0..size / 8 {
            out.extend_from_slice(&stream.next_u64().to_le_bytes());
        }
        out.extend_from_slice(&stream.next_u64().to_le_bytes()[..size % 8]);
    }

    /// The header of a message of the run with this seed that is right to the last byte of its body;
    /// else the position of the first byte that is missing or wrong.
    pub fn read(direction: Direction, seed: u64, message: &[u8]) -> Result<Header, usize> {
        let Some((head, rest)) = message.split_first_chunk::<HEADER>() else {
            return Err(message.len());
        };
        let half = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| head[at + byte]));
        let word = |at: usize| {
            u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|byte: usize| head[at + byte]))
        };
        let header = Header {
            caller: half(0),
            verdict: half(4),
            extra: half(8),
            size: half(12),
            sequence: word(16),
            seed: word(SEED),
        };
        if header.seed != seed {
            return Err(SEED);
        }
        let body = rest.get(..header.size as usize).ok_or(message.len())?;
        let mut stream = header.stream(direction);
        for (index, chunk) in body.chunks(8).enumerate() {
            let expected = stream.next_u64().to_le_bytes();
            if let Some(inside) = chunk.iter().zip(expected).position(|(&is, should)| is != should)
            {
                return Err(HEADER + index * 8 + inside);
            }
        }
        Ok(header)
    }

    /// Everything in the header changes the body, so that a wrong header is found, too.
    fn stream(&self, direction: Direction) -> SplitMix64 {
        let way = match direction {
            Direction::Request => 0x5bd1_e995,
            Direction::Reply => 0xc2b2_ae35,
        };
        let halves = [(self.caller, self.verdict), (self.extra, self.size)];
        let words = halves.map(|(high, low)| u64::from(high) << 32 | u64::from(low));
        let mut mixed = self.seed ^ way;
        for word in [words[0], words[1], self.sequence] {
            mixed = SplitMix64::seed_from_u64(mixed ^ word).next_u64();
        }
        SplitMix64::seed_from_u64(mixed)
    }
}

/// What a reply says about its request: 0 when every byte was right, else 1 plus the position of
/// the first wrong one.
pub fn verdict(request: &Result<Header, usize>) -> u32 {
    request.as_ref().map_or_else(|position| *position as u32 + 1, |_| 0)
}

/// Whether this is the right reply to that request: the same call's, with nothing wrong in it nor
/// in what its server has read. Gives the reply's header.
pub fn right_reply(request: &Header, size: u32, reply: &[u8]) -> Result<Header, String> {
    let header = Header::read(Direction::Reply, request.seed, reply)
        .map_err(|at| format!("byte {at} of {} of the reply is wrong", reply.len()))?;
    if header.verdict != 0 {
        return Err(format!("byte {} of the request was wrong at the server", header.verdict - 1));
    }
    let expected = Header { extra: header.extra, size, ..*request };
    if header != expected {
        return Err(format!("the reply is another call's: {header:?}, and not {expected:?}"));
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Header =
        Header { caller: 1, verdict: 0, extra: 2, size: 21, sequence: 3, seed: 4 };

    fn bytes(header: Header, direction: Direction) -> Vec<u8> {
        let mut bytes = Vec::new();
        header.write(direction, &mut bytes);
        bytes
    }

    #[test]
    fn any_changed_byte_is_found() {
        for size in [0, 1, 7, 8, 9, 100] {
            let header = Header { size, ..REQUEST };
            let mut message = bytes(header, Direction::Request);
            assert_eq!(Header::read(Direction::Request, 4, &message), Ok(header));
            // A body of one byte may happen to be right for another header, too.
            let first = if size < 8 { HEADER } else { 0 };
            for position in first..message.len() {
                message[position] ^= 1;
                let read = Header::read(Direction::Request, 4, &message);
                assert!(read.is_err(), "{size} bytes, byte {position}: {read:?}");
                message[position] ^= 1;
            }
            message.pop();
            assert!(Header::read(Direction::Request, 4, &message).is_err());
        }
    }

    #[test]
    fn only_the_right_reply_is_one() {
        let reply = Header { size: 40, extra: 7, ..REQUEST };
        let judged = |header, direction| right_reply(&REQUEST, 40, &bytes(header, direction));
        assert_eq!(judged(reply, Direction::Reply), Ok(reply));
        let wrong = [
            (reply, Direction::Request, "byte 32 of"),
            (Header { sequence: 2, ..reply }, Direction::Reply, "another call's"),
            (Header { caller: 9, ..reply }, Direction::Reply, "another call's"),
            (Header { size: 41, ..reply }, Direction::Reply, "another call's"),
            (Header { verdict: 33, ..reply }, Direction::Reply, "byte 32 of the request"),
        ];
        for (header, direction, reason) in wrong {
            let error = judged(header, direction).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert!(right_reply(&REQUEST, 40, &[]).is_err());
        assert!(right_reply(&REQUEST, 0, &[0; HEADER]).is_err());
    }
}
