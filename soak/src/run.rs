//! A run from its first client to its verdict.

use crate::Args;
use crate::client::complain;
use crate::crowd::Crowd;
use crate::daemon::{Daemon, usual_faults};
use crate::report::Report;
use crate::samples::{Sample, Samples};
use crate::tally::{Event, Outcome, Tally};
use fakebinder_client::uapi;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};
use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MOMENT: Duration = Duration::from_millis(20);
/// When nothing has been answered for so long, something hangs.
const ANSWERED_IN: Duration = Duration::from_secs(20);
/// In that time the daemon has cleared away all that clients have left.
const CLEARED_IN: Duration = Duration::from_secs(20);
/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Ctrl-C, or SIGTERM.
static STOP: AtomicBool = AtomicBool::new(false);

pub fn run(args: &Args) -> ExitCode {
    match try_run(args) {
        Ok(report) => {
            println!("{}", if args.json { report.json() } else { report.table() });
            for reason in &report.reasons {
                eprintln!("fb-stress: {reason}");
            }
            ExitCode::from(u8::from(!report.reasons.is_empty()))
        }
        Err(message) => {
            eprintln!("fb-stress: {message}");
            ExitCode::FAILURE
        }
    }
}

/// From here on signals end the run and not the process.
fn listen_for_signals() -> Result<(), String> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().map_err(|errno| format!("signals cannot be blocked: {errno}"))?;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            STOP.store(true, Relaxed);
        }
    });
    Ok(())
}

/// A folder for the mount and what the processes share, which every user may enter.
fn home() -> io::Result<TempDir> {
    let home = TempDir::with_prefix("fb-stress-")?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
    Ok(home)
}

fn start_daemon(args: &Args, home: &Path) -> Result<Daemon, String> {
    if let Some(device) = &args.device {
        return Daemon::of(device);
    }
    let program = match &args.daemon {
        Some(program) => program.clone(),
        None => std::env::current_exe()
            .map(|this| this.with_file_name("fakebinderd"))
            .map_err(|error| format!("where this program lies is not known: {error}"))?,
    };
    let inject = args.inject.clone().unwrap_or_else(|| usual_faults(args.seed));
    Daemon::start(&program, &inject, home)
}

