//! Runs tests, each in a process group of its own, and reports their outcomes.

use super::scene::{Door, Scene, door};
use super::{Act, GROUPS, Group};
use fakebinder_sim::child::fork;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe, setpgid};
use quick_junit::{NonSuccessKind, SerializeError, TestCase, TestCaseStatus, TestSuite};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wildmatch::WildMatch;

/// What to run, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Devices. As many tests run at a time as there are devices.
    pub devices: Vec<PathBuf>,
    /// Only tests whose `group/name` matches one of these (`*` stands for any characters, `?` for
    /// one character).
    pub filters: Vec<String>,
    /// How long one test may take.
    pub timeout: Duration,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The test passed.
    Passed,
    /// The test failed, and why.
    Failed(String),
    /// The test does not apply here, and why.
    Skipped(String),
}

/// One test's outcome.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// `group/name`.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The reason, if the failure is known and wanted on this device.
    pub known: Option<&'static str>,
    /// How long it took.
    pub time: Duration,
}

/// The outcomes of all tests.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The verdicts, in the order in which the tests ended.
    pub verdicts: Vec<Verdict>,
    /// How long all of the tests took.
    pub time: Duration,
}

/// Wanted differences from the driver.
const KNOWN: &str = include_str!("../known-differences.txt");

/// The names of the tests that the filters let through.
pub fn list(filters: &[String]) -> Vec<String> {
    selected(filters).into_iter().map(|(name, _)| name).collect()
}

fn selected(filters: &[String]) -> Vec<(String, Act)> {
    let mut all = Vec::new();
    for &Group { name: group, tests } in GROUPS {
        for &(name, act) in tests {
            let name = format!("{group}/{name}");
            if filters.is_empty() || filters.iter().any(|filter| matches(filter, &name)) {
                all.push((name, act));
            }
        }
    }
    all
}

/// Whether the pattern matches the whole text.
fn matches(pattern: &str, text: &str) -> bool {
    WildMatch::new(pattern).matches(text)
}

struct Running {
    name: String,
    group: Pid,
    result: File,
    device: PathBuf,
    began: Instant,
}

