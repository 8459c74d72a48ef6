// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The child process of the KVM probe: runs four tiny guests and prints the result.
//!
//! A host whose `/dev/kvm` opens and runs trivial code may still be unable to boot a guest. If KVM has to emulate every
//! instruction, the first instruction that its emulator lacks ends the guest. So the tests execute typical code of
//! guests, such as SSE2 arithmetic and ten million iterations of a loop. The process prints the name of each test
//! before the test runs, so its parent knows which test hangs. The last line is the verdict.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;

use super::sys::{self, Page};

/// The verdict if KVM runs guests.
pub(super) const USABLE: &str = "usable";
/// The prefix of the verdict if KVM does not run guests. The reason follows.
pub(super) const UNUSABLE: &str = "unusable: ";

/// The version of the KVM API, unchanged since Linux 2.6.22.
const API_VERSION: i32 = 12;
/// Size of the guest's memory in 4 KiB pages. All pages together have the size of one large page, 2 MiB.
const MEMORY_PAGES: usize = 512;
/// Page numbers of the page tables and of the code.
const ROOT_TABLE_PAGE: usize = 9;
const POINTER_TABLE_PAGE: usize = 10;
const DIRECTORY_PAGE: usize = 11;
const CODE_PAGE: usize = 256;
/// Flags of page table entries: both mean present and writable, and `LARGE_PAGE` also a large page.
const TABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 0x83;
/// Address of KVM's own task state segment on Intel processors: below the firmware, above the guest's memory.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// The I/O port to which a test writes its result.
const RESULT_PORT: u16 = 0x10;
/// The bytes that a guest reads from an address outside its memory.
const MMIO_ANSWER: [u8; 4] = [0xa0, 0xa1, 0xa2, 0xa3];

/// A test: its name, its code, its expected result.
type Test = (&'static str, &'static [u8], u32);

const TESTS: [Test; 4] = [
    // mov eax,42; out 0x10,eax; jmp $
    ("trivial", &[0xb8, 0x2a, 0, 0, 0, 0xe7, 0x10, 0xeb, 0xfe], 42),
    // mov ebx,0x200000; mov eax,[rbx]; out 0x10,eax; jmp $
    ("mmio", &[0xbb, 0, 0, 0x20, 0, 0x8b, 0x03, 0xe7, 0x10, 0xeb, 0xfe], 0xa3a2_a1a0),
    // mov eax,21; movd xmm0,eax; paddq xmm0,xmm0; movd eax,xmm0; out 0x10,eax; jmp $
    (
        "sse2",
        &[
            0xb8, 0x15, 0, 0, 0, 0x66, 0x0f, 0x6e, 0xc0, 0x66, 0x0f, 0xd4, 0xc0, 0x66, 0x0f, 0x7e, 0xc0, 0xe7, 0x10,
            0xeb, 0xfe,
        ],
        42,
    ),
    // mov ecx,10000000; dec ecx; jnz -4; mov eax,42; out 0x10,eax; jmp $
    ("loop", &[0xb9, 0x80, 0x96, 0x98, 0, 0xff, 0xc9, 0x75, 0xfc, 0xb8, 0x2a, 0, 0, 0, 0xe7, 0x10, 0xeb, 0xfe], 42),
];

