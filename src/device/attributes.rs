//! The attributes of a file that chmod, chown and touch change and that stat shows.

use super::tree::Permissions;
use super::wire::SetAttr;
use crate::uapi;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bits of a mode that chmod may change.
const SETTABLE: u32 = 0o7777;

/// A moment: seconds since 1970, as FUSE has them, and nanoseconds.
pub type Time = (u64, u32);

/// What stat says of a node of the FUSE door, as far as that can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions, without the type of the file.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group of the owner.
    pub gid: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of these attributes.
    pub ctime: Time,
}

impl Attributes {
    /// The attributes of a file that is made now.
    pub fn new(Permissions { mode, uid, gid }: Permissions) -> Attributes {
        let now = now();
        Attributes { mode, uid, gid, atime: now, mtime: now, ctime: now }
    }

    /// `simple_setattr`. Whether the caller may is checked by the kernel (`default_permissions`).
    pub fn set(&mut self, changes: &SetAttr) {
        let now = now();
        let has = |flag| changes.valid & flag != 0;
        if has(uapi::FATTR_MODE) {
            self.mode = changes.mode & SETTABLE;
        }
        if has(uapi::FATTR_UID) {
            self.uid = changes.uid;
        }
        if has(uapi::FATTR_GID) {
            self.gid = changes.gid;
        }
        let time = |set, to_now, old, new| match (has(set), has(to_now)) {
            (false, _) => old,
            (true, false) => new,
            (true, true) => now,
        };
        self.atime = time(uapi::FATTR_ATIME, uapi::FATTR_ATIME_NOW, self.atime, changes.atime);
        self.mtime = time(uapi::FATTR_MTIME, uapi::FATTR_MTIME_NOW, self.mtime, changes.mtime);
        self.ctime = now;
    }
}

fn now() -> Time {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or((0, 0), |since| (since.as_secs(), since.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_changes() {
        let mut file = Attributes::new(Permissions { mode: 0o600, uid: 0, gid: 0 });
        let asked = SetAttr {
            valid: uapi::FATTR_MODE,
            mode: libc::S_IFREG | 0o666,
            uid: 1000,
            gid: 1000,
            atime: (1, 2),
            mtime: (3, 4),
        };
        let before = file;
        file.set(&asked);
        assert_eq!(file, Attributes { mode: 0o666, ctime: file.ctime, ..before });

        file.set(&SetAttr { valid: uapi::FATTR_GID | uapi::FATTR_MTIME, ..asked });
        let expected = Attributes { mode: 0o666, gid: 1000, mtime: (3, 4), ..before };
        assert_eq!(file, Attributes { ctime: file.ctime, ..expected });

        file.set(&SetAttr { valid: uapi::FATTR_MTIME | uapi::FATTR_MTIME_NOW, ..asked });
        assert_eq!(file.mtime, file.ctime);
    }
}
