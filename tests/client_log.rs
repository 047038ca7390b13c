//! What clients can have logged: each kind of line once, as the driver prints it, and no more than
//! a few of them however fast the client is.

mod common;

use common::forked::Forked;
use common::{Daemon, Door, PATIENCE, alone, skip, wait_until};
use fakebinder::client_log::{Kind, Limiter, PER_KIND, TOGETHER, WINDOW};
use fakebinder_client::{Call, Command, Device, Parcel, uapi};
use nix::sys::mman::{MapFlags, ProtFlags};
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Lines that a flood of ten seconds may add to the log, whoever causes them and by whatever means.
const MOST_LINES: usize = 50;

/// Somebody who is not root.
const USER: u32 = 1000;

/// The context manager that a flood has to do with; it does nothing once it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Nobody,
    /// Its node has these flags.
    With(u32),
    /// It has not mapped its device.
    Unmapped,
    /// It has mapped its device in a way that it may not.
    Writable,
}

/// How a client causes a kind of line.
struct Flood {
    manager: Manager,
    /// What only root may do, or only the daemon's options bring about.
    root: bool,
    options: &'static [&'static str],
    /// Words that people look for in the log.
    says: &'static str,
    /// One round; called many times.
    round: fn(&Device),
}

impl Flood {
    fn by(says: &'static str, round: fn(&Device)) -> Flood {
        Flood { manager: Manager::With(0), root: false, options: &[], says, round }
    }

    fn manager(self, manager: Manager) -> Flood {
        Flood { manager, ..self }
    }
}

/// Writes commands, and reads whatever error comes of them, for nothing is carried out before.
fn write(device: &Device, command: Command<'_>) {
    let _ = device.write_read(&[command], &mut [0; 256]);
}

fn send(device: &Device, parcel: &Parcel) {
    write(device, Command::Transaction(Call::to(0).oneway().parcel(parcel)));
}

