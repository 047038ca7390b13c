//! The messages of the FUSE and CUSE protocols, as types: decoded and checked here and nowhere
//! else.
//!
//! No I/O: a message is the bytes of one `read` of the device. Everything of variable size (names,
//! ioctl arguments) comes from a client and is bounded by the length of the message; everything of
//! fixed size is checked for length before it is looked at.

mod request;

pub use request::{Forgotten, Header, Ioctl, Malformed, Request, SetAttr};

use crate::uapi;
use std::mem::size_of;

/// Decodes the message that one read of the device gave.
pub fn decode(message: &[u8]) -> Result<(Header, Request<'_>), Malformed> {
    let raw: uapi::fuse_in_header =
        uapi::parse(message).ok_or(Malformed::NoHeader { length: message.len() })?;
    let (unique, opcode) = (raw.unique, raw.opcode);
    if raw.len as usize != message.len() {
        return Err(Malformed::Length {
            unique,
            opcode,
            claimed: raw.len as usize,
            length: message.len(),
        });
    }
    let header =
        Header { unique, node: raw.nodeid, uid: raw.uid, gid: raw.gid, tid: raw.pid as i32 };
    let body = &message[size_of::<uapi::fuse_in_header>()..];
    let short = || Malformed::Short { unique, opcode, length: message.len() };
    let unnamed = || Malformed::Name { unique, opcode };

    let request = match opcode {
        uapi::FUSE_INIT => init(body).ok_or_else(short)?,
        uapi::CUSE_INIT => {
            let init: uapi::cuse_init_in = uapi::parse(body).ok_or_else(short)?;
            Request::CuseInit { major: init.major, minor: init.minor, flags: init.flags }
        }
        uapi::FUSE_LOOKUP => Request::Lookup { name: name(body).ok_or_else(unnamed)?.0 },
        uapi::FUSE_FORGET => {
            let forget: uapi::fuse_forget_in = uapi::parse(body).ok_or_else(short)?;
            Request::Forget(Forgotten { one: Some((raw.nodeid, forget.nlookup)), batch: &[] })
        }
        uapi::FUSE_BATCH_FORGET => {
            let batch: uapi::fuse_batch_forget_in = uapi::parse(body).ok_or_else(short)?;
            let all = u64::from(batch.count) * size_of::<uapi::fuse_forget_one>() as u64;
            let list = &body[size_of::<uapi::fuse_batch_forget_in>()..];
            if (list.len() as u64) < all {
                return Err(short());
            }
            Request::Forget(Forgotten { one: None, batch: &list[..all as usize] })
        }
        // The body has a file handle since 7.9; it is not needed here.
        uapi::FUSE_GETATTR => Request::GetAttr,
        uapi::FUSE_SETATTR => {
            let set: uapi::fuse_setattr_in = uapi::parse(body).ok_or_else(short)?;
            Request::SetAttr(SetAttr {
                valid: set.valid,
                mode: set.mode,
                uid: set.uid,
                gid: set.gid,
                atime: (set.atime, set.atimensec),
                mtime: (set.mtime, set.mtimensec),
            })
        }
        uapi::FUSE_READLINK => Request::ReadLink,
        // The link's name, and then its target.
        uapi::FUSE_SYMLINK => Request::Symlink { name: name(body).ok_or_else(unnamed)?.0 },
        uapi::FUSE_MKNOD => {
            let made: uapi::fuse_mknod_in = uapi::parse(body).ok_or_else(short)?;
            Request::Mknod { mode: made.mode }
        }
        uapi::FUSE_UNLINK => Request::Unlink { name: name(body).ok_or_else(unnamed)?.0 },
        uapi::FUSE_RENAME => {
            let to: uapi::fuse_rename_in = uapi::parse(body).ok_or_else(short)?;
            let names = &body[size_of::<uapi::fuse_rename_in>()..];
            rename(names, to.newdir, 0).ok_or_else(unnamed)?
        }
        uapi::FUSE_RENAME2 => {
            let to: uapi::fuse_rename2_in = uapi::parse(body).ok_or_else(short)?;
            let names = &body[size_of::<uapi::fuse_rename2_in>()..];
            rename(names, to.newdir, to.flags).ok_or_else(unnamed)?
        }
        uapi::FUSE_OPEN => {
            let open: uapi::fuse_open_in = uapi::parse(body).ok_or_else(short)?;
            Request::Open { flags: open.flags }
        }
        uapi::FUSE_READ => {
            let read: uapi::fuse_read_in = uapi::parse(body).ok_or_else(short)?;
            // `fuse_direct_io` names who reads, and `fuse_read_folio` cannot.
            let for_cache = read.read_flags & uapi::FUSE_READ_LOCKOWNER == 0;
            Request::Read { fh: read.fh, offset: read.offset, size: read.size, for_cache }
        }
        uapi::FUSE_WRITE => {
            uapi::parse::<uapi::fuse_write_in>(body).ok_or_else(short)?;
            Request::Write
        }
        uapi::FUSE_STATFS => Request::StatFs,
        uapi::FUSE_FLUSH => {
            let flush: uapi::fuse_flush_in = uapi::parse(body).ok_or_else(short)?;
            Request::Flush { fh: flush.fh }
        }
        uapi::FUSE_RELEASE => {
            let release: uapi::fuse_release_in = uapi::parse(body).ok_or_else(short)?;
            Request::Release { fh: release.fh }
        }
        uapi::FUSE_OPENDIR => {
            uapi::parse::<uapi::fuse_open_in>(body).ok_or_else(short)?;
            Request::OpenDir
        }
        uapi::FUSE_READDIR => {
            let read: uapi::fuse_read_in = uapi::parse(body).ok_or_else(short)?;
            Request::ReadDir { offset: read.offset, size: read.size }
        }
        uapi::FUSE_RELEASEDIR => {
            uapi::parse::<uapi::fuse_release_in>(body).ok_or_else(short)?;
            Request::ReleaseDir
        }
        uapi::FUSE_IOCTL => Request::Ioctl(ioctl(body).ok_or_else(short)?),
        uapi::FUSE_POLL => {
            let poll: uapi::fuse_poll_in = uapi::parse(body).ok_or_else(short)?;
            Request::Poll {
                fh: poll.fh,
                handle: poll.kh,
                notify: poll.flags & uapi::FUSE_POLL_SCHEDULE_NOTIFY != 0,
                events: poll.events,
            }
        }
        uapi::FUSE_INTERRUPT => {
            let interrupt: uapi::fuse_interrupt_in = uapi::parse(body).ok_or_else(short)?;
            Request::Interrupt { unique: interrupt.unique }
        }
        uapi::FUSE_DESTROY => Request::Destroy,
        opcode => Request::Other { opcode },
    };
    Ok((header, request))
}

