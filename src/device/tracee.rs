//! One thread of a client, stopped at the end of its ioctl, and the system calls that it is made to
//! make.
//!
//! The states of a thread: *seized* (it goes on, and stops at the end of its system call once
//! [`Tracee::interrupt`] was called); *stopped* (its registers and its signal mask are kept, all
//! signals wait, and it makes the system calls that it is told to make); *released* (its registers
//! and mask are restored, perhaps with another result of its ioctl, and it goes on untraced);
//! *gone* (it was killed: every further call fails with ESRCH).
//!
//! All calls must come from the one thread of the daemon that has seized it: the kernel refuses
//! others. When that thread of the daemon ends, the kernel releases the threads that it has seized,
//! as they are.
//!
//! The system calls are made at the `syscall` instruction of the thread's ioctl, so no other memory
//! has to be executable. This file knows the numbers and registers of x86-64; elsewhere seizing
//! fails with EOPNOTSUPP ([`IS_KNOWN`]).

use crate::Errno;
use crate::client_mem::{ClientMemory, ProcessMemory};
use crate::lock_order::assert_nothing_held;
use nix::sys::ptrace::{self, Options};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Whether threads of this machine's architecture can be stopped.
pub const IS_KNOWN: bool = true;

/// `PTRACE_O_SUSPEND_SECCOMP` (Linux 4.3), for which nix has no name: no seccomp filter checks the
/// thread's system calls as long as it is traced. Takes CAP_SYS_ADMIN.
const SUSPEND_SECCOMP: i32 = 1 << 21;
#[cfg(target_env = "musl")]
type Request = libc::c_int;
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;

/// `PTRACE_EVENT_STOP`.
const EVENT_STOP: i32 = 128;
/// `SIGTRAP | 0x80`: the beginning or the end of a system call (PTRACE_O_TRACESYSGOOD).
const SYSTEM_CALL: i32 = libc::SIGTRAP | 0x80;
/// The code segment of 64-bit programs (`__USER_CS`).
const CODE_64: u64 = 0x33;
/// The bytes of the `syscall` instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// What a thread had when it was stopped, to be restored.
struct Kept {
    registers: libc::user_regs_struct,
    signal_mask: u64,
}

/// A thread of a client that the calling thread has seized.
pub struct Tracee {
    tid: Pid,
    memory: ProcessMemory,
    kept: Option<Kept>,
    is_gone: bool,
}

/// Why a thread has stopped.
enum Stop {
    /// By `interrupt`, or by a group stop.
    Event,
    SystemCall,
    /// This signal is about to be delivered.
    Signal(i32),
}

impl Tracee {
    /// Seizes a thread. EPERM: the kernel does not allow it, or the thread is traced already;
    /// ESRCH: there is no such thread. With `suspend_seccomp` its filters are off until it is
    /// released; EPERM and EINVAL also mean that this is not possible.
    pub fn seize(tid: i32, suspend_seccomp: bool) -> Result<Tracee, Errno> {
        assert_nothing_held();
        let mut options = Options::PTRACE_O_TRACESYSGOOD;
        if suspend_seccomp {
            options |= Options::from_bits_retain(SUSPEND_SECCOMP);
        }
        let tid = Pid::from_raw(tid);
        ptrace::seize(tid, options)?;
        let memory = ProcessMemory::new(tid.as_raw());
        Ok(Tracee { tid, memory, kept: None, is_gone: false })
    }

    /// Makes the thread stop before it is back in its program. From here on its system call is
    /// interrupted as by a signal, but no handler runs.
    pub fn interrupt(&self) -> Result<(), Errno> {
        ptrace::interrupt(self.tid)
    }

    /// The thread's memory, as long as it is seized.
    pub fn memory(&self) -> &ProcessMemory {
        &self.memory
    }

    /// Waits for the thread to stop at the end of the ioctl `cmd`. ETIMEDOUT: it has not stopped
    /// within `patience`; EOPNOTSUPP: it is a 32-bit program, or has made the call in an unusual
    /// way; EINTR: it was in no such ioctl. The thread goes on as it was when this value is
    /// dropped.
    pub fn stop(&mut self, cmd: u32, patience: Duration) -> Result<(), Errno> {
        let deadline = Instant::now() + patience;
        loop {
            let signal = match self.wait(Some(deadline))? {
                Stop::Event => break,
                Stop::SystemCall => 0,
                // A signal that was on its way already.
                Stop::Signal(signal) => signal,
            };
            self.go_on(libc::PTRACE_CONT, signal)?;
        }
        let registers = ptrace::getregs(self.tid)?;
        if (registers.orig_rax, registers.rsi as u32) != (libc::SYS_ioctl as u64, cmd) {
            return Err(Errno::EINTR).inspect_err(|_| self.detach());
        }
        let mut instruction = [0; 2];
        let read = self.memory.read(registers.rip.wrapping_sub(2), &mut instruction);
        if read.is_err() || registers.cs != CODE_64 || instruction != SYSCALL {
            return Err(Errno::EOPNOTSUPP).inspect_err(|_| self.detach());
        }
        let signal_mask = self.signal_mask().inspect_err(|_| self.detach())?;
        self.kept = Some(Kept { registers, signal_mask });
        // From here on signals wait, as they do while the thread is in its ioctl.
        self.set_signal_mask(u64::MAX)
    }

