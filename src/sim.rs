//! Binder clients in plain memory: the engine and the allocator without a device, a kernel or a
//! process. Tests read as scenes, and fuzz targets run at the speed of function calls.
//!
//! A [`World`] is a driver; a [`Sim`] is one open file of a device with an address space and a
//! descriptor table of its own; a [`SimThread`] is one of its threads. A read that finds nothing
//! is not waited for: it is a [`Pending`] that somebody else's call may complete.

use crate::Errno;
use crate::alloc::Alloc;
use crate::binder::{
    Binder, Birth, Call, Client, Context, File, Limits, Poller, Process, Reply, Stats, Timers,
    Watching,
};
use crate::client_mem::{ClientMemory, SharedSlice};
use crate::lock_order::{assert_nothing_held, rank};
use crate::memory::{Memory, MemoryConfig};
use crate::mm_shim::HeapMm;
use crate::probe::Probes;
use crate::protocol::command::Command;
use crate::protocol::object::Object;
use crate::protocol::record::IntoBytes;
use crate::protocol::record::Record;
use crate::protocol::record::{TransactionData, WriteRead};
use crate::protocol::returns::Return;
use crate::quota::User;
use crate::sync::Mutex;
use crate::uapi;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Where a client's arena begins: a place that no buffer mapping shares.
pub const ARENA: u64 = 0x10_0000;

/// Where clients map their buffers.
pub const MAPPING: u64 = 0x7000_0000_0000;

/// A client's memory: one stretch of bytes from [`ARENA`] on; everything else, and what was
/// unmapped of it, is EFAULT.
#[derive(Default)]
pub struct Arena {
    bytes: Mutex<Vec<u8>, rank::Simulated>,
    holes: Mutex<Vec<Range<u64>>, rank::Simulated>,
    traps: Mutex<Vec<(u64, Trap)>, rank::Simulated>,
}

/// What happens to the world while somebody's memory is being copied.
type Trap = Box<dyn FnOnce() + Send>;

impl Arena {
    /// Appends bytes, 8-byte aligned, and returns their address.
    pub fn push(&self, bytes: &[u8]) -> u64 {
        let mut arena = self.bytes.lock();
        let start = arena.len().next_multiple_of(8);
        arena.resize(start, 0);
        arena.extend_from_slice(bytes);
        ARENA + start as u64
    }

    /// Forgets everything that was pushed after the first `keep` bytes.
    pub fn truncate(&self, keep: usize) {
        self.bytes.lock().truncate(keep);
    }

    /// Makes a hole of `len` bytes.
    pub fn unmap(&self, addr: u64, len: u64) {
        self.holes.lock().push(addr..addr + len);
    }

    /// Does something, once, when the byte at `addr` is about to be copied from or to: what another
    /// client may do at that moment, for the engine copies without a lock.
    pub fn trap(&self, addr: u64, happens: impl FnOnce() + Send + 'static) {
        self.traps.lock().push((addr, Box::new(happens)));
    }

    fn spring(&self, addr: u64, size: usize) {
        let covers = |trap: &(u64, Trap)| addr <= trap.0 && trap.0 - addr < size as u64;
        let mut traps = self.traps.lock();
        let sprung: Vec<_> = traps.extract_if(.., |trap| covers(trap)).collect();
        drop(traps);
        sprung.into_iter().for_each(|(_, happens)| happens());
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.bytes.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a copy does first.
    fn reach(&self, addr: u64, size: usize) -> Result<(), Errno> {
        assert_nothing_held();
        self.spring(addr, size);
        let past = addr.saturating_add(size as u64);
        match self.holes.lock().iter().any(|hole| addr < hole.end && hole.start < past) {
            true => Err(Errno::EFAULT),
            false => Ok(()),
        }
    }

    fn range(len: usize, addr: u64, size: usize) -> Result<Range<usize>, Errno> {
        let start = addr.checked_sub(ARENA).ok_or(Errno::EFAULT)?;
        let start = usize::try_from(start).map_err(|_| Errno::EFAULT)?;
        let end = start.checked_add(size).filter(|end| *end <= len).ok_or(Errno::EFAULT)?;
        Ok(start..end)
    }
}

impl ClientMemory for Arena {
    fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), Errno> {
        self.reach(addr, dst.len())?;
        let bytes = self.bytes.lock();
        dst.copy_from_slice(&bytes[Self::range(bytes.len(), addr, dst.len())?]);
        Ok(())
    }

