//! A message: a transaction's data and objects on their way into the receiver's buffer.
//!
//! Plain data is copied once, from the sender's memory straight into the buffer. Data with objects
//! is copied to the daemon first: objects are checked and translated in that copy, which no client
//! can change, and the copy is then written to the buffer. Nothing is read back from the buffer.
//!
//! In a buffer lie, each beginning at a multiple of 8 bytes: data, offsets, scatter-gather
//! buffers, security context.

use super::File;
use super::send::Sender;
use super::target::Target;
use super::transaction::{Fixup, HeldRef};
use crate::Errno;
use crate::alloc::Buffer;
use crate::client_log::{Kind, user_error};
use crate::protocol::object::{BufferObject, FdArrayObject, FlatObject, Object};
use crate::protocol::record::{TransactionData, align8};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Offset of a descriptor's number in its object.
const FD_IN_OBJECT: u64 = 8;

/// Bytes of a pointer that is fixed up in a parent buffer.
const POINTER: u64 = 8;

/// What is written into, or left out of, a scatter-gather buffer when it is copied
/// (`struct binder_ptr_fixup`).
enum Patch {
    Pointer(u64),
    /// Bytes of descriptor numbers, which the receiver's side fills in.
    Skip(u64),
}

/// A scatter-gather buffer that is to be copied when all objects are known
/// (`struct binder_sg_copy`).
struct SgCopy {
    offset: u64,
    address: u64,
    length: u64,
}

/// An object that has been translated.
struct Translated {
    offset: u64,
    /// As the sender wrote it.
    original: Object,
    /// As the receiver gets it.
    object: Object,
}

/// Reports what is wrong with a message. EINVAL.
fn invalid(what: std::fmt::Arguments<'_>) -> Errno {
    user_error!(Kind::BadMessage, "got transaction with {what}");
    Errno::EINVAL
}

fn invalid_offset(offset: u64, least: u64, size: u64) -> Errno {
    invalid(format_args!("invalid offset, {offset} (min {least} max {size})"))
}

fn out_of_order() -> Errno {
    invalid(format_args!("out-of-order buffer fixup"))
}

pub(crate) struct Message<'a> {
    sender: &'a Sender<'a>,
    target: &'a Target,
    data: &'a TransactionData,
    buffer: Buffer,
    /// Bytes reserved for scatter-gather buffers.
    extra: u64,
    /// Offset of the next scatter-gather buffer.
    sg_offset: u64,
    sg_end: u64,
    objects: Vec<Translated>,
    copies: Vec<SgCopy>,
    patches: BTreeMap<u64, Patch>,
    /// The object and the least offset that the next fix-up may concern; object 0 stands for none.
    last_fixup_object: u64,
    last_fixup_min: u64,
    held: Vec<HeldRef>,
    fixups: Vec<Fixup>,
}

impl<'a> Message<'a> {
    pub fn new(
        sender: &'a Sender<'a>,
        target: &'a Target,
        data: &'a TransactionData,
        buffer: Buffer,
        extra: u64,
    ) -> Self {
        let sg_offset = align8(align8(data.data_size).saturating_add(data.offsets_size));
        Message {
            sender,
            target,
            data,
            buffer,
            extra,
            sg_offset,
            sg_end: sg_offset.saturating_add(extra),
            objects: Vec::new(),
            copies: Vec::new(),
            patches: BTreeMap::new(),
            last_fixup_object: 0,
            last_fixup_min: 0,
            held: Vec::new(),
            fixups: Vec::new(),
        }
    }

    /// The objects that were translated, each with its offset, as the sender wrote it.
    pub fn objects(&self) -> impl ExactSizeIterator<Item = (u64, Object)> {
        self.objects.iter().map(|object| (object.offset, object.original))
    }

    /// What the translated objects hold; to be asked after a failure too.
    pub fn into_parts(self) -> (Vec<HeldRef>, Vec<Fixup>) {
        (self.held, self.fixups)
    }

