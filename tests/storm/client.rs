//! One client: what it does next is chance's, what must hold for each thing that it does is not.

use super::*;

/// Registers a handle at the manager.
const PUT: u32 = 1;
/// Asks the manager for handles of others.
const GET: u32 = 2;
/// Data: how many calls back and forth are still to come. Object: the caller's node.
const NEST: u32 = 3;
/// Whatever it brings is looked at and let go.
const TAKE: u32 = 4;

const NODE: u64 = 0x1000;
const SLOTS: usize = 12;

pub(super) struct Client {
    device: Device,
    tally: &'static Tally,
    rng: Mutex<Rng>,
    /// Handles that one strong reference is held on, each.
    known: Mutex<Vec<u32>>,
    /// Most handles that are kept.
    keeps: usize,
    /// Who has called.
    pids: Mutex<Vec<i32>>,
    /// The end of a pipe that all clients send to each other.
    file: PipeWriter,
}

impl Client {
    fn rng<T>(&self, f: impl FnOnce(&mut Rng) -> T) -> T {
        f(&mut self.rng.lock().unwrap())
    }

    fn below(&self, limit: u64) -> u64 {
        self.rng(|rng| rng.below(limit))
    }

    fn one_in(&self, times: u64) -> bool {
        self.rng(|rng| rng.one_in(times))
    }

    fn some<T: Copy>(&self, from: &Mutex<Vec<T>>) -> Option<T> {
        let from = from.lock().unwrap();
        let index = self.below(from.len() as u64) as usize;
        from.get(index).copied()
    }

    /// Nothing but the end of the daemon may fail an ioctl here.
    fn unexpected(&self, what: &str, error: &fakebinder_client::Error) -> ! {
        complain(&format!("{what}: {error}"));
        exit(3)
    }

    fn keep(&self, thread: &mut Thread<'_>, handle: u32) {
        count(&self.tally.handles);
        // At once: the freeing of the buffer, which holds a reference of its own, may be queued.
        self.try_write(Command::Acquire(handle));
        let mut known = self.known.lock().unwrap();
        known.push(handle);
        if known.len() > self.keeps {
            let index = self.below(known.len() as u64) as usize;
            thread.queue(Command::Release(known.swap_remove(index)));
        }
    }

    /// What came: handles are kept, descriptors are closed (those of arrays go with the buffer).
    fn take(&self, thread: &mut Thread<'_>, contents: &Contents) {
        for object in contents.objects() {
            match object.expect("an object that the driver wrote") {
                Object::Handle { handle, .. } => self.keep(thread, handle),
                Object::Fd { fd, .. } => {
                    count(&self.tally.fds_received);
                    nix::unistd::close(fd as i32).expect("a descriptor that arrived is open");
                }
                _ => {}
            }
        }
    }

    fn serve(
        &self,
        thread: &mut Thread<'_>,
        call: &Transaction,
        contents: &Contents,
        reply: &mut Parcel,
    ) {
        if call.sender_pid != 0 && self.one_in(8) {
            let mut pids = self.pids.lock().unwrap();
            pids.push(call.sender_pid);
            if pids.len() > 4 {
                pids.remove(0);
            }
        }
        match call.code {
            NEST => {
                let caller = contents.objects().next().flatten();
                if let Some(Object::Handle { handle, .. }) = caller
                    && let Some(depth @ 1..) = contents.data.first().copied()
                {
                    count(&self.tally.nested);
                    self.nest(thread, handle, depth - 1);
                }
            }
            GET => {
                for _ in 0..2 {
                    if let Some(handle) = self.some(&self.known) {
                        reply.handle(handle);
                    }
                }
            }
            _ => self.take(thread, contents),
        }
        if call.flags & uapi::TF_ACCEPT_FDS != 0 && self.one_in(2) {
            count(&self.tally.fds_sent);
            reply.fd(self.file.as_raw_fd());
        }
    }

