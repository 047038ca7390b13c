//! Where the steps are played: the daemons, and the programs that are measured.

use super::plan::{READ, Sizes, Step, URING, What};
use super::{Outcome, Skipped};
use crate::common::stepping::{Stepping, build};
use crate::common::{Daemon, Door, library, unique_name};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Devices of a place: a pair of programs each.
pub const PAIRS: usize = 8;
/// Each may take a minute.
const MOST_FAILURES: usize = 3;
const ONE_CORE: [&str; 3] = ["taskset", "-c", "0"];

/// Devices that a column's rows are measured on, by programs on one core or on any.
pub struct Place {
    /// Of the daemon; none of the kernel's driver.
    door: Option<Door>,
    column: &'static str,
    pinned: bool,
    /// What is loaded into the programs.
    preload: Option<PathBuf>,
    /// Why there are none, in one line.
    devices: Result<Vec<PathBuf>, String>,
    /// Rows that failed here.
    failures: usize,
    /// Behind the devices, if it is not the kernel's driver.
    pub daemon: Option<Daemon>,
}

/// The last of what a program said, without the time before it.
fn last_line(log: &str) -> String {
    let line = log.trim_end().lines().last().unwrap_or("it said nothing");
    line.split_once("] ").map_or(line, |(_, words)| words).to_owned()
}

/// The daemon's flags for a column.
pub fn transport(column: &str) -> [&'static str; 2] {
    ["--transport", if column.ends_with(URING) { "uring" } else { "read" }]
}

impl Place {
    /// A daemon with a door, which is to stay on one core or may go where it likes.
    fn serve(column: &'static str, door: Door, pinned: bool) -> Place {
        let launcher: &[&str] = if pinned { &ONE_CORE } else { &[] };
        let names: Vec<String> = (1..PAIRS).map(|_| unique_name()).collect();
        let mut arguments = vec!["--no-link"];
        arguments.extend(transport(column));
        arguments.extend(names.iter().flat_map(|name| ["--name", name]));
        let started = Daemon::try_start(door, launcher, &arguments);
        let preload = (door == Door::Cuse).then(|| library("libfakebinder_preload.so"));
        let (devices, daemon) = match started {
            Ok(daemon) => {
                let directory = match door {
                    Door::Cuse => Path::new("/dev"),
                    _ => &daemon.mount,
                };
                let all = std::iter::once(&daemon.name).chain(&names);
                (Ok(all.map(|name| directory.join(name)).collect()), Some(daemon))
            }
            Err(log) => (Err(last_line(&log)), None),
        };
        Place { door: Some(door), column, pinned, preload, devices, failures: 0, daemon }
    }

    /// The kernel's driver.
    fn driver(pinned: bool) -> Place {
        let names = (0..PAIRS).map(|pair| match pair {
            0 => "binder".to_owned(),
            pair => format!("pair-{pair}"),
        });
        let found: Option<Vec<PathBuf>> = names.map(|name| driver_device(&name)).collect();
        let devices = found.ok_or_else(|| "this kernel has no such driver".to_owned());
        let (door, preload, daemon) = (None, None, None);
        Place { door, column: DRIVER, pinned, preload, devices, failures: 0, daemon }
    }

    /// A device of it.
    pub fn device(&self, pair: usize) -> Outcome<&Path> {
        match &self.devices {
            Ok(devices) => Ok(&devices[pair]),
            Err(reason) => Err(Skipped(reason.clone()).into()),
        }
    }
}

fn driver_device(name: &str) -> Option<PathBuf> {
    let places = ["/dev", "/dev/binderfs"].map(|directory| Path::new(directory).join(name));
    places.into_iter().find(|path| path.exists())
}

const DRIVER: &str = "driver";
const CUSE: &str = "CUSE";
const FUSE_READ: &str = "FUSE, read";
const FUSE_URING: &str = "FUSE, io_uring";
/// In the VM, with what the others are compared with at first.
pub const VM_COLUMNS: [&str; 4] = [DRIVER, CUSE, FUSE_READ, FUSE_URING];

/// The programs in C, by the names of their sources.
const PROGRAMS: [&str; 3] = ["ping", "limits", "crowd"];

