//! fakebinderd: Android's Binder IPC as a daemon.

// Locks without a rank (clippy.toml).
#![warn(clippy::disallowed_types)]

mod daemon {
    pub mod background;
    pub mod doors;
    pub mod filter;
    pub mod flags;
    #[cfg(feature = "jemalloc")]
    pub mod heap;
    pub mod logging;
    pub mod privileges;
    pub mod service_manager;
}

use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use daemon::background::{daemonize, ready};
use daemon::doors::{Opened, open_doors};
use daemon::filter;
use daemon::flags::Options;
use daemon::logging::{log_filters, log_to_standard_error};
use daemon::privileges::give_up;
use daemon::service_manager;
use fakebinder::device::liveness::Liveness;
use fakebinder::device::mounting::{KEEP_MOUNT, keep_mount};
use fakebinder::device::uring::Transport;
use fakebinder::device::{Hub, HubConfig, TracingProcess};
use fakebinder::log_writer;
use fakebinder::memory::{self, Memory, MemoryConfig};
use fakebinder::probe::{InstallLatency, Probes, inject_into_the_daemon};
use fakebinder::quota::UserLimits;
use fakebinder::shrinker::Reclaimer;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

enum Event {
    Signal(Signal),
    /// A door was closed from outside (unmounted, say).
    Closed(String),
    /// Whoever was asked whether the daemon works has answered.
    Alive,
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == KEEP_MOUNT) {
        return match keep_mount() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let options = Options::parse();
    if let Some(folder) = &options.generate {
        return match generate(folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("fakebinderd: {}: {error}", folder.display());
                ExitCode::FAILURE
            }
        };
    }
    // When --daemonize starts this program again its name would be "exe", which `pkill fakebinderd`
    // misses.
    let _ = nix::sys::prctl::set_name(c"fakebinderd");
    // Where the machine gives huge pages to every process that does not refuse them, each arena of
    // the heap would begin with 2 MiB, and a small control group would be full before the page
    // budget is. (The heap's own option `thp` does not concern that part of an arena; it serves
    // before `main`.)
    let _ = nix::sys::prctl::set_thp_disable(true);
    // The parent of a daemon in the background leaves both to its child.
    let mut tracing = None;
    let prepared = if options.daemonize { Ok(()) } else { prepare(&options, &mut tracing) };
    let filters = log_filters(std::env::var("RUST_LOG").ok().as_deref(), options.verbose);
    let drain = match log_to_standard_error(&filters) {
        Ok(drain) => drain,
        Err(error) => {
            eprintln!("fakebinderd: starting to log: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = prepared {
        log::warn!("{error}");
    }
    let result = match options.daemonize {
        true => daemonize(&options),
        false => run(&options, tracing, &drain),
    };
    drop(drain);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fakebinderd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(
    options: &Options,
    tracing: Option<TracingProcess>,
    log: &log_writer::Drain,
) -> Result<(), Box<dyn Error>> {
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
    let security_contexts = options.security_context.clone().unwrap_or_default();
    let (user_limits, never_trace) = (user_limits(options, page_budget), options.never_trace);
    let tracing = tracing.map(Arc::new);
    let config = HubConfig { security_contexts, user_limits, probes, never_trace, tracing };
    let hub = Hub::with(memory, config)?;
    let closed = {
        let tell = tell.clone();
        Arc::new(move |door| drop(tell.send(Event::Closed(door))))
    };
    let opened = open_doors(options, &hub, closed)?;
    let tell_alive = tell.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            if tell.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    })?;
    limit_system_calls(options, &opened);
    // A script that waits for that line may then read what the doors have logged before it.
    log.wait();
    ready();
    if let Some(period) = service_manager::watchdog_period() {
        let mut liveness = hub.liveness();
        opened.join(&mut liveness);
        look_after_the_daemon(liveness, period, tell_alive)?;
    }

    let mut open = opened.doors();
    let result = loop {
        match events.recv()? {
            Event::Signal(Signal::SIGUSR2) => reclaimer.kick(),
            Event::Signal(signal) => {
                log::info!("{signal}: closing");
                break Ok(());
            }
            Event::Alive => service_manager::tell(service_manager::ALIVE),
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

/// Tells the main thread, at that period, that the daemon works. Where something hangs, this thread
/// hangs with it, and the service manager hears no more.
fn look_after_the_daemon(
    liveness: Liveness,
    period: Duration,
    tell: mpsc::Sender<Event>,
) -> io::Result<()> {
    let look = move || {
        loop {
            liveness.ask();
            if tell.send(Event::Alive).is_err() {
                return;
            }
            std::thread::sleep(period);
        }
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(look).map(drop)
}

/// From here on, no thread may make other system calls than those that serving takes.
fn limit_system_calls(options: &Options, opened: &Opened) {
    if options.no_seccomp {
        return;
    }
    if opened.take_a_program_to_close() {
        return log::info!(
            "there is no seccomp filter: fusermount3, which is to unmount, could not be started under it"
        );
    }
    let needs = filter::Needs { io_uring: options.transport != Transport::Read };
    if let Err(error) = filter::install(needs) {
        log::warn!("there is no seccomp filter, the daemon may make every system call: {error}");
    }
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

/// The man page and the completions.
fn generate(folder: &Path) -> io::Result<()> {
    let mut command = Options::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "fakebinderd", folder)?;
    }
    clap_mangen::generate_to(command, folder)
}

/// What comes before the first thread, that of the log. The error is for the log.
fn prepare(options: &Options, tracing: &mut Option<TracingProcess>) -> Result<(), String> {
    let raised = raise_descriptor_limit();
    give_up().map_err(|error| format!("giving up privileges: {error}"))?;
    if !options.never_trace && !options.no_seccomp {
        // SAFETY: no thread was started yet; the heap's and the log's are next.
        let started = unsafe { TracingProcess::start() };
        *tracing = started.map_err(|error| format!("starting the tracing process: {error}"))?;
    }
    #[cfg(feature = "jemalloc")]
    daemon::heap::start().map_err(|error| format!("starting the heap's thread: {error}"))?;
    raised.map_err(|error| format!("raising the limit of open files: {error}"))
}

/// Raises the limit of open descriptors: a client costs several, and the kernel's own hard limit of
/// 4,096 is soon reached. Past that limit only with CAP_SYS_RESOURCE.
fn raise_descriptor_limit() -> nix::Result<()> {
    const ENOUGH: u64 = 1 << 20;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let more = hard.max(ENOUGH);
    setrlimit(Resource::RLIMIT_NOFILE, more, more)
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
}
