//! The flags of the daemon.

use clap::{ArgAction, Parser, ValueEnum};
use fakebinder::device::home;
use fakebinder::device::mounting::MountBy;
use fakebinder::device::options::{MAX_DEVICES, MOST_DEVICES, Stats};
use fakebinder::device::security_context::SecurityContexts;
use fakebinder::device::uring::Transport;
use fakebinder::memory::PageInstall;
use fakebinder::probe::Injector;
use fakebinder::quota::UserLimit;
use nix::unistd::{Gid, Group, Uid, User};
use std::path::PathBuf;

/// Android's Binder IPC in userspace: serves binder devices without a kernel driver.
///
/// Each device is opened through one or two doors. CUSE makes it a character device, /dev/NAME,
/// which clients use through fakebinder's client library or preload shim (a CUSE device cannot be
/// mapped). FUSE makes it a file in a mounted directory, which unmodified binder clients can use;
/// /dev/NAME is then a link to it, unless CUSE has made that.
///
/// An ordinary user's daemon serves that user's programs, on the FUSE door; its log says how it
/// mounts, and what does not work so.
///
/// Runs until SIGTERM or SIGINT, and leaves nothing behind. SIGUSR2 has every page reclaimed that
/// no buffer uses. Prints "fakebinderd: ready" once
/// clients can come.
#[derive(Debug, Parser)]
#[command(name = "fakebinderd", version, max_term_width = 100)]
pub struct Options {
    /// A device to serve; may be given more than once, as in --name binder --name hwbinder
    #[arg(long = "name", value_name = "NAME", default_value = "fakebinder", value_parser = device_name)]
    pub names: Vec<String>,

    /// Which doors to open: every one that this machine has, or just one
    #[arg(long, value_enum, default_value_t = Doors::Auto)]
    pub door: Doors,

    /// Where to mount the FUSE door's directory; made if it is not there. Given more than once, each
    /// mount is a world of its own, for a container of its own: the same names of devices, and other
    /// contexts. The first mount's devices are those of the links and of the CUSE door. Without it:
    /// /dev/fakebinderfs, or for an ordinary user fakebinderfs in $XDG_RUNTIME_DIR
    #[arg(long = "mount", value_name = "DIR")]
    pub mounts: Vec<PathBuf>,

    /// Who is to mount: the daemon, which takes CAP_SYS_ADMIN; fusermount3; or a process in a user
    /// namespace, to whose mount DIR becomes a link. An ordinary user's daemon tries the latter two
    #[arg(long, value_enum, default_value_t = MountBy::Auto)]
    pub mount_by: MountBy,

    /// How requests come to the FUSE door: through io_uring (Linux 6.14; root has the daemon set
    /// /sys/module/fuse/parameters/enable_uring), or by reading /dev/fuse
    #[arg(long, value_enum, default_value_t = Transport::Read)]
    pub transport: Transport,

    /// Where to make links to the FUSE door's devices; /dev unless told otherwise, and then nothing
    /// is amiss if it cannot be written
    #[arg(long, value_name = "DIR", conflicts_with = "no_link")]
    pub link: Option<PathBuf>,

    /// Make no links: the devices are in the mounted directory only
    #[arg(long)]
    pub no_link: bool,

    /// Permissions of the devices, in octal
    #[arg(long, value_name = "OCTAL", default_value = "0666", value_parser = mode)]
    pub mode: u32,

    /// Who owns the devices, by name or by number: whoever runs the daemon, unless told otherwise
    #[arg(long, value_name = "USER[:GROUP]", value_parser = owner)]
    pub owner: Option<(u32, u32)>,

    /// How many devices the mount may hold, those of --name and those that binder-control adds
    /// (binderfs: max=)
    #[arg(long, value_name = "N", default_value_t = MAX_DEVICES, value_parser = max_devices)]
    pub max_devices: usize,

