//! `fakebinder record`: what clients of a device do, as a session that can be replayed.

use crate::ask::{Asked, Error as AskError, failed};
use crate::listen::Until;
use clap::Args;
use fakebinder_client::uapi::{
    FAKEBINDER_RECORD_DATA, FAKEBINDER_RECORD_ON, FAKEBINDER_RECORDING_MAX, fakebinder_record,
    fakebinder_recording, parse,
};
use fakebinder_client::{Device, Errno};
use fakebinder_conformance::session::{Converter, Session, VERSION};
use serde::Serialize;
use std::error::Error;
use std::path::PathBuf;

/// Record what clients of a device do, from their opening of it on, to be replayed on any device
///
/// Start it before the programs: what those do that have the device open already cannot be repeated,
/// and is left out.
#[derive(Args, Debug)]
pub struct Record {
    /// The file; nobody else may read it
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// With the bytes that clients send; without it their number alone
    #[arg(long)]
    data: bool,
    #[command(flatten)]
    until: Until,
    #[command(flatten)]
    asked: Asked,
}

/// What a recording has.
#[derive(Debug, Serialize)]
struct Counts {
    processes: usize,
    steps: usize,
    /// Calls, one-way calls and replies.
    messages: usize,
    /// Processes that are left out, as they had the device open before.
    left_out: usize,
    /// It ends early, as more was done than could be written.
    is_cut: bool,
}

/// Records until the end, writes the session, and says what it has.
pub fn run(wanted: &Record) -> Result<(), Box<dyn Error>> {
    let end = wanted.until.end()?;
    let mut stream = Stream::open(wanted)?;
    let mut converter = Converter::default();
    // Written once at first, so that a file that cannot be is told of before anything is recorded.
    let save = |session: &Session| {
        let shown = wanted.output.display();
        session.save(&wanted.output).map_err(|error| format!("{shown}: {error}"))
    };
    save(&Session { version: VERSION, ..Session::default() })?;
    eprintln!("recording; Ctrl-C ends it");
    let mut ends = false;
    loop {
        let more = stream.take(&mut converter)?;
        if !more {
            // What was done before the end is recorded.
            if ends || stream.is_full {
                break;
            }
            ends = end.comes()?;
        }
    }
    let (messages, left_out) = (converter.messages(), converter.strangers());
    let program = converter.into_program();
    let counts = Counts {
        processes: program.processes.len(),
        steps: program.steps.len(),
        messages,
        left_out,
        is_cut: stream.is_full,
    };
    save(&Session { version: VERSION, program, outcome: Vec::new() })?;
    crate::show(&wanted.asked, &counts, || {
        let Counts { processes, steps, messages, left_out, is_cut } = counts;
        let path = wanted.output.display();
        let mut text =
            format!("{path}: {steps} steps of {processes} processes, {messages} messages\n");
        if left_out > 0 {
            text += &format!(
                "{left_out} processes had the device open before, and are left out: start recording first\n"
            );
        }
        if is_cut {
            text += "it ends early: more was done than could be written\n";
        }
        text
    })
}

/// The records of a daemon.
struct Stream {
    device: Device,
    wanted: u32,
    batch: Box<fakebinder_recording>,
    /// A record that has not come whole yet.
    rest: Vec<u8>,
    /// The daemon had no room for more.
    is_full: bool,
}

impl Stream {
    fn open(wanted: &Record) -> Result<Stream, Box<dyn Error>> {
        let data = if wanted.data { FAKEBINDER_RECORD_DATA } else { 0 };
        let mut stream = Stream {
            device: wanted.asked.open()?,
            wanted: FAKEBINDER_RECORD_ON | data,
            batch: Box::default(),
            rest: Vec::new(),
            is_full: false,
        };
        stream.ask()?;
        Ok(stream)
    }

    fn ask(&mut self) -> Result<(), AskError> {
        let path = self.device.path();
        self.device.daemon_recording(self.wanted, &mut self.batch).map_err(|error| match error
            .errno()
        {
            Errno::EBUSY => AskError::Recorded(path.to_owned()),
            Errno::ENOMEM => AskError::NoRoomToRecord(path.to_owned()),
            _ => failed(path, error),
        })?;
        self.is_full = self.batch.full != 0;
        let count = (self.batch.count as usize).min(FAKEBINDER_RECORDING_MAX);
        self.rest.extend_from_slice(&self.batch.bytes[..count]);
        Ok(())
    }

    /// Takes what there is; returns whether there may be more.
    fn take(&mut self, converter: &mut Converter) -> Result<bool, AskError> {
        let mut done = 0;
        while let Some(record) = parse::<fakebinder_record>(&self.rest[done..]) {
            let begin = done + size_of::<fakebinder_record>();
            let Some(body) = self.rest.get(begin..begin + record.length as usize) else { break };
            converter.tell(&record, body);
            done = begin + body.len();
        }
        self.rest.drain(..done);
        let more = self.batch.count as usize >= FAKEBINDER_RECORDING_MAX;
        self.ask()?;
        Ok(more || self.batch.count > 0)
    }
}
