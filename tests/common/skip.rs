//! For tests that cannot run everywhere.

use std::io::Write;

/// Says, past the capture of test output, why a test did not run.
pub fn skip(reason: &str) {
    let test = std::thread::current();
    let name = test.name().unwrap_or("test");
    let _ = writeln!(std::io::stderr(), "SKIPPED: {name}: {reason}");
    assert!(std::env::var_os("FAKEBINDER_NO_SKIP").is_none_or(|v| v != "1"), "SKIPPED: {reason}");
}
