//! fb-differ: random programs on two binder devices; do their clients see the same?

use clap::Parser;
use fakebinder_conformance::differ::{
    Differ, Difference, Finding, Options, Outcome, Program, Recording, Right, Seed, Total, run,
};
use fakebinder_conformance::session::Session;
use std::collections::BTreeSet;
use std::io::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Runs random programs on two binder devices and prints where they differ.
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    /// The device that is right; given several times, one for each --device
    #[arg(long, value_name = "PATH", default_value = "/dev/binder")]
    reference: Vec<PathBuf>,
    /// The device that is put to the test; given several times, as many programs run at a time
    #[arg(long, value_name = "PATH", default_value = "/dev/fakebinder")]
    device: Vec<PathBuf>,
    /// Seeds: programs are the same for the same seed
    #[arg(long, value_name = "S,...", value_delimiter = ',', default_value = "1")]
    seed: Vec<u64>,
    /// How many programs for each seed (with --against: those that were recorded)
    #[arg(long)]
    programs: Option<u64>,
    /// The number of the first one
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many steps a program has
    #[arg(long, default_value_t = 60)]
    steps: usize,
    /// Stop after so many differences
    #[arg(long, default_value_t = 5)]
    stop_after: usize,
    /// Write down what the programs give on --device, compared with nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["reference", "first"])]
    record: Option<PathBuf>,
    /// Compare --device with what --record has written, with no --reference
    #[arg(long, value_name = "FILE", conflicts_with_all = ["reference", "record", "seed"])]
    against: Option<PathBuf>,
    /// Run this program (one that --save or `fakebinder record` has written), and no other
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Write the programs that differ to this folder
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Write the pairs of command and circumstances that were reached
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// Print what each step gave on the reference
    #[arg(long)]
    verbose: bool,
    /// Print programs that differ as they are, not made smaller
    #[arg(long)]
    no_shrink: bool,
    /// How many seconds a step may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    timeout: f32,
}

/// How many programs each seed has by default.
const PROGRAMS: u64 = 100;

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.replay {
        Some(path) => replay(&args, path),
        None => programs(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fb-differ: {error}");
            ExitCode::from(2)
        }
    }
}

fn patience(args: &Args) -> Duration {
    Duration::from_secs_f32(args.timeout)
}

fn must_open(devices: &[PathBuf]) -> std::io::Result<()> {
    for device in devices {
        std::fs::File::open(device)
            .map_err(|error| Error::other(format!("{}: {error}", device.display())))?;
    }
    Ok(())
}

/// Runs one program; returns whether the devices agree.
fn replay(args: &Args, path: &Path) -> std::io::Result<bool> {
    let text = std::fs::read(path)?;
    // The file was written by --save or by `fakebinder record`, or holds a program alone.
    let program: Program = serde_json::from_slice::<Difference>(&text)
        .map(|difference| difference.program)
        .or_else(|_| serde_json::from_slice::<Session>(&text).map(|session| session.program))
        .or_else(|_| serde_json::from_slice(&text))?;
    let (reference, device) = (&args.reference[0], &args.device[0]);
    must_open(&[reference.clone(), device.clone()])?;
    let (transcript, difference) = Differ::new(reference, device, patience(args)).replay(&program);
    for (step, line) in program.steps.iter().zip(&transcript.lines) {
        println!("{step}\n      {line}");
    }
    match &difference {
        Some(difference) => print(difference),
        None => println!("no difference"),
    }
    Ok(difference.is_none())
}