/// How a client causes each kind of line; `Err` says why it is not done here.
fn flood(kind: Kind) -> Result<Flood, &'static str> {
    Ok(match kind {
        Kind::BadCommand => Flood::by("unknown command", |device| {
            device.transfer(&0x1234_5678_u32.to_ne_bytes(), &mut []);
        }),
        Kind::BadIoctl => Flood::by("unknown ioctl", |device| {
            let unknown = 0x4004_62c8; // _IOW('b', 200, int)
            let mut argument = 0_u32;
            // SAFETY: the argument has the four bytes that the ioctl's number says.
            let _ = unsafe { device.raw_ioctl(unknown, (&raw mut argument).cast()) };
        }),
        Kind::BadManager => Flood::by("BINDER_SET_CONTEXT_MGR already set", |device| {
            let _ = device.set_context_manager();
        }),
        Kind::BadHandle => Flood::by("got transaction to invalid handle, 4711", |device| {
            write(device, Command::Transaction(Call::to(4711)));
        }),
        Kind::CallToSelf => Flood::by("from process owning it", |device| {
            let _ = device.set_context_manager();
            let other = Device::open_nonblock(device.path()).unwrap();
            write(&other, Command::Transaction(Call::to(0)));
        })
        .manager(Manager::Nobody),
        Kind::BadCallStack => Flood::by("bad transaction stack", |device| {
            write(device, Command::Transaction(Call::to(0)));
        }),
        Kind::BadReply => Flood::by("reply transaction with no transaction stack", |device| {
            write(device, Command::Reply(Call::reply()));
        }),
        Kind::BadMessage => Flood::by("got transaction with invalid offset", |device| {
            let mut parcel = Parcel::new();
            parcel.bytes(&[0; 8]).offset(400);
            send(device, &parcel);
        }),
        Kind::BadCookie => Flood::by("cookie mismatch", |device| {
            for cookie in [1, 2] {
                let mut parcel = Parcel::new();
                parcel.binder(0x10, cookie, 0);
                send(device, &parcel);
            }
        }),
        Kind::BadFile => Flood::by("target does not allow fds", |device| {
            let mut parcel = Parcel::new();
            parcel.fd(0);
            send(device, &parcel);
        }),
        Kind::BadFree => Flood::by("BC_FREE_BUFFER u0000000000001234 no match", |device| {
            write(device, Command::FreeBuffer(0x1234));
        }),
        Kind::BadReference => Flood::by("refcount change on invalid ref 4711", |device| {
            write(device, Command::Acquire(4711));
        }),
        Kind::BadNodeDone => Flood::by("BC_ACQUIRE_DONE u0000000000000010 no match", |device| {
            write(device, Command::AcquireDone { ptr: 0x10, cookie: 0 });
        }),
        Kind::BadLooper => Flood::by("BC_REGISTER_LOOPER called without request", |device| {
            write(device, Command::RegisterLooper);
        }),
        Kind::BadDeathNotification => {
            Flood::by("BC_REQUEST_DEATH_NOTIFICATION invalid ref", |device| {
                write(device, Command::RequestDeathNotification { handle: 4711, cookie: 1 });
            })
        }
        Kind::BadFreezeNotification => {
            Flood::by("BC_REQUEST_FREEZE_NOTIFICATION invalid ref", |device| {
                write(device, Command::RequestFreezeNotification { handle: 4711, cookie: 1 });
            })
        }
        Kind::TransactionFailed => Flood::by("failed 29201/-22", |device| {
            write(device, Command::Transaction(Call::to(4711)));
        }),
        Kind::NoSpace => Flood::by("no space left", |device| {
            let mut parcel = Parcel::new();
            parcel.bytes(&[0; 1 << 20]);
            send(device, &parcel);
        }),
        Kind::NotMapped => Flood::by("no vma", |device| {
            write(device, Command::Transaction(Call::to(0)));
        })
        .manager(Manager::Unmapped),
        Kind::OnewaySpam => Flood::by("spamming oneway?", |device| {
            let mut parcel = Parcel::new();
            parcel.bytes(&[0; 200]);
            send(device, &parcel);
        }),
        Kind::NoSecurityContext => return Err("whether there is one depends on the kernel"),
        Kind::NoWayForFiles => Flood {
            options: &["--never-trace"],
            ..Flood::by("no way to receive them", |device| {
                let mut parcel = Parcel::new();
                parcel.fd(0);
                send(device, &parcel);
            })
            .manager(Manager::With(uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS))
        },
        Kind::FilesNotInstalled => return Err("tests/descriptors.rs fills a receiver's socket"),
        Kind::FilesNotFetched => return Err("it takes half of the daemon's descriptors"),
        Kind::DeviceAdded => Flood {
            root: true,
            ..Flood::by(": added flood", |device| {
                let directory = device.path().parent().unwrap();
                let control = fs::File::open(directory.join("binder-control")).unwrap();
                let mut added = uapi::binderfs_device { name: [0; 256], major: 0, minor: 0 };
                let name = format!("flood{:?}", Instant::now());
                let name: Vec<u8> = name.bytes().filter(u8::is_ascii_alphanumeric).collect();
                added.name[..name.len()].copy_from_slice(&name);
                // SAFETY: the argument is of the ioctl's type.
                unsafe { libc::ioctl(control.as_raw_fd(), uapi::BINDER_CTL_ADD as _, &mut added) };
            })
        },
        Kind::Deadlock => return Err("tests/inspect.rs has one, which takes two threads"),
        Kind::NotInNamespace => return Err("it takes another pid namespace"),
        Kind::UserLimit => Flood {
            options: &["--user-limit", "opens=3"],
            ..Flood::by("uid 1000 has 3 opens and may have 3", |device| {
                let opened: Vec<_> = (0..3).map(|_| Device::open(device.path())).collect();
                assert!(opened.iter().any(Result::is_err));
            })
        },
        Kind::OutOfDescriptors | Kind::OutOfMemory => {
            return Err("tests/shortage.rs injects these");
        }
        Kind::OpenedTwice => {
            Flood::by("refused (EBUSY) to open one file a second time", |device| {
                let again = fs::File::open(format!("/proc/self/fd/{}", device.as_fd().as_raw_fd()));
                assert!(again.is_err());
            })
        }
        Kind::OpenedWithoutMapping => return Err("it takes a bind mount: tests/doors.rs has one"),
        Kind::MemoryRefused | Kind::GatherTooLarge | Kind::AttachRefused => {
            return Err("it takes a daemon without CAP_SYS_PTRACE");
        }
        Kind::BadMapping => Flood::by("mapped writable", |device| {
            write(device, Command::Transaction(Call::to(0)));
        })
        .manager(Manager::Writable),
        Kind::PageNotInstalled => Flood {
            options: &["--inject", "vm_insert_page"],
            ..Flood::by("failed to insert page", |device| {
                write(device, Command::Transaction(Call::to(0).oneway()));
            })
        },
        Kind::PageNotRemoved => Flood {
            options: &["--inject", "zap"],
            root: true,
            ..Flood::by("cannot zap page", |device| {
                // A message that fails leaves a page that nobody uses.
                let mut parcel = Parcel::new();
                parcel.bytes(&[0; 8]).offset(400);
                send(device, &parcel);
                let _ = device.daemon_reclaim();
            })
        },
        Kind::BufferNotFound => return Err("it would be a mistake of the engine's"),
        Kind::HolePunched => return Err("it takes a client that may write to the daemon's memfd"),
        Kind::WorkersHeldUp => return Err("it takes 255 threads that are stuck"),
        Kind::BadRequest | Kind::NotReplied => return Err("only the kernel sends and takes these"),
    })
}

