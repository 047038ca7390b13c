//! A file system of a client's own, whose server never answers a read.

use fakebinder::uapi::{self, bytes_of, parse};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const FILE_INODE: u64 = 2;
const FILE_SIZE: u64 = 64 << 20;

/// The mount and the thread that serves it. Dropped, it is unmounted, and whoever still waits for
/// a page gets an error.
pub struct NeverRead {
    mount: PathBuf,
    server: Option<std::thread::JoinHandle<()>>,
}

impl NeverRead {
    /// None when this process may not mount.
    pub fn mount(at: &Path) -> Option<NeverRead> {
        fs::create_dir_all(at).expect("a directory to mount on");
        let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", fuse.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("never"), at, Some("fuse"), flags, Some(&*options)).ok()?;
        let server = std::thread::spawn(move || serve(fuse));
        Some(NeverRead { mount: at.to_owned(), server: Some(server) })
    }

    /// Its one file.
    pub fn path(&self) -> PathBuf {
        self.mount.join("file")
    }

    /// Maps the first pages of the file; gives their address. They stay mapped.
    pub fn map(path: &Path, pages: usize) -> u64 {
        let file = OpenOptions::new().read(true).write(true).open(path).expect("it can be opened");
        // SAFETY: a new mapping at no address in particular, which nobody here looks at.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                pages * 4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        // No read-ahead: each page is a read of its own.
        // SAFETY: the mapping that was just made.
        unsafe { libc::madvise(start, pages * 4096, libc::MADV_RANDOM) };
        start as u64
    }
}

impl Drop for NeverRead {
    fn drop(&mut self) {
        let _ = umount2(&self.mount, MntFlags::MNT_FORCE);
        let _ = umount2(&self.mount, MntFlags::MNT_DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        let _ = fs::remove_dir(&self.mount);
    }
}

fn attributes(inode: u64) -> uapi::fuse_attr {
    let directory = inode != FILE_INODE;
    uapi::fuse_attr {
        ino: inode,
        size: if directory { 0 } else { FILE_SIZE },
        mode: if directory { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o666 },
        nlink: 1,
        ..Default::default()
    }
}

fn serve(mut fuse: File) {
    let mut buffer = vec![0; 1 << 18];
    while let Ok(length) = fuse.read(&mut buffer) {
        let Some(header) = parse::<uapi::fuse_in_header>(&buffer[..length]) else { return };
        let answer: Vec<u8> = match header.opcode {
            uapi::FUSE_READ
            | uapi::FUSE_FORGET
            | uapi::FUSE_BATCH_FORGET
            | uapi::FUSE_INTERRUPT => {
                continue;
            }
            uapi::FUSE_INIT => bytes_of(&uapi::fuse_init_out {
                major: uapi::FUSE_KERNEL_VERSION,
                minor: 31,
                max_write: 4096,
                max_background: 1024,
                congestion_threshold: 1024,
                ..Default::default()
            })
            .to_vec(),
            uapi::FUSE_LOOKUP => bytes_of(&uapi::fuse_entry_out {
                nodeid: FILE_INODE,
                entry_valid: 3600,
                attr_valid: 3600,
                attr: attributes(FILE_INODE),
                ..Default::default()
            })
            .to_vec(),
            uapi::FUSE_GETATTR => bytes_of(&uapi::fuse_attr_out {
                attr_valid: 3600,
                attr: attributes(header.nodeid),
                ..Default::default()
            })
            .to_vec(),
            uapi::FUSE_OPEN => {
                bytes_of(&uapi::fuse_open_out { fh: 1, ..Default::default() }).to_vec()
            }
            _ => Vec::new(),
        };
        let out = uapi::fuse_out_header {
            len: (size_of::<uapi::fuse_out_header>() + answer.len()) as u32,
            error: 0,
            unique: header.unique,
        };
        let _ = fuse.write(&[bytes_of(&out), &answer].concat());
    }
}
