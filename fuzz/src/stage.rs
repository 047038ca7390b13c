//! The stage that programs are played on: clients whose memory, descriptors and threads are plain
//! values, so that the whole driver runs in one thread and an input always does the same.

use fakebinder::Errno;
use fakebinder::binder::{Client, File, Poller, Reply};
use fakebinder::client_mem::{ClientMemory, SharedSlice};
use fakebinder_sim::Arena;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a panic ends the program")
}

type Act = Box<dyn FnOnce() + Send>;

/// Where the driver leaves its locks and reaches out to a client, somebody else may act. The gate
/// counts these moments and lets one act in at the n-th: a race, at the same place each time.
#[derive(Default)]
pub struct Gate {
    after: AtomicU32,
    act: Mutex<Option<Act>>,
}

impl Gate {
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
    gate: Arc<Gate>,
    /// How often it can still be reached.
    reachable: AtomicU32,
}

impl View {
    pub const ALWAYS: u32 = u32::MAX;

    pub fn new(arena: Arc<Arena>, gate: Arc<Gate>, reachable: u32) -> Arc<View> {
        Arc::new(View { arena, gate, reachable: AtomicU32::new(reachable) })
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
        self.gate.pass();
        self.reach()?;
        self.arena.read(addr, dst)
    }

    /// Not a gate: the receiver's page table is locked meanwhile.
    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno> {
        self.reach()?;
        self.arena.read_shared(addr, dst)
    }

    fn write(&self, addr: u64, src: &[u8]) -> Result<(), Errno> {
        self.gate.pass();
        self.reach()?;
        self.arena.write(addr, src)
    }
}

/// A file that clients pass on. `alive` counts how many there are.
pub struct Paper {
    pub number: u32,
    pub alive: Arc<()>,
}

impl File for Paper {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// What the driver may ask of a client.
pub struct Actress {
    pub gate: Arc<Gate>,
    pub security_context: Option<Vec<u8>>,
    pub refuses_files: AtomicBool,
    pub room: AtomicU32,
    files: Mutex<Vec<Option<Arc<dyn File>>>>,
    nice: Mutex<Vec<(i32, i32)>>,
}

impl Actress {
    pub fn new(gate: Arc<Gate>, security_context: Option<Vec<u8>>) -> Actress {
        Actress {
            gate,
            security_context,
            refuses_files: AtomicBool::new(false),
            room: AtomicU32::new(u32::MAX),
            files: Mutex::default(),
            nice: Mutex::default(),
        }
    }

    /// Puts a file at the lowest free number.
    pub fn add_file(&self, file: Arc<dyn File>) -> i32 {
        let mut files = lock(&self.files);
        let free = files.iter().position(Option::is_none).unwrap_or(files.len());
        if free == files.len() {
            files.push(None);
        }
        files[free] = Some(file);
        free as i32
    }

    /// The number of the file behind a descriptor.
    pub fn paper(&self, fd: i32) -> Option<u32> {
        let files = lock(&self.files);
        let file = files.get(usize::try_from(fd).ok()?)?.as_ref()?;
        file.as_any().downcast_ref::<Paper>().map(|paper| paper.number)
    }

    /// Every descriptor in use.
    pub fn fds(&self) -> Vec<i32> {
        let files = lock(&self.files);
        files.iter().enumerate().filter(|(_, f)| f.is_some()).map(|(fd, _)| fd as i32).collect()
    }
}

impl Client for Actress {
    fn take_file(&self, _tid: i32, fd: i32) -> Result<Arc<dyn File>, Errno> {
        self.gate.pass();
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        lock(&self.files).get(fd).cloned().flatten().ok_or(Errno::EBADF)
    }

    fn accepts_files(&self) -> bool {
        !self.refuses_files.load(Ordering::Relaxed)
    }

    fn install_files(&self, _tid: i32, files: Vec<Arc<dyn File>>) -> Result<Vec<i32>, Errno> {
        self.gate.pass();
        let room = self.room.load(Ordering::Relaxed);
        if room != u32::MAX {
            let left = room.checked_sub(files.len() as u32).ok_or(Errno::EMFILE)?;
            self.room.store(left, Ordering::Relaxed);
        }
        Ok(files.into_iter().map(|file| self.add_file(file)).collect())
    }

