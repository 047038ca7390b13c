//! The mappings of a process: `/proc/PID/maps`, asked by ioctl where the kernel has PROCMAP_QUERY
//! (6.11) and read as text elsewhere.

use crate::Errno;
use crate::lock_order::rank;
use crate::probe::{Verb, fault};
use crate::sync::Mutex;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// `struct procmap_query` of `<linux/fs.h>`.
#[repr(C)]
#[derive(Default)]
pub struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

nix::ioctl_readwrite!(procmap_query, b'f', 17, ProcmapQuery);

const VMA_WRITABLE: u64 = 0x02;
const COVERING_OR_NEXT_VMA: u64 = 0x10;
const FILE_BACKED_VMA: u64 = 0x20;

/// A mapping of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileVma {
    pub start: u64,
    pub end: u64,
    /// Offset in the file of `start`, in bytes.
    pub offset: u64,
    pub dev: u64,
    pub ino: u64,
    pub writable: bool,
}

/// The mm of a process as it was when this was opened: a program that the process executes later is
/// not seen through this.
#[derive(Debug)]
pub(super) struct Maps {
    file: File,
    /// The kernel has no PROCMAP_QUERY, or it is not to be used.
    text: AtomicBool,
    /// Held while the text is read: the descriptor has one position.
    reading: Mutex<(), rank::Maps>,
}

impl Maps {
    /// ESRCH: there is no such process. `query`: whether PROCMAP_QUERY may be used.
    pub(super) fn open(pid: i32, query: bool) -> Result<Maps, Errno> {
        fault(Verb::Descriptor)?;
        let file = File::open(format!("/proc/{pid}/maps")).map_err(errno)?;
        Ok(Maps { file, text: AtomicBool::new(!query), reading: Mutex::new(()) })
    }

    /// Whether every look reads the text, which takes the longer the more mappings the process has.
    pub(super) fn is_text(&self) -> bool {
        self.text.load(Ordering::Relaxed)
    }

    /// The first mapping of a file that ends above `address`. ENOENT: none. ESRCH: the process is
    /// gone.
    pub(super) fn next_file(&self, address: u64) -> Result<FileVma, Errno> {
        if !self.is_text() {
            match self.query(address) {
                Err(Errno::ENOTTY) => self.text.store(true, Ordering::Relaxed),
                found => return found,
            }
        }
        self.find_in_text(|vma| vma.end > address)
    }

    /// The first mapping of a file that is wanted, in one pass over all of them. Errors as
    /// [`Maps::next_file`]'s.
    pub(super) fn find_file(
        &self,
        mut wanted: impl FnMut(&FileVma) -> bool,
    ) -> Result<FileVma, Errno> {
        let mut address = 0;
        while !self.is_text() {
            let vma = match self.query(address) {
                // The kernel can answer so only the first time.
                Err(Errno::ENOTTY) => {
                    self.text.store(true, Ordering::Relaxed);
                    break;
                }
                found => found?,
            };
            if wanted(&vma) {
                return Ok(vma);
            }
            address = vma.end;
        }
        self.find_in_text(wanted)
    }

    fn query(&self, address: u64) -> Result<FileVma, Errno> {
        let mut query = ProcmapQuery {
            size: size_of::<ProcmapQuery>() as u64,
            query_flags: COVERING_OR_NEXT_VMA | FILE_BACKED_VMA,
            query_addr: address,
            ..ProcmapQuery::default()
        };
        // SAFETY: the argument is of the ioctl's type and outlives the call; it asks for no name
        // and no build id, so the kernel writes nowhere else.
        unsafe { procmap_query(self.file.as_raw_fd(), &mut query) }?;
        Ok(FileVma {
            start: query.vma_start,
            end: query.vma_end,
            offset: query.vma_offset,
            dev: libc::makedev(query.dev_major, query.dev_minor),
            ino: query.inode,
            writable: query.vma_flags & VMA_WRITABLE != 0,
        })
    }