    fn call(&self, thread: &mut Thread<'_>, call: &Call<'_>) {
        let oneway = call.flags & uapi::TF_ONE_WAY != 0;
        count(if oneway { &self.tally.oneway } else { &self.tally.calls });
        let reply = thread.call_serving(call, &mut |thread, call, contents, reply| {
            self.serve(thread, call, contents, reply);
        });
        match reply {
            Ok(Reply::Data(contents)) => {
                count(&self.tally.replies);
                self.take(thread, &contents);
            }
            Ok(Reply::Sent | Reply::SentSpamSuspect | Reply::SentToFrozen) => {}
            Ok(Reply::Dead) => count(&self.tally.dead),
            Ok(Reply::Failed) => count(&self.tally.failed),
            Ok(Reply::Frozen) => count(&self.tally.frozen),
            Err(error) => self.unexpected("call", &error),
        }
    }

    fn nest(&self, thread: &mut Thread<'_>, handle: u32, depth: u8) {
        let mut parcel = Parcel::new();
        parcel.bytes(&[depth, 0, 0, 0]);
        self.own_node(&mut parcel);
        self.call(thread, &Call::to(handle).code(NEST).parcel(&parcel));
    }

    /// A node that everybody knows, or one that nobody has seen yet.
    fn own_node(&self, parcel: &mut Parcel) {
        let ptr = if self.one_in(2) { NODE } else { NODE + 8 * self.below(64) };
        parcel.binder(ptr, ptr + 1, uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS);
    }

    /// A command whose failure is a client's everyday life.
    fn try_write(&self, command: Command<'_>) {
        match self.device.write(&[command]) {
            Err(error) if error.errno() != Errno::EINVAL => self.unexpected("write", &error),
            _ => {}
        }
    }

    /// A looper: serves until it is killed.
    fn work(&self) -> ! {
        let mut thread = Thread::new(&self.device);
        thread.queue(Command::EnterLooper);
        loop {
            let served = thread.serve(&mut |thread, call, contents, reply| {
                self.serve(thread, call, contents, reply);
            });
            match served {
                Ok(Return::DeadBinder(cookie)) => {
                    count(&self.tally.deaths);
                    if !self.one_in(8) {
                        self.try_write(Command::DeadBinderDone(cookie));
                    }
                    let mut known = self.known.lock().unwrap();
                    if let Some(index) = known.iter().position(|it| u64::from(*it) == cookie) {
                        thread.queue(Command::Release(known.swap_remove(index)));
                    }
                }
                Ok(Return::FrozenBinder { cookie, is_frozen }) => {
                    count(if is_frozen != 0 { &self.tally.freezes } else { &self.tally.thaws });
                    self.try_write(Command::FreezeNotificationDone(cookie));
                }
                Ok(_) => {}
                Err(error) => self.unexpected("serve", &error),
            }
        }
    }

    /// Makes calls of its own until it is killed.
    fn play(&self) -> ! {
        let mut thread = Thread::new(&self.device);
        let mut parcel = Parcel::new();
        parcel.binder(NODE, NODE + 1, uapi::FLAT_BINDER_FLAG_ACCEPTS_FDS);
        self.call(&mut thread, &Call::to(0).code(PUT).oneway().parcel(&parcel));
        loop {
            self.act(&mut thread);
            std::thread::sleep(Duration::from_millis(self.below(200)));
        }
    }

