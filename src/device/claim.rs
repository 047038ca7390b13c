//! Places in the file system that belong to this daemon, so that no other daemon uses them, and
//! that nothing is left behind there.
//!
//! A place is a name in a directory: that of a link, a device node or a mount. The directory is
//! known by its device and inode, so that daemons in containers with a `/dev` of their own do not
//! meet, though they may share `/run`.
//!
//! A claim is a locked file under `/run/fakebinder` (an ordinary user's: see [`home`]) that lists
//! what was made: links, device nodes, directories, mounts. The lock goes with the process, however
//! that ends. The list stays, and the next daemon to start there removes what is still there and
//! still what it was.
//!
//! Locks: that of the directory of lists is held while a claim is taken, given back or cleared away,
//! and may be waited for; that of a claim is never waited for.

mod made;

pub use made::Artifact;

use super::mounting::unmount;
use super::{home, mounts};
use crate::Errno;
use made::{Identity, Made, is_dead, is_ours};
use nix::fcntl::{Flock, FlockArg};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a place cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon has the place; its process id is what the list says.
    #[error("{0} is in use by another fakebinderd (process {1})")]
    InUse(PathBuf, String),
    /// Something is there that no daemon has made.
    #[error("{0} exists, and is not fakebinderd's: remove it, or choose another name")]
    Foreign(PathBuf),
    /// A daemon in another mount namespace has mounted there.
    #[error("{0} is mounted already, by a fakebinderd that runs elsewhere")]
    Mounted(PathBuf),
    /// The directory has entries.
    #[error("{0} is not empty: mounting there would hide what it holds")]
    NotEmpty(PathBuf),
    /// A step in the file system failed.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

/// A place that belongs to this daemon for as long as the value lives.
pub struct Claim {
    /// The locked list. None where no list can be kept.
    file: Option<(Flock<File>, PathBuf)>,
    artifacts: Vec<Made>,
    keep_directory: bool,
}

/// The directory of claims, locked: no other daemon takes or clears one.
struct Claims {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Claims {
    fn lock(path: &Path) -> io::Result<Claims> {
        loop {
            fs::create_dir_all(path)?;
            let directory = match File::open(path) {
                // A daemon that ends removes the directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            let lock = Flock::lock(directory, FlockArg::LockExclusive).map_err(|it| it.1)?;
            if is_at(&lock, path) {
                return Ok(Claims { path: path.to_owned(), _lock: lock });
            }
        }
    }

    /// The list of a place, locked. `Err`: another daemon has it. `create`: makes the list if there
    /// is none.
    fn open(&self, path: &Path, create: bool) -> io::Result<Result<Flock<File>, File>> {
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(create).truncate(false).mode(0o600);
            let file = options.open(path)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // The last owner may have removed the file between the open and the lock.
                Ok(file) if is_at(&file, path) => return Ok(Ok(file)),
                Ok(_) => {}
                Err((file, Errno::EAGAIN)) => return Ok(Err(file)),
                Err((_, error)) => return Err(error.into()),
            }
        }
    }

    /// Clears away what killed daemons have left, whatever their names. The list of things that
    /// cannot be seen from here stays.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
                continue;
            }
            if let Ok(Ok(mut file)) = self.open(&path, false)
                && clear(&mut file)
            {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Removes what a list names, last made first: a mount before its directory. False if something in
/// the list cannot be seen from here.
fn clear(file: &mut File) -> bool {
    let mut content = String::new();
    if file.read_to_string(&mut content).is_err() {
        return false;
    }
    let artifacts: Vec<Made> = content.lines().skip(1).filter_map(Made::from_line).collect();
    artifacts.iter().rev().filter(|artifact| !artifact.clear()).count() == 0
}

/// Whether `file` is still what `path` names.
fn is_at(file: &File, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| {
        file.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
    })
}

impl Claim {
    /// Clears away what killed daemons have left, where this daemon can see it.
    pub fn sweep() {
        match home::claims() {
            Ok(directory) => Claim::sweep_in(&directory),
            Err(error) => log::debug!("nothing is cleared away: {error}"),
        }
    }

