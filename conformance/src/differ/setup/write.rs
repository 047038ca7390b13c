//! The commands of a program, with the addresses and descriptors of the process that writes them.

use super::super::super::message::{self, Bc, Msg};
use super::super::program::{Buffer, Part, Send, Twist, Write};
use super::{Client, Setup};
use fakebinder_client::Object;

impl Setup {
    /// A command as this process would write it.
    pub(super) fn command(&self, index: usize, command: &Write) -> Bc {
        let client = &self.clients[index];
        match command {
            Write::Send(send) => Bc::Send(self.message(client, send)),
            Write::Free(Buffer::Received(number)) => {
                // A buffer that was not received, or not in this program: an invalid address.
                message::free(client.buffers.get(*number).copied().unwrap_or(8))
            }
            Write::Free(Buffer::At(offset)) => {
                message::free(client.process.start().wrapping_add_signed(*offset))
            }
            Write::Increfs(handle) => message::increfs(*handle),
            Write::Acquire(handle) => message::acquire(*handle),
            Write::Release(handle) => message::release(*handle),
            Write::Decrefs(handle) => message::decrefs(*handle),
            Write::IncrefsDone(ptr, cookie) => message::increfs_done(*ptr, *cookie),
            Write::AcquireDone(ptr, cookie) => message::acquire_done(*ptr, *cookie),
            Write::EnterLooper => message::enter_looper(),
            Write::RegisterLooper => message::register_looper(),
            Write::ExitLooper => message::exit_looper(),
            Write::RequestDeath(handle, cookie) => message::request_death(*handle, *cookie),
            Write::ClearDeath(handle, cookie) => message::clear_death(*handle, *cookie),
            Write::DeadBinderDone(cookie) => message::dead_binder_done(*cookie),
            Write::RequestFreeze(handle, cookie) => message::request_freeze(*handle, *cookie),
            Write::ClearFreeze(handle, cookie) => message::clear_freeze(*handle, *cookie),
            Write::FreezeDone(cookie) => message::freeze_done(*cookie),
            Write::AttemptAcquire => message::attempt_acquire(0, 1),
            Write::AcquireResult => message::acquire_result(0),
            Write::Words(words) => {
                Bc::Bytes(words.iter().flat_map(|word| word.to_ne_bytes()).collect())
            }
        }
    }

    fn message(&self, client: &Client, send: &Send) -> Msg {
        let mut message = if send.reply { message::reply() } else { message::call(send.handle) };
        message = message.code(send.code).flags(send.flags);
        let arrays = send.parts.iter().any(|part| matches!(part, Part::FdArray { .. }));
        let file = |number: usize| client.files[number % client.files.len()];
        for part in &send.parts {
            message = match *part {
                Part::Data(ref digits) => message.data(&bytes_of(digits)),
                Part::Bytes(count) => {
                    let salt = self.step + count;
                    let bytes: Vec<u8> = (0..count).map(|i| (i * 31 + salt) as u8).collect();
                    message.data(&bytes)
                }
                Part::Binder { ptr, cookie, flags, weak: false } => {
                    message.object(Object::Binder { ptr, cookie, flags })
                }
                Part::Binder { ptr, cookie, flags, weak: true } => {
                    message.object(Object::WeakBinder { ptr, cookie, flags })
                }
                Part::Handle { handle, weak: false } => message.handle(handle),
                Part::Handle { handle, weak: true } => message.weak_handle(handle),
                Part::Fd(number) => message.fd(number.map_or(-1, file)),
                Part::Buffer { length, parent } => {
                    let bytes: Vec<u8> = if arrays {
                        (0..length).map(|i| file(i / 4).to_ne_bytes()[i % 4]).collect()
                    } else {
                        (0..length).map(|i| (i * 17 + self.step) as u8).collect()
                    };
                    match parent {
                        None => message.buffer(&bytes),
                        Some((parent, offset)) => message.child(&bytes, parent, offset),
                    }
                }
                Part::FdArray { count, parent, offset } => message.fd_array(count, parent, offset),
            };
        }
        match send.twist {
            None => {}
            Some(Twist::DataAt(address)) => {
                message.data_at = Some(address);
            }
            Some(Twist::DataSize(size)) => message.data_size = Some(size),
            Some(Twist::OffsetsAt(address)) => message.offsets_at = Some(address),
            Some(Twist::OffsetsSize(size)) => message.offsets_size = Some(size),
            Some(Twist::Offset(offset)) => message.offsets.push(offset),
            Some(Twist::Shift(by)) => {
                if let Some(first) = message.offsets.first_mut() {
                    *first = first.wrapping_add_signed(by);
                }
            }
            Some(Twist::Reverse) => message.offsets.reverse(),
            Some(Twist::BuffersSize(size)) => message.buffers_size = Some(size),
            Some(Twist::Flip(at)) => {
                let length = message.data.len();
                if length > 0 {
                    message.data[at % length] ^= 0xff;
                }
            }
            Some(Twist::Cut(count)) => {
                let size = (message.data.len() as u64).saturating_sub(count as u64);
                message.data_size = Some(size);
            }
        }
        message
    }
}

/// The bytes of hexadecimal digits, as far as they are some.
fn bytes_of(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map_while(byte).collect()
}
