//! docs/semantics.md against the sources: every row names a function and a test, and both exist.

#[path = "common/named_tests.rs"]
mod named_tests;

use named_tests::{cells, existing_tests, functions, quoted};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The cells of every table row, but for the heads.
fn rows(page: &str) -> Vec<Vec<&str>> {
    cells(page).filter(|cells| cells[0] != "row").collect()
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
