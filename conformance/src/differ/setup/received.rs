//! What a thread has received, in words that mean the same on every device.

use super::super::super::scene::{Received, Thread};
use super::Setup;
use super::words::{contents, file_name};
use fakebinder_client::Object;
use std::collections::BTreeMap;
use std::fmt::Write as _;

impl Setup {
    /// What a transaction or a reply says, and what came with it.
    pub(super) fn transaction(
        &mut self,
        index: usize,
        handle: &Thread,
        got: &Received,
        text: &mut String,
    ) {
        let t = &got.transaction;
        let sender = self.clients.iter().position(|client| client.process.pid() == t.sender_pid);
        let sender = match (sender, t.sender_pid) {
            (Some(index), _) => format!("p{index}"),
            (None, 0) => "nobody".to_owned(),
            (None, pid) => format!("pid {pid}"),
        };
        let _ = write!(
            text,
            "(node {},{} code {} flags {:#x} from {sender} uid {} at {} size {} offsets {:?} at +{}",
            t.target,
            t.cookie,
            t.code,
            t.flags,
            t.sender_euid,
            got.at,
            t.data_size,
            got.offsets,
            t.offsets.wrapping_sub(t.buffer),
        );
        if !got.readable {
            text.push_str(", unreadable)");
            return;
        }
        let (start, mapping) = (handle.start(), self.clients[index].mapping);
        let mut plain = got.data.clone();
        let mut buffers = BTreeMap::new();
        for (number, &offset) in got.offsets.iter().enumerate() {
            let object = got.data.get(offset as usize..).and_then(Object::decode);
            let Some(object) = object else {
                text.push_str(", no object");
                continue;
            };
            let end = (offset as usize + object.size()).min(plain.len());
            plain[offset as usize..end].fill(0);
            match object {
                Object::Handle { handle, .. } | Object::WeakHandle { handle, .. } => {
                    self.clients[index].handles.insert(handle);
                    let _ = write!(text, ", {object:?}");
                }
                Object::Fd { fd, cookie } => {
                    let _ = write!(text, ", Fd {} {cookie}", self.file(handle, fd as i32));
                }
                Object::Buffer { buffer, length, flags, parent, parent_offset } => {
                    let at = buffer.wrapping_sub(start);
                    let _ =
                        write!(text, ", Buffer at {at} {length} {flags} {parent}+{parent_offset}");
                    match handle.peek(buffer, (length as usize).min(1 << 20)) {
                        Ok(bytes) => {
                            buffers.insert(number as u64, bytes);
                        }
                        Err(errno) => {
                            let _ = write!(text, " {errno:?}");
                        }
                    }
                }
                Object::FdArray { num_fds, parent, parent_offset } => {
                    let _ = write!(text, ", FdArray {num_fds} {parent}+{parent_offset} =");
                    for number in 0..num_fds.min(64) as usize {
                        let at = parent_offset as usize + number * 4;
                        if let Some(four) = buffers
                            .get_mut(&parent)
                            .and_then(|bytes: &mut Vec<u8>| bytes.get_mut(at..at + 4))
                        {
                            let fd = i32::from_ne_bytes([four[0], four[1], four[2], four[3]]);
                            four.fill(0);
                            let _ = write!(text, " {}", self.file(handle, fd));
                        }
                    }
                }
                other => {
                    let _ = write!(text, ", {other:?}");
                }
            }
        }
        for (number, bytes) in buffers {
            let _ = write!(text, ", buffer {number} = {}", contents(&bytes, start, mapping));
        }
        let _ = write!(text, ", data {})", contents(&plain, start, mapping));
    }

    /// The transcript's name for the file behind a descriptor of a process.
    fn file(&self, thread: &Thread, fd: i32) -> String {
        match file_name(thread.pid(), fd) {
            None => "none".to_owned(),
            Some(name) => self.names.get(&name).cloned().unwrap_or(name),
        }
    }
}
