//! fakebinderd: Android's Binder IPC as a daemon.

// Locks without a rank (clippy.toml).
#![warn(clippy::disallowed_types)]

mod daemon {
    pub mod background;
    pub mod flags;
    pub mod logging;
}

use clap::Parser;
use daemon::background::{daemonize, ready};
use daemon::flags::{Doors, Options};
use daemon::logging::{log_filters, log_to_standard_error};
use fakebinder::device::claim::{Artifact, Claim};
use fakebinder::device::options::MountOptions;
use fakebinder::device::places::{Links, Places};
use fakebinder::device::tree::Permissions;
use fakebinder::device::{Hub, HubConfig, cuse, fuse};
use fakebinder::log_writer;
use fakebinder::memory::{self, Memory, MemoryConfig};
use fakebinder::probe::{InstallLatency, Probes, inject_into_the_daemon};
use fakebinder::quota::UserLimits;
use fakebinder::shrinker::Reclaimer;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Uid;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

enum Event {
    Signal(Signal),
    /// A door was closed from outside (unmounted, say).
    Closed(String),
}

/// An allocator that gives free memory back to the machine little by little. glibc's keeps it, and
/// where it is told not to (`malloc_trim`), every thread that wants memory waits until it has gone
/// through all.
#[global_allocator]
static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A string of C: the allocator finds its options by the name of a symbol.
#[repr(transparent)]
struct HeapOptions(*const std::ffi::c_char);

// SAFETY: the string is a constant, and only read.
unsafe impl Sync for HeapOptions {}

/// Memory that was free for a second is given back, by a thread of the allocator's own.
#[unsafe(export_name = "_rjem_malloc_conf")]
static HEAP_OPTIONS: HeapOptions = HeapOptions(
    c"background_thread:true,max_background_threads:1,dirty_decay_ms:1000,muzzy_decay_ms:0,thp:never"
        .as_ptr(),
);

fn main() -> ExitCode {
    let options = Options::parse();
    // When --daemonize starts this program again its name would be "exe", which `pkill fakebinderd`
    // misses.
    let _ = nix::sys::prctl::set_name(c"fakebinderd");
    // Where the machine gives huge pages to every process that does not refuse them, each arena of
    // the heap would begin with 2 MiB, and a small control group would be full before the page
    // budget is. (The heap's own option `thp` does not concern that part of an arena; it serves
    // before `main`.)
    let _ = nix::sys::prctl::set_thp_disable(true);
    let filters = log_filters(std::env::var("RUST_LOG").ok().as_deref(), options.verbose);
    let drain = match log_to_standard_error(&filters) {
        Ok(drain) => drain,
        Err(error) => {
            eprintln!("fakebinderd: starting to log: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = must_be_root().and_then(|()| match options.daemonize {
        true => daemonize(&options),
        false => run(&options, &drain),
    });
    drop(drain);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fakebinderd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn must_be_root() -> Result<(), Box<dyn Error>> {
    if Uid::effective().is_root() {
        return Ok(());
    }
    Err("must be run as root: it makes device nodes, mounts, and reads its clients' memory. \
         Without root it can serve the programs of a namespace of your own: unshare -Urm, and \
         the preload library for the programs (docs/containers.md, \"Without root\")"
        .into())
}

fn run(options: &Options, log: &log_writer::Drain) -> Result<(), Box<dyn Error>> {
    if options.detached {
        nix::unistd::setsid()?;
        std::env::set_current_dir("/")?;
    }
    // Before any thread starts, so that all of them leave these signals to the one that waits for
    // them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2] {
        signals.add(signal);
    }
    signals.thread_block()?;
    raise_descriptor_limit();

    let (tell, events) = mpsc::channel();
    let page_budget = options.page_budget.or_else(default_budget);
    let install_latency = options.install_latency.as_ref().map(|path| {
        let failed = |error| format!("{}: {error}", path.display());
        File::create(path).map(|file| (file, Arc::<InstallLatency>::default())).map_err(failed)
    });
    let install_latency = install_latency.transpose()?;
    let memory = Memory::new(MemoryConfig { page_budget, page_install: options.page_install });
    let probes = Probes {
        inject: options.inject.clone(),
        install_latency: install_latency.as_ref().map(|(_, latency)| latency.clone()),
    };
    inject_into_the_daemon(options.inject.clone());
    let reclaimer = if options.no_pressure {
        Reclaimer::on_request(&memory)?
    } else {
        Reclaimer::start(&memory)?
    };
    let opened = open_doors(options, memory, user_limits(options, page_budget), probes, &tell)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            if tell.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    })?;
    // A script that waits for that line may then read what the doors have logged before it.
    log.wait();
    ready();

    let mut open = opened.doors;
    let result = loop {
        match events.recv()? {
            Event::Signal(Signal::SIGUSR2) => reclaimer.kick(),
            Event::Signal(signal) => {
                log::info!("{signal}: closing");
                break Ok(());
            }
            Event::Closed(door) => {
                log::warn!("{door} was closed from outside");
                open -= 1;
                if open == 0 {
                    break Err("all doors were closed from outside".into());
                }
            }
        }
    };
    drop(opened);
    if let Some((mut file, latency)) = install_latency {
        write!(file, "{latency}")?;
    }
    result
}