    fn read_shared(&self, addr: u64, dst: SharedSlice<'_>) -> Result<(), Errno> {
        self.reach(addr, dst.len())?;
        let bytes = self.bytes.lock();
        dst.copy_from_slice(&bytes[Self::range(bytes.len(), addr, dst.len())?]);
        Ok(())
    }

    fn write(&self, addr: u64, src: &[u8]) -> Result<(), Errno> {
        self.reach(addr, src.len())?;
        let mut bytes = self.bytes.lock();
        let range = Self::range(bytes.len(), addr, src.len())?;
        bytes[range].copy_from_slice(src);
        Ok(())
    }
}

/// A file that clients pass on, told from others by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimFile(pub u64);

impl File for SimFile {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// What the engine may ask of a simulated client, with no lock held.
#[derive(Default)]
pub struct SimClient {
    files: Mutex<BTreeMap<i32, Arc<dyn File>>, rank::Simulated>,
    nice: Mutex<BTreeMap<i32, i32>, rank::Simulated>,
    no_files: AtomicBool,
    user: Mutex<Option<Arc<User>>, rank::Simulated>,
    /// The process has ended and was waited for; a child goes on with its open file.
    reaped: AtomicBool,
    security_context: Mutex<Option<Vec<u8>>, rank::Simulated>,
    /// How many files may still be installed; for tests of a full descriptor table.
    room: Mutex<Option<usize>, rank::Simulated>,
    threads: SimThreads,
}

/// Which threads of a client there have been.
#[derive(Default)]
struct SimThreads {
    /// How many threads of a number have ended.
    ended: Mutex<BTreeMap<i32, u64>, rank::Simulated>,
    watches: Arc<Mutex<Watches, rank::Simulated>>,
    last: AtomicU64,
    /// As on a kernel that does not tell of the end of threads.
    cannot_watch: AtomicBool,
}

impl SimThreads {
    fn birth(&self, tid: i32) -> Birth {
        Birth(self.ended.lock().get(&tid).copied().unwrap_or(0))
    }
}

/// Ends a watch when it is dropped.
struct SimWatch {
    watches: Arc<Mutex<Watches, rank::Simulated>>,
    ticket: u64,
}

impl Drop for SimWatch {
    fn drop(&mut self) {
        assert_nothing_held();
        self.watches.lock().remove(&self.ticket);
    }
}

impl Client for SimClient {
    fn take_file(&self, _tid: i32, fd: i32) -> Result<Arc<dyn File>, Errno> {
        assert_nothing_held();
        self.files.lock().get(&fd).cloned().ok_or(Errno::EBADF)
    }

    fn accepts_files(&self) -> bool {
        !self.no_files.load(Ordering::Relaxed)
    }

    fn install_files(&self, _tid: i32, files: Vec<Arc<dyn File>>) -> Result<Vec<i32>, Errno> {
        assert_nothing_held();
        if let Some(room) = self.room.lock().as_mut() {
            *room = room.checked_sub(files.len()).ok_or(Errno::EMFILE)?;
        }
        let mut table = self.files.lock();
        let mut numbers = Vec::new();
        for file in files {
            let free = (3..).find(|fd| !table.contains_key(fd)).ok_or(Errno::EMFILE)?;
            table.insert(free, file);
            numbers.push(free);
        }
        Ok(numbers)
    }

    fn close_files(&self, fds: &[i32]) {
        assert_nothing_held();
        let mut table = self.files.lock();
        for fd in fds {
            table.remove(fd);
        }
    }

    fn nice(&self, tid: i32) -> i32 {
        assert_nothing_held();
        self.nice.lock().get(&tid).copied().unwrap_or(0)
    }

    fn set_nice(&self, tid: i32, nice: i32) {
        assert_nothing_held();
        self.nice.lock().insert(tid, nice.clamp(-20, 19));
    }

    fn user(&self) -> Arc<User> {
        self.user.lock().clone().unwrap_or_else(User::unlimited)
    }

    fn security_context(&self) -> Result<Vec<u8>, Errno> {
        assert_nothing_held();
        self.security_context.lock().clone().ok_or(Errno::EOPNOTSUPP)
    }