/// The name at the start of `bytes`, without its NUL, and what follows it.
fn name(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn rename(names: &[u8], directory: u64, flags: u32) -> Option<Request<'_>> {
    let (old, rest) = name(names)?;
    Some(Request::Rename { name: old, directory, new_name: name(rest)?.0, flags })
}

/// INIT's body has 16 bytes up to 7.35; since 7.36 also `flags2` and room for more.
fn init(body: &[u8]) -> Option<Request<'_>> {
    const OLD: usize = 16;
    if body.len() < OLD {
        return None;
    }
    let mut bytes = [0; size_of::<uapi::fuse_init_in>()];
    let known = body.len().min(bytes.len());
    bytes[..known].copy_from_slice(&body[..known]);
    let init: uapi::fuse_init_in = uapi::parse(&bytes)?;
    let mut flags = u64::from(init.flags);
    if init.flags & uapi::FUSE_INIT_EXT != 0 {
        flags |= u64::from(init.flags2) << 32;
    }
    Some(Request::Init { major: init.major, minor: init.minor, flags })
}

fn ioctl(body: &[u8]) -> Option<Ioctl<'_>> {
    let raw: uapi::fuse_ioctl_in = uapi::parse(body)?;
    let input = body[size_of::<uapi::fuse_ioctl_in>()..].get(..raw.in_size as usize)?;
    Some(Ioctl {
        fh: raw.fh,
        cmd: raw.cmd,
        arg: raw.arg,
        input,
        out_size: raw.out_size as usize,
        unrestricted: raw.flags & uapi::FUSE_IOCTL_UNRESTRICTED != 0,
    })
}

/// Appends an entry of a directory listing, as READDIR returns it: padded to 8 bytes. `next` is
/// where a listing that ends here goes on. False, and nothing appended, when the entry does not fit
/// into `size` bytes.
pub fn push_dirent(
    listing: &mut Vec<u8>,
    size: usize,
    node: u64,
    next: u64,
    kind: u32,
    name: &[u8],
) -> bool {
    const FIXED: usize = 24;
    let length = (FIXED + name.len()).next_multiple_of(8);
    if listing.len() + length > size {
        return false;
    }
    let end = listing.len() + length;
    listing.extend_from_slice(&node.to_ne_bytes());
    listing.extend_from_slice(&next.to_ne_bytes());
    listing.extend_from_slice(&(name.len() as u32).to_ne_bytes());
    listing.extend_from_slice(&kind.to_ne_bytes());
    listing.extend_from_slice(name);
    listing.resize(end, 0);
    true
}

