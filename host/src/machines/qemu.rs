// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The command lines of the two programs of a QEMU machine.
//!
//! Relative paths refer to the machine's run folder, because it is the working folder of the programs. So the paths of
//! sockets stay below Linux's limit of 107 bytes, even if the folder's own path is longer.

use std::ffi::OsString;

use super::{
    file_names::LINK_SOCKETS,
    runner_messages::{Accelerator, MachineConfig, QemuConfig},
};

/// The lowest log level at which QEMU logs errors of its guest.
const GUEST_ERRORS_LEVEL: u8 = 4;
/// The socket on which `vhost-device-vsock` waits for QEMU.
pub(super) const VHOST_SOCKET: &str = "vhost";
/// Size of the guest's vsock buffer on the host, in bytes. `vhost-device-vsock` loses packets of more than 32 KiB from
/// newer kernels, and a guest sends no packet that is larger than this buffer.
const VSOCK_BUFFER_BYTES: u32 = 28 * 1024;
/// The guest's vsock address. All machines can use the same address, because each has its own `vhost-device-vsock`.
const GUEST_CID: u32 = 3;

/// Maximum size of the code that emulation has translated, in MiB. Without this limit, QEMU may use 1 GiB. Compilers
/// take about 5 % more time with 64 MiB, and 25 % more with 32 MiB.
const TRANSLATED_MIB_MAX: u32 = 64;

/// Initialisations of the kernel that are skipped under emulation, where they take time or do harm.
const SKIPPED_INITCALLS: [&str; 7] = [
    // Changes code of the kernel while other processors run it. QEMU 7.2 may then run the old code, and one boot in
    // twenty with four processors panics. Without this call the kernel reads the clock as if processors could disagree.
    "sched_clock_init_late",
    // A source of randomness for the kernel's cryptography interface, which guests do not have. getrandom has others.
    "jent_mod_init",
    // The clock in CMOS memory, as a device: the host sets the guest's clock, and the device does not work here.
    "cmos_init",
    // The device /dev/cpu/N/cpuid; programs use the instruction.
    "cpuid_init",
    // KVM in guests, in which no guest may run.
    "svm_init",
    // File systems of disks that a machine does not have; guests cannot mount others.
    "init_btrfs_fs",
    "init_xfs_fs",
];

/// Arguments of `vhost-device-vsock`.
pub(super) fn vhost_device_vsock() -> Vec<OsString> {
    let vm = format!(
        "guest-cid={GUEST_CID},uds-path={LINK_SOCKETS},socket={VHOST_SOCKET},tx-buffer-size={VSOCK_BUFFER_BYTES}"
    );
    vec!["--vm".into(), vm.into()]
}

/// Arguments of QEMU; `vhost` is the number of the descriptor that is connected to `vhost-device-vsock`.
pub(super) fn qemu(machine: &MachineConfig, config: &QemuConfig, vhost: i32) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::with_capacity(52);
    let mut pair = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
    let (accelerator, cpu) = match config.accelerator {
        Accelerator::Kvm => ("kvm".to_owned(), "host"),
        // TCG's default CPU lacks features that x86-64-v2 programs need. Kernel and libc copy with `rep movsb` if the
        // processor reports this instruction as fast (ERMS). TCG executes the instruction byte by byte, which takes
        // four times the time, so ERMS is off.
        Accelerator::Emulation { .. } => (format!("tcg,thread=multi,tb-size={TRANSLATED_MIB_MAX}"), "max,erms=off"),
    };
    let memory = machine.memory_mib;
    pair("-accel", accelerator.into());
    // libkrunfw's kernel has no ACPI. Without ACPI the machine has eight slots for virtio devices. The timer (PIT) and
    // the interrupt controller (PIC) stay on: without the PIT the kernel hangs, without both its timers never tick.
    pair("-machine", "microvm,acpi=off,memory-backend=memory".into());
    pair("-cpu", cpu.into());
    pair("-smp", machine.cpus.to_string().into());
    pair("-m", format!("{memory}M").into());
    pair("-object", format!("memory-backend-memfd,id=memory,size={memory}M,share=on").into());
    pair("-kernel", config.kernel.clone().into());
    pair("-initrd", config.initramfs.clone().into());
    pair("-append", kernel_command_line(config).into());
    pair("-drive", drive("image", machine.image.clone().into(), "readonly=on"));
    pair("-device", "virtio-blk-device,drive=image".into());
    // If the host's disk is full, the guest must see an I/O error; by default QEMU would pause the machine.
    pair("-drive", drive("scratch", machine.scratch.clone().into(), "werror=report,rerror=report,discard=unmap"));
    pair("-device", "virtio-blk-device,drive=scratch".into());
    pair("-device", "virtio-rng-device".into());
    // The guest reports memory that it has freed, and QEMU returns that memory to the host.
    pair("-device", "virtio-balloon-device,free-page-reporting=on".into());
    pair("-chardev", format!("socket,id=vhost,fd={vhost}").into());
    pair("-device", "vhost-user-vsock-device,chardev=vhost".into());
    pair("-chardev", "stdio,id=console,signal=off".into());
    // The bus of the console, which has port 0, and of further ports.
    pair("-device", "virtio-serial-device,id=ports".into());
    pair("-device", "virtconsole,bus=ports.0,nr=0,chardev=console".into());
    if config.log_level >= GUEST_ERRORS_LEVEL {
        pair("-d", "guest_errors,unimp".into());
    }
    pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny".into());
    arguments.extend(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"].map(OsString::from));
    arguments
}

