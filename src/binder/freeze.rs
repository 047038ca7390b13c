//! Freezing: a frozen process gets no new calls, and the holders of references to its nodes may ask
//! to be told.
//!
//! A freeze link (`struct binder_ref_freeze`) is idle, or queued for its holder, or delivered and
//! waiting to be acknowledged (`sent`, in `Queue::DeliveredFreeze`). A change while it waits is
//! told after the acknowledgement (`resend`).

use super::graph::{FreezeId, Graph, NodeId, Place, ProcessId, Queue, Work};
use super::outbox::Effect;
use super::pieces::{AT_ONCE, Rest};
use super::{Finish, Process};
use crate::Errno;
use crate::client_log::{Kind, user_error};
use crate::protocol::record::HandleCookie;
use crate::protocol::returns::Return;
use crate::quota::{Charge, bytes};
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

/// What a link will tell its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FreezeWork {
    FrozenBinder,
    Clear,
}

/// `struct binder_ref_freeze`.
pub(crate) struct Freeze {
    pub holder: ProcessId,
    pub cookie: u64,
    pub is_frozen: bool,
    pub sent: bool,
    pub resend: bool,
    pub work: FreezeWork,
    pub place: Option<Place>,
    #[expect(dead_code, reason = "held for its drop")]
    pub charge: Charge,
}

/// How far the telling that a process froze or thawed has come.
pub(crate) struct Telling {
    process: ProcessId,
    is_frozen: bool,
    /// The number of this telling: a later one makes it stop, since that tells everybody anyhow.
    number: u64,
    /// The nodes up to this pointer are done, but for `node`.
    after: Option<u64>,
    /// The last of those nodes; its holders below this reference are still to be told.
    node: Option<(NodeId, u64)>,
}

/// A BINDER_FREEZE that waits for the outstanding transactions of a process.
pub(crate) struct FreezeWait {
    /// Tells this wait from others of the same process.
    pub ticket: u64,
    /// The thread that called, so that a signal for it finds the wait.
    pub caller: (ProcessId, i32),
    pub timeout_ms: u32,
    /// The processes still to be frozen; the first is the one that is waited for.
    pub targets: VecDeque<Arc<Process>>,
    pub finish: Box<Finish>,
}

impl Graph {
    /// BC_REQUEST_FREEZE_NOTIFICATION. EINVAL: no such handle, or a link is there already; ENOMEM:
    /// too many links.
    pub fn request_freeze(
        &mut self,
        process: ProcessId,
        request: HandleCookie,
    ) -> Result<(), Errno> {
        let HandleCookie { handle, cookie } = request;
        let refuse = |why: &str| {
            user_error!(
                Kind::BadFreezeNotification,
                "BC_REQUEST_FREEZE_NOTIFICATION {why}, handle {}",
                handle
            );
            Err(Errno::EINVAL)
        };
        let Some(reference) = self.find_ref(process, handle, false) else {
            return refuse("invalid ref");
        };
        if reference.freeze.is_some() {
            return refuse("already set");
        }
        let node = reference.node;
        let holder = self.processes.get(&process).filter(|p| p.freezes < self.limits.links);
        let charge = holder.ok_or(Errno::ENOMEM)?.process.user.hold_record(bytes::LINK)?;
        let owner = self.nodes.get(&node).and_then(|node| node.process);
        let is_frozen =
            owner.and_then(|owner| self.processes.get(&owner)).map(|owner| owner.is_frozen);
        let id = FreezeId(self.next_id());
        if let Some(record) = self.processes.get_mut(&process) {
            record.freezes += 1;
        }
        self.created.freezes += 1;
        self.freezes.insert(
            id,
            Freeze {
                holder: process,
                cookie,
                is_frozen: is_frozen.unwrap_or(false),
                sent: false,
                resend: false,
                work: FreezeWork::FrozenBinder,
                place: None,
                charge,
            },
        );
        if let Some(reference) = self.find_ref_mut(process, handle) {
            reference.freeze = Some(id);
        }
        if is_frozen.is_some() {
            self.queue_freeze(id);
        }
        Ok(())
    }