/// Builds them there.
pub fn build_programs(directory: &Path) -> Outcome<()> {
    for program in PROGRAMS {
        build(&format!("{program}.c"), directory)?;
    }
    Ok(())
}

/// A daemon of a step's own, by a program that becomes the daemon if one is given.
pub fn fresh(column: &str, launcher: &[&str]) -> Outcome<Daemon> {
    let arguments = [&["--no-link"], &transport(column)[..]].concat();
    Daemon::try_start(Door::Fuse, launcher, &arguments).map_err(|log| match column {
        URING => Skipped(last_line(&log)).into(),
        _ => log.into(),
    })
}

/// All that steps are played with.
pub struct Stage {
    places: Vec<Place>,
    pub directory: PathBuf,
    ping: PathBuf,
    limits: PathBuf,
    pub crowd: PathBuf,
    pub dbus: Result<PathBuf, String>,
    pub sizes: Sizes,
}

impl Stage {
    fn set(directory: &Path, sizes: &Sizes, places: Vec<Place>) -> Stage {
        let [ping, limits, crowd] = PROGRAMS.map(|program| directory.join(program));
        let dbus = Err("it is not measured here".into());
        let (directory, sizes) = (directory.to_owned(), sizes.clone());
        Stage { places, directory, ping, limits, crowd, dbus, sizes }
    }

    /// Daemons of their own for rows on one core: those that are idle cost the others nothing.
    pub fn native(directory: &Path, sizes: &Sizes) -> Stage {
        let mut places = Vec::new();
        for pinned in [true, false] {
            for column in [READ, URING] {
                places.push(Place::serve(column, Door::Fuse, pinned));
            }
        }
        Stage { dbus: super::dbus::build(), ..Stage::set(directory, sizes, places) }
    }

    /// In the VM: the driver, and both doors.
    pub fn vm(directory: &Path, sizes: &Sizes) -> Stage {
        let mut places = Vec::new();
        for pinned in [true, false] {
            places.push(Place::driver(pinned));
            places.push(Place::serve(CUSE, Door::Cuse, pinned));
            places.push(Place::serve(FUSE_READ, Door::Fuse, pinned));
            places.push(Place::serve(FUSE_URING, Door::Fuse, pinned));
        }
        Stage::set(directory, sizes, places)
    }

    /// The place of a column.
    pub fn place(&self, column: &str, pinned: bool) -> &Place {
        let mut places = self.places.iter();
        let place = places.find(|place| place.column == column && place.pinned == pinned);
        place.expect("each column has its places")
    }

    /// Puts another daemon in the place of one that a step has failed with: what it has not answered
    /// would keep programs of that step, and every later step, waiting.
    pub fn renew(&mut self, step: &Step) {
        let mut places = self.places.iter_mut();
        let found = places.find(|it| it.column == step.column && it.pinned == step.pinned);
        let Some(place) = found else { return };
        if let (Some(door), Some(daemon)) = (place.door, place.daemon.take()) {
            daemon.abandon();
            let failures = place.failures + 1;
            *place = Place::serve(place.column, door, place.pinned);
            place.failures = failures;
            if failures >= MOST_FAILURES {
                place.devices = Err(format!("{failures} rows before have failed here"));
            }
        }
    }

    /// Ends the daemons, and checks that nothing is left of them.
    pub fn stop(self) {
        self.places.into_iter().filter_map(|place| place.daemon).for_each(Daemon::stop);
    }

    /// Starts a program that is ready when it says so.
    pub fn start(program: &Path, arguments: &[&str], pinned: bool) -> Outcome<Stepping> {
        Ok(Stepping::start(&mut command(program, arguments, pinned))?)
    }

    /// ping.c on a device of a place.
    pub fn ping(&self, place: &Place, pair: usize, arguments: &[&str]) -> Outcome<Stepping> {
        let device = place.device(pair)?.display().to_string();
        let mut command = command(&self.ping, &[&[&*device], arguments].concat(), place.pinned);
        if let Some(library) = &place.preload {
            command.env("LD_PRELOAD", library);
        }
        Ok(Stepping::start(&mut command)?)
    }

