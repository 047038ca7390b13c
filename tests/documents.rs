//! What the documents name is there: files and folders of the project, by path, and tests.

#[path = "common/named_tests.rs"]
mod named_tests;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

const DOCUMENTS: [&str; 6] = [
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/libraries.md",
];

/// The folders and files at the root: what a path of the project begins with.
fn beginnings() -> BTreeSet<String> {
    let entries = fs::read_dir(PROJECT).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "target").collect()
}

/// What stands in backquotes, outside of what is set off.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("\n```").step_by(2);
    prose.flat_map(|prose| prose.split('`').skip(1).step_by(2))
}

/// Where links lead that are no addresses of the web.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.filter(|target| !target.contains("://"));
    local.map(|target| target.split('#').next().unwrap()).filter(|target| !target.is_empty())
}

fn exists(path: &str) -> bool {
    Path::new(PROJECT).join(path).exists()
}

#[test]
fn paths_in_documents_exist() {
    let beginnings = beginnings();
    let mut seen = 0;
    for document in DOCUMENTS {
        let text = fs::read_to_string(Path::new(PROJECT).join(document)).unwrap();
        let is_path = |word: &&str| {
            let first = word.split('/').next().unwrap();
            let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
            word.chars().all(plain) && word.contains(['/', '.']) && beginnings.contains(first)
        };
        for path in quoted(&text).filter(is_path) {
            assert!(exists(path), "{document} names `{path}`, which is not there");
            seen += 1;
        }
        let folder = Path::new(PROJECT).join(document).parent().unwrap().to_owned();
        for link in links(&text) {
            assert!(folder.join(link).exists(), "{document} links to {link}, which is not there");
            seen += 1;
        }
    }
    assert!(seen >= 60, "{seen} paths were found in the documents");
}

/// What works without root, and what does not: each cell of that table names the test that says so.
#[test]
fn each_cell_of_the_table_of_what_works_names_a_test() {
    let root = Path::new(PROJECT);
    let page = fs::read_to_string(root.join("docs/doors.md")).unwrap();
    let (_, table) = page.split_once("\n| door | Linux |").expect("the table is there");
    let table = table.split("\n\n").next().unwrap();
    let tests = named_tests::existing_tests(root);
    let (mut rows, mut named) = (0, 0);
    for cells in named_tests::cells(table) {
        let [_, _, _, outcomes @ ..] = &cells[..] else { panic!("too few cells: {cells:?}") };
        assert_eq!(outcomes.len(), 3, "{cells:?}");
        for outcome in outcomes {
            let names = named_tests::quoted(outcome);
            assert!(!names.is_empty(), "{cells:?}: {outcome:?} names no test");
            for name in names {
                assert!(tests.contains(name), "{cells:?}: there is no test {name}");
                named += 1;
            }
        }
        rows += 1;
    }
    assert!(rows >= 5 && named >= 3 * rows, "{rows} rows");
}