    /// Reads the text from its start, through the one descriptor: if it were opened anew by pid, it
    /// might be about another program, and there might be no descriptor left for it.
    fn find_in_text(&self, mut wanted: impl FnMut(&FileVma) -> bool) -> Result<FileVma, Errno> {
        let _reading = self.reading.lock();
        let mut file = &self.file;
        file.rewind().map_err(errno)?;
        let mut text = BufReader::new(file);
        let mut line = Vec::new();
        // A process without any mapping has no mm any more.
        let mut end = Errno::ESRCH;
        loop {
            line.clear();
            if text.read_until(b'\n', &mut line).map_err(errno)? == 0 {
                return Err(end);
            }
            #[cfg(test)]
            tests::LINES.set(tests::LINES.get() + 1);
            end = Errno::ENOENT;
            let vma = parse_line(&line).filter(|vma| vma.ino != 0);
            if let Some(vma) = vma.filter(|vma| wanted(vma)) {
                return Ok(vma);
            }
        }
    }
}

/// ENOENT from `/proc` means that the process is gone: ESRCH.
fn errno(error: std::io::Error) -> Errno {
    match error.raw_os_error().map_or(Errno::EIO, Errno::from_raw) {
        Errno::ENOENT => Errno::ESRCH,
        other => other,
    }
}

