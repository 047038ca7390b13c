//! `fakebinder inject`: faults and delays in the daemon's own work, while it runs.

use crate::ask::{self, Asked};
use clap::Args;
use serde::Serialize;
use std::error::Error;
use std::fmt::Write as _;

/// Have the daemon's own work fail or take long from now on, or show what does
///
/// The rules take the place of all that were in force, those of fakebinderd --inject included.
#[derive(Args, Debug)]
pub struct Inject {
    /// The rules, as fakebinderd --inject takes them, such as
    /// 'alloc_page:share=0.01,zap:delay=1ms'. Without them those in force are shown
    #[arg(value_name = "RULES")]
    rules: Option<String>,
    /// Inject nothing any more
    #[arg(long, conflicts_with = "rules")]
    off: bool,
    #[command(flatten)]
    asked: Asked,
}

/// A rule in force.
#[derive(Serialize, Debug, PartialEq, Eq)]
struct Rule {
    rule: String,
    /// How many calls it was about.
    seen: u64,
    /// How many of them it has hit.
    hit: u64,
}

/// Replaces the rules, or not, and prints those in force.
pub fn run(wanted: &Inject) -> Result<(), Box<dyn Error>> {
    let device = wanted.asked.open()?;
    let rules = if wanted.off { Some("") } else { wanted.rules.as_deref() };
    let told = device.daemon_inject(rules).map_err(|error| ask::failed(device.path(), error))?;
    let rules: Vec<Rule> = told?.lines().filter_map(rule).collect();
    crate::show(&wanted.asked, &rules, || match rules.is_empty() {
        true => "nothing is injected\n".to_owned(),
        false => rules.iter().fold(String::new(), |mut text, Rule { rule, seen, hit }| {
            let _ = writeln!(text, "{rule}: has hit {hit} of {seen} calls");
            text
        }),
    })
}

/// A line of the daemon's.
fn rule(line: &str) -> Option<Rule> {
    let mut words = line.splitn(3, ' ');
    let mut number = || words.next()?.parse().ok();
    let (seen, hit) = (number()?, number()?);
    Some(Rule { rule: words.next()?.to_owned(), seen, hit })
}