#[cfg(test)]
/// Messages as the kernel sends them, for tests.
pub mod tests {
    use super::*;
    use crate::uapi::bytes_of;

    /// A request as the kernel would write it.
    pub fn message(opcode: u32, unique: u64, node: u64, tid: u32, body: &[&[u8]]) -> Vec<u8> {
        let body = body.concat();
        let header = uapi::fuse_in_header {
            len: (size_of::<uapi::fuse_in_header>() + body.len()) as u32,
            opcode,
            unique,
            nodeid: node,
            uid: 1000,
            gid: 100,
            pid: tid,
            ..Default::default()
        };
        [bytes_of(&header), &body].concat()
    }

    fn all_fixed_requests() -> Vec<Vec<u8>> {
        fn with<T: zerocopy::FromZeros + zerocopy::IntoBytes + zerocopy::Immutable>(
            opcode: u32,
        ) -> Vec<u8> {
            message(opcode, 2, 1, 7, &[bytes_of(&T::new_zeroed())])
        }
        vec![
            with::<uapi::cuse_init_in>(uapi::CUSE_INIT),
            with::<uapi::fuse_forget_in>(uapi::FUSE_FORGET),
            with::<uapi::fuse_batch_forget_in>(uapi::FUSE_BATCH_FORGET),
            with::<uapi::fuse_setattr_in>(uapi::FUSE_SETATTR),
            with::<uapi::fuse_mknod_in>(uapi::FUSE_MKNOD),
            message(uapi::FUSE_SYMLINK, 2, 1, 7, &[b"a\0"]),
            message(uapi::FUSE_UNLINK, 2, 1, 7, &[b"a\0"]),
            message(uapi::FUSE_RENAME, 2, 1, 7, &[&[0; 8], b"a\0b\0"]),
            message(uapi::FUSE_RENAME2, 2, 1, 7, &[&[0; 16], b"a\0b\0"]),
            with::<uapi::fuse_open_in>(uapi::FUSE_OPEN),
            with::<uapi::fuse_read_in>(uapi::FUSE_READ),
            with::<uapi::fuse_write_in>(uapi::FUSE_WRITE),
            with::<uapi::fuse_flush_in>(uapi::FUSE_FLUSH),
            with::<uapi::fuse_release_in>(uapi::FUSE_RELEASE),
            with::<uapi::fuse_open_in>(uapi::FUSE_OPENDIR),
            with::<uapi::fuse_read_in>(uapi::FUSE_READDIR),
            with::<uapi::fuse_release_in>(uapi::FUSE_RELEASEDIR),
            with::<uapi::fuse_ioctl_in>(uapi::FUSE_IOCTL),
            with::<uapi::fuse_poll_in>(uapi::FUSE_POLL),
            with::<uapi::fuse_interrupt_in>(uapi::FUSE_INTERRUPT),
        ]
    }

    #[test]
    fn every_request_cut_short_is_refused_and_never_read_beyond_its_end() {
        for whole in all_fixed_requests() {
            decode(&whole).expect("a whole request");
            for length in 0..whole.len() {
                let mut cut = whole[..length].to_vec();
                if let Some(len) = cut.get_mut(..4) {
                    len.copy_from_slice(&(length as u32).to_ne_bytes());
                }
                assert!(decode(&cut).is_err(), "{length} bytes of {whole:?}");
            }
        }
    }

    #[test]
    fn a_length_that_is_not_the_message_s_is_refused() {
        let mut bytes = message(uapi::FUSE_STATFS, 4, 1, 7, &[]);
        bytes.push(0);
        assert_eq!(decode(&bytes).unwrap_err().unique(), Some(4));
    }

    #[test]
    fn an_ioctl_has_the_bytes_it_says_and_no_more() {
        let raw = uapi::fuse_ioctl_in {
            fh: 9,
            cmd: uapi::BINDER_VERSION,
            in_size: 4,
            out_size: 4,
            ..Default::default()
        };
        let bytes = message(uapi::FUSE_IOCTL, 2, 1, 7, &[bytes_of(&raw), &[1, 2, 3, 4, 5]]);
        let (header, request) = decode(&bytes).unwrap();
        assert_eq!((header.tid, header.uid, header.gid), (7, 1000, 100));
        let Request::Ioctl(ioctl) = request else { panic!("{request:?}") };
        assert_eq!((ioctl.fh, ioctl.input, ioctl.unrestricted), (9, &[1, 2, 3, 4][..], false));

        let lies = message(uapi::FUSE_IOCTL, 2, 1, 7, &[bytes_of(&raw), &[1, 2, 3]]);
        assert!(matches!(decode(&lies), Err(Malformed::Short { unique: 2, .. })));
    }

