//! What clients write.

use super::Stage;
use crate::grammar::{Command, Message, Object, Pick, Size, Strength};
use crate::ledger::Ledger;
use fakebinder::protocol::command::Command as Bc;
use fakebinder::protocol::object::{FlatObject, Object as BcObject};
use fakebinder::protocol::record::{HandleCookie, TransactionData};

impl Stage<'_> {
    pub(super) fn courtesies(&self, role: usize) -> Vec<Command> {
        let role = &self.roles[role];
        let strong = role.notices.iter().map(|(_, strong)| *strong);
        let mut commands = crate::interpret::confirmations(
            strong,
            role.deaths.len(),
            role.freezes.len(),
            role.buffers.len(),
        );
        if role.serving > 0 {
            commands.push(Command::Reply {
                message: Message {
                    flags: crate::grammar::Flags(0),
                    code: 0,
                    size: Size::Bytes { count: 24 },
                    objects: crate::grammar::List(Vec::new()),
                    twist: crate::grammar::Twist::Honest,
                },
            });
        }
        commands
    }

    pub(super) fn command(
        &mut self,
        role: usize,
        command: &Command,
        scratch: &mut usize,
    ) -> Option<Bc> {
        let r = &self.roles[role];
        let handle = |pick: &Pick| pick.of(&r.handles).unwrap_or(u32::from(pick.0));
        Some(match command {
            Command::Transaction { to, message } => {
                let mut to = handle(to);
                if to == 0 && role == 0 {
                    to = *r.handles.get(1)?;
                }
                Bc::Transaction(self.message(role, message, to, scratch))
            }
            Command::Reply { message } => {
                self.roles[role].serving = self.roles[role].serving.saturating_sub(1);
                Bc::Reply(self.message(role, message, 0, scratch))
            }
            Command::FreeBuffer { buffer } => {
                let address = buffer.of(&r.buffers)?;
                self.roles[role].buffers.retain(|known| *known != address);
                Bc::FreeBuffer(address)
            }
            Command::Increfs { handle: h } => Bc::Increfs(handle(h)),
            Command::Acquire { handle: h } => Bc::Acquire(handle(h)),
            Command::Release { handle: h } => Bc::Release(handle(h)),
            Command::Decrefs { handle: h } => Bc::Decrefs(handle(h)),
            Command::IncrefsDone { notice } => {
                let (node, strong) = notice.of(&r.notices)?;
                self.roles[role].notices.retain(|known| *known != (node, strong));
                Bc::IncrefsDone(node)
            }
            Command::AcquireDone { notice } => {
                let (node, strong) = notice.of(&r.notices)?;
                self.roles[role].notices.retain(|known| *known != (node, strong));
                Bc::AcquireDone(node)
            }
            Command::EnterLooper => Bc::EnterLooper,
            Command::RegisterLooper => Bc::RegisterLooper,
            Command::ExitLooper => Bc::ExitLooper,
            Command::RequestDeath { handle: h } | Command::RequestFreeze { handle: h } => {
                let request = HandleCookie { handle: handle(h), cookie: r.next_cookie };
                self.roles[role].next_cookie += 1;
                self.roles[role].links.push(request);
                match command {
                    Command::RequestDeath { .. } => Bc::RequestDeathNotification(request),
                    _ => Bc::RequestFreezeNotification(request),
                }
            }
            Command::ClearDeath { link } => Bc::ClearDeathNotification(link.of(&r.links)?),
            Command::ClearFreeze { link } => Bc::ClearFreezeNotification(link.of(&r.links)?),
            Command::DeadBinderDone { notice } => {
                let cookie = notice.of(&r.deaths)?;
                self.roles[role].deaths.retain(|known| *known != cookie);
                Bc::DeadBinderDone(cookie)
            }
            Command::FreezeDone { notice } => {
                let cookie = notice.of(&r.freezes)?;
                self.roles[role].freezes.retain(|known| *known != cookie);
                Bc::FreezeNotificationDone(cookie)
            }
            Command::AttemptAcquire => Bc::AttemptAcquire { priority: 0, handle: 0 },
            Command::AcquireResult => Bc::AcquireResult(0),
            Command::Unknown { .. } | Command::Flood { .. } => return None,
        })
    }

    fn message(
        &mut self,
        role: usize,
        message: &Message,
        to: u32,
        scratch: &mut usize,
    ) -> TransactionData {
        let number = self.sent.len();
        let r = &self.roles[role];
        let count = match message.size {
            Size::Bytes { count } => usize::from(count),
            Size::Chunks { count } => 16 * usize::from(count),
            Size::BigChunks { count } => 128 * usize::from(count),
        };
        let mut data = Vec::new();
        Ledger::fill(number, count.max(4), &mut data);
        self.sent.push(data.clone());
        self.delivered.push(false);
        let mut offsets = Vec::new();
        for object in message.objects.iter() {
            data.resize(data.len().next_multiple_of(8), 0);
            let offset = data.len() as u64;
            match object {
                Object::Node { index, strong, .. } => {
                    let binder = (role as u64 + 1) << 16 | u64::from(index % 4) << 3;
                    let flat = FlatObject { flags: 0, binder, cookie: !binder };
                    let strong = *strong == Strength::Strong;
                    BcObject::Binder { strong, flat }.encode(&mut data);
                }
                Object::Handle { handle, strong } => {
                    let handle = handle.of(&r.handles).unwrap_or(99);
                    let flat = FlatObject { flags: 0, binder: handle.into(), cookie: 0 };
                    let strong = *strong == Strength::Strong;
                    BcObject::Handle { strong, flat }.encode(&mut data);
                }
                Object::File { .. }
                | Object::Buffer { .. }
                | Object::FileArray { .. }
                | Object::UnknownType { .. } => continue,
            }
            offsets.extend(offset.to_ne_bytes());
        }
        let client = &self.machine.clients[role];
        let mut put = |bytes: &[u8]| {
            let at = *scratch;
            client.write(at, bytes);
            *scratch = (at + bytes.len()).next_multiple_of(8);
            client.address(at)
        };
        TransactionData {
            target: to.into(),
            code: message.code.into(),
            flags: crate::interpret::compose::transaction_flags(message.flags),
            data_size: data.len() as u64,
            offsets_size: offsets.len() as u64,
            buffer: put(&data),
            offsets: put(&offsets),
            ..TransactionData::default()
        }
    }
}
