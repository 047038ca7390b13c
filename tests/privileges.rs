//! What the daemon may do while it serves, as the kernel tells it.

mod common;

use common::{Daemon, Door, alone, skip};
use std::fs;
use std::path::Path;

/// The capabilities of `<linux/capability.h>` that SECURITY.md may name.
const NUMBERS: [(&str, u32); 9] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_FOWNER", 3),
    ("CAP_KILL", 5),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYS_NICE", 23),
    ("CAP_SYS_RESOURCE", 24),
    ("CAP_MKNOD", 27),
];

/// Those of the table in SECURITY.md.
fn documented() -> u64 {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("SECURITY.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `CAP_"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`'));
    names.filter(|name| name.starts_with("CAP_")).fold(0, |set, name| {
        let known = NUMBERS.iter().find(|(known, _)| *known == name);
        set | 1 << known.unwrap_or_else(|| panic!("{name}")).1
    })
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[test]
fn every_thread_of_roots_daemon_has_what_security_md_says_and_no_more() {
    if !nix::unistd::geteuid().is_root() || !Door::Fuse.is_here() {
        return skip("it takes root and /dev/fuse");
    }
    let _alone = alone();
    let own = field(&fs::read_to_string("/proc/self/status").unwrap(), "CapPrm:");
    let expected = documented() & own;
    assert_ne!(expected, 0);
    let daemon = Daemon::start(Door::Auto);
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let mut threads = 0;
    for task in tasks {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        for set in ["CapEff:", "CapPrm:"] {
            assert_eq!(field(&status, set), expected, "{status}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(field(&status, set), 0, "{status}");
        }
        assert_eq!(field(&status, "CapBnd:") & !documented(), 0, "{status}");
        assert_eq!(field(&status, "NoNewPrivs:"), 1, "{status}");
        threads += 1;
    }
    assert!(threads > 3, "{threads} threads");
}
