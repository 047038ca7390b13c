//! One open of a binder device.

use crate::attach::{Attached, connect, handshake, must_attach};
use crate::command::Command;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::mapping::Mapping;
use crate::object::Object;
use crate::returns::Returns;
use crate::sys::{self, Region};
use crate::transaction::{Contents, Transaction};
use crate::{Errno, uapi};
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, IntoBytes};

/// One open file of a device: a process, to binder.
///
/// Each operating-system thread that calls [`write_read`](Device::write_read) is a binder thread of
/// it. All methods but [`mmap`](Device::mmap) take `&self`, so that threads can share the device.
///
/// Errors: every operation can give ENOTCONN, ECONNABORTED, ECANCELED or ENODEV when the daemon
/// behind a fakebinder device has gone ([`Error::is_disconnected`]); the further ones are named at each.
#[derive(Debug)]
pub struct Device {
    // Dropped in this order: the mapping goes before the open file, as in a process that exits.
    mapping: Option<Mapping>,
    channel: Option<OwnedFd>,
    files: Option<Files>,
    attached: bool,
    file: OwnedFd,
    path: PathBuf,
}

/// The result of a [`Device::transfer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes of the write buffer that were taken, also when the ioctl failed.
    pub write_consumed: usize,
    /// Bytes of the read buffer that were filled, also when the ioctl failed.
    pub read_consumed: usize,
    /// The ioctl's result.
    pub result: Result<()>,
}

impl Device {
    /// Opens for reading and writing, close-on-exec, blocking.
    ///
    /// Errors: those of open(2); ENODEV or ENXIO while a daemon is starting or ending.
    pub fn open(path: impl AsRef<Path>) -> Result<Device> {
        Device::open_with(path, OFlag::O_RDWR | OFlag::O_CLOEXEC)
    }

    /// Opens so that a read that would wait fails with EAGAIN.
    pub fn open_nonblock(path: impl AsRef<Path>) -> Result<Device> {
        Device::open_with(path, OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
    }

    /// Opens with these flags of open(2).
    pub fn open_with(path: impl AsRef<Path>, flags: OFlag) -> Result<Device> {
        let path = path.as_ref();
        let file = open(path, flags, Mode::empty()).map_err(|e| Error::new(path, "open", e))?;
        Ok(Device {
            mapping: None,
            channel: None,
            files: None,
            attached: false,
            file,
            path: path.to_owned(),
        })
    }

    /// The path that the device was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Maps `size` bytes for incoming transactions, read-only, private.
    ///
    /// Where the device cannot be mapped (fakebinder's CUSE door: ENODEV; its FUSE door where the
    /// kernel has no passthrough), the attach handshake takes the place of mmap;
    /// [`is_attached`](Device::is_attached) tells whether it did. One-way transactions can take at
    /// most half of the size, and the driver uses at most 4 MiB.
    ///
    /// Errors: EBUSY when this open file was mapped before (unmapping does not change that), EINVAL
    /// for size 0 and in another process than the opener, ENODEV when the file is no binder device.
    pub fn mmap(&mut self, size: usize) -> Result<()> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        let (mapping, channel) = self.map(size, ProtFlags::PROT_READ, flags)?;
        self.mapping = Some(mapping);
        if channel.is_some() {
            self.attached = true;
            self.channel = channel;
        }
        Ok(())
    }

    /// Makes a mapping with any protection and flags, and gives it to the caller (for tests).
    ///
    /// Errors: those of [`mmap`](Device::mmap); EPERM for a writable one.
    pub fn map_with(&self, size: usize, prot: ProtFlags, flags: MapFlags) -> Result<Mapping> {
        self.map(size, prot, flags).map(|(mapping, _)| mapping)
    }

