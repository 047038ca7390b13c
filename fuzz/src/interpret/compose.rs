//! From commands and messages of the grammar to those of the driver, with what earlier steps have
//! returned in the place of picks.

use super::*;

impl Stage {
    /// A command of the grammar as the driver knows it (or the number of one that it does not),
    /// and what is known when it is done.
    pub(super) fn command(
        &mut self,
        role: usize,
        thread: usize,
        command: &Command,
        raced: bool,
    ) -> (Result<Bc, u32>, Done) {
        const NOBODY: HandleCookie = HandleCookie { handle: 77, cookie: 77 };
        let r = &mut self.roles[role];
        let handle = |pick: &Pick| pick.of(&r.handles).unwrap_or(u32::from(pick.0));
        let (command, then) = match command {
            Command::Transaction { to, message } => {
                let mut to = handle(to);
                if to == 0 && role == 0 && r.handles.len() > 1 {
                    // The first context manager cannot mean itself.
                    to = r.handles[1];
                }
                let (data, room) = self.message(role, thread, message, Some(to), raced);
                let command = match room {
                    None => Bc::Transaction(data),
                    Some(room) => Bc::TransactionSg(data, room),
                };
                (command, Done::Nothing)
            }
            // Many commands, each of which comes as a transaction.
            Command::Flood { .. } => return (Err(0), Done::Nothing),
            Command::Reply { message } => {
                let (data, room) = self.message(role, thread, message, None, raced);
                let command = match room {
                    None => Bc::Reply(data),
                    Some(room) => Bc::ReplySg(data, room),
                };
                (command, Done::Answered)
            }
            Command::FreeBuffer { buffer } => {
                let address = buffer.of(&r.buffers).unwrap_or_else(|| match buffer.0 % 4 {
                    // One that is free, or free again; one that begins elsewhere; nowhere.
                    0 => r.freed.last().copied().unwrap_or(MAPPING),
                    1 => r.buffers.first().map_or(MAPPING, |buffer| buffer + 8),
                    2 => MAPPING - 8,
                    _ => u64::MAX,
                });
                (Bc::FreeBuffer(address), Done::Freed(address))
            }
            Command::Increfs { handle: h } => {
                (Bc::Increfs(handle(h)), Done::Counted { handle: handle(h), keeps: true })
            }
            Command::Acquire { handle: h } => {
                let handle = handle(h);
                let keeps = !raced && !r.hasty && r.process.is_strong(handle);
                (Bc::Acquire(handle), Done::Counted { handle, keeps })
            }
            Command::Release { handle: h } | Command::Decrefs { handle: h } => {
                let handle = handle(h);
                r.dropped.push(handle);
                let strong = matches!(command, Command::Release { .. });
                (if strong { Bc::Release(handle) } else { Bc::Decrefs(handle) }, Done::Nothing)
            }
            Command::IncrefsDone { notice } => {
                let node = notice.of(&r.notices).map_or(PtrCookie { ptr: 8, cookie: 8 }, |n| n.0);
                (Bc::IncrefsDone(node), Done::Confirmed(node, false))
            }
            Command::AcquireDone { notice } => {
                let node = notice.of(&r.notices).map_or(PtrCookie { ptr: 8, cookie: 8 }, |n| n.0);
                (Bc::AcquireDone(node), Done::Confirmed(node, true))
            }
            Command::EnterLooper => (Bc::EnterLooper, Done::Nothing),
            Command::RegisterLooper => (Bc::RegisterLooper, Done::Nothing),
            Command::ExitLooper => (Bc::ExitLooper, Done::Nothing),
            Command::RequestDeath { handle: h } => {
                let request = HandleCookie { handle: handle(h), cookie: r.next_cookie };
                r.next_cookie += 1;
                (Bc::RequestDeathNotification(request), Done::AskedDeath(request))
            }
            Command::ClearDeath { link } => {
                let link = link.of(&r.death_links).unwrap_or(NOBODY);
                (Bc::ClearDeathNotification(link), Done::ClearedDeath(link))
            }
            Command::DeadBinderDone { notice } => {
                let cookie = notice.of(&r.deaths).unwrap_or(77);
                (Bc::DeadBinderDone(cookie), Done::AcceptedDeath(cookie))
            }
            Command::RequestFreeze { handle: h } => {
                let request = HandleCookie { handle: handle(h), cookie: r.next_cookie };
                r.next_cookie += 1;
                (Bc::RequestFreezeNotification(request), Done::AskedFreeze(request))
            }
            Command::ClearFreeze { link } => {
                let link = link.of(&r.freeze_links).unwrap_or(NOBODY);
                (Bc::ClearFreezeNotification(link), Done::ClearedFreeze(link))
            }
            Command::FreezeDone { notice } => {
                let cookie = notice.of(&r.freezes).unwrap_or(77);
                (Bc::FreezeNotificationDone(cookie), Done::AcceptedFreeze(cookie))
            }
            Command::AttemptAcquire => {
                (Bc::AttemptAcquire { priority: 0, handle: 0 }, Done::Nothing)
            }
            Command::AcquireResult => (Bc::AcquireResult(0), Done::Nothing),
            Command::Unknown { number } => {
                let known = Bc::payload_size(*number).is_some();
                return (Err(if known { 0 } else { *number }), Done::Nothing);
            }
        };
        (Ok(command), then)
    }

