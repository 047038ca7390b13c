//! The programs of examples/rsbinder, as a user builds and runs them.
//!
//! `FAKEBINDER_CALLS`: how many calls the clients make, in place of 20,000. tests/library_recipes.rs has them make 100,000.

mod common;

use common::{Target, library, on_devices, rsbinder, skip};
use nix::unistd::geteuid;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs all of them on a device.
fn example(target: &Target, calls: &str) -> Output {
    // What hangs is ended with all that it has started.
    let mut script = Command::new("timeout");
    script.args(["--signal=KILL", "120"]).arg(Path::new(PROJECT).join("scripts/example-rsbinder"));
    script.arg(&target.path).args(["--calls", calls]).stdin(Stdio::null());
    script.env("FAKEBINDER_BUILT", "1");
    // On the CUSE door the kernel maps nothing.
    let kind = std::fs::metadata(&target.path).unwrap().file_type();
    if target.is_fakebinder() && kind.is_char_device() {
        script.env("LD_PRELOAD", library("libfakebinder_preload.so"));
    }
    script.output().unwrap()
}

/// The same on the kernel's driver and on both doors.
#[test]
fn rsbinder_programs_call_each_other_in_every_way_on_every_device() {
    if !geteuid().is_root() {
        return skip("a /dev of one's own takes root");
    }
    if rsbinder::programs().is_none() {
        return;
    }
    let calls = std::env::var("FAKEBINDER_CALLS").unwrap_or_else(|_| "20000".to_owned());
    on_devices(|target| {
        let done = example(target, &calls);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{}: {done:#?}", target.path.display());
        let load = format!("load         {calls} calls by 8 clients, 0 failed, ");
        let lines = [
            "registered   the hub lists board, manager",
            "call         the service answers: hello, binder",
            "call back    before it answered, the service called the thread that waited for it",
            "one-way      1000 notes sent in ",
            "callbacks    told of 1000 notes, in order",
            "descriptors  a pipe there, another one back: BY WAY OF A PIPE",
            "death        a subscriber was killed, and the service was told",
            &load,
            "dump         notes: 1000; subscribers: client ",
            "death        the service has ended; this client was told, and so was the hub",
        ];
        let as_told = said.lines().zip(lines).all(|(line, begin)| line.starts_with(begin));
        assert!(as_told && said.lines().count() == lines.len(), "{said}");
    });
}
