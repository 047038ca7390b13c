//! The devices that supervised processes have open: which of them are fakebinder's, and what their
//! daemons have sent for the threads that use them.

use super::target;
use fakebinder::uapi;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, socketpair,
};
use std::collections::HashMap;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many descriptors of threads, and how many mounts, are remembered.
const REMEMBERED: usize = 4096;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An ioctl of fakebinder's own, whose argument holds no pointers.
fn ioctl<T>(device: BorrowedFd<'_>, command: u32, argument: &mut T) -> Result<i32, Errno> {
    assert!(uapi::ioc_size(command) <= size_of::<T>());
    let argument: *mut T = argument;
    // SAFETY: the kernel touches no more than the argument, which has the size that the command
    // says, and any bytes are a valid value of these structures.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), command.into(), argument) })
}

/// An open file of a device of fakebinder's.
pub struct Device {
    /// The process that has opened it.
    pub opener: i32,
    /// Whether the kernel's mapping of it shows the buffers.
    pub is_mappable: bool,
    /// It lies on the FUSE door, where the kernel copies the arguments of ioctls by itself.
    pub is_copied_for: bool,
    mapped: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// To the daemon; none before the registration and after the end of the open file.
    socket: Option<OwnedFd>,
    /// Files for threads, by ticket.
    placements: HashMap<u32, Placement>,
    /// Descriptors to be closed, and the thread that has freed their buffer.
    closings: Vec<(i32, Vec<i32>)>,
}

/// Files for a thread's process.
pub struct Placement {
    pub ticket: u32,
    pub files: Vec<OwnedFd>,
    tid: i32,
    /// Files that are still on their way.
    left: usize,
    /// Some could not be received.
    is_broken: bool,
}

impl Placement {
    /// EMFILE: some files could not be received.
    pub fn check(&self) -> Result<(), Errno> {
        if self.is_broken { Err(Errno::EMFILE) } else { Ok(()) }
    }
}

/// What is to be done before a thread's ioctl.
pub enum Due {
    Nothing,
    /// Files to place, and descriptors to close.
    Work(Vec<Placement>, Vec<i32>),
    /// The open file, or its daemon, is gone.
    Gone,
}

impl Device {
    /// What the daemon has sent for the thread `tid`, whatever it was sent before.
    pub fn due(&self, tid: i32) -> Due {
        let mut state = lock(&self.state);
        if state.receive_all().is_err() {
            *state = State::default();
            return Due::Gone;
        }
        let is_whole = |it: &Placement| it.tid == tid && it.left == 0;
        let tickets: Vec<u32> =
            state.placements.values().filter(|it| is_whole(it)).map(|it| it.ticket).collect();
        let placements: Vec<Placement> =
            tickets.iter().filter_map(|ticket| state.placements.remove(ticket)).collect();
        let closings = state.closings_for(tid);
        match placements.is_empty() && closings.is_empty() {
            true => Due::Nothing,
            false => Due::Work(placements, closings),
        }
    }

    /// Tells the daemon where files have been placed.
    pub fn placed(&self, ticket: u32, result: &Result<Vec<i32>, Errno>) -> Result<(), Errno> {
        let state = lock(&self.state);
        let socket = state.socket.as_ref().ok_or(Errno::ENOTCONN)?;
        let tell = |errno: u32, numbers: &[i32]| {
            let words = [uapi::FAKEBINDER_PLACED, ticket, errno];
            let words = words.into_iter().chain(numbers.iter().map(|number| *number as u32));
            let message: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            send(socket.as_raw_fd(), &message, flags).map(drop)
        };
        match result {
            Ok(numbers) => {
                numbers.chunks(uapi::FAKEBINDER_FILES_MAX).try_for_each(|chunk| tell(0, chunk))
            }
            Err(errno) => tell(*errno as u32, &[]),
        }
    }

    /// Whether the file has been mapped before; from now on it has.
    pub fn set_mapped(&self) -> bool {
        self.mapped.swap(true, Ordering::Relaxed)
    }

