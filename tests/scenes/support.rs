//! What scenes have in common: a manager, its clients, and words for the usual exchanges.

use fakebinder::binder::command::Command;
use fakebinder::binder::returns::Return;
use fakebinder::binder::wire::TransactionData;
use fakebinder::sim::{Pending, Sim, SimThread, World};
use fakebinder::uapi;

/// A driver with a context manager (pid 100) that waits in a read, and a client (pid 200).
pub struct Stage {
    pub world: World,
    pub manager: Sim,
    pub client: Sim,
    pub waiting: Pending,
}

pub fn stage() -> Stage {
    let world = World::default();
    let manager = world.open(100);
    manager.main().become_manager();
    let waiting = manager.main().enter_looper();
    assert!(waiting.is_blocked());
    let client = world.open(200);
    client.main().call(uapi::BINDER_VERSION, &[0; 4]).unwrap();
    Stage { world, manager, client, waiting }
}

/// What was read, but for the BR_NOOP that begins every read.
pub fn news(pending: &Pending) -> Vec<Return> {
    let mut returns = pending.returns();
    assert!(
        matches!(returns.first(), Some(Return::Noop | Return::SpawnLooper)),
        "a read begins with BR_NOOP: {returns:?}"
    );
    returns.remove(0);
    returns
}

/// The transaction among what was read; there must be just one, at the end.
#[track_caller]
pub fn transaction(pending: &Pending) -> TransactionData {
    match news(pending).last() {
        Some(Return::Transaction(data) | Return::TransactionSecCtx(data, _)) => *data,
        other => panic!("expected a transaction, read {other:?}"),
    }
}

/// The reply among what was read.
#[track_caller]
pub fn reply(pending: &Pending) -> TransactionData {
    match news(pending).last() {
        Some(Return::Reply(data)) => *data,
        other => panic!("expected a reply, read {other:?}"),
    }
}

/// A synchronous call with plain data, and the read for its answer.
pub fn call(thread: SimThread<'_>, handle: u32, code: u32, data: &[u8]) -> Pending {
    let data = thread.sim.message(handle, code, data, &[]);
    thread.write_and_read(&[Command::Transaction(data)])
}

/// Answers with plain data and reads on.
pub fn answer(thread: SimThread<'_>, data: &[u8]) -> Pending {
    let data = thread.sim.message(0, 0, data, &[]);
    thread.write_and_read(&[Command::Reply(data)])
}
