//! fb-conformance: does a device behave as the binder driver does, in everything that clients can
//! see?

use clap::Parser;
use fakebinder_conformance::{Options, Report, list, map_unaided, run};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Runs the conformance tests of binder devices, and prints TAP.
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    /// A binder device; given several times, as many tests run at a time, each on one of them
    #[arg(long, value_name = "PATH", default_value = "/dev/fakebinder")]
    device: Vec<PathBuf>,
    /// Only tests whose group/name matches; * stands for anything
    #[arg(long, value_name = "GLOB")]
    filter: Vec<String>,
    /// Map devices by mmap alone, as programs do that know nothing of fakebinder
    #[arg(long)]
    unaided: bool,
    /// Print the names of the tests, and run none
    #[arg(long)]
    list: bool,
    /// Write the results as JUnit XML, too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// How many seconds one test may take
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0)]
    timeout: f32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let names = list(&args.filter);
    if args.list {
        for name in names {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    }
    if names.is_empty() {
        eprintln!("fb-conformance: no test matches");
        return ExitCode::from(2);
    }
    for device in &args.device {
        if let Err(error) = std::fs::File::open(device) {
            eprintln!("fb-conformance: {}: {error}", device.display());
            return ExitCode::from(2);
        }
    }
    if args.unaided {
        map_unaided();
    }
    println!("TAP version 14\n1..{}", names.len());
    let options = Options {
        devices: args.device,
        filters: args.filter,
        timeout: Duration::from_secs_f32(args.timeout),
    };
    let mut number = 0;
    let report = run(&options, |verdict| {
        number += 1;
        println!("{}", verdict.tap(number));
        let _ = std::io::stdout().flush();
    });
    let report = match report {
        Ok(report) => report,
        Err(errno) => {
            println!("Bail out! {errno}");
            return ExitCode::from(2);
        }
    };
    let mut slow = BTreeMap::new();
    for verdict in &report.verdicts {
        slow.insert(verdict.time, &verdict.name);
    }
    if let Some((time, name)) = slow.last_key_value() {
        println!("# the slowest: {name}, {:.1} s", time.as_secs_f32());
    }
    let [passed, failed, known, skipped] = report.counts();
    println!(
        "# {passed} passed, {failed} failed, {known} differ as known, {skipped} skipped, in {:.1} s",
        report.time.as_secs_f32()
    );
    if let Some(path) = args.junit
        && let Err(error) = write_junit(&report, &path)
    {
        eprintln!("fb-conformance: {}: {error}", path.display());
        return ExitCode::from(2);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write_junit(report: &Report, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = BufWriter::new(File::create(path)?);
    report.junit(&mut out)?;
    Ok(out.flush()?)
}
