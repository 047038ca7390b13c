//! The subject: the process that waits and gets the signal. Each line that it prints is a part of
//! the reported fact.

use crate::{Handler, REGISTER, WAIT, Wait};
use fakebinder_client::{Call, Command, Device, Errno, Parcel, Reply, Returns, Thread};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

static HANDLED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handled(_: i32) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

pub fn run(path: &Path, wait: Wait, handler: Handler) -> crate::AnyResult<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    set_name(c"fb-signals")?;
    install(handler)?;
    let mut device = Device::open(path)?;
    device.mmap(128 << 10)?;
    let mut thread = Thread::new(&device);
    let mut parcel = Parcel::new();
    parcel.binder(1, 2, 0);
    match thread.call(&Call::to(0).code(REGISTER).parcel(&parcel))? {
        Reply::Data(_) => thread.flush()?,
        other => return Err(format!("the registration failed: {other:?}").into()),
    }
    match wait {
        Wait::Read => read(&device, &[Command::EnterLooper]),
        Wait::Call => read(&device, &[Command::Transaction(Call::to(0).code(WAIT))]),
        Wait::Poll | Wait::Epoll => {
            device.write(&[Command::EnterLooper])?;
            ready(&device, wait)?;
        }
        Wait::Exit => {
            std::thread::spawn(|| {
                let _ = std::io::stdin().read_line(&mut String::new());
                std::process::exit(0);
            });
            read(&device, &[Command::EnterLooper]);
        }
    }
    Ok(())
}

fn install(handler: Handler) -> Result<(), Errno> {
    let (handler, flags) = match handler {
        Handler::Default => return Ok(()),
        Handler::Ignore => (SigHandler::SigIgn, SaFlags::empty()),
        Handler::Plain => (SigHandler::Handler(handled), SaFlags::empty()),
        Handler::Restart => (SigHandler::Handler(handled), SaFlags::SA_RESTART),
    };
    // SAFETY: the handler does one atomic addition, which a signal handler may do.
    unsafe { sigaction(Signal::SIGALRM, &SigAction::new(handler, flags, SigSet::empty())) }?;
    Ok(())
}

/// Writes and reads in one ioctl. Reads again after EINTR, to show that nothing was lost.
fn read(device: &Device, commands: &[Command<'_>]) {
    let mut write = Vec::new();
    commands.iter().for_each(|command| command.encode(&mut write));
    let mut buffer = [0; 256];
    println!("waits");
    let mut rest = write.len();
    loop {
        let transfer = device.transfer(&write[write.len() - rest..], &mut buffer);
        rest -= transfer.write_consumed;
        match transfer.result {
            Ok(()) => {
                let returns = Returns::new(&buffer[..transfer.read_consumed]);
                let names = names(returns.clone());
                println!("{names}{}", handler_ran());
                // The acknowledgement of the call alone does not end it.
                if returns
                    .clone()
                    .any(|r| !matches!(r.name(), "BR_NOOP" | "BR_TRANSACTION_COMPLETE"))
                {
                    return;
                }
            }
            Err(error) if error.errno() == Errno::EINTR => println!(
                "EINTR, {} of {} bytes written, {} read{}",
                write.len() - rest,
                write.len(),
                transfer.read_consumed,
                handler_ran()
            ),
            Err(error) => return println!("{:?}{}", error.errno(), handler_ran()),
        }
    }
}

/// The same for poll and epoll_wait.
fn ready(device: &Device, wait: Wait) -> Result<(), Errno> {
    println!("waits");
    loop {
        let result = if wait == Wait::Poll {
            let mut files = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
            poll(&mut files, PollTimeout::NONE).map(|count| count as usize)
        } else {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            epoll.add(device, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE)
        };
        match result {
            Ok(count) => {
                println!("{count} ready{}", handler_ran());
                return Ok(());
            }
            Err(Errno::EINTR) => println!("EINTR{}", handler_ran()),
            Err(errno) => {
                println!("{errno:?}{}", handler_ran());
                return Ok(());
            }
        }
    }
}

/// Prints how often the handler has run since this was last called.
fn handler_ran() -> String {
    match HANDLED.swap(0, Ordering::Relaxed) {
        0 => String::new(),
        1 => ", the handler ran".into(),
        times => format!(", the handler ran {times} times"),
    }
}

/// The names of the returns, without BR_NOOP, with which every read begins.
pub fn names(returns: Returns<'_>) -> String {
    let names: Vec<_> = returns.map(|r| r.name()).filter(|&name| name != "BR_NOOP").collect();
    if names.is_empty() { "nothing".into() } else { names.join(" ") }
}