    /// Makes the kernel's driver of this process's device do what it would for the thread.
    pub fn do_for(&self, copy: BorrowedFd<'_>, tid: i32, command: u32) -> Result<(), Errno> {
        let mut asked = uapi::fakebinder_for_thread { tid, command };
        ioctl(copy, uapi::FAKEBINDER_FOR_THREAD, &mut asked).map(drop)
    }

    /// Drops what the daemon has sent and nobody has taken.
    fn forget(&self) {
        *lock(&self.state) = State::default();
    }

    /// Has the daemon send what there is for this open file, unless it does already. `ended` tells
    /// of the file's `number` when it is gone.
    fn register(&self, copy: BorrowedFd<'_>, number: u64, ended: &Epoll) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        if state.socket.is_some() {
            return Ok(());
        }
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut asked = question(theirs.as_raw_fd());
        ioctl(copy, uapi::FAKEBINDER_SUPERVISE, &mut asked)?;
        // That the other end is closed is told in any case.
        ended.add(&ours, EpollEvent::new(EpollFlags::empty(), number))?;
        state.socket = Some(ours);
        Ok(())
    }
}

fn question(socket: RawFd) -> uapi::fakebinder_supervise {
    let version = uapi::FAKEBINDER_SUPERVISE_VERSION;
    uapi::fakebinder_supervise { version, socket, ..Default::default() }
}

impl State {
    /// Takes everything that has come. ENOTCONN: the open file is gone.
    fn receive_all(&mut self) -> Result<(), Errno> {
        let socket = self.socket.as_ref().ok_or(Errno::ENOTCONN)?.as_raw_fd();
        loop {
            let mut bytes = [0u8; 4 * (2 + uapi::FAKEBINDER_FILES_MAX)];
            let mut space = nix::cmsg_space!([RawFd; uapi::FAKEBINDER_FILES_MAX]);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let message = match recvmsg::<()>(socket, &mut parts, Some(&mut space), flags) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            };
            let is_broken = message.flags.contains(MsgFlags::MSG_CTRUNC);
            let mut files = Vec::new();
            for control in message.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    // SAFETY: the kernel has just installed these for this process.
                    files.extend(numbers.into_iter().map(|it| unsafe { OwnedFd::from_raw_fd(it) }));
                }
            }
            let length = message.bytes;
            if length == 0 {
                return Err(Errno::ENOTCONN);
            }
            let words = bytes[..length].as_chunks::<4>().0.iter();
            let words: Vec<u32> = words.map(|word| u32::from_ne_bytes(*word)).collect();
            self.take(&words, files, is_broken);
        }
    }

    fn take(&mut self, words: &[u32], files: Vec<OwnedFd>, is_broken: bool) {
        match *words {
            [uapi::FAKEBINDER_PLACE, ticket, tid, left] => {
                let new = || Placement {
                    ticket,
                    files: Vec::new(),
                    tid: tid as i32,
                    left: 0,
                    is_broken: false,
                };
                let placement = self.placements.entry(ticket).or_insert_with(new);
                placement.files.extend(files);
                placement.left = left as usize;
                placement.is_broken |= is_broken;
            }
            [uapi::FAKEBINDER_PLACE_FORGET, ticket] => drop(self.placements.remove(&ticket)),
            [uapi::FAKEBINDER_PLACE_CLOSE, tid, ref numbers @ ..] => {
                let numbers = numbers.iter().map(|number| *number as i32).collect();
                self.closings.push((tid as i32, numbers));
            }
            // A newer daemon's.
            _ => {}
        }
    }

    /// What is to be closed in the process of a thread.
    fn closings_for(&mut self, tid: i32) -> Vec<i32> {
        if self.closings.is_empty() {
            return Vec::new();
        }
        let process = target::thread_group(tid);
        let is_here =
            |other: i32| other == tid || process.is_ok() && target::thread_group(other) == process;
        let (here, elsewhere) =
            std::mem::take(&mut self.closings).into_iter().partition(|(other, _)| is_here(*other));
        self.closings = elsewhere;
        let here: Vec<(i32, Vec<i32>)> = here;
        here.into_iter().flat_map(|(_, numbers)| numbers).collect()
    }
}

