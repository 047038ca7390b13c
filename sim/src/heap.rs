//! An mm without a client: pages are plain memory, and no verb is a system call.

use fakebinder::Errno;
use fakebinder::client_mem::{ClientMemory, SharedSlice};
use fakebinder::lock_order::rank;
use fakebinder::mm_shim::{AddressSpace, NoVma};
use fakebinder::page::{MAX_BUFFER_SIZE, PAGE_SIZE};
use fakebinder::sync::modelled::LeafMutex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// An mm with the page states and errors of a real client's, for tests, model checks and fuzzing.
///
/// Touching a missing page is EFAULT, and counted: it means that a rule of the page protocol is
/// broken.
#[derive(Debug)]
pub struct HeapMm {
    /// The page table, and its lock.
    table: LeafMutex<Table, rank::PageTable>,
    dead: AtomicBool,
    users: AtomicUsize,
    lost: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    /// The client's mapping, while there is one.
    vma: Option<(u64, usize)>,
    /// The client tells its mapping itself: looking does not find it.
    attached: bool,
    /// Pages that the client has mapped besides its buffer.
    elsewhere: u64,
    pages: Vec<Option<Box<[u8; PAGE_SIZE]>>>,
}

impl Table {
    /// The pieces of `offset..offset + len`, page by page: index, offset in the page, length.
    fn pieces(offset: usize, len: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut at = offset;
        std::iter::from_fn(move || {
            let piece = (
                at / PAGE_SIZE,
                at % PAGE_SIZE,
                (PAGE_SIZE - at % PAGE_SIZE).min(offset + len - at),
            );
            at += piece.2;
            (piece.2 > 0).then_some(piece)
        })
    }
}

impl HeapMm {
    /// A client that has mapped nothing yet.
    pub fn new() -> Arc<HeapMm> {
        Arc::new(HeapMm {
            table: LeafMutex::new(Table::default()),
            dead: AtomicBool::new(false),
            users: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
        })
    }

    /// A client that has mapped its buffer; the mapping is found when it is first needed.
    pub fn with_mapping(address: u64, size: usize) -> Arc<HeapMm> {
        let mm = HeapMm::new();
        mm.table.lock().vma = Some((address, size));
        mm
    }

    /// The client maps its buffer.
    pub fn mmap(&self, address: u64, size: usize) {
        self.table.lock().vma.get_or_insert((address, size));
    }

    /// The client maps its buffer and is about to tell so, as on the CUSE door: looking does not
    /// find the mapping.
    pub fn attach(&self, address: u64, size: usize) {
        let mut table = self.table.lock();
        table.vma = Some((address, size));
        table.attached = true;
    }

    /// The client maps so many bytes besides its buffer.
    pub fn mmap_elsewhere(&self, size: usize) {
        self.table.lock().elsewhere = (size / PAGE_SIZE) as u64;
    }

    /// The client unmaps its buffer.
    pub fn munmap(&self) {
        self.table.lock().vma = None;
    }

    /// The client exits: its mm cannot be used any more.
    pub fn exit(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// What the client reads at `address`: zeros where there is no page. EFAULT: not in its
    /// mapping.
    pub fn peek(&self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let table = self.table.lock();
        let (start, size) = table.vma.ok_or(Errno::EFAULT)?;
        let offset = address.checked_sub(start).ok_or(Errno::EFAULT)? as usize;
        if offset > size || bytes.len() > size - offset {
            return Err(Errno::EFAULT);
        }
        let mut rest = bytes;
        for (index, from, len) in Table::pieces(offset, rest.len()) {
            let (piece, tail) = rest.split_at_mut(len);
            match table.pages.get(index).and_then(Option::as_ref) {
                Some(page) => piece.copy_from_slice(&page[from..from + len]),
                None => piece.fill(0),
            }
            rest = tail;
        }
        Ok(())
    }

    /// Reads installed pages from `offset` on. EFAULT, and counted as lost: a page is missing.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Errno> {
        let mut rest = bytes;
        let len = rest.len();
        self.each_piece(offset, len, |piece| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(piece.len());
            now.copy_from_slice(piece);
            rest = later;
            Ok(())
        })
    }

    /// How many pages are installed.
    pub fn resident(&self) -> usize {
        self.table.lock().pages.iter().flatten().count()
    }

    /// How often a page was missing that should have been installed.
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }

    /// How many uses of the mm have not been put.
    pub fn users(&self) -> usize {
        self.users.load(Ordering::SeqCst)
    }

    /// Runs `f` on every piece of the range, under the page table's lock.
    fn each_piece(
        &self,
        offset: usize,
        len: usize,
        mut f: impl FnMut(&mut [u8]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut table = self.table.lock();
        for (index, from, len) in Table::pieces(offset, len) {
            let Some(page) = table.pages.get_mut(index).and_then(Option::as_mut) else {
                self.lost.fetch_add(1, Ordering::SeqCst);
                return Err(Errno::EFAULT);
            };
            f(&mut page[from..from + len])?;
        }
        Ok(())
    }
}

