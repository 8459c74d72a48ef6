// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The parts of system call filters that the host and the guest agent share.
//!
//! The host filters the processes of a machine. The guest agent filters the user's programs. Both add their own rules
//! to the same list of forbidden calls.

use std::collections::BTreeMap;

pub use seccompiler::{BackendError, BpfProgram, SeccompCondition, apply_filter, sock_filter};
use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompFilter, SeccompRule, TargetArch};

/// The architecture of this program. A filter kills a process that makes a system call of another architecture.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;

#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: libc::c_long = libc::SYS_kexec_file_load;
/// The number in the kernel's `include/uapi/asm-generic/unistd.h`. libc lacks this constant for aarch64 with musl.
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: libc::c_long = 294;

/// System calls that neither the host's processes of a machine nor the user's programs in the guest need.
pub const FORBIDDEN: &[libc::c_long] = &[
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
    // Parts of the kernel with a history of vulnerabilities. io_uring can also create sockets that a filter does not
    // see.
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
    // Only x86 has I/O ports.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    // The clock and the host name.
    libc::SYS_clock_settime,
    libc::SYS_settimeofday,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// The rules of a filter. A call matches if one of its rules matches; a call without rules matches with any arguments.
pub type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

/// Returns rules that match these calls with any arguments.
pub fn any_arguments<'a>(calls: impl IntoIterator<Item = &'a libc::c_long>) -> Rules {
    calls.into_iter().map(|call| (*call, Vec::new())).collect()
}

/// Returns rules that match a call if any of the conditions holds.
///
/// # Errors
/// A condition is invalid.
pub fn any_of(conditions: impl IntoIterator<Item = SeccompCondition>) -> Result<Vec<SeccompRule>, BackendError> {
    conditions.into_iter().map(|condition| SeccompRule::new(vec![condition])).collect()
}

/// Returns rules that match a call if all of the conditions hold.
///
/// # Errors
/// A condition is invalid.
pub fn all_of(conditions: Vec<SeccompCondition>) -> Result<Vec<SeccompRule>, BackendError> {
    Ok(vec![SeccompRule::new(conditions)?])
}

/// The condition that the low 32 bits of an argument equal the value.
///
/// # Errors
/// The number of the argument is invalid.
pub fn equals(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// The condition that the low 32 bits of an argument differ from the value.
///
/// # Errors
/// The number of the argument is invalid.
pub fn differs(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value)
}

/// The condition that the low 32 bits of an argument, combined with the mask by AND, equal the value.
///
/// # Errors
/// The number of the argument is invalid.
pub fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

/// The condition that a pointer argument is not null.
///
/// # Errors
/// The number of the argument is invalid.
pub fn is_not_null(argument: u8) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)
}

/// Compiles a filter that allows only these calls. All others fail with `ENOSYS`, as if the kernel did not have them.
///
/// # Errors
/// The rules are invalid.
pub fn allow(rules: Rules) -> Result<BpfProgram, BackendError> {
    compile(rules, fails_with(libc::ENOSYS), SeccompAction::Allow)
}

/// Compiles filters that allow all calls except those in `rules`. Calls that match `rules` fail with `EPERM`.
///
/// Install all three programs. `clone3` fails with `ENOSYS`, because its flags are in memory, where no filter can read
/// them. libc then falls back to `clone`.
///
/// # Errors
/// The rules are invalid.
pub fn deny(rules: Rules) -> Result<[BpfProgram; 3], BackendError> {
    let forbidden = compile(rules, SeccompAction::Allow, fails_with(libc::EPERM))?;
    let clone3 = compile(any_arguments(&[libc::SYS_clone3]), SeccompAction::Allow, fails_with(libc::ENOSYS))?;
    Ok([forbidden, clone3, x32()])
}

/// Compiles a filter by which the calls in `rules` do nothing and succeed. All others are allowed.
///
/// # Errors
/// The rules are invalid.
pub fn succeed(rules: Rules) -> Result<BpfProgram, BackendError> {
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(0))
}

/// Compiles a filter that allows all calls except those in `rules`. Calls that match `rules` wait for the answer of the
/// filter's listener, and fail with `ENOSYS` if there is no listener.
///
/// # Errors
/// The rules are invalid.
pub fn notify(rules: Rules) -> Result<BpfProgram, BackendError> {
    // seccompiler lacks this action. The rules use `Trap` for nothing else, so it takes its place.
    let mut program = compile(rules, SeccompAction::Allow, SeccompAction::Trap)?;
    for step in &mut program {
        if u32::from(step.code) == libc::BPF_RET | libc::BPF_K && step.k == libc::SECCOMP_RET_TRAP {
            step.k = libc::SECCOMP_RET_USER_NOTIF;
        }
    }
    Ok(program)
}

/// Returns a filter by which all calls that are newer than this program's list of calls fail with `ENOSYS`, as if the
/// kernel did not have them.
#[must_use]
pub fn deny_newer() -> BpfProgram {
    let newest = u32::try_from(libc::SYS_mseal).unwrap_or(u32::MAX);
    deny_from(newest + 1, libc::ENOSYS)
}

/// Returns a filter that rejects all calls of the x32 ABI, which uses other numbers for the same calls.
fn x32() -> BpfProgram {
    const X32_BIT: u32 = 0x4000_0000;
    deny_from(X32_BIT, libc::EPERM)
}

/// Returns a filter by which the calls from this number on fail with `errno`.
fn deny_from(first: u32, errno: i32) -> BpfProgram {
    let step = |code: u32, k: u32, jump: [u8; 2]| sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: jump[0],
        jf: jump[1],
        k,
    };
    vec![
        // The call's number is the first word of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, [0, 0]),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, first, [0, 1]),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs(), [0, 0]),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, [0, 0]),
    ]
}

fn fails_with(errno: i32) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

fn compile(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, matched, ARCHITECTURE)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_accept_the_architecture_that_this_program_is_built_for() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        // `AUDIT_ARCH_*` is `e_machine` of the ELF header with one flag for 64 bits and one for little endian.
        let own = u32::from(u16::from_le_bytes([program[18], program[19]])) | 0xc000_0000;
        let [forbidden, clone3, _] = deny(any_arguments(FORBIDDEN)).unwrap();
        for filter in [forbidden, clone3, allow(any_arguments(FORBIDDEN)).unwrap()] {
            // The first instruction loads the architecture, and the second compares it.
            assert_eq!(filter[1].k, own);
        }
    }

    #[test]
    fn notified_calls_are_neither_trapped_nor_allowed() {
        let ends = |program: BpfProgram| {
            let is_end = |step: &&sock_filter| u32::from(step.code) == libc::BPF_RET | libc::BPF_K;
            program.iter().filter(is_end).map(|step| step.k).collect::<Vec<_>>()
        };
        let found = ends(notify(any_arguments(&[libc::SYS_mount, libc::SYS_unshare])).unwrap());
        assert_eq!(found.iter().filter(|end| **end == libc::SECCOMP_RET_USER_NOTIF).count(), 2);
        assert!(!found.contains(&libc::SECCOMP_RET_TRAP));
    }
}