    /// BC_CLEAR_FREEZE_NOTIFICATION. EINVAL: no such handle, no link, or another cookie.
    pub fn clear_freeze(&mut self, process: ProcessId, request: HandleCookie) -> Result<(), Errno> {
        let HandleCookie { handle, cookie } = request;
        let refuse = |why: &str| {
            user_error!(
                Kind::BadFreezeNotification,
                "BC_CLEAR_FREEZE_NOTIFICATION {why}, handle {}",
                handle
            );
            Err(Errno::EINVAL)
        };
        let Some(reference) = self.find_ref(process, handle, false) else {
            return refuse("invalid ref");
        };
        let Some(id) = reference.freeze else {
            return refuse("not active");
        };
        let Some(freeze) = self.freezes.get_mut(&id) else {
            return refuse("not active");
        };
        if freeze.cookie != cookie {
            return refuse("cookie mismatch");
        }
        freeze.work = FreezeWork::Clear;
        if freeze.place.is_none() {
            self.queue_freeze(id);
        } else if freeze.sent {
            freeze.resend = true;
        }
        if let Some(reference) = self.find_ref_mut(process, handle) {
            reference.freeze = None;
        }
        Ok(())
    }

    /// BC_FREEZE_NOTIFICATION_DONE. EINVAL: nothing with that cookie was delivered.
    pub fn freeze_done(&mut self, process: ProcessId, cookie: u64) -> Result<(), Errno> {
        let found = match self.delivered(Queue::DeliveredFreeze(process), cookie) {
            Some(Work::Freeze(id)) => Some(id),
            _ => None,
        };
        let Some((id, freeze)) = found.and_then(|id| Some((id, self.freezes.get_mut(&id)?))) else {
            user_error!(
                Kind::BadFreezeNotification,
                "BC_FREEZE_NOTIFICATION_DONE {cookie:016x} not found"
            );
            return Err(Errno::EINVAL);
        };
        freeze.sent = false;
        let resend = std::mem::take(&mut freeze.resend);
        if let Some(place) = freeze.place.take() {
            self.dequeue_notice(place, cookie);
        }
        if resend {
            self.queue_freeze(id);
        }
        Ok(())
    }

    fn queue_freeze(&mut self, id: FreezeId) {
        let Some(holder) = self.freezes.get(&id).map(|freeze| freeze.holder) else {
            return;
        };
        let place = self.enqueue_process_work(holder, Work::Freeze(id));
        if let Some(freeze) = self.freezes.get_mut(&id) {
            freeze.place = place;
        }
    }

    /// A link's holder reads its notice.
    pub fn take_freeze_notice(&mut self, id: FreezeId) -> Option<Return> {
        let freeze = self.freezes.get_mut(&id)?;
        let (cookie, is_frozen, holder) = (freeze.cookie, freeze.is_frozen, freeze.holder);
        Some(match freeze.work {
            FreezeWork::FrozenBinder => {
                freeze.sent = true;
                let queue = Queue::DeliveredFreeze(holder);
                let place = self.enqueue_delivered(queue, Work::Freeze(id), cookie);
                if let Some(freeze) = self.freezes.get_mut(&id) {
                    freeze.place = place;
                }
                Return::FrozenBinder { cookie, is_frozen }
            }
            FreezeWork::Clear => {
                self.forget_freeze(id);
                Return::ClearFreezeNotificationDone(cookie)
            }
        })
    }

    /// Forgets a link, wherever it stands.
    pub fn forget_freeze(&mut self, id: FreezeId) {
        if let Some(freeze) = self.freezes.remove(&id) {
            if let Some(place) = freeze.place {
                self.dequeue_notice(place, freeze.cookie);
            }
            if let Some(holder) = self.processes.get_mut(&freeze.holder) {
                holder.freezes = holder.freezes.saturating_sub(1);
            }
        }
    }

    /// Tells the holders of references to a process's nodes that it froze or thawed
    /// (`binder_add_freeze_work`).
    fn add_freeze_work(&mut self, process: ProcessId, is_frozen: bool) {
        if let Some(record) = self.processes.get_mut(&process) {
            record.freeze_telling += 1;
            let number = record.freeze_telling;
            self.tell_frozen(Telling { process, is_frozen, number, after: None, node: None });
        }
    }

    pub fn tell_frozen(&mut self, mut telling: Telling) {
        loop {
            let record = self.processes.get(&telling.process);
            let record = record.filter(|record| record.freeze_telling == telling.number);
            if let Some((node, before)) = telling.node {
                let holders = self.nodes.get(&node).filter(|_| record.is_some());
                let Some((reference, holder)) = holders.and_then(|node| node.holder(before)) else {
                    telling.node = None;
                    self.dec_node_tmpref(node);
                    continue;
                };
                if !self.spend() {
                    return self.rest.push(Rest::Frozen(telling));
                }
                telling.node = Some((node, reference));
                self.tell_holder(node, holder, telling.is_frozen);
                continue;
            }
            let least = telling.after.map_or(Bound::Unbounded, Bound::Excluded);
            let next = record.and_then(|it| it.nodes.range((least, Bound::Unbounded)).next());
            let Some((&ptr, &node)) = next else { return };
            if !self.spend() {
                return self.rest.push(Rest::Frozen(telling));
            }
            // The driver holds the node meanwhile. Letting go of a node looks at all its counts, so
            // a node whose references are gone is queued for its owner, even if there is nothing to
            // tell.
            self.inc_node_tmpref(node);
            telling.after = Some(ptr);
            telling.node = Some((node, u64::MAX));
        }
    }

