//! A thread of a simulated client, and its calls to the driver.

use super::open::Sim;
use super::pending::{Pending, SimReply, Slot};
use fakebinder::Errno;
use fakebinder::binder::{Call, Poller};
use fakebinder::protocol::command::Command;
use fakebinder::protocol::record::{IntoBytes, Record, WriteRead};
use fakebinder::protocol::returns::Return;
use fakebinder::uapi;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A thread of a [`Sim`].
#[derive(Clone, Copy)]
pub struct SimThread<'a> {
    /// The thread's open file.
    pub sim: &'a Sim,
    /// The thread's id.
    pub tid: i32,
    /// Whether O_NONBLOCK is set on the file.
    pub nonblock: bool,
    /// Whether a signal is pending when an ioctl of the thread begins.
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

    /// An ioctl to be called later, whose end is not looked at (see [`trap`](super::Arena::trap)).
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
        slot.set_interrupted(self.signalled);
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

    /// BINDER_WRITE_READ with this record.
    pub fn write_read(&self, call: WriteRead) -> Pending {
        self.ioctl(uapi::BINDER_WRITE_READ, call.as_bytes())
    }

    /// Writes commands, reads nothing. Returns the result and how many bytes were consumed.
    #[track_caller]
    pub fn try_write(&self, commands: &[Command]) -> (Result<i32, Errno>, u64) {
        let (address, size) = self.encode(commands);
        let call = WriteRead { write_size: size, write_buffer: address, ..Default::default() };
        let ended = self.write_read(call).ended().expect("a write does not wait");
        (ended.result, WriteRead::at(&ended.out).unwrap_or_default().write_consumed)
    }

    /// Writes commands, all of which have to be accepted.
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

    /// Reads, without waiting, until there is nothing more.
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

    /// Polls. Returns whether there is something to read, and a count of the notices that pollers
    /// of the file will get until the next poll.
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
