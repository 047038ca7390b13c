//! An ordinary user's daemon: what it does by itself, and what works so. Each way to mount is tried:
//! fusermount3, and a user namespace.

mod common;

use common::machine::{NOBODY, Programs, possible, says, told};
use common::skip;
use std::process::Output;

const WAYS: [&str; 2] = ["fusermount", "namespace"];

/// Before each script: where the mount is, and how a daemon is started and waited for.
const PRELUDE: &str = r#"
export XDG_RUNTIME_DIR=/run/user/65534
mount=$XDG_RUNTIME_DIR/fakebinderfs
serve() {
    fakebinderd --name binder --name other "$@" 2>"$XDG_RUNTIME_DIR/log" &
    daemon=$!
    tries=0
    until [ -e "$mount/binder" ] || [ $((tries += 1)) -gt 100 ]; do sleep 0.05; done
}
"#;

fn run_as(programs: &Programs, setup: &str, script: &str, by: &[&str]) -> Output {
    programs.run(setup, &format!("{PRELUDE}{script}"), by)
}

fn run(programs: &Programs, setup: &str, script: &str) -> Output {
    run_as(programs, setup, script, &NOBODY)
}

fn with_examples(flags: &[&str]) -> Programs {
    let programs = Programs::new();
    for name in ["service", "client"] {
        programs.build(name, &format!("examples/c/{name}.c"), flags);
    }
    programs
}

/// Text and descriptors, between programs that know nothing of fakebinder and have its library
/// preloaded; and clients of its own library.
#[test]
fn programs_call_each_other_with_descriptors() {
    if !possible(&["fusermount3"]) {
        return;
    }
    let programs = with_examples(&[]);
    for way in WAYS {
        let script = format!(
            r#"
            serve --mount-by {way}
            export LD_PRELOAD=libfakebinder_preload.so
            service "$mount/binder" >"$XDG_RUNTIME_DIR/served" &
            until grep -q ready "$XDG_RUNTIME_DIR/served"; do sleep 0.05; done
            client "$mount/binder" 100
            unset LD_PRELOAD
            fb-ping --device "$mount/other" -n 100 --payload 5000
            kill $daemon && wait $daemon
            ls -A "$XDG_RUNTIME_DIR"
            cat "$XDG_RUNTIME_DIR/log"
            "#
        );
        let output = run(&programs, "", &script);
        let mounted = match way {
            "fusermount" => "mounted by fusermount3, for this user alone (user_allow_other",
            _ => "mounted in a user namespace, for programs of this user",
        };
        let fs = "/run/user/65534/fakebinderfs";
        says(
            &output,
            &[
                "protocol version 8",
                "hello, binder",
                "100 descriptors there and 100 back: 200 right",
                &format!("fb-ping: {fs}/other: 100 transactions, 0 failed"),
                "log",
            ],
        );
        let log = told(&output);
        assert!(
            log.contains(mounted) && log.contains("programs of other users are not served"),
            "{log}"
        );
        assert!(log.contains("without FUSE passthrough (that takes root)"), "{log}");
        assert!(log.contains("the CUSE door is not open: it takes root"), "{log}");
        let left = log.lines().filter(|line| line.starts_with("fakebinder") && !line.contains(' '));
        assert_eq!(left.count(), 0, "nothing is left behind: {log}");
    }
}

/// Text and descriptors between two programs that are started by `prefix`.
fn call_each_other(programs: &Programs, way: &str, flags: &str, prefix: &str) {
    let script = format!(
        r#"
        serve --mount-by {way} {flags}
        {prefix} service "$mount/binder" >"$XDG_RUNTIME_DIR/served" &
        until grep -q ready "$XDG_RUNTIME_DIR/served"; do sleep 0.05; done
        {prefix} client "$mount/binder" 100
        "#
    );
    let output = run(programs, "", &script);
    says(&output, &["hello, binder", "100 descriptors there and 100 back: 200 right"]);
}

/// They map the kernel's copy of their buffers, and their threads are stopped for the descriptors.
#[test]
fn programs_as_they_are_call_each_other_with_descriptors() {
    if !possible(&["fusermount3"]) {
        return;
    }
    if !cfg!(target_arch = "x86_64") {
        return skip("it takes an x86-64 to stop threads");
    }
    for flags in [&[][..], &["-static"]] {
        let programs = with_examples(flags);
        WAYS.iter().for_each(|way| call_each_other(&programs, way, "", ""));
    }
}

#[test]
fn supervised_programs_call_each_other_with_descriptors() {
    if !possible(&["fusermount3"]) {
        return;
    }
    let programs = with_examples(&["-static"]);
    for way in WAYS {
        call_each_other(&programs, way, "--never-trace", "fakebinder exec --");
    }
}

