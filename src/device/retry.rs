//! Ioctls of clients whose memory the daemon may not reach (no ptrace access, as under Yama or in a
//! container): the kernel copies instead, if it is told beforehand what to copy.
//!
//! CUSE's retry protocol: an ioctl comes without data; the daemon answers with ranges of the
//! caller's memory; the ioctl comes again with what lies there; and so on, until all data is here.
//! An ioctl has effects, so it is carried out only when everything that it will look at is here:
//! the argument, the commands that it points to, the data and offsets that those point to, and the
//! scatter-gather buffers that the objects in the data point to.
//!
//! Nothing is remembered between two rounds, since the kernel may give the ioctl up there without a
//! word (a range outside of the caller's memory, a fatal signal). What was asked for before is
//! computed anew from what has come: each round asks for the ranges of the round before, in the
//! same order, and for more behind them. A client that changes meanwhile what its ranges depend on
//! gets EFAULT, or its own bytes from elsewhere in its own memory.

use crate::Errno;
use crate::client_log::{Kind, client_log};
use crate::client_mem::{ClientMemory, GatheredMemory};
use crate::protocol::command::Command;
use crate::protocol::object::Object;
use crate::protocol::record::{Record, WriteRead};
use crate::uapi::{self, fuse_ioctl_iovec as Range};

/// What the rounds bring: nothing, argument, commands, data and offsets, scatter-gather buffers.
const MOST_ROUNDS: usize = 5;
/// `FUSE_IOCTL_MAX_IOV`, for both directions together.
const MOST_RANGES: usize = 256;
/// `FUSE_DEFAULT_MAX_PAGES_PER_REQ`, for each direction: CUSE cannot negotiate more.
const MOST_BYTES: u64 = 32 * 4096;
/// How much of a read buffer is offered at most: the argument must fit beside it.
const MOST_READ: u64 = MOST_BYTES / 2;

/// The stretches of memory that the kernel is asked for.
#[derive(Debug, Default)]
pub struct Needs {
    input: Vec<Range>,
    output: Vec<Range>,
}

/// What to do with an ioctl that has come (again).
#[derive(Debug)]
pub enum Step {
    /// Ask for the ioctl once more, with these.
    Again(Needs),
    /// All data is here.
    Ready {
        /// The argument of the ioctl, as copied in.
        argument: Vec<u8>,
        /// What the kernel has copied of the memory that the argument points to.
        memory: GatheredMemory,
        /// Where the kernel copies out: the argument, if it is copied out, and the read buffer.
        output: Vec<Range>,
        /// The client's own `read_size`, if the argument has a smaller one: what the kernel can
        /// carry.
        read_size: Option<u64>,
    },
}

impl Needs {
    /// The stretches that the kernel is asked to copy in, the argument first.
    pub fn input(&self) -> &[Range] {
        &self.input
    }
    /// The stretches that the kernel is asked to copy out.
    pub fn output(&self) -> &[Range] {
        &self.output
    }

    fn is(&self, other: &Needs) -> bool {
        same(&self.input, &other.input) && same(&self.output, &other.output)
    }
}

/// One round. `bytes` is what the kernel has gathered, and `room` the number of bytes that it will
/// take back, both as asked for in the round before. EFAULT when they do not match that.
pub fn step(cmd: u32, addr: u64, bytes: &[u8], room: usize) -> Result<Step, Errno> {
    let mut asked = Needs::default();
    for _ in 0..MOST_ROUNDS {
        let gathered = bytes.get(..total(&asked.input)).ok_or(Errno::EFAULT)?;
        let memory = GatheredMemory::new(
            asked.input.iter().map(|range| (range.base, range.len as usize)),
            gathered,
            asked.output.iter().map(|range| (range.base, range.len as usize)),
        )
        .ok_or(Errno::EFAULT)?;
        let needs = needs(cmd, addr, &memory);
        let complete = needs.is(&asked);
        if (gathered.len(), total(&asked.output)) == (bytes.len(), room) {
            return Ok(match complete {
                true => ready(cmd, addr, memory, needs),
                false => Step::Again(needs),
            });
        }
        if complete {
            break;
        }
        asked = needs;
    }
    Err(Errno::EFAULT)
}

