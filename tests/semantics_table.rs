//! docs/semantics.md against the sources: every row names a function and a test, and both exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The cells of every table row, but for the heads.
fn rows(page: &str) -> Vec<Vec<&str>> {
    page.lines()
        .filter(|line| line.starts_with('|') && !line.starts_with("|---"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells[0] != "row")
        .collect()
}

/// What stands in backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The functions in a source, and whether each is a test.
fn functions(source: &str) -> Vec<(&str, bool)> {
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

/// Every integration test of this package, named as in the page.
fn existing_tests(root: &Path) -> BTreeSet<String> {
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

fn function_exists(root: &Path, named: &str) -> bool {
    let Some((file, name)) = named.split_once(": ") else { return false };
    let source = fs::read_to_string(root.join("src").join(file)).unwrap_or_default();
    functions(&source).iter().any(|(function, _)| *function == name)
}

/// What is wrong with a page.
fn faults(page: &str, root: &Path) -> Vec<String> {
    let tests = existing_tests(root);
    let mut faults = Vec::new();
    for cells in rows(page) {
        let [row, implemented, guarded] = cells[..] else {
            faults.push(format!("not three cells: {cells:?}"));
            continue;
        };
        let (functions, guards) = (quoted(implemented), quoted(guarded));
        if functions.is_empty() {
            faults.push(format!("\"{row}\" names no function"));
        }
        if guards.is_empty() {
            faults.push(format!("\"{row}\" names no test"));
        }
        for function in functions.iter().filter(|named| !function_exists(root, named)) {
            faults.push(format!("\"{row}\": there is no function {function}"));
        }
        for guard in guards.iter().filter(|named| !tests.contains(**named)) {
            faults.push(format!("\"{row}\": there is no test {guard}"));
        }
    }
    faults
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_row_names_functions_and_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/semantics.md")).expect("the page");
    assert!(rows(&page).len() > 80, "the page lists the whole of binder");
    let faults = faults(&page, root());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Every command, return, ioctl and object is in a row.
#[test]
fn every_number_of_the_protocol_is_in_a_row() {
    let page = fs::read_to_string(root().join("docs/semantics.md")).expect("the page");
    let rows: Vec<&str> = rows(&page).into_iter().map(|cells| cells[0]).collect();
    let known = |name: &str| {
        let whole = |row: &&str| {
            row.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == name)
        };
        rows.iter().any(whole)
    };
    let mut named = 0;
    for (file, prefix) in [
        ("src/protocol/command.rs", "BC_"),
        ("src/protocol/returns.rs", "BR_"),
        ("src/uapi.rs", "BINDER_"),
    ] {
        let source = fs::read_to_string(root().join(file)).expect("a readable source");
        let words = source.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: BTreeSet<&str> = words.filter(|word| word.starts_with(prefix)).collect();
        for name in names {
            // A pattern in a comment; and two that the driver never sends.
            if name == prefix || ["BR_FINISHED", "BR_ACQUIRE_RESULT"].contains(&name) {
                continue;
            }
            assert!(known(name), "no row speaks of {name}");
            named += 1;
        }
    }
    assert!(named > 50, "found only {named} numbers");
}

#[test]
fn faults_of_a_page_are_found() {
    let faults = faults(
        "| row | implemented by | guarded by |\n|---|---|---|\n\
         | no test | `binder.rs: open` | |\n\
         | no such test | `binder.rs: open` | `scenes::file::there_is_no_such_scene` |\n\
         | not a test | `binder.rs: open` | `scenes::support::pair` |\n\
         | no such function | `binder.rs: there_is_none` | `scenes::file::a_second_mapping_is_ebusy` |\n\
         | two cells | |\n\
         | fine | `binder.rs: open` | `scenes::file::a_second_mapping_is_ebusy` |\n",
        root(),
    );
    assert_eq!(faults.len(), 5, "{faults:#?}");
}
