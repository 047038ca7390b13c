//! A program that executes another one with the device still open: it is the process that opened
//! the device, and has none of the memory that it had then.

mod common;

use common::forked::Forked;
use common::{Door, Target, in_time, offer, on_devices, open};
use fakebinder_client::{Call, Command, Device, Errno, Reply, Thread, uapi};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;

const DEVICE: &str = "FAKEBINDER_ROLE_FD";
const TELL: &str = "FAKEBINDER_ROLE_TELL";

/// What the program before has done with its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Opened,
    Mapped,
    /// And received something: its pages are known.
    Received,
}

/// BINDER_WRITE_READ on a descriptor, by the system call alone: the result, and what was read, in
/// words.
fn write_read(fd: i32, commands: &[Command<'_>], read: usize) -> String {
    let mut write = Vec::new();
    commands.iter().for_each(|command| command.encode(&mut write));
    let mut buffer = vec![0; read];
    let mut record = [
        write.len() as u64,
        0,
        write.as_ptr().addr() as u64,
        read as u64,
        0,
        buffer.as_mut_ptr().addr() as u64,
    ];
    // SAFETY: the record and what it points to live until the call returns.
    let result =
        unsafe { libc::ioctl(fd, u64::from(uapi::BINDER_WRITE_READ) as _, record.as_mut_ptr()) };
    if result != 0 {
        return format!("{:?}", Errno::last());
    }
    let returns = fakebinder_client::Returns::new(&buffer[..record[4] as usize]);
    returns.map(|it| it.name().trim_start_matches("BR_").to_owned()).collect::<Vec<_>>().join(" ")
}

/// Not a test: the program that is executed. It says what it gets, in lines.
#[test]
#[ignore = "a role in other tests"]
fn executed() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<i32>().ok());
    let (Some(fd), Some(tell)) = (number(DEVICE), number(TELL)) else { return };
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let mut tell =
        std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{tell}")).unwrap();
    let mut version = [0i32];
    // SAFETY: the kernel writes one `i32`.
    let result =
        unsafe { libc::ioctl(fd, u64::from(uapi::BINDER_VERSION) as _, version.as_mut_ptr()) };
    writeln!(tell, "version {result} {}", version[0]).unwrap();
    // SAFETY: at an address of the kernel's choice.
    let mapped = unsafe {
        libc::mmap(std::ptr::null_mut(), 128 << 10, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0)
    };
    let errno =
        if mapped == libc::MAP_FAILED { format!("{:?}", Errno::last()) } else { "done".to_owned() };
    writeln!(tell, "mmap {errno}").unwrap();
    writeln!(tell, "looper {:?}", write_read(fd, &[Command::EnterLooper], 0)).unwrap();
    writeln!(
        tell,
        "oneway {:?}",
        write_read(fd, &[Command::Transaction(Call::to(0).oneway())], 256)
    )
    .unwrap();
    writeln!(tell, "call {:?}", write_read(fd, &[Command::Transaction(Call::to(0))], 256)).unwrap();
    writeln!(tell, "ready").unwrap();
    loop {
        if write_read(fd, &[], 256).ends_with("TRANSACTION") {
            write_read(fd, &[Command::Reply(Call::reply())], 0);
        }
    }
}

/// Executes the program above in a process that has opened the device; what it says, and what a
/// call to it gives.
fn execute(target: &Target, before: Before) -> (Vec<String>, Reply) {
    let manager = target.registrar();
    let (mut told, tell) = std::io::pipe().unwrap();
    let child = Forked::start(|| {
        let mut device = Device::open(&target.path).unwrap();
        if before != Before::Opened {
            device.mmap(128 << 10).unwrap();
        }
        if before == Before::Received {
            let reply = Thread::new(&device).call(&Call::to(0).code(common::GET)).unwrap();
            assert!(matches!(reply, Reply::Data(_)));
        }
        offer(&device, 0);
        let mut command = common::role("executed", &target.path);
        for (name, fd) in [(DEVICE, device.as_fd()), (TELL, tell.as_fd())] {
            let stays_open = FcntlArg::F_SETFD(FdFlag::empty());
            fcntl(fd, stays_open).unwrap();
            command.env(name, fd.as_raw_fd().to_string());
        }
        command.stdout(std::process::Stdio::null());
        let _ = command.exec();
        9
    });
    drop(tell);
    let said = in_time("the program", move || {
        let mut text = String::new();
        let mut byte = [0];
        while !text.ends_with("ready\n") && told.read(&mut byte).unwrap() == 1 {
            text.push(byte[0].into());
        }
        text
    });
    let client = open(&target.path);
    let handle = common::look_up(&client);
    let reply = in_time("the call", move || Thread::new(&client).call(&Call::to(handle)).unwrap());
    drop((child, manager));
    (said.lines().map(str::to_owned).collect(), reply)
}

/// The driver: `mmap` is EINVAL, and no transaction arrives any more, as after munmap. On the FUSE
/// door the kernel maps without asking, and that mapping counts for nothing.
#[test]
fn an_executed_program_goes_on_with_the_device_and_receives_nothing() {
    on_devices(|target| {
        let mmap = match door_of(target) {
            None => "EINVAL",
            Some(Door::Cuse) => "ENODEV",
            Some(Door::Fuse | Door::Auto) => "done",
        };
        for before in [Before::Opened, Before::Mapped, Before::Received] {
            let (said, reply) = execute(target, before);
            let expected = [
                "version 0 8".to_owned(),
                format!("mmap {mmap}"),
                "looper \"\"".to_owned(),
                "oneway \"NOOP TRANSACTION_COMPLETE\"".to_owned(),
            ];
            assert_eq!(said[..4], expected, "{before:?}");
            if before == Before::Received && target.is_fakebinder() {
                // What fits into pages that are there already arrives, as after munmap (a known
                // difference); a program that has not mapped anything cannot read it.
                continue;
            }
            let dead = "call \"NOOP TRANSACTION_COMPLETE DEAD_REPLY\"";
            assert_eq!((&*said[4], reply), (dead, Reply::Dead), "{before:?}");
        }
    });
}

/// The door of the daemon behind a device; none for the driver's.
fn door_of(target: &Target) -> Option<Door> {
    if !target.is_fakebinder() {
        return None;
    }
    let is_file = std::fs::metadata(&target.path).is_ok_and(|it| it.is_file());
    Some(if is_file { Door::Fuse } else { Door::Cuse })
}