    /// Copies the data and translates its objects. EFAULT: the sender's memory; EINVAL: an invalid
    /// offset or object; or the error of an object's translation.
    pub fn fill(&mut self) -> Result<(), Errno> {
        self.sender.memory.sends_from([
            (self.data.buffer, self.data.data_size),
            (self.data.offsets, self.data.offsets_size),
        ]);
        let mut offsets = vec![0; self.data.offsets_size as usize];
        if !offsets.is_empty() {
            self.sender.memory.read(self.data.offsets, &mut offsets).inspect_err(|_| {
                user_error!(Kind::BadMessage, "got transaction with invalid offsets ptr");
            })?;
        }
        if !self.data.offsets_size.is_multiple_of(8) {
            let size = self.data.offsets_size;
            return Err(invalid(format_args!("invalid offsets size, {size}")));
        }
        if !self.extra.is_multiple_of(8) {
            return Err(invalid(format_args!("unaligned buffers size, {}", self.extra)));
        }
        if offsets.is_empty() {
            return self.copy_from_sender(0, self.data.buffer, self.data.data_size);
        }
        let mut staged = vec![0; self.data.data_size as usize];
        // Where the sender's memory has holes, the error is that of the first piece that the driver
        // would have come to: the pieces are then read one by one.
        let whole = self.sender.memory.read(self.data.buffer, &mut staged).is_ok();
        let mut done = 0;
        for bytes in offsets.as_chunks::<8>().0 {
            let offset = u64::from_ne_bytes(*bytes);
            if offset != done {
                if done > offset || offset > self.data.data_size {
                    invalid_offset(offset, done, self.data.data_size);
                    return Err(Errno::EFAULT);
                }
                self.stage(&mut staged, whole, done, offset)?;
            }
            if !Object::may_begin_at(offset, self.data.data_size) {
                return Err(invalid_offset(offset, done, self.data.data_size));
            }
            let end = self.data.data_size.min(offset + Object::MAX_SIZE as u64);
            self.stage(&mut staged, whole, offset, end).map_err(|_| Errno::EINVAL)?;
            let object = Object::read(&staged, offset).ok_or_else(|| {
                let kind = staged.get(offset as usize..).and_then(crate::uapi::parse::<u32>);
                invalid(format_args!("an object cut short or of invalid type, {kind:#x?}"))
            })?;
            let translated = self.translate(offset, object)?;
            let mut encoded = Vec::with_capacity(Object::MAX_SIZE);
            translated.encode(&mut encoded);
            staged[offset as usize..][..encoded.len()].copy_from_slice(&encoded);
            self.objects.push(Translated { offset, original: object, object: translated });
            done = offset + object.size() as u64;
        }
        self.stage(&mut staged, whole, done, self.data.data_size)?;
        staged.resize(align8(self.data.data_size) as usize, 0);
        staged.extend_from_slice(&offsets);
        self.copy_to_buffer(0, &staged)?;
        self.copy_scatter_gather()
    }

    /// Makes sure that `start..end` of the data is in the staged copy.
    fn stage(&self, staged: &mut [u8], whole: bool, start: u64, end: u64) -> Result<(), Errno> {
        if whole || start == end {
            return Ok(());
        }
        let address = self.data.buffer.wrapping_add(start);
        let staged = &mut staged[start as usize..end as usize];
        self.sender.memory.read(address, staged).inspect_err(|_| {
            user_error!(Kind::BadMessage, "got transaction with invalid data ptr");
        })
    }

    fn copy_from_sender(&self, offset: u64, address: u64, length: u64) -> Result<(), Errno> {
        if length == 0 {
            return Ok(());
        }
        let copied = self.target.process.alloc.copy_user_to_buffer(
            &self.buffer,
            offset as usize,
            self.sender.memory,
            address,
            length as usize,
        );
        copied.inspect_err(|_| {
            user_error!(Kind::BadMessage, "got transaction with invalid data ptr");
        })
    }

    fn copy_to_buffer(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.target.process.alloc.copy_to_buffer(&self.buffer, offset as usize, bytes)
    }

    fn translate(&mut self, offset: u64, object: Object) -> Result<Object, Errno> {
        match object {
            Object::Binder { strong, flat } => self.translate_binder(strong, flat),
            Object::Handle { strong, flat } => self.translate_handle(strong, flat),
            Object::Fd { pad_flags, fd, cookie } => {
                let file = self.take_file(fd)?;
                let offset = (offset + FD_IN_OBJECT) as usize;
                self.fixups.push(Fixup { offset, file, in_array: false });
                Ok(Object::Fd { pad_flags, fd: 0, cookie })
            }
            Object::FdArray(array) => {
                self.translate_fd_array(array)?;
                Ok(object)
            }
            Object::Buffer(buffer) => self.translate_buffer(offset, buffer),
        }
    }

    /// A node of the sender becomes a handle of the target (`binder_translate_binder`).
    fn translate_binder(&mut self, strong: bool, flat: FlatObject) -> Result<Object, Errno> {
        let (sender, target) = (self.sender, self.target);
        let handle = sender.process.context.locked(|graph| {
            let node = graph.get_or_new_node(sender.process.id, &flat)?;
            graph.inc_node_tmpref(node);
            let cookie = graph.nodes.get(&node).map(|node| node.cookie);
            let result = if cookie == Some(flat.cookie) {
                graph.inc_ref_for_node(target.process.id, node, strong, Some(sender.thread))
            } else {
                user_error!(
                    Kind::BadCookie,
                    "sending u{:016x}: cookie mismatch {:016x}",
                    { flat.binder },
                    { flat.cookie }
                );
                Err(Errno::EINVAL)
            };
            graph.dec_node_tmpref(node);
            result
        })?;
        self.held.push(HeldRef::Handle { handle, strong });
        let flat = FlatObject { flags: flat.flags, binder: handle.into(), cookie: 0 };
        Ok(Object::Handle { strong, flat })
    }

