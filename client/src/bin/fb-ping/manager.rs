//! The context manager: checks every request and answers with bytes that the client can check.

use crate::pattern::{Direction, HEADER, Header, verdict};
use crate::{Args, say};
use fakebinder_client::{Command, Device, Parcel, Result, Thread, Transaction};
use std::collections::HashMap;
use std::process::ExitCode;

/// A synchronous call: the reply has as many bytes as the request.
pub const PING: u32 = 1;
/// A one-way call: counted and checked.
pub const POST: u32 = 2;
/// Asks for the counts of a client's one-way calls: three u64, see [`Posts`].
pub const QUERY: u32 = 3;

/// Bytes of the manager's mapping.
pub const BUFFER: usize = 4 << 20;

/// Counts of the one-way calls that have arrived from one client.
#[derive(Debug, Default, Clone, Copy)]
pub struct Posts {
    /// All that arrived.
    pub arrived: u64,
    /// Those that arrived with a wrong byte.
    pub wrong: u64,
    /// Those that arrived before one that was sent earlier, or twice.
    pub disordered: u64,
    /// The sequence number that is expected next.
    pub next: u64,
}

/// Serves until the process is killed; returns only when the device fails.
pub fn run(args: &Args) -> ExitCode {
    if let Err(error) = serve(args) {
        say(&format!("e {}", error.explain()));
    }
    ExitCode::FAILURE
}

fn serve(args: &Args) -> Result<()> {
    let mut device = Device::open(&args.device)?;
    device.mmap(BUFFER)?;
    device.set_max_threads(0)?;
    device.set_context_manager()?;
    let mut thread = Thread::new(&device);
    thread.queue(Command::EnterLooper);
    thread.flush()?;
    say("ready");

    let mut clients = Clients::default();
    loop {
        thread.serve(&mut |_, call, contents, reply| clients.serve(call, &contents.data, reply))?;
    }
}

#[derive(Default)]
struct Clients(HashMap<u32, Posts>);

impl Clients {
    fn serve(&mut self, call: &Transaction, data: &[u8], reply: &mut Parcel) {
        let Some(header) = Header::of(data) else { return };
        let posts = self.0.entry(header.client).or_default();
        match call.code {
            PING => {
                let header = Header { verdict: verdict(data), ..header };
                header.message(Direction::Reply, data.len() - HEADER, reply.data_mut());
            }
            POST => {
                posts.arrived += 1;
                posts.wrong += u64::from(verdict(data) != 0);
                posts.disordered += u64::from(header.sequence != posts.next);
                posts.next = header.sequence + 1;
            }
            QUERY => {
                reply.u64(posts.arrived).u64(posts.wrong).u64(posts.disordered);
            }
            _ => {}
        }
    }
}