    /// The same on a device that is none of a place's.
    pub fn ping_on(&self, device: &Path, arguments: &[&str]) -> Outcome<Stepping> {
        let device = device.display().to_string();
        Stage::start(&self.ping, &[&[&*device], arguments].concat(), false)
    }

    /// The values of a step's rows in one round.
    pub fn measure(&self, step: &Step) -> Outcome<Vec<f64>> {
        let count = &*self.sizes.calls.to_string();
        let limit = |arguments: &[&str]| {
            let mut program = Stage::start(&self.limits, arguments, step.pinned)?;
            Ok(vec![once(&mut program)?.median])
        };
        let place = || self.place(step.column, step.pinned);
        match step.what {
            What::Limit(means) => limit(&[means, count]),
            What::Copy(size) => limit(&["memcpy", count, &size.to_string()]),
            What::Nothing => {
                let mut caller = self.ping(place(), 0, &["nothing", count])?;
                Ok(vec![once(&mut caller)?.median])
            }
            What::Call { size, files } => {
                let place = place();
                let _server = self.ping(place, 0, &["serve"])?;
                let arguments = ["call", count, &size.to_string(), &files.to_string()];
                let mut caller = self.ping(place, 0, &arguments)?;
                Ok(vec![once(&mut caller)?.median])
            }
            What::OneWay => {
                let place = place();
                let _server = self.ping(place, 0, &["serve"])?;
                let mut caller = self.ping(place, 0, &["send", count])?;
                Ok(vec![self.sizes.calls as f64 * 1e6 / once(&mut caller)?.all])
            }
            What::Pairs(pairs) => {
                let place = place();
                let serve = |pair| self.ping(place, pair, &["serve"]);
                let _servers = (0..pairs).map(serve).collect::<Outcome<Vec<_>>>()?;
                self.together(place, 0..pairs)
            }
            What::Pool(threads) => {
                let place = place();
                let _server = self.ping(place, 0, &["serve", &threads.to_string()])?;
                self.together(place, (0..threads).map(|_| 0))
            }
            What::DBus => super::dbus::measure(self, step.pinned),
            What::Pages => super::pages::measure(),
            What::Crowd => super::crowd::measure(self, step.column),
            What::Beside => super::beside::measure(self, step.column),
            What::SystemCalls => super::counts::system_calls(self, step.column),
            What::Instructions => super::counts::instructions(self, step.column),
        }
    }

    /// Callers of these devices at the same time: how many calls a second they make in all.
    fn together(&self, place: &Place, pairs: impl Iterator<Item = usize>) -> Outcome<Vec<f64>> {
        let count = self.sizes.calls.to_string();
        let call = |pair| self.ping(place, pair, &["call", &count]);
        let mut callers = pairs.map(call).collect::<Outcome<Vec<_>>>()?;
        callers.iter_mut().try_for_each(Stepping::go_on)?;
        let mut longest = 0f64;
        for caller in &mut callers {
            longest = longest.max(times(caller)?.all);
        }
        Ok(vec![(self.sizes.calls * callers.len() as u64) as f64 * 1e6 / longest])
    }
}

fn command(program: &Path, arguments: &[&str], pinned: bool) -> Command {
    let mut command = match pinned {
        true => Command::new(ONE_CORE[0]),
        false => Command::new(program),
    };
    if pinned {
        command.args(&ONE_CORE[1..]).arg(program);
    }
    command.args(arguments);
    command
}

/// What a measured program says, in microseconds.
pub struct Times {
    pub median: f64,
    pub p999: f64,
    pub all: f64,
}

/// What it says of a step that it was told to make.
pub fn times(program: &mut Stepping) -> Outcome<Times> {
    let line = program.line()?;
    let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    match numbers[..] {
        [median, _, p999, all] => {
            Ok(Times { median: median / 1e3, p999: p999 / 1e3, all: all / 1e3 })
        }
        _ => Err(format!("a program said {line:?}").into()),
    }
}

/// One step of it.
pub fn once(program: &mut Stepping) -> Outcome<Times> {
    program.go_on()?;
    times(program)
}
