//! The ioctls that say little: versions, limits, and what is not there.

use crate::support::*;
use fakebinder::Errno;
use fakebinder::uapi;
use fakebinder_sim::World;

#[test]
fn the_protocol_version_is_8() {
    let world = World::default();
    let sim = world.open(1);
    assert_eq!(sim.main().call(uapi::BINDER_VERSION, &[0; 4]), Ok(vec![8, 0, 0, 0]));
    end(&world, [sim]);
}

#[test]
fn idle_timeout_and_priority_are_einval() {
    let world = World::default();
    let sim = world.open(1);
    assert_eq!(sim.main().call(uapi::BINDER_SET_IDLE_TIMEOUT, &[0; 8]), Err(Errno::EINVAL));
    assert_eq!(sim.main().call(uapi::BINDER_SET_IDLE_PRIORITY, &[0; 4]), Err(Errno::EINVAL));
    end(&world, [sim]);
}

#[test]
fn unknown_ioctls_are_einval() {
    let world = World::default();
    let sim = world.open(1);
    for cmd in [0, 0x6200, 0x5401, u32::MAX, uapi::BINDER_VERSION + 100] {
        assert_eq!(sim.main().call(cmd, &[0; 64]), Err(Errno::EINVAL), "{cmd:#x}");
    }
    // The right number with another size is another ioctl.
    let wrong_size = uapi::BINDER_SET_MAX_THREADS ^ (12 << 16);
    assert_eq!(sim.main().call(wrong_size, &[0; 8]), Err(Errno::EINVAL));
    end(&world, [sim]);
}

/// Whatever it is: the thread has been through an ioctl, and its reads wait from now on.
#[test]
fn any_ioctl_makes_a_thread_known() {
    let world = World::default();
    let sim = world.open(1);
    assert_eq!(sim.main().call(0, &[]), Err(Errno::EINVAL));
    assert_eq!(world.stats().threads, 1);
    assert!(sim.main().read().is_blocked());
    end(&world, [sim]);
}

#[test]
fn what_only_goes_in_comes_back_unchanged() {
    let world = World::default();
    let sim = world.open(1);
    let max = [3, 0, 0, 0];
    assert_eq!(sim.main().call(uapi::BINDER_SET_MAX_THREADS, &max), Ok(max.to_vec()));
    let on = [1, 0, 0, 0];
    assert_eq!(sim.main().call(uapi::BINDER_ENABLE_ONEWAY_SPAM_DETECTION, &on), Ok(on.to_vec()));
    end(&world, [sim]);
}
