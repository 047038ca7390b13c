//! fakebinder: what a person at the machine asks of the daemon and does around it.

mod ask;
mod container_config;
mod exec;
mod graph;
mod inject;
mod listen;
mod record;
mod replay;
mod reports;
mod tables;
mod top;
mod trace;
mod why;

use ask::Asked;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use serde::Serialize;
use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// What a person at the machine asks of fakebinderd and does around it.
#[derive(Parser, Debug)]
#[command(name = "fakebinder", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// What the daemon holds, and what each user has of that
    Stats(Asked),
    /// The processes that have a device open
    Procs(Asked),
    /// The calls that are under way, the oldest first
    Transactions(Asked),
    /// Everything that the daemon holds, record by record
    State(Asked),
    /// What a process or a thread waits for, and what that waits for
    Why {
        /// A process id or a thread id
        number: i32,
        #[command(flatten)]
        asked: Asked,
    },
    /// The live objects as a picture: who offers what, who refers to whom, who waits for whom
    Graph {
        /// Draw it: to this file, as SVG. Without it the graph is printed, in the DOT language
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        #[command(flatten)]
        asked: Asked,
    },
    Top(top::Top),
    Trace(trace::Trace),
    Reports(reports::Reports),
    Record(record::Record),
    Inject(inject::Inject),
    Replay(replay::Replay),
    /// Have the daemon give back every page that no buffer uses
    Shrink(Asked),
    /// Write man pages and completions, for `make install`
    #[command(hide = true)]
    Generate {
        /// Where to
        folder: PathBuf,
    },
    ContainerConfig(container_config::ContainerConfig),
    Exec(exec::Exec),
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(code) => code,
        // Whoever reads has seen enough, as `head` has.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fakebinder: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::ContainerConfig(wanted) => return Ok(container_config::run(&wanted)),
        Command::Exec(exec) => return Ok(exec::run(exec)),
        Command::Replay(wanted) => return replay::run(&wanted),
        Command::Generate { folder } => {
            let mut command = Args::command().disable_help_subcommand(true);
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                clap_complete::generate_to(shell, &mut command, "fakebinder", &folder)?;
            }
            clap_mangen::generate_to(command, &folder)?;
        }
        Command::Stats(asked) => {
            let snapshot = asked.snapshot(false)?;
            let told = (&snapshot.daemon, &snapshot.users);
            show(&asked, &told, || tables::stats_text(&snapshot))?;
        }
        Command::Procs(asked) => {
            let snapshot = asked.snapshot(false)?;
            let rows = tables::processes(&snapshot);
            show(&asked, &rows, || tables::processes_text(&rows))?;
        }
        Command::Transactions(asked) => {
            let rows = tables::transactions(&asked.snapshot(false)?);
            show(&asked, &rows, || tables::transactions_text(&rows))?;
        }
        Command::State(asked) => {
            let snapshot = asked.snapshot(true)?;
            show(&asked, &snapshot, || tables::state_text(&snapshot))?;
        }
        Command::Why { number, asked } => {
            let snapshot = asked.snapshot(false)?;
            let answers = why::why(&snapshot, number);
            let answers = answers.ok_or_else(|| {
                format!(
                    "{number} is no process that has a device open, and no thread that has called"
                )
            })?;
            show(&asked, &answers, || why::text(&answers))?;
        }
        Command::Graph { svg, asked } => {
            let snapshot = asked.snapshot(true)?;
            draw(&snapshot, svg, &asked)?;
        }
        Command::Top(top) => top::run(&top)?,
        Command::Trace(wanted) => trace::run(&wanted)?,
        Command::Reports(wanted) => reports::run(&wanted)?,
        Command::Record(wanted) => record::run(&wanted)?,
        Command::Inject(wanted) => inject::run(&wanted)?,
        Command::Shrink(asked) => {
            let device = asked.open()?;
            let pages =
                device.daemon_reclaim().map_err(|error| ask::failed(device.path(), error))?;
            show(&asked, &Shrunk { pages }, || format!("{pages} pages of 4 KiB given back\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What `shrink --json` prints.
#[derive(Serialize)]
struct Shrunk {
    pages: u64,
}

/// Prints the answer, for a person or as JSON.
fn show<T: Serialize>(
    asked: &Asked,
    told: &T,
    text: impl Fn() -> String,
) -> Result<(), Box<dyn Error>> {
    let text = match asked.json {
        true => serde_json::to_string_pretty(told)? + "\n",
        false => text(),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn draw(
    snapshot: &fakebinder::snapshot::Snapshot,
    svg: Option<PathBuf>,
    asked: &Asked,
) -> Result<(), Box<dyn Error>> {
    let dot = graph::dot(snapshot);
    let Some(path) = svg else {
        return show(asked, snapshot, || dot.clone());
    };
    let objects = graph::objects(snapshot);
    if objects > graph::MOST {
        let error = "objects are too many for a picture that can be read: print the graph without --svg, and pick";
        return Err(format!("{objects} {error}").into());
    }
    std::fs::write(&path, graph::svg(&dot)?)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    eprintln!("{objects} objects are drawn in {}", path.display());
    Ok(())
}
