//! `fakebinder graph`: the live objects as a picture: processes, the nodes that they offer, who
//! refers to whom, and who waits for whom.

use crate::tables::{age, context_name, kind};
use fakebinder::snapshot::deadlock::Index;
use fakebinder::snapshot::{Context, Snapshot};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// The most objects that a picture shows: more cannot be told apart.
pub const MOST: usize = 500;

/// How many objects a picture would show.
pub fn objects(snapshot: &Snapshot) -> usize {
    let of_context = |context: &Context| {
        let of_processes =
            context.processes.iter().map(|it| 1 + it.nodes.len() + it.references.len());
        of_processes.sum::<usize>() + context.dead_nodes.len()
    };
    snapshot.contexts.iter().map(of_context).sum()
}

/// The text of a label, in quotes.
fn quoted(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    format!("\"{}\"", plain.collect::<String>().replace('\\', "/").replace('"', "'"))
}

/// The graph in the DOT language: a box for a process, an ellipse for a node, dashed lines for
/// references, red ones from a thread that waits for a reply to who has the call.
pub fn dot(snapshot: &Snapshot) -> String {
    let mut out = "digraph fakebinder {\n  rankdir=LR;\n".to_owned();
    for context in &snapshot.contexts {
        let name = context_name(snapshot, context);
        let index = Index::new(context);
        let deadlocked = index.deadlocked();
        for process in &context.processes {
            let frozen = if process.is_frozen { ", frozen" } else { "" };
            let label = format!("{} ({}) on {name}{frozen}", process.name, process.pid);
            let _ = writeln!(out, "  p{} [shape=box label={}];", process.id, quoted(&label));
            for node in &process.nodes {
                let manager =
                    if context.manager == Some(node.id) { ": context manager" } else { "" };
                let label = format!("node {}{manager}", node.id);
                let _ = writeln!(out, "  n{} [shape=ellipse label={}];", node.id, quoted(&label));
                let _ = writeln!(out, "  p{} -> n{} [label=\"offers\"];", process.id, node.id);
            }
        }
        for node in &context.dead_nodes {
            let label = format!("node {}: its owner has died", node.id);
            let _ = writeln!(out, "  n{} [shape=ellipse label={}];", node.id, quoted(&label));
        }
        for process in &context.processes {
            for it in &process.references {
                let label = format!("handle {}", it.handle);
                let (from, to) = (process.id, it.node);
                let _ =
                    writeln!(out, "  p{from} -> n{to} [style=dashed label={}];", quoted(&label));
            }
            for thread in &process.threads {
                let Some(call) = index.awaited(thread) else { continue };
                let Some(to) = call.to_process else { continue };
                let deadlock = if deadlocked.contains_key(&thread.id) { ", DEADLOCK" } else { "" };
                let label = format!(
                    "{} waits, {} {}, {}{deadlock}",
                    thread.tid,
                    kind(call),
                    call.id,
                    age(call.age_ms)
                );
                let (from, label) = (process.id, quoted(&label));
                let _ = writeln!(out, "  p{from} -> p{to} [color=red label={label}];");
            }
        }
    }
    out + "}\n"
}

/// The same, drawn by Graphviz. An error if that is not here or fails.
pub fn svg(dot: &str) -> Result<Vec<u8>, String> {
    let mut drawing = Command::new("dot")
        .arg("-Tsvg")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("dot, which draws: {error} (apt-get install graphviz)"))?;
    let mut input = drawing.stdin.take().expect("it is piped");
    // It reads all before it writes.
    let written = input.write_all(dot.as_bytes());
    drop(input);
    let drawn = drawing.wait_with_output().map_err(|error| format!("dot: {error}"))?;
    match drawn.status.success() {
        true => written.map(|()| drawn.stdout).map_err(|error| format!("dot: {error}")),
        false => Err(format!("dot: {}", drawn.status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fakebinder::snapshot::{Node, Process, Reference};

    fn small() -> Snapshot {
        let node = Node { id: 7, ..Node::default() };
        let reference = Reference { handle: 1, node: 7, ..Reference::default() };
        let server = Process {
            id: 1,
            pid: 10,
            name: "a \"server\"\n".to_owned(),
            nodes: vec![node],
            ..Process::default()
        };
        let client = Process {
            id: 2,
            pid: 20,
            name: "client".to_owned(),
            references: vec![reference],
            ..Process::default()
        };
        let context = Context {
            name: "binder".to_owned(),
            processes: vec![server, client],
            ..Context::default()
        };
        Snapshot { contexts: vec![context], ..Snapshot::default() }
    }

    #[test]
    fn what_clients_call_themselves_cannot_end_a_label() {
        let dot = dot(&small());
        assert!(dot.contains("label=\"a 'server' (10) on binder\""), "{dot}");
        assert!(dot.contains("p2 -> n7 [style=dashed label=\"handle 1\"]"), "{dot}");
    }

    #[test]
    fn objects_are_counted() {
        assert_eq!(objects(&small()), 4);
    }
}
