//! Tests that documents name, as `cargo test` does: `FILE::NAME`, or `scenes::FILE::NAME`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The cells of every table row, but for the heads.
pub fn cells(page: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = page.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>())
}

/// What stands in backquotes.
pub fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The functions in a source, and whether each is a test.
pub fn functions(source: &str) -> Vec<(&str, bool)> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        let declared = line
            .split_once("fn ")
            .filter(|(before, _)| before.is_empty() || before.starts_with("pub"))
            .and_then(|(_, rest)| rest.split_once(['(', '<']));
        if let Some((name, _)) = declared {
            found.push((name, is_test));
        }
        // Attributes and comments may stand between.
        is_test =
            line == "#[test]" || (is_test && (line.starts_with("#[") || line.starts_with("//")));
    }
    found
}

fn tests_of(file: &Path, prefix: &str, tests: &mut BTreeSet<String>) {
    let source = fs::read_to_string(file).expect("a readable source");
    let names = functions(&source).into_iter().filter(|(_, is_test)| *is_test);
    tests.extend(names.map(|(name, _)| format!("{prefix}::{name}")));
}

/// Every integration test of this package.
pub fn existing_tests(root: &Path) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for (directory, prefix) in [("tests", ""), ("tests/scenes", "scenes::")] {
        for entry in fs::read_dir(root.join(directory)).expect("a directory of tests") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let stem = path.file_stem().expect("a name").to_string_lossy();
                tests_of(&path, &format!("{prefix}{stem}"), &mut tests);
            }
        }
    }
    tests
}
