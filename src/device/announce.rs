//! New devices that BINDER_CTL_ADD makes, announced to programs that watch the directory (inotify).
//!
//! What a client removes or renames goes through the kernel, which tells inotify's watchers by
//! itself. A device that BINDER_CTL_ADD adds does not, and FUSE has no notification for a new name.
//! So a thread of the daemon makes a link of that name in the daemon's own mount: the kernel asks
//! the daemon for it ([`Announcer::is_made_by`]), and tells the watchers (IN_CREATE).

use super::mounts::MountPoint;
use crate::Errno;
use crate::lock_order::rank;
use crate::sync::Mutex;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{gettid, symlinkat};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

/// Called when a name was made: with the kernel's answer, or with None if the kernel could not be
/// asked.
type Done = Box<dyn FnOnce(Option<Result<(), Errno>>) + Send>;

struct Job {
    name: Vec<u8>,
    done: Done,
}

/// The link that the thread is making just now.
#[derive(Default)]
struct Making {
    tid: i32,
    name: Vec<u8>,
    /// The kernel has asked the daemon for the link.
    asked: bool,
}

pub struct Announcer {
    /// The mount, and `st_dev` of its files. None in tests: there is no mount.
    mount: Option<(MountPoint, u64)>,
    making: Arc<Mutex<Making, rank::Making>>,
    /// The way to the thread, which is started for the first added device.
    jobs: OnceLock<Sender<Job>>,
}

impl Announcer {
    pub fn new(mount: Option<(MountPoint, u64)>) -> Announcer {
        Announcer { mount, making: Arc::default(), jobs: OnceLock::new() }
    }

    pub fn has_mount(&self) -> bool {
        self.mount.is_some()
    }

    /// Makes the kernel ask for `name`, and then calls `done`, from any thread: with None if the
    /// kernel was not asked, because the mount cannot be reached or written by its path.
    pub fn make(&self, name: &[u8], done: Done) {
        let Some((mount, dev)) = &self.mount else { return done(None) };
        let jobs = self.jobs.get_or_init(|| {
            let (jobs, waiting) = channel();
            let (mount, dev, making) = (mount.clone(), *dev, self.making.clone());
            let thread = std::thread::Builder::new().name("announcer".into());
            // If there is no thread, a job is refused below, since the receiving end is gone.
            let _ = thread.spawn(move || run(&waiting, &mount, dev, &making));
            jobs
        });
        if let Err(refused) = jobs.send(Job { name: name.to_vec(), done }) {
            (refused.0.done)(None);
        }
    }

    /// Whether a request comes from [`Announcer::make`]: for the link `name`, by the thread `tid`.
    pub fn is_made_by(&self, tid: i32, name: &[u8]) -> bool {
        let mut making = self.making.lock();
        let ours = making.tid == tid && tid != 0 && making.name == name;
        making.asked |= ours;
        ours
    }
}

fn run(jobs: &Receiver<Job>, mount: &MountPoint, dev: u64, making: &Mutex<Making, rank::Making>) {
    while let Ok(Job { name, done }) = jobs.recv() {
        *making.lock() = Making { tid: gettid().as_raw(), name: name.clone(), asked: false };
        let result = link(mount, dev, &name);
        let asked = std::mem::take(&mut *making.lock()).asked;
        // EEXIST without a question to the daemon counts, too: the kernel has seen this name.
        let decided = asked || result == Err(Errno::EEXIST);
        done(decided.then_some(result));
    }
}

/// Makes the link. ENOENT: something else is mounted there, or nothing any more.
fn link(mount: &MountPoint, dev: u64, name: &[u8]) -> Result<(), Errno> {
    // Opened only for the moment: an open directory would keep the mount from being unmounted.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    if mount.topmost().is_none_or(|topmost| topmost.dev != dev) {
        return Err(Errno::ENOENT);
    }
    let directory = open(mount.reached(), flags, Mode::empty())?;
    if fstat(&directory)?.st_dev != dev {
        return Err(Errno::ENOENT);
    }
    symlinkat(".", directory.as_fd(), OsStr::from_bytes(name))
}