/// A line of `/proc/PID/maps`: `start-end rwxp offset major:minor inode path`. The path, which may
/// hold any bytes, is not looked at.
fn parse_line(line: &[u8]) -> Option<FileVma> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut fields =
        line.splitn(6, u8::is_ascii_whitespace).map_while(|field| str::from_utf8(field).ok());
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    Some(FileVma {
        start: hex(start)?,
        end: hex(end)?,
        offset,
        dev: libc::makedev(hex(major)? as u32, hex(minor)? as u32),
        ino: fields.next()?.parse().ok()?,
        writable: permissions.as_bytes().get(1) == Some(&b'w'),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::page::PAGE_SIZE;
    use std::cell::Cell;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    thread_local! {
        /// How many lines of text this thread has read.
        pub(super) static LINES: Cell<usize> = const { Cell::new(0) };
    }

    /// The result of `f`, and how many lines of text it has read.
    pub(in crate::mm_shim) fn lines_read<R>(f: impl FnOnce() -> R) -> (R, usize) {
        let before = LINES.get();
        let result = f();
        (result, LINES.get() - before)
    }

    fn ours(query: bool) -> Maps {
        Maps::open(std::process::id() as i32, query).expect("our own maps")
    }

    #[test]
    fn a_line_of_text_says_the_same_as_the_kernel() {
        let line = b"7f1c00200000-7f1c00600000 r--p 00001000 00:2f 18446744073709551615                   /dev/fakebinder (deleted)\n";
        let expected = FileVma {
            start: 0x7f1c_0020_0000,
            end: 0x7f1c_0060_0000,
            offset: 0x1000,
            dev: libc::makedev(0, 0x2f),
            ino: u64::MAX,
            writable: false,
        };
        assert_eq!(parse_line(line), Some(expected));
        let no_text = [&line[..line.len() - 1], b" \xff\xfe\n"].concat();
        assert_eq!(parse_line(&no_text), Some(expected));
        let writable = parse_line(b"7f1c00200000-7f1c00600000 -w-p 0 8:1 2\n");
        assert!(writable.expect("a line").writable);
        for nonsense in [
            "",
            "7f1c",
            "7f1c-7f1d r--p",
            "7f1c-7f1d r--p 0 0 5",
            "x-y r--p 0 0:1 5",
            "1-2 r--p 0 0:1 z",
        ] {
            assert_eq!(parse_line(nonsense.as_bytes()), None, "{nonsense}");
        }
    }

    /// Other tests map and unmap meanwhile in this process: so only the mappings of one file count.
    pub(in crate::mm_shim) struct Mapped {
        pages: Vec<*mut libc::c_void>,
        dev: u64,
        ino: u64,
    }

    impl Mapped {
        /// Makes `count` mappings of a file whose name is no text.
        pub(in crate::mm_shim) fn new(count: usize) -> Mapped {
            let name = OsStr::from_bytes(b"fakebinder-maps-\xff\xfe");
            let path = std::env::temp_dir().join(name).with_extension(format!(
                "{}-{:?}",
                std::process::id(),
                std::thread::current().id()
            ));
            let file = File::create_new(&path).expect("a file");
            std::fs::remove_file(&path).expect("our file");
            file.set_len(PAGE_SIZE as u64).expect("a page");
            let stat = nix::sys::stat::fstat(&file).expect("a file");
            // The same page each time: neighbours become one mapping only where their offsets
            // follow on each other.
            let map = |_| {
                let (flags, size) = (libc::MAP_SHARED, PAGE_SIZE);
                // SAFETY: at a place of the kernel's choice, so nothing that exists is replaced.
                let page = unsafe {
                    libc::mmap(std::ptr::null_mut(), size, 0, flags, file.as_raw_fd(), 0)
                };
                assert_ne!(page, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
                page
            };
            let pages = (0..count).map(map).collect();
            Mapped { pages, dev: stat.st_dev, ino: stat.st_ino }
        }

        fn has(&self, vma: &FileVma) -> bool {
            (vma.dev, vma.ino) == (self.dev, self.ino)
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: mapped by `new`, and no reference into them was made.
            self.pages.iter().for_each(|page| _ = unsafe { libc::munmap(*page, PAGE_SIZE) });
        }
    }

    #[test]
    fn both_ways_find_the_same_mappings_of_this_process() {
        let mapped = Mapped::new(5);
        let all = |maps: &Maps| {
            let mut found = Vec::new();
            let end = maps.find_file(|vma| {
                found.extend(mapped.has(vma).then_some(*vma));
                false
            });
            assert_eq!(end, Err(Errno::ENOENT));
            found
        };
        let (asked, text) = (ours(true), ours(false));
        let found = all(&text);
        assert_eq!((all(&asked), found.len()), (found.clone(), 5));
        for vma in found {
            for address in [vma.start, vma.end - 1] {
                assert_eq!(asked.next_file(address), Ok(vma));
                assert_eq!(text.next_file(address), Ok(vma));
            }
        }
        assert_eq!(text.next_file(u64::MAX >> 1), Err(Errno::ENOENT));
        assert!(text.is_text());
        let (_, lines) = lines_read(|| asked.next_file(0));
        assert_eq!(asked.is_text(), lines > 0);
    }

    #[test]
    fn a_search_reads_the_text_once_however_many_mappings_there_are() {
        let search = |count| {
            let mapped = Mapped::new(count);
            let (mut seen, maps) = (0, ours(false));
            let (end, lines) = lines_read(|| {
                maps.find_file(|vma| {
                    seen += usize::from(mapped.has(vma));
                    false
                })
            });
            assert_eq!((end, seen), (Err(Errno::ENOENT), count));
            lines
        };
        // The mappings that other tests make meanwhile are in here, too.
        let (some, more) = (search(500), search(2000));
        assert!((500..1500).contains(&some), "{some} lines for 500 mappings");
        assert!((2000..3000).contains(&more), "{more} lines for 2,000 mappings");
    }

    /// smaps has the same lines, and more, and no PROCMAP_QUERY: like maps before Linux 6.11.
    #[test]
    fn a_kernel_without_the_ioctl_is_noticed() {
        let mapped = Mapped::new(3);
        let smaps = || {
            let file = File::open("/proc/self/smaps").expect("a file of /proc");
            Maps { file, text: AtomicBool::new(false), reading: Mutex::new(()) }
        };
        let text = ours(false);
        let first = text.find_file(|vma| mapped.has(vma)).expect("mapped");
        let old = smaps();
        assert_eq!(old.find_file(|vma| mapped.has(vma)), Ok(first));
        assert!(old.is_text());
        let old = smaps();
        assert_eq!(old.next_file(first.start), Ok(first));
        assert!(old.is_text());
    }

    #[test]
    fn a_process_that_is_gone_has_no_mappings() {
        for query in [true, false] {
            let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
            let maps = Maps::open(child.id() as i32, query).expect("its maps");
            // A program is mapped some time after its process has begun.
            let start = std::time::Instant::now();
            while maps.next_file(0).is_err() {
                assert!(start.elapsed().as_secs() < 20);
                std::thread::yield_now();
            }
            child.kill().expect("it runs");
            child.wait().expect("it has ended");
            assert_eq!(maps.next_file(0), Err(Errno::ESRCH));
            assert_eq!(maps.find_file(|_| true), Err(Errno::ESRCH));
        }
    }
}