    fn act(&self, thread: &mut Thread<'_>) {
        let known = self.some(&self.known);
        let cookie = known.map_or(0, u64::from);
        let mut parcel = Parcel::new();
        parcel.u32(0);
        match (self.below(16), known) {
            (0 | 1, _) | (_, None) => self.call(thread, &Call::to(0).code(GET)),
            (2, _) => {
                self.own_node(&mut parcel);
                self.call(thread, &Call::to(0).code(PUT).oneway().parcel(&parcel));
            }
            (3 | 4, Some(handle)) => self.nest(thread, handle, self.below(5) as u8),
            // A handle is passed on.
            (5 | 6, Some(handle)) => {
                if let Some(other) = self.some(&self.known) {
                    parcel.handle(other);
                    parcel.weak_handle(other);
                }
                self.call(thread, &Call::to(handle).code(TAKE).oneway().parcel(&parcel));
            }
            (7, Some(handle)) => {
                count(&self.tally.fds_sent);
                parcel.fd(self.file.as_raw_fd());
                let call = Call::to(handle).code(TAKE).flags(uapi::TF_ACCEPT_FDS).parcel(&parcel);
                self.call(thread, &if self.one_in(2) { call.oneway() } else { call });
            }
            (8, Some(handle)) => {
                let many = 1 + self.below(4);
                self.tally.arrays_sent.fetch_add(many, Relaxed);
                let fd = self.file.as_raw_fd().to_ne_bytes();
                let parent = parcel.buffer(&fd.repeat(many as usize));
                parcel.fd_array(many, parent, 0);
                let call = Call::to(handle).code(TAKE).parcel(&parcel);
                self.call(thread, &if self.one_in(2) { call.oneway() } else { call });
            }
            (9, Some(handle)) => {
                self.try_write(Command::RequestDeathNotification { handle, cookie });
            }
            (10, Some(handle)) => {
                self.try_write(match self.one_in(2) {
                    true => Command::ClearDeathNotification { handle, cookie },
                    false => Command::ClearFreezeNotification { handle, cookie },
                });
            }
            (11, Some(handle)) => {
                self.try_write(Command::RequestFreezeNotification { handle, cookie });
            }
            (12, _) => self.freeze_somebody(),
            // A thread that leaves without a word, or with one.
            (13, Some(handle)) => std::thread::scope(|scope| {
                scope.spawn(|| {
                    count(&self.tally.threads);
                    let mut thread = Thread::new(&self.device);
                    self.call(&mut thread, &Call::to(handle).code(TAKE));
                    if self.one_in(2) {
                        let _ = self.device.thread_exit();
                    }
                });
            }),
            // A second open, which is another process in binder's eyes, and goes at once.
            (14, _) => {
                let mut device = Device::open(self.device.path()).expect("it can be opened again");
                device.mmap(64 << 10).expect("it can be mapped");
                self.own_node(&mut parcel);
                let call = Call::to(0).code(PUT).oneway().parcel(&parcel);
                if let Err(error) = Thread::new(&device).call(&call) {
                    self.unexpected("second open", &error);
                }
            }
            (_, Some(handle)) => {
                let data = vec![1; self.below(20_000) as usize];
                let call = Call::to(handle).code(TAKE).data(&data);
                let update = uapi::TF_UPDATE_TXN | uapi::TF_CLEAR_BUF;
                self.call(thread, &if self.one_in(2) { call.oneway().flags(update) } else { call });
            }
        }
    }

    fn freeze_somebody(&self) {
        let Some(pid) = self.some(&self.pids) else { return };
        for (enable, timeout) in [(true, self.below(20) as u32), (false, 0)] {
            match self.device.freeze(pid as u32, enable, timeout) {
                // It is gone, or still busy.
                Err(error) if !matches!(error.errno(), Errno::EINVAL | Errno::EAGAIN) => {
                    self.unexpected("freeze", &error);
                }
                _ => std::thread::sleep(Duration::from_millis(self.below(20))),
            }
        }
    }

    /// A client from its first open to the moment that it is killed.
    pub(super) fn live(
        path: &Path,
        seed: u64,
        manages: bool,
        tally: &'static Tally,
        file: PipeWriter,
    ) -> ! {
        let mut device = Device::open(path).expect("the device can be opened");
        device.mmap(if manages { 4 << 20 } else { 256 << 10 }).expect("it can be mapped");
        device.accept_files(SLOTS).expect("descriptors can be accepted");
        let client = Client {
            device,
            tally,
            rng: Mutex::new(Rng::new(seed)),
            known: Mutex::default(),
            keeps: if manages { 200 } else { 6 },
            pids: Mutex::default(),
            file,
        };
        if manages {
            common::become_manager(&client.device);
        }
        let _ = client.device.enable_oneway_spam_detection(client.one_in(2));
        std::thread::scope(|scope| {
            for _ in 0..if manages { 3 } else { 1 } {
                scope.spawn(|| guarded(|| client.work()));
            }
            count(&tally.up);
            // The others never end: whoever panics must not wait for them.
            guarded(|| if manages { client.work() } else { client.play() })
        })
    }
}