fn every_flood() -> Vec<(Kind, Flood)> {
    Kind::ALL.iter().filter_map(|kind| Some((*kind, flood(*kind).ok()?))).collect()
}

/// A process that is the context manager, and does nothing.
fn manager(path: &Path, kind: Manager) -> Option<Forked> {
    if kind == Manager::Nobody {
        return None;
    }
    let ready = std::os::unix::net::UnixStream::pair().unwrap();
    let path = path.to_owned();
    let (mut ours, theirs) = ready;
    let manager = Forked::start(move || {
        let mut device = Device::open_nonblock(&path).unwrap();
        let _writable = match kind {
            Manager::Writable => {
                let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
                Some(device.map_with(128 << 10, writable, MapFlags::MAP_SHARED).unwrap())
            }
            Manager::With(_) => {
                device.mmap(128 << 10).unwrap();
                None
            }
            Manager::Unmapped | Manager::Nobody => None,
        };
        match kind {
            Manager::With(flags) if flags != 0 => device.set_context_manager_ext(1, 1, flags),
            _ => device.set_context_manager(),
        }
        .unwrap();
        std::io::Write::write_all(&mut &theirs, b"!").unwrap();
        loop {
            nix::unistd::pause();
        }
    });
    std::io::Read::read_exact(&mut ours, &mut [0]).expect("the manager comes up");
    Some(manager)
}

/// A process that does something in rounds, for so many of them or so long.
fn client(path: &Path, flood: &Flood, rounds: usize, long: Duration) -> Forked {
    let path: PathBuf = path.to_owned();
    let (round, root) = (flood.round, flood.root);
    Forked::start(move || {
        if !root {
            nix::unistd::setuid(USER.into()).unwrap();
        }
        let mut device = Device::open_nonblock(&path).unwrap();
        device.mmap(128 << 10).unwrap();
        let end = Instant::now() + long;
        let mut done = 0;
        while done < rounds || Instant::now() < end {
            round(&device);
            done += 1;
        }
        0
    })
}

fn possible() -> bool {
    let possible = nix::unistd::geteuid().is_root() && Door::Fuse.is_here();
    if !possible {
        skip("it takes root and /dev/fuse");
    }
    possible
}

#[test]
fn each_kind_is_said_in_the_words_that_people_look_for_and_a_flood_of_it_is_cut_off() {
    if !possible() {
        return;
    }
    let _alone = alone();
    for (kind, flood) in every_flood() {
        let daemon = Daemon::start_with(flood.options, None);
        let before = daemon.log().lines().count();
        let manager = manager(&daemon.fuse(), flood.manager);
        client(&daemon.fuse(), &flood, 500, Duration::ZERO).succeed();
        assert!(wait_until(PATIENCE, || daemon.log().contains(flood.says)), "{kind:?}");
        let log = daemon.log();
        let said = log.matches(flood.says).count();
        // A window may have ended meanwhile.
        assert!(said <= 2 * PER_KIND as usize, "{kind:?} {said} times:\n{log}");
        let lines = log.lines().count() - before;
        assert!(lines <= MOST_LINES, "{kind:?}: {lines} lines:\n{log}");
        drop(manager);
    }
}

