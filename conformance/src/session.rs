//! Sessions: what clients of a device did, as fakebinder's daemon recorded it, and as a program that
//! does the same on any device.
//!
//! A program takes one step after the other, and no step waits. A read that waited stands where its
//! returns came, behind what made them come. What a recording does not have (polls, unmapped memory,
//! time) its program does not have, either; addresses, process ids and descriptors are those of the
//! processes that run it.

mod convert;

pub use convert::Converter;

use crate::differ::Program;
use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind, Write};
use std::path::Path;

/// Goes up with every change of the form that older programs cannot read.
pub const VERSION: u32 = 1;

/// A session, as a file has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// [`VERSION`].
    pub version: u32,
    /// What was done.
    pub program: Program,
    /// What each step has to give, in the words of [`differ`](crate::differ). None: that is not
    /// known.
    #[serde(default)]
    pub outcome: Vec<String>,
}

impl Session {
    /// Reads a session. Errors: those of the file system; InvalidData for a file that is no session,
    /// or one of another version.
    pub fn load(path: &Path) -> std::io::Result<Session> {
        let failed =
            |error: Error| Error::new(error.kind(), format!("{}: {error}", path.display()));
        let text = std::fs::read(path).map_err(failed)?;
        let wrong = |what: String| failed(Error::new(ErrorKind::InvalidData, what));
        let session: Session = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("not a recorded session: {error}")))?;
        match session.version {
            VERSION => Ok(session),
            other => Err(wrong(format!("version {other}, where this program reads {VERSION}"))),
        }
    }

    /// Writes the session, a line for each step. Nobody but its owner can read a new file: it may
    /// have what clients sent to each other. Errors: those of the file system.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut file = std::io::BufWriter::new(file);
        let processes = serde_json::to_string(&self.program.processes)?;
        write!(
            file,
            "{{\"version\":{VERSION},\"program\":{{\"processes\":{processes},\"steps\":["
        )?;
        lines(&mut file, &self.program.steps)?;
        write!(file, "]}},\"outcome\":[")?;
        lines(&mut file, &self.outcome)?;
        writeln!(file, "]}}")?;
        file.flush()
    }
}

/// The items of a list in JSON, a line for each.
fn lines<T: Serialize>(file: &mut impl Write, items: &[T]) -> std::io::Result<()> {
    for (index, item) in items.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        write!(file, "{comma}\n{}", serde_json::to_string(item)?)?;
    }
    Ok(())
}