    fn map(
        &self,
        size: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<(Mapping, Option<OwnedFd>)> {
        let failed = |errno| Error::new(&self.path, "mmap", errno);
        let mapped = match must_attach(self.as_fd()) {
            true => Err(Errno::ENODEV),
            false => Region::map(self.as_fd(), size, prot, flags),
        };
        match mapped {
            Ok(region) => Ok((Mapping::new(region), None)),
            Err(Errno::ENODEV) => {
                let Attached { mapping, channel } =
                    handshake(self.as_fd(), size, prot, flags).map_err(failed)?;
                Ok((mapping, Some(channel)))
            }
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Gets ready for descriptors in incoming transactions; to be called before the first may come.
    /// The kernel's driver needs nothing of this. For fakebinder's daemon `slots` descriptors of
    /// this process are set aside: so many can arrive between two ioctls of this device.
    ///
    /// Errors: EMFILE and ENFILE when so many are not free, ENOSPC when they are more than the
    /// daemon keeps for a client (4,096).
    pub fn accept_files(&mut self, slots: usize) -> Result<()> {
        let failed = |errno| Error::new(&self.path, "accept_files", errno);
        let socket = match self.channel.take() {
            Some(socket) => socket,
            None if !sys::is_fuse(self.as_fd()).map_err(failed)? => return Ok(()),
            None => connect(self.as_fd()).map_err(failed)?.0,
        };
        let files = Files::new(self.as_fd(), socket, slots).map_err(failed)?;
        self.files = Some(files);
        Ok(())
    }

    /// Unmaps the mapping of [`mmap`](Device::mmap). Transactions that arrive after that fail.
    pub fn munmap(&mut self) {
        self.mapping = None;
    }

    /// The mapping, once there is one.
    pub fn mapping(&self) -> Option<&Mapping> {
        self.mapping.as_ref()
    }

    /// Whether the mapping was made by the attach handshake.
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// Copies data and offsets of a received transaction out of the mapping. Its buffer stays
    /// occupied.
    ///
    /// Errors: EFAULT when they do not lie in this device's mapping.
    pub fn contents(&self, transaction: &Transaction) -> Result<Contents> {
        let mut contents = Contents::default();
        self.read_contents(transaction, &mut contents)?;
        Ok(contents)
    }

    /// Like [`contents`](Device::contents), into existing [`Contents`].
    pub fn read_contents(&self, transaction: &Transaction, into: &mut Contents) -> Result<()> {
        let fault = || Error::new(&self.path, "contents", Errno::EFAULT);
        let mapping = self.mapping.as_ref().ok_or_else(fault)?;
        let limit = mapping.len() as u64;
        if transaction.data_size > limit || transaction.offsets_size > limit {
            return Err(fault());
        }
        into.code = transaction.code;
        into.flags = transaction.flags;
        into.data.resize(transaction.data_size as usize, 0);
        into.offsets.clear();
        if !into.data.is_empty() {
            mapping.read(transaction.buffer, &mut into.data).ok_or_else(fault)?;
        }
        for index in 0..transaction.offsets_size / 8 {
            let mut offset = [0; 8];
            mapping.read(transaction.offsets + index * 8, &mut offset).ok_or_else(fault)?;
            into.offsets.push(u64::from_ne_bytes(offset));
        }
        Ok(())
    }

    /// The sender's security context, without its NUL; `None` when the transaction has none.
    ///
    /// Errors: EFAULT when it does not lie in this device's mapping.
    pub fn security_context(&self, transaction: &Transaction) -> Result<Option<Vec<u8>>> {
        if transaction.secctx == 0 {
            return Ok(None);
        }
        let fault = || Error::new(&self.path, "security context", Errno::EFAULT);
        let mapping = self.mapping.as_ref().ok_or_else(fault)?;
        let mut context = Vec::new();
        loop {
            let mut byte = [0];
            let address = transaction.secctx + context.len() as u64;
            mapping.read(address, &mut byte).ok_or_else(fault)?;
            if byte[0] == 0 {
                return Ok(Some(context));
            }
            context.push(byte[0]);
        }
    }

    // ------------------------------------------------------------ BINDER_WRITE_READ

    /// `BINDER_WRITE_READ`: writes `write` (unless empty), then reads into `read` (unless empty;
    /// blocks while there is nothing).
    ///
    /// Errors: EINTR when a signal came while the call waited, EAGAIN when it would wait and must
    /// not, EINVAL for an unknown command, EFAULT for data that cannot be read. The commands before
    /// the faulty one are carried out, and counted in `write_consumed`.
    pub fn transfer(&self, write: &[u8], read: &mut [u8]) -> Transfer {
        let (write_consumed, read_consumed, mut result) =
            sys::write_read(self.as_fd(), write, read);
        if let Some(files) = &self.files
            && let Err(errno) = files.receive(self.as_fd())
        {
            result = result.and(Err(errno));
        }
        Transfer {
            // The counts come from the driver: never trust more than was offered.
            write_consumed: (write_consumed as usize).min(write.len()),
            read_consumed: (read_consumed as usize).min(read.len()),
            result: result.map(drop).map_err(|e| Error::new(&self.path, "BINDER_WRITE_READ", e)),
        }
    }

    /// Writes commands and reads nothing. Returns how many bytes were taken: fewer than all when a
    /// command failed and the driver waits for its error to be read.
    ///
    /// Errors: those of [`transfer`](Device::transfer), except EINTR and EAGAIN.
    pub fn write(&self, commands: &[Command<'_>]) -> Result<usize> {
        let transfer = self.transfer(&encode(commands), &mut []);
        transfer.result.map(|()| transfer.write_consumed)
    }

    /// Reads returns into `buffer` (libbinder uses 256 bytes) and decodes them.
    ///
    /// Errors: EINTR, EAGAIN.
    pub fn read<'b>(&self, buffer: &'b mut [u8]) -> Result<Returns<'b>> {
        self.write_read(&[], buffer)
    }

    /// Writes commands, then reads returns, in one ioctl.
    ///
    /// Errors: those of [`transfer`](Device::transfer), which is to be used where it matters what
    /// was done before the error.
    pub fn write_read<'b>(
        &self,
        commands: &[Command<'_>],
        buffer: &'b mut [u8],
    ) -> Result<Returns<'b>> {
        let transfer = self.transfer(&encode(commands), buffer);
        transfer.result?;
        Ok(Returns::new(&buffer[..transfer.read_consumed]))
    }

    /// Waits until there is something to read, at most `timeout_ms` (`None`: for ever; 0: not at
    /// all). Empty flags: time is up.
    ///
    /// Errors: EINTR.
    pub fn poll(&self, timeout_ms: Option<u16>) -> Result<PollFlags> {
        let mut files = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        let timeout = timeout_ms.map_or(PollTimeout::NONE, PollTimeout::from);
        poll(&mut files, timeout).map_err(|e| Error::new(&self.path, "poll", e))?;
        Ok(files[0].revents().unwrap_or(PollFlags::empty()))
    }

    /// Sets or clears O_NONBLOCK (`F_SETFL`).
    pub fn set_nonblock(&self, nonblock: bool) -> Result<()> {
        let failed = |errno| Error::new(&self.path, "fcntl", errno);
        let flags = fcntl(&self.file, FcntlArg::F_GETFL).map_err(failed)?;
        let mut flags = OFlag::from_bits_retain(flags);
        flags.set(OFlag::O_NONBLOCK, nonblock);
        fcntl(&self.file, FcntlArg::F_SETFL(flags)).map(drop).map_err(failed)
    }

    // ------------------------------------------------------------ the other ioctls

    /// `BINDER_VERSION`: the protocol version; 8 in every 64-bit driver.
    pub fn version(&self) -> Result<i32> {
        let mut version = uapi::binder_version::default();
        self.ioctl("BINDER_VERSION", uapi::BINDER_VERSION, &mut version)?;
        Ok(version.protocol_version)
    }

    /// `BINDER_SET_MAX_THREADS`: how many threads `BR_SPAWN_LOOPER` may ask for.
    pub fn set_max_threads(&self, threads: u32) -> Result<()> {
        self.ioctl("BINDER_SET_MAX_THREADS", uapi::BINDER_SET_MAX_THREADS, &mut { threads })
    }

    /// `BINDER_SET_CONTEXT_MGR`: makes this process the context manager, which is handle 0 to all
    /// others, with node 0 and cookie 0.
    ///
    /// Errors: EBUSY when there is a manager, EPERM when the first one had another effective uid.
    pub fn set_context_manager(&self) -> Result<()> {
        self.ioctl("BINDER_SET_CONTEXT_MGR", uapi::BINDER_SET_CONTEXT_MGR, &mut 0i32)
    }

    /// `BINDER_SET_CONTEXT_MGR_EXT`: the same, with a node that has flags
    /// (`FLAT_BINDER_FLAG_ACCEPTS_FDS`, `FLAT_BINDER_FLAG_TXN_SECURITY_CTX`), an identity and a
    /// cookie.
    ///
    /// Errors: EBUSY, EPERM.
    pub fn set_context_manager_ext(&self, ptr: u64, cookie: u64, flags: u32) -> Result<()> {
        let mut bytes = Vec::new();
        Object::Binder { ptr, cookie, flags }.encode(&mut bytes);
        let mut node = [0; size_of::<uapi::flat_binder_object>()];
        node.copy_from_slice(&bytes);
        self.ioctl("BINDER_SET_CONTEXT_MGR_EXT", uapi::BINDER_SET_CONTEXT_MGR_EXT, &mut node)
    }

    /// `BINDER_THREAD_EXIT`: the calling thread is done with binder.
    pub fn thread_exit(&self) -> Result<()> {
        self.ioctl("BINDER_THREAD_EXIT", uapi::BINDER_THREAD_EXIT, &mut 0i32)
    }

    /// What fakebinder's daemon holds. Errors: EPERM for users other than root, EINVAL from another
    /// driver.
    pub fn daemon_stats(&self) -> Result<uapi::fakebinder_stats> {
        let mut stats = uapi::fakebinder_stats::default();
        self.ioctl("FAKEBINDER_STATS", uapi::FAKEBINDER_STATS, &mut stats)?;
        Ok(stats)
    }

    /// Makes fakebinder's daemon reclaim every page that no buffer uses; returns how many. Errors:
    /// EPERM for users other than root, EINVAL from another driver.
    pub fn daemon_reclaim(&self) -> Result<u64> {
        let mut pages = 0u64;
        self.ioctl("FAKEBINDER_RECLAIM", uapi::FAKEBINDER_RECLAIM, &mut pages)?;
        Ok(pages)
    }

    /// What fakebinder's daemon holds, as JSON (`fakebinder::snapshot`); with every node, reference
    /// and buffer if `objects`. Errors: EPERM for users other than root and the daemon's, ENOMEM
    /// when its memory budget is too small for that, EINVAL from another driver.
    pub fn daemon_snapshot(&self, objects: bool) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let flags = if objects { uapi::FAKEBINDER_SNAPSHOT_OBJECTS } else { 0 };
        loop {
            let offset = text.len() as u64;
            let mut part = uapi::fakebinder_snapshot { offset, flags, ..Default::default() };
            self.ioctl("FAKEBINDER_SNAPSHOT", uapi::FAKEBINDER_SNAPSHOT, &mut part)?;
            let left = (part.length as usize).saturating_sub(text.len());
            let copied = left.min(part.text.len());
            text.extend_from_slice(&part.text[..copied]);
            if copied == left {
                return Ok(text);
            }
        }
    }