    fn pid_as_seen(&self, pid: i32) -> i32 {
        assert_nothing_held();
        pid
    }

    fn has_pid(&self) -> bool {
        assert_nothing_held();
        !self.reaped.load(Ordering::Relaxed)
    }

    fn thread_birth(&self, tid: i32) -> Option<Birth> {
        assert_nothing_held();
        Some(self.threads.birth(tid))
    }

    fn thread_is_gone(&self, tid: i32, birth: Option<Birth>) -> bool {
        assert_nothing_held();
        birth.is_some_and(|birth| birth != self.threads.birth(tid))
    }

    fn watch_thread(&self, tid: i32, birth: Option<Birth>, ended: Fire) -> Watching {
        if self.thread_is_gone(tid, birth) {
            return Watching::Gone;
        }
        if self.threads.cannot_watch.load(Ordering::Relaxed) {
            return Watching::Untold;
        }
        let ticket = self.threads.last.fetch_add(1, Ordering::Relaxed);
        let watches = self.threads.watches.clone();
        watches.lock().insert(ticket, (tid, ended));
        Watching::Told(Box::new(SimWatch { watches, ticket }))
    }
}

/// Threads whose end is waited for, by a number of their own: who, and what happens then.
type Watches = BTreeMap<u64, (i32, Fire)>;

type Fire = Box<dyn FnOnce() + Send>;

/// Timers that fire when the test says so.
#[derive(Default)]
pub struct ManualTimers {
    waiting: Mutex<BTreeMap<u64, (Duration, Fire)>, rank::Timers>,
}

impl ManualTimers {
    /// Fires every timer that waits, in the order of their delays, and says how many.
    pub fn fire_all(&self) -> usize {
        let mut due: Vec<_> = std::mem::take(&mut *self.waiting.lock()).into_values().collect();
        due.sort_by_key(|(delay, _)| *delay);
        let count = due.len();
        due.into_iter().for_each(|(_, fire)| fire());
        count
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }
}

impl Timers for ManualTimers {
    fn after(&self, ticket: u64, delay: Duration, fire: Fire) {
        self.waiting.lock().insert(ticket, (delay, fire));
    }

    fn cancel(&self, ticket: u64) {
        self.waiting.lock().remove(&ticket);
    }
}

/// A driver, its memory and its clock.
pub struct World {
    pub binder: Arc<Binder>,
    pub memory: Arc<Memory>,
    pub timers: Arc<ManualTimers>,
}

impl Default for World {
    fn default() -> World {
        World::new(MemoryConfig::default())
    }
}

impl World {
    pub fn new(config: MemoryConfig) -> World {
        World::with_limits(config, Limits::default())
    }

    pub fn with_limits(config: MemoryConfig, limits: Limits) -> World {
        let timers = Arc::new(ManualTimers::default());
        let binder = Binder::with_limits(timers.clone(), limits);
        World { binder, memory: Memory::new(config), timers }
    }

    /// Opens the device `binder` as the thread group `pid` and maps 128 KiB.
    pub fn open(&self, pid: i32) -> Sim {
        let sim = self.open_unmapped("binder", pid);
        sim.mmap(128 << 10).expect("a first mapping succeeds");
        sim
    }

    /// Opens a device and maps nothing.
    pub fn open_unmapped(&self, device: &str, pid: i32) -> Sim {
        self.open_for(User::unlimited(), device, pid)
    }

    /// As [`World::open_unmapped`], by a user of whom there may be more open files.
    pub fn open_for(&self, user: Arc<User>, device: &str, pid: i32) -> Sim {
        let client = Arc::new(SimClient::default());
        *client.user.lock() = Some(user.clone());
        let mm = HeapMm::new();
        let alloc = Alloc::of_user(mm.clone(), &self.memory, user, Probes::default());
        let context = self.binder.context(device);
        let process = context.open(pid, pid, client.clone(), alloc.clone());
        Sim { context, process, client, alloc, mm, arena: Arc::default(), pid, euid: 1000 }
    }

