//! The paths of devices outside the mount: `/dev/NAME` for the CUSE door's, and links to
//! those of the FUSE door.

use super::claim::{Claim, Error};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

/// Where the kernel makes the nodes of CUSE devices.
const NODES: &str = "/dev";

/// Where links to the FUSE door's devices are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Links {
    /// In `/dev`, if that can be written: nobody has asked for links.
    Convenience,
    /// In this directory, which must be writable.
    In(PathBuf),
    /// Nowhere.
    None,
}

impl Links {
    fn path(&self, name: &str) -> Option<PathBuf> {
        match self {
            Links::Convenience => Some(Path::new(NODES).join(name)),
            Links::In(directory) => Some(directory.join(name)),
            Links::None => None,
        }
    }

    /// Whether the daemon can do without a link that cannot be made. Something else in the link's
    /// place is always an error: a program that opens that would not get the daemon's device.
    fn can_do_without(&self, error: &Error) -> bool {
        *self == Links::Convenience && matches!(error, Error::Io(..))
    }
}

/// The places that the daemon has claimed for nodes and links of its devices.
pub struct Places {
    claims: BTreeMap<PathBuf, Claim>,
    /// The nodes that were made.
    nodes: Vec<PathBuf>,
    links: Links,
}

impl Places {
    /// No place is claimed yet.
    pub fn new(links: Links) -> Places {
        Places { claims: BTreeMap::new(), nodes: Vec::new(), links }
    }

    /// Claims the place of a device's node.
    pub fn claim_node(&mut self, name: &str) -> Result<(), Error> {
        self.claim(Path::new(NODES).join(name))
    }

    /// Claims the place of a device's link, if there is to be one.
    pub fn claim_link(&mut self, name: &str) -> Result<(), Error> {
        let Some(path) = self.links.path(name) else { return Ok(()) };
        match self.claim(path.clone()) {
            Err(error) if self.links.can_do_without(&error) => {
                log::info!("there is no link {}: {error}", path.display());
                Ok(())
            }
            result => result,
        }
    }

    fn claim(&mut self, path: PathBuf) -> Result<(), Error> {
        if let Entry::Vacant(entry) = self.claims.entry(path) {
            let claim = Claim::take(entry.key())?;
            entry.insert(claim);
        }
        Ok(())
    }

    /// Makes a device's node at its place. None: the place was not [claimed](Places::claim_node).
    pub fn make_node<E>(
        &mut self,
        name: &str,
        make: impl FnOnce(&mut Claim) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        let path = Path::new(NODES).join(name);
        let made = make(self.claims.get_mut(&path)?);
        if made.is_ok() {
            self.nodes.push(path);
        }
        Some(made)
    }

    /// Makes the link to a device in the mount, unless its node is there.
    pub fn make_link(&mut self, name: &str, mount: &Path) -> Result<(), Error> {
        let Some(path) = self.links.path(name) else { return Ok(()) };
        let Some(claim) = self.claims.get_mut(&path).filter(|_| !self.nodes.contains(&path)) else {
            return Ok(());
        };
        match claim.link(&path, &mount.join(name)) {
            Err(error) if self.links.can_do_without(&error) => {
                log::info!("there is no link {}: {error}", path.display());
                Ok(())
            }
            result => result,
        }
    }
}
