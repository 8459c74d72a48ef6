// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The system call filter of user work: what has no use for programs in a sandbox, or is a way to the kernel's rarely
//! walked parts, is refused as not permitted.
//!
//! A list of what is forbidden rather than of what is allowed: agents run whatever programs they like, and a program
//! that meets a missing call breaks in ways that nobody understands. The machine is the wall; this is the fence.

use std::{collections::BTreeMap, sync::OnceLock};

use nix::{errno::Errno, libc};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// The architecture of the agent itself. The filters kill a process that makes a call of any other one.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;

#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: libc::c_long = libc::SYS_kexec_file_load;
/// From the kernel's `include/uapi/asm-generic/unistd.h`; libc lacks it for aarch64 with musl.
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: libc::c_long = 294;

/// Refused whatever the arguments.
const FORBIDDEN: &[libc::c_long] = &[
    // Kernel modules and other kernels.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_reboot,
    // Mounts, and the namespaces that would allow them.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // Parts of the kernel with a history, of no use here. io_uring would also make sockets behind this filter's back.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    // Only x86 has ports.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    // The machine's clock and name are the agent's.
    libc::SYS_clock_settime,
    libc::SYS_settimeofday,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Compiles the filters, for this process and those that it forks.
///
/// # Errors
/// A rule that the compiler refuses.
pub(crate) fn compile() -> nix::Result<()> {
    programs().map(drop)
}

/// Installs the filter on this thread, for good. Needs `no_new_privs` or root.
///
/// # Errors
/// What the kernel said.
pub(super) fn install() -> nix::Result<()> {
    for program in programs()? {
        seccompiler::apply_filter(program).map_err(|_fault| Errno::last())?;
    }
    Ok(())
}

fn programs() -> nix::Result<&'static [BpfProgram; 3]> {
    static PROGRAMS: OnceLock<Option<[BpfProgram; 3]>> = OnceLock::new();
    PROGRAMS.get_or_init(|| Some([forbidden().ok()?, unreadable().ok()?, x32()])).as_ref().ok_or(Errno::EINVAL)
}

/// The same calls have other numbers in the x32 interface, where the kernel has it: all of it is refused. (Calls of
/// 32-bit programs have another architecture, for which the two other filters end the process.)
fn x32() -> BpfProgram {
    const X32_BIT: u32 = 0x4000_0000;
    let step = |code: u32, k: u32, jump: [u8; 2]| sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: jump[0],
        jf: jump[1],
        k,
    };
    vec![
        // The call's number is the first word of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, [0, 0]),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32_BIT, [0, 1]),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs(), [0, 0]),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, [0, 0]),
    ]
}

/// What is refused as not permitted.
fn forbidden() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
    let vsock = u64::try_from(libc::AF_VSOCK).unwrap_or_default();
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, vec![SeccompRule::new(vec![equals(0, vsock)?])?]);
    }
    let new_user = u64::try_from(libc::CLONE_NEWUSER).unwrap_or_default();
    for call in [libc::SYS_unshare, libc::SYS_clone] {
        let has_flag = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(new_user), new_user)?;
        rules.insert(call, vec![SeccompRule::new(vec![has_flag])?]);
    }
    // Limits of other processes, the room's first one among them: its user id is that of the guest's root.
    let another = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0)?;
    let set = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![another, set])?]);
    build(rules, libc::EPERM)
}

/// `clone3` has its flags in memory, where no filter can look; programs take its absence for an old kernel and use
/// `clone`.
fn unreadable() -> Result<BpfProgram, seccompiler::BackendError> {
    build(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

fn equals(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn build(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let refuse = SeccompAction::Errno(u32::try_from(errno).unwrap_or(1));
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, ARCHITECTURE)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::{forbidden, unreadable};

    #[test]
    fn filters_accept_the_architecture_that_this_program_is_built_for() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        // `e_machine` of the ELF header; `AUDIT_ARCH_*` is that with a flag for 64 bits and one for little endian.
        let own = u32::from(u16::from_le_bytes([program[18], program[19]])) | 0xc000_0000;
        for filter in [forbidden().unwrap(), unreadable().unwrap()] {
            // The first instruction loads the architecture, the second compares it.
            assert_eq!(filter[1].k, own);
        }
    }
}
