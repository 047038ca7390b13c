//! A thread's calls to the driver: ioctls, and `BINDER_WRITE_READ` above all.

use super::message::{Batch, Bc, Msg, lay_out};
use super::reads::{Io, Reads, Received, in_words};
use super::thread::{ARGUMENT, DATA, MEMORY, PAGES, READ, READ_SIZE, Thread, WRITE};
use fakebinder_client::{Errno, Object, Return, Returns, uapi};
use fakebinder_sim::child::result as errno;

impl Thread {
    /// An ioctl with any address as its argument.
    #[track_caller]
    pub(super) fn ioctl_at(&self, command: u32, address: u64) -> Result<i64, Errno> {
        self.syscall(libc::SYS_ioctl, &[self.fd() as u64, u64::from(command), address])
    }

    /// An ioctl with these bytes as its argument, which it may change.
    #[track_caller]
    pub(super) fn ioctl(&self, command: u32, argument: &mut [u8]) -> Result<i64, Errno> {
        self.child.memory().put(ARGUMENT, argument);
        let result = self.ioctl_at(command, self.child.memory().address(ARGUMENT));
        argument.copy_from_slice(&self.child.memory().get(ARGUMENT, argument.len()));
        result
    }

    /// An ioctl whose argument is these 32-bit words, which it may change.
    #[track_caller]
    pub(super) fn ioctl_words(&self, command: u32, words: &mut [u32]) -> Result<i64, Errno> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let result = self.ioctl(command, &mut bytes);
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        result
    }

    /// Puts bytes where arguments lie; returns their address in the process.
    pub(super) fn put(&self, bytes: &[u8]) -> u64 {
        self.child.memory().put(ARGUMENT, bytes);
        self.child.memory().address(ARGUMENT)
    }

    /// Puts bytes right before the page that nobody may touch; returns their address.
    pub(super) fn put_at_edge(&self, bytes: &[u8]) -> u64 {
        let at = self.child.memory().len() - bytes.len();
        self.child.memory().put(at, bytes);
        self.child.memory().address(at)
    }

    /// Puts bytes at an address of the shared memory.
    pub(super) fn put_at(&self, address: u64, bytes: &[u8]) {
        self.child.memory().put((address - self.child.memory().address(0)) as usize, bytes);
    }

    /// 16 pages of the shared memory, for a scene's own use.
    pub(super) fn pages(&self) -> u64 {
        self.child.memory().address(PAGES)
    }

    /// Bytes of the shared memory, as the process left them.
    pub(super) fn get(&self, address: u64, len: usize) -> Vec<u8> {
        self.child.memory().get((address - self.child.memory().address(0)) as usize, len)
    }

    /// Makes this process the context manager, as soon as the last manager is gone.
    #[track_caller]
    pub(super) fn become_manager_with(&self, flags: u32) {
        self.until("the last context manager to go", || {
            let result = if flags == 0 {
                self.ioctl_words(uapi::BINDER_SET_CONTEXT_MGR, &mut [0])
            } else {
                self.set_context_manager_ext(0, 0, flags)
            };
            match result {
                Ok(_) => true,
                Err(Errno::EBUSY) => false,
                Err(errno) => panic!("BINDER_SET_CONTEXT_MGR: {errno}"),
            }
        });
    }

    #[track_caller]
    pub(super) fn set_context_manager_ext(
        &self,
        ptr: u64,
        cookie: u64,
        flags: u32,
    ) -> Result<i64, Errno> {
        let mut object = Vec::new();
        Object::Binder { ptr, cookie, flags }.encode(&mut object);
        self.ioctl(uapi::BINDER_SET_CONTEXT_MGR_EXT, &mut object)
    }

    /// `BINDER_GET_EXTENDED_ERROR`: the command (by its name) and the param.
    #[track_caller]
    pub(super) fn extended_error(&self) -> (&'static str, i32) {
        let mut words = [0; 3];
        self.ioctl_words(uapi::BINDER_GET_EXTENDED_ERROR, &mut words).expect("extended error");
        let bytes = words[1].to_ne_bytes();
        let name = Returns::new(&bytes).next().map_or("none", |what| what.name());
        (name.trim_start_matches("BR_"), words[2] as i32)
    }

    #[track_caller]
    pub(super) fn thread_exit(&self) {
        self.ioctl_words(uapi::BINDER_THREAD_EXIT, &mut [0]).expect("BINDER_THREAD_EXIT");
    }

    #[track_caller]
    pub(super) fn set_max_threads(&self, threads: u32) {
        self.ioctl_words(uapi::BINDER_SET_MAX_THREADS, &mut [threads]).expect("max threads");
    }

    /// `BINDER_WRITE_READ` with this structure, valid or not, which is updated.
    #[track_caller]
    pub(super) fn write_read_raw(&self, bwr: &mut [u64; 6]) -> Result<(), Errno> {
        let mut bytes: Vec<u8> = bwr.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let result = self.ioctl(uapi::BINDER_WRITE_READ, &mut bytes).map(drop);
        for (word, bytes) in bwr.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        }
        result
    }

    /// Puts commands into the shared memory; returns the write buffer's address and size.
    pub(super) fn lay_out(&self, batch: &Batch) -> (u64, u64) {
        let commands = lay_out(batch, self.child.memory(), DATA);
        assert!(commands.len() <= DATA - WRITE);
        self.child.memory().put(WRITE, &commands);
        (self.child.memory().address(WRITE), commands.len() as u64)
    }

    /// Begins a BINDER_WRITE_READ, which may wait.
    pub(super) fn begin_write_read(&self, batch: impl Into<Batch>, read_size: usize) {
        let (write, size) = self.lay_out(&batch.into());
        let read = self.child.memory().address(READ);
        let words = [size, 0, write, read_size as u64, 0, read];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.child.memory().put(ARGUMENT, &bytes);
        let argument = self.child.memory().address(ARGUMENT);
        let command = u64::from(uapi::BINDER_WRITE_READ);
        self.begin_syscall(libc::SYS_ioctl, &[self.fd() as u64, command, argument]);
    }

    #[track_caller]
    pub(super) fn finish_write_read(&self) -> (Io, Reads) {
        let (io, filled) = self.finish_write_read_bytes();
        (io.clone(), self.take_apart(&io, &filled))
    }

    #[track_caller]
    fn finish_write_read_bytes(&self) -> (Io, Vec<u8>) {
        let result = errno(self.finish()).map(drop);
        let word = |index: usize| {
            let bytes = self.child.memory().get(ARGUMENT + index * 8, 8);
            u64::from_ne_bytes(bytes.try_into().unwrap_or_default())
        };
        let io = Io { result, written: word(1), filled: word(4) };
        let filled = self.child.memory().get(READ, (io.filled as usize).min(MEMORY - READ));
        (io, filled)
    }

    /// Reads once, and returns the bytes as they are.
    #[track_caller]
    pub(super) fn read_bytes(&self) -> (Io, Vec<u8>) {
        self.begin_write_read(Batch::default(), READ_SIZE);
        self.finish_write_read_bytes()
    }

    /// Writes and reads, in one ioctl.
    #[track_caller]
    pub(super) fn write_read(&self, batch: impl Into<Batch>, read_size: usize) -> (Io, Reads) {
        self.begin_write_read(batch, read_size);
        self.finish_write_read()
    }

    /// Writes commands, all of which have to be taken.
    #[track_caller]
    pub(super) fn write(&self, batch: impl Into<Batch>) {
        let batch = batch.into();
        let (_, size) = self.lay_out(&batch);
        let io = self.tries(batch);
        assert_eq!(io, Io { result: Ok(()), written: size, filled: 0 });
    }

    /// Writes commands, which may be wrong.
    #[track_caller]
    pub(super) fn tries(&self, batch: impl Into<Batch>) -> Io {
        self.write_read(batch, 0).0
    }

    /// Reads once: "EAGAIN" when there is nothing.
    #[track_caller]
    pub(super) fn read(&self) -> Reads {
        self.write_read(Batch::default(), READ_SIZE).1
    }

    /// Reads once, and expects exactly this.
    #[track_caller]
    pub(super) fn reads(&self, expected: &str) -> Reads {
        let reads = self.read();
        assert_eq!(reads.text, expected);
        reads
    }

    /// Waits for something to read (the driver releases processes in its own time), and expects
    /// exactly this.
    #[track_caller]
    pub(super) fn waits(&self, expected: &str) -> Reads {
        let reads = self.read_soon();
        assert_eq!(reads.text, expected);
        reads
    }

    /// Waits for something to read.
    #[track_caller]
    pub(super) fn read_soon(&self) -> Reads {
        let mut reads = self.read();
        self.until("something to read", || {
            if reads.text == "EAGAIN" || reads.text == "NOOP" {
                reads = self.read();
            }
            reads.text != "EAGAIN" && reads.text != "NOOP"
        });
        reads
    }

    /// Reads a transaction, and nothing but that.
    #[track_caller]
    pub(super) fn receive(&self) -> Received {
        let reads = self.waits("NOOP TRANSACTION");
        reads.transaction().clone()
    }

    /// Copies bytes out of the process. EFAULT where it has no memory.
    pub(super) fn peek(&self, address: u64, len: usize) -> Result<Vec<u8>, Errno> {
        self.child.peek(address, len)
    }

    #[track_caller]
    fn take_apart(&self, io: &Io, filled: &[u8]) -> Reads {
        let returns: Vec<_> = Returns::new(filled).collect();
        let mut received = Vec::new();
        let mut words: Vec<String> = returns.iter().map(in_words).collect();
        for what in &returns {
            if let Return::Transaction(transaction)
            | Return::TransactionSecCtx(transaction)
            | Return::Reply(transaction) = what
            {
                let data = self.peek(transaction.buffer, transaction.data_size as usize);
                let offsets = self.peek(transaction.offsets, transaction.offsets_size as usize);
                let readable = data.is_ok() && offsets.is_ok();
                let (data, offsets) = (data.unwrap_or_default(), offsets.unwrap_or_default());
                received.push(Received {
                    transaction: *transaction,
                    readable,
                    data,
                    offsets: offsets
                        .chunks_exact(8)
                        .map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap_or_default()))
                        .collect(),
                    at: transaction.buffer.wrapping_sub(self.start()),
                });
            }
        }
        if let Err(errno) = io.result {
            words.push(format!("{errno:?}"));
        }
        Reads { text: words.join(" "), returns, received }
    }

    /// Reads a call, with the returns before it.
    #[track_caller]
    pub(super) fn read_call(&self) -> Received {
        self.read_soon().transaction().clone()
    }

    pub(super) fn begin_ioctl_words(&self, command: u32, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let address = self.put(&bytes);
        self.begin_syscall(libc::SYS_ioctl, &[self.fd() as u64, u64::from(command), address]);
    }
}

/// A message as the only command.
impl From<&Msg> for Batch {
    fn from(message: &Msg) -> Batch {
        Batch(vec![Bc::Send(message.clone())])
    }
}