    #[test]
    fn a_batch_of_forgets_holds_as_many_as_it_says() {
        let batch = uapi::fuse_batch_forget_in { count: u32::MAX, ..Default::default() };
        let bytes = message(uapi::FUSE_BATCH_FORGET, 2, 0, 0, &[bytes_of(&batch), &[0; 16]]);
        assert!(matches!(decode(&bytes), Err(Malformed::Short { .. })));
    }

    #[test]
    fn forgotten_nodes_are_listed_with_their_lookups() {
        let nodes = |message: &[u8]| match decode(message).unwrap().1 {
            Request::Forget(forgotten) => forgotten.nodes().collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let one = uapi::fuse_forget_in { nlookup: 3 };
        assert_eq!(nodes(&message(uapi::FUSE_FORGET, 2, 9, 0, &[bytes_of(&one)])), [(9, 3)]);
        let batch = uapi::fuse_batch_forget_in { count: 2, ..Default::default() };
        let list = [(7, 1), (8, u64::MAX)]
            .map(|(nodeid, nlookup)| uapi::fuse_forget_one { nodeid, nlookup });
        let list = [bytes_of(&list[0]), bytes_of(&list[1]), &[0xff; 16]].concat();
        let bytes = message(uapi::FUSE_BATCH_FORGET, 2, 0, 0, &[bytes_of(&batch), &list]);
        assert_eq!(nodes(&bytes), [(7, 1), (8, u64::MAX)], "and nothing beyond their number");
    }

    #[test]
    fn a_rename_has_two_names() {
        let names: [&[u8]; 2] = [&7u64.to_ne_bytes(), b"old\0new\0"];
        let expected = Request::Rename { name: b"old", directory: 7, new_name: b"new", flags: 0 };
        assert_eq!(decode(&message(uapi::FUSE_RENAME, 2, 1, 7, &names)).unwrap().1, expected);
        let one: [&[u8]; 2] = [&7u64.to_ne_bytes(), b"old\0new"];
        let bytes = message(uapi::FUSE_RENAME, 2, 1, 7, &one);
        assert!(matches!(decode(&bytes), Err(Malformed::Name { .. })));
    }

    #[test]
    fn a_name_ends_with_a_nul() {
        let bytes = message(uapi::FUSE_LOOKUP, 2, 1, 7, &[b"binder\0"]);
        assert_eq!(decode(&bytes).unwrap().1, Request::Lookup { name: b"binder" });
        let bytes = message(uapi::FUSE_LOOKUP, 2, 1, 7, &[b"binder"]);
        assert!(matches!(decode(&bytes), Err(Malformed::Name { .. })));
    }

    #[test]
    fn init_of_an_old_kernel_has_no_second_flags() {
        let new = uapi::fuse_init_in {
            major: 7,
            minor: 41,
            flags: uapi::FUSE_INIT_EXT,
            flags2: uapi::FUSE2_PASSTHROUGH,
            ..Default::default()
        };
        let bytes = message(uapi::FUSE_INIT, 2, 0, 0, &[bytes_of(&new)]);
        let flags = u64::from(uapi::FUSE2_PASSTHROUGH) << 32 | u64::from(uapi::FUSE_INIT_EXT);
        assert_eq!(decode(&bytes).unwrap().1, Request::Init { major: 7, minor: 41, flags });
        let bytes = message(uapi::FUSE_INIT, 2, 0, 0, &[&bytes_of(&new)[..16]]);
        let flags = u64::from(uapi::FUSE_INIT_EXT);
        assert_eq!(decode(&bytes).unwrap().1, Request::Init { major: 7, minor: 41, flags });
    }

    #[test]
    fn directory_entries_are_padded_and_stop_at_the_size() {
        let mut listing = Vec::new();
        assert!(push_dirent(&mut listing, 64, 5, 1, 4, b"features"));
        assert_eq!(listing.len(), 32);
        assert!(push_dirent(&mut listing, 64, 6, 2, 8, b"x"));
        assert!(!push_dirent(&mut listing, 64, 7, 3, 8, b"y"));
        assert_eq!(listing.len(), 64);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic(opcode in 0u32..60, body: Vec<u8>) {
            let _ = decode(&message(opcode, 2, 1, 1, &[&body]));
            let _ = decode(&body);
        }
    }
}
