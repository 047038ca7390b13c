//! What somebody meets who builds this for the first time: scripts/install-deps and build.rs, where
//! something is missing. tests/fresh does it on a whole machine.

mod common;

use common::unique_name;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// A folder that goes when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let path = std::env::temp_dir().join(unique_name());
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    /// A folder with this one file, which is as `make` has made it.
    fn holding(&self, name: &str, make: impl Fn(&Path)) -> PathBuf {
        let folder = self.0.join(format!("with-{name}"));
        fs::create_dir(&folder).unwrap();
        make(&folder.join(name));
        folder
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The usual places, after this folder.
    fn path(&self) -> String {
        format!("{}:{}", self.0.display(), std::env::var("PATH").unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn find_libclang() -> Command {
    let mut command = Command::new(Path::new(PROJECT).join("scripts/find-libclang"));
    for name in ["LIBCLANG_PATH", "LLVM_CONFIG_PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH"] {
        command.env_remove(name);
    }
    command
}

fn found(command: &mut Command) -> Vec<PathBuf> {
    let output = command.output().unwrap();
    let found: Vec<PathBuf> =
        String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect();
    assert_eq!(output.status.success(), !found.is_empty());
    found
}

/// Not a test: whether clang-sys, as bindgen uses it, finds a libclang.
#[test]
#[ignore = "a role in other tests"]
fn loads_libclang() {
    clang_sys::load().unwrap();
}

fn clang_sys_finds(path: &Path) -> bool {
    let mut role = Command::new(std::env::current_exe().unwrap());
    role.args(["--ignored", "--exact", "loads_libclang"]).env("LIBCLANG_PATH", path);
    let output = role.output().unwrap();
    let ran = String::from_utf8_lossy(&output.stdout).contains("running 1 test");
    assert!(ran, "{output:?}");
    output.status.success()
}

#[test]
fn the_script_finds_what_bindgen_finds() {
    let real = found(&mut find_libclang()).remove(0);
    let scratch = Scratch::new();
    let library = |path: &Path| symlink(&real, path).unwrap();
    let other_class = |path: &Path| {
        let ours = fs::read(&real).unwrap()[4];
        fs::write(path, [0x7f, b'E', b'L', b'F', 3 - ours, 1, 1]).unwrap();
    };
    let mut cases = vec![
        (scratch.0.join("absent"), false),
        (PathBuf::new(), false),
        (scratch.holding("libclang-broken.so", |path| symlink("nowhere", path).unwrap()), false),
        (scratch.holding("libclang-other.so", other_class), false),
        (scratch.holding("libclang-text.so", |path| fs::write(path, "text").unwrap()), false),
    ];
    for name in ["libclang.so", "libclang-14.so", "libclang.so.13", "libclang-14.so.1"] {
        let folder = scratch.holding(name, library);
        cases.extend([(folder.join(name), true), (folder, true)]);
    }
    for name in ["libclang-cpp.so", "libclang-cpp.so.14", "libclang_rt.so", "libclang.a", "so"] {
        let folder = scratch.holding(name, library);
        cases.extend([(folder.join(name), false), (folder, false)]);
    }
    // A file beside one.
    let folder = scratch.0.join("with-libclang.so");
    library(&folder.join("other.so"));
    cases.push((folder.join("other.so"), false));
    for (path, expected) in cases {
        let theirs = clang_sys_finds(&path);
        let ours = !found(find_libclang().env("LIBCLANG_PATH", &path)).is_empty();
        assert_eq!((theirs, ours), (expected, expected), "LIBCLANG_PATH={}", path.display());
    }
}

#[test]
fn the_script_looks_where_llvm_config_and_the_loader_would() {
    let real = found(&mut find_libclang()).remove(0);
    let scratch = Scratch::new();
    let library = |path: &Path| symlink(&real, path).unwrap();
    let folder = scratch.holding("libclang.so", library);
    let expected = folder.join("libclang.so");
    for variable in ["LD_LIBRARY_PATH", "LIBRARY_PATH"] {
        let value = format!("/nowhere:{}", folder.display());
        assert!(found(find_libclang().env(variable, value)).contains(&expected), "{variable}");
    }
    fs::create_dir(scratch.0.join("lib")).unwrap();
    library(&scratch.0.join("lib/libclang-14.so"));
    scratch.program("config", &format!("echo {}", scratch.0.display()));
    let configured = found(find_libclang().env("LLVM_CONFIG_PATH", scratch.0.join("config")));
    assert!(configured.contains(&scratch.0.join("lib/libclang-14.so")), "{configured:?}");
}

/// Installs nothing, whatever is missing.
fn install_deps(scratch: &Scratch) -> Command {
    for name in ["apt-get", "sudo", "rustup"] {
        scratch.program(name, "echo \"$0 $*\" >&2; exit 1");
    }
    let mut command = Command::new(Path::new(PROJECT).join("scripts/install-deps"));
    command.env("PATH", scratch.path()).env_remove("LIBCLANG_PATH");
    command
}

fn one_line(output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    said
}

fn needed_rust() -> String {
    let manifest = fs::read_to_string(Path::new(PROJECT).join("Cargo.toml")).unwrap();
    let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    line.trim_matches('"').to_owned()
}

#[test]
fn the_oldest_rust_that_will_do_is_written_in_one_place() {
    let needed = needed_rust();
    assert_eq!(needed, env!("CARGO_PKG_RUST_VERSION"));
    let says = |file: &str, what: &str| {
        let text = fs::read_to_string(Path::new(PROJECT).join(file)).unwrap();
        assert!(text.contains(what), "{file} says {what}");
    };
    says("README.md", &format!("Rust {needed} or newer"));
    says("fuzz/Cargo.toml", &format!("rust-version = \"{needed}\""));
    let scratch = Scratch::new();
    for old in ["1.9.0", "1.85.1", "1.87.0-nightly"] {
        scratch.program("cargo", &format!("echo 'cargo {old} (0123456 2025-01-01)'"));
        let said = one_line(&install_deps(&scratch).output().unwrap());
        assert!(said.contains(&format!("Rust {needed} or newer is needed")), "{said}");
        assert!(said.contains(&format!("cargo is {old}")), "{said}");
    }
    for enough in [&format!("{needed}.0"), &format!("{needed}.0-nightly"), "1.100.0"] {
        scratch.program("cargo", &format!("echo 'cargo {enough} (0123456 2025-01-01)'"));
        let said = String::from_utf8(install_deps(&scratch).output().unwrap().stderr).unwrap();
        assert!(!said.contains("Rust"), "{enough}: {said}");
    }
    // rustup's cargo where no toolchain is chosen.
    scratch.program("cargo", "echo 'error: no default is configured' >&2; exit 1");
    let output = install_deps(&scratch).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no default") && said.contains(&needed), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_only_tests_take_is_no_condition_for_building() {
    let scratch = Scratch::new();
    // No 32-bit C library, and apt-get brings nothing.
    let gcc = "for word; do [ \"$word\" != -m32 ] || exit 1; done\ncat >/dev/null";
    scratch.program("gcc", gcc);
    let output = install_deps(&scratch).arg("test").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    if cfg!(target_arch = "x86_64") {
        assert!(said.contains("installing: gcc-multilib"), "{said}");
        assert!(said.contains("gcc-multilib cannot be installed: "), "{said}");
    }
    // What building takes is one.
    scratch.program("gcc", "exit 1");
    let output = install_deps(&scratch).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("libc6-dev linux-libc-dev"), "{said}");
}

#[test]
fn a_libclang_path_without_libclang_is_named() {
    let scratch = Scratch::new();
    let output = install_deps(&scratch).env("LIBCLANG_PATH", &scratch.0).output().unwrap();
    let said = one_line(&output);
    assert!(said.contains(&format!("LIBCLANG_PATH={}", scratch.0.display())), "{said}");
}

/// build.rs as cargo has built it, with an empty folder for its output.
fn build_script(scratch: &Scratch) -> Command {
    let deps = std::env::current_exe().unwrap();
    let built = deps.ancestors().nth(2).unwrap().join("build");
    let mut scripts: Vec<_> = fs::read_dir(&built)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.strip_prefix("fakebinder-").is_some_and(|hash| !hash.contains('-'))
        })
        .map(|folder| folder.join("build-script-build"))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    scripts.sort();
    let (_, newest) = scripts.pop().expect("cargo has built build.rs");
    let mut command = Command::new(newest);
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    command.env("OUT_DIR", &scratch.0).env("TARGET", &host).env("HOST", &host);
    command.env_remove("LIBCLANG_PATH").current_dir(PROJECT);
    command
}

