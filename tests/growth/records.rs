//! Nodes, references and transactions: one operation among many.

use crate::support::*;
use crate::{Row, Work, all, one};
use fakebinder::protocol::command::Command;
use fakebinder::protocol::object::Object;
use fakebinder::protocol::record::{HandleCookie, TransactionData};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi::{self, TF_UPDATE_TXN};
use fakebinder_sim::{Sim, World};

pub const ROWS: &[Row] = &[
    one("find a reference by its handle among n", |n| {
        let Held { manager, handles, .. } = held(n);
        let handle = handles[n / 2];
        again(move || manager.main().write(&[Command::Increfs(handle), Command::Decrefs(handle)]))
    }),
    one("send a node among n", |n| {
        let Held { manager, owner, .. } = held(n);
        again(move || send(&owner, &manager, &[binder(n as u64 / 2)]))
    }),
    one("a new node, and a new handle among n", |n| {
        let Held { manager, owner, .. } = held(n);
        let mut next = 1_000_000;
        again(move || {
            next += 1;
            offer(&owner, &manager, next);
        })
    }),
    one("a new handle where n are free below the highest", |n| {
        let Held { manager, owner, handles, .. } = held(2 * n);
        for some in handles[n / 2..n + n / 2].chunks(256) {
            let releases: Vec<_> = some.iter().map(|handle| Command::Release(*handle)).collect();
            manager.main().write(&releases);
        }
        owner.main().drain();
        let mut next = 1_000_000;
        again(move || {
            next += 1;
            assert!(handles[n / 2..][..20].contains(&offer(&owner, &manager, next)));
        })
    }),
    one("let go of a node among n, and of its handle", |n| {
        let Held { manager, owner, mut handles, .. } = held(n);
        let mut handles = handles.split_off(n / 2).into_iter();
        again(move || {
            manager.main().write(&[Command::Release(handles.next().unwrap())]);
            assert_eq!(owner.main().drain().len(), 2);
        })
    }),
    one("BINDER_GET_NODE_DEBUG_INFO among n", |n| {
        let Held { owner, .. } = held(n);
        again(move || {
            node_after(&owner, n as u64 / 2);
        })
    }),
    all("walk n nodes by BINDER_GET_NODE_DEBUG_INFO", |n| {
        let Held { owner, .. } = held(n);
        Box::new(move || {
            let nodes = std::iter::successors(Some(0), |last| Some(node_after(&owner, *last)));
            assert_eq!(nodes.skip(1).take_while(|ptr| *ptr > 0).count(), n);
        })
    }),
    one("a one-way call to a node that n wait for", |n| {
        let Pair { world, manager, client } = pair();
        let other = open(&world, 300);
        for index in 0..n {
            post(if index % 2 == 0 { &client } else { &other }.main(), 0, 1, b"");
        }
        again(move || {
            post(client.main(), 0, 1, b"");
            let received = take(manager.main());
            free(&manager, &received);
        })
    }),
    one("a one-way call that takes the place of one of n", |n| {
        let Pair { manager, client, .. } = pair();
        freeze(&client, manager.pid, 1);
        (0..n as u32).for_each(|code| update_call(&client, code));
        let before = manager.alloc.allocated_count();
        again(move || {
            update_call(&client, n as u32 / 2);
            assert_eq!(manager.alloc.allocated_count(), before);
        })
    }),
    one("read and free one of n calls that wait for a process", |n| {
        let Held { manager, owner, handles, .. } = held(n);
        for handle in handles {
            post(manager.main(), handle, 1, b"");
        }
        again(move || {
            let received = take(owner.main());
            free(&owner, &received);
        })
    }),
    one("request and clear a death notification among n", |n| {
        let Held { manager, handles, .. } = held(n);
        for handle in &handles[1..] {
            manager.main().write(&[request_death(*handle)]);
        }
        let asked = HandleCookie { handle: handles[0], cookie: handles[0].into() };
        again(move || {
            let clear = Command::ClearDeathNotification(asked);
            manager.main().write(&[Command::RequestDeathNotification(asked), clear]);
            let cleared = Return::ClearDeathNotificationDone(asked.cookie);
            assert_eq!(manager.main().drain(), [cleared]);
        })
    }),
    one("acknowledge one of n deaths", |n| {
        let Held { manager, owner, handles, .. } = held(n);
        for handle in &handles {
            manager.main().write(&[request_death(*handle)]);
        }
        owner.release();
        assert_eq!(manager.main().drain().len(), n);
        let mut cookies = handles.into_iter().skip(n / 2);
        again(move || {
            let cookie = cookies.next().unwrap().into();
            manager.main().write(&[Command::DeadBinderDone(cookie)]);
        })
    }),
    one("request and clear a freeze notification among n", |n| {
        let Held { manager, handles, .. } = held(n);
        for handle in &handles[1..] {
            manager.main().write(&[request_freeze(*handle)]);
        }
        manager.main().drain();
        let asked = HandleCookie { handle: handles[0], cookie: handles[0].into() };
        again(move || {
            manager.main().write(&[Command::RequestFreezeNotification(asked)]);
            assert_eq!(manager.main().drain().len(), 1);
            let done = Command::FreezeNotificationDone(asked.cookie);
            manager.main().write(&[done, Command::ClearFreezeNotification(asked)]);
            assert_eq!(manager.main().drain().len(), 1);
        })
    }),
    all("freeze a process that tells of n nodes", |n| {
        let Held { manager, owner, handles, .. } = held(n);
        for handle in &handles {
            manager.main().write(&[request_freeze(*handle)]);
        }
        manager.main().drain();
        Box::new(move || freeze(&manager, owner.pid, 1))
    }),
    all("send n objects, and free them", |n| {
        let world = World::default();
        let manager = world.open_unmapped("binder", 100);
        manager.mmap(4 << 20).unwrap();
        introduce(manager.main());
        manager.main().become_manager();
        let client = open(&world, 200);
        let objects: Vec<Object> = (1..=n as u64).map(binder).collect();
        let data = one_way(client.message(0, 0, b"", &objects));
        Box::new(move || {
            client.main().write(&[Command::Transaction(data)]);
            let received = take(manager.main());
            free(&manager, &received);
        })
    }),
    all("the end of n nodes that are let go of one by one", |n| {
        let Held { manager, owner, handles, .. } = held(n);
        Box::new(move || {
            for handle in &handles {
                manager.main().write(&[Command::Release(*handle)]);
            }
            assert_eq!(owner.main().drain().len(), 2 * n);
        })
    }),
    all("the driver's state with n nodes, as text", |n| {
        let Held { world, .. } = held(n);
        Box::new(move || assert!(world.binder.log_state().lines().count() > n))
    }),
    all("the driver's transactions, n of them, as text", |n| {
        let Held { world, manager, handles, .. } = held(n);
        for handle in handles {
            post(manager.main(), handle, 1, b"");
        }
        Box::new(move || assert!(world.binder.log_transactions().lines().count() > n))
    }),
];

