//! A reference: one process's handle to a node of another.

use super::graph::{DeathId, FreezeId, Graph, NodeId, ProcessId, ThreadId};
use crate::Errno;
use crate::client_log::{Kind, user_error};
use crate::quota::{Charge, bytes};

/// `struct binder_ref`. A process has at most one reference to each node.
pub(crate) struct Ref {
    /// Unique; the key in the node's table of references.
    pub id: u64,
    pub node: NodeId,
    pub strong: u64,
    pub weak: u64,
    pub death: Option<DeathId>,
    pub freeze: Option<FreezeId>,
    #[expect(dead_code, reason = "held for its drop")]
    pub charge: Charge,
}

impl Graph {
    /// A process's reference by handle (`binder_get_ref_olocked`).
    pub fn find_ref(&self, process: ProcessId, handle: u32, need_strong: bool) -> Option<&Ref> {
        let reference = self.processes.get(&process)?.refs.get(&handle)?;
        if need_strong && reference.strong == 0 {
            user_error!(Kind::BadReference, "tried to use weak ref as strong ref, handle {handle}");
            return None;
        }
        Some(reference)
    }

    pub fn find_ref_mut(&mut self, process: ProcessId, handle: u32) -> Option<&mut Ref> {
        self.processes.get_mut(&process)?.refs.get_mut(&handle)
    }

    /// The handle of a process for a node, and whether it was made now: the smallest that is free,
    /// 0 being the context manager's (`binder_get_ref_for_node_olocked`). ENOMEM: too many
    /// references.
    fn get_or_new_ref(&mut self, process: ProcessId, node: NodeId) -> Result<(u32, bool), Errno> {
        let id = self.next_id();
        let may_be_0 = self.manager == Some(node);
        let limit = self.limits.refs;
        let Some(record) = self.processes.get_mut(&process) else {
            return Err(Errno::ESRCH);
        };
        if let Some(&handle) = record.handles.get(&node) {
            return Ok((handle, false));
        }
        if record.refs.len() >= limit {
            return Err(Errno::ENOMEM);
        }
        let charge = record.process.user.hold_record(bytes::REFERENCE)?;
        let handle = record.free_handle(if may_be_0 { 0 } else { 1 });
        record.handles.insert(node, handle);
        self.created.references += 1;
        record.refs.insert(
            handle,
            Ref { id, node, strong: 0, weak: 0, death: None, freeze: None, charge },
        );
        if let Some(node) = self.nodes.get_mut(&node) {
            node.refs.insert(id, process);
        }
        Ok((handle, true))
    }

    /// Gives a process a reference to a node and returns the handle (`binder_inc_ref_for_node`).
    pub fn inc_ref_for_node(
        &mut self,
        process: ProcessId,
        node: NodeId,
        strong: bool,
        notify: Option<ThreadId>,
    ) -> Result<u32, Errno> {
        let (handle, is_new) = self.get_or_new_ref(process, node)?;
        let result = self.inc_ref(process, handle, strong, notify);
        if result.is_err() && is_new {
            self.cleanup_ref(process, handle);
        }
        result.map(|()| handle)
    }

    /// `binder_inc_ref_olocked`.
    fn inc_ref(
        &mut self,
        process: ProcessId,
        handle: u32,
        strong: bool,
        notify: Option<ThreadId>,
    ) -> Result<(), Errno> {
        let reference = self.find_ref(process, handle, false).ok_or(Errno::EINVAL)?;
        let node = reference.node;
        let first = if strong { reference.strong == 0 } else { reference.weak == 0 };
        if first {
            self.inc_node(node, strong, true, notify)?;
        }
        if let Some(reference) = self.find_ref_mut(process, handle) {
            *(if strong { &mut reference.strong } else { &mut reference.weak }) += 1;
        }
        Ok(())
    }

    /// Changes the counts of a handle as the client asks (`binder_update_ref_for_handle`).
    /// EINVAL: no such handle, or only a weak one where a strong one is needed.
    pub fn update_ref_for_handle(
        &mut self,
        process: ProcessId,
        handle: u32,
        increment: bool,
        strong: bool,
    ) -> Result<(), Errno> {
        self.find_ref(process, handle, strong).ok_or(Errno::EINVAL)?;
        if increment {
            self.inc_ref(process, handle, strong, None)
        } else {
            self.dec_ref(process, handle, strong);
            Ok(())
        }
    }

    /// `binder_dec_ref_olocked`: with its last count the reference goes.
    fn dec_ref(&mut self, process: ProcessId, handle: u32, strong: bool) {
        let Some(reference) = self.find_ref_mut(process, handle) else {
            return;
        };
        let count = if strong { &mut reference.strong } else { &mut reference.weak };
        if *count == 0 {
            user_error!(Kind::BadReference, "invalid dec of a count that is 0, handle {handle}");
            return;
        }
        *count -= 1;
        let last_strong = strong && *count == 0;
        let (node, unused) = (reference.node, reference.strong == 0 && reference.weak == 0);
        if last_strong {
            self.dec_node(node, true, true);
        }
        if unused {
            self.cleanup_ref(process, handle);
        }
    }

    /// Forgets a reference, with its death and freeze links (`binder_cleanup_ref_olocked`).
    pub fn cleanup_ref(&mut self, process: ProcessId, handle: u32) {
        let Some(record) = self.processes.get_mut(&process) else {
            return;
        };
        let Some(reference) = record.refs.remove(&handle) else {
            return;
        };
        record.handles.remove(&reference.node);
        record.release_handle(handle);
        if reference.strong > 0 {
            self.dec_node(reference.node, true, true);
        }
        if let Some(node) = self.nodes.get_mut(&reference.node) {
            node.refs.remove(&reference.id);
        }
        self.dec_node(reference.node, false, true);
        if let Some(death) = reference.death {
            self.forget_death(death);
        }
        if let Some(freeze) = reference.freeze {
            self.forget_freeze(freeze);
        }
    }
}
