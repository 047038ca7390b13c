//! The bytes of messages: a header that determines what they must be, then a seeded pattern.

use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::SplitMix64;

/// Length of the header in bytes.
pub const HEADER: usize = 24;

/// The direction of a message: the two messages of a transaction carry different bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Request,
    Reply,
}

/// The header, on which the bytes behind it depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub seed: u64,
    pub client: u32,
    /// 0 in a request; in a reply the [`verdict`] on the request.
    pub verdict: u32,
    pub sequence: u64,
}

impl Header {
    /// Writes the header and `payload` bytes behind it.
    pub fn message(&self, direction: Direction, payload: usize, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.seed.to_ne_bytes());
        out.extend_from_slice(&self.client.to_ne_bytes());
        out.extend_from_slice(&self.verdict.to_ne_bytes());
        out.extend_from_slice(&self.sequence.to_ne_bytes());
        let mut stream = self.stream(direction);
        for _ in 0..payload / 8 {
            out.extend_from_slice(&stream.next_u64().to_le_bytes());
        }
        out.extend_from_slice(&stream.next_u64().to_le_bytes()[..payload % 8]);
    }

    /// Reads the header of a message.
    pub fn of(message: &[u8]) -> Option<Header> {
        let word = |at: usize| Some(u64::from_ne_bytes(message.get(at..at + 8)?.try_into().ok()?));
        let half = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
        Some(Header { seed: word(0)?, client: half(8)?, verdict: half(12)?, sequence: word(16)? })
    }

    /// The position of the first wrong byte behind the header.
    pub fn first_wrong(&self, direction: Direction, message: &[u8]) -> Option<usize> {
        let mut stream = self.stream(direction);
        let body = message.get(HEADER..).unwrap_or_default();
        for (index, chunk) in body.chunks(8).enumerate() {
            let expected = stream.next_u64().to_le_bytes();
            if chunk != &expected[..chunk.len()] {
                let inside = chunk.iter().zip(expected).position(|(&a, b)| a != b);
                return Some(HEADER + index * 8 + inside.unwrap_or(0));
            }
        }
        None
    }

    fn stream(&self, direction: Direction) -> SplitMix64 {
        let way = match direction {
            Direction::Request => 0x5bd1_e995,
            Direction::Reply => 0xc2b2_ae35,
        };
        let seed = self.seed ^ (u64::from(self.client) << 40) ^ (way << 8);
        let mixed = SplitMix64::seed_from_u64(seed).next_u64();
        SplitMix64::seed_from_u64(mixed ^ self.sequence)
    }
}

/// A reply's verdict on its request: 0 when every byte was right, else 1 plus the position of the
/// first wrong byte.
pub fn verdict(request: &[u8]) -> u32 {
    match Header::of(request) {
        None => 1,
        Some(header) => header
            .first_wrong(Direction::Request, request)
            .map_or(0, |position| position as u32 + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_is_found() {
        let header = Header { seed: 1, client: 2, verdict: 0, sequence: 3 };
        for payload in [0, 1, 7, 8, 9, 100] {
            let mut message = Vec::new();
            header.message(Direction::Request, payload, &mut message);
            assert_eq!(message.len(), HEADER + payload);
            assert_eq!(verdict(&message), 0);
            for position in HEADER..message.len() {
                message[position] ^= 1;
                assert_eq!(verdict(&message) as usize, position + 1);
                message[position] ^= 1;
            }
        }
    }

    #[test]
    fn messages_differ_by_direction_client_and_sequence() {
        let header = Header { seed: 1, client: 2, verdict: 0, sequence: 3 };
        let body = |header: Header, direction| {
            let mut message = Vec::new();
            header.message(direction, 16, &mut message);
            message.split_off(HEADER)
        };
        let one = body(header, Direction::Request);
        assert_ne!(one, body(header, Direction::Reply));
        assert_ne!(one, body(Header { client: 3, ..header }, Direction::Request));
        assert_ne!(one, body(Header { sequence: 4, ..header }, Direction::Request));
    }
}