/// A manager that holds n nodes of an owner: pointers 1 to n.
pub struct Held {
    pub world: World,
    pub manager: Sim,
    pub owner: Sim,
    pub handles: Vec<u32>,
}

pub fn held(n: usize) -> Held {
    let Pair { world, manager, client } = pair();
    let handles = offer_many(&client, &manager, n);
    make_room(&manager);
    make_room(&client);
    Held { world, manager, owner: client, handles }
}

/// Offers the nodes 1 to n of `owner`; as [`offer`] does, but many at once.
pub fn offer_many(owner: &Sim, manager: &Sim, n: usize) -> Vec<u32> {
    let pointers: Vec<u64> = (1..=n as u64).collect();
    let mut handles = Vec::new();
    for some in pointers.chunks(256) {
        let objects: Vec<Object> = some.iter().map(|ptr| binder(*ptr)).collect();
        post_with(owner.main(), 0, &objects);
        owner.main().drain();
        let done = |ptr: &u64| [Command::IncrefsDone(node(*ptr)), Command::AcquireDone(node(*ptr))];
        owner.main().write(&some.iter().flat_map(done).collect::<Vec<_>>());
        let received = take(manager.main());
        let given = manager.objects(&received).into_iter().map(|object| match object {
            Object::Handle { flat, .. } => flat.handle(),
            other => panic!("expected a handle, got {other:?}"),
        });
        let given: Vec<u32> = given.collect();
        let mut commands: Vec<_> = given.iter().map(|handle| Command::Acquire(*handle)).collect();
        commands.push(Command::FreeBuffer(received.buffer));
        manager.main().write(&commands);
        handles.extend(given);
    }
    handles
}

pub fn request_death(handle: u32) -> Command {
    Command::RequestDeathNotification(HandleCookie { handle, cookie: handle.into() })
}

pub fn request_freeze(handle: u32) -> Command {
    Command::RequestFreezeNotification(HandleCookie { handle, cookie: handle.into() })
}

/// `by` freezes or thaws a process, and does not wait.
pub fn freeze(by: &Sim, pid: i32, enable: u32) {
    let arg = [pid as u32, enable, 0].map(u32::to_ne_bytes).concat();
    by.main().call(uapi::BINDER_FREEZE, &arg).unwrap();
}

fn update_call(client: &Sim, code: u32) {
    let data = one_way(client.message(0, code, b"", &[]));
    let data = TransactionData { flags: data.flags | TF_UPDATE_TXN, ..data };
    client.main().nonblock().write_and_read(&[Command::Transaction(data)]);
}

/// One-way, with objects; received and freed.
fn send(from: &Sim, to: &Sim, objects: &[Object]) {
    post_with(from.main(), 0, objects);
    let received = take(to.main());
    free(to, &received);
}

/// The pointer of the node behind `ptr`, 0 when there is none.
fn node_after(owner: &Sim, ptr: u64) -> u64 {
    let mut arg = ptr.to_ne_bytes().to_vec();
    arg.resize(24, 0);
    let out = owner.main().call(uapi::BINDER_GET_NODE_DEBUG_INFO, &arg).unwrap();
    u64::from_ne_bytes(*out.first_chunk().unwrap())
}

/// Makes room in a client's memory, so that it does not grow, and move, in the middle of what is
/// counted.
pub fn make_room(sim: &Sim) {
    let used = sim.arena.len();
    sim.arena.push(&[0; 256 << 10]);
    sim.arena.truncate(used);
}

/// Counts `step` eight times, after some that have made whatever is made at the first.
pub fn again(mut step: impl FnMut() + 'static) -> Work {
    (0..3).for_each(|_| step());
    Box::new(move || (0..8).for_each(|_| step()))
}
