//! `fakebinder top`: a live view of the processes, of the calls that wait, and of the memory.

use crate::ask::{self, Asked};
use crate::tables::{age, bytes, context_name, kind};
use clap::Args;
use fakebinder::snapshot::{Process, Snapshot, Waits};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table};
use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, Instant};

/// A live view: processes, calls that wait, memory
#[derive(Args, Debug)]
pub struct Top {
    /// Seconds between two looks
    #[arg(long, short, default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    #[command(flatten)]
    pub asked: Asked,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds is needed".to_owned())?;
    match (0.1..=3600.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("between 0.1 and 3600 seconds".to_owned()),
    }
}

/// By what the processes are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Rate,
    Waiting,
    Memory,
    Pid,
}

impl Sort {
    fn next(self) -> Sort {
        match self {
            Sort::Rate => Sort::Waiting,
            Sort::Waiting => Sort::Memory,
            Sort::Memory => Sort::Pid,
            Sort::Pid => Sort::Rate,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Sort::Rate => "calls a second",
            Sort::Waiting => "waiting threads",
            Sort::Memory => "memory",
            Sort::Pid => "pid",
        }
    }
}

/// What is shown: a snapshot, and how much each process has sent since the one before.
struct View {
    snapshot: Snapshot,
    taken: Instant,
    /// Transactions and replies a second, by process.
    rates: BTreeMap<u64, f64>,
    sort: Sort,
    /// Rows of processes that are scrolled past.
    skipped: usize,
}

/// Transactions and replies that a process has sent.
fn sent(process: &Process) -> u64 {
    let commands = ["BC_TRANSACTION", "BC_TRANSACTION_SG", "BC_REPLY", "BC_REPLY_SG"];
    commands.iter().filter_map(|name| process.traffic.get(*name)).sum()
}

fn processes(snapshot: &Snapshot) -> impl Iterator<Item = (String, &Process)> {
    snapshot.contexts.iter().flat_map(move |context| {
        let name = context_name(snapshot, context);
        context.processes.iter().map(move |process| (name.clone(), process))
    })
}

impl View {
    fn new(snapshot: Snapshot) -> View {
        let (taken, rates) = (Instant::now(), BTreeMap::new());
        View { snapshot, taken, rates, sort: Sort::Rate, skipped: 0 }
    }

    fn update(&mut self, snapshot: Snapshot, taken: Instant) {
        let seconds = taken.duration_since(self.taken).as_secs_f64().max(0.001);
        let before: BTreeMap<u64, u64> =
            processes(&self.snapshot).map(|(_, it)| (it.id, sent(it))).collect();
        self.rates = processes(&snapshot)
            .map(|(_, it)| {
                let since = sent(it).saturating_sub(before.get(&it.id).copied().unwrap_or(0));
                (it.id, since as f64 / seconds)
            })
            .collect();
        (self.snapshot, self.taken) = (snapshot, taken);
    }

    fn rate(&self, process: &Process) -> f64 {
        self.rates.get(&process.id).copied().unwrap_or(0.0)
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let calls = self.calls();
        let heights = [
            Constraint::Length(4),
            Constraint::Min(3),
            Constraint::Length(calls.len().min(5) as u16 + 1),
            Constraint::Length(1),
        ];
        let [head, table, waiting, foot] = Layout::vertical(heights).areas(frame.area());
        self.draw_head(frame, head);
        self.draw_processes(frame, table);
        let shown = calls.into_iter().take(5).map(Line::raw);
        let title = Line::styled("OLDEST CALLS", Style::new().add_modifier(Modifier::REVERSED));
        frame.render_widget(
            Paragraph::new(std::iter::once(title).chain(shown).collect::<Vec<_>>()),
            waiting,
        );
        let keys =
            format!("q quits   s sorts by {} next   up and down scroll", self.sort.next().name());
        frame.render_widget(Line::raw(keys), foot);
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let daemon = &self.snapshot.daemon;
        let (used, budget) = (daemon.pages * 4096, daemon.budget_bytes);
        let of = budget.map_or("no limit".to_owned(), |budget| format!("of {}", bytes(budget)));
        let clients = processes(&self.snapshot).count();
        let rate = self.rates.values().fold(0.0, |sum, rate| sum + rate);
        let quotas = self.nearest_quota().unwrap_or_else(|| "no user is near a limit".to_owned());
        let lines = vec![
            Line::raw(format!(
                "fakebinderd {}  {clients} open files  {rate:.0} transactions/s  {} threads  {} fds",
                daemon.pid, daemon.threads, daemon.descriptors
            )),
            Line::raw(format!(
                "memory {} {} {of}",
                bar(used, budget.unwrap_or(used), 20),
                bytes(used)
            )),
            Line::raw(format!(
                "idle   {} {} reclaimable",
                bar(daemon.reclaimable_pages, daemon.pages, 20),
                bytes(daemon.reclaimable_pages * 4096)
            )),
            Line::raw(format!("quotas {quotas}")),
        ];
        frame.render_widget(Paragraph::new(lines), area);
    }

