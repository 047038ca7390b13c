//! What a device is: open, mmap, ioctl, poll, flush, release, interrupt, handed to the engine.
//!
//! Two doors lead here, [`cuse`] and [`fuse`]; they differ in how a device comes into being, how
//! it is mapped and how ioctl arguments travel. From an [`Open`] on they are the same, and a
//! client of one can call a client of the other.
//!
//! Nothing here waits for a client: an ioctl that must wait is a [`Call`] that the engine keeps,
//! and the thread that completes the call writes the reply.

mod announce;
pub mod attach;
pub mod attributes;
mod cached;
pub mod carriers;
pub mod claim;
pub mod client;
mod control;
pub mod cuse;
mod devices;
pub mod files;
pub mod fuse;
pub mod home;
pub mod ids;
pub mod liveness;
pub mod mounting;
pub mod mounts;
mod opens;
pub mod options;
pub mod places;
mod placing;
pub mod reply;
pub mod retry;
pub mod security_context;
pub mod session;
pub mod signals;
mod stale;
mod supervised;
mod supervisor;
mod taken_file;
pub mod threads;
pub mod timers;
#[cfg_attr(not(target_arch = "x86_64"), path = "device/tracee_unknown.rs")]
mod tracee;
mod tracers;
pub mod tree;
pub mod uring;
pub mod wire;
pub mod workers;

use self::client::{Client, Clients};
use self::liveness::Liveness;
pub use self::opens::Opens;
use self::reply::{CopyOut, IoctlReply};
use self::retry::Step;
use self::security_context::SecurityContexts;
use self::session::Responder;
use self::tracers::Tracers;
pub use self::tracers::TracingProcess;
use self::wire::{Header, Ioctl};
use crate::alloc::Alloc;
use crate::binder::copies::{Place, Subject, Turn};
use crate::binder::{self, Binder, Call, Completion, Context, FewBytes, Limits, Process};
use crate::client_log::{Kind, client_log};
use crate::client_mem::ClientMemory;
use crate::events::Listener;
use crate::lock_order::rank;
use crate::memory::Memory;
use crate::mm_shim::{BufferFile, KeptMaps, MappingKind, RemoteMm};
use crate::probe::Probes;
use crate::quota::{Charge, Quotas, UserLimits, What};
use crate::recorder::Recorder;
use crate::shortage::{self, is_shortage};
use crate::sync::Mutex;
use crate::{Errno, uapi};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What all devices of a mount share, and with those of the daemon's other mounts all but the
/// driver's contexts and logs.
pub struct Hub {
    binder: Arc<Binder>,
    timers: Arc<timers::Timers>,
    /// The driver of the first mount: its end would be that of the watch over the outbox.
    _first: Arc<Binder>,
    clients: Arc<Clients>,
    memory: Arc<Memory>,
    probes: Probes,
    kept_maps: Arc<KeptMaps>,
}

/// How a [`Hub`] is made.
#[derive(Debug, Default)]
pub struct HubConfig {
    /// The labels that the options give to clients.
    pub security_contexts: SecurityContexts,
    /// The most that a user other than root may have.
    pub user_limits: UserLimits,
    /// The probes of every allocator.
    pub probes: Probes,
    /// Clients that have no other way for descriptors are not given any by stopping their threads.
    pub never_trace: bool,
    /// Who stops threads with seccomp filters, which a daemon with filters of its own cannot.
    pub tracing: Option<Arc<TracingProcess>>,
}

impl Hub {
    /// A hub with the default configuration. Fails when its threads cannot be started.
    pub fn new(memory: Arc<Memory>) -> std::io::Result<Arc<Hub>> {
        Self::with(memory, HubConfig::default())
    }

    /// A hub with a configuration of its own. Fails when its threads cannot be started.
    pub fn with(memory: Arc<Memory>, config: HubConfig) -> std::io::Result<Arc<Hub>> {
        let timers = Arc::new(timers::Timers::start()?);
        let carriers = carriers::Carriers::new();
        let binder = Binder::with_carriers(timers.clone(), carriers.clone(), Limits::default());
        carriers.attend(&binder)?;
        let quotas = Quotas::new(&memory, config.user_limits);
        let tracers = (!config.never_trace).then(|| Tracers::new(config.tracing));
        let clients = Clients::start(carriers, config.security_contexts, quotas, tracers)?;
        let (probes, kept_maps) = (config.probes, Arc::default());
        let _first = binder.clone();
        Ok(Arc::new(Hub { binder, timers, _first, clients, memory, probes, kept_maps }))
    }

