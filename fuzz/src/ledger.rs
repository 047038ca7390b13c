//! What was sent, to compare with what arrives: every byte, every object, every descriptor.

use fakebinder::Errno;
use fakebinder::binder::{File, Process};
use fakebinder::protocol::object::Object;
use fakebinder::protocol::record::TransactionData;
use fakebinder::uapi::{TF_ONE_WAY, TF_UPDATE_TXN};
use fakebinder_sim::HeapMm;
use fakebinder_sim::SimClient;
use std::sync::Arc;

/// A node's pointer and cookie: what tells it from others, everywhere.
pub type Identity = (u64, u64);

/// Bits of a transaction's code that are its own; above them stands its number in the ledger.
const CODE_BITS: u32 = 2;

/// An object as it was sent, with what it means.
pub enum SentObject {
    Node {
        identity: Identity,
        strong: bool,
    },
    /// The node behind the sender's handle, if there was one.
    Handle {
        identity: Option<Identity>,
        strong: bool,
    },
    File {
        number: Option<u32>,
    },
    Buffer {
        bytes: Vec<u8>,
    },
    /// The numbers of the files in the array.
    FileArray {
        parent: usize,
        at: u64,
        files: Vec<Option<u32>>,
    },
    Unknown,
}

/// One message.
pub struct Sent {
    /// Process and thread, by their places on the stage.
    pub by: (usize, usize),
    pub pid: i32,
    pub euid: u32,
    pub code: u32,
    pub flags: u32,
    pub is_reply: bool,
    pub data: Vec<u8>,
    /// Offset, encoded size and meaning of each object.
    pub objects: Vec<(usize, usize, SentObject)>,
    /// The node that was called, if its handle said so.
    pub target: Option<Identity>,
    /// It is what it should be, so it must arrive as it is.
    pub honest: bool,
    pub delivered: bool,
    /// A call that was answered.
    pub answered: bool,
}

/// A file that clients pass on. `_alive` counts how many there are.
pub struct CountedFile {
    pub number: u32,
    pub _alive: Arc<()>,
}

impl File for CountedFile {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// The number of the file behind a client's descriptor.
pub fn file_number(client: &SimClient, fd: i32) -> Option<u32> {
    client.file(fd)?.as_any().downcast_ref::<CountedFile>().map(|file| file.number)
}

/// Who has received a message.
pub struct Receiver<'a> {
    pub process: &'a Process,
    pub mm: &'a HeapMm,
    pub client: &'a SimClient,
    /// Its nodes have these pointers (and the plain context manager's is 0).
    pub nodes: std::ops::Range<u64>,
    /// Handles that it has let go of: they may mean anything.
    pub dropped: &'a [u32],
    /// It may have freed or released what it received in the same call.
    pub hasty: bool,
}

/// Every message of a program.
#[derive(Default)]
pub struct Ledger {
    pub sent: Vec<Sent>,
    /// The last one-way call of a thread to a node that has arrived.
    last_oneway: Vec<((usize, usize), u64, usize)>,
    /// Messages may come that are not in the ledger, or look as if they were.
    pub has_strangers: bool,
}

/// What a receiver got out of a message.
#[derive(Default)]
pub struct Received {
    pub number: usize,
    pub handles: Vec<u32>,
}

impl Ledger {
    /// The code of the message with this number. One that may replace another has no number there.
    pub fn code(number: usize, code: u8, flags: u32) -> u32 {
        let code = u32::from(code) & ((1 << CODE_BITS) - 1);
        if flags & TF_UPDATE_TXN != 0 { code } else { (number as u32) << CODE_BITS | code }
    }

    /// Plain data for the message with this number: the number, if there is room for it, and a
    /// pattern.
    pub fn fill(number: usize, count: usize, data: &mut Vec<u8>) {
        let seed = (number as u8).wrapping_mul(31);
        data.extend((0..count).map(|index| seed.wrapping_add(index as u8)));
        if let Some(head) = data.first_chunk_mut() {
            *head = (number as u32).to_ne_bytes();
        }
    }

