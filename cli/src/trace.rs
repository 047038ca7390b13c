//! `fakebinder trace`: what the driver does, as a trace that Perfetto's UI opens.

mod perfetto;
mod story;

use crate::ask::Asked;
use crate::listen::{Events, Until};
use clap::Args;
use fakebinder_client::uapi::FAKEBINDER_EVENTS_ALL;
use serde::Serialize;
use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use story::Story;

/// Write what the driver does to a file that Perfetto's UI opens (ui.perfetto.dev)
#[derive(Args, Debug)]
pub struct Trace {
    /// The file
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    until: Until,
    /// What the codes of calls are called: a file with a code and a name in each line
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    #[command(flatten)]
    asked: Asked,
}

/// What a trace has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// What the driver told of.
    events: u64,
    /// What it did while there was no room for more events.
    lost: u64,
    /// Calls, as their callers and as their servers see them: two for each.
    slices: u64,
    /// From a call to its receiver, and from the reply to the caller.
    flows: u64,
    /// Processes, their threads, and the count of pages.
    tracks: u64,
}

/// Writes a trace until the end, and says what it has.
pub fn run(wanted: &Trace) -> Result<(), Box<dyn Error>> {
    let end = wanted.until.end()?;
    let names = wanted.names.as_deref().map(names).transpose()?.unwrap_or_default();
    let failed = |error: std::io::Error| format!("{}: {error}", wanted.output.display());
    let mut events = Events::listen(&wanted.asked, FAKEBINDER_EVENTS_ALL)?;
    let mut file = BufWriter::new(File::create(&wanted.output).map_err(failed)?);
    eprintln!("tracing; Ctrl-C ends it");
    let mut story = Story::new(names);
    events.until(&end, |some, lost| {
        some.iter().for_each(|event| story.tell(event));
        story.counts.lost = lost;
        Ok(file.write_all(&story.take()).map_err(failed)?)
    })?;
    file.flush().map_err(failed)?;
    let counts = story.counts;
    crate::show(&wanted.asked, &counts, || {
        let Counts { events, slices, flows, tracks, lost } = counts;
        let path = wanted.output.display();
        let lost = match lost {
            0 => String::new(),
            lost => format!("; {lost} events were lost, as more happened than could be written"),
        };
        format!("{path}: {events} events, {slices} slices, {flows} flows, {tracks} tracks{lost}\n")
    })
}

/// Reads a table of codes.
fn names(path: &Path) -> Result<HashMap<u32, String>, Box<dyn Error>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    let lines = text.lines().map(str::trim).enumerate();
    let mut names = HashMap::new();
    for (index, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let wrong = || format!("{shown}:{}: '{line}' is not a code and a name", index + 1);
        let (code, name) = line.split_once(char::is_whitespace).ok_or_else(wrong)?;
        names.insert(code.parse().map_err(|_| wrong())?, name.trim().to_owned());
    }
    Ok(names)
}
