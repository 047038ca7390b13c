//! Instances of binderfs side by side, as the mounts of one daemon are: two containers that must
//! not meet.

use crate::support::*;
use fakebinder::protocol::returns::Return;
use fakebinder_sim::{Sim, World};

/// Another instance of the same driver.
fn another(world: &World) -> World {
    let (memory, timers) = (world.memory.clone(), world.timers.clone());
    World { binder: world.binder.another_instance(), memory, timers }
}

fn with_manager(world: &World, pid: i32) -> Sim {
    let manager = world.open(pid);
    manager.main().become_manager();
    manager
}

#[test]
fn a_device_of_the_same_name_in_another_instance_has_a_manager_of_its_own() {
    let Pair { world, manager, client } = pair();
    let other = another(&world);
    let stranger = open(&other, 300);
    assert_eq!(news(&call(stranger.main(), 0, 1, b"")), [Return::DeadReply], "no manager there");
    let theirs = with_manager(&other, 400);
    // What one of the same processes holds here means nothing there.
    let held = offer(&client, &manager, 0x10);
    let here_too = open(&other, 100);
    assert_eq!(news(&call(here_too.main(), held, 1, b"")), [Return::FailedReply]);
    let asked = call(stranger.main(), 0, 5, b"");
    assert_eq!(take(theirs.main()).code, 5);
    assert_eq!(manager.main().drain(), []);
    answer(theirs.main().nonblock(), b"");
    reply(&asked);
    other.binder.context("binder").check_invariants().unwrap();
    end(&world, [client, manager, stranger, theirs, here_too]);
}

/// Whoever is root in one container reads the logs of its mount.
#[test]
fn the_logs_of_an_instance_tell_of_no_other() {
    let Pair { world, manager, client } = pair();
    let other = another(&world);
    let theirs = with_manager(&other, 300);
    let stranger = open(&other, 400);
    post(client.main(), 99, 1, b"");
    post(stranger.main(), 0, 2, b"secret");
    let logs = |of: &World| {
        let binder = &of.binder;
        let lists = [binder.log_state(), binder.log_transactions(), binder.log_stats()];
        lists.concat() + &binder.log_of_transactions(false) + &binder.log_of_transactions(true)
    };
    let (here, there) = (logs(&world), logs(&other));
    for (log, own, others) in [(&here, [100, 200], [300, 400]), (&there, [300, 400], [100, 200])] {
        for pid in own {
            assert!(log.contains(&format!("proc {pid}\n")), "{pid} is not in\n{log}");
        }
        for pid in others {
            let is_there = |log: &str| {
                log.split(|c: char| !c.is_ascii_digit()).any(|word| word == pid.to_string())
            };
            assert!(!is_there(log), "{pid} is in\n{log}");
        }
    }
    assert!(there.contains("async from 400:400 to 300:0"), "{there}");
    assert!(here.contains("BR_FAILED_REPLY: 1") && !there.contains("BR_FAILED_REPLY"), "{there}");
    assert!(here.contains("proc: active 2 total 2\n"), "{here}");
    assert_eq!((world.binder.pids(), other.binder.pids()), (vec![100, 200], vec![300, 400]));
    assert!(!world.binder.has_open(300) && other.binder.log_process(100).is_none());
    // What the daemon holds is counted over all.
    assert_eq!((world.stats().processes, other.stats().processes), (4, 4));
    stranger.release();
    theirs.release();
    assert!(other.binder.log_stats().contains("proc: active 0 total 2\n"));
    end(&world, [client, manager]);
}
