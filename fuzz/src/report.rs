//! What a crash says: the program, step by step with what came of each, and a test that repeats
//! it.

use crate::stage::{is_traced, traced};
use crate::{allocator, grammar};
use std::cell::RefCell;
use std::sync::Once;

/// Something that can be played and told about.
pub trait Story: Clone + Send + 'static {
    /// Its setting and steps as lines of Rust.
    fn lines(&self) -> (String, Vec<String>);

    /// What a test has to `use` for it, behind `fakebinder_fuzz`.
    const USES: &str;
}

impl Story for grammar::Program {
    fn lines(&self) -> (String, Vec<String>) {
        let steps = self.steps.iter().map(|step| format!("{step:?}")).collect();
        (format!("{:?}", self.setting), steps)
    }

    const USES: &str = "interpret::play";
}

impl Story for allocator::Program {
    fn lines(&self) -> (String, Vec<String>) {
        let steps = self.steps.iter().map(|step| format!("{step:?}")).collect();
        (format!("{:?}", self.setting), steps)
    }

    const USES: &str = "allocator::play";
}

type Telling = Box<dyn FnOnce() -> String>;

thread_local! {
    /// How to tell about what is being played.
    static PLAYING: RefCell<Option<Telling>> = const { RefCell::new(None) };
}

/// Plays a program; should it panic, tells all about it first.
pub fn run<P: Story, R: 'static>(program: &P, play: fn(&P) -> R) -> R {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if is_traced() {
                // The repetition below, which is expected to panic.
                return;
            }
            if let Some(tell) = PLAYING.take() {
                eprintln!("\n{}", tell());
            }
            before(panic);
        }));
    });
    let told = program.clone();
    let tell = move || {
        // In a thread of its own: one that panics in a panic is ended.
        let story = std::thread::spawn(move || tell(&told, play));
        story.join().unwrap_or_else(|_| "(the program cannot be told)".to_owned())
    };
    PLAYING.set(Some(Box::new(tell)));
    let result = play(program);
    PLAYING.set(None);
    result
}

/// The steps of a program and what came of each, up to its end or its panic; and a test that
/// plays it.
pub fn tell<P: Story, R>(program: &P, play: fn(&P) -> R) -> String {
    let (setting, steps) = program.lines();
    let (trace, ended_well) = traced(|| {
        play(program);
    });
    let mut story = format!("{setting}\n");
    let mut number = 0;
    for line in trace {
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
    story.push_str(&format!("\nThe same as a test, for fuzz/tests/ ({}):\n\n", P::USES));
    story.push_str("#[test]\nfn name_the_rule_that_was_broken() {\n    play(&Program {\n");
    story.push_str(&format!("        setting: {setting},\n        steps: list![\n"));
    for step in steps {
        story.push_str(&format!("            {step},\n"));
    }
    story.push_str("        ],\n    });\n}\n");
    story
}
