//! fakebinderd as a whole, on this machine's kernel: how it comes, what it refuses, how it goes.
//!
//! Needs root and /dev/fuse; where they are missing each test says so and does nothing.

mod common;

use common::unfilled::Unfilled;
use common::{Daemon, Door, PATIENCE, skip, unique_name, wait_until};
use fakebinder::Errno;
use fakebinder::uapi;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn possible() -> bool {
    let possible = nix::unistd::geteuid().is_root() && Door::Fuse.is_here();
    if !possible {
        skip("it takes root and /dev/fuse");
    }
    possible
}

fn mount_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}-fs"))
}

/// A daemon that is not waited for.
fn command(name: &str, mount: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fakebinderd"));
    command.args(["--door", "fuse", "--name", name]).arg("--mount").arg(mount);
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn version(file: &File) -> Result<i32, Errno> {
    let mut version = 0i32;
    // SAFETY: BINDER_VERSION writes four bytes.
    let result = unsafe {
        libc::ioctl(file.as_raw_fd(), uapi::BINDER_VERSION as libc::c_ulong, &raw mut version)
    };
    Errno::result(result).map(|_| version)
}

/// What a run that cannot work says, and that it says so with exit status 1.
fn refusal(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

#[test]
fn a_name_or_a_mount_that_is_in_use_is_refused() {
    if !possible() {
        return;
    }
    let daemon = Daemon::start(Door::Fuse);
    let other = unique_name();
    let said = refusal(&mut command(&daemon.name, &mount_of(&other)));
    assert!(said.contains("in use by another fakebinderd"), "{said}");
    assert!(said.contains(&daemon.pid().to_string()), "{said}");
    let said = refusal(&mut command(&other, &daemon.mount));
    assert!(said.contains("in use by another fakebinderd"), "{said}");
    assert_eq!(version(&open(&daemon.fuse()).unwrap()), Ok(8));
    assert!(!exists(&mount_of(&other)));
    assert!(!exists(&Path::new("/dev").join(other)));
}

#[test]
fn what_is_not_ours_is_never_removed() {
    if !possible() {
        return;
    }
    let name = unique_name();
    let (path, mount) = (Path::new("/dev").join(&name), mount_of(&name));
    fs::write(&path, "precious").unwrap();
    let said = refusal(&mut command(&name, &mount));
    let kept = fs::read_to_string(&path);
    fs::remove_file(&path).unwrap();
    assert!(said.contains("is not fakebinderd's"), "{said}");
    assert_eq!(kept.unwrap(), "precious");
    assert!(!exists(&mount));

    fs::create_dir(&mount).unwrap();
    fs::write(mount.join("precious"), "").unwrap();
    let said = refusal(&mut command(&name, &mount));
    fs::remove_dir_all(&mount).unwrap();
    assert!(said.contains("is not empty"), "{said}");
}

#[test]
fn every_open_is_a_file_of_its_own() {
    if !possible() {
        return;
    }
    let daemon = Daemon::start(Door::Fuse);
    let files: Vec<File> = std::thread::scope(|scope| {
        let opening: Vec<_> =
            (0..100).map(|_| scope.spawn(|| open(&daemon.fuse()).unwrap())).collect();
        opening.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert!(files.iter().all(|file| version(file) == Ok(8)));
    // The same file again: as through a bind mount of the file.
    let again = format!("/proc/self/fd/{}", files[0].as_raw_fd());
    let second = open(again.as_ref());
    assert_eq!(errno(second.unwrap_err()), Errno::EBUSY);
    assert_eq!(version(&files[0]), Ok(8));
}

#[test]
fn a_device_has_no_bytes_and_its_directory_no_other_files() {
    if !possible() {
        return;
    }
    let daemon = Daemon::start(Door::Fuse);
    let mut file = open(&daemon.fuse()).unwrap();
    assert_eq!(errno(file.read(&mut [0]).unwrap_err()), Errno::EINVAL);
    assert_eq!(errno(file.write(&[0]).unwrap_err()), Errno::EINVAL);
    assert_eq!(errno(file.set_len(0).unwrap_err()), Errno::EINVAL);
    assert_eq!(errno(file.sync_all().unwrap_err()), Errno::EINVAL);
    let truncated = OpenOptions::new().write(true).truncate(true).open(daemon.fuse());
    assert_eq!(version(&truncated.unwrap()), Ok(8));

    let mut listed: Vec<_> =
        fs::read_dir(&daemon.mount).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    listed.sort();
    let mut expected = ["binder-control", "binder_logs", &daemon.name, "features"];
    expected.sort_unstable();
    assert_eq!(listed, expected);
    let absent = File::open(daemon.mount.join("absent"));
    assert_eq!(errno(absent.unwrap_err()), Errno::ENOENT);
    let guessed = daemon.mount.join(format!(".open/{}.0.1.0000000000000000", daemon.name));
    assert_eq!(errno(File::open(guessed).unwrap_err()), Errno::ENOENT);
    assert!(File::create(daemon.mount.join("new")).is_err());
    assert!(fs::create_dir(daemon.mount.join("new")).is_err());
    assert!(fs::remove_dir(daemon.mount.join("features")).is_err());
}

#[test]
fn a_mapping_of_a_device_is_its_buffer_and_cannot_change_under_the_client() {
    if !possible() {
        return;
    }
    let daemon = Daemon::start(Door::Fuse);
    let file = open(&daemon.fuse()).unwrap();
    // SAFETY: a new mapping at no address in particular.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            1 << 20,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED, "{}", Errno::last());
    // SAFETY: the mapping is a mebibyte long, and nobody writes to it.
    let bytes = unsafe { std::slice::from_raw_parts(start.cast::<u8>(), 1 << 20) };
    assert!(bytes.iter().all(|byte| *byte == 0));
    // SAFETY: `bytes` is not used any more.
    unsafe { libc::munmap(start, 1 << 20) };
}

#[test]
fn daemonize_returns_when_clients_can_come_and_tells_why_it_cannot() {
    if !possible() {
        return;
    }
    let name = unique_name();
    let mount = mount_of(&name);
    let log = std::env::temp_dir().join(&name);
    let start = || {
        let mut daemon = command(&name, &mount);
        daemon.args(["--mode", "640", "--owner", "1:2", "--daemonize", "--log"]).arg(&log);
        daemon.output()
    };
    let output = start().unwrap();
    let claims = fs::read_dir("/run/fakebinder").unwrap().map(|entry| entry.unwrap().path());
    let ours = claims.into_iter().find(|path| path.to_string_lossy().ends_with(&name)).unwrap();
    let claim = fs::read_to_string(ours).unwrap();
    let pid = nix::unistd::Pid::from_raw(claim.lines().next().unwrap().parse().unwrap());
    let status = fs::metadata(Path::new("/dev").join(&name));
    let second = start().unwrap();
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let status = status.unwrap();
    assert_eq!((status.mode() & 0o777, status.uid(), status.gid()), (0o640, 1, 2));
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8(second.stderr).unwrap().contains("in use by another"));
    assert!(wait_until(PATIENCE, || !exists(&mount)));
    fs::remove_file(&log).unwrap();
}

/// As a unit of `Type=notify` is started: the manager's socket has a path or an abstract name.
#[test]
fn a_service_manager_is_told_when_clients_can_come() {
    if !possible() {
        return;
    }
    for is_abstract in [false, true] {
        let name = unique_name();
        let mount = mount_of(&name);
        let path = std::env::temp_dir().join(format!("{name}.notify"));
        let (manager, address) = if is_abstract {
            let address = SocketAddr::from_abstract_name(&name).expect("a name");
            (UnixDatagram::bind_addr(&address), format!("@{name}"))
        } else {
            (UnixDatagram::bind(&path), path.display().to_string())
        };
        let manager = manager.expect("a socket");
        manager.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let mut daemon = command(&name, &mount);
        daemon.env("NOTIFY_SOCKET", &address).stdout(Stdio::null());
        let mut daemon = daemon.spawn().expect("fakebinderd is built");
        let mut told = [0; 64];
        let told = manager.recv(&mut told).map(|length| told[..length].to_vec());
        let served = open(&mount.join(&name)).map(|device| version(&device));
        let pid = nix::unistd::Pid::from_raw(daemon.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("a child of ours");
        assert!(daemon.wait().expect("a child of ours").success());
        assert_eq!(told.expect(&address).trim_ascii_end(), b"READY=1");
        assert_eq!(served.expect("a device"), Ok(8));
        let _ = fs::remove_file(&path);
    }
}

/// What is logged up to "ready", with these flags and this RUST_LOG.
fn logged(flags: &[&str], rust_log: Option<&str>) -> String {
    let name = unique_name();
    let mut starting = command(&name, &mount_of(&name));
    starting.args(flags).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(filters) = rust_log {
        starting.env("RUST_LOG", filters);
    }
    let mut daemon = starting.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "fakebinderd: ready\n");
    assert_eq!(open(&mount_of(&name).join(&name)).map(|file| version(&file)).unwrap(), Ok(8));
    let pid = nix::unistd::Pid::from_raw(daemon.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    String::from_utf8(daemon.wait_with_output().unwrap().stderr).unwrap()
}

#[test]
fn verbose_and_rust_log_each_add_what_they_ask_for() {
    if !possible() {
        return;
    }
    let usual = logged(&[], None);
    assert!(usual.contains(" INFO ]") && !usual.contains(" DEBUG]"), "{usual}");
    let quiet = logged(&[], Some("error"));
    assert!(!quiet.contains(" INFO ]"), "{quiet}");
    let verbose = logged(&["-v"], None);
    assert!(verbose.contains(" DEBUG]") && !verbose.contains(" TRACE]"), "{verbose}");
    let traced = logged(&["-vv"], None);
    assert!(traced.contains(&format!("ioctl {:#x}", uapi::BINDER_VERSION)), "{traced}");
    // Neither undoes the other, be it by a word for all or for one module.
    for filters in ["error", "fakebinder=error,fakebinderd=off"] {
        let both = logged(&["-vv"], Some(filters));
        assert!(both.contains(" INFO ]") && both.contains(" TRACE]"), "{filters}: {both}");
    }
    let both = logged(&["-v"], Some("trace"));
    assert!(both.contains(" TRACE]"), "{both}");
}

#[test]
fn clients_whose_memory_blocks_do_not_hold_up_others() {
    if !possible() {
        return;
    }
    const STUCK: usize = 6;
    /// The most that a session has without need.
    const WORKERS: usize = 4;
    let daemon = Daemon::start(Door::Fuse);
    // The first open may start a thread that stays.
    drop(open(&daemon.fuse()).unwrap());
    let mut unfilled: Vec<Unfilled> = (0..STUCK).map(|_| Unfilled::new()).collect();
    let before = daemon.threads();
    std::thread::scope(|scope| {
        let stuck: Vec<_> = unfilled
            .iter()
            .map(|pages| {
                let (file, address) = (open(&daemon.fuse()).unwrap(), pages.address());
                scope.spawn(move || {
                    let mut bwr = uapi::binder_write_read {
                        write_size: 4,
                        write_buffer: address,
                        ..Default::default()
                    };
                    // SAFETY: the structure lives through the call, which gives nothing to read.
                    let result = unsafe {
                        libc::ioctl(
                            file.as_raw_fd(),
                            uapi::BINDER_WRITE_READ as libc::c_ulong,
                            &raw mut bwr,
                        )
                    };
                    Errno::result(result)
                })
            })
            .collect();
        let rescued = wait_until(PATIENCE, || daemon.threads() > before + STUCK - WORKERS);
        assert!(rescued, "{} threads, {before} before", daemon.threads());
        assert_eq!(version(&open(&daemon.fuse()).unwrap()), Ok(8));
        for pages in &mut unfilled {
            pages.fill();
        }
        // The memory reads as zeros now, which are no command.
        for thread in stuck {
            assert_eq!(thread.join().unwrap(), Err(Errno::EINVAL));
        }
    });
    // One may have been on its way at first.
    let left = wait_until(PATIENCE, || daemon.threads() <= before + 1);
    assert!(left, "{} threads, {before} before", daemon.threads());
    daemon.stop();
}
