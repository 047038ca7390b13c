//! The end of a process that has n of something.

use crate::records::{Held, held, request_death, request_freeze};
use crate::support::*;
use crate::threads::{threads, wait};
use crate::{Row, Work, all};
use fakebinder_sim::Sim;

pub const ROWS: &[Row] = &[
    all("the end of a process with n nodes", |n| {
        let Held { owner, .. } = held(n);
        end_of(owner)
    }),
    all("the end of a process with n references", |n| {
        let Held { manager, .. } = held(n);
        end_of(manager)
    }),
    all("the end of a process with n death links and n freeze links", |n| {
        let Held { manager, handles, .. } = held(n);
        for handle in handles {
            manager.main().write(&[request_death(handle), request_freeze(handle)]);
        }
        end_of(manager)
    }),
    all("the end of a process with n deaths not acknowledged", |n| {
        let Held { manager, owner, handles, .. } = held(n);
        for handle in handles {
            manager.main().write(&[request_death(handle)]);
        }
        owner.release();
        manager.main().drain();
        end_of(manager)
    }),
    all("the end of a process with n threads", |n| end_of(threads(n).1)),
    all("the end of a process of which n threads wait", |n| {
        let (_, sim) = threads(n);
        std::mem::forget(wait(&sim, n));
        end_of(sim)
    }),
    all("the end of a process with n buffers", |n| {
        let Held { manager, owner, handles, .. } = held(n);
        for handle in handles {
            post(manager.main(), handle, 0, b"");
            take(owner.main());
        }
        end_of(owner)
    }),
    all("the end of a process with n one-way calls that wait for a node", |n| {
        let Pair { manager, client, .. } = pair();
        (0..n).for_each(|_| drop(post(client.main(), 0, 0, b"")));
        end_of(manager)
    }),
    all("the end of a process with n calls that nobody has read", |n| {
        let Held { manager, owner, handles, .. } = held(n);
        handles.into_iter().for_each(|handle| drop(post(manager.main(), handle, 0, b"")));
        end_of(owner)
    }),
    all("the end of a process that n calls wait for", |n| {
        let Pair { manager, client, .. } = pair();
        let asking = |tid| {
            introduce(client.thread(1_000 + tid));
            let asking = call(client.thread(1_000 + tid), 0, 0, b"");
            assert!(asking.is_blocked());
            asking
        };
        std::mem::forget((0..n as i32).map(asking).collect::<Vec<_>>());
        end_of(manager)
    }),
];

fn end_of(sim: Sim) -> Work {
    let mut sim = Some(sim);
    Box::new(move || sim.take().into_iter().for_each(Sim::release))
}