/// A descriptor of a thread: the file's name, and whose device it is, if it is one of fakebinder's.
type Known = (PathBuf, Option<Arc<Device>>);

/// All devices that were seen.
pub struct Devices {
    by_descriptor: Mutex<HashMap<(i32, i32), Known>>,
    /// Whether mounts are fakebinder's: by their numbers, which the kernel gives out again, and the
    /// directories of the files that were seen there.
    mounts: Mutex<HashMap<(u64, PathBuf), bool>>,
    /// By the daemons' numbers of them, those whose open file is not gone.
    by_open: Mutex<HashMap<u64, Arc<Device>>>,
    ended: Epoll,
}

impl Devices {
    pub fn new() -> Result<Devices, Errno> {
        Ok(Devices {
            by_descriptor: Mutex::default(),
            mounts: Mutex::default(),
            by_open: Mutex::default(),
            ended: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        })
    }

    /// Readable when [`Devices::forget_ended`] has something to do.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.0.as_fd()
    }

    /// Drops the files that came for devices which are closed by now: nobody will fetch them, and
    /// who waits for such a file to be closed would wait as long as this process lives.
    pub fn forget_ended(&self) {
        let mut events = [EpollEvent::empty(); 16];
        let count = self.ended.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for event in &events[..count] {
            let device = lock(&self.by_open).remove(&event.data());
            device.iter().for_each(|device| device.forget());
        }
    }

    /// Whether a thread's descriptor is one of a device; none where that is not known.
    pub fn known(&self, tid: i32, fd: i32, link: &Path) -> Option<Option<Arc<Device>>> {
        let known = lock(&self.by_descriptor);
        let (name, device) = known.get(&(tid, fd))?;
        (name == link).then(|| device.clone())
    }

    /// Whether a thread's descriptor may be one of a device: not so for nearly all files that are
    /// mapped.
    pub fn may_be_device(&self, tid: i32, fd: i32, link: &Path) -> bool {
        if target::may_be_character_device(tid, fd, link) {
            return true;
        }
        let Some(mount) = target::mount(tid, fd) else { return false };
        let place = (mount, link.parent().map(Path::to_owned).unwrap_or_default());
        if let Some(known) = lock(&self.mounts).get(&place) {
            return *known;
        }
        let is_ours = target::is_of_fakebinder(tid, mount);
        let mut mounts = lock(&self.mounts);
        if mounts.len() >= REMEMBERED {
            mounts.clear();
        }
        mounts.insert(place, is_ours);
        is_ours
    }

    /// Looks whether a file is a device of fakebinder's, and has its daemon send what there is for
    /// it.
    pub fn find(&self, copy: BorrowedFd<'_>) -> Result<Arc<Device>, Errno> {
        let mut told = question(-1);
        ioctl(copy, uapi::FAKEBINDER_SUPERVISE, &mut told)?;
        let new = || Arc::new(Device::new(copy, &told));
        let device = lock(&self.by_open).entry(told.open).or_insert_with(new).clone();
        device.register(copy, told.open, &self.ended).inspect_err(|_| {
            lock(&self.by_open).remove(&told.open);
        })?;
        Ok(device)
    }

    /// Remembers what a thread's descriptor is.
    pub fn remember(&self, tid: i32, fd: i32, link: PathBuf, device: Option<Arc<Device>>) {
        let mut known = lock(&self.by_descriptor);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert((tid, fd), (link, device));
    }
}

impl Device {
    fn new(copy: BorrowedFd<'_>, told: &uapi::fakebinder_supervise) -> Device {
        let is_file = nix::sys::stat::fstat(copy)
            .is_ok_and(|status| status.st_mode & libc::S_IFMT == libc::S_IFREG);
        Device {
            opener: told.opener,
            is_mappable: told.flags & uapi::FAKEBINDER_SUPERVISE_MAPS != 0,
            is_copied_for: is_file,
            mapped: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }
}