fn drive(id: &str, path: OsString, options: &str) -> OsString {
    let mut drive = OsString::from(format!("if=none,id={id},format=raw,{options},file="));
    drive.push(comma_doubled(path));
    drive
}

// In QEMU's option syntax a comma ends a value; two commas mean a literal comma.
fn comma_doubled(path: OsString) -> OsString {
    match path.into_string() {
        Ok(text) => text.replace(',', ",,").into(),
        Err(bytes) => bytes,
    }
}

fn kernel_command_line(config: &QemuConfig) -> String {
    // On a panic the kernel reboots at once, and the reboot ends the machine. A triple fault is the fastest reboot
    // method.
    let mut line = "console=hvc0 quiet panic=-1 reboot=t".to_owned();
    if let Accelerator::Emulation { tsc_khz } = config.accelerator {
        // Without the first two options, one boot in four hangs while the kernel calibrates the emulated timers. Under
        // emulation the guest reads the host's counter, so the counter's frequency is known and need not be calibrated.
        // On a busy host the emulated timer is too slow for the kernel's check of the timer, which panics then.
        let skipped = SKIPPED_INITCALLS.join(",");
        line.push_str(&format!(" tsc_early_khz={tsc_khz} tsc=reliable no_timer_check initcall_blacklist={skipped}"));
    }
    if let Some(arguments) = &config.kernel_arguments {
        line.push_str(&format!(" {arguments}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(accelerator: Accelerator, vhost: i32) -> String {
        let machine =
            MachineConfig { cpus: 2, memory_mib: 512, image: "/c/a,b.erofs".into(), scratch: "scratch".into() };
        let config = QemuConfig {
            qemu: "/q".into(),
            vhost_device_vsock: "/v".into(),
            accelerator,
            kernel: "/k/vmlinux".into(),
            kernel_arguments: Some("noapictimer".to_owned()),
            initramfs: "initramfs".into(),
            log_level: 0,
        };
        line(&qemu(&machine, &config, vhost))
    }

    fn line(arguments: &[OsString]) -> String {
        arguments.iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn emulation_passes_the_clock_rate_to_the_guest() {
        let line = arguments(Accelerator::Emulation { tsc_khz: 2_596_098 }, 7);
        assert!(line.contains("-machine microvm,acpi=off,memory-backend=memory -cpu max,erms=off -smp 2"), "{line}");
        assert!(
            line.contains("panic=-1 reboot=t tsc_early_khz=2596098 tsc=reliable no_timer_check initcall"),
            "{line}"
        );
        assert!(line.contains(",init_xfs_fs noapictimer -drive"), "{line}");
        assert!(line.contains("socket,id=vhost,fd=7"), "{line}");
    }

    #[test]
    fn kvm_uses_the_host_cpu_and_calibrates_its_own_clock() {
        let line = arguments(Accelerator::Kvm, 3);
        assert!(line.contains("-accel kvm"), "{line}");
        assert!(line.contains("-cpu host"), "{line}");
        assert!(line.contains("-append console=hvc0 quiet panic=-1 reboot=t noapictimer -drive"), "{line}");
    }

    #[test]
    fn image_is_read_only_and_full_disks_are_reported() {
        let line = arguments(Accelerator::Kvm, 3);
        assert!(line.contains("id=image,format=raw,readonly=on,file=/c/a,,b.erofs"), "{line}");
        assert!(
            line.contains("id=scratch,format=raw,werror=report,rerror=report,discard=unmap,file=scratch"),
            "{line}"
        );
    }
}