/// Runs the tests and prints the verdict. The exit code does not depend on the verdict.
pub(super) fn run() -> ExitCode {
    let mut out = io::stdout();
    let verdict = match tests(&mut out) {
        Ok(()) => USABLE.to_owned(),
        Err(reason) => format!("{UNUSABLE}{reason}"),
    };
    match writeln!(out, "{verdict}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn tests(out: &mut impl Write) -> Result<(), String> {
    let kvm = Kvm::new().map_err(|fault| {
        let denied = fault.errno() == Errno::EACCES as i32;
        let remedy =
            if denied { "; add this user to the group kvm (usermod -aG kvm $USER) and log in again" } else { "" };
        format!("failed to open /dev/kvm: {fault}{remedy}")
    })?;
    if kvm.get_api_version() != API_VERSION {
        return Err(format!("KVM has API version {}; must be {API_VERSION}", kvm.get_api_version()));
    }
    let capabilities = [Cap::Irqchip, Cap::Ioeventfd, Cap::Irqfd, Cap::UserMemory, Cap::SetTssAddr];
    if let Some(missing) = capabilities.into_iter().find(|capability| !kvm.check_extension(*capability)) {
        return Err(format!("KVM lacks {missing:?}"));
    }
    for (name, code, expected) in TESTS {
        writeln!(out, "{name}").and_then(|()| out.flush()).map_err(|fault| fault.to_string())?;
        let result = result_of(&kvm, code).map_err(|reason| format!("{name}: {reason}"))?;
        if result != expected {
            return Err(format!("{name}: the result is {result:#x}; must be {expected:#x}"));
        }
    }
    Ok(())
}

fn result_of(kvm: &Kvm, code: &[u8]) -> Result<u32, String> {
    let failed = |step: &'static str| move |fault: kvm_ioctls::Error| format!("{step}: {fault}");
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
    sys::give_memory(&vm, memory(code).leak()).map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
    let mut cpu = long_mode_cpu(kvm, &vm).map_err(failed("set up the virtual CPU"))?;
    loop {
        let exit = cpu.run().map_err(failed("KVM_RUN"))?;
        if let VcpuExit::IoOut(RESULT_PORT, result) = exit {
            return result.try_into().map(u32::from_le_bytes).map_err(|_| "the result must have four bytes".to_owned());
        }
        let VcpuExit::MmioRead(_, answer) = exit else { return Err(format!("KVM ended the guest with {exit:?}")) };
        answer.iter_mut().zip(MMIO_ANSWER).for_each(|(byte, answer)| *byte = answer);
    }
}

// Returns the guest's memory: the code, and page tables that identity-map 1 GiB in large pages. Only the first large
// page is backed by memory.
fn memory(code: &[u8]) -> Vec<Page> {
    let mut pages = vec![Page([0; 4096]); MEMORY_PAGES];
    let mut put = |page: usize, bytes: &mut dyn Iterator<Item = u8>| {
        if let Some(Page(content)) = pages.get_mut(page) {
            content.iter_mut().zip(bytes).for_each(|(old, new)| *old = new);
        }
    };
    let pointer = |page: usize| ((page as u64) << 12 | TABLE).to_le_bytes().into_iter();
    put(ROOT_TABLE_PAGE, &mut pointer(POINTER_TABLE_PAGE));
    put(POINTER_TABLE_PAGE, &mut pointer(DIRECTORY_PAGE));
    put(DIRECTORY_PAGE, &mut (0..512_u64).flat_map(|index| (index << 21 | LARGE_PAGE).to_le_bytes()));
    put(CODE_PAGE, &mut code.iter().copied());
    pages
}

fn long_mode_cpu(kvm: &Kvm, vm: &VmFd) -> Result<VcpuFd, kvm_ioctls::Error> {
    let cpu = vm.create_vcpu(0)?;
    cpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut special = cpu.get_sregs()?;
    let segment = |selector: u16, type_: u8, l: u8, db: u8| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    special.cs = segment(0x10, 11, 1, 0);
    let data = segment(0x18, 3, 0, 1);
    [special.ds, special.es, special.fs, special.gs, special.ss] = [data; 5];
    // PG, AM, WP, NE, ET, MP, PE.
    special.cr0 = 0x8005_0033;
    special.cr3 = (ROOT_TABLE_PAGE as u64) << 12;
    // PAE, OSFXSR, OSXMMEXCPT.
    special.cr4 = 0x20 | 0x200 | 0x400;
    // LME, LMA.
    special.efer = 0x500;
    cpu.set_sregs(&special)?;
    let start = (CODE_PAGE as u64) << 12;
    cpu.set_regs(&kvm_regs { rip: start, rsp: 0x8000, rflags: 2, ..Default::default() })?;
    Ok(cpu)
}
