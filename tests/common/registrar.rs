//! A context manager that keeps a node for others to find, and two clients that found each other
//! by it.

use super::{Killed, PATIENCE, role_device, wait_until};
use fakebinder_client::{Call, Command as Write, Device, Object, Parcel, Reply, Thread};
use std::path::{Path, PathBuf};

/// Identity and cookie of the server's node in a [`Pair`].
pub const NODE: u64 = 0x1000;
pub const COOKIE: u64 = 0x2000;

/// What the registrar understands.
const PUT: u32 = 1;
pub const GET: u32 = 2;

/// Two opens of a device, of which one has a reference to a node of the other.
pub struct Pair {
    pub server: Device,
    pub client: Device,
    /// The server's node, as the client knows it; the client owns one strong reference.
    pub handle: u32,
    pub(super) path: PathBuf,
    pub(super) _registrar: Killed,
}

impl Pair {
    /// One more client, with its own handle.
    pub fn another(&self) -> (Device, u32) {
        let client = open(&self.path);
        let handle = look_up(&client);
        (client, handle)
    }
}

/// A fresh open, mapped.
pub fn open(path: &Path) -> Device {
    let mut device = Device::open(path).expect("the device can be opened");
    device.mmap(1 << 20).expect("the device can be mapped");
    device
}

/// Gives the registrar a node of the server, [`NODE`] and [`COOKIE`], with these flags.
pub fn offer(server: &Device, flags: u32) {
    let mut parcel = Parcel::new();
    parcel.binder(NODE, COOKIE, flags);
    let mut thread = Thread::new(server);
    let reply = thread.call(&Call::to(0).code(PUT).oneway().parcel(&parcel)).unwrap();
    assert_eq!(reply, Reply::Sent);
    thread.flush().unwrap();
}

/// Asks the registrar for the server's node, until it has it. The client owns a reference then.
pub fn look_up(client: &Device) -> u32 {
    let mut thread = Thread::new(client);
    let mut known = 0;
    let found = wait_until(PATIENCE, || {
        let reply = thread.call(&Call::to(0).code(GET)).unwrap();
        let Reply::Data(contents) = reply else { panic!("{reply:?}") };
        if let Some(Some(Object::Handle { handle, .. })) = contents.objects().next() {
            // The reference comes before the freeing of the buffer, which holds one of its own.
            client.write(&[Write::Acquire(handle)]).unwrap();
            known = handle;
        }
        thread.flush().unwrap();
        known != 0
    });
    assert!(found, "the server's node arrives at the registrar");
    known
}

/// Not a test: the context manager that keeps a node for others to find.
#[test]
#[ignore = "a role in other tests"]
fn registrar() {
    if let Some(device) = role_device() {
        be_registrar(&device);
    }
}

/// Keeps a node for others to find, until the device is gone. Says when it is there.
pub fn be_registrar(device: &Device) {
    become_manager(device);
    let mut thread = Thread::new(device);
    thread.queue(Write::EnterLooper);
    thread.flush().unwrap();
    println!("ready");
    let mut kept = None;
    loop {
        let served = thread.serve(&mut |thread, call, contents, reply| {
            if call.code == GET {
                if let Some(handle) = kept {
                    reply.handle(handle);
                }
            } else if let Some(Some(Object::Handle { handle, .. })) = contents.objects().next() {
                thread.queue(Write::Acquire(handle));
                kept = Some(handle);
            }
        });
        if served.is_err() {
            return;
        }
    }
}

/// The one before may not be released yet: the kernel does that a little after its close.
pub fn become_manager(device: &Device) {
    let mut result = device.set_context_manager();
    wait_until(PATIENCE, || {
        let busy =
            matches!(&result, Err(error) if error.errno() == fakebinder_client::Errno::EBUSY);
        if busy {
            result = device.set_context_manager();
        }
        !busy
    });
    result.expect("this is the only context manager");
}