impl AddressSpace for HeapMm {
    fn pid(&self) -> i32 {
        0
    }

    fn find_mapping(&self) -> Result<(u64, usize), Errno> {
        let table = self.table.lock();
        table.vma.filter(|_| !table.attached).ok_or(Errno::ESRCH)
    }

    fn total_vm(&self) -> Option<u64> {
        let table = self.table.lock();
        Some(table.vma.map_or(0, |(_, size)| size as u64 / PAGE_SIZE as u64) + table.elsewhere)
    }

    fn mmget_not_zero(&self) -> bool {
        let alive = !self.dead.load(Ordering::SeqCst);
        if alive {
            self.users.fetch_add(1, Ordering::SeqCst);
        }
        alive
    }

    fn mmput(&self) {
        self.users.fetch_sub(1, Ordering::SeqCst);
    }

    fn vma_lookup(&self, address: u64, index: usize) -> Result<Range<usize>, NoVma> {
        let table = self.table.lock();
        let (start, size) = table.vma.ok_or(NoVma::Closed)?;
        let ours = (index + 1) * PAGE_SIZE <= size && start + (index * PAGE_SIZE) as u64 == address;
        ours.then_some(index..index + 1).ok_or(NoVma::Closed)
    }

    fn vm_insert_page(&self, index: usize) -> Result<(), Errno> {
        let mut table = self.table.lock();
        if index >= MAX_BUFFER_SIZE / PAGE_SIZE {
            return Err(Errno::EFAULT);
        }
        if index >= table.pages.len() {
            table.pages.resize_with(index + 1, || None);
        }
        let slot = &mut table.pages[index];
        if slot.is_some() {
            return Err(Errno::EBUSY);
        }
        *slot = Some(Box::new([0; PAGE_SIZE]));
        Ok(())
    }

    fn get_user_pages_remote(&self, index: usize) -> bool {
        self.table.lock().pages.get(index).is_some_and(Option::is_some)
    }

    fn zap_page(&self, index: usize) -> Result<(), Errno> {
        match self.table.lock().pages.get_mut(index).and_then(Option::take) {
            Some(_) => Ok(()),
            None => {
                self.lost.fetch_add(1, Ordering::SeqCst);
                Err(Errno::ENOENT)
            }
        }
    }

    fn exit_mmap(&self) {
        self.table.lock().pages.fill_with(|| None);
    }

    fn copy_from_client(
        &self,
        offset: usize,
        from: &dyn ClientMemory,
        addr: u64,
        len: usize,
    ) -> Result<(), Errno> {
        // Not straight into the pages: other threads may want the page table while the client's
        // memory is reached.
        let mut bytes = vec![0; len];
        #[allow(unsafe_code, reason = "the allocator copies to memory that others may change")]
        // SAFETY: the bytes are owned by this function, and nothing has a reference to them
        // meanwhile.
        from.read_shared(addr, unsafe { SharedSlice::new(bytes.as_mut_ptr(), len) })?;
        self.write(offset, &bytes)
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        let mut rest = bytes;
        self.each_piece(offset, bytes.len(), |piece| {
            let (now, later) = rest.split_at(piece.len());
            piece.copy_from_slice(now);
            rest = later;
            Ok(())
        })
    }

    fn clear(&self, offset: usize, len: usize) -> Result<(), Errno> {
        self.each_piece(offset, len, |piece| {
            piece.fill(0);
            Ok(())
        })
    }
}
