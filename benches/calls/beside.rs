//! A pair beside a client that has very many nodes.

use super::Outcome;
use super::stage::{Stage, fresh, once};
use std::path::Path;

/// Of the calls of other rows: as long as the client takes to make, list and release its nodes.
const MORE_CALLS: u64 = 10;

/// What 999 of 1,000 calls stay below, alone and beside the client.
pub fn measure(stage: &Stage, column: &str) -> Outcome<Vec<f64>> {
    let daemon = fresh(column, &[])?;
    let device = daemon.fuse();
    let path = device.display().to_string();
    let this = std::env::current_exe()?;
    let hog = |arguments: &[&str]| Stage::start(Path::new(&this), arguments, false);
    // A manager that knows a node of the client's.
    let manager = hog(&["manage", &path])?;
    let count = (stage.sizes.calls * MORE_CALLS).to_string();
    let mut caller = stage.ping_on(&device, &["call", &count])?;
    let alone = once(&mut caller)?.p999;
    let client = hog(&["churn", &path, &stage.sizes.nodes.to_string()])?;
    let beside = once(&mut caller)?.p999;
    drop((client, caller, manager));
    daemon.stop();
    Ok(vec![alone, beside])
}
