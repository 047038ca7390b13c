//! Clients of other users, who take what they can get until the daemon refuses them.

use crate::client::{Client, FAULT, NODE, Orders, Own, Request};
use crate::handles::write_all;
use crate::message::{Direction, Header};
use crate::tally::{Event, Tally};
use fakebinder_client::{
    Call, Command, Contents, Device, Errno, Object, Parcel, Reply, Thread, uapi,
};
use std::time::Duration;

/// The first of their uids; nobody's on an ordinary machine.
pub const FIRST_UID: u32 = 61_001;
/// What a user may have while hoarders are about (`--user-limit`): little enough to be reached in a
/// moment, and enough for one hoarder to begin.
pub const LIMITS: [&str; 4] = ["opens=24", "records=400", "pages=96", "oneway-bytes=64K"];
/// More attempts than any limit takes.
const ATTEMPTS: u32 = 4_000;
const LARGE: u32 = 24 << 10;

/// Takes one kind of thing until it is refused, keeps it for a while, and ends.
pub fn hoard(orders: Orders, uid: u32, tally: &'static Tally) -> std::process::ExitCode {
    if nix::unistd::setuid(uid.into()).is_err() {
        crate::client::complain(tally, &format!("cannot become uid {uid}: fb-stress needs root"));
        return std::process::ExitCode::FAILURE;
    }
    // The parent's death is forgotten with the uid.
    crate::end_with_parent();
    let chance = orders.number % 3;
    let mut kept = Vec::new();
    if chance == 0 {
        opens(&orders, tally, &mut kept);
    } else {
        let client = Client::open(orders, tally, 1 << 20);
        let mut own = client.own(0);
        match chance {
            1 => records(&client, &mut own),
            _ => pages(&client, &mut own),
        }
        std::thread::sleep(Duration::from_millis(own.chance.below(1_000)));
        return std::process::ExitCode::SUCCESS;
    }
    std::thread::sleep(Duration::from_millis(300));
    std::process::ExitCode::SUCCESS
}

fn opens(orders: &Orders, tally: &Tally, kept: &mut Vec<Device>) {
    for _ in 0..ATTEMPTS {
        match Device::open(&orders.device) {
            Ok(device) => kept.push(device),
            Err(error) if error.errno() == Errno::EMFILE => {
                return tally.happened(Event::QuotaOpens);
            }
            Err(error) if error.errno() == FAULT => tally.happened(Event::FaultsMet),
            // The records that go with an open.
            Err(error) if error.errno() == Errno::ENOMEM => return,
            Err(error) => return crate::client::complain(tally, &error.explain()),
        }
    }
    crate::client::complain(tally, &format!("one user has opened the device {ATTEMPTS} times"));
}

impl Client {
    /// One message of a hoarder's: whether it may go on.
    fn press(&self, thread: &mut Thread<'_>, call: &Call<'_>, refused: Event) -> bool {
        let reply = self.expect(thread.call_serving(call, &mut |_, _, _, _| {}));
        match reply {
            Reply::Failed => {
                let error = self.expect(self.device.extended_error());
                if error.command == uapi::BR_OK {
                    return false;
                }
                match Errno::from_raw(-error.param) {
                    FAULT => {
                        self.tally.happened(Event::FaultsMet);
                        true
                    }
                    Errno::ENOMEM | Errno::EMFILE => {
                        self.tally.happened(refused);
                        false
                    }
                    Errno::ENOSPC => false,
                    other => {
                        self.complain(&format!("a hoarder's call failed with {other:?}"));
                        false
                    }
                }
            }
            Reply::Dead | Reply::Frozen => false,
            Reply::Data(_) | Reply::Sent | Reply::SentSpamSuspect | Reply::SentToFrozen => true,
        }
    }

    /// A handle of a client that does not read, if the manager knows one.
    fn somebody_idle(&self, thread: &mut Thread<'_>, own: &mut Own) -> Option<u32> {
        let mut parcel = Parcel::new();
        request(self, own, 16).write(Direction::Request, parcel.data_mut());
        for _ in 0..50 {
            let call = Call::to(0).code(Request::Get as u32 | 16 << 8).parcel(&parcel);
            let reply = self.expect(thread.call_serving(&call, &mut |_, _, _, _| {}));
            if let Reply::Data(contents) = reply
                && let Some(handle) = self.idle_one(&contents)
            {
                return Some(handle);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    fn idle_one(&self, contents: &Contents) -> Option<u32> {
        let header = Header::read(Direction::Reply, self.orders.seed, &contents.data).ok()?;
        let index = header.extra.trailing_zeros() as usize;
        match contents.objects().nth(index)? {
            Some(Object::Handle { handle, .. }) => {
                self.expect(write_all(&self.device, &[Command::Acquire(handle)]));
                Some(handle)
            }
            _ => None,
        }
    }
}

fn request(client: &Client, own: &mut Own, size: u32) -> Header {
    own.sequence += 1;
    let (caller, sequence, seed) = (own.caller, own.sequence, client.orders.seed);
    Header { caller, verdict: 0, extra: 0, size, sequence, seed }
}

/// Nodes, in one-way calls that nobody reads: records, and bytes of one-way calls.
fn records(client: &Client, own: &mut Own) {
    let mut thread = Thread::new(&client.device);
    let Some(handle) = client.somebody_idle(&mut thread, own) else { return };
    let mut next = NODE;
    for _ in 0..ATTEMPTS {
        let mut parcel = Parcel::new();
        request(client, own, 64).write(Direction::Request, parcel.data_mut());
        for _ in 0..16 {
            parcel.binder(next, next + 1, 0);
            next += 8;
        }
        let call = Call::to(handle).code(Request::Post as u32).oneway().parcel(&parcel);
        if !client.press(&mut thread, &call, Event::QuotaRecords) {
            return;
        }
    }
}

/// Replies that are never freed: pages of the own mapping.
fn pages(client: &Client, own: &mut Own) {
    for _ in 0..ATTEMPTS {
        let mut parcel = Parcel::new();
        request(client, own, 16).write(Direction::Request, parcel.data_mut());
        let code = Request::Call as u32 | LARGE << 8;
        let call = Call::to(0).code(code).flags(uapi::TF_ACCEPT_FDS).parcel(&parcel);
        // What a thread has queued is never written when it is dropped: the reply stays.
        let mut thread = Thread::new(&client.device);
        if !client.press(&mut thread, &call, Event::QuotaPages) {
            return;
        }
    }
}
