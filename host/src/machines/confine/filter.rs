// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The system call filters. libkrun's process has an allow list of the calls that a running machine needs. Any other
//! call fails as if the kernel did not implement it. The exact calls that QEMU needs are unknown, so it has a
//! deny list of calls that it certainly does not need, in addition to its own filter.

use std::{io, iter, process};

use nix::libc;
use waggle_seccomp::{
    BackendError, BpfProgram, Rules, SeccompCondition, all_of, allow, any_arguments, any_of, apply_filter, deny,
    deny_newer, differs, equals, masked, succeed,
};

use super::Namespaces;

/// The system calls that a process may make.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Calls {
    /// Only the calls that libkrun needs.
    Krun,
    /// All calls except those on the deny list.
    Program,
    /// The same for a machine whose file of memory is sealed, because other machines use it. When the guest frees
    /// memory, QEMU punches a hole into the file, and then discards its own copies of the pages. The hole would fail
    /// and keep QEMU from the second step, so the call does nothing and succeeds.
    ProgramWithSharedMemory,
}

/// Calls that libkrun may make with any arguments.
const KRUN: &[libc::c_long] = &[
    // Open files, and the files in the process's root.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // The link's sockets. `socket` itself is limited below.
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_restart_syscall,
    // Threads, signals and exit.
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Identity and randomness.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrlimit,
    libc::SYS_getrandom,
];

/// Calls that no program of a machine needs, in addition to [`waggle_seccomp::FORBIDDEN`].
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_personality,
    libc::SYS_vhangup,
    // Names, owners, modes and attributes of files: a program only reads and writes files that exist.
    libc::SYS_creat,
    libc::SYS_openat2,
    libc::SYS_truncate,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_utimensat,
    libc::SYS_inotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_fanotify_init,
    // Effects on all files of the host.
    libc::SYS_flock,
    libc::SYS_sync,
    libc::SYS_syncfs,
    // Memory that no limit counts, and that processes share.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    // Connections: a program inherits those that it needs.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // Processes, and the scheduling of other processes.
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
];

/// Flags with which `clone` creates namespaces.
const NAMESPACE_FLAGS: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// The bit of `O_TMPFILE` that no other flag of `open` has.
const O_UNNAMED: libc::c_int = libc::O_TMPFILE & !libc::O_DIRECTORY;
/// Requests of `fcntl` that libkrun makes.
const DESCRIPTOR_REQUESTS: [libc::c_int; 6] =
    [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];
/// Requests of `fcntl` that no program needs. libc lacks the first three; their numbers are in the kernel's
/// `include/uapi/asm-generic/fcntl.h`.
const FORBIDDEN_REQUESTS: [libc::c_int; 10] = [
    // The kernel sends signals to other processes.
    F_SETOWN,
    F_SETSIG,
    F_SETOWN_EX,
    libc::F_SETLEASE,
    libc::F_NOTIFY,
    // The kernel keeps more data for a pipe.
    libc::F_SETPIPE_SZ,
    // Locks of the image would keep other machines from using it.
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
];
const F_SETOWN: libc::c_int = 8;
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
/// Requests of `ioctl` that no program needs. Their numbers are in the kernel's `include/uapi/asm-generic/sockios.h`
/// and `include/linux/falloc.h`.
const FORBIDDEN_CONTROLS: [u32; 5] = [
    // `FIOSETOWN` and `SIOCSPGRP` do the same as `F_SETOWN`.
    0x8901,
    0x8902,
    // `FS_IOC_RESVSP`, `FS_IOC_RESVSP64` and `FS_IOC_ZERO_RANGE` allocate space beyond the limit on the size of files.
    0x4030_5828,
    0x4030_582a,
    0x4030_5839,
];
/// The modes of `fallocate` that VMMs need. Others move data, or allocate space, beyond the limit on the size of a
/// file.
const ALLOCATIONS: [libc::c_int; 3] = [0, PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE];
const PUNCH_HOLE: libc::c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// Requests of `prctl` that libkrun makes: its libraries name threads and memory.
const OWN_REQUESTS: [libc::c_int; 3] = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];
/// The bits of the type in the second argument of `socket`. The others are flags.
const SOCKET_TYPE: u64 = 0xf;

/// KVM's `ioctl` requests have this value in the byte that identifies the driver.
const KVM_REQUEST: u64 = 0xae00;
const REQUEST_KIND: u64 = 0xff00;

