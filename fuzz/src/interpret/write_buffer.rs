//! Target `write_buffer`: any bytes, written by a client in the middle of things.

use super::*;

/// A scene with something of everything for `writer` (process 1, thread 0) to get hold of: it
/// serves a call of the manager's, waits for nobody, has handles, buffers, links and notices.
fn scene() -> Program {
    let plain = |objects| Message {
        flags: Flags(1),
        code: 0,
        size: Size::Bytes { count: 32 },
        objects,
        twist: Twist::Honest,
    };
    let node = |index| Object::Node { index, strong: Strength::Strong, flags: NodeFlags(0x40) };
    let transaction = |to, objects| Command::Transaction { to: Pick(to), message: plain(objects) };
    let write = |by, commands| Step::WriteRead {
        by: Actor(by),
        commands: List(commands),
        read: Read::DoesNotWait,
        trouble: Trouble::NoTrouble,
    };
    let behave = |by| Step::Behave { by: Actor(by), trouble: Trouble::NoTrouble };
    Program {
        setting: Setting {
            budget: 255,
            pages: 3,
            install: Install::Shared,
            manager: Manager::TakesFiles,
            acquaintance: Acquaintance::Strangers,
            faults: List(Vec::new()),
        },
        steps: List(vec![
            // The manager gets a node of 1 and one of 2, and passes 2's on to 1.
            write(0x11, vec![transaction(0, List(vec![node(0), node(1)]))]),
            behave(0x00),
            behave(0x11),
            write(0x12, vec![transaction(0, List(vec![node(0)]))]),
            behave(0x10),
            behave(0x12),
            write(0x01, vec![Command::EnterLooper]),
            write(
                0x20,
                vec![transaction(
                    1,
                    List(vec![Object::Handle { handle: Pick(3), strong: Strength::Strong }]),
                )],
            ),
            write(0x01, vec![]),
            write(
                0x01,
                vec![
                    Command::RequestDeath { handle: Pick(1) },
                    Command::RequestFreeze { handle: Pick(1) },
                    Command::Acquire { handle: Pick(0) },
                ],
            ),
        ]),
    }
}

/// Target `write_buffer`: `bytes` are what a client writes, twice, while others do what they do.
///
/// The write buffer lies at [`WRITE_BUFFER`]; its own bytes are the messages that it can send.
///
/// # Panics
/// When anything happens that must not.
pub fn play(bytes: &[u8]) {
    panic_at_errors();
    let scene = scene();
    let mut stage = Stage::new(&scene.setting);
    for step in scene.steps.iter() {
        stage.step(step);
    }
    stage.check();
    stage.ledger.has_strangers = true;
    for time in 1..=2 {
        trace(|| format!("1.0 writes, time {time}: {:x?}", commands(bytes)));
        let role = &mut stage.roles[1];
        role.arena.truncate(SCRATCH);
        let call = WriteRead {
            write_size: bytes.len() as u64,
            write_buffer: role.arena.push(bytes),
            read_size: 256,
            read_buffer: read_buffer(0),
            ..WriteRead::default()
        };
        debug_assert_eq!(call.write_buffer, WRITE_BUFFER);
        let view = role.view.clone();
        let kind = Kind::WriteRead { done: Vec::new() };
        stage.begin(1, 0, BINDER_WRITE_READ, call.as_bytes().to_vec(), view, true, kind);
        stage.attend();
        stage.check();
        for by in [0x00, 0x10, 0x02] {
            stage.step(&Step::Behave { by: Actor(by), trouble: Trouble::NoTrouble });
            stage.check();
        }
    }
    stage.end();
}

/// What the driver will take the bytes for, up to the first command that is none.
pub fn commands(bytes: &[u8]) -> Vec<String> {
    let mut rest = bytes;
    let mut commands = Vec::new();
    while let Some((number, tail)) = rest.split_first_chunk::<4>() {
        let number = u32::from_ne_bytes(*number);
        let size = Bc::payload_size(number).filter(|size| *size <= tail.len());
        let Some(command) = size.and_then(|size| Bc::decode(number, &tail[..size])) else {
            commands.push(format!("{number:#x} and {} bytes", tail.len()));
            break;
        };
        commands.push(format!("{command:x?}"));
        rest = &tail[size.unwrap_or(0)..];
    }
    commands
}

/// Where the write buffer of [`play`] lies in its client.
pub const WRITE_BUFFER: u64 = ARENA + SCRATCH as u64;
