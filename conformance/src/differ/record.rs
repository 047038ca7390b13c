//! Recorded outcomes of the driver: a hash for each program, in a text file.
//!
//! Where there is no driver, the programs are generated on the device itself. As long as the device
//! answers as the driver did, they are the driver's programs, and have the recorded hashes. A hash
//! that differs names a program to be run where there is a driver.

use super::{Program, Transcript};
use std::fmt::Write as _;
use std::io::{Error, ErrorKind};
use std::path::Path;

/// Goes up with every change of the programs or of the words in which outcomes are written.
const VERSION: u32 = 1;
const TITLE: &str = "outcomes of fb-differ's programs";
const PER_LINE: usize = 12;

/// The outcomes of one driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    /// The kernel that the driver was part of.
    pub kernel: String,
    /// How many steps a program has.
    pub steps: usize,
    /// Whether there are munmaps among the steps.
    pub unmap: bool,
    /// The programs, by seed.
    pub seeds: Vec<Seed>,
}

/// The programs of a seed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seed {
    /// The seed.
    pub seed: u64,
    /// A hash for each program, from number 0 on.
    pub hashes: Vec<u32>,
}

impl Recording {
    /// The hash of the program of this seed and number.
    pub fn hash(&self, seed: u64, number: u64) -> Option<u32> {
        let of = self.seeds.iter().find(|one| one.seed == seed)?;
        of.hashes.get(usize::try_from(number).ok()?).copied()
    }

    /// Writes the recording. Errors: those of the file system.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let mut text = format!(
            "{TITLE}, version {VERSION}\nkernel {}\nsteps {}\nunmap {}\n",
            self.kernel, self.steps, self.unmap
        );
        for Seed { seed, hashes } in &self.seeds {
            let _ = writeln!(text, "seed {seed}: {} programs", hashes.len());
            for line in hashes.chunks(PER_LINE) {
                let words: Vec<_> = line.iter().map(|hash| format!("{hash:08x}")).collect();
                let _ = writeln!(text, "{}", words.join(" "));
            }
        }
        std::fs::write(path, text)
    }

    /// Reads a recording. Errors: those of the file system; InvalidData for another version, or for
    /// a file that is no recording.
    pub fn load(path: &Path) -> std::io::Result<Recording> {
        let text = std::fs::read_to_string(path)?;
        let bad =
            |what: &str| Error::new(ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        let mut lines = text.lines();
        let title = lines.next().unwrap_or_default();
        if title != format!("{TITLE}, version {VERSION}") {
            return Err(bad("not a recording of this version; record it anew (--record)"));
        }
        let mut value = |name: &str| {
            let line = lines.next().and_then(|line| line.strip_prefix(name));
            line.map(|line| line.trim().to_owned()).ok_or_else(|| bad(&format!("no {name}")))
        };
        let kernel = value("kernel ")?;
        let steps = value("steps ")?.parse().map_err(|_| bad("steps"))?;
        let unmap = value("unmap ")? == "true";
        let mut recording = Recording { kernel, steps, unmap, seeds: Vec::new() };
        for line in lines {
            if let Some(rest) = line.strip_prefix("seed ") {
                let seed = rest.split(':').next().and_then(|seed| seed.parse().ok());
                let seed = seed.ok_or_else(|| bad(line))?;
                recording.seeds.push(Seed { seed, hashes: Vec::new() });
                continue;
            }
            let seed = recording.seeds.last_mut().ok_or_else(|| bad(line))?;
            for word in line.split_whitespace() {
                seed.hashes.push(u32::from_str_radix(word, 16).map_err(|_| bad(line))?);
            }
        }
        Ok(recording)
    }
}

/// FNV-1a of the steps and their outcomes, folded to 32 bits.
pub(super) fn hash(program: &Program, transcript: &Transcript) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |text: &str| {
        for &byte in text.as_bytes().iter().chain(b"\n") {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    add(&program.to_string());
    for line in &transcript.lines {
        add(line);
    }
    (hash ^ (hash >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let recording = Recording {
            kernel: "Linux 1.2 x".to_owned(),
            steps: 60,
            unmap: false,
            seeds: vec![
                Seed { seed: 7, hashes: (0..30u32).map(|n| n.wrapping_mul(0x1234_5678)).collect() },
                Seed { seed: 9, hashes: vec![1] },
            ],
        };
        let path = std::env::temp_dir().join(format!("recording-{}", std::process::id()));
        recording.save(&path).expect("saved");
        let loaded = Recording::load(&path);
        let _ = std::fs::remove_file(&path);
        assert_eq!(loaded.expect("loaded"), recording);
        assert_eq!(recording.hash(9, 0), Some(1));
        assert_eq!(recording.hash(9, 1), None);
    }
}
