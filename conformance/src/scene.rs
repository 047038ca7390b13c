//! A scene: processes that use a device, driven step by step by one script.
//!
//! The script is an ordinary function. A step with another outcome than expected panics, which
//! fails the test. Devices are opened with O_NONBLOCK unless a scene is about waiting, so that a
//! read shows what is there and nothing else.

pub(super) use super::door::{Door, door};
use super::library;
pub(super) use super::reads::{Io, Reads, Received, in_words};
use super::thread::{File, MEMORY};
pub(super) use super::thread::{KERNEL, NOWHERE, READ_SIZE, Thread};
use fakebinder_client::{Errno, Object, uapi};
pub(super) use fakebinder_sim::child::result as errno;
use fakebinder_sim::child::{Child, Plan};
use nix::unistd::Pid;
use std::ops::Deref;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// How much a process maps unless told otherwise.
pub(super) const MAPPING: u64 = 128 << 10;

/// The surroundings of a test: the device, and how processes use it.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub(super) device: PathBuf,
    /// How long a step may take.
    pub(super) patience: Duration,
    /// Whether devices are opened without O_NONBLOCK.
    pub(super) blocking: bool,
}

impl Scene {
    /// The same, for processes that wait.
    pub(super) fn blocking(&self) -> Scene {
        Scene { blocking: true, ..self.clone() }
    }

    /// A process with one thread that has done nothing yet.
    pub(super) fn bare(&self) -> Process {
        self.bare_with(1, 0)
    }

    /// A process that has opened and mapped the device.
    pub(super) fn process(&self) -> Process {
        self.process_with(1)
    }

    /// The same, with several threads.
    pub(super) fn process_with(&self, threads: usize) -> Process {
        let process = self.bare_with(threads, 0);
        process.open();
        process.map(MAPPING);
        process
    }

    /// A process that becomes the context manager, once the last manager has gone.
    pub(super) fn manager(&self) -> Process {
        self.manager_with(1, 0)
    }

    /// The same, with several threads and flags for its node.
    pub(super) fn manager_with(&self, threads: usize, flags: u32) -> Process {
        let process = self.process_with(threads);
        process.become_manager_with(flags);
        process
    }

    /// The same, with `threads` threads; it may fork `spares` times.
    pub(super) fn bare_with(&self, threads: usize, spares: usize) -> Process {
        let plan = Plan {
            threads,
            spares,
            memory: MEMORY,
            patience: self.patience,
            carry_out: library::carry_out,
            ..Plan::default()
        };
        let mut child = Child::start(&plan).expect("a child process");
        let file = Rc::new(File::new(self.blocking));
        let threads = std::mem::take(&mut child.threads).into_iter();
        let threads = threads.map(|thread| Thread::new(thread, file.clone(), self)).collect();
        Process { threads, scene: self.clone(), child }
    }

    /// Kills a process, and waits until the driver has released it, as a witness sees it.
    ///
    /// The driver releases closed files in its own time, one after another. It begins with taking
    /// the process off the list that BINDER_GET_FROZEN_INFO looks at: when another file that was
    /// closed after that is off the list too, the release is done.
    #[track_caller]
    pub(super) fn bury(&self, dead: &Process, witness: &Thread) {
        dead.kill();
        self.released(dead.child.pid(), witness);
    }

    /// Waits until the driver knows no file of that process, and the release is done.
    #[track_caller]
    pub(super) fn released(&self, pid: Pid, witness: &Thread) {
        let gone = |pid: Pid| {
            let mut words = [pid.as_raw() as u32, 0, 0];
            witness.ioctl_words(uapi::BINDER_GET_FROZEN_INFO, &mut words) == Err(Errno::EINVAL)
        };
        witness.until("a release to begin", || gone(pid));
        let broom = self.bare();
        broom.open();
        broom.kill();
        witness.until("a release to end", || gone(broom.child.pid()));
    }

    /// The kind of this device.
    pub(super) fn door(&self) -> Door {
        door(&self.device)
    }

    /// Whether the driver is that of this kernel, of that version or newer, or one that has to do
    /// what the newest does. For rules whose absence nothing else would show.
    pub(super) fn driver_is_at_least(&self, major: u32, minor: u32) -> bool {
        let release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
        let running: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        self.door() != Door::Kernel || running >= (major, minor)
    }

    /// Makes a node of `owner` known to the manager; returns the manager's handle, which is strong
    /// and acquired. Nothing else is left behind but the node's first references.
    pub(super) fn introduce(&self, owner: &Thread, manager: &Thread, ptr: u64, cookie: u64) -> u32 {
        self.introduce_with(owner, manager, ptr, cookie, 0)
    }

    /// The same for a node with flags.
    #[track_caller]
    pub(super) fn introduce_with(
        &self,
        owner: &Thread,
        manager: &Thread,
        ptr: u64,
        cookie: u64,
        flags: u32,
    ) -> u32 {
        use super::message::*;
        owner.write(call(0).object(Object::Binder { ptr, cookie, flags }));
        let got = manager.receive();
        let handle = got.handle(0);
        manager.write([acquire(handle), free(got.transaction.buffer), reply().into()]);
        manager.reads("NOOP TRANSACTION_COMPLETE");
        let answer = owner.waits(&format!(
            "NOOP INCREFS({ptr},{cookie}) ACQUIRE({ptr},{cookie}) TRANSACTION_COMPLETE REPLY"
        ));
        owner.write([
            increfs_done(ptr, cookie),
            acquire_done(ptr, cookie),
            free(answer.transaction().buffer),
        ]);
        handle
    }
}

/// A process of a scene; the methods of its first thread are its own. Killed when dropped.
pub(super) struct Process {
    pub(super) threads: Vec<Thread>,
    scene: Scene,
    pub(super) child: Child,
}

impl Deref for Process {
    type Target = Thread;

    fn deref(&self) -> &Thread {
        &self.threads[0]
    }
}

impl Process {
    /// Kills the process, and waits until it is gone. The driver's release may not be done yet.
    pub(super) fn kill(&self) {
        self.child.kill();
    }

    /// Forks a child process, which has what its parent had then, above all its open files.
    #[track_caller]
    pub(super) fn fork(&self) -> Thread {
        let parent = &self.threads[0];
        Thread::new(self.child.fork(&parent.child), parent.file.clone(), &self.scene)
    }
}
