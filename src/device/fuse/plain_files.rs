//! The files of the directory that are no devices: `binder-control`, the features and the logs.

use super::FuseDoor;
use crate::client_log::{Kind, client_log};
use crate::device::session::Responder;
use crate::device::tree::{Node, added_name};
use crate::device::wire::{Ioctl, Request};
use crate::{Errno, uapi};

impl FuseDoor {
    /// Answers a request about a file that is no device: `binder-control`, the features and the
    /// logs. Returns the responder of any other request.
    pub(super) fn plain_file(
        &self,
        node: Option<Node>,
        request: &Request<'_>,
        responder: Responder,
    ) -> Option<Responder> {
        let node = match node {
            Some(it @ (Node::Control | Node::Feature(_) | Node::Log(_) | Node::ProcessLog(_))) => {
                it
            }
            _ => return Some(responder),
        };
        match *request {
            Request::Open { .. } => {
                let opened = self.open_text(node);
                responder.value(&uapi::fuse_open_out {
                    fh: opened,
                    open_flags: uapi::FOPEN_DIRECT_IO,
                    ..Default::default()
                });
            }
            Request::Read { fh, offset, size, .. } => {
                let text = self.files.lock().texts.get(&fh).cloned();
                match text {
                    Some(text) => {
                        let rest = usize::try_from(offset).ok().and_then(|at| text.get(at..));
                        let rest = rest.unwrap_or_default();
                        responder.bytes(&rest[..rest.len().min(size as usize)]);
                    }
                    None => responder.error(Errno::EINVAL),
                }
            }
            Request::Release { fh } => {
                self.files.lock().texts.remove(&fh);
                responder.done();
            }
            Request::Flush { .. } => responder.done(),
            Request::Ioctl(ref ioctl) if node == Node::Control => self.control(ioctl, responder),
            // There is no poll operation, so the file is always ready.
            Request::Poll { events, .. } => responder.value(&uapi::fuse_poll_out {
                revents: (libc::POLLIN | libc::POLLOUT) as u32 & events,
                padding: 0,
            }),
            Request::Write | Request::Ioctl(_) => responder.error(Errno::EINVAL),
            _ => return Some(responder),
        }
        None
    }

    /// A file handle for a file of text, whose readers see the text as it was at the open; 0 for a
    /// file without text.
    fn open_text(&self, node: Node) -> u64 {
        let Some(text) = self.tree.contents(node) else { return 0 };
        let mut files = self.files.lock();
        files.last_text += 1;
        let handle = files.last_text;
        files.texts.insert(handle, text.into());
        handle
    }

    /// `binder_ctl_ioctl`.
    fn control(&self, ioctl: &Ioctl<'_>, responder: Responder) {
        let wanted: Option<uapi::binderfs_device> = match ioctl.cmd {
            uapi::BINDER_CTL_ADD => uapi::parse(ioctl.input),
            _ => None,
        };
        let Some(mut wanted) = wanted else { return responder.error(Errno::EINVAL) };
        let name = added_name(&wanted.name).to_vec();
        if let Err(error) = self.tree.check_new(&name) {
            return responder.error(error);
        }
        let (tree, session) = (self.tree.clone(), self.session.clone());
        let done = move |made: Option<Result<(), Errno>>| {
            match made.unwrap_or_else(|| tree.add_device(&name).map(drop)) {
                Ok(()) => {
                    let name = String::from_utf8_lossy(&name);
                    client_log!(Kind::DeviceAdded, "{}: added {name}", session.name());
                    // What is made is a regular file, without a device number.
                    (wanted.major, wanted.minor) = (0, 0);
                    responder.ioctl(0, uapi::bytes_of(&wanted));
                }
                Err(error) => responder.error(error),
            }
        };
        self.announcer.make(added_name(&wanted.name), Box::new(done));
    }
}
