//! What scenes have in common: a manager, its clients, and words for the usual exchanges.

use fakebinder::binder::Stats;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::{FlatObject, Object};
use fakebinder::protocol::record::{PtrCookie, Record, TransactionData};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::{self, TF_ONE_WAY};
use fakebinder_sim::{Pending, Sim, SimThread, World};

/// A driver with a context manager (pid 100) that waits in a read, and a client (pid 200).
pub struct Stage {
    pub world: World,
    pub manager: Sim,
    pub client: Sim,
    pub waiting: Pending,
}

pub fn stage() -> Stage {
    let Pair { world, manager, client } = pair();
    let waiting = manager.main().enter_looper();
    assert!(waiting.is_blocked());
    Stage { world, manager, client, waiting }
}

/// The same, but the manager reads when the scene says so.
pub struct Pair {
    pub world: World,
    pub manager: Sim,
    pub client: Sim,
}

pub fn pair() -> Pair {
    let world = World::default();
    let manager = world.open(100);
    manager.main().become_manager();
    let client = open(&world, 200);
    Pair { world, manager, client }
}

/// A client that has been through its first ioctl, so that its reads wait.
pub fn open(world: &World, pid: i32) -> Sim {
    let sim = world.open(pid);
    introduce(sim.main());
    sim
}

/// A thread's first ioctl; its reads wait from now on.
pub fn introduce(thread: SimThread<'_>) {
    thread.call(uapi::BINDER_VERSION, &[0; 4]).unwrap();
}

/// Everybody leaves, and nothing may stay behind.
#[track_caller]
pub fn end(world: &World, everybody: impl IntoIterator<Item = Sim>) {
    // Where the scene ends, what must hold of all records holds.
    if let Err(violation) = world.binder.context("binder").check_invariants() {
        panic!("{violation}");
    }
    everybody.into_iter().for_each(Sim::release);
    assert_eq!(world.stats(), Stats::default(), "something was left behind");
}

/// What was read, but for the BR_NOOP that begins every read.
#[track_caller]
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

