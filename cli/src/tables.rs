//! What a daemon holds, as tables: `fakebinder procs`, `transactions` and `stats`.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use fakebinder::snapshot::{Context, Process, Snapshot, Thread, Transaction, Waits, Work};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Writing into a `String` cannot fail.
macro_rules! put {
    ($out:expr, $($format:tt)*) => {{ let _ = writeln!($out, $($format)*); }};
}

/// A process in `procs --json`.
#[derive(Debug, Serialize)]
pub struct ProcessRow<'a> {
    /// Which context it is in.
    context: String,
    pid: i32,
    name: &'a str,
    uid: u32,
    is_frozen: bool,
    /// Threads that have called.
    threads: usize,
    /// Those that serve.
    loopers: usize,
    /// Those of them that wait for something to do.
    free: usize,
    /// Threads that wait for a reply.
    waiting: usize,
    /// Transactions that no thread has taken yet.
    queued: usize,
    nodes: u64,
    references: u64,
    buffers: u64,
    used_bytes: u64,
    mapped_bytes: u64,
    active_pages: u64,
    lru_pages: u64,
}

/// How a context is called: its name, and its mount's number where there are several mounts.
pub fn context_name(snapshot: &Snapshot, context: &Context) -> String {
    match snapshot.contexts.iter().any(|other| other.instance != context.instance) {
        true => format!("{}@{}", context.name, context.instance),
        false => context.name.clone(),
    }
}

/// How many threads are so.
fn count(process: &Process, is: impl Fn(&Thread) -> bool) -> usize {
    process.threads.iter().filter(|thread| is(thread)).count()
}

/// Every process, by context and pid.
pub fn processes(snapshot: &Snapshot) -> Vec<ProcessRow<'_>> {
    let mut rows = Vec::new();
    for context in &snapshot.contexts {
        for process in &context.processes {
            rows.push(ProcessRow {
                context: context_name(snapshot, context),
                pid: process.pid,
                name: &process.name,
                uid: process.uid,
                is_frozen: process.is_frozen,
                threads: process.threads.len(),
                loopers: count(process, |thread| thread.is_looper),
                free: count(process, |thread| thread.waits == Waits::ProcessWork),
                waiting: count(process, |thread| thread.waits == Waits::Reply),
                queued: process.todo.len(),
                nodes: process.node_count,
                references: process.reference_count,
                buffers: process.space.buffers,
                used_bytes: process.space.used,
                mapped_bytes: process.space.size,
                active_pages: process.pages.active,
                lru_pages: process.pages.lru,
            });
        }
    }
    rows.sort_by(|a, b| (&a.context, a.pid).cmp(&(&b.context, b.pid)));
    rows
}

/// A transaction in `transactions --json`.
#[derive(Debug, Serialize)]
pub struct TransactionRow {
    id: u64,
    context: String,
    kind: &'static str,
    from: Peer,
    /// None when the receiver has died.
    to: Option<Peer>,
    code: u32,
    flags: u32,
    size: u64,
    age_ms: u64,
    state: &'static str,
}

/// One end of a transaction.
#[derive(Debug, Serialize)]
struct Peer {
    pid: i32,
    /// None while any thread may take it.
    tid: Option<i32>,
    name: String,
}

impl Peer {
    fn told(&self) -> String {
        let tid = self.tid.map_or("-".to_owned(), |tid| tid.to_string());
        format!("{}:{tid} {}", self.pid, self.name)
    }
}

/// Every transaction, the oldest first.
pub fn transactions(snapshot: &Snapshot) -> Vec<TransactionRow> {
    let mut rows = Vec::new();
    for context in &snapshot.contexts {
        let processes: BTreeMap<u64, &Process> =
            context.processes.iter().map(|process| (process.id, process)).collect();
        let names: BTreeMap<i32, &str> =
            context.processes.iter().map(|process| (process.pid, &*process.name)).collect();
        for it in &context.transactions {
            let receiver = it.to_process.and_then(|id| processes.get(&id)).copied();
            let reader = receiver.zip(it.to_thread);
            let reader =
                reader.and_then(|(process, id)| process.threads.iter().find(|it| it.id == id));
            rows.push(TransactionRow {
                id: it.id,
                context: context_name(snapshot, context),
                kind: kind(it),
                from: Peer {
                    pid: it.from_pid,
                    tid: Some(it.from_tid),
                    name: names.get(&it.from_pid).copied().unwrap_or_default().to_owned(),
                },
                to: receiver.map(|process| Peer {
                    pid: process.pid,
                    tid: reader.map(|thread| thread.tid),
                    name: process.name.clone(),
                }),
                code: it.code,
                flags: it.flags,
                size: it.size,
                age_ms: it.age_ms,
                state: state(it, receiver, reader),
            });
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.age_ms));
    rows
}

