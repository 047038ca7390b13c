//! What one client has very much of is not gone through under the lock that all others wait for.

use crate::support::*;
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::HandleCookie;
use fakebinder::protocol::returns::Return;
use fakebinder_sim::{ARENA, Sim};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, and how many bytes each thread has asked it for.
struct Counting;

// SAFETY: all of it is the system's allocator; counting touches no memory but a thread's own cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATED.try_with(|bytes| bytes.set(bytes.get() + layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How many bytes `work` allocates.
fn allocated(work: impl FnOnce()) -> usize {
    let before = ALLOCATED.get();
    work();
    ALLOCATED.get() - before
}

/// The owner has so many nodes, and the manager a handle to each.
fn nodes(owner: &Sim, manager: &Sim, count: u64) -> Vec<u32> {
    (0..count).map(|index| offer(owner, manager, 0x10 + index * 0x10)).collect()
}

fn death(handle: u32, cookie: u64) -> Command {
    Command::RequestDeathNotification(HandleCookie { handle, cookie })
}

/// Others are served while a process is released: the first notice of its death is read when no
/// more than a section's records are gone, however many there are.
#[test]
fn a_release_lets_others_in_between() {
    let gone_at_the_first_notice = |count: u64| {
        let Pair { world, manager, client } = pair();
        let held = nodes(&client, &manager, count);
        manager.main().write(&[death(held[0], 1)]);
        let waiting = manager.main().enter_looper();
        assert!(waiting.is_blocked());
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let (binder, seen) = (world.binder.clone(), left.clone());
        let read_buffer = ARENA + manager.arena.len() as u64 - 256;
        manager.arena.trap(read_buffer, move || {
            let state = binder.log_process(200).unwrap_or_default();
            let nodes = state.lines().filter(|line| line.starts_with("  node ")).count();
            seen.store(nodes, Ordering::SeqCst);
        });
        client.release();
        assert_eq!(news(&waiting), [Return::DeadBinder(1)]);
        end(&world, [manager]);
        count as usize - left.load(Ordering::SeqCst)
    };
    let gone = [300, 1200].map(gone_at_the_first_notice);
    assert_eq!(gone[0], gone[1]);
    assert!((1..=128).contains(&gone[0]), "{gone:?} nodes were gone");
}

/// Notices that wait to be acknowledged are found by their cookie.
#[test]
fn an_acknowledgement_does_not_go_through_all_that_wait_for_one() {
    let costs = |count: u64| {
        let Pair { world, manager, client } = pair();
        let held = nodes(&client, &manager, count);
        for (cookie, handle) in held.iter().enumerate() {
            manager.main().write(&[death(*handle, cookie as u64)]);
        }
        client.release();
        assert_eq!(manager.main().drain().len(), count as usize);
        // The oldest, the latest, and one that is none.
        let cost = [0, count - 1, count]
            .map(|cookie| allocated(|| manager.main().write(&[Command::DeadBinderDone(cookie)])));
        end(&world, [manager]);
        cost
    };
    let (few, many) = (costs(200), costs(800));
    for (few, many) in few.into_iter().zip(many) {
        assert!(many <= few + 512, "{few} bytes among 200, {many} among 800");
    }
}

/// The same for freezes.
#[test]
fn an_acknowledgement_of_a_freeze_does_not_go_through_all_that_wait_for_one() {
    let costs = |count: u64| {
        let Pair { world, manager, client } = pair();
        let held = nodes(&client, &manager, count);
        for (cookie, &handle) in held.iter().enumerate() {
            let request = HandleCookie { handle, cookie: cookie as u64 };
            manager.main().write(&[Command::RequestFreezeNotification(request)]);
        }
        assert_eq!(manager.main().drain().len(), count as usize);
        let cost = [0, count - 1].map(|cookie| {
            allocated(|| manager.main().write(&[Command::FreezeNotificationDone(cookie)]))
        });
        end(&world, [client, manager]);
        cost
    };
    let (few, many) = (costs(200), costs(800));
    for (few, many) in few.into_iter().zip(many) {
        assert!(many <= few + 512, "{few} bytes among 200, {many} among 800");
    }
}