    /// Takes what fakebinder's driver has done since the last time, of the kinds `wanted`
    /// (`FAKEBINDER_EVENT_...`), into `events`. Errors: EPERM for users other than root and the
    /// daemon's, EBUSY when enough listen, ENOMEM when the daemon's memory budget is too small,
    /// EINVAL from another driver.
    pub fn daemon_events(&self, wanted: u32, events: &mut uapi::fakebinder_events) -> Result<()> {
        events.wanted = wanted;
        self.ioctl("FAKEBINDER_EVENTS", uapi::FAKEBINDER_EVENTS, events)
    }

    /// Takes what clients of this device have done since the last time into `recording`; `wanted`
    /// are `FAKEBINDER_RECORD_...`. Errors: EPERM for users other than root and the daemon's, EBUSY
    /// when somebody else records, ENOMEM when the daemon's memory budget is too small, EINVAL from
    /// another driver.
    pub fn daemon_recording(
        &self,
        wanted: u32,
        recording: &mut uapi::fakebinder_recording,
    ) -> Result<()> {
        recording.wanted = wanted;
        self.ioctl("FAKEBINDER_RECORD", uapi::FAKEBINDER_RECORD, recording)
    }

    /// Tells fakebinder's daemon which faults to inject from now on (`rules`, as `fakebinderd
    /// --inject` takes them), or asks it which it injects (None). The answer is the daemon's text:
    /// the rules in force (`uapi::fakebinder_inject`), or why it does not take these. Errors: EPERM
    /// for users other than root and the daemon's, EINVAL for rules that are too long and from
    /// another driver.
    pub fn daemon_inject(
        &self,
        rules: Option<&str>,
    ) -> Result<std::result::Result<String, String>> {
        let mut told = uapi::fakebinder_inject::default();
        if let Some(rules) = rules {
            told.state = 1;
            told.length = rules.len() as u32;
            let place = told.text.get_mut(..rules.len());
            let place =
                place.ok_or_else(|| Error::new(&self.path, "FAKEBINDER_INJECT", Errno::EINVAL))?;
            place.copy_from_slice(rules.as_bytes());
        }
        self.ioctl("FAKEBINDER_INJECT", uapi::FAKEBINDER_INJECT, &mut told)?;
        let text = told.text.get(..told.length as usize).unwrap_or_default();
        let text = String::from_utf8_lossy(text).into_owned();
        Ok(if told.state == 0 { Ok(text) } else { Err(text) })
    }