/// The one error that a build script has for cargo, which shows it to the user.
fn build_error(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (told, said) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert_eq!(output.status.code(), Some(1), "{told}{said}");
    assert!(!said.contains("panicked"), "{said}");
    let errors: Vec<&str> =
        told.lines().filter_map(|line| line.strip_prefix("cargo::error=")).collect();
    assert_eq!(errors.len(), 1, "{told}");
    errors[0].to_owned()
}

#[test]
fn a_build_says_in_one_line_what_is_missing() {
    let scratch = Scratch::new();
    let mut whole = build_script(&scratch);
    let output = whole.output().unwrap();
    assert!(output.status.success() && scratch.0.join("uapi.rs").exists(), "{output:?}");

    let empty = scratch.0.join("empty");
    fs::create_dir(&empty).unwrap();
    let error = build_error(build_script(&scratch).env("LIBCLANG_PATH", &empty));
    assert!(error.starts_with(&format!("LIBCLANG_PATH={}", empty.display())), "{error}");

    let error = build_error(build_script(&scratch).env("BINDGEN_EXTRA_CLANG_ARGS", "-nostdinc"));
    assert!(error.starts_with("the kernel header <linux/fuse.h> is missing"), "{error}");
    assert!(error.contains("apt-get install linux-libc-dev"), "{error}");
}
