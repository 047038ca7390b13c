//! What a daemon has made in the file system, and how it is found again and removed.

use crate::Errno;
use crate::device::mounting::{FILE_SYSTEM, unmount};
use crate::device::mounts;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Something in the file system that is removed with the claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Artifact {
    /// A symbolic link, as long as it leads to `target`.
    Link {
        /// Where it was made.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A character device, as long as it has this number.
    Node {
        /// Where it was made.
        path: PathBuf,
        /// The number of the device (`st_rdev`).
        rdev: u64,
    },
    /// A directory, as long as it is empty.
    Directory {
        /// Where it was made.
        path: PathBuf,
    },
    /// A mount of fakebinder's file system.
    Mount {
        /// What was mounted on.
        path: PathBuf,
    },
}

/// A directory as everybody knows it who can reach it: by its device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub dev: u64,
    pub ino: u64,
}

impl Identity {
    /// The directory that `path` is in.
    pub fn of_parent(path: &Path) -> io::Result<Identity> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let found = fs::metadata(parent)?;
        Ok(Identity { dev: found.dev(), ino: found.ino() })
    }
}

/// An artifact, and the directory that it was made in: in another mount namespace the same path may
/// lead elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub artifact: Artifact,
    pub parent: Identity,
}

impl Artifact {
    pub(super) fn path(&self) -> &Path {
        match self {
            Artifact::Link { path, .. }
            | Artifact::Node { path, .. }
            | Artifact::Directory { path }
            | Artifact::Mount { path } => path,
        }
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match self {
            Artifact::Link { path, target } => match fs::read_link(path) {
                Ok(found) if found == *target => fs::remove_file(path),
                _ => Ok(()),
            },
            Artifact::Node { path, rdev } => match fs::symlink_metadata(path) {
                Ok(found) if found.file_type().is_char_device() && found.rdev() == *rdev => {
                    fs::remove_file(path)
                }
                _ => Ok(()),
            },
            // Only if it is empty.
            Artifact::Directory { path } => fs::remove_dir(path),
            Artifact::Mount { path } if is_ours(path) => unmount(path),
            Artifact::Mount { .. } => Ok(()),
        }
    }
}

impl Made {
    /// A line of a list, with fields as in the kernel's lists (see [`mounts`]).
    pub(super) fn to_line(&self) -> String {
        let Identity { dev, ino } = self.parent;
        let path = mounts::escape(self.artifact.path());
        let kind = match &self.artifact {
            Artifact::Link { target, .. } => format!("link {path} {}", mounts::escape(target)),
            Artifact::Node { rdev, .. } => format!("node {path} {rdev}"),
            Artifact::Directory { .. } => format!("directory {path} -"),
            Artifact::Mount { .. } => format!("mount {path} -"),
        };
        format!("{dev} {ino} {kind}\n")
    }

    pub(super) fn from_line(line: &str) -> Option<Made> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [dev, ino, kind, path, last] = fields[..] else { return None };
        let path = PathBuf::from(mounts::unescape(path.as_bytes()));
        let artifact = match kind {
            "link" => Artifact::Link { path, target: mounts::unescape(last.as_bytes()).into() },
            "node" => Artifact::Node { path, rdev: last.parse().ok()? },
            "directory" => Artifact::Directory { path },
            "mount" => Artifact::Mount { path },
            _ => return None,
        };
        let parent = Identity { dev: dev.parse().ok()?, ino: ino.parse().ok()? };
        Some(Made { artifact, parent })
    }

    /// Removes the artifact if it is still what was made. False: it cannot be seen from here.
    pub(super) fn remove(&self) -> bool {
        match Identity::of_parent(self.artifact.path()) {
            Ok(parent) if parent == self.parent => {}
            _ => return false,
        }
        match self.artifact.remove() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("removing {:?}: {error}", self.artifact);
            }
            _ => {}
        }
        true
    }

    /// The same for what a killed daemon has left: its mounts are dead.
    pub(super) fn clear(&self) -> bool {
        if let Artifact::Mount { path } = &self.artifact
            && is_ours(path)
            && !is_dead(path)
        {
            return true;
        }
        log::info!("removing what a daemon that was killed has left: {:?}", self.artifact);
        self.remove()
    }
}

/// Whether a mount of a fakebinderd is on `path` itself.
pub(super) fn is_ours(path: &Path) -> bool {
    mounts::on(path).is_some_and(|mount| mount.kind == FILE_SYSTEM)
}

/// Whether the daemon behind a mount is gone. The question always goes to that daemon: nothing that
/// the kernel remembers can answer it.
pub(super) fn is_dead(path: &Path) -> bool {
    matches!(nix::sys::statfs::statfs(path), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        let artifacts = [
            Artifact::Link { path: "/a b".into(), target: "/c\td".into() },
            Artifact::Node { path: "/dev/x".into(), rdev: 0xe900 },
            Artifact::Directory { path: "/d\n".into() },
            Artifact::Mount { path: "/d\\".into() },
        ];
        for artifact in artifacts {
            let made = Made { artifact, parent: Identity { dev: 5, ino: u64::MAX } };
            let line = made.to_line();
            assert_eq!(Made::from_line(line.trim_end()), Some(made), "{line}");
        }
        for nonsense in ["", "mount", "1 2 mount /d", "1 2 what /d -", "x 2 mount /d -"] {
            assert_eq!(Made::from_line(nonsense), None);
        }
    }
}
