//! `/proc/PID/mountinfo`, and how the kernel writes paths in such lists.
//!
//! The lists of the kernel consist of lines, with fields between blanks. A path may hold anything
//! but NUL, so blanks, tabs, newlines and backslashes in it are written as `\` and three octal
//! digits.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `st_dev` of its files.
    pub dev: u64,
    /// Which part of the file system is mounted: `/`, or what a bind mount shows.
    pub root: PathBuf,
    /// Where it is mounted, as the process that was asked about sees it.
    pub path: PathBuf,
    /// The type of its file system.
    pub kind: OsString,
}

impl Mount {
    /// `ID PARENT MAJOR:MINOR ROOT PATH OPTIONS [TAG...] - TYPE SOURCE SUPEROPTIONS`.
    fn parse(line: &[u8]) -> Option<Mount> {
        let mut fields = line.split(|byte| *byte == b' ');
        let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
        let dev = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
        let mut path = || Some(PathBuf::from(unescape(fields.next()?)));
        let (root, path) = (path()?, path()?);
        // Blanks in options are escaped too, so a field of a mere `-` is the separator.
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Mount { dev, root, path, kind: unescape(kind) })
    }
}

/// The mounts that a process or thread sees (`who`: "self", or a number), in the order of mounting.
/// Lines that cannot be parsed are left out.
pub fn of(who: &str) -> io::Result<Vec<Mount>> {
    let list = fs::read(format!("/proc/{who}/mountinfo"))?;
    Ok(list.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect())
}

/// The topmost mount on `path` itself.
pub fn on(path: &Path) -> Option<Mount> {
    topmost("self", path)
}

/// The topmost mount on `path` itself, as that process sees it.
fn topmost(who: &str, path: &Path) -> Option<Mount> {
    of(who).ok()?.into_iter().rfind(|mount| mount.path == path)
}

/// Where a mount is: in the daemon's own mount namespace, or in that of another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// The process whose list of mounts has it: "self", or a number.
    who: String,
    /// Its path in that list.
    path: PathBuf,
    /// Its path for the daemon.
    reached: PathBuf,
}

impl MountPoint {
    /// A mount that the daemon sees at `path`.
    pub fn here(path: &Path) -> MountPoint {
        MountPoint { who: "self".into(), path: path.to_owned(), reached: path.to_owned() }
    }

    /// A mount that the process `pid` sees at the absolute `path`.
    pub fn of_process(pid: u32, path: &Path) -> MountPoint {
        let mut root = PathBuf::from(format!("/proc/{pid}/root"));
        root.extend(path.strip_prefix("/"));
        MountPoint { who: pid.to_string(), path: path.to_owned(), reached: root }
    }

    /// The path by which the daemon reaches it.
    pub fn reached(&self) -> &Path {
        &self.reached
    }

    /// The topmost mount there.
    pub fn topmost(&self) -> Option<Mount> {
        topmost(&self.who, &self.path)
    }
}

/// A path as a field of a list.
pub fn escape(path: &Path) -> String {
    let mut field = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'\\' => field.push_str("\\134"),
            0x21..=0x7e => field.push(char::from(*byte)),
            _ => field.push_str(&format!("\\{byte:03o}")),
        }
    }
    field
}

/// The bytes that a field stands for; a backslash without three octal digits stands for itself.
pub fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let number = match after {
            [high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', ..]
                if *first == b'\\' =>
            {
                Some((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'))
            }
            _ => None,
        };
        bytes.push(number.unwrap_or(*first));
        rest = if number.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_says_what_is_mounted_where() {
        let line = b"98 28 0:52 /.open/a\\040b.1.0 /mnt/x\\134y\\011z\\012 rw,noatime shared:5 master:1 - \
                     fuse.fakebinder fakebinder rw,user_id=0";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.dev, nix::sys::stat::makedev(0, 52));
        assert_eq!(mount.root, Path::new("/.open/a b.1.0"));
        assert_eq!(mount.path, Path::new("/mnt/x\\y\tz\n"));
        assert_eq!(mount.kind, "fuse.fakebinder");
        let untagged = b"1 0 8:1 / / rw - ext4 /dev/vda1 rw";
        assert_eq!(Mount::parse(untagged).unwrap().kind, "ext4");
        for line in [&b""[..], b"1 0 8:1 / / rw", b"1 0 8 / / rw - ext4", b"1 0 8:x / / rw - ext4"]
        {
            assert_eq!(Mount::parse(line), None);
        }
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(of("self").unwrap().iter().any(|mount| mount.path == Path::new("/")));
        assert_eq!(on(Path::new("/proc")).unwrap().kind, "proc");
        assert_eq!(on(Path::new("/proc/self")), None);
        let seen = MountPoint::of_process(std::process::id(), Path::new("/proc"));
        assert_eq!(seen.topmost(), MountPoint::here(Path::new("/proc")).topmost());
        let root = format!("/proc/{}/root/proc", std::process::id());
        assert_eq!(seen.reached(), Path::new(&root));
    }

    #[test]
    fn a_backslash_may_stand_for_itself() {
        for plain in [&br"\"[..], br"a\9", br"\40", br"\400", br"\08x"] {
            assert_eq!(unescape(plain).as_bytes(), plain);
        }
        assert_eq!(unescape(br"\134040").as_bytes(), br"\040");
    }

    proptest! {
        #[test]
        fn a_path_is_read_back_and_is_one_field(bytes in proptest::collection::vec(1u8.., 0..60)) {
            let path = PathBuf::from(OsString::from_vec(bytes));
            let field = escape(&path);
            prop_assert!(!field.contains(|c: char| c.is_whitespace() || c.is_control()));
            prop_assert_eq!(unescape(field.as_bytes()), path.into_os_string());
        }
    }
}