/// As `--door auto` and `fakebinderd` alone do.
#[test]
fn without_fusermount3_it_mounts_in_a_namespace_and_says_so() {
    if !possible(&["fusermount3"]) {
        return;
    }
    let programs = Programs::new();
    let gone = "for it in /usr/bin /bin; do mount --bind /dev/null $it/fusermount3; done";
    let script = r#"
        serve
        fb-ping --device "$mount/binder" -n 10
        grep -e 'mounting in a user namespace' -e 'is mounted' "$XDG_RUNTIME_DIR/log" | cut -d']' -f2-
        readlink "$mount" | sed 's/[0-9][0-9]*/N/'
        kill $daemon && wait $daemon
        [ ! -L "$mount" ]
        fakebinderd --mount-by fusermount 2>&1 | tail -n1
        "#;
    says(
        &run(&programs, gone, script),
        &[
            "fb-ping: /run/user/65534/fakebinderfs/binder: 10 transactions, 0 failed",
            " mounting in a user namespace: fusermount3 is not here (apt-get install fuse3)",
            " /run/user/65534/fakebinderfs is mounted in a user namespace",
            "/proc/N/root/dev",
            "  /run/user/65534/fakebinderfs (FUSE): fusermount3 is not here",
        ],
    );
}

#[test]
fn where_it_cannot_mount_the_error_says_why_for_both_ways() {
    if !possible(&["fusermount3"]) {
        return;
    }
    let programs = Programs::new();
    let setup = "chmod 600 /run/dev/fuse
        for it in /usr/bin /bin; do mount --bind /dev/null $it/fusermount3; done";
    let script = r#"
        code=0; fakebinderd >"$XDG_RUNTIME_DIR/said" 2>&1 || code=$?
        tail -n1 "$XDG_RUNTIME_DIR/said"; echo "exit status $code"
        ls "$XDG_RUNTIME_DIR"
        "#;
    let output = run(&programs, setup, script);
    says(
        &output,
        &["  /run/user/65534/fakebinderfs (FUSE): an ordinary user", "exit status 1", "said"],
    );
    let log = told(&output);
    assert!(log.contains("fusermount3 is not here (apt-get install fuse3)"), "{log}");
    assert!(log.contains("/dev/fuse: EACCES: Permission denied (udev opens it"), "{log}");
}

/// With what others have in the way.
#[test]
fn a_place_that_cannot_be_used_is_named() {
    if !possible(&["fusermount3"]) {
        return;
    }
    let programs = Programs::new();
    let script = r#"
        try() { fakebinderd "$@" 2>&1 | tail -n1; }
        try --mount /dev/binderfs
        mkdir "$mount" && touch "$mount/precious"
        try --mount-by fusermount
        try --mount-by namespace
        try --mount-by daemon --mount "$XDG_RUNTIME_DIR/x"
        try --door cuse
        "#;
    says(
        &run(&programs, "", script),
        &[
            "  /dev/binderfs (FUSE): /dev/binderfs: Permission denied",
            "  /run/user/65534/fakebinderfs (FUSE): /run/user/65534/fakebinderfs is not empty",
            "  /run/user/65534/fakebinderfs (FUSE): /run/user/65534/fakebinderfs exists",
            "  /run/user/65534/x (FUSE): mounting on /run/user/65534/x: EPERM",
            "  /dev/fakebinder (CUSE): /dev/cuse: ",
        ],
    );
}

#[test]
fn the_cuse_door_takes_root() {
    if !possible(&[]) {
        return;
    }
    let script = "code=0; fakebinderd --door cuse 2>&1 || code=$?; echo exit status $code";
    let output = run(&Programs::own(), "", script);
    says(&output, &["exit status 1"]);
    assert!(told(&output).contains("(it takes root, and the cuse module)"), "{}", told(&output));
}

/// The mounts of a daemon that was killed: fusermount3's are dead, and the next daemon has them
/// unmounted; those in a namespace have gone with it.
#[test]
fn a_killed_daemon_s_mounts_are_cleared_by_the_next() {
    if !possible(&["fusermount3"]) {
        return;
    }
    let programs = Programs::new();
    for way in WAYS {
        let script = format!(
            r#"
            other=$XDG_RUNTIME_DIR/second
            serve --mount-by {way} --mount "$mount" --mount "$other"
            until [ -e "$other/binder" ]; do sleep 0.05; done
            kill -9 $daemon; wait $daemon || true
            ! ls "$mount/" 2>/dev/null
            serve --mount-by {way} --mount "$mount"
            fb-ping --device "$mount/binder" -n 10
            [ ! -e "$other" ] && [ ! -L "$other" ] && echo "cleared"
            grep -c "$other" /proc/self/mounts || true
            kill $daemon && wait $daemon
            ps -eo args | grep -c '[k]eep-mount' || true
            "#
        );
        let lines = ["fb-ping: ", "cleared", "0", "0"];
        says(&run(&programs, "", &script), &lines);
    }
}