    /// A hub for another mount, whose devices have contexts of their own, whatever their names.
    pub fn another_instance(&self) -> Arc<Hub> {
        Arc::new(Hub {
            binder: self.binder.another_instance(),
            timers: self.timers.clone(),
            _first: self._first.clone(),
            clients: self.clients.clone(),
            memory: self.memory.clone(),
            probes: self.probes.clone(),
            kept_maps: self.kept_maps.clone(),
        })
    }

    /// The driver behind all devices.
    pub fn binder(&self) -> &Arc<Binder> {
        &self.binder
    }

    /// What tells whether the daemon works; of its contexts and mounts, none yet.
    pub fn liveness(&self) -> Liveness {
        Liveness::of(self.timers.clone())
    }

    /// The device of that name. All devices of one name share a context, within a mount and with
    /// those of the CUSE door that belong to it.
    pub fn device(self: &Arc<Self>, name: &str) -> Arc<Device> {
        let context = self.binder.context(name);
        Arc::new(Device { name: name.to_owned(), context, hub: self.clone() })
    }

    /// A device with a context of its own, even if another has this name.
    pub fn new_device(self: &Arc<Self>, name: &str) -> Arc<Device> {
        let context = self.binder.new_context(name);
        Arc::new(Device { name: name.to_owned(), context, hub: self.clone() })
    }
}

/// A device that clients can open.
pub struct Device {
    /// The name that it was given; it may have been renamed since.
    pub name: String,
    context: Arc<Context>,
    hub: Arc<Hub>,
}

/// One open of a device, by one process. A file handle on the wire (`fh`) stands for one of these.
pub struct Open {
    hub: Arc<Hub>,
    client: Arc<Client>,
    process: Arc<Process>,
    /// The buffer, for the attach handshake and for the kernel's page cache; none where the kernel
    /// itself maps it.
    buffer: Option<OwnedFd>,
    mm: Arc<RemoteMm>,
    /// The file itself can be mapped, and the mapping shows the buffer.
    is_mappable: bool,
    /// A socket that the client is to connect to (see [`attach`]).
    listener: Mutex<Option<UnixListener>, rank::Listener>,
    /// What FAKEBINDER_SNAPSHOT has taken and not copied to its end.
    snapshot: Mutex<Option<Arc<control::SnapshotText>>, rank::Snapshot>,
    /// Who listens by FAKEBINDER_EVENTS.
    listener_of_events: Mutex<Option<Arc<control::Charged<Listener>>>, rank::Snapshot>,
    /// Who records by FAKEBINDER_RECORD.
    recorder: Mutex<Option<Arc<control::Charged<Recorder>>>, rank::Snapshot>,
    nonblock: bool,
    /// The daemon cannot reach the client's memory: the kernel must gather it.
    gathered: AtomicBool,
    /// What the open file takes of its user's quota.
    _held: (Charge, Charge),
}

impl Device {
    /// The context behind the device.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The device has been removed: [`Hub::device`] makes another one of this name.
    fn forget_name(&self) {
        self.hub.binder.forget_context(&self.context);
    }

    /// `binder_open`, for the process of the calling thread. EPERM: that process cannot be seen
    /// from here; EMFILE: the daemon has no descriptor left for it.
    pub fn open(
        &self,
        header: &Header,
        flags: u32,
        buffer: BufferFile,
        mapping: MappingKind,
    ) -> Result<Arc<Open>, Errno> {
        if header.tid == 0 {
            client_log!(
                Kind::NotInNamespace,
                "{}: refused an open from outside this daemon's pid namespace; run fakebinderd in the namespace \
                 that contains all of its clients'",
                self.name
            );
            return Err(Errno::EPERM);
        }
        let client = self.hub.clients.of_thread(header.tid, header.uid)?;
        let held = client.user.hold_open()?;
        // The process's, and where the client has to attach, those of the buffer and of the socket.
        let descriptors = match mapping {
            MappingKind::FuseFile { .. } => 1,
            MappingKind::CachedFile { .. } | MappingKind::Memfd => 3,
        };
        let descriptors = client.user.hold(What::Descriptors, descriptors)?;
        let (pidfd, kept) = (client.pidfd.clone(), &self.hub.kept_maps);
        let mm = RemoteMm::new(client.pid, pidfd, buffer.memfd, mapping, kept)?;
        if let Some(cache) = buffer.cache {
            mm.set_cache(cache);
        }
        let (memory, probes) = (&self.hub.memory, self.hub.probes.clone());
        let alloc = Alloc::of_user(mm.clone(), memory, client.user.clone(), probes);
        let process = self.context.open(client.pid, header.tid, client.clone(), alloc);
        Ok(Arc::new(Open {
            hub: self.hub.clone(),
            client,
            process,
            buffer: match mapping {
                MappingKind::CachedFile { .. } | MappingKind::Memfd => Some(buffer.read_only),
                MappingKind::FuseFile { .. } => None,
            },
            mm,
            is_mappable: mapping != MappingKind::Memfd,
            listener: Mutex::new(None),
            snapshot: Mutex::new(None),
            listener_of_events: Mutex::new(None),
            recorder: Mutex::new(None),
            nonblock: flags & libc::O_NONBLOCK as u32 != 0,
            gathered: AtomicBool::new(false),
            _held: (held, descriptors),
        }))
    }
}

