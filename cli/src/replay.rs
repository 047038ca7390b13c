//! `fakebinder replay`: a recorded session, on any binder device.

use clap::Args;
use fakebinder_conformance::differ::{Difference, compare_with, play};
use fakebinder_conformance::session::Session;
use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Do what a recorded session did, step by step, on a device that nobody else uses
///
/// Exit status 1: a step gave something else than it has to.
#[derive(Args, Debug)]
pub struct Replay {
    /// What `fakebinder record` has written
    session: PathBuf,
    /// The device: fakebinder's, or the kernel's own driver
    #[arg(long, short, value_name = "PATH", default_value = "/dev/fakebinder")]
    device: PathBuf,
    /// Another device, which is right: every step has to give the same on both
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Write the session to this file, with what its steps gave, which a later replay has to give
    /// again (on the device of --against, if there is one)
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print every step, and what it gave
    #[arg(long, short)]
    verbose: bool,
}

/// Replays a session.
pub fn run(wanted: &Replay) -> Result<ExitCode, Box<dyn Error>> {
    let mut session = Session::load(&wanted.session)?;
    let program = &session.program;
    for device in [Some(&wanted.device), wanted.against.as_ref()].into_iter().flatten() {
        std::fs::File::open(device).map_err(|error| format!("{}: {error}", device.display()))?;
    }
    let right = match &wanted.against {
        Some(device) => Some(play(device, program, PATIENCE)),
        None => Some(session.outcome.clone()).filter(|outcome| !outcome.is_empty()),
    };
    let outcome = play(&wanted.device, program, PATIENCE);
    let mut text = String::new();
    if wanted.verbose {
        for (index, (step, line)) in program.steps.iter().zip(&outcome).enumerate() {
            let _ = writeln!(text, "{index:4}  {step}\n      {line}");
        }
    }
    let difference = right.as_ref().and_then(|right| compare_with(program, right, &outcome));
    let steps = format!(
        "{}: {} steps of {} processes on {}",
        wanted.session.display(),
        program.steps.len(),
        program.processes.len(),
        wanted.device.display()
    );
    let of = match &wanted.against {
        Some(device) => format!("on {}", device.display()),
        None => "as the session has it".to_owned(),
    };
    match (&difference, &right) {
        (Some(difference), _) => text += &differs(difference, &steps, &of),
        (None, Some(_)) => text += &format!("{steps}: all as {}\n", of.trim_start_matches("as ")),
        (None, None) => {
            text += &format!(
                "{steps}: done; there is nothing to compare them with (--against, --save)\n"
            );
        }
    }
    if let Some(path) = &wanted.save {
        session.outcome = right.filter(|_| wanted.against.is_some()).unwrap_or(outcome);
        session.save(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::from(u8::from(difference.is_some())))
}

/// The step that differs, and those before it.
fn differs(difference: &Difference, steps: &str, of: &str) -> String {
    const BEFORE: usize = 12;
    let Difference { program, step, reference, device } = difference;
    let mut text = format!("{steps}: step {step} differs\n");
    let first = step.saturating_sub(BEFORE);
    for (index, one) in program.steps.iter().enumerate().take(step + 1).skip(first) {
        let _ = writeln!(text, "{index:4}  {one}");
    }
    let _ = writeln!(text, "{of}: {reference}\nhere: {device}");
    text
}
