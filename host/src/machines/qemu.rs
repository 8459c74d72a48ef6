// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The command line of a QEMU machine.
//!
//! Relative paths refer to the machine's run folder, because it is QEMU's working folder.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::io::{FdFlags, fcntl_setfd};
use waggle_protocol::boot::{CALL_PORT_NAME, EGRESS_PORT_NAME};

use super::confine::OWN_DESCRIPTORS;
use super::runner_messages::{Accelerator, MachineConfig, QemuConfig, QemuStart};

/// The lowest log level at which QEMU logs errors of its guest.
const GUEST_ERRORS_LEVEL: u8 = 4;
/// Number of ports of the virtio-serial device: the console's, and one for each link.
const PORTS_MAX: u32 = 3;
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

/// Open files and connections that QEMU inherits.
#[derive(Debug)]
pub(super) struct Inherited {
    pub(super) memory: OwnedFd,
    /// The state of the devices in a snapshot; `None` if the guest boots.
    pub(super) devices: Option<OwnedFd>,
    pub(super) monitor: UnixStream,
    /// The connection to the host for the calls.
    pub(super) calls: UnixStream,
    /// The connection to the host for the network; `None` if the machine has none.
    pub(super) egress: Option<UnixStream>,
}

impl Inherited {
    /// Keeps the descriptors open when this process executes QEMU.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn keep_open(&self) -> io::Result<()> {
        let required = [self.memory.as_fd(), self.monitor.as_fd(), self.calls.as_fd()];
        let optional = [self.devices.as_ref().map(AsFd::as_fd), self.egress.as_ref().map(AsFd::as_fd)];
        for descriptor in required.into_iter().chain(optional.into_iter().flatten()) {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        Ok(())
    }
}

/// Arguments of QEMU.
pub(super) fn qemu(machine: &MachineConfig, config: &QemuConfig, inherited: &Inherited) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::with_capacity(64);
    let mut pair = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
    let (accelerator, cpu) = match config.accelerator {
        Accelerator::Kvm => ("kvm".to_owned(), "host"),
        // TCG's default CPU lacks features that x86-64-v2 programs need. Kernel and libc copy with `rep movsb` if the
        // processor reports this instruction as fast (ERMS). TCG executes the instruction byte by byte, which takes
        // four times the time, so ERMS is off.
        Accelerator::Emulation { .. } => (format!("tcg,thread=multi,tb-size={TRANSLATED_MIB_MAX}"), "max,erms=off"),
    };
    pair("-accel", accelerator.into());
    // libkrunfw's kernel has no ACPI. Without ACPI the machine has eight slots for virtio devices. The timer (PIT) and
    // the interrupt controller (PIC) stay on: without the PIT the kernel hangs, without both its timers never tick.
    // The state of the devices has no description of itself, which QEMU would miss otherwise.
    pair("-machine", "microvm,acpi=off,memory-backend=memory,suppress-vmdesc=on".into());
    pair("-cpu", cpu.into());
    pair("-smp", machine.cpus.to_string().into());
    pair("-m", format!("{}M", machine.memory_mib).into());
    let mut is_private = false;
    match &config.start {
        QemuStart::Boot { kernel, kernel_arguments, initramfs } => {
            pair("-kernel", kernel.clone().into());
            pair("-initrd", initramfs.clone().into());
            pair("-append", kernel_command_line(&config.accelerator, kernel_arguments.as_deref()).into());
        }
        QemuStart::Snapshot { is_shared } => {
            is_private = *is_shared;
            // The state contains only the devices. The section that would describe the machine is missing.
            pair("-global", "migration.send-configuration=off".into());
            pair("-incoming", format!("fd:{}", inherited.devices.as_ref().map_or(-1, AsRawFd::as_raw_fd)).into());
        }
    }
    // QEMU opens the file for writing, even if it changes only a private copy.
    let (size, number) = (machine.memory_mib, inherited.memory.as_raw_fd());
    let share = if is_private { "off" } else { "on" };
    pair(
        "-object",
        format!("memory-backend-file,id=memory,size={size}M,mem-path={OWN_DESCRIPTORS}/{number},share={share}").into(),
    );
    pair("-drive", drive("image", machine.image.clone().into(), "readonly=on"));
    pair("-device", "virtio-blk-device,drive=image".into());
    // If the host's disk is full, the guest must see an I/O error; by default QEMU would pause the machine. The disk
    // cannot discard: QEMU would punch holes into it, and the filter of a machine with shared memory swallows that.
    pair("-drive", drive("scratch", machine.scratch.clone().into(), "werror=report,rerror=report,discard=ignore"));
    pair("-device", "virtio-blk-device,drive=scratch,discard=off,write-zeroes=off".into());
    pair("-device", "virtio-rng-device".into());
    // The guest reports memory that it has freed, and QEMU returns that memory to the host.
    pair("-device", "virtio-balloon-device,free-page-reporting=on".into());
    pair("-chardev", "stdio,id=console,signal=off".into());
    pair("-device", format!("virtio-serial-device,max_ports={PORTS_MAX}").into());
    pair("-device", "virtconsole,nr=0,chardev=console".into());
    let links = [(CALL_PORT_NAME, Some(&inherited.calls)), (EGRESS_PORT_NAME, inherited.egress.as_ref())];
    for (name, connection) in links.into_iter().filter_map(|(name, link)| Some((name, link?))) {
        pair("-chardev", format!("socket,id={name},fd={}", connection.as_raw_fd()).into());
        pair("-device", format!("virtserialport,chardev={name},name={name}").into());
    }
    pair("-chardev", format!("socket,id=monitor,fd={}", inherited.monitor.as_raw_fd()).into());
    pair("-mon", "chardev=monitor,mode=control".into());
    if config.log_level >= GUEST_ERRORS_LEVEL {
        pair("-d", "guest_errors,unimp".into());
    }
    pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny".into());
    arguments.extend(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"].map(OsString::from));
    arguments
}

