//! What a crash says: the program, step by step with what came of each, and a test that repeats
//! it.

use crate::grammar::Program;
use crate::interpret::{Summary, play};
use crate::stage::{is_traced, traced};
use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static PLAYING: RefCell<Option<Program>> = const { RefCell::new(None) };
}

/// Plays a program; should it panic, tells all about it first.
pub fn play_reported(program: Program) -> Summary {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if is_traced() {
                // The repetition below, which is expected to panic.
                return;
            }
            if let Some(program) = PLAYING.take() {
                // In a thread of its own: one that panics in a panic is ended.
                let repeated = program.clone();
                if let Ok(story) = std::thread::spawn(move || story(&repeated)).join() {
                    eprintln!("\n{story}");
                }
                eprintln!("The same as a test, for fuzz/tests/regressions.rs:\n");
                eprintln!("{}", unit_test(&program));
            }
            before(panic);
        }));
    });
    PLAYING.set(Some(program.clone()));
    let summary = play(&program);
    PLAYING.set(None);
    summary
}

/// The steps of a program and what came of each, up to its end or its panic.
pub fn story(program: &Program) -> String {
    let (lines, ended_well) = traced(|| {
        play(program);
    });
    let mut story = format!("{:?}\n", program.setting);
    let mut number = 0;
    for line in lines {
        if !line.starts_with(' ') {
            number += 1;
            story.push_str(&format!("{number:3}. "));
        }
        story.push_str(&line);
        story.push('\n');
    }
    if !ended_well {
        story.push_str("     and there it panicked\n");
    }
    story
}

/// A test that plays a program.
pub fn unit_test(program: &Program) -> String {
    let mut test =
        String::from("#[test]\nfn name_the_rule_that_was_broken() {\n    play(&Program {\n");
    test.push_str(&format!("        setting: {:?},\n        steps: list![\n", program.setting));
    for step in program.steps.iter() {
        test.push_str(&format!("            {step:?},\n"));
    }
    test.push_str("        ],\n    });\n}\n");
    test
}
