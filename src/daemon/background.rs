//! The daemon in the background, and how it tells that it is ready.

use super::flags::Options;
use super::service_manager;
use fakebinder::device::home;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::process::{Command, Stdio};

const READY: &str = "fakebinderd: ready";

/// Says that the daemon is ready: to a script that reads its output, and to a service manager.
pub fn ready() {
    println!("{READY}");
    let _ = std::io::stdout().flush();
    service_manager::tell(service_manager::READY);
}

/// Runs this program again, without a terminal, and waits until it is ready or has failed.
pub fn daemonize(options: &Options) -> Result<(), Box<dyn Error>> {
    let path = options.log.clone().map_or_else(home::default_log, Ok)?;
    let failed = |error| format!("{}: {error}", path.display());
    let mut log: File =
        OpenOptions::new().create(true).append(true).read(true).open(&path).map_err(failed)?;
    let start = log.seek(SeekFrom::End(0))?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--daemonize");
    let mut child = Command::new("/proc/self/exe")
        .args(arguments)
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    if BufReader::new(output).lines().map_while(Result::ok).any(|line| line == READY) {
        return Ok(());
    }
    child.wait()?;
    log.seek(SeekFrom::Start(start))?;
    let mut said = String::new();
    log.read_to_string(&mut said)?;
    Err(format!("did not start; {} says:\n{said}", path.display()).into())
}
