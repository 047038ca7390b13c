//! The result: the table, and the verdict.

use crate::samples::Course;
use crate::tally::{Event, Operation, Outcome, Tally};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Failed checks that are told one by one.
const TOLD: usize = 10;

/// Calls that a client may be about to read when it is killed: one for each of its threads.
const UNREAD_BY_ONE: u64 = 4;

/// How the operations of one kind ended.
#[derive(Debug, Serialize)]
struct Row {
    operation: &'static str,
    /// By the name of the outcome; those that were never seen are left out.
    ended: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    seed: u64,
    seconds: f64,
    /// By Ctrl-C.
    was_stopped: bool,
    operations: Vec<Row>,
    events: BTreeMap<&'static str, u64>,
    daemon: Vec<Course>,
    /// Whether the run was long enough to tell whether the daemon grew.
    growth_was_judged: bool,
    /// Why the run has failed; none if it has not.
    pub reasons: Vec<String>,
}

impl Report {
    /// `wrong`: what the daemon did wrong at the end; `said`: the failed checks, one in each line.
    pub fn new(
        seed: u64,
        elapsed: Duration,
        was_stopped: bool,
        tally: &Tally,
        daemon: Vec<Course>,
        wrong: Vec<String>,
        said: &str,
    ) -> Report {
        let row = |&(operation, name): &(Operation, &'static str)| {
            let ended =
                Outcome::ALL.iter().map(|&(outcome, name)| (name, tally.of(operation, outcome)));
            Row { operation: name, ended: ended.filter(|(_, count)| *count > 0).collect() }
        };
        let events = Event::ALL.iter().map(|&(event, name)| (name, tally.events(event)));
        let failed = tally.events(Event::FailedChecks);
        let mut reasons = Vec::new();
        if failed > 0 || !said.is_empty() {
            let told: Vec<&str> = said.lines().take(TOLD).collect();
            reasons.push(format!("{failed} checks failed; the first:\n{}", told.join("\n")));
        }
        let (not_read, kills) = (tally.all(Outcome::NotRead), tally.events(Event::Kills));
        if not_read > kills * UNREAD_BY_ONE {
            reasons.push(format!(
                "{not_read} operations failed without a reason, as they may where a receiver is killed; but only \
                 {kills} clients were"
            ));
        }
        if tally.all(Outcome::Done) == 0 {
            reasons.push("no operation was done: nothing was tested".to_owned());
        }
        for course in &daemon {
            if let Some(growth) = course.growth.filter(|growth| growth.has_grown()) {
                reasons.push(format!(
                    "{} grew: the median was {} in the second quarter of the run and {} in the last, and {} \
                     more are within its ups and downs",
                    course.what, growth.earlier, growth.later, growth.allowed
                ));
            }
        }
        reasons.extend(wrong);
        Report {
            seed,
            seconds: elapsed.as_secs_f64(),
            was_stopped,
            operations: Operation::ALL.iter().map(row).collect(),
            events: events.collect(),
            growth_was_judged: daemon.iter().any(|course| course.growth.is_some()),
            daemon,
            reasons,
        }
    }

    pub fn json(&self) -> String {
        let text = serde_json::to_string(self);
        text.unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"))
    }

    pub fn table(&self) -> String {
        let stopped = if self.was_stopped { ", stopped early" } else { "" };
        let mut text = format!("{:.0} s{stopped}, --seed {}\n\n", self.seconds, self.seed);
        text.push_str(&self.operations_table().to_string());
        text.push_str("\n\n");
        let mut table = new_table(1);
        for (name, count) in Event::ALL.iter().map(|(_, name)| (*name, self.events[name])) {
            table.add_row([name.to_owned(), count.to_string()]);
        }
        text.push_str(&table.to_string());
        text.push_str("\n\n");
        text.push_str(&self.daemon_table().to_string());
        text.push('\n');
        if !self.growth_was_judged {
            text.push_str("Too short to tell whether the daemon grew: that takes 120 s.\n");
        }
        text.push_str(match self.reasons.is_empty() {
            true => "All is as it should be.",
            false => "FAILED.",
        });
        text
    }

    fn operations_table(&self) -> Table {
        let names = Outcome::ALL.iter().map(|(_, name)| *name);
        let mut table = new_table(Outcome::ALL.len());
        table.set_header(std::iter::once("operation").chain(names.clone()));
        for row in &self.operations {
            let count = |name| row.ended.get(name).copied().unwrap_or(0).to_string();
            table
                .add_row(std::iter::once(row.operation.to_owned()).chain(names.clone().map(count)));
        }
        table
    }

    fn daemon_table(&self) -> Table {
        let mut table = new_table(7);
        table.set_header([
            "the daemon",
            "start",
            "median",
            "max",
            "end",
            "2nd quarter",
            "last quarter",
            "may grow by",
        ]);
        for course in &self.daemon {
            let growth = course.growth.map(|growth| [growth.earlier, growth.later, growth.allowed]);
            let growth =
                growth.map_or([const { String::new() }; 3], |all| all.map(|it| it.to_string()));
            let values = [course.start, course.median, course.max, course.end];
            let cells = values.iter().map(f64::to_string).chain(growth);
            table.add_row(std::iter::once(course.what.to_owned()).chain(cells));
        }
        table
    }
}

/// A name, and so many numbers.
fn new_table(numbers: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    // Columns come with the first row.
    table.set_header(vec![""; numbers + 1]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