/// What kind of transaction it is.
pub fn kind(it: &Transaction) -> &'static str {
    match (it.is_reply, it.is_oneway) {
        (true, _) => "reply",
        (false, true) => "one-way",
        (false, false) => "call",
    }
}

fn state(it: &Transaction, receiver: Option<&Process>, reader: Option<&Thread>) -> &'static str {
    let has_read = |thread: &Thread| {
        thread.stack.iter().any(|call| call.transaction == it.id && !call.is_outgoing)
    };
    match (receiver, reader) {
        (None, _) => "its receiver has died",
        (Some(_), Some(thread)) if has_read(thread) => "is being served",
        (Some(process), _) if process.is_frozen => "waits: frozen",
        (Some(_), Some(_)) => "is about to be read",
        (Some(_), None) => "waits for a thread",
    }
}

/// Bytes, with the largest unit that leaves a figure of at least 1.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// A time, in milliseconds.
pub fn age(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => format!("{} min {} s", ms / 60_000, ms / 1000 % 60),
    }
}

/// A table without lines, whose columns of numbers are flush right.
fn table(head: &[&str], numbers: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().map(|it| it.to_uppercase()));
    for (column, name) in table.column_iter_mut().zip(head) {
        column.set_padding((0, 2));
        if numbers.contains(name) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn print(table: &Table) -> String {
    table.to_string().lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// `fakebinder procs`.
pub fn processes_text(rows: &[ProcessRow<'_>]) -> String {
    let head = [
        "context", "pid", "name", "uid", "threads", "serve", "free", "wait", "queued", "nodes",
        "refs", "buffers", "used", "mapped", "pages",
    ];
    let left = ["context", "name"];
    let numbers: Vec<&str> = head.into_iter().filter(|name| !left.contains(name)).collect();
    let mut table = table(&head, &numbers);
    for row in rows {
        let frozen = if row.is_frozen { " (frozen)" } else { "" };
        table.add_row([
            row.context.clone(),
            row.pid.to_string(),
            format!("{}{frozen}", row.name),
            row.uid.to_string(),
            row.threads.to_string(),
            row.loopers.to_string(),
            row.free.to_string(),
            row.waiting.to_string(),
            row.queued.to_string(),
            row.nodes.to_string(),
            row.references.to_string(),
            row.buffers.to_string(),
            bytes(row.used_bytes),
            bytes(row.mapped_bytes),
            format!("{}+{}", row.active_pages, row.lru_pages),
        ]);
    }
    print(&table)
}

/// `fakebinder transactions`.
pub fn transactions_text(rows: &[TransactionRow]) -> String {
    if rows.is_empty() {
        return "no transaction is under way\n".to_owned();
    }
    let head = ["id", "context", "kind", "from", "to", "code", "flags", "size", "age", "state"];
    let mut table = table(&head, &["id", "code", "size", "age"]);
    for row in rows {
        table.add_row([
            row.id.to_string(),
            row.context.clone(),
            row.kind.to_owned(),
            row.from.told(),
            row.to.as_ref().map_or("nobody".to_owned(), Peer::told),
            row.code.to_string(),
            format!("{:#x}", row.flags),
            bytes(row.size),
            age(row.age_ms),
            row.state.to_owned(),
        ]);
    }
    print(&table)
}

/// `fakebinder stats`.
pub fn stats_text(snapshot: &Snapshot) -> String {
    let daemon = &snapshot.daemon;
    let all = || snapshot.contexts.iter().flat_map(|context| &context.processes);
    let transactions: usize = snapshot.contexts.iter().map(|it| it.transactions.len()).sum();
    let budget = daemon.budget_bytes.map_or("without limit".to_owned(), bytes);
    let mut text = format!(
        "daemon       pid {}, {} descriptors, {} threads\n\
         memory       {} in pages of clients, {} of that reclaimable, budget {budget}\n\
         clients      {} open files, {} threads, {transactions} transactions under way\n\
         objects      {} nodes, {} references, {} buffers\n",
        daemon.pid,
        daemon.descriptors,
        daemon.threads,
        bytes(daemon.pages * 4096),
        bytes(daemon.reclaimable_pages * 4096),
        all().count(),
        all().map(|process| process.threads.len()).sum::<usize>(),
        all().map(|process| process.node_count).sum::<u64>(),
        all().map(|process| process.reference_count).sum::<u64>(),
        all().map(|process| process.space.buffers).sum::<u64>(),
    );
    for user in &snapshot.users {
        text += &format!("uid {:<9}", user.uid);
        let held = user.held.iter().filter(|it| it.held > 0).map(|it| match it.most {
            Some(most) => format!("{} {} of {most}", it.what, it.held),
            None => format!("{} {}", it.what, it.held),
        });
        text += &held.collect::<Vec<_>>().join(", ");
        text.push('\n');
    }
    text
}

/// `fakebinder state`.
pub fn state_text(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    for context in &snapshot.contexts {
        let manager = context.manager.map_or("none".to_owned(), |node| format!("node {node}"));
        let name = context_name(snapshot, context);
        put!(out, "context {name} (number {}): context manager {manager}", context.id);
        for process in &context.processes {
            state_of_process(&mut out, process);
        }
        for node in &context.dead_nodes {
            put!(out, "  node {} of a dead process: {} holders", node.id, node.holders);
        }
        for it in &context.transactions {
            put!(
                out,
                "  {} {} from {}:{}: code {} flags {:#x}, {}, {} old",
                kind(it),
                it.id,
                it.from_pid,
                it.from_tid,
                it.code,
                it.flags,
                bytes(it.size),
                age(it.age_ms)
            );
        }
    }
    out
}

fn state_of_process(out: &mut String, process: &Process) {
    let frozen = if process.is_frozen { ", frozen" } else { "" };
    put!(out, "  process {} ({}), uid {}{frozen}", process.name, process.pid, process.uid);
    put!(
        out,
        "    threads: {} of {} started, {} more asked for",
        process.started_threads,
        process.max_threads,
        process.requested_threads
    );
    put!(
        out,
        "    buffers: {} in {} of {}, {} free for one-way calls; pages: {} in use, {} reclaimable",
        process.space.buffers,
        bytes(process.space.used),
        bytes(process.space.size),
        bytes(process.space.free_async),
        process.pages.active,
        process.pages.lru
    );
    for thread in &process.threads {
        let serves = if thread.is_looper { "serves" } else { "does not serve" };
        let waits = match thread.waits {
            Waits::Not => "is not waiting in binder",
            Waits::Reply => "waits for a reply",
            Waits::ProcessWork => "waits for something to do",
            Waits::OwnWork => "waits for what is sent to itself",
        };
        put!(out, "    thread {}: {serves}, {waits}", thread.tid);
        for call in &thread.stack {
            let way = if call.is_outgoing { "has sent" } else { "serves" };
            put!(out, "      {way} {}", call.transaction);
        }
        thread.todo.iter().for_each(|work| put!(out, "      will read: {}", work_text(work)));
    }
    process.todo.iter().for_each(|work| put!(out, "    to be read: {}", work_text(work)));
    for node in &process.nodes {
        let oneway = match node.has_async_transaction {
            true => format!(", a one-way call with the owner, {} waiting", node.async_todo.len()),
            false => String::new(),
        };
        put!(
            out,
            "    node {}: ptr {:#x} cookie {:#x}, {} holders, {} strong{oneway}",
            node.id,
            node.ptr,
            node.cookie,
            node.holders,
            node.strong
        );
    }
    for it in &process.references {
        let death = if it.has_death { ", death notice" } else { "" };
        let freeze = if it.has_freeze { ", freeze notice" } else { "" };
        put!(
            out,
            "    handle {}: node {}, strong {} weak {}{death}{freeze}",
            it.handle,
            it.node,
            it.strong,
            it.weak
        );
    }
    for buffer in &process.buffers {
        let active = if buffer.is_active { "not done yet" } else { "read" };
        let oneway = if buffer.is_async { ", one-way" } else { "" };
        put!(
            out,
            "    buffer at {:#x}: {}, of transaction {}, {active}{oneway}",
            buffer.offset,
            bytes(buffer.size),
            buffer.transaction
        );
    }
}

fn work_text(work: &Work) -> String {
    match work {
        Work::Transaction { id } => format!("transaction {id}"),
        Work::Error => "an error".to_owned(),
        Work::Complete => "that a transaction was sent".to_owned(),
        Work::Node { id } => format!("counts of node {id}"),
        Work::Death => "a death notice".to_owned(),
        Work::Freeze => "a freeze notice".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_unit_that_suits_them() {
        assert_eq!([0, 1023, 1024, 1_048_576].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.0 MiB"]);
        assert_eq!([999, 1000, 61_000].map(age), ["999 ms", "1.0 s", "1 min 1 s"]);
    }
}
