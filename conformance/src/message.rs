//! What a scene's processes write: commands, and transactions with their data.

use fakebinder::protocol::command as protocol;
use fakebinder::protocol::record::TransactionData;
use fakebinder_client::{Command, Object, uapi};
use fakebinder_sim::child::SharedMemory;

/// One command of a write buffer. Data of transactions is owned, and gets its address when the
/// command is laid out in the memory of the process that writes it.
#[derive(Debug, Clone)]
pub(super) enum Bc {
    /// A command without memory of its own.
    Plain(Command<'static>),
    /// `BC_TRANSACTION`, `BC_REPLY`, or their `_SG` forms.
    Send(Msg),
    /// Any bytes.
    Bytes(Vec<u8>),
}

/// A transaction or a reply; everything in it can be made wrong.
#[derive(Debug, Clone, Default)]
pub(super) struct Msg {
    pub(super) reply: bool,
    pub(super) handle: u32,
    pub(super) code: u32,
    pub(super) flags: u32,
    pub(super) data: Vec<u8>,
    pub(super) offsets: Vec<u64>,
    /// Scatter-gather memory: the offset in `data` at which its address is written, and its bytes.
    pub(super) sg: Vec<(usize, Vec<u8>)>,
    pub(super) buffers_size: Option<u64>,
    /// Written in place of the true values.
    pub(super) data_at: Option<u64>,
    pub(super) data_size: Option<u64>,
    pub(super) offsets_at: Option<u64>,
    pub(super) offsets_size: Option<u64>,
}

/// A call to a handle: code 0, no flags, no data.
pub(super) fn call(handle: u32) -> Msg {
    Msg { handle, ..Msg::default() }
}

/// A one-way call to a handle.
pub(super) fn oneway(handle: u32) -> Msg {
    Msg { handle, flags: uapi::TF_ONE_WAY, ..Msg::default() }
}

/// A reply without data.
pub(super) fn reply() -> Msg {
    Msg { reply: true, ..Msg::default() }
}

impl Msg {
    pub(super) fn code(self, code: u32) -> Msg {
        Msg { code, ..self }
    }

    pub(super) fn flags(self, flags: u32) -> Msg {
        Msg { flags: self.flags | flags, ..self }
    }

    /// Appends bytes.
    pub(super) fn data(mut self, bytes: &[u8]) -> Msg {
        self.data.extend_from_slice(bytes);
        self
    }

    /// Appends an object, aligned to four bytes, and its offset.
    pub(super) fn object(mut self, object: Object) -> Msg {
        self.data.resize(self.data.len().next_multiple_of(4), 0);
        self.offsets.push(self.data.len() as u64);
        object.encode(&mut self.data);
        self
    }

    pub(super) fn binder(self, ptr: u64, cookie: u64) -> Msg {
        self.object(Object::Binder { ptr, cookie, flags: 0 })
    }

    pub(super) fn weak_binder(self, ptr: u64, cookie: u64) -> Msg {
        self.object(Object::WeakBinder { ptr, cookie, flags: 0 })
    }

    pub(super) fn handle(self, handle: u32) -> Msg {
        self.object(Object::Handle { handle, cookie: 0, flags: 0 })
    }

    pub(super) fn weak_handle(self, handle: u32) -> Msg {
        self.object(Object::WeakHandle { handle, cookie: 0, flags: 0 })
    }

    pub(super) fn fd(self, fd: i32) -> Msg {
        self.object(Object::Fd { fd: fd as u32, cookie: 0 })
    }

    /// Appends a scatter-gather buffer.
    pub(super) fn buffer(self, bytes: &[u8]) -> Msg {
        self.sg_buffer(bytes, 0, 0, 0)
    }

    /// Appends a scatter-gather buffer, with a pointer to it in another one (by its index among the
    /// offsets).
    pub(super) fn child(self, bytes: &[u8], parent: u64, parent_offset: u64) -> Msg {
        self.sg_buffer(bytes, uapi::BINDER_BUFFER_FLAG_HAS_PARENT, parent, parent_offset)
    }

    fn sg_buffer(mut self, bytes: &[u8], flags: u32, parent: u64, parent_offset: u64) -> Msg {
        let length = bytes.len() as u64;
        let size = self.buffers_size.unwrap_or(0) + length.next_multiple_of(8);
        self.buffers_size = Some(size);
        self = self.object(Object::Buffer { buffer: 0, length, flags, parent, parent_offset });
        let at = self.offsets.last().map_or(0, |&offset| offset as usize + 8);
        self.sg.push((at, bytes.to_vec()));
        self
    }

    /// Appends a descriptor array that lies in a buffer (by its index among the offsets).
    pub(super) fn fd_array(self, num_fds: u64, parent: u64, parent_offset: u64) -> Msg {
        self.object(Object::FdArray { num_fds, parent, parent_offset })
    }

    /// Appends an offset to the offsets array.
    pub(super) fn offset(mut self, offset: u64) -> Msg {
        self.offsets.push(offset);
        self
    }

    /// Makes it the `_SG` form, with this total size of the buffers.
    pub(super) fn buffers_size(self, bytes: u64) -> Msg {
        Msg { buffers_size: Some(bytes), ..self }
    }

