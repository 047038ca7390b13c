//! fb-differ: random programs on two binder devices; do their clients see the same?

use clap::Parser;
use fakebinder_client::conformance::differ::{Differ, Difference, Program};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Runs random programs on two binder devices and prints where they differ.
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    /// The device that is right
    #[arg(long, value_name = "PATH", default_value = "/dev/binder")]
    reference: PathBuf,
    /// The device that is put to the test
    #[arg(long, value_name = "PATH", default_value = "/dev/fakebinder")]
    device: PathBuf,
    /// Programs are the same for the same seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many programs
    #[arg(long, default_value_t = 100)]
    programs: u64,
    /// The number of the first one
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many steps a program has
    #[arg(long, default_value_t = 60)]
    steps: usize,
    /// Stop after so many differences
    #[arg(long, default_value_t = 5)]
    stop_after: usize,
    /// Run this program (one that --save has written), and no other
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Write the programs that differ to this folder
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Write the pairs of command and circumstances that were reached
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print what each step gave on the reference
    #[arg(long)]
    verbose: bool,
    /// Print programs that differ as they are, not made smaller
    #[arg(long)]
    no_shrink: bool,
    /// How many seconds a program may take on a device
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0)]
    timeout: f32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let differ = Differ {
        reference: args.reference.clone(),
        device: args.device.clone(),
        timeout: Duration::from_secs_f32(args.timeout),
    };
    match run(&args, &differ) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fb-differ: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args, differ: &Differ) -> std::io::Result<usize> {
    for device in [&args.reference, &args.device] {
        std::fs::File::open(device)
            .map_err(|error| std::io::Error::other(format!("{}: {error}", device.display())))?;
    }
    if let Some(path) = &args.replay {
        let text = std::fs::read(path)?;
        // What --save has written, or a program alone.
        let program: Program = serde_json::from_slice::<Difference>(&text)
            .map(|difference| difference.program)
            .or_else(|_| serde_json::from_slice(&text))?;
        let (transcript, difference) = differ.replay(&program)?;
        for (step, line) in program.steps.iter().zip(&transcript.lines) {
            println!("{step}\n      {line}");
        }
        if let Some(difference) = &difference {
            print(difference);
        } else {
            println!("no difference");
        }
        return Ok(difference.iter().count());
    }
    let began = Instant::now();
    let mut differences = 0;
    let mut reached = BTreeSet::new();
    let mut steps = 0;
    let mut ran = 0;
    for number in args.first..args.first + args.programs {
        let (transcript, difference) = differ.program(args.seed, number, args.steps)?;
        ran += 1;
        steps += transcript.lines.len();
        if args.verbose {
            println!("program {number}:");
            for line in &transcript.lines {
                println!("  {line}");
            }
        }
        reached.extend(transcript.reached);
        let Some(difference) = difference else { continue };
        differences += 1;
        println!("seed {} program {number}: step {} differs", args.seed, difference.step);
        let difference = if args.no_shrink { difference } else { differ.shrink(difference)? };
        print(&difference);
        if let Some(folder) = &args.save {
            save(folder, args.seed, number, &difference)?;
        }
        if differences >= args.stop_after {
            break;
        }
    }
    println!(
        "{ran} programs, {steps} steps, {differences} differ, {} pairs of command and circumstances, in {:.1} s",
        reached.len(),
        began.elapsed().as_secs_f32()
    );
    if let Some(path) = &args.record {
        let lines: Vec<_> = reached.into_iter().collect();
        std::fs::write(path, lines.join("\n") + "\n")?;
    }
    Ok(differences)
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