/// Runs the tests, and calls `each` as they end.
///
/// Errors: a pipe or a process could not be made.
pub fn run(options: &Options, mut each: impl FnMut(&Verdict)) -> nix::Result<Report> {
    let began = Instant::now();
    let mut waiting: VecDeque<_> = selected(&options.filters).into();
    let mut idle: Vec<_> = options.devices.iter().rev().cloned().collect();
    let mut running: Vec<Running> = Vec::new();
    let mut report = Report::default();
    loop {
        while let Some(device) = idle.pop() {
            let Some((name, act)) = waiting.pop_front() else { break };
            running.push(start(name, act, device, options.timeout)?);
        }
        if running.is_empty() {
            break;
        }
        let deadline = running.iter().map(|test| test.began + options.timeout).min();
        let left =
            deadline.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        let mut files: Vec<_> = running
            .iter()
            .map(|test| PollFd::new(test.result.as_fd(), PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        poll(&mut files, timeout)?;
        let ready: Vec<_> = files.iter().map(|file| file.any() == Some(true)).collect();
        let mut still = Vec::new();
        for (test, ready) in running.into_iter().zip(ready) {
            if ready || test.began.elapsed() >= options.timeout {
                idle.push(test.device.clone());
                let verdict = finish(test, ready);
                each(&verdict);
                report.verdicts.push(verdict);
            } else {
                still.push(test);
            }
        }
        running = still;
    }
    report.time = began.elapsed();
    Ok(report)
}

fn start(name: String, act: Act, device: PathBuf, timeout: Duration) -> nix::Result<Running> {
    let (result, ours) = pipe()?;
    // A test that is known to fail may do so by waiting in vain: it gets less time.
    let known = known_difference(&name, door(&device)).is_some();
    let patience = timeout.mul_f32(if known { 0.1 } else { 0.8 });
    let scene = Scene { device: device.clone(), patience, blocking: false };
    let began = Instant::now();
    let group = fork(move || {
        let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
        perform(act, &scene, &ours);
        0
    })?;
    // Set on both sides of the fork, since either may run first.
    let _ = setpgid(group, group);
    Ok(Running { name, group, result: File::from(result), device, began })
}

/// The payload of a panic that ends a test without failing it: why the test is skipped.
#[derive(Debug)]
pub(super) struct Skip(pub(super) String);

thread_local! {
    static WHERE: RefCell<String> = const { RefCell::new(String::new()) };
}

fn perform(act: Act, scene: &Scene, result: &OwnedFd) {
    std::panic::set_hook(Box::new(|info| {
        WHERE.with_borrow_mut(|place| {
            if place.is_empty() {
                *place = info.location().map_or_else(String::new, ToString::to_string);
            }
        });
    }));
    let text = match std::panic::catch_unwind(|| act(scene)) {
        Ok(()) => "passed".to_owned(),
        Err(payload) => {
            let place = WHERE.with_borrow(String::clone);
            if let Some(Skip(why)) = payload.downcast_ref() {
                format!("skipped {why}")
            } else if let Some(what) = payload.downcast_ref::<String>() {
                format!("failed {what}\nat {place}")
            } else if let Some(what) = payload.downcast_ref::<&str>() {
                format!("failed {what}\nat {place}")
            } else {
                format!("failed at {place}")
            }
        }
    };
    let _ = nix::unistd::write(result, text.as_bytes());
}

fn finish(mut test: Running, in_time: bool) -> Verdict {
    let mut text = String::new();
    if in_time {
        let mut bytes = [0; 16 << 10];
        let length = test.result.read(&mut bytes).unwrap_or(0);
        text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    }
    let _ = killpg(test.group, Signal::SIGKILL);
    let status = waitpid(test.group, None);
    let time = test.began.elapsed();
    let outcome = if !in_time {
        Outcome::Failed(format!("no end after {:.1} s", time.as_secs_f32()))
    } else if text == "passed" {
        Outcome::Passed
    } else if let Some(why) = text.strip_prefix("skipped ") {
        Outcome::Skipped(why.to_owned())
    } else if let Some(why) = text.strip_prefix("failed ") {
        Outcome::Failed(why.to_owned())
    } else {
        Outcome::Failed(format!("its process ended without a word: {status:?}"))
    };
    let known = match outcome {
        Outcome::Failed(_) => known_difference(&test.name, door(&test.device)),
        _ => None,
    };
    Verdict { name: test.name, outcome, known, time }
}

/// Why the test may fail behind this door: the third column of the list.
pub(super) fn known_difference(name: &str, door: Door) -> Option<&'static str> {
    let here = match door {
        Door::Kernel => return None,
        Door::Cuse => "cuse",
        Door::Fuse => "fuse",
    };
    KNOWN.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let (door, rest) = line.split_once(' ')?;
        let (pattern, reason) = rest.trim_start().split_once(' ')?;
        ((door == here || door == "both") && matches(pattern, name)).then(|| reason.trim())
    })
}

impl Verdict {
    /// Whether the verdict counts as a failure of the run.
    pub fn is_failure(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_)) && self.known.is_none()
    }

    /// The verdict's lines of a TAP stream.
    pub fn tap(&self, number: usize) -> String {
        let ok = if matches!(self.outcome, Outcome::Failed(_)) { "not ok" } else { "ok" };
        let mut text = format!("{ok} {number} - {}", self.name);
        match (&self.outcome, self.known) {
            (Outcome::Skipped(why), _) => text.push_str(&format!(" # SKIP {why}")),
            (Outcome::Failed(_), Some(why)) => {
                text.push_str(&format!(" # TODO known difference: {why}"))
            }
            _ => {}
        }
        if let Outcome::Failed(why) = &self.outcome {
            for line in why.lines() {
                text.push_str("\n# ");
                text.push_str(line);
            }
        }
        text
    }

    fn junit(&self) -> TestCaseStatus {
        let (mut status, why) = match (&self.outcome, self.known) {
            (Outcome::Passed, _) => return TestCaseStatus::success(),
            (Outcome::Skipped(why), _) => (TestCaseStatus::skipped(), why.clone()),
            (Outcome::Failed(_), Some(why)) => {
                (TestCaseStatus::skipped(), format!("known difference: {why}"))
            }
            (Outcome::Failed(why), None) => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_description(why.as_str());
                (status, why.lines().next().unwrap_or_default().to_owned())
            }
        };
        status.set_message(why);
        status
    }
}

