//! The commands of the README and of docs/libraries.md work as they stand there.

mod common;

use common::machine::{Programs, possible, recipe, says};
use common::{rsbinder, skip};
use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");
const LIBRARIES: &str = "docs/libraries.md";

/// The most seconds that a recipe may take: one builds a program.
const MOST: u32 = 300;

/// What of this machine's a recipe changes.
const OWN_FILES: &str = "
mkdir /run/log && mount --bind /run/log /var/log
cp -a /etc /run/etc && mount --bind /run/etc /etc";

/// fakebinder's programs, and those of examples/rsbinder and of rsbinder's tools; `None` where
/// these cannot be had.
fn with_rsbinder() -> Option<Programs> {
    let built = rsbinder::programs()?;
    let programs = Programs::own();
    for name in ["board-service", "board-client", "rsb_hub", "rsb_service"] {
        symlink(built.join(name), programs.0.join(name)).unwrap();
    }
    Some(programs)
}

#[test]
fn a_service_of_ones_own_takes_a_few_commands() {
    if !possible(&[]) || rsbinder::programs().is_none() {
        return;
    }
    let programs = Programs::own();
    let folder = programs.0.join("clone");
    fs::create_dir_all(folder.join("target/release")).unwrap();
    symlink(env!("CARGO_BIN_EXE_fakebinderd"), folder.join("target/release/fakebinderd")).unwrap();
    symlink(Path::new(PROJECT).join("examples"), folder.join("examples")).unwrap();
    fs::write(programs.0.join("sudo"), "#!/bin/sh\nexec \"$@\"\n").unwrap();
    fs::set_permissions(programs.0.join("sudo"), fs::Permissions::from_mode(0o755)).unwrap();
    // Crates that are compiled already need not be once more (Rust 1.91).
    let recipe = format!(
        "export CARGO_BUILD_BUILD_DIR={}\n{}",
        rsbinder::built().display(),
        recipe("README.md", "A service of your own, in ten minutes")
    );
    let home = PathBuf::from(env::var_os("HOME").unwrap());
    let real = |name: &str, folder: &str| env::var_os(name).unwrap_or(home.join(folder).into());
    let mut machine = programs.machine(MOST, "", &recipe, &[]);
    machine.env("CARGO_HOME", real("CARGO_HOME", ".cargo"));
    machine.env("RUSTUP_HOME", real("RUSTUP_HOME", ".rustup"));
    let output = machine.env("HOME", &folder).current_dir(&folder).output().unwrap();
    let lines = ["registered ", "load         100000 calls by 8 clients, 0 failed, ", "death "];
    says(&output, &lines);
}

#[test]
fn rsbinder_is_told_which_device() {
    if !possible(&[]) {
        return;
    }
    let Some(programs) = with_rsbinder() else { return };
    let lines = [
        "load         1000 calls by 2 clients, 0 failed, ",
        "manager",
        "board: not registered",
        "board has left other, and was never on binder",
    ];
    let recipe = recipe(LIBRARIES, "rsbinder");
    says(&programs.machine(MOST, OWN_FILES, &recipe, &[]).output().unwrap(), &lines);
}

/// What binder-list says, and whether binder-ping finds the service, at each level of the API.
const LEVELS: &str = r#"
for level in none 28 29 30 31 34 35 36; do
    rm -f /etc/gbinder.d/fakebinder.conf
    [ $level = none ] || printf "[General]\nApiLevel = $level\n" >/etc/gbinder.d/fakebinder.conf
    found=nothing
    if timeout 20 binder-ping -q -d /dev/binder board; then found=board; fi
    echo "$level: finds $found, lists" $(timeout 20 binder-list -d /dev/binder)
done
rm -f /etc/gbinder.d/fakebinder.conf
printf '[Protocol]\nDefault = aidl3\n[ServiceManager]\nDefault = aidl6\n' >/etc/gbinder.conf
echo "by another name:" $(binder-list -d /dev/binderfs/binder)
binder-ping -d /dev/binderfs/binder board 2>&1 || echo "status $?"
"#;

#[test]
fn libgbinder_is_told_which_protocol() {
    if !possible(&[]) {
        return;
    }
    let Some(programs) = with_rsbinder() else { return };
    let fetch = Command::new(Path::new(PROJECT).join("tests/fetch-libgbinder")).output().unwrap();
    let said = String::from_utf8_lossy(&fetch.stdout).into_owned();
    if !fetch.status.success() {
        return skip(said.trim_end().trim_start_matches("SKIPPED: "));
    }
    for name in ["binder-list", "binder-ping", "binder-call", "binder-bridge"] {
        symlink(Path::new(said.trim_end()).join(name), programs.0.join(name)).unwrap();
    }
    let recipe = recipe(LIBRARIES, "libgbinder") + LEVELS;
    let output = programs.machine(MOST, OWN_FILES, &recipe, &[]).output().unwrap();
    let lines = [
        "OK",
        "board",
        "manager",
        "0 \"hello, binder\"",
        "board: registered (board.IBoard)",
        "0 \"hello, bridge\"",
        "notes: 0",
        "none: finds nothing, lists",
        "28: finds nothing, lists",
        "29: finds nothing, lists",
        "30: finds nothing, lists",
        "31: finds nothing, lists",
        "34: finds nothing, lists",
        "35: finds board, lists",
        "36: finds board, lists board manager",
        "by another name: board manager",
        "ERROR: Ping failed (-74)",
        "status 3",
    ];
    says(&output, &lines);
    // Whoever finds nothing lists nothing.
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.lines().filter(|line| line.ends_with("lists")).count(), 7, "{said}");
}
