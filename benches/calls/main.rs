//! What a call costs: `make bench`. One run, one report.
//!
//! Every row is measured by plain C programs against the kernel's header (ping.c), or by what two
//! processes can do at best (limits.c). The rows are gone through again and again, so that what the
//! machine does meanwhile weighs on all of them, and each is compared with its reference in the
//! same round. The rows are in plan.rs, and docs/speed.md says how to read them.
//!
//! First on this machine, then in the test VM, where the kernel's driver is. The report is in
//! target/bench: report.md, report.json and report.svg, and readme.md as the README shows it; of a
//! run that leaves something out part.md, part.json and part.svg.
//!
//! Needs root, /dev/fuse and gcc. What else is missing is said in the report.

#[path = "../../tests/common/mod.rs"]
mod common;

#[path = "../shared/hog.rs"]
mod hog;

mod beside;
mod counts;
mod crowd;
mod dbus;
mod pages;
mod plan;
mod plot;
mod report;
mod series;
mod stage;
mod stop;
mod vm;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use nix::unistd::Pid;
use plan::{Sizes, Step};
use report::Report;
use series::{Measured, Series, Trouble};
use stage::Stage;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// This machine has not what a row takes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Skipped(String);

/// What a call costs, on this machine and in the test VM
#[derive(Debug, Parser)]
struct Settings {
    /// How often all rows are gone through, at most
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many calls of a row and round
    #[arg(long, default_value_t = 5000)]
    calls: u64,
    /// The same in the VM, whose CPUs are emulated
    #[arg(long, default_value_t = 300)]
    vm_calls: u64,
    /// How long this machine's part may take: rounds that would take longer are left out
    #[arg(long, default_value_t = 12)]
    minutes: u64,
    /// How long the VM's part may take
    #[arg(long, default_value_t = 8)]
    vm_minutes: u64,
    /// Numbers of connected clients
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000,5000")]
    clients: Vec<usize>,
    /// Nodes of the client that a pair is measured beside
    #[arg(long, default_value_t = 200_000)]
    nodes: u64,
    /// Only rows whose names contain this, with what they are compared with
    #[arg(long, default_value = "")]
    only: String,
    /// One round of few calls: to see whether it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Leave the VM out
    #[arg(long)]
    no_vm: bool,
    /// Leave this machine out
    #[arg(long)]
    no_native: bool,
    /// The VM's side: where to write what it came to
    #[arg(long, hide = true)]
    in_vm: Option<PathBuf>,
    /// What Cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

impl Settings {
    fn sizes(&self) -> Sizes {
        let in_vm = self.in_vm.is_some();
        let (rounds, calls) = (self.rounds.max(1), if in_vm { self.vm_calls } else { self.calls });
        let (clients, nodes) = (self.clients.clone(), self.nodes);
        match self.quick {
            true if in_vm => Sizes { rounds: 1, calls: 50, clients, nodes },
            true => Sizes { rounds: 1, calls: 300, clients: vec![10, 100], nodes: 2000 },
            false => Sizes { rounds, calls: calls.max(1), clients, nodes },
        }
    }

    /// Whether no row is left out, and none measured too little to tell.
    fn is_whole(&self) -> bool {
        self.only.is_empty() && !self.quick && !self.no_vm && !self.no_native
    }

    fn arguments_in_vm(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--rounds={}", self.rounds),
            format!("--vm-calls={}", self.vm_calls),
            format!("--vm-minutes={}", self.vm_minutes),
            format!("--only={}", self.only),
        ];
        arguments.extend(self.quick.then(|| "--quick".to_owned()));
        arguments
    }

    /// The steps with rows that are asked for, and those that they are compared with.
    fn chosen(&self, plan: Vec<Step>) -> Vec<Step> {
        let asked = |step: &&Step| step.rows.iter().any(|row| row.name.contains(&self.only));
        let rows = plan.iter().filter(asked).flat_map(|step| &step.rows);
        let wanted: Vec<String> =
            rows.flat_map(|row| [row.name.clone(), row.reference.clone()]).collect();
        plan.into_iter()
            .filter(|step| step.rows.iter().any(|it| wanted.contains(&it.name)))
            .collect()
    }
}

/// The machine in words.
fn machine() -> Outcome<String> {
    let system = nix::sys::utsname::uname()?;
    let cores = std::thread::available_parallelism()?;
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("", |(_, model)| model);
    let release = system.release().to_string_lossy();
    Ok(format!("{} {release}, {cores} cores, {model}", system.sysname().to_string_lossy()))
}