impl Report {
    /// How many tests passed, failed, failed as known, and were skipped.
    pub fn counts(&self) -> [usize; 4] {
        let count = |which: fn(&Verdict) -> bool| self.verdicts.iter().filter(|v| which(v)).count();
        [
            count(|v| v.outcome == Outcome::Passed),
            count(Verdict::is_failure),
            count(|v| v.known.is_some()),
            count(|v| matches!(v.outcome, Outcome::Skipped(_))),
        ]
    }

    /// Writes JUnit XML, one suite for each group; a known difference counts as skipped.
    ///
    /// Errors: those of the writer.
    pub fn junit(&self, out: &mut dyn Write) -> Result<(), SerializeError> {
        let mut report = quick_junit::Report::new("fb-conformance");
        report.set_time(self.time);
        for Group { name: group, .. } in GROUPS {
            let mut suite = TestSuite::new(*group);
            for verdict in &self.verdicts {
                if let Some(name) =
                    verdict.name.strip_prefix(group).and_then(|it| it.strip_prefix('/'))
                {
                    let mut test = TestCase::new(name, verdict.junit());
                    test.set_classname(*group).set_time(verdict.time);
                    suite.add_test_case(test);
                }
            }
            if !suite.test_cases.is_empty() {
                report.add_test_suite(suite);
            }
        }
        report.serialize(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_anything() {
        for pattern in ["call/*", "*", "call/echo", "*echo", "c*l/e*o", "call/echo*", "call/ech?"] {
            assert!(matches(pattern, "call/echo"), "{pattern}");
        }
        for pattern in ["", "call", "call/", "*x*", "echo", "call/echo?"] {
            assert!(!matches(pattern, "call/echo"), "{pattern}");
        }
    }

    #[test]
    fn junit_has_a_suite_for_each_group_and_escapes_what_it_is_told() {
        let verdict = |name: &str, outcome, known| Verdict {
            name: name.into(),
            outcome,
            known,
            time: Duration::from_millis(1500),
        };
        let failed = || Outcome::Failed("a < b & \"c\" \u{1b}[1m\nat here".into());
        let verdicts = vec![
            verdict("call/echo", Outcome::Passed, None),
            verdict("death/told", failed(), None),
            verdict("call/nested", failed(), Some("so it is here")),
            verdict("call/deep", Outcome::Skipped("no such kernel".into()), None),
        ];
        let mut bytes = Vec::new();
        Report { verdicts, time: Duration::from_secs(2) }.junit(&mut bytes).expect("a vector");
        let text = String::from_utf8(bytes).expect("UTF-8");
        for part in [
            r#"<testsuites name="fb-conformance" tests="4" skipped="2" failures="1" errors="0" time="2.000">"#,
            r#"<testsuite name="call" tests="3" skipped="2""#,
            r#"<testsuite name="death" tests="1" skipped="0" errors="0" failures="1""#,
            r#"<testcase name="echo" classname="call" time="1.500"/>"#,
            r#"<skipped message="known difference: so it is here"/>"#,
            r#"<skipped message="no such kernel"/>"#,
            r#"<failure message="a &lt; b &amp; &quot;c&quot; "#,
            "\nat here",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn no_two_tests_share_a_name() {
        let mut names = list(&[]);
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(all >= 150, "{all} tests");
    }

    #[test]
    fn every_known_difference_names_a_test_and_a_reason() {
        for line in KNOWN.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let mut words = line.split_whitespace();
            assert!(["cuse", "fuse", "both"].contains(&words.next().unwrap_or("")), "{line}");
            let pattern = words.next().unwrap_or("").to_owned();
            assert!(pattern == "program/unmap" || !list(&[pattern]).is_empty(), "{line}");
            assert!(words.count() > 2, "{line}");
        }
    }
}