/// The driver does not read the argument of these: the first two ignore it, the third only writes
/// it, and has cleared the thread's error when the pointer turns out to be bad.
fn reads_argument(cmd: u32) -> bool {
    let ignored = matches!(
        cmd,
        uapi::BINDER_THREAD_EXIT | uapi::BINDER_SET_CONTEXT_MGR | uapi::BINDER_GET_EXTENDED_ERROR
    );
    uapi::ioc_copies_in(cmd) && !ignored
}

impl Open {
    /// `binder_ioctl`: served at once if the client has a place for a further copy, else when it
    /// has one again.
    fn request_ioctl(self: &Arc<Self>, header: &Header, ioctl: &Ioctl<'_>, responder: Responder) {
        // On the FUSE door no other ioctl touches the caller's memory.
        let copies = ioctl.unrestricted || ioctl.cmd == uapi::BINDER_WRITE_READ;
        let place = self.process.copies().enter();
        if place.is_some() || !copies {
            return self.ioctl(header, ioctl, responder, place);
        }
        let subject = Subject::Ioctl(header.tid);
        let (open, header, input) = (self.clone(), *header, ioctl.input.to_vec());
        let ioctl = Ioctl { input: &[], ..*ioctl };
        let interrupted = responder.interrupted_later();
        self.process.copies().wait(subject, move |turn| match turn {
            Turn::Begin(place) => {
                open.ioctl(&header, &Ioctl { input: &input, ..ioctl }, responder, Some(place));
            }
            // A signal has arrived before anything was done.
            Turn::GivenUp => responder.ioctl(-reply::ERESTARTSYS, &[]),
        });
        // A signal that came before the work waited has found nothing to give up.
        if interrupted() {
            self.process.copies().give_up(subject);
        }
    }

    /// Serves an ioctl. The place is given back when the caller has its answer or is parked, and
    /// what is due to other clients is done after that.
    fn ioctl(
        self: &Arc<Self>,
        header: &Header,
        ioctl: &Ioctl<'_>,
        responder: Responder,
        mut place: Option<Place>,
    ) {
        let due = self.serve(header, ioctl, responder, &mut place);
        drop(place);
        drop(due);
    }

