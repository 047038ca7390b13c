//! From single events to calls: who called whom, and for how long.

use super::Counts;
use super::perfetto::{
    CounterDescriptor, DebugAnnotation, Kind, ProcessDescriptor, SEQ_INCREMENTAL_STATE_CLEARED,
    ThreadDescriptor, Trace, TracePacket, TrackDescriptor, TrackEvent,
};
use fakebinder::protocol::names::{command_name, return_name};
use fakebinder_client::uapi::{self, TF_ONE_WAY, fakebinder_event};
use prost::Message;
use std::collections::HashMap;

/// The track of the count of pages; those of processes and threads have the numbers behind it.
const PAGES: u64 = 1;
/// All packets are of this sequence.
const SEQUENCE: u32 = 1;

/// A slice that has begun on a thread's track, with the number of the call: the thread waits for
/// the reply, or serves the call.
#[derive(Debug, PartialEq, Eq)]
enum Open {
    Call(u64),
    Serve(u64),
}

/// A transaction on its way.
struct Sent {
    code: u32,
    flags: u32,
    /// The call that this is the reply to.
    reply_to: Option<u64>,
}

/// Makes packets of events.
pub struct Story {
    names: HashMap<u32, String>,
    tracks: HashMap<(i32, i32), u64>,
    open: HashMap<(i32, i32), Vec<Open>>,
    sent: HashMap<u64, Sent>,
    /// Packets that were not taken yet.
    bytes: Vec<u8>,
    pub counts: Counts,
}

impl Story {
    /// `names`: what the codes of calls are called.
    pub fn new(names: HashMap<u32, String>) -> Story {
        let mut story = Story {
            names,
            tracks: HashMap::new(),
            open: HashMap::new(),
            sent: HashMap::new(),
            bytes: Vec::new(),
            counts: Counts::default(),
        };
        story.describe(TrackDescriptor {
            uuid: Some(PAGES),
            name: Some("pages installed".to_owned()),
            counter: Some(CounterDescriptor { unit_name: Some("pages".to_owned()) }),
            ..Default::default()
        });
        story
    }

    /// The packets that were made since this was last called, as bytes of a trace.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Goes on with the next event.
    pub fn tell(&mut self, event: &fakebinder_event) {
        self.counts.events += 1;
        let instant = match event.kind {
            uapi::FAKEBINDER_EVENT_TRANSACTION => return self.sent(event),
            uapi::FAKEBINDER_EVENT_RECEIVED => return self.received(event),
            uapi::FAKEBINDER_EVENT_RETURN => return self.returned(event),
            uapi::FAKEBINDER_EVENT_PAGES => return self.count_pages(event),
            uapi::FAKEBINDER_EVENT_COMMAND => {
                format!("binder_command {}", command_name(event.number))
            }
            uapi::FAKEBINDER_EVENT_REPORT => {
                format!("binder_netlink_report {}", return_name(event.error))
            }
            uapi::FAKEBINDER_EVENT_PAGE_START => format!("binder_alloc_page_start {}", event.size),
            uapi::FAKEBINDER_EVENT_PAGE_END => format!("binder_alloc_page_end {}", event.size),
            kind => format!("event {kind}"),
        };
        self.instant(event, instant);
    }

    fn what(&self, code: u32) -> String {
        self.names.get(&code).cloned().unwrap_or_else(|| format!("code {code}"))
    }

    /// The slices that have begun on the track of the event's thread.
    fn stack(&mut self, event: &fakebinder_event) -> &mut Vec<Open> {
        self.open.entry((event.pid, event.tid)).or_default()
    }

    fn sent(&mut self, event: &fakebinder_event) {
        let (id, code, flags) = (event.id, event.number, event.flags);
        let reply_to = (event.reply_to != 0).then_some(event.reply_to);
        self.sent.insert(id, Sent { code, flags, reply_to });
        self.counts.flows += 1;
        if let Some(call) = reply_to {
            let reply = self.event(event, Kind::Instant, "binder_transaction reply".to_owned());
            self.push(event.at, TrackEvent { flow_ids: vec![id], ..reply });
            return self.end(event, &Open::Serve(call));
        }
        let oneway = flags & TF_ONE_WAY != 0;
        let what = self.what(code);
        let (kind, name) = match oneway {
            true => (Kind::Instant, format!("binder_transaction one-way {what}")),
            false => (Kind::SliceBegin, format!("binder_transaction {what}")),
        };
        let call = self.event(event, kind, name);
        let debug_annotations = vec![
            annotation("transaction", id),
            annotation("data_size", event.size),
            annotation("flags", flags.into()),
        ];
        self.push(event.at, TrackEvent { flow_ids: vec![id], debug_annotations, ..call });
        if !oneway {
            self.begun(event, Open::Call(id));
        }
    }

