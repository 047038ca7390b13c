//! fakebinderd: Android's Binder IPC as a daemon.

// Locks without a rank (clippy.toml).
#![warn(clippy::disallowed_types)]

use clap::{ArgAction, Parser, ValueEnum};
use fakebinder::device::claim::{Claim, Thing};
use fakebinder::device::options::{MAX_DEVICES, MOST_DEVICES, MountOptions, Stats};
use fakebinder::device::places::{Links, Places};
use fakebinder::device::security_context::SecurityContexts;
use fakebinder::device::tree::Permissions;
use fakebinder::device::{Hub, HubConfig, cuse, fuse};
use fakebinder::log_writer;
use fakebinder::memory::{self, Memory, MemoryConfig, PageInstall, tune_heap};
use fakebinder::probe::{Injector, InstallLatency, Probes, inject_into_the_daemon};
use fakebinder::quota::{UserLimit, UserLimits};
use fakebinder::shrinker::Reclaimer;
use log::LevelFilter;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Group, Uid, User};
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};

/// Android's Binder IPC in userspace: serves binder devices without a kernel driver.
///
/// Each device is opened through one or two doors. CUSE makes it a character device, /dev/NAME,
/// which clients use through fakebinder's client library or preload shim (a CUSE device cannot be
/// mapped). FUSE makes it a file in a mounted directory, which unmodified binder clients can use
/// (Linux 6.9 or newer); /dev/NAME is then a link to it, unless CUSE has made that.
///
/// Runs until SIGTERM or SIGINT, and leaves nothing behind. SIGUSR2 has every page reclaimed that
/// no buffer uses. Prints "fakebinderd: ready" once
/// clients can come.
#[derive(Debug, Parser)]
#[command(name = "fakebinderd", version, max_term_width = 100)]
struct Options {
    /// A device to serve; may be given more than once, as in --name binder --name hwbinder
    #[arg(long = "name", value_name = "NAME", default_value = "fakebinder", value_parser = device_name)]
    names: Vec<String>,

    /// Which doors to open: every one that this machine has, or just one
    #[arg(long, value_enum, default_value_t = Doors::Auto)]
    door: Doors,

    /// Where to mount the FUSE door's directory; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "/dev/fakebinderfs")]
    mount: PathBuf,

    /// Where to make links to the FUSE door's devices; /dev unless told otherwise, and then nothing is amiss if it cannot be written
    #[arg(long, value_name = "DIR", conflicts_with = "no_link")]
    link: Option<PathBuf>,

    /// Make no links: the devices are in the mounted directory only
    #[arg(long)]
    no_link: bool,

    /// Permissions of the devices, in octal
    #[arg(long, value_name = "OCTAL", default_value = "0666", value_parser = mode)]
    mode: u32,

    /// Who owns the devices, by name or by number
    #[arg(long, value_name = "USER[:GROUP]", default_value = "0:0", value_parser = owner)]
    owner: (u32, u32),

    /// How many devices the mount may hold, those of --name and those that binder-control adds (binderfs: max=)
    #[arg(long, value_name = "N", default_value_t = MAX_DEVICES, value_parser = max_devices)]
    max_devices: usize,

    /// Who may see binder_logs/ in the mount; --stats alone is --stats global (binderfs: stats=global)
    #[arg(long, value_name = "WHO", value_enum, default_value_t = Stats::Root, num_args = 0..=1, require_equals = true,
          default_missing_value = "global")]
    stats: Stats,

    /// Stay in the foreground, and log to standard error (the default)
    #[arg(long, conflicts_with = "daemonize")]
    foreground: bool,

    /// Go on in the background; this command returns when the devices are ready
    #[arg(long)]
    daemonize: bool,

    /// Where --daemonize writes the log
    #[arg(long, value_name = "FILE", default_value = "/var/log/fakebinderd.log")]
    log: PathBuf,

    /// How the pages of a buffer are installed: many at a time, or one after the other, as the driver did before Linux 6.14
    #[arg(long, value_name = "shared|exclusive", default_value_t = PageInstall::Shared)]
    page_install: PageInstall,

    /// The most memory that the buffers and records of all clients together may take, in bytes or with K, M or G; what is not
    /// in use is reclaimed first, then a transaction fails. Without it: three quarters of the memory limit of the daemon's
    /// control group, or half of the memory that is available at the start, whichever is less
    #[arg(long, value_name = "SIZE", value_parser = size)]
    page_budget: Option<u64>,

    /// The most of something that one user other than root may make the daemon hold, as in opens=1000 or oneway-bytes=16M; may be
    /// given more than once. It is counted over all of the user's processes: opens, descriptors, pages (of 4 KiB), records
    /// (threads, nodes, references, death and freeze links, transactions), record-bytes, oneway-bytes and stalled-copies. Without
    /// it: half of what there is
    #[arg(long, value_name = "WHAT=N")]
    user_limit: Vec<UserLimit>,

    /// The security context that nodes which ask for one are told of their callers (Android's service managers ask on every call):
    /// a label for everybody, as in u:r:app:s0, or with @FILE one for each user, in lines of UID LABEL or * LABEL. Without it, as
    /// the driver does: what SELinux or Smack says; without these, such a call fails
    #[arg(long, value_name = "LABEL|@FILE")]
    security_context: Option<SecurityContexts>,

    /// Make operations fail or wait, for tests: OPERATION:WHEN, then :errno or :delay or both, and commas between rules, as in
    /// alloc_page:nth=3:errno=ENOMEM, zap:share=0.1:delay=1ms,seed=7 or alloc_page:pid=4711:delay=1ms (for what that process sends);
    /// operations are alloc_page, vm_insert_page, vma_lookup, mmget and zap, and what the daemon needs for itself: descriptor, mmap,
    /// poll, read_memory, write_memory, send, record, receive, reply and thread
    #[arg(long, value_name = "SPEC", default_value = "", hide_default_value = true)]
    inject: Injector,

    /// At the end, write to FILE how long senders waited for the pages of their transactions: lines of a sender's pid, a
    /// time in nanoseconds (rounded up by 6 % at most) and how many transactions waited so long
    #[arg(long, value_name = "FILE")]
    install_latency: Option<PathBuf>,

    /// Log more: twice for every request. RUST_LOG (see env_logger) alone says what is logged in place of the usual lines;
    /// with -v a line is logged when either asks for it
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,

    /// Act as if the kernel had no FUSE passthrough
    #[arg(long, hide = true)]
    no_passthrough: bool,

    /// What --daemonize runs
    #[arg(long, hide = true)]
    detached: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Doors {
    Auto,
    Cuse,
    Fuse,
}

