//! Which doors the daemon opens.

use super::flags::{Doors, Options};
use fakebinder::binder::Context;
use fakebinder::client_mem::ptrace_scope;
use fakebinder::device::claim::Claim;
use fakebinder::device::fuse::Served;
use fakebinder::device::liveness::Liveness;
use fakebinder::device::mounting::MountedBy;
use fakebinder::device::options::MountOptions;
use fakebinder::device::places::{Links, Places};
use fakebinder::device::tree::Permissions;
use fakebinder::device::{Hub, cuse, fuse};
use nix::unistd::{getegid, geteuid};
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Called with the name of a door that was closed from outside.
type Closed = Arc<dyn Fn(String) + Send + Sync>;

/// The doors that are open. What was made for them goes when this is dropped: the links first, then
/// the mounts.
pub struct Opened {
    cuse: usize,
    _places: Places,
    mounts: Vec<(Claim, Served)>,
    contexts: Vec<Arc<Context>>,
}

impl Opened {
    /// How many there are.
    pub fn doors(&self) -> usize {
        self.cuse + self.mounts.len()
    }

    /// Adds their contexts and their mounts to what is asked whether it works.
    pub fn join(&self, liveness: &mut Liveness) {
        self.contexts.iter().for_each(|context| liveness.add_context(context.clone()));
        self.mounts.iter().for_each(|(_, mount)| liveness.add_mount(mount.mount.clone()));
    }

    /// Whether a program has to be started to close one of them.
    pub fn take_a_program_to_close(&self) -> bool {
        self.mounts.iter().any(|(_, mount)| matches!(mount.by, MountedBy::Fusermount { .. }))
    }
}

/// A daemon's doors while they are being opened.
struct Opening<'a> {
    options: &'a Options,
    hub: &'a Arc<Hub>,
    names: Vec<String>,
    closed: Closed,
    permissions: Permissions,
    places: Places,
    failures: Vec<String>,
    contexts: Vec<Arc<Context>>,
}

/// Opens what the options ask for, and this machine has. An error if there is no door then.
pub fn open_doors(
    options: &Options,
    hub: &Arc<Hub>,
    closed: Closed,
) -> Result<Opened, Box<dyn Error>> {
    let mut names = options.names.clone();
    names.sort();
    names.dedup();
    if names.len() > options.max_devices {
        return Err(format!("{} devices are more than --max-devices allows", names.len()).into());
    }
    let mounts = options.mounts()?;
    let (uid, gid) = options.owner.unwrap_or((geteuid().as_raw(), getegid().as_raw()));
    Claim::sweep();
    let mut opening = Opening {
        options,
        hub,
        names,
        closed,
        permissions: Permissions { mode: options.mode, uid, gid },
        places: Places::new(links(options)?),
        failures: Vec::new(),
        contexts: Vec::new(),
    };
    opening.claim_places()?;
    let cuse = opening.make_nodes();
    let mounts = match options.door {
        Doors::Cuse => Vec::new(),
        Doors::Auto | Doors::Fuse => opening.mount(&mounts)?,
    };
    let Opening { places, failures, contexts, .. } = opening;
    let opened = Opened { cuse, _places: places, mounts, contexts };
    match opened.doors() {
        0 => Err(format!("no door could be opened\n  {}", failures.join("\n  ")).into()),
        _ => Ok(opened),
    }
}

fn links(options: &Options) -> io::Result<Links> {
    Ok(match (&options.link, options.no_link) {
        (_, true) => Links::None,
        (Some(directory), false) => Links::In(std::path::absolute(directory)?),
        // In /dev an ordinary user makes none.
        (None, false) if !geteuid().is_root() => Links::None,
        (None, false) => Links::Convenience,
    })
}

