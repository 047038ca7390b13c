use super::super::wire::tests::message;
use super::*;
use crate::uapi::bytes_of;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::sync::mpsc;

/// The kernel's end of a session.
struct Kernel(OwnedFd);

impl Kernel {
    fn send(&self, bytes: &[u8]) {
        nix::unistd::write(&self.0, bytes).unwrap();
    }

    /// Unique, error, and what follows.
    fn reply(&self) -> (u64, i32, Vec<u8>) {
        let mut buffer = [0; 4096];
        let length = nix::unistd::read(&self.0, &mut buffer).unwrap();
        let header: uapi::fuse_out_header = uapi::parse(&buffer).unwrap();
        assert_eq!(header.len as usize, length);
        (header.unique, header.error, buffer[16..length].to_vec())
    }
}

fn pair() -> (Kernel, Arc<Session>) {
    let (kernel, ours) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    (Kernel(kernel), Session::new(ours, "test"))
}

/// Parks ioctls, answers STATFS, refuses the rest; tells of interrupts.
struct Parking {
    parked: mpsc::Sender<Responder>,
    interrupts: mpsc::Sender<(u64, i32)>,
}

impl Door for Parking {
    fn request(&self, _: Header, request: Request<'_>, responder: Responder) {
        match request {
            Request::Ioctl(_) => self.parked.send(responder).unwrap(),
            Request::StatFs => responder.done(),
            Request::Destroy => drop(responder),
            _ => responder.error(Errno::ENOSYS),
        }
    }
    fn interrupt(&self, fh: u64, tid: i32) {
        self.interrupts.send((fh, tid)).unwrap();
    }
}

struct Scene {
    kernel: Kernel,
    session: Arc<Session>,
    door: Parking,
    parked: mpsc::Receiver<Responder>,
    interrupts: mpsc::Receiver<(u64, i32)>,
}

impl Scene {
    fn new() -> Scene {
        let (kernel, session) = pair();
        let (park, parked) = mpsc::channel();
        let (tell, interrupts) = mpsc::channel();
        let door = Parking { parked: park, interrupts: tell };
        Scene { kernel, session, door, parked, interrupts }
    }

    /// The kernel sends; one worker takes it.
    fn request(&self, bytes: &[u8]) {
        self.kernel.send(bytes);
        let mut buffer = vec![0; BUFFER_SIZE];
        let message = self.session.receive(&mut buffer).unwrap().unwrap();
        self.session.dispatch(message, &self.door);
    }

    fn ioctl(&self, unique: u64, fh: u64, tid: u32) {
        let raw = uapi::fuse_ioctl_in { fh, ..Default::default() };
        self.request(&message(uapi::FUSE_IOCTL, unique, 1, tid, &[bytes_of(&raw)]));
    }

    fn interrupt(&self, unique: u64) {
        let raw = uapi::fuse_interrupt_in { unique };
        self.request(&message(uapi::FUSE_INTERRUPT, unique | 1, 0, 0, &[bytes_of(&raw)]));
    }
}

#[test]
fn a_parked_ioctl_is_answered_by_another_thread_with_its_data() {
    let scene = Scene::new();
    scene.ioctl(10, 3, 77);
    let responder = scene.parked.recv().unwrap();
    std::thread::spawn(move || responder.ioctl(-512, &[1, 2, 3])).join().unwrap();
    let (unique, error, body) = scene.kernel.reply();
    assert_eq!((unique, error), (10, 0));
    let out: uapi::fuse_ioctl_out = uapi::parse(&body).unwrap();
    assert_eq!((out.result, &body[16..]), (-512, &[1, 2, 3][..]));
    assert!(scene.session.in_flight.lock().by_unique.is_empty());
}

#[test]
fn an_interrupt_reaches_the_ioctl_that_waits() {
    let scene = Scene::new();
    scene.ioctl(10, 3, 77);
    scene.interrupt(10);
    assert_eq!(scene.interrupts.try_recv(), Ok((3, 77)));
    let responder = scene.parked.recv().unwrap();
    assert!(responder.interrupted());
    responder.ioctl(-512, &[]);
    assert_eq!(scene.kernel.reply().0, 10);
}