const READY: &str = "fakebinderd: ready";

/// What else the mounted directory may hold.
const RESERVED: [&str; 3] = ["binder-control", "binder_logs", "features"];

fn device_name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(allowed) {
        return Err("a device name has letters, digits, and _ - . after the first".into());
    }
    if RESERVED.contains(&name) {
        return Err("this name has a meaning of its own in the directory of devices".into());
    }
    Ok(name.to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G', 'k', 'm', 'g']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, ""),
    };
    let shift = match unit {
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => 0,
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes >= 4096).ok_or_else(|| {
        "a size is a number of bytes, of at least a page, or a number with K, M or G, as in 64M"
            .into()
    })
}

fn max_devices(number: &str) -> Result<usize, String> {
    let number = number.parse().ok().filter(|number| *number <= MOST_DEVICES);
    number.ok_or_else(|| format!("a number of devices is at most {MOST_DEVICES}"))
}

fn mode(octal: &str) -> Result<u32, String> {
    match u32::from_str_radix(octal, 8) {
        Ok(mode) if mode & !0o777 == 0 => Ok(mode),
        _ => Err("permissions are three octal digits, as in 660".into()),
    }
}

fn owner(owner: &str) -> Result<(u32, u32), String> {
    let (user, group) = match owner.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (owner, None),
    };
    let known = |found: nix::Result<Option<User>>| found.ok().flatten();
    let (uid, own_group) = match user.parse() {
        Ok(uid) => (uid, known(User::from_uid(Uid::from_raw(uid))).map(|user| user.gid)),
        Err(_) => {
            let user = known(User::from_name(user)).ok_or(format!("there is no user {user}"))?;
            (user.uid.as_raw(), Some(user.gid))
        }
    };
    let gid = match group {
        None => own_group.map_or(uid, Gid::as_raw),
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => Group::from_name(group)
                .ok()
                .flatten()
                .ok_or(format!("there is no group {group}"))?
                .gid
                .as_raw(),
        },
    };
    Ok((uid, gid))
}

enum Event {
    Signal(Signal),
    /// A door has been closed from outside.
    Closed(String),
}

fn main() -> ExitCode {
    let options = Options::parse();
    // Started again by --daemonize it would be called "exe", and `pkill fakebinderd` miss it.
    let _ = nix::sys::prctl::set_name(c"fakebinderd");
    tune_heap();
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

/// Logs by a thread of its own: whoever has something to say must not wait for whoever reads it.
fn log_to_standard_error(filters: &str) -> std::io::Result<log_writer::Drain> {
    let (writer, drain) = log_writer::start(std::io::stderr())?;
    let mut logger = env_logger::Builder::new();
    let style = std::env::var("RUST_LOG_STYLE").unwrap_or_default();
    logger.parse_filters(filters).parse_write_style(&style);
    if std::io::stderr().is_terminal() && style.is_empty() {
        logger.write_style(env_logger::WriteStyle::Always);
    }
    logger.format_target(false).target(env_logger::Target::Pipe(Box::new(writer))).init();
    Ok(drain)
}

/// The filters of env_logger for this RUST_LOG and so many `-v`: a line is logged when either asks
/// for it.
fn log_filters(rust_log: Option<&str>, verbose: u8) -> String {
    let rust_log = rust_log.filter(|filters| !filters.trim().is_empty());
    let least = match (verbose, rust_log) {
        (0, None) => return "info".into(),
        (0, Some(filters)) => return filters.into(),
        (1, _) => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let (directives, pattern) = match rust_log.unwrap_or_default().split_once('/') {
        Some((directives, pattern)) => (directives, format!("/{pattern}")),
        None => (rust_log.unwrap_or_default(), String::new()),
    };
    let mut everything = least;
    let mut filters = Vec::new();
    for directive in directives.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        match directive.split_once('=') {
            Some((module, level)) => match level.trim().parse::<LevelFilter>() {
                Ok(level) => filters.push(format!("{module}={}", level.max(least))),
                // Every level, or a mistake that env_logger tells of.
                Err(_) => filters.push(directive.to_owned()),
            },
            None => match directive.parse::<LevelFilter>() {
                Ok(level) => everything = everything.max(level),
                Err(_) => filters.push(directive.to_owned()),
            },
        }
    }
    filters.push(everything.to_string());
    filters.join(",") + &pattern
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
    // Before any thread, so that all of them leave these to the one that waits for them.
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
    let reclaimer = Reclaimer::start(&memory)?;
    let opened = open_doors(options, memory, user_limits(options, page_budget), probes, &tell)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            if tell.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    })?;
    // Whoever waits for that line may look at what the doors have said before it.
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

