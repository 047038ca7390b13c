//! The programs of examples/rsbinder, and those of rsbinder's tools that they are used with.

use super::skip;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// What cargo builds for them, where scripts/example-rsbinder does.
pub fn built() -> PathBuf {
    Path::new(PROJECT).join("target/rsbinder")
}

fn cargo(arguments: &[&str]) -> Output {
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.args(arguments).args(["--quiet", "--locked", "--manifest-path"]);
    cargo.arg(Path::new(PROJECT).join("examples/rsbinder/Cargo.toml"));
    cargo.output().expect("cargo is here")
}

fn build() -> Result<(), String> {
    if super::all_is_built() {
        return Ok(());
    }
    let fetched = cargo(&["fetch"]);
    let said = String::from_utf8_lossy(&fetched.stderr).into_owned();
    if !fetched.status.success() {
        // A lock file that is out of date is a fault of ours.
        assert!(!said.contains("--locked"), "{said}");
        return Err(said.lines().next().unwrap_or_default().to_owned());
    }
    let built = cargo(&[
        "build",
        "--target-dir",
        built().to_str().unwrap(),
        "-p",
        "board",
        "-p",
        "rsbinder-tools",
    ]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(())
}

/// The folder that they are in; `None`, and the test is skipped, where they cannot be fetched.
pub fn programs() -> Option<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    match BUILT.get_or_init(build) {
        Ok(()) => Some(built().join("debug")),
        Err(reason) => {
            skip(&format!("rsbinder cannot be fetched: {reason}"));
            None
        }
    }
}