    /// Who may see binder_logs/ in the mount; --stats alone is --stats global (binderfs:
    /// stats=global)
    #[arg(long, value_name = "WHO", value_enum, default_value_t = Stats::Root, num_args = 0..=1, require_equals = true,
          default_missing_value = "global")]
    pub stats: Stats,

    /// Never stop a thread of a client to give it descriptors: transactions with descriptors reach
    /// only those clients that run under `fakebinder exec`, or have called the fakebinder-client
    /// library's Device::accept_files
    #[arg(long)]
    pub never_trace: bool,

    /// Serve without the seccomp filter, by which the daemon's threads may make no system calls but
    /// those that serving takes (SECURITY.md has the list)
    #[arg(long)]
    pub no_seccomp: bool,

    /// Stay in the foreground, and log to standard error (the default)
    #[arg(long, conflicts_with = "daemonize")]
    pub foreground: bool,

    /// Go on in the background; this command returns when the devices are ready
    #[arg(long)]
    pub daemonize: bool,

    /// Where --daemonize writes the log: /var/log/fakebinderd.log, or for an ordinary user
    /// fakebinderd.log in $XDG_RUNTIME_DIR, unless told otherwise
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// How the pages of a buffer are installed: many at a time, or one after the other, as the
    /// driver did before Linux 6.14
    #[arg(long, value_name = "shared|exclusive", default_value_t = PageInstall::Shared)]
    pub page_install: PageInstall,

    /// The most memory that the buffers and records of all clients together may take, in bytes or
    /// with K, M or G; what is not in use is reclaimed first, then a transaction fails. Without it:
    /// three quarters of the memory limit of the daemon's control group, or half of the memory that
    /// is available at the start, whichever is less
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub page_budget: Option<u64>,

    /// Leave pages that no buffer uses where they are when memory is short: they are reclaimed by
    /// budget and on request only
    #[arg(long)]
    pub no_pressure: bool,

    /// The most of something that one user other than root may make the daemon hold, as in
    /// opens=1000 or oneway-bytes=16M; may be given more than once. It is counted over all of the
    /// user's processes: opens, descriptors, pages (of 4 KiB), records (threads, nodes, references,
    /// death and freeze links, transactions), record-bytes, oneway-bytes and stalled-copies.
    /// Without it: half of what there is
    #[arg(long, value_name = "WHAT=N")]
    pub user_limit: Vec<UserLimit>,

    /// The security context that nodes which ask for one are told of their callers (Android's
    /// service managers ask on every call): a label for everybody, as in u:r:app:s0, or with @FILE
    /// one for each user, in lines of UID LABEL or * LABEL. Without it, as the driver does: what
    /// SELinux or Smack says; without these, such a call fails
    #[arg(long, value_name = "LABEL|@FILE")]
    pub security_context: Option<SecurityContexts>,

    /// Make operations fail or wait, for tests: OPERATION:WHEN, then :errno or :delay or both, and
    /// commas between rules, as in alloc_page:nth=3:errno=ENOMEM, zap:share=0.1:delay=1ms,seed=7 or
    /// alloc_page:pid=4711:delay=1ms (for what that process sends); operations are alloc_page,
    /// vm_insert_page, vma_lookup, mmget and zap, and what the daemon needs for itself: descriptor,
    /// mmap, poll, read_memory, write_memory, send, record, receive, reply and thread
    #[arg(long, value_name = "SPEC", default_value = "", hide_default_value = true)]
    pub inject: Injector,

    /// At the end, write to FILE how long senders waited for the pages of their transactions: lines
    /// of a sender's pid, a time in nanoseconds (rounded up by 6 % at most) and how many
    /// transactions waited so long
    #[arg(long, value_name = "FILE")]
    pub install_latency: Option<PathBuf>,

    /// Log more: twice for every request. RUST_LOG (see env_logger) alone says what is logged in
    /// place of the usual lines; with -v a line is logged when either asks for it
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,

    /// Act as if the kernel had no FUSE passthrough
    #[arg(long, hide = true)]
    pub no_passthrough: bool,

    /// What --daemonize runs
    #[arg(long, hide = true)]
    pub detached: bool,

    /// Write the man page and completions into this folder, for `make install`
    #[arg(long, hide = true, value_name = "DIR")]
    pub generate: Option<PathBuf>,
}

