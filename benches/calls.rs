//! What a call costs: `make bench`. One run, one report.
//!
//! Every row is measured by plain C programs against the kernel's header (ping.c), or by what two
//! processes can do at best (limits.c). The rows are gone through again and again, so that what the
//! machine does meanwhile weighs on all of them, and each is compared with its reference in the
//! same round. The report is in target/bench: report.md, report.json and report.svg.
//!
//! Arguments: how many rounds (5), how many calls of a row and round (5,000).
//!
//! Needs root, /dev/fuse and gcc.

#[path = "../tests/common/mod.rs"]
mod common;

use common::stepping::{Stepping, build};
use common::{Daemon, role_device};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use plotters::prelude::*;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Devices of the daemon: a pair each.
const PAIRS: usize = 8;

/// What a row measures.
#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    /// Back and forth, by the named means of limits.c.
    Limit(&'static str),
    /// A call with so many bytes.
    Call { size: u64, oneway: bool },
    /// So many callers at a time, each of a server of its own: the time of a call over all.
    Pairs(usize),
    /// So many callers of one server with as many threads: the same.
    Pool(usize),
}

struct Row {
    name: &'static str,
    what: What,
    /// On one core: both programs and the daemon.
    pinned: bool,
    /// The row that it is compared with.
    reference: &'static str,
}

const fn row(name: &'static str, what: What, pinned: bool, reference: &'static str) -> Row {
    Row { name, what, pinned, reference }
}

const EMPTY: What = What::Call { size: 0, oneway: false };

const ROWS: [Row; 17] = [
    row("futex, one core", What::Limit("futex"), true, "socket, one core"),
    row("socket, one core", What::Limit("socket"), true, "socket, one core"),
    row("call, empty, one core", EMPTY, true, "socket, one core"),
    row("futex", What::Limit("futex"), false, "socket"),
    row("socket", What::Limit("socket"), false, "socket"),
    row("call, empty", EMPTY, false, "socket"),
    row("call, 4 KiB", What::Call { size: 4 << 10, oneway: false }, false, "call, empty"),
    row("call, 128 KiB", What::Call { size: 128 << 10, oneway: false }, false, "call, empty"),
    row("call, 512 KiB", What::Call { size: 512 << 10, oneway: false }, false, "call, empty"),
    row("one-way call, empty", What::Call { size: 0, oneway: true }, false, "call, empty"),
    row("2 pairs", What::Pairs(2), false, "call, empty"),
    row("4 pairs", What::Pairs(4), false, "call, empty"),
    row("8 pairs", What::Pairs(8), false, "call, empty"),
    row("2 callers, 2 threads", What::Pool(2), false, "call, empty"),
    row("4 callers, 4 threads", What::Pool(4), false, "call, empty"),
    row("8 callers, 8 threads", What::Pool(8), false, "call, empty"),
    row("16 callers, 16 threads", What::Pool(16), false, "call, empty"),
];

/// Starts a program, on one core if it is to stay there.
fn start(program: &Path, arguments: &[&str], pinned: bool) -> Outcome<Stepping> {
    let mut command = match pinned {
        true => Command::new("taskset"),
        false => Command::new(program),
    };
    if pinned {
        command.args(["-c", "0"]).arg(program);
    }
    Ok(Stepping::start(command.args(arguments))?)
}

/// The median, and how long all took, in nanoseconds.
fn times(program: &mut Stepping) -> Outcome<(f64, f64)> {
    let line = program.line()?;
    let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    match numbers[..] {
        [median, _, _, all] => Ok((median, all)),
        _ => Err(format!("a program said {line:?}").into()),
    }
}

struct Stage {
    daemon: Daemon,
    ping: PathBuf,
    limits: PathBuf,
    calls: u64,
}

impl Stage {
    fn device(&self, pair: usize) -> String {
        let name = match pair {
            0 => self.daemon.name.clone(),
            pair => format!("pair-{pair}"),
        };
        self.daemon.mount.join(name).display().to_string()
    }

