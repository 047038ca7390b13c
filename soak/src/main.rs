//! fb-stress: a mixed load on one daemon for as long as one likes; whether every answer was right,
//! and whether the daemon grew.
//!
//! The program starts itself again for each client, so that each is a process of its own that can be
//! killed at any moment. What they do is counted in memory that all share; what went wrong they
//! write to a file that all have as their standard error.

mod chance;
mod client;
mod crowd;
mod daemon;
mod growth;
mod handles;
mod hoarder;
mod message;
mod play;
mod plot;
mod report;
mod run;
mod samples;
mod serve;
mod tally;

use clap::{Parser, ValueEnum};
use client::{Client, Orders};
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::process::ExitCode;
use tally::Tally;

/// Lets many clients call each other, pass objects, be frozen, be killed and hoard on one daemon,
/// checks every answer, and watches whether the daemon grows. Needs root.
///
/// Without --device it starts a daemon of its own, with a small page budget, small quotas and
/// injected faults. Ctrl-C ends it early, with what was done until then.
/// Exit status: 0 when all was right, 1 when a check failed or the daemon grew, 2 for wrong flags.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
pub struct Args {
    /// The daemon's program, to be started; without it fakebinderd beside this program
    #[arg(long, value_name = "PATH", conflicts_with = "device")]
    daemon: Option<PathBuf>,
    /// A device of a daemon that runs already, in place of one that is started
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,
    /// How long the load lasts
    #[arg(long, value_name = "N", default_value_t = 1800, overrides_with = "seconds",
          value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Honest clients at a time, each with two threads that call and two that serve. There are a
    /// manager, two clients that do not read and two that hoard besides
    #[arg(long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(2..=500))]
    clients: u32,
    /// Decides what the clients do, and who is killed and frozen when
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The daemon's --inject, in place of a few faults of most kinds; '' injects none
    #[arg(long, value_name = "SPEC", conflicts_with = "device")]
    inject: Option<String>,
    /// Where to write the samples of the daemon, as CSV
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
    /// Where to draw memory and descriptors over time, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// The final table as JSON
    #[arg(long)]
    json: bool,

    /// For tests: one answer in eight of every server is wrong
    #[arg(long, hide = true)]
    plant_wrong_answers: bool,
    #[arg(long, hide = true, requires_all = ["tally", "device"])]
    role: Option<Role>,
    #[arg(long, hide = true, default_value_t = 0)]
    number: u32,
    #[arg(long, hide = true)]
    tally: Option<PathBuf>,
}

/// What a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Manager,
    Worker,
    Idle,
    Hoarder,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Manager => "manager",
            Role::Worker => "worker",
            Role::Idle => "idle",
            Role::Hoarder => "hoarder",
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match (args.role, &args.device, &args.tally) {
        (Some(role), Some(device), Some(tally)) => {
            let orders = Orders {
                device: device.clone(),
                number: args.number,
                seed: args.seed,
                plant_wrong_answers: args.plant_wrong_answers,
            };
            be(role, orders, tally)
        }
        _ => run::run(&args),
    }
}

/// A client goes when whoever started it does.
fn end_with_parent() {
    let _ = set_pdeathsig(Signal::SIGKILL);
}

/// Lives as a client.
fn be(role: Role, orders: Orders, tally: &std::path::Path) -> ExitCode {
    end_with_parent();
    // Started as /proc/self/exe, the process would be "exe" in ps.
    let _ = set_name(c"fb-stress");
    let tally = match Tally::shared(tally) {
        Ok(tally) => tally,
        Err(error) => {
            eprintln!("{}: {error}", tally.display());
            return ExitCode::FAILURE;
        }
    };
    if role == Role::Hoarder {
        let uid = hoarder::FIRST_UID + orders.number % 2;
        return hoarder::hoard(orders, uid, tally);
    }
    let mapping = if role == Role::Manager { 4 << 20 } else { 512 << 10 };
    let client = Client::open(orders, tally, mapping);
    let _ = client.device.enable_oneway_spam_detection(client.orders.number.is_multiple_of(2));
    match role {
        Role::Manager => client.manage(),
        Role::Idle => client.idle(),
        Role::Worker | Role::Hoarder => std::thread::scope(|scope| {
            for number in 0..2 {
                let client = &client;
                scope.spawn(move || ends(client, || client.work(number)));
                scope.spawn(move || ends(client, || client.play(2 + number)));
            }
        }),
    }
    ExitCode::SUCCESS
}

/// A thread that panics takes its process along: the others never end.
fn ends(client: &Client, work: impl FnOnce() -> std::convert::Infallible) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    client.complain("a thread panicked");
    std::process::exit(client::FAILED);
}