    fn sweep_in(directory: &Path) {
        let swept = Claims::lock(directory).and_then(|claims| claims.sweep());
        if let Err(error) = swept {
            log::debug!("{}: {error}", directory.display());
        }
    }

    /// Claims a place: the path of a link, a device node or a mount, in a directory that is there
    /// or can be made. Clears away what a killed daemon has left there.
    pub fn take(path: &Path) -> Result<Claim, Error> {
        Claim::take_in(home::claims(), path)
    }

    fn take_in(directory: io::Result<PathBuf>, what: &Path) -> Result<Claim, Error> {
        let parent = what.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(|error| Error::Io(parent.to_owned(), error))?;
        let failed = |error| Error::Io(what.to_owned(), error);
        let place = Identity::of_parent(what).map_err(failed)?;
        let claims = directory.and_then(|directory| match Claims::lock(&directory) {
            Ok(claims) => Ok((claims, directory)),
            Err(error) => {
                Err(io::Error::new(error.kind(), format!("{}: {error}", directory.display())))
            }
        });
        let (claims, directory) = match claims {
            Ok(claims) => claims,
            Err(error) => {
                log::warn!(
                    "{error}: should this daemon be killed, {} is not cleared away",
                    what.display()
                );
                return Ok(Claim { file: None, artifacts: Vec::new(), keep_directory: false });
            }
        };
        let keep_directory = what.starts_with(&directory);
        let path = directory.join(file_name(place, what));
        let failed = |error| Error::Io(path.clone(), error);
        match claims.open(&path, true).map_err(failed)? {
            Ok(mut file) => {
                clear(&mut file);
                // Giving the claim back, should this fail, takes the lock.
                drop(claims);
                let file = Some((file, path.clone()));
                let mut claim = Claim { file, artifacts: Vec::new(), keep_directory };
                claim.save().map_err(failed)?;
                Ok(claim)
            }
            Err(mut file) => {
                let mut content = String::new();
                let _ = file.read_to_string(&mut content);
                let pid = content.lines().next().unwrap_or("unknown").to_owned();
                Err(Error::InUse(what.to_owned(), pid))
            }
        }
    }

    /// Notes what is about to be made, so that it is removed with the claim.
    pub fn note(&mut self, artifact: Artifact) -> Result<(), Error> {
        let path = artifact.path().to_owned();
        let failed = |error| Error::Io(path.clone(), error);
        let parent = Identity::of_parent(&path).map_err(failed)?;
        self.artifacts.push(Made { artifact, parent });
        self.save().map_err(failed)
    }

    fn save(&mut self) -> io::Result<()> {
        let Some((file, _)) = &mut self.file else { return Ok(()) };
        let lines: Vec<String> = self.artifacts.iter().map(Made::to_line).collect();
        let content = format!("{}\n{}", std::process::id(), lines.concat());
        file.seek(SeekFrom::Start(0))?;
        file.write_all(content.as_bytes())?;
        file.set_len(content.len() as u64)
    }

    /// Removes what was noted so far, as if nothing had been made.
    pub fn undo(&mut self) {
        self.remove_all();
        self.artifacts.clear();
    }

    fn remove_all(&self) {
        for artifact in self.artifacts.iter().rev() {
            artifact.remove();
        }
    }

    /// Unmounts what a daemon that is gone has left on `path`.
    pub fn clear_dead_mount(&self, path: &Path) -> Result<(), Error> {
        if is_ours(path) {
            if !is_dead(path) {
                return Err(Error::Mounted(path.to_owned()));
            }
            log::info!("unmounting {}: its daemon is gone", path.display());
            unmount(path).map_err(|error| Error::Io(path.to_owned(), error))?;
        }
        Ok(())
    }