    /// `BINDER_SET_IDLE_TIMEOUT`: EINVAL, as in the driver.
    pub fn set_idle_timeout(&self, nanoseconds: i64) -> Result<()> {
        let mut timeout = nanoseconds;
        self.ioctl("BINDER_SET_IDLE_TIMEOUT", uapi::BINDER_SET_IDLE_TIMEOUT, &mut timeout)
    }

    /// `BINDER_SET_IDLE_PRIORITY`: EINVAL, as in the driver.
    pub fn set_idle_priority(&self, priority: i32) -> Result<()> {
        let mut priority = priority;
        self.ioctl("BINDER_SET_IDLE_PRIORITY", uapi::BINDER_SET_IDLE_PRIORITY, &mut priority)
    }

    /// `BINDER_GET_NODE_DEBUG_INFO`: the first node of this process whose identity is greater
    /// than `ptr`; all zeros when there is none.
    pub fn node_debug_info(&self, ptr: u64) -> Result<uapi::binder_node_debug_info> {
        let mut info = uapi::binder_node_debug_info { ptr, ..Default::default() };
        let cmd = uapi::BINDER_GET_NODE_DEBUG_INFO;
        self.ioctl("BINDER_GET_NODE_DEBUG_INFO", cmd, &mut info)?;
        Ok(info)
    }

