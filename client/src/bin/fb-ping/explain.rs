//! Errors as a person wants to read them: what happened, and what to do.

use fakebinder_client::{Errno, Error};

/// One line, beginning with the device.
pub fn explain(error: &Error) -> String {
    let device = error.device().display();
    let advice = match (error.operation(), error.errno()) {
        ("open", Errno::ENOENT) => {
            "no such device; start the daemon (fakebinderd) or name another with --device PATH"
        }
        ("open", Errno::EACCES | Errno::EPERM) => {
            "no permission to open it; run this as root, or start the daemon with --mode 0666"
        }
        ("open", Errno::ENXIO | Errno::ENODEV | Errno::ENOTCONN | Errno::ECONNABORTED) => {
            "the device is there, but no daemon serves it; start fakebinderd again"
        }
        ("open", Errno::EISDIR) => "a directory; name the device inside it with --device",
        ("BINDER_VERSION", Errno::ENOTTY | Errno::EINVAL) => {
            "not a binder device; name one with --device PATH"
        }
        ("mmap", Errno::ENODEV) => {
            "cannot be mapped and knows no attach handshake; is it a binder device?"
        }
        ("BINDER_SET_CONTEXT_MGR", Errno::EBUSY) => {
            "another process is this device's context manager; stop it, or use a device of your \
             own (fakebinderd --name NAME)"
        }
        ("BINDER_SET_CONTEXT_MGR", Errno::EPERM) => {
            "this device's context manager must belong to the user who first became it; run this \
             as that user, or use a device of your own (fakebinderd --name NAME)"
        }
        _ if error.is_disconnected() => {
            "the daemon is gone; look at its log, and start fakebinderd again"
        }
        _ => return error.to_string(),
    };
    format!("{device}: {advice} ({}: {:?})", error.operation(), error.errno())
}
