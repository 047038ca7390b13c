//! The devices of a mount, by number and by name.
//!
//! As in binderfs a device is its inode, and its name only leads there: it can be renamed, and
//! clients that have it open or bind-mounted go on when it has been removed. So a device stays here
//! until it has no name, is not open, and the kernel has forgotten all of its nodes. Then its
//! number is free again: the kernel knows no node by it.

use super::Device;
use super::attributes::Attributes;
use crate::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers are below this, so that a device's number and a count of its opens fit into a node's.
pub const NUMBERS: u32 = (1 << 22) - 1;

struct Entry {
    device: Arc<Device>,
    /// None once it has been removed.
    name: Option<Vec<u8>>,
    attributes: Attributes,
    /// How often the kernel has looked up nodes of the device, less what it has forgotten.
    lookups: AtomicU64,
    /// Open files of the device.
    opens: usize,
}

pub struct Devices {
    by_number: BTreeMap<u32, Entry>,
    by_name: HashMap<Vec<u8>, u32>,
    /// Numbers below `next` that are free again.
    free: BTreeSet<u32>,
    next: u32,
    most: usize,
    /// Devices that are removed and still open: they count, as in binderfs.
    removed_open: usize,
}

/// What a rename is to do with a device that has the new name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    Replace,
    Refuse,
    Exchange,
}

impl Devices {
    /// Room for `most` devices (binderfs: `max=`).
    pub fn new(most: usize) -> Devices {
        Devices {
            by_number: BTreeMap::new(),
            by_name: HashMap::new(),
            free: BTreeSet::new(),
            next: 0,
            most,
            removed_open: 0,
        }
    }

    /// ENOSPC when no more may be added.
    pub fn check_room(&self) -> Result<(), Errno> {
        let full = self.by_name.len() + self.removed_open >= self.most
            || self.free.is_empty() && self.next >= NUMBERS;
        if full { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Adds a device under a name that no other has, and returns its number. ENOSPC, EEXIST.
    pub fn add(
        &mut self,
        name: &[u8],
        device: Arc<Device>,
        attributes: Attributes,
    ) -> Result<u32, Errno> {
        self.check_room()?;
        if self.by_name.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let number = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        let entry = Entry {
            device,
            name: Some(name.to_vec()),
            attributes,
            lookups: AtomicU64::new(0),
            opens: 0,
        };
        self.by_number.insert(number, entry);
        self.by_name.insert(name.to_vec(), number);
        Ok(number)
    }

    pub fn named(&self, name: &[u8]) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub fn get(&self, number: u32) -> Option<&Arc<Device>> {
        self.by_number.get(&number).map(|entry| &entry.device)
    }

    pub fn has_name(&self, number: u32) -> bool {
        self.by_number.get(&number).is_some_and(|entry| entry.name.is_some())
    }

    pub fn attributes(&self, number: u32) -> Option<&Attributes> {
        self.by_number.get(&number).map(|entry| &entry.attributes)
    }

    pub fn attributes_mut(&mut self, number: u32) -> Option<&mut Attributes> {
        self.by_number.get_mut(&number).map(|entry| &mut entry.attributes)
    }

    /// Numbers and names of the devices from a number on, in the order of their numbers.
    pub fn from(&self, number: u32) -> impl Iterator<Item = (u32, &[u8])> {
        let entries = self.by_number.range((Bound::Included(number), Bound::Unbounded));
        entries.filter_map(|(number, entry)| Some((*number, entry.name.as_deref()?)))
    }

    /// Takes a device's name away. ENOENT: no device has it.
    pub fn remove(&mut self, name: &[u8]) -> Result<(), Errno> {
        let number = self.by_name.remove(name).ok_or(Errno::ENOENT)?;
        let entry = self.by_number.get_mut(&number).ok_or(Errno::ENOENT)?;
        entry.name = None;
        entry.device.forget_name();
        self.removed_open += usize::from(entry.opens > 0);
        self.drop_unused(number);
        Ok(())
    }

    /// Renames a device. ENOENT: no device has the old name (or, for an exchange, the new one);
    /// EEXIST.
    pub fn rename(&mut self, old: &[u8], new: &[u8], existing: Existing) -> Result<(), Errno> {
        let number = self.named(old).ok_or(Errno::ENOENT)?;
        let other = self.named(new);
        match (existing, other) {
            (Existing::Refuse, Some(_)) => return Err(Errno::EEXIST),
            (Existing::Exchange, None) => return Err(Errno::ENOENT),
            _ if old == new => return Ok(()),
            (Existing::Exchange, Some(other)) => self.set_name(other, old),
            (Existing::Replace, Some(_)) => {
                self.remove(new)?;
                self.by_name.remove(old);
            }
            (Existing::Replace | Existing::Refuse, None) => {
                self.by_name.remove(old);
            }
        }
        self.set_name(number, new);
        Ok(())
    }

    fn set_name(&mut self, number: u32, name: &[u8]) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.name = Some(name.to_vec());
            self.by_name.insert(name.to_vec(), number);
        }
    }

    /// The kernel has been told of one of the device's nodes.
    pub fn looked_up(&self, number: u32) {
        if let Some(entry) = self.by_number.get(&number) {
            entry.lookups.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn forgotten(&mut self, number: u32, lookups: u64) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            let left = entry.lookups.get_mut();
            *left = left.saturating_sub(lookups);
            self.drop_unused(number);
        }
    }

