//! The daemon behind a mount of our own, and its clients: child processes.

use super::CLIENTS;
use fakebinder::Errno;
use fakebinder::binder::Context;
use fakebinder::device::claim::Claim;
use fakebinder::device::options::MountOptions;
use fakebinder::device::tree::Permissions;
use fakebinder::device::{Hub, fuse};
use fakebinder::memory::{Memory, MemoryConfig};
use fakebinder_sim::child::{Catch, Child, Plan, Request, Thread, result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Patience with what the driver has done already. It counts naps and not the time: when others
/// have the processor, we wake up as rarely as those do whom we wait for.
#[derive(Default)]
pub(super) struct Patience(u32);

impl Patience {
    pub(super) const NAP: Duration = Duration::from_millis(5);

    /// For one who naps beside it.
    pub(super) fn with_naps() -> Patience {
        Patience(2000)
    }

    /// Naps; at first only for a moment.
    ///
    /// # Panics
    /// When it has waited 5 s and more.
    pub(super) fn nap(&mut self, what_does_not_come: &str) {
        match self.0 {
            0..1000 => std::thread::yield_now(),
            1000..2000 => std::thread::sleep(Duration::from_micros(100)),
            2000..3000 => std::thread::sleep(Patience::NAP),
            3000.. => panic!("{what_does_not_come}"),
        }
        self.0 += 1;
    }
}

/// Bytes that a client process shares with us: the path of the device, the argument of an ioctl,
/// the read buffer, all else.
const MEMORY: usize = 1 << 20;
pub(super) const ARGUMENT: usize = 256;
pub(super) const READ_BUFFER: usize = 1024;
pub(super) const SCRATCH: usize = 4096;

/// A client process: it makes the system calls that it is told to.
pub(super) struct Client(Child);

impl Client {
    fn start() -> Client {
        let plan = Plan { memory: MEMORY, ..Plan::default() };
        let client = Client(Child::start(&plan).expect("a child process"));
        assert_eq!(client.thread().request(Request::Catch(Signal::SIGUSR1, Catch::Plain)), 0);
        client
    }

    fn thread(&self) -> &Thread {
        &self.0.threads[0]
    }

    pub(super) fn pid(&self) -> Pid {
        self.0.pid()
    }

    /// The address of a byte of the shared memory.
    pub(super) fn address(&self, at: usize) -> u64 {
        self.thread().memory().address(at)
    }

    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        self.thread().memory().put(at, bytes);
    }

    pub(super) fn read(&self, at: usize, size: usize) -> Vec<u8> {
        self.thread().memory().get(at, size)
    }

    /// Copies bytes out of its mapping.
    pub(super) fn peek(&self, address: u64, size: u64) -> Vec<u8> {
        self.0.peek(address, size as usize).expect("the client's mapping")
    }

    /// A system call that may wait.
    pub(super) fn begin(&self, number: i64, arguments: &[u64]) {
        self.thread().begin_system_call(number, arguments);
    }

    /// How the system call that it is in ended, if it has within `timeout`.
    pub(super) fn ended(&self, timeout: Duration) -> Option<Result<u64, Errno>> {
        let thread = self.thread();
        let ended = thread.is_busy() && thread.is_done_within(timeout);
        ended.then(|| result(thread.finish()).map(|value| value as u64))
    }

    /// A system call that does not wait for other clients.
    pub(super) fn call(&self, number: i64, arguments: &[u64]) -> Result<u64, Errno> {
        self.begin(number, arguments);
        let mut patience = Patience::with_naps();
        loop {
            if let Some(result) = self.ended(Patience::NAP) {
                return result;
            }
            patience.nap("a system call that does not wait does not end");
        }
    }
}

/// The daemon and its clients: made once.
pub(super) struct Machine {
    pub(super) context: Arc<Context>,
    pub(super) memory: Arc<Memory>,
    pub(super) clients: Vec<Client>,
    pub(super) path: PathBuf,
    /// What unmounts when it is dropped.
    _claim: Claim,
}

impl Machine {
    pub(super) fn new() -> Machine {
        unshare(CloneFlags::CLONE_NEWNS).expect("root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("root");
        let directory =
            std::env::temp_dir().join(format!("fakebinder-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory to mount on");
        let clients = (0..CLIENTS).map(|_| Client::start()).collect();
        let memory = Memory::new(MemoryConfig::default());
        let hub = Hub::new(memory.clone()).expect("a thread for its timers");
        let permissions = Permissions { mode: 0o666, uid: 0, gid: 0 };
        let device = hub.device("binder");
        let options = MountOptions::new(permissions);
        let mut claim = Claim::take(&directory).expect("nobody else's directory");
        fuse::open(&directory, &mut claim, &hub, vec![device], &options, Box::new(|| {}))
            .expect("a FUSE mount");
        let context = hub.binder().context("binder");
        Machine { context, memory, clients, path: directory.join("binder"), _claim: claim }
    }
}