    /// A message has arrived: compares it with what was sent.
    ///
    /// # Panics
    /// When they differ.
    pub fn receive(
        &mut self,
        data: &TransactionData,
        is_reply: bool,
        to: &Receiver<'_>,
    ) -> Received {
        if self.has_strangers {
            return Received::default();
        }
        let mut bytes = vec![0; data.data_size as usize];
        let readable = to.mm.peek(data.buffer, &mut bytes);
        let number = if data.flags & TF_UPDATE_TXN == 0 {
            (data.code >> CODE_BITS) as usize
        } else if readable.is_ok() && bytes.len() >= 4 && !to.hasty {
            u32::from_ne_bytes(*bytes.first_chunk().expect("four bytes")) as usize
        } else {
            return Received { number: usize::MAX, handles: Vec::new() };
        };
        let sent = self.sent.get_mut(number);
        let sent = sent.unwrap_or_else(|| panic!("message {number} was received and never sent"));
        assert!(!sent.delivered, "message {number} is delivered twice");
        sent.delivered = true;
        assert_eq!(sent.is_reply, is_reply, "message {number}: a call, or a reply?");
        assert_eq!((sent.code, sent.flags), (data.code, data.flags), "message {number}");
        assert_eq!(sent.euid, data.sender_euid, "message {number}: sender_euid");
        let anonymous = is_reply || data.flags & TF_ONE_WAY != 0;
        assert!(
            data.sender_pid == 0 || (!anonymous && data.sender_pid == sent.pid),
            "message {number}: sender_pid {}",
            data.sender_pid
        );
        if !is_reply {
            assert!(
                data.target == 0 || to.nodes.contains(&data.target),
                "message {number} is for u{:x}, which is somebody else's",
                data.target
            );
            if let Some(target) = sent.target {
                assert_eq!(target, (data.target, data.cookie), "message {number}: its target");
            }
        }
        if data.flags & TF_ONE_WAY != 0 && !is_reply {
            let by = sent.by;
            let last = self.last_oneway.iter_mut().find(|l| l.0 == by && l.1 == data.target);
            match last {
                Some((.., last)) => {
                    assert!(*last < number || to.hasty, "message {number} comes after {last}");
                    *last = number;
                }
                None => self.last_oneway.push((by, data.target, number)),
            }
        }
        let sent = &self.sent[number];
        let mut received = Received { number, handles: Vec::new() };
        if readable == Err(Errno::EFAULT) || to.hasty {
            // Unmapped meanwhile, or freed and used again.
            return received;
        }
        if !sent.honest {
            return received;
        }
        assert_eq!(data.data_size as usize, sent.data.len(), "message {number}: its size");
        assert_eq!(data.offsets_size as usize, 8 * sent.objects.len(), "message {number}: offsets");
        let mut plain = 0;
        for (offset, size, object) in &sent.objects {
            let (from, to_) = (plain, *offset);
            assert_eq!(bytes[from..to_], sent.data[from..to_], "message {number}: its data");
            plain = offset + size;
            let object_bytes = &bytes[*offset..];
            let arrived = Object::decode(object_bytes)
                .unwrap_or_else(|| panic!("message {number}: no object at {offset}"));
            to.object(number, sent, object, arrived, &bytes, &mut received);
        }
        assert_eq!(bytes[plain..], sent.data[plain..], "message {number}: its data");
        received
    }
}

