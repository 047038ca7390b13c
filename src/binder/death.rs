//! Death notifications: a reference's holder asks to be told when the node's owner dies.
//!
//! A death link (`struct binder_ref_death`) is idle, or queued for its holder, or delivered and
//! waiting to be acknowledged (`Queue::DeliveredDeath`). Clearing a link that is queued or
//! delivered does not take the notice back: the holder reads the notice, and then the confirmation
//! of the clearing.

use super::graph::{DeathId, Graph, NodeId, Place, ProcessId, Queue, ThreadId, Work};
use crate::client_log::{Kind, user_error};
use crate::protocol::record::HandleCookie;
use crate::protocol::returns::Return;
use crate::quota::{Charge, bytes};

/// What a link will tell its holder (`BINDER_WORK_DEAD_BINDER` and its kin).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeathWork {
    DeadBinder,
    DeadBinderAndClear,
    Clear,
}

/// `struct binder_ref_death`.
pub(crate) struct Death {
    pub holder: ProcessId,
    pub cookie: u64,
    pub work: DeathWork,
    /// The notice of the owner's death has been queued; it is queued only once.
    pub told: bool,
    pub place: Option<Place>,
    #[expect(dead_code, reason = "held for its drop")]
    pub charge: Charge,
}

impl Graph {
    /// BC_REQUEST_DEATH_NOTIFICATION. A request for an unknown handle, or for one that has a link
    /// already, is ignored as in the driver; with too many links the thread reads BR_ERROR.
    pub fn request_death(&mut self, process: ProcessId, thread: ThreadId, request: HandleCookie) {
        let HandleCookie { handle, cookie } = request;
        let Some(reference) = self.find_ref(process, handle, false) else {
            user_error!(
                Kind::BadDeathNotification,
                "BC_REQUEST_DEATH_NOTIFICATION invalid ref {}",
                handle
            );
            return;
        };
        if reference.death.is_some() {
            user_error!(
                Kind::BadDeathNotification,
                "BC_REQUEST_DEATH_NOTIFICATION death notification already set"
            );
            return;
        }
        let node = reference.node;
        let holder = self.processes.get(&process).filter(|p| p.deaths < self.limits.links);
        let charge = holder.and_then(|p| p.process.user.hold_record(bytes::LINK).ok());
        let Some(charge) = charge else {
            self.set_return_error(thread, Return::Error);
            return;
        };
        let id = DeathId(self.next_id());
        // The holders of a dead node are told over several sections. A holder that asks meanwhile
        // is told here.
        let is_dead = self.nodes.get(&node).is_none_or(|node| node.process.is_none());
        if let Some(record) = self.processes.get_mut(&process) {
            record.deaths += 1;
        }
        self.created.deaths += 1;
        self.deaths.insert(
            id,
            Death {
                holder: process,
                cookie,
                work: DeathWork::DeadBinder,
                told: is_dead,
                place: None,
                charge,
            },
        );
        if let Some(reference) = self.find_ref_mut(process, handle) {
            reference.death = Some(id);
        }
        if is_dead {
            self.queue_death(id, Queue::Process(process));
        }
    }

    /// BC_CLEAR_DEATH_NOTIFICATION.
    pub fn clear_death(&mut self, process: ProcessId, thread: ThreadId, request: HandleCookie) {
        let HandleCookie { handle, cookie } = request;
        let Some(reference) = self.find_ref_mut(process, handle) else {
            user_error!(
                Kind::BadDeathNotification,
                "BC_CLEAR_DEATH_NOTIFICATION invalid ref {}",
                handle
            );
            return;
        };
        let Some(id) = reference.death else {
            user_error!(
                Kind::BadDeathNotification,
                "BC_CLEAR_DEATH_NOTIFICATION death notification not active"
            );
            return;
        };
        let Some(death) = self.deaths.get_mut(&id) else {
            return;
        };
        if death.cookie != cookie {
            user_error!(
                Kind::BadDeathNotification,
                "BC_CLEAR_DEATH_NOTIFICATION death notification cookie mismatch {:016x} != {:016x}",
                death.cookie,
                cookie
            );
            return;
        }
        if death.place.is_some() {
            death.work = DeathWork::DeadBinderAndClear;
        } else {
            self.confirm_clear(id, process, thread);
        }
        if let Some(reference) = self.find_ref_mut(process, handle) {
            reference.death = None;
        }
    }