/// Three quarters of the control group's memory limit or half of what the machine has left, whichever
/// is less.
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

/// Half of everything for one user, but for what the options say.
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
    /// What goes when the daemon goes: the links, and then the mount.
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
    let hub = Hub::with(memory, HubConfig { security_contexts, user_limits, probes })?;
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
            claim.note(Thing::Mount { path: mount.clone() })?;
            let mount_options = MountOptions {
                max_devices: options.max_devices,
                stats: options.stats,
                passthrough: !options.no_passthrough,
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

/// A client costs several descriptors, and the kernel's own hard limit of 4,096 is soon reached: who may
/// (CAP_SYS_RESOURCE) takes more.
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

/// Tells whoever waits for us: a script that reads our output, or a service manager.
fn ready() {
    println!("{READY}");
    let _ = std::io::stdout().flush();
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = UnixDatagram::unbound().and_then(|sender| {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        match socket.as_bytes().strip_prefix(b"@") {
            Some(name) => {
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                sender.send_to_addr(b"READY=1", &address)
            }
            None => sender.send_to(b"READY=1", &socket),
        }
    });
    if let Err(error) = told {
        log::warn!("telling the service manager: {error}");
    }
}

/// Runs this program again, without a terminal, and waits until it is ready or has failed.
fn daemonize(options: &Options) -> Result<(), Box<dyn Error>> {
    let failed = |error| format!("{}: {error}", options.log.display());
    let mut log: File = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .open(&options.log)
        .map_err(failed)?;
    let start = log.seek(SeekFrom::End(0))?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--daemonize");
    let mut child = Command::new("/proc/self/exe")
        .args(arguments)
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    if BufReader::new(output).lines().map_while(Result::ok).any(|line| line == READY) {
        return Ok(());
    }
    child.wait()?;
    log.seek(SeekFrom::Start(start))?;
    let mut said = String::new();
    log.read_to_string(&mut said)?;
    Err(format!("did not start; {} says:\n{said}", options.log.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }

    #[test]
    fn a_name_cannot_lead_out_of_dev() {
        for name in ["", ".", "..", "a/b", "/etc", ".open", "a b", "features", "ü"] {
            assert!(device_name(name).is_err(), "{name}");
        }
        for name in ["binder", "hw-binder_2", "a.b"] {
            assert!(device_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn an_owner_is_a_user_with_or_without_a_group() {
        assert_eq!(owner("root"), Ok((0, 0)));
        assert_eq!(owner("0:42"), Ok((0, 42)));
        assert_eq!(owner("1:root"), Ok((1, 0)));
        assert!(owner("no-such-user").is_err());
        assert!(owner("0:no-such-group").is_err());
    }

    #[test]
    fn a_line_is_logged_when_rust_log_or_the_flag_asks_for_it() {
        assert_eq!(log_filters(None, 0), "info");
        assert_eq!(log_filters(Some(" "), 0), "info");
        assert_eq!(log_filters(Some("warn,x=trace"), 0), "warn,x=trace");
        assert_eq!(log_filters(None, 1), "DEBUG");
        assert_eq!(log_filters(None, 3), "TRACE");
        assert_eq!(log_filters(Some("warn"), 1), "DEBUG");
        assert_eq!(log_filters(Some("trace"), 1), "TRACE");
        assert_eq!(log_filters(Some("a=warn,b=trace,c,d="), 1), "a=DEBUG,b=TRACE,c,d=,DEBUG");
        assert_eq!(log_filters(Some("off, a=error/late"), 2), "a=TRACE,TRACE/late");
    }

    #[test]
    fn permissions_are_octal_and_no_more_than_permissions() {
        assert_eq!(mode("0660"), Ok(0o660));
        assert!(mode("4755").is_err());
        assert!(mode("9").is_err());
    }
}