/// The sum of the ranges' lengths.
fn total(ranges: &[Range]) -> usize {
    ranges.iter().map(|range| range.len as usize).sum()
}

fn same(a: &[Range], b: &[Range]) -> bool {
    let key = |range: &Range| (range.base, range.len);
    a.iter().map(key).eq(b.iter().map(key))
}

fn ready(cmd: u32, addr: u64, memory: GatheredMemory, needs: Needs) -> Step {
    let mut argument = vec![0; uapi::ioc_size(cmd)];
    if uapi::ioc_copies_in(cmd) && memory.read(addr, &mut argument).is_err() {
        argument.fill(0);
    }
    let mut read_size = None;
    if cmd == uapi::BINDER_WRITE_READ
        && let Some(bwr) = WriteRead::at(&argument)
    {
        // The engine must not give more than the kernel will carry; the client gets its own number
        // back.
        let room = needs.output.get(1).map_or(0, |range| range.len);
        let offered = bwr.read_size.min(bwr.read_consumed.saturating_add(room));
        argument[READ_SIZE].copy_from_slice(&offered.to_ne_bytes());
        read_size = Some(bwr.read_size);
    }
    Step::Ready { argument, memory, output: needs.output, read_size }
}

/// Where `read_size` lies in the bytes of a `binder_write_read`.
pub const READ_SIZE: std::ops::Range<usize> = {
    let start = std::mem::offset_of!(WriteRead, read_size);
    start..start + size_of::<u64>()
};

/// Everything that the ioctl will look at, as far as the gathered data tells.
fn needs(cmd: u32, addr: u64, memory: &GatheredMemory) -> Needs {
    let mut needs = Needs::default();
    let size = uapi::ioc_size(cmd) as u64;
    if super::reads_argument(cmd) {
        push(&mut needs.input, 0, addr, size);
    }
    if uapi::ioc_copies_out(cmd) {
        push(&mut needs.output, 0, addr, size);
    }
    if cmd != uapi::BINDER_WRITE_READ {
        return needs;
    }
    let mut argument = vec![0; size as usize];
    if memory.read(addr, &mut argument).is_err() {
        return needs;
    }
    let Some(bwr) = WriteRead::at(&argument) else { return needs };

    if bwr.read_size > bwr.read_consumed {
        let room = (bwr.read_size - bwr.read_consumed).min(MOST_READ);
        push(&mut needs.output, 0, bwr.read_buffer.wrapping_add(bwr.read_consumed), room);
    }
    if bwr.write_size > bwr.write_consumed {
        let start = bwr.write_buffer.wrapping_add(bwr.write_consumed);
        let length = bwr.write_size - bwr.write_consumed;
        let outputs = needs.output.len();
        push(&mut needs.input, outputs, start, length);
        let mut commands = vec![0; length.min(MOST_BYTES) as usize];
        if memory.read(start, &mut commands).is_ok() {
            push_transactions(&mut needs, &commands, memory);
        }
    }
    needs
}

/// Adds a range if the kernel's limits allow that; otherwise the engine will find a fault there.
fn push(ranges: &mut Vec<Range>, others: usize, base: u64, len: u64) -> bool {
    let total = total(ranges) as u64;
    if len == 0 {
        return true;
    }
    if ranges.len() + others >= MOST_RANGES || len > MOST_BYTES - total {
        client_log!(
            Kind::GatherTooLarge,
            "a client passes {len} bytes at once: beyond what can be copied without ptrace access"
        );
        return false;
    }
    ranges.push(Range { base, len });
    true
}