    /// A handle of the sender becomes a handle of the target, or, for the node's owner, the node
    /// itself again (`binder_translate_handle`).
    fn translate_handle(&mut self, strong: bool, flat: FlatObject) -> Result<Object, Errno> {
        let (sender, target) = (self.sender, self.target);
        let target_id = target.process.id;
        let (held, object) = sender.process.context.locked(|graph| {
            let reference = graph.find_ref(sender.process.id, flat.handle(), strong);
            let node_id = reference.map(|reference| reference.node).ok_or_else(|| {
                user_error!(
                    Kind::BadHandle,
                    "got transaction with invalid handle, {}",
                    flat.handle()
                );
                Errno::EINVAL
            })?;
            let node = graph.nodes.get(&node_id).ok_or(Errno::EINVAL)?;
            if node.process == Some(target_id) {
                let own = FlatObject { flags: flat.flags, binder: node.ptr, cookie: node.cookie };
                graph.inc_node(node_id, strong, false, None)?;
                let held = HeldRef::Node { ptr: own.binder, strong };
                return Ok((held, Object::Binder { strong, flat: own }));
            }
            graph.inc_node_tmpref(node_id);
            let handle = graph.inc_ref_for_node(target_id, node_id, strong, None);
            graph.dec_node_tmpref(node_id);
            let handle = handle?;
            let flat = FlatObject { flags: flat.flags, binder: handle.into(), cookie: 0 };
            Ok::<_, Errno>((HeldRef::Handle { handle, strong }, Object::Handle { strong, flat }))
        })?;
        self.held.push(held);
        Ok(object)
    }

    /// Takes a descriptor of the sender (`binder_translate_fd`). EPERM: the target accepts no
    /// descriptors; EBADF: the sender has none of that number; EOPNOTSUPP: there is no way to
    /// install it in the target.
    fn take_file(&self, fd: u32) -> Result<Arc<dyn File>, Errno> {
        if !self.target.accepts_fds {
            user_error!(
                Kind::BadFile,
                "got transaction with fd, {fd}, but target does not allow fds"
            );
            return Err(Errno::EPERM);
        }
        if !self.target.process.task.accepts_files() {
            return Err(Errno::EOPNOTSUPP);
        }
        let limits = &self.sender.process.context.shared.limits;
        if self.fixups.len() >= limits.files_per_transaction {
            return Err(Errno::EINVAL);
        }
        let target = self.target.process.id;
        let in_flight = self.sender.process.context.locked(|graph| {
            graph.processes.get(&target).map_or(0, |record| record.files_in_flight)
        });
        if in_flight + self.fixups.len() >= limits.files_in_flight {
            return Err(Errno::EMFILE);
        }
        let taken = i32::try_from(fd)
            .map_err(|_| Errno::EBADF)
            .and_then(|fd| self.sender.process.task.take_file(self.sender.tid, fd));
        taken.inspect_err(|errno| {
            user_error!(Kind::BadFile, "got transaction with invalid fd, {fd}: {errno}");
        })
    }

    /// The descriptors of an array, in a scatter-gather buffer (`binder_translate_fd_array`).
    fn translate_fd_array(&mut self, array: FdArrayObject) -> Result<(), Errno> {
        let (parent_offset, parent, original) = self.parent(array.parent)?;
        if !self.fixup_is_in_order(parent_offset, array.parent_offset) {
            return Err(out_of_order());
        }
        if array.num_fds > 0 {
            self.take_files_of_array(&array, &parent, &original)?;
        }
        self.last_fixup_object = parent_offset;
        self.last_fixup_min =
            array.parent_offset.wrapping_add(array.num_fds.wrapping_mul(size_of::<u32>() as u64));
        Ok(())
    }