    /// What the driver holds.
    pub fn stats(&self) -> Stats {
        self.binder.stats()
    }
}

/// One open file.
pub struct Sim {
    pub context: Arc<Context>,
    pub process: Arc<Process>,
    pub client: Arc<SimClient>,
    pub alloc: Arc<Alloc>,
    pub mm: Arc<HeapMm>,
    pub arena: Arc<Arena>,
    pub pid: i32,
    pub euid: u32,
}

impl Sim {
    /// Maps a buffer. EBUSY: there was one before.
    pub fn mmap(&self, size: usize) -> Result<(), Errno> {
        self.mm.mmap(MAPPING, size);
        self.alloc.mmap_handler(MAPPING, size)
    }

    /// Its thread of that id, which is `pid` for the first.
    pub fn thread(&self, tid: i32) -> SimThread<'_> {
        SimThread { sim: self, tid, nonblock: false, signalled: false }
    }

    /// The thread that has the process's own id.
    pub fn main(&self) -> SimThread<'_> {
        self.thread(self.pid)
    }

    /// Puts a file into the descriptor table.
    pub fn add_file(&self, fd: i32, file: SimFile) {
        self.client.files.lock().insert(fd, Arc::new(file));
    }

    /// The file behind a descriptor.
    pub fn file(&self, fd: i32) -> Option<SimFile> {
        self.client.files.lock().get(&fd)?.as_any().downcast_ref().copied()
    }

    /// Descriptors in use.
    pub fn files(&self) -> usize {
        self.client.files.lock().len()
    }

    pub fn refuse_files(&self) {
        self.client.no_files.store(true, Ordering::Relaxed);
    }

    /// Lets only so many more files in.
    pub fn limit_files(&self, room: usize) {
        *self.client.room.lock() = Some(room);
    }

    pub fn set_nice(&self, tid: i32, nice: i32) {
        self.client.set_nice(tid, nice);
    }

    pub fn nice(&self, tid: i32) -> i32 {
        self.client.nice(tid)
    }

    /// The process has ended and was waited for; a child of its goes on with the open file.
    pub fn reap(&self) {
        self.client.reaped.store(true, Ordering::Relaxed);
    }

    /// A thread ends without a word. A later one may have its number.
    pub fn end_thread(&self, tid: i32) {
        self.end_thread_unheard(tid)();
    }

    /// The same, but whoever watches it is told when the result is called.
    pub fn end_thread_unheard(&self, tid: i32) -> impl FnOnce() + use<> {
        let threads = &self.client.threads;
        *threads.ended.lock().entry(tid).or_default() += 1;
        let mut watches = threads.watches.lock();
        let (told, others) =
            std::mem::take(&mut *watches).into_iter().partition(|it| it.1.0 == tid);
        *watches = others;
        let told: BTreeMap<u64, (i32, Fire)> = told;
        move || told.into_values().for_each(|(_, ended)| ended())
    }

    /// From now on nobody tells of the end of threads: they have to be asked after.
    pub fn cannot_watch_threads(&self) {
        self.client.threads.cannot_watch.store(true, Ordering::Relaxed);
    }

    /// How many of its threads are watched.
    pub fn watched_threads(&self) -> usize {
        self.client.threads.watches.lock().len()
    }

    pub fn set_security_context(&self, context: &[u8]) {
        *self.client.security_context.lock() = Some(context.to_vec());
    }

    /// What the client reads in its mapping.
    pub fn peek(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.mm.peek(address, &mut bytes).expect("in the mapping");
        bytes
    }

    /// The data of a transaction that was received.
    pub fn data(&self, data: &TransactionData) -> Vec<u8> {
        self.peek(data.buffer, data.data_size as usize)
    }

    /// The objects of a transaction that was received, at its offsets.
    pub fn objects(&self, data: &TransactionData) -> Vec<Object> {
        let offsets = self.peek(data.offsets, data.offsets_size as usize);
        let bytes = self.data(data);
        let offsets = offsets.as_chunks::<8>().0.iter();
        offsets
            .map(|offset| Object::read(&bytes, u64::from_ne_bytes(*offset)).expect("an object"))
            .collect()
    }

    /// Puts data and objects together in the arena: the objects stand one after the other behind
    /// `data`, padded to 8 bytes.
    pub fn message(
        &self,
        handle: u32,
        code: u32,
        data: &[u8],
        objects: &[Object],
    ) -> TransactionData {
        let mut bytes = data.to_vec();
        let mut offsets = Vec::new();
        for object in objects {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            offsets.extend_from_slice(&(bytes.len() as u64).to_ne_bytes());
            object.encode(&mut bytes);
        }
        TransactionData {
            target: handle.into(),
            code,
            data_size: bytes.len() as u64,
            offsets_size: offsets.len() as u64,
            buffer: self.arena.push(&bytes),
            offsets: self.arena.push(&offsets),
            ..TransactionData::default()
        }
    }

    /// The file is closed and the process gone.
    pub fn release(self) {
        self.mm.exit();
        self.process.release();
    }
}

