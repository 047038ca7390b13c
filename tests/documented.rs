//! Every command of fakebinder's in the documents is run, in a machine of its own with a daemon.
//!
//! Whole recipes (blocks marked `sh`) are run by tests of their own, as is seen here by their headings;
//! targets of make are looked for by `tests/makefile.rs`.

mod common;

use common::machine::{Programs, possible, told};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// A command as documents have it, without `sudo` and `target/release/`; the script that runs it
/// here, with what a reader would fill in; and what it says.
const COMMANDS: &[(&str, &str, &str)] = &[
    (
        "fakebinderd",
        "timeout --preserve-status --signal=INT 1 fakebinderd --name third --mount /run/third",
        "fakebinderd: ready",
    ),
    ("fb-ping", "fb-ping", "10000 transactions, 0 failed"),
    (
        "fb-ping --clients 4 --payload 5000",
        "fb-ping --clients 4 --payload 5000 -n 500",
        "500 transactions, 0 failed",
    ),
    ("fb-ping --oneway --json", "fb-ping --oneway --json -n 500", "\"failed\":0"),
    ("fb-signals", "fb-signals", ""),
    (
        "LD_PRELOAD=libfakebinder_preload.so your-program",
        "LD_PRELOAD=\"$RELEASE/libfakebinder_preload.so\" your-program /dev/fakebinder",
        "your-program: answered on /dev/fakebinder",
    ),
    (
        "fakebinder exec -- your-program",
        "fakebinder exec -- your-program /dev/fakebinder",
        "your-program: answered on /dev/fakebinder",
    ),
    (
        "fb-conformance --device /dev/binder",
        "fb-conformance --device /dev/binder --filter 'call/*'",
        "ok 1 - ",
    ),
    (
        "fb-differ --reference /dev/binder --device /dev/fakebinder --seed 7 --programs 1000",
        "fb-differ --reference /dev/binder --device /dev/fakebinder --seed 7 --programs 20",
        "20 programs of 1 seeds, 1200 steps, 0 differ",
    ),
    (
        "fakebinder why PID",
        "fakebinder why $SERVICE",
        "waits for something to do: nobody has called it",
    ),
    (
        "fakebinder top",
        "(sleep 1; printf q) | TERM=xterm script -qec 'stty rows 24 cols 80; fakebinder top' /dev/null",
        "OLDEST CALLS",
    ),
    (
        "fakebinder record -o F",
        "fakebinder record -o /run/F --seconds 1 & sleep 0.3; fb-ping -n 20; wait $!",
        "/run/F: ",
    ),
    (
        "fakebinder trace -o F",
        "fakebinder trace -o /run/F --seconds 1 & sleep 0.3; fb-ping -n 20; wait $!",
        " slices, ",
    ),
    ("fakebinder procs", "fakebinder procs", "raw-ping"),
    (
        "fakebinder graph --svg graph.svg",
        "cd /run; fakebinder graph --svg graph.svg",
        "are drawn in graph.svg",
    ),
    (
        "tests/vm/run -- sh -c 'fb-differ --device /dev/binder --device /dev/hwbinder --seed 1,2,3 --programs 1000 --record $FAKEBINDER_VM_OUT/driver-programs.txt'",
        "fb-differ --device /dev/binder --device /dev/fakebinder --seed 1,2,3 --programs 4 --record /run/driver-programs.txt",
        "12 programs of 3 seeds",
    ),
    (
        "fb-differ --against tests/expected/driver-programs.txt --device /dev/fakebinder",
        "cd \"$PROJECT\"; fb-differ --against tests/expected/driver-programs.txt --device /dev/fakebinder --programs 2",
        " 0 differ",
    ),
    (
        "fb-stress --device /dev/fakebinder --seconds 600",
        "fb-stress --device /dev/fakebinder --seconds 3",
        "failed checks",
    ),
    (
        "cat /dev/fakebinderfs/binder_logs/failed_transaction_log",
        "cat /dev/fakebinderfs/binder_logs/failed_transaction_log",
        "call  from ",
    ),
    (
        "fakebinderd --name binder --mount /run/fakebinder/one/fs",
        "timeout --preserve-status --signal=INT 1 fakebinderd --name third --mount /run/fakebinder/one/fs",
        "fakebinderd: ready",
    ),
    (
        "fakebinder why 4242",
        "fakebinder why $SERVICE",
        "waits for something to do: nobody has called it",
    ),
    (
        "fakebinder record -o board.json &",
        "cd /run; fakebinder record -o board.json --seconds 1 & sleep 0.3; fb-ping -n 20; wait $!",
        "board.json: ",
    ),
    (
        "fakebinder replay board.json --device /dev/fakebinder --against /dev/binder",
        "cd /run; fakebinder replay board.json --device /dev/fakebinder --against /dev/binder",
        "all as on /dev/binder",
    ),
    (
        "fakebinder inject 'alloc_page:share=0.01, write_memory:pid=4242:delay=1ms'",
        "fakebinder inject 'alloc_page:share=0.01, write_memory:pid=4242:delay=1ms'; fakebinder inject --off",
        "alloc_page:share=0.01: has hit 0 of 0 calls",
    ),
    (
        "fb-conformance --device /dev/fakebinder --filter 'oneway/*'",
        "fb-conformance --device /dev/fakebinder --filter 'oneway/*'",
        " - oneway/",
    ),
    (
        "fb-differ --reference /tmp/a/before --device /tmp/b/after --seed 7 --programs 1000 --save found",
        "fb-differ --reference /dev/binder --device /dev/fakebinder --seed 7 --programs 5 --save /run/found",
        " 0 differ",
    ),
    (
        "fb-differ --reference /tmp/a/before --device /tmp/b/after --replay found/7-12.json",
        "fb-differ --reference /dev/binder --device /dev/fakebinder --replay \"$PROJECT/tests/sessions/nested.json\"",
        "no difference",
    ),
    (
        "fakebinder replay session.json --device /tmp/b/after --against /tmp/a/before",
        "fakebinder replay \"$PROJECT/tests/sessions/nested.json\" --device /dev/fakebinder --against /dev/binder",
        "all as on /dev/binder",
    ),
];