    /// The address of the ioctl's argument. ESRCH: the thread is not stopped.
    pub fn argument(&self) -> Result<u64, Errno> {
        self.kept.as_ref().map(|kept| kept.registers.rdx).ok_or(Errno::ESRCH)
    }

    /// Makes the ioctl return `result`, which may be a negative errno, whatever the daemon's reply
    /// was.
    pub fn set_result(&mut self, result: i64) {
        if let Some(kept) = &mut self.kept {
            kept.registers.rax = result as u64;
        }
    }

    /// Makes the thread make a system call, which must not wait. ESRCH also when the thread is
    /// gone.
    pub fn system_call(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64, Errno> {
        let kept = self.kept.as_ref().ok_or(Errno::ESRCH)?;
        let mut registers = kept.registers;
        registers.rip = registers.rip.wrapping_sub(2);
        registers.rax = number as u64;
        // The thread is in no system call: none has to be restarted before this one.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] =
            arguments;
        let set = ptrace::setregs(self.tid, registers);
        self.noting_end(set)?;
        self.run_to_system_call()?;
        self.run_to_system_call()?;
        let ended = ptrace::getregs(self.tid);
        let result = self.noting_end(ended)?.rax as i64;
        match result {
            -4095..=-1 => Err(Errno::from_raw(-result as i32)),
            _ => Ok(result as u64),
        }
    }

    /// Lets the thread go on in its program, with its registers and signals as they were. False:
    /// the thread is not stopped, and stays seized until the calling thread ends.
    pub fn release(&mut self) -> bool {
        let Some(kept) = self.kept.take() else { return self.is_gone };
        // An error means that the thread is gone, and that nothing has to be restored.
        let _ = ptrace::setregs(self.tid, kept.registers);
        let _ = self.set_signal_mask(kept.signal_mask);
        self.detach();
        true
    }

    fn detach(&mut self) {
        // The kernel looks for pending signals, and restarts a call whose result asks for that. A
        // group stop that has come meanwhile takes effect.
        let _ = ptrace::detach(self.tid, None);
        self.is_gone = true;
    }

    /// Lets the thread go on until it begins or ends a system call.
    fn run_to_system_call(&mut self) -> Result<(), Errno> {
        let mut signal = 0;
        loop {
            let goes_on = self.go_on(libc::PTRACE_SYSCALL, signal);
            self.noting_end(goes_on)?;
            signal = match self.wait(None)? {
                Stop::SystemCall => return Ok(()),
                // A group stop: it takes effect when the thread is released.
                Stop::Event => 0,
                // Only SIGSTOP gets through the mask; it stops the other threads, too.
                Stop::Signal(signal) => signal,
            };
        }
    }

    /// Resumes the thread by libc, since nix knows only signals that have names.
    fn go_on(&self, request: Request, signal: i32) -> Result<(), Errno> {
        // SAFETY: the kernel reads no memory of this process for these requests.
        let result = unsafe {
            libc::ptrace(
                request,
                self.tid.as_raw(),
                std::ptr::null_mut::<libc::c_void>(),
                signal as libc::c_long,
            )
        };
        Errno::result(result).map(drop)
    }

    /// Waits until the thread stops: at first busily, since mostly that is long enough.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Stop, Errno> {
        const BUSY: u32 = 200;
        const LONGEST: Duration = Duration::from_millis(5);
        let mut pause = Duration::from_micros(20);
        for attempt in 0u32.. {
            let mut status = 0;
            // SAFETY: the kernel writes one `c_int`.
            let found = unsafe {
                libc::waitpid(self.tid.as_raw(), &mut status, libc::__WALL | libc::WNOHANG)
            };
            let found = self.noting_end(Errno::result(found).map_err(|_| Errno::ESRCH))?;
            if found != 0 {
                if !libc::WIFSTOPPED(status) {
                    return self.noting_end(Err(Errno::ESRCH));
                }
                return Ok(match (libc::WSTOPSIG(status), status >> 16) {
                    (_, EVENT_STOP) => Stop::Event,
                    (SYSTEM_CALL, _) => Stop::SystemCall,
                    (signal, _) => Stop::Signal(signal),
                });
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Errno::ETIMEDOUT);
            }
            if attempt < BUSY {
                std::thread::yield_now();
            } else {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST);
            }
        }
        Err(Errno::ETIMEDOUT)
    }

    fn noting_end<T>(&mut self, result: Result<T, Errno>) -> Result<T, Errno> {
        self.is_gone |= matches!(result, Err(Errno::ESRCH));
        result
    }

    fn signal_mask(&self) -> Result<u64, Errno> {
        let mut mask = 0u64;
        // SAFETY: the kernel writes the 8 bytes that the third argument names.
        let result = unsafe {
            libc::ptrace(
                libc::PTRACE_GETSIGMASK,
                self.tid.as_raw(),
                size_of::<u64>(),
                &raw mut mask,
            )
        };
        Errno::result(result).map(|_| mask)
    }

    fn set_signal_mask(&self, mask: u64) -> Result<(), Errno> {
        // SAFETY: the kernel reads the 8 bytes that the third argument names.
        let result = unsafe {
            libc::ptrace(
                libc::PTRACE_SETSIGMASK,
                self.tid.as_raw(),
                size_of::<u64>(),
                &raw const mask,
            )
        };
        Errno::result(result).map(drop)
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        self.release();
    }
}
