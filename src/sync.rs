//! The daemon's locks: parking_lot's, each with its [rank](crate::lock_order) in its type. No other
//! locks are used in this crate (clippy checks that), so the check of the order sees all of them.
//!
//! The code that installs and reclaims pages takes its locks and atomics from [`modelled`]. There
//! `--cfg loom` puts other ones in their place, so that the model check runs the very code that the
//! daemon runs. `Arc` stays the standard one in both: loom's cannot hold a trait object.
#![allow(clippy::disallowed_types, reason = "these are the locks that are to be used instead")]

use crate::lock_order::{self, HeldLock, Ranked};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

// A release build pays nothing for the check.
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<HeldLock>() == 0);

/// Blocks all signals in a thread of the daemon's, so that the threads that wait for them get them.
pub(crate) fn block_signals() {
    let _ = nix::sys::signal::SigSet::all().thread_block();
}

/// A mutex of rank `R`.
pub struct Mutex<T, R> {
    lock: parking_lot::Mutex<T>,
    rank: PhantomData<fn() -> R>,
}

/// A [`Mutex`], held.
#[derive(Debug)]
pub struct MutexGuard<'lock, T> {
    // In this order: the lock counts as held until it is free.
    guard: parking_lot::MutexGuard<'lock, T>,
    held: HeldLock,
}

impl<T, R: Ranked> Mutex<T, R> {
    /// A mutex that nobody holds.
    pub const fn new(value: T) -> Self {
        Self { lock: parking_lot::Mutex::new(value), rank: PhantomData }
    }

    /// # Panics
    /// In debug builds, when the [order](lock_order) forbids it.
    #[track_caller]
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let held = lock_order::waiting_for(R::RANK);
        MutexGuard { guard: self.lock.lock(), held }
    }

    /// The guarded value, which no other thread can hold now.
    pub fn get_mut(&mut self) -> &mut T {
        self.lock.get_mut()
    }

    /// None where the mutex is held. Allowed in any order, since it does not wait.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = self.lock.try_lock()?;
        Some(MutexGuard { guard, held: lock_order::holding(R::RANK) })
    }
}

impl<T: Default, R: Ranked> Default for Mutex<T, R> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug, R> fmt::Debug for Mutex<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock.fmt(f)
    }
}

impl<'lock, T> MutexGuard<'lock, T> {
    /// Calls `f` without the lock, and takes the lock again.
    pub fn unlocked<U>(guard: &mut Self, f: impl FnOnce() -> U) -> U {
        let given_back = guard.held.give_back();
        let result = parking_lot::MutexGuard::unlocked(&mut guard.guard, f);
        drop(given_back);
        result
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// A condition that a thread with a [`Mutex`] waits for.
#[derive(Debug, Default)]
pub struct Condvar(parking_lot::Condvar);

impl Condvar {
    /// A condition that nobody waits for.
    pub const fn new() -> Self {
        Self(parking_lot::Condvar::new())
    }

    /// Wakes one of the waiting threads.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all waiting threads.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// # Panics
    /// In debug builds, when the thread holds another lock. So do the other waits.
    #[track_caller]
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        lock_order::assert_only(&guard.held);
        self.0.wait(&mut guard.guard);
    }

    /// As [`Condvar::wait`], for at most so long.
    #[track_caller]
    pub fn wait_for<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        most: Duration,
    ) -> parking_lot::WaitTimeoutResult {
        lock_order::assert_only(&guard.held);
        self.0.wait_for(&mut guard.guard, most)
    }

    /// As [`Condvar::wait`], until that moment at the latest.
    #[track_caller]
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, end: Instant) {
        lock_order::assert_only(&guard.held);
        self.0.wait_until(&mut guard.guard, end);
    }
}

/// A read-write lock of rank `R`.
pub struct RwLock<T, R> {
    lock: parking_lot::RwLock<T>,
    rank: PhantomData<fn() -> R>,
}

/// A [`RwLock`], held for writing.
#[derive(Debug)]
pub struct RwLockWriteGuard<'lock, T> {
    guard: parking_lot::RwLockWriteGuard<'lock, T>,
    _held: HeldLock,
}

/// A [`RwLock`], held for reading.
#[derive(Debug)]
pub struct RwLockReadGuard<'lock, T> {
    guard: parking_lot::RwLockReadGuard<'lock, T>,
    _held: HeldLock,
}

impl<T, R: Ranked> RwLock<T, R> {
    /// A lock that nobody holds.
    pub const fn new(value: T) -> Self {
        Self { lock: parking_lot::RwLock::new(value), rank: PhantomData }
    }

    /// # Panics
    /// In debug builds, when the [order](lock_order) forbids it: also when this thread reads
    /// already, since a thread that waits to write may come in between.
    #[track_caller]
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        let _held = lock_order::waiting_for(R::RANK);
        RwLockReadGuard { guard: self.lock.read(), _held }
    }

    /// None where the lock is held for writing. Allowed in any order, since it does not wait.
    #[inline]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        let guard = self.lock.try_read()?;
        Some(RwLockReadGuard { guard, _held: lock_order::holding(R::RANK) })
    }

    /// # Panics
    /// In debug builds, when the [order](lock_order) forbids it.
    #[track_caller]
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let _held = lock_order::waiting_for(R::RANK);
        RwLockWriteGuard { guard: self.lock.write(), _held }
    }

    /// None where the lock is held. Allowed in any order, since it does not wait.
    #[inline]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        let guard = self.lock.try_write()?;
        Some(RwLockWriteGuard { guard, _held: lock_order::holding(R::RANK) })
    }
}

impl<T: Default, R: Ranked> Default for RwLock<T, R> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug, R> fmt::Debug for RwLock<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock.fmt(f)
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// The locks and atomics of the allocator, of the shrinker and of the mm that they work on.
#[cfg(not(loom))]
pub mod modelled {
    pub use super::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    pub use std::sync::atomic;

