//! The mappings of a process: `/proc/PID/maps`, asked by ioctl where the kernel has PROCMAP_QUERY
//! (6.11) and read as text elsewhere.

use crate::Errno;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;

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

/// The mm of a process, as it was when this was opened: another program that the process executes
/// later is not in here.
#[derive(Debug)]
pub(super) struct Maps {
    file: File,
    pid: i32,
}

impl Maps {
    /// ESRCH: there is no such process.
    pub(super) fn open(pid: i32) -> Result<Maps, Errno> {
        let errno = |e: std::io::Error| match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => Errno::ESRCH,
            other => other.unwrap_or(Errno::EIO),
        };
        let file = File::open(format!("/proc/{pid}/maps")).map_err(errno)?;
        Ok(Maps { file, pid })
    }

    /// The first mapping of a file that ends above `address`. ENOENT: none. ESRCH: the process is
    /// gone.
    pub(super) fn next_file(&self, address: u64) -> Result<FileVma, Errno> {
        let mut query = ProcmapQuery {
            size: size_of::<ProcmapQuery>() as u64,
            query_flags: COVERING_OR_NEXT_VMA | FILE_BACKED_VMA,
            query_addr: address,
            ..ProcmapQuery::default()
        };
        // SAFETY: the argument is of the ioctl's type and outlives the call; it asks for no name and
        // no build id, so the kernel writes nowhere else.
        match unsafe { procmap_query(self.file.as_raw_fd(), &mut query) } {
            Ok(_) => Ok(FileVma {
                start: query.vma_start,
                end: query.vma_end,
                offset: query.vma_offset,
                dev: libc::makedev(query.dev_major, query.dev_minor),
                ino: query.inode,
                writable: query.vma_flags & VMA_WRITABLE != 0,
            }),
            Err(Errno::ENOTTY) => self.next_file_in_text(address),
            Err(errno) => Err(errno),
        }
    }

    fn next_file_in_text(&self, address: u64) -> Result<FileVma, Errno> {
        // Opened anew: this descriptor's position is shared by every thread that looks.
        let text = BufReader::with_capacity(1 << 16, Maps::open(self.pid)?.file);
        let vmas = text.lines().map_while(Result::ok).filter_map(|line| parse_line(&line));
        vmas.filter(|vma| vma.ino != 0).find(|vma| vma.end > address).ok_or(Errno::ENOENT)
    }
}

/// A line of `/proc/PID/maps`: `start-end rwxp offset major:minor inode path`.
fn parse_line(line: &str) -> Option<FileVma> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut fields = line.split_ascii_whitespace();
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
mod tests {
    use super::*;

    #[test]
    fn a_line_of_text_says_the_same_as_the_kernel() {
        let line = "7f1c00200000-7f1c00600000 r--p 00001000 00:2f 18446744073709551615                   /dev/fakebinder (deleted)";
        assert_eq!(
            parse_line(line),
            Some(FileVma {
                start: 0x7f1c_0020_0000,
                end: 0x7f1c_0060_0000,
                offset: 0x1000,
                dev: libc::makedev(0, 0x2f),
                ino: u64::MAX,
                writable: false,
            })
        );
        assert!(parse_line("7f1c00200000-7f1c00600000 -w-p 0 8:1 2").expect("a line").writable);
        for nonsense in [
            "",
            "7f1c",
            "7f1c-7f1d r--p",
            "7f1c-7f1d r--p 0 0 5",
            "x-y r--p 0 0:1 5",
            "1-2 r--p 0 0:1 z",
        ] {
            assert_eq!(parse_line(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn both_ways_find_the_same_mappings_of_this_process() {
        let maps = Maps::open(std::process::id() as i32).expect("our own maps");
        let (mut address, mut seen) = (0, 0);
        while let Ok(vma) = maps.next_file_in_text(address) {
            match maps.next_file(address) {
                Ok(asked) => assert_eq!(asked, vma),
                Err(errno) => panic!("no mapping above {address:#x}: {errno}"),
            }
            (address, seen) = (vma.end, seen + 1);
        }
        assert!(seen > 3, "a process has its program and libraries mapped");
        assert_eq!(maps.next_file(address), Err(Errno::ENOENT));
    }
}
