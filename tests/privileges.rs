//! What the daemon may do while it serves, as the kernel tells it.

mod common;

use common::{Daemon, Door, PATIENCE, alone, skip, wait_until};
use std::collections::BTreeSet;
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

/// What the kernel says of each thread.
fn statuses(daemon: &Daemon) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap()).collect()
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
    let mut threads = 0;
    for status in statuses(&daemon) {
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

/// 2 is `SECCOMP_MODE_FILTER`. A thread that starts later has what the one that starts it has.
#[test]
fn every_thread_has_the_seccomp_filter_unless_a_flag_says_otherwise() {
    if !nix::unistd::geteuid().is_root() || !Door::Fuse.is_here() {
        return skip("it takes root and /dev/fuse");
    }
    let _alone = alone();
    let own = field(&fs::read_to_string("/proc/self/status").unwrap(), "Seccomp:");
    for (flags, mode) in [(&[][..], 2), (&["--no-seccomp"], own)] {
        let daemon = Daemon::start_with(flags, None);
        // It serves before it has the filter: a moment later it says that it is ready.
        let filtered = |status: &String| field(status, "Seccomp:") == mode;
        let reached = wait_until(PATIENCE, || statuses(&daemon).iter().all(filtered));
        assert!(reached, "{flags:?}: {:#?}", statuses(&daemon));
        assert!(statuses(&daemon).len() > 3, "{flags:?}");
        assert!(!daemon.log().contains("seccomp"), "{}", daemon.log());
    }
}

/// The groups of the table in SECURITY.md are those of the source, with the same system calls.
#[test]
fn security_md_lists_the_system_calls_of_the_filter() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = fs::read_to_string(root.join("src/daemon/filter.rs")).unwrap();
    let called = source.split("SYS_").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap();
        rest[..end].to_owned()
    });
    let called: BTreeSet<String> = called.collect();
    let text = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let (_, part) = text.split_once("### System calls\n").expect("its part");
    let part = part.split("\n#").next().unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let listed = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let listed: BTreeSet<String> = listed.map(str::to_owned).collect();
    assert!(called.len() > 100, "{called:?}");
    let missing: Vec<_> = called.difference(&listed).collect();
    let too_many: Vec<_> = listed.difference(&called).collect();
    assert!(missing.is_empty() && too_many.is_empty(), "lacks {missing:?}, has {too_many:?}");
}