    fn serve(
        self: &Arc<Self>,
        header: &Header,
        ioctl: &Ioctl<'_>,
        responder: Responder,
        place: &mut Option<Place>,
    ) -> Option<binder::Due<'_>> {
        let size = uapi::ioc_size(ioctl.cmd);
        let Some(memory) = responder.memory() else {
            responder.error(Errno::EIO);
            return None;
        };
        if !matches!(uapi::ioc_type(ioctl.cmd), b'b' | b'F') {
            responder.ioctl(-(Errno::EINVAL as i32), &[]);
            return None;
        }
        if !ioctl.unrestricted {
            let argument = match uapi::ioc_copies_in(ioctl.cmd) {
                true if ioctl.input.len() != size => {
                    responder.error(Errno::EINVAL);
                    return None;
                }
                true => FewBytes::from_slice(ioctl.input),
                false => FewBytes::from_elem(0, size),
            };
            let out = match uapi::ioc_copies_out(ioctl.cmd) {
                true => CopyOut::Message { size: ioctl.out_size },
                false => CopyOut::Nothing,
            };
            return self.call(header, ioctl.cmd, argument, memory, responder, out, place);
        }
        if self.gathered.load(Ordering::Relaxed) {
            return self.gather(header, ioctl, responder, place);
        }
        let mut argument = FewBytes::from_elem(0, size);
        if reads_argument(ioctl.cmd) {
            match memory.read(ioctl.arg, &mut argument) {
                Ok(()) => {}
                Err(Errno::EPERM) => {
                    client_log!(
                        Kind::MemoryRefused,
                        "{}: the kernel copies instead, in several rounds, at most 128 KiB a call",
                        responder.session().name()
                    );
                    self.gathered.store(true, Ordering::Relaxed);
                    return self.gather(header, ioctl, responder, place);
                }
                Err(errno) => {
                    shortage::note(&errno);
                    let told = if is_shortage(errno) { errno } else { bad_argument(ioctl.cmd) };
                    responder.ioctl(-(told as i32), &[]);
                    return None;
                }
            }
        }
        let out = match uapi::ioc_copies_out(ioctl.cmd) {
            true => CopyOut::Memory {
                memory: memory.clone(),
                addr: ioctl.arg,
                fault: bad_argument(ioctl.cmd),
            },
            false => CopyOut::Nothing,
        };
        self.call(header, ioctl.cmd, argument, memory, responder, out, place)
    }

    /// One round of an ioctl whose data the kernel gathers (see [`retry`]).
    fn gather(
        self: &Arc<Self>,
        header: &Header,
        ioctl: &Ioctl<'_>,
        responder: Responder,
        place: &mut Option<Place>,
    ) -> Option<binder::Due<'_>> {
        match retry::step(ioctl.cmd, ioctl.arg, ioctl.input, ioctl.out_size) {
            Ok(Step::Again(needs)) => {
                responder.ioctl_again(needs.input(), needs.output());
                None
            }
            Ok(Step::Ready { argument, memory, output, read_size }) => {
                let memory = Arc::new(memory);
                let out = CopyOut::Gathered { memory: memory.clone(), output, read_size };
                self.call(header, ioctl.cmd, argument.into(), memory, responder, out, place)
            }
            Err(error) => {
                responder.ioctl(-(error as i32), &[]);
                None
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "it is what all ways of an ioctl come to")]
    fn call(
        self: &Arc<Self>,
        header: &Header,
        cmd: u32,
        argument: FewBytes,
        memory: Arc<dyn ClientMemory>,
        responder: Responder,
        out: CopyOut,
        place: &mut Option<Place>,
    ) -> Option<binder::Due<'_>> {
        let mut reply = Box::new(IoctlReply::new(responder, out));
        if cmd == uapi::BINDER_WRITE_READ {
            reply.can_be_held(self.client.clone(), header.tid);
        }
        if uapi::ioc_type(cmd) == b'F' {
            let mut argument = argument;
            if cmd == uapi::FAKEBINDER_FOR_THREAD {
                return self.call_in_place(header, &argument, memory, reply);
            }
            let result = self.private_ioctl(header, cmd, &mut argument).map(|()| 0);
            reply.send(result, &argument);
            return None;
        }
        let call = Call {
            tid: header.tid,
            uid: header.uid,
            nonblock: self.nonblock,
            cmd,
            arg: argument,
            memory,
            reply,
        };
        if !workers::must_not_stall() {
            return Some(self.process.ioctl(call));
        }
        match self.process.ioctl_without_memory(call) {
            Ok(due) => Some(due),
            Err(call) => {
                let (open, place) = (self.clone(), place.take());
                self.process.carriers().carry(Box::new(move || {
                    let due = open.process.ioctl(*call);
                    drop(place);
                    drop(due);
                }));
                None
            }
        }
    }

    /// An ioctl that the supervisor does in the place of a thread; its answer is the result alone.
    fn call_in_place(
        self: &Arc<Self>,
        header: &Header,
        argument: &[u8],
        memory: Arc<dyn ClientMemory>,
        reply: Box<IoctlReply>,
    ) -> Option<binder::Due<'_>> {
        let (tid, cmd) = match self.in_place_of(header, argument) {
            Ok(meant) => meant,
            Err(errno) => {
                binder::Completion::send(reply, Err(errno), &[]);
                return None;
            }
        };
        let arg = FewBytes::from_elem(0, uapi::ioc_size(cmd));
        let (uid, nonblock) = (header.uid, self.nonblock);
        Some(self.process.ioctl(Call { tid, uid, nonblock, cmd, arg, memory, reply }))
    }

    /// The thread group that has opened the device.
    pub fn pid(&self) -> i32 {
        self.client.pid
    }
}

/// The driver's error for an argument that lies outside of the caller's memory.
fn bad_argument(cmd: u32) -> Errno {
    match cmd {
        uapi::BINDER_VERSION | uapi::BINDER_SET_MAX_THREADS | uapi::BINDER_SET_CONTEXT_MGR_EXT => {
            Errno::EINVAL
        }
        _ => Errno::EFAULT,
    }
}
