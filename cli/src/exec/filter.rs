//! The seccomp filter: which system calls the supervisor is told of.
//!
//! These are the binder ioctls that may need it, by their numbers, whatever file they are made on,
//! and each mmap of a file. All others the kernel lets pass at once.

use fakebinder::uapi;
use libc::{sock_filter, sock_fprog};
use nix::errno::Errno;
use std::mem::offset_of;
use std::os::fd::{FromRawFd, OwnedFd};

/// The binder ioctls that the supervisor is told of.
const IOCTLS: [u32; 7] = [
    uapi::BINDER_WRITE_READ,
    uapi::BINDER_SET_CONTEXT_MGR,
    uapi::BINDER_THREAD_EXIT,
    uapi::BINDER_VERSION,
    uapi::BINDER_SET_MAX_THREADS,
    uapi::BINDER_SET_CONTEXT_MGR_EXT,
    uapi::BINDER_GET_EXTENDED_ERROR,
];

/// The system calls of an architecture whose programs run here.
pub struct Abi {
    /// `AUDIT_ARCH_*`.
    arch: u32,
    ioctl: u32,
    mmap: u32,
}

/// The first is this program's own.
#[cfg(target_arch = "x86_64")]
pub const KNOWN: &[Abi] = &[
    Abi { arch: 0xc000_003e, ioctl: 16, mmap: 9 },
    // i386, with mmap2.
    Abi { arch: 0x4000_0003, ioctl: 54, mmap: 192 },
];
#[cfg(target_arch = "aarch64")]
pub const KNOWN: &[Abi] = &[
    Abi { arch: 0xc000_00b7, ioctl: 29, mmap: 222 },
    // ARM of 32 bit, with mmap2.
    Abi { arch: 0x4000_0028, ioctl: 54, mmap: 192 },
];
#[cfg(target_arch = "riscv64")]
pub const KNOWN: &[Abi] = &[Abi { arch: 0xc000_00f3, ioctl: 29, mmap: 222 }];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
pub const KNOWN: &[Abi] = &[];

/// A system call that the supervisor is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Ioctl { fd: i32, command: u32, argument: u64 },
    Mmap { fd: i32, length: u64, protection: i32 },
}

impl Call {
    /// None: it is none of those.
    pub fn of(data: &libc::seccomp_data) -> Option<Call> {
        let abi = KNOWN.iter().find(|abi| abi.arch == data.arch)?;
        let [first, second, third, _, fifth, _] = data.args;
        match data.nr as u32 {
            number if number == abi.ioctl => {
                Some(Call::Ioctl { fd: first as i32, command: second as u32, argument: third })
            }
            number if number == abi.mmap => {
                Some(Call::Mmap { fd: fifth as i32, length: second, protection: third as i32 })
            }
            _ => None,
        }
    }
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn load(offset: usize) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset as u32 }
}

/// The lower half of an argument: the kernel takes no more of these.
fn load_argument(index: usize) -> sock_filter {
    let half = if cfg!(target_endian = "big") { 4 } else { 0 };
    load(offset_of!(libc::seccomp_data, args) + 8 * index + half)
}

/// Does the next `then` instructions if what was loaded is `value`, else skips them.
fn if_equal(value: u32, then: usize) -> sock_filter {
    sock_filter { code: IF_EQUAL, jt: 0, jf: then as u8, k: value }
}

fn answer(action: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: action }
}

/// The filter's instructions.
fn program() -> Vec<sock_filter> {
    let tell = answer(libc::SECCOMP_RET_USER_NOTIF);
    let pass = answer(libc::SECCOMP_RET_ALLOW);
    let mut program = vec![load(offset_of!(libc::seccomp_data, arch))];
    for abi in KNOWN {
        let mut ioctl = vec![load_argument(1)];
        for command in IOCTLS {
            ioctl.extend([if_equal(command, 1), tell]);
        }
        ioctl.push(pass);
        let anonymous = libc::MAP_ANONYMOUS as u32;
        let is_anonymous = sock_filter { code: IF_SET, jt: 0, jf: 1, k: anonymous };
        let mmap = [load_argument(3), is_anonymous, pass, tell];
        let mut calls = vec![load(offset_of!(libc::seccomp_data, nr))];
        for (number, then) in [(abi.ioctl, &ioctl[..]), (abi.mmap, &mmap)] {
            calls.push(if_equal(number, then.len()));
            calls.extend(then);
        }
        calls.push(pass);
        program.push(if_equal(abi.arch, calls.len()));
        program.extend(calls);
    }
    program.push(pass);
    program
}