    /// A mutex under which no other lock is taken and no atomic is touched.
    pub type LeafMutex<T, R> = Mutex<T, R>;
}

/// Locks with parking_lot's signatures, over loom's mutex and condition variable.
///
/// Not loom's own locks: there (0.7.3) a thread about to `try_lock` is blocked, like one about to
/// `lock`, when another takes the lock first. A lock order broken by a trylock, which is what the
/// shrinker is about, then looks like a deadlock.
///
/// The locks have ranks so that their types are the same, and do not check them.
#[cfg(loom)]
pub mod modelled {
    pub use loom::sync::atomic;

    use loom::sync::{Condvar, Mutex as State};
    use std::cell::UnsafeCell;
    use std::marker::PhantomData;
    use std::ops::{Deref, DerefMut};

    const WRITER: usize = usize::MAX;

    /// The state of a read-write lock: the number of readers, or [`WRITER`].
    #[derive(Debug)]
    struct Raw {
        state: State<usize>,
        changed: Condvar,
    }

    fn read(state: usize) -> Option<usize> {
        (state != WRITER).then(|| state + 1)
    }

    fn write(state: usize) -> Option<usize> {
        (state == 0).then_some(WRITER)
    }

    impl Raw {
        fn new() -> Self {
            Self { state: State::new(0), changed: Condvar::new() }
        }

        fn wait(&self, acquire: fn(usize) -> Option<usize>) {
            let mut state = self.state.lock().expect("no thread panics here");
            loop {
                if let Some(acquired) = acquire(*state) {
                    *state = acquired;
                    return;
                }
                state = self.changed.wait(state).expect("no thread panics here");
            }
        }

        fn attempt(&self, acquire: fn(usize) -> Option<usize>) -> bool {
            let mut state = self.state.lock().expect("no thread panics here");
            let acquired = acquire(*state);
            *state = acquired.unwrap_or(*state);
            acquired.is_some()
        }

        fn release(&self) {
            let mut state = self.state.lock().expect("no thread panics here");
            *state = if *state == WRITER { 0 } else { *state - 1 };
            if *state == 0 {
                self.changed.notify_all();
            }
        }
    }

    /// A value behind a lock.
    #[derive(Debug)]
    struct Locked<T> {
        raw: Raw,
        value: UnsafeCell<T>,
    }

    #[derive(Debug)]
    pub struct RwLock<T, R> {
        locked: Locked<T>,
        rank: PhantomData<fn() -> R>,
    }

    // SAFETY: the value is only reached through guards, which the raw lock hands out to one writer
    // or to readers.
    unsafe impl<T: Send + Sync, R> Sync for RwLock<T, R> {}

    /// These locks guard no value.
    #[derive(Debug)]
    pub struct RwLockReadGuard<'a, T>(&'a Locked<T>);
    #[derive(Debug)]
    pub struct RwLockWriteGuard<'a, T>(&'a Locked<T>);

    impl<T, R> RwLock<T, R> {
        pub fn new(value: T) -> Self {
            let locked = Locked { raw: Raw::new(), value: UnsafeCell::new(value) };
            Self { locked, rank: PhantomData }
        }
        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.locked.raw.wait(read);
            RwLockReadGuard(&self.locked)
        }
        pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
            self.locked.raw.attempt(read).then(|| RwLockReadGuard(&self.locked))
        }
        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.locked.raw.wait(write);
            RwLockWriteGuard(&self.locked)
        }
        pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
            self.locked.raw.attempt(write).then(|| RwLockWriteGuard(&self.locked))
        }
    }

    impl<T> Drop for RwLockReadGuard<'_, T> {
        fn drop(&mut self) {
            self.0.raw.release();
        }
    }

    impl<T> Drop for RwLockWriteGuard<'_, T> {
        fn drop(&mut self) {
            self.0.raw.release();
        }
    }

    /// A read-write lock without readers.
    #[derive(Debug)]
    pub struct Mutex<T, R> {
        locked: Locked<T>,
        rank: PhantomData<fn() -> R>,
    }

    // SAFETY: the value is only reached through the guard, of which there is one at a time.
    unsafe impl<T: Send, R> Sync for Mutex<T, R> {}

    #[derive(Debug)]
    pub struct MutexGuard<'a, T>(&'a Locked<T>);

    impl<T, R> Mutex<T, R> {
        pub fn new(value: T) -> Self {
            let locked = Locked { raw: Raw::new(), value: UnsafeCell::new(value) };
            Self { locked, rank: PhantomData }
        }
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.locked.raw.wait(write);
            MutexGuard(&self.locked)
        }
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.locked.raw.attempt(write).then(|| MutexGuard(&self.locked))
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            self.0.raw.release();
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            // SAFETY: we hold the lock.
            unsafe { &*self.0.value.get() }
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            // SAFETY: we hold the lock.
            unsafe { &mut *self.0.value.get() }
        }
    }

    use loom::sync::atomic::{AtomicUsize, Ordering};

    /// All that happens under this lock is one step of the model.
    #[derive(Debug)]
    pub struct LeafMutex<T, R> {
        step: AtomicUsize,
        value: parking_lot::Mutex<T>,
        rank: PhantomData<fn() -> R>,
    }

    impl<T, R> LeafMutex<T, R> {
        pub fn new(value: T) -> Self {
            let (step, value) = (AtomicUsize::new(0), parking_lot::Mutex::new(value));
            Self { step, value, rank: PhantomData }
        }
        pub fn lock(&self) -> parking_lot::MutexGuard<'_, T> {
            self.step.fetch_add(1, Ordering::AcqRel);
            self.value.lock()
        }
    }
}
