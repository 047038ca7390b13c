//! Which system calls the daemon's threads may make while it serves: SECURITY.md has the reasons.
//!
//! Three filters, since one of them knows two outcomes only; of all that speak on a call the
//! strictest counts:
//! - what is not in the list fails with EPERM;
//! - `clone3` fails with ENOSYS, after which the C library starts a thread by `clone`, whose flags
//!   a filter can see;
//! - what only somebody who has taken the daemon over would call ends it.

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list is not known for this architecture.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    #[error("the list of system calls is for x86-64 and aarch64")]
    Architecture,
    /// The filter cannot be made, or the kernel refuses it.
    #[error("{0}")]
    Filter(#[from] seccompiler::Error),
    /// The rules of a filter contradict each other.
    #[error("{0}")]
    Rules(#[from] seccompiler::BackendError),
}

/// What a filter is made for.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// Requests come through io_uring.
    pub io_uring: bool,
}

/// Every thread that there is, and all that they start, may make the system calls of the list, and
/// no others.
pub fn install(needs: Needs) -> Result<(), Error> {
    list::install(needs)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod list {
    pub fn install(_: super::Needs) -> Result<(), super::Error> {
        Err(super::Error::Architecture)
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod list {
    use super::{Error, Needs};
    use libc::*;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition,
        SeccompFilter, SeccompRule, apply_filter_all_threads,
    };
    use std::collections::BTreeMap;

    type Rules = BTreeMap<i64, Vec<SeccompRule>>;

    /// The daemon's own memory, and the files that buffers are in.
    const MEMORY: &[c_long] = &[
        SYS_brk,
        SYS_munmap,
        SYS_mremap,
        SYS_madvise,
        SYS_mincore,
        SYS_membarrier,
        SYS_memfd_create,
        SYS_ftruncate,
        SYS_fchmod,
        SYS_fallocate,
        SYS_userfaultfd,
    ];

    /// Threads, their locks and their processors.
    const THREADS: &[c_long] = &[
        SYS_set_robust_list,
        SYS_rseq,
        SYS_gettid,
        SYS_getpid,
        SYS_exit,
        SYS_exit_group,
        SYS_futex,
        SYS_futex_waitv,
        SYS_sched_yield,
        SYS_sched_getaffinity,
        SYS_sched_setaffinity,
        SYS_getcpu,
    ];

    /// Time, and random numbers. Where the kernel gives the first without a call it is not asked.
    const TIME: &[c_long] = &[
        SYS_clock_gettime,
        SYS_clock_getres,
        SYS_gettimeofday,
        SYS_nanosleep,
        SYS_clock_nanosleep,
        SYS_restart_syscall,
        SYS_getrandom,
    ];

    /// Signals: to wait for them, to be interrupted by them, and to hear of a client's.
    const SIGNALS: &[c_long] = &[
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_rt_sigtimedwait,
        SYS_sigaltstack,
        SYS_pidfd_send_signal,
    ];

    /// Descriptors: reading and writing them, and waiting for them.
    const DESCRIPTORS: &[c_long] = &[
        SYS_read,
        SYS_write,
        SYS_readv,
        SYS_writev,
        SYS_pread64,
        SYS_pwrite64,
        SYS_preadv,
        SYS_pwritev,
        SYS_lseek,
        SYS_close,
        SYS_dup,
        SYS_fcntl,
        SYS_flock,
        SYS_eventfd2,
        SYS_epoll_create1,
        SYS_epoll_ctl,
        SYS_epoll_pwait,
        SYS_ppoll,
        SYS_pselect6,
    ];

    /// Files by name: what /proc says of clients, the log, and what is cleared away at the end.
    const FILES: &[c_long] = &[
        SYS_openat,
        SYS_fstat,
        SYS_newfstatat,
        SYS_statx,
        SYS_statfs,
        SYS_fstatfs,
        SYS_faccessat,
        SYS_faccessat2,
        SYS_readlinkat,
        SYS_getdents64,
        SYS_getcwd,
        SYS_symlinkat,
        SYS_unlinkat,
        SYS_mkdirat,
        SYS_renameat2,
        SYS_umount2,
    ];

    /// Sockets that have no name in any network: SYS_socket has a condition below.
    const SOCKETS: &[c_long] = &[
        SYS_socketpair,
        SYS_bind,
        SYS_listen,
        SYS_accept4,
        SYS_connect,
        SYS_getsockname,
        SYS_getpeername,
        SYS_getsockopt,
        SYS_setsockopt,
        SYS_sendto,
        SYS_recvfrom,
        SYS_sendmsg,
        SYS_recvmsg,
        SYS_shutdown,
    ];

    /// Clients: their memory, their descriptors, their limits and nice values.
    const CLIENTS: &[c_long] = &[
        SYS_process_vm_readv,
        SYS_process_vm_writev,
        SYS_pidfd_open,
        SYS_pidfd_getfd,
        SYS_ptrace,
        SYS_wait4,
        SYS_waitid,
        SYS_prlimit64,
        SYS_getpriority,
        SYS_setpriority,
    ];

    /// What the daemon asks of itself.
    const ITSELF: &[c_long] = &[
        SYS_getuid,
        SYS_geteuid,
        SYS_getgid,
        SYS_getegid,
        SYS_capget,
        SYS_sysinfo,
        SYS_uname,
        SYS_getrusage,
    ];

    /// The older names of calls above, by which the C library of x86-64 may make them.
    #[cfg(target_arch = "x86_64")]
    const OLDER: &[c_long] = &[
        SYS_open,
        SYS_stat,
        SYS_lstat,
        SYS_access,
        SYS_readlink,
        SYS_unlink,
        SYS_rmdir,
        SYS_mkdir,
        SYS_rename,
        SYS_renameat,
        SYS_symlink,
        SYS_poll,
        SYS_select,
        SYS_epoll_wait,
        SYS_getrlimit,
        SYS_time,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    const OLDER: &[c_long] = &[];

    const IO_URING: &[c_long] = &[SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register];

    /// Programs, namespaces, mounts, modules and other users: no part of serving.
    const HOSTILE: &[c_long] = &[
        SYS_execve,
        SYS_execveat,
        SYS_unshare,
        SYS_setns,
        SYS_chroot,
        SYS_pivot_root,
        SYS_mount,
        SYS_move_mount,
        SYS_open_tree,
        SYS_fsopen,
        SYS_fsconfig,
        SYS_fsmount,
        SYS_fspick,
        SYS_mount_setattr,
        SYS_init_module,
        SYS_finit_module,
        SYS_delete_module,
        SYS_kexec_load,
        SYS_bpf,
        SYS_perf_event_open,
        SYS_open_by_handle_at,
        SYS_keyctl,
        SYS_add_key,
        SYS_request_key,
        SYS_personality,
        SYS_setuid,
        SYS_setgid,
        SYS_setreuid,
        SYS_setregid,
        SYS_setresuid,
        SYS_setresgid,
        SYS_setgroups,
        SYS_setfsuid,
        SYS_setfsgid,
        SYS_capset,
        SYS_reboot,
        SYS_swapon,
        SYS_swapoff,
        SYS_acct,
        SYS_settimeofday,
        SYS_clock_settime,
        SYS_clock_adjtime,
        SYS_adjtimex,
        SYS_sethostname,
        SYS_setdomainname,
        SYS_syslog,
    ];

    pub fn install(needs: Needs) -> Result<(), Error> {
        // The list is the last: it has no room for another filter.
        for program in [hostile()?, no_clone3()?, allowed(needs)?] {
            apply_filter_all_threads(&program)?;
        }
        Ok(())
    }

    fn program(
        rules: Rules,
        otherwise: SeccompAction,
        matched: SeccompAction,
    ) -> Result<BpfProgram, Error> {
        let arch = std::env::consts::ARCH.try_into()?;
        Ok(SeccompFilter::new(rules, otherwise, matched, arch)?.try_into()?)
    }

    fn always(calls: &[c_long]) -> Rules {
        calls.iter().map(|call| (*call, Vec::new())).collect()
    }

    fn hostile() -> Result<BpfProgram, Error> {
        program(always(HOSTILE), SeccompAction::Allow, SeccompAction::KillProcess)
    }

    fn no_clone3() -> Result<BpfProgram, Error> {
        let missing = SeccompAction::Errno(ENOSYS as u32);
        program(always(&[SYS_clone3]), SeccompAction::Allow, missing)
    }

    /// One rule: the argument of that number, of 32 bits, is `value` where `mask` has ones.
    fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, Error> {
        let same = SeccompCmpOp::MaskedEq(mask);
        Ok(SeccompRule::new(vec![SeccompCondition::new(argument, Dword, same, value)?])?)
    }

    fn equal(argument: u8, value: u64) -> Result<SeccompRule, Error> {
        masked(argument, u64::from(u32::MAX), value)
    }

    fn allowed(needs: Needs) -> Result<BpfProgram, Error> {
        let mut rules = Rules::new();
        for calls in [
            MEMORY,
            THREADS,
            TIME,
            SIGNALS,
            DESCRIPTORS,
            FILES,
            SOCKETS,
            CLIENTS,
            ITSELF,
            OLDER,
            // Refused by a filter of its own.
            &[SYS_clone3],
        ] {
            rules.extend(always(calls));
        }
        if needs.io_uring {
            rules.extend(always(IO_URING));
        }
        // No memory that can be written becomes code, nor does a file.
        let no_code = masked(2, PROT_EXEC as u64, 0)?;
        rules.insert(SYS_mmap, vec![no_code.clone()]);
        rules.insert(SYS_mprotect, vec![no_code]);
        // A thread, and no process.
        rules.insert(SYS_clone, vec![masked(0, CLONE_THREAD as u64, CLONE_THREAD as u64)?]);
        // To its own threads: abort and panic do.
        let own = u64::from(std::process::id());
        rules.insert(SYS_tgkill, vec![equal(0, own)?]);
        // What rustix asks once in place of /proc/self/auxv; libc has no name for it.
        const PR_GET_AUXV: c_int = 0x4155_5856;
        // The names of threads, and of memory.
        let names = [PR_SET_NAME, PR_GET_NAME, PR_SET_VMA, PR_GET_AUXV];
        let names =
            names.map(|name| equal(0, name as u64)).into_iter().collect::<Result<_, _>>()?;
        rules.insert(SYS_prctl, names);
        rules.insert(SYS_socket, vec![equal(0, AF_UNIX as u64)?]);
        rules.insert(SYS_ioctl, ioctls()?);
        program(rules, SeccompAction::Errno(EPERM as u32), SeccompAction::Allow)
    }

    /// By their types (`_IOC_TYPE`): those of /dev/fuse, of a userfaultfd, of /proc/PID/maps and of
    /// pidfds; and three without a type.
    fn ioctls() -> Result<Vec<SeccompRule>, Error> {
        const FUSE: u64 = 229;
        const USERFAULT: u64 = 0xaa;
        const PROC: u64 = b'f' as u64;
        const PIDFD: u64 = 0xff;
        let types = [FUSE, USERFAULT, PROC, PIDFD].map(|kind| masked(1, 0xff00, kind << 8));
        // Whether it is a terminal; close-on-exec, and not to wait.
        let plain = [TCGETS, FIOCLEX, FIONBIO].map(|cmd| equal(1, cmd));
        types.into_iter().chain(plain).collect()
    }
}
