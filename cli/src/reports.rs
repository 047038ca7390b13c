//! Reports of transactions, as the newest kernel sends them by netlink.

use crate::ask::Asked;
use crate::listen::{Events, Until};
use clap::Args;
use fakebinder::protocol::names::return_name;
use fakebinder_client::uapi::{FAKEBINDER_EVENT_REPORT, TF_ONE_WAY, fakebinder_event};
use serde::Serialize;
use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};

/// Tell of transactions that fail, go to frozen processes, or are suspected to be spam, as it
/// happens
///
/// The newest kernels multicast the same records by netlink (family binder, group report). A daemon
/// cannot register such a family, so they are asked for here.
#[derive(Args, Debug)]
pub struct Reports {
    #[command(flatten)]
    until: Until,
    #[command(flatten)]
    asked: Asked,
}

/// A report; the names are those of the attributes of netlink's message.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    error: String,
    context: String,
    from_pid: i32,
    from_tid: i32,
    to_pid: i32,
    to_tid: i32,
    is_reply: bool,
    flags: u32,
    code: u32,
    data_size: u64,
}

impl Report {
    fn new(event: &fakebinder_event, contexts: &HashMap<u64, String>) -> Report {
        let context = contexts.get(&event.context).cloned();
        Report {
            error: return_name(event.error),
            context: context.unwrap_or_else(|| format!("context {}", event.context)),
            from_pid: event.pid,
            from_tid: event.tid,
            to_pid: event.to_pid,
            to_tid: event.to_tid,
            is_reply: event.reply_to != 0,
            flags: event.flags,
            code: event.number,
            data_size: event.size,
        }
    }

    fn line(&self) -> String {
        let kind = match (self.is_reply, self.flags & TF_ONE_WAY != 0) {
            (true, _) => "reply",
            (false, true) => "one-way call",
            (false, false) => "call",
        };
        format!(
            "{}: {kind} from {}:{} to {}:{} in {}, code {}, flags {:#x}, {} bytes",
            self.error,
            self.from_pid,
            self.from_tid,
            self.to_pid,
            self.to_tid,
            self.context,
            self.code,
            self.flags,
            self.data_size
        )
    }
}

/// Prints a line for each report, until the end.
pub fn run(wanted: &Reports) -> Result<(), Box<dyn Error>> {
    let end = wanted.until.end()?;
    let mut events = Events::listen(&wanted.asked, FAKEBINDER_EVENT_REPORT)?;
    eprintln!("listening; Ctrl-C ends it");
    let mut contexts = HashMap::new();
    let mut out = io::stdout();
    let mut told = 0;
    events.until(&end, |some, lost| {
        if some.iter().any(|event| !contexts.contains_key(&event.context)) {
            let snapshot = wanted.asked.snapshot(false)?;
            contexts = snapshot.contexts.into_iter().map(|it| (it.id, it.name)).collect();
        }
        for event in some {
            let report = Report::new(event, &contexts);
            match wanted.asked.json {
                true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
                false => writeln!(out, "{}", report.line())?,
            }
        }
        if lost > told {
            eprintln!("{} reports were lost", lost - told);
            told = lost;
        }
        Ok(())
    })
}
