//! What a crash says: the program, step by step with what came of each, and a test that repeats
//! it.

use crate::trace::{is_traced, traced};
use crate::{allocator, grammar, wire, write_buffer};
use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::{Arc, Once};

/// Something that can be played and told about.
pub trait Story: Send + Sync + 'static {
    /// What it is, step by step.
    fn steps(&self) -> Vec<String>;

    /// The same as the argument of [`PLAY`](Story::PLAY), in Rust.
    fn argument(&self) -> String;

    /// What plays it, behind `fakebinder_fuzz`.
    const PLAY: &str;

    /// It can be played again while the first time is not over, to tell what came of each step.
    const REPEATS: bool = true;
}

fn program(setting: &impl Debug, steps: &[String]) -> String {
    let mut argument =
        format!("&Program {{\n        setting: {setting:?},\n        steps: list![\n");
    for step in steps {
        argument.push_str(&format!("            {step},\n"));
    }
    argument + "        ],\n    }"
}

impl Story for grammar::Program {
    fn steps(&self) -> Vec<String> {
        self.steps.iter().map(|step| format!("{step:?}")).collect()
    }

    fn argument(&self) -> String {
        program(&self.setting, &self.steps())
    }

    const PLAY: &str = "interpret::play";
}

impl Story for allocator::Program {
    fn steps(&self) -> Vec<String> {
        self.steps.iter().map(|step| format!("{step:?}")).collect()
    }

    fn argument(&self) -> String {
        program(&self.setting, &Story::steps(self))
    }

    const PLAY: &str = "allocator::play";
}

/// A program for processes, of which there is one set.
pub struct Outside(pub grammar::Program);

impl Story for Outside {
    fn steps(&self) -> Vec<String> {
        Story::steps(&self.0)
    }

    fn argument(&self) -> String {
        self.0.argument()
    }

    const PLAY: &str = "device::play";
    const REPEATS: bool = false;
}

/// Any bytes as a write buffer.
pub struct WriteBuffer(pub Vec<u8>);

impl Story for WriteBuffer {
    fn steps(&self) -> Vec<String> {
        write_buffer::commands(&self.0)
    }

    fn argument(&self) -> String {
        format!("b\"{}\"", self.0.escape_ascii())
    }

    const PLAY: &str = "write_buffer::play";
}

/// Messages to a session, whose clients are processes.
pub struct Messages(pub Vec<u8>);

impl Story for Messages {
    fn steps(&self) -> Vec<String> {
        wire::messages(&self.0)
    }

    fn argument(&self) -> String {
        format!("b\"{}\"", self.0.escape_ascii())
    }

    const PLAY: &str = "wire::play";
    const REPEATS: bool = false;
}

type Telling = Box<dyn FnOnce() -> String>;

thread_local! {
    /// How to tell about what is being played.
    static PLAYING: RefCell<Option<Telling>> = const { RefCell::new(None) };
}

/// Plays a program; should it panic, tells all about it first.
pub fn run<P: Story, R: 'static>(program: P, play: fn(&P) -> R) -> R {
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
    let program = Arc::new(program);
    let told = program.clone();
    let tell = move || {
        // In a thread of its own: one that panics in a panic is ended.
        let story = std::thread::spawn(move || tell::<P, R>(&told, play));
        story.join().unwrap_or_else(|_| "(the program cannot be told)".to_owned())
    };
    PLAYING.set(Some(Box::new(tell)));
    let result = play(&program);
    PLAYING.set(None);
    result
}

/// The steps of a program and what came of each, up to its end or its panic; and a test that
/// plays it.
pub fn tell<P: Story, R>(program: &P, play: fn(&P) -> R) -> String {
    let mut ended_well = true;
    let lines = if P::REPEATS {
        let (lines, well) = traced(|| {
            play(program);
        });
        ended_well = well;
        lines
    } else {
        program.steps()
    };
    let mut story = String::new();
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
    let (play, argument) = (P::PLAY, program.argument());
    story.push_str(&format!(
        "\nThe same as a test, for fuzz/tests/:\n\n\
         #[test]\nfn name_the_rule_that_was_broken() {{\n    {play}({argument});\n}}\n"
    ));
    story
}