impl Opening<'_> {
    fn claim_places(&mut self) -> Result<(), Box<dyn Error>> {
        let cuse = self.options.door == Doors::Cuse || self.cuse_by_itself();
        for name in &self.names {
            if cuse {
                self.places.claim_node(name)?;
            }
            if self.options.door != Doors::Cuse {
                self.places.claim_link(name)?;
            }
        }
        Ok(())
    }

    /// Whether the CUSE door is to be opened without having been asked for. An ordinary user could
    /// not open what the kernel makes there.
    fn cuse_by_itself(&self) -> bool {
        self.options.door == Doors::Auto && geteuid().is_root() && Path::new("/dev/cuse").exists()
    }

    fn on_end(&self, door: &str) -> Box<dyn FnOnce() + Send> {
        let (closed, door) = (self.closed.clone(), door.to_owned());
        Box::new(move || closed(door))
    }

    fn failed(&mut self, door: &str, error: impl std::fmt::Display) {
        log::info!("{door} is not open: {error}");
        self.failures.push(format!("{door}: {error}"));
    }

    /// The CUSE door: how many devices were made.
    fn make_nodes(&mut self) -> usize {
        let mut made = 0;
        if self.options.door == Doors::Auto && !geteuid().is_root() {
            log::info!("the CUSE door is not open: it takes root");
            return made;
        }
        if self.options.door == Doors::Fuse {
            return made;
        }
        for name in &self.names.clone() {
            let door = format!("/dev/{name} (CUSE)");
            let (device, on_end) = (self.hub.device(name), self.on_end(&door));
            self.contexts.push(device.context().clone());
            let permissions = self.permissions;
            let opened = self
                .places
                .make_node(name, |claim| cuse::open(device, claim, permissions, on_end))
                .unwrap_or(Err(cuse::Error::Device(io::Error::from_raw_os_error(libc::ENOENT))));
            match opened {
                Ok(()) => {
                    log::info!("{door} is open");
                    made += 1;
                }
                Err(error) => self.failed(&door, error),
            }
        }
        made
    }

    /// The FUSE door. An error if one of several mounts cannot be made: somebody would miss it.
    fn mount(&mut self, paths: &[PathBuf]) -> Result<Vec<(Claim, Served)>, Box<dyn Error>> {
        let mut mounts: Vec<(Claim, Served)> = Vec::new();
        for path in paths {
            let door = format!("{} (FUSE)", path.display());
            // Those of the first mount have the contexts of the CUSE door.
            let hub = match mounts.is_empty() {
                true => self.hub.clone(),
                false => self.hub.another_instance(),
            };
            match self.mount_one(path, &door, &hub, mounts.is_empty()) {
                Ok(mount) => {
                    log::info!("{door} is open: {}", self.names.join(", "));
                    tell_what_does_not_work(path, &mount.1);
                    mounts.push(mount);
                }
                Err(error) if paths.len() > 1 => {
                    return Err(format!("{door} is not open: {error}").into());
                }
                Err(error) => self.failed(&door, error),
            }
        }
        Ok(mounts)
    }

    fn mount_one(
        &mut self,
        path: &Path,
        door: &str,
        hub: &Arc<Hub>,
        is_first: bool,
    ) -> Result<(Claim, Served), Box<dyn Error>> {
        let mut claim = Claim::take(path)?;
        let options = MountOptions {
            max_devices: self.options.max_devices,
            stats: self.options.stats,
            passthrough: !self.options.no_passthrough,
            transport: self.options.transport,
            mount_by: self.options.mount_by,
            root: (geteuid().as_raw(), getegid().as_raw()),
            ..MountOptions::new(self.permissions)
        };
        let devices: Vec<_> = self.names.iter().map(|name| hub.device(name)).collect();
        self.contexts.extend(devices.iter().map(|device| device.context().clone()));
        let served = fuse::open(path, &mut claim, hub, devices, &options, self.on_end(door))?;
        if is_first {
            self.names.iter().try_for_each(|name| self.places.make_link(name, path))?;
        }
        Ok((claim, served))
    }
}

/// What an ordinary user's daemon has to do without.
fn tell_what_does_not_work(path: &Path, served: &Served) {
    if served.by == MountedBy::Daemon {
        return;
    }
    log::info!("{} is mounted {}", path.display(), served.by);
    log::info!(
        "programs of other users are not served, nor those with more privileges; a call takes less in programs of this \
         user that load the preload library or use fakebinder's client library"
    );
    if ptrace_scope() > 0 {
        log::warn!(
            "Yama's kernel.yama.ptrace_scope is {}: programs must let the daemon reach their memory, as those with \
             fakebinder's libraries do where it is 1",
            ptrace_scope()
        );
    }
}
