//! `make install` puts its files into a scratch root, and `make uninstall` takes them out again.

mod common;

use common::{program, skip, unique_name};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Root(PathBuf);

impl Root {
    fn new() -> Root {
        let path = std::env::temp_dir().join(unique_name() + "-root");
        fs::create_dir(&path).unwrap();
        Root(path)
    }

    fn install(&self, arguments: &[&str]) -> Output {
        let mut install =
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install"));
        install.args(arguments).env("DESTDIR", &self.0).env("PREFIX", "/usr").output().unwrap()
    }

    fn files(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut folders = vec![self.0.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let path = path.strip_prefix(&self.0).unwrap();
                    found.insert(format!("/{}", path.display()));
                }
            }
        }
        found
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_is_installed_runs_is_documented_and_goes_again() {
    if cfg!(debug_assertions) {
        return skip("it installs what was built for release: cargo test --release");
    }
    for name in ["fb-ping", "fakebinder", "fb-conformance", "libfakebinder_preload.so"] {
        program(name);
    }
    let root = Root::new();
    // What was there before.
    let own = root.at("/usr/share/man/man1/own.1");
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, "mine").unwrap();
    // Again is as good as once.
    for _ in 0..2 {
        let output = root.install(&[]);
        assert!(output.status.success(), "{}", said(&output));
    }
    let files = root.files();
    for path in [
        "/usr/bin/fakebinderd",
        "/usr/bin/fakebinder",
        "/usr/lib/libfakebinder_preload.so",
        "/usr/share/man/man1/fakebinderd.1",
        "/usr/share/man/man1/fakebinder-why.1",
        "/usr/share/bash-completion/completions/fakebinder",
        "/usr/share/zsh/site-functions/_fakebinderd",
        "/usr/share/fish/vendor_completions.d/fakebinderd.fish",
        "/usr/lib/systemd/system/fakebinderd.service",
        "/usr/lib/modules-load.d/fakebinder.conf",
        "/usr/lib/sysusers.d/fakebinder.conf",
        "/usr/lib/tmpfiles.d/fakebinder.conf",
        "/usr/lib/udev/rules.d/60-fakebinder.rules",
    ] {
        assert!(files.contains(path), "{path}: {files:#?}");
    }
    for name in ["fakebinderd", "fakebinder"] {
        let version =
            Command::new(root.at("/usr/bin").join(name)).arg("--version").output().unwrap();
        assert!(said(&version).starts_with(&format!("{name} ")), "{}", said(&version));
    }
    let page = fs::read_to_string(root.at("/usr/share/man/man1/fakebinderd.1")).unwrap();
    assert!(page.contains("\\-\\-page\\-budget") && !page.contains("generate"), "{page}");
    let unit = fs::read_to_string(root.at("/usr/lib/systemd/system/fakebinderd.service")).unwrap();
    assert!(unit.contains("\nExecStart=/usr/bin/fakebinderd $FLAGS\n"), "{unit}");
    let completion = root.at("/usr/share/bash-completion/completions/fakebinderd");
    assert!(fs::read_to_string(completion).unwrap().contains("--page-budget"));

    let output = root.install(&["--uninstall"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(root.files(), BTreeSet::from(["/usr/share/man/man1/own.1".to_owned()]));
    let again = root.install(&["--uninstall"]);
    assert!(
        !again.status.success() && said(&again).contains("nothing is installed"),
        "{}",
        said(&again)
    );
}

#[test]
fn a_wrong_flag_is_refused() {
    let root = Root::new();
    let output = root.install(&["--prefix"]);
    assert!(!output.status.success() && said(&output).contains("usage: "), "{}", said(&output));
    assert_eq!(root.files(), BTreeSet::new());
}

/// As systemd reads it.
#[test]
fn the_unit_is_understood() {
    let found = Command::new("systemd-analyze").arg("--version").output();
    if !found.is_ok_and(|output| output.status.success()) {
        return skip("systemd-analyze is not here");
    }
    let root = Root::new();
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/fakebinderd.service");
    let unit = fs::read_to_string(unit).unwrap().replace("@bindir@/fakebinderd", "/bin/true");
    let path = root.0.join("fakebinderd.service");
    fs::write(&path, unit).unwrap();
    let output =
        Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
    // It says something of other units of the machine's, too.
    let about: Vec<_> =
        said(&output).lines().filter(|it| it.contains("fakebinderd")).map(str::to_owned).collect();
    assert_eq!(about, Vec::<String>::new(), "{}", said(&output));
}

/// What systemd's tools make of the files, in a scratch root.
#[test]
fn the_group_and_the_directory_are_made() {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    for (tool, file, made) in [
        ("systemd-sysusers", "sysusers.conf", "/etc/group"),
        ("systemd-tmpfiles", "tmpfiles.conf", "/dev/fakebinderfs"),
    ] {
        if Command::new(tool).arg("--version").output().is_err() {
            skip(&format!("{tool} is not here"));
            continue;
        }
        let root = Root::new();
        fs::create_dir(root.at("/etc")).unwrap();
        let mut tool = Command::new(tool);
        if file == "tmpfiles.conf" {
            tool.arg("--create");
        }
        let output = tool.arg("--root").arg(&root.0).arg(packaging.join(file)).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        match made {
            "/etc/group" => {
                let groups = fs::read_to_string(root.at(made)).unwrap();
                assert!(groups.lines().any(|line| line.starts_with("fakebinder:")), "{groups}");
            }
            folder => assert!(root.at(folder).is_dir(), "{}", said(&output)),
        }
    }
}

/// Each line has a match and an assignment of udev's; a mistyped one would be ignored at boot.
#[test]
fn the_rules_of_udev_name_the_devices_and_leave_their_permissions_to_the_daemon() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/udev.rules");
    let rules = fs::read_to_string(rules).unwrap();
    let lines = rules.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let lines: Vec<_> = lines.collect();
    assert!(!lines.is_empty());
    for line in lines {
        for part in line.split(", ") {
            let key = part.split(['=', '!', '+']).next().unwrap();
            assert!(["ACTION", "SUBSYSTEM", "KERNEL", "TAG"].contains(&key), "{line}");
            let value = &part[key.len()..].trim_start_matches(['=', '!', '+']);
            assert!(value.starts_with('"') && value.ends_with('"') && value.len() > 2, "{line}");
        }
        assert!(line.contains("SUBSYSTEM==\"cuse\"") && line.contains("|binder|"), "{line}");
    }
}