    fn received(&mut self, event: &fakebinder_event) {
        let id = event.id;
        // Nothing is known of what was sent before the trace began.
        let Some(Sent { code, flags, reply_to }) = self.sent.remove(&id) else {
            return self.instant(event, format!("binder_transaction_received {id}"));
        };
        let what = self.what(code);
        let (kind, name) = match (reply_to, flags & TF_ONE_WAY != 0) {
            (Some(_), _) => (Kind::Instant, "binder_transaction_received reply".to_owned()),
            (None, true) => (Kind::Instant, format!("binder_transaction_received one-way {what}")),
            (None, false) => (Kind::SliceBegin, format!("binder_transaction_received {what}")),
        };
        let received = self.event(event, kind, name);
        let debug_annotations = vec![annotation("transaction", id)];
        let terminating_flow_ids = vec![id];
        self.push(event.at, TrackEvent { terminating_flow_ids, debug_annotations, ..received });
        if let Some(call) = reply_to {
            self.end(event, &Open::Call(call));
        } else if kind == Kind::SliceBegin {
            self.begun(event, Open::Serve(id));
        }
    }

    fn returned(&mut self, event: &fakebinder_event) {
        let number = event.number;
        self.instant(event, format!("binder_return {}", return_name(number)));
        // These stand for a reply.
        if [uapi::BR_DEAD_REPLY, uapi::BR_FAILED_REPLY, uapi::BR_FROZEN_REPLY].contains(&number)
            && let Some(Open::Call(call)) = self.stack(event).last()
        {
            let call = Open::Call(*call);
            self.end(event, &call);
        }
    }

    fn count_pages(&mut self, event: &fakebinder_event) {
        let count = TrackEvent {
            r#type: Some(Kind::Counter.into()),
            track_uuid: Some(PAGES),
            counter_value: Some(event.size as i64),
            ..Default::default()
        };
        self.push(event.at, count);
    }

    fn begun(&mut self, event: &fakebinder_event, open: Open) {
        self.counts.slices += 1;
        self.stack(event).push(open);
    }

