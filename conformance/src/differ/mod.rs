//! Random programs on two devices: do their clients see the same?
//!
//! A program runs in processes of its own, one system call at a time, none of which waits: the
//! outcome of a step depends on the steps before it, and on nothing else. Where the driver does its
//! work later (the release of a killed process) the step waits until that is done. So a program has
//! the same outcome on the same driver each time, and a difference is one between the devices.
//!
//! For the same reason the driver's outcomes can be recorded, and a device compared with the
//! recording where there is no driver: see [`Recording`].

mod generate;
mod program;
mod record;
mod setup;
mod shrink;
mod workers;

pub use program::{Act, Buffer, Member, Part, Program, Send, Step, Twist, Write};
pub use record::{Recording, Seed};
pub use workers::{Finding, Options, Outcome, Right, Total, run};

use super::runner::known_difference;
use super::scene::{Scene, door};
use serde::{Deserialize, Serialize};
use setup::Setup;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

/// The outcome of a program on a device: a line for each step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// The outcome of each step.
    pub lines: Vec<String>,
    /// The (command, circumstances) pairs that were reached.
    pub reached: BTreeSet<String>,
}

/// A program whose outcomes on two devices differ.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Difference {
    /// The program.
    pub program: Program,
    /// The first step that differs.
    pub step: usize,
    /// The step's outcome on the reference.
    pub reference: String,
    /// The step's outcome on the device.
    pub device: String,
}

/// A device, and the processes that run programs on it, one program after another.
struct Host {
    scene: Scene,
    setup: Option<Setup>,
}

impl Host {
    /// Processes for a device. `patience`: how long a step may take.
    fn new(device: &Path, patience: Duration) -> Host {
        let scene = Scene { device: device.to_owned(), patience, blocking: false };
        Host { scene, setup: None }
    }

    /// Generates the program of this seed and number while it runs.
    fn generate(
        &mut self,
        unmap: bool,
        seed: u64,
        number: u64,
        steps: usize,
    ) -> (Program, Transcript) {
        let mut program = Program::default();
        let transcript = self.perform(&Program::default(), |setup, lines| {
            let mut rng = generate::Rng::new(seed, number);
            for _ in 0..steps {
                let step = generate::step(&mut rng, setup, unmap);
                program.steps.push(step.clone());
                lines.push(setup.perform(&step));
            }
        });
        (program, transcript)
    }

    fn run(&mut self, program: &Program) -> Transcript {
        self.perform(program, |setup, lines| {
            for step in &program.steps {
                lines.push(setup.perform(step));
            }
        })
    }

    /// Runs a program. If it panics (a step hangs, a process dies), the transcript ends with that,
    /// and the next program gets new processes.
    fn perform(
        &mut self,
        program: &Program,
        act: impl FnOnce(&mut Setup, &mut Vec<String>),
    ) -> Transcript {
        let mut transcript = Transcript::default();
        let last = self.setup.take_if(|setup| setup.is_for(program));
        // Others make room, above all for another context manager.
        self.setup = None;
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let mut setup = match last {
                Some(setup) => setup.again(),
                None => Setup::new(&self.scene, program),
            };
            act(&mut setup, &mut transcript.lines);
            transcript.reached = std::mem::take(&mut setup.reached);
            setup
        }));
        match ended {
            Ok(setup) => self.setup = Some(setup),
            Err(payload) => {
                let what = payload.downcast_ref::<String>().cloned().unwrap_or_default();
                transcript.lines.push(format!("fails: {}", without_numbers(&what)));
            }
        }
        transcript
    }
}

/// The reference and the device under test.
pub struct Differ {
    reference: Host,
    device: Host,
    unmap: bool,
}

impl Differ {
    /// `reference` is right, `device` is under test; `patience` is how long a step may take.
    pub fn new(reference: &Path, device: &Path, patience: Duration) -> Differ {
        Differ {
            reference: Host::new(reference, patience),
            device: Host::new(device, patience),
            unmap: known_difference("program/unmap", door(device)).is_none(),
        }
    }

    /// Generates the program of this seed and number, on the reference, and runs it on the device.
    pub fn program(
        &mut self,
        seed: u64,
        number: u64,
        steps: usize,
    ) -> (Transcript, Option<Difference>) {
        let (program, made) = self.reference.generate(self.unmap, seed, number, steps);
        let ran = self.device.run(&program);
        let difference = compare(&program, &made, &ran);
        (made, difference)
    }

    /// Runs a program on both devices.
    pub fn replay(&mut self, program: &Program) -> (Transcript, Option<Difference>) {
        let reference = self.reference.run(program);
        let device = self.device.run(program);
        let difference = compare(program, &reference, &device);
        (reference, difference)
    }

    /// A smaller program on which the devices differ in the same way.
    pub fn shrink(&mut self, difference: Difference) -> Difference {
        shrink::shrink(self, difference)
    }
}

/// Runs a program on a device; returns what each of its steps gave, as far as it came. `patience`:
/// how long a step may take.
pub fn play(device: &Path, program: &Program, patience: Duration) -> Vec<String> {
    // A step that fails panics, and is told of in the outcome.
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = Host::new(device, patience).run(program).lines;
    let _ = std::panic::take_hook();
    outcome
}

/// The first step whose outcome is not the right one.
pub fn compare_with(program: &Program, right: &[String], outcome: &[String]) -> Option<Difference> {
    let transcript = |lines: &[String]| Transcript { lines: lines.to_vec(), ..Default::default() };
    compare(program, &transcript(right), &transcript(outcome))
}

fn without_numbers(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn compare(program: &Program, reference: &Transcript, device: &Transcript) -> Option<Difference> {
    let longest = reference.lines.len().max(device.lines.len());
    let line = |transcript: &Transcript, step: usize| {
        transcript.lines.get(step).cloned().unwrap_or_else(|| "nothing".to_owned())
    };
    let step = (0..longest).find(|&step| line(reference, step) != line(device, step))?;
    Some(Difference {
        program: program.clone(),
        step,
        reference: line(reference, step),
        device: line(device, step),
    })
}