impl Receiver<'_> {
    fn object(
        &self,
        number: usize,
        sent: &Sent,
        object: &SentObject,
        arrived: Object,
        bytes: &[u8],
        received: &mut Received,
    ) {
        match (object, arrived) {
            (SentObject::Node { identity, strong }, Object::Handle { strong: arrived, flat }) => {
                assert_eq!(*strong, arrived, "message {number}: strong or weak");
                let behind = self.process.node_behind(flat.handle());
                assert!(
                    behind == Some(*identity) || self.dropped.contains(&flat.handle()),
                    "message {number}: handle {} is {behind:x?}, not {identity:x?}",
                    flat.handle()
                );
                received.handles.push(flat.handle());
            }
            (SentObject::Handle { identity, strong }, Object::Handle { strong: arrived, flat }) => {
                assert_eq!(*strong, arrived, "message {number}: strong or weak");
                let behind = self.process.node_behind(flat.handle());
                assert!(
                    behind.is_some() && (identity.is_none() || behind == *identity)
                        || self.dropped.contains(&flat.handle()),
                    "message {number}: handle {} is {behind:x?}, not {identity:x?}",
                    flat.handle()
                );
                received.handles.push(flat.handle());
            }
            (SentObject::Handle { identity, strong }, Object::Binder { strong: arrived, flat }) => {
                assert_eq!(*strong, arrived, "message {number}: strong or weak");
                let own = Some((flat.binder, flat.cookie));
                assert!(identity.is_none() || own == *identity, "message {number}: {own:x?}");
                assert!(
                    flat.binder == 0 || self.nodes.contains(&{ flat.binder }),
                    "message {number}: u{:x} is somebody else's",
                    { flat.binder }
                );
            }
            (SentObject::File { number: file }, Object::Fd { fd, .. }) => {
                let arrived = file_number(self.client, fd as i32);
                assert_eq!(arrived, *file, "message {number}: the file behind {fd}");
            }
            (SentObject::Buffer { bytes: buffer }, Object::Buffer(arrived)) => {
                let mut content = vec![0; arrived.length as usize];
                self.mm.peek(arrived.buffer, &mut content).expect("inside the mapping");
                // Pointers and descriptors in it are the other objects' business: they know where.
                let patched = self.patches(sent, bytes, arrived.buffer);
                for (index, (one, other)) in content.iter().zip(buffer).enumerate() {
                    let is_patched = patched.iter().any(|patch| patch.contains(&index));
                    assert!(is_patched || one == other, "message {number}: its buffer at {index}");
                }
                if arrived.has_parent() {
                    let parent = sent.objects[arrived.parent as usize].0;
                    let Some(Object::Buffer(parent)) = Object::decode(&bytes[parent..]) else {
                        panic!("message {number}: a parent that is no buffer");
                    };
                    let mut pointer = [0; 8];
                    let place = parent.buffer + arrived.parent_offset;
                    self.mm.peek(place, &mut pointer).expect("inside the mapping");
                    assert_eq!(
                        u64::from_ne_bytes(pointer),
                        { arrived.buffer },
                        "message {number}: the pointer in the parent"
                    );
                }
            }
            (SentObject::FileArray { parent, at, files }, Object::FdArray(_)) => {
                let parent = sent.objects[*parent].0;
                let Some(Object::Buffer(parent)) = Object::decode(&bytes[parent..]) else {
                    panic!("message {number}: an array that lies in no buffer");
                };
                for (index, file) in files.iter().enumerate() {
                    let mut fd = [0; 4];
                    let place = parent.buffer + at + 4 * index as u64;
                    self.mm.peek(place, &mut fd).expect("inside the mapping");
                    let arrived = file_number(self.client, i32::from_ne_bytes(fd));
                    assert_eq!(arrived, *file, "message {number}: file {index} of an array");
                }
            }
            (_, arrived) => panic!("message {number}: {arrived:?} was not sent"),
        }
    }

    /// The parts of the buffer at `address` that others write to.
    fn patches(&self, sent: &Sent, bytes: &[u8], address: u64) -> Vec<std::ops::Range<usize>> {
        let mut patches = Vec::new();
        for (offset, ..) in &sent.objects {
            let (parent, at, size) = match Object::decode(&bytes[*offset..]) {
                Some(Object::Buffer(buffer)) if buffer.has_parent() => {
                    (buffer.parent, buffer.parent_offset, 8)
                }
                Some(Object::FdArray(array)) => {
                    (array.parent, array.parent_offset, 4 * array.num_fds)
                }
                _ => continue,
            };
            let Some((parent, ..)) = sent.objects.get(parent as usize) else { continue };
            if matches!(Object::decode(&bytes[*parent..]), Some(Object::Buffer(p)) if p.buffer == address)
            {
                patches.push(at as usize..(at + size) as usize);
            }
        }
        patches
    }
}
