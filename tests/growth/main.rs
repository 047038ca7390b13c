//! No row grows faster than its input. Each row measures one thing that a client can have the
//! daemon do, in a world of n records and in one of 4n: a single operation among so many may take
//! the logarithm's growth more, and one that goes through all of them n log n.
//!
//! Instructions are counted, not time: valgrind (`--tool=callgrind`) runs this program once more,
//! and writes a count for each call of [`counted`]. So the figures are the same on a busy machine,
//! but for the seeds of hash tables. What the kernel does is not counted. To see the table:
//! `cargo test --release --test growth -- --nocapture`; with `GROWTH=freeze` before it, only the rows
//! that have this word in their names.

mod buffers;
mod clients;
mod ends;
mod records;
mod scale;
#[path = "../common/skip.rs"]
mod skip;
#[path = "../scenes/support.rs"]
#[allow(dead_code, reason = "the scenes use all of it")]
mod support;
mod threads;

use skip::skip;
use std::fs;
use std::path::Path;
use std::process::Command;

/// How many records a row is measured with first; then with [`TIMES`] as many. No power of two:
/// tables that double would double in the middle of what is counted. (A debug build takes ten times
/// as many instructions.)
const FEW: usize = if cfg!(debug_assertions) { 120 } else { 500 };
const TIMES: usize = 4;

/// How a row may grow from n to [`TIMES`] n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// One operation among n: log n.
    One,
    /// Something that goes through all of n: n log n.
    All,
}

impl Growth {
    /// How many times as much [`TIMES`] n may take as n. Besides the growth itself, this lets pass
    /// what is not the input's: a tree that happens to be a level deeper, which one small operation
    /// may meet at all of its steps; the seeds of hash tables; a table that doubles.
    fn most(self, n: usize) -> f64 {
        let log = |n: usize| (n as f64).log2();
        let deeper = log(n * TIMES) / log(n);
        match self {
            Growth::One => deeper * 1.5,
            Growth::All => deeper * TIMES as f64 * 1.25,
        }
    }
}

/// What is counted, once its world stands.
type Work = Box<dyn FnMut()>;

/// One thing that is measured.
struct Row {
    name: &'static str,
    growth: Growth,
    /// The smaller number of records.
    few: usize,
    set_up: fn(usize) -> Work,
}

/// One operation among n.
const fn one(name: &'static str, set_up: fn(usize) -> Work) -> Row {
    Row { name, growth: Growth::One, few: FEW, set_up }
}

/// Something that goes through all of n.
const fn all(name: &'static str, set_up: fn(usize) -> Work) -> Row {
    Row { name, growth: Growth::All, few: FEW, set_up }
}

impl Row {
    /// The same for a row whose n is bounded by something.
    const fn from(self, few: usize) -> Row {
        Row { few, ..self }
    }

    fn sizes(&self) -> [usize; 2] {
        [self.few, self.few * TIMES]
    }
}

fn rows() -> impl Iterator<Item = &'static Row> {
    let wanted = std::env::var("GROWTH").unwrap_or_default();
    [buffers::ROWS, records::ROWS, threads::ROWS, clients::ROWS, ends::ROWS, scale::ROWS]
        .into_iter()
        .flatten()
        .filter(move |row| row.name.contains(&wanted))
}

/// Valgrind begins to count where this function begins, and writes the count when it returns.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
}

const COUNTED: &str = "growth::counted";

/// The role of the program under valgrind.
#[test]
#[ignore = "a role in the other test"]
fn worlds() {
    for row in rows() {
        for n in row.sizes() {
            let mut work = (row.set_up)(n);
            counted(&mut *work);
            // To take the world down is not a part of it, and takes long.
            std::mem::forget(work);
        }
    }
}

/// Runs all rows under valgrind; returns the count of each call of [`counted`]. `Err`: why that
/// cannot be done here.
fn measure(directory: &Path) -> Result<Vec<u64>, String> {
    fs::create_dir_all(directory).map_err(|error| error.to_string())?;
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--dump-line=no", "--fair-sched=yes"])
        .arg(format!("--zero-before={COUNTED}"))
        .arg(format!("--dump-after={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", directory.join("part").display()))
        .arg(std::env::current_exe().map_err(|error| error.to_string())?)
        .args(["--exact", "worlds", "--ignored", "--test-threads=1"]);
    let ended = valgrind.output().map_err(|error| format!("it takes valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {said}", ended.status);
    let count = |part: usize| {
        let text = fs::read_to_string(directory.join(format!("part.{part}"))).ok()?;
        text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
    };
    Ok((1..).map_while(count).collect())
}

#[test]
fn no_row_grows_faster_than_its_input() {
    let own = format!("growth-{}", std::process::id());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(own);
    let measured = measure(&directory);
    let _ = fs::remove_dir_all(directory);
    let counts = match measured {
        Ok(counts) => counts,
        Err(reason) => return skip(&reason),
    };
    assert_eq!(counts.len(), 2 * rows().count(), "a count for each size of each row");
    println!("{:<60} {:>6} {:>12} {:>12} {:>6} {:>6}", "", "n", "at n", "at 4n", "times", "most");
    let mut grown = Vec::new();
    for (row, counts) in rows().zip(counts.as_chunks::<2>().0) {
        let (few, many) = (counts[0], counts[1]);
        assert!(few > 50, "{}: nothing was counted", row.name);
        let times = many as f64 / few as f64;
        let most = row.growth.most(row.few);
        println!("{:<60} {:>6} {few:>12} {many:>12} {times:>6.2} {most:>6.2}", row.name, row.few);
        if times > most {
            grown.push(row.name);
        }
    }
    assert!(grown.is_empty(), "grew faster than their input: {grown:#?}");
}

/// The measure itself: what is planted here has to be caught, and what is right has to pass.
#[test]
fn the_bounds_tell_a_linear_step_from_a_logarithm() {
    let log = |n: usize| (n as f64).log2();
    for n in [100, FEW] {
        let deeper = log(n * TIMES) / log(n);
        assert!(deeper < Growth::One.most(n));
        assert!(TIMES as f64 * deeper < Growth::All.most(n));
        // Where half of what n takes is right, and the other half is not.
        assert!((1 + TIMES) as f64 / 2.0 > Growth::One.most(n));
        assert!((TIMES + TIMES * TIMES) as f64 / 2.0 > Growth::All.most(n));
    }
}
