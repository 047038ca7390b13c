//! The security context of a client, for nodes that ask for it (`txn_security_ctx`).
//!
//! By default that of the driver, which depends on the kernel's security module:
//! - SELinux, Smack: the label of whoever opened the device;
//! - AppArmor: none, and the call fails with EINVAL (AppArmor has numbers for its contexts, but
//!   gives them to no credentials);
//! - no module: none, and the call fails with EOPNOTSUPP.
//!
//! `--security-context` gives labels where the kernel has none: Android's service managers ask for
//! one on every call.

use crate::Errno;
use crate::shortage::is_shortage;
use std::fs;
use std::str::FromStr;
use std::sync::OnceLock;

/// The longest label, in bytes: the kernel's own interfaces take at most a page.
const LONGEST: usize = 4095;

/// The kernel's security module, as far as labels are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    /// SELinux or Smack.
    Labels,
    AppArmor,
    None,
}

impl Module {
    fn of_this_kernel() -> Module {
        static MODULE: OnceLock<Module> = OnceLock::new();
        *MODULE.get_or_init(|| {
            let file_systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
            // Since Linux 5.8 AppArmor has a folder of its own there.
            let apparmor = fs::read("/proc/self/attr/apparmor/current").is_ok()
                || fs::read("/sys/module/apparmor/parameters/enabled")
                    .is_ok_and(|it| it[..] == *b"Y\n");
            Module::from(&file_systems, apparmor)
        })
    }

    /// SELinux and Smack each register a file system of their own where they are in use.
    fn from(file_systems: &str, apparmor: bool) -> Module {
        let names = |name| file_systems.lines().any(|line| line.split('\t').nth(1) == Some(name));
        match apparmor {
            _ if names("selinuxfs") || names("smackfs") => Module::Labels,
            true => Module::AppArmor,
            false => Module::None,
        }
    }
}

/// The labels that the daemon's options give, by uid. A user without one has the kernel's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecurityContexts {
    /// The uid that an entry is for, or none for all other users.
    entries: Vec<(Option<u32>, String)>,
}

impl SecurityContexts {
    /// The context of the thread `tid` of the user `uid`, with a NUL at its end.
    ///
    /// EINVAL, EOPNOTSUPP: there is none, for the reasons above. A [shortage](crate::shortage): the
    /// context could not be looked up, which says nothing about the client.
    pub fn of(&self, tid: i32, uid: u32) -> Result<Vec<u8>, Errno> {
        let given = |wanted| self.entries.iter().find(|(uid, _)| *uid == wanted);
        if let Some((_, label)) = given(Some(uid)).or_else(|| given(None)) {
            return Ok([label.as_bytes(), b"\0"].concat());
        }
        match Module::of_this_kernel() {
            Module::Labels => label_of(tid),
            Module::AppArmor => Err(Errno::EINVAL),
            Module::None => Err(Errno::EOPNOTSUPP),
        }
    }

    fn add(&mut self, uid: Option<u32>, label: &str) -> Result<(), String> {
        if label.is_empty() || label.len() > LONGEST || label.contains(['\0', '\n']) {
            return Err(format!("'{label}' is no label: one line, of 1 to {LONGEST} bytes"));
        }
        self.entries.push((uid, label.to_owned()));
        Ok(())
    }
}

/// The kernel's label of a thread, with a NUL at its end.
fn label_of(tid: i32) -> Result<Vec<u8>, Errno> {
    let mut label = fs::read(format!("/proc/{tid}/attr/current")).map_err(|error| {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) if is_shortage(errno) => errno,
            _ => Errno::EOPNOTSUPP,
        }
    })?;
    // SELinux ends the label with a NUL, others end it with a newline.
    while label.last().is_some_and(|byte| matches!(byte, 0 | b'\n')) {
        label.pop();
    }
    if label.is_empty() {
        return Err(Errno::EOPNOTSUPP);
    }
    label.push(0);
    Ok(label)
}

/// `LABEL`, for everybody; or `@FILE`, whose lines are `UID LABEL`, or `* LABEL` for everybody
/// else.
impl FromStr for SecurityContexts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut contexts = SecurityContexts::default();
        let Some(path) = text.strip_prefix('@') else {
            contexts.add(None, text)?;
            return Ok(contexts);
        };
        let lines = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        for (number, line) in lines.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = || format!("{path}, line {}: not UID LABEL or * LABEL", number + 1);
            let (uid, label) = line.split_once(char::is_whitespace).ok_or_else(wrong)?;
            let uid = match uid {
                "*" => None,
                uid => Some(uid.parse().map_err(|_| wrong())?),
            };
            contexts.add(uid, label.trim())?;
        }
        Ok(contexts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(contexts: &SecurityContexts, uid: u32) -> Result<Vec<u8>, Errno> {
        contexts.of(nix::unistd::gettid().as_raw(), uid)
    }

    #[test]
    fn the_module_is_told_from_what_it_registers() {
        let file_systems = "nodev\tsysfs\nnodev\tsecurityfs\n\text4\n";
        assert_eq!(Module::from(file_systems, false), Module::None);
        assert_eq!(Module::from(file_systems, true), Module::AppArmor);
        assert_eq!(Module::from("nodev\tselinuxfs\n", false), Module::Labels);
        assert_eq!(Module::from("nodev\tsmackfs\n", true), Module::Labels);
        assert_eq!(Module::from("nodev\tnot-selinuxfs\n", false), Module::None);
    }

    #[test]
    fn a_label_is_everybodys() {
        let contexts: SecurityContexts = "u:r:init:s0".parse().unwrap();
        assert_eq!(of(&contexts, 0), Ok(b"u:r:init:s0\0".to_vec()));
        assert_eq!(of(&contexts, 1000), Ok(b"u:r:init:s0\0".to_vec()));
        assert!("".parse::<SecurityContexts>().is_err());
        assert!("a\nb".parse::<SecurityContexts>().is_err());
        assert!("x".repeat(5000).parse::<SecurityContexts>().is_err());
    }

    #[test]
    fn a_file_names_labels_by_uid() {
        let path = std::env::temp_dir().join(format!("fakebinder-labels-{}", std::process::id()));
        let parse = |text: &str| {
            fs::write(&path, text).unwrap();
            format!("@{}", path.display()).parse::<SecurityContexts>()
        };
        let some = parse("# the system\n\n1000\tu:r:system_server:s0\n").unwrap();
        let all = parse("0 u:r:init:s0\n* u:r:app:s0\n").unwrap();
        let wrong = ["1000", "root u:r:init:s0", "-1 x"].map(|text| parse(text).unwrap_err());
        fs::remove_file(&path).unwrap();
        assert_eq!(of(&some, 1000), Ok(b"u:r:system_server:s0\0".to_vec()));
        assert_eq!(of(&some, 1001), of(&SecurityContexts::default(), 1001));
        assert_eq!(of(&all, 0), Ok(b"u:r:init:s0\0".to_vec()));
        assert_eq!(of(&all, 4711), Ok(b"u:r:app:s0\0".to_vec()));
        assert!(wrong.iter().all(|error| error.contains("line 1")), "{wrong:?}");
        assert!("@/no/such/file".parse::<SecurityContexts>().is_err());
    }
}