/// How an ioctl ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub result: Result<i32, Errno>,
    /// The argument as copied out.
    pub out: Vec<u8>,
    /// It ended as ERESTARTSYS does.
    pub restarts: bool,
}

#[derive(Default)]
struct Slot {
    ended: Mutex<Option<Ended>, rank::Simulated>,
    interrupted: AtomicBool,
}

struct SimReply(Arc<Slot>);

impl SimReply {
    fn end(&self, ended: Ended) {
        let before = self.0.ended.lock().replace(ended);
        assert!(before.is_none(), "an ioctl ended twice: {before:?}");
    }
}

impl Reply for SimReply {
    fn interrupted(&self) -> bool {
        self.0.interrupted.load(Ordering::SeqCst)
    }

    fn send(self: Box<Self>, result: Result<i32, Errno>, out: &[u8]) {
        self.end(Ended { result, out: out.to_vec(), restarts: false });
    }

    fn restart(self: Box<Self>, out: &[u8]) {
        self.end(Ended { result: Err(Errno::EINTR), out: out.to_vec(), restarts: true });
    }
}

/// An ioctl that may not have ended yet.
pub struct Pending {
    slot: Arc<Slot>,
    process: Arc<Process>,
    arena: Arc<Arena>,
    tid: i32,
}

impl Pending {
    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.slot.ended.lock().clone()
    }

    pub fn is_blocked(&self) -> bool {
        self.slot.ended.lock().is_none()
    }

    /// A signal arrives for the thread.
    pub fn interrupt(&self) {
        self.slot.interrupted.store(true, Ordering::SeqCst);
        self.process.interrupt(self.tid);
    }

    /// For a BINDER_WRITE_READ that has ended well: its record and what was read.
    #[track_caller]
    pub fn returns(&self) -> Vec<Return> {
        let ended = self.ended().expect("the read is still blocked");
        assert_eq!(ended.result, Ok(0), "the read failed");
        self.read_so_far(&ended)
    }

    /// What the read buffer of an ended BINDER_WRITE_READ holds, as far as it was consumed.
    pub fn read_so_far(&self, ended: &Ended) -> Vec<Return> {
        let call = WriteRead::at(&ended.out).unwrap_or_default();
        let mut bytes = vec![0; call.read_consumed as usize];
        self.arena.read(call.read_buffer, &mut bytes).expect("the read buffer");
        let mut rest = &bytes[..];
        let mut returns = Vec::new();
        while !rest.is_empty() {
            let (decoded, size) = Return::decode(rest).expect("only whole returns");
            returns.push(decoded);
            rest = &rest[size..];
        }
        returns
    }
}

/// A thread of a [`Sim`].
#[derive(Clone, Copy)]
pub struct SimThread<'a> {
    pub sim: &'a Sim,
    pub tid: i32,
    pub nonblock: bool,
    /// A signal is pending when its ioctl begins.
    pub signalled: bool,
}

