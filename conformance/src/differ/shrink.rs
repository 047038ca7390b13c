//! Makes a program smaller while the devices still differ on it.

use super::program::{Act, Program, Write};
use super::{Differ, Difference};

/// How many smaller programs are tried.
const TRIES: usize = 400;

pub(super) fn shrink(differ: &mut Differ, difference: Difference) -> Difference {
    let mut best = difference;
    let mut tries = 0;
    best.program.steps.truncate(best.step + 1);
    let mut attempt = |program: Program, best: &mut Difference| {
        tries += 1;
        if tries > TRIES || program.steps.is_empty() {
            return;
        }
        let (_, found) = differ.replay(&program);
        // The difference must be about the same kind of step; otherwise it is another one.
        let Some(mut found) = found.filter(|found| same(found, best)) else { return };
        found.program.steps.truncate(found.step + 1);
        *best = found;
    };
    loop {
        let before = best.program.clone();
        // First takes out steps, in ever smaller pieces.
        let mut size = best.program.steps.len().div_ceil(2);
        while size > 0 {
            let mut end = best.program.steps.len().saturating_sub(1);
            while end > 0 {
                let begin = end.saturating_sub(size);
                let mut smaller = best.program.clone();
                smaller.steps.drain(begin..end);
                attempt(smaller, &mut best);
                end = begin.min(best.program.steps.len().saturating_sub(1));
            }
            size /= 2;
        }
        // Then simplifies the steps themselves.
        for step in (0..best.program.steps.len()).rev() {
            for smaller in simpler(&best.program, step) {
                attempt(smaller, &mut best);
            }
        }
        if best.program == before {
            return best;
        }
    }
}

/// Whether two differences look alike: what the last step does, and how its outcomes begin.
fn same(one: &Difference, other: &Difference) -> bool {
    let failed = |text: &str| text.starts_with("fails") || text == "nothing";
    let act = |difference: &Difference| {
        difference.program.steps.get(difference.step).map(|step| std::mem::discriminant(&step.act))
    };
    act(one) == act(other)
        && failed(&one.device) == failed(&other.device)
        && failed(&one.reference) == failed(&other.reference)
}

/// All versions of the program with one thing fewer in this step.
fn simpler(program: &Program, step: usize) -> Vec<Program> {
    let mut all = Vec::new();
    let Some(Act::WriteRead { write, read }) = program.steps.get(step).map(|step| &step.act) else {
        return all;
    };
    let mut with = |act: Act| {
        let mut smaller = program.clone();
        smaller.steps[step].act = act;
        all.push(smaller);
    };
    for index in 0..write.len() {
        let mut fewer = write.clone();
        fewer.remove(index);
        if !fewer.is_empty() || *read > 0 {
            with(Act::WriteRead { write: fewer, read: *read });
        }
        if let Write::Send(send) = &write[index] {
            let mut variants = Vec::new();
            for part in 0..send.parts.len() {
                let mut fewer = send.clone();
                fewer.parts.remove(part);
                variants.push(fewer);
            }
            if send.twist.is_some() {
                variants.push(super::Send { twist: None, ..send.clone() });
            }
            if send.code != 0 {
                variants.push(super::Send { code: 0, ..send.clone() });
            }
            let only = send.flags & fakebinder_client::uapi::TF_ONE_WAY;
            if send.flags != only {
                variants.push(super::Send { flags: only, ..send.clone() });
            }
            for variant in variants {
                let mut changed = write.clone();
                changed[index] = Write::Send(variant);
                with(Act::WriteRead { write: changed, read: *read });
            }
        }
    }
    if *read > 0 && !write.is_empty() {
        with(Act::WriteRead { write: write.clone(), read: 0 });
    }
    all
}