    /// Ends a slice of the event's thread, if it is the last that has begun.
    fn end(&mut self, event: &fakebinder_event, open: &Open) {
        if self.stack(event).pop_if(|last| *last == *open).is_some() {
            let track_uuid = Some(self.track(event.pid, event.tid));
            let r#type = Some(Kind::SliceEnd.into());
            self.push(event.at, TrackEvent { r#type, track_uuid, ..Default::default() });
        }
    }

    fn instant(&mut self, event: &fakebinder_event, name: String) {
        let instant = self.event(event, Kind::Instant, name);
        self.push(event.at, instant);
    }

    fn event(&mut self, event: &fakebinder_event, kind: Kind, name: String) -> TrackEvent {
        TrackEvent {
            r#type: Some(kind.into()),
            track_uuid: Some(self.track(event.pid, event.tid)),
            categories: vec!["binder".to_owned()],
            name: Some(name),
            ..Default::default()
        }
    }

    /// The track of a thread; of the process, where no thread is known.
    fn track(&mut self, pid: i32, tid: i32) -> u64 {
        if let Some(track) = self.tracks.get(&(pid, tid)) {
            return *track;
        }
        let parent = (tid != 0).then(|| self.track(pid, 0));
        let uuid = PAGES + 1 + self.tracks.len() as u64;
        self.tracks.insert((pid, tid), uuid);
        let process = || ProcessDescriptor {
            pid: Some(pid),
            process_name: name_of(&format!("/proc/{pid}/comm")),
        };
        let thread = |_| ThreadDescriptor {
            pid: Some(pid),
            tid: Some(tid),
            thread_name: name_of(&format!("/proc/{pid}/task/{tid}/comm")),
        };
        self.describe(TrackDescriptor {
            uuid: Some(uuid),
            process: parent.is_none().then(process),
            thread: parent.map(thread),
            parent_uuid: parent,
            ..Default::default()
        });
        uuid
    }

    fn describe(&mut self, track: TrackDescriptor) {
        self.counts.tracks += 1;
        self.write(TracePacket { track_descriptor: Some(track), ..Default::default() });
    }

    fn push(&mut self, at: u64, event: TrackEvent) {
        let (timestamp, track_event) = (Some(at), Some(event));
        self.write(TracePacket { timestamp, track_event, ..Default::default() });
    }

    fn write(&mut self, packet: TracePacket) {
        // The first packet is made when the story begins.
        let is_first = self.counts.tracks == 1 && self.counts.events == 0;
        let packet = TracePacket {
            trusted_packet_sequence_id: Some(SEQUENCE),
            sequence_flags: is_first.then_some(SEQ_INCREMENTAL_STATE_CLEARED),
            ..packet
        };
        self.bytes.extend(Trace { packet: vec![packet] }.encode_to_vec());
    }
}

fn annotation(name: &str, value: u64) -> DebugAnnotation {
    DebugAnnotation { name: Some(name.to_owned()), uint_value: Some(value) }
}

/// What a program calls itself; none when it is gone.
fn name_of(path: &str) -> Option<String> {
    let name = std::fs::read(path).ok()?;
    Some(String::from_utf8_lossy(name.trim_ascii_end()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: (i32, i32) = (10, 11);
    const SERVER: (i32, i32) = (20, 21);

    fn happens(kind: u32, (pid, tid): (i32, i32), id: u64) -> fakebinder_event {
        fakebinder_event { kind, pid, tid, id, ..Default::default() }
    }

    fn sent(by: (i32, i32), id: u64, reply_to: u64) -> fakebinder_event {
        let event = happens(uapi::FAKEBINDER_EVENT_TRANSACTION, by, id);
        fakebinder_event { number: 7, reply_to, ..event }
    }

    fn received(by: (i32, i32), id: u64) -> fakebinder_event {
        happens(uapi::FAKEBINDER_EVENT_RECEIVED, by, id)
    }

    fn returned(by: (i32, i32), number: u32) -> fakebinder_event {
        let event = happens(uapi::FAKEBINDER_EVENT_RETURN, by, 0);
        fakebinder_event { number, ..event }
    }

    /// What the packets of these events say, a line for each that belongs to a track.
    fn told(events: &[fakebinder_event]) -> (Vec<String>, Counts) {
        let mut story = Story::new(HashMap::from([(7, "IPing.ping".to_owned())]));
        events.iter().for_each(|event| story.tell(event));
        let trace = Trace::decode(&*story.take()).unwrap();
        let flags = trace.packet.iter().filter_map(|packet| packet.sequence_flags);
        assert!(flags.eq([SEQ_INCREMENTAL_STATE_CLEARED]));
        let mut tids = HashMap::new();
        let mut lines = Vec::new();
        for packet in trace.packet {
            if let Some(track) = packet.track_descriptor {
                tids.insert(track.uuid, track.thread.and_then(|thread| thread.tid));
            }
            let Some(event) = packet.track_event else { continue };
            let tid = tids[&event.track_uuid].unwrap_or(0);
            lines.push(match event.r#type() {
                Kind::SliceBegin => format!("{tid} ( {}", event.name.unwrap()),
                Kind::SliceEnd => format!("{tid} )"),
                _ => format!("{tid} . {}", event.name.unwrap()),
            });
        }
        (lines, story.counts)
    }

    #[test]
    fn a_call_is_two_slices_and_two_flows() {
        let events =
            [sent(CALLER, 1, 0), received(SERVER, 1), sent(SERVER, 2, 1), received(CALLER, 2)];
        let (lines, counts) = told(&events);
        let expected = [
            "11 ( binder_transaction IPing.ping",
            "21 ( binder_transaction_received IPing.ping",
            "21 . binder_transaction reply",
            "21 )",
            "11 . binder_transaction_received reply",
            "11 )",
        ];
        assert_eq!(lines, expected);
        assert_eq!(counts, Counts { events: 4, lost: 0, slices: 2, flows: 2, tracks: 5 });
    }

    #[test]
    fn a_call_back_lies_within_the_call_and_an_error_ends_the_last_call() {
        let events = [
            sent(CALLER, 1, 0),
            received(SERVER, 1),
            sent(SERVER, 2, 0),
            received(CALLER, 2),
            // What the caller sends while it serves is refused: no slice of that has begun.
            returned(CALLER, uapi::BR_FAILED_REPLY),
            returned(SERVER, uapi::BR_DEAD_REPLY),
        ];
        let (lines, _) = told(&events);
        let expected = [
            "11 ( binder_transaction IPing.ping",
            "21 ( binder_transaction_received IPing.ping",
            "21 ( binder_transaction IPing.ping",
            "11 ( binder_transaction_received IPing.ping",
            "11 . binder_return BR_FAILED_REPLY",
            "21 . binder_return BR_DEAD_REPLY",
            "21 )",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_began_before_the_trace_ends_no_slice() {
        let (lines, counts) = told(&[received(SERVER, 1), sent(SERVER, 2, 1), received(CALLER, 2)]);
        let expected = [
            "21 . binder_transaction_received 1",
            "21 . binder_transaction reply",
            "11 . binder_transaction_received reply",
        ];
        assert_eq!(lines, expected);
        assert_eq!((counts.slices, counts.flows), (0, 1));
    }
}
