//! Freezing: a frozen process gets no new calls, and whoever holds references to its nodes may
//! ask to be told.
//!
//! A link is idle, or queued for its holder, or delivered and waiting to be acknowledged (`sent`,
//! in `Queue::DeliveredFreeze`). What changes while it waits is sent again after (`resend`).

use super::graph::{FreezeId, Graph, Place, ProcessId, Queue, Work};
use super::outbox::Effect;
use super::{Finish, Process};
use crate::Errno;
use crate::client_log::{Kind, user_error};
use crate::protocol::record::HandleCookie;
use crate::protocol::returns::Return;
use crate::quota::{Held, bytes};
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
    pub charge: Held,
}

/// A BINDER_FREEZE that waits for the outstanding transactions of a process.
pub(crate) struct FreezeWait {
    /// Tells this wait from others of the same process.
    pub ticket: u64,
    /// Who called, to find the wait when a signal arrives.
    pub caller: (ProcessId, i32),
    pub timeout_ms: u32,
    /// The one that is waited for is first.
    pub targets: Vec<Arc<Process>>,
    pub finish: Finish,
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
        let Some(record) = self.processes.get(&process) else {
            return;
        };
        let nodes: Vec<_> = record.nodes.values().copied().collect();
        for node_id in nodes {
            let Some(node) = self.nodes.get(&node_id) else {
                continue;
            };
            let holders: Vec<ProcessId> = node.refs.values().rev().copied().collect();
            // The driver holds the node meanwhile. To let go of it looks at all its counts: a node
            // whose references are gone is queued for its owner, though there is nothing to tell.
            self.inc_node_tmpref(node_id);
            for holder in holders {
                let Some(record) = self.processes.get(&holder) else {
                    continue;
                };
                let link = record.handles.get(&node_id).and_then(|h| record.refs.get(h)?.freeze);
                let Some(id) = link else { continue };
                let Some(freeze) = self.freezes.get_mut(&id) else {
                    continue;
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
            self.dec_node_tmpref(node_id);
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

    /// Freezes a process; whether it has outstanding transactions that a caller may wait for.
    pub fn freeze(&mut self, process: ProcessId) -> bool {
        let Some(record) = self.processes.get_mut(&process) else {
            return false;
        };
        record.sync_recv = false;
        record.async_recv = false;
        record.is_frozen = true;
        if record.outstanding_txns == 0 {
            // An earlier freeze may still wait: another caller thawed the process in between, and
            // who is not frozen wakes nobody.
            self.effects.extend(record.freeze_waits.drain(..).map(Effect::Frozen));
            return false;
        }
        true
    }

    /// The end of a freeze, after the wait if there was one: EAGAIN, and thawed again, when
    /// transactions are still pending.
    pub fn freeze_settled(&mut self, process: ProcessId) -> Result<(), Errno> {
        if self.txns_pending(process) {
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

    /// Whether a process has transactions that are not answered (`binder_txns_pending_ilocked`).
    pub fn txns_pending(&self, process: ProcessId) -> bool {
        self.processes.get(&process).is_some_and(|record| {
            record.outstanding_txns > 0
                || record.threads.values().any(|thread| {
                    self.threads.get(thread).is_some_and(|t| t.transaction_stack.is_some())
                })
        })
    }

    /// One transaction of a process less is outstanding; wakes who waits for the last.
    pub fn dec_outstanding(&mut self, process: ProcessId) {
        let Some(record) = self.processes.get_mut(&process) else {
            return;
        };
        record.outstanding_txns = record.outstanding_txns.saturating_sub(1);
        if record.outstanding_txns == 0 && record.is_frozen {
            self.effects.extend(record.freeze_waits.drain(..).map(Effect::Frozen));
        }
    }
}

impl Graph {
    /// A freeze notice that will not be read any more, its list's owner being gone.
    pub fn release_freeze_work(&mut self, id: FreezeId) {
        if self.freezes.get(&id).is_some_and(|freeze| freeze.work == FreezeWork::Clear) {
            self.forget_freeze(id);
        }
    }
}
