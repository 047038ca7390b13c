//! Where a daemon keeps what it makes: root's in `/run`, an ordinary user's in a directory of that
//! user's.

use nix::unistd::{Uid, geteuid};
use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the lists of what daemons have made are kept.
pub fn claims() -> io::Result<PathBuf> {
    match geteuid().is_root() {
        true => Ok("/run/fakebinder".into()),
        false => Ok(of_user()?.join("fakebinder")),
    }
}

/// Where the FUSE door is mounted unless an option says so.
pub fn default_mount() -> io::Result<PathBuf> {
    match geteuid().is_root() {
        true => Ok("/dev/fakebinderfs".into()),
        false => Ok(of_user()?.join("fakebinderfs")),
    }
}

/// Where the log of `--daemonize` is written unless an option says so.
pub fn default_log() -> io::Result<PathBuf> {
    match geteuid().is_root() {
        true => Ok("/var/log/fakebinderd.log".into()),
        false => Ok(of_user()?.join("fakebinderd.log")),
    }
}

/// A directory of this user's alone: `$XDG_RUNTIME_DIR`, or one in `/tmp`, which is made.
fn of_user() -> io::Result<PathBuf> {
    let uid = geteuid();
    let given = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|it| it.is_absolute());
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    if let Some(found) = given.into_iter().chain([usual]).find(|it| is_own(it, uid)) {
        return Ok(found);
    }
    let made = PathBuf::from(format!("/tmp/fakebinder-{uid}"));
    match fs::DirBuilder::new().mode(0o700).create(&made) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", made.display())))
        }
        _ if is_own(&made, uid) => Ok(made),
        _ => Err(io::Error::other(format!(
            "{} is not a directory of uid {uid} alone: set XDG_RUNTIME_DIR to one",
            made.display()
        ))),
    }
}

/// Whether `path` is a directory, and no link to one, that nobody but this user can write to.
fn is_own(path: &Path, uid: Uid) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        found.is_dir() && found.uid() == uid.as_raw() && found.mode() & 0o022 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_directory_that_others_can_write_to_is_not_ones_own() {
        let path = env::temp_dir().join(format!("home-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        let link = path.join("link");
        symlink(&path, &link).unwrap();
        let uid = geteuid();
        assert!(is_own(&path, uid));
        assert!(!is_own(&path, Uid::from_raw(uid.as_raw() + 1)));
        assert!(!is_own(&link, uid) && !is_own(&path.join("absent"), uid));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(!is_own(&path, uid));
        fs::remove_dir_all(&path).unwrap();
    }
}