fn push_transactions(needs: &mut Needs, mut commands: &[u8], memory: &GatheredMemory) {
    let outputs = needs.output.len();
    let mut messages = Vec::new();
    // Nothing behind an unknown command is carried out.
    while let Some((command, rest)) = Command::take(commands) {
        commands = rest;
        let (Command::Transaction(transaction)
        | Command::Reply(transaction)
        | Command::TransactionSg(transaction, _)
        | Command::ReplySg(transaction, _)) = command
        else {
            continue;
        };
        let data = (transaction.buffer, transaction.data_size);
        let offsets = (transaction.offsets, transaction.offsets_size);
        if push(&mut needs.input, outputs, data.0, data.1)
            && push(&mut needs.input, outputs, offsets.0, offsets.1)
        {
            messages.push((data, offsets));
        }
    }
    // Only when all of it is here: the ranges of a round begin with those of the round before.
    let all: Option<Vec<_>> = messages
        .into_iter()
        .map(|(data, offsets)| Some((gathered(memory, data)?, gathered(memory, offsets)?)))
        .collect();
    for (data, offsets) in all.unwrap_or_default() {
        push_buffers(needs, &data, &offsets);
    }
}

/// What lies in a range that was asked for, if it has come.
fn gathered(memory: &GatheredMemory, (base, len): (u64, u64)) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    memory.read(base, &mut bytes).ok().map(|()| bytes)
}

