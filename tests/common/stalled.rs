//! Processes with hundreds of threads whose memory does not come, each in an ioctl.

use super::forked::Forked;
use super::never_read::NeverRead;
use super::unfilled::Unfilled;
use super::{Daemon, PATIENCE, look_up, offer, open, wait_until};
use fakebinder::binder::copies::COPIES;
use fakebinder_client::{Call, Command, Device, Thread, uapi};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// Copies that one process may have on their way (device/client.rs).
pub const COPIES_OF_A_PROCESS: usize = 32;

/// What the threads are in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reading calls: a server's read buffers do not come, and each of its threads has a caller.
    Serving,
    /// Reading notices of a death, each for an open file of its own.
    Mourning,
    /// Sending data that does not come.
    Sending,
    /// Reading and writing in memory on a file whose server never answers.
    NeverRead,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Serving, Kind::Mourning, Kind::Sending, Kind::NeverRead];

    /// How many threads of the daemon a process of hundreds holds: what one open file may, or what
    /// one process may.
    fn holds(self) -> usize {
        match self {
            Kind::Serving | Kind::Sending | Kind::NeverRead => COPIES,
            Kind::Mourning => COPIES_OF_A_PROCESS,
        }
    }
}

/// Threads that stall. Dropped, their processes are killed.
pub struct Stalled {
    /// With the number of threads that wait.
    processes: Vec<(Forked, usize)>,
    /// Threads of the daemon that they hold.
    held: usize,
    /// Whoever is killed goes first.
    _file: Option<NeverRead>,
}

impl Stalled {
    /// So many of a kind, which stall by now, on a device whose registrar is there; `None` where
    /// this kind cannot be made here.
    pub fn start(kind: Kind, path: &Path, daemon: &Daemon, threads: usize) -> Option<Stalled> {
        let alone = |process| vec![(process, threads)];
        let mut file = None;
        let processes = match kind {
            Kind::Serving => {
                let known = |device: &Device| offer(device, 0);
                let server = server_whose_buffers_go(path, threads, known);
                vec![(callers(path, threads), threads), (server, threads)]
            }
            Kind::Mourning => alone(mourners(path, threads)),
            Kind::Sending => alone(senders(path, threads)),
            Kind::NeverRead => {
                let mounted = NeverRead::mount(&daemon.mount.with_extension("never"))?;
                let process = threads_on_a_file_that_is_never_read(path, &mounted, threads);
                file = Some(mounted);
                alone(process)
            }
        };
        let held = copies_on_their_way(daemon);
        let mut stalled = Stalled { processes, held: kind.holds(), _file: file };
        assert!(
            wait_until(PATIENCE, || stalled.is_stalled(daemon)),
            "{kind:?}: threads of the daemon do not stall: {held}, then {}, for {}",
            copies_on_their_way(daemon),
            kind.holds()
        );
        Some(stalled)
    }

    /// Whether all of the threads wait, and as many of the daemon's as they may hold.
    pub fn is_stalled(&mut self, daemon: &Daemon) -> bool {
        copies_on_their_way(daemon) >= self.held
            && self
                .processes
                .iter_mut()
                .all(|(process, threads)| process.ended().is_none() && all_wait(process, *threads))
    }

    pub fn processes(&mut self) -> impl Iterator<Item = &mut Forked> {
        self.processes.iter_mut().map(|(process, _)| process)
    }
}

/// How many threads of a process are in one of these system calls.
fn threads_in(pid: u32, calls: &[i64]) -> usize {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let is_in_one = |task: &std::fs::DirEntry| {
        let call = std::fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
        let number = call.split(' ').next().and_then(|number| number.parse().ok());
        number.is_some_and(|number| calls.contains(&number))
    };
    tasks.flatten().filter(is_in_one).count()
}

/// Whether so many threads of a process wait in an ioctl.
pub fn all_wait(process: &Forked, threads: usize) -> bool {
    threads_in(process.pid().as_raw() as u32, &[libc::SYS_ioctl]) >= threads
}

/// How many threads of the daemon are reading or writing a client's memory.
pub fn copies_on_their_way(daemon: &Daemon) -> usize {
    threads_in(daemon.pid(), &[libc::SYS_process_vm_readv, libc::SYS_process_vm_writev])
}

pub fn pipe_ends((read, write): (OwnedFd, OwnedFd)) -> (File, File) {
    (read.into(), write.into())
}

/// A process that says when its threads are about to wait, and is told to go on when they do.
struct Steps {
    tell: File,
    go: File,
}

impl Steps {
    fn ready(&mut self) {
        self.tell.write_all(b"r").unwrap();
    }

    /// Until whoever has forked this says so.
    fn wait(&mut self) {
        self.go.read_exact(&mut [0]).unwrap();
    }
}

/// Runs `work` in a process, up to where so many threads of it wait, and then on; it says that it
/// is ready before and after that.
fn in_steps(threads: usize, work: impl FnOnce(Steps)) -> Forked {
    let (mut ready, tell) = nix::unistd::pipe().map(pipe_ends).unwrap();
    let (go, mut told_to_go) = nix::unistd::pipe().map(pipe_ends).unwrap();
    let process = Forked::start(move || {
        // A userfaultfd for each thread, and maybe a device.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        work(Steps { tell, go });
        0
    });
    ready.read_exact(&mut [0]).unwrap();
    assert!(wait_until(PATIENCE, || all_wait(&process, threads)), "threads do not wait");
    std::thread::sleep(Duration::from_millis(100));
    told_to_go.write_all(b"g").unwrap();
    ready.read_exact(&mut [0]).unwrap();
    process
}