    /// Gives the data another address and size than the true ones.
    pub(super) fn data_at(self, address: u64, size: u64) -> Msg {
        Msg { data_at: Some(address), data_size: Some(size), ..self }
    }

    /// Gives the offsets another address and size (in bytes) than the true ones.
    pub(super) fn offsets_at(self, address: u64, size: u64) -> Msg {
        Msg { offsets_at: Some(address), offsets_size: Some(size), ..self }
    }
}

/// The commands of one write.
#[derive(Debug, Clone, Default)]
pub(super) struct Batch(pub(super) Vec<Bc>);

impl From<Bc> for Batch {
    fn from(command: Bc) -> Batch {
        Batch(vec![command])
    }
}

impl From<Msg> for Batch {
    fn from(message: Msg) -> Batch {
        Batch(vec![Bc::Send(message)])
    }
}

impl From<Msg> for Bc {
    fn from(message: Msg) -> Bc {
        Bc::Send(message)
    }
}

impl From<Command<'static>> for Batch {
    fn from(command: Command<'static>) -> Batch {
        Batch(vec![Bc::Plain(command)])
    }
}

impl<const N: usize> From<[Bc; N]> for Batch {
    fn from(commands: [Bc; N]) -> Batch {
        Batch(commands.into())
    }
}

impl From<Vec<Bc>> for Batch {
    fn from(commands: Vec<Bc>) -> Batch {
        Batch(commands)
    }
}

/// Lays commands out: returns the bytes of the write buffer, and puts what they point to into the
/// shared memory, from `at` on.
pub(super) fn lay_out(batch: &Batch, memory: &SharedMemory, mut at: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut place = |bytes: &[u8]| -> u64 {
        let here = at;
        memory.put(here, bytes);
        at = (at + bytes.len()).next_multiple_of(8);
        memory.address(here)
    };
    for command in &batch.0 {
        match command {
            Bc::Plain(command) => command.encode(&mut out),
            Bc::Bytes(bytes) => out.extend_from_slice(bytes),
            Bc::Send(message) => {
                let mut data = message.data.clone();
                for (at, bytes) in &message.sg {
                    let address = place(bytes);
                    data[*at..*at + 8].copy_from_slice(&address.to_ne_bytes());
                }
                let offsets: Vec<u8> =
                    message.offsets.iter().flat_map(|offset| offset.to_ne_bytes()).collect();
                let data_at = place(&data);
                let offsets_at = place(&offsets);
                let data = TransactionData {
                    target: message.handle.into(),
                    code: message.code,
                    flags: message.flags,
                    data_size: message.data_size.unwrap_or(data.len() as u64),
                    offsets_size: message.offsets_size.unwrap_or(offsets.len() as u64),
                    buffer: message.data_at.unwrap_or(data_at),
                    offsets: message.offsets_at.unwrap_or(offsets_at),
                    ..TransactionData::default()
                };
                let command = match (message.reply, message.buffers_size) {
                    (false, None) => protocol::Command::Transaction(data),
                    (false, Some(size)) => protocol::Command::TransactionSg(data, size),
                    (true, None) => protocol::Command::Reply(data),
                    (true, Some(size)) => protocol::Command::ReplySg(data, size),
                };
                command.encode(&mut out);
            }
        }
    }
    out
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident($($field:ident: $kind:ty),*) = $command:expr;)*) => {
        $($(#[$doc])* pub(super) fn $name($($field: $kind),*) -> Bc { Bc::Plain($command) })*
    };
}

commands! {
    free(buffer: u64) = Command::FreeBuffer(buffer);
    increfs(handle: u32) = Command::Increfs(handle);
    acquire(handle: u32) = Command::Acquire(handle);
    release(handle: u32) = Command::Release(handle);
    decrefs(handle: u32) = Command::Decrefs(handle);
    increfs_done(ptr: u64, cookie: u64) = Command::IncrefsDone { ptr, cookie };
    acquire_done(ptr: u64, cookie: u64) = Command::AcquireDone { ptr, cookie };
    enter_looper() = Command::EnterLooper;
    register_looper() = Command::RegisterLooper;
    exit_looper() = Command::ExitLooper;
    request_death(handle: u32, cookie: u64) = Command::RequestDeathNotification { handle, cookie };
    clear_death(handle: u32, cookie: u64) = Command::ClearDeathNotification { handle, cookie };
    dead_binder_done(cookie: u64) = Command::DeadBinderDone(cookie);
    request_freeze(handle: u32, cookie: u64) =
        Command::RequestFreezeNotification { handle, cookie };
    clear_freeze(handle: u32, cookie: u64) = Command::ClearFreezeNotification { handle, cookie };
    freeze_done(cookie: u64) = Command::FreezeNotificationDone(cookie);
    attempt_acquire(priority: i32, handle: u32) = Command::AttemptAcquire { priority, handle };
    acquire_result(result: i32) = Command::AcquireResult(result);
}

/// Any bytes as a command.
pub(super) fn bytes(bytes: &[u8]) -> Bc {
    Bc::Bytes(bytes.to_vec())
}