    fn close_files(&self, fds: &[i32]) {
        let mut files = lock(&self.files);
        for fd in fds {
            let file = files.get_mut(*fd as usize).expect("the driver closes what it installed");
            assert!(file.take().is_some(), "descriptor {fd} is closed twice");
        }
    }

    fn nice(&self, tid: i32) -> i32 {
        self.gate.pass();
        lock(&self.nice).iter().find(|(known, _)| *known == tid).map_or(0, |(_, nice)| *nice)
    }

    fn set_nice(&self, tid: i32, nice: i32) {
        let nice = nice.clamp(-20, 19);
        let mut table = lock(&self.nice);
        match table.iter_mut().find(|(known, _)| *known == tid) {
            Some(entry) => entry.1 = nice,
            None => table.push((tid, nice)),
        }
    }

    fn security_context(&self) -> Result<Vec<u8>, Errno> {
        self.gate.pass();
        self.security_context.clone().ok_or(Errno::EOPNOTSUPP)
    }

    fn pid_as_seen(&self, pid: i32) -> i32 {
        pid
    }
}

/// How an ioctl ended: its result, and its argument as copied out.
#[derive(Clone)]
pub struct Ended {
    pub result: Result<i32, Errno>,
    pub out: Vec<u8>,
}

/// An ioctl: running, or ended.
#[derive(Default)]
pub struct Slot {
    ended: Mutex<Option<Ended>>,
    has_ended: AtomicBool,
    pub interrupted: AtomicBool,
}

impl Slot {
    pub fn take(&self) -> Option<Ended> {
        // Most have not, and are asked after every step.
        self.has_ended().then(|| lock(&self.ended).take()).flatten()
    }

    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }
}

/// The driver's end of a [`Slot`].
pub struct Answer(pub Arc<Slot>);

impl Answer {
    fn end(&self, result: Result<i32, Errno>, out: &[u8]) {
        assert!(!self.0.has_ended.swap(true, Ordering::Relaxed), "an ioctl ended twice");
        *lock(&self.0.ended) = Some(Ended { result, out: out.to_vec() });
    }
}

impl Reply for Answer {
    fn interrupted(&self) -> bool {
        self.0.interrupted.load(Ordering::Relaxed)
    }

    fn send(self: Box<Self>, result: Result<i32, Errno>, out: &[u8]) {
        self.end(result, out);
    }
}

/// Somebody who polls, and never looks again.
pub struct Idle;

impl Poller for Idle {
    fn wake(&self) {}
}

thread_local! {
    /// What the steps did, when somebody wants to know.
    static TRACE: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Whether [`trace`] is kept.
pub fn is_traced() -> bool {
    TRACE.with_borrow(Option::is_some)
}

/// Notes what happens, when a program is replayed for people.
pub fn trace(line: impl FnOnce() -> String) {
    TRACE.with_borrow_mut(|trace| {
        if let Some(lines) = trace {
            lines.push(line());
        }
    });
}

/// Runs `f` and returns what was traced, also when it panics.
pub fn traced(f: impl FnOnce()) -> (Vec<String>, bool) {
    TRACE.set(Some(Vec::new()));
    let ended_well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_ok();
    (TRACE.take().unwrap_or_default(), ended_well)
}

/// What the driver calls an error is one: none of the things that a client does are.
struct ErrorsArePanics;

impl log::Log for ErrorsArePanics {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() == log::Level::Error
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let message = record.args().to_string();
            // Where a fault was injected.
            assert!(message.contains("cannot zap page"), "an error was logged: {message}");
        }
    }

    fn flush(&self) {}
}

/// From now on, an error in the log is a panic.
pub fn panic_at_errors() {
    if log::set_logger(&ErrorsArePanics).is_ok() {
        log::set_max_level(log::LevelFilter::Error);
    }
}
