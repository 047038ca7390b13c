//! Random programs on two devices: do their clients see the same?
//!
//! A program runs in processes of its own, one system call at a time, none of which waits: what
//! a step gives is what the steps before it have left, and nothing else. Where the driver does
//! its work later (the release of a killed process) the step waits until that is done. So a
//! program gives the same on the same driver each time, and any difference is one of the devices.

mod generate;
mod program;
mod shrink;
mod stage;

pub use program::{Act, Buffer, Part, Program, Send, Step, Twist, Write};

use super::runner::known_difference;
use super::scene::{Scene, door};
use super::sys::fork;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe, setpgid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Two devices, and how long a program may take on one of them.
#[derive(Debug, Clone)]
pub struct Differ {
    /// What is right.
    pub reference: PathBuf,
    /// What is put to the test.
    pub device: PathBuf,
    /// How long one program may take.
    pub timeout: Duration,
}

/// What a program gave on a device: a line for each step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// What each step gave.
    pub lines: Vec<String>,
    /// (command, circumstances) pairs that were reached.
    pub reached: BTreeSet<String>,
}

/// A program that two devices do not agree on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Difference {
    /// The program.
    pub program: Program,
    /// The first step that differs.
    pub step: usize,
    /// What it gave on the reference.
    pub reference: String,
    /// What it gave on the device.
    pub device: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Run {
    program: Program,
    transcript: Transcript,
}

impl Differ {
    /// Makes up the program of this seed and number, on the reference, and runs it on the device.
    ///
    /// Errors: a process could not be made.
    pub fn program(
        &self,
        seed: u64,
        number: u64,
        steps: usize,
    ) -> nix::Result<(Transcript, Option<Difference>)> {
        let made = self.child(&self.reference, |scene, out| {
            let mut chance = generate::Chance::new(seed, number);
            let unmap = known_difference("program/unmap", door(&self.device)).is_none();
            let mut stage = stage::Stage::new(scene);
            for _ in 0..steps {
                let step = generate::step(&mut chance, &stage, unmap);
                out.program.steps.push(step.clone());
                let line = stage.perform(&step);
                out.transcript.lines.push(line);
            }
            out.transcript.reached = std::mem::take(&mut stage.reached);
        })?;
        let ran = self.run(&self.device, &made.program)?;
        let difference = compare(&made.program, &made.transcript, &ran);
        Ok((made.transcript, difference))
    }

    /// Runs a program on both devices.
    ///
    /// Errors: a process could not be made.
    pub fn replay(&self, program: &Program) -> nix::Result<(Transcript, Option<Difference>)> {
        let reference = self.run(&self.reference, program)?;
        let device = self.run(&self.device, program)?;
        let difference = compare(program, &reference, &device);
        Ok((reference, difference))
    }

    /// A smaller program that the devices do not agree on either, about the same thing.
    ///
    /// Errors: a process could not be made.
    pub fn shrink(&self, difference: Difference) -> nix::Result<Difference> {
        shrink::shrink(self, difference)
    }

    fn run(&self, device: &Path, program: &Program) -> nix::Result<Transcript> {
        let run = self.child(device, |scene, out| {
            let mut stage = stage::Stage::new(scene);
            for step in &program.steps {
                let line = stage.perform(step);
                out.transcript.lines.push(line);
            }
            out.transcript.reached = std::mem::take(&mut stage.reached);
        })?;
        Ok(run.transcript)
    }

    /// Runs a program in a process group of its own. When it panics (a step hangs, a process
    /// dies) or takes too long, the transcript ends with that.
    fn child(&self, device: &Path, act: impl FnOnce(&Scene, &mut Run)) -> nix::Result<Run> {
        let (result, ours) = pipe()?;
        let scene = Scene {
            device: device.to_owned(),
            patience: self.timeout.mul_f32(0.5),
            blocking: false,
            files: true,
        };
        let group = fork(|| {
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            std::panic::set_hook(Box::new(|_| {}));
            let mut run = Run::default();
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                act(&scene, &mut run);
            }));
            if let Err(payload) = ended {
                let what = payload.downcast_ref::<String>().cloned().unwrap_or_default();
                run.transcript.lines.push(format!("fails: {}", without_numbers(&what)));
            }
            let text = serde_json::to_vec(&run).unwrap_or_default();
            let mut out = File::from(super::sys::adopt(ours.as_fd().as_raw_fd()));
            let _ = out.write_all(&text);
            std::mem::forget(out);
            0
        })?;
        let _ = setpgid(group, group);
        drop(ours);
        let mut result = File::from(result);
        let mut text = Vec::new();
        let mut files = [PollFd::new(result.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(self.timeout.as_millis()).unwrap_or(PollTimeout::MAX);
        let in_time = poll(&mut files, timeout)? > 0;
        if in_time {
            // Its puppets have none of its descriptors: the end comes with its own.
            let _ = result.read_to_end(&mut text);
        }
        let _ = killpg(group, Signal::SIGKILL);
        let _ = waitpid(group, None);
        let mut run: Run = serde_json::from_slice(&text).unwrap_or_default();
        if text.is_empty() {
            run.transcript.lines.push("fails: no end".to_owned());
        }
        Ok(run)
    }
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