// QEMU's locks are off: the image is read-only, the scratch disk is this machine's, and a lock of a VMM that a guest
// has taken over could keep all other machines from opening the image.
fn drive(id: &str, path: OsString, options: &str) -> OsString {
    let mut drive = OsString::from(format!("if=none,id={id},format=raw,file.locking=off,{options},file="));
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

fn kernel_command_line(accelerator: &Accelerator, arguments: Option<&str>) -> String {
    // On a panic the kernel reboots at once, and the reboot ends the machine. A triple fault is the fastest reboot
    // method.
    let mut line = "console=hvc0 quiet panic=-1 reboot=t".to_owned();
    if let Accelerator::Emulation { tsc_khz } = accelerator {
        // Without the first two options, one boot in four hangs while the kernel calibrates the emulated timers. Under
        // emulation the guest reads the host's counter, so the counter's frequency is known and need not be calibrated.
        // On a busy host the emulated timer is too slow for the kernel's check of the timer, which panics then.
        let skipped = SKIPPED_INITCALLS.join(",");
        line.push_str(&format!(" tsc_early_khz={tsc_khz} tsc=reliable no_timer_check initcall_blacklist={skipped}"));
    }
    if let Some(arguments) = arguments {
        line.push_str(&format!(" {arguments}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn arguments(accelerator: Accelerator, has_network: bool) -> String {
        let start = QemuStart::Boot {
            kernel: "/k/vmlinux".into(),
            kernel_arguments: Some("noapictimer".to_owned()),
            initramfs: "initramfs".into(),
        };
        arguments_of(accelerator, has_network, start)
    }

    fn arguments_of(accelerator: Accelerator, has_network: bool, start: QemuStart) -> String {
        let machine =
            MachineConfig { cpus: 2, memory_mib: 512, image: "/c/a,b.erofs".into(), scratch: "scratch".into() };
        let file = || File::open("/dev/null").unwrap().into();
        let devices = matches!(start, QemuStart::Snapshot { .. }).then(file);
        let config = QemuConfig { qemu: "/q".into(), has_network, accelerator, start, log_level: 0 };
        let ((calls, egress), (monitor, _)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let inherited = Inherited { memory: file(), devices, monitor, calls, egress: has_network.then_some(egress) };
        line(&qemu(&machine, &config, &inherited))
    }

    fn line(arguments: &[OsString]) -> String {
        arguments.iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn emulation_passes_the_clock_rate_to_the_guest() {
        let line = arguments(Accelerator::Emulation { tsc_khz: 2_596_098 }, false);
        assert!(
            line.contains(
                "-machine microvm,acpi=off,memory-backend=memory,suppress-vmdesc=on -cpu max,erms=off -smp 2"
            ),
            "{line}"
        );
        assert!(
            line.contains("panic=-1 reboot=t tsc_early_khz=2596098 tsc=reliable no_timer_check initcall"),
            "{line}"
        );
        assert!(line.contains(",init_xfs_fs noapictimer -object"), "{line}");
        assert!(line.contains("virtserialport,chardev=waggle.calls,name=waggle.calls"), "{line}");
        assert!(!line.contains("waggle.egress"), "{line}");
    }

    #[test]
    fn kvm_uses_the_host_cpu_and_calibrates_its_own_clock() {
        let line = arguments(Accelerator::Kvm, true);
        assert!(line.contains("-accel kvm"), "{line}");
        assert!(line.contains("-cpu host"), "{line}");
        assert!(line.contains("virtserialport,chardev=waggle.egress,name=waggle.egress"), "{line}");
        assert!(line.contains("-append console=hvc0 quiet panic=-1 reboot=t noapictimer -object"), "{line}");
    }

    #[test]
    fn machine_from_a_snapshot_boots_nothing_and_changes_no_shared_memory() {
        for (is_shared, share) in [(true, "share=off"), (false, "share=on")] {
            let line = arguments_of(Accelerator::Kvm, false, QemuStart::Snapshot { is_shared });
            assert!(line.contains(share), "{line}");
            assert!(line.contains("-incoming fd:"), "{line}");
            assert!(!line.contains("-kernel") && !line.contains("-append"), "{line}");
        }
        assert!(arguments(Accelerator::Kvm, false).contains("share=on"));
    }

    #[test]
    fn image_is_read_only_and_full_disks_are_reported() {
        let line = arguments(Accelerator::Kvm, true);
        assert!(line.contains("id=image,format=raw,file.locking=off,readonly=on,file=/c/a,,b.erofs"), "{line}");
        assert!(
            line.contains(
                "id=scratch,format=raw,file.locking=off,werror=report,rerror=report,discard=ignore,file=scratch"
            ),
            "{line}"
        );
    }
}
