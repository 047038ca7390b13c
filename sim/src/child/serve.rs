//! The child's side.

use super::request::Request;
use super::sys;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// How a child carries out a [`Request::Call`] or [`Request::Special`]: returns the result or a
/// negative errno. It runs in the child.
pub type CarryOut = fn(Request) -> i64;

/// Makes system calls, and nothing else: special requests give EBADMSG.
pub fn make_system_calls(request: Request) -> i64 {
    match request {
        Request::Call(number, args) => sys::system_call(number, args),
        _ => -i64::from(libc::EBADMSG),
    }
}

/// The life of a new child. Of the descriptors that it keeps, the first are the sockets of its
/// threads, and the next are the sockets for [`Request::Fork`].
pub(super) fn live(keep: &[RawFd], threads: usize, spares: usize, carry_out: CarryOut) -> i32 {
    let kept = sys::pack(keep);
    sys::begin_at_nice_0();
    // The child must not outlive the process that drives it, whatever the child is blocked in.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let spares = &kept[threads..threads + spares];
    let mut sockets = kept[..threads].iter().map(|&fd| sys::adopt(fd));
    let Some(first) = sockets.next() else { return 2 };
    for socket in sockets {
        let spares = spares.to_vec();
        std::thread::spawn(move || serve(&socket, &spares, carry_out));
    }
    serve(&first, spares, carry_out);
    0
}

/// Answers requests until there are no more. The first message sent is the thread's id.
fn serve(socket: &OwnedFd, spares: &[RawFd], carry_out: CarryOut) {
    let mut answer = i64::from(nix::unistd::gettid().as_raw());
    loop {
        while let Err(errno) =
            send(socket.as_raw_fd(), &answer.to_ne_bytes(), MsgFlags::MSG_NOSIGNAL)
        {
            if errno != Errno::EINTR {
                return;
            }
        }
        let mut packet = [0; _];
        let length = loop {
            // recvfrom(2) tells an idle thread from one that sleeps in a system call of its own.
            match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        if length != Ok(packet.len()) {
            return;
        }
        answer = match Request::decode(&packet) {
            None => -i64::from(libc::EBADMSG),
            Some(Request::Exit) => return,
            Some(Request::Catch(signal, how)) => {
                sys::catch(signal, how).map_or_else(|e| -i64::from(e as i32), |()| 0)
            }
            Some(Request::Fork(spare)) => {
                let fork = sys::fork(|| {
                    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                    serve(&sys::adopt(spares[spare]), &[], carry_out);
                    0
                });
                fork.map_or_else(|e| -i64::from(e as i32), |pid| i64::from(pid.as_raw()))
            }
            Some(request @ (Request::Call(..) | Request::Special(..))) => carry_out(request),
        };
    }
}