/// One BINDER_WRITE_READ with these buffers.
fn write_read(device: &Device, (write, write_size): (u64, usize), read: u64) {
    let mut arg = uapi::binder_write_read {
        write_size: write_size as u64,
        write_buffer: write,
        read_size: if read == 0 { 0 } else { 256 },
        read_buffer: read,
        ..Default::default()
    };
    // SAFETY: what is written goes to pages that nobody looks at and that outlive the call.
    let _ = unsafe { device.raw_write_read(&mut arg) };
}

/// A server with threads that wait for calls; their read buffers are taken away when all of them
/// wait. `known` makes it known to its callers.
pub fn server_whose_buffers_go(
    path: &Path,
    threads: usize,
    known: impl FnOnce(&Device) + Send,
) -> Forked {
    in_steps(threads, |mut steps| {
        let device = open(path);
        known(&device);
        let pages: Vec<Unfilled> = (0..threads).map(|_| Unfilled::new()).collect();
        pages.iter().for_each(Unfilled::provide);
        std::thread::scope(|scope| {
            for page in &pages {
                let device = &device;
                scope.spawn(move || {
                    let enter = uapi::BC_ENTER_LOOPER.to_ne_bytes();
                    write_read(device, (enter.as_ptr() as u64, 4), page.address());
                    // The first read of a new thread returns at once.
                    write_read(device, (0, 0), page.address());
                });
            }
            steps.ready();
            steps.wait();
            pages.iter().for_each(Unfilled::take_away);
            steps.ready();
        });
    })
}

/// A process with so many threads that call whom the registrar knows.
fn callers(path: &Path, threads: usize) -> Forked {
    let path = path.to_owned();
    Forked::start(move || {
        let device = open(&path);
        let handle = look_up(&device);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let device = &device;
                scope.spawn(move || {
                    let _ = Thread::new(device).call(&Call::to(handle).data(&[1; 64]));
                });
            }
        });
        0
    })
}

/// A process with so many threads that have asked for notice of a server's death, which has died.
fn mourners(path: &Path, threads: usize) -> Forked {
    let (mut ready, mut tell) = nix::unistd::pipe().map(pipe_ends).unwrap();
    let server_path = path.to_owned();
    let server = Forked::start(move || {
        let device = open(&server_path);
        offer(&device, 0);
        tell.write_all(b"r").unwrap();
        loop {
            nix::unistd::pause();
        }
    });
    ready.read_exact(&mut [0]).unwrap();
    let mourners = in_steps(threads, |mut steps| {
        let devices: Vec<(Device, u32, Unfilled)> = std::iter::repeat_with(|| {
            let device = open(path);
            let handle = look_up(&device);
            (device, handle, Unfilled::new())
        })
        .take(threads)
        .collect();
        std::thread::scope(|scope| {
            for (device, handle, page) in &devices {
                page.provide();
                scope.spawn(move || {
                    let mut thread = Thread::new(device);
                    thread.queue(Command::RequestDeathNotification { handle: *handle, cookie: 7 });
                    thread.queue(Command::EnterLooper);
                    thread.flush().unwrap();
                    loop {
                        write_read(device, (0, 0), page.address());
                    }
                });
            }
            steps.ready();
            steps.wait();
            devices.iter().for_each(|(.., page)| page.take_away());
            steps.ready();
        });
    });
    drop(server);
    mourners
}

/// A process with so many threads that send data which does not come, to whom the registrar knows.
fn senders(path: &Path, threads: usize) -> Forked {
    let path = path.to_owned();
    Forked::start(move || {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let device = open(&path);
        let handle = look_up(&device);
        let pages: Vec<Unfilled> = (0..threads).map(|_| Unfilled::new()).collect();
        std::thread::scope(|scope| {
            for page in &pages {
                let device = &device;
                scope.spawn(move || {
                    let mut bytes = uapi::BC_TRANSACTION.to_ne_bytes().to_vec();
                    Call::to(handle).oneway().encode(&mut bytes);
                    // data_size and data.ptr.buffer of the transaction.
                    bytes[4 + 32..][..8].copy_from_slice(&64u64.to_ne_bytes());
                    bytes[4 + 48..][..8].copy_from_slice(&page.address().to_ne_bytes());
                    write_read(device, (bytes.as_ptr() as u64, bytes.len()), 0);
                });
            }
        });
        0
    })
}

/// A process with so many threads whose write and read buffers lie on that file.
pub fn threads_on_a_file_that_is_never_read(
    path: &Path,
    file: &NeverRead,
    threads: usize,
) -> Forked {
    let (path, file) = (path.to_owned(), file.path());
    Forked::start(move || {
        let device = open(&path);
        let pages = NeverRead::map(&file, threads);
        std::thread::scope(|scope| {
            for index in 0..threads {
                let device = &device;
                let address = pages + Unfilled::SIZE as u64 * index as u64;
                scope.spawn(move || {
                    let enter = uapi::BC_ENTER_LOOPER.to_ne_bytes();
                    let write = match index % 2 {
                        0 => (address, 4),
                        _ => (enter.as_ptr() as u64, 0),
                    };
                    write_read(device, write, address);
                });
            }
        });
        0
    })
}