    /// Keeps all threads of the daemon on one core, or lets them go where they like.
    fn pin_daemon(&self, pinned: bool) -> Outcome<()> {
        let mut cores = CpuSet::new();
        let all = std::thread::available_parallelism()?.get();
        (0..if pinned { 1 } else { all }).try_for_each(|core| cores.set(core))?;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.daemon.pid()))? {
            let tid = task?.file_name().to_string_lossy().parse()?;
            // One that has just ended needs no core.
            let _ = sched_setaffinity(Pid::from_raw(tid), &cores);
        }
        Ok(())
    }

    /// Microseconds of a row in one round.
    fn measure(&self, row: &Row) -> Outcome<f64> {
        let count = self.calls.to_string();
        self.pin_daemon(row.pinned)?;
        match row.what {
            What::Limit(means) => {
                let mut pair = start(&self.limits, &[means, &count], row.pinned)?;
                pair.go_on()?;
                Ok(times(&mut pair)?.0 / 1e3)
            }
            What::Call { size, oneway } => {
                let _server = start(&self.ping, &[&self.device(0), "serve"], row.pinned)?;
                let (device, size) = (self.device(0), size.to_string());
                let mut arguments = vec![&*device, "call", &count, &size];
                arguments.extend(oneway.then_some("oneway"));
                let mut caller = start(&self.ping, &arguments, row.pinned)?;
                caller.go_on()?;
                Ok(times(&mut caller)?.0 / 1e3)
            }
            What::Pairs(pairs) => {
                let servers: Outcome<Vec<_>> = (0..pairs)
                    .map(|pair| start(&self.ping, &[&self.device(pair), "serve"], false))
                    .collect();
                let _servers = servers?;
                self.together((0..pairs).map(|pair| self.device(pair)))
            }
            What::Pool(threads) => {
                let arguments = [&*self.device(0), "serve", &threads.to_string()];
                let _server = start(&self.ping, &arguments, false)?;
                self.together((0..threads).map(|_| self.device(0)))
            }
        }
    }

    /// Callers of these devices at the same time: microseconds of a call over all of them.
    fn together(&self, devices: impl Iterator<Item = String>) -> Outcome<f64> {
        let count = self.calls.to_string();
        let callers: Outcome<Vec<_>> =
            devices.map(|device| start(&self.ping, &[&device, "call", &count], false)).collect();
        let mut callers = callers?;
        callers.iter_mut().try_for_each(Stepping::go_on)?;
        let mut longest = 0f64;
        for caller in &mut callers {
            longest = longest.max(times(caller)?.1);
        }
        Ok(longest / 1e3 / self.calls as f64 / callers.len() as f64)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A row's samples, and its ratios to its reference, a round each.
struct Measured {
    row: &'static Row,
    us: Vec<f64>,
    ratios: Vec<f64>,
}

fn compare(samples: Vec<Vec<f64>>) -> Vec<Measured> {
    let reference = |row: &Row| {
        let index = ROWS.iter().position(|other| other.name == row.reference);
        &samples[index.expect("a reference is a row")]
    };
    let ratios = |row, us: &[f64]| us.iter().zip(reference(row)).map(|(a, b)| a / b).collect();
    let rows = ROWS.iter().zip(&samples);
    rows.map(|(row, us)| Measured { row, us: us.clone(), ratios: ratios(row, us) }).collect()
}

fn report(directory: &Path, rows: &[Measured], rounds: usize, calls: u64) -> Outcome<()> {
    let machine = nix::sys::utsname::uname()?;
    let cores = std::thread::available_parallelism()?;
    let mut text = format!(
        "# What a call costs\n\n{} {}, {cores} cores. Medians of {rounds} rounds, {calls} calls of each row in a round; in \
         parentheses the least and the most of a round. `make bench`\n\n\
         | row | us | compared with | ratio |\n|---|---|---|---|\n",
        machine.sysname().to_string_lossy(),
        machine.release().to_string_lossy(),
    );
    let range = |values: &[f64]| {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        (least, values.iter().copied().fold(0.0, f64::max))
    };
    for Measured { row, us, ratios } in rows {
        let ((least, most), (low, high)) = (range(us), range(ratios));
        writeln!(
            text,
            "| {} | {:.1} ({least:.1} to {most:.1}) | {} | {:.2} ({low:.2} to {high:.2}) |",
            row.name,
            median(us),
            row.reference,
            median(ratios),
        )?;
    }
    std::fs::write(directory.join("report.md"), &text)?;
    let json: Vec<_> = rows
        .iter()
        .map(|Measured { row, us, ratios }| {
            serde_json::json!({
                "row": row.name, "us": us, "reference": row.reference, "ratios": ratios,
                "median_us": median(us), "median_ratio": median(ratios),
            })
        })
        .collect();
    std::fs::write(directory.join("report.json"), serde_json::to_vec_pretty(&json)?)?;
    draw(&directory.join("report.svg"), rows)?;
    print!("{text}");
    Ok(())
}

/// A bar for each row.
fn draw(path: &Path, rows: &[Measured]) -> Outcome<()> {
    const LINE: i32 = 26;
    let height = (rows.len() as i32 + 1) * LINE;
    let area = SVGBackend::new(path, (900, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let most = rows.iter().map(|row| median(&row.us)).fold(1.0, f64::max);
    let font = ("sans-serif", 14).into_font();
    for (index, row) in rows.iter().enumerate() {
        let (us, y) = (median(&row.us), index as i32 * LINE + LINE / 2);
        let end = 200 + (us / most * 560.0) as i32;
        let colour = if matches!(row.row.what, What::Limit(_)) { BLACK } else { BLUE };
        area.draw(&Rectangle::new([(200, y), (end, y + LINE - 8)], colour.mix(0.6).filled()))?;
        area.draw(&Text::new(row.row.name, (8, y + 2), font.clone()))?;
        area.draw(&Text::new(format!("{us:.1} us"), (end + 6, y + 2), font.clone()))?;
    }
    area.present()?;
    Ok(())
}

fn run(rounds: usize, calls: u64) -> Outcome<()> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join("bench");
    std::fs::create_dir_all(&directory)?;
    let more: Vec<String> = (1..PAIRS).map(|pair| format!("pair-{pair}")).collect();
    let names: Vec<&str> = more.iter().flat_map(|name| ["--name", name]).collect();
    let daemon = Daemon::start_with(&[&["--no-link"], &names[..]].concat(), None);
    let (ping, limits) = (build("ping.c", &directory)?, build("limits.c", &directory)?);
    let stage = Stage { daemon, ping, limits, calls };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {eta} left")?;
    let progress = ProgressBar::new((rounds * ROWS.len()) as u64).with_style(style);
    let mut samples = vec![Vec::new(); ROWS.len()];
    for _ in 0..rounds {
        for (row, samples) in ROWS.iter().zip(&mut samples) {
            progress.set_message(row.name);
            let us = stage.measure(row).map_err(|error| format!("{}: {error}", row.name))?;
            samples.push(us);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    stage.daemon.stop();
    report(&directory, &compare(samples), rounds, calls)
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // The registrar of a daemon under test is this program again.
    if arguments.iter().any(|argument| argument == "common::registrar::registrar") {
        common::be_registrar(&role_device().expect("a role has a device"));
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() || !common::Door::Fuse.is_here() {
        return Err("it takes root and /dev/fuse".into());
    }
    // Cargo passes --bench.
    let mut numbers = arguments.iter().filter(|argument| !argument.starts_with("--"));
    let mut number = |otherwise| {
        numbers.next().map_or(Ok(otherwise), |it| it.parse::<u64>()).map(|it| it.max(1))
    };
    run(number(5)? as usize, number(5000)?)
}