    pub fn opened(&mut self, number: u32) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.opens += 1;
            self.removed_open += usize::from(entry.name.is_none() && entry.opens == 1);
        }
    }

    pub fn released(&mut self, number: u32) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.opens = entry.opens.saturating_sub(1);
            self.removed_open -= usize::from(entry.name.is_none() && entry.opens == 0);
            self.drop_unused(number);
        }
    }

    fn drop_unused(&mut self, number: u32) {
        let unused = self.by_number.get_mut(&number).is_some_and(|entry| {
            entry.name.is_none() && entry.opens == 0 && *entry.lookups.get_mut() == 0
        });
        if unused {
            self.by_number.remove(&number);
            self.free.insert(number);
        }
        while self.next > 0 && self.free.remove(&(self.next - 1)) {
            self.next -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Hub;
    use super::super::tree::Permissions;
    use super::*;
    use crate::memory::{Memory, MemoryConfig};

    struct Scene {
        hub: Arc<Hub>,
        devices: Devices,
    }

    impl Scene {
        fn new(most: usize) -> Scene {
            let hub = Hub::new(Memory::new(MemoryConfig::default())).unwrap();
            Scene { hub, devices: Devices::new(most) }
        }

        fn add(&mut self, name: &str) -> Result<u32, Errno> {
            let attributes = Attributes::new(Permissions { mode: 0o600, uid: 0, gid: 0 });
            self.devices.add(name.as_bytes(), self.hub.new_device(name), attributes)
        }

        fn names(&self) -> Vec<(u32, String)> {
            let all = self.devices.from(0);
            all.map(|(number, name)| (number, String::from_utf8_lossy(name).into())).collect()
        }
    }

    #[test]
    fn a_removed_device_stays_while_it_is_known_or_open() {
        let mut it = Scene::new(10);
        let (first, second) = (it.add("a").unwrap(), it.add("b").unwrap());
        assert_ne!(first, second);
        it.devices.looked_up(first);
        it.devices.opened(first);
        it.devices.remove(b"a").unwrap();
        assert_eq!(it.devices.remove(b"a"), Err(Errno::ENOENT));
        assert!(it.devices.get(first).is_some() && !it.devices.has_name(first));
        let again = it.add("a").unwrap();
        assert_ne!(again, first, "its number is still the old one's");
        it.devices.forgotten(first, 1);
        assert!(it.devices.get(first).is_some());
        it.devices.released(first);
        assert!(it.devices.get(first).is_none());
        assert_eq!(it.add("c"), Ok(first));
        assert_eq!(it.names(), [(0, "c".into()), (1, "b".into()), (2, "a".into())]);
    }

    #[test]
    fn nothing_grows_when_devices_come_and_go() {
        let mut it = Scene::new(2);
        it.add("first").unwrap();
        for _ in 0..10_000 {
            let number = it.add("again").unwrap();
            assert_eq!(number, 1);
            it.devices.looked_up(number);
            it.devices.forgotten(number, 1);
            it.devices.remove(b"again").unwrap();
        }
        let devices = &it.devices;
        assert_eq!((devices.by_number.len(), devices.by_name.len()), (1, 1));
        assert_eq!((devices.free.len(), devices.next), (0, 1));
    }

    #[test]
    fn a_device_counts_until_it_is_removed_and_closed() {
        let mut it = Scene::new(2);
        it.add("a").unwrap();
        let b = it.add("b").unwrap();
        assert_eq!(it.add("c"), Err(Errno::ENOSPC));
        it.devices.opened(b);
        it.devices.remove(b"b").unwrap();
        assert_eq!(it.add("c"), Err(Errno::ENOSPC));
        it.devices.released(b);
        it.add("c").unwrap();
        assert_eq!(it.add("c"), Err(Errno::ENOSPC), "and not EEXIST, as in binderfs");
    }

    #[test]
    fn a_rename_replaces_refuses_or_exchanges() {
        let mut it = Scene::new(10);
        let (a, b) = (it.add("a").unwrap(), it.add("b").unwrap());
        let devices = &mut it.devices;
        assert_eq!(devices.rename(b"x", b"y", Existing::Replace), Err(Errno::ENOENT));
        assert_eq!(devices.rename(b"a", b"b", Existing::Refuse), Err(Errno::EEXIST));
        assert_eq!(devices.rename(b"a", b"x", Existing::Exchange), Err(Errno::ENOENT));
        assert_eq!(devices.rename(b"a", b"a", Existing::Replace), Ok(()));
        devices.rename(b"a", b"b", Existing::Exchange).unwrap();
        assert_eq!((devices.named(b"b"), devices.named(b"a")), (Some(a), Some(b)));
        devices.rename(b"a", b"c", Existing::Refuse).unwrap();
        assert_eq!((devices.named(b"a"), devices.named(b"c")), (None, Some(b)));
        devices.rename(b"c", b"b", Existing::Replace).unwrap();
        assert_eq!(devices.named(b"b"), Some(b));
        assert!(devices.get(a).is_none(), "nobody knew it any more");
    }
}
