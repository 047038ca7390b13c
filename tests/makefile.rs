//! The Makefile: every target has its line in `make help`, and what the documents call exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

fn is_target(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

/// The targets that have a recipe or prerequisites in the Makefile.
fn targets() -> BTreeSet<String> {
    let makefile = fs::read_to_string(Path::new(PROJECT).join("Makefile")).unwrap();
    let named = makefile.lines().filter_map(|line| line.split_once(':'));
    let named = named.filter(|(name, rest)| is_target(name) && !rest.starts_with('='));
    named.map(|(name, _)| name.to_owned()).collect()
}

/// What `make help` says of each.
fn help() -> BTreeMap<String, String> {
    let said = Command::new("make").args(["-s", "help"]).current_dir(PROJECT).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let lines = String::from_utf8(said.stdout).unwrap();
    let told = lines.lines().map(|line| line.split_once(' ').expect("a target and its line"));
    told.map(|(name, line)| (name.to_owned(), line.trim().to_owned())).collect()
}

#[test]
fn make_help_has_a_line_for_each_target() {
    let (targets, help) = (targets(), help());
    assert!(targets.contains("run") && targets.contains("fuzz-ci"), "{targets:?}");
    for target in &targets {
        let line = help.get(target);
        assert!(line.is_some_and(|line| !line.is_empty()), "`{target}:` lacks its `## line`");
    }
    for name in help.keys() {
        assert!(targets.contains(name), "{name} is no target");
    }
}

/// The documents for people: those of the project's root and of docs/.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(PROJECT);
    let entries = [root.to_owned(), root.join("docs"), root.join("tests/vm")].map(fs::read_dir);
    let files = entries.into_iter().flat_map(Result::unwrap).map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// `make TARGET` in quotes, or as a line to type.
#[test]
fn what_documents_have_made_are_targets() {
    let targets = targets();
    let mut seen = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let quoted = text.split('`').skip(1).step_by(2).map(str::trim);
        let typed = text.lines().map(|line| line.strip_prefix("$ ").unwrap_or(line));
        for call in quoted.chain(typed).filter_map(|command| command.strip_prefix("make ")) {
            let Some(target) = call.split_whitespace().find(|word| is_target(word)) else {
                continue;
            };
            assert!(targets.contains(target), "{}: make {target}", document.display());
            seen += 1;
        }
    }
    assert!(seen >= 10, "{seen} calls of make were found in the documents");
}
