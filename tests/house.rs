//! The rooms of the library: who uses whom. Data goes down, and nothing below knows anything above.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The top modules, from the top. A module uses those in lines below its own, never one beside it
/// or above.
const FLOORS: &[&[&str]] = &[
    &["device"],
    &["binder"],
    &["alloc"],
    &["mm_shim", "shrinker"],
    &["client_mem", "quota"],
    &["memory", "shortage"],
    &["probe", "log_writer"],
    &["client_log", "recorder"],
    &["events"],
    &["sync"],
    &["lock_order", "protocol"],
    &["page", "snapshot", "uapi"],
];

/// A source without its comments, and without what only its tests have.
fn product(source: &str) -> String {
    let mut kept = String::new();
    let mut lines = source.lines().peekable();
    while let Some(line) = lines.next() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        if code != "#[cfg(test)]" && !code.starts_with("#[cfg(all(test, ") {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        // Formatted code: what has braces ends with a brace as far to the right as it begins.
        let indent = &line[..line.len() - code.len()];
        let item = lines.find(|line| !line.trim_start().starts_with("#[")).unwrap_or_default();
        if item.ends_with('{') {
            let end = format!("{indent}}}");
            lines.find(|line| *line == end);
        }
    }
    kept
}

/// The top modules that a source names: `crate::NAME`, and `use crate::{NAME, OTHER::...}`.
fn named(source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for rest in source.split("crate::").skip(1) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let word = |text: &str| text.chars().take_while(|&c| is_name(c)).collect::<String>();
        let Some(list) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        // What stands after the first brace, and after each comma outside of a further one.
        let mut depth = 0;
        let mut begins = true;
        for (at, c) in list.char_indices() {
            if begins && is_name(c) {
                names.insert(word(&list[at..]));
                begins = false;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ => {}
            }
        }
    }
    names
}

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => {
                found.push(path);
            }
            false => {}
        }
    }
}

/// Which top modules each one uses.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut arrows = BTreeMap::<String, BTreeSet<String>>::new();
    for file in files {
        let path = file.strip_prefix(&src).expect("within src");
        // `mod tests;` in a file of its own.
        let room = path.iter().next().expect("a name").to_str().expect("a name");
        let room = room.trim_end_matches(".rs").to_owned();
        if matches!(&*room, "lib" | "main" | "daemon") || path.ends_with("tests.rs") {
            continue;
        }
        let source = fs::read_to_string(&file).expect("a source");
        arrows.entry(room).or_default().extend(named(&product(&source)));
    }
    let rooms: BTreeSet<String> = arrows.keys().cloned().collect();
    for (room, used) in &mut arrows {
        used.retain(|name| rooms.contains(name) && name != room);
    }
    arrows
}

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&room))
}

#[test]
fn every_arrow_between_the_top_modules_goes_down() {
    let arrows = arrows();
    assert!(arrows["alloc"].contains("mm_shim"), "arrows are found: {arrows:?}");
    let mut wrong = Vec::new();
    for (room, used) in &arrows {
        let Some(floor) = floor_of(room) else {
            wrong.push(format!("{room} is on no floor"));
            continue;
        };
        for other in used {
            if floor_of(other).is_some_and(|other| other <= floor) {
                wrong.push(format!("{room} uses {other}, which is not below it"));
            }
        }
    }
    let gone = FLOORS.iter().copied().flatten().filter(|room| !arrows.contains_key(**room));
    wrong.extend(gone.map(|room| format!("there is no {room}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_named_is_found_and_what_only_tests_name_is_not() {
    let source = "use crate::alloc::Alloc;\n\
                  use crate::{Errno, binder::{self, copies}, mm_shim};\n\
                  // crate::comment\n\
                  fn f() { crate::page::g() }\n\
                  #[cfg(test)]\nmod tests {\n    use crate::sim::World;\n}\n\
                  #[cfg(test)]\n#[allow(dead_code)]\nuse crate::quota::User;\n\
                  use crate::uapi;\n";
    let names = named(&product(source));
    let expected = ["Errno", "alloc", "binder", "mm_shim", "page", "uapi"].map(str::to_owned);
    assert_eq!(names, BTreeSet::from(expected));
}