/// Three quarters of the control group's memory limit, or half of the memory that the machine has
/// left, whichever is less.
fn default_budget() -> Option<u64> {
    let group = memory::group_limit()
        .map(|limit| (limit / 4 * 3, "three quarters of this control group's memory"));
    let machine = memory::available_memory()
        .map(|left| (left / 2, "half of the memory that is available now"));
    let (budget, what) =
        [group, machine].into_iter().flatten().min_by_key(|(budget, _)| *budget)?;
    log::info!("buffers and records may take {} MiB, {what}", budget >> 20);
    Some(budget)
}

/// Half of everything for each user, unless the options say otherwise.
fn user_limits(options: &Options, budget: Option<u64>) -> UserLimits {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let mappings = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let mappings = mappings.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65_530);
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let mut limits = UserLimits::half_of(descriptors, mappings, budget);
    for limit in &options.user_limit {
        limits.set(limit.what, limit.most);
    }
    limits
}

struct Opened {
    doors: usize,
    /// Removed when the daemon ends: the links, and then the mount.
    _places: Places,
    _claim: Option<Claim>,
}

fn open_doors(
    options: &Options,
    memory: Arc<Memory>,
    user_limits: UserLimits,
    probes: Probes,
    tell: &mpsc::Sender<Event>,
) -> Result<Opened, Box<dyn Error>> {
    let permissions =
        Permissions { mode: options.mode, uid: options.owner.0, gid: options.owner.1 };
    let on_end = |door: String| {
        let tell = tell.clone();
        Box::new(move || drop(tell.send(Event::Closed(door)))) as Box<dyn FnOnce() + Send>
    };
    let security_contexts = options.security_context.clone().unwrap_or_default();
    let never_trace = options.never_trace;
    let config = HubConfig { security_contexts, user_limits, probes, never_trace };
    let hub = Hub::with(memory, config)?;
    let mut names = options.names.clone();
    names.sort();
    names.dedup();
    if names.len() > options.max_devices {
        return Err(format!("{} devices are more than --max-devices allows", names.len()).into());
    }
    let mut doors = 0;
    let mut failures = Vec::new();
    let mut mounted = None;
    Claim::sweep();
    let mut places = Places::new(match (&options.link, options.no_link) {
        (_, true) => Links::None,
        (Some(directory), false) => Links::In(std::path::absolute(directory)?),
        (None, false) => Links::Convenience,
    });
    let cuse = options.door == Doors::Cuse
        || options.door == Doors::Auto && Path::new("/dev/cuse").exists();
    for name in &names {
        if cuse {
            places.claim_node(name)?;
        }
        if options.door != Doors::Cuse {
            places.claim_link(name)?;
        }
    }

    for name in names.iter().filter(|_| options.door != Doors::Fuse) {
        let door = format!("/dev/{name} (CUSE)");
        let opened = places.make_node(name, |claim| {
            cuse::open(hub.device(name), claim, permissions, on_end(door.clone()))
        });
        match opened
            .unwrap_or(Err(cuse::Error::Device(std::io::Error::from_raw_os_error(libc::ENOENT))))
        {
            Ok(()) => {
                log::info!("{door} is open");
                doors += 1;
            }
            Err(error) => {
                log::info!("{door} is not open: {error}");
                failures.push(format!("{door}: {error}"));
            }
        }
    }
    if options.door != Doors::Cuse {
        let mount = std::path::absolute(&options.mount)?;
        let door = format!("{} (FUSE)", mount.display());
        let devices = names.iter().map(|name| hub.device(name)).collect();
        let result = (|| -> Result<Claim, Box<dyn Error>> {
            let mut claim = Claim::take(&mount)?;
            claim.directory(&mount)?;
            claim.note(Artifact::Mount { path: mount.clone() })?;
            let mount_options = MountOptions {
                max_devices: options.max_devices,
                stats: options.stats,
                passthrough: !options.no_passthrough,
                transport: options.transport,
                ..MountOptions::new(permissions)
            };
            fuse::open(&mount, &hub, devices, &mount_options, on_end(door.clone()))?;
            names.iter().try_for_each(|name| places.make_link(name, &mount))?;
            Ok(claim)
        })();
        match result {
            Ok(claim) => {
                log::info!("{door} is open: {}", names.join(", "));
                doors += 1;
                mounted = Some(claim);
            }
            Err(error) => {
                log::info!("{door} is not open: {error}");
                failures.push(format!("{door}: {error}"));
            }
        }
    }
    match doors {
        0 => Err(format!("no door could be opened\n  {}", failures.join("\n  ")).into()),
        _ => Ok(Opened { doors, _claim: mounted, _places: places }),
    }
}

/// Raises the limit of open descriptors: a client costs several, and the kernel's own hard limit of
/// 4,096 is soon reached. Past that limit only with CAP_SYS_RESOURCE.
fn raise_descriptor_limit() {
    const ENOUGH: u64 = 1 << 20;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        let more = hard.max(ENOUGH);
        setrlimit(Resource::RLIMIT_NOFILE, more, more)
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
    });
    if let Err(error) = raised {
        log::warn!("raising the limit of open files: {error}");
    }
}
