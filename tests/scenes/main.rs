//! Scenes: two or three simulated clients, what they say, and what each of them reads. One file a
//! noun; each test is named after the rule that it guards.

mod support;

mod call;
mod error;
mod file;
mod looper;
mod nice;
mod poll;
mod security_context;
mod stack;
