//! The report: tables for people, and the part of them that the README shows.

use super::series::{Measured, Series, Spread, Trouble};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// All that one run came to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub command: String,
    pub native: Option<Measured>,
    /// Or why there is none.
    pub vm: Result<Measured, String>,
}

/// Three digits that count, and no more.
pub fn number(value: f64) -> String {
    match value.abs() {
        small if small < 9.995 => format!("{value:.2}"),
        small if small < 99.95 => format!("{value:.1}"),
        _ => {
            let digits = format!("{:.0}", value.abs());
            let groups = digits.as_bytes().rchunks(3).rev();
            let groups: Vec<_> = groups.map(String::from_utf8_lossy).collect();
            format!("{}{}", if value < 0.0 { "-" } else { "" }, groups.join(","))
        }
    }
}

fn spread(values: impl IntoIterator<Item = f64>) -> Option<String> {
    let Spread { median, least, most } = Spread::of(values)?;
    let [median, least, most] = [median, least, most].map(number);
    Some(match least == most {
        true => median,
        false => format!("{median} ({least} to {most})"),
    })
}

/// A series's figure, and how many times its reference that is.
fn cell(measured: &Measured, series: &Series) -> String {
    match &series.trouble {
        Some(Trouble::Skipped(_)) => return "SKIPPED".into(),
        Some(Trouble::Failed(_)) => return "FAILED".into(),
        None => {}
    }
    let mut text = spread(series.values.iter().copied().flatten()).unwrap_or_default();
    let reference = measured.reference(series);
    let is_own = reference.is_some_and(|it| it.row == series.row && it.column == series.column);
    if let Some(ratios) = spread(measured.ratios(series)).filter(|_| !is_own) {
        let _ = write!(text, "; {ratios} x");
    }
    text
}

fn line<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    cells.into_iter().fold("|".to_owned(), |line, cell| line + " " + cell + " |") + "\n"
}

/// A table of the rows in these columns; nothing without rows.
fn table(measured: &Measured, columns: &[String]) -> String {
    let names: Vec<&str> =
        columns.iter().map(|name| if name.is_empty() { "figure" } else { name }).collect();
    let mut head = vec!["row", "unit"];
    head.extend(&names);
    if measured.against.is_none() || columns == [""] {
        head.push("x: times");
    }
    let mut text = line(head.iter().copied()) + &"|---".repeat(head.len()) + "|\n";
    let mut empty = true;
    for row in measured.rows() {
        let series: Vec<_> = measured
            .series
            .iter()
            .filter(|it| it.row == row && columns.contains(&it.column))
            .collect();
        let Some(first) = series.first() else { continue };
        empty = false;
        let cells: Vec<String> = columns
            .iter()
            .map(|column| series.iter().find(|it| it.column == *column))
            .map(|found| found.map_or("-".into(), |series| cell(measured, series)))
            .collect();
        let mut all = vec![row, &first.unit];
        all.extend(cells.iter().map(String::as_str));
        if head.len() > all.len() {
            all.push(if first.reference == row { "-" } else { &first.reference });
        }
        text += &line(all);
    }
    if empty { String::new() } else { text }
}

fn derived(measured: &Measured) -> String {
    if measured.derived.is_empty() {
        return String::new();
    }
    let mut text = line(["what", "by", "figure"]) + "|---|---|---|\n";
    for figure in &measured.derived {
        let value = spread(figure.values.iter().copied()).unwrap_or_default();
        text += &line([&*figure.name, &figure.column, &format!("{value} {}", figure.unit)]);
    }
    text
}

fn troubles(measured: &Measured) -> String {
    let mut text = String::new();
    for (series, trouble) in measured.troubles() {
        let (word, reason) = match trouble {
            Trouble::Skipped(reason) => ("SKIPPED", reason),
            Trouble::Failed(reason) => ("FAILED", reason),
        };
        let column = if series.column.is_empty() { "" } else { ", " };
        let _ = writeln!(text, "- {word}: {}{column}{}: {reason}", series.row, series.column);
    }
    text
}

/// A part of the report, with all that there is to say.
fn part(title: &str, measured: &Measured) -> String {
    let mut text = format!(
        "## {title}\n\n{}. Medians of {} rounds, {} calls of each row in a round; in parentheses the \
         least and the most of a round.\n",
        measured.machine, measured.rounds, measured.calls
    );
    let tables = [table(measured, &[String::new()]), table(measured, &measured.columns)];
    let paragraphs = [&tables[0], &tables[1], &derived(measured), &troubles(measured)];
    for paragraph in paragraphs.into_iter().filter(|it| !it.is_empty()) {
        let _ = write!(text, "\n{paragraph}");
    }
    text
}

impl Report {
    pub fn text(&self) -> String {
        let mut text = format!("# What a call costs\n\n`{}`\n", self.command);
        if let Some(native) = &self.native {
            text += "\n";
            text += &part("This machine", native);
        }
        match &self.vm {
            Ok(measured) => {
                text += "\n";
                text += &part("In the VM, against the kernel's driver", measured);
            }
            Err(reason) => text += &format!("\n## In the VM\n\nSKIPPED: {reason}\n"),
        }
        text
    }

    /// What the README shows of it.
    pub fn for_readme(&self) -> String {
        let mut text = String::new();
        if let Some(native) = &self.native {
            text += &format!("{}; `{}`:\n\n{}", native.machine, self.command, derived(native));
        }
        if let Ok(vm) = &self.vm {
            let few = [
                "call, empty",
                "call, 4 KiB",
                "call, 128 KiB",
                "call, 512 KiB",
                "one-way calls",
                "4 pairs",
            ];
            let series = vm.series.iter().filter(|series| few.contains(&&*series.row)).cloned();
            let shown = Measured { series: series.collect(), ..vm.clone() };
            text += &format!(
                "\n{} (emulated, beside the kernel's driver; x: times the driver):\n\n",
                vm.machine
            );
            text += &table(&shown, &vm.columns);
        }
        text
    }

    pub fn has_failed(&self) -> bool {
        let parts = self.native.iter().chain(self.vm.as_ref().ok());
        parts.flat_map(|part| part.troubles()).any(|(_, it)| matches!(it, Trouble::Failed(_)))
    }

    /// Rows that were skipped, and the VM if it was.
    pub fn skipped(&self) -> usize {
        let parts = self.native.iter().chain(self.vm.as_ref().ok());
        let is_skipped = |(_, it): &(&Series, &Trouble)| matches!(it, Trouble::Skipped(_));
        let rows = parts.flat_map(|part| part.troubles()).filter(is_skipped).count();
        rows + usize::from(self.vm.is_err())
    }
}