    /// Claims a directory to mount on, and makes it if there is none.
    pub fn directory(&mut self, path: &Path) -> Result<(), Error> {
        let failed = |error| Error::Io(path.to_owned(), error);
        self.clear_dead_mount(path)?;
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => {
                match fs::read_dir(path).map_err(failed)?.next().is_none() {
                    true => Ok(()),
                    false => Err(Error::NotEmpty(path.to_owned())),
                }
            }
            Ok(_) => Err(Error::Foreign(path.to_owned())),
            Err(_) => {
                self.note(Artifact::Directory { path: path.to_owned() })?;
                fs::create_dir_all(path).map_err(failed)
            }
        }
    }

    /// Checks that `path` does not exist, so that it can be made here.
    pub fn free(&self, path: &Path) -> Result<(), Error> {
        match fs::symlink_metadata(path) {
            Ok(_) => Err(Error::Foreign(path.to_owned())),
            Err(_) => Ok(()),
        }
    }

    /// Makes a link. One that is there already with the same target counts as the daemon's own.
    pub fn link(&mut self, path: &Path, target: &Path) -> Result<(), Error> {
        if fs::read_link(path).is_ok_and(|found| found == target) {
            return self.note(Artifact::Link { path: path.to_owned(), target: target.to_owned() });
        }
        self.free(path)?;
        self.note(Artifact::Link { path: path.to_owned(), target: target.to_owned() })?;
        std::os::unix::fs::symlink(target, path).map_err(|error| Error::Io(path.to_owned(), error))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.remove_all();
        let Some((_, path)) = &self.file else { return };
        let Some(directory) = path.parent() else { return };
        // Locked: whoever takes a claim just now must not find the directory gone halfway.
        let _claims = Claims::lock(directory);
        // Still locked, too: another daemon that opens it now finds out that it is gone.
        let _ = fs::remove_file(path);
        // Containers may have bound the directory for the mount in it; the next mount must appear
        // there.
        if !self.keep_directory {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// The name of a place's list: the place's own name stands at its end, for people.
fn file_name(place: Identity, what: &Path) -> OsString {
    const MOST: usize = 200;
    let name = what.file_name().unwrap_or_default();
    let mut field = mounts::escape(Path::new(name));
    if field.len() > MOST {
        // A number that follows from all of the name: two long names may begin alike.
        let sum = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        field.truncate(MOST);
        field.push_str(&format!("-{sum:016x}"));
    }
    format!("{:x}-{:x}-{field}", place.dev, place.ino).into()
}

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
        fn take(&self, name: &str) -> Result<Claim, Error> {
            Claim::take_in(Ok(self.run()), &self.0.join(name))
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
        let claim = scratch.take("binder").unwrap();
        let pid = std::process::id().to_string();
        match scratch.take("binder") {
            Err(Error::InUse(_, by)) => assert_eq!(by, pid),
            other => panic!("{:?}", other.err()),
        }
        scratch.take("hwbinder").unwrap();
        drop(claim);
        scratch.take("binder").unwrap();
        assert!(!scratch.run().exists());
    }

    #[test]
    fn a_link_goes_with_its_claim_unless_somebody_has_changed_it() {
        let scratch = Scratch::new("link");
        let (path, target) = (scratch.0.join("binder"), Path::new("/nowhere/binder"));
        let mut claim = scratch.take("binder").unwrap();
        claim.link(&path, target).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), target);
        drop(claim);
        assert!(fs::symlink_metadata(&path).is_err());

        let mut claim = scratch.take("binder").unwrap();
        claim.link(&path, target).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(claim);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let mut claim = scratch.take("binder").unwrap();
        assert!(matches!(claim.link(&path, target), Err(Error::Foreign(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    /// As if the claim's daemon was killed: the lock goes, nothing else.
    fn kill(mut claim: Claim) {
        claim.artifacts.clear();
        let path = claim.file.as_ref().unwrap().1.clone();
        let saved = fs::read(&path).unwrap();
        drop(claim);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, saved).unwrap();
    }

    #[test]
    fn what_a_killed_daemon_left_is_removed_by_the_next() {
        let scratch = Scratch::new("killed");
        let (path, target) = (scratch.0.join("binder"), Path::new("/nowhere/binder"));
        // Characters that end fields and lines must not do so here.
        let directory = scratch.0.join("a mount\twith \\040 and\nlines");
        let mut claim = scratch.take("binder").unwrap();
        claim.directory(&directory).unwrap();
        claim.link(&path, target).unwrap();
        kill(claim);

        assert!(directory.exists());
        let mut claim = scratch.take("binder").unwrap();
        assert!(!directory.exists());
        claim.link(&path, target).unwrap();
    }

    #[test]
    fn a_daemon_clears_what_another_left_and_nothing_of_those_who_live() {
        let scratch = Scratch::new("sweep");
        let target = Path::new("/nowhere/binder");
        let [dead, alive, elsewhere] = ["dead", "alive", "elsewhere"].map(|it| scratch.0.join(it));
        let mut living = scratch.take("alive").unwrap();
        living.link(&alive, target).unwrap();
        let mut claim = scratch.take("dead").unwrap();
        claim.link(&dead, target).unwrap();
        kill(claim);
        // The same path in another mount namespace is in another directory.
        let mut claim = scratch.take("elsewhere").unwrap();
        claim.link(&elsewhere, target).unwrap();
        claim.artifacts[0].parent.ino += 1;
        claim.save().unwrap();
        kill(claim);

        Claim::sweep_in(&scratch.run());
        let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
        assert!(!is_there(&dead) && is_there(&alive) && is_there(&elsewhere));
        assert_eq!(fs::read_dir(scratch.run()).unwrap().count(), 2, "the living, the invisible");
        drop(living);
        assert!(!is_there(&alive));
    }

    /// Two containers that share /run and have a /dev each.
    #[test]
    fn a_name_in_another_directory_is_another_place() {
        let scratch = Scratch::new("places");
        let _one = scratch.take("one/binder").unwrap();
        let _two = scratch.take("two/binder").unwrap();
        assert!(matches!(scratch.take("one/binder"), Err(Error::InUse(..))));
        std::os::unix::fs::symlink("one", scratch.0.join("same")).unwrap();
        assert!(matches!(scratch.take("same/binder"), Err(Error::InUse(..))));
        let long = "x".repeat(250);
        let _long = scratch.take(&format!("one/{long}")).unwrap();
        let _longer = scratch.take(&format!("one/{long}y")).unwrap();
    }

    #[test]
    fn without_a_place_for_its_list_a_claim_is_only_remembered() {
        let scratch = Scratch::new("unlisted");
        fs::write(scratch.run(), "a file in its place").unwrap();
        let mut claim = scratch.take("binder").unwrap();
        let path = scratch.0.join("binder");
        claim.link(&path, Path::new("/nowhere")).unwrap();
        drop(claim);
        assert!(fs::symlink_metadata(path).is_err());
    }

    /// The directory goes with the last claim, and comes with the next.
    #[test]
    fn claims_are_taken_while_others_are_given_back() {
        let scratch = Scratch::new("busy");
        std::thread::scope(|scope| {
            for name in ["one", "two", "three"] {
                let scratch = &scratch;
                scope.spawn(move || {
                    for _ in 0..500 {
                        drop(scratch.take(name).unwrap_or_else(|error| panic!("{error}")));
                    }
                });
            }
        });
        assert!(!scratch.run().exists());
    }

    #[test]
    fn the_directory_stays_for_whoever_has_bound_it_for_the_mount_in_it() {
        let scratch = Scratch::new("kept");
        drop(Claim::take_in(Ok(scratch.run()), &scratch.run().join("fs")).unwrap());
        assert!(scratch.run().exists());
    }

    #[test]
    fn a_foreign_file_is_no_directory_to_mount_on() {
        let scratch = Scratch::new("foreign");
        let path = scratch.0.join("file");
        fs::write(&path, "").unwrap();
        let mut claim = scratch.take("mount").unwrap();
        assert!(matches!(claim.directory(&path), Err(Error::Foreign(_))));
    }
}