#[test]
fn it_goes_on_in_the_background_and_logs_where_the_user_may() {
    if !possible(&["fusermount3"]) {
        return;
    }
    let script = r#"
        fakebinderd --daemonize
        fb-ping --device "$mount/fakebinder" -n 10
        grep -o 'is mounted by fusermount3' "$XDG_RUNTIME_DIR/fakebinderd.log"
        fakebinderd --name second --mount "$XDG_RUNTIME_DIR/second" --daemonize --log /nowhere/log 2>&1 || true
        "#;
    says(
        &run(&Programs::new(), "", script),
        &["fb-ping: ", "is mounted by", "fakebinderd: /nowhere/log: No such file or directory"],
    );
}

/// Its administrator is the user who runs it.
#[test]
fn the_user_who_runs_it_adds_devices_and_reads_the_logs() {
    if !possible(&["fusermount3"]) {
        return;
    }
    let programs = Programs::new();
    for way in WAYS {
        let script = format!(
            r#"
            serve --mount-by {way}
            stat -Lc '%U %a %n' "$mount/binder-control" "$mount/binder_logs" "$mount/binder"
            head -n1 "$mount/binder_logs/state"
            rm "$mount/other" && ls "$mount"
            "#
        );
        let fs = "/run/user/65534/fakebinderfs";
        says(
            &run(&programs, "", &script),
            &[
                &format!("nobody 600 {fs}/binder-control"),
                &format!("nobody 700 {fs}/binder_logs"),
                &format!("nobody 666 {fs}/binder"),
                "binder state:",
                "binder",
                "features",
            ],
        );
    }
}

/// A container of the user's own, say: the link into another namespace is closed to it, and a mount
/// is not.
#[test]
fn a_program_in_a_user_namespace_enters_a_mount_and_not_a_namespace() {
    if !possible(&["fusermount3"]) {
        return;
    }
    let programs = Programs::new();
    for (way, outcome) in [("fusermount", "your-program: answered on"), ("namespace", "1 fails")] {
        let script = format!(
            r#"
            serve --mount-by {way}
            export LD_PRELOAD=libfakebinder_preload.so
            unshare -Ur your-program "$mount/binder" || unshare -Ur raw-ping "$mount/binder" || echo "$? fails"
            "#
        );
        says(&run(&programs, "export TRIES=3", &script), &[outcome]);
    }
}

/// Where the machine's administrator lets users mount for others: programs in a user namespace with
/// uids of that user's are served, and programs of other users are not.
#[test]
fn programs_of_the_user_s_other_uids_are_served_and_strangers_are_not() {
    if !possible(&["fusermount3", "newuidmap"]) {
        return;
    }
    let programs = Programs::new();
    let setup = "
        echo 65534:200000:65536 >/run/subuid; echo user_allow_other >/run/fuse.conf
        mount --bind /run/subuid /etc/subuid && mount --bind /run/subuid /etc/subgid
        mount --bind /run/fuse.conf /etc/fuse.conf
        mkdir -m 755 /run/open && chown 65534:65534 /run/open";
    let script = r#"
        export LD_PRELOAD=libfakebinder_preload.so
        as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
        as_nobody fakebinderd --name binder --mount /run/open/fs 2>/run/log &
        until [ -e /run/open/fs/binder ]; do sleep 0.05; done
        as_nobody unshare --user --map-root-user --map-auto sh -eu -c '
            your-service /run/open/fs/binder &
            setpriv --reuid 1000 --regid 1000 --clear-groups your-client /run/open/fs/binder
            wait'
        stranger=0
        setpriv --reuid=1234 --regid=1234 --clear-groups raw-ping /run/open/fs/binder || stranger=$?
        echo "a stranger fails at step $stranger"
        grep -o 'by fusermount3, for everybody' /run/log
        "#;
    let output = run_as(&programs, setup, script, &[]);
    // Step 3 is mmap: the daemon may not take the stranger's socket.
    says(
        &output,
        &["called by uid 1000", "a stranger fails at step 3", "by fusermount3, for everybody"],
    );
}

/// Where Yama lets only parents trace: the client library, which is in the preload library, lets the
/// daemon.
#[test]
fn with_yama_the_library_lets_the_daemon_reach_its_program() {
    const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";
    if !possible(&["fusermount3"]) {
        return;
    }
    let Ok(before) = std::fs::read_to_string(SCOPE) else {
        return skip("this kernel has no Yama (that of the VM of tests/vm has)");
    };
    std::fs::write(SCOPE, "1").unwrap();
    let script = r#"
        serve
        fb-ping --device "$mount/binder" -n 10
        grep -o "ptrace_scope is 1: programs must let the daemon" "$XDG_RUNTIME_DIR/log"
        "#;
    let output = run(&Programs::own(), "", script);
    std::fs::write(SCOPE, before).unwrap();
    says(&output, &["fb-ping: ", "ptrace_scope is 1"]);
}