    fn tell_holder(&mut self, node: NodeId, holder: ProcessId, is_frozen: bool) {
        let Some(record) = self.processes.get(&holder) else {
            return;
        };
        let link = record.handles.get(&node).and_then(|handle| record.refs.get(handle)?.freeze);
        let Some(id) = link else { return };
        let Some(freeze) = self.freezes.get_mut(&id) else {
            return;
        };
        freeze.work = FreezeWork::FrozenBinder;
        if freeze.place.is_none() {
            freeze.is_frozen = is_frozen;
            self.queue_freeze(id);
        } else {
            if freeze.sent && freeze.is_frozen != is_frozen {
                freeze.resend = true;
            }
            freeze.is_frozen = is_frozen;
        }
    }

    /// Thaws a process (BINDER_FREEZE with enable 0).
    pub fn unfreeze(&mut self, process: ProcessId) {
        if let Some(record) = self.processes.get_mut(&process) {
            record.sync_recv = false;
            record.async_recv = false;
            record.is_frozen = false;
            self.add_freeze_work(process, false);
        }
    }

    /// Freezes a process; returns whether it has outstanding transactions that a caller may wait
    /// for.
    pub fn freeze(&mut self, process: ProcessId) -> bool {
        let Some(record) = self.processes.get_mut(&process) else {
            return false;
        };
        record.sync_recv = false;
        record.async_recv = false;
        record.is_frozen = true;
        if record.outstanding_txns == 0 {
            // An earlier freeze may still wait: if another caller thawed the process in between,
            // the last transaction to be done woke nobody.
            self.effects.push(Effect::Frozen(std::mem::take(&mut record.freeze_waits)));
            return false;
        }
        true
    }

    /// The end of a freeze, after the wait if there was one: EAGAIN, and thawed again, when
    /// transactions are still pending.
    pub fn freeze_settled(&mut self, process: ProcessId, pending: bool) -> Result<(), Errno> {
        if pending {
            self.freeze_abandoned(process);
            return Err(Errno::EAGAIN);
        }
        self.add_freeze_work(process, true);
        Ok(())
    }

    /// A freeze that failed or was interrupted leaves the process thawed.
    pub fn freeze_abandoned(&mut self, process: ProcessId) {
        if let Some(record) = self.processes.get_mut(&process) {
            record.is_frozen = false;
        }
    }

    /// One transaction fewer of a process is outstanding; wakes the callers that wait for the last.
    pub fn dec_outstanding(&mut self, process: ProcessId) {
        let Some(record) = self.processes.get_mut(&process) else {
            return;
        };
        record.outstanding_txns = record.outstanding_txns.saturating_sub(1);
        if record.outstanding_txns == 0 && record.is_frozen {
            self.effects.push(Effect::Frozen(std::mem::take(&mut record.freeze_waits)));
        }
    }
}

impl Process {
    /// Whether the process has unanswered transactions (`binder_txns_pending_ilocked`).
    pub fn txns_pending(&self) -> bool {
        let mut pending = false;
        self.context.in_pieces(|graph, after: Option<i32>| {
            let record = graph.processes.get(&self.id)?;
            pending |= record.outstanding_txns > 0;
            let least = after.map_or(Bound::Unbounded, Bound::Excluded);
            let mut last = None;
            let some = record.threads.range((least, Bound::Unbounded)).take(AT_ONCE);
            for (number, (tid, thread)) in some.enumerate() {
                let thread = graph.threads.get(thread);
                pending |= thread.is_some_and(|thread| thread.transaction_stack.is_some());
                last = Some(*tid).filter(|_| number + 1 == AT_ONCE);
            }
            last.filter(|_| !pending)
        });
        pending
    }
}

impl Graph {
    /// Drops a freeze notice that nobody can read any more, the owner of its list being gone.
    pub fn release_freeze_work(&mut self, id: FreezeId) {
        if self.freezes.get(&id).is_some_and(|freeze| freeze.work == FreezeWork::Clear) {
            self.forget_freeze(id);
        }
    }
}
