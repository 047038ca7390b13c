//! Descriptors taken from clients, on their way to others.

use super::client::Clients;
use super::supervised::Ticket;
use crate::binder::copies::Copies;
use crate::quota::Charge;
use crate::{Errno, binder};
use std::any::Any;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

/// A descriptor taken from a client.
pub struct TakenFile {
    /// The descriptor; none once this is being dropped.
    file: Option<OwnedFd>,
    clients: Arc<Clients>,
    _held: Charge,
    /// The copies of the client that the descriptor was taken from.
    copies: Arc<Copies>,
    /// Of the first file of a transaction: a supervisor has the files.
    ticket: OnceLock<Arc<Ticket>>,
}

impl TakenFile {
    /// A descriptor that is charged as `held`, and counts among those of all `clients`.
    pub(super) fn new(
        file: OwnedFd,
        clients: Arc<Clients>,
        copies: Arc<Copies>,
        held: Charge,
    ) -> TakenFile {
        TakenFile { file: Some(file), clients, copies, ticket: OnceLock::new(), _held: held }
    }

    /// The supervisor's ticket for the files that begin with this one.
    pub(super) fn ticket(&self) -> Option<&Arc<Ticket>> {
        self.ticket.get()
    }

    /// The supervisor has this file, and those that come with it.
    pub(super) fn set_ticket(&self, ticket: Arc<Ticket>) {
        let _ = self.ticket.set(ticket);
    }
}

impl Drop for TakenFile {
    fn drop(&mut self) {
        let (file, clients) = (self.file.take(), self.clients.clone());
        // To close the file may take as long as the file's server likes.
        self.copies.hand_over(move || {
            drop(file);
            clients.taken.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

impl binder::File for TakenFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The daemon's numbers of the files. EBADF: one of them was not taken from a client.
pub(super) fn taken_descriptors(files: &[Arc<dyn binder::File>]) -> Result<Vec<RawFd>, Errno> {
    let number = |file: &Arc<dyn binder::File>| {
        let taken = file.as_any().downcast_ref::<TakenFile>()?;
        Some(taken.file.as_ref()?.as_raw_fd())
    };
    files.iter().map(number).collect::<Option<_>>().ok_or(Errno::EBADF)
}