fn try_run(args: &Args) -> Result<Report, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err(
            "it takes root: what the daemon holds is told to nobody else; run it by sudo".into()
        );
    }
    listen_for_signals()?;
    let home = home().map_err(|error| format!("a temporary folder cannot be made: {error}"))?;
    let daemon = start_daemon(args, home.path())?;
    let here = |error: io::Error| format!("{}: {error}", home.path().display());
    let tally_path = home.path().join("tally");
    let tally = Tally::shared(&tally_path).map_err(here)?;
    let complaints = home.path().join("complaints");
    let open = || File::options().append(true).create(true).open(&complaints);
    let mut crowd = Crowd::new(args, &daemon.device, tally, &tally_path, open().map_err(here)?);

    let start = Sample::take(&daemon, 0.0)?;
    let (samples, elapsed) = Load { args, daemon: &daemon, tally, complaints: complaints.clone() }
        .last(&mut crowd)
        .map_err(|error| format!("the load cannot go on: {error}"))?;
    crowd.disperse();
    let (end, left) = clear(&daemon, &start, elapsed.as_secs_f64())?;
    drop(crowd);
    let was_stopped = STOP.load(Relaxed);
    let mut wrong = left;
    let log = daemon.log_end();
    wrong.extend(daemon.stop());
    let said = fs::read_to_string(&complaints).unwrap_or_default();
    if let Some(path) = &args.samples {
        fs::write(path, samples.csv()).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let courses = samples.courses(&start, &end);
    if let Some(path) = &args.plot {
        crate::plot::draw(path, &samples)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let mut report = Report::new(args.seed, elapsed, was_stopped, tally, courses, wrong, &said);
    if !report.reasons.is_empty() {
        report.reasons.extend(log.map(|log| format!("the daemon's log ends with:\n{log}")));
    }
    Ok(report)
}

/// Waits until the daemon holds no more than before the first client. What is left, if it does.
fn clear(daemon: &Daemon, start: &Sample, seconds: f64) -> Result<(Sample, Vec<String>), String> {
    let deadline = Instant::now() + CLEARED_IN;
    // This thread has frozen others by it, for which the driver keeps a record of the thread.
    let left = daemon.watch.thread_exit().map_err(|error| error.explain());
    left?;
    loop {
        // An attempt may meet an injected fault: the next one need not.
        match Sample::take(daemon, seconds) {
            Ok(end) if end.live() == start.live() => return Ok((end, Vec::new())),
            Ok(end) if Instant::now() > deadline => {
                let left = left_over(&start.live(), &end.live());
                return Ok((end, vec![left]));
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn left_over(before: &uapi::fakebinder_stats, after: &uapi::fakebinder_stats) -> String {
    format!(
        "{CLEARED_IN:?} after the last client the daemon holds {after:?}, and before the first {before:?}"
    )
}

/// The time in which there are clients.
struct Load<'r> {
    args: &'r Args,
    daemon: &'r Daemon,
    tally: &'static Tally,
    complaints: PathBuf,
}

impl Load<'_> {
    /// Goes on until the time is up, or a signal comes, or the daemon is gone.
    fn last(&self, crowd: &mut Crowd<'_>) -> io::Result<(Samples, Duration)> {
        let length = Duration::from_secs(self.args.seconds);
        let every = (length / 120).clamp(Duration::from_millis(50), Duration::from_secs(1));
        let progress = self.progress();
        let began = Instant::now();
        let mut samples = Samples::default();
        let (mut sampled, mut printed) = (began, began);
        let mut answered = (0, began);
        crowd.gather(self.daemon.has_quotas())?;
        while began.elapsed() < length && !STOP.load(Relaxed) {
            crowd.moment(&self.daemon.watch)?;
            let now = Instant::now();
            let done = self.tally.all(Outcome::Done);
            if done != answered.0 {
                answered = (done, now);
            } else if now - answered.1 > ANSWERED_IN {
                complain(self.tally, &format!("nothing has been answered for {ANSWERED_IN:?}"));
                answered.1 = now;
            }
            if now - sampled >= every {
                sampled = now;
                let seconds = began.elapsed().as_secs_f64();
                match Sample::take(self.daemon, seconds) {
                    Ok(sample) => samples.0.push(sample),
                    // By a fault, or for ever.
                    Err(_) if Path::new(&format!("/proc/{}/fd/0", self.daemon.pid)).exists() => {}
                    Err(error) => {
                        complain(self.tally, &format!("the daemon is gone: {error}"));
                        break;
                    }
                }
                let line = self.line(&samples);
                progress.set_position(began.elapsed().as_secs());
                progress.set_message(line.clone());
                if progress.is_hidden() && now - printed >= LINE_EVERY {
                    printed = now;
                    eprintln!("fb-stress: {:.0} s: {line}", seconds);
                }
            }
            std::thread::sleep(MOMENT);
        }
        progress.finish_and_clear();
        Ok((samples, began.elapsed()))
    }

    /// A bar on a terminal.
    fn progress(&self) -> ProgressBar {
        let target = match io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(self.args.seconds), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} s, {msg}") {
            bar.set_style(style);
        }
        bar
    }

    fn line(&self, samples: &Samples) -> String {
        let last = samples.0.last().copied().unwrap_or_default();
        let failed = self.tally.events(Event::FailedChecks);
        let mut line = format!(
            "{} operations done, {failed} failed checks, {} clients killed, RSS {} KiB, {} descriptors",
            self.tally.all(Outcome::Done),
            self.tally.events(Event::Kills),
            last.rss_kib,
            last.descriptors
        );
        if failed > 0
            && let Some(first) =
                fs::read_to_string(&self.complaints).unwrap_or_default().lines().next()
        {
            line.push_str(", the first: ");
            line.push_str(first);
        }
        line
    }
}
