//! Names in the file system that belong to this daemon: that no other uses them, and that
//! nothing of them is left behind.
//!
//! A claim is a locked file under `/run/fakebinder`, and in it what was made: links, device
//! nodes, directories, mounts. The lock goes with the process, however it ends; the list stays,
//! and whoever claims the name next removes what is still there, if it is still what it was.

use super::fuse::FILE_SYSTEM;
use crate::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub const DIRECTORY: &str = "/run/fakebinder";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is in use by another fakebinderd (process {1})")]
    InUse(String, String),
    #[error("{0} exists, and is not fakebinderd's: remove it, or choose another name")]
    Foreign(PathBuf),
    #[error("{0} is mounted already, by a fakebinderd that runs elsewhere")]
    Mounted(PathBuf),
    #[error("{0} is not empty: mounting there would hide what it holds")]
    NotEmpty(PathBuf),
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

/// Something in the file system that goes when the claim goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thing {
    Link { path: PathBuf, target: PathBuf },
    Node { path: PathBuf, rdev: u64 },
    Directory { path: PathBuf },
    Mount { path: PathBuf },
}

impl Thing {
    fn to_line(&self) -> String {
        match self {
            Thing::Link { path, target } => {
                format!("link\t{}\t{}", path.display(), target.display())
            }
            Thing::Node { path, rdev } => format!("node\t{}\t{rdev}", path.display()),
            Thing::Directory { path } => format!("directory\t{}", path.display()),
            Thing::Mount { path } => format!("mount\t{}", path.display()),
        }
    }

    fn from_line(line: &str) -> Option<Thing> {
        let mut fields = line.split('\t');
        let (kind, path) = (fields.next()?, PathBuf::from(fields.next()?));
        match (kind, fields.next()) {
            ("link", Some(target)) => Some(Thing::Link { path, target: target.into() }),
            ("node", Some(rdev)) => Some(Thing::Node { path, rdev: rdev.parse().ok()? }),
            ("directory", None) => Some(Thing::Directory { path }),
            ("mount", None) => Some(Thing::Mount { path }),
            _ => None,
        }
    }

    /// Removes it if it is still what was made.
    fn remove(&self) {
        let result = match self {
            Thing::Link { path, target } => match fs::read_link(path) {
                Ok(found) if found == *target => fs::remove_file(path),
                _ => Ok(()),
            },
            Thing::Node { path, rdev } => match fs::symlink_metadata(path) {
                Ok(found) if found.file_type().is_char_device() && found.rdev() == *rdev => {
                    fs::remove_file(path)
                }
                _ => Ok(()),
            },
            // Only if it is empty.
            Thing::Directory { path } => fs::remove_dir(path),
            Thing::Mount { path } => match file_system_on(path).as_deref() {
                Some(FILE_SYSTEM) => {
                    umount2(path.as_path(), MntFlags::MNT_DETACH).map_err(io::Error::from)
                }
                _ => Ok(()),
            },
        };
        if let Err(error) = result
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("removing {self:?}: {error}");
        }
    }
}

/// What kind of file system is mounted on `path` itself.
pub fn file_system_on(path: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().rfind(|line| {
        line.split(' ').nth(1).is_some_and(|on| on.replace("\\040", " ") == path.to_string_lossy())
    })?;
    line.split(' ').nth(2).map(str::to_owned)
}

/// A name that is ours for as long as this lives.
pub struct Claim {
    file: Flock<File>,
    path: PathBuf,
    things: Vec<Thing>,
}

impl Claim {
    /// Claims `what` (a device name or the path of a mount), and clears away what a daemon that
    /// was killed has left of it.
    pub fn take(what: &str) -> Result<Claim, Error> {
        Claim::take_in(Path::new(DIRECTORY), what)
    }

