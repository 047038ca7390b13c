//! One open file of a device.

use super::arena::Arena;
use super::client::{Fire, SimClient, SimFile};
use super::thread::SimThread;
use crate::HeapMm;
use fakebinder::Errno;
use fakebinder::alloc::Alloc;
use fakebinder::binder::{Context, Process, Task};
use fakebinder::protocol::object::Object;
use fakebinder::protocol::record::TransactionData;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The address at which clients map their buffers.
pub const MAPPING: u64 = 0x7000_0000_0000;

/// One open file.
pub struct Sim {
    /// The device that was opened.
    pub context: Arc<Context>,
    /// The open file's process in the driver.
    pub process: Arc<Process>,
    /// What the driver can ask of the process.
    pub client: Arc<SimClient>,
    /// The allocator of the process's buffers.
    pub alloc: Arc<Alloc>,
    /// The process's address space.
    pub mm: Arc<HeapMm>,
    /// The process's own memory.
    pub arena: Arc<Arena>,
    /// The process's thread group.
    pub pid: i32,
    /// The process's effective uid.
    pub euid: u32,
}

impl Sim {
    /// Maps a buffer. EBUSY: there was a mapping before.
    pub fn mmap(&self, size: usize) -> Result<(), Errno> {
        self.mm.mmap(MAPPING, size);
        self.alloc.mmap_handler(MAPPING, size)
    }

    /// The process's thread of that id, which is `pid` for the first one.
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
        self.client.file(fd)?.as_any().downcast_ref().copied()
    }

    /// How many descriptors are in use.
    pub fn files(&self) -> usize {
        self.client.files.lock().len()
    }

    /// From now on no file can be passed to this process.
    pub fn refuse_files(&self) {
        self.client.refuse_files(true);
    }

    /// Lets only so many more files be installed.
    pub fn limit_files(&self, room: usize) {
        self.client.limit_files(Some(room));
    }

    /// From now on files come when the thread that reads of them calls again.
    pub fn postpone_files(&self) {
        self.client.postpone_files();
    }

    /// Sets a thread's nice value.
    pub fn set_nice(&self, tid: i32, nice: i32) {
        self.client.set_nice(tid, nice);
    }

    /// A thread's nice value.
    pub fn nice(&self, tid: i32) -> i32 {
        self.client.nice(tid)
    }

    /// The process has ended and was waited for; a child goes on with the open file.
    pub fn reap(&self) {
        self.client.reaped.store(true, Ordering::Relaxed);
    }

    /// A thread ends without a call to the driver. A later thread may have its number.
    pub fn end_thread(&self, tid: i32) {
        self.end_thread_unheard(tid)();
    }

    /// The same, but the watcher of the thread is told only when the returned function is called.
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

    /// From now on the end of threads is not reported: they have to be asked after.
    pub fn cannot_watch_threads(&self) {
        self.client.threads.cannot_watch.store(true, Ordering::Relaxed);
    }

    /// How many of the process's threads are watched.
    pub fn watched_threads(&self) -> usize {
        self.client.threads.watches.lock().len()
    }

    /// Gives the process a security context, which it did not have.
    pub fn set_security_context(&self, context: &[u8]) {
        self.client.set_security_context(Some(context.to_vec()));
    }

    /// What the client reads in its mapping.
    pub fn peek(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.mm.peek(address, &mut bytes).expect("in the mapping");
        bytes
    }

    /// The data of a received transaction.
    pub fn data(&self, data: &TransactionData) -> Vec<u8> {
        self.peek(data.buffer, data.data_size as usize)
    }

    /// The objects of a received transaction, at its offsets.
    pub fn objects(&self, data: &TransactionData) -> Vec<Object> {
        let offsets = self.peek(data.offsets, data.offsets_size as usize);
        let bytes = self.data(data);
        let offsets = offsets.as_chunks::<8>().0.iter();
        offsets
            .map(|offset| Object::read(&bytes, u64::from_ne_bytes(*offset)).expect("an object"))
            .collect()
    }

    /// Puts data and objects together in the arena: the objects lie one after the other behind
    /// `data`, which is padded to 8 bytes.
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
