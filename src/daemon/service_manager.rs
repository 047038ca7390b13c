//! What the daemon tells the service manager that has started it (sd_notify(3), sd_watchdog_enabled(3)).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The daemon serves.
pub const READY: &str = "READY=1";
/// The daemon works.
pub const ALIVE: &str = "WATCHDOG=1";

/// Tells it; does nothing where there is no service manager.
pub fn tell(what: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, what) {
        log::warn!("telling the service manager {what}: {error}");
    }
}

/// By hand: the crate sd-notify does not know the abstract names, which begin with @.
fn send(socket: &OsStr, what: &str) -> io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    // A service manager that does not read must not hold the daemon up.
    sender.set_nonblocking(true)?;
    match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => {
            sender.send_to_addr(what.as_bytes(), &SocketAddr::from_abstract_name(name)?)?
        }
        None => sender.send_to(what.as_bytes(), socket)?,
    };
    Ok(())
}

/// How often the service manager is to hear that the daemon works: twice in the time after which it
/// gives the daemon up. None: it does not wait for that.
pub fn watchdog_period() -> Option<Duration> {
    let variable = |name| env::var(name).ok();
    match period(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id()) {
        Ok(period) => period,
        Err(error) => {
            log::warn!("{error}; the service manager's watchdog is told nothing");
            None
        }
    }
}

fn period(
    limit: Option<String>,
    pid: Option<String>,
    own: u32,
) -> Result<Option<Duration>, String> {
    // Without WATCHDOG_PID it is for every process that has the variable.
    if pid.is_some_and(|pid| pid != own.to_string()) {
        return Ok(None);
    }
    let Some(limit) = limit else { return Ok(None) };
    match limit.parse() {
        Ok(microseconds @ 1..) => Ok(Some(Duration::from_micros(microseconds) / 2)),
        _ => Err(format!("WATCHDOG_USEC is {limit:?}, and should be a number of microseconds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_told_by_the_process_that_it_is_meant_for() {
        let some = |text: &str| Some(text.to_owned());
        let second = Ok(Some(Duration::from_secs(1)));
        assert_eq!(period(None, None, 7), Ok(None));
        assert_eq!(period(None, some("7"), 7), Ok(None));
        assert_eq!(period(some("2000000"), some("7"), 7), second);
        assert_eq!(period(some("2000000"), None, 7), second);
        assert_eq!(period(some("2000000"), some("8"), 7), Ok(None));
        assert_eq!(period(some("0s"), some("8"), 7), Ok(None));
        for wrong in ["", "0", "-1", "2s", "99999999999999999999999"] {
            let error = period(some(wrong), some("7"), 7).unwrap_err();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
    }
}
