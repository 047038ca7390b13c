//! A server and a client that mean no harm, beside those who do.

use super::{Pair, Target};
use fakebinder_client::{Call, Command, Device, Object, Reply, Thread};
use std::time::{Duration, Instant};

const STOP: u32 = 99;

/// A server and a client that mean no harm.
pub struct Bystanders {
    pub client: Device,
    pub handle: u32,
    server: std::thread::JoinHandle<()>,
}

impl Bystanders {
    /// The server's handle is known to another open, too, for whoever wants to harm the server.
    pub fn new(target: &Target) -> (Bystanders, Device, u32) {
        let (bystanders, (other, handle)) = Bystanders::with(target, Pair::another);
        (bystanders, other, handle)
    }

    /// `meanwhile` is done while the registrar is there.
    pub fn with<T>(target: &Target, meanwhile: impl FnOnce(&Pair) -> T) -> (Bystanders, T) {
        let mut server = target.open();
        server.accept_files(64).unwrap();
        let pair = target.pair_with(server, &target.path);
        let done = meanwhile(&pair);
        let Pair { server, client, handle, .. } = pair;
        let server = std::thread::spawn(move || {
            let mut thread = Thread::new(&server);
            thread.queue(Command::EnterLooper);
            let mut stop = false;
            while !stop {
                let served = thread.serve(&mut |_, call, contents, reply| {
                    for object in contents.objects().flatten() {
                        if let Object::Fd { fd, .. } = object {
                            nix::unistd::close(fd as i32).unwrap();
                        }
                    }
                    stop = call.code == STOP;
                    reply.bytes(&contents.data);
                });
                served.unwrap();
            }
            thread.flush().unwrap();
        });
        (Bystanders { client, handle, server }, done)
    }

    /// They go on, and at a reasonable speed.
    #[track_caller]
    pub fn go_on(&self) {
        let start = Instant::now();
        for number in 0..10u8 {
            let reply = Thread::new(&self.client).call(&Call::to(self.handle).data(&[number; 100]));
            assert!(matches!(&reply, Ok(Reply::Data(c)) if c.data == [number; 100]), "{reply:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    pub fn end(self) {
        Thread::new(&self.client).call(&Call::to(self.handle).code(STOP)).unwrap();
        self.server.join().unwrap();
    }
}
