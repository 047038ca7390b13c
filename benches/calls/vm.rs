//! The same rows in the test VM, where the kernel's driver is beside both doors: this program
//! again, run by tests/vm/run.

use super::series::Measured;
use super::stage::{PAIRS, Stage};
use super::{Outcome, Settings, plan, play};
use crate::common::{Killed, library};
use indicatif::ProgressBar;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Of tests/vm/run: what the guest says it has done, for the progress bar.
pub const PROGRESS: &str = "progress ";
/// What tests/vm/run ends with where there can be no VM.
const NO_VM: i32 = 77;
/// Of the time, what the guest does not have: to boot, and to end.
const BOOT_SECONDS: u64 = 40;

/// What it came to; why there is no VM here; or what failed.
pub fn run(settings: &Settings, bar: &ProgressBar) -> Outcome<Result<Measured, String>> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Built before, as the guest's CPU is slow, and what it writes is gone.
    library("libfakebinder_preload.so");
    let out = project.join("target/vm-out/bench.json");
    let _ = std::fs::remove_file(&out);
    let pairs: String = (1..PAIRS).map(|pair| format!(",pair-{pair}")).collect();
    let seconds = settings.vm_minutes * 60;
    let mut guest = Killed(
        Command::new(project.join("tests/vm/run"))
            .args(["--timeout", &seconds.to_string(), "--append"])
            .arg(format!("binder_linux.devices=binder,hwbinder,vndbinder{pairs}"))
            .arg("--")
            .arg(std::env::current_exe()?)
            .arg("--in-vm")
            .arg(&out)
            .args(settings.arguments_in_vm())
            .current_dir(project)
            .env("FAKEBINDER_BUILT", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?,
    );
    let errors = BufReader::new(guest.0.stderr.take().expect("a pipe"));
    let errors = std::thread::spawn(move || errors.lines().map_while(Result::ok).last());
    let mut last = String::new();
    for line in BufReader::new(guest.0.stdout.take().expect("a pipe")).lines() {
        let line = line?;
        let progress = line.strip_prefix(PROGRESS).map(|it| it.splitn(3, ' ').collect::<Vec<_>>());
        match progress.as_deref() {
            Some([done, all, row]) => {
                super::tell(bar, done.parse()?, all.parse()?, format!("VM: {row}"));
            }
            _ => last = line,
        }
    }
    let status = guest.0.wait()?;
    if status.code() == Some(NO_VM) {
        return Ok(Err(last.trim_start_matches("SKIPPED: ").to_owned()));
    }
    let said = errors.join().ok().flatten().unwrap_or(last);
    match std::fs::read(&out) {
        Ok(json) if status.success() => Ok(Ok(serde_json::from_slice(&json)?)),
        _ => Err(format!("the VM's part ended ({status}): {said}").into()),
    }
}

/// The guest's side: plays its rows, and writes what they came to.
pub fn be_guest(settings: &Settings, directory: &Path, out: &Path) -> Outcome<()> {
    // A console is slow, and the driver says there what it refuses.
    let mask = Path::new("/sys/module/binder_linux/parameters/debug_mask");
    if mask.exists() {
        std::fs::write(mask, "0")?;
    }
    let mut stage = Stage::vm(directory, &settings.sizes());
    let columns = super::stage::VM_COLUMNS;
    let plan = settings.chosen(plan::vm(&columns));
    let told = |done, all, row: &str| println!("{PROGRESS}{done} {all} {row}");
    let minutes = (settings.vm_minutes * 60).saturating_sub(BOOT_SECONDS);
    let mut measured = play(&mut stage, &plan, minutes, told)?;
    measured.columns = columns.map(str::to_owned).to_vec();
    measured.against = Some(columns[0].to_owned());
    stage.stop();
    std::fs::write(out, serde_json::to_vec(&measured)?)?;
    Ok(())
}