    /// BC_DEAD_BINDER_DONE.
    pub fn dead_binder_done(&mut self, process: ProcessId, thread: ThreadId, cookie: u64) {
        let found = self.delivered(Queue::DeliveredDeath(process), cookie);
        let Some(Work::Death(id)) = found else {
            user_error!(Kind::BadDeathNotification, "BC_DEAD_BINDER_DONE {cookie:016x} not found");
            return;
        };
        let Some(death) = self.deaths.get_mut(&id) else {
            return;
        };
        let cleared = death.work == DeathWork::DeadBinderAndClear;
        if let Some(place) = death.place.take() {
            self.dequeue_notice(place, cookie);
        }
        if cleared {
            self.confirm_clear(id, process, thread);
        }
    }

    /// Queues BR_CLEAR_DEATH_NOTIFICATION_DONE: for the thread that asked when it is a looper, else
    /// for any of the process.
    fn confirm_clear(&mut self, id: DeathId, process: ProcessId, thread: ThreadId) {
        if let Some(death) = self.deaths.get_mut(&id) {
            death.work = DeathWork::Clear;
        }
        let is_looper = self.threads.get(&thread).is_some_and(|t| t.looper.is_looper());
        self.queue_death(
            id,
            if is_looper { Queue::Thread(thread) } else { Queue::Process(process) },
        );
    }

    fn queue_death(&mut self, id: DeathId, queue: Queue) {
        let place = match queue {
            Queue::Thread(thread) => self.enqueue_thread_work(thread, Work::Death(id)),
            Queue::Process(process) => self.enqueue_process_work(process, Work::Death(id)),
            Queue::DeliveredDeath(_) | Queue::DeliveredFreeze(_) => {
                let cookie = self.deaths.get(&id).map_or(0, |death| death.cookie);
                self.enqueue_delivered(queue, Work::Death(id), cookie)
            }
        };
        if let Some(death) = self.deaths.get_mut(&id) {
            death.place = place;
        }
    }

    /// A link's holder reads its notice: the return to give. BR_CLEAR_DEATH_NOTIFICATION_DONE is
    /// the link's last.
    pub fn take_death_notice(&mut self, id: DeathId) -> Option<Return> {
        let death = self.deaths.get(&id)?;
        let (cookie, holder) = (death.cookie, death.holder);
        Some(match death.work {
            DeathWork::Clear => {
                self.forget_death(id);
                Return::ClearDeathNotificationDone(cookie)
            }
            DeathWork::DeadBinder | DeathWork::DeadBinderAndClear => {
                self.queue_death(id, Queue::DeliveredDeath(holder));
                Return::DeadBinder(cookie)
            }
        })
    }

    /// The owner of `node` has died: tells `holder`, if it has a link to the node.
    pub fn notify_death(&mut self, holder: ProcessId, node: NodeId) {
        let Some(record) = self.processes.get(&holder) else {
            return;
        };
        let link = record.handles.get(&node).and_then(|handle| record.refs.get(handle)?.death);
        if let Some(id) = link
            && let Some(death) = self.deaths.get_mut(&id)
            && !death.told
            && death.place.is_none()
        {
            death.told = true;
            death.work = DeathWork::DeadBinder;
            self.queue_death(id, Queue::Process(holder));
        }
    }

    /// Forgets a link, wherever it stands.
    pub fn forget_death(&mut self, id: DeathId) {
        if let Some(death) = self.deaths.remove(&id) {
            if let Some(place) = death.place {
                self.dequeue_notice(place, death.cookie);
            }
            if let Some(holder) = self.processes.get_mut(&death.holder) {
                holder.deaths = holder.deaths.saturating_sub(1);
            }
        }
    }
}

impl Graph {
    /// Drops a death notice that nobody can read any more, the owner of its list being gone. A link
    /// that was not cleared belongs to its reference and goes with the reference.
    pub fn release_death_work(&mut self, id: DeathId) {
        match self.deaths.get(&id).map(|death| death.work) {
            Some(DeathWork::DeadBinderAndClear | DeathWork::Clear) => self.forget_death(id),
            Some(DeathWork::DeadBinder) | None => {}
        }
    }
}