/// The scatter-gather buffers that the objects of a transaction point to.
fn push_buffers(needs: &mut Needs, data: &[u8], offsets: &[u8]) {
    let outputs = needs.output.len();
    for offset in offsets.chunks_exact(8).filter_map(u64::at) {
        // An object that cannot be read is reported by the engine.
        if let Some(Object::Buffer(buffer)) = Object::read(data, offset) {
            push(&mut needs.input, outputs, buffer.buffer, buffer.length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's address space: bytes at addresses.
    struct Space(Vec<(u64, Vec<u8>)>);

    impl Space {
        /// What the kernel does between two rounds.
        fn gather(&self, ranges: &[Range]) -> Vec<u8> {
            ranges
                .iter()
                .flat_map(|range| {
                    let (start, bytes) = self
                        .0
                        .iter()
                        .find(|(start, bytes)| {
                            *start <= range.base
                                && range.base + range.len <= start + bytes.len() as u64
                        })
                        .expect("an honest client's range");
                    let at = (range.base - start) as usize;
                    bytes[at..at + range.len as usize].to_vec()
                })
                .collect()
        }

        fn rounds(&self, cmd: u32, addr: u64) -> (u32, Result<Step, Errno>) {
            let (mut asked, mut count) = (Needs::default(), 0);
            loop {
                let bytes = self.gather(&asked.input);
                match step(cmd, addr, &bytes, total(&asked.output)) {
                    Ok(Step::Again(next)) => (asked, count) = (next, count + 1),
                    other => return (count, other),
                }
            }
        }
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn bwr(write: (u64, u64), read: (u64, u64)) -> Vec<u8> {
        words(&[write.1, 0, write.0, read.1, 0, read.0])
    }

    #[test]
    fn an_ioctl_without_pointers_takes_one_round() {
        let space = Space(vec![(0x1000, vec![7, 0, 0, 0])]);
        let (rounds, step) = space.rounds(uapi::BINDER_SET_MAX_THREADS, 0x1000);
        let Ok(Step::Ready { argument, read_size, .. }) = step else { panic!() };
        assert_eq!((rounds, argument, read_size), (1, vec![7, 0, 0, 0], None));
        // VERSION copies in as well as out; both ways are asked for.
        let (_, step) = space.rounds(uapi::BINDER_VERSION, 0x1000);
        let Ok(Step::Ready { memory, .. }) = step else { panic!() };
        memory.write(0x1000, &[8, 0, 0, 0]).unwrap();
    }

    #[test]
    fn a_transaction_is_gathered_to_its_last_buffer_before_anything_is_done() {
        let mut object = vec![];
        object.extend_from_slice(&uapi::BINDER_TYPE_PTR.to_ne_bytes());
        object.extend_from_slice(&[0; 4]);
        object.extend_from_slice(&words(&[0x5000, 6, 0, 0]));
        let mut data = vec![1; 16];
        data.extend_from_slice(&object);
        let mut commands = uapi::BC_ENTER_LOOPER.to_ne_bytes().to_vec();
        commands.extend_from_slice(&uapi::BC_TRANSACTION_SG.to_ne_bytes());
        let lengths = [data.len() as u64, 8];
        commands.extend_from_slice(&words(&[0, 0, 0, 0]));
        commands.extend_from_slice(&words(&[lengths[0], lengths[1], 0x3000, 0x4000, 64]));
        let space = Space(vec![
            (0x1000, bwr((0x2000, commands.len() as u64), (0x6000, 1 << 30))),
            (0x2000, commands),
            (0x3000, data),
            (0x4000, words(&[16])),
            (0x5000, b"buffer".to_vec()),
        ]);
        let (rounds, step) = space.rounds(uapi::BINDER_WRITE_READ, 0x1000);
        let Ok(Step::Ready { argument, memory, read_size, .. }) = step else { panic!() };
        assert_eq!(rounds, 4);
        let mut bytes = [0; 6];
        memory.read(0x5000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"buffer");
        assert_eq!(memory.read(0x5001, &mut bytes), Err(Errno::EFAULT));
        let offered: u64 = uapi::parse(&argument[READ_SIZE]).unwrap();
        assert_eq!((offered, read_size), (MOST_READ, Some(1 << 30)));
        memory.write(0x6000, b"BR").unwrap();
        memory.write(0x6002, b"_OK").unwrap();
        assert_eq!(memory.written(0x6000), b"BR_OK");
        assert_eq!(memory.write(0x5ffe, b"xx"), Err(Errno::EFAULT));
    }

    #[test]
    fn what_is_beyond_the_kernel_s_limits_is_left_out_and_is_a_fault_later() {
        let mut commands = uapi::BC_TRANSACTION.to_ne_bytes().to_vec();
        commands.extend_from_slice(&words(&[0, 0, 0, 0, MOST_BYTES, 0, 0x3000, 0]));
        let space =
            Space(vec![(0x1000, bwr((0x2000, commands.len() as u64), (0, 0))), (0x2000, commands)]);
        let (_, step) = space.rounds(uapi::BINDER_WRITE_READ, 0x1000);
        let Ok(Step::Ready { memory, .. }) = step else { panic!() };
        assert_eq!(memory.read(0x3000, &mut [0]), Err(Errno::EFAULT));
    }

    /// Two transactions, one of whose data lies among the commands that are here before the
    /// other's: what each round asks for still begins with what the round before has.
    #[test]
    fn each_round_asks_for_what_the_one_before_did_and_more() {
        let pointer = |to: u64, len: u64| {
            let mut object = uapi::BINDER_TYPE_PTR.to_ne_bytes().to_vec();
            object.extend_from_slice(&[0; 4]);
            object.extend_from_slice(&words(&[to, len, 0, 0]));
            object
        };
        let mut commands = Vec::new();
        // The second one's data and offsets stand behind both commands.
        let (first, behind) = ((0x3000, 0x4000), 0x2000 + 2 * 76);
        for (data, offsets) in [first, (behind, behind + 40)] {
            commands.extend_from_slice(&uapi::BC_TRANSACTION_SG.to_ne_bytes());
            commands.extend_from_slice(&words(&[0, 0, 0, 0, 40, 8, data, offsets, 64]));
        }
        assert_eq!(commands.len(), 2 * 76);
        commands.extend(pointer(0x6000, 5));
        commands.extend(words(&[0]));
        let space = Space(vec![
            (0x1000, bwr((0x2000, commands.len() as u64), (0, 0))),
            (0x2000, commands),
            (0x3000, pointer(0x5000, 6)),
            (0x4000, words(&[0])),
            (0x5000, b"first!".to_vec()),
            (0x6000, b"other".to_vec()),
        ]);
        let (mut asked, mut rounds) = (Needs::default(), 0);
        let memory = loop {
            let bytes = space.gather(&asked.input);
            match step(uapi::BINDER_WRITE_READ, 0x1000, &bytes, total(&asked.output)) {
                Ok(Step::Again(next)) => {
                    assert!(same(&next.input[..asked.input.len()], &asked.input));
                    assert!(same(&next.output[..asked.output.len()], &asked.output));
                    (asked, rounds) = (next, rounds + 1);
                }
                Ok(Step::Ready { memory, .. }) => break memory,
                Err(errno) => panic!("{errno} in round {rounds}"),
            }
        };
        assert_eq!(rounds, 4);
        for (at, expected) in [(0x5000, &b"first"[..]), (0x6000, b"other")] {
            let mut bytes = [0; 5];
            memory.read(at, &mut bytes).unwrap();
            assert_eq!(bytes, expected);
        }
    }

    /// Nothing stands between two rounds, so nothing is left of an ioctl that was given up there,
    /// and another thread's, or a later one, is none the worse for it.
    #[test]
    fn a_client_that_changes_its_mind_gets_a_fault() {
        let first = bwr((0x2000, 8), (0, 0));
        let Ok(Step::Again(asked)) =
            step(uapi::BINDER_WRITE_READ, 0x1000, &first, uapi::ioc_size(uapi::BINDER_WRITE_READ))
        else {
            panic!()
        };
        let more = [bwr((0x2000, 16), (0, 0)), vec![0; 8]].concat();
        let result = step(uapi::BINDER_WRITE_READ, 0x1000, &more, total(&asked.output));
        assert_eq!(result.err(), Some(Errno::EFAULT));
        let same = [first, vec![0; 8]].concat();
        let result = step(uapi::BINDER_WRITE_READ, 0x1000, &same, total(&asked.output));
        assert!(matches!(result, Ok(Step::Ready { .. })));
    }

    #[test]
    fn fewer_bytes_than_were_asked_for_are_a_fault() {
        let Ok(Step::Again(asked)) = step(uapi::BINDER_VERSION, 0x1000, &[], 0) else { panic!() };
        for (bytes, room) in [(3, 4), (4, 3), (4, 0), (0, 4), (5, 4), (4, 5)] {
            let result = step(uapi::BINDER_VERSION, 0x1000, &vec![0; bytes], room);
            assert_eq!(result.err(), Some(Errno::EFAULT), "{bytes} {room}");
        }
        assert_eq!((total(&asked.input), total(&asked.output)), (4, 4));
    }

    proptest::proptest! {
        #[test]
        fn hostile_commands_are_walked_without_panic(commands: Vec<u8>, data: Vec<u8>) {
            let memory = GatheredMemory::new([(0, data.len())].into_iter(), &data, [].into_iter()).unwrap();
            push_transactions(&mut Needs::default(), &commands, &memory);
        }

        /// Each round either asks for more than the one before or is the last, whatever the
        /// answers.
        #[test]
        fn hostile_rounds_end(mut answers: Vec<Vec<u8>>, argument: [u64; 6]) {
            let mut asked = Needs::default();
            let mut given = words(&argument);
            for _ in 0..MOST_ROUNDS {
                let room = total(&asked.output);
                let mut bytes = given.clone();
                bytes.resize(total(&asked.input), 7);
                let Ok(Step::Again(next)) = step(uapi::BINDER_WRITE_READ, 0, &bytes, room) else {
                    return Ok(());
                };
                let size = |needs: &Needs| (total(&needs.input), total(&needs.output));
                proptest::prop_assert!(size(&next) > size(&asked));
                given.extend(answers.pop().unwrap_or_default());
                asked = next;
            }
            proptest::prop_assert!(false, "it goes on for ever");
        }
    }
}