/// Reads a transaction that is there already.
#[track_caller]
pub fn take(thread: SimThread<'_>) -> TransactionData {
    transaction(&thread.nonblock().read())
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

/// A synchronous call with objects, and the read for its answer.
pub fn call_with(thread: SimThread<'_>, handle: u32, objects: &[Object]) -> Pending {
    let data = thread.sim.message(handle, 0, b"", objects);
    thread.write_and_read(&[Command::Transaction(data)])
}

/// Answers with plain data and reads on.
pub fn answer(thread: SimThread<'_>, data: &[u8]) -> Pending {
    let data = thread.sim.message(0, 0, data, &[]);
    thread.write_and_read(&[Command::Reply(data)])
}

/// Answers with objects and reads on.
pub fn answer_with(thread: SimThread<'_>, objects: &[Object]) -> Pending {
    let data = thread.sim.message(0, 0, b"", objects);
    thread.write_and_read(&[Command::Reply(data)])
}

/// The same message as a one-way call.
pub fn one_way(data: TransactionData) -> TransactionData {
    TransactionData { flags: data.flags | TF_ONE_WAY, ..data }
}

/// A one-way call with plain data, and what its sender reads then.
#[track_caller]
pub fn post(thread: SimThread<'_>, handle: u32, code: u32, data: &[u8]) -> Vec<Return> {
    let data = one_way(thread.sim.message(handle, code, data, &[]));
    news(&thread.nonblock().write_and_read(&[Command::Transaction(data)]))
}

/// A one-way call with objects, and what its sender reads then.
#[track_caller]
pub fn post_with(thread: SimThread<'_>, handle: u32, objects: &[Object]) -> Vec<Return> {
    let data = one_way(thread.sim.message(handle, 0, b"", objects));
    news(&thread.nonblock().write_and_read(&[Command::Transaction(data)]))
}

/// The receiver has done with a buffer.
#[track_caller]
pub fn free(sim: &Sim, data: &TransactionData) {
    sim.main().write(&[Command::FreeBuffer(data.buffer)]);
}

/// BINDER_GET_EXTENDED_ERROR.
#[track_caller]
pub fn extended_error(thread: SimThread<'_>) -> uapi::binder_extended_error {
    let out = thread.call(uapi::BINDER_GET_EXTENDED_ERROR, &[0; 12]).unwrap();
    Record::at(&out).unwrap()
}

/// The same: command and param.
#[track_caller]
pub fn error(thread: SimThread<'_>) -> (u32, i32) {
    let error = extended_error(thread);
    (error.command, error.param)
}

/// What a thread's extended error says after BR_FAILED_REPLY.
pub fn failed(errno: fakebinder::Errno) -> (u32, i32) {
    (uapi::BR_FAILED_REPLY, -(errno as i32))
}

/// A node of the sender: pointer `ptr`, cookie `ptr + 1`.
pub fn binder(ptr: u64) -> Object {
    Object::Binder { strong: true, flat: flat(ptr) }
}

pub fn weak_binder(ptr: u64) -> Object {
    Object::Binder { strong: false, flat: flat(ptr) }
}

pub fn flat(ptr: u64) -> FlatObject {
    FlatObject { flags: 0, binder: ptr, cookie: ptr + 1 }
}

pub fn handle(handle: u32) -> Object {
    Object::Handle { strong: true, flat: FlatObject { flags: 0, binder: handle.into(), cookie: 0 } }
}

pub fn weak_handle(handle: u32) -> Object {
    Object::Handle {
        strong: false,
        flat: FlatObject { flags: 0, binder: handle.into(), cookie: 0 },
    }
}

pub fn fd(fd: u32) -> Object {
    Object::Fd { pad_flags: 0, fd, cookie: 0 }
}

/// The node `ptr` of [`binder`], as its owner is told of it.
pub fn node(ptr: u64) -> PtrCookie {
    PtrCookie { ptr, cookie: ptr + 1 }
}

/// The handle among a message's objects; there must be just one object.
#[track_caller]
pub fn only_handle(sim: &Sim, data: &TransactionData) -> u32 {
    match sim.objects(data)[..] {
        [Object::Handle { flat, .. }] => flat.handle(),
        ref other => panic!("expected a handle, got {other:?}"),
    }
}

/// `owner` gives the manager a strong handle to its node `ptr`, and both have confirmed it.
#[track_caller]
pub fn offer(owner: &Sim, manager: &Sim, ptr: u64) -> u32 {
    offer_object(owner, manager, binder(ptr))
}

/// The same with flags of one's own.
#[track_caller]
pub fn offer_object(owner: &Sim, manager: &Sim, object: Object) -> u32 {
    let Object::Binder { flat, .. } = object else { panic!("a node is offered") };
    let node = PtrCookie { ptr: flat.binder, cookie: flat.cookie };
    let told = post_with(owner.main(), 0, &[object]);
    assert_eq!(told, [Return::Increfs(node), Return::Acquire(node), Return::TransactionComplete]);
    owner.main().write(&[Command::IncrefsDone(node), Command::AcquireDone(node)]);
    let received = take(manager.main());
    let handle = only_handle(manager, &received);
    manager.main().write(&[Command::Acquire(handle), Command::FreeBuffer(received.buffer)]);
    handle
}

/// `client` asks the manager for one of the manager's handles, and keeps it.
#[track_caller]
pub fn look_up(client: &Sim, manager: &Sim, held: u32) -> u32 {
    let asking = call(client.main(), 0, 0, b"");
    let question = take(manager.main());
    free(manager, &question);
    let done = answer_with(manager.main().nonblock(), &[handle(held)]);
    assert_eq!(news(&done), [Return::TransactionComplete]);
    let answered = reply(&asking);
    let found = only_handle(client, &answered);
    client.main().write(&[Command::Acquire(found), Command::FreeBuffer(answered.buffer)]);
    found
}