    /// `BINDER_GET_NODE_INFO_FOR_REF`: the reference counts of the node behind `handle`; the three
    /// reserved fields are 0.
    ///
    /// Errors: EPERM when this process is not the context manager, EINVAL for an unknown handle.
    pub fn node_info_for_ref(&self, handle: u32) -> Result<uapi::binder_node_info_for_ref> {
        let mut info = uapi::binder_node_info_for_ref { handle, ..Default::default() };
        let cmd = uapi::BINDER_GET_NODE_INFO_FOR_REF;
        self.ioctl("BINDER_GET_NODE_INFO_FOR_REF", cmd, &mut info)?;
        Ok(info)
    }

    /// `BINDER_FREEZE`: freezes (or thaws) every open file of the process `pid`, waiting up to
    /// `timeout_ms` for transactions that the process has not answered yet.
    ///
    /// Errors: EAGAIN when some are left then, EINVAL when no such process has a device open.
    pub fn freeze(&self, pid: u32, enable: bool, timeout_ms: u32) -> Result<()> {
        let mut info = uapi::binder_freeze_info { pid, enable: enable.into(), timeout_ms };
        self.ioctl("BINDER_FREEZE", uapi::BINDER_FREEZE, &mut info)
    }

    /// `BINDER_GET_FROZEN_INFO`: which calls the process `pid` was sent since it was frozen.
    ///
    /// Errors: EINVAL when no such process has a device open.
    pub fn frozen_info(&self, pid: u32) -> Result<uapi::binder_frozen_status_info> {
        let mut info = uapi::binder_frozen_status_info { pid, ..Default::default() };
        self.ioctl("BINDER_GET_FROZEN_INFO", uapi::BINDER_GET_FROZEN_INFO, &mut info)?;
        Ok(info)
    }

    /// `BINDER_ENABLE_ONEWAY_SPAM_DETECTION`: whether this process is told with
    /// `BR_ONEWAY_SPAM_SUSPECT` that it sends too much.
    pub fn enable_oneway_spam_detection(&self, enable: bool) -> Result<()> {
        let cmd = uapi::BINDER_ENABLE_ONEWAY_SPAM_DETECTION;
        self.ioctl("BINDER_ENABLE_ONEWAY_SPAM_DETECTION", cmd, &mut u32::from(enable))
    }

    /// `BINDER_GET_EXTENDED_ERROR`: the calling thread's last failed transaction: its id, the
    /// `BR_*` it ended with, and a negative errno. Reading it clears it (to `BR_OK`).
    pub fn extended_error(&self) -> Result<uapi::binder_extended_error> {
        let mut error = uapi::binder_extended_error::default();
        self.ioctl("BINDER_GET_EXTENDED_ERROR", uapi::BINDER_GET_EXTENDED_ERROR, &mut error)?;
        Ok(error)
    }

    fn ioctl<T: FromBytes + IntoBytes>(
        &self,
        name: &'static str,
        cmd: u32,
        arg: &mut T,
    ) -> Result<()> {
        sys::ioctl(self.as_fd(), cmd, arg).map(drop).map_err(|e| Error::new(&self.path, name, e))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn encode(commands: &[Command<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    commands.iter().for_each(|command| command.encode(&mut bytes));
    bytes
}
