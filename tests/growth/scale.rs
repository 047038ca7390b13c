//! What the daemon keeps beside the driver: users, timers, contexts, copies that wait.

use crate::records::again;
use crate::{Row, all, one};
use fakebinder::binder::Timers as _;
use fakebinder::binder::copies::{Allowance, AtOnce, Copies, Subject};
use fakebinder::device::timers::Timers;
use fakebinder::memory::{Memory, MemoryConfig};
use fakebinder::quota::{Quotas, UserLimits, What};
use fakebinder_sim::World;
use std::sync::Arc;
use std::time::Duration;

pub const ROWS: &[Row] = &[
    one("find a user among n", |n| {
        let quotas = quotas();
        let users: Vec<_> = (0..n as u32).map(|uid| quotas.user(1 + uid)).collect();
        Box::new(move || {
            let (least, some) = (n / 2, &users[n / 2..][..8]);
            for (index, user) in some.iter().enumerate() {
                assert!(Arc::ptr_eq(user, &quotas.user((1 + least + index) as u32)));
            }
        })
    }),
    all("n users come and stay", |n| {
        let quotas = quotas();
        Box::new(move || {
            let users: Vec<_> = (0..n as u32).map(|uid| quotas.user(1 + uid)).collect();
            std::mem::forget(users);
        })
    }),
    all("n users come and go", |n| {
        let quotas = quotas();
        Box::new(move || (0..n as u32).for_each(|uid| drop(quotas.user(1 + uid))))
    }),
    one("an open file of a user who has n", |n| {
        let user = quotas().user(7);
        let opens: Vec<_> = (0..n).map(|_| user.hold_open().unwrap()).collect();
        Box::new(move || {
            drop(user.hold_open());
            assert_eq!(user.held(What::Opens), opens.len());
        })
    }),
    one("set and cancel a timer among n", |n| {
        let timers = Timers::start().unwrap();
        let hour = Duration::from_secs(3600);
        (0..n as u64).for_each(|ticket| timers.after(ticket, hour, Box::new(|| ())));
        Box::new(move || {
            for ticket in 1_000_000..1_000_008 {
                timers.after(ticket, 2 * hour, Box::new(|| ()));
                timers.cancel(ticket);
            }
        })
    }),
    one("find a context among n, and forget it", |n| {
        let world = World::default();
        (0..n).for_each(|i| drop(world.binder.context(&format!("name{i}"))));
        let last = format!("name{}", n - 1);
        again(move || {
            let context = world.binder.context(&last);
            world.binder.forget_context(&context);
        })
    }),
    one("a signal for one of n calls that wait for a place", |n| {
        let copies = Copies::new(1, Allowance::new(usize::MAX, None), Arc::new(AtOnce));
        let place = copies.enter().unwrap();
        (0..n as i32).for_each(|tid| copies.wait(Subject::Ioctl(tid), drop));
        Box::new(move || {
            (8..16).for_each(|tid| assert!(copies.give_up(Subject::Ioctl(tid))));
            assert!(copies.enter().is_none());
            let _ = &place;
        })
    }),
];

fn quotas() -> Quotas {
    Quotas::new(&Memory::new(MemoryConfig::default()), UserLimits::NONE)
}