impl SimThread<'_> {
    /// The same thread with a signal pending.
    pub fn signalled(self) -> Self {
        Self { signalled: true, ..self }
    }

    /// The same thread with O_NONBLOCK set on its file.
    pub fn nonblock(self) -> Self {
        Self { nonblock: true, ..self }
    }

    /// An ioctl that is called later, whatever becomes of it (see [`Arena::trap`]).
    pub fn ioctl_later(&self, cmd: u32, arg: &[u8]) -> impl FnOnce() + Send + use<> {
        let (process, memory) = (self.sim.process.clone(), self.sim.arena.clone());
        let (tid, uid, nonblock) = (self.tid, self.sim.euid, self.nonblock);
        let arg = arg.to_vec();
        move || {
            let reply = Box::new(SimReply(Arc::default()));
            let arg = arg.into();
            process.ioctl(Call { tid, uid, nonblock, cmd, arg, memory, reply });
        }
    }

    /// Calls any ioctl.
    pub fn ioctl(&self, cmd: u32, arg: &[u8]) -> Pending {
        let slot = Arc::new(Slot::default());
        slot.interrupted.store(self.signalled, Ordering::SeqCst);
        self.sim.process.ioctl(Call {
            tid: self.tid,
            uid: self.sim.euid,
            nonblock: self.nonblock,
            cmd,
            arg: arg.into(),
            memory: self.sim.arena.clone(),
            reply: Box::new(SimReply(slot.clone())),
        });
        Pending {
            slot,
            process: self.sim.process.clone(),
            arena: self.sim.arena.clone(),
            tid: self.tid,
        }
    }

    /// Calls an ioctl that does not wait.
    #[track_caller]
    pub fn call(&self, cmd: u32, arg: &[u8]) -> Result<Vec<u8>, Errno> {
        let ended = self.ioctl(cmd, arg).ended().expect("this ioctl does not wait");
        ended.result.map(|_| ended.out)
    }

    /// BINDER_WRITE_READ with a record of one's own.
    pub fn write_read(&self, call: WriteRead) -> Pending {
        self.ioctl(uapi::BINDER_WRITE_READ, call.as_bytes())
    }

    /// Writes commands, reads nothing. The result and how many bytes were consumed.
    #[track_caller]
    pub fn try_write(&self, commands: &[Command]) -> (Result<i32, Errno>, u64) {
        let (address, size) = self.encode(commands);
        let call = WriteRead { write_size: size, write_buffer: address, ..Default::default() };
        let ended = self.write_read(call).ended().expect("a write does not wait");
        (ended.result, WriteRead::at(&ended.out).unwrap_or_default().write_consumed)
    }

    /// Writes commands that are expected to be accepted.
    #[track_caller]
    pub fn write(&self, commands: &[Command]) {
        let (result, _) = self.try_write(commands);
        assert_eq!(result, Ok(0), "write failed");
    }

    /// Reads with a buffer of 256 bytes, as libbinder does.
    pub fn read(&self) -> Pending {
        self.write_and_read(&[])
    }

    /// Writes commands and reads, in one ioctl.
    pub fn write_and_read(&self, commands: &[Command]) -> Pending {
        let (address, size) = self.encode(commands);
        let read_buffer = self.sim.arena.push(&[0; 256]);
        self.write_read(WriteRead {
            write_size: size,
            write_buffer: address,
            read_size: 256,
            read_buffer,
            ..Default::default()
        })
    }

    /// Reads what there is, without waiting, until there is nothing more.
    #[track_caller]
    pub fn drain(&self) -> Vec<Return> {
        let mut all = Vec::new();
        loop {
            let pending = self.nonblock().read();
            let ended = pending.ended().expect("O_NONBLOCK");
            if ended.result == Err(Errno::EAGAIN) {
                return all;
            }
            let returns = pending.returns();
            let news = returns.into_iter().filter(|r| *r != Return::Noop);
            let before = all.len();
            all.extend(news);
            if all.len() == before {
                return all;
            }
        }
    }

    fn encode(&self, commands: &[Command]) -> (u64, u64) {
        let mut bytes = Vec::new();
        commands.iter().for_each(|command| command.encode(&mut bytes));
        (self.sim.arena.push(&bytes), bytes.len() as u64)
    }

    /// BC_ENTER_LOOPER, and a read that is blocked or has ended.
    pub fn enter_looper(&self) -> Pending {
        // A new thread's first ioctl returns at once.
        self.write(&[Command::EnterLooper]);
        self.read()
    }

    /// Becomes the context manager.
    #[track_caller]
    pub fn become_manager(&self) {
        self.call(uapi::BINDER_SET_CONTEXT_MGR, &[0; 4]).expect("the first manager");
    }

    /// Polls: whether there is something to read, and a count of the notices to come for those
    /// who poll the file, up to the next poll.
    pub fn poll(&self) -> (bool, Arc<AtomicUsize>) {
        let wakes = Arc::new(AtomicUsize::new(0));
        struct Count(Arc<AtomicUsize>);
        impl Poller for Count {
            fn wake(&self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (ready, _) = self.sim.process.poll(self.tid, Some(Arc::new(Count(wakes.clone()))));
        (ready.unwrap_or(false), wakes)
    }
}