impl Options {
    /// Where to mount, each path absolute and given once, and none inside of another.
    pub fn mounts(&self) -> Result<Vec<PathBuf>, String> {
        let failed = |error: std::io::Error| error.to_string();
        if self.mounts.is_empty() {
            return Ok(vec![home::default_mount().map_err(failed)?]);
        }
        let mut mounts: Vec<PathBuf> = Vec::new();
        for given in &self.mounts {
            let absolute = std::path::absolute(given);
            let path = absolute.map_err(|error| format!("--mount {}: {error}", given.display()))?;
            for other in &mounts {
                if path.starts_with(other) || other.starts_with(&path) {
                    return Err(format!(
                        "--mount {} and --mount {} are one inside the other: give each a directory of its own",
                        other.display(),
                        path.display()
                    ));
                }
            }
            mounts.push(path);
        }
        Ok(mounts)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Doors {
    Auto,
    Cuse,
    Fuse,
}

/// What else the mounted directory may hold.
const RESERVED: [&str; 3] = ["binder-control", "binder_logs", "features"];

fn device_name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(allowed) {
        return Err("a device name has letters, digits, and _ - . after the first".into());
    }
    if RESERVED.contains(&name) {
        return Err("this name has a meaning of its own in the directory of devices".into());
    }
    Ok(name.to_owned())
}

/// K is 1,024, as for other memory limits; the crate bytesize takes it for 1,000.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G', 'k', 'm', 'g']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, ""),
    };
    let shift = match unit {
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => 0,
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes >= 4096).ok_or_else(|| {
        "a size is a number of bytes, of at least a page, or a number with K, M or G, as in 64M"
            .into()
    })
}

fn max_devices(number: &str) -> Result<usize, String> {
    let number = number.parse().ok().filter(|number| *number <= MOST_DEVICES);
    number.ok_or_else(|| format!("a number of devices is at most {MOST_DEVICES}"))
}

fn mode(octal: &str) -> Result<u32, String> {
    match u32::from_str_radix(octal, 8) {
        Ok(mode) if mode & !0o777 == 0 => Ok(mode),
        _ => Err("permissions are three octal digits, as in 660".into()),
    }
}

fn owner(owner: &str) -> Result<(u32, u32), String> {
    let (user, group) = match owner.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (owner, None),
    };
    let known = |found: nix::Result<Option<User>>| found.ok().flatten();
    let (uid, own_group) = match user.parse() {
        Ok(uid) => (uid, known(User::from_uid(Uid::from_raw(uid))).map(|user| user.gid)),
        Err(_) => {
            let user = known(User::from_name(user)).ok_or(format!("there is no user {user}"))?;
            (user.uid.as_raw(), Some(user.gid))
        }
    };
    let gid = match group {
        None => own_group.map_or(uid, Gid::as_raw),
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => Group::from_name(group)
                .ok()
                .flatten()
                .ok_or(format!("there is no group {group}"))?
                .gid
                .as_raw(),
        },
    };
    Ok((uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }

    #[test]
    fn a_name_cannot_lead_out_of_dev() {
        for name in ["", ".", "..", "a/b", "/etc", ".open", "a b", "features", "ü"] {
            assert!(device_name(name).is_err(), "{name}");
        }
        for name in ["binder", "hw-binder_2", "a.b"] {
            assert!(device_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn mounts_do_not_lie_in_each_other() {
        let mounts =
            |flags: &[&str]| Options::parse_from(["fakebinderd"].iter().chain(flags)).mounts();
        assert_eq!(mounts(&["--mount", "/a", "--mount", "/ab"]).unwrap().len(), 2);
        assert_eq!(mounts(&[]).unwrap().len(), 1);
        for other in ["/a/b", "/a", "/a/", "/a/./b", "/"] {
            let error = mounts(&["--mount", "/a", "--mount", other]).unwrap_err();
            assert!(error.contains("--mount /a "), "{error}");
        }
    }

    #[test]
    fn an_owner_is_a_user_with_or_without_a_group() {
        assert_eq!(owner("root"), Ok((0, 0)));
        assert_eq!(owner("0:42"), Ok((0, 42)));
        assert_eq!(owner("1:root"), Ok((1, 0)));
        assert!(owner("no-such-user").is_err());
        assert!(owner("0:no-such-group").is_err());
    }

    #[test]
    fn permissions_are_octal_and_no_more_than_permissions() {
        assert_eq!(mode("0660"), Ok(0o660));
        assert!(mode("4755").is_err());
        assert!(mode("9").is_err());
    }
}
