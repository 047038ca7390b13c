//! What makes the daemon give pages back: memory pressure on the machine or on the daemon's control
//! group, and requests of the administrator. (The third reason, a used-up page budget, is found by
//! `Memory::charge`.)

#![forbid(unsafe_code)]

use crate::memory::Memory;
use crate::sync::block_signals;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

/// The machine's pressure file.
const MACHINE: &str = "/proc/pressure/memory";

/// An event when somebody has waited for memory for 100 ms within a second; without privileges the
/// window must be a multiple of 2 s.
const TRIGGERS: [&str; 2] = ["some 100000 1000000", "some 200000 2000000"];

/// The thread that reclaims pages. It sleeps in the kernel until something happens.
#[derive(Debug)]
pub struct Reclaimer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wake: EventFd,
    stop: AtomicBool,
    /// Somebody has asked for every page to be reclaimed.
    kicked: AtomicBool,
    rounds: AtomicUsize,
}

impl Reclaimer {
    /// Starts the thread, which listens to the daemon's control group if it is in one, else to the
    /// machine. Where neither reports pressure, a log line says so, and the thread serves
    /// [`Reclaimer::kick`] alone.
    pub fn start(memory: &Arc<Memory>) -> io::Result<Reclaimer> {
        let source = pressure_file().and_then(|path| match subscribe(&path) {
            Ok(file) => Some((path, file)),
            Err(error) => {
                log::debug!("{}: {error}", path.display());
                None
            }
        });
        match &source {
            Some((path, _)) => {
                log::info!("reclaiming pages under memory pressure ({})", path.display())
            }
            None => log::warn!(
                "no memory pressure information here: pages are reclaimed by budget and on request only"
            ),
        }
        Self::listen(memory, source.map(|(_, file)| file))
    }

    /// Starts the thread for [`Reclaimer::kick`] alone.
    pub fn on_request(memory: &Arc<Memory>) -> io::Result<Reclaimer> {
        Self::listen(memory, None)
    }

    fn listen(memory: &Arc<Memory>, pressure: Option<File>) -> io::Result<Reclaimer> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            wake,
            stop: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            rounds: AtomicUsize::new(0),
        });
        let (memory, theirs) = (memory.clone(), shared.clone());
        let thread = thread::Builder::new().name("shrinker".into());
        let thread = thread.spawn(move || run(&memory, &theirs, pressure))?;
        Ok(Reclaimer { shared, thread: Some(thread) })
    }

    /// Asks for every page that is not in use to be reclaimed. May be called from a signal handler.
    pub fn kick(&self) {
        self.shared.kicked.store(true, Ordering::SeqCst);
        let _ = self.shared.wake.write(1);
    }

    /// How often the thread has reclaimed, for whatever reason.
    pub fn rounds(&self) -> usize {
        self.shared.rounds.load(Ordering::SeqCst)
    }
}

impl Drop for Reclaimer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.kick();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(memory: &Memory, shared: &Shared, mut pressure: Option<File>) {
    block_signals();
    loop {
        let mut fds = vec![PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(pressure.as_ref().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLPRI)));
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        let events =
            |at: usize| fds.get(at).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        let (asked, pressed) = (events(0), events(1));
        if !asked.is_empty() {
            let _ = shared.wake.read();
            if shared.stop.load(Ordering::SeqCst) {
                return;
            }
            if shared.kicked.swap(false, Ordering::SeqCst) {
                let pages = memory.reclaim_all();
                log::info!("reclaimed {pages} pages on request");
            }
        }
        if pressed.contains(PollFlags::POLLPRI) {
            // Half of the pages: the others may be wanted again soon, and if the pressure stays,
            // further events come.
            let pages = memory.scan(memory.count().div_ceil(2));
            log::debug!("reclaimed {pages} pages under memory pressure");
        }
        if pressed.contains(PollFlags::POLLERR) {
            // The control group is gone.
            pressure = None;
        }
        shared.rounds.fetch_add(1, Ordering::SeqCst);
    }
}

