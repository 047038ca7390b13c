//! The faults of fuzz/planted, and the tool that plants them (`scripts/planted`): what it is good
//! for is run by `make wrong-rules`, `make planted-model` and `make fuzz-planted`, which take
//! minutes.

#[path = "common/skip.rs"]
mod skip;

use skip::skip;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of one test, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("fakebinder-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a new folder");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the tool; none where it cannot run.
fn planted(tool: &Path, work: &Path, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new("python3");
    command.arg(tool).args(arguments).env("PLANTED_DIR", work).env_remove("CI");
    command.env_remove("FAKEBINDER_NO_SKIP");
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            skip(&format!("python3: {error}"));
            return None;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(reason) = text.strip_prefix("SKIPPED: ") {
        skip(reason.trim());
        return None;
    }
    Some(output)
}

fn tool() -> PathBuf {
    root().join("scripts/planted")
}

#[test]
fn every_patch_applies_and_says_who_is_to_find_it() {
    let folder = Folder::new("planted-check");
    let Some(output) = planted(&tool(), &folder.0, &["check"]) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_patch_that_does_not_apply_is_told() {
    let folder = Folder::new("planted-bad");
    let good = fs::read_to_string(root().join("fuzz/planted/rule-frozen-refuses-oneway.patch"));
    let good = good.expect("a patch");
    let line = "-        if frozen && !oneway {";
    assert!(good.contains(line));
    for (bad, reason) in [
        (good.replace(line, "-        if !oneway && frozen {"), "does not apply"),
        (good.replace("clients: ", "somebody: "), "no line says who is to find it"),
    ] {
        let path = folder.0.join("bad.patch");
        fs::write(&path, bad).expect("a file");
        let path = path.to_str().expect("a path");
        let Some(output) = planted(&tool(), &folder.0, &["check", path]) else { return };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains(reason), "{text}");
    }
}

/// As from a source archive: the tool lies in a tree that is no checkout.
#[test]
fn a_patch_is_planted_in_a_copy_and_the_one_before_it_is_not() {
    let folder = Folder::new("planted-copy");
    let (tree, work) = (folder.0.join("sources"), folder.0.join("work"));
    for part in ["src/alloc", "scripts", "fuzz/planted"] {
        fs::create_dir_all(tree.join(part)).expect("a folder");
    }
    let patch = |name: &str| format!("fuzz/planted/{name}.patch");
    let (first, second) = ("rule-oneway-has-all-the-space", "13-no-race-fallback");
    let files = ["src/alloc.rs", "src/alloc/buffers.rs", "scripts/planted"].map(str::to_owned);
    for file in files.into_iter().chain([patch(first), patch(second)]) {
        fs::copy(root().join(&file), tree.join(&file)).expect("a copy");
    }
    let differing = || -> Vec<&str> {
        let of = |tree: &Path, file: &str| fs::read_to_string(tree.join(file)).expect("a source");
        let copy = work.join("tree");
        let files = ["src/alloc.rs", "src/alloc/buffers.rs"].into_iter();
        files.filter(|file| of(&tree, file) != of(&copy, file)).collect()
    };
    let tool = tree.join("scripts/planted");
    for (name, expected) in [(first, "src/alloc/buffers.rs"), (second, "src/alloc.rs")] {
        let Some(output) = planted(&tool, &work, &["tree", name]) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(differing(), [expected], "{name}");
    }
}