/// Goes through the steps again and again, as often as told and as long as there is time.
fn play(
    stage: &mut Stage,
    plan: &[Step],
    seconds: u64,
    told: impl Fn(u64, u64, &str),
) -> Outcome<Measured> {
    let rounds = stage.sizes.rounds;
    let series = |step: &Step, row: &plan::Row| Series {
        row: row.name.clone(),
        column: step.column.to_owned(),
        unit: row.unit.to_owned(),
        reference: row.reference.clone(),
        values: Vec::new(),
        trouble: None,
    };
    let mut all: Vec<Vec<Series>> =
        plan.iter().map(|step| step.rows.iter().map(|row| series(step, row)).collect()).collect();
    let steps: usize = plan.iter().map(|step| step.rounds.min(rounds)).sum();
    let (began, mut done, mut played) = (Instant::now(), 0, 0);
    for round in 0..rounds {
        let round_began = Instant::now();
        for (step, series) in plan.iter().zip(&mut all) {
            if round >= step.rounds {
                continue;
            }
            told(done, steps as u64, format!("{} {}", step.rows[0].name, step.column).trim_end());
            done += 1;
            if series[0].trouble.is_some() {
                continue;
            }
            if began.elapsed() > Duration::from_secs(seconds) {
                if series[0].values.is_empty() {
                    let trouble = Trouble::Skipped("there was no time left for it".into());
                    series.iter_mut().for_each(|series| series.trouble = Some(trouble.clone()));
                }
                continue;
            }
            // What a test would fail by, as when a daemon ends with an error, is a row's failure.
            let outcome = catch_unwind(AssertUnwindSafe(|| stage.measure(step)))
                .unwrap_or_else(|_| Err("it panicked, and said why where it did".into()));
            stop::check()?;
            match outcome {
                Ok(values) => {
                    for (series, value) in series.iter_mut().zip(values) {
                        series.values.resize(round, None);
                        series.values.push(Some(value));
                    }
                }
                Err(error) => {
                    let trouble = match error.downcast_ref::<Skipped>() {
                        Some(Skipped(reason)) => Trouble::Skipped(reason.clone()),
                        None => {
                            stage.renew(step);
                            Trouble::Failed(error.to_string())
                        }
                    };
                    series.iter_mut().for_each(|series| series.trouble = Some(trouble.clone()));
                }
            }
        }
        played = round + 1;
        if began.elapsed() + round_began.elapsed() > Duration::from_secs(seconds) {
            break;
        }
    }
    Ok(Measured {
        machine: machine()?,
        rounds: played,
        calls: stage.sizes.calls,
        series: all.into_iter().flatten().collect(),
        ..Measured::default()
    })
}

/// Moves the progress bar; says a line where nobody would see the bar.
fn tell(bar: &ProgressBar, done: u64, all: u64, row: String) {
    if bar.is_hidden() {
        eprintln!("{done}/{all} {row}");
    }
    bar.set_length(all);
    bar.set_position(done);
    bar.set_message(row);
}

fn native(settings: &Settings, directory: &Path, bar: &ProgressBar) -> Outcome<Measured> {
    let sizes = settings.sizes();
    let mut stage = Stage::native(directory, &sizes);
    let plan = settings.chosen(plan::native(&sizes));
    let told = |done, all, row: &str| tell(bar, done, all, row.to_owned());
    let mut measured = play(&mut stage, &plan, settings.minutes * 60, told)?;
    stage.stop();
    measured.columns = [plan::READ, plan::URING].map(str::to_owned).to_vec();
    plan::derive(&mut measured, &sizes);
    Ok(measured)
}

/// Measures all, and writes the report. Whether every row has its figure, or its reason.
fn run(settings: &Settings, directory: &Path) -> Outcome<bool> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta} left")?;
    let bar = ProgressBar::new(1).with_style(style);
    bar.enable_steady_tick(Duration::from_secs(1));
    stage::build_programs(directory)?;
    let native = match settings.no_native {
        true => None,
        false => Some(native(settings, directory, &bar)?),
    };
    let vm = match settings.no_vm {
        true => Err("it was left out (--no-vm)".to_owned()),
        false => {
            bar.reset_eta();
            vm::run(settings, &bar)?
        }
    };
    bar.finish_and_clear();
    let flags: Vec<String> = std::env::args().skip(1).filter(|flag| flag != "--bench").collect();
    let command = match flags.is_empty() {
        true => "make bench".to_owned(),
        false => format!("make bench BENCH_FLAGS='{}'", flags.join(" ")),
    };
    let report = Report { command, native, vm };
    let text = report.text();
    // A few rows, or one round of them, must not take the place of a whole report.
    let name = if settings.is_whole() { "report" } else { "part" };
    let file = |ending: &str| directory.join(format!("{name}.{ending}"));
    std::fs::write(file("md"), &text)?;
    std::fs::write(file("json"), serde_json::to_vec_pretty(&report)?)?;
    plot::draw(&file("svg"), &report)?;
    print!("{text}");
    println!("\nThe report is in {}: {name}.md, .json, .svg", directory.display());
    if settings.is_whole() {
        std::fs::write(directory.join("readme.md"), report.for_readme())?;
        println!("and readme.md, its main rows");
    }
    match report.skipped() {
        0 => {}
        rows => println!("SKIPPED: {rows} rows or parts of it; the report says why"),
    }
    Ok(!report.has_failed())
}

fn main() -> Outcome<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // The client that a pair is measured beside is this program again.
    if let Some(outcome) = hog::be_client(&words) {
        return outcome.map(|()| ExitCode::SUCCESS);
    }
    let settings = Settings::parse();
    if settings.clients.is_empty() || settings.clients.contains(&0) {
        return Err("--clients takes numbers from 1 on".into());
    }
    if !nix::unistd::geteuid().is_root() || !common::Door::Fuse.is_here() {
        return Err("it takes root and /dev/fuse".into());
    }
    stop::listen()?;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&directory)?;
    if let Some(out) = &settings.in_vm {
        vm::be_guest(&settings, &directory, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let good = run(&settings, &directory)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