/// Runs many programs; returns whether every outcome was right.
fn programs(args: &Args) -> std::io::Result<bool> {
    let recording = args.against.as_deref().map(Recording::load).transpose()?;
    let options = options(args, recording);
    must_open(&options.devices)?;
    if let Right::Devices(references) = &options.right {
        must_open(references)?;
    }
    let began = Instant::now();
    let mut trouble = None;
    let total = run(&options, |outcome| {
        if args.verbose {
            println!("seed {} program {}:", outcome.seed, outcome.number);
            for line in &outcome.lines {
                println!("  {line}");
            }
        }
        if let Some(finding) = &outcome.finding {
            trouble = report(args, outcome, finding).err().or(trouble.take());
        }
    })?;
    if let Some(error) = trouble {
        return Err(error);
    }
    let seconds = began.elapsed().as_secs_f32();
    println!(
        "{} programs of {} seeds, {} steps, {} differ, {} pairs of command and state, in {seconds:.1} s ({:.1}/s)",
        total.programs,
        options.seeds.len(),
        total.steps,
        total.findings,
        total.reached.len(),
        total.programs as f32 / seconds
    );
    if !total.complete {
        println!("a worker ended before its programs did");
    }
    if let Some(path) = &args.pairs {
        std::fs::write(path, lines(&total.reached))?;
    }
    if let Some(path) = &args.record {
        recorded(&options, &total)?.save(path)?;
    }
    Ok(total.complete && total.findings == 0)
}

fn options(args: &Args, recording: Option<Recording>) -> Options {
    let recorded = recording.as_ref().map(|recording| {
        let longest = recording.seeds.iter().map(|seed| seed.hashes.len()).max();
        let seeds = recording.seeds.iter().map(|seed| seed.seed).collect();
        (seeds, longest.unwrap_or(0) as u64, recording.steps)
    });
    let (seeds, all, steps) = recorded.unwrap_or((args.seed.clone(), PROGRAMS, args.steps));
    let right = match recording {
        Some(recording) => Right::Recorded(recording),
        None if args.record.is_some() => Right::All,
        None => Right::Devices(args.reference.clone()),
    };
    Options {
        right,
        devices: args.device.clone(),
        seeds,
        numbers: args.first..args.first + args.programs.unwrap_or(all),
        steps,
        unmap: false,
        patience: patience(args),
        shrink: !args.no_shrink,
        lines: args.verbose,
        stop_after: args.stop_after.max(1),
    }
}

fn recorded(options: &Options, total: &Total) -> std::io::Result<Recording> {
    let name = nix::sys::utsname::uname()?;
    let seed = |&seed: &u64| {
        let hashes = options.numbers.clone().map(|number| total.hashes.get(&(seed, number)));
        Some(Seed { seed, hashes: hashes.map(|hash| hash.copied()).collect::<Option<_>>()? })
    };
    let seeds = options.seeds.iter().map(seed).collect::<Option<_>>();
    Ok(Recording {
        kernel: name.release().to_string_lossy().into_owned(),
        steps: options.steps,
        unmap: options.unmap,
        seeds: seeds.ok_or_else(|| Error::other("not every program ran: nothing is recorded"))?,
    })
}

fn lines(pairs: &BTreeSet<String>) -> String {
    pairs.iter().map(|pair| format!("{pair}\n")).collect()
}

fn report(args: &Args, outcome: &Outcome, finding: &Finding) -> std::io::Result<()> {
    let (seed, number) = (outcome.seed, outcome.number);
    let difference = match finding {
        Finding::Differs(difference) => {
            println!("seed {seed} program {number}: step {} differs", difference.step);
            difference
        }
        Finding::DifferedOnce(difference) => {
            println!(
                "seed {seed} program {number}: step {} differed, but not again",
                difference.step
            );
            difference
        }
        Finding::NotAsRecorded(theirs) => {
            println!(
                "seed {seed} program {number}: not as recorded ({:08x}, not {theirs:08x})",
                outcome.hash
            );
            println!(
                "  to see how, where the driver is: fb-differ --seed {seed} --first {number} --programs 1"
            );
            return Ok(());
        }
        Finding::NotAsRecordedOnce(difference) => {
            println!(
                "seed {seed} program {number}: not as recorded, but as recorded in a second run (the reference)"
            );
            difference
        }
    };
    print(difference);
    match &args.save {
        Some(folder) => save(folder, seed, number, difference),
        None => Ok(()),
    }
}

fn save(folder: &Path, seed: u64, number: u64, difference: &Difference) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!("{seed}-{number}.json"));
    std::fs::write(&path, serde_json::to_vec_pretty(difference)?)?;
    println!("saved as {}", path.display());
    Ok(())
}

fn print(difference: &Difference) {
    print!("{}", difference.program);
    println!("step {}:", difference.step);
    println!("  reference: {}", difference.reference);
    println!("  device:    {}", difference.device);
}