/// The documents with commands for users, with their texts.
fn documents() -> Vec<(String, String)> {
    let docs = fs::read_dir(Path::new(PROJECT).join("docs")).unwrap();
    let docs = docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().display()));
    let docs = docs.filter(|name| name.ends_with(".md"));
    let mut names: Vec<String> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned).into();
    names.extend(docs);
    names.sort();
    let text = |name: String| (fs::read_to_string(Path::new(PROJECT).join(&name)).unwrap(), name);
    names.into_iter().map(text).map(|(text, name)| (name, text)).collect()
}

/// The blocks of a document: what stands behind the opening quotes, and the lines.
fn blocks(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(kind) = line.strip_prefix("```") {
            blocks.push((kind, lines.by_ref().take_while(|line| *line != "```").collect()));
        }
    }
    blocks
}

/// The commands of fakebinder's that a document has its reader type, but for recipes.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (kind, lines) in blocks(text) {
        let prompts = lines.iter().any(|line| line.starts_with("$ "));
        if kind == "sh" || (!kind.is_empty() && !prompts) {
            continue;
        }
        let block = lines.join("\n").replace("\\\n", " ");
        for line in block.lines() {
            let Some(line) = (if prompts { line.strip_prefix("$ ") } else { Some(line) }) else {
                continue;
            };
            let line = line.split(" #").next().unwrap_or_default();
            let words: Vec<_> =
                line.split_ascii_whitespace().filter(|word| *word != "sudo").collect();
            let typed = words.join(" ").replace("target/release/", "");
            let ours = ["fakebinder", "fb-", "LD_PRELOAD=", "cat /dev/", "tests/vm/run "];
            if ours.iter().any(|begin| typed.starts_with(begin)) {
                found.push(typed);
            }
        }
    }
    found
}

#[test]
fn every_command_in_the_documents_is_one_that_is_run() {
    let known: BTreeSet<&str> = COMMANDS.iter().map(|(command, ..)| *command).collect();
    let mut named = BTreeSet::new();
    for (document, text) in documents() {
        for command in commands(&text) {
            assert!(known.contains(&*command), "{document}: nobody runs {command}");
            named.insert(command);
        }
    }
    let gone: Vec<_> = known.iter().filter(|command| !named.contains(**command)).collect();
    assert!(gone.is_empty(), "no document has them: {gone:?}");
}

#[test]
fn every_recipe_in_the_documents_is_named_by_a_test() {
    let tests = ["tests/recipes.rs", "tests/library_recipes.rs"];
    let tests =
        tests.map(|name| fs::read_to_string(Path::new(PROJECT).join(name)).unwrap()).concat();
    let mut recipes = 0;
    for (document, text) in documents() {
        for section in text.split("\n## ").skip(1) {
            let heading = section.lines().next().unwrap_or_default();
            for _ in blocks(section).iter().filter(|(kind, _)| *kind == "sh") {
                assert!(
                    tests.contains(&format!("\"{heading}\"")),
                    "{document}: nobody runs {heading}"
                );
                recipes += 1;
            }
        }
    }
    assert!(recipes > 5, "{recipes} recipes");
}

#[test]
fn commands_in_the_documents_do_what_is_said_of_them() {
    if !possible(&["dot", "script"]) {
        return;
    }
    let programs = Programs::new();
    // One machine for all: a daemon with three devices, and a service on one of them.
    let mut script = r#"
PATH="$RELEASE:$PATH"
fakebinderd --name fakebinder --name binder --name hwbinder --mount /dev/fakebinderfs >/run/daemon.log 2>&1 &
until grep -q 'fakebinderd: ready' /run/daemon.log; do sleep 0.1; done
raw-ping /dev/hwbinder serve & SERVICE=$!
raw-ping /dev/fakebinder >/run/refused 2>&1 || true
export SERVICE
"#
    .to_owned();
    for (number, (_, command, _)) in COMMANDS.iter().enumerate() {
        script += &format!(
            "echo '>>> {number}'; ({command}) 2>&1 </dev/null || echo \"<<< status $?\"\n"
        );
    }
    script += "kill $SERVICE\n";
    let mut machine = programs.machine(120, "", &script, &[]);
    machine.env("PROJECT", PROJECT);
    let output = machine.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut parts = said.split(">>> ").skip(1);
    let mut wrong = Vec::new();
    for (number, (command, _, says)) in COMMANDS.iter().enumerate() {
        let part = parts.next().unwrap_or_default();
        let came = part.starts_with(&format!("{number}\n"));
        if !came || part.contains("<<< status") || !part.contains(says) {
            wrong.push(format!("{command} does not say '{says}': {part}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), told(&output));
}