/// The pressure file of the daemon's control group, or of the machine if that is the root group.
fn pressure_file() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_group = pressure_of_group(&groups, Path::new("/sys/fs/cgroup"));
    of_group.into_iter().chain([PathBuf::from(MACHINE)]).find(|path| path.exists())
}

/// From `/proc/self/cgroup`: where the pressure file of the group on the unified hierarchy would
/// be.
fn pressure_of_group(groups: &str, root: &Path) -> Option<PathBuf> {
    Some(unified_group(groups, root)?.join("memory.pressure"))
}

fn unified_group(groups: &str, root: &Path) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!group.is_empty()).then(|| root.join(group))
}

fn subscribe(path: &Path) -> io::Result<File> {
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for trigger in TRIGGERS {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        // With its terminating NUL, as the kernel's documentation writes it.
        match file.write_all(format!("{trigger}\0").as_bytes()) {
            Ok(()) => return Ok(file),
            Err(e) => error = e,
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc::{Alloc, BufferRequest};
    use crate::memory::MemoryConfig;
    use crate::mm_shim::HeapMm;
    use nix::sys::socket::{MsgFlags, send};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::{Duration, Instant};

    /// Urgent data on a socket looks to `poll` like a pressure event.
    #[test]
    fn pressure_reclaims_and_the_loss_of_its_source_does_not_end_the_thread() {
        let memory = Memory::new(MemoryConfig::default());
        let mm = HeapMm::new();
        mm.attach(0x7000_0000, 64 << 10);
        let alloc = Alloc::new(mm, &memory);
        alloc.mmap_handler(0x7000_0000, 64 << 10).expect("the first mapping");
        let request = BufferRequest {
            data_size: 8 * 4096,
            offsets_size: 0,
            extra_buffers_size: 0,
            is_async: false,
            pid: 1,
        };
        let use_pages = || {
            let buffer = alloc.alloc_new_buf(&request).expect("room");
            alloc.free_buf(&buffer);
            assert_eq!(memory.count(), 8);
        };
        let reclaimed = || {
            let start = Instant::now();
            while memory.count() > 0 && start.elapsed() < Duration::from_secs(10) {
                thread::sleep(Duration::from_millis(1));
            }
            memory.count() == 0
        };
        use_pages();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
        let (source, _) = listener.accept().expect("a connection");
        let source = File::from(OwnedFd::from(source));
        let reclaimer = Reclaimer::listen(&memory, Some(source)).expect("a thread");
        let flags = nix::fcntl::fcntl(&reclaimer.shared.wake, nix::fcntl::FcntlArg::F_GETFD);
        assert_eq!(flags, Ok(libc::FD_CLOEXEC));
        thread::sleep(Duration::from_millis(50));
        assert_eq!((reclaimer.rounds(), memory.count()), (0, 8));
        send(peer.as_raw_fd(), b"!", MsgFlags::MSG_OOB).expect("urgent data");
        assert!(reclaimed());

        nix::sys::socket::setsockopt(
            &peer,
            nix::sys::socket::sockopt::Linger,
            &libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .expect("to reset the connection");
        drop(peer);
        use_pages();
        reclaimer.kick();
        assert!(reclaimed());
    }

    #[test]
    fn the_pressure_file_says_how_long_was_waited_for_memory() {
        let Some(path) = pressure_file() else {
            assert!(!Path::new(MACHINE).exists());
            return;
        };
        let text = fs::read_to_string(path).expect("a file that can be read");
        assert!(text.starts_with("some avg10="), "{text}");
    }

    #[test]
    fn the_pressure_file_is_that_of_the_group_on_the_unified_hierarchy() {
        let root = Path::new("/sys/fs/cgroup");
        let path = |groups| pressure_of_group(groups, root);
        assert_eq!(
            path("1:cpu:/a\n0::/user.slice/session-1.scope\n"),
            Some(PathBuf::from("/sys/fs/cgroup/user.slice/session-1.scope/memory.pressure"))
        );
        assert_eq!(path("0::/\n"), None);
        assert_eq!(path("1:cpu:/a\n"), None);
        assert_eq!(path(""), None);
    }
}