    /// Puts a message into the sender's memory, and into the ledger. With scatter-gather buffers
    /// it also says how many bytes they take.
    pub(super) fn message(
        &mut self,
        role: usize,
        thread: usize,
        message: &Message,
        to: Option<u32>,
        raced: bool,
    ) -> (TransactionData, Option<u64>) {
        let number = self.ledger.sent.len();
        let r = &self.roles[role];
        let flags = transaction_flags(message.flags);
        let mut count = match message.size {
            Size::Bytes { count } => usize::from(count),
            Size::Chunks { count } => 16 * usize::from(count),
            Size::BigChunks { count } => 128 * usize::from(count),
        };
        if flags & TF_UPDATE_TXN != 0 {
            count = count.max(4);
        }
        let mut data = Vec::with_capacity(count + 64);
        Ledger::fill(number, count, &mut data);
        let mut offsets: Vec<u64> = Vec::new();
        let mut objects = Vec::new();
        let mut buffers: Vec<(usize, u64)> = Vec::new();
        let mut room = 0;
        let mut honest = true;
        for object in message.objects.iter() {
            data.resize(data.len().next_multiple_of(8), 0);
            let offset = data.len();
            let index = offsets.len();
            let parent = |parent: &Parent| match *parent {
                Parent::NoParent => None,
                Parent::Last { at } => {
                    buffers.last().map(|last| (last.0, last.1, 8 * u64::from(at % 16)))
                }
                Parent::Nth { index, at } => {
                    let address = buffers.iter().find(|buffer| buffer.0 == usize::from(index % 8));
                    Some((usize::from(index % 8), address.map_or(0, |b| b.1), u64::from(at)))
                }
            };
            let meaning = match object {
                Object::Node { index, strong, flags } => {
                    let (binder, mut cookie) = r.node(*index);
                    if message.twist == Twist::OtherCookie {
                        cookie ^= 1;
                    }
                    let strong = *strong == Strength::Strong;
                    let flat = FlatObject { flags: node_flags(*flags), binder, cookie };
                    BcObject::Binder { strong, flat }.encode(&mut data);
                    SentObject::Node { identity: (binder, cookie), strong }
                }
                Object::Handle { handle, strong } => {
                    let handle = handle.of(&r.handles).unwrap_or(u32::from(handle.0));
                    let strong = *strong == Strength::Strong;
                    let flat = FlatObject { flags: 0, binder: handle.into(), cookie: 0 };
                    BcObject::Handle { strong, flat }.encode(&mut data);
                    let identity = r.process.node_behind(handle).filter(|_| !raced);
                    SentObject::Handle { identity, strong }
                }
                Object::File { fd } => {
                    let fd = fd.of(&r.client.fds()).unwrap_or(99);
                    let object = BcObject::Fd { pad_flags: 0, fd: fd as u32, cookie: 3 };
                    object.encode(&mut data);
                    SentObject::File { number: file_number(&r.client, fd) }
                }
                Object::Buffer { length, parent: within } => {
                    let length = u64::from(*length);
                    let seed = (number * 7 + index * 101) as u8;
                    let bytes: Vec<u8> =
                        (0..length as u8).map(|index| seed.wrapping_add(index)).collect();
                    let mut buffer =
                        BufferObject { buffer: r.arena.push(&bytes), length, ..Default::default() };
                    if let Some((parent, _, at)) = parent(within) {
                        buffer.flags = BINDER_BUFFER_FLAG_HAS_PARENT;
                        (buffer.parent, buffer.parent_offset) = (parent as u64, at);
                    }
                    if message.twist == Twist::BuffersElsewhere {
                        buffer.buffer = 0x40;
                    }
                    room += length.next_multiple_of(8);
                    buffers.push((index, buffer.buffer));
                    BcObject::Buffer(buffer).encode(&mut data);
                    SentObject::Buffer { bytes }
                }
                Object::FileArray { files, parent: within } => {
                    let (parent, address, at) = parent(within).unwrap_or((9, 0, 0));
                    let fds = r.client.fds();
                    let mut numbers = Vec::new();
                    for index in 0..u64::from(files % 4) {
                        let fd = *fds.get(index as usize % fds.len().max(1)).unwrap_or(&99);
                        let place = address.wrapping_add(at + 4 * index);
                        // Into a buffer that is there; else the message is not honest.
                        let _ = r.arena.write(place, &fd.to_ne_bytes());
                        numbers.push(file_number(&r.client, fd));
                    }
                    let array = FdArrayObject {
                        pad: 0,
                        num_fds: numbers.len() as u64,
                        parent: parent as u64,
                        parent_offset: at,
                    };
                    BcObject::FdArray(array).encode(&mut data);
                    SentObject::FileArray { parent, at, files: numbers }
                }
                Object::UnknownType { kind } => {
                    data.put_u32(*kind);
                    data.resize(data.len() + 20, 0);
                    honest = false;
                    SentObject::Unknown
                }
            };
            offsets.push(offset as u64);
            objects.push((offset, data.len() - offset, meaning));
        }
        let with_room = room > 0 || message.code & 0x80 != 0;
        let mut transaction = TransactionData {
            target: to.unwrap_or(0).into(),
            code: Ledger::code(number, message.code, flags),
            flags,
            data_size: data.len() as u64,
            offsets_size: 8 * offsets.len() as u64,
            ..TransactionData::default()
        };
        honest &= matches!(message.twist, Twist::Honest);
        match message.twist {
            Twist::Honest | Twist::OtherCookie | Twist::BuffersElsewhere => {}
            Twist::OffsetsMisaligned => offsets.iter_mut().for_each(|offset| *offset += 2),
            Twist::OffsetsOutOfOrder => offsets.reverse(),
            Twist::OffsetOutOfBounds { by } => {
                offsets.iter_mut().for_each(|offset| *offset += 4 * u64::from(by));
            }
            Twist::OffsetsSizeOdd => transaction.offsets_size += 4,
            Twist::TooLittleRoom { by } => room = room.saturating_sub(8 * u64::from(by)),
            Twist::OddRoom => room += 4,
            Twist::HugeData => transaction.data_size = u64::MAX - 5,
            Twist::HugeOffsets => transaction.offsets_size = 1 << 40,
            Twist::HugeRoom => room = u64::MAX - 9,
            Twist::ShortData { by } => {
                transaction.data_size = transaction.data_size.saturating_sub(by.into());
            }
            Twist::DataElsewhere | Twist::OffsetsElsewhere => {}
        }
        transaction.buffer = r.arena.push(&data);
        let mut bytes = Vec::with_capacity(8 * offsets.len());
        offsets.iter().for_each(|offset| bytes.put_u64(*offset));
        transaction.offsets = r.arena.push(&bytes);
        match message.twist {
            Twist::DataElsewhere => transaction.buffer = 0x20,
            Twist::OffsetsElsewhere => transaction.offsets = 0x30,
            _ => {}
        }
        let target = to.filter(|to| *to != 0 && !raced);
        self.ledger.sent.push(Sent {
            by: (role, thread),
            pid: r.pid,
            euid: r.euid(),
            code: transaction.code,
            flags,
            is_reply: to.is_none(),
            data,
            objects,
            target: target.and_then(|handle| r.process.node_behind(handle)),
            honest,
            delivered: false,
            answered: false,
        });
        let odd = matches!(message.twist, Twist::OddRoom | Twist::HugeRoom);
        (transaction, (with_room || odd).then_some(room))
    }
}

pub(super) fn node_flags(flags: NodeFlags) -> u32 {
    let mut bits = u32::from(flags.0 & 0x1f);
    if flags.0 & 0x40 != 0 {
        bits |= FLAT_BINDER_FLAG_ACCEPTS_FDS;
    }
    if flags.0 & 0x80 != 0 {
        bits |= FLAT_BINDER_FLAG_TXN_SECURITY_CTX;
    }
    bits
}

/// `TF_*`.
pub(crate) fn transaction_flags(flags: Flags) -> u32 {
    let mut bits = 0;
    for (bit, flag) in
        [TF_ACCEPT_FDS, TF_CLEAR_BUF, TF_UPDATE_TXN, TF_ROOT_OBJECT].iter().enumerate()
    {
        if flags.0 & (1 << bit) != 0 {
            bits |= flag;
        }
    }
    if flags.0 & 0xc0 == 0xc0 {
        bits |= TF_ONE_WAY;
    }
    bits
}