impl Calls {
    /// Installs the filter on this process permanently.
    pub(super) fn install(self, namespaces: Namespaces) -> io::Result<()> {
        let programs = match self {
            Self::Krun => krun().map(|program| vec![program]),
            Self::Program => program(namespaces),
            Self::ProgramWithSharedMemory => program(namespaces).and_then(|mut programs| {
                let punches = any_of([equals(1, number(PUNCH_HOLE))?])?;
                programs.push(succeed(Rules::from([(libc::SYS_fallocate, punches)]))?);
                Ok(programs)
            }),
        };
        for program in programs.map_err(io::Error::other)? {
            apply_filter(&program).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

fn program(namespaces: Namespaces) -> Result<Vec<BpfProgram>, BackendError> {
    Ok(iter::once(deny_newer()).chain(deny(forbidden(namespaces)?)?).collect())
}

fn krun() -> Result<BpfProgram, BackendError> {
    let mut rules = any_arguments(KRUN);
    let own = u64::from(process::id());
    let creates = number(libc::O_CREAT | O_UNNAMED);
    rules.insert(libc::SYS_open, any_of([masked(1, creates, 0)?])?);
    rules.insert(libc::SYS_openat, any_of([masked(2, creates, 0)?])?);
    let requests = DESCRIPTOR_REQUESTS.map(|request| equals(1, number(request)));
    rules.insert(libc::SYS_fcntl, any_of(requests.into_iter().collect::<Result<Vec<_>, _>>()?)?);
    let requests = OWN_REQUESTS.map(|request| equals(0, number(request)));
    rules.insert(libc::SYS_prctl, any_of(requests.into_iter().collect::<Result<Vec<_>, _>>()?)?);
    let allocations = ALLOCATIONS.map(|mode| equals(1, number(mode)));
    rules.insert(libc::SYS_fallocate, any_of(allocations.into_iter().collect::<Result<Vec<_>, _>>()?)?);
    // A datagram socket could send to any other socket.
    let stream = || masked(1, SOCKET_TYPE, number(libc::SOCK_STREAM));
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, all_of(vec![equals(0, number(libc::AF_UNIX))?, stream()?])?);
    }
    // `clone` may create threads, but no processes.
    rules.insert(libc::SYS_clone, any_of([masked(0, number(libc::CLONE_THREAD), number(libc::CLONE_THREAD))?])?);
    rules.insert(libc::SYS_tgkill, any_of([equals(0, own)?])?);
    rules.insert(libc::SYS_prlimit64, any_of([equals(0, 0)?, equals(0, own)?])?);
    let terminal = [libc::TCGETS, libc::FIONBIO, libc::TIOCGWINSZ].map(|request| equals(1, request));
    let mut requests: Vec<SeccompCondition> = terminal.into_iter().collect::<Result<_, _>>()?;
    requests.push(masked(1, REQUEST_KIND, KVM_REQUEST)?);
    rules.insert(libc::SYS_ioctl, any_of(requests)?);
    allow(rules)
}

fn forbidden(namespaces: Namespaces) -> Result<Rules, BackendError> {
    let mut rules = any_arguments(waggle_seccomp::FORBIDDEN.iter().chain(FORBIDDEN));
    let sets = |argument, flag| masked(argument, number(flag), number(flag));
    let mut forbidden_clones: Vec<SeccompCondition> =
        NAMESPACE_FLAGS.into_iter().map(|flag| sets(0, flag)).collect::<Result<_, _>>()?;
    // `clone` may create threads, but no processes.
    forbidden_clones.push(masked(0, number(libc::CLONE_THREAD), 0)?);
    rules.insert(libc::SYS_clone, any_of(forbidden_clones)?);
    for (call, flags) in [(libc::SYS_open, 1), (libc::SYS_openat, 2)] {
        rules.insert(call, any_of([sets(flags, libc::O_CREAT)?, sets(flags, O_UNNAMED)?])?);
    }
    let requests = FORBIDDEN_REQUESTS.map(|request| equals(1, number(request)));
    rules.insert(libc::SYS_fcntl, any_of(requests.into_iter().collect::<Result<Vec<_>, _>>()?)?);
    // Without this signal, the process would survive its runner.
    rules.insert(libc::SYS_prctl, any_of([equals(0, number(libc::PR_SET_PDEATHSIG))?])?);
    let allocations = ALLOCATIONS.map(|mode| differs(1, number(mode)));
    rules.insert(libc::SYS_fallocate, all_of(allocations.into_iter().collect::<Result<Vec<_>, _>>()?)?);
    let controls = FORBIDDEN_CONTROLS.map(|request| equals(1, request.into()));
    rules.insert(libc::SYS_ioctl, any_of(controls.into_iter().collect::<Result<Vec<_>, _>>()?)?);
    // A datagram socket could send to any other socket.
    let other_than_unix_stream =
        [differs(0, number(libc::AF_UNIX))?, masked(1, SOCKET_TYPE, number(libc::SOCK_DGRAM))?];
    rules.insert(libc::SYS_socketpair, any_of(other_than_unix_stream)?);
    let own = u64::from(process::id());
    for call in [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo] {
        rules.insert(call, any_of([differs(0, own)?])?);
    }
    rules.insert(libc::SYS_prlimit64, all_of(vec![differs(0, 0)?, differs(0, own)?])?);
    if namespaces == Namespaces::Shared {
        // Without a pid namespace, `tkill` reaches threads of any process. Inside a pid namespace `tkill` stays
        // allowed, because musl's threads have no other call to signal each other.
        rules.insert(libc::SYS_tkill, Vec::new());
    }
    Ok(rules)
}

fn number(constant: i32) -> u64 {
    constant.unsigned_abs().into()
}