    /// Which user has most of what that user may have.
    fn nearest_quota(&self) -> Option<String> {
        let users = self.snapshot.users.iter();
        let all = users.flat_map(|user| user.held.iter().map(move |held| (user.uid, held)));
        let limited =
            all.filter_map(|(uid, held)| Some((uid, held, held.most.filter(|most| *most > 0)?)));
        let share = |held: u64, most: u64| held as f64 / most as f64;
        let (uid, held, most) =
            limited.max_by(|a, b| share(a.1.held, a.2).total_cmp(&share(b.1.held, b.2)))?;
        Some(format!(
            "{} uid {uid} has {} of {most} {}",
            bar(held.held, most, 20),
            held.held,
            held.what
        ))
    }

    fn draw_processes(&self, frame: &mut Frame<'_>, area: Rect) {
        let mut all: Vec<(String, &Process)> = processes(&self.snapshot).collect();
        let waiting = |process: &Process| {
            process.threads.iter().filter(|thread| thread.waits == Waits::Reply).count()
        };
        match self.sort {
            Sort::Rate => all.sort_by(|a, b| self.rate(b.1).total_cmp(&self.rate(a.1))),
            Sort::Waiting => all.sort_by_key(|(_, it)| std::cmp::Reverse(waiting(it))),
            Sort::Memory => {
                all.sort_by_key(|(_, it)| std::cmp::Reverse(it.pages.active + it.pages.lru));
            }
            Sort::Pid => all.sort_by_key(|(_, it)| it.pid),
        }
        let rows = all.iter().skip(self.skipped).map(|(context, it)| {
            let free =
                it.threads.iter().filter(|thread| thread.waits == Waits::ProcessWork).count();
            let frozen = if it.is_frozen { "*" } else { "" };
            Row::new([
                it.pid.to_string(),
                format!("{}{frozen}", it.name),
                context.clone(),
                format!("{}/{free}/{}", it.threads.len(), waiting(it)),
                it.todo.len().to_string(),
                format!("{:.0}", self.rate(it)),
                format!("{} {}", bar(it.space.used, it.space.size, 6), short(it.space.used)),
                format!("{}+{}", it.pages.active, it.pages.lru),
            ])
        });
        let head = ["PID", "NAME", "CONTEXT", "THR/FR/WAIT", "QUEUE", "CALL/S", "BUFFERS", "PAGES"];
        let widths = [7, 13, 9, 11, 5, 6, 15, 7].map(Constraint::Length);
        let table = Table::new(rows, widths).column_spacing(1).header(
            Row::new(head.map(Cell::from)).style(Style::new().add_modifier(Modifier::REVERSED)),
        );
        frame.render_widget(table, area);
    }

    /// Synchronous calls that are not answered yet, the oldest first.
    fn calls(&self) -> Vec<String> {
        let mut calls = Vec::new();
        for context in &self.snapshot.contexts {
            for it in context.transactions.iter().filter(|it| it.from_thread.is_some()) {
                let to = context.processes.iter().find(|process| it.to_process == Some(process.id));
                let to = to.map_or("nobody".to_owned(), |to| format!("{} ({})", to.name, to.pid));
                let from = context.processes.iter().find(|process| process.pid == it.from_pid);
                let from = from.map_or_else(String::new, |from| from.name.clone());
                calls.push((
                    it.age_ms,
                    format!(
                        "{:>9}  {} {} of {from} ({}:{}) to {to}, code {}",
                        age(it.age_ms),
                        kind(it),
                        it.id,
                        it.from_pid,
                        it.from_tid,
                        it.code
                    ),
                ));
            }
        }
        calls.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        calls.into_iter().map(|(_, line)| line).collect()
    }

