//! Asking a daemon.

use clap::Args;
use fakebinder::snapshot::{Snapshot, VERSION};
use fakebinder_client::{Device, Errno};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the daemon is reached
#[derive(Args, Debug)]
pub struct Asked {
    /// A device of the daemon; without it /dev/fakebinder, else the first device of a mount
    #[arg(long, short, value_name = "PATH")]
    device: Option<PathBuf>,
    /// Print JSON, as docs/inspect.md describes it
    #[arg(long)]
    pub json: bool,
}

/// Why the daemon does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no device to ask.
    #[error(
        "no daemon is found: there is no /dev/fakebinder, and nothing of type fuse.fakebinder is mounted (--device)"
    )]
    NoDevice,
    /// The device cannot be opened.
    #[error("{}", .0.explain())]
    Open(fakebinder_client::Error),
    /// Only some may ask.
    #[error("{0}: the daemon tells root, and the user who runs it, alone")]
    Refused(PathBuf),
    /// There is too much to tell.
    #[error(
        "{0}: the daemon's memory budget is too small to tell all that: ask for procs or transactions"
    )]
    TooMuch(PathBuf),
    /// There is no room for what happens until it is asked for.
    #[error("{0}: the daemon's memory budget has no room for events (9 MiB)")]
    NoRoom(PathBuf),
    /// Others listen.
    #[error("{0}: so many listen to this daemon's events that there is no room for another")]
    Busy(PathBuf),
    /// There is no room for a recording.
    #[error("{0}: the daemon's memory budget has no room for a recording (16 MiB)")]
    NoRoomToRecord(PathBuf),
    /// Another records.
    #[error("{0}: another command records already, and a daemon has one recording at a time")]
    Recorded(PathBuf),
    /// It is no device of a daemon.
    #[error("{0} is no device of fakebinder's, or its daemon is older than this command")]
    NotOurs(PathBuf),
    /// The daemon answers something else.
    #[error("{}", .0.explain())]
    Ask(fakebinder_client::Error),
    /// The answer is not understood.
    #[error("{0}: the daemon's answer is not understood: {1}")]
    Answer(PathBuf, String),
}

impl Asked {
    /// The device to ask.
    pub fn open(&self) -> Result<Device, Error> {
        let path = self.device.clone().or_else(find).ok_or(Error::NoDevice)?;
        Device::open(path).map_err(Error::Open)
    }

    /// What the daemon holds, less what this command itself has made it hold.
    pub fn snapshot(&self, objects: bool) -> Result<Snapshot, Error> {
        snapshot(&self.open()?, objects)
    }
}

/// What the daemon behind a device holds, less the open files of this process.
pub fn snapshot(device: &Device, objects: bool) -> Result<Snapshot, Error> {
    let path = || device.path().to_owned();
    let text = device.daemon_snapshot(objects).map_err(|error| failed(device.path(), error))?;
    let answer = |error: serde_json::Error| Error::Answer(path(), error.to_string());
    let mut snapshot: Snapshot = serde_json::from_slice(&text).map_err(answer)?;
    if snapshot.version != VERSION {
        let versions =
            format!("it is of version {}, and this command knows {VERSION}", snapshot.version);
        return Err(Error::Answer(path(), versions));
    }
    let own = std::process::id() as i32;
    for context in &mut snapshot.contexts {
        context.processes.retain(|process| process.pid != own);
    }
    Ok(snapshot)
}

/// An error of an ioctl of the daemon's.
pub fn failed(path: &Path, error: fakebinder_client::Error) -> Error {
    match error.errno() {
        Errno::EPERM => Error::Refused(path.to_owned()),
        Errno::ENOMEM => Error::TooMuch(path.to_owned()),
        Errno::EINVAL | Errno::ENOTTY => Error::NotOurs(path.to_owned()),
        _ => Error::Ask(error),
    }
}

fn find() -> Option<PathBuf> {
    let usual = PathBuf::from("/dev/fakebinder");
    if usual.exists() {
        return Some(usual);
    }
    let of_user =
        env::var_os("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join("fakebinderfs"));
    mounts().into_iter().chain(of_user).find_map(|mount| first_device(&mount))
}

/// Where daemons have mounted. Paths with blanks, which the kernel's list writes otherwise, are left
/// out.
fn mounts() -> Vec<PathBuf> {
    let list = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let ours = list.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "fuse.fakebinder").then(|| path.into())
    });
    ours.collect()
}

fn first_device(mount: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(mount).ok()?.filter_map(Result::ok);
    let mut devices: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
        .map(|entry| entry.path())
        .collect();
    devices.sort();
    devices.into_iter().next()
}
