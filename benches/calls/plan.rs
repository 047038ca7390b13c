//! The rows: what is measured, in which unit, and what it is compared with.

use super::series::{Derived, Measured};

pub const READ: &str = "read";
pub const URING: &str = "io_uring";

/// What is done in a step of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum What {
    /// Two processes wake each other in turn, by a means of limits.c: the median time of one turn.
    Limit(&'static str),
    /// A copy of so many bytes from one place to another, both warm: the median time of one.
    Copy(u64),
    /// An ioctl that does nothing (BINDER_VERSION), by one thread: the median time of one.
    Nothing,
    /// A synchronous call with so many bytes, or so many descriptors: the median time of one.
    Call { size: u64, files: u64 },
    /// One-way calls, one after the other, until the server has had the last: how many a second.
    OneWay,
    /// So many callers at a time, each of a server of its own: how many calls a second in all.
    Pairs(usize),
    /// So many callers of one server that has as many threads: how many calls a second in all.
    Pool(usize),
    /// An echo of no data through dbus-daemon, by zbus: the median time of one.
    DBus,
    /// Pages that are installed by 2 and by 4 threads of one client's allocator, in-process, under
    /// either rule: the time of each, over all threads. Then how many are reclaimed a second.
    Pages,
    /// A fresh daemon and more and more clients that wait: the median time of an empty call beside
    /// them, and what memory each of them takes in the daemon; then the daemon's time on a CPU in
    /// five seconds in which nobody does anything.
    Crowd,
    /// A pair alone, then beside a client that makes and releases very many nodes again and again:
    /// the time that 999 of 1,000 calls stay below.
    Beside,
    /// System calls of the daemon for each empty call, counted by strace.
    SystemCalls,
    /// Instructions of the daemon for each empty call, counted by valgrind or perf.
    Instructions,
}

/// A row that a step gives a value of.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub reference: String,
}

/// One thing that is done in a round, and the rows that come of it, in one column.
#[derive(Debug, Clone)]
pub struct Step {
    pub what: What,
    /// On one core: all programs and the daemon.
    pub pinned: bool,
    pub column: &'static str,
    pub rows: Vec<Row>,
    /// How many rounds it is part of, at most.
    pub rounds: usize,
}

/// How large everything is.
#[derive(Debug, Clone)]
pub struct Sizes {
    pub rounds: usize,
    pub calls: u64,
    pub clients: Vec<usize>,
    pub nodes: u64,
}

const ALL_ROUNDS: usize = usize::MAX;
/// Of what takes long, or what noise hardly touches.
const FEW_ROUNDS: usize = 3;

fn row(name: impl Into<String>, unit: &'static str, reference: impl Into<String>) -> Row {
    Row { name: name.into(), unit, reference: reference.into() }
}

fn step(what: What, pinned: bool, column: &'static str, row: Row) -> Step {
    Step { what, pinned, column, rows: vec![row], rounds: ALL_ROUNDS }
}

/// A row's name, which says where its programs are.
fn named(name: &str, pinned: bool) -> String {
    if pinned { format!("{name}, one core") } else { name.to_owned() }
}

