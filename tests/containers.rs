//! The daemon in and beside containers: what of a file system is shared with whom.
//!
//! A container here is a mount namespace (util-linux's unshare) with what makes the difference.

mod common;

use common::{Door, Killed, PATIENCE, program, skip, unique_name, wait_until};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

const DAEMON: &str = env!("CARGO_BIN_EXE_fakebinderd");

fn possible() -> bool {
    let possible = nix::unistd::geteuid().is_root() && Door::Fuse.is_here();
    if !possible {
        skip("it takes root and /dev/fuse");
    }
    possible
}

/// A directory of the test's own, in which nothing is mounted for the others to see.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let path = std::env::temp_dir().join(unique_name());
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A shell in a mount namespace of its own, with `$FAKEBINDERD`, `$PING`, `$DIR` and `$NAME`.
/// `wait_for COMMAND...` gives that up to 20 s to become true.
fn container(script: &str, scratch: &Scratch, name: &str) -> Command {
    const PRELUDE: &str = "set -eu; trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
        wait_for() { n=0; until \"$@\" 2>/dev/null; do n=$((n+1)); [ $n -lt 400 ]; sleep 0.05; done; }
        ";
    // What is left of a script that fails halfway must not keep its output open for ever.
    let mut shell = Command::new("timeout");
    shell.args(["--kill-after=1", "60", "unshare"]);
    shell.args(["-m", "--propagation", "private", "sh", "-c"]).arg(format!("{PRELUDE}{script}"));
    shell.env("FAKEBINDERD", DAEMON).env("PING", program("fb-ping"));
    shell.env("DIR", &scratch.0).env("NAME", name).env_remove("RUST_LOG");
    shell.stdin(Stdio::null());
    shell
}

fn run(script: &str, scratch: &Scratch, name: &str) -> Output {
    let output = container(script, scratch, name).output().expect("unshare is here");
    let _ = std::io::stdout().write_all(&output.stdout);
    let _ = std::io::stdout().write_all(&output.stderr);
    output
}

fn works(script: &str, scratch: &Scratch, name: &str) -> String {
    let output = run(script, scratch, name);
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// /dev as a read-only root file system has it, or a container that gives no rights.
const READ_ONLY_DEV: &str = "
    mkdir \"$DIR/dev\" \"$DIR/links\"; mount -t tmpfs none \"$DIR/dev\"
    for file in fuse null zero; do touch \"$DIR/dev/$file\"; mount --bind /dev/$file \"$DIR/dev/$file\"; done
    mount -o remount,bind,ro \"$DIR/dev\"; mount --rbind \"$DIR/dev\" /dev
    if touch /dev/x 2>/dev/null; then exit 99; fi
    mkdir -p \"$DIR/fs\"
    ";

#[test]
fn the_daemon_starts_where_dev_cannot_be_written() {
    if !possible() {
        return;
    }
    for (options, link) in [("", "none"), ("--no-link", "none"), ("--link $DIR/links", "links")] {
        let (scratch, name) = (Scratch::new(), unique_name());
        let script = format!(
            "{READ_ONLY_DEV}
            \"$FAKEBINDERD\" --name $NAME --door fuse --mount \"$DIR/fs\" {options} &
            wait_for test -L \"$DIR/fs/$NAME\"
            \"$PING\" --device \"$DIR/fs/$NAME\" -n 10
            if [ {link} != none ]; then wait_for \"$PING\" --device \"$DIR/{link}/$NAME\" -n 10; fi
            kill $!; wait $!
            test ! -e \"$DIR/links/$NAME\" -a ! -L \"$DIR/links/$NAME\"
            "
        );
        let said = works(&script, &scratch, &name);
        let missed = said.contains(&format!("there is no link /dev/{name}"));
        assert_eq!(missed, options.is_empty(), "{options}: {said}");
    }
    // A link that was asked for has to be.
    let (scratch, name) = (Scratch::new(), unique_name());
    let script = format!(
        "{READ_ONLY_DEV}
        \"$FAKEBINDERD\" --name $NAME --door fuse --mount \"$DIR/fs\" --link /dev"
    );
    let output = run(&script, &scratch, &name);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("/dev/{name}: Read-only file system")), "{said}");
}

/// Both have a /dev and a mount of their own, of the same names, and share /run.
#[test]
fn daemons_in_two_containers_do_not_meet() {
    if !possible() {
        return;
    }
    let (scratch, name) = (Scratch::new(), unique_name());
    let script = "
        mkdir -p \"$DIR/$WHO\"; mount -t tmpfs none \"$DIR/$WHO\"
        for file in fuse null; do touch \"$DIR/$WHO/$file\"; mount --bind /dev/$file \"$DIR/$WHO/$file\"; done
        mount --rbind \"$DIR/$WHO\" /dev
        \"$FAKEBINDERD\" --name $NAME --door fuse &
        wait_for \"$PING\" --device /dev/$NAME -n 10
        touch \"$DIR/$WHO.up\"
        wait_for test -e \"$DIR/stop\"
        \"$PING\" --device /dev/$NAME -n 10
        kill $!; wait $!
        test ! -L /dev/$NAME
        ";
    let start = |who: &str| -> Child {
        container(script, &scratch, &name).env("WHO", who).spawn().expect("unshare is here")
    };
    let mut both = [Killed(start("one")), Killed(start("two"))];
    let up = |who: &str| scratch.0.join(format!("{who}.up")).exists();
    assert!(wait_until(PATIENCE, || up("one") && up("two")), "both are up at the same time");
    fs::write(scratch.0.join("stop"), "").unwrap();
    for it in &mut both {
        assert!(it.0.wait().unwrap().success());
    }
}

/// The recipe of the README: the mount below a directory that is bound as a slave.
#[test]
fn a_container_finds_the_daemon_again_that_was_restarted() {
    if !possible() {
        return;
    }
    let (scratch, name) = (Scratch::new(), unique_name());
    // The whole host is in a namespace of its own, with a /run that is shared as systemd's is.
    let script = "
        mount -t tmpfs none /run; mount --make-shared /run; mkdir /run/fakebinder
        start() { \"$FAKEBINDERD\" --name $NAME --door fuse --no-link --mount /run/fakebinder/fs & daemon=$!; }
        start
        wait_for test -L /run/fakebinder/fs/$NAME
        mkdir \"$DIR/inside\"
        unshare -m --propagation slave sh -euc '
            mount --rbind /run/fakebinder \"$DIR/inside\"; mount --make-rslave \"$DIR/inside\"
            mount -t tmpfs -o ro none /run
            touch \"$DIR/ready\"
            for round in 1 2 3; do
                until [ -e \"$DIR/round$round\" ]; do sleep 0.05; done
                \"$PING\" --device \"$DIR/inside/fs/$NAME\" -n 10
                touch \"$DIR/done$round\"
            done' & inside=$!
        wait_for test -e \"$DIR/ready\"
        touch \"$DIR/round1\"; wait_for test -e \"$DIR/done1\"
        kill $daemon; wait $daemon
        start
        wait_for test -L /run/fakebinder/fs/$NAME
        touch \"$DIR/round2\"; wait_for test -e \"$DIR/done2\"
        kill -9 $daemon; wait $daemon || true
        start
        wait_for test -L /run/fakebinder/fs/$NAME
        touch \"$DIR/round3\"
        wait $inside
        kill $daemon; wait $daemon
        ";
    works(script, &scratch, &name);
}