    fn take_files_of_array(
        &mut self,
        array: &FdArrayObject,
        parent: &BufferObject,
        original: &BufferObject,
    ) -> Result<(), Errno> {
        let size = array.num_fds.checked_mul(size_of::<u32>() as u64).ok_or(Errno::EINVAL)?;
        if size > parent.length || array.parent_offset > parent.length - size {
            return Err(invalid(format_args!(
                "an fd array that does not fit in its buffer, {} fds",
                { array.num_fds }
            )));
        }
        let offset = parent.buffer - self.buffer.user_data + array.parent_offset;
        let address = original.buffer.wrapping_add(array.parent_offset);
        if !offset.is_multiple_of(4) || !address.is_multiple_of(4) {
            return Err(invalid(format_args!("parent offset not aligned correctly")));
        }
        self.patches.insert(offset, Patch::Skip(size));
        for index in 0..array.num_fds {
            let step = index * size_of::<u32>() as u64;
            let mut fd = [0; 4];
            self.sender
                .memory
                .read(address.wrapping_add(step), &mut fd)
                .map_err(|_| Errno::EINVAL)?;
            let file = self.take_file(u32::from_ne_bytes(fd))?;
            let offset = (offset + step) as usize;
            self.fixups.push(Fixup { offset, file, in_array: true });
        }
        Ok(())
    }

    /// A scatter-gather buffer gets its place behind the offsets, and the pointer to it in its
    /// parent is fixed up (`BINDER_TYPE_PTR`, `binder_fixup_parent`).
    fn translate_buffer(&mut self, offset: u64, mut object: BufferObject) -> Result<Object, Errno> {
        if object.length > self.sg_end.saturating_sub(self.sg_offset) {
            return Err(invalid(format_args!("too large buffer, {} bytes", { object.length })));
        }
        self.copies.push(SgCopy {
            offset: self.sg_offset,
            address: object.buffer,
            length: object.length,
        });
        object.buffer = self.buffer.user_data + self.sg_offset;
        self.sg_offset += align8(object.length);
        if object.has_parent() {
            let (parent_offset, parent, _) = self.parent(object.parent)?;
            if !self.fixup_is_in_order(parent_offset, object.parent_offset) {
                return Err(out_of_order());
            }
            if parent.length < POINTER || object.parent_offset > parent.length - POINTER {
                let offset = object.parent_offset;
                return Err(invalid(format_args!("invalid parent offset, {offset}")));
            }
            let place = object.parent_offset + parent.buffer - self.buffer.user_data;
            self.patches.insert(place, Patch::Pointer(object.buffer));
        }
        self.last_fixup_object = offset;
        self.last_fixup_min = 0;
        Ok(Object::Buffer(object))
    }

    /// An earlier object that is a scatter-gather buffer: its offset, translated and as sent
    /// (`binder_validate_ptr`).
    fn parent(&self, index: u64) -> Result<(u64, BufferObject, BufferObject), Errno> {
        let index = usize::try_from(index).map_err(|_| Errno::EINVAL)?;
        match self.objects.get(index) {
            Some(Translated {
                offset,
                original: Object::Buffer(original),
                object: Object::Buffer(object),
            }) => Ok((*offset, *object, *original)),
            _ => Err(invalid(format_args!("invalid parent offset or type"))),
        }
    }

    /// Fix-ups go upwards, and only into the last buffer or those that it lies in
    /// (`binder_validate_fixup`).
    fn fixup_is_in_order(&self, parent_offset: u64, fixup_offset: u64) -> bool {
        if self.last_fixup_object == 0 {
            return false;
        }
        let (mut object, mut least) = (self.last_fixup_object, self.last_fixup_min);
        while object != parent_offset {
            let index = self.objects.binary_search_by_key(&object, |known| known.offset);
            let Ok(Object::Buffer(last)) = index.map(|index| self.objects[index].object) else {
                return false;
            };
            if !last.has_parent() {
                return false;
            }
            least = last.parent_offset.wrapping_add(POINTER);
            let Some(parent) = self.objects.get(last.parent as usize) else {
                return false;
            };
            object = parent.offset;
        }
        fixup_offset >= least
    }

    /// Copies the scatter-gather buffers, with the pointers between them fixed up and without
    /// the descriptors (`binder_do_deferred_txn_copies`).
    fn copy_scatter_gather(&mut self) -> Result<(), Errno> {
        let mut patches = std::mem::take(&mut self.patches).into_iter().peekable();
        for copy in std::mem::take(&mut self.copies) {
            let mut done = 0;
            while done < copy.length {
                let (offset, left) = (copy.offset + done, copy.length - done);
                let length =
                    patches.peek().map_or(left, |(place, _)| left.min(place.wrapping_sub(offset)));
                // Not EFAULT: the driver's error for this copy is EINVAL.
                self.copy_from_sender(offset, copy.address.wrapping_add(done), length)
                    .map_err(|_| Errno::EINVAL)?;
                done += length;
                if length == left {
                    break;
                }
                match patches.next() {
                    Some((place, Patch::Pointer(address))) => {
                        self.copy_to_buffer(place, &address.to_ne_bytes())?;
                        done += POINTER;
                    }
                    Some((_, Patch::Skip(size))) => done += size,
                    None => {}
                }
            }
        }
        Ok(())
    }
}