/// One client alone, on one core or wherever the kernel likes.
fn alone(pinned: bool, columns: &[&'static str], plan: &mut Vec<Step>) {
    let (socket, empty) = (named("socket", pinned), named("call, empty", pinned));
    for means in ["futex", "socket"] {
        let row = row(named(means, pinned), "us", &*socket);
        plan.push(step(What::Limit(means), pinned, "", row));
    }
    let mut each = |what, name: &str, reference: &str| {
        for column in columns {
            plan.push(step(what, pinned, column, row(named(name, pinned), "us", reference)));
        }
    };
    each(What::Nothing, "ioctl, nothing", &socket);
    each(What::Call { size: 0, files: 0 }, "call, empty", &socket);
    for kib in [4, 128, 512] {
        let size = kib << 10;
        each(What::Call { size, files: 0 }, &format!("call, {kib} KiB"), &empty);
    }
    if !pinned {
        each(What::Call { size: 0, files: 1 }, "call, 1 descriptor", &empty);
        each(What::Call { size: 0, files: 8 }, "call, 8 descriptors", &empty);
    }
}

/// Many at a time.
fn together(columns: &[&'static str], plan: &mut Vec<Step>) {
    let one_core = named("1 pair", true);
    let mut each = |what, pinned, name: &str, reference: &str| {
        for column in columns {
            plan.push(step(what, pinned, column, row(name, "calls/s", reference)));
        }
    };
    each(What::OneWay, false, "one-way calls", "1 pair");
    each(What::Pairs(1), true, &one_core, &one_core);
    for (pairs, name) in [(1, "1 pair"), (2, "2 pairs"), (4, "4 pairs"), (8, "8 pairs")] {
        each(What::Pairs(pairs), false, name, &one_core);
    }
    for threads in [1, 2, 4, 8, 16] {
        let name = match threads {
            1 => "1 caller, pool of 1".to_owned(),
            _ => format!("{threads} callers, pool of {threads}"),
        };
        each(What::Pool(threads), false, &name, "1 caller, pool of 1");
    }
}

pub fn connected(clients: usize) -> String {
    format!("call, empty, {clients} clients connected")
}

/// What is only measured on the machine itself.
fn only_here(sizes: &Sizes, plan: &mut Vec<Step>) {
    for pinned in [true, false] {
        let name = named("D-Bus", pinned);
        plan.push(step(What::DBus, pinned, "", row(name, "us", named("socket", pinned))));
        let name = named("memcpy, 128 KiB", pinned);
        plan.push(step(What::Copy(128 << 10), pinned, "", row(&*name, "us", &*name)));
    }
    let mut pages = Vec::new();
    for threads in [2, 4] {
        for rule in ["exclusive", "shared"] {
            let name = |rule| format!("page install, {rule}, {threads} threads");
            pages.push(row(name(rule), "us", name("exclusive")));
        }
    }
    pages.push(row("pages reclaimed", "pages/s", "pages reclaimed"));
    let several = |what, column, rows, rounds| Step { what, pinned: false, column, rows, rounds };
    plan.push(several(What::Pages, "", pages, ALL_ROUNDS));
    for column in [READ, URING] {
        let first = sizes.clients[0];
        let mut crowd = Vec::new();
        for &clients in &sizes.clients {
            crowd.push(row(connected(clients), "us", connected(first)));
            let memory = |clients| format!("memory a client, {clients} clients");
            crowd.push(row(memory(clients), "KiB", memory(first)));
        }
        let idle = "daemon's CPU time in 5 s without work";
        crowd.push(row(idle, "ms", idle));
        plan.push(several(What::Crowd, column, crowd, FEW_ROUNDS));
        let alone = "p99.9 of a pair alone";
        let beside = format!("p99.9 beside a client with {} nodes", sizes.nodes);
        let rows = vec![row(alone, "us", alone), row(beside, "us", alone)];
        plan.push(several(What::Beside, column, rows, FEW_ROUNDS));
        let name = "daemon's system calls for an empty call";
        plan.push(several(What::SystemCalls, column, vec![row(name, "", name)], FEW_ROUNDS));
        let name = "daemon's instructions for an empty call";
        plan.push(several(What::Instructions, column, vec![row(name, "", name)], FEW_ROUNDS));
    }
}

/// All steps of a round, in order.
pub fn native(sizes: &Sizes) -> Vec<Step> {
    let mut plan = Vec::new();
    for pinned in [true, false] {
        alone(pinned, &[READ, URING], &mut plan);
    }
    together(&[READ, URING], &mut plan);
    only_here(sizes, &mut plan);
    plan
}

/// Those in the VM, where the kernel's driver is.
pub fn vm(columns: &[&'static str]) -> Vec<Step> {
    let mut plan = Vec::new();
    for pinned in [true, false] {
        alone(pinned, columns, &mut plan);
    }
    together(columns, &mut plan);
    plan
}

/// What a row came to, by its name.
type Values<'a> = dyn Fn(&str) -> Option<f64> + 'a;

/// What several rows of a round come to together.
pub fn derive(measured: &mut Measured, sizes: &Sizes) {
    let mut derived = Vec::new();
    let columns = measured.columns.clone();
    for column in &columns {
        let mut add = |name: &str, unit: &str, of: &dyn Fn(&Values) -> Option<f64>| {
            let rounds = 0..measured.rounds;
            let of = |round| of(&|row: &str| measured.value(row, column, round));
            let values: Vec<f64> = rounds.filter_map(of).collect();
            if !values.is_empty() {
                let (name, column, unit) = (name.to_owned(), column.clone(), unit.to_owned());
                derived.push(Derived { name, column, unit, values });
            }
        };
        let mut ratio = |name: &str, unit: &str, above: &str, below: &str| {
            add(name, unit, &|row| Some(row(above)? / row(below)?));
        };
        for pinned in [true, false] {
            let of = |name| named(name, pinned);
            let (empty, socket, bus) = (of("call, empty"), of("socket"), of("D-Bus"));
            ratio(&of("an empty call to a socket ping-pong"), "times", &empty, &socket);
            ratio(&of("an empty call as fast as D-Bus"), "times", &bus, &empty);
        }
        for pairs in ["4 pairs", "8 pairs"] {
            let name = format!("throughput of {pairs} to that of 1 pair on one core");
            ratio(&name, "times", pairs, &named("1 pair", true));
        }
        let (first, last) = (sizes.clients[0], sizes.clients[sizes.clients.len() - 1]);
        let name = format!("an empty call with {last} clients connected to one with {first}");
        ratio(&name, "times", &connected(last), &connected(first));
        for pinned in [true, false] {
            let of = |name| named(name, pinned);
            let (empty, large) = (of("call, empty"), of("call, 128 KiB"));
            let copy = of("memcpy, 128 KiB");
            add(&of("memcpy's speed, of what 128 KiB add to an empty call"), "%", &|row| {
                Some(100.0 * row(&copy)? / (row(&large)? - row(&empty)?))
            });
        }
        add("each further descriptor of a call", "us", &|row| {
            Some((row("call, 8 descriptors")? - row("call, 1 descriptor")?) / 7.0)
        });
    }
    // A figure of one kind beside another, whatever the column.
    let mut order: Vec<String> = Vec::new();
    for figure in &derived {
        if !order.contains(&figure.name) {
            order.push(figure.name.clone());
        }
    }
    derived.sort_by_key(|figure| order.iter().position(|name| *name == figure.name));
    measured.derived = derived;
}
