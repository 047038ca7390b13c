//! Writes the seeds of target `wire` into a directory: the messages by which a client opens a
//! device at each door, asks its version, sends, waits, is interrupted, polls and leaves.

use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::{IntoBytes, TransactionData, WriteRead};
use fakebinder::uapi::*;
use fakebinder_fuzz::wire::SHARED;

/// The first file that a FUSE tree gives out.
const FILE: u64 = 1 << 40 | 1;

/// An input for the target, message by message.
struct Seed(Vec<u8>);

impl Seed {
    fn new(door: u8) -> Seed {
        Seed(vec![door])
    }

    fn message(mut self, client: u8, opcode: u32, node: u64, body: &[u8]) -> Seed {
        let length = 40 + body.len();
        self.0.extend([length as u8, (length >> 8) as u8 | client << 7]);
        self.0.extend((length as u32).to_ne_bytes());
        self.0.extend(opcode.to_ne_bytes());
        self.0.extend(0_u64.to_ne_bytes());
        self.0.extend(node.to_ne_bytes());
        self.0.extend([0; 16]);
        self.0.extend(body);
        self
    }

    fn words(self, client: u8, opcode: u32, node: u64, words: &[u32]) -> Seed {
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.message(client, opcode, node, &body)
    }

    fn ioctl(self, client: u8, fh: u64, cmd: u32, arg: u64, input: &[u8]) -> Seed {
        let mut body = Vec::new();
        let unrestricted = self.0[0] % 2 == 1;
        let flags = if unrestricted { FUSE_IOCTL_UNRESTRICTED } else { 0 };
        body.extend(fh.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend(cmd.to_ne_bytes());
        body.extend(arg.to_ne_bytes());
        body.extend((input.len() as u32).to_ne_bytes());
        let out = if unrestricted { 0 } else { ioc_size(cmd) as u32 };
        body.extend(out.to_ne_bytes());
        body.extend(input);
        self.message(client, FUSE_IOCTL, 0, &body)
    }

    /// BINDER_WRITE_READ with commands that lie in the message itself: the input is what the
    /// clients' memory holds.
    fn write_read(self, client: u8, fh: u64, commands: &[Command], read: bool) -> Seed {
        let mut bytes = Vec::new();
        commands.iter().for_each(|command| command.encode(&mut bytes));
        let mut call = WriteRead {
            write_size: bytes.len() as u64,
            read_size: if read { 256 } else { 0 },
            read_buffer: SHARED as u64 + 0x8000,
            ..WriteRead::default()
        };
        // Behind the two bytes, the headers and the record: the record needs its own address.
        let (header, record) = (2 + 40 + 32, WriteRead::SIZE);
        if self.0[0].is_multiple_of(2) {
            call.write_buffer = (SHARED + self.0.len() + header + record) as u64;
            let input = call.as_bytes().to_vec();
            // A restricted ioctl has just its argument: the commands go in a message of their own.
            let after = 2 + 40;
            call.write_buffer = (SHARED + self.0.len() + header + record + after) as u64;
            let input = if bytes.is_empty() { input } else { call.as_bytes().to_vec() };
            let seed = self.ioctl(client, fh, BINDER_WRITE_READ, 0, &input);
            return if bytes.is_empty() { seed } else { seed.message(client, 9999, 0, &bytes) };
        }
        let at = (SHARED + self.0.len() + 2 + 40) as u64;
        call.write_buffer = at + record as u64;
        let mut body = call.as_bytes().to_vec();
        body.extend(bytes);
        let seed = self.message(client, 9999, 0, &body);
        seed.ioctl(client, fh, BINDER_WRITE_READ, at, &[])
    }
}

fn open(door: u8) -> Seed {
    let seed = Seed::new(door);
    match door % 2 {
        0 => seed
            .words(0, FUSE_INIT, 0, &[7, 41, 0, 0])
            .message(0, FUSE_LOOKUP, 1, b"binder\0")
            .message(0, FUSE_GETATTR, 1, &[0; 16])
            .message(0, FUSE_READLINK, 256, &[])
            .message(0, FUSE_READLINK, 257, &[])
            .message(0, FUSE_LOOKUP, 1, b".open\0")
            .words(0, FUSE_OPEN, FILE, &[2, 0])
            .words(1, FUSE_OPEN, FILE + 1, &[2, 0]),
        _ => seed.words(0, CUSE_INIT, 0, &[7, 41, 0, 1]).words(0, FUSE_OPEN, 0, &[2, 0]).words(
            1,
            FUSE_OPEN,
            0,
            &[2, 0],
        ),
    }
}

fn main() {
    let directory = std::env::args().nth(1).expect("wire_seeds DIRECTORY");
    let manager = [0; 4];
    let call = Command::Transaction(TransactionData {
        code: 1,
        data_size: 16,
        buffer: SHARED as u64,
        ..TransactionData::default()
    });
    let mut seeds = Vec::new();
    for door in [0, 2, 1] {
        seeds.push(open(door));
        seeds.push(
            open(door)
                .ioctl(0, 1, BINDER_VERSION, SHARED as u64, &[0; 4])
                .ioctl(0, 1, BINDER_SET_CONTEXT_MGR, 0, &manager)
                .ioctl(0, 1, BINDER_SET_MAX_THREADS, SHARED as u64, &[2, 0, 0, 0])
                .write_read(0, 1, &[Command::EnterLooper], false)
                .write_read(0, 1, &[], true)
                .write_read(1, 2, &[call, Command::Increfs(0), Command::Acquire(0)], true)
                .message(1, FUSE_INTERRUPT, 0, &18_u64.to_ne_bytes())
                .message(1, FUSE_INTERRUPT, 0, &24_u64.to_ne_bytes()),
        );
        seeds.push(
            open(door)
                .ioctl(0, 1, FAKEBINDER_ATTACH, SHARED as u64, &[1, 0, 0, 0])
                .ioctl(0, 1, FAKEBINDER_MAPPED, SHARED as u64, &[0; 16])
                .words(0, FUSE_POLL, 0, &[1, 0, 5, 0, 1, 1, 0, 0])
                .words(0, FUSE_READ, 0, &[1, 0, 0, 0, 64, 0, 0, 0, 0, 0])
                .words(0, FUSE_WRITE, 0, &[1, 0, 0, 0, 64, 0, 0, 0, 0, 0])
                .words(0, FUSE_FLUSH, 0, &[1, 0, 0, 0, 0, 0])
                .words(0, FUSE_RELEASE, 0, &[1, 0, 0, 0, 0, 0]),
        );
    }
    seeds.push(
        Seed::new(0)
            .words(0, FUSE_INIT, 0, &[7, 41, 0, 0x4000_0000, 0x20])
            .words(0, FUSE_OPENDIR, 1, &[0, 0])
            .words(0, FUSE_READDIR, 1, &[0, 0, 0, 0, 4096, 0, 0, 0, 0, 0])
            .words(0, FUSE_READDIR, 2, &[0, 0, 0, 0, 4096, 0, 0, 0, 0, 0])
            .words(0, FUSE_RELEASEDIR, 1, &[0, 0, 0, 0, 0, 0])
            .words(0, FUSE_STATFS, 1, &[])
            .words(0, FUSE_SETATTR, 256, &[8; 22])
            .words(0, FUSE_FORGET, 3, &[1, 0])
            .words(0, FUSE_BATCH_FORGET, 0, &[1, 0, 3, 0, 1, 0])
            .words(0, FUSE_FSYNC, 256, &[0; 4])
            .words(0, FUSE_DESTROY, 0, &[]),
    );
    for (number, seed) in seeds.iter().enumerate() {
        std::fs::write(format!("{directory}/seed-{number}"), &seed.0).expect("a directory");
    }
}