/// The daemon's own promise in one picture: everything at once, for as long as a window and more.
#[test]
fn a_flood_of_every_kind_adds_few_lines_and_says_how_many_it_did_not() {
    if !possible() {
        return;
    }
    let _alone = alone();
    let daemon = Daemon::start(Door::Fuse);
    let before = daemon.log().lines().count();
    let manager = manager(&daemon.fuse(), Manager::With(0));
    let clients: Vec<Forked> = every_flood()
        .iter()
        .filter(|(_, flood)| flood.manager == Manager::With(0) && flood.options.is_empty())
        .map(|(_, flood)| client(&daemon.fuse(), flood, 0, Duration::from_secs(10)))
        .collect();
    assert!(clients.len() > 10, "{}", clients.len());
    clients.into_iter().for_each(Forked::succeed);
    let log = daemon.log();
    let lines = log.lines().count() - before;
    assert!(lines <= MOST_LINES, "{lines} lines:\n{log}");
    let told = || daemon.log().contains(" lines were suppressed: ");
    assert!(wait_until(WINDOW + PATIENCE, told), "{}", daemon.log());
    drop(manager);
}

/// By a clock of the test's own: each kind alone, all of them by one user, all by many users.
#[test]
fn no_flood_of_ten_seconds_passes_the_limiter() {
    const STEP: Duration = Duration::from_millis(1);
    let admitted = |kinds: &[Kind], users: u32| {
        let mut limiter = Limiter::default();
        let (mut now, mut lines) = (WINDOW + Duration::from_secs(5), 0);
        for (step, uid) in (0..10_000).zip((USER..USER + users).cycle()) {
            for kind in kinds {
                lines += usize::from(limiter.admit(*kind, uid, now).is_some());
            }
            lines += usize::from(limiter.summary(now).0.is_some());
            if step % 1_000 == 0 {
                assert!(limiter.users() <= 64);
            }
            now += STEP;
        }
        lines
    };
    for kind in Kind::ALL {
        let lines = admitted(&[*kind], 1);
        assert!(
            lines >= PER_KIND as usize && lines <= 2 * PER_KIND as usize + 2,
            "{kind:?} {lines}"
        );
    }
    let by_one = admitted(Kind::ALL, 1);
    let by_many = admitted(Kind::ALL, 5_000);
    assert!(by_one <= MOST_LINES / 2 && by_many <= MOST_LINES, "{by_one}, {by_many}");
    assert!(by_one >= TOGETHER.at_once as usize / 2 && by_many >= TOGETHER.at_once as usize);
}

/// Whoever adds a line that a client can cause must give it a kind: the lines that are logged
/// without one are counted here, and all of them are the daemon's own.
#[test]
fn what_is_logged_without_a_limit_is_what_no_client_can_cause() {
    let own = [
        ("client_log.rs", 1, "the summary of what was suppressed"),
        ("daemon/doors.rs", 7, "the start"),
        ("daemon/service_manager.rs", 2, "the start, and a service manager that cannot be told"),
        ("device/claim.rs", 2, "the start"),
        ("device/claim/made.rs", 2, "the start and the end"),
        ("device/control.rs", 1, "what the administrator has asked for"),
        ("device/cuse.rs", 1, "INIT, by the kernel"),
        ("device/fuse.rs", 6, "INIT, by the kernel, and the start"),
        ("device/fuse/opening.rs", 1, "passthrough that is refused, once"),
        ("device/mounting.rs", 1, "the start"),
        ("device/places.rs", 2, "the start"),
        ("device/threads.rs", 1, "the end of the thread that watches threads"),
        ("device/uring.rs", 1, "the start"),
        ("device/uring/threads.rs", 8, "an error of io_uring, or a mistake of the daemon's"),
        ("device/workers.rs", 2, "the end of a session, and a mistake of the daemon's"),
        ("main.rs", 6, "the start, the end and signals"),
        ("mm_shim/userfault.rs", 1, "the first open, once"),
        ("shrinker.rs", 3, "the start, and SIGUSR2"),
    ];
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found: Vec<(String, usize)> = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let calls = ["log::error!(", "log::warn!(", "log::info!("];
            let calls = calls.iter().map(|call| text.matches(call).count()).sum();
            assert!(!text.contains("use log::{") && !text.contains("use log::*"), "{path:?}");
            if calls > 0 {
                let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
                found.push((name.to_owned(), calls));
            }
        }
    }
    found.sort();
    let own: Vec<_> = own.iter().map(|(file, calls, _)| (file.to_string(), *calls)).collect();
    assert_eq!(found, own, "give the new line a kind, or say here why no client can cause it");
}
