//! Scenes: two or three simulated clients, what they say, and what each of them reads. One file a
//! noun; each test is named after the rule that it guards.

mod support;

mod buffer;
mod call;
mod death;
mod error;
mod fd;
mod file;
mod freeze;
mod freeze_notice;
mod identity;
mod instance;
mod ioctl;
mod limits;
mod logs;
mod looper;
mod manager;
mod nice;
mod node;
mod object;
mod oneway;
mod pieces;
mod poll;
mod postponed;
mod race;
mod read;
mod reference;
mod scatter;
mod section;
mod security_context;
mod stack;
mod thread_end;
mod write;