/// Installs the filter in the calling thread, and whatever that thread becomes. The descriptor is
/// the supervisor's. Makes only system calls, so it may be called between fork and exec if the
/// filter was made before.
pub struct Filter(Vec<sock_filter>);

impl Filter {
    pub fn new() -> Filter {
        Filter(program())
    }

    /// EACCES: it takes `no_new_privs`, or CAP_SYS_ADMIN; EBUSY: there is a supervisor already.
    pub fn install(&self) -> Result<OwnedFd, Errno> {
        match self.install_with(libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
            // Before Linux 5.19.
            Err(Errno::EINVAL) => self.install_with(0),
            other => other,
        }
    }

    fn install_with(&self, flags: libc::c_ulong) -> Result<OwnedFd, Errno> {
        let program = sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut() };
        let flags = flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        // SAFETY: the kernel reads the instructions, which live until the call returns.
        let listener = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        let listener = Errno::result(listener)?;
        // SAFETY: the kernel has just made the descriptor, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(listener as i32) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers, by the rules of classic BPF.
    fn run(data: &libc::seccomp_data) -> u32 {
        // SAFETY: the structure has no padding, and any of its bytes may be read.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const *data).cast::<u8>(), size_of_val(data))
        };
        let program = program();
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let holds = match code {
                LOAD => {
                    let word = bytes[k as usize..].first_chunk().unwrap();
                    loaded = u32::from_ne_bytes(*word);
                    continue;
                }
                RETURN => return k,
                IF_EQUAL => loaded == k,
                IF_SET => loaded & k != 0,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }

    fn data(arch: u32, nr: u32, args: [u64; 6]) -> libc::seccomp_data {
        libc::seccomp_data { nr: nr as i32, arch, instruction_pointer: 0, args }
    }

    #[test]
    fn only_what_a_supervisor_can_help_with_is_told() {
        for abi in KNOWN {
            let (yes, no) = (libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_RET_ALLOW);
            let ioctl = |command: u64| run(&data(abi.arch, abi.ioctl, [3, command, 0, 0, 0, 0]));
            for command in IOCTLS {
                assert_eq!(ioctl(command.into()), yes);
                // The kernel takes the lower half only.
                assert_eq!(ioctl(1 << 40 | u64::from(command)), yes);
            }
            assert_eq!(ioctl(uapi::BINDER_FREEZE.into()), no);
            assert_eq!(ioctl(0x5401), no);
            let mmap = |flags: i32| run(&data(abi.arch, abi.mmap, [0, 1, 1, flags as u64, 5, 0]));
            assert_eq!(mmap(libc::MAP_PRIVATE), yes);
            assert_eq!(mmap(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), no);
            assert_eq!(run(&data(abi.arch, 999, [0; 6])), no);
            assert_eq!(run(&data(1, abi.ioctl, [3, u64::from(IOCTLS[0]), 0, 0, 0, 0])), no);
        }
    }

    #[test]
    fn a_call_is_what_its_registers_say() {
        let abi = &KNOWN[0];
        let ioctl = data(abi.arch, abi.ioctl, [3, IOCTLS[0].into(), 0x1000, 0, 0, 0]);
        let expected = Call::Ioctl { fd: 3, command: IOCTLS[0], argument: 0x1000 };
        assert_eq!(Call::of(&ioctl), Some(expected));
        let mmap = data(abi.arch, abi.mmap, [0, 8192, 1, 2, 7, 0]);
        assert_eq!(Call::of(&mmap), Some(Call::Mmap { fd: 7, length: 8192, protection: 1 }));
        assert_eq!(Call::of(&data(abi.arch, abi.mmap + 1, [0; 6])), None);
    }
}
