//! Races at a place of one's choice, in one thread: an input always does the same.

use fakebinder::Errno;
use fakebinder::client_mem::{ClientMemory, SharedSlice};
use fakebinder_sim::Arena;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a panic ends the program")
}

type Act = Box<dyn FnOnce() + Send>;

/// Where the driver leaves its locks and reaches out to a client, somebody else may act. The
/// barrier counts these moments and lets one act in at the n-th: a race, at the same place each
/// time.
#[derive(Default)]
pub struct Barrier {
    after: AtomicU32,
    act: Mutex<Option<Act>>,
}

impl Barrier {
    /// `act` happens at the `after`-th moment from now, from 1.
    pub fn arm(&self, after: u32, act: Act) {
        *lock(&self.act) = Some(act);
        self.after.store(after, Ordering::Relaxed);
    }

    /// The step is over: what has found no moment in it happens now.
    pub fn finish(&self) {
        if self.after.swap(0, Ordering::Relaxed) > 0 {
            let act = lock(&self.act).take();
            act.into_iter().for_each(|act| act());
        }
    }

    /// The driver reaches out.
    pub fn pass(&self) {
        let after = self.after.load(Ordering::Relaxed);
        if after > 0 {
            self.after.store(after - 1, Ordering::Relaxed);
            if after == 1 {
                let act = lock(&self.act).take();
                act.into_iter().for_each(|act| act());
            }
        }
    }
}

/// A client's memory, as one call of it finds it.
pub struct View {
    pub arena: Arc<Arena>,
    barrier: Arc<Barrier>,
    /// How often it can still be reached.
    reachable: AtomicU32,
}

impl View {
    pub const ALWAYS: u32 = u32::MAX;

    pub fn new(arena: Arc<Arena>, barrier: Arc<Barrier>, reachable: u32) -> Arc<View> {
        Arc::new(View { arena, barrier, reachable: AtomicU32::new(reachable) })
    }

    fn reach(&self) -> Result<(), Errno> {
        let left = self.reachable.load(Ordering::Relaxed);
        if left == View::ALWAYS {
            return Ok(());
        }
        self.reachable.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 0 { Err(Errno::EFAULT) } else { Ok(()) }
    }
}

impl ClientMemory for View {
    fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), Errno> {
        self.barrier.pass();
        self.reach()?;
        self.arena.read(addr, dst)
    }

    /// Not a barrier: the receiver's page table is locked meanwhile.
    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno> {
        self.reach()?;
        self.arena.read_shared(addr, dst)
    }

    fn write(&self, addr: u64, src: &[u8]) -> Result<(), Errno> {
        self.barrier.pass();
        self.reach()?;
        self.arena.write(addr, src)
    }
}