    fn take_in(directory: &Path, what: &str) -> Result<Claim, Error> {
        let path = directory.join(what.trim_start_matches('/').replace('/', "-"));
        let failed = |error| Error::Io(path.clone(), error);
        fs::create_dir_all(directory).map_err(failed)?;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, Errno::EAGAIN)) => {
                    let mut content = String::new();
                    let _ = file.read_to_string(&mut content);
                    let pid = content.lines().next().unwrap_or("unknown").to_owned();
                    return Err(Error::InUse(what.to_owned(), pid));
                }
                Err((_, error)) => return Err(failed(error.into())),
            };
            // Its last owner may have removed the file between our open and our lock.
            let same = fs::metadata(&path).is_ok_and(|there| {
                file.metadata()
                    .is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
            });
            if !same {
                continue;
            }
            let mut content = String::new();
            file.read_to_string(&mut content).map_err(failed)?;
            for thing in content.lines().skip(1).filter_map(Thing::from_line).rev_collected() {
                log::info!("removing what a daemon that was killed has left: {thing:?}");
                thing.remove();
            }
            let mut claim = Claim { file, path: path.clone(), things: Vec::new() };
            claim.save().map_err(failed)?;
            return Ok(claim);
        }
    }

    /// Notes what is about to be made, so that it goes with the claim.
    pub fn note(&mut self, thing: Thing) -> Result<(), Error> {
        self.things.push(thing);
        self.save().map_err(|error| Error::Io(self.path.clone(), error))
    }

    fn save(&mut self) -> io::Result<()> {
        let lines: Vec<String> = self.things.iter().map(|thing| thing.to_line() + "\n").collect();
        let content = format!("{}\n{}", std::process::id(), lines.concat());
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(content.as_bytes())?;
        self.file.set_len(content.len() as u64)
    }

    /// A directory to mount on, made if there is none.
    pub fn directory(&mut self, path: &Path) -> Result<(), Error> {
        let failed = |error| Error::Io(path.to_owned(), error);
        if file_system_on(path).as_deref() == Some(FILE_SYSTEM) {
            match fs::symlink_metadata(path) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                    log::info!("unmounting {}: its daemon is gone", path.display());
                    umount2(path, MntFlags::MNT_DETACH).map_err(|error| failed(error.into()))?;
                }
                _ => return Err(Error::Mounted(path.to_owned())),
            }
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => {
                match fs::read_dir(path).map_err(failed)?.next().is_none() {
                    true => Ok(()),
                    false => Err(Error::NotEmpty(path.to_owned())),
                }
            }
            Ok(_) => Err(Error::Foreign(path.to_owned())),
            Err(_) => {
                self.note(Thing::Directory { path: path.to_owned() })?;
                fs::create_dir_all(path).map_err(failed)
            }
        }
    }

    /// `path` must not exist, so that it can be made here.
    pub fn free(&self, path: &Path) -> Result<(), Error> {
        match fs::symlink_metadata(path) {
            Ok(_) => Err(Error::Foreign(path.to_owned())),
            Err(_) => Ok(()),
        }
    }

    /// A link that is there already, to the same target, was ours.
    pub fn link(&mut self, path: &Path, target: &Path) -> Result<(), Error> {
        if fs::read_link(path).is_ok_and(|found| found == target) {
            return self.note(Thing::Link { path: path.to_owned(), target: target.to_owned() });
        }
        self.free(path)?;
        self.note(Thing::Link { path: path.to_owned(), target: target.to_owned() })?;
        std::os::unix::fs::symlink(target, path).map_err(|error| Error::Io(path.to_owned(), error))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for thing in self.things.iter().rev() {
            thing.remove();
        }
        // Still locked: whoever opens it now finds out that it is gone.
        let _ = fs::remove_file(&self.path);
        if let Some(directory) = self.path.parent() {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Last made, first removed: a mount before its directory.
trait RevCollected: Iterator + Sized {
    fn rev_collected(self) -> std::iter::Rev<std::vec::IntoIter<Self::Item>> {
        self.collect::<Vec<_>>().into_iter().rev()
    }
}

impl<I: Iterator> RevCollected for I {}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("claim-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
        fn run(&self) -> PathBuf {
            self.0.join("run")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_name_is_claimed_once_and_free_again_afterwards() {
        let scratch = Scratch::new("once");
        let claim = Claim::take_in(&scratch.run(), "binder").unwrap();
        let pid = std::process::id().to_string();
        match Claim::take_in(&scratch.run(), "binder") {
            Err(Error::InUse(_, by)) => assert_eq!(by, pid),
            other => panic!("{:?}", other.err()),
        }
        Claim::take_in(&scratch.run(), "hwbinder").unwrap();
        drop(claim);
        Claim::take_in(&scratch.run(), "binder").unwrap();
        assert!(!scratch.run().exists());
    }

    #[test]
    fn a_link_goes_with_its_claim_unless_somebody_has_changed_it() {
        let scratch = Scratch::new("link");
        let (path, target) = (scratch.0.join("binder"), Path::new("/nowhere/binder"));
        let mut claim = Claim::take_in(&scratch.run(), "binder").unwrap();
        claim.link(&path, target).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), target);
        drop(claim);
        assert!(fs::symlink_metadata(&path).is_err());

        let mut claim = Claim::take_in(&scratch.run(), "binder").unwrap();
        claim.link(&path, target).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(claim);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let mut claim = Claim::take_in(&scratch.run(), "binder").unwrap();
        assert!(matches!(claim.link(&path, target), Err(Error::Foreign(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn what_a_killed_daemon_left_is_removed_by_the_next() {
        let scratch = Scratch::new("killed");
        let (path, target) = (scratch.0.join("binder"), Path::new("/nowhere/binder"));
        let directory = scratch.0.join("mount");
        let mut claim = Claim::take_in(&scratch.run(), "binder").unwrap();
        claim.directory(&directory).unwrap();
        claim.link(&path, target).unwrap();
        // As if killed: the lock goes, nothing else.
        claim.things.clear();
        let saved = fs::read(scratch.run().join("binder")).unwrap();
        drop(claim);
        fs::create_dir_all(scratch.run()).unwrap();
        fs::write(scratch.run().join("binder"), saved).unwrap();

        assert!(directory.exists());
        let mut claim = Claim::take_in(&scratch.run(), "binder").unwrap();
        assert!(!directory.exists());
        claim.link(&path, target).unwrap();
    }

    #[test]
    fn a_foreign_file_is_no_directory_to_mount_on() {
        let scratch = Scratch::new("foreign");
        let path = scratch.0.join("file");
        fs::write(&path, "").unwrap();
        let mut claim = Claim::take_in(&scratch.run(), "mount").unwrap();
        assert!(matches!(claim.directory(&path), Err(Error::Foreign(_))));
    }

    #[test]
    fn lines_are_read_back() {
        let things = [
            Thing::Link { path: "/a b".into(), target: "/c".into() },
            Thing::Node { path: "/dev/x".into(), rdev: 0xe900 },
            Thing::Directory { path: "/d".into() },
            Thing::Mount { path: "/d".into() },
        ];
        for thing in things {
            assert_eq!(Thing::from_line(&thing.to_line()), Some(thing));
        }
        assert_eq!(Thing::from_line("mount"), None);
    }
}
