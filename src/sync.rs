//! The locks and atomics of the allocator, of the shrinker and of the mm they work on.
//!
//! `--cfg loom` puts modelled ones in their place, so that the model check runs the very code that
//! the daemon runs. `Arc` stays the standard one in both: loom's cannot hold a trait object.

#[cfg(not(loom))]
pub use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(loom))]
pub use std::sync::atomic;

/// A mutex under which no other lock is taken and no atomic is touched.
#[cfg(not(loom))]
pub type LeafMutex<T> = Mutex<T>;

#[cfg(loom)]
pub use loom::sync::atomic;
#[cfg(loom)]
pub use model::{LeafMutex, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks with parking_lot's signatures, over loom's mutex and condition variable.
///
/// Not loom's own locks: there (0.7.3) a thread about to `try_lock` is blocked, like one about to
/// `lock`, when another takes the lock first. A lock order broken by a trylock, which is what the
/// shrinker is about, then looks like a deadlock.
#[cfg(loom)]
mod model {
    use loom::sync::{Condvar, Mutex as State};
    use std::cell::UnsafeCell;
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

    #[derive(Debug)]
    pub struct RwLock<T> {
        raw: Raw,
        #[allow(dead_code, reason = "nobody keeps a value behind one")]
        value: UnsafeCell<T>,
    }

    // SAFETY: the value is only reached through guards, which the raw lock hands out to one writer
    // or to readers.
    unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

    #[derive(Debug)]
    pub struct RwLockReadGuard<'a, T>(&'a RwLock<T>);
    #[derive(Debug)]
    pub struct RwLockWriteGuard<'a, T>(&'a RwLock<T>);

    impl<T> RwLock<T> {
        pub fn new(value: T) -> Self {
            Self { raw: Raw::new(), value: UnsafeCell::new(value) }
        }
        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.raw.wait(read);
            RwLockReadGuard(self)
        }
        pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
            self.raw.attempt(read).then(|| RwLockReadGuard(self))
        }
        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.raw.wait(write);
            RwLockWriteGuard(self)
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
    pub struct Mutex<T> {
        raw: Raw,
        value: UnsafeCell<T>,
    }

    // SAFETY: the value is only reached through the guard, of which there is one at a time.
    unsafe impl<T: Send> Sync for Mutex<T> {}

    #[derive(Debug)]
    pub struct MutexGuard<'a, T>(&'a Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self { raw: Raw::new(), value: UnsafeCell::new(value) }
        }
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.raw.wait(write);
            MutexGuard(self)
        }
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.raw.attempt(write).then(|| MutexGuard(self))
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

    /// What happens under it is one step of the model.
    #[derive(Debug)]
    pub struct LeafMutex<T> {
        step: AtomicUsize,
        value: parking_lot::Mutex<T>,
    }

    impl<T: Default> Default for LeafMutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    impl<T> LeafMutex<T> {
        pub fn new(value: T) -> Self {
            Self { step: AtomicUsize::new(0), value: parking_lot::Mutex::new(value) }
        }
        pub fn lock(&self) -> parking_lot::MutexGuard<'_, T> {
            self.step.fetch_add(1, Ordering::AcqRel);
            self.value.lock()
        }
    }
}