#[test]
fn an_interrupt_ahead_of_its_request_is_sent_back() {
    let scene = Scene::new();
    scene.interrupt(10);
    assert_eq!(scene.kernel.reply(), (11, -(Errno::EAGAIN as i32), vec![]));
    assert!(scene.interrupts.try_recv().is_err());
    scene.ioctl(10, 3, 77);
    scene.interrupt(10);
    assert_eq!(scene.interrupts.try_recv(), Ok((3, 77)));
}

#[test]
fn an_interrupt_after_the_reply_finds_nothing() {
    let scene = Scene::new();
    scene.ioctl(10, 3, 77);
    scene.parked.recv().unwrap().ioctl(0, &[]);
    assert_eq!(scene.kernel.reply().0, 10);
    scene.interrupt(10);
    assert_eq!(scene.kernel.reply().0, 11);
    assert!(scene.interrupts.try_recv().is_err());
}

#[test]
fn an_unknown_request_is_answered_and_a_forget_is_not() {
    let scene = Scene::new();
    scene.request(&message(9999, 2, 1, 1, &[]));
    assert_eq!(scene.kernel.reply(), (2, -(Errno::ENOSYS as i32), vec![]));
    scene.request(&message(uapi::FUSE_FORGET, 4, 1, 1, &[&[0; 8]]));
    scene.request(&message(uapi::FUSE_STATFS, 6, 1, 1, &[]));
    assert_eq!(scene.kernel.reply(), (6, 0, vec![]));
}

#[test]
fn a_malformed_request_is_refused_and_the_session_goes_on() {
    let scene = Scene::new();
    scene.request(&message(uapi::FUSE_IOCTL, 2, 1, 1, &[&[0; 31]]));
    assert_eq!(scene.kernel.reply(), (2, -(Errno::EINVAL as i32), vec![]));
    scene.request(&[1, 2, 3]);
    scene.request(&message(uapi::FUSE_STATFS, 4, 1, 1, &[]));
    assert_eq!(scene.kernel.reply().0, 4);
}

#[test]
fn a_dropped_request_is_answered_with_an_error() {
    let scene = Scene::new();
    scene.request(&message(uapi::FUSE_DESTROY, 2, 1, 1, &[]));
    assert_eq!(scene.kernel.reply(), (2, -(Errno::EIO as i32), vec![]));
}

#[test]
fn a_retry_lists_its_ranges_after_their_numbers() {
    let scene = Scene::new();
    scene.ioctl(10, 3, 77);
    let range = |base, len| uapi::fuse_ioctl_iovec { base, len };
    scene.parked.recv().unwrap().ioctl_again(&[range(1, 2), range(3, 4)], &[range(5, 6)]);
    let (_, _, body) = scene.kernel.reply();
    let out: uapi::fuse_ioctl_out = uapi::parse(&body).unwrap();
    assert_eq!((out.flags, out.in_iovs, out.out_iovs), (uapi::FUSE_IOCTL_RETRY, 2, 1));
    let last: uapi::fuse_ioctl_iovec = uapi::parse(&body[16 + 32..]).unwrap();
    assert_eq!((last.base, last.len, body.len()), (5, 6, 16 + 48));
}

#[test]
fn a_notification_has_no_unique() {
    let (kernel, session) = pair();
    session.notify_poll(42);
    let (unique, code, body) = kernel.reply();
    assert_eq!((unique, code), (0, uapi::FUSE_NOTIFY_POLL as i32));
    assert_eq!(body, 42u64.to_ne_bytes());
}

#[test]
fn a_session_ends_when_the_kernel_s_end_is_closed() {
    let (kernel, session) = pair();
    drop(kernel);
    assert_eq!(session.receive(&mut [0; 64]), Ok(None));
}
