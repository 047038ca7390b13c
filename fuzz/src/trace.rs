//! What people are told of a program, and what the driver calls an error.

use std::cell::RefCell;

thread_local! {
    /// What the steps did, when somebody wants to know.
    static TRACE: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Whether [`trace`] is kept.
pub fn is_traced() -> bool {
    TRACE.with_borrow(Option::is_some)
}

/// Notes what happens, when a program is replayed for people.
pub fn trace(line: impl FnOnce() -> String) {
    TRACE.with_borrow_mut(|trace| {
        if let Some(lines) = trace {
            lines.push(line());
        }
    });
}

/// Runs `f` and returns what was traced, also when it panics.
pub fn traced(f: impl FnOnce()) -> (Vec<String>, bool) {
    TRACE.set(Some(Vec::new()));
    let ended_well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_ok();
    (TRACE.take().unwrap_or_default(), ended_well)
}

/// What the driver calls an error is one: none of the things that a client does are.
struct ErrorsArePanics;

impl log::Log for ErrorsArePanics {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() == log::Level::Error
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let message = record.args().to_string();
            // Where a fault was injected.
            assert!(message.contains("cannot zap page"), "an error was logged: {message}");
        }
    }

    fn flush(&self) {}
}

/// From now on, an error in the log is a panic.
pub fn panic_at_errors() {
    if log::set_logger(&ErrorsArePanics).is_ok() {
        log::set_max_level(log::LevelFilter::Error);
    }
}