    /// Whether to go on.
    fn key(&mut self, key: KeyEvent) -> bool {
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Down => {
                let most = processes(&self.snapshot).count().saturating_sub(1);
                self.skipped = (self.skipped + 1).min(most);
            }
            KeyCode::Up => self.skipped = self.skipped.saturating_sub(1),
            _ => {}
        }
        true
    }
}

/// Bytes in few characters.
fn short(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes}B"),
        1000..1_000_000 => format!("{:.1}K", bytes as f64 / 1024.0),
        _ => format!("{:.1}M", bytes as f64 / 1_048_576.0),
    }
}

/// A share, drawn.
fn bar(part: u64, whole: u64, width: usize) -> String {
    let share = if whole == 0 { 0.0 } else { (part as f64 / whole as f64).min(1.0) };
    let full = (share * width as f64).round() as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(width - full))
}

/// Shows it until a key ends it.
pub fn run(top: &Top) -> Result<(), Box<dyn Error>> {
    let device = top.asked.open()?;
    // Before the screen is another's: an error is to be seen.
    let mut view = View::new(ask::snapshot(&device, false)?);
    let mut terminal = ratatui::try_init()?;
    let shown = show(&mut terminal, &mut view, &device, Duration::from_secs_f64(top.interval));
    ratatui::restore();
    shown
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    device: &fakebinder_client::Device,
    interval: Duration,
) -> Result<(), Box<dyn Error>> {
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        let left = interval.saturating_sub(view.taken.elapsed());
        if event::poll(left)? {
            let goes_on = match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => view.key(key),
                _ => true,
            };
            if !goes_on {
                return Ok(());
            }
            continue;
        }
        view.update(ask::snapshot(device, false)?, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fakebinder::snapshot::{Context, Daemon, Held, Thread, Transaction, User};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn snapshot(sent: u64) -> Snapshot {
        let server = Process {
            id: 1,
            pid: 10,
            name: "server".to_owned(),
            threads: vec![Thread { waits: Waits::ProcessWork, ..Thread::default() }],
            traffic: BTreeMap::from([("BC_REPLY".to_owned(), sent)]),
            ..Process::default()
        };
        let call = Transaction {
            id: 7,
            from_pid: 20,
            from_tid: 21,
            from_thread: Some(3),
            to_process: Some(1),
            age_ms: 1500,
            ..Transaction::default()
        };
        let context = Context {
            name: "binder".to_owned(),
            processes: vec![
                server,
                Process { id: 2, pid: 20, name: "client".to_owned(), ..Process::default() },
            ],
            transactions: vec![call],
            ..Context::default()
        };
        let held = Held { what: "opens".to_owned(), held: 5, most: Some(10) };
        Snapshot {
            daemon: Daemon {
                pid: 99,
                pages: 256,
                budget_bytes: Some(2 << 20),
                ..Daemon::default()
            },
            contexts: vec![context],
            users: vec![User { uid: 1000, held: vec![held] }],
            ..Snapshot::default()
        }
    }

    fn screen(view: &View) -> String {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn all_of_it_is_seen_at_80_by_24() {
        let mut view = View::new(snapshot(100));
        view.update(snapshot(350), view.taken + Duration::from_secs(2));
        let seen = screen(&view);
        for part in [
            "fakebinderd 99  2 open files  125 transactions/s",
            "[##########..........] 1.0 MiB of 2.0 MiB",
            "uid 1000 has 5 of 10 opens",
            "10      server        binder    1/1/0",
            "1.5 s  call 7 of client (20:21) to server (10)",
            "q quits",
        ] {
            assert!(seen.contains(part), "{part}\n{seen}");
        }
    }

    #[test]
    fn keys_sort_scroll_and_end_it() {
        let mut view = View::new(snapshot(0));
        let press = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert!(view.key(press(KeyCode::Char('s'))) && view.sort == Sort::Waiting);
        for _ in 0..3 {
            assert!(view.key(press(KeyCode::Down)));
        }
        assert_eq!(view.skipped, 1);
        assert!(!screen(&view).contains("server        binder"), "the first row is scrolled past");
        assert!(view.key(press(KeyCode::Up)));
        assert!(!view.key(press(KeyCode::Char('q'))));
        assert!(!view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }

    #[test]
    fn a_bar_is_full_at_most() {
        assert_eq!([bar(1, 2, 4), bar(9, 2, 4), bar(0, 0, 2)], ["[##..]", "[####]", "[..]"]);
    }
}
